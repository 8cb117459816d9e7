//! What the tests of all formats render.
#![forbid(unsafe_code)]

use super::{Checked, Checking, Follow, Last, Server, Status, Upstream, Worker};
use crate::api::view::Source;
use crate::model::check::Kind;
use crate::model::reason::Stage;
use crate::model::{Out, Outs, Parameters, Reason};

/// 2026-11-21T10:00:05.000Z.
pub const NOW: u64 = 1_795_255_205_000;

/// Names that want to be something else in one format or another.
pub const HOSTILE: [&str; 12] = [
    "",
    "a,b",
    "a\"b",
    "\"",
    "a\\",
    "a\nb",
    "a\r\nb",
    "<script>alert('1')</script>&amp;",
    "a\"} 1\nupsync_server_up{upstream=\"b",
    "=1+1",
    "\u{e9}\u{4e2d}\u{202e}\u{2028}\u{1f600}",
    "\u{1}\t\u{7f}\u{fffd}",
];

/// Three upstreams with six servers in all states.
pub fn status() -> Status {
    Status {
        module: "0.1.0",
        nginx: "1.30.6".into(),
        now: NOW,
        since: NOW - 3_600_000,
        generation: 3,
        pages: (250, 256),
        workers: vec![Worker { number: 0, pid: 4711 }, Worker { number: 1, pid: 0 }],
        upstreams: vec![app(), plain(), open()],
    }
}

/// One upstream with checks and one server.
pub fn named(name: &str, address: &str) -> Status {
    let upstream = Upstream { name: name.into(), ..open() };
    let servers = vec![server(address, &[], Some(checked(true, None)))];
    Status { upstreams: vec![Upstream { servers, ..upstream }], ..status() }
}

fn app() -> Upstream {
    let failed = Last { at: NOW - 500, took: 1000, failed: Some(Reason::Timeout(Stage::Read)) };
    let good = Last { at: NOW - 1000, took: 3, failed: None };
    let up = Server {
        connections: 3,
        requests: 1000,
        failures: 12,
        responses: [0, 980, 8, 1, 2],
        sent: 512_000,
        received: 1_048_576,
        header_time: Some(12),
        response_time: Some(1500),
        ..server("10.0.0.1:80", &[], Some(checked(true, Some(good))))
    };
    let outs = [Out::Check, Out::MaxFails];
    let down =
        Server { fails: 2, ..server("10.0.0.2:80", &outs, Some(checked(false, Some(failed)))) };
    let drain = Parameters { drain: true, slow_start: 500, ..Parameters::CONSUL };
    let draining = Server {
        parameters: drain,
        ..server("[2001:db8::3]:80", &[Out::Drain], Some(checked(true, Some(good))))
    };
    let unchecked = Checked { is_default: true, fall: 0, ..checked(false, None) };
    let new = server("unix:/run/app.sock", &[Out::Check], Some(unchecked));
    Upstream {
        name: "app".into(),
        source: Source::Consul,
        method: "least_conn".into(),
        version: 7,
        since: NOW - 65_000,
        keepalive: Some(16),
        follow: Some(Follow {
            url: "127.0.0.1:8500/v1/kv/upstreams/app/".into(),
            index: 812,
            answered: Some(NOW - 5000),
            failed: Some((NOW - 1000, "connect refused".into())),
            failing: true,
            applied: 6,
            refused: 1,
        }),
        check: Some(checking(Kind::Http)),
        workers: vec![Some(7), None],
        servers: vec![up, down, draining, new],
    }
}

fn plain() -> Upstream {
    let outs = [Out::Consul, Out::NoWeight, Out::MaxConns];
    let parameters = Parameters {
        weight: 0,
        max_conns: 5,
        critical: true,
        backup: true,
        slow_start: 30_000,
        ..Parameters::NGINX
    };
    let servers = vec![Server { parameters, ..server("10.0.0.1:80", &outs, None) }];
    Upstream {
        name: "plain".into(),
        source: Source::Config,
        method: String::new(),
        version: 1,
        since: NOW - 3_600_000,
        keepalive: None,
        follow: None,
        check: None,
        workers: vec![],
        servers,
    }
}

fn open() -> Upstream {
    let last = Last { at: NOW - 10, took: 0, failed: Some(Reason::Refused) };
    let checked = Checked { port: Some(8081), ..checked(false, Some(last)) };
    Upstream {
        name: "open".into(),
        source: Source::Api,
        method: "round_robin".into(),
        check: Some(Checking { fail_open: 50, is_open: true, ..checking(Kind::SslHello) }),
        workers: vec![Some(1), Some(1)],
        servers: vec![server("10.0.0.6:80", &[], Some(checked))],
        ..plain()
    }
}

fn checking(kind: Kind) -> Checking {
    Checking { kind, interval: 3000, rise: 2, fall: 5, fail_open: 100, is_open: false }
}

fn checked(is_up: bool, last: Option<Last>) -> Checked {
    let (rise, fall) = if is_up { (58, 0) } else { (0, 6) };
    Checked { is_up, is_default: false, rise, fall, port: None, last }
}

fn server(address: &str, outs: &[Out], check: Option<Checked>) -> Server {
    let mut out = Outs::default();
    for &one in outs {
        out.add_if(true, one);
    }
    Server {
        address: address.into(),
        parameters: Parameters::CONSUL,
        out,
        connections: 0,
        fails: 0,
        requests: 0,
        failures: 0,
        responses: [0; 5],
        sent: 0,
        received: 0,
        header_time: None,
        response_time: None,
        check,
    }
}
