//! Directives that say how servers are checked.
#![forbid(unsafe_code)]

use super::*;
use crate::model::Check;
use crate::model::check::{ExpectBody, Kind};

fn check(text: &str) -> Option<(Place, Check)> {
    parse(text.as_bytes()).unwrap().check
}

#[test]
fn they_stand_at_any_place_and_in_any_order() {
    let plain = Check::default();
    assert_eq!(check("server a;"), None);
    assert_eq!(check("check;server a;"), Some((text_place(1, 1), plain.clone())));
    let expected = Check {
        kind: Kind::Http,
        interval: 3000,
        send: Some("GET /\r\n\r\n".to_owned()),
        body: Some(ExpectBody { negated: false, regex: r"^o\s;k$".to_owned() }),
        fastcgi_params: vec![("server".to_owned(), ";".to_owned())],
        ssl_name: Some("check".to_owned()),
        ..plain
    };
    let text = "check_http_send 'GET /\\r\\n\\r\\n';\nserver a;check_fastcgi_param server\n\";\";\n \
                check \"interval=3000\" # all\n type=http ; check_http_expect_body ~ \"^o\\s;k$\";\
                keepalive 1;check_ssl_name check;";
    assert_eq!(check(text), Some((text_place(4, 2), expected)));
    let lines = check("server a;check;check_http_send 'a\n\tb\r\n';").unwrap().1;
    assert_eq!(lines.send.as_deref(), Some("a\n\tb\r\n"));
}

#[test]
fn words_without_quotes_are_those_of_nginx() {
    let regex = |text: &str| {
        let text = format!("server a; check; check_http_expect_body !~ {text};");
        check(&text).unwrap().1.body.unwrap().regex
    };
    assert_eq!(regex(r"^a\.b$"), r"^a\.b$");
    assert_eq!(regex(r#"a"b'\"\\"#), r#"a"b'"\"#);
    assert_eq!(regex("${a}"), "${a}");
    assert_eq!(regex("server"), "server");
}

#[test]
fn a_fault_is_told_with_its_place() {
    for (text, message) in [
        (
            "server a;\n check_fail_open 5;",
            r#"line 2, column 2: "check_fail_open" has no effect without "check", expected "check" beside it"#,
        ),
        (
            "check; server a; check;",
            r#"line 1, column 18: duplicate "check", expected it once at most"#,
        ),
        (
            "check type=http\n interval=0; server a;",
            r#"line 2, column 2: invalid value in "interval=0" of "check", expected 1 to 2147483647 milliseconds or a time such as 5s"#,
        ),
        (
            "check; check_http_send;",
            r#"line 1, column 8: no parameter after "check_http_send", expected one text, which is not empty"#,
        ),
        (
            "check; check_http_send \"\";",
            r#"line 1, column 24: unexpected "" in "check_http_send", expected one text, which is not empty"#,
        ),
        (
            "check; check_http_send 'a\nb' 'c\nd';",
            r#"line 2, column 4: unexpected "c\nd" in "check_http_send", expected one text, which is not empty"#,
        ),
        ("check", r#"line 1, column 1: unexpected end after "check", expected ";""#),
        ("check\n server a;", r#"line 2, column 2: unexpected "server", expected ";" before it"#),
        (
            "check_http_send 'x'\ncheck type=http;",
            r#"line 2, column 1: unexpected "check", expected ";" before it"#,
        ),
        (
            "server a check type=http;",
            r#"line 1, column 10: unexpected "check", expected ";" before it"#,
        ),
        (
            "check; check_http_send \"x;",
            r#"line 1, column 24: no " at the end of "\"x;", expected a quote at either end"#,
        ),
        (
            "check; check_http_send 'x'y;",
            r#"line 1, column 24: unexpected "y" behind "'x'", expected a space or ";" there"#,
        ),
        (
            "check; check_http_expect_body ~ a{2};",
            r#"line 1, column 33: unexpected "{" in "a{", expected the word in quotes"#,
        ),
        ("check }", r#"line 1, column 7: unexpected "}" in "}", expected the word in quotes"#),
        ("check;", "line 1, column 1: no server in the body, expected at least one"),
    ] {
        assert_eq!(refused_body(text), message, "{text:?}");
    }
}

#[test]
fn a_byte_that_is_no_text_is_told() {
    let message = "line 1, column 24: unexpected byte 0xff, expected UTF-8";
    assert_eq!(why(parse(b"check; check_http_send 'a\xff';")), message);
    let message =
        "line 1, column 24: unexpected byte 0x00, expected text without control characters";
    assert_eq!(why(parse(b"check; check_http_send a\0;")), message);
}

#[test]
fn quotes_stay_refused_elsewhere() {
    for text in ["check; server 'a';", "check; keepalive \"1\"; server a;", "\"check\"; server a;"]
    {
        assert!(refused_body(text).contains("expected a word without quotes"), "{text}");
    }
}
