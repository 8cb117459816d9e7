//! Where a server listens, as nginx's `server` directive writes it.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use super::Printable;

/// The longest path a `sockaddr_un` of Linux holds, without its final NUL.
pub const UNIX_PATH_MAX: usize = 107;

/// The longest host name of DNS in text form (RFC 1035, 2.3.4).
pub const HOST_NAME_MAX: usize = 253;

/// An address one can connect to. Equal addresses are one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// IPv4 or IPv6 with a port from 1 to 65,535.
    Ip(SocketAddr),
    /// The path of a `unix:` socket, 1 to [`UNIX_PATH_MAX`] bytes.
    Unix(String),
}

/// What a user may write where a server is meant: an address, or a name that resolves to several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// Needs no resolving.
    Address(Address),
    /// A host name in lower case and a port from 1 to 65,535.
    Name {
        /// Letters, digits, `-`, `_` and `.`, at most [`HOST_NAME_MAX`] bytes.
        host: String,
        /// 1 to 65,535.
        port: u16,
    },
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// No `:PORT`, and the caller has no default.
    #[error("no port in \"{}\", expected HOST:PORT", Printable(.0))]
    NoPort(String),
    /// The port is no number from 1 to 65,535.
    #[error("invalid port in \"{}\", expected 1 to 65535", Printable(.0))]
    Port(String),
    /// Neither an IP address nor a host name.
    #[error("invalid host in \"{}\"", Printable(.0))]
    Host(String),
    /// `unix:` with an empty, overlong or unprintable path.
    #[error(
        "invalid path in \"{}\", expected unix:/PATH of at most {UNIX_PATH_MAX} bytes",
        Printable(.0)
    )]
    UnixPath(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Endpoint {
    /// Reads `IPv4:PORT`, `[IPv6]:PORT`, `NAME:PORT` or `unix:/PATH`; without a port
    /// `default_port` is taken if there is one (nginx's `server` has 80, Consul keys have none).
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(text, path).map(Self::Address);
        }
        let (host, port) = split_port(text)?;
        let port = match port {
            Some(port) => parse_port(port).ok_or_else(|| AddressError::Port(text.to_owned()))?,
            None => default_port.ok_or_else(|| AddressError::NoPort(text.to_owned()))?,
        };
        if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let ip = Ipv6Addr::from_str(inner).map_err(|_| AddressError::Host(text.to_owned()))?;
            return Ok(Self::ip(IpAddr::V6(ip), port));
        }
        if let Ok(ip) = IpAddr::from_str(host) {
            return Ok(Self::ip(ip, port));
        }
        if !is_host_name(host) {
            return Err(AddressError::Host(text.to_owned()));
        }
        Ok(Self::Name { host: host.to_ascii_lowercase(), port })
    }

    /// Joins a host as Consul's catalog has it (an IPv6 address without brackets) and a port.
    pub fn from_host_port(host: &str, port: u16) -> Result<Self, AddressError> {
        if host.starts_with("unix:") {
            return Self::parse(host, None);
        }
        if port == 0 {
            return Err(AddressError::Port(format!("{host}:{port}")));
        }
        match IpAddr::from_str(host) {
            Ok(ip) => Ok(Self::ip(ip, port)),
            Err(_) => Self::parse(&format!("{host}:{port}"), None),
        }
    }

    fn ip(ip: IpAddr, port: u16) -> Self {
        Self::Address(Address::Ip(SocketAddr::new(ip, port)))
    }
}

fn unix(text: &str, path: &str) -> Result<Address, AddressError> {
    let good = !path.is_empty()
        && path.len() <= UNIX_PATH_MAX
        && path.starts_with('/')
        && path.bytes().all(is_path_byte);
    if good {
        Ok(Address::Unix(path.to_owned()))
    } else {
        Err(AddressError::UnixPath(text.to_owned()))
    }
}

/// A path is written into a file that nginx reads back, so what its grammar gives a meaning is out.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b";{}\"'\\$#:".contains(&byte)
}

/// Splits at the colon that starts a port, which in `[::1]:80` is not the first.
fn split_port(text: &str) -> Result<(&str, Option<&str>), AddressError> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or_else(|| AddressError::Host(text.to_owned()))?;
        let (host, rest) = text.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(AddressError::Host(text.to_owned())),
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&port: &u16| digits && port != 0)
}

