//! Whole files, the defaults, and every refusal.

use super::values::{parse_bytes, parse_duration};
use super::*;
use crate::core::policy;

const SOURCE: &str = r#"
name = "alpha"
durability = "flush"
on_disconnect = "stall"
timeout = "7s"
[journal]
path = "/var/lib/nbd-mirror/alpha.journal"
size = "128MiB"
max_age = "500ms"
grain = "128KiB"
[[volume]]
name = "vol0"
device = "/dev/vdb"
[nbd]
listen = ["unix:/run/nbd-mirror/alpha.nbd", "tcp:127.0.0.1:10809"]
[destination]
address = "10.0.0.2:10808"
[admin]
socket = "/run/nbd-mirror/alpha.admin"
[metrics]
listen = "127.0.0.1:9108"
"#;

const DESTINATION: &str = r#"
listen = "10.0.0.2:10808"
journal_dir = "/var/lib/nbd-mirror/journals"
staging_size = "1GiB"
resync_staging = "best_effort"
[[source]]
name = "alpha"
[[source.volume]]
name = "vol0"
image = "/dev/vdc"
[[source]]
name = "beta"
[[source.volume]]
name = "vol0"
image = "/dev/vdd"
[nbd]
listen = ["unix:/run/nbd-mirror/dest.nbd"]
[admin]
socket = "/run/nbd-mirror/dest.admin"
[metrics]
listen = "127.0.0.1:9109"
"#;

fn host_port(text: &str) -> HostPort {
    text.parse().expect("a valid address")
}

/// The example with one piece of its text replaced.
fn with(example: &str, from: &str, to: &str) -> String {
    assert!(example.contains(from), "{from:?} is in the example");
    example.replacen(from, to, 1)
}

fn source_error(text: &str) -> String {
    let refused = SourceConfig::parse(text).and_then(|config| config.validate());
    format!("{:#}", refused.expect_err("the configuration is refused"))
}

fn destination_error(text: &str) -> String {
    let refused = DestinationConfig::parse(text).and_then(|config| config.validate());
    format!("{:#}", refused.expect_err("the configuration is refused"))
}

/// Asserts that the error holds all pieces.
#[track_caller]
fn says(error: &str, pieces: &[&str]) {
    for piece in pieces {
        assert!(error.contains(piece), "{piece:?} is missing in: {error}");
    }
}

#[test]
fn a_full_source_is_read() {
    let config = SourceConfig::parse(SOURCE).expect("parses");
    config.validate().expect("is valid");
    assert_eq!(config.name, "alpha");
    assert_eq!(config.durability, Durability::Flush);
    assert_eq!(config.on_disconnect, OnDisconnect::Stall);
    assert_eq!(config.timeout, Duration::from_secs(7));
    assert_eq!(config.journal.size_bytes, 128 << 20);
    assert_eq!(config.journal.max_age, Duration::from_millis(500));
    assert_eq!(config.journal.grain_bytes, 128 << 10);
    assert_eq!(config.volumes[0].device, Path::new("/dev/vdb"));
    assert_eq!(
        config.nbd.listen,
        [ListenAddress::Unix("/run/nbd-mirror/alpha.nbd".into()), ListenAddress::Tcp(host_port("127.0.0.1:10809")),]
    );
    let destination = config.destination.expect("has a destination");
    assert_eq!(destination.address, host_port("10.0.0.2:10808"));
    let metrics = config.metrics.expect("has metrics");
    assert_eq!(metrics.listen, host_port("127.0.0.1:9108"));
}

#[test]
fn what_is_left_out_has_its_default() {
    let text = "name = 'a'\njournal.path = '/j'\nnbd.listen = ['unix:/n']\nadmin.socket = '/a'\n\
                volume = [{name = 'v', device = '/d'}]";
    let config = SourceConfig::parse(text).expect("parses");
    config.validate().expect("is valid");
    assert_eq!(config.durability, Durability::Always);
    assert_eq!(config.on_disconnect, OnDisconnect::Continue);
    assert_eq!(config.timeout, Duration::from_secs(5));
    assert_eq!(config.journal.size_bytes, 256 << 20);
    assert_eq!(config.journal.max_age, Duration::from_secs(10));
    assert_eq!(config.journal.grain_bytes, 64 << 10);
    assert_eq!(config.destination, None);
    assert_eq!(config.metrics, None);
}

