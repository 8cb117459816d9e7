//! Directives that choose a method, right and nearly right.
#![forbid(unsafe_code)]

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn words(text: &str) -> Vec<&str> {
    text.split(' ').filter(|word| !word.is_empty()).collect()
}

fn refused(text: &str) -> (usize, String) {
    let error = read(&words(text)).unwrap_err();
    (error.at(), error.to_string())
}

fn any_network() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=128u8).prop_map(|(address, prefix)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, prefix.min(longest)).unwrap()
    })
}

/// Whatever a list may come with.
pub(crate) fn any_method() -> impl Strategy<Value = Method> {
    let moment = select(vec![Moment::Header, Moment::LastByte]);
    let key = vec(r"[$][a-zA-Z_][a-z0-9_]{0,9}|[$][{][a-z_]{1,9}[}]|[-/:.,é#!~]{1,5}", 1..16);
    let key = key.prop_map(|parts| parts.concat().replace('#', "-"));
    prop_oneof![
        select(vec![Method::RoundRobin, Method::LeastConn, Method::IpHash, Method::Random]),
        (key, any::<bool>()).prop_map(|(key, consistent)| Method::Hash { key, consistent }),
        Just(Method::RandomTwo(Better::LeastConn)),
        moment.clone().prop_map(|moment| Method::RandomTwo(Better::LeastTime(moment))),
        moment.prop_map(Method::LeastTime),
        vec(any_network(), 0..6).prop_map(Method::Local),
    ]
}

#[test]
fn directives_are_those_of_nginx() {
    let hash = |consistent| Method::Hash { key: "$uri${arg_a}".to_owned(), consistent };
    let two = Method::RandomTwo;
    for (text, method) in [
        ("least_conn", Method::LeastConn),
        ("ip_hash", Method::IpHash),
        ("hash $uri${arg_a}", hash(false)),
        ("hash $uri${arg_a} consistent", hash(true)),
        ("hash consistent", Method::Hash { key: "consistent".to_owned(), consistent: false }),
        ("random", Method::Random),
        ("random two", two(Better::LeastConn)),
        ("random two least_conn", two(Better::LeastConn)),
        ("random two least_time=header", two(Better::LeastTime(Moment::Header))),
        ("random two least_time=last_byte", two(Better::LeastTime(Moment::LastByte))),
        ("least_time header", Method::LeastTime(Moment::Header)),
        ("least_time last_byte", Method::LeastTime(Moment::LastByte)),
    ] {
        assert_eq!(read(&words(text)), Ok(method), "{text}");
        assert!(is_method(words(text)[0]));
    }
    assert!(!is_method("server") && !is_method("upsync_lb"));
}

