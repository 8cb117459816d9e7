//! Tests of what is asked of Consul and read from its answers.
#![forbid(unsafe_code)]

mod any;

use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

fn kv(body: &str) -> Vec<Entry> {
    Query::new(Kind::Kv, "/v1/kv/upstreams/app/").unwrap().parse(body.as_bytes()).unwrap()
}

fn catalog(kind: Kind, body: &str) -> Vec<Entry> {
    let path = format!("{}app", kind.path_start());
    Query::new(kind, &path).unwrap().parse(body.as_bytes()).unwrap()
}

/// The address that a key stands for, or the complaint.
fn key(key: &str) -> String {
    let body = serde_json::json!([{ "Key": format!("upstreams/app/{key}"), "Value": null }]);
    match &kv(&body.to_string())[0].endpoint {
        Ok(endpoint) => endpoint.to_string(),
        Err(reason) => reason.clone(),
    }
}

fn value(value: &str) -> Result<Parameters, String> {
    let value = STANDARD.encode(value);
    kv(&format!(r#"[{{"Key":"upstreams/app/1.2.3.4:5","Value":"{value}"}}]"#))[0].parameters.clone()
}

#[test]
fn a_path_must_fit_its_type() {
    let text = |kind, path| match Query::new(kind, path) {
        Ok(query) => format!("{query:?}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(text(Kind::Kv, "/v1/kv/upstreams/app"), "consul /v1/kv/upstreams/app/");
    assert_eq!(
        text(Kind::Health, "/v1/health/service/a?passing"),
        "consul_health /v1/health/service/a"
    );
    assert_eq!(
        text(Kind::Kv, "/v1/catalog/service/app?token=secret"),
        r#"upsync_type=consul expects the path /v1/kv/PREFIX/, not "/v1/catalog/service/app""#
    );
    assert_eq!(
        text(Kind::Catalog, "/v1/health/service/app"),
        "upsync_type=consul_services expects the path /v1/catalog/service/NAME, \
         not \"/v1/health/service/app\""
    );
    for path in ["/v1/kv/", "/v1/kv//", "/v1/kv//a/", "v1/kv/a/", "", "/v1/kv"] {
        assert!(text(Kind::Kv, path).contains("expects the path"), "{path}");
    }
    for path in ["/v1/health/service/", "/v1/health/service/a/", "/v1/health/service/a/b"] {
        assert!(text(Kind::Health, path).contains("/v1/health/service/NAME"), "{path}");
    }
    assert_eq!(
        text(Kind::Kv, "/v1/kv/a b/?token=secret"),
        r#"invalid character ' ' in path "/v1/kv/a b/", write it percent-encoded"#
    );
    assert_eq!(
        text(Kind::Kv, "/v1/kv/a?dc=x&index=5"),
        r#"argument "index" is not allowed in the path"#
    );
}

#[test]
fn types_have_the_names_of_nginx_upsync_module() {
    for (name, kind) in
        [("consul", Kind::Kv), ("consul_services", Kind::Catalog), ("consul_health", Kind::Health)]
    {
        assert_eq!(name.parse(), Ok(kind));
    }
    assert_eq!(
        "etcd".parse::<Kind>().unwrap_err().to_string(),
        "invalid upsync_type \"etcd\", expected consul, consul_services or consul_health"
    );
}

#[test]
fn requests_keep_the_arguments() {
    let request = |kind, path, index, wait| {
        Query::new(kind, path).unwrap().request(index, Duration::from_millis(wait))
    };
    assert_eq!(request(Kind::Kv, "/v1/kv/a", 0, 0), "/v1/kv/a/?recurse");
    assert_eq!(
        request(Kind::Kv, "/v1/kv/a/?dc=b&token=c", 7, 300_000),
        "/v1/kv/a/?recurse&dc=b&token=c&index=7&wait=300s"
    );
    assert_eq!(request(Kind::Health, "/v1/health/service/a", 0, 0), "/v1/health/service/a");
    assert_eq!(
        request(Kind::Health, "/v1/health/service/a?passing", 9, 1500),
        "/v1/health/service/a?passing&index=9&wait=1500ms"
    );
}

#[test]
fn arguments_are_never_shown() {
    let query = Query::new(Kind::Kv, "/v1/kv/a/?token=secret").unwrap();
    assert!(!format!("{query:?} {}", query.path()).contains("secret"));
}

#[test]
fn a_token_that_comes_back_is_masked() {
    let masked = |arguments: &str, text: &str| {
        Query::new(Kind::Kv, &format!("/v1/kv/a/?{arguments}")).unwrap().masked(text)
    };
    let all = "dc=x&token=secret%2Dtoken&stale";
    assert_eq!(
        masked(all, "GET /?dc=x&token=secret%2Dtoken&index=1"),
        "GET /?dc=x&token=***&index=1"
    );
    assert_eq!(masked(all, "é secret-token secret-token"), "é *** ***");
    assert_eq!(masked(all, "no /?token=secret-to"), "no /?token=***", "the rest was not read");
    assert_eq!(masked(all, "no secr"), "no secr");
    assert_eq!(masked("dc=x", "dc=x"), "dc=x");
    assert_eq!(masked("token=", "a"), "a");
    assert_eq!(masked("token=a&token=b", "a b c"), "*** *** c");
    let query = Query::new(Kind::Kv, "/v1/kv/a/?token=secret").unwrap();
    let error = query.parse(br#""/v1/kv/a/?token=secret""#).unwrap_err().to_string();
    assert!(error.contains("?token=***") && !error.contains("secret"), "{error}");
}

#[test]
fn the_end_of_a_key_is_the_address() {
    assert_eq!(key("127.0.0.1:9000"), "127.0.0.1:9000");
    assert_eq!(key("dc1/rack2/127.0.0.1:9000"), "127.0.0.1:9000");
    assert_eq!(key("[::1]:80"), "[::1]:80");
    assert_eq!(key("backend.local:8080"), "backend.local:8080");
    assert_eq!(key("unix:/run/a.sock"), "unix:/run/a.sock");
    assert_eq!(key("dc1/unix:/run/a.sock"), "unix:/run/a.sock");
    assert_eq!(key("127.0.0.1"), r#"no port in "127.0.0.1", expected HOST:PORT"#);
    assert_eq!(key("127.0.0.1:0"), r#"invalid port in "127.0.0.1:0", expected 1 to 65535"#);
}

#[test]
fn prefixes_are_compared_decoded() {
    let query = Query::new(Kind::Kv, "/v1/kv/my%20apps/a/").unwrap();
    let entries = query.parse(br#"[{"Key":"my apps/a/1.2.3.4:5","Value":null}]"#).unwrap();
    assert!(entries[0].endpoint.is_ok());
}

#[test]
fn folders_are_left_out() {
    assert_eq!(kv(r#"[{"Key":"upstreams/app/","Value":null},{"Key":"upstreams/app/dc1/"}]"#), []);
    assert_eq!(kv("[]"), []);
    assert_eq!(kv("null"), []);
}

#[test]
fn no_value_means_defaults() {
    for text in ["", " \n", "{}", r#"{"weight":null,"unknown":[{}]}"#] {
        assert_eq!(value(text), Ok(Parameters::CONSUL), "{text}");
    }
    assert_eq!(kv(r#"[{"Key":"a/1.2.3.4:5"}]"#)[0].parameters, Ok(Parameters::CONSUL));
}

#[test]
fn numbers_may_be_texts() {
    let expected = Parameters {
        weight: 10,
        max_fails: 0,
        fail_timeout: 20,
        max_conns: 30,
        down: true,
        critical: false,
        backup: true,
        drain: true,
        slow_start: 30_000,
    };
    for text in [
        r#"{"weight":10,"max_fails":0,"fail_timeout":20,"max_conns":30,"slow_start":30,"down":1,"backup":true,"drain":1}"#,
        r#"{"weight":"10","max_fails":"0","fail_timeout":"20","max_conns":"30","slow_start":"30","down":"1","backup":"true","drain":"1"}"#,
        r#" {"weight":10.0,"max_fails":0e1,"fail_timeout":2e1,"max_conns":30,"slow_start":3e1,"down":true,"backup":1.0,"drain":true} "#,
    ] {
        assert_eq!(value(text), Ok(expected), "{text}");
    }
    for text in [r#"{"down":0,"backup":"0"}"#, r#"{"down":false,"backup":"false"}"#] {
        assert_eq!(value(text), Ok(Parameters::CONSUL), "{text}");
    }
}

#[test]
fn bounds_are_inclusive() {
    assert_eq!(value(r#"{"weight":0}"#).unwrap().weight, 0);
    assert_eq!(value(r#"{"weight":65535}"#).unwrap().weight, 65_535);
    assert_eq!(value(r#"{"slow_start":2147483}"#).unwrap().slow_start, 2_147_483_000);
    assert_eq!(value(r#"{"slow_start":"2147483647ms"}"#).unwrap().slow_start, 2_147_483_647);
    assert_eq!(value(r#"{"slow_start":"1m500ms"}"#).unwrap().slow_start, 60_500);
    assert_eq!(value(r#"{"max_fails":2147483647}"#).unwrap().max_fails, 2_147_483_647);
}

#[test]
fn a_bad_value_says_what_is_right() {
    assert_eq!(
        value(r#"{"weight":65536}"#),
        Err("\"weight\" is 65536, expected 0 to 65535".into())
    );
    assert_eq!(value(r#"{"down":2}"#), Err("\"down\" is 2, expected 0 or 1".into()));
    assert_eq!(
        value(r#"{"slow_start":2147484}"#),
        Err("\"slow_start\" is 2147484, expected a number of seconds or a time of at most \
             2147483647 milliseconds"
            .into())
    );
    assert!(value("x").unwrap_err().starts_with("value is no JSON object"));
    for text in [
        r#"{"weight":-1}"#,
        r#"{"weight":1.5}"#,
        r#"{"weight":""}"#,
        r#"{"weight":"-1"}"#,
        r#"{"weight":"1 "}"#,
        r#"{"weight":true}"#,
        r#"{"weight":[]}"#,
        r#"{"weight":1e999}"#,
        r#"{"max_fails":2147483648}"#,
        r#"{"fail_timeout":"10s"}"#,
        r#"{"max_conns":-1}"#,
        r#"{"down":"yes"}"#,
        r#"{"drain":2}"#,
        r#"{"slow_start":-1}"#,
        r#"{"slow_start":-0.0}"#,
        r#"{"slow_start":0.5}"#,
        r#"{"slow_start":1e300}"#,
        r#"{"slow_start":""}"#,
        r#"{"slow_start":"1M"}"#,
        r#"{"slow_start":true}"#,
        r#"{"backup":[]}"#,
        "{",
        "{}x",
        "[1,2]",
        "7",
        "null",
        "\u{1}",
        r#"{"weight":1,"weight":2}"#,
    ] {
        assert!(value(text).is_err(), "{text}");
    }
    let entries = kv(r#"[{"Key":"a/1.2.3.4:5","Value":"*"}]"#);
    assert!(entries[0].parameters.as_ref().unwrap_err().starts_with("value is no base64"));
}

#[test]
fn a_bad_element_names_its_key_and_hides_no_other() {
    let entries = kv(r#"[{"Key":"a/1.1.1.1:1","Value":[]},7,{"Key":5},{"Key":"b/1.1.1.2:2"}]"#);
    let names: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.endpoint.is_ok())).collect();
    assert_eq!(
        names,
        [
            ("a/1.1.1.1:1", false),
            ("number 2 of the answer", false),
            ("number 3 of the answer", false),
            ("b/1.1.1.2:2", true),
        ]
    );
}

#[test]
fn what_is_no_array_is_an_error() {
    let query = Query::new(Kind::Kv, "/v1/kv/a/").unwrap();
    for body in ["", "{}", "<html>", "[", r#"[{"Key":"a"},"#, "[]x", "\"\u{1}\"", "7"] {
        let error = query.parse(body.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("answer is no JSON array"), "{body}: {error}");
    }
}

#[test]
fn catalog_services_have_addresses_and_tags() {
    let entries = catalog(
        Kind::Catalog,
        r#"[
        {"ServiceID":"a","Address":"10.0.0.1","ServiceAddress":"","ServicePort":80,
         "ServiceTags":["v1","weight=7","max_fails=0","fail_timeout=1m","max_conns=9","slow_start=500ms","drain","backup"],
         "ServiceWeights":{"Passing":3,"Warning":1}},
        {"ServiceID":"b","Address":"10.0.0.1","ServiceAddress":"::1","ServicePort":81,
         "ServiceTags":null,"ServiceWeights":{"Passing":3}},
        {"ServiceID":"c","Address":"c.local","ServicePort":82,"ServiceTags":["down","drained","slow_start"]},
        {"ServiceID":"d","Address":"10.0.0.4","ServicePort":0},
        {"ServiceID":"e","Address":"10.0.0.5","ServicePort":"80"},
        {"ServiceID":"f","Address":"10.0.0.6","ServicePort":80,"ServiceTags":["weight=x"]}]"#,
    );
    let endpoints: Vec<_> =
        entries.iter().map(|e| e.endpoint.as_ref().map(ToString::to_string).ok()).collect();
    let expected = ["10.0.0.1:80", "[::1]:81", "c.local:82", "", "", "10.0.0.6:80"];
    assert_eq!(endpoints, expected.map(|e| Some(e.to_owned()).filter(|e| !e.is_empty())));
    let all = Parameters {
        weight: 7,
        max_fails: 0,
        fail_timeout: 60,
        max_conns: 9,
        backup: true,
        down: false,
        critical: false,
        drain: true,
        slow_start: 500,
    };
    assert_eq!(entries[0].parameters, Ok(all));
    assert_eq!(entries[1].parameters, Ok(Parameters { weight: 3, ..Parameters::CONSUL }));
    assert_eq!(entries[2].parameters, Ok(Parameters { down: true, ..Parameters::CONSUL }));
    assert_eq!(entries[4].name, "e");
    assert_eq!(
        entries[5].parameters,
        Err("tag: invalid value in \"weight=x\", expected 0 to 65535".into())
    );
}

#[test]
fn the_worst_check_decides() {
    let parameters = |checks: &str, more: &str| {
        let body = format!(
            r#"[{{"Node":{{"Address":"10.0.0.1"}},"Checks":{checks},
                 "Service":{{"ID":"a","Address":"","Port":80,
                             "Weights":{{"Passing":10,"Warning":2}}{more}}}}}]"#
        );
        let entries = catalog(Kind::Health, &body);
        assert_eq!(
            entries[0].endpoint,
            Endpoint::parse("10.0.0.1:80", None).map_err(|_| "".into())
        );
        let parameters = entries[0].parameters.clone().unwrap();
        (parameters.weight, parameters.down, parameters.critical)
    };
    let check = |status: &str| format!(r#"{{"CheckID":"_node_maintenance","Status":"{status}"}}"#);
    let (passing, warning, critical) = (check("passing"), check("warning"), check("critical"));
    assert_eq!(parameters("null", ""), (10, false, false));
    assert_eq!(parameters(&format!("[{passing}]"), ""), (10, false, false));
    assert_eq!(parameters(&format!("[{passing},{warning},{passing}]"), ""), (2, false, false));
    assert_eq!(parameters(&format!("[{critical},{warning}]"), ""), (10, false, true));
    assert_eq!(parameters(r#"[{"Status":"new"}]"#, ""), (10, false, true));
    assert_eq!(parameters("[{}]", ""), (10, false, true));
    assert_eq!(parameters(&format!("[{warning}]"), r#","Tags":["weight=5"]"#), (5, false, false));
    let down = r#","Tags":["down"]"#;
    assert_eq!(parameters(&format!("[{passing}]"), down), (10, true, false), "the operator's");
    assert_eq!(parameters(&format!("[{critical}]"), down), (10, true, true), "both");
    let unknown = r#","Tags":["critical","critical=off"]"#;
    assert_eq!(parameters(&format!("[{critical}]"), unknown), (10, false, true), "no tag says so");
}

#[test]
fn weights_out_of_consuls_range_count_1() {
    let weight = |weights: &str| {
        let body = format!(
            r#"[{{"Service":{{"ID":"a","Address":"10.0.0.1","Port":80,"Weights":{weights}}}}}]"#
        );
        catalog(Kind::Health, &body)[0].parameters.clone().unwrap().weight
    };
    for weights in ["null", "{}", r#"{"Passing":0}"#, r#"{"Passing":-1}"#, r#"{"Passing":65536}"#] {
        assert_eq!(weight(weights), 1, "{weights}");
    }
    assert_eq!(weight(r#"{"Passing":65535}"#), 65_535);
}

/// Run by hand, with `--release -- --ignored --nocapture`: a bound on time would only test the
/// machine.
#[test]
#[ignore = "a measurement"]
fn thirty_thousand_keys_are_read_fast() {
    let pair = |n: u32| {
        let value = STANDARD.encode(r#"{"weight":10,"max_fails":3,"fail_timeout":10}"#);
        format!(
            r#"{{"LockIndex":0,"Key":"upstreams/app/10.{}.{}.{}:8080","Flags":0,"Value":"{value}","CreateIndex":100,"ModifyIndex":{n}}}"#,
            n >> 16,
            n >> 8 & 255,
            n & 255
        )
    };
    let body = format!("[{}]", (0..30_000).map(pair).collect::<Vec<_>>().join(","));
    let start = std::time::Instant::now();
    let entries = kv(&body);
    let parsed = start.elapsed();
    let answer = crate::source::answer::read(Kind::Kv, entries, &Default::default());
    let list = crate::source::answer::list(&answer.servers, |_| vec![]);
    let after = crate::model::List::default().after(list);
    println!("{} bytes: parsed {parsed:?}, list {:?}", body.len(), start.elapsed());
    assert_eq!(after.len(), 30_000);
}

#[test]
fn a_flood_of_bad_entries_takes_no_memory() {
    let body = format!("[{}0]", "0,".repeat(100_000));
    for kind in [Kind::Kv, Kind::Catalog, Kind::Health] {
        let query = Query::new(kind, &format!("{}a", kind.path_start())).unwrap();
        assert_eq!(query.parse(body.as_bytes()).unwrap().len(), BAD_MAX);
    }
}
