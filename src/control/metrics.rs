//! `GET /metrics` for Prometheus: a minimal HTTP/1.1 responder, and the status as metrics.
//!
//! The metrics are the numbers of the status, so that `nbd-mirror status` and a dashboard never
//! disagree. The text is OpenMetrics, which prometheus-client encodes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Largest request head, in bytes.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Most connections served at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// A client has this long for its request and for reading the reply.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// Gives the metrics' text; called once a request.
pub type Render = dyn Fn() -> Rendering + Send + Sync;
/// The metrics' text to come.
pub type Rendering = Pin<Box<dyn Future<Output = String> + Send>>;

/// Serves `GET /metrics` until the future is dropped.
pub async fn serve(listener: TcpListener, render: Arc<Render>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            unreachable!("the semaphore is never closed");
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let render = Arc::clone(&render);
                tokio::spawn(async move {
                    let exchange = exchange(stream, &*render);
                    match tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!("metrics client {peer}: {error}"),
                        Err(_) => tracing::debug!("metrics client {peer} is too slow"),
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!("metrics can't accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Reads one request, answers it and closes.
async fn exchange(mut stream: TcpStream, render: &Render) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    let (status, content_type, body) = loop {
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            break answer(&head, render).await;
        }
        if head.len() >= MAX_HEAD_BYTES {
            let body = "the request's head is too large\n".into();
            break ("431 Request Header Fields Too Large", PLAIN_TEXT, body);
        }
        let mut rest = (&mut stream).take((MAX_HEAD_BYTES - head.len()) as u64);
        if rest.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// Status line, content type and body that answer a request's head.
async fn answer(head: &[u8], render: &Render) -> (&'static str, &'static str, String) {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let (method, target) = match words[..] {
        [method, target, version] if version.starts_with(b"HTTP/1.") => (method, target),
        _ => {
            return ("400 Bad Request", PLAIN_TEXT, "this is no HTTP/1 request\n".into());
        }
    };
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    match (method, path) {
        (b"GET", b"/metrics") => ("200 OK", OPEN_METRICS, render().await),
        (_, b"/metrics") => ("405 Method Not Allowed", PLAIN_TEXT, "only GET\n".into()),
        _ => ("404 Not Found", PLAIN_TEXT, "only /metrics is here\n".into()),
    }
}

/// A number of the status: its key, which is also the metric's name, and its help.
type Number = (&'static str, &'static str);

/// Numbers of a source (in the status of either role) that may go up and down.
const GAUGES: &[Number] = &[
    ("answered_record", "Last record that the source said it had answered"),
    ("applied_record", "Last record that the destination is done with"),
    ("base_record", "Last record of the image that a promote would give, while a resync is staged"),
    ("clients", "Connected NBD clients"),
    ("connected", "1 while the other side is connected"),
    ("epoch", "Epoch, raised by each promote"),
    ("heard_unix_s", "When the source was heard last, in seconds since 1970"),
    ("held_record", "Last record that the destination holds"),
    ("lacking_bytes", "Bytes of the volumes that changed and that the destination doesn't hold, at most"),
    ("lacking_records", "Records made since the state that a promote would give"),
    ("last_record", "Last record made"),
    ("open_fill", "Fill that is being filled"),
    ("promotable", "1 while the images can be promoted"),
    ("requests", "Requests that are not answered yet"),
    ("since_unix_ms", "Since when the source is in its state, in milliseconds since 1970"),
    ("source_alone", "1 where the source, when it was heard last, answered writes alone"),
    ("staged_bytes", "Bytes in the staging log that are not on the images"),
    ("staging_limit_bytes", "Bytes that the staging log may hold"),
    ("stored_here", "Last record stored at the source"),
    ("stored_there", "Last record stored at the destination"),
    ("verified_record", "Last record up to which both sides are proven equal"),
    ("whole", "1 while the destination holds a whole copy as of its last record"),
    ("writes_waiting", "Writes that wait for journal space or the destination"),
];

/// Numbers inside one object of a source's status; each is named after both.
const INNER_GAUGES: &[(&str, &[Number])] = &[
    ("policy", &[("timeout_ms", "How long the destination may be away, in milliseconds")]),
    ("peer", &[("heard_ms_ago", "How long ago the destination was heard, in milliseconds")]),
    ("failover_loses", &[("since_unix_s", "A failover would lose what was written since, in seconds since 1970")]),
    ("resync", PROGRESS),
    ("verify", PROGRESS),
    (
        "last_verify",
        &[
            ("compared_bytes", "Bytes that the last verify compared"),
            ("differing_bytes", "Bytes of those that differed"),
            ("ended_unix_s", "When it ended, in seconds since 1970"),
            ("repaired_bytes", "Bytes of those that were sent again"),
        ],
    ),
];

/// Numbers of a resync or a verify.
const PROGRESS: &[Number] = &[
    ("bytes_per_s", "Bytes done a second, over the last seconds"),
    ("done_bytes", "Bytes done"),
    ("seconds_left", "How long the rest takes at that rate"),
    ("sent_bytes", "Bytes of those done that had to be sent"),
    ("total_bytes", "Bytes to be looked at in all"),
];

/// Words of a source's status: 1 for the one that holds, which is a label of the same name.
const WORDS: &[(&str, &str, &str)] = &[
    ("state", "/state", "1 for the state that the source is in"),
    ("failover_loses", "/failover_loses/what", "1 for what a failover at this moment would lose"),
    ("phase", "/phase", "1 for where complete fills go"),
    ("on_disconnect", "/policy/on_disconnect", "1 for what becomes of writes without the destination"),
];

/// Numbers of a source that only grow while the daemon runs.
const COUNTERS: &[Number] = &[
    ("answered_reads", "Reads answered"),
    ("answered_writes", "Writes answered"),
    ("applied_bytes", "Bytes written to the images"),
    ("flushed_bytes", "Bytes written to the volumes"),
    ("journal_bytes", "Bytes written to the journal"),
    ("journal_writes", "Writes to the journal, or to the journal files"),
    ("read_bytes", "Bytes read by clients"),
    ("stored_bytes", "Bytes stored in the journal files"),
    ("written_bytes", "Bytes written by clients"),
];

/// Numbers of a volume.
const VOLUME_GAUGES: &[Number] = &[("size_bytes", "Size of the volume")];

type Labels = Vec<(&'static str, String)>;
type GaugeFamily = Family<Labels, Gauge<f64, AtomicU64>>;
type CounterFamily = Family<Labels, Counter<u64, AtomicU64>>;

/// Turns a status, as the admin socket gives it, into metrics named `nbd_mirror_…`.
///
/// Each has the labels `role` and `source`, those of a volume also `volume`. A number that the
/// status lacks, or has as null, makes no sample.
pub fn render(role: &str, status: &Value) -> String {
    let mut registry = Registry::with_prefix("nbd_mirror");
    let sources: Vec<&Value> = match status["sources"].as_array() {
        Some(sources) => sources.iter().collect(),
        None => vec![status],
    };
    let labels = |source: &Value| -> Labels {
        let name = source["name"].as_str().unwrap_or_default();
        vec![("role", role.into()), ("source", name.into())]
    };
    let gauges = |registry: &mut Registry, prefix: &str, numbers: &[Number], samples: &[(Labels, &Value)]| {
        for (key, help) in numbers {
            let family = GaugeFamily::default();
            let mut any = false;
            for (labels, object) in samples {
                if let Some(number) = as_number(&object[key]) {
                    family.get_or_create(labels).set(number);
                    any = true;
                }
            }
            if any {
                registry.register(format!("{prefix}{key}"), *help, family);
            }
        }
    };

    let samples: Vec<_> = sources.iter().map(|&s| (labels(s), s)).collect();
    gauges(&mut registry, "", GAUGES, &samples);
    for (key, help) in COUNTERS {
        let family = CounterFamily::default();
        let mut any = false;
        for (labels, source) in &samples {
            if let Some(count) = source[key].as_u64() {
                family.get_or_create(labels).inc_by(count);
                any = true;
            }
        }
        if any {
            registry.register(*key, *help, family);
        }
    }
    for (name, inner) in INNER_GAUGES {
        let inside: Vec<_> = samples.iter().map(|(labels, source)| (labels.clone(), &source[name])).collect();
        gauges(&mut registry, &format!("{name}_"), inner, &inside);
    }
    for (name, pointer, help) in WORDS {
        let family = GaugeFamily::default();
        let mut any = false;
        for (labels, source) in &samples {
            if let Some(word) = source.pointer(pointer).and_then(Value::as_str) {
                let mut labels = labels.clone();
                labels.push((name, word.into()));
                family.get_or_create(&labels).set(1.0);
                any = true;
            }
        }
        if any {
            registry.register(*name, *help, family);
        }
    }

    let halves: Vec<_> =
        samples.iter().filter_map(|(labels, source)| Some((labels.clone(), open_half(source)?))).collect();
    gauges(
        &mut registry,
        "open_half_",
        &[("bytes", "Bytes in the open half"), ("capacity_bytes", "Bytes that the open half can hold")],
        &halves,
    );
    let mut volumes = Vec::new();
    for (labels, source) in &samples {
        for volume in source["volumes"].as_array().into_iter().flatten() {
            let mut labels = labels.clone();
            let name = volume["name"].as_str().unwrap_or_default();
            labels.push(("volume", name.into()));
            volumes.push((labels, volume));
        }
    }
    gauges(&mut registry, "volume_", VOLUME_GAUGES, &volumes);

    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &registry) {
        // Writing to a String doesn't fail; a half text must not look like a whole one.
        tracing::error!("metrics can't be encoded: {error}");
        return String::new();
    }
    text
}

/// The half that is being filled.
fn open_half(source: &Value) -> Option<&Value> {
    let halves = source["halves"].as_array()?;
    halves.iter().find(|half| half["state"] == "open")
}

/// Numbers as they are, truth as 1 and 0.
fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(truth) => Some(f64::from(*truth)),
        other => other.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Serves the text "the metrics" and sends one raw request.
    async fn request(bytes: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let server =
            tokio::spawn(serve(listener, Arc::new(|| Box::pin(async { "the metrics".to_owned() }) as Rendering)));
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(bytes).await.expect("writes");
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.expect("reads");
        server.abort();
        String::from_utf8(reply).expect("is text")
    }

    #[tokio::test]
    async fn get_metrics_brings_the_text() {
        let reply = request(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains("Content-Type: application/openmetrics-text;"), "{reply}");
        assert!(reply.contains("Content-Length: 11\r\n"), "{reply}");
        assert!(reply.ends_with("\r\n\r\nthe metrics"), "{reply}");
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        for (request_head, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/more HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("\0\r\n\r\n", "400"),
        ] {
            let reply = request(request_head.as_bytes()).await;
            assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{request_head}: {reply}");
        }
    }

    #[tokio::test]
    async fn a_large_head_is_refused() {
        let reply = request(&[b'x'; MAX_HEAD_BYTES]).await;
        assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    }

    #[test]
    fn a_sources_numbers_become_metrics() {
        let status = json!({
            "role": "source", "name": "alpha", "state": "mirroring", "reason": null,
            "whole": true, "lacking_bytes": 4096, "policy": {"on_disconnect": "continue", "timeout_ms": 5000},
            "failover_loses": {"what": "nothing", "since": null, "since_unix_s": null}, "verify": null,
            "resync": {"total_bytes": 9, "done_bytes": 4, "seconds_left": null},
            "connected": true, "last_record": 123, "stored_there": null, "written_bytes": 4096,
            "halves": [{"state": "flushed", "bytes": 9}, {"state": "open", "bytes": 5, "capacity_bytes": 50}],
            "volumes": [{"name": "vol0", "size_bytes": 1024}, {"name": "vol1", "size_bytes": 2048}],
        });
        let text = render("source", &status);
        for line in [
            r#"nbd_mirror_connected{role="source",source="alpha"} 1.0"#,
            r#"nbd_mirror_last_record{role="source",source="alpha"} 123.0"#,
            r#"nbd_mirror_written_bytes_total{role="source",source="alpha"} 4096"#,
            r#"nbd_mirror_state{role="source",source="alpha",state="mirroring"} 1.0"#,
            r#"nbd_mirror_whole{role="source",source="alpha"} 1.0"#,
            r#"nbd_mirror_lacking_bytes{role="source",source="alpha"} 4096.0"#,
            r#"nbd_mirror_resync_total_bytes{role="source",source="alpha"} 9.0"#,
            r#"nbd_mirror_resync_done_bytes{role="source",source="alpha"} 4.0"#,
            r#"nbd_mirror_policy_timeout_ms{role="source",source="alpha"} 5000.0"#,
            r#"nbd_mirror_failover_loses{role="source",source="alpha",failover_loses="nothing"} 1.0"#,
            r#"nbd_mirror_on_disconnect{role="source",source="alpha",on_disconnect="continue"} 1.0"#,
            r#"nbd_mirror_open_half_bytes{role="source",source="alpha"} 5.0"#,
            r#"nbd_mirror_volume_size_bytes{role="source",source="alpha",volume="vol1"} 2048.0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
        for null in ["stored_there", "seconds_left", "since_unix_s", "verify_", "phase"] {
            assert!(!text.contains(null), "{null}: what isn't there makes no sample:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn a_destination_has_samples_for_each_source() {
        let status = json!({"role": "destination", "sources": [
            {"name": "alpha", "state": "receiving", "held_record": 7, "promotable": true,
             "phase": "staging", "staged_bytes": 12},
            {"name": "beta", "state": "empty", "held_record": 0, "promotable": false},
        ]});
        let text = render("destination", &status);
        for line in [
            r#"nbd_mirror_held_record{role="destination",source="alpha"} 7.0"#,
            r#"nbd_mirror_staged_bytes{role="destination",source="alpha"} 12.0"#,
            r#"nbd_mirror_phase{role="destination",source="alpha",phase="staging"} 1.0"#,
            r#"nbd_mirror_promotable{role="destination",source="beta"} 0.0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn any_status_is_rendered() {
        for status in [json!(null), json!({}), json!({"sources": [null, 3]}), json!({"volumes": 3})] {
            assert!(render("source", &status).ends_with("# EOF\n"));
        }
    }
}
