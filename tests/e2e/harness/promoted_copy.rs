//! A promote on the side: of a copy of what a destination that isn't running left behind. So each moment can be tried
//! whether it could be promoted, while the real one goes on afterwards.

use std::path::Path;
use std::time::Instant;

use super::{Daemon, DestinationConfig, Endpoint, Image, Plan};

/// A copy of a destination, promoted.
pub struct PromotedCopy {
    _destination: Daemon,
    config: DestinationConfig,
    /// When the promote was asked for.
    pub began: Instant,
    /// What it said.
    pub said: String,
}

impl PromotedCopy {
    /// Copies the destination of a plan into a folder, and promotes the copy. The source may live, as long as it answers
    /// nothing that the copy is expected to hold.
    #[track_caller]
    pub fn of(plan: &Plan, dir: &Path) -> PromotedCopy {
        let mut config = DestinationConfig::new(dir);
        copy_folder(&plan.destination.journal_dir, &config.journal_dir);
        copy_log(&config.journal_dir, &dir.join("nvram.log"));
        let copy_image = |(name, image): &(String, std::path::PathBuf)| {
            let to = dir.join(format!("{name}.image"));
            copy_file(image, &to);
            (name.clone(), to)
        };
        let (source, images) = &plan.destination.sources[0];
        config.sources.push((source.clone(), images.iter().map(copy_image).collect()));
        let destination = Daemon::destination(&config);
        let began = Instant::now();
        let said = destination.promote(source, true).success();
        PromotedCopy { _destination: destination, config, began, said }
    }

    /// Where it serves.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.config.unix())
    }

    /// What it serves.
    pub fn exports(&self) -> Vec<Image> {
        let endpoint = self.endpoint();
        self.config.sources[0].1.iter().map(|(name, _)| Image::export(&endpoint, name)).collect()
    }
}

/// Copies a file, onto the disk: what reads it next mustn't wait for that.
fn copy_file(from: &Path, to: &Path) {
    std::fs::copy(from, to).and_then(|_| std::fs::File::open(to)?.sync_all()).expect("copy a file");
}

/// Copies the log that was used, where one was, and notes where the copy is.
fn copy_log(journal_dir: &Path, to: &Path) {
    let note = journal_dir.join("nvram");
    let Ok(text) = std::fs::read_to_string(&note) else { return };
    let (id, path) = text.trim_end().split_once('\n').expect("a note of two lines");
    copy_file(Path::new(path), to);
    std::fs::write(&note, format!("{id}\n{}\n", to.display())).expect("write the note");
}

/// Copies a folder with all that is in it.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("make a folder");
    for entry in std::fs::read_dir(from).expect("list a folder") {
        let entry = entry.expect("list a folder");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            copy_file(&entry.path(), &to);
        }
    }
}
