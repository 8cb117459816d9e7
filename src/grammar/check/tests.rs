//! Directives right and nearly right, and what is written of them.
#![forbid(unsafe_code)]

use super::*;
use crate::model::check::{Alive, ExpectBody, Kind};
use crate::model::list::COUNT_MAX;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// What directives say whose words stand between spaces.
fn read(directives: &[&str]) -> Result<Option<Check>, (usize, String)> {
    let directives: Vec<Vec<&str>> =
        directives.iter().map(|text| text.split(' ').collect()).collect();
    read_words(&directives)
}

fn read_words(directives: &[Vec<&str>]) -> Result<Option<Check>, (usize, String)> {
    let mut draft = Draft::default();
    let told = |error: CheckError| (error.at(), error.to_string());
    directives.iter().try_for_each(|words| draft.add(words)).map_err(told)?;
    draft.finish().map_err(told)
}

fn check(words: &str) -> Result<Check, (usize, String)> {
    read(&[words]).map(Option::unwrap)
}

prop_compose! {
    /// With characters that need quotes and escapes.
    fn any_text(least: usize)(
        text in vec(prop_oneof![
            any::<char>().prop_filter("no text", |c| !c.is_ascii_control()),
            select(&[' ', '\t', '\r', '\n', '"', '\'', '\\', ';', '{', '}', '$', '#', 'n', 't'][..]),
        ], least..40)
    ) -> String {
        text.into_iter().collect()
    }
}

fn any_alive() -> impl Strategy<Value = Alive> {
    let code = (100..600u16, 0..600u16).prop_map(|(first, more)| (first, (first + more).min(599)));
    let class = (1..6u16).prop_map(|class| (class * 100, class * 100 + 99));
    vec(prop_oneof![code, class], 1..6).prop_map(Alive::new)
}

prop_compose! {
    fn any_companions()(
        send in option::of(any_text(1)), alive in prop_oneof![Just(Alive::default()), any_alive()],
        body in option::of((any::<bool>(), any_text(1))),
        keepalive_requests in prop_oneof![Just(1), 1..=COUNT_MAX],
        fastcgi_params in vec((any_text(1), any_text(0)), 0..4), ssl_verify: bool,
        ssl_name in option::of("[A-Za-z0-9._:-]{1,255}"), fail_open in 0..=100u8,
    ) -> Check {
        let body = body.map(|(negated, regex)| ExpectBody { negated, regex });
        Check {
            send, alive, body, keepalive_requests, fastcgi_params, ssl_verify, ssl_name, fail_open,
            ..Check::default()
        }
    }
}

prop_compose! {
    /// Whatever directives may say.
    pub(crate) fn any_check()(
        companions in prop_oneof![Just(Check::default()), any_companions()],
        kind in select(&Kind::ALL[..]), interval in 1..=COUNT_MAX, rise in 1..=COUNT_MAX,
        fall in 1..=COUNT_MAX, timeout in 1..=COUNT_MAX, default_down: bool,
        port in option::of(1..=u16::MAX),
    ) -> Check {
        Check { kind, interval, rise, fall, timeout, default_down, port, ..companions }
    }
}

#[test]
fn a_bare_check_is_that_of_the_original() {
    assert_eq!(read(&[]), Ok(None));
    assert!(Draft::default().is_empty());
    assert_eq!(check("check"), Ok(Check::default()));
    let mut draft = Draft::default();
    draft.add(&["check_ssl_verify", "off"]).unwrap();
    assert!(!draft.is_empty());
}

#[test]
fn each_parameter_is_set() {
    let plain = Check::default();
    let full = "check interval=3000 rise=3 fall=1 timeout=2000 default_down=false type=http port=81 unique=true";
    let expected = Check {
        kind: Kind::Http,
        interval: 3000,
        rise: 3,
        fall: 1,
        timeout: 2000,
        default_down: false,
        port: Some(81),
        ..plain.clone()
    };
    assert_eq!(check(full), Ok(expected));
    assert_eq!(check("check default_down=TRUE unique=False"), Ok(plain.clone()));
    for kind in Kind::ALL {
        let expected = Check { kind, ..plain.clone() };
        assert_eq!(check(&format!("check type={}", kind.name())), Ok(expected));
    }
    for (time, interval) in [
        ("1", 1),
        ("05", 5),
        ("2147483647", COUNT_MAX),
        ("1s", 1000),
        ("500ms", 500),
        ("1m", 60_000),
        ("1s500ms", 1500),
    ] {
        let expected = Check { interval, ..plain.clone() };
        assert_eq!(check(&format!("check interval={time}")), Ok(expected));
    }
}

