//! The admin protocol over real sockets.

use super::*;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use tokio::task::JoinHandle;

/// Repeats the request as data; refuses to promote "locked".
struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> Answer<'_> {
        Box::pin(async move {
            match &request {
                Request::Promote { source, .. } if source == "locked" => {
                    Err(anyhow::anyhow!("it is connected").context("not promoted"))
                }
                _ => Ok(serde_json::to_value(&request)?),
            }
        })
    }
}

struct Server {
    _dir: tempfile::TempDir,
    path: PathBuf,
    task: JoinHandle<()>,
}

fn start() -> Server {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("admin");
    let listener = bind(&path).expect("binds");
    let task = tokio::spawn(serve(listener, Arc::new(Echo)));
    Server { _dir: dir, path, task }
}

/// Sends raw bytes and reads one reply line.
async fn exchange(path: &Path, bytes: &[u8]) -> Value {
    let mut stream = UnixStream::connect(path).await.expect("connects");
    stream.write_all(bytes).await.expect("writes");
    let mut line = String::new();
    let mut input = BufReader::new(&mut stream);
    input.read_line(&mut line).await.expect("reads");
    serde_json::from_str(&line).expect("a JSON line")
}

#[test]
fn requests_have_their_documented_form() {
    let promote = Request::Promote { source: "alpha".into(), force: false, check: false };
    for (request, text) in [
        (Request::Status, r#"{"verb":"status"}"#),
        (Request::Sync, r#"{"verb":"sync"}"#),
        (
            Request::Set { on_disconnect: Some(OnDisconnect::Continue), timeout_ms: Some(5000) },
            r#"{"verb":"set","on_disconnect":"continue","timeout_ms":5000}"#,
        ),
        (Request::Set { on_disconnect: None, timeout_ms: None }, r#"{"verb":"set"}"#),
        (Request::Verify { repair: true }, r#"{"verb":"verify","repair":true}"#),
        (promote.clone(), r#"{"verb":"promote","source":"alpha","force":false}"#),
    ] {
        assert_eq!(serde_json::to_string(&request).expect("serializes"), text);
        let parsed: Request = serde_json::from_str(text).expect("parses");
        assert_eq!(parsed, request);
    }
    let short: Request = serde_json::from_str(r#"{"verb":"promote","source":"alpha"}"#).expect("parses");
    assert_eq!(short, promote);
}

#[tokio::test]
async fn a_call_brings_the_handlers_data() {
    let server = start();
    let data = call(&server.path, &Request::Sync).await.expect("answers");
    assert_eq!(data, json!({"verb": "sync"}));
}

#[tokio::test]
async fn a_refusal_carries_the_whole_reason() {
    let server = start();
    let request = Request::Promote { source: "locked".into(), force: true, check: false };
    let error = call(&server.path, &request).await.expect_err("is refused");
    match error.downcast_ref() {
        Some(CallError::Refused(why)) => assert_eq!(why, "not promoted: it is connected"),
        other => panic!("refused, not {other:?}"),
    }
}

#[tokio::test]
async fn replies_have_their_documented_form() {
    let server = start();
    let reply = exchange(&server.path, b"{\"verb\":\"status\"}\n").await;
    assert_eq!(reply, json!({"ok": true, "data": {"verb": "status"}}));
    let reply = exchange(&server.path, b"{\"verb\":\"promote\",\"source\":\"locked\"}\n").await;
    assert_eq!(reply, json!({"ok": false, "error": "not promoted: it is connected"}));
}

#[tokio::test]
async fn a_bad_request_is_answered_and_the_connection_lives() {
    let server = start();
    let stream = UnixStream::connect(&server.path).await.expect("connects");
    let (input, mut output) = stream.into_split();
    let mut lines = BufReader::new(input).lines();
    for (request, piece) in [
        ("nonsense", "isn't understood"),
        (r#"{"verb":"explode"}"#, "explode"),
        (r#"{"verb":"promote","force":true}"#, "source"),
        (r#"{"verb":"promote","source":"a","farce":true}"#, "farce"),
        (r#"{"verb":"set","on_disconnect":"panic"}"#, "panic"),
        (r#"{"verb":"set","durability":"flush"}"#, "durability"),
        (r#"{"verb":"status"}"#, r#""ok":true"#),
    ] {
        output.write_all(request.as_bytes()).await.expect("writes");
        output.write_all(b"\n").await.expect("writes");
        let reply = lines.next_line().await.expect("reads").expect("a reply");
        assert!(reply.contains(piece), "{request}: {reply}");
    }
}

#[tokio::test]
async fn an_endless_line_is_cut_off() {
    let server = start();
    let reply = exchange(&server.path, &vec![b' '; MAX_REQUEST_BYTES as usize]).await;
    let error = reply["error"].as_str().expect("an error");
    assert!(error.contains("longer than 65536 bytes"), "{error}");
    call(&server.path, &Request::Status).await.expect("others are served");
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let server = start();
    call(&server.path, &Request::Status).await.expect("answers");
    let metadata = std::fs::metadata(&server.path).expect("is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let error = format!("{:#}", bind(&server.path).expect_err("is live"));
    assert!(error.contains("another process serves it"), "{error}");
    server.task.abort();
    server.task.await.expect_err("was aborted");
    assert!(!server.path.exists(), "the file is removed");
}

#[tokio::test]
async fn an_absent_daemon_is_told_from_a_stopped_one() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("admin");
    let failure = async || {
        let error = call(&path, &Request::Status).await.expect_err("nobody");
        match error.downcast_ref() {
            Some(CallError::Unreachable(why)) => why.clone(),
            other => panic!("unreachable, not {other:?}"),
        }
    };
    let why = failure().await;
    assert!(why.contains("is the daemon running?"), "{why}");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    let why = failure().await;
    assert!(why.contains("isn't running"), "{why}");
}

#[tokio::test]
async fn a_daemon_that_hangs_up_is_unreachable() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("admin");
    let listener = bind(&path).expect("binds");
    let hang_up = async {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut request = [0; 18];
        stream.read_exact(&mut request).await.expect("reads");
    };
    let (answer, ()) = tokio::join!(call(&path, &Request::Status), hang_up);
    let error = answer.expect_err("no answer");
    assert!(matches!(error.downcast_ref(), Some(CallError::Unreachable(why)) if why.contains("closed")), "{error:#}");
}
