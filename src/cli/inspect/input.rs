//! What kind of file is looked into, and where its frames are.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, bail};

use super::walk::{Part, Section, read};
use crate::core::recovery::copies::Reading;
use crate::format::block::Block;
use crate::format::frame::{self, Header};
use crate::format::ids::{Mark, Seq};
use crate::format::kept::{self, FRAMES_OFFSET, Kept};
use crate::format::superblock::{Role, Superblock};
use crate::limits::{BLOCK_BYTES, JOURNAL_DATA_OFFSET};

/// A file that holds something of ours.
#[derive(Debug)]
pub(super) struct Input {
    pub file: File,
    /// In words.
    pub what: &'static str,
    pub superblock: Option<Superblock>,
    pub kept: Option<Kept>,
    /// Parts with frames, each with the boundary before it where that is known by itself.
    pub sections: Vec<(Section, Option<Mark>)>,
    /// What is wrong with the file's beginning, and where.
    pub damage: Vec<(u64, String)>,
}

/// Opens it read-only, without any lock.
pub(super) fn open(path: &Path) -> anyhow::Result<Input> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("can't open {shown}"))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        bail!("{shown} is a folder; name a file in it, for example {shown}/fill-0.journal");
    }
    let bytes = file.seek(SeekFrom::End(0)).with_context(|| format!("can't measure {shown}"))?;
    let mut buffer = [0; 2 * BLOCK_BYTES];
    // A file may be shorter: what isn't there is zero.
    read(&file, 0, buffer.len() as u64, &mut buffer).with_context(|| format!("can't read {shown}"))?;
    let (blocks, _) = buffer.as_chunks::<BLOCK_BYTES>();
    let blocks = [&blocks[0], &blocks[1]];
    recognize(file, bytes, blocks).with_context(|| format!("{shown} can't be looked into"))
}

fn recognize(file: File, bytes: u64, blocks: [&Block; 2]) -> anyhow::Result<Input> {
    let input = |what| Input { file, what, superblock: None, kept: None, sections: Vec::new(), damage: Vec::new() };
    if blocks[0][..8] == kept::MAGIC {
        let kept = Kept::decode(blocks).context("its head is damaged")?;
        let middle = FRAMES_OFFSET + kept.contents_bytes;
        let (source, end) = (kept.superblock.source, kept.file_bytes());
        let contents = Section { part: Part::Contents, source, start: FRAMES_OFFSET, end: middle };
        let journal = Section { part: Part::Journal, source, start: middle, end };
        let sections = vec![(contents, Some(Mark::default())), (journal, None)];
        let longer = (bytes > end).then(|| (end, format!("{} bytes behind the file's end", bytes - end)));
        let superblock = Some(kept.superblock.clone());
        let damage = longer.into_iter().collect();
        return Ok(Input { superblock, kept: Some(kept), sections, damage, ..input("what a fenced source discarded") });
    }
    if blocks[0][..8] == frame::MAGIC {
        let header = Header::parse(blocks[0]).context("its first frame's header is damaged")?;
        let part = Part::Half { fill: header.fill, of_source: false };
        let section = Section { part, source: header.source, start: 0, end: bytes };
        let before = Mark { fill: header.fill, seq: Seq(header.first.0 - 1), digest: header.previous };
        return Ok(Input { sections: vec![(section, Some(before))], ..input("a destination's journal file") });
    }
    let read = [Role::Source, Role::Destination].map(|role| Reading::of(role, blocks, false));
    let Some(read) = read.into_iter().find(|read| read.newest.is_some()) else {
        let trouble = Reading::of(Role::Source, blocks, false).trouble;
        bail!(
            "it is no source's journal, no destination's state or journal file that holds anything, and no file of \
             discarded records ({trouble})"
        );
    };
    let damage = if read.trouble.is_empty() { Vec::new() } else { vec![(0, read.trouble)] };
    let mut found = Input { damage, ..input("a destination's state") };
    found.superblock = read.newest;
    if let Some(superblock) = found.superblock.as_ref().filter(|superblock| superblock.role == Role::Source) {
        found.what = "a source's journal";
        let first = superblock.clean.fill.next();
        for fill in [first, first.next()] {
            let start = JOURNAL_DATA_OFFSET + fill.half() as u64 * superblock.half_bytes;
            let part = Part::Half { fill, of_source: true };
            let section = Section { part, source: superblock.source, start, end: start + superblock.half_bytes };
            found.sections.push((section, (fill == first).then_some(superblock.clean)));
        }
    }
    Ok(found)
}
