//! The parameters of the `upsync` directive.
#![forbid(unsafe_code)]

use std::time::Duration;

use thiserror::Error;

use crate::grammar::time;
use crate::model::{Address, Endpoint};
use crate::source::consul::{KindError, QueryError};
use crate::source::{Kind, Query};

/// The port of a source whose address has none: nginx-upsync-module's default.
const DEFAULT_PORT: u16 = 80;

/// What `upsync` says.
#[derive(Clone, Debug)]
pub struct Upsync {
    /// Consul's HTTP address: a host name, or an IP address.
    pub consul: Endpoint,
    /// What to ask for there.
    pub query: Query,
    /// The least time between two applied changes.
    pub interval: Duration,
    /// The most that one query may take.
    pub timeout: Duration,
    /// nginx does not start unless the source answers.
    pub strong_dependency: bool,
    /// An empty answer empties the list.
    pub allow_empty: bool,
}

/// What is wrong with `upsync`, and what would be right.
#[derive(Debug, Error)]
pub enum UpsyncError {
    /// The first parameter is no `HOST[:PORT]/PATH`.
    #[error(
        "invalid address \"{0}\" in \"upsync\", expected HOST[:PORT]/PATH such as 127.0.0.1:8500/v1/kv/upstreams/app/"
    )]
    Address(String),
    /// The path is not one of Consul's for this type.
    #[error("{0} in \"upsync\"")]
    Query(#[from] QueryError),
    /// No `upsync_type`.
    #[error(
        "no \"upsync_type\" in \"upsync\", expected upsync_type=consul, consul_services or consul_health"
    )]
    NoType,
    /// An `upsync_type` that is not known.
    #[error("{0} in \"upsync\"")]
    Type(#[from] KindError),
    /// A parameter that is not known.
    #[error(
        "unknown parameter \"{0}\" in \"upsync\", expected upsync_type=, upsync_interval=, upsync_timeout=, strong_dependency= or allow_empty="
    )]
    Parameter(String),
    /// A parameter given twice.
    #[error("duplicate parameter \"{0}\" in \"upsync\", expected it once")]
    Duplicate(String),
    /// A time that is none, or that is 0 where that means nothing.
    #[error("invalid time \"{value}\" in \"{name}\" of \"upsync\", expected {expected}")]
    Time {
        /// The parameter.
        name: &'static str,
        /// What it was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A flag that is neither `on` nor `off`.
    #[error("invalid value \"{value}\" in \"{name}\" of \"upsync\", expected on or off")]
    Flag {
        /// The parameter.
        name: &'static str,
        /// What it was given.
        value: String,
    },
}

/// The parameters as written, each at most once.
#[derive(Default)]
struct Words<'a> {
    kind: Option<&'a str>,
    interval: Option<&'a str>,
    timeout: Option<&'a str>,
    strong_dependency: Option<&'a str>,
    allow_empty: Option<&'a str>,
}

impl Upsync {
    /// Where the source is, as it is shown: without arguments, which may hold a token.
    pub fn url(&self) -> String {
        format!("{}{}", self.consul, without_arguments(self.query.path()))
    }

    /// Reads the words after `upsync`.
    pub fn parse(address: &str, parameters: &[String]) -> Result<Self, UpsyncError> {
        let words = Words::sort(parameters)?;
        let kind: Kind = words.kind.ok_or(UpsyncError::NoType)?.parse()?;
        let (consul, target) = split_address(address)?;
        Ok(Self {
            consul,
            query: Query::new(kind, target)?,
            interval: duration(
                "upsync_interval",
                words.interval,
                Duration::from_secs(5),
                Duration::ZERO,
            )?,
            timeout: duration(
                "upsync_timeout",
                words.timeout,
                Duration::from_secs(360),
                SHORTEST_TIMEOUT,
            )?,
            strong_dependency: flag("strong_dependency", words.strong_dependency)?,
            allow_empty: flag("allow_empty", words.allow_empty)?,
        })
    }
}

/// A query that may take less than this would rarely see its answer.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

