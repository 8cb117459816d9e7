//! Tests of bodies that Slardar's clients send, and of what they are shown.
#![forbid(unsafe_code)]

mod any;
mod checks;

use super::*;
use crate::api::view::{CheckView, ServerView, Source, View};
use crate::model::body::Target;
use crate::model::list::COUNT_MAX;
use crate::model::{Endpoint, Name, Parameters};
use serde_json::Value;

fn server(place: usize, address: &str, changes: Changes) -> Server {
    let target = Target::Endpoint(Endpoint::parse(address, None).unwrap());
    Server { place: Place::Server(place), target, changes }
}

fn backup() -> Changes {
    Changes { backup: Some(true), ..Changes::default() }
}

fn servers(body: &str) -> Vec<Server> {
    parse(body.as_bytes()).unwrap().servers
}

fn error(body: impl AsRef<[u8]>) -> String {
    parse(body.as_ref()).unwrap_err().to_string()
}

/// The error about one server, without what all have.
fn server_error(fields: &str) -> String {
    let error = error(format!(r#"{{"servers":[{{{fields}}}]}}"#));
    error.strip_prefix("servers invalid: server 0: ").map(str::to_owned).unwrap_or(error)
}

#[test]
fn servers_are_one_level() {
    let body = r#"{"servers":[
        {"host":"192.168.1.1","port":8080,"weight":1,"max_fails":6,"fail_timeout":30},
        {"port":"081","host":"b.Local","max_conns":"7","down":true,"backup":0}],
        "keepalive":20, "try":2, "http_opts":{"query":"GET /"}, "enable":false}"#;
    let first = Changes {
        weight: Some(1),
        max_fails: Some(6),
        fail_timeout: Some(30),
        ..Changes::default()
    };
    let second =
        Changes { max_conns: Some(7), down: Some(true), backup: Some(false), ..Changes::default() };
    let parsed = parse(body.as_bytes()).unwrap();
    assert_eq!(
        parsed.servers,
        [server(0, "192.168.1.1:8080", first), server(1, "b.local:81", second)]
    );
    assert_eq!(parsed.keepalive, Some((Place::Text { line: 4, column: 21 }, 20)));
}

