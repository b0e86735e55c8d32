use super::*;
use crate::format::ids::Epoch;
use crate::format::nbd::identity::{Role, VolumeId};
use proptest::prelude::*;
use std::process::Command;
use std::time::Instant;
use tokio::io::{DuplexStream, duplex};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

type Outcome = Result<Option<Negotiated>, NegotiationError>;

/// Room in both directions for everything that a test sends at once.
const PIPE_BYTES: usize = 1 << 20;

const FIXED: u32 = FLAG_FIXED_NEWSTYLE as u32;
const FIXED_NO_ZEROES: u32 = FIXED | FLAG_NO_ZEROES as u32;

fn two_exports() -> Vec<Export> {
    let shape = ExportShape { size_bytes: 1 << 20, block_bytes: 512, read_only: false };
    vec![
        Export { name: "vol0".to_owned(), shape, identity: identity(0), refusal: None },
        Export {
            name: "vol1".to_owned(),
            shape: ExportShape { size_bytes: 2 << 20, read_only: true, ..shape },
            identity: identity(1),
            refusal: None,
        },
    ]
}

fn identity(volume: u8) -> Identity {
    Identity { volume: VolumeId([volume; 16]), epoch: Epoch(7), role: Role::Primary }
}

/// What a client sends, from its flags on.
struct Script(Vec<u8>);

impl Script {
    fn new(flags: u32) -> Script {
        Script(flags.to_be_bytes().to_vec())
    }