#[test]
fn a_full_destination_is_read() {
    let config = DestinationConfig::parse(DESTINATION).expect("parses");
    config.validate().expect("is valid");
    assert_eq!(config.listen, host_port("10.0.0.2:10808"));
    assert_eq!(config.staging_size_bytes, 1 << 30);
    assert_eq!((config.resync_staging, config.best_effort()), (ResyncStaging::BestEffort, true));
    assert_eq!(config.sources.len(), 2);
    assert_eq!(config.sources[1].name, "beta");
    assert_eq!(config.sources[1].volumes[0].image, Path::new("/dev/vdd"));
}

#[test]
fn a_destination_without_nbd_and_metrics_is_valid() {
    let text = with(DESTINATION, "[nbd]\nlisten = [\"unix:/run/nbd-mirror/dest.nbd\"]\n", "");
    let text = with(&text, "[metrics]\nlisten = \"127.0.0.1:9109\"\n", "");
    let config = DestinationConfig::parse(&text).expect("parses");
    config.validate().expect("is valid");
    assert_eq!((config.nbd, config.metrics), (None, None));
}

#[test]
fn a_destination_stages_unless_it_is_told_otherwise() {
    let text = with(DESTINATION, "staging_size = \"1GiB\"\nresync_staging = \"best_effort\"\n", "");
    let config = DestinationConfig::parse(&text).expect("parses");
    assert_eq!((config.staging_size_bytes, config.best_effort()), (8 << 30, false));
    let text = with(DESTINATION, "best_effort", "require");
    let config = DestinationConfig::parse(&text).expect("parses");
    assert_eq!((config.resync_staging, config.best_effort()), (ResyncStaging::Require, false));
    says(&destination_error(&with(DESTINATION, "best_effort", "maybe")), &["line 5", "`require`", "`best_effort`"]);
    says(&destination_error(&with(DESTINATION, "1GiB", "1MiB")), &["staging_size", "1MiB", "8MiB"]);
    DestinationConfig::parse(&with(DESTINATION, "1GiB", "8MiB")).and_then(|c| c.validate()).expect("the least");
}

#[test]
fn the_grain_is_a_power_of_two_within_bounds() {
    for grain in ["2KiB", "2MiB", "96KiB", "0"] {
        says(&source_error(&with(SOURCE, "128KiB", grain)), &["journal.grain", "power of two", "4KiB", "1MiB"]);
    }
    for grain in ["4KiB", "1MiB"] {
        let config = SourceConfig::parse(&with(SOURCE, "128KiB", grain)).expect("parses");
        config.validate().expect("the bounds themselves are valid");
    }
}

