//! What clients send before a volume is theirs.

use crate::{list, write};
use nbd_mirror::format::nbd::options::*;
use nbd_mirror_fuzz::nbd_negotiation::{self, Client, Part};
use nbd_mirror_fuzz::structured::List;

pub fn write_all() -> std::io::Result<()> {
    use nbd_negotiation::Sent;
    let option = |option: u32, data: &[Part]| Sent::Option { option: option as u8, data: list(data) };
    let named = |name| Part::Named { name };
    let info = |name, kinds: &[u16]| {
        let kinds = kinds.iter().map(|n| Part::Count16 { n: *n });
        [named(name), Part::Count16 { n: kinds.len() as u16 }].into_iter().chain(kinds).collect::<Vec<_>>()
    };
    let contexts = |name, queries: &[u8]| {
        let queries = queries.iter().map(|query| named(*query));
        [named(name), Part::Count32 { n: queries.len() as u32 }].into_iter().chain(queries).collect::<Vec<_>>()
    };
    let text = |bytes: &[u8]| Part::Bytes { bytes: list(bytes) };
    let structured = option(OPT_STRUCTURED_REPLY, &[]);
    let go = |name| option(OPT_GO, &info(name, &[INFO_NAME, INFO_BLOCK_SIZE]));
    let cases: [(&str, u8, u32, Vec<Sent>); 22] = [
        ("go", 3, 3, vec![go(0)]),
        ("go-the-only-one", 1, 3, vec![go(1)]),
        ("go-unknown", 2, 3, vec![go(5), go(0)]),
        ("go-read-only", 3, 1, vec![structured.clone(), go(1)]),
        ("export-name", 2, 3, vec![option(OPT_EXPORT_NAME, &[text(b"vol0")])]),
        ("export-name-with-zeroes", 2, 1, vec![structured.clone(), option(OPT_EXPORT_NAME, &[text(b"vol0")])]),
        ("export-name-unknown", 0, 1, vec![option(OPT_EXPORT_NAME, &[text(b"\xff")])]),
        ("list", 3, 3, vec![option(OPT_LIST, &[]), option(OPT_ABORT, &[])]),
        ("list-with-data", 3, 3, vec![option(OPT_LIST, &[text(b"x")]), option(OPT_ABORT, &[text(b"y")])]),
        ("info-of-all", 3, 3, (0..6).map(|name| option(OPT_INFO, &info(name, &[0, 1, 2, 3, 4]))).collect()),
        ("info-count-too-high", 2, 3, vec![option(OPT_INFO, &[named(0), Part::Count16 { n: 9 }]), go(0)]),
        ("contexts", 2, 3, vec![structured.clone(), option(OPT_SET_META_CONTEXT, &contexts(0, &[3])), go(0)]),
        ("contexts-listed", 2, 3, vec![structured.clone(), option(OPT_LIST_META_CONTEXT, &contexts(0, &[])), go(0)]),
        ("contexts-unset", 2, 3, {
            let set = |queries: &[u8]| option(OPT_SET_META_CONTEXT, &contexts(0, queries));
            vec![structured.clone(), set(&[3, 4]), set(&[5]), go(0)]
        }),
        (
            "contexts-of-another",
            2,
            3,
            vec![structured.clone(), option(OPT_SET_META_CONTEXT, &contexts(1, &[3])), go(0)],
        ),
        ("contexts-too-early", 2, 3, vec![option(OPT_SET_META_CONTEXT, &contexts(0, &[3])), go(0)]),
        ("contexts-false-count", 2, 3, {
            let data = [named(0), Part::Count32 { n: u32::MAX }, named(3)];
            vec![structured.clone(), option(OPT_SET_META_CONTEXT, &data), go(0)]
        }),
        ("starttls-and-unknown", 1, 3, vec![option(OPT_STARTTLS, &[]), option(99, &[text(b"z")]), go(0)]),
        ("long-name", 1, 3, vec![option(OPT_GO, &[Part::Filler { byte: b'n', count: 5000 }]), go(0)]),
        ("option-too-long", 1, 3, vec![Sent::Header { option: OPT_GO, length: u32::MAX }]),
        ("cut-off", 1, 3, vec![Sent::Header { option: OPT_GO, length: 40 }, Sent::Raw { bytes: list(b"abc") }]),
        ("another-protocol", 1, 0x4745_5420, vec![Sent::Raw { bytes: list(b"/ HTTP/1.1\r\n\r\n") }]),
    ];
    for (number, (name, exports, flags, options)) in cases.into_iter().enumerate() {
        let client = Client { exports, piece_bytes: number as u8, flags, options: List(options) };
        write("nbd_negotiation", name, &client)?;
    }
    let behind = vec![go(0), Sent::Raw { bytes: list(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]) }];
    write(
        "nbd_negotiation",
        "requests-behind",
        &Client { exports: 1, piece_bytes: 3, flags: 3, options: List(behind) },
    )?;
    let many = vec![option(OPT_LIST, &[]); 1001];
    write(
        "nbd_negotiation",
        "too-many-options",
        &Client { exports: 1, piece_bytes: 255, flags: 3, options: List(many) },
    )
}
