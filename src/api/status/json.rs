//! All that is known as JSON, for the page's script and for whoever else asks.
//!
//! ```json
//! {
//!   "module": "0.1.0",
//!   "nginx": "1.30.6",
//!   "now": "2026-11-21T10:00:05.000Z",
//!   "since": "2026-11-21T09:00:00.000Z",
//!   "generation": 2,
//!   "pages": { "free": 250, "total": 256 },
//!   "workers": [{ "number": 0, "pid": 4711 }],
//!   "upstreams": [{
//!     "name": "app",
//!     "source": "consul",
//!     "method": "least_conn",
//!     "version": 7,
//!     "since": "2026-11-21T09:59:00.000Z",
//!     "keepalive": 16,
//!     "follow": {
//!       "url": "127.0.0.1:8500/v1/kv/upstreams/app/",
//!       "index": 812,
//!       "answered": "2026-11-21T10:00:00.000Z",
//!       "failing": false,
//!       "failed": { "at": "2026-11-21T09:30:00.000Z", "reason": "connect refused" },
//!       "applied": 6,
//!       "refused": 0
//!     },
//!     "check": {
//!       "type": "http", "interval_ms": 3000, "rise": 2, "fall": 5, "fail_open": 100, "open": false
//!     },
//!     "workers": [7],
//!     "servers": [{
//!       "server": "10.0.0.1:80",
//!       "weight": 1, "max_fails": 2, "fail_timeout": 10, "max_conns": 0, "slow_start": 0,
//!       "backup": false, "down": false, "critical": false, "drain": false,
//!       "state": "down",
//!       "out": ["check", "max_fails"],
//!       "connections": 3, "fails": 2, "requests": 1000, "failures": 12,
//!       "responses": { "1xx": 0, "2xx": 980, "3xx": 8, "4xx": 0, "5xx": 0 },
//!       "sent": 512000, "received": 1048576,
//!       "header_time_ms": 12, "response_time_ms": 15,
//!       "check": {
//!         "up": false, "default": false, "rise": 0, "fall": 6, "port": null,
//!         "last": {
//!           "at": "2026-11-21T10:00:04.000Z", "took_ms": 1000, "result": "timeout in read"
//!         }
//!       }
//!     }]
//!   }]
//! }
//! ```
//!
//! - Moments are of RFC 3339, in UTC, to the millisecond. `fail_timeout` and `slow_start` are seconds,
//!   the latter with a fraction where it has one; other times are milliseconds, as their names say.
//! - `source`: `config`, `consul` or `api`. `method` may be empty.
//! - `null` may be: `keepalive` (none is kept), `follow`, `answered` and `failed` (not yet), `check`
//!   of an upstream and of a server, members of the upstream's `workers` (none used yet; they are in
//!   the order of the outer `workers`, or the list is empty), `header_time_ms` and
//!   `response_time_ms` (no answer yet), `port` (the server's own), `last` (not checked yet).
//! - `down`: for the operator's reason or Consul's; `critical`: for Consul's.
//! - `state`: `up` if nobody keeps requests away; `draining` if `drain` alone does; else `down`.
//!   `out` says who does, by the words of [`Out::name`].
//! - `result`: `ok`, or why the check failed.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use serde::Serialize;

use super::{Checked, Checking, Follow, Last, Server, Status, Upstream};
use crate::api::json::{self, Seconds};
use crate::api::view::{Moment, Source};
use crate::model::Out;

/// The whole document, without line feeds.
pub fn render(status: &Status) -> String {
    json::text(&StatusShown::new(status))
}

#[derive(Serialize)]
struct StatusShown<'a> {
    module: &'a str,
    nginx: &'a str,
    now: String,
    since: String,
    generation: u64,
    pages: Pages,
    workers: Vec<WorkerShown>,
    upstreams: Vec<UpstreamShown<'a>>,
}

#[derive(Serialize)]
struct Pages {
    free: usize,
    total: usize,
}

#[derive(Serialize)]
struct WorkerShown {
    number: usize,
    pid: i32,
}

#[derive(Serialize)]
struct UpstreamShown<'a> {
    name: &'a str,
    source: Source,
    method: &'a str,
    version: u32,
    since: String,
    keepalive: Option<u32>,
    follow: Option<FollowShown<'a>>,
    check: Option<CheckingShown>,
    workers: &'a [Option<u32>],
    servers: Vec<ServerShown<'a>>,
}

#[derive(Serialize)]
struct FollowShown<'a> {
    url: &'a str,
    index: u64,
    answered: Option<String>,
    failing: bool,
    failed: Option<Failed<'a>>,
    applied: u64,
    refused: u64,
}

#[derive(Serialize)]
struct Failed<'a> {
    at: String,
    reason: &'a str,
}

#[derive(Serialize)]
struct CheckingShown {
    #[serde(rename = "type")]
    kind: &'static str,
    interval_ms: u32,
    rise: u32,
    fall: u32,
    fail_open: u8,
    open: bool,
}