    fn option(mut self, option: u32, data: &[u8]) -> Script {
        self.0.extend(b"IHAVEOPT");
        self.0.extend(option.to_be_bytes());
        self.0.extend((data.len() as u32).to_be_bytes());
        self.0.extend(data);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Script {
        self.0.extend(bytes);
        self
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn info(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((kinds.len() as u16).to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

/// Runs a script whose client closes its side after it. Returns the outcome, and what the server sent after its greeting.
async fn play(exports: &[Export], script: Script) -> (Outcome, Vec<u8>) {
    let (mut client, mut server) = duplex(PIPE_BYTES);
    client.write_all(&script.0).await.unwrap();
    client.shutdown().await.unwrap();
    let outcome = negotiate(&mut server, exports).await;
    (outcome, everything_sent(client, server).await)
}

async fn everything_sent(mut client: DuplexStream, server: DuplexStream) -> Vec<u8> {
    drop(server);
    let mut sent = Vec::new();
    client.read_to_end(&mut sent).await.unwrap();
    assert_eq!(sent[..GREETING_BYTES], greeting());
    sent.split_off(GREETING_BYTES)
}

/// Takes replies apart: option, kind, data.
fn replies(mut sent: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !sent.is_empty() {
        assert_eq!(sent[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(sent[at..at + 4].try_into().unwrap());
        let end = 20 + number(16) as usize;
        replies.push((number(8), number(12), sent[20..end].to_vec()));
        sent = &sent[end..];
    }
    replies
}

/// The options and kinds of all replies to a script whose client leaves without choosing.
async fn kinds(exports: &[Export], script: Script) -> Vec<(u32, u32)> {
    let (outcome, sent) = play(exports, script).await;
    assert!(matches!(outcome, Ok(None)), "{outcome:?}");
    replies(&sent).into_iter().map(|(option, kind, _)| (option, kind)).collect()
}

#[tokio::test]
async fn export_name_ends_the_handshake() {
    let size = (1u64 << 20).to_be_bytes();
    let flags = transmission_flags(&two_exports()[0].shape, false).to_be_bytes();
    for (client, zeroes) in [(FIXED_NO_ZEROES, 0), (FIXED, 124)] {
        let (outcome, sent) = play(&two_exports(), Script::new(client).option(OPT_EXPORT_NAME, b"vol0")).await;
        let chosen = Negotiated { export: 0, structured: false, base_allocation: false };
        assert_eq!(outcome.unwrap(), Some(chosen));
        assert_eq!(sent, [&size[..], &flags, &vec![0; zeroes]].concat());
    }
}

#[tokio::test]
async fn an_unknown_export_name_closes_without_a_reply() {
    for name in [&b"vol2"[..], b"", b"\xff"] {
        let (outcome, sent) = play(&two_exports(), Script::new(FIXED).option(OPT_EXPORT_NAME, name)).await;
        let error = outcome.unwrap_err();
        assert!(matches!(error, NegotiationError::UnknownExport(_)), "{error:?}");
        assert!(error.to_string().contains(r#""vol0", "vol1""#), "{error}");
        assert!(sent.is_empty());
    }
}

#[tokio::test]
async fn list_names_every_export() {
    let (outcome, sent) = play(&two_exports(), Script::new(FIXED).option(OPT_LIST, b"")).await;
    assert_eq!(outcome.unwrap(), None);
    let expected =
        [(OPT_LIST, REP_SERVER, string("vol0")), (OPT_LIST, REP_SERVER, string("vol1")), (OPT_LIST, REP_ACK, vec![])];
    assert_eq!(replies(&sent), expected);
    assert_eq!(kinds(&[], Script::new(FIXED).option(OPT_LIST, b"")).await, [(OPT_LIST, REP_ACK)]);
}

#[tokio::test]
async fn info_and_go_describe_the_export() {
    let script = Script::new(FIXED)
        .option(OPT_INFO, &info("vol0", &[]))
        .option(OPT_STRUCTURED_REPLY, b"")
        .option(OPT_GO, &info("vol1", &[INFO_NAME, INFO_DESCRIPTION, 77]));
    let (outcome, sent) = play(&two_exports(), script).await;
    let chosen = Negotiated { export: 1, structured: true, base_allocation: false };
    assert_eq!(outcome.unwrap(), Some(chosen));

    let export = |index: usize, structured| {
        let shape = &two_exports()[index].shape;
        let flags = transmission_flags(shape, structured).to_be_bytes();
        [&INFO_EXPORT.to_be_bytes()[..], &shape.size_bytes.to_be_bytes(), &flags].concat()
    };
    let sizes = b"\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x02\x00\x00\x00".to_vec();
    let description = b"\x00\x02nbd-mirror volume=01010101-0101-0101-0101-010101010101 epoch=7 role=primary".to_vec();
    let expected = [
        (OPT_INFO, REP_INFO, export(0, false)),
        (OPT_INFO, REP_INFO, sizes.clone()),
        (OPT_INFO, REP_ACK, vec![]),
        (OPT_STRUCTURED_REPLY, REP_ACK, vec![]),
        (OPT_GO, REP_INFO, export(1, true)),
        (OPT_GO, REP_INFO, b"\x00\x01vol1".to_vec()),
        (OPT_GO, REP_INFO, description),
        (OPT_GO, REP_INFO, sizes),
        (OPT_GO, REP_ACK, vec![]),
    ];
    assert_eq!(replies(&sent), expected);
}

#[tokio::test]
async fn an_unknown_export_is_answered_with_those_that_exist() {
    let script = Script::new(FIXED)
        .option(OPT_GO, &info("vol2", &[]))
        .option(OPT_INFO, &info("", &[]))
        .option(OPT_GO, &info("vol0", &[]));
    let (outcome, sent) = play(&two_exports(), script).await;
    assert_eq!(outcome.unwrap().map(|negotiated| negotiated.export), Some(0));
    for (option, kind, message) in &replies(&sent)[..2] {
        assert_eq!(*kind, REP_ERR_UNKNOWN, "{option}");
        let message = std::str::from_utf8(message).unwrap();
        assert!(message.contains(r#""vol0", "vol1""#), "{message}");
    }
    let (_, sent) = play(&[], Script::new(FIXED).option(OPT_GO, &info("", &[]))).await;
    assert!(String::from_utf8_lossy(&replies(&sent)[0].2).contains("there are none"));
}

#[tokio::test]
async fn the_empty_name_is_the_only_export() {
    let one = &two_exports()[1..];
    let script = Script::new(FIXED)
        .option(OPT_STRUCTURED_REPLY, b"")
        .option(OPT_SET_META_CONTEXT, &contexts("", &[BASE_ALLOCATION]))
        .option(OPT_GO, &info("vol1", &[]));
    let chosen = Negotiated { export: 0, structured: true, base_allocation: true };
    assert_eq!(play(one, script).await.0.unwrap(), Some(chosen));
    let script = Script::new(FIXED).option(OPT_EXPORT_NAME, b"");
    assert_eq!(play(one, script).await.0.unwrap().map(|negotiated| negotiated.export), Some(0));
}

#[tokio::test]
async fn contexts_are_listed_and_set() {
    let script = Script::new(FIXED)
        .option(OPT_STRUCTURED_REPLY, b"")
        .option(OPT_LIST_META_CONTEXT, &contexts("vol0", &["base:"]))
        .option(OPT_SET_META_CONTEXT, &contexts("vol0", &["base:", "x:y"]))
        .option(OPT_SET_META_CONTEXT, &contexts("vol0", &["x:y", BASE_ALLOCATION]));
    let (_, sent) = play(&two_exports(), script).await;
    let context = |id: u32| [&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()].concat();
    let expected = [
        (OPT_STRUCTURED_REPLY, REP_ACK, vec![]),
        (OPT_LIST_META_CONTEXT, REP_META_CONTEXT, context(0)),
        (OPT_LIST_META_CONTEXT, REP_ACK, vec![]),
        (OPT_SET_META_CONTEXT, REP_ACK, vec![]),
        (OPT_SET_META_CONTEXT, REP_META_CONTEXT, context(META_BASE_ALLOCATION_ID)),
        (OPT_SET_META_CONTEXT, REP_ACK, vec![]),
    ];
    assert_eq!(replies(&sent), expected);
}

#[tokio::test]
async fn only_the_last_setting_for_the_chosen_export_counts() {
    let good = contexts("vol0", &[BASE_ALLOCATION]);
    let cases = [
        (vec![good.clone()], "vol0", true),
        (vec![good.clone()], "vol1", false),
        (vec![contexts("vol1", &[BASE_ALLOCATION]), good.clone()], "vol0", true),
        (vec![good.clone(), contexts("vol1", &[BASE_ALLOCATION])], "vol0", false),
        (vec![good.clone(), contexts("vol0", &[])], "vol0", false),
        (vec![good.clone(), contexts("vol2", &[BASE_ALLOCATION])], "vol0", false),
        (vec![good.clone(), b"garbage".to_vec()], "vol0", false),
    ];
    for (settings, name, expected) in cases {
        let mut script = Script::new(FIXED).option(OPT_STRUCTURED_REPLY, b"");
        for setting in &settings {
            script = script.option(OPT_SET_META_CONTEXT, setting);
        }
        let (outcome, _) = play(&two_exports(), script.option(OPT_GO, &info(name, &[]))).await;
        assert_eq!(outcome.unwrap().map(|it| it.base_allocation), Some(expected), "{settings:?} {name}");
    }
}

#[tokio::test]
async fn bad_options_are_refused_and_the_handshake_goes_on() {
    let script = Script::new(FIXED)
        .option(OPT_LIST_META_CONTEXT, &contexts("vol0", &[]))
        .option(OPT_SET_META_CONTEXT, &contexts("vol0", &[BASE_ALLOCATION]))
        .option(OPT_LIST, b"x")
        .option(OPT_STRUCTURED_REPLY, b"x")
        .option(OPT_GO, b"x")
        .option(OPT_INFO, b"")
        .option(OPT_STARTTLS, b"")
        .option(4, &vec![7; MAX_OPTION_BYTES as usize])
        .option(u32::MAX, b"")
        .option(OPT_LIST, b"");
    let expected = [
        (OPT_LIST_META_CONTEXT, REP_ERR_INVALID),
        (OPT_SET_META_CONTEXT, REP_ERR_INVALID),
        (OPT_LIST, REP_ERR_INVALID),
        (OPT_STRUCTURED_REPLY, REP_ERR_INVALID),
        (OPT_GO, REP_ERR_INVALID),
        (OPT_INFO, REP_ERR_INVALID),
        (OPT_STARTTLS, REP_ERR_UNSUP),
        (4, REP_ERR_UNSUP),
        (u32::MAX, REP_ERR_UNSUP),
        (OPT_LIST, REP_SERVER),
        (OPT_LIST, REP_SERVER),
        (OPT_LIST, REP_ACK),
    ];
    assert_eq!(kinds(&two_exports(), script).await.as_slice(), &expected[..]);
}

#[tokio::test]
async fn abort_is_acknowledged_and_leaves() {
    let script = Script::new(FIXED).option(OPT_ABORT, b"").option(OPT_LIST, b"");
    assert_eq!(kinds(&two_exports(), script).await, [(OPT_ABORT, REP_ACK)]);
}

#[tokio::test]
async fn a_client_may_abort_without_waiting() {
    let (mut client, mut server) = duplex(PIPE_BYTES);
    let script = Script::new(FIXED).option(OPT_ABORT, b"");
    let leave = async {
        client.read_exact(&mut [0; GREETING_BYTES]).await.unwrap();
        client.write_all(&script.0).await.unwrap();
        drop(client);
    };
    let exports = two_exports();
    let (outcome, ()) = tokio::join!(negotiate(&mut server, &exports), leave);
    assert!(matches!(outcome, Ok(None)), "{outcome:?}");
}

#[tokio::test]
async fn garbage_closes() {
    let flags = play(&two_exports(), Script::new(FIXED | 4)).await.0;
    assert!(matches!(flags, Err(NegotiationError::UnknownFlags(4))), "{flags:?}");
    let oldstyle = play(&two_exports(), Script::new(0)).await.0;
    assert!(matches!(oldstyle, Err(NegotiationError::NotFixedNewstyle(0))), "{oldstyle:?}");
    let http = play(&two_exports(), Script::new(FIXED).raw(b"GET / HTTP/1.1\r\n")).await.0;
    assert!(matches!(http, Err(NegotiationError::BadMagic(_))), "{http:?}");
    let long = Script::new(FIXED).option(OPT_LIST, &vec![0; MAX_OPTION_BYTES as usize + 1]);
    let long = play(&two_exports(), long).await.0;
    assert!(matches!(long, Err(NegotiationError::OptionTooLong { option: OPT_LIST, length: 65537 })), "{long:?}");
}

#[tokio::test]
async fn a_client_may_leave_between_messages_only() {
    let whole = Script::new(FIXED).option(OPT_LIST, b"").option(OPT_INFO, &info("vol0", &[])).0;
    // A client may leave before its flags, before each option, and at the end.
    let boundaries = [0, 4, 20, whole.len()];
    for end in 0..=whole.len() {
        let (outcome, _) = play(&two_exports(), Script(whole[..end].to_vec())).await;
        match outcome {
            Ok(None) => assert!(boundaries.contains(&end), "{end}"),
            Err(NegotiationError::Io { source, .. }) => {
                assert!(!boundaries.contains(&end), "{end}");
                assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof);
            }
            other => panic!("{end}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_silent_client_is_dropped_wherever_it_stops() {
    let limit = Duration::from_millis(20);
    let whole = Script::new(FIXED).option(OPT_INFO, &info("vol0", &[])).0;
    for end in [0, 2, 4, 9, 20, 25, whole.len()] {
        let (mut client, mut server) = duplex(PIPE_BYTES);
        client.write_all(&whole[..end]).await.unwrap();
        let outcome = negotiate_within(&mut server, &two_exports(), limit).await;
        assert!(matches!(outcome, Err(NegotiationError::Timeout(_))), "{end}: {outcome:?}");
    }
}

#[tokio::test]
async fn the_limit_is_for_the_whole_handshake_not_for_each_option() {
    let limit = Duration::from_millis(100);
    let (mut client, mut server) = duplex(PIPE_BYTES);
    client.write_all(&Script::new(FIXED).0).await.unwrap();
    let list = Script(vec![]).option(OPT_LIST, b"").0;
    // A client that never stops: only a limit over all options ends this.
    let chatter = async {
        while client.write_all(&list).await.is_ok() {
            tokio::time::sleep(limit / 10).await;
        }
    };
    let exports = two_exports();
    let outcome = tokio::select! {
        outcome = negotiate_within(&mut server, &exports, limit) => outcome,
        () = chatter => panic!("the client's side broke"),
    };
    assert!(matches!(outcome, Err(NegotiationError::Timeout(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let (mut client, mut server) = duplex(128);
    let mut script = Script::new(FIXED);
    for _ in 0..4 {
        script = script.option(OPT_LIST, b"");
    }
    client.write_all(&script.0).await.unwrap();
    let outcome = negotiate_within(&mut server, &two_exports(), Duration::from_millis(20)).await;
    assert!(matches!(outcome, Err(NegotiationError::Timeout(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_thousand_options_are_answered_and_no_more() {
    for (count, closes) in [(MAX_OPTIONS, false), (MAX_OPTIONS + 1, true)] {
        let mut script = Script::new(FIXED);
        for _ in 0..count {
            script = script.option(OPT_STRUCTURED_REPLY, b"");
        }
        let (outcome, sent) = play(&two_exports(), script).await;
        assert_eq!(matches!(outcome, Err(NegotiationError::TooManyOptions)), closes, "{outcome:?}");
        assert_eq!(replies(&sent).len(), MAX_OPTIONS);
    }
}

#[tokio::test]
async fn nothing_beyond_the_handshake_is_read() {
    for option in [Script::new(FIXED).option(OPT_GO, &info("vol0", &[])), Script::new(FIXED).option(1, b"vol0")] {
        let (mut client, mut server) = duplex(PIPE_BYTES);
        client.write_all(&option.raw(b"the first request").0).await.unwrap();
        client.shutdown().await.unwrap();
        negotiate(&mut server, &two_exports()).await.unwrap().unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"the first request");
    }
}

#[tokio::test]
async fn a_long_unknown_name_is_not_repeated_in_full() {
    let name = "x".repeat(MAX_OPTION_BYTES as usize);
    let (outcome, _) = play(&two_exports(), Script::new(FIXED).option(OPT_EXPORT_NAME, name.as_bytes())).await;
    assert!(outcome.unwrap_err().to_string().len() < 200);
}

/// A foreign client: libnbd lists the exports, asks for each one's information and contexts, and understands it all.
#[tokio::test]
async fn nbdinfo_lists_the_exports() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd");
    let listener = UnixListener::bind(&path).unwrap();
    let uri = format!("nbd+unix:///?socket={}", path.display());
    let run = move || Command::new("nbdinfo").args(["--list", "--no-content", "--json", &uri]).output();
    let mut client = tokio::task::spawn_blocking(run);
    let mut connections = JoinSet::new();
    let output = loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut stream, _) = accepted.unwrap();
                connections.spawn(async move { negotiate(&mut stream, &two_exports()).await });
            }
            output = &mut client => break output.unwrap().expect("nbdinfo runs (package libnbd-bin)"),
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));

    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(listed["protocol"], "newstyle-fixed");
    assert_eq!(listed["structured"], true);
    let exports = listed["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 2, "{text}");
    for (export, (name, size, read_only)) in exports.iter().zip([("vol0", 1 << 20, false), ("vol1", 2 << 20, true)]) {
        assert_eq!(export["export-name"], name);
        assert_eq!(export["export-size"], size);
        assert_eq!(export["is_read_only"], read_only);
        assert_eq!(export["can_multi_conn"], true);
        assert_eq!(export["can_trim"], !read_only);
        assert_eq!(export["block_size_minimum"], 512);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        assert_eq!(export["contexts"], serde_json::json!([BASE_ALLOCATION]));
    }
    let outcomes = connections.join_all().await;
    assert!(!outcomes.is_empty() && outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

/// Plays any bytes to the end of the stream, and fails if that takes long.
fn survives(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let began = Instant::now();
    let (outcome, _) = runtime.block_on(play(&two_exports(), Script(bytes)));
    prop_assert!(!matches!(outcome, Err(NegotiationError::Timeout(_))), "hung for {:?}", began.elapsed());
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        survives(bytes)?;
    }

    #[test]
    fn options_with_any_data_come_to_an_end(
        options in proptest::collection::vec((0u32..12, proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
        tail in proptest::collection::vec(any::<u8>(), 0..30),
    ) {
        let script = options.iter().fold(Script::new(FIXED), |script, (option, data)| script.option(*option, data));
        survives(script.raw(&tail).0)?;
    }
}