#[test]
fn levels_behind_the_first_are_backup() {
    let level = |ports: &[u16]| {
        let servers: Vec<_> =
            ports.iter().map(|port| format!(r#"{{"host":"1.1.1.1","port":{port}}}"#)).collect();
        format!(r#"{{"try":2,"servers":[{}]}}"#, servers.join(","))
    };
    let (one, two, three) = (level(&[1, 2]), level(&[3]), level(&[4]));
    let expected = [
        server(0, "1.1.1.1:1", Changes::default()),
        server(1, "1.1.1.1:2", Changes::default()),
        server(2, "1.1.1.1:3", backup()),
        server(3, "1.1.1.1:4", backup()),
    ];
    assert_eq!(servers(&format!(r#"{{"cluster":[{one},{two},{three}]}}"#)), expected);
    // Not in the order of the keys.
    let keyed = format!(r#"{{"cluster":{{"z":{one},"b":{two},"a":{three}}}}}"#);
    assert_eq!(servers(&keyed), expected);
}

#[test]
fn a_level_says_more_about_backup_than_a_server() {
    let body = r#"{"cluster":[{"servers":[{"host":"1.1.1.1","port":1,"backup":true}]},
                              {"servers":[{"host":"1.1.1.2","port":1,"backup":false}]}]}"#;
    assert_eq!(servers(body), [server(0, "1.1.1.1:1", backup()), server(1, "1.1.1.2:1", backup())]);
}

#[test]
fn a_host_is_of_any_kind() {
    for (fields, address) in [
        (r#""host":"::1","port":80"#, "[::1]:80"),
        (r#""host":"[::1]","port":80"#, "[::1]:80"),
        (r#""host":"a.b","port":"65535""#, "a.b:65535"),
        (r#""host":"unix:/run/a.sock""#, "unix:/run/a.sock"),
        (r#""host":"unix:\/run\/a","port":null"#, "unix:/run/a"),
        (r#""\u0068ost":"\u0061.b","port":1"#, "a.b:1"),
    ] {
        let body = format!(r#"{{"servers":[{{{fields}}}]}}"#);
        assert_eq!(servers(&body), [server(0, address, Changes::default())], "{fields}");
    }
    let target = servers(r#"{"servers":[{"host":"upstream:App"}]}"#).remove(0).target;
    assert_eq!(target, Target::Upstream(Name::parse(b"app").unwrap()));
}

#[test]
fn what_is_null_is_not_there() {
    let body = r#"{"cluster":null,"keepalive":null,
                   "servers":[{"host":"1.1.1.1","port":1,"weight":null,"down":null}]}"#;
    let expected = [server(0, "1.1.1.1:1", Changes::default())];
    assert_eq!(
        parse(body.as_bytes()).unwrap(),
        Body { servers: expected.into(), ..Body::default() }
    );
}

#[test]
fn what_is_no_json_says_where() {
    for (body, text) in [
        ("", "empty body"),
        (" \n", "empty body"),
        ("x", "line 1, column 1: expected value"),
        ("{\n\"servers\":[1,]}", "line 2, column 14: expected value"),
        ("{", "line 1, column 1: EOF while parsing an object"),
        ("{}}", "line 1, column 3: trailing characters"),
        ("server 1.1.1.1;", "line 1, column 1: expected value"),
    ] {
        assert_eq!(error(body), format!("decode body error: {text}"), "{body}");
    }
    assert_eq!(error(b"{\n\"\xff\":1}"), "decode body error: line 2, column 2: invalid UTF-8");
}

#[test]
fn a_body_is_an_object_with_servers() {
    for (body, text) in [
        ("5", "body invalid: expected an object, not 5"),
        ("[1]", "body invalid: expected an object, not [1]"),
        (
            r#"{"servers":[],"cluster":[]}"#,
            r#"body invalid: "servers" and "cluster" exclude each other"#,
        ),
        (r#"{"x":1,"x":2}"#, r#"body invalid: key "x" is there twice"#),
        (r#"{"servers":[],"\u0073ervers":[]}"#, r#"body invalid: key "servers" is there twice"#),
        (
            r#"{"servers":[],"keepalive":0}"#,
            r#"body invalid: "keepalive" is 0, expected 1 to 65535"#,
        ),
        (r#"{"cluster":5}"#, r#"body invalid: "cluster": expected an array or an object, not 5"#),
        (r#"{"cluster":{"a":{},"a":{}}}"#, r#"body invalid: "cluster": key "a" is there twice"#),
        (r#"{"cluster":[{"servers":[]},5]}"#, "body invalid: level 1: expected an object, not 5"),
    ] {
        assert_eq!(error(body), text, "{body}");
    }
}

#[test]
fn a_level_has_servers() {
    for (body, text) in [
        ("{}", r#"neither "servers" nor "cluster" is there"#),
        (r#"{"servers":null}"#, r#"neither "servers" nor "cluster" is there"#),
        (r#"{"servers":[]}"#, "level 0 has no servers"),
        (r#"{"cluster":[]}"#, r#""cluster" is empty"#),
        (r#"{"cluster":{}}"#, r#""cluster" is empty"#),
        (r#"{"cluster":[{}]}"#, "level 0 has no servers"),
        (
            r#"{"cluster":[{"servers":[{"host":"a","port":1}]},{"servers":[]}]}"#,
            "level 1 has no servers",
        ),
    ] {
        assert_eq!(error(body), format!("can not update empty level: {text}"), "{body}");
    }
    assert_eq!(
        error(r#"{"servers":{"host":"a"}}"#),
        r#"servers invalid: level 0: expected an array, not {\"host\":\"a\"}"#
    );
}

#[test]
fn a_server_has_host_and_port() {
    for fields in ["", r#""host":"a""#, r#""port":80"#, r#""host":null,"port":80"#] {
        let text = "no server.host nor server.port found: server 0";
        assert_eq!(server_error(fields), text, "{fields}");
    }
    let second = r#"{"cluster":[{"servers":[{"host":"a","port":1}]},{"servers":[{}]}]}"#;
    assert_eq!(error(second), "no server.host nor server.port found: server 1");
    assert_eq!(
        error(r#"{"servers":["a:80"]}"#),
        r#"servers invalid: server 0: expected an object, not \"a:80\""#
    );
}

#[test]
fn a_fault_in_a_server_says_what_is_right() {
    for (fields, text) in [
        (r#""host":5,"port":1"#, r#""host" is 5, expected a text"#),
        (r#""host":"\ud800","port":1"#, r#""host" is \"\\ud800\", expected a text"#),
        (r#""host":"a b","port":1"#, r#"invalid host in "a b:1""#),
        (r#""host":"a:1","port":1"#, r#"invalid port in "a:1:1", expected 1 to 65535"#),
        (r#""host":"a","port":0"#, r#""port" is 0, expected 1 to 65535"#),
        (r#""host":"a","port":"x""#, r#""port" is \"x\", expected 1 to 65535"#),
        (r#""host":"a","port":80.0"#, r#""port" is 80.0, expected 1 to 65535"#),
        (r#""host":"unix:/a","port":80"#, r#""port" is 80, expected none for "unix:/a""#),
        (
            r#""host":"unix:a""#,
            r#"invalid path in "unix:a", expected unix:/PATH of at most 107 bytes"#,
        ),
        (
            r#""host":"upstream:a/b""#,
            r#"invalid upstream name, expected 1 to 255 letters, digits, ".", "-", "_" or ":""#,
        ),
        (r#""weight":65536"#, r#""weight" is 65536, expected 0 to 65535"#),
        (r#""weight":1e1"#, r#""weight" is 1e1, expected 0 to 65535"#),
        (r#""weight":"""#, r#""weight" is \"\", expected 0 to 65535"#),
        (r#""weight":[1]"#, r#""weight" is [1], expected 0 to 65535"#),
        (r#""max_fails":2147483648"#, r#""max_fails" is 2147483648, expected 0 to 2147483647"#),
        (r#""fail_timeout":"10s""#, r#""fail_timeout" is \"10s\", expected 0 to 2147483647"#),
        (r#""max_conns":-1"#, r#""max_conns" is -1, expected 0 to 2147483647"#),
        (r#""down":2"#, r#""down" is 2, expected false or true"#),
        (r#""drain":"on""#, r#""drain" is \"on\", expected false or true"#),
        (
            r#""slow_start":1.2345"#,
            r#""slow_start" is 1.2345, expected a number of seconds or a time of at most 2147483647 milliseconds"#,
        ),
        (r#""slow_start":"1M""#, r#""slow_start" is \"1M\", expected a number of seconds or"#),
        (r#""slow_start":2147484"#, r#""slow_start" is 2147484, expected a number of seconds or"#),
        (r#""backup":"yes""#, r#""backup" is \"yes\", expected false or true"#),
        (
            r#""wieght":1"#,
            r#"unknown key "wieght", expected host, port, weight, max_fails, fail_timeout, max_conns, slow_start, down, drain or backup"#,
        ),
        (r#""weight":1,"weight":1"#, r#"key "weight" is there twice"#),
        (r#""\ud800":1"#, "unexpected end of hex escape"),
    ] {
        let shown = server_error(fields);
        assert!(shown.starts_with(text), "{fields}: {shown}");
    }
}

#[test]
fn numbers_and_flags_may_be_texts() {
    for (fields, changes) in [
        (r#""weight":"0""#, Changes { weight: Some(0), ..Changes::default() }),
        (r#""weight":65535"#, Changes { weight: Some(65_535), ..Changes::default() }),
        (
            r#""max_fails":"2147483647""#,
            Changes { max_fails: Some(COUNT_MAX), ..Changes::default() },
        ),
        (r#""down":"true""#, Changes { down: Some(true), ..Changes::default() }),
        (r#""down":"0""#, Changes { down: Some(false), ..Changes::default() }),
        (r#""drain":1"#, Changes { drain: Some(true), ..Changes::default() }),
        (r#""drain":"false""#, Changes { drain: Some(false), ..Changes::default() }),
        (r#""slow_start":30"#, Changes { slow_start: Some(30_000), ..Changes::default() }),
        (r#""slow_start":0.5"#, Changes { slow_start: Some(500), ..Changes::default() }),
        (r#""slow_start":1.025"#, Changes { slow_start: Some(1025), ..Changes::default() }),
        (r#""slow_start":"30""#, Changes { slow_start: Some(30_000), ..Changes::default() }),
        (r#""slow_start":"1m 500ms""#, Changes { slow_start: Some(60_500), ..Changes::default() }),
        (r#""backup":1"#, backup()),
    ] {
        assert_eq!(parse_changes(format!("{{{fields}}}").as_bytes()), Ok(changes), "{fields}");
    }
}

#[test]
fn one_server_is_read_alone() {
    let json = br#" {"host":"1.1.1.1","port":80,"backup":true} "#;
    assert_eq!(parse_server(json), Ok(server(0, "1.1.1.1:80", backup())));
    let error = |body: &str| parse_server(body.as_bytes()).unwrap_err().to_string();
    assert_eq!(error("[]"), "servers invalid: server 0: expected an object, not []");
    assert_eq!(error("{}"), "no server.host nor server.port found: server 0");
    assert_eq!(error("{"), "decode body error: line 1, column 1: EOF while parsing an object");
}

#[test]
fn changes_are_parameters_only() {
    let changes = Changes { weight: Some(5), down: Some(false), ..Changes::default() };
    assert_eq!(parse_changes(br#"{"weight":5,"down":false,"backup":null}"#), Ok(changes));
    let error = |body: &str| parse_changes(body.as_bytes()).unwrap_err().to_string();
    let parameters =
        "weight, max_fails, fail_timeout, max_conns, slow_start, down, drain or backup";
    for empty in ["{}", r#"{"weight":null}"#] {
        assert_eq!(error(empty), format!("body invalid: no parameter, expected {parameters}"));
    }
    assert_eq!(
        error(r#"{"port":80}"#),
        format!("body invalid: unknown key \"port\", expected {parameters}")
    );
    assert_eq!(error("null"), "body invalid: expected an object, not null");
    assert_eq!(error(r#"{"weight":-1}"#), "body invalid: \"weight\" is -1, expected 0 to 65535");
    assert_eq!(error(" "), "decode body error: empty body");
}

#[test]
fn servers_levels_and_keys_are_bounded() {
    let one = r#"{"host":"1.1.1.1","port":1}"#;
    let list = |count: usize| format!("[{}]", vec![one; count].join(","));
    let all = |count| parse(format!(r#"{{"servers":{}}}"#, list(count)).as_bytes());
    assert_eq!(all(SERVERS_MAX).unwrap().servers.len(), SERVERS_MAX);
    let text = "servers invalid: level 0: more than 100000 elements";
    assert_eq!(all(SERVERS_MAX + 1).unwrap_err().to_string(), text);

    let (most, rest) = (list(SERVERS_MAX - 1), list(2));
    let body = format!(r#"{{"cluster":[{{"servers":{most}}},{{"servers":{rest}}}]}}"#);
    assert_eq!(error(body), "servers invalid: more than 100000 servers");

    let body = format!(r#"{{"cluster":[{}]}}"#, vec!["{}"; 1001].join(","));
    assert_eq!(error(body), r#"body invalid: "cluster": more than 1000 elements"#);
    let keys: Vec<_> = (0..1001).map(|key| format!("\"{key}\":1")).collect();
    let body = format!("{{{}}}", keys.join(","));
    assert_eq!(error(body), "body invalid: more than 1000 keys");
}

#[test]
fn depth_costs_no_stack() {
    const DEPTH: usize = 1 << 20;
    let (open, close) = ("[".repeat(DEPTH), "]".repeat(DEPTH));
    assert!(error(&open).starts_with("decode body error: line 1, column "));
    let server = r#"{"host":"a","port":1}"#;
    let body = format!(r#"{{"x":{open}{close},"servers":[{server}]}}"#);
    assert_eq!(servers(&body).len(), 1);
    assert!(error(format!(r#"{{"servers":{open}{close}}}"#)).len() < 1000);
    assert!(server_error(&format!(r#""weight":{open}{close}"#)).len() < 1000);
    assert!(server_error(&format!(r#""host":{open}{close},"port":1"#)).len() < 1000);
}

fn view<'a>(name: &'a str, servers: Vec<ServerView<'a>>) -> View<'a> {
    let since = 1_795_255_200_123;
    View {
        name,
        source: Source::Api,
        version: 3,
        since,
        keepalive: None,
        method: None,
        check: None,
        servers,
    }
}

fn shown(address: &str, parameters: Parameters, fails: u32, out: bool) -> ServerView<'_> {
    ServerView {
        address,
        parameters,
        connections: 0,
        fails,
        out,
        requests: 0,
        failures: 0,
        check: None,
    }
}

const FACTS: StatusFacts<'_> =
    StatusFacts { start_time: 1_795_168_800_000, version: 7, workers: &[true, false] };

const REST: &str = r#""checkup_timer_alive":false,"last_check_time":null,"start_time":"2026-11-20 10:00:00","conf_hash":null,"shd_config_version":7,"config_timer":{"worker-0":"alive","worker-1":"dead"},"slardar_version":"1.1.2""#;

#[test]
fn status_is_levels_of_servers() {
    let plain = Parameters::NGINX;
    let backup = Parameters { backup: true, weight: 2, max_fails: 3, fail_timeout: 4, ..plain };
    let app = vec![
        shown("unix:/run/b", backup, 0, false),
        shown("1.1.1.1:1", plain, 0, false),
        shown("1.1.1.2:1", plain, 1, false),
    ];
    let server = |server: &str, status: &str, parameters: &str, fails: u32| {
        format!(
            r#"{{"server":"{server}","status":"{status}",{parameters},"fail_num":{fails},"lastmodified":"2026-11-21 10:00:00","msg":null}}"#
        )
    };
    let parameters = r#""weight":1,"max_fails":1,"fail_timeout":10"#;
    let (first, second, third) = (
        server("app:1.1.1.1:1", "unchecked", parameters, 0),
        server("app:1.1.1.2:1", "unstable", parameters, 1),
        server("app:unix:/run/b", "unchecked", r#""weight":2,"max_fails":3,"fail_timeout":4"#, 0),
    );
    assert_eq!(
        status(&[view("app", app), view("empty", vec![])], &FACTS),
        format!(r#"{{"cls:app":[[{first},{second}],[{third}]],"cls:empty":[[]],{REST}}}"#)
    );
    assert_eq!(status(&[], &FACTS), format!("{{{REST}}}"));
}

#[test]
fn a_server_that_is_out_or_down_is_err() {
    let down = Parameters { down: true, ..Parameters::NGINX };
    let critical = Parameters { critical: true, ..Parameters::NGINX };
    for (parameters, fails, out, word) in [
        (Parameters::NGINX, 0, false, "unchecked"),
        (Parameters::NGINX, 1, false, "unstable"),
        (Parameters::NGINX, 1, true, "err"),
        (down, 0, false, "err"),
        (critical, 0, false, "err"),
    ] {
        let views = [view("a", vec![shown("1.1.1.1:1", parameters, fails, out)])];
        let value: Value = serde_json::from_str(&status(&views, &FACTS)).unwrap();
        assert_eq!(value["cls:a"][0][0]["status"], word);
    }
}

#[test]
fn what_checks_say_is_ok_or_err() {
    let checked = |is_up, fails| ServerView {
        check: Some(CheckView { is_up, at: Some(1_795_255_200_000) }),
        ..shown("1.1.1.1:1", Parameters::NGINX, fails, false)
    };
    for (server, word) in [
        (checked(Some(true), 0), "ok"),
        (checked(Some(true), 1), "unstable"),
        (checked(Some(false), 0), "err"),
        (checked(None, 0), "unchecked"),
    ] {
        let value: Value =
            serde_json::from_str(&status(&[view("a", vec![server])], &FACTS)).unwrap();
        assert_eq!(value["cls:a"][0][0]["status"], word);
        assert_eq!(value["checkup_timer_alive"], true);
        assert_eq!(value["last_check_time"], "2026-11-21 10:00:00");
    }
}

#[test]
fn a_method_may_stand_beside_the_servers() {
    let method = |text: &str| {
        let body = format!(r#"{{"servers":[{{"host":"127.0.0.1","port":1}}],"method":{text}}}"#);
        parse(body.as_bytes()).map(|body| body.method.map(|(_, method)| method.to_string()))
    };
    assert_eq!(method("null"), Ok(None));
    for text in
        ["least_conn", "hash $uri consistent", "upsync_lb roundrobin", "random two least_conn"]
    {
        assert_eq!(method(&format!("\"{text}\"")), Ok(Some(text.to_owned())));
    }
    for (text, reason) in [
        (r#""fair""#, r#"body invalid: "method" is wrong: unknown"#),
        (r#""hash""#, r#"body invalid: "method" is wrong: "#),
        (r#""upsync_lb local""#, r#"body invalid: "method" has no network in "upsync_lb local""#),
        ("1", r#"body invalid: "method" "#),
    ] {
        let error = method(text).unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error}");
    }
}
