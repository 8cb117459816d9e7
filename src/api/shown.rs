//! The upstreams that there are, gathered to be shown.

use nginx_sys::{ngx_http_upstream_srv_conf_t, ngx_time};

use super::view::{ServerView, Source, View};
use crate::conf::initial::configured;
use crate::conf::settings::{Main, Server};
use crate::model::Name;
use crate::ngx::cycle;
use crate::shm::block::Block;
use crate::shm::directory::{Origin, Upstream};
use crate::upstream::Names;

/// An upstream with its list as of now.
pub struct Shown {
    name: String,
    source: Source,
    version: u32,
    since: u64,
    keepalive: Option<u32>,
    block: Block,
    /// What knows of the servers; none where nginx's own balancer does.
    upstream: Option<Upstream>,
}

/// The names of all upstreams: first those of nginx.conf.
pub fn names(main: &Main) -> Vec<String> {
    let blocks = main.upstreams().filter(|(nginx, _)| exists(main, nginx));
    let mut names: Vec<_> = blocks.map(|(nginx, _)| nginx.host.to_string()).collect();
    names.extend(run_time_names(main));
    names
}

/// All upstreams, in the order of [`names`].
pub fn all(main: &Main) -> Vec<Shown> {
    reclaim(main);
    let blocks = main.upstreams().filter_map(|(nginx, server)| block(main, nginx, server));
    let run_time = run_time_names(main).into_iter().filter_map(|name| posted(main, &name, None));
    blocks.chain(run_time).collect()
}

/// The upstream of a name.
pub fn one(main: &Main, name: &Name) -> Option<Shown> {
    reclaim(main);
    match main.upstream(name.as_str()) {
        Some((nginx, server)) => block(main, nginx, server),
        None => posted(main, name.as_str(), None),
    }
}

/// Connections are shown without those of workers that were killed.
fn reclaim(main: &Main) {
    if let Some(book) = &*main.book.borrow() {
        book.reclaim(ngx_time(), cycle::is_alive);
    }
}

/// The names that nginx.conf does not have. They are sorted, as they have no order of their own.
pub fn run_time_names(main: &Main) -> Vec<String> {
    let mut names = main.names.get().map(Names::run_time).unwrap_or_default();
    names.sort_unstable();
    names
}

/// Whether an upstream of nginx.conf was not deleted.
fn exists(main: &Main, nginx: &ngx_http_upstream_srv_conf_t) -> bool {
    let posted = main.names.get().and_then(|names| names.find(nginx.host.as_bytes()));
    posted.is_none_or(|posted| posted.has_servers())
}

fn block(main: &Main, nginx: &ngx_http_upstream_srv_conf_t, server: &Server) -> Option<Shown> {
    let name = nginx.host.to_string();
    let is_posted = || main.names.get().is_some_and(|names| names.find(name.as_bytes()).is_some());
    if server.upsync.get().is_none() && is_posted() {
        return posted(main, &name, Some(server));
    }
    if let Some(live) = server.live.get() {
        return Some(following(main, name, server, live.upstream()));
    }
    Some(Shown {
        name,
        source: Source::Config,
        version: 0,
        since: main.since.get(),
        keepalive: server.keepalive_in_force(),
        block: Block::new(&configured(nginx)),
        upstream: None,
    })
}

fn following(main: &Main, name: String, server: &Server, upstream: &Upstream) -> Shown {
    let block = upstream.block().map(|(_, block)| block);
    let is_source = upstream.origin() == Origin::Source;
    Shown {
        name,
        source: if is_source { Source::Consul } else { Source::Config },
        version: upstream.version(),
        since: if block.is_some() { upstream.since() } else { main.since.get() },
        keepalive: server.keepalive_in_force(),
        block: block.unwrap_or_else(|| Block::new(&Default::default())),
        upstream: Some(*upstream),
    }
}

/// A list that was posted, if it has servers.
fn posted(main: &Main, name: &str, server: Option<&Server>) -> Option<Shown> {
    let posted = main.names.get()?.find(name.as_bytes())?;
    let upstream = *posted.live.upstream();
    let (_, block) = upstream.block()?;
    if block.records().is_empty() {
        return None;
    }
    Some(Shown {
        name: name.to_owned(),
        source: Source::Api,
        version: upstream.version(),
        since: upstream.since(),
        keepalive: match server {
            Some(server) => server.keepalive_in_force(),
            None => main.template_keepalive(),
        },
        block,
        upstream: Some(upstream),
    })
}

impl Shown {
    /// As text and JSON want it.
    pub fn view(&self) -> View<'_> {
        let now = ngx_time();
        let records = self.block.records().iter().zip(self.block.servers());
        let servers = records.map(|(record, (address, parameters))| {
            let slot = self.upstream.as_ref().map(|upstream| upstream.slot(record.slot));
            let generation = record.generation;
            let counted = slot.map(|slot| slot.requests_and_failures()).unwrap_or_default();
            ServerView {
                address,
                parameters,
                connections: slot.and_then(|slot| slot.connections(generation)).unwrap_or(0),
                fails: slot.map_or(0, |slot| slot.fails(generation)),
                out: slot.is_some_and(|slot| slot.is_out(generation, &parameters, now)),
                requests: counted.0,
                failures: counted.1,
            }
        });
        View {
            name: &self.name,
            source: self.source,
            version: self.version,
            since: self.since,
            keepalive: self.keepalive,
            method: self.block.method(),
            servers: servers.collect(),
        }
    }
}
