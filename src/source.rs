//! Where lists come from: a [`Watcher`] follows Consul in threads of its own, and hands each list
//! that differs to nginx's event loop by a [`Mailbox`].
//!
//! ```text
//! dns, names ──────────────────────────┐
//! consul ← http ← watch → answer → applier → mailbox
//!                   └ schedule, report, progress
//! ```
#![forbid(unsafe_code)]

pub mod consul;
pub mod http;
pub mod mailbox;

mod answer;
mod applier;
pub mod dns;
pub mod dump;
mod journal;
mod names;
pub mod progress;
mod report;
mod schedule;
mod watch;

#[cfg(test)]
mod testing;

use std::path::PathBuf;
use std::time::Duration;

use crate::model::Endpoint;

pub use consul::{Kind, Query};
pub use mailbox::{Event, Level, Mailbox, Outcome};
pub use progress::Progress;
pub use watch::{Error, Watcher, fetch_once};

/// A source, as an `upsync` directive describes it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of the upstream, for logs.
    pub upstream: String,
    /// Consul's HTTP address: `HOST[:PORT]`, with the port 80 if there is none; no `unix:` socket.
    pub consul: Endpoint,
    /// What to ask for: `upsync_type` and the path with its arguments.
    pub query: Query,
    /// `upsync_interval`: the least time from one change of the list to the next.
    pub interval: Duration,
    /// `upsync_timeout`: the longest a request takes, with the time that Consul waits for a change.
    pub timeout: Duration,
    /// `upsync_dump_path`: where the last list is kept for a start without Consul.
    pub dump_path: Option<PathBuf>,
    /// `upsync_max_body`: in bytes.
    pub max_body: u64,
    /// Whether a prefix without keys or a service without instances empties the list.
    pub allow_empty: bool,
}