/// Digits and dots alone are a mistyped IPv4 address, not a name.
fn is_host_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !host.is_empty()
        && host.len() <= HOST_NAME_MAX
        && host.bytes().all(allowed)
        && host
            .split('.')
            .rev()
            .skip_while(|label| label.is_empty())
            .all(|label| !label.is_empty() && label.len() <= 63)
        && host.bytes().any(|b| b.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Endpoint, AddressError> {
        Endpoint::parse(text, None)
    }

    fn shown(text: &str) -> String {
        parse(text).unwrap().to_string()
    }

    #[test]
    fn every_kind_is_read_and_shown_alike() {
        for text in ["127.0.0.1:80", "[::1]:65535", "unix:/run/a.sock", "backend-1.local_:8080"] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn equal_addresses_are_shown_alike() {
        assert_eq!(shown("[0:0:0:0:0:0:0:1]:080"), "[::1]:80");
        assert_eq!(shown("BackEnd.Local:1"), "backend.local:1");
    }

    #[test]
    fn default_port_is_taken_only_where_there_is_none() {
        let parse = |text| Endpoint::parse(text, Some(80)).unwrap().to_string();
        assert_eq!(parse("127.0.0.1"), "127.0.0.1:80");
        assert_eq!(parse("[::1]"), "[::1]:80");
        assert_eq!(parse("a.b:81"), "a.b:81");
    }

    #[test]
    fn a_port_is_a_number_from_1_to_65535() {
        assert_eq!(parse("a"), Err(AddressError::NoPort("a".into())));
        for text in ["a:", "a:0", "a:65536", "a:+1", "a:1:2", "[::1]:", "a: 1", "a:１"] {
            assert_eq!(parse(text), Err(AddressError::Port(text.into())), "{text}");
        }
    }

    #[test]
    fn a_host_is_an_address_or_a_name() {
        let long_label = format!("{}:1", "a".repeat(64));
        let long_name = format!("{}:1", "a.".repeat(127));
        for text in [
            "1.2.3:1",
            "256.0.0.1:1",
            ":1",
            "a..b:1",
            ".a:1",
            "[::1:1",
            "[x]:1",
            "[::1]x:1",
            "a b:1",
            "a/b:1",
            "é:1",
            &long_label,
            &long_name,
        ] {
            assert_eq!(parse(text), Err(AddressError::Host(text.to_owned())), "{text}");
        }
        assert!(parse("root.:53").is_ok());
    }

    #[test]
    fn a_unix_path_is_absolute_short_and_without_nginx_syntax() {
        let longest = format!("unix:/{}", "a".repeat(UNIX_PATH_MAX - 1));
        assert_eq!(shown(&longest), longest);
        let longer = format!("{longest}a");
        for text in
            ["unix:", "unix:a", "unix:/a b", "unix:/a;b", "unix:/a:b", "unix:/\u{e9}", &longer]
        {
            assert_eq!(parse(text), Err(AddressError::UnixPath(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn host_and_port_of_a_catalog_are_joined() {
        let join = |host, port| Endpoint::from_host_port(host, port).map(|e| e.to_string());
        assert_eq!(join("::1", 80), Ok("[::1]:80".into()));
        assert_eq!(join("10.0.0.1", 80), Ok("10.0.0.1:80".into()));
        assert_eq!(join("node.consul", 80), Ok("node.consul:80".into()));
        assert_eq!(join("unix:/run/a", 0), Ok("unix:/run/a".into()));
        assert_eq!(join("a", 0), Err(AddressError::Port("a:0".into())));
        assert!(join("a:1", 80).is_err());
    }

    #[test]
    fn messages_are_printable() {
        let message = parse("a\n\"").unwrap_err().to_string();
        assert_eq!(message, r#"no port in "a\n\"", expected HOST:PORT"#);
    }

    proptest! {
        #[test]
        fn any_text_is_an_endpoint_that_reads_back_or_an_error(text in any::<String>()) {
            if let Ok(endpoint) = parse(&text) {
                prop_assert_eq!(parse(&endpoint.to_string()), Ok(endpoint));
            }
        }

        #[test]
        fn every_ip_address_reads_back(ip in any::<IpAddr>(), port in 1u16..) {
            let address = Endpoint::Address(Address::Ip(SocketAddr::new(ip, port)));
            prop_assert_eq!(parse(&address.to_string()), Ok(address));
        }

        #[test]
        fn near_misses_never_panic(text in r"(unix:)?[\[\]a-z0-9.:/_-]{0,40}") {
            let _ = Endpoint::parse(&text, Some(80));
        }
    }
}
