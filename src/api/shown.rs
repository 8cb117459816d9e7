//! The upstreams that there are, gathered to be shown.

use std::rc::Rc;

use nginx_sys::{ngx_http_upstream_srv_conf_t, ngx_time};

use super::status;
use super::view::{CheckView, ServerView, Source, View};
use crate::conf::initial::configured;
use crate::conf::settings::{Main, Server};
use crate::conf::upsync::Upsync;
use crate::model::method::Moment;
use crate::model::{Check, Method, Name, Out};
use crate::ngx::cycle;
use crate::shm::block::{Block, Record};
use crate::shm::directory::{Origin, Upstream};
use crate::shm::slot::Slot;
use crate::upstream::{Live, Names};

/// An upstream with its list as of now.
pub struct Shown {
    name: String,
    source: Source,
    version: u32,
    since: u64,
    keepalive: Option<u32>,
    block: Block,
    /// What knows of the servers; none where nginx's own balancer does.
    live: Option<Rc<Live>>,
    /// How a server is chosen where the list does not say; none where that is not known.
    method: Option<Method>,
    /// Where its source is, if it follows one.
    url: Option<String>,
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
        return Some(following(main, name, server, live));
    }
    Some(Shown {
        name,
        source: Source::Config,
        version: 0,
        since: main.since.get(),
        keepalive: server.keepalive_in_force(),
        block: Block::new(&configured(nginx)),
        live: None,
        method: server.chosen.get().cloned(),
        url: None,
    })
}

fn following(main: &Main, name: String, server: &Server, live: &Rc<Live>) -> Shown {
    let upstream = live.upstream();
    let block = upstream.block().map(|(_, block)| block);
    let is_source = upstream.origin() == Origin::Source;
    Shown {
        name,
        source: if is_source { Source::Consul } else { Source::Config },
        version: upstream.version(),
        since: if block.is_some() { upstream.since() } else { main.since.get() },
        keepalive: server.keepalive_in_force(),
        block: block.unwrap_or_else(|| Block::new(&Default::default())),
        live: Some(Rc::clone(live)),
        method: Some(live.balancing().method.clone()),
        url: server.upsync.get().map(Upsync::url),
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
        method: Some(posted.live.balancing().method.clone()),
        live: Some(Rc::clone(&posted.live)),
        url: None,
    })
}

impl Shown {
    /// How its servers are checked.
    fn check(&self) -> Option<Check> {
        let own = || Some(self.live.as_ref()?.checks().asked.as_ref()?.check.clone());
        self.block.check().or_else(own)
    }

    /// As the status pages want it.
    pub fn status(&self) -> status::Upstream {
        let (live, check) = (self.live.as_deref(), self.check());
        let is_open = live.is_some_and(|live| live.upstream().is_open());
        let method = self.block.method().or_else(|| self.method.clone());
        let servers = self.block.records().iter().map(|record| {
            let address = String::from_utf8_lossy(self.block.name(record)).into_owned();
            let slot = live.map(|live| live.upstream().slot(record.slot));
            server_status(address, record, slot, check.as_ref(), is_open)
        });
        status::Upstream {
            name: self.name.clone(),
            source: self.source,
            method: method.map(|method| method.to_string()).unwrap_or_default(),
            version: self.version,
            since: self.since,
            keepalive: self.keepalive,
            follow: live.zip(self.url.clone()).map(|(live, url)| follow(live.upstream(), url)),
            workers: live.map_or_else(Vec::new, |live| {
                (0..cycle::workers()).map(|worker| live.upstream().version_of(worker)).collect()
            }),
            servers: servers.collect(),
            check: check.map(|check| status::Checking {
                kind: check.kind,
                interval: check.interval,
                rise: check.rise,
                fall: check.fall,
                fail_open: check.fail_open,
                is_open,
            }),
        }
    }

    /// As text and JSON want it.
    pub fn view(&self) -> View<'_> {
        let (now, check) = (ngx_time(), self.check());
        let records = self.block.records().iter().zip(self.block.servers());
        let servers = records.map(|(record, (address, parameters))| {
            let slot = self.live.as_ref().map(|live| live.upstream().slot(record.slot));
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
                check: slot.zip(check.as_ref()).map(|(slot, _)| {
                    let known = slot.health.known(generation);
                    CheckView { is_up: known.is_up, at: known.last.map(|last| last.at) }
                }),
            }
        });
        View {
            name: &self.name,
            source: self.source,
            version: self.version,
            since: self.since,
            keepalive: self.keepalive,
            method: self.block.method(),
            check: self.block.check(),
            servers: servers.collect(),
        }
    }
}

fn follow(upstream: &Upstream, url: String) -> status::Follow {
    let facts = upstream.source_facts();
    status::Follow {
        url,
        index: facts.index,
        answered: facts.answered,
        failed: facts.failed,
        failing: facts.is_failing,
        applied: facts.applied,
        refused: facts.refused,
    }
}

fn server_status(
    address: String,
    record: &Record,
    slot: Option<&Slot>,
    check: Option<&Check>,
    is_open: bool,
) -> status::Server {
    let (parameters, generation) = (record.parameters(), record.generation);
    let checked = slot.zip(check).map(|(slot, check)| checked(slot, generation, check));
    let unknown = Slot::default();
    let slot = slot.unwrap_or(&unknown);
    let mut out = slot.outs(generation, &parameters, ngx_time());
    let counts = |checked: status::Checked| !checked.is_up && (checked.is_default || !is_open);
    out.add_if(checked.is_some_and(counts), Out::Check);
    let (requests, failures) = slot.requests_and_failures();
    let (sent, received) = slot.sent_and_received();
    status::Server {
        address,
        parameters,
        out,
        connections: slot.connections(generation).unwrap_or(0),
        fails: slot.fails(generation),
        requests,
        failures,
        responses: slot.responses(),
        sent,
        received,
        header_time: slot.known_average(generation, Moment::Header),
        response_time: slot.known_average(generation, Moment::LastByte),
        check: checked,
    }
}

fn checked(slot: &Slot, generation: u32, check: &Check) -> status::Checked {
    let known = slot.health.known(generation);
    status::Checked {
        is_up: known.is_up.unwrap_or(!check.default_down),
        is_default: known.is_up.is_none(),
        rise: known.rise,
        fall: known.fall,
        port: check.port,
        last: known.last.map(|last| status::Last {
            at: last.at,
            took: last.took,
            failed: last.failed,
        }),
    }
}
