//! Checks as JSON.
#![forbid(unsafe_code)]

use super::*;
use crate::grammar::check::tests::any_check;
use crate::model::check::{Alive, ExpectBody, Kind};
use proptest::prelude::*;

/// The checks of a body that has this as `check`.
fn checks(json: &str) -> Result<Option<Check>, String> {
    let body = format!(r#"{{"servers":[{{"host":"127.0.0.1","port":1}}],"check":{json}}}"#);
    let body = parse(body.as_bytes()).map_err(|error| error.to_string())?;
    Ok(body.check.map(|(_, check)| check))
}

#[test]
fn checks_may_stand_beside_the_servers() {
    assert_eq!(checks("null"), Ok(None));
    assert_eq!(checks("{}"), Ok(Some(Check::default())));
    let expected = Check {
        kind: Kind::Http,
        interval: 5000,
        timeout: 2000,
        default_down: false,
        send: Some("GET /\r\n\r\n".to_owned()),
        alive: Alive::new(vec![(200, 299), (404, 404)]),
        body: Some(ExpectBody { negated: true, regex: "a b".to_owned() }),
        fastcgi_params: vec![("A".to_owned(), String::new())],
        ssl_verify: true,
        fail_open: 50,
        ..Check::default()
    };
    let json = r#"{"type":"http","interval":5000,"timeout":"2s","default_down":false,"port":null,
        "http_send":"GET /\r\n\r\n","http_expect_alive":["http_2xx",404],"http_expect_body":"!~ a b",
        "fastcgi_param":[["A",""]],"ssl_verify":true,"fail_open":"50%"}"#;
    assert_eq!(checks(json), Ok(Some(expected)));
    for (json, reason) in [
        ("1", "expected an object, not 1"),
        (r#"{"type":"x"}"#, r#"invalid value in "type=x" of "check", expected tcp, "#),
        (r#"{"interval":-1}"#, r#""interval" is -1, expected a number or a text"#),
        (r#"{"interval":0}"#, r#"invalid value in "interval=0" of "check", expected 1 to "#),
        (r#"{"rise":1,"rise":2}"#, r#"key "rise" is there twice"#),
        (r#"{"port":[1]}"#, r#""port" is [1], expected a number or a text"#),
        (r#"{"default_down":"yes"}"#, r#""default_down" is \"yes\", expected false or true"#),
        (r#"{"http_send":""}"#, r#"unexpected "" in "check_http_send", expected one text"#),
        (r#"{"http_expect_alive":[]}"#, r#"no parameter after "check_http_expect_alive""#),
        (r#"{"http_expect_body":"~"}"#, r#"no parameter after "check_http_expect_body""#),
        (r#"{"fastcgi_param":[["A"]]}"#, r#"no parameter after "check_fastcgi_param""#),
        (r#"{"fastcgi_param":[["A","b","c"]]}"#, r#""fastcgi_param" more than 2 elements"#),
        (r#"{"fastcgi_param":["A"]}"#, r#""fastcgi_param" expected an array, not \"A\""#),
        (r#"{"ssl_certificate":"/a"}"#, r#""ssl_certificate" is no key of it, expected type, "#),
        (r#"{"\n":"/a"}"#, r#""\n" is no key of it, expected type, "#),
    ] {
        let error = checks(json).unwrap_err();
        assert!(error.starts_with(&format!(r#"body invalid: "check": {reason}"#)), "{error}");
    }
}

proptest! {
    #[test]
    fn checks_that_are_shown_can_be_posted(check in any_check()) {
        let shown = View { check: Some(check.clone()), ..view("a", vec![]) };
        let value: Value = serde_json::from_str(&crate::api::json::upstream(&shown)).unwrap();
        prop_assert_eq!(checks(&value["check"].to_string()), Ok(Some(check)));
    }
}
