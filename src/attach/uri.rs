//! Where a volume is served, as an NBD URI: `nbd://host:port/export` or `nbd+unix:///export?socket=/path`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// NBD's port, where a URI names none.
const DEFAULT_PORT: u16 = 10809;
/// The longest path of a Unix socket: what fits into the system's address, with its ending zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Over TCP. The host is a name or an address, IPv6 without its brackets.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// An export at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// The export's name; empty for the server's only one.
    pub export: String,
    /// As it was written.
    text: String,
}

/// What is wrong with a URI, and how it should look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} {1}; write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=/PATH")]
pub struct BadUri(String, &'static str);

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl FromStr for Uri {
    type Err = BadUri;

    fn from_str(text: &str) -> Result<Uri, BadUri> {
        let (address, export) = parse(text).map_err(|wrong| BadUri(text.to_owned(), wrong))?;
        Ok(Uri { address, export, text: text.to_owned() })
    }
}

fn parse(text: &str) -> Result<(Address, String), &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("is no URI")?;
    if rest.contains('#') {
        return Err("has a fragment, which NBD knows nothing of");
    }
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(export)?;
    match scheme {
        "nbd" if query.is_some() => Err("has a query, which only nbd+unix takes"),
        "nbd" => Ok((tcp(authority)?, export)),
        "nbd+unix" if !authority.is_empty() => Err("names a host, where nbd+unix has none: three slashes"),
        "nbd+unix" => {
            let path = query.and_then(|query| query.strip_prefix("socket=")).ok_or("doesn't say ?socket=/PATH")?;
            let path = decode(path)?;
            if !path.starts_with('/') {
                return Err("has a socket whose path isn't absolute");
            }
            if path.len() > MAX_SOCKET_PATH_BYTES {
                return Err("has a socket whose path is longer than 107 bytes");
            }
            Ok((Address::Unix(path.into()), export))
        }
        "nbds" | "nbds+unix" => Err("asks for TLS, which isn't supported"),
        _ => Err("isn't of a scheme that is supported"),
    }
}

fn tcp(authority: &str) -> Result<Address, &'static str> {
    if authority.contains('@') {
        return Err("names a user, which NBD knows nothing of");
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, behind) = rest.split_once(']').ok_or("has an IPv6 address that doesn't end in ]")?;
        let port = match behind {
            "" => None,
            behind => Some(behind.strip_prefix(':').ok_or("has something behind the IPv6 address that is no port")?),
        };
        (host, port)
    } else {
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        if port.is_some_and(|port| port.contains(':')) {
            return Err("has an IPv6 address without [ ] around it");
        }
        (host, port)
    };
    if host.is_empty() {
        return Err("names no host");
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or("has no port between 1 and 65535")?,
    };
    Ok(Address::Tcp(host.to_owned(), port))
}

/// Undoes percent encoding.
fn decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err("has a % without two hexadecimal digits behind it");
        };
        bytes.push((high << 4 | low) as u8);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or("isn't text once its % are undone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_kinds_are_understood() {
        let tcp = |host: &str, port| Address::Tcp(host.into(), port);
        let unix = |path: &str| Address::Unix(path.into());
        for (text, address, export) in [
            ("nbd://10.0.0.1:10810/vol0", tcp("10.0.0.1", 10810), "vol0"),
            ("nbd://alpha.example/vol0", tcp("alpha.example", 10809), "vol0"),
            ("nbd://[fe80::1%25eth0]:1/vol0", tcp("fe80::1%25eth0", 1), "vol0"),
            ("nbd://[::1]/alpha/vol0", tcp("::1", 10809), "alpha/vol0"),
            ("nbd://h", tcp("h", 10809), ""),
            ("nbd+unix:///vol0?socket=/run/a.nbd", unix("/run/a.nbd"), "vol0"),
            ("nbd+unix:///?socket=/run/a%20b", unix("/run/a b"), ""),
            ("nbd+unix:///v%C3%BC%2f?socket=/s", unix("/s"), "vü/"),
        ] {
            let uri: Uri = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((uri.address.clone(), uri.export.as_str()), (address, export));
            assert_eq!(uri.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, wrong) in [
            ("vol0", "is no URI"),
            ("http://h/vol0", "scheme"),
            ("nbds://h/vol0", "TLS"),
            ("nbd:///vol0", "no host"),
            ("nbd://h:0/vol0", "port"),
            ("nbd://h:70000/vol0", "port"),
            ("nbd://::1/vol0", "without [ ]"),
            ("nbd://[::1/vol0", "end in ]"),
            ("nbd://[::1]x/vol0", "no port"),
            ("nbd://me@h/vol0", "user"),
            ("nbd://h/vol0?socket=/s", "query"),
            ("nbd://h/vol0#1", "fragment"),
            ("nbd://h/%e4", "text"),
            ("nbd://h/%4", "%"),
            ("nbd://h/%00", "text"),
            ("nbd+unix:///vol0", "?socket="),
            ("nbd+unix://h/vol0?socket=/s", "three slashes"),
            ("nbd+unix:///vol0?socket=s", "absolute"),
        ] {
            let said = text.parse::<Uri>().expect_err(text).to_string();
            assert!(said.contains(wrong) && said.contains("nbd+unix:///EXPORT?socket="), "{said}");
        }
        let long = format!("nbd+unix:///v?socket=/{}", "x".repeat(107));
        assert!(long.parse::<Uri>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text: String) {
            let _ = text.parse::<Uri>();
            let _ = format!("nbd://{text}").parse::<Uri>();
            let _ = format!("nbd+unix:///{text}").parse::<Uri>();
        }
    }
}
