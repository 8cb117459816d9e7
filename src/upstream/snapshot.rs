//! A worker's own copy of a list. Requests pin it, so what they point at stays.
#![forbid(unsafe_code)]

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use nginx_sys::{ngx_str_t, ngx_time};

use super::balancing::Balancing;
use crate::balance::hash::Table;
use crate::balance::least::Least;
use crate::balance::ring::Ring;
use crate::balance::{Chooser, Rotation, Tier};
use crate::health::asked::Asked;
use crate::model::method::{Better, Moment};
use crate::model::{Address, Endpoint, Method, Parameters};
use crate::shm::block::{Block, Record};
use crate::shm::directory::Upstream;
use crate::shm::news::{Read, Reader};

/// One list as the requests of one worker see it.
#[derive(Debug)]
pub struct Snapshot {
    /// The word that published the list.
    pub published: u64,
    /// False while its ring is yet to be made.
    pub is_whole: bool,
    /// How a server is chosen.
    pub balancing: Balancing,
    /// How the servers are checked, if they are.
    pub asked: Option<Rc<Asked>>,
    block: Block,
    /// As nginx wants the texts of the addresses.
    names: Box<[ngx_str_t]>,
    /// How many servers a request may try.
    tries: usize,
    is_single: bool,
    moment: Option<Moment>,
    minds_connections: bool,
    /// A tier is asked if there is no usable server in those before it.
    tiers: Vec<Tier>,
    /// What the first of them goes by, where keys are consistent.
    ring: Option<Arc<Ring>>,
    news: Option<News>,
    /// The largest share that a usable server has of its weight, and in which second that was so.
    largest: Cell<(i64, u64)>,
    identities: OnceCell<HashMap<String, u32>>,
}

/// What is heard of servers that are ordered by their load.
#[derive(Debug)]
struct News {
    reader: RefCell<Reader>,
    servers: HashMap<u64, u32, foldhash::fast::RandomState>,
}

