//! What a journal is found to hold at a start.

use crate::{list, write};
use nbd_mirror_fuzz::journal_recovery::image::{Field, Image, Mutation, Step, Written};
use nbd_mirror_fuzz::pick::Number;
use nbd_mirror_fuzz::structured::List;

pub fn write_all() -> std::io::Result<()> {
    let records = |count: u8| -> List<Written> {
        let written = |n: u8| Written {
            kind: n % 5,
            volume: n,
            flags: n,
            offset_blocks: n * 3,
            length: 1000 * u16::from(n),
            byte: n,
        };
        List((0..count).map(written).collect())
    };
    let frame = |n: u8| Step::Frame { flags: n, uncommitted: n % 3, records: records(1 + n % 4) };
    let frames = |count: u8| -> Vec<Step> { (0..count).map(frame).collect() };
    let one_fill = frames(4);
    let two_fills = [frames(5), vec![Step::NextFill], frames(3)].concat();
    let many_fills = [frames(40), vec![Step::Restart], frames(40)].concat();
    let torn = [frames(6), vec![Step::Torn { frames: 2 }], frames(1), vec![Step::NextFill], frames(2)].concat();
    let untouched = |name: &str, steps: &[Step], behind| {
        let image = Image {
            half_blocks: 28,
            fill: 4,
            seq: Number::Small { n: 40 },
            steps: list(steps),
            behind,
            vouched: true,
            mutations: list(&[]),
        };
        write("journal_recovery", name, &image)
    };
    untouched("empty", &[], 0)?;
    untouched("one-fill", &one_fill, 1)?;
    untouched("two-fills", &two_fills, 2)?;
    untouched("second-fill-clean", &two_fills, 1)?;
    untouched("all-clean", &two_fills, 0)?;
    untouched("many-fills", &many_fills, 2)?;
    untouched("torn-tail", &torn, 2)?;
    untouched("torn-last", &[frames(3), vec![Step::Torn { frames: 1 }]].concat(), 1)?;

    let flip = |half, at| Mutation::Flip { half, at, bit: 3 };
    let forge = |at: Field, value| Mutation::Forge { half: true, block: 0, at, value };
    let mut cases = vec![
        ("flip-header", vec![flip(true, 50)]),
        ("flip-payload", vec![flip(true, 5000)]),
        ("flip-second-fill", vec![flip(false, 50)]),
        ("zeroed", vec![Mutation::Zero { half: true, sector: 8, count: 24 }]),
        ("misplaced-sector", vec![Mutation::Misplaced { half: true, from: 0, to: 16, whole_block: false }]),
        ("misplaced-block", vec![Mutation::Misplaced { half: true, from: 0, to: 2, whole_block: true }]),
        ("swapped", vec![Mutation::Swap]),
        ("short", vec![Mutation::Short { half: true, bytes: 60000 }]),
        ("noise", vec![Mutation::Noise { half: false, at: 10, bytes: list(b"NBDMFRAM") }]),
        ("forged-count", vec![forge(Field::Count, Number::More { by: 1 })]),
        ("forged-position", vec![forge(Field::Position, Number::Huge { below: 0 })]),
        ("forged-first", vec![forge(Field::First, Number::Huge { below: 3 })]),
        ("forged-committed", vec![forge(Field::Committed, Number::Huge { below: 0 })]),
        ("forged-fill", vec![forge(Field::Fill, Number::More { by: 1 })]),
        ("forged-epoch", vec![forge(Field::Epoch, Number::Huge { below: 0 })]),
        ("forged-length", vec![forge(Field::Length, Number::Less { by: 1 })]),
        ("forged-offset", vec![forge(Field::Offset, Number::Huge { below: 255 })]),
        ("forged-volume", vec![forge(Field::Volume, Number::Small { n: 31 })]),
        ("forged-previous", vec![forge(Field::Previous, Number::Same)]),
    ];
    for (vouched, suffix) in [(true, ""), (false, "-not-vouched")] {
        for (name, mutations) in &mut cases {
            let image = Image {
                half_blocks: 28,
                fill: 4,
                seq: Number::Small { n: 40 },
                steps: list(&two_fills),
                behind: 2,
                vouched,
                mutations: list(mutations),
            };
            write("journal_recovery", &format!("{name}{suffix}"), &image)?;
        }
    }
    Ok(())
}
