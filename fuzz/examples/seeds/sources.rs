//! What a source's core is told, one play a seed.

use crate::{list, write};
use nbd_mirror_fuzz::core_events::Play;
use nbd_mirror_fuzz::core_events::source::{SourceEvent, SourcePlay};
use nbd_mirror_fuzz::pick::{MarkPick, Number};

pub fn write_all() -> std::io::Result<()> {
    use SourceEvent::*;
    let record = |block| Record { kind: 0, flags: 0, volume: 0, block, length: 4096 };
    let known = MarkPick::Known { back: 0 };
    let welcome = |fresh: bool, applied: &MarkPick, boundaries: &[MarkPick]| Welcome {
        verdict: 0,
        epoch: Number::Same,
        whole: !fresh,
        fresh,
        applied: applied.clone(),
        boundaries: list(boundaries),
    };
    let usual = welcome(false, &MarkPick::Known { back: 0 }, &[MarkPick::Known { back: 1 }, known.clone()]);
    let work = vec![
        record(1),
        record(2),
        Turn { millis: 1 },
        Burst { count: 40, kind: 0, block: 0, length: 131072 },
        Turn { millis: 1 },
        Send { count: 9 },
        Complete { which: 1 },
        CompleteAll,
        StoredAll,
        Turn { millis: 1 },
        Read { volume: 0, block: 0, blocks: 300 },
    ];
    let fill =
        vec![Burst { count: 200, kind: 0, block: 7, length: 131072 }, Settle, StoredAll, Settle, StoredAll, Settle];
    let change = vec![
        Record { kind: 2, flags: 0, volume: 1, block: 3, length: 1 << 20 },
        Record { kind: 3, flags: 3, volume: 0, block: 9, length: 8192 },
        Record { kind: 4, flags: 0, volume: 0, block: 0, length: 0 },
        Record { kind: 0, flags: 1, volume: 2, block: 5, length: 700 },
    ];
    let switch = vec![Turn { millis: 6000 }, Settle, StoredAll, Settle, Applied { mark: known.clone() }, Settle];
    let answer = [0, 0xff, 0xf0].map(|equal| Sums { which: 0, equal, unknown: false });
    let answers = [&answer[..], &[Settle, StoredAll, Settle], &answer, &answer, &answer].concat();
    // Until a fill that nobody else has is clean.
    let alone = [vec![Deadline, Deadline, Settle], change.clone(), fill.clone(), vec![Sync, Settle]].concat();
    let resync = [
        vec![Settle, Turn { millis: 1 }, Settle],
        answers.clone(),
        vec![Settle, StoredAll, Settle, StoredAll, Settle, Applied { mark: known.clone() }, Settle],
    ]
    .concat();
    let flap = vec![
        WelcomeAt { back: 0, lag: 0, whole: true },
        record(3),
        Settle,
        Disconnect,
        Deadline,
        WelcomeAt { back: 1, lag: 0, whole: true },
        Settle,
        StoredAll,
        Pong,
        Deadline,
        Pong,
        Turn { millis: 1000 },
        Settle,
        Disconnect,
        Turn { millis: 6000 },
    ];
    let (going_on, stalling, failing) = (0, 1, 2);
    let cases: Vec<(&str, bool, u8, Vec<SourceEvent>)> = vec![
        ("unmirrored", false, stalling, [work.clone(), change.clone(), fill.clone(), vec![Sync, Settle]].concat()),
        ("mirrored", true, stalling, [vec![usual.clone()], work.clone(), change.clone(), switch.clone()].concat()),
        ("full", true, stalling, [vec![usual.clone()], fill.clone(), fill.clone(), switch.clone()].concat()),
        ("away", true, stalling, [work.clone(), fill.clone(), vec![usual.clone()], switch.clone()].concat()),
        (
            "first-sync",
            true,
            stalling,
            [
                vec![welcome(true, &MarkPick::Zero, &[])],
                work.clone(),
                vec![Copy { count: 4 }, CompleteAll],
                work.clone(),
                vec![Settle, StoredAll, Settle, StoredAll],
                switch.clone(),
            ]
            .concat(),
        ),
        (
            "connected-anew",
            true,
            stalling,
            [
                vec![usual.clone()],
                work.clone(),
                vec![Disconnect, usual.clone(), Send { count: 20 }],
                work.clone(),
                vec![welcome(true, &MarkPick::Zero, &[]), Settle],
            ]
            .concat(),
        ),
        (
            "sync",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Sync, Sync], switch.clone(), vec![Sync]].concat(),
        ),
        (
            "fenced",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Fenced { epoch: Number::More { by: 1 } }], work.clone()].concat(),
        ),
        (
            "fenced-by-an-older-epoch",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Fenced { epoch: Number::Less { by: 1 } }, Settle], work.clone()]
                .concat(),
        ),
        (
            "refused",
            true,
            stalling,
            [
                work.clone(),
                vec![
                    Welcome {
                        verdict: 2,
                        epoch: Number::Same,
                        whole: true,
                        fresh: false,
                        applied: MarkPick::Zero,
                        boundaries: list(&[]),
                    },
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "stored-what-was-not-sent",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Stored { seq: Number::More { by: 1 } }, Settle]].concat(),
        ),
        (
            "applied-what-was-not-sent",
            true,
            stalling,
            [
                vec![usual.clone()],
                work.clone(),
                vec![
                    Applied {
                        mark: MarkPick::Any { fill: Number::More { by: 9 }, seq: Number::More { by: 99 }, digest: 1 },
                    },
                    Turn { millis: 6000 },
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "applied-a-later-fill",
            true,
            stalling,
            [
                vec![usual.clone()],
                work.clone(),
                vec![
                    StoredAll,
                    Turn { millis: 6000 },
                    Settle,
                    StoredAll,
                    Settle,
                    Applied { mark: MarkPick::Fill { back: 0, fill: Number::More { by: 1 } } },
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "welcome-beyond",
            true,
            stalling,
            [
                work.clone(),
                vec![
                    welcome(
                        false,
                        &MarkPick::Seq { back: 0, seq: Number::Huge { below: 0 } },
                        std::slice::from_ref(&known),
                    ),
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "parted",
            true,
            stalling,
            [work.clone(), vec![welcome(false, &known, &[MarkPick::Digest { back: 0, digest: 5 }]), Settle]].concat(),
        ),
        (
            "goes-alone-and-comes-back",
            true,
            going_on,
            [
                vec![usual.clone()],
                work.clone(),
                vec![StoredAll, Disconnect],
                change.clone(),
                vec![Deadline, Deadline, Settle, WelcomeAt { back: 0, lag: 0, whole: true }, Settle, StoredAll],
                vec![Settle, Pong, Turn { millis: 1000 }, Pong, Turn { millis: 100 }, Settle],
            ]
            .concat(),
        ),
        (
            "alone-over-two-fills",
            true,
            going_on,
            [vec![usual.clone()], work.clone(), vec![StoredAll, Disconnect], alone.clone(), resync.clone()].concat(),
        ),
        (
            "alone-map-late",
            true,
            going_on,
            [
                vec![usual.clone()],
                work.clone(),
                vec![StoredAll, Disconnect, Deadline, Deadline, Settle, Sync, Turn { millis: 1 }, Flush { count: 200 }],
                vec![CompleteAll, Turn { millis: 1 }, CompleteAll, Turn { millis: 1 }],
                vec![WelcomeAt { back: 0, lag: 0, whole: true }, record(9), Turn { millis: 1 }, CompleteAll],
                vec![Turn { millis: 1 }, Send { count: 9 }, CompleteAll, Turn { millis: 1 }, Settle],
            ]
            .concat(),
        ),
        (
            "back-at-an-older-boundary",
            true,
            going_on,
            [
                vec![usual.clone()],
                work.clone(),
                vec![StoredAll, Disconnect],
                alone.clone(),
                vec![WelcomeAt { back: 250, lag: 0, whole: true }, Settle, SettledThere],
                resync.clone(),
            ]
            .concat(),
        ),
        (
            "back-while-a-write-is-slow",
            true,
            stalling,
            vec![
                WelcomeAt { back: 0, lag: 0, whole: true },
                record(1),
                Turn { millis: 1 },
                Send { count: 9 },
                StoredAll,
                WelcomeKnown { back: 1, lag: 0, whole: true },
                CompleteAll,
                Turn { millis: 1 },
                Settle,
            ],
        ),
        (
            "applied-before-it-begins-anew",
            true,
            stalling,
            vec![
                WelcomeKnown { back: 0, lag: 0, whole: true },
                record(1),
                Sync,
                Settle,
                SettledThere,
                Turn { millis: 1 },
                Applied { mark: known.clone() },
                StoredAll,
                Settle,
            ],
        ),
        (
            "stores-nothing",
            true,
            going_on,
            [
                vec![
                    record(1),
                    WelcomeAt { back: 0, lag: 0, whole: true },
                    record(2),
                    Turn { millis: 1 },
                    Send { count: 9 },
                ],
                vec![Pong, Turn { millis: 4000 }, Pong, Turn { millis: 4000 }, Settle, Pong, Turn { millis: 4000 }],
                (0..20).flat_map(|_| [Pong, Turn { millis: 4000 }]).collect(),
                vec![Settle],
            ]
            .concat(),
        ),
        (
            "settled-elsewhere",
            true,
            going_on,
            vec![
                WelcomeKnown { back: 0, lag: 0, whole: true },
                Settle,
                Settled { mark: MarkPick::Known { back: 0 } },
                Turn { millis: 1 },
                WelcomeKnown { back: 1, lag: 0, whole: false },
                SettledThere,
                Settle,
                Settled { mark: MarkPick::Zero },
                Settle,
            ],
        ),
        (
            "resync-of-what-differs",
            true,
            stalling,
            [vec![WelcomeKnown { back: 0, lag: 0, whole: true }, Settle, SettledThere], resync.clone(), switch.clone()]
                .concat(),
        ),
        (
            "resync-while-clients-write",
            true,
            stalling,
            [
                vec![WelcomeKnown { back: 0, lag: 0, whole: true }, Settle, SettledThere, Settle],
                vec![record(1), Turn { millis: 1 }, Sums { which: 0, equal: 0, unknown: false }, StoredAll, Settle],
                vec![record(2), Turn { millis: 1 }, Sums { which: 0, equal: 0, unknown: false }, StoredAll, Settle],
                vec![record(3), Turn { millis: 1 }, Sums { which: 0, equal: 0, unknown: false }, StoredAll, Settle],
                vec![record(4), Turn { millis: 1 }, Sums { which: 0, equal: 0x55, unknown: false }, StoredAll, Settle],
                resync.clone(),
            ]
            .concat(),
        ),
        (
            "resync-of-an-unreadable-volume",
            true,
            stalling,
            vec![
                WelcomeKnown { back: 0, lag: 0, whole: true },
                Settle,
                SettledThere,
                Settle,
                Copy { count: 8 },
                Unreadable { which: 0 },
                Settle,
                Sums { which: 0, equal: 0, unknown: true },
                Settle,
            ],
        ),
        (
            "verify",
            true,
            stalling,
            [
                vec![usual.clone(), Settle, Verify { repair: false }, Verify { repair: true }, Settle],
                vec![Sums { which: 1, equal: 0xf0, unknown: false }, Sums { which: 0, equal: 0xff, unknown: false }],
                answers.clone(),
                vec![Verify { repair: true }, Settle],
                answers.clone(),
                vec![Settle, StoredAll, Settle],
            ]
            .concat(),
        ),
        (
            "verify-of-what-is-not-known",
            true,
            stalling,
            vec![
                usual.clone(),
                Verify { repair: true },
                Settle,
                Sums { which: 0, equal: 0, unknown: true },
                Settle,
                Verify { repair: false },
                Settle,
                Disconnect,
                Settle,
            ],
        ),
        (
            "fails",
            true,
            failing,
            [
                vec![usual.clone(), record(1), Turn { millis: 1 }, Disconnect, record(2), Turn { millis: 1 }],
                vec![record(3), Turn { millis: 30000 }, record(4), Settle],
                vec![WelcomeAt { back: 0, lag: 0, whole: true }, Settle, StoredAll, Settle, record(5), Settle],
            ]
            .concat(),
        ),
        (
            "fails-until-it-may-go-alone",
            true,
            failing,
            vec![
                record(1),
                Turn { millis: 1 },
                Turn { millis: 30000 },
                Policy { kind: 0 },
                record(2),
                Settle,
                Policy { kind: 1 },
                record(3),
                Settle,
                Timeout { seconds: 0 },
                Policy { kind: 2 },
                Turn { millis: 2000 },
                Settle,
            ],
        ),
        (
            "silent",
            true,
            going_on,
            [
                vec![usual.clone(), record(1), Settle, Deadline, Send { count: 1 }, Deadline, Pong, Deadline],
                vec![Deadline, Deadline, Deadline, Deadline, Deadline, Settle, Deadline, Deadline, record(2), Settle],
            ]
            .concat(),
        ),
        (
            "flapping",
            true,
            going_on,
            [flap.clone(), flap.clone(), flap.clone(), flap.clone(), vec![MemoryLow, Settle]].concat(),
        ),
        (
            "fenced-while-it-begins-anew",
            true,
            stalling,
            vec![
                welcome(true, &MarkPick::Zero, &[]),
                record(1),
                Fenced { epoch: Number::More { by: 1 } },
                Turn { millis: 1 },
                CompleteAll,
                Settle,
            ],
        ),
    ];
    for (name, mirrored, policy, events) in cases {
        for (flush, suffix) in [(false, ""), (true, "-flush")] {
            let (whole, dirty) = (name != "first-sync", if name == "first-sync" { u8::MAX } else { 3 });
            let play = SourcePlay {
                flush,
                mirrored,
                whole,
                alone: false,
                policy,
                timeout: 4,
                volumes: 2,
                blocks: 700,
                clean: 4,
                dirty,
                known: 2,
                events: list(&events),
            };
            write("core_events", &format!("source-{name}{suffix}"), &Play::Source { play })?;
        }
    }
    Ok(())
}
