//! What is read, and what is said where it is refused.
#![forbid(unsafe_code)]

mod any;
mod block;
mod checks;
mod choice;

use super::*;

fn text_place(line: usize, column: usize) -> Place {
    Place::Text { line, column }
}

fn endpoint(text: &str) -> Target {
    Target::Endpoint(Endpoint::parse(text, None).unwrap())
}

fn why<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().to_string()
}

fn refused_body(text: &str) -> String {
    why(parse(text.as_bytes()))
}

#[test]
fn a_body_is_read_in_its_order() {
    let text =
        b"server 127.0.0.1 weight=0 max_fails=2 fail_timeout=1m30s max_conns=5 slow_start=1m1ms backup drain down;\n\
        # server 1.1.1.1;\n keepalive\t8;server [::1]:81;\r\n\
        server unix:/run/a;server Backend:82;server upstream:Other.1;# the end";
    let body = parse(text).unwrap();
    let all = Changes {
        weight: Some(0),
        max_fails: Some(2),
        fail_timeout: Some(90),
        max_conns: Some(5),
        down: Some(true),
        backup: Some(true),
        drain: Some(true),
        slow_start: Some(60_001),
    };
    let none = Changes::default();
    let other = Target::Upstream(Name::parse(b"other.1").unwrap());
    let expected = [
        (text_place(1, 1), endpoint("127.0.0.1:80"), all),
        (text_place(3, 14), endpoint("[::1]:81"), none),
        (text_place(4, 1), endpoint("unix:/run/a"), none),
        (text_place(4, 20), endpoint("backend:82"), none),
        (text_place(4, 38), other, none),
    ]
    .map(|(place, target, changes)| Server { place, target, changes });
    assert_eq!(body.servers, expected);
    assert_eq!(body.keepalive, Some((text_place(3, 2), 8)));
}

