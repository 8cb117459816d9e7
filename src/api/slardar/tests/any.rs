//! Any bodies, whole, damaged and hostile.
#![forbid(unsafe_code)]

use super::*;
use crate::grammar::time::Milliseconds;
use proptest::prelude::*;
use serde_json::json;

/// An error is one line of bounded length in Slardar's words.
fn check_error(error: &BodyError) -> Result<(), TestCaseError> {
    let text = error.to_string();
    let words = [
        "decode body error: ",
        "body invalid: ",
        "can not update empty level: ",
        "servers invalid: ",
        "no server.host nor server.port found: ",
    ];
    prop_assert!(words.iter().any(|words| text.starts_with(words)), "{}", text);
    prop_assert!(!text.contains(char::is_control) && text.len() < 3000, "{}", text);
    Ok(())
}

fn check(body: &[u8]) -> Result<(), TestCaseError> {
    match parse(body) {
        Err(error) => check_error(&error)?,
        Ok(body) => {
            prop_assert!(!body.servers.is_empty());
            for (place, server) in body.servers.iter().enumerate() {
                prop_assert_eq!(server.place, Place::Server(place));
                prop_assert!(server.changes.weight.is_none_or(|weight| weight <= 65_535));
            }
        }
    }
    if let Err(error) = parse_server(body) {
        check_error(&error)?;
    }
    match parse_changes(body) {
        Err(error) => check_error(&error)?,
        Ok(changes) => prop_assert!(!changes.is_empty()),
    }
    Ok(())
}

prop_compose! {
    fn any_changes()(
        weight in proptest::option::of(0..=65_535u32),
        max_fails in proptest::option::of(0..=COUNT_MAX),
        fail_timeout in proptest::option::of(0..=COUNT_MAX),
        max_conns in proptest::option::of(0..=COUNT_MAX),
        down: Option<bool>, backup: Option<bool>, drain: Option<bool>,
        slow_start in proptest::option::of(0..=COUNT_MAX),
    ) -> Changes {
        Changes { weight, max_fails, fail_timeout, max_conns, down, backup, drain, slow_start }
    }
}

fn any_host() -> impl Strategy<Value = (String, Option<u16>)> {
    prop_oneof![
        (any::<std::net::IpAddr>(), 1u16..).prop_map(|(ip, port)| (ip.to_string(), Some(port))),
        ("[a-z]{1,9}(\\.[a-z]{1,9}){0,3}", 1u16..).prop_map(|(name, port)| (name, Some(port))),
        "unix:/[a-z/._-]{1,50}".prop_map(|path| (path, None)),
        "upstream:[a-z0-9._:-]{1,50}".prop_map(|name| (name, None)),
    ]
}

fn object(host: &str, port: Option<u16>, changes: &Changes) -> Value {
    let mut object = json!({"host": host});
    let number = |number: Option<u32>| number.map(Value::from);
    let fields = [
        ("port", port.map(Value::from)),
        ("weight", number(changes.weight)),
        ("max_fails", number(changes.max_fails)),
        ("fail_timeout", number(changes.fail_timeout).map(|number| number.to_string().into())),
        ("max_conns", number(changes.max_conns)),
        ("slow_start", changes.slow_start.map(|time| Milliseconds(time).to_string().into())),
        ("drain", changes.drain.map(Value::from)),
        ("down", changes.down.map(Value::from)),
        ("backup", changes.backup.map(Value::from)),
    ];
    for (key, value) in fields {
        if let Some(value) = value {
            object[key] = value;
        }
    }
    object
}

/// Pieces that bodies are made of, right and wrong.
const PIECES: [&str; 26] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\u",
    "\\",
    "null",
    "true",
    "-1",
    "1e9",
    "99999999999",
    "\"servers\":",
    "\"cluster\":",
    "\"host\":",
    "\"port\":",
    "\"weight\":",
    "\"slow_start\":",
    "\"drain\":",
    "\"upstream:a\"",
    "\"\\ud800\"",
    "\"unix:/a\"",
    "\"8080\"",
    "\u{202e}",
];

proptest! {
    #[test]
    fn what_is_written_reads_back(
        given in proptest::collection::vec((any_host(), any_changes()), 1..20),
    ) {
        let list: Vec<_> =
            given.iter().map(|((host, port), changes)| object(host, *port, changes)).collect();
        let body = json!({"servers": list, "keepalive": 5}).to_string();
        let parsed = parse(body.as_bytes()).unwrap();
        prop_assert_eq!(parsed.keepalive.map(|(_, number)| number), Some(5));
        prop_assert_eq!(parsed.servers.len(), given.len());
        for (server, ((host, port), changes)) in parsed.servers.iter().zip(&given) {
            prop_assert_eq!(&server.changes, changes);
            match (&server.target, port) {
                (Target::Endpoint(endpoint), Some(port)) => {
                    prop_assert_eq!(endpoint, &Endpoint::from_host_port(host, *port).unwrap());
                }
                (Target::Endpoint(endpoint), None) => {
                    prop_assert_eq!(&endpoint.to_string(), host);
                }
                (Target::Upstream(name), _) => {
                    prop_assert_eq!(&format!("upstream:{name}"), host);
                }
            }
        }
        for (json, (_, changes)) in list.iter().zip(&given) {
            let one = parse_server(json.to_string().as_bytes()).unwrap();
            prop_assert_eq!(&one.changes, changes);
        }
    }

    #[test]
    fn any_bytes_end(body: Vec<u8>) {
        check(&body)?;
    }

    #[test]
    fn pieces_of_bodies_end(pieces in proptest::collection::vec(0..PIECES.len(), 0..40)) {
        let body: String = pieces.iter().map(|&piece| PIECES[piece]).collect();
        check(body.as_bytes())?;
    }

    #[test]
    fn damaged_bodies_end(
        host in any_host(), changes in any_changes(), keyed: bool,
        faults in proptest::collection::vec((any::<usize>(), 0..6usize, 0..PIECES.len()), 0..4),
    ) {
        let level = json!({"servers": [object(&host.0, host.1, &changes)], "try": 2});
        let cluster = if keyed { json!({"a": level, "b": level}) } else { json!([level, level]) };
        let mut body = json!({"cluster": cluster, "keepalive": 8}).to_string().into_bytes();
        for (at, length, piece) in faults {
            let start = at % (body.len() + 1);
            let end = (start + length).min(body.len());
            body.splice(start..end, PIECES[piece].bytes());
        }
        check(&body)?;
    }

    #[test]
    fn any_object_of_any_values_ends(key: String, text: String, number: f64) {
        for value in [json!(text), json!(number), json!([text]), json!({ "x": text })] {
            check(json!({ key.as_str(): value, "host": value }).to_string().as_bytes())?;
            let fields = json!({ "host": text, "port": number, key.as_str(): value });
            check(json!({ "servers": [fields] }).to_string().as_bytes())?;
        }
    }

    #[test]
    fn any_name_and_address_gives_a_status(name: String, address: String, start_time: u64) {
        let views = [view(&name, vec![shown(&address, Parameters::NGINX, 0, true)])];
        let facts = StatusFacts { start_time, ..FACTS };
        let value: Value = serde_json::from_str(&status(&views, &facts)).unwrap();
        let server = &value[format!("cls:{name}")][0][0]["server"];
        let expected = format!("{name}:{address}");
        prop_assert_eq!(server.as_str(), Some(expected.as_str()));
    }
}
