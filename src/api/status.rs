//! Everything that is known of all upstreams at one moment, before it is a page, JSON or
//! Prometheus's text.
#![forbid(unsafe_code)]

pub mod exposition;
pub mod json;
pub mod page;
pub mod prometheus;
#[cfg(test)]
pub(in crate::api) mod samples;

use super::view::Source;
use crate::model::check::Kind;
use crate::model::{Outs, Parameters, Reason};

/// All of it. Moments are milliseconds since 1970, times are milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The module's version, as Cargo.toml has it.
    pub module: &'static str,
    /// nginx's version, as `nginx -v` has it: `1.30.6`.
    pub nginx: String,
    /// Now.
    pub now: u64,
    /// When the configuration came in force.
    pub since: u64,
    /// Counts the configurations since the zone was made, from 1.
    pub generation: u64,
    /// Pages of the zone, free and all.
    pub pages: (usize, usize),
    /// In their order.
    pub workers: Vec<Worker>,
    /// First those of nginx.conf, in its order, then those made at run time, by name.
    pub upstreams: Vec<Upstream>,
}

/// A worker of the configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// From 0.
    pub number: usize,
    /// Its process; 0 if it has none just now.
    pub pid: i32,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// In lower case, or as nginx.conf writes it. It may hold any bytes but NUL that nginx.conf lets a
    /// name have; those that are no UTF-8 are replaced.
    pub name: String,
    /// Who gave it the list.
    pub source: Source,
    /// How a server is chosen, as the directive that says so is written; empty where nginx's own
    /// balancer does it in a way that is not known here.
    pub method: String,
    /// Counts the changes of the list.
    pub version: u32,
    /// When the list came into force.
    pub since: u64,
    /// Idle connections that each worker keeps; none where it keeps none.
    pub keepalive: Option<u32>,
    /// What it follows, if it follows anything.
    pub follow: Option<Follow>,
    /// How its servers are checked, if they are.
    pub check: Option<Checking>,
    /// The version that each worker last sent a request by, in the order of [`Status::workers`];
    /// none where a worker has sent none yet. Empty where the list never changes.
    pub workers: Vec<Option<u32>>,
    /// In the order of the list.
    pub servers: Vec<Server>,
}

/// A source that is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Follow {
    /// Where it is: `127.0.0.1:8500/v1/kv/upstreams/app/`, without arguments.
    pub url: String,
    /// Consul's index of the last answer that was used; 0 is none.
    pub index: u64,
    /// When it last answered.
    pub answered: Option<u64>,
    /// When it last failed, and how.
    pub failed: Option<(u64, String)>,
    /// Whether the last attempt failed.
    pub failing: bool,
    /// Changes that were put in force.
    pub applied: u64,
    /// Answers that were refused.
    pub refused: u64,
}

/// How servers of an upstream are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checking {
    /// The type.
    pub kind: Kind,
    /// From one check to the next.
    pub interval: u32,
    /// In a row, to bring a server back, and to take it out.
    pub rise: u32,
    /// See `rise`.
    pub fall: u32,
    /// See [`crate::model::Check::fail_open`].
    pub fail_open: u8,
    /// So many would be out that verdicts are ignored just now.
    pub is_open: bool,
}

/// One server.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// As nginx's `server` directive writes it.
    pub address: String,
    /// In force.
    pub parameters: Parameters,
    /// Who keeps requests away from it; a verdict that is ignored does not.
    pub out: Outs,
    /// Under way now, over all workers.
    pub connections: u32,
    /// Failed attempts within `fail_timeout`.
    pub fails: u32,
    /// Attempts since the server is in the list.
    pub requests: u64,
    /// Failed ones of these.
    pub failures: u64,
    /// Answers by the class of their status, 1xx to 5xx.
    pub responses: [u64; 5],
    /// Bytes sent to the server.
    pub sent: u64,
    /// Bytes that came from it.
    pub received: u64,
    /// The moving average until the header of an answer; none before the first.
    pub header_time: Option<u64>,
    /// The same until its end.
    pub response_time: Option<u64>,
    /// Its checks, if its upstream has any.
    pub check: Option<Checked>,
}

/// What checks of a server came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The verdict.
    pub is_up: bool,
    /// It is that of `default_down`: the server has not been checked yet.
    pub is_default: bool,
    /// Good checks in a row.
    pub rise: u32,
    /// Failed checks in a row.
    pub fall: u32,
    /// The port that is asked, if it is another than the server's own.
    pub port: Option<u16>,
    /// The last check, if there was one.
    pub last: Option<Last>,
}

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// When it ended.
    pub at: u64,
    /// How long it took.
    pub took: u32,
    /// Why it failed; none if it did not.
    pub failed: Option<Reason>,
}