#[derive(Serialize)]
struct ServerShown<'a> {
    server: &'a str,
    weight: u32,
    max_fails: u32,
    fail_timeout: u32,
    max_conns: u32,
    slow_start: Seconds,
    backup: bool,
    down: bool,
    critical: bool,
    drain: bool,
    state: &'static str,
    out: Vec<&'static str>,
    connections: u32,
    fails: u32,
    requests: u64,
    failures: u64,
    responses: Responses,
    sent: u64,
    received: u64,
    header_time_ms: Option<u64>,
    response_time_ms: Option<u64>,
    check: Option<CheckedShown>,
}

#[derive(Serialize)]
struct Responses {
    #[serde(rename = "1xx")]
    informational: u64,
    #[serde(rename = "2xx")]
    successful: u64,
    #[serde(rename = "3xx")]
    redirected: u64,
    #[serde(rename = "4xx")]
    client_error: u64,
    #[serde(rename = "5xx")]
    server_error: u64,
}

#[derive(Serialize)]
struct CheckedShown {
    up: bool,
    default: bool,
    rise: u32,
    fall: u32,
    port: Option<u16>,
    last: Option<LastShown>,
}

#[derive(Serialize)]
struct LastShown {
    at: String,
    took_ms: u32,
    result: String,
}

impl<'a> StatusShown<'a> {
    fn new(status: &'a Status) -> Self {
        let (free, total) = status.pages;
        let worker =
            |worker: &super::Worker| WorkerShown { number: worker.number, pid: worker.pid };
        Self {
            module: status.module,
            nginx: &status.nginx,
            now: Moment(status.now).rfc3339(),
            since: Moment(status.since).rfc3339(),
            generation: status.generation,
            pages: Pages { free, total },
            workers: status.workers.iter().map(worker).collect(),
            upstreams: status.upstreams.iter().map(UpstreamShown::new).collect(),
        }
    }
}

impl<'a> UpstreamShown<'a> {
    fn new(upstream: &'a Upstream) -> Self {
        Self {
            name: &upstream.name,
            source: upstream.source,
            method: &upstream.method,
            version: upstream.version,
            since: Moment(upstream.since).rfc3339(),
            keepalive: upstream.keepalive,
            follow: upstream.follow.as_ref().map(FollowShown::new),
            check: upstream.check.map(CheckingShown::new),
            workers: &upstream.workers,
            servers: upstream.servers.iter().map(ServerShown::new).collect(),
        }
    }
}

impl<'a> FollowShown<'a> {
    fn new(follow: &'a Follow) -> Self {
        let failed = follow.failed.as_ref();
        Self {
            url: &follow.url,
            index: follow.index,
            answered: follow.answered.map(|at| Moment(at).rfc3339()),
            failing: follow.failing,
            failed: failed.map(|(at, reason)| Failed { at: Moment(*at).rfc3339(), reason }),
            applied: follow.applied,
            refused: follow.refused,
        }
    }
}

impl CheckingShown {
    fn new(checking: Checking) -> Self {
        let Checking { kind, interval, rise, fall, fail_open, is_open } = checking;
        Self { kind: kind.name(), interval_ms: interval, rise, fall, fail_open, open: is_open }
    }
}

impl<'a> ServerShown<'a> {
    fn new(server: &'a Server) -> Self {
        let parameters = server.parameters;
        Self {
            server: &server.address,
            weight: parameters.weight,
            max_fails: parameters.max_fails,
            fail_timeout: parameters.fail_timeout,
            max_conns: parameters.max_conns,
            slow_start: Seconds::of(parameters.slow_start),
            backup: parameters.backup,
            down: parameters.is_down(),
            critical: parameters.critical,
            drain: parameters.drain,
            state: state(server),
            out: server.out.iter().map(Out::name).collect(),
            connections: server.connections,
            fails: server.fails,
            requests: server.requests,
            failures: server.failures,
            responses: Responses::new(server.responses),
            sent: server.sent,
            received: server.received,
            header_time_ms: server.header_time,
            response_time_ms: server.response_time,
            check: server.check.map(CheckedShown::new),
        }
    }
}

impl Responses {
    fn new(by_class: [u64; 5]) -> Self {
        let [informational, successful, redirected, client_error, server_error] = by_class;
        Self { informational, successful, redirected, client_error, server_error }
    }
}

impl CheckedShown {
    fn new(checked: Checked) -> Self {
        let Checked { is_up, is_default, rise, fall, port, last } = checked;
        Self { up: is_up, default: is_default, rise, fall, port, last: last.map(LastShown::new) }
    }
}

impl LastShown {
    fn new(last: Last) -> Self {
        let result = last.failed.map_or_else(|| "ok".to_owned(), |reason| reason.to_string());
        Self { at: Moment(last.at).rfc3339(), took_ms: last.took, result }
    }
}

/// The word for whether a server gets requests.
fn state(server: &Server) -> &'static str {
    match server.out.iter().collect::<Vec<_>>().as_slice() {
        [] => "up",
        [Out::Drain] => "draining",
        _ => "down",
    }
}