impl Snapshot {
    /// Builds what a request needs to choose a server of a block. Without a ring where the method
    /// wants one, keys lead to servers as if it were not consistent.
    pub fn new(
        published: u64,
        block: Block,
        balancing: Balancing,
        ring: Option<Arc<Ring>>,
        asked: Option<Rc<Asked>>,
        upstream: &Upstream,
    ) -> Self {
        let is_whole = !wants_ring(&balancing.method);
        let tiers = tiers(&block, &balancing.method, ring.clone());
        let name = |record| {
            let name = block.name(record);
            ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() }
        };
        let names = block.records().iter().map(name).collect();
        let tries = tries(&block, &balancing, &tiers);
        let is_single = block.records().len() == 1;
        let minds_connections = minds_connections(&balancing.method);
        let mut snapshot = Self {
            published,
            is_single,
            moment: moment(&balancing.method),
            minds_connections,
            is_whole,
            balancing,
            asked,
            block,
            names,
            tries,
            tiers,
            ring,
            news: None,
            largest: Cell::new((0, 0)),
            identities: OnceCell::new(),
        };
        snapshot.listen(upstream);
        snapshot
    }

    /// Begins to hear of servers that get less busy, where that matters.
    fn listen(&mut self, upstream: &Upstream) {
        if self.tiers.iter().all(|tier| tier.least().is_none()) {
            return;
        }
        let wants = |tier: &Tier| tier.least().is_some_and(|least| least.borrow().wants_news());
        // Without memory for it, servers are looked at in turn only.
        if self.tiers.iter().any(wants)
            && let Ok(reader) = upstream.read_news()
        {
            let slots =
                (0..).zip(self.block.records()).map(|(server, record)| (record.slot, server));
            self.news = Some(News { reader: RefCell::new(reader), servers: slots.collect() });
        }
        self.recount(&|server| self.load(upstream, server, ngx_time()));
    }

    /// Whether servers are chosen by how busy they are.
    pub fn minds_connections(&self) -> bool {
        self.minds_connections
    }

    /// The largest of the shares that servers have of their weights now. They are asked for once a
    /// second.
    pub fn largest_share(&self, second: i64, share: impl Fn(u32) -> u64) -> u64 {
        let (when, largest) = self.largest.get();
        if when == second {
            return largest;
        }
        let servers = self.tiers.first().into_iter().flat_map(Tier::servers);
        let largest = servers.map(share).max().unwrap_or(0);
        self.largest.set((second, largest));
        largest
    }

    /// Takes in what other workers, and this one, said since the last time.
    #[inline]
    pub fn hear(&self, upstream: &Upstream, load: impl Fn(u32) -> u64) {
        if let Some(news) = &self.news {
            self.hear_news(news, upstream, load);
        }
    }

    #[inline(never)]
    fn hear_news(&self, news: &News, upstream: &Upstream, load: impl Fn(u32) -> u64) {
        let heard = |slot| {
            if let Some(&server) = news.servers.get(&slot) {
                for least in self.tiers.iter().filter_map(Tier::least) {
                    least.borrow_mut().changed(server, load(server));
                }
            }
        };
        if news.reader.borrow_mut().read(upstream, heard) == Read::Missed {
            self.recount(&load);
        }
    }

    fn recount(&self, load: &impl Fn(u32) -> u64) {
        for least in self.tiers.iter().filter_map(Tier::least) {
            least.borrow_mut().recount(load);
        }
    }

    /// How busy a server is, as the method counts it.
    #[inline]
    pub fn load(&self, upstream: &Upstream, server: u32, now: i64) -> u64 {
        let record = self.record(server);
        let slot = upstream.slot(record.slot);
        match self.moment() {
            Some(moment) => slot.busy_for(record.generation, &record.parameters(), moment, now),
            None => slot.connections(record.generation).unwrap_or(0).into(),
        }
    }

    /// Up to which moment times are taken, where the method wants any.
    #[inline]
    pub fn moment(&self) -> Option<Moment> {
        self.moment
    }

    /// The ring is that of this list.
    pub fn into_whole(self) -> Self {
        Self { is_whole: true, ..self }
    }

    /// The ring of this list, or of one before it, for another list: until that has its own.
    pub fn ring_for(&self, block: &Block) -> Option<Arc<Ring>> {
        let ring = self.ring.as_ref()?;
        let key = |record: &Record| (record.slot, record.generation);
        let servers: HashMap<_, u32, foldhash::fast::RandomState> =
            block.records().iter().map(key).zip(0..).collect();
        let number = |server| servers.get(&key(self.record(server))).copied();
        Some(Arc::new(ring.renumbered(number)))
    }

    /// The list.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The tiers, in the order in which they are asked.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// A server by its number.
    #[inline]
    pub fn record(&self, server: u32) -> &Record {
        &self.block.records()[server as usize]
    }

    /// How many servers a request may try.
    pub fn tries(&self) -> usize {
        self.tries
    }

    /// The text of a server's address. It stays where it is as long as the snapshot.
    pub fn name(&self, server: u32) -> &ngx_str_t {
        &self.names[server as usize]
    }

    /// "If there is only a single server in a group, max_fails, fail_timeout and slow_start
    /// parameters are ignored": nginx's documentation of `server`.
    #[inline]
    pub fn is_single(&self) -> bool {
        self.is_single
    }

    /// The server that nginx's `sticky` knows by this text.
    pub fn by_identity(&self, identity: &[u8]) -> Option<u32> {
        let identities = self.identities.get_or_init(|| {
            let servers = (0..).zip(self.block.records());
            servers.map(|(server, record)| (self.identity(record), server)).collect()
        });
        identities.get(std::str::from_utf8(identity).ok()?).copied()
    }

    /// The text by which nginx's `sticky` knows a server: the MD5 of its address in hexadecimal,
    /// as nginx's own balancers have it.
    pub fn identity(&self, record: &Record) -> String {
        format!("{:x}", md5::compute(self.block.name(record)))
    }
}

fn minds_connections(method: &Method) -> bool {
    matches!(method, Method::LeastConn | Method::LeastTime(_) | Method::RandomTwo(_))
}