#[test]
fn the_timeout_is_bounded() {
    for timeout in ["0s", "99ms", "25h"] {
        says(&source_error(&with(SOURCE, "7s", timeout)), &["line 5", timeout, "100ms", "24h"]);
    }
    for (text, ms) in [("100ms", 100), ("24h", 86_400_000)] {
        assert_eq!(parse_timeout(text), Ok(Duration::from_millis(ms)));
    }
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_known_keys() {
    let error = source_error(&with(SOURCE, "max_age", "maxage"));
    says(&error, &["line 9", "maxage", "`path`", "`size`", "`max_age`"]);
    let error = source_error(&with(SOURCE, "durability", "durabilty"));
    says(&error, &["line 3", "durabilty", "`durability`", "`on_disconnect`"]);
    let error = destination_error(&with(DESTINATION, "image =", "imgae ="));
    says(&error, &["line 10", "imgae", "`image`"]);
}

#[test]
fn a_wrong_value_is_named_with_its_line() {
    let error = source_error(&with(SOURCE, "\"7s\"", "\"7 parsecs\""));
    says(&error, &["line 5", "7 parsecs", "10s"]);
    let error = source_error(&with(SOURCE, "\"128MiB\"", "\"128MB\""));
    says(&error, &["line 8", "128MB", "MiB"]);
    let error = source_error(&with(SOURCE, "\"128MiB\"", "-1"));
    says(&error, &["line 8", "-1"]);
    let error = source_error(&with(SOURCE, "\"flush\"", "\"never\""));
    says(&error, &["line 3", "never", "`always`", "`flush`"]);
    let error = source_error(&with(SOURCE, "unix:/run", "/run"));
    says(&error, &["line 15", "unix:/path or tcp:host:port"]);
    let error = source_error(&with(SOURCE, "\"/dev/vdb\"", "\"\""));
    says(&error, &["line 13", "empty"]);
    let error = source_error(&with(SOURCE, "\"500ms\"", "\"0s\""));
    says(&error, &["line 9", "longer than zero"]);
    let error = source_error(&with(SOURCE, "\"vol0\"", "\".vol0\""));
    says(&error, &["line 12", "dot"]);
}

#[test]
fn a_missing_section_is_named() {
    let error = source_error(&with(SOURCE, "[admin]\nsocket = \"/run/nbd-mirror/alpha.admin\"\n", ""));
    says(&error, &["admin"]);
    let error = source_error("name = 'a'");
    says(&error, &["journal"]);
}

#[test]
fn every_policy_is_understood() {
    for (word, policy) in
        [("continue", OnDisconnect::Continue), ("stall", OnDisconnect::Stall), ("fail", OnDisconnect::Fail)]
    {
        let config = SourceConfig::parse(&with(SOURCE, "stall", word)).expect("parses");
        config.validate().expect("is valid");
        assert_eq!((config.on_disconnect, config.on_disconnect.as_str()), (policy, word));
        assert_eq!(OnDisconnect::from(policy::OnDisconnect::from(policy)), policy);
    }
    says(&source_error(&with(SOURCE, "stall", "panic")), &["panic", "continue", "stall", "fail"]);
}

#[test]
fn the_journals_size_is_bounded() {
    for size in ["14MiB", "66GiB", "0"] {
        let error = source_error(&with(SOURCE, "128MiB", size));
        says(&error, &["journal.size", "16MiB", "64GiB"]);
    }
    let error = source_error(&with(SOURCE, "128MiB", "17MiB"));
    says(&error, &["multiple of 2MiB", "16777216"]);
    for size in ["16MiB", "64GiB", "18MiB"] {
        let config = SourceConfig::parse(&with(SOURCE, "128MiB", size)).expect("parses");
        config.validate().expect("the bounds themselves are valid");
    }
}

#[test]
fn the_number_of_volumes_is_bounded() {
    let none = with(SOURCE, "[[volume]]\nname = \"vol0\"\ndevice = \"/dev/vdb\"\n", "");
    says(&source_error(&none), &["[[volume]]", "at least one"]);
    let add = |count: usize| {
        (1..count).fold(SOURCE.to_owned(), |text, i| format!("{text}[[volume]]\nname = 'v{i}'\ndevice = '/dev/v{i}'\n"))
    };
    let most = SourceConfig::parse(&add(MAX_VOLUMES)).expect("parses");
    most.validate().expect("32 are allowed");
    says(&source_error(&add(MAX_VOLUMES + 1)), &["33", "at most 32"]);
}

#[test]
fn nothing_is_used_twice_at_a_source() {
    let name = format!("{SOURCE}[[volume]]\nname = 'vol0'\ndevice = '/dev/other'\n");
    says(&source_error(&name), &["volume.name", "vol0", "twice"]);
    let device = format!("{SOURCE}[[volume]]\nname = 'vol1'\ndevice = '/dev/vdb'\n");
    says(&source_error(&device), &["volume.device", "/dev/vdb", "twice"]);
    let journal = with(SOURCE, "/dev/vdb", "/var/lib/nbd-mirror/alpha.journal");
    says(&source_error(&journal), &["journal.path", "vol0"]);
    let listen = with(SOURCE, "tcp:127.0.0.1:10809", "unix:/run/nbd-mirror/alpha.nbd");
    says(&source_error(&listen), &["nbd.listen", "twice"]);
    let admin = with(SOURCE, "alpha.nbd", "alpha.admin");
    says(&source_error(&admin), &["admin.socket", "nbd.listen"]);
}

#[test]
fn nothing_is_used_twice_at_a_destination() {
    let name = with(DESTINATION, "\"beta\"", "\"alpha\"");
    says(&destination_error(&name), &["source.name", "alpha", "twice"]);
    let image = with(DESTINATION, "/dev/vdd", "/dev/vdc");
    says(&destination_error(&image), &["source.volume.image", "/dev/vdc"]);
    let volume = with(DESTINATION, "[[source]]\nname = \"beta\"\n[[source.volume]]", "[[source.volume]]");
    says(&destination_error(&volume), &["source \"alpha\"", "vol0", "twice"]);
}

#[test]
fn a_destination_needs_sources_and_volumes() {
    let bare = "listen = 'h:1'\njournal_dir = '/j'\nadmin.socket = '/a'\n";
    says(&destination_error(bare), &["[[source]]", "at least one"]);
    let text = format!("{bare}[[source]]\nname = 's'\n");
    says(&destination_error(&text), &["source \"s\"", "[[source.volume]]"]);
}

#[test]
fn nvram_has_a_path_and_a_size_that_is_worth_it() {
    let config = DestinationConfig::parse(&format!("nvram = '/dev/pmem0'\n{DESTINATION}")).unwrap();
    assert_eq!((config.nvram, config.nvram_size_bytes), (Some("/dev/pmem0".into()), 1 << 30));
    says(&destination_error(&format!("nvram = ''\n{DESTINATION}")), &["nvram", "the path is empty"]);
    says(&destination_error(&format!("nvram_size = '1MiB'\n{DESTINATION}")), &["nvram_size is 1MiB", "at least 64MiB"]);
}

#[test]
fn an_empty_listen_is_refused() {
    let text = "name = 'a'\njournal.path = '/j'\nnbd.listen = []\nadmin.socket = '/a'\n\
                volume = [{name = 'v', device = '/d'}]";
    says(&source_error(text), &["nbd.listen", "empty", "tcp:"]);
}

#[test]
fn load_names_the_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("alpha.toml");
    let failure = || format!("{:#}", SourceConfig::load(&path).expect_err("is refused"));
    says(&failure(), &["alpha.toml", "No such file"]);
    std::fs::write(&path, SOURCE.replace("128MiB", "1MiB")).expect("writes");
    says(&failure(), &["alpha.toml", "journal.size"]);
    std::fs::write(&path, with(SOURCE, "device", "devcie")).expect("writes");
    says(&failure(), &["alpha.toml", "line 13", "devcie"]);
    std::fs::write(&path, SOURCE).expect("writes");
    assert_eq!(SourceConfig::load(&path).expect("loads").name, "alpha");
}

