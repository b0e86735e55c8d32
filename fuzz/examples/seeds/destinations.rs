//! What a destination's core is told, one play a seed.

use crate::{list, write};
use nbd_mirror_fuzz::core_events::Play;
use nbd_mirror_fuzz::core_events::destination::{
    self, DestinationEvent, DestinationPlay, FrameEdit, FrameField, SentRecord,
};
use nbd_mirror_fuzz::pick::{MarkPick, Number};
use nbd_mirror_fuzz::structured::List;

pub fn write_all() -> std::io::Result<()> {
    use DestinationEvent::*;
    let record = |kind, block| SentRecord { kind, volume: 0, flags: 0, block, length: 9000 };
    let frame = |flags, kinds: &[u8]| Frame {
        next_fill: false,
        flags,
        records: List(kinds.iter().map(|kind| record(*kind, u16::from(*kind) * 7)).collect()),
        edits: list(&[]),
    };
    let edited = |field, value| Frame {
        next_fill: false,
        flags: 1,
        records: list(&[record(0, 1)]),
        edits: list(&[FrameEdit { field, value }]),
    };
    let next = Frame { next_fill: true, flags: 1, records: list(&[record(0, 3)]), edits: list(&[]) };
    let meet = vec![Connect { hello: destination::Connect::Itself }, ResumeHere];
    let stream = |flags| {
        vec![
            frame(flags, &[0]),
            frame(flags, &[0, 1, 2]),
            Store { count: 1 },
            frame(flags, &[0, 0]),
            Store { count: 4 },
            CompleteAll,
            Turn,
            CompleteAll,
            Turn,
        ]
    };
    let apply = vec![
        SyncHere { whole: true },
        Turn,
        Apply { count: 3 },
        Complete { which: 1 },
        CompleteAll,
        Turn,
        CompleteAll,
        Turn,
        CompleteAll,
    ];
    let again = vec![Disconnect, Settle, Connect { hello: destination::Connect::Itself }];
    let back = |back| Resume { common: MarkPick::Known { back } };
    let begin = vec![meet[0].clone(), Restart { at: MarkPick::Zero }];
    // The source comes back from afar.
    let anew = [again.clone(), vec![SettleHere, Settle, RestartBehind { fills: 3 }, Settle]].concat();
    let questions = vec![
        Ask { id: 1, volume: 0, block: 0, length: Number::Any { n: 40 << 10 } },
        Ping { answered: Number::Same, alone: true },
        Answer,
        Turn,
        Answer,
    ];
    let whole = vec![SyncHere { whole: true }, Settle];
    let partial = vec![SyncHere { whole: false }, Settle];
    let flushes = vec![frame(2, &[3]), Store { count: 1 }, CompleteAll];
    let mut cases: Vec<(&str, Vec<DestinationEvent>)> = vec![
        ("always", [meet.clone(), stream(1), apply.clone()].concat()),
        ("flush", [meet.clone(), stream(0), stream(2), apply.clone()].concat()),
        (
            "two-fills",
            [
                meet.clone(),
                stream(1),
                apply.clone(),
                vec![next.clone()],
                stream(1),
                apply.clone(),
                vec![next.clone(), Settle],
            ]
            .concat(),
        ),
        ("next-fill-too-early", [meet.clone(), stream(1), vec![next.clone(), Settle]].concat()),
        ("from-scratch", [begin.clone(), stream(1), apply.clone()].concat()),
        (
            "from-scratch-at-the-end-of-numbers",
            vec![
                meet[0].clone(),
                Restart {
                    at: MarkPick::Any { fill: Number::Huge { below: 0 }, seq: Number::Huge { below: 0 }, digest: 1 },
                },
                frame(1, &[0]),
                Settle,
            ],
        ),
        ("dropped", [meet.clone(), stream(1), again.clone(), vec![back(1)], stream(1), apply.clone()].concat()),
        ("dropped-all", [meet.clone(), stream(1), again.clone(), vec![back(3)], stream(1), apply.clone()].concat()),
        (
            "dropped-two-fills",
            [
                meet.clone(),
                stream(1),
                apply.clone(),
                vec![next.clone(), Settle],
                again.clone(),
                vec![back(1)],
                stream(1),
            ]
            .concat(),
        ),
        (
            "dropped-sealed",
            [meet.clone(), stream(1), vec![SyncHere { whole: false }], again.clone(), vec![back(2), Settle]].concat(),
        ),
        (
            "sealed-too-early",
            [
                meet.clone(),
                flushes.clone(),
                vec![
                    frame(0, &[0]),
                    Store { count: 1 },
                    SyncHere { whole: true },
                    Turn,
                    CompleteAll,
                    Turn,
                    frame(0, &[0]),
                    Settle,
                ],
            ]
            .concat(),
        ),
        ("only-flushes", [meet.clone(), flushes.clone(), flushes.clone(), apply.clone(), vec![Settle]].concat()),
        (
            "signalled-twice",
            [
                meet.clone(),
                stream(1),
                apply.clone(),
                vec![Sync { last: MarkPick::Known { back: 0 }, whole: false }, Settle],
            ]
            .concat(),
        ),
        (
            "cut-in-the-middle",
            [
                meet.clone(),
                vec![frame(1, &[0]), Store { count: 1 }, frame(1, &[0]), Disconnect, CompleteAll],
                meet.clone(),
                stream(1),
            ]
            .concat(),
        ),
        (
            "promoted",
            [
                meet.clone(),
                stream(1),
                vec![Promote, Turn, CompleteAll, Connect { hello: destination::Connect::Itself }, Settle],
            ]
            .concat(),
        ),
        (
            "promoted-while-storing",
            [meet.clone(), vec![frame(0, &[0]), Store { count: 1 }, Promote, Turn, Settle]].concat(),
        ),
        ("promoted-empty", vec![Promote, Settle]),
        (
            "resync",
            [
                meet.clone(),
                stream(1),
                anew.clone(),
                stream(1),
                questions.clone(),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                questions.clone(),
                whole.clone(),
                vec![next.clone()],
                stream(1),
                partial.clone(),
            ]
            .concat(),
        ),
        (
            "resync-twice",
            [
                meet.clone(),
                anew.clone(),
                stream(1),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                anew.clone(),
                stream(1),
                whole.clone(),
                anew.clone(),
            ]
            .concat(),
        ),
        (
            "resync-cut-while-settling",
            [meet.clone(), stream(1), again.clone(), vec![SettleHere, Turn], again.clone(), vec![SettleHere, Settle]]
                .concat(),
        ),
        (
            "resync-promoted",
            [meet.clone(), stream(1), anew.clone(), stream(1), partial.clone(), vec![Promote, Turn, Settle]].concat(),
        ),
        (
            "resync-without-room",
            [
                meet.clone(),
                anew.clone(),
                stream(1),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                partial.clone(),
                again.clone(),
            ]
            .concat(),
        ),
        (
            "resync-best-effort",
            [
                meet.clone(),
                anew.clone(),
                stream(1),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                partial.clone(),
                anew.clone(),
                stream(1),
                whole.clone(),
            ]
            .concat(),
        ),
    ];
    let hellos = {
        use destination::Connect::*;
        [
            Epoch { epoch: Number::Less { by: 1 } },
            Epoch { epoch: Number::More { by: 1 } },
            Other,
            HalfBytes { bytes: Number::More { by: 1 } },
            Volumes { count: 1 },
            VolumeBytes { bytes: Number::Less { by: 1 } },
        ]
    };
    cases.push(("refusals", hellos.into_iter().map(|hello| Connect { hello }).collect()));
    let fields = {
        use FrameField::*;
        [Source, Epoch, Fill, Position, First, Committed, Previous, Volume, Offset, Length]
    };
    let edits = fields.into_iter().flat_map(|field| {
        let values = [Number::More { by: 1 }, Number::Huge { below: 0 }].map(|value| edited(field.clone(), value));
        [values.to_vec(), vec![frame(1, &[0]), Settle], meet.clone()].concat()
    });
    cases.push(("odd-headers", [meet.clone(), edits.collect()].concat()));
    for (name, events) in cases {
        let clean = if name.starts_with("from-scratch") { 0 } else { 4 };
        let staging_blocks = if name == "resync-without-room" || name == "resync-best-effort" { 15 } else { 255 };
        let best_effort = name == "resync-best-effort";
        let (volumes, blocks, half_blocks) = (1, 99, 60);
        let events = List(events);
        let whole = !name.starts_with("from-scratch");
        let play = DestinationPlay { volumes, blocks, half_blocks, clean, whole, staging_blocks, best_effort, events };
        write("core_events", &format!("destination-{name}"), &Play::Destination { play })?;
    }
    Ok(())
}