#[test]
fn companions_may_stand_before_and_need_not_fit() {
    let send = "GET / HTTP/1.0\r\n\r\n";
    let directives = [
        vec!["check_http_send", send],
        vec!["check_fastcgi_param", "REQUEST_METHOD", "HEAD"],
        vec!["check_http_expect_alive", "HTTP_2xx", "404", "302-303", "404"],
        vec!["check_fastcgi_param", "EMPTY", ""],
        vec!["check", "type=tcp"],
        vec!["check_http_expect_body", "!~", "a b"],
        vec!["check_keepalive_requests", "10"],
        vec!["check_ssl_verify", "On"],
        vec!["check_ssl_name", "Backend.example"],
        vec!["check_fail_open", "50%"],
    ];
    let expected = Check {
        send: Some(send.to_owned()),
        alive: Alive::new(vec![(200, 299), (302, 303), (404, 404)]),
        body: Some(ExpectBody { negated: true, regex: "a b".to_owned() }),
        keepalive_requests: 10,
        fastcgi_params: vec![
            ("REQUEST_METHOD".to_owned(), "HEAD".to_owned()),
            ("EMPTY".to_owned(), String::new()),
        ],
        ssl_verify: true,
        ssl_name: Some("Backend.example".to_owned()),
        fail_open: 50,
        ..Check::default()
    };
    assert_eq!(read_words(&directives), Ok(Some(expected)));
    assert!(directives.iter().all(|words| is_check(words[0])));
    for other in ["", "checks", "check_shm_size", "check_ssl_certificate", "server"] {
        assert!(!is_check(other), "{other}");
    }
}

