//! What comes of checks, and who is told.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use crate::model::Reason;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server is well, or why it is not.
    Checked(Option<Reason>),
    /// This machine could not ask: nothing is known about the server.
    Local(Local),
    /// The server had closed the connection that was kept: it is to be asked over a new one.
    Stale,
}

/// Why a check could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// No connection of `worker_connections` is free, or none of the process's files, or no memory;
    /// no address here for the connection, or no route from here. The number in `errno.h`.
    System(i32),
    /// No connection of `worker_connections` is free.
    NoConnection,
    /// As many checks are under way as `check_concurrency` allows.
    Busy,
    /// The event loop was held up.
    Late,
    /// No memory for TLS.
    Memory,
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(number) => write!(f, "{}", io::Error::from_raw_os_error(*number)),
            Self::NoConnection => f.write_str("no free connection, raise \"worker_connections\""),
            Self::Busy => {
                f.write_str("as many checks are under way as \"check_concurrency\" allows")
            }
            Self::Late => f.write_str("the worker was held up"),
            Self::Memory => f.write_str("no memory"),
        }
    }
}

/// Who is told what came of checks.
pub trait Owner {
    /// A check that did not end at once has ended. The server is named as [`Probe::new`] was told.
    fn ended(&self, server: Server, ending: Ending);

    /// The worker begins to exit.
    fn exiting(&self);
}

/// A server of an upstream, as checks name it: the upstream's number, the slot and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// The upstream: `Upstream::id`.
    pub upstream: u64,
    /// Offset of the server's slot in the zone.
    pub slot: u64,
    /// The slot's generation.
    pub generation: u32,
}
