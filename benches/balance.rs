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

const METHODS: [&str; 7] =
    ["round robin", "random", "random two", "hash", "hash consistent", "ip_hash", "least_conn"];

/// Servers whose states are as simple as can be.
struct Servers {
    connections: Vec<Cell<u32>>,
    weights: Vec<u32>,
    /// Every second one is out.
    half_are_out: bool,
    ticket: Cell<u64>,
    random: RefCell<fastrand::Rng>,
    key: [u8; 16],
}

impl Ask for Servers {
    fn ticket(&self) -> u64 {
        self.ticket.replace(self.ticket.get() + 1)
    }
    fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }
    fn second(&self) -> i64 {
        0
    }
    fn key(&self) -> &[u8] {
        &self.key
    }
    fn was_tried(&self, _: u32) -> bool {
        false
    }
    fn may(&self, server: u32) -> bool {
        !self.half_are_out || server.is_multiple_of(2)
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

/// One request after the other, each ended when so many others have begun.
fn pick(tier: &Tier, servers: &mut Servers, flying: &mut [u32; IN_FLIGHT], at: &mut usize) -> u32 {
    servers.key[..8].copy_from_slice(&(*at as u64).to_le_bytes());
    let picked = tier.pick(&Cell::new(Walk::default()), servers).unwrap_or(u32::MAX);
    let ended = std::mem::replace(&mut flying[*at % IN_FLIGHT], picked);
    if let Some(connections) = servers.connections.get(ended as usize) {
        connections.set(connections.get() - 1);
        if let Some(least) = tier.least() {
            least.borrow_mut().changed(ended, connections.get().into());
        }
    }
    *at += 1;
    picked
}

fn picks(c: &mut Criterion) {
    for method in METHODS {
        for (weights_are, half_are_out) in [("equal", false), ("mixed", false), ("equal", true)] {
            let state = if half_are_out { "half out" } else { "all up" };
            let mut group = c.benchmark_group(format!("{method}, {weights_are} weights, {state}"));
            for size in SIZES {
                let weight = |i: u32| if weights_are == "mixed" { 1 + i * 7919 % 10 } else { 1 };
                let weights: Vec<u32> = (0..size).map(weight).collect();
                let rotation = Rotation::new((0..).zip(weights.iter().copied()));
                let tier = Tier::new(rotation, chooser(method, &weights));
                let mut servers = Servers {
                    connections: vec![Cell::new(0); size as usize],
                    weights,
                    half_are_out,
                    ticket: Cell::new(0),
                    random: RefCell::new(fastrand::Rng::with_seed(1)),
                    key: [0; 16],
                };
                let (mut flying, mut at) = ([u32::MAX; IN_FLIGHT], 0);
                group.bench_function(BenchmarkId::from_parameter(size), |b| {
                    b.iter(|| black_box(pick(&tier, &mut servers, &mut flying, &mut at)));
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
