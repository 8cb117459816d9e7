//! What is wrong with a text, and where.
#![forbid(unsafe_code)]

use std::fmt;

use thiserror::Error;

use super::{KEEPALIVE_MAX, SERVERS_MAX};
use crate::grammar::check::CheckError;
use crate::grammar::method::MethodError;
use crate::grammar::parameter::ParameterError;
use crate::grammar::words::{Fault, Word};
use crate::model::Printable;
use crate::model::address::AddressError;
use crate::model::body::Place;
use crate::model::name::NameError;

/// The first thing that is wrong with a text; nothing of it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct Refusal {
    /// Of the word that is wrong, or of the byte where it is in no word.
    pub place: Place,
    /// What is wrong with it.
    pub reason: Reason,
}

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// A control character, or a byte that is not UTF-8, also in a comment.
    #[error("unexpected byte 0x{0:02x}, expected {1}")]
    Byte(u8, &'static str),
    /// A character that has a meaning in nginx's configuration, and none here.
    #[error(
        "unexpected \"{}\" in \"{}\", expected a word without quotes, braces, \
         dollar signs and backslashes",
        Printable(.0),
        Printable(.1)
    )]
    Character(String, String),
    /// A word out of its place.
    #[error("unexpected \"{}\", expected {}", Printable(.0), .1)]
    Unexpected(String, &'static str),
    /// The text ends in the middle. The last word is named.
    #[error("unexpected end{}, expected {}", After(.0), .1)]
    End(String, &'static str),
    /// No directive at all.
    #[error("unknown directive \"{}\", expected {}", Printable(.0), .1)]
    Unknown(String, &'static str),
    /// A directive of nginx or of a module whose place this one takes.
    #[error("\"{}\" is not available in a posted list yet, expected {}", Printable(.0), .1)]
    Unavailable(String, &'static str),
    /// It names a file, which is not for everybody who may post.
    #[error(
        "\"{}\" cannot be posted, expected it in the block of the upstream in nginx.conf",
        Printable(.0)
    )]
    File(String),
    /// Which servers are near is not known.
    #[error("no network in \"upsync_lb local\", expected one such as 10.0.0.0/8")]
    NoNetwork,
    /// A method, and the one that was there before.
    #[error(
        "duplicate method \"{}\" beside \"{}\", expected one at most",
        Printable(.0),
        Printable(.1)
    )]
    Methods(String, String),
    /// The parameters of a method.
    #[error(transparent)]
    Method(MethodError),
    /// `check` or one of its companions.
    #[error(transparent)]
    Check(CheckError),
    /// A word that nginx's configuration would not read.
    #[error("{} \"{}\", expected {}", wrong(*.0), Printable(.1), right(*.0))]
    Argument(Fault, String),
    /// A directive that was there before.
    #[error("duplicate \"{0}\", expected it once at most")]
    Duplicate(&'static str),
    /// An empty list is refused here.
    #[error("no server in the body, expected at least one")]
    NoServer,
    /// The text is longer than a list may be.
    #[error("too many servers, expected at most {SERVERS_MAX}")]
    TooMany,
    /// Neither an address nor a name.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// `upstream:` or a block with something that is no name.
    #[error("\"{}\": {NameError}", Printable(.0))]
    Name(String),
    /// A name where only an address may stand.
    #[error("expected an address, not the name \"{}\"", Printable(.0))]
    NoAddress(String),
    /// The number of `keepalive` is out of range.
    #[error(
        "invalid value in \"keepalive {}\", expected 1 to {KEEPALIVE_MAX}",
        Printable(.0)
    )]
    Keepalive(String),
    /// A parameter of no known name.
    #[error("unknown parameter \"{}\", expected {}", Printable(.0), .1)]
    Parameter(String, &'static str),
    /// Out of range or given twice.
    #[error(transparent)]
    Value(ParameterError),
    /// No parameter at all.
    #[error("no parameter in the body, expected {0}")]
    NoParameter(&'static str),
}

impl Refusal {
    pub(super) fn at((line, column): (usize, usize), reason: Reason) -> Self {
        Self { place: Place::Text { line, column }, reason }
    }

    /// Of this word.
    pub(super) fn of(word: &Word<'_>, reason: Reason) -> Self {
        Self::at((word.line, word.column), reason)
    }

    /// Of this word, where something else is expected.
    pub(super) fn unexpected(word: &Word<'_>, expected: &'static str) -> Self {
        Self::of(word, Reason::Unexpected(word.text.to_owned(), expected))
    }
}

fn wrong(fault: Fault) -> String {
    match fault {
        Fault::Open(quote) => format!("no {quote} at the end of"),
        Fault::Behind(character) => {
            format!("unexpected \"{}\" behind", Printable(&character.to_string()))
        }
        Fault::Brace(brace) => format!("unexpected \"{brace}\" in"),
    }
}

fn right(fault: Fault) -> &'static str {
    match fault {
        Fault::Open(_) => "a quote at either end",
        Fault::Behind(_) => "a space or \";\" there",
        Fault::Brace(_) => "the word in quotes",
    }
}

/// Nothing, if there is no word.
struct After<'a>(&'a str);

impl fmt::Display for After<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " after \"{}\"", Printable(self.0)) }
    }
}
