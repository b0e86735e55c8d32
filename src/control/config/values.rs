//! The values that the configuration spells in words: sizes, durations, addresses, names, paths.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use super::{MAX_SOCKET_PATH_BYTES, MAX_TIMEOUT, MIN_TIMEOUT, check_name};

/// Units of sizes, ascending; `format_bytes` and `parse_bytes` are inverse to each other.
const SIZE_UNITS: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Units of durations, in milliseconds. `ms` stands before `s`, which is its ending.
const DURATION_UNITS_MS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// A TCP address, `host:port`: host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or IP address, without brackets.
    pub host: String,
    /// TCP port; 0 lets the kernel choose when listening.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("address {text:?} {why}: write host:port, e.g. \"127.0.0.1:10808\"");
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port = port.parse().map_err(|_| wrong("has no valid port"))?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => inner,
            None if host.contains(':') => return Err(wrong("has an IPv6 host without [ ]")),
            None => host,
        };
        if host.is_empty() {
            return Err(wrong("has no host"));
        }
        if host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '[' | ']')) {
            return Err(wrong("has no valid host"));
        }
        let host = host.to_owned();
        Ok(Self { host, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where to listen: `unix:/path` or `tcp:host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// A TCP socket.
    Tcp(HostPort),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            check_socket_path(path).map(Self::Unix)
        } else if let Some(address) = text.strip_prefix("tcp:") {
            address.parse().map(Self::Tcp)
        } else {
            Err(format!(
                "address {text:?} starts with neither \"unix:\" nor \"tcp:\": \
                 write unix:/path or tcp:host:port"
            ))
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Gives the text form both directions of serde.
macro_rules! serde_by_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

serde_by_text!(HostPort);
serde_by_text!(ListenAddress);

/// Writes a number of bytes in its largest exact unit: `256MiB`, `1000B`.
pub fn format_bytes(bytes: u64) -> String {
    let exact = |&&(_, unit): &&(&str, u64)| bytes != 0 && bytes.is_multiple_of(unit);
    let &(name, unit) = SIZE_UNITS.iter().rev().find(exact).unwrap_or(&SIZE_UNITS[0]);
    format!("{}{name}", bytes / unit)
}

/// Reads `"256MiB"`, `"4096"` or `"4096B"` as bytes.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    let unit = match suffix.trim_start() {
        "" => Some(1),
        name => SIZE_UNITS.iter().find(|u| u.0 == name).map(|u| u.1),
    };
    let wrong = || format!("size {text:?} is not a whole number with B, KiB, MiB, GiB or TiB, e.g. \"256MiB\"");
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit.ok_or_else(wrong)?).ok_or_else(|| format!("size {text:?} is larger than 64 bits can count"))
}

/// Reads `"10s"`, `"500ms"`, `"2m"` or `"1h"`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("duration {text:?} is not a whole number with ms, s, m or h, e.g. \"10s\"");
    let (digits, unit_ms) = DURATION_UNITS_MS
        .iter()
        .find_map(|&(name, ms)| text.strip_suffix(name).map(|digits| (digits, ms)))
        .ok_or_else(wrong)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let millis = number.checked_mul(unit_ms).ok_or_else(wrong)?;
    Ok(Duration::from_millis(millis))
}

/// Writes a duration in its largest exact unit, as `parse_duration` reads it: `5s`, `1500ms`.
pub fn format_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let exact = |&&(_, unit): &&(&str, u64)| ms != 0 && ms.is_multiple_of(unit);
    let &(name, unit) = DURATION_UNITS_MS.iter().rev().find(exact).unwrap_or(&DURATION_UNITS_MS[0]);
    format!("{}{name}", ms / unit)
}

/// Checks how long a destination may be away or silent: from [`MIN_TIMEOUT`] to [`MAX_TIMEOUT`].
///
/// # Errors
/// What is allowed.
pub fn check_timeout(timeout: Duration) -> Result<Duration, String> {
    if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&timeout) {
        let [given, least, most] = [timeout, MIN_TIMEOUT, MAX_TIMEOUT].map(format_duration);
        return Err(format!("a timeout of {given} is out of range: it must be from {least} to {most}"));
    }
    Ok(timeout)
}

/// Reads a timeout, and checks it.
///
/// # Errors
/// What is wrong, and what is allowed.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    check_timeout(parse_duration(text)?)
}

/// Checks a Unix socket's path: the kernel cuts at [`MAX_SOCKET_PATH_BYTES`].
fn check_socket_path(path: &str) -> Result<PathBuf, String> {
    match path.len() {
        0 => Err("the socket's path is empty: write e.g. \"/run/nbd-mirror/alpha.admin\"".into()),
        1..=MAX_SOCKET_PATH_BYTES => Ok(PathBuf::from(path)),
        len => Err(format!(
            "the socket's path has {len} bytes: Linux allows {MAX_SOCKET_PATH_BYTES}, choose a shorter one"
        )),
    }
}

pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_name(&name).map_err(D::Error::custom)?;
    Ok(name)
}

pub(super) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom("the path is empty"));
    }
    Ok(path)
}

pub(super) fn socket_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    check_socket_path(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(super) fn positive_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)?;
    if duration.is_zero() {
        return Err(D::Error::custom("the duration must be longer than zero"));
    }
    Ok(duration)
}

pub(super) fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_timeout(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(super) fn size_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(SizeVisitor)
}

pub(super) fn optional_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    path(deserializer).map(Some)
}

/// A size is a plain integer or a text with a unit.
struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size: bytes as an integer, or a text like \"256MiB\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        parse_bytes(text).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<u64, E> {
        Ok(bytes)
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<u64, E> {
        u64::try_from(bytes).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
    }
}
