//! The list that an upstream has before its source has spoken.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::ptr;
use std::time::Duration;

use nginx_sys::{
    NGX_LOG_WARN, ngx_cycle, ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_uint_t,
};
use thiserror::Error;

use super::directives::is_placeholder;
use super::settings::{Main, Managed, Server};
use crate::grammar::server;
use crate::model::body::Changes;
use crate::model::list::{COUNT_MAX, WEIGHT_MAX};
use crate::model::{Address, Endpoint, List, Parameters, Peer};
use crate::ngx::{cycle, thread};
use crate::shm::directory::Origin;
use crate::source::{self, Settings};

/// The longest that nginx's start waits for a source it cannot do without.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The bit of `down` that nginx 1.29.6 and later has for a server that drains:
/// `NGX_HTTP_UPSTREAM_DRAINING`. Those before know 1 only.
const DRAINING: ngx_uint_t = 8;

/// A dump file larger than this is no dump file.
const DUMP_MAX: u64 = 64 * 1024 * 1024;

/// Why nginx does not start.
#[derive(Debug, Error)]
#[error("{cause}, and \"upsync\" has strong_dependency=on")]
pub struct InitialError {
    cause: String,
}

/// What the watcher of an upstream has to know, if it has a source.
pub fn watcher_settings(main: &Main, synced: &Managed<'_>) -> Option<Settings> {
    let upsync = synced.upsync()?;
    Some(Settings {
        upstream: synced.name(),
        consul: upsync.consul.clone(),
        query: upsync.query.clone(),
        interval: upsync.interval,
        timeout: upsync.timeout,
        dump_path: synced.server.dump_path.get().map(PathBuf::from),
        max_body: synced.server.max_body(main),
        allow_empty: upsync.allow_empty,
    })
}

/// The source's own list where nginx is not to start without it, else the dump file's, else that
/// of the `server` lines.
pub fn list(
    main: &Main,
    synced: &Managed<'_>,
    may_fetch: bool,
) -> Result<(List, Origin), InitialError> {
    let must_fetch = synced.upsync().is_some_and(|upsync| upsync.strong_dependency);
    if may_fetch
        && must_fetch
        && cycle::is_start()
        && !cycle::is_test()
        && let Some(settings) = watcher_settings(main, synced)
    {
        let timeout = START_TIMEOUT.min(settings.timeout);
        let list = thread::with_signals_blocked(|| source::fetch_once(&settings, timeout))
            .map_err(|error| InitialError { cause: error.to_string() })?;
        if !list.is_empty() || settings.allow_empty {
            return Ok((list, Origin::Source));
        }
    }
    let dumped = synced.server.dump_path.get().and_then(|path| dumped(synced, path));
    Ok((dumped.unwrap_or_else(|| configured(synced.nginx)), Origin::Config))
}

fn warn(message: std::fmt::Arguments<'_>) {
    // SAFETY: while a configuration is read there is a cycle with a log: the one before it.
    let log = unsafe { (*ngx_cycle).log };
    ngx::ngx_log_error!(NGX_LOG_WARN, log, "upsync: {message}");
}

/// The servers of a dump file, if it is there and has any.
fn dumped(synced: &Managed<'_>, path: &str) -> Option<List> {
    let text = match fs::metadata(path) {
        Ok(file) if file.len() > DUMP_MAX || !file.is_file() => {
            warn(format_args!(
                "upstream \"{}\": \"{path}\" is no dump file, skipped",
                synced.name()
            ));
            return None;
        }
        _ => fs::read(path).ok()?,
    };
    let (list, complaints) = server::parse(&text);
    for complaint in complaints.iter().take(10) {
        warn(format_args!("upstream \"{}\": \"{path}\", {complaint}, skipped", synced.name()));
    }
    if complaints.len() > 10 {
        let more = complaints.len() - 10;
        warn(format_args!(
            "upstream \"{}\": \"{path}\", {more} more mistakes, skipped",
            synced.name()
        ));
    }
    (!list.is_empty()).then_some(list)
}

/// The servers that an upstream of nginx.conf has by its `server` lines.
pub fn configured(upstream: &ngx_http_upstream_srv_conf_t) -> List {
    // SAFETY: the array, if there is one, is of servers, and lives as the upstream does.
    let servers: &[ngx_http_upstream_server_t] =
        unsafe { upstream.servers.as_ref().map_or(&[], |servers| servers.as_slice()) };
    let ours = Server::of(upstream);
    let more = |server: &ngx_http_upstream_server_t| {
        let more = ours?.more.borrow();
        let of_it = more.iter().find(|more| ptr::eq(more.addrs, server.addrs));
        of_it.map(|more| more.changes)
    };
    let servers = servers.iter().filter(|server| !is_placeholder(server));
    combined(servers.flat_map(|server| peers(server, more(server).unwrap_or_default())))
}

/// Lines of the same address are one server with the sum of their weights.
fn combined(peers: impl Iterator<Item = Peer>) -> List {
    let mut places: HashMap<Address, usize> = HashMap::new();
    let mut all: Vec<Peer> = Vec::new();
    for peer in peers {
        match places.get(&peer.address) {
            Some(&place) => {
                let weight = &mut all[place].parameters.weight;
                *weight = (*weight + peer.parameters.weight).min(WEIGHT_MAX);
            }
            None => {
                places.insert(peer.address.clone(), all.len());
                all.push(peer);
            }
        }
    }
    List::new(all)
}

/// nginx takes numbers that mean nothing more than the largest here.
fn at_most(number: ngx_uint_t, most: u32) -> u32 {
    u32::try_from(number).map_or(most, |number| number.min(most))
}

fn peers(server: &ngx_http_upstream_server_t, more: Changes) -> Vec<Peer> {
    if server.addrs.is_null() {
        return Vec::new();
    }
    let parameters = Parameters {
        weight: at_most(server.weight, WEIGHT_MAX),
        max_fails: at_most(server.max_fails, COUNT_MAX),
        fail_timeout: at_most(server.fail_timeout.max(0) as usize, COUNT_MAX),
        max_conns: at_most(server.max_conns, COUNT_MAX),
        down: server.down & !DRAINING != 0,
        critical: false,
        backup: server.backup() != 0,
        drain: server.down & DRAINING != 0,
        slow_start: 0,
    };
    let parameters = more.apply(parameters);
    // SAFETY: nginx has resolved the name to so many addresses.
    let addresses = unsafe { std::slice::from_raw_parts(server.addrs, server.naddrs) };
    let peer = |name: &str| match Endpoint::parse(name, None) {
        Ok(Endpoint::Address(address)) => Some(Peer { address, parameters }),
        _ => None,
    };
    addresses.iter().filter_map(|address| peer(address.name.to_str().ok()?)).collect()
}
