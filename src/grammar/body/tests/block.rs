//! The file that keeps a list: written, read, damaged.
#![forbid(unsafe_code)]

use super::*;
use crate::model::check::Kind;
use crate::model::{Check, List, Method, Parameters, Peer};
use std::sync::Arc;

fn peer(address: &str, parameters: Parameters) -> Peer {
    match Endpoint::parse(address, None) {
        Ok(Endpoint::Address(address)) => Peer { address, parameters },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_block_is_written_as_nginx_has_it() {
    let plain = peer("127.0.0.1:8089", Parameters::NGINX);
    let off = Parameters {
        weight: 0,
        max_conns: 2,
        down: true,
        backup: true,
        drain: true,
        slow_start: 30_000,
        ..Parameters::CONSUL
    };
    let list = List::new([plain, peer("unix:/run/a", off)]);
    let text = render_upstream("app", &list);
    assert_eq!(
        text,
        "upstream app {\n    server 127.0.0.1:8089 weight=1 max_fails=1 fail_timeout=10s;\n    \
         server unix:/run/a weight=0 max_fails=2 fail_timeout=10s max_conns=2 slow_start=30s backup drain down;\n}\n"
    );
    assert_eq!(parse_upstream(text.as_bytes()), Ok((Name::parse(b"app").unwrap(), list)));
    assert_eq!(render_upstream("app", &List::default()), "upstream app {\n}\n");
}

#[test]
fn a_method_stands_before_the_servers() {
    let key = "${host}$uri".to_owned();
    let method = Method::Hash { key, consistent: true };
    let list = List::new([peer("127.0.0.1:1", Parameters::NGINX)]).with_method(Some(method));
    let text = render_upstream("a", &list);
    assert_eq!(
        text,
        "upstream a {\n    hash ${host}$uri consistent;\n    server 127.0.0.1:1 weight=1 \
         max_fails=1 fail_timeout=10s;\n}\n"
    );
    assert_eq!(parse_upstream(text.as_bytes()), Ok((Name::parse(b"a").unwrap(), list)));
    let text = b"upstream a { server 1.1.1.1; upsync_lb\nlocal 10.0.0.0/8 ::1; }";
    let (_, list) = parse_upstream(text).unwrap();
    assert_eq!(list.method().unwrap().to_string(), "upsync_lb local 10.0.0.0/8 ::1/128");
}

#[test]
fn checks_stand_before_the_servers() {
    let check = Check {
        kind: Kind::Http,
        send: Some("HEAD /\"é\\ HTTP/1.0\r\n\r\n".to_owned()),
        fail_open: 30,
        ..Check::default()
    };
    let list = List::new([peer("127.0.0.1:1", Parameters::NGINX)])
        .with_method(Some(Method::IpHash))
        .with_check(Some(Arc::new(check)));
    let text = render_upstream("a", &list);
    assert_eq!(
        text,
        "upstream a {\n    ip_hash;\n    check interval=30000 rise=2 fall=5 timeout=1000 \
         default_down=true type=http;\n    check_http_send \"HEAD /\\\"é\\\\ HTTP/1.0\\r\\n\\r\\n\";\n    \
         check_fail_open 30;\n    server 127.0.0.1:1 weight=1 max_fails=1 fail_timeout=10s;\n}\n"
    );
    assert_eq!(parse_upstream(text.as_bytes()), Ok((Name::parse(b"a").unwrap(), list)));
    let text = b"upstream a { check_ssl_name\n'b' ; server 1.1.1.1; check # }\n; }";
    let (_, list) = parse_upstream(text).unwrap();
    assert_eq!(list.check().unwrap().ssl_name.as_deref(), Some("b"));
}

#[test]
fn a_block_edited_by_hand_is_read() {
    let text =
        b"# mine\nupstream App { server 1.1.1.1 weight=5;\n server 1.1.1.1:80; server [::1]:1; }";
    let weighted = Parameters { weight: 5, ..Parameters::NGINX };
    let list = List::new([peer("1.1.1.1:80", weighted), peer("[::1]:1", Parameters::NGINX)]);
    assert_eq!(parse_upstream(text), Ok((Name::parse(b"app").unwrap(), list)));
    let empty = (Name::parse(b"a").unwrap(), List::default());
    assert_eq!(parse_upstream(b"upstream a { }"), Ok(empty));
}

#[test]
fn a_damaged_block_is_refused_with_its_place() {
    for (text, message) in [
        ("", r#"line 1, column 1: unexpected end, expected "upstream""#),
        ("upstream", r#"line 1, column 1: unexpected end after "upstream", expected a name"#),
        ("upstream a", r#"line 1, column 10: unexpected end after "a", expected "{""#),
        (
            "upstream {",
            r#"line 1, column 10: unexpected "{" in "{", expected a word without quotes, braces, dollar signs and backslashes"#,
        ),
        ("upstream a;", r#"line 1, column 11: unexpected ";", expected "{""#),
        ("server a;", r#"line 1, column 1: unexpected "server", expected "upstream""#),
        (
            "upstream a {\n",
            r#"line 1, column 12: unexpected end after "{", expected "server", a method, "check" or "}""#,
        ),
        (
            "upstream a { server 1.1.1.1 }",
            r#"line 1, column 29: unexpected "}" in "}", expected a word without quotes, braces, dollar signs and backslashes"#,
        ),
        (
            "upstream a {\n server 1.1.1.1; ",
            r#"line 2, column 16: unexpected end after ";", expected "server", a method, "check" or "}""#,
        ),
        (
            "upstream a {\n keepalive 1; }",
            r#"line 2, column 2: unexpected "keepalive", expected "server", a method, "check" or "}""#,
        ),
        (
            "upstream a { ip_hash; random; }",
            r#"line 1, column 23: duplicate method "random" beside "ip_hash", expected one at most"#,
        ),
        (
            "upstream a { upsync_lb ip_hash; }",
            r#"line 1, column 24: unexpected "ip_hash" in "upsync_lb", expected roundrobin or local [NETWORK...]"#,
        ),
        (
            "upstream a {\n check_fail_open 5; }",
            r#"line 2, column 2: "check_fail_open" has no effect without "check", expected "check" beside it"#,
        ),
        (
            "upstream a { check; check_http_send \"x; }",
            r#"line 1, column 37: no " at the end of "\"x; }", expected a quote at either end"#,
        ),
        (
            "upstream a {\n server b:80;\n}",
            r#"line 2, column 9: expected an address, not the name "b:80""#,
        ),
        (
            "upstream a {\n server upstream:b;\n}",
            r#"line 2, column 9: expected an address, not the name "upstream:b""#,
        ),
        (
            "upstream a {\n}\nupstream b {\n}",
            r#"line 3, column 1: unexpected "upstream", expected nothing after "}""#,
        ),
        ("upstream a {\n}\n}", r#"line 3, column 1: unexpected "}", expected nothing after "}""#),
        (
            "upstream a {\n}\n\0",
            "line 3, column 1: unexpected byte 0x00, expected text without control characters",
        ),
    ] {
        assert_eq!(why(parse_upstream(text.as_bytes())), message, "{text:?}");
    }
    assert!(why(parse_upstream(b"upstream a/b {\n}")).starts_with(
        "line 1, column 10: \"a/b\": invalid upstream name, expected 1 to 255 letters"
    ));
}
