//! Recovery from any image of a journal, and what both cores make of its result.
//!
//! What is found is a chain that follows the clean mark, as long as it can be, of frames that are whole; nothing beyond
//! a break counts, and nothing is found that the source never wrote. Both cores then go on from it to the same end.

pub mod image;
mod settle;

use arbitrary::{Arbitrary, Unstructured};
use image::{Image, Journal, SOURCE};
use nbd_mirror::core::recovery::{self, Damage, Found, Recovered, frame_at};
use nbd_mirror::format::checksum::{crc32c, digest};
use nbd_mirror::format::frame::{Header, padded};
use nbd_mirror::format::ids::Mark;
use nbd_mirror::limits::BLOCK_BYTES;

/// Runs one image.
pub fn run(data: &[u8]) {
    let Ok(image) = Image::arbitrary(&mut Unstructured::new(data)) else { return };
    let journal = image.make();
    let outcome = recover(&journal, image.vouched);
    assert_eq!(outcome, recover(&journal, image.vouched));
    match outcome {
        Ok(recovered) => {
            check_chain(&journal, &recovered);
            if image.vouched {
                assert!(highest_claim(&journal).is_none_or(|claim| claim <= recovered.end.seq.0));
            }
            settle::settle(&journal, recovered, image.vouched);
        }
        Err(damage) => {
            assert!(image.vouched && !journal.untouched, "{damage}");
            check_damage(&journal, &damage);
            // Whoever doesn't take the headers' word goes on with what there is.
            let recovered = recover(&journal, false).expect("nothing vouches for what is missing");
            assert_eq!(recovered.end.seq, damage.held);
            check_chain(&journal, &recovered);
        }
    }
}

/// Recovers the journal.
pub fn recover(journal: &Journal, vouched: bool) -> Result<Recovered, Damage> {
    recovery::recover(&[&journal.halves[0][..], &journal.halves[1]], SOURCE, journal.clean, vouched)
}

fn check_chain(journal: &Journal, recovered: &Recovered) {
    let mut end = journal.clean;
    for (index, frames) in [&recovered.first, &recovered.second].into_iter().enumerate() {
        let fill = if index == 0 { journal.clean.fill.next() } else { journal.clean.fill.next().next() };
        let half = &journal.halves[fill.half()];
        let mut position = 0;
        for Found { header, mark } in frames {
            assert_eq!((header.source, header.fill, header.position), (SOURCE, fill, position));
            assert_eq!((header.previous, header.first), (end.digest, end.seq.next()));
            let block = half[position as usize..].first_chunk().expect("the header's block");
            assert_eq!(Header::parse(block).as_ref(), Ok(header));
            check_payload(header, block, &half[position as usize + BLOCK_BYTES..]);
            assert_eq!(*mark, Mark { fill, seq: header.last(), digest: digest(block) });
            assert!(journal.forged || journal.made.contains(mark), "a frame that never was: {mark}");
            position += header.frame_bytes();
            end = *mark;
        }
        // It ends where it must.
        if index == 0 || !recovered.first.is_empty() {
            assert!(
                frame_at(&[&journal.halves[0][..], &journal.halves[1]], SOURCE, fill, position, end).is_err(),
                "the chain goes on at byte {position}"
            );
        }
    }
    assert!(!recovered.first.is_empty() || recovered.second.is_empty());
    assert_eq!(recovered.end, end);
    if journal.untouched {
        let found = recovered.first.iter().chain(&recovered.second).map(|found| found.mark);
        assert!(found.eq(journal.chain.iter().copied()), "{recovered:?} of {:?}", journal.chain);
    }
}

fn check_payload(header: &Header, block: &[u8; BLOCK_BYTES], payload: &[u8]) {
    let mut at = 0;
    for record in header.records(block) {
        let bytes = record.payload_bytes();
        assert!(bytes == 0 || crc32c(&payload[at..at + bytes]) == record.checksum);
        at += padded(bytes);
    }
    assert_eq!(at, header.payload_bytes as usize);
}

/// The highest record that a header of the two fills that count calls committed.
fn highest_claim(journal: &Journal) -> Option<u64> {
    let first = journal.clean.fill.next();
    let in_half = |half: usize| {
        let blocks = journal.halves[half].as_chunks::<BLOCK_BYTES>().0.iter().enumerate();
        let headers = blocks.filter_map(|(n, block)| Some((n * BLOCK_BYTES, Header::parse(block).ok()?)));
        // A header counts where it belongs.
        headers.filter(move |(at, header)| header.fill.half() == half && header.position == *at as u64)
    };
    let headers = in_half(0).chain(in_half(1)).map(|(_, header)| header);
    let count = headers.filter(|header| header.source == SOURCE && header.fill >= first);
    count.map(|header| header.committed.0).max()
}

fn check_damage(journal: &Journal, damage: &Damage) {
    // Frames of a later fill show that the superblock is lost, whatever they say of records.
    assert!(damage.committed > damage.held || damage.reason.contains("superblock"), "{damage}");
    assert_eq!(highest_claim(journal), Some(damage.committed.0));
    let fills = [journal.clean.fill.next(), journal.clean.fill.next().next()];
    assert!(fills.contains(&damage.fill) && damage.position <= journal.half_bytes);
}
