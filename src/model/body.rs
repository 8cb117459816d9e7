//! What somebody asks the list of an upstream to become.
#![forbid(unsafe_code)]

use std::fmt;

use super::{Check, Endpoint, Method, Name, Parameters};

/// Where in a body something stands, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Of a text, in bytes, both counted from 1.
    Text {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// Of a JSON body: the server's place in the whole body, counted from 0.
    Server(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { line, column } => write!(f, "line {line}, column {column}"),
            Self::Server(index) => write!(f, "server {index}"),
        }
    }
}

/// The parameters of a server that are given; those that are not stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// See [`Parameters`], here and below.
    pub weight: Option<u32>,
    /// As there.
    pub max_fails: Option<u32>,
    /// As there.
    pub fail_timeout: Option<u32>,
    /// As there.
    pub max_conns: Option<u32>,
    /// As there.
    pub down: Option<bool>,
    /// As there.
    pub backup: Option<bool>,
    /// As there.
    pub drain: Option<bool>,
    /// As there.
    pub slow_start: Option<u32>,
}

impl Changes {
    /// The parameters of a server after the change.
    pub fn apply(&self, to: Parameters) -> Parameters {
        Parameters {
            weight: self.weight.unwrap_or(to.weight),
            max_fails: self.max_fails.unwrap_or(to.max_fails),
            fail_timeout: self.fail_timeout.unwrap_or(to.fail_timeout),
            max_conns: self.max_conns.unwrap_or(to.max_conns),
            down: self.down.unwrap_or(to.down),
            critical: to.critical,
            backup: self.backup.unwrap_or(to.backup),
            drain: self.drain.unwrap_or(to.drain),
            slow_start: self.slow_start.unwrap_or(to.slow_start),
        }
    }

    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a `server` may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address, or a name that is yet to be resolved.
    Endpoint(Endpoint),
    /// `upstream:NAME`: all servers that another upstream of nginx.conf has.
    Upstream(Name),
}

/// One `server`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub target: Target,
    /// Parameters that are written there.
    pub changes: Changes,
}

/// A whole body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// In the order of the body.
    pub servers: Vec<Server>,
    /// Where `keepalive` stands and its number, if it was there.
    pub keepalive: Option<(Place, u32)>,
    /// Where a balancing method stands and which, if one was there.
    pub method: Option<(Place, Method)>,
    /// Where `check` stands and what it says with its companions, if it was there.
    pub check: Option<(Place, Check)>,
}