#[test]
fn a_fault_is_told_with_its_place() {
    for (text, message) in [
        ("", "line 1, column 1: no server in the body, expected at least one"),
        ("# server a;\n", "line 1, column 1: no server in the body, expected at least one"),
        ("keepalive 1;", "line 1, column 1: no server in the body, expected at least one"),
        (";", &format!(r#"line 1, column 1: unexpected ";", expected {DIRECTIVES}"#)),
        ("server a;\n;", &format!(r#"line 2, column 1: unexpected ";", expected {DIRECTIVES}"#)),
        (
            "server",
            r#"line 1, column 1: unexpected end after "server", expected an address after "server""#,
        ),
        ("server ;", r#"line 1, column 8: unexpected ";", expected an address after "server""#),
        ("server a:1", r#"line 1, column 8: unexpected end after "a:1", expected ";""#),
        (
            " server a\n  down # ;\n\n",
            r#"line 2, column 3: unexpected end after "down", expected ";""#,
        ),
        ("server a\nserver b;", r#"line 2, column 1: unexpected "server", expected ";" before it"#),
        (
            "server a keepalive 1;",
            r#"line 1, column 10: unexpected "keepalive", expected ";" before it"#,
        ),
        ("server a:0;", r#"line 1, column 8: invalid port in "a:0", expected 1 to 65535"#),
        ("server é;", r#"line 1, column 8: invalid host in "é""#),
        ("server é weight=x;", r#"line 1, column 8: invalid host in "é""#),
        (
            "Server a;",
            &format!(r#"line 1, column 1: unknown directive "Server", expected {DIRECTIVES}"#),
        ),
    ] {
        assert_eq!(refused_body(text), message, "{text:?}");
    }
}

#[test]
fn a_parameter_is_told_with_its_place() {
    for (text, message) in [
        (
            "server a weight=x;",
            r#"line 1, column 10: invalid value in "weight=x", expected 0 to 65535"#,
        ),
        (
            "server a weight=65536;",
            r#"line 1, column 10: invalid value in "weight=65536", expected 0 to 65535"#,
        ),
        (
            "server a down\n backup down;",
            r#"line 2, column 9: duplicate "down", expected it once at most"#,
        ),
        (
            "server a weight=1 weight=1;",
            r#"line 1, column 19: duplicate "weight", expected it once at most"#,
        ),
        (
            "server a down=on;",
            "line 1, column 10: unknown parameter \"down=on\", expected weight=N, max_fails=N, \
             fail_timeout=TIME, max_conns=N, slow_start=TIME, backup, drain or down",
        ),
    ] {
        assert_eq!(refused_body(text), message, "{text:?}");
    }
}

#[test]
fn an_upstream_is_named_as_it_may_be() {
    let message =
        "invalid upstream name, expected 1 to 255 letters, digits, \".\", \"-\", \"_\" or \":\"";
    assert_eq!(
        refused_body("server upstream:;"),
        format!("line 1, column 8: \"upstream:\": {message}")
    );
    assert_eq!(
        refused_body("server upstream:a/b;"),
        format!("line 1, column 8: \"upstream:a/b\": {message}")
    );
    assert_eq!(
        refused_body("server Upstream:a;"),
        r#"line 1, column 8: invalid port in "Upstream:a", expected 1 to 65535"#
    );
}

#[test]
fn other_directives_are_refused_by_name() {
    for name in UNAVAILABLE {
        assert_eq!(
            refused_body(&format!("server a;\n {name} x;")),
            format!(
                "line 2, column 2: \"{name}\" is not available in a posted list yet, expected {DIRECTIVES}"
            )
        );
    }
    assert_eq!(
        refused_body("servers a;"),
        format!(r#"line 1, column 1: unknown directive "servers", expected {DIRECTIVES}"#)
    );
}

#[test]
fn files_are_not_for_those_who_post() {
    for name in FILES {
        let message = format!(
            "line 2, column 1: \"{name}\" cannot be posted, expected it in the block of the upstream in nginx.conf"
        );
        assert_eq!(refused_body(&format!("server a;\n{name} /a;")), message);
        assert_eq!(why(parse_server(format!("\n{name} /a;").as_bytes())), message);
    }
}

#[test]
fn keepalive_is_one_number() {
    let read = |text: &str| parse(text.as_bytes()).unwrap().keepalive.map(|(_, number)| number);
    assert_eq!(read("keepalive 1;server a;"), Some(1));
    assert_eq!(read("server a;keepalive 65535;"), Some(65_535));
    assert_eq!(read("server a;"), None);
    for (text, message) in [
        ("keepalive;", r#"line 1, column 10: unexpected ";", expected a number after "keepalive""#),
        (
            "keepalive",
            r#"line 1, column 1: unexpected end after "keepalive", expected a number after "keepalive""#,
        ),
        (
            "keepalive 0;",
            r#"line 1, column 11: invalid value in "keepalive 0", expected 1 to 65535"#,
        ),
        (
            "keepalive 65536;",
            r#"line 1, column 11: invalid value in "keepalive 65536", expected 1 to 65535"#,
        ),
        (
            "keepalive +1;",
            r#"line 1, column 11: invalid value in "keepalive +1", expected 1 to 65535"#,
        ),
        ("keepalive 1 2;", r#"line 1, column 13: unexpected "2", expected ";" before it"#),
        ("keepalive 1", r#"line 1, column 11: unexpected end after "1", expected ";""#),
        (
            "keepalive 1;\nkeepalive 1;",
            r#"line 2, column 1: duplicate "keepalive", expected it once at most"#,
        ),
    ] {
        assert_eq!(refused_body(text), message, "{text:?}");
    }
}

#[test]
fn what_has_a_meaning_in_nginx_alone_is_refused() {
    let expected = "expected a word without quotes, braces, dollar signs and backslashes";
    for (text, column, found) in [
        ("server \"a\";", 8, r#""\"" in "\"a\"""#),
        ("server 'a';", 8, r#""'" in "'a'""#),
        ("server a{};", 8, r#""{" in "a{}""#),
        ("{ server a; }", 1, r#""{" in "{""#),
        ("server a; }", 11, r#""}" in "}""#),
        ("server $a;", 8, r#""$" in "$a""#),
        ("server a\\;", 8, r#""\\" in "a\\""#),
        ("server a down;keepalive $n;", 25, r#""$" in "$n""#),
    ] {
        let message = format!("line 1, column {column}: unexpected {found}, {expected}");
        assert_eq!(refused_body(text), message, "{text:?}");
    }
}

#[test]
fn a_byte_that_is_no_text_is_refused_everywhere() {
    for (text, place, byte) in [
        (&b"server a\0;"[..], "column 8", "0x00"),
        (b"server \0;", "column 8", "0x00"),
        (b"server a;\0", "column 10", "0x00"),
        (b"server a; # \x1b\n", "column 13", "0x1b"),
        (b"server a;\x7f", "column 10", "0x7f"),
        (b"server a \x0b;", "column 10", "0x0b"),
    ] {
        let message = format!(
            "line 1, {place}: unexpected byte {byte}, expected text without control characters"
        );
        assert_eq!(why(parse(text)), message);
    }
    for (text, place, byte) in [
        (&b"server a\xff;"[..], "column 8", "0xff"),
        (b"server a;# \xc3", "column 12", "0xc3"),
        (b"\xff\xfes\0", "column 1", "0xff"),
    ] {
        let message = format!("line 1, {place}: unexpected byte {byte}, expected UTF-8");
        assert_eq!(why(parse(text)), message);
    }
    assert_eq!(parse("server a;# é".as_bytes()).unwrap().servers.len(), 1);
}

#[test]
fn the_first_fault_is_told() {
    assert_eq!(
        why(parse(b"server a;\nserver $\xff;\nserver b:0;")),
        "line 2, column 8: unexpected \"$\" in \"$\", expected a word without quotes, braces, \
         dollar signs and backslashes"
    );
    let message = r#"line 1, column 8: invalid port in "a:0", expected 1 to 65535"#;
    assert_eq!(why(parse(b"server a:0;\xff")), message);
}

#[test]
fn a_body_has_a_bound() {
    let text = "server 127.0.0.1;\n".repeat(SERVERS_MAX);
    assert_eq!(parse(text.as_bytes()).unwrap().servers.len(), SERVERS_MAX);
    assert_eq!(
        refused_body(&(text + "keepalive 1;server a;")),
        "line 100001, column 13: too many servers, expected at most 100000"
    );
}

#[test]
fn one_server_is_read() {
    let server = parse_server(b" # one\nserver 127.0.0.1:1 down; # and no more\n").unwrap();
    let changes = Changes { down: Some(true), ..Changes::default() };
    let expected = Server { place: text_place(2, 1), target: endpoint("127.0.0.1:1"), changes };
    assert_eq!(server, expected);
    for (text, message) in [
        ("", "line 1, column 1: no server in the body, expected at least one"),
        ("keepalive 1;", r#"line 1, column 1: unexpected "keepalive", expected "server""#),
        ("least_conn;", r#"line 1, column 1: unexpected "least_conn", expected "server""#),
        ("check;", r#"line 1, column 1: unexpected "check", expected "server""#),
        (
            "zone a;",
            r#"line 1, column 1: "zone" is not available in a posted list yet, expected "server""#,
        ),
        ("127.0.0.1;", r#"line 1, column 1: unknown directive "127.0.0.1", expected "server""#),
        (
            "server a;server b;",
            r#"line 1, column 10: unexpected "server", expected nothing after one "server""#,
        ),
        ("server a;;", r#"line 1, column 10: unexpected ";", expected nothing after one "server""#),
        ("server a", r#"line 1, column 8: unexpected end after "a", expected ";""#),
    ] {
        assert_eq!(why(parse_server(text.as_bytes())), message, "{text:?}");
    }
}

#[test]
fn changes_are_read() {
    let none = Changes::default();
    for (text, changes) in [
        ("weight=3", Changes { weight: Some(3), ..none }),
        ("weight=3;", Changes { weight: Some(3), ..none }),
        ("\tdown\n", Changes { down: Some(true), ..none }),
        (
            "down=off\r\n backup=on ; # x\n",
            Changes { down: Some(false), backup: Some(true), ..none },
        ),
        (
            "max_fails=0 max_conns=1 fail_timeout=1m",
            Changes { max_fails: Some(0), max_conns: Some(1), fail_timeout: Some(60), ..none },
        ),
        (
            "drain=off slow_start=500ms",
            Changes { drain: Some(false), slow_start: Some(500), ..none },
        ),
    ] {
        assert_eq!(parse_changes(text.as_bytes()), Ok(changes), "{text:?}");
    }
}

#[test]
fn changes_that_are_none_are_refused() {
    let expected = "expected weight=N, max_fails=N, fail_timeout=TIME, max_conns=N, slow_start=TIME, \
                    backup[=on|off], drain[=on|off] or down[=on|off]";
    for (text, message) in [
        ("", format!("line 1, column 1: no parameter in the body, {expected}")),
        (" ; ", format!("line 1, column 2: unknown parameter \";\", {expected}")),
        ("down;\nup", "line 2, column 1: unexpected \"up\", expected nothing after \";\"".into()),
        ("down;;", "line 1, column 6: unexpected \";\", expected nothing after \";\"".into()),
        ("server a down;", format!("line 1, column 1: unknown parameter \"server\", {expected}")),
        ("down up", format!("line 1, column 6: unknown parameter \"up\", {expected}")),
        ("down=1", "line 1, column 1: invalid value in \"down=1\", expected on or off".into()),
        ("down\ndown=on", "line 2, column 1: duplicate \"down\", expected it once at most".into()),
    ] {
        assert_eq!(why(parse_changes(text.as_bytes())), message, "{text:?}");
    }
}
