//! Tests of codes and texts, which clients compare.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;
use serde_json::Value;

const LINE: Place = Place::Text { line: 1, column: 8 };
const FIRST: Place = Place::Server(0);

fn name() -> Name {
    Name::parse(b"app").unwrap()
}

/// Code and text in both dialects, where they are alike.
fn alike(make: impl Fn(Dialect) -> Answer) -> (u16, String) {
    let text = make(Dialect::Text);
    let json = make(Dialect::Json);
    assert_eq!((text.content_type, json.content_type), (None, Some("application/json")));
    assert_eq!((text.status, text.allow), (json.status, json.allow));
    let message = format!(
        r#"{{"status":{},"msg":{}}}"#,
        json.status,
        serde_json::to_string(&text.body).unwrap()
    );
    assert_eq!(json.body, message);
    (text.status, text.body.into_owned())
}

/// Codes and texts of both dialects.
fn both(make: impl Fn(Dialect) -> Answer) -> [(u16, String); 2] {
    [Dialect::Text, Dialect::Json].map(|dialect| {
        let answer = make(dialect);
        assert_eq!(answer.content_type.is_some(), dialect == Dialect::Json);
        (answer.status, answer.body.into_owned())
    })
}

fn texts(text: (u16, &str), json: (u16, &str)) -> [(u16, String); 2] {
    [text, json].map(|(status, body)| (status, body.to_owned()))
}