#[test]
fn a_parameter_of_check_says_what_is_right() {
    let time = "1 to 2147483647 milliseconds or a time such as 5s";
    for (word, expected) in [
        ("interval=0", time),
        ("interval=", time),
        ("interval=2147483648", time),
        ("interval=2147484s", time),
        ("interval=0s", time),
        ("interval=-1", time),
        ("interval=+1", time),
        ("timeout=1.5s", time),
        ("timeout=1m30", time),
        ("timeout=x", time),
        ("rise=0", "1 to 2147483647"),
        ("fall=1x", "1 to 2147483647"),
        ("default_down=yes", "true or false"),
        ("unique=1", "true or false"),
        ("type=HTTP", "tcp, http, https, ssl_hello, mysql, ajp, fastcgi, grpc or grpcs"),
        ("port=0", r#"1 to 65535, or no "port" for the server's own"#),
        ("port=65536", r#"1 to 65535, or no "port" for the server's own"#),
    ] {
        let message = format!("invalid value in \"{word}\" of \"check\", expected {expected}");
        assert_eq!(check(&format!("check {word}")), Err((1, message)));
    }
    let expected = "expected interval=TIME, rise=N, fall=N, timeout=TIME, default_down=true|false, \
                    type=TYPE or port=N";
    for word in ["", "http", "interval", "Interval=1", "=1", "server"] {
        let message = format!("unexpected \"{word}\" in \"check\", {expected}");
        assert_eq!(check(&format!("check {word}")), Err((1, message)));
    }
    let message = "duplicate \"rise\", expected it once at most".to_owned();
    assert_eq!(check("check rise=1 fall=2 rise=1"), Err((3, message)));
}

#[test]
fn a_companion_says_what_is_right() {
    let codes = "expected http_1xx to http_5xx, codes from 100 to 599 and ranges such as 200-299";
    let regex = r#"expected "~ REGEX" or "!~ REGEX""#;
    let host = r#"expected 1 to 255 letters, digits, ".", "-", "_" or ":""#;
    let percent = r#"expected 0 to 100, with or without "%""#;
    for (words, at, message) in [
        ("check_http_send", 0, "no parameter after \"check_http_send\", expected one text, which is not empty".into()),
        ("check_http_send ", 1, "unexpected \"\" in \"check_http_send\", expected one text, which is not empty".into()),
        ("check_http_send a b", 2, "unexpected \"b\" in \"check_http_send\", expected one text, which is not empty".into()),
        ("check_http_send a\0", 1, "unexpected \"a\\u{0}\" in \"check_http_send\", expected text without control characters but tabs and ends of lines".into()),
        ("check_http_expect_alive", 0, format!("no parameter after \"check_http_expect_alive\", {codes}")),
        ("check_http_expect_alive 200 http_6xx", 2, format!("unexpected \"http_6xx\" in \"check_http_expect_alive\", {codes}")),
        ("check_http_expect_alive 99", 1, format!("unexpected \"99\" in \"check_http_expect_alive\", {codes}")),
        ("check_http_expect_alive 0200", 1, format!("unexpected \"0200\" in \"check_http_expect_alive\", {codes}")),
        ("check_http_expect_alive 300-200", 1, format!("unexpected \"300-200\" in \"check_http_expect_alive\", {codes}")),
        ("check_http_expect_alive 200-", 1, format!("unexpected \"200-\" in \"check_http_expect_alive\", {codes}")),
        ("check_http_expect_body ~", 0, format!("no parameter after \"check_http_expect_body\", {regex}")),
        ("check_http_expect_body ~* a", 1, format!("unexpected \"~*\" in \"check_http_expect_body\", {regex}")),
        ("check_http_expect_body ~ ", 2, format!("unexpected \"\" in \"check_http_expect_body\", {regex}")),
        ("check_http_expect_body ~ a b", 3, format!("unexpected \"b\" in \"check_http_expect_body\", {regex}")),
        ("check_keepalive_requests 0", 1, "unexpected \"0\" in \"check_keepalive_requests\", expected 1 to 2147483647".into()),
        ("check_fastcgi_param a", 0, "no parameter after \"check_fastcgi_param\", expected a name and a value".into()),
        ("check_fastcgi_param  b", 1, "unexpected \"\" in \"check_fastcgi_param\", expected a name and a value".into()),
        ("check_ssl_verify yes", 1, "unexpected \"yes\" in \"check_ssl_verify\", expected on or off".into()),
        ("check_ssl_name $host", 1, format!("unexpected \"$host\" in \"check_ssl_name\", {host}")),
        ("check_fail_open 101", 1, format!("unexpected \"101\" in \"check_fail_open\", {percent}")),
        ("check_fail_open 5%%", 1, format!("unexpected \"5%%\" in \"check_fail_open\", {percent}")),
        ("check_shm_size 1m", 0, "unknown directive \"check_shm_size\", expected \"check\" or one of its companions".into()),
    ] {
        assert_eq!(read(&[words]), Err((at, message)), "{words}");
    }
}

#[test]
fn directives_stand_once_and_with_check() {
    let message = "duplicate \"check\", expected it once at most".to_owned();
    assert_eq!(read(&["check", "check"]), Err((0, message)));
    let message = "duplicate \"check_ssl_verify\", expected it once at most".to_owned();
    assert_eq!(read(&["check_ssl_verify on", "check_ssl_verify on"]), Err((0, message)));
    let message =
        "\"check_http_send\" has no effect without \"check\", expected \"check\" beside it";
    let alone = read(&["check_http_send x", "check_fail_open 1"]);
    assert_eq!(alone, Err((0, message.to_owned())));
}

/// What directives of nginx.conf say, whose words stand between spaces, and what they warn of.
fn configured(directives: &[&str]) -> (Check, Vec<String>) {
    let (mut draft, mut warnings) = (Draft::default(), Vec::new());
    for directive in directives {
        let words: Vec<&str> = directive.split(' ').collect();
        let repeated = draft.configure(&words).unwrap();
        assert!(repeated.iter().all(|repeated| repeated.at < words.len()));
        warnings.extend(repeated.iter().map(Repeated::to_string));
    }
    (draft.finish().unwrap().unwrap(), warnings)
}

#[test]
fn in_nginx_conf_the_last_one_is_in_force() {
    let plain = Check::default();
    let last = |name: &str| format!("duplicate \"{name}\", the last one is in force");
    let http = Check { kind: Kind::Http, interval: 5, ..plain.clone() };
    for (directives, expected, warnings) in [
        (&["check type=http interval=5"][..], http.clone(), vec![]),
        (
            &["check rise=9 type=http port=81", "check interval=5"],
            http.clone(),
            vec![last("check")],
        ),
        (&["check type=http", "check type=tcp"], plain.clone(), vec![last("check")]),
        (
            &["check rise=1 fall=1 rise=3 fall=7 rise=2 fall=5"],
            plain.clone(),
            vec![last("rise"), last("fall")],
        ),
        (
            &["check_http_send a", "check", "check_fail_open 1", "check rise=7 rise=2"],
            Check { send: Some("a".into()), fail_open: 1, ..plain.clone() },
            vec![last("check"), last("rise")],
        ),
        (
            &["check", "check_keepalive_requests 2", "check_keepalive_requests 3"],
            Check { keepalive_requests: 3, ..plain.clone() },
            vec![last("check_keepalive_requests")],
        ),
        (
            &["check_http_expect_body ~ a", "check", "check_http_expect_body !~ b"],
            Check { body: Some(ExpectBody { negated: true, regex: "b".into() }), ..plain.clone() },
            vec![last("check_http_expect_body")],
        ),
        (
            &["check", "check_ssl_verify on", "check_ssl_verify off", "check_ssl_verify on"],
            Check { ssl_verify: true, ..plain.clone() },
            vec![last("check_ssl_verify"), last("check_ssl_verify")],
        ),
    ] {
        assert_eq!(configured(directives), (expected, warnings), "{directives:?}");
    }
}

#[test]
fn in_nginx_conf_codes_add_up() {
    let alive = |ranges| Check { alive: Alive::new(ranges), ..Check::default() };
    let once = ["check_http_expect_alive 404", "check"];
    assert_eq!(configured(&once), (alive(vec![(404, 404)]), vec![]));
    let twice = ["check", "check_http_expect_alive http_2xx", "check_http_expect_alive 404 200"];
    let warning = "duplicate \"check_http_expect_alive\", the codes of both are good".to_owned();
    assert_eq!(configured(&twice), (alive(vec![(200, 299), (404, 404)]), vec![warning]));
    let params = ["check_fastcgi_param A b", "check", "check_fastcgi_param A c"];
    assert_eq!(configured(&params).0.fastcgi_params.len(), 2);
    assert_eq!(configured(&params).1, Vec::<String>::new());
}

#[test]
fn in_nginx_conf_an_empty_request_is_the_default() {
    let warning = "duplicate \"check_http_send\", the last one is in force".to_owned();
    assert_eq!(configured(&["check", "check_http_send "]), (Check::default(), vec![]));
    let twice = ["check_http_send a", "check", "check_http_send "];
    assert_eq!(configured(&twice), (Check::default(), vec![warning]));
    for words in
        [&["check_http_send"][..], &["check_http_send", "", ""], &["check_http_send", "\0"]]
    {
        assert!(Draft::default().configure(words).is_err(), "{words:?}");
    }
}

#[test]
fn texts_are_bounded() {
    let longest = "x".repeat(VALUE_MAX);
    let (long, half) = (format!("{longest}x"), "x".repeat(VALUE_MAX / 2));
    let told = |words: &[&str]| read_words(&[words.to_vec(), vec!["check"]]).map(drop);
    assert_eq!(told(&["check_http_send", &longest]), Ok(()));
    assert_eq!(told(&["check_http_expect_body", "~", &longest]), Ok(()));
    assert_eq!(told(&["check_fastcgi_param", &half, &half]), Ok(()));
    let message =
        |name: &str| format!("the value of \"{name}\" has 4097 bytes, expected at most 4096");
    assert_eq!(told(&["check_http_send", &long]), Err((1, message("check_http_send"))));
    let name = "check_http_expect_body";
    assert_eq!(told(&[name, "~", &long]), Err((2, message(name))));
    let more = format!("{half}x");
    let name = "check_fastcgi_param";
    assert_eq!(told(&[name, &half, &more]), Err((2, message(name))));
    assert_eq!(told(&[name, &long, ""]), Err((1, message(name))));
    let params = vec![vec![name, "a", "b"]; FASTCGI_PARAMS_MAX + 1];
    let most = "too many \"check_fastcgi_param\", expected at most 64".to_owned();
    assert_eq!(read_words(&params), Err((0, most)));
}

#[test]
fn what_is_written_is_what_the_original_has() {
    let first = "check interval=30000 rise=2 fall=5 timeout=1000 default_down=true type=tcp";
    assert_eq!(render(&Check::default()), [first]);
    assert_eq!(text(&Check::default()), format!("{first};\n"));
    let all = Check {
        port: Some(81),
        send: Some("GET /\t\"\\d HTTP/1.0\r\n\r\n".to_owned()),
        alive: Alive::new(vec![(200, 399), (404, 404), (410, 411)]),
        body: Some(ExpectBody { negated: true, regex: r"^\s*$;{}#'".to_owned() }),
        keepalive_requests: 2,
        fastcgi_params: vec![("A".to_owned(), "b c".to_owned())],
        ssl_verify: true,
        ssl_name: Some("a.b".to_owned()),
        fail_open: 0,
        ..Check::default()
    };
    let expected = [
        format!("{first} port=81"),
        r#"check_http_send "GET /\t\"\\d HTTP/1.0\r\n\r\n""#.to_owned(),
        "check_http_expect_alive http_2xx http_3xx 404 410-411".to_owned(),
        r#"check_http_expect_body !~ "^\\s*$;{}#'""#.to_owned(),
        "check_keepalive_requests 2".to_owned(),
        r#"check_fastcgi_param "A" "b c""#.to_owned(),
        "check_ssl_verify on".to_owned(),
        "check_ssl_name a.b".to_owned(),
        "check_fail_open 0".to_owned(),
    ];
    assert_eq!(render(&all), expected);
    assert_eq!(parse(&text(&all)), Some(all));
}

#[test]
fn other_texts_are_no_checks() {
    for text in ["", "check", "check_fail_open 1;", "check type=x;", "server a;", "check \"a;", ";"]
    {
        assert_eq!(parse(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(check in any_check()) {
        let text = text(&check);
        prop_assert!(!text.contains(['\r', '\t']));
        prop_assert_eq!(text.lines().count(), render(&check).len());
        prop_assert_eq!(parse(&text), Some(check));
    }

    #[test]
    fn any_words_are_a_directive_or_an_error(
        directives in vec(vec(prop_oneof![
            any::<String>(),
            select(vec![
                "check", "check_http_send", "check_http_expect_alive", "check_http_expect_body",
                "check_keepalive_requests", "check_fastcgi_param", "check_ssl_verify", "check_ssl_name",
                "check_fail_open", "type=http", "interval=1s", "http_2xx", "200-299", "~", "1", "on", "",
            ]).prop_map(str::to_owned),
        ], 0..4), 0..5)
    ) {
        let (mut draft, mut lenient) = (Draft::default(), Draft::default());
        for words in &directives {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let repeated = lenient.configure(&words).unwrap_or_default();
            prop_assert!(repeated.iter().all(|repeated| words.get(repeated.at).is_some()));
            if let Err(error) = draft.add(&words) {
                prop_assert!(error.at() == 0 || words.get(error.at()).is_some());
                prop_assert!(!error.to_string().contains(char::is_control));
                return Ok(());
            }
        }
        if let Ok(Some(check)) = draft.finish() {
            prop_assert_eq!(lenient.finish(), Ok(Some(check.clone())));
            prop_assert_eq!(parse(&text(&check)), Some(check));
        }
    }

    #[test]
    fn any_text_ends(text in r##"(check|check_http_send |type=http|["';\\ ~#{}$]|[a-cé\n]){0,40}"##) {
        if let Some(check) = parse(&text) {
            prop_assert_eq!(parse(&super::text(&check)), Some(check));
        }
    }
}
