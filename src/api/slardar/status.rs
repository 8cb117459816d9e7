//! Slardar's `GET /status`.
#![forbid(unsafe_code)]

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::api::json;
use crate::api::view::{Moment, ServerView, View};
use crate::model::Parameters;

/// The version of Slardar that is answered for.
const SLARDAR_VERSION: &str = "1.1.2";

/// What is not of one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFacts<'a> {
    /// When nginx started, in milliseconds since 1970.
    pub start_time: u64,
    /// Counts the changes of all lists.
    pub version: u64,
    /// Whether each worker is alive, from worker 0.
    pub workers: &'a [bool],
}

/// All upstreams in the order of the views, with names that differ. The levels of one are its
/// primary servers and, if there are any, its backup servers. Times are in UTC. A
/// server is `ok` if a check says so, and none of its requests failed since.
pub fn status(views: &[View<'_>], facts: &StatusFacts<'_>) -> String {
    json::text(&Status { views, facts })
}

struct Status<'a> {
    views: &'a [View<'a>],
    facts: &'a StatusFacts<'a>,
}

impl Serialize for Status<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for view in self.views {
            map.serialize_entry(&format_args!("cls:{}", view.name), &Levels(view))?;
        }
        let checks = || {
            let servers = self.views.iter().flat_map(|view| &view.servers);
            servers.filter_map(|server| server.check)
        };
        let last = checks().filter_map(|check| check.at).max();
        map.serialize_entry("checkup_timer_alive", &checks().next().is_some())?;
        map.serialize_entry("last_check_time", &last.map(|at| Moment(at).date_and_time()))?;
        map.serialize_entry("start_time", &Moment(self.facts.start_time).date_and_time())?;
        map.serialize_entry("conf_hash", &())?;
        map.serialize_entry("shd_config_version", &self.facts.version)?;
        map.serialize_entry("config_timer", &Workers(self.facts.workers))?;
        map.serialize_entry("slardar_version", SLARDAR_VERSION)?;
        map.end()
    }
}

struct Levels<'a>(&'a View<'a>);

impl Serialize for Levels<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let since = Moment(self.0.since).date_and_time();
        let level = |backup| -> Vec<Server<'_>> {
            let servers = self.0.servers.iter();
            let of_level = servers.filter(|server| server.parameters.backup == backup);
            of_level.map(|server| Server::new(self.0.name, server, &since)).collect()
        };
        let backup = level(true);
        let mut levels = serializer.serialize_seq(None)?;
        levels.serialize_element(&level(false))?;
        if !backup.is_empty() {
            levels.serialize_element(&backup)?;
        }
        levels.end()
    }
}

#[derive(Serialize)]
struct Server<'a> {
    server: String,
    status: &'static str,
    weight: u32,
    max_fails: u32,
    fail_timeout: u32,
    fail_num: u32,
    lastmodified: &'a str,
    msg: (),
}

impl<'a> Server<'a> {
    fn new(upstream: &str, server: &ServerView<'_>, since: &'a str) -> Self {
        let Parameters { weight, max_fails, fail_timeout, .. } = server.parameters;
        Self {
            server: format!("{upstream}:{}", server.address),
            status: word(server),
            weight,
            max_fails,
            fail_timeout,
            fail_num: server.fails,
            lastmodified: since,
            msg: (),
        }
    }
}

fn word(server: &ServerView<'_>) -> &'static str {
    let is_up = server.check.and_then(|check| check.is_up);
    if server.out || server.parameters.is_down() || is_up == Some(false) {
        "err"
    } else if server.fails > 0 {
        "unstable"
    } else if is_up == Some(true) {
        "ok"
    } else {
        "unchecked"
    }
}

struct Workers<'a>(&'a [bool]);

impl Serialize for Workers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let word = |alive| if alive { "alive" } else { "dead" };
        let workers = self.0.iter().enumerate();
        serializer.collect_map(workers.map(|(id, &alive)| (worker(id), word(alive))))
    }
}

fn worker(id: usize) -> String {
    format!("worker-{id}")
}
