//! What is asked of Consul, and what its answers say about servers.
#![forbid(unsafe_code)]

mod catalog;
mod elements;
mod kv;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::model::{Endpoint, Parameters, Printable};

/// Where Consul keeps the servers: the values of `upsync_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keys of the key/value store that end in an address (`consul`).
    Kv,
    /// Instances of a service, whatever their health (`consul_services`).
    Catalog,
    /// Instances of a service with their checks (`consul_health`).
    Health,
}

/// No known `upsync_type`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("invalid upsync_type \"{}\", expected consul, consul_services or consul_health", Printable(.0))]
pub struct KindError(String);

/// A path with its arguments, as a `upsync` directive has it after `HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Query {
    kind: Kind,
    path: String,
    /// Without the `?`; may hold a token, so it is never shown.
    arguments: String,
}

/// Why a path cannot be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The path belongs to another type or to none.
    #[error("upsync_type={} expects the path {}, not \"{}\"", .0, .0.expected_path(), Printable(.1))]
    Path(Kind, String),
    /// A character that has to be written as `%XX`.
    #[error("invalid character {:?} in path \"{}\", write it percent-encoded", .1, Printable(.0))]
    Character(String, char),
    /// An argument that this module sets itself or that changes the form of the answer.
    #[error("argument \"{0}\" is not allowed in the path")]
    Argument(&'static str),
}

/// One element of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The KV key or the service's id, for logs. From outside: to be shown by [`Printable`].
    pub name: String,
    /// The server's address, or why there is none.
    pub endpoint: Result<Endpoint, String>,
    /// Its parameters, or why they are not known.
    pub parameters: Result<Parameters, String>,
}

/// An answer that is no JSON array, so says nothing about servers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("answer is no JSON array of entries: {}", Printable(.0))]
pub struct ParseError(String);

impl Kind {
    fn path_start(self) -> &'static str {
        match self {
            Self::Kv => "/v1/kv/",
            Self::Catalog => "/v1/catalog/service/",
            Self::Health => "/v1/health/service/",
        }
    }

    fn expected_path(self) -> String {
        format!("{}{}", self.path_start(), if self == Self::Kv { "PREFIX/" } else { "NAME" })
    }

    /// What [`Entry::name`] is the name of.
    pub fn entry_noun(self) -> &'static str {
        if self == Self::Kv { "key" } else { "service" }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kv => "consul",
            Self::Catalog => "consul_services",
            Self::Health => "consul_health",
        })
    }
}

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        [Self::Kv, Self::Catalog, Self::Health]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| KindError(text.to_owned()))
    }
}

impl Query {
    /// Takes `/v1/…[?ARGUMENTS]`. A KV prefix gets the final `/` that it may lack, so that
    /// `upstreams/app` does not take in `upstreams/app2` too.
    pub fn new(kind: Kind, target: &str) -> Result<Self, QueryError> {
        let (path, arguments) = target.split_once('?').unwrap_or((target, ""));
        let unfit = || QueryError::Path(kind, path.to_owned());
        let name = path.strip_prefix(kind.path_start()).ok_or_else(unfit)?;
        let name = if kind == Kind::Kv { name.trim_end_matches('/') } else { name };
        let is_name = !name.is_empty() && (kind == Kind::Kv || !name.contains('/'));
        if !is_name || name.starts_with('/') {
            return Err(unfit());
        }
        if let Some(bad) = target.chars().find(|&c| !is_url_character(c)) {
            return Err(QueryError::Character(path.to_owned(), bad));
        }
        check_arguments(arguments)?;
        let slash = if kind == Kind::Kv { "/" } else { "" };
        let path = format!("{}{name}{slash}", kind.path_start());
        Ok(Self { kind, path, arguments: arguments.to_owned() })
    }

    /// The type that was given.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The path without arguments, to be shown.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Path and arguments of a request. It blocks until the state is newer than `index` or `wait`
    /// is over; with `index` 0 it does not block.
    pub fn request(&self, index: u64, wait: Duration) -> String {
        let mut request = self.path.clone();
        let recurse = (self.kind == Kind::Kv).then(|| "recurse".to_owned());
        let user = Some(self.arguments.clone()).filter(|arguments| !arguments.is_empty());
        let blocking = (index > 0).then(|| format!("index={index}&wait={}", go_duration(wait)));
        for (place, argument) in [recurse, user, blocking].into_iter().flatten().enumerate() {
            request.push(if place == 0 { '?' } else { '&' });
            request.push_str(&argument);
        }
        request
    }