#[test]
fn a_fault_names_the_directive_the_value_and_what_is_right() {
    let random = r#"expected "random [two [least_conn|least_time=header|least_time=last_byte]]""#;
    let time = r#"expected "least_time header" or "least_time last_byte""#;
    let hash = r#"expected "hash KEY [consistent]""#;
    let methods = "expected least_conn, ip_hash, hash, random or least_time";
    for (text, at, message) in [
        ("", 0, format!("unknown method \"\", {methods}")),
        ("fair", 0, format!("unknown method \"fair\", {methods}")),
        ("upsync_lb local", 0, format!("unknown method \"upsync_lb\", {methods}")),
        ("least_conn x", 1, r#"unexpected "x" in "least_conn", expected no parameter"#.into()),
        ("ip_hash a b", 1, r#"unexpected "a" in "ip_hash", expected no parameter"#.into()),
        ("hash", 0, format!("no parameter after \"hash\", {hash}")),
        ("hash $a ketama", 2, format!("unexpected \"ketama\" in \"hash\", {hash}")),
        ("hash $a consistent x", 3, format!("unexpected \"x\" in \"hash\", {hash}")),
        (
            "hash $ consistent",
            1,
            r#"no name after "$" in the key "$" of "hash", expected "$NAME""#.into(),
        ),
        ("random three", 1, format!("unexpected \"three\" in \"random\", {random}")),
        ("random two least_time", 2, format!("unexpected \"least_time\" in \"random\", {random}")),
        ("random two least_conn x", 3, format!("unexpected \"x\" in \"random\", {random}")),
        ("least_time", 0, format!("no parameter after \"least_time\", {time}")),
        ("least_time Header", 1, format!("unexpected \"Header\" in \"least_time\", {time}")),
        (
            "least_time header inflight",
            2,
            format!("unexpected \"inflight\" in \"least_time\", {time}"),
        ),
    ] {
        assert_eq!(refused(text), (at, message), "{text}");
    }
}

#[test]
fn upsync_lb_has_the_values_of_nginx_upsync_module_and_three_more() {
    for (text, value) in [
        ("roundrobin", Lb::RoundRobin),
        ("ip_hash", Lb::IpHash),
        ("least_conn", Lb::LeastConn),
        ("hash_modula", Lb::HashModula),
        ("hash_ketama", Lb::HashKetama),
        ("random", Lb::Random),
        ("least_time", Lb::LeastTime),
        ("local", Lb::Local(vec![])),
    ] {
        assert_eq!(lb(&words(text)), Ok(value), "{text}");
    }
    let networks = ["10.0.0.0/8", "192.168.1.7/32", "fd00::/8", "::1/128"];
    let networks = networks.map(|text| text.parse().unwrap()).to_vec();
    assert_eq!(lb(&words("local 10.0.0.0/8 192.168.1.7 fd00::/8 ::1")), Ok(Lb::Local(networks)));
    let expected = "expected roundrobin, ip_hash, least_conn, hash_modula, hash_ketama, random, \
                    least_time or local [NETWORK...]";
    let network = "expected addresses and networks such as 10.0.0.0/8";
    for (text, at, message) in [
        ("", 0, format!("no parameter after \"upsync_lb\", {expected}")),
        ("round_robin", 1, format!("unexpected \"round_robin\" in \"upsync_lb\", {expected}")),
        ("ip_hash x", 2, r#"unexpected "x" in "upsync_lb", expected one value"#.into()),
        ("local ::1 a", 3, format!("unexpected \"a\" in \"upsync_lb local\", {network}")),
        (
            "local 1.1.1.1/33",
            2,
            format!("unexpected \"1.1.1.1/33\" in \"upsync_lb local\", {network}"),
        ),
    ] {
        let error = lb(&words(text)).unwrap_err();
        assert_eq!((error.at(), error.to_string()), (at, message), "{text}");
    }
}

#[test]
fn what_display_does_not_write_is_no_text_of_a_method() {
    assert_eq!(parse("upsync_lb roundrobin"), Some(Method::RoundRobin));
    for text in ["", "roundrobin", "upsync_lb", "upsync_lb ip_hash", "least_conn ", "hash  $a"] {
        assert_eq!(parse(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(method in any_method()) {
        prop_assert_eq!(parse(&method.to_string()), Some(method));
    }

    #[test]
    fn any_words_are_a_method_or_an_error(words in vec(any::<String>(), 0..5)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let _ = (lb(&words), parse(&words.join(" ")));
        if let Err(error) = read(&words) {
            prop_assert!(error.at() <= words.len());
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }

    #[test]
    fn near_misses_are_a_method_or_an_error(
        words in vec(select(vec![
            "hash", "random", "two", "least_time", "least_conn", "ip_hash", "header", "$a", "consistent",
            "least_time=header", "upsync_lb", "local", "10.0.0.0/8", "",
        ]), 0..6)
    ) {
        let text = words.join(" ");
        if let Some(method) = parse(&text) {
            prop_assert_eq!(parse(&method.to_string()), Some(method));
        }
        match read(&words) {
            Ok(method) => prop_assert_eq!(parse(&text), Some(method)),
            Err(error) => prop_assert!(error.at() == 0 || words.get(error.at()).is_some()),
        }
    }
}
