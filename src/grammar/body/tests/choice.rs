//! The directive that chooses a method.
#![forbid(unsafe_code)]

use super::*;
use crate::model::Method;
use crate::model::method::{Better, Moment};

fn method(text: &str) -> Option<(Place, Method)> {
    parse(text.as_bytes()).unwrap().method
}

#[test]
fn a_method_stands_at_any_place() {
    assert_eq!(method("server a;"), None);
    assert_eq!(method("least_conn;server a;"), Some((text_place(1, 1), Method::LeastConn)));
    assert_eq!(method("server a;\n ip_hash ;"), Some((text_place(2, 2), Method::IpHash)));
    let hash = Method::Hash { key: "$uri${arg_A}é".to_owned(), consistent: true };
    let text = "server a;hash # no key\n $uri${arg_A}é\tconsistent;server b;";
    assert_eq!(method(text), Some((text_place(1, 10), hash)));
    let two = Method::RandomTwo(Better::LeastTime(Moment::LastByte));
    let text = "random two least_time=last_byte;keepalive 1;server a;";
    assert_eq!(method(text), Some((text_place(1, 1), two)));
    let key = |key: &str| Method::Hash { key: key.to_owned(), consistent: false };
    assert_eq!(method("hash server;server a;"), Some((text_place(1, 1), key("server"))));
}

#[test]
fn a_fault_in_a_method_is_told_with_its_place() {
    for (text, message) in [
        (
            "least_conn;\nip_hash;server a;",
            r#"line 2, column 1: duplicate method "ip_hash" beside "least_conn", expected one at most"#,
        ),
        (
            "hash $a consistent; hash $a;",
            r#"line 1, column 21: duplicate method "hash" beside "hash $a consistent", expected one at most"#,
        ),
        (
            "least_conn x;",
            r#"line 1, column 12: unexpected "x" in "least_conn", expected no parameter"#,
        ),
        ("hash;", r#"line 1, column 5: unexpected ";", expected a key after "hash""#),
        ("hash", r#"line 1, column 1: unexpected end after "hash", expected a key after "hash""#),
        ("hash $a", r#"line 1, column 6: unexpected end after "$a", expected ";""#),
        ("hash $a\n server a;", r#"line 2, column 2: unexpected "server", expected ";" before it"#),
        (
            "hash $a ketama;",
            r#"line 1, column 9: unexpected "ketama" in "hash", expected "hash KEY [consistent]""#,
        ),
        (
            "hash $1;",
            r#"line 1, column 6: capture in the key "$1" of "hash", expected variables with names"#,
        ),
        (
            "hash $a $b;",
            r#"line 1, column 9: unexpected "$" in "$b", expected a word without quotes, braces, dollar signs and backslashes"#,
        ),
        (
            "hash \"$a\";",
            r##"line 1, column 6: unexpected "\"" in the key "\"$a\"" of "hash", expected a word without quotes, backslashes, braces but those of "${NAME}", and "#" at its start"##,
        ),
        (
            "least_time;",
            r#"line 1, column 1: no parameter after "least_time", expected "least_time header" or "least_time last_byte""#,
        ),
        (
            "least_time header inflight;",
            r#"line 1, column 19: unexpected "inflight" in "least_time", expected "least_time header" or "least_time last_byte""#,
        ),
        (
            "server a least_conn;",
            r#"line 1, column 10: unexpected "least_conn", expected ";" before it"#,
        ),
        (
            "server a; upsync_lb ip_hash;",
            r#"line 1, column 21: unexpected "ip_hash" in "upsync_lb", expected roundrobin or local [NETWORK...]"#,
        ),
        (
            "server a; upsync_lb local;",
            r#"line 1, column 11: no network in "upsync_lb local", expected one such as 10.0.0.0/8"#,
        ),
        ("least_conn;", "line 1, column 1: no server in the body, expected at least one"),
    ] {
        assert_eq!(refused_body(text), message, "{text:?}");
    }
    assert!(
        refused_body(&("random".to_owned() + &" x".repeat(100_000)))
            .contains("\"x\" in \"random\"")
    );
}

#[test]
fn a_byte_in_a_key_that_is_no_text_is_told() {
    let message = "line 1, column 6: unexpected byte 0xff, expected UTF-8";
    assert_eq!(why(parse(b"hash $a\xff;")), message);
    let message =
        "line 1, column 6: unexpected byte 0x00, expected text without control characters";
    assert_eq!(why(parse(b"hash ${\0a};")), message);
}