#[test]
fn success_is_that_of_dyups_and_of_slardar() {
    assert_eq!(both(Answer::success), texts((200, "success"), (200, r#"{"status":200}"#)));
}

#[test]
fn nothing_to_show_as_text_is_no_content() {
    let shown = |body: &'static str| both(move |dialect| Answer::shown(dialect, body.into()));
    assert_eq!(shown("a\n"), texts((200, "a\n"), (200, "a\n")));
    assert_eq!(Answer::shown(Dialect::Text, String::new()).status, 204);
}

#[test]
fn a_body_is_needed() {
    let json = r#"{"status":400,"msg":"decode body error: empty body"}"#;
    assert_eq!(both(Answer::no_content), texts((204, "no content\n"), (400, json)));
}

#[test]
fn a_refused_body_says_where_and_why() {
    assert_eq!(
        both(|dialect| Answer::refused_body(dialect, "x \"y\"")),
        texts((400, r#"add server failed: x "y""#), (400, r#"{"status":400,"msg":"x \"y\""}"#))
    );
    assert_eq!(
        both(|dialect| Answer::unresolved(dialect, FIRST, "a\n")),
        texts(
            (400, r#"add server failed: server 0: host name "a\n" does not resolve"#),
            (
                400,
                r#"{"status":400,"msg":"servers invalid: server 0: host name \"a\\n\" does not resolve"}"#
            )
        )
    );
    assert_eq!(
        both(|dialect| Answer::unknown_target(dialect, LINE, &name())),
        texts(
            (400, r#"add server failed: line 1, column 8: upstream "app" is not in nginx.conf"#),
            (
                400,
                r#"{"status":400,"msg":"body invalid: line 1, column 8: upstream \"app\" is not in nginx.conf"}"#
            )
        )
    );
}

#[test]
fn servers_of_another_upstream_are_those_it_has() {
    let text = |make: fn(Dialect, Place, &Name) -> Answer| make(Dialect::Text, LINE, &name());
    let start = "add server failed: line 1, column 8: upstream \"app\"";
    for (answer, end) in [
        (text(Answer::unknown_target), "is not in nginx.conf"),
        (text(Answer::empty_target), "has no servers"),
    ] {
        assert_eq!((answer.status, &*answer.body), (400, &*format!("{start} {end}")));
    }
}

#[test]
fn a_refused_keepalive_names_what_is_missing() {
    let text = |missing| Answer::refused_keepalive(Dialect::Text, LINE, missing).body;
    assert_eq!(
        text(Keepalive::Template),
        r#"add server failed: line 1, column 8: "keepalive" needs an upstream of nginx.conf that has it, named by "dyups_upstream""#
    );
    assert_eq!(
        text(Keepalive::Block(&name())),
        r#"add server failed: line 1, column 8: "keepalive" needs "keepalive" in the block of upstream "app" in nginx.conf"#
    );
}

#[test]
fn what_is_unknown_is_not_found() {
    let json = |status| format!(r#"{{"status":{status},"msg":"upstream app not found"}}"#);
    assert_eq!(
        both(|dialect| Answer::nothing_to_show(dialect, &name())),
        texts((404, ""), (404, &json(404)))
    );
    assert_eq!(
        both(|dialect| Answer::unknown_upstream(dialect, &name())),
        texts((404, "not found uptream"), (400, &json(400)))
    );
    assert_eq!(
        both(Answer::nothing_here),
        texts((404, ""), (404, r#"{"status":404,"msg":"not found"}"#))
    );
    assert_eq!(alike(Answer::unknown_server), (404, "not found server".into()));
    assert_eq!(
        alike(|dialect| Answer::not_configured(dialect, &name())),
        (404, r#"upstream "app" is not in nginx.conf"#.into())
    );
}

#[test]
fn a_path_is_unsupported_or_lacks_the_method() {
    for (allow, status) in [(None, 404), (Some("GET"), 405)] {
        assert_eq!(
            alike(|dialect| Answer::unknown_interface(dialect, allow)),
            (status, "not support this interface".into())
        );
        assert_eq!(
            alike(|dialect| Answer::unknown_api(dialect, allow)),
            (status, "not support this api".into())
        );
        assert_eq!(Answer::unknown_api(Dialect::Text, allow).allow, allow);
    }
    assert_eq!(
        both(|dialect| Answer::method_not_allowed(dialect, "GET")),
        texts((405, ""), (405, r#"{"status":405,"msg":"method not allowed"}"#))
    );
    assert_eq!(Answer::method_not_allowed(Dialect::Text, "GET").allow, Some("GET"));
}

#[test]
fn the_rest_is_alike_in_both_dialects() {
    for (answer, status, text) in [
        (alike(|d| Answer::bad_path(d, "x")), 400, "x"),
        (
            alike(|d| Answer::follows_consul(d, &name())),
            409,
            r#"upstream "app" follows Consul, change it there"#,
        ),
        (
            alike(|d| Answer::last_server(d, &name())),
            409,
            r#"upstream "app" has no other server, remove it whole with DELETE /upstream/app"#,
        ),
        (
            alike(Answer::out_of_memory),
            500,
            r#"out of memory: no memory in the shared zone, raise "upsync_zone""#,
        ),
        (
            alike(|d| Answer::save_failed(d, "disk full")),
            500,
            "save failed: disk full, nothing has changed",
        ),
        (
            alike(|d| Answer::not_saved(d, "disk full")),
            500,
            "alert: update success but not saved: disk full",
        ),
        (alike(Answer::unreadable_body), 500, "the body of the request cannot be read"),
        (alike(Answer::failed), 500, "init upstream failed"),
        (alike(Answer::shutting_down), 503, "nginx is shutting down, try again"),
    ] {
        assert_eq!(answer, (status, text.to_owned()));
    }
}

proptest! {
    #[test]
    fn any_reason_gives_json(reason: String) {
        let answer = Answer::refused_body(Dialect::Json, &reason);
        let value: Value = serde_json::from_str(&answer.body).unwrap();
        prop_assert_eq!(value["msg"].as_str(), Some(reason.as_str()));
        prop_assert_eq!(value["status"].as_u64(), Some(400));
    }
}

#[test]
fn a_variable_that_is_not_there_is_named() {
    assert_eq!(
        Answer::unknown_variable(Dialect::Text, LINE, "nothing").body,
        r#"add server failed: line 1, column 8: unknown variable "$nothing" in "hash", expected one that nginx or nginx.conf has"#
    );
}
