//! Tests of the shape, which the page reads.
#![forbid(unsafe_code)]

use super::*;
use crate::api::status::samples::{self, HOSTILE};
use proptest::prelude::*;
use serde_json::{Value, json};

fn shown(status: &Status) -> Value {
    serde_json::from_str(&render(status)).unwrap()
}

#[test]
fn the_instance() {
    let mut value = shown(&samples::status());
    let upstreams = value.as_object_mut().unwrap().remove("upstreams").unwrap();
    assert_eq!(upstreams.as_array().unwrap().len(), 3);
    assert_eq!(
        value,
        json!({
            "module": "0.1.0",
            "nginx": "1.30.6",
            "now": "2026-11-21T10:00:05.000Z",
            "since": "2026-11-21T09:00:05.000Z",
            "generation": 3,
            "pages": { "free": 250, "total": 256 },
            "workers": [{ "number": 0, "pid": 4711 }, { "number": 1, "pid": 0 }],
        })
    );
}

#[test]
fn an_upstream_that_follows_a_source() {
    let mut value = shown(&samples::status())["upstreams"][0].clone();
    value.as_object_mut().unwrap().remove("servers");
    assert_eq!(
        value,
        json!({
            "name": "app",
            "source": "consul",
            "method": "least_conn",
            "version": 7,
            "since": "2026-11-21T09:59:00.000Z",
            "keepalive": 16,
            "follow": {
                "url": "127.0.0.1:8500/v1/kv/upstreams/app/",
                "index": 812,
                "answered": "2026-11-21T10:00:00.000Z",
                "failing": true,
                "failed": { "at": "2026-11-21T10:00:04.000Z", "reason": "connect refused" },
                "applied": 6,
                "refused": 1,
            },
            "check": {
                "type": "http",
                "interval_ms": 3000,
                "rise": 2,
                "fall": 5,
                "fail_open": 100,
                "open": false,
            },
            "workers": [7, null],
        })
    );
}

#[test]
fn an_upstream_of_nginx_conf() {
    let value = &shown(&samples::status())["upstreams"][1];
    for key in ["keepalive", "follow", "check"] {
        assert_eq!(value[key], Value::Null, "{key}");
    }
    assert_eq!(value["source"], "config");
    assert_eq!(value["workers"], json!([]));
    let server = &value["servers"][0];
    for key in ["header_time_ms", "response_time_ms", "check"] {
        assert_eq!(server[key], Value::Null, "{key}");
    }
    assert_eq!(server["out"], json!(["weight", "consul", "max_conns"]));
    assert_eq!((&server["down"], &server["critical"]), (&json!(true), &json!(true)));
    assert_eq!(server["slow_start"].as_u64(), Some(30));
}

#[test]
fn a_server() {
    let value = &shown(&samples::status())["upstreams"][0]["servers"][0];
    assert_eq!(
        *value,
        json!({
            "server": "10.0.0.1:80",
            "weight": 1,
            "max_fails": 2,
            "fail_timeout": 10,
            "max_conns": 0,
            "slow_start": 0,
            "backup": false,
            "down": false,
            "critical": false,
            "drain": false,
            "state": "up",
            "out": [],
            "connections": 3,
            "fails": 0,
            "requests": 1000,
            "failures": 12,
            "responses": { "1xx": 0, "2xx": 980, "3xx": 8, "4xx": 1, "5xx": 2 },
            "sent": 512_000,
            "received": 1_048_576,
            "header_time_ms": 12,
            "response_time_ms": 1500,
            "check": {
                "up": true,
                "default": false,
                "rise": 58,
                "fall": 0,
                "port": null,
                "last": { "at": "2026-11-21T10:00:04.000Z", "took_ms": 3, "result": "ok" },
            },
        })
    );
}

#[test]
fn states_and_checks() {
    let value = shown(&samples::status());
    let app = &value["upstreams"][0]["servers"];
    assert_eq!(app[1]["state"], "down");
    assert_eq!(app[1]["out"], json!(["check", "max_fails"]));
    assert_eq!(app[1]["check"]["last"]["result"], "timeout in read");
    assert_eq!(app[2]["state"], "draining");
    assert_eq!(app[2]["slow_start"], json!(0.5));
    let unchecked =
        json!({ "up": false, "default": true, "rise": 0, "fall": 0, "port": null, "last": null });
    assert_eq!(app[3]["check"], unchecked);
    let open = &value["upstreams"][2];
    assert_eq!(open["check"]["open"], true);
    let server = &open["servers"][0];
    assert_eq!((&server["state"], &server["check"]["up"]), (&json!("up"), &json!(false)));
    assert_eq!(server["check"]["port"], 8081);
}

#[test]
fn hostile_names_are_texts() {
    for name in HOSTILE {
        let value = shown(&samples::named(name, name));
        assert_eq!(value["upstreams"][0]["name"], name);
        assert_eq!(value["upstreams"][0]["servers"][0]["server"], name);
    }
}

proptest! {
    #[test]
    fn any_names_are_texts(name: String, address: String) {
        let value = shown(&samples::named(&name, &address));
        prop_assert_eq!(value["upstreams"][0]["name"].as_str(), Some(name.as_str()));
        let server = &value["upstreams"][0]["servers"][0]["server"];
        prop_assert_eq!(server.as_str(), Some(address.as_str()));
    }
}