fn moment(method: &Method) -> Option<Moment> {
    match *method {
        Method::LeastTime(moment) | Method::RandomTwo(Better::LeastTime(moment)) => Some(moment),
        _ => None,
    }
}

/// Whether a method needs a ring.
pub fn wants_ring(method: &Method) -> bool {
    matches!(method, Method::Hash { consistent: true, .. })
}

/// The ring of a block.
pub fn ring(block: &Block) -> Ring {
    let servers = (0..).zip(block.servers());
    let primary = servers.filter(|(_, (_, parameters))| !parameters.backup);
    Ring::new(primary.map(|(server, (name, parameters))| (server, name, parameters.weight)))
}

/// How many points the ring of a block has.
pub fn points(block: &Block) -> usize {
    let parameters = block.records().iter().map(Record::parameters);
    Ring::points(parameters.filter(|parameters| !parameters.backup).map(|p| p.weight))
}

fn tiers(block: &Block, method: &Method, ring: Option<Arc<Ring>>) -> Vec<Tier> {
    let is_local = |address: &str| match method {
        Method::Local(networks) => match Endpoint::parse(address, None) {
            Ok(Endpoint::Address(Address::Unix(_))) => true,
            Ok(Endpoint::Address(Address::Ip(address))) => {
                networks.iter().any(|network| network.contains(&address.ip()))
            }
            _ => false,
        },
        _ => true,
    };
    let mut groups: [Vec<(u32, Parameters)>; 3] = Default::default();
    for (server, (address, parameters)) in (0..).zip(block.servers()) {
        let group = match (parameters.backup, is_local(address)) {
            (false, true) => 0,
            (false, false) => 1,
            (true, _) => 2,
        };
        groups[group].push((server, parameters));
    }
    let [near, far, backup] = groups;
    let primary =
        |servers: Vec<_>, ring| Tier::new(rotation(&servers), chooser(&servers, method, ring));
    let for_backup = match method {
        Method::LeastConn | Method::LeastTime(_) => chooser(&backup, method, None),
        // As in nginx.
        _ => Chooser::Turns,
    };
    let backup = Tier::new(rotation(&backup), for_backup);
    let tiers = [primary(near, ring), primary(far, None), backup];
    tiers.into_iter().filter(|tier| !tier.is_empty()).collect()
}

/// A server that drains is tried by requests that are bound to it.
fn tries(block: &Block, balancing: &Balancing, tiers: &[Tier]) -> usize {
    let drain = block.records().iter().filter(|record| record.parameters().drain);
    let bound = if balancing.is_sticky { drain.count().min(1) } else { 0 };
    tiers.iter().map(Tier::len).sum::<usize>() + bound
}

/// Of the servers that may be chosen.
fn usable(servers: &[(u32, Parameters)]) -> impl Iterator<Item = (u32, u32)> {
    let may = servers.iter().filter(|(_, parameters)| !parameters.is_down() && !parameters.drain);
    may.map(|&(server, parameters)| (server, parameters.weight))
}

fn rotation(servers: &[(u32, Parameters)]) -> Rotation {
    Rotation::new(usable(servers))
}

fn chooser(servers: &[(u32, Parameters)], method: &Method, ring: Option<Arc<Ring>>) -> Chooser {
    let table =
        || Table::new(servers.iter().map(|&(server, parameters)| (server, parameters.weight)));
    match (method, ring) {
        (Method::RoundRobin | Method::Local(_), _) => Chooser::Turns,
        (Method::Random, _) => Chooser::Random,
        (Method::RandomTwo(_), _) => Chooser::Two,
        (Method::IpHash, _) => Chooser::Address(table()),
        (Method::Hash { consistent: true, .. }, Some(ring)) => Chooser::Ring(ring),
        (Method::Hash { .. }, _) => Chooser::Key(table()),
        (Method::LeastConn | Method::LeastTime(_), _) => {
            Chooser::Least(RefCell::new(Least::new(usable(servers), fastrand::u64(..))))
        }
    }
}