impl<'a> Words<'a> {
    fn sort(parameters: &'a [String]) -> Result<Self, UpsyncError> {
        let mut words = Self::default();
        for parameter in parameters {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let unknown = || UpsyncError::Parameter(name.to_owned());
            let word = match name {
                "upsync_type" => &mut words.kind,
                "upsync_interval" => &mut words.interval,
                "upsync_timeout" => &mut words.timeout,
                "strong_dependency" => &mut words.strong_dependency,
                "allow_empty" => &mut words.allow_empty,
                // Its value may be a token that stands in the wrong place.
                _ => return Err(unknown()),
            };
            if word.replace(value).is_some() {
                return Err(UpsyncError::Duplicate(name.to_owned()));
            }
        }
        Ok(words)
    }
}

fn split_address(text: &str) -> Result<(Endpoint, &str), UpsyncError> {
    let wrong = || UpsyncError::Address(without_arguments(text).to_owned());
    let rest = text.strip_prefix("http://").unwrap_or(text);
    let (address, _) = rest.split_once('/').ok_or_else(wrong)?;
    let consul = Endpoint::parse(address, Some(DEFAULT_PORT)).map_err(|_| wrong())?;
    match consul {
        Endpoint::Address(Address::Unix(_)) => Err(wrong()),
        _ => Ok((consul, &rest[address.len()..])),
    }
}

/// Arguments may hold a token, which no log shows.
fn without_arguments(text: &str) -> &str {
    text.split('?').next().unwrap_or_default()
}

fn duration(
    name: &'static str,
    value: Option<&str>,
    default: Duration,
    least: Duration,
) -> Result<Duration, UpsyncError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let expected = if least.is_zero() {
        "a time such as 5s or 500ms"
    } else {
        "a time of at least 100ms such as 6m"
    };
    let wrong = || UpsyncError::Time { name, value: value.to_owned(), expected };
    let time = time::parse_milliseconds(value).map(Duration::from_millis).ok_or_else(wrong)?;
    if time < least { Err(wrong()) } else { Ok(time) }
}

fn flag(name: &'static str, value: Option<&str>) -> Result<bool, UpsyncError> {
    match value {
        None | Some("off") => Ok(false),
        Some("on") => Ok(true),
        Some(other) => Err(UpsyncError::Flag { name, value: other.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Upsync, String> {
        let mut words = line.split_whitespace().map(str::to_owned);
        let address = words.next().unwrap();
        Upsync::parse(&address, &words.collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults() {
        let upsync = parse("consul.local/v1/kv/upstreams/app/ upsync_type=consul").unwrap();
        assert_eq!(upsync.consul.to_string(), "consul.local:80");
        assert_eq!(
            (upsync.interval, upsync.timeout),
            (Duration::from_secs(5), Duration::from_secs(360))
        );
        assert!(!upsync.strong_dependency && !upsync.allow_empty);
    }

    #[test]
    fn every_kind_of_host() {
        for (text, consul) in [
            ("127.0.0.1:8500/v1/kv/a/", "127.0.0.1:8500"),
            ("[::1]:8500/v1/kv/a/", "[::1]:8500"),
            ("[::1]/v1/kv/a/", "[::1]:80"),
            ("Consul:1/v1/kv/a/", "consul:1"),
            ("http://consul:1/v1/kv/a", "consul:1"),
        ] {
            let upsync = parse(&format!("{text} upsync_type=consul")).unwrap();
            assert_eq!(upsync.consul.to_string(), consul);
            assert_eq!(upsync.query.path(), "/v1/kv/a/");
        }
    }

    #[test]
    fn no_message_shows_a_token() {
        for line in [
            "127.0.0.1:0/v1/kv/a/?token=secret upsync_type=consul",
            "127.0.0.1/v1/health/a?token=secret upsync_type=consul",
        ] {
            let message = parse(line).unwrap_err();
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn times() {
        let with = |p: &str| parse(&format!("a/v1/kv/a/ upsync_type=consul {p}"));
        assert_eq!(with("upsync_interval=500ms").unwrap().interval, Duration::from_millis(500));
        assert_eq!(with("upsync_interval=0").unwrap().interval, Duration::ZERO);
        assert_eq!(with("upsync_timeout=1m30s").unwrap().timeout, Duration::from_secs(90));
        for wrong in
            ["upsync_interval=x", "upsync_interval=", "upsync_timeout=0", "upsync_timeout=-1"]
        {
            assert!(with(wrong).unwrap_err().contains("invalid time"), "{wrong}");
        }
    }
}