#[test]
fn names() {
    for good in ["a", "vol0", "db_1.data-x", "-", &"x".repeat(64)] {
        check_name(good).expect("a valid name");
    }
    for bad in ["", ".", ".hidden", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
        check_name(bad).expect_err("an invalid name");
    }
}

#[test]
fn sizes() {
    for (text, bytes) in [("4096", 4096), ("1B", 1), ("3 KiB", 3072), ("2TiB", 2 << 40)] {
        assert_eq!(parse_bytes(text), Ok(bytes));
    }
    for bad in ["", "MiB", "1MB", "1.5GiB", "-1", "99999999999TiB", "1 MiB x"] {
        parse_bytes(bad).expect_err("an invalid size");
    }
    for (bytes, text) in [(0, "0B"), (1000, "1000B"), (1 << 30, "1GiB"), (3 << 20, "3MiB")] {
        assert_eq!(format_bytes(bytes), text);
        assert_eq!(parse_bytes(text), Ok(bytes));
    }
}

#[test]
fn durations() {
    for (text, ms) in [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
    }
    for (ms, text) in
        [(0, "0ms"), (1_500, "1500ms"), (5_000, "5s"), (90_000, "90s"), (120_000, "2m"), (3_600_000, "1h")]
    {
        assert_eq!(format_duration(Duration::from_millis(ms)), text);
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
    }
    for bad in ["", "10", "s", "-1s", "+1s", "1.5s", "18446744073709551615h"] {
        parse_duration(bad).expect_err("an invalid duration");
    }
}

#[test]
fn addresses() {
    for text in ["tcp:host:1", "tcp:[::1]:10809", "tcp:127.0.0.1:0", "unix:/a b/c"] {
        let address: ListenAddress = text.parse().expect("a valid address");
        assert_eq!(address.to_string(), text);
    }
    let six: HostPort = "[::1]:80".parse().expect("a valid address");
    assert_eq!((six.host.as_str(), six.port), ("::1", 80));
    for bad in ["", "tcp:", "tcp:host", "tcp::1", "tcp:::1:80", "tcp:h:65536", "tcp:[::1:80"] {
        bad.parse::<ListenAddress>().expect_err("an invalid address");
    }
    let long = format!("unix:/{}", "x".repeat(MAX_SOCKET_PATH_BYTES));
    says(&long.parse::<ListenAddress>().expect_err("is too long"), &["108 bytes", "107"]);
}