    /// A text from whoever answered, with `***` for the token that the arguments may hold: one that
    /// is no Consul may say what it was asked for. The text may end within the token.
    pub fn masked(&self, text: &str) -> String {
        let arguments = self.arguments.split('&').filter_map(|a| a.strip_prefix("token="));
        let tokens = arguments.filter(|token| !token.is_empty());
        let both = tokens.flat_map(|token| {
            [token.into(), percent_decode_str(token).decode_utf8_lossy()] as [Cow<'_, str>; 2]
        });
        both.fold(text.to_owned(), |text, token| {
            let text = text.replace(&*token, MASK);
            let starts = (TOKEN_TOLD_MAX + 1..token.len()).rev().filter_map(|end| token.get(..end));
            let cut = starts.filter_map(|start| text.strip_suffix(start)).next();
            cut.map(|rest| format!("{rest}{MASK}")).unwrap_or(text)
        })
    }

    /// Reads the answer, an array of entries. A bad entry carries its fault and hides no other;
    /// of those without an address no more than [`BAD_MAX`] are told. The folders of a KV answer
    /// are left out.
    pub fn parse(&self, body: &[u8]) -> Result<Vec<Entry>, ParseError> {
        let prefix = &self.path[self.kind.path_start().len()..];
        let prefix = percent_decode_str(prefix).decode_utf8_lossy();
        let (mut entries, mut bad) = (Vec::new(), 0);
        let read = |place: usize, json: &str| {
            let entry = match self.kind {
                Kind::Kv => kv::entry(place, json, &prefix),
                Kind::Catalog => Some(catalog::service(place, json)),
                Kind::Health => Some(catalog::health(place, json)),
            };
            bad += usize::from(entry.as_ref().is_some_and(|entry| entry.endpoint.is_err()));
            entries.extend(entry.filter(|entry| entry.endpoint.is_ok() || bad <= BAD_MAX));
        };
        let unreadable = |error: serde_json::Error| ParseError(self.masked(&error.to_string()));
        elements::each(body, read).map_err(unreadable)?;
        Ok(entries)
    }
}

/// Stands for a token.
const MASK: &str = "***";

/// So many bytes of a token tell nothing; where a text ends in as many, it is by chance.
const TOKEN_TOLD_MAX: usize = 4;

/// The most entries without an address that are told of one answer. Each takes a hundred times
/// the memory of the two bytes that may make it.
pub const BAD_MAX: usize = 1000;

/// The arguments may hold a token.
impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.path)
    }
}

fn is_url_character(character: char) -> bool {
    character.is_ascii_graphic() && !"\"#<>\\^`{|}".contains(character)
}

fn check_arguments(arguments: &str) -> Result<(), QueryError> {
    const OURS: [&str; 5] = ["index", "wait", "raw", "keys", "separator"];
    let names = arguments.split('&').map(|a| a.split_once('=').map_or(a, |(name, _)| name));
    let found = names.into_iter().find_map(|name| OURS.into_iter().find(|ours| *ours == name));
    found.map_or(Ok(()), |name| Err(QueryError::Argument(name)))
}

/// A duration as Go's `ParseDuration` takes it.
fn go_duration(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// Reads an element of the answer, or makes the entry that says why it cannot be read.
fn element<'a, T: Deserialize<'a>>(place: usize, json: &'a str, name_at: &str) -> Result<T, Entry> {
    serde_json::from_str(json).map_err(|error| {
        let value: Value = serde_json::from_str(json).unwrap_or_default();
        let name = value.pointer(name_at).and_then(Value::as_str).map(ToOwned::to_owned);
        Entry {
            name: name.unwrap_or_else(|| format!("number {} of the answer", place + 1)),
            endpoint: Err(error.to_string()),
            parameters: Ok(Parameters::CONSUL),
        }
    })
}

#[cfg(test)]
mod tests;
