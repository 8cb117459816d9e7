//! What choosing a server costs, for each method and any number of servers.
//!
//! `cargo bench --no-default-features` prints nanoseconds a pick, by Criterion.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ngx_http_upsync_module::balance::hash::Table;
use ngx_http_upsync_module::balance::least::Least;
use ngx_http_upsync_module::balance::ring::Ring;
use ngx_http_upsync_module::balance::{Ask, Chooser, Rotation, Taken, Tier, Walk};

const SIZES: [u32; 5] = [10, 100, 1_000, 10_000, 100_000];

/// Requests in flight: each pick ends one that was picked so many picks ago.
const IN_FLIGHT: usize = 64;

/// Picks in a second of the servers' clock: `least_conn` asks those that were out once a second.
const PICKS_A_SECOND: u64 = 10_000;

const METHODS: [&str; 7] =
    ["round robin", "random", "random two", "hash", "hash consistent", "ip_hash", "least_conn"];

/// Servers whose states are as simple as can be.
struct Servers {
    connections: Vec<Cell<u32>>,
    weights: Vec<u32>,
    is_out: Vec<bool>,
    picks: Cell<u64>,
    ticket: Cell<u64>,
    random: RefCell<fastrand::Rng>,
    key: [u8; 16],
}

impl Servers {
    fn new(weights: Vec<u32>, half_are_out: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let size = weights.len();
        let mut is_out: Vec<bool> = (0..size).map(|i| half_are_out && i < size / 2).collect();
        // By chance: any order of theirs might be in step with the rotation's.
        random.shuffle(&mut is_out);
        Self {
            connections: vec![Cell::new(0); size],
            weights,
            is_out,
            picks: Cell::new(0),
            ticket: Cell::new(0),
            random: RefCell::new(random),
            key: [0; 16],
        }
    }
}

impl Ask for Servers {
    fn ticket(&self) -> u64 {
        self.ticket.replace(self.ticket.get() + 1)
    }
    fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }
    fn second(&self) -> i64 {
        (self.picks.get() / PICKS_A_SECOND) as i64
    }
    fn key(&self) -> &[u8] {
        &self.key
    }
    fn was_tried(&self, _: u32) -> bool {
        false
    }
    fn may(&self, server: u32) -> bool {
        !self.is_out[server as usize]
    }
    fn take(&self, server: u32) -> Taken {
        if !self.may(server) {
            return Taken::Out;
        }
        let connections = &self.connections[server as usize];
        connections.set(connections.get() + 1);
        Taken::Yes
    }
    fn load(&self, server: u32) -> u64 {
        self.connections[server as usize].get().into()
    }
    fn weight(&self, server: u32) -> u32 {
        self.weights[server as usize]
    }
}

fn chooser(method: &str, weights: &[u32]) -> Chooser {
    let servers = || (0..).zip(weights.iter().copied());
    let address = |server: u32| {
        let [_, b, c, d] = server.to_be_bytes();
        format!("127.{b}.{c}.{d}:8080")
    };
    match method {
        "random" => Chooser::Random,
        "random two" => Chooser::Two,
        "hash" => Chooser::Key(Table::new(servers())),
        "hash consistent" => {
            let names: Vec<_> =
                servers().map(|(server, weight)| (server, address(server), weight)).collect();
            let named = names.iter().map(|(server, name, weight)| (*server, &name[..], *weight));
            Chooser::Ring(Arc::new(Ring::new(named)))
        }
        "ip_hash" => Chooser::Address(Table::new(servers())),
        "least_conn" => Chooser::Least(RefCell::new(Least::new(servers(), 1))),
        _ => Chooser::Turns,
    }
}

/// A tier, and the requests that go to its servers.
struct Bench {
    tier: Tier,
    servers: Servers,
    /// The servers of the requests in flight.
    flying: [u32; IN_FLIGHT],
}

impl Bench {
    fn new(method: &str, weights: Vec<u32>, half_are_out: bool) -> Self {
        let rotation = Rotation::new((0..).zip(weights.iter().copied()));
        let tier = Tier::new(rotation, chooser(method, &weights));
        Self { tier, servers: Servers::new(weights, half_are_out), flying: [u32::MAX; IN_FLIGHT] }
    }

    /// One request after the other, each ended when so many others have begun.
    fn pick(&mut self) -> u32 {
        let Self { tier, servers, flying } = self;
        let number = servers.picks.replace(servers.picks.get() + 1);
        servers.key[..8].copy_from_slice(&number.to_le_bytes());
        let picked = tier.pick(&Cell::new(Walk::default()), servers).unwrap_or(u32::MAX);
        let ended = std::mem::replace(&mut flying[number as usize % IN_FLIGHT], picked);
        if let Some(connections) = servers.connections.get(ended as usize) {
            connections.set(connections.get() - 1);
            if let Some(least) = tier.least() {
                least.borrow_mut().changed(ended, connections.get().into());
            }
        }
        picked
    }
}

fn picks(c: &mut Criterion) {
    for method in METHODS {
        for (weights_are, half_are_out) in [("equal", false), ("mixed", false), ("equal", true)] {
            let state = if half_are_out { "half out" } else { "all up" };
            let mut group = c.benchmark_group(format!("{method}, {weights_are} weights, {state}"));
            for size in SIZES {
                let weight = |i: u32| if weights_are == "mixed" { 1 + i * 7919 % 10 } else { 1 };
                let new = || Bench::new(method, (0..size).map(weight).collect(), half_are_out);
                // Made when it is measured: the largest takes seconds, and may be filtered out.
                let mut bench = None;
                group.bench_function(BenchmarkId::from_parameter(size), |b| {
                    let bench = bench.get_or_insert_with(new);
                    b.iter(|| black_box(bench.pick()));
                });
            }
            group.finish();
        }
    }
}

fn tables(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    group.sample_size(10);
    for size in SIZES {
        let weights = vec![1; size as usize];
        for method in ["hash consistent", "hash", "least_conn"] {
            group.bench_function(BenchmarkId::new(method, size), |b| {
                b.iter(|| black_box(chooser(method, &weights)));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = balance;
    config = Criterion::default()
        .without_plots()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(500))
        .sample_size(20);
    targets = picks, tables
}
criterion_main!(balance);
