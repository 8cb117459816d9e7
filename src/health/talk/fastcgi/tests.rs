//! Records of php-fpm and of others, in any pieces.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::super::testing::{hear, judge};
use super::*;

const END_REQUEST: u8 = 3;

/// What php-fpm 8.2 says to a script that is not there.
const NOT_FOUND: &[u8] = b"\x01\x07\x00\x01\x00\x16\x02\x00Primary script unknown\x00\x00\
    \x01\x06\x00\x01\x00Q\x07\x00Status: 404 Not Found\r\nContent-type: text/html; charset=UTF-8\r\n\
    \r\nFile not found.\n\x00\x00\x00\x00\x00\x00\x00\
    \x01\x03\x00\x01\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// To its `ping.path`.
const PONG: &[u8] = b"\x01\x06\x00\x01\x00\x95\x03\x00Content-type: text/plain;charset=UTF-8\r\n\
    Expires: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    Cache-Control: no-cache, no-store, must-revalidate, max-age=0\r\n\r\npong\x00\x00\x00\
    \x01\x03\x00\x01\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// And for a script that ends by a redirect.
const REDIRECT: &[u8] = b"\x01\x06\x00\x01\x00K\x05\x00Status: 302 Found\r\nLocation: /x\r\n\
    Content-type: text/html; charset=UTF-8\r\n\r\n\x00\x00\x00\x00\x00\
    \x01\x03\x00\x01\x00\x08\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00";

fn talk() -> Fastcgi {
    Fastcgi::new(&[("REQUEST_METHOD".into(), "GET".into())], Alive::default())
}

fn fastcgi(text: &[u8], closes: bool) -> Option<Verdict> {
    judge(talk, text, closes)
}

fn failed(reason: Reason) -> Option<Verdict> {
    Some(Verdict::Failed(reason))
}

fn records(contents: &[(u8, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, content) in contents {
        record(&mut bytes, *kind, content.as_bytes());
    }
    bytes
}

fn of_head(head: &str) -> Option<Verdict> {
    fastcgi(&records(&[(STDOUT, head)]), false)
}

#[test]
fn a_request_is_sent() {
    assert_eq!(
        talk().open(),
        b"\x01\x01\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\
        \x01\x04\x00\x01\x00\x13\x00\x00\x0e\x03REQUEST_METHODGET\
        \x01\x04\x00\x01\x00\x00\x00\x00\x01\x05\x00\x01\x00\x00\x00\x00"
    );
    let none = Fastcgi::new(&[], Alive::default()).open();
    assert_eq!(none.len(), 16 + 8 + 8);
}

#[test]
fn long_parameters_have_long_lengths_and_several_records() {
    let encoded = |length: usize| encode(&[("A".into(), "b".repeat(length))]);
    assert!(encoded(127).starts_with(b"\x01\x7fAbbb"));
    assert!(encoded(128).starts_with(b"\x01\x80\x00\x00\x80Abbb"));
    assert!(encoded(70_000).starts_with(b"\x01\x80\x01\x11\x70Abbb"));
    let bytes = Fastcgi::new(&[("A".into(), "b".repeat(70_000))], Alive::default()).open();
    assert_eq!(bytes[16..24], *b"\x01\x04\x00\x01\xff\xff\x00\x00");
    let second = 24 + CONTENT_MAX;
    let [high, low] = ((1 + 4 + 1 + 70_000 - CONTENT_MAX) as u16).to_be_bytes();
    assert_eq!(bytes[second..second + 8], [1, 4, 0, 1, high, low, 0, 0]);
}

#[test]
fn php_fpm_is_understood() {
    assert_eq!(fastcgi(NOT_FOUND, false), failed(Reason::Status(404)));
    assert_eq!(fastcgi(PONG, false), Some(Verdict::WELL));
    assert_eq!(fastcgi(REDIRECT, false), Some(Verdict::WELL));
    let alive = || Fastcgi::new(&[], Alive::new(vec![(404, 404)]));
    assert_eq!(judge(alive, NOT_FOUND, true), Some(Verdict::WELL));
    assert_eq!(judge(alive, PONG, true), failed(Reason::Status(200)));
    assert_eq!(judge(alive, REDIRECT, true), failed(Reason::Status(302)));
}

#[test]
fn the_status_is_said_or_implied() {
    for (head, status) in [
        ("Status: 503\n\n", 503),
        ("A: b\r\nstatus:  599 Nope\r\nStatus: 200 OK\r\n\r\n", 599),
        ("HTTP/1.1 200 OK\r\nStatus: 404 x\r\n\r\n", 404),
        ("Location: /x\r\nStatus: 500\r\n\r\n", 500),
    ] {
        assert_eq!(of_head(head), failed(Reason::Status(status)), "{head}");
    }
    for head in
        ["\r\n", "\n", "A: b\r\n\r\n", "A:\n\nbody", "location: /x\n\n", "Status: 200\r\n\r\n"]
    {
        assert_eq!(of_head(head), Some(Verdict::WELL), "{head}");
    }
    let alive = || Fastcgi::new(&[], Alive::new(vec![(302, 302)]));
    assert_eq!(judge(alive, &records(&[(STDOUT, "Location: /x\n\n")]), false), Some(Verdict::WELL));
}

#[test]
fn a_head_may_come_in_many_records_between_errors() {
    let text = records(&[
        (STDERR, "PHP Warning"),
        (STDOUT, "Status: 2"),
        (STDERR, ""),
        (STDOUT, "00 OK\r\n\r"),
        (STDERR, "more"),
        (STDOUT, "\nbody"),
    ]);
    assert_eq!(fastcgi(&text, true), Some(Verdict::WELL));
}

#[test]
fn what_is_not_fastcgi() {
    for text in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\x01\x01",
        b"\x01\x0a\x00\x00",
        b"\x01\x06\x01",
        b"\x01\x06\x00\x02",
        &records(&[(STDERR, "x"), (END_REQUEST, "\0\0\0\0\0\0\0\0")]),
        &records(&[(STDOUT, "Status: 200 OK\r\n"), (END_REQUEST, "\0\0\0\0\0\0\0\0")]),
        &records(&[(STDOUT, "A: b\r\n"), (STDOUT, "")]),
    ] {
        assert_eq!(fastcgi(text, true), failed(Reason::NotFastcgi), "{}", text.escape_ascii());
    }
    for head in [
        "Status: 2x0\n",
        "Status: 20\n",
        "Status: 2000\n",
        "Status:\n",
        "Hello world\n",
        ": x\n",
        "A b: c\n",
        "A: \0\n",
        " A: b\n",
    ] {
        assert_eq!(of_head(head), failed(Reason::NotFastcgi), "{head}");
    }
    for cut in [&b""[..], b"\x01", &PONG[..100]] {
        assert_eq!(fastcgi(cut, false), None);
        assert_eq!(fastcgi(cut, true), failed(Reason::Closed(Stage::Read)));
    }
}

#[test]
fn answers_are_bounded() {
    let line = format!("A: {}\r\n\r\n", "b".repeat(cgi::HEAD_MAX - 7));
    assert_eq!(of_head(&line), Some(Verdict::WELL));
    let line = format!("A: {}\r\n\r\n", "b".repeat(cgi::HEAD_MAX - 6));
    assert_eq!(of_head(&line), failed(Reason::TooLong));
    let noise = records(&[(STDERR, &"x".repeat(CONTENT_MAX))]).repeat(17);
    for size in [1, 5000, noise.len()] {
        let verdict = hear(&mut talk(), noise.chunks(size), false);
        assert_eq!(verdict, failed(Reason::TooLong));
    }
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("Status: 200 OK\r\n"),
        Just("Status: 503\n"),
        Just("A: b\r\n"),
        Just("\r\n"),
        Just("x"),
        Just(""),
    ];
    let kind = prop_oneof![Just(STDOUT), Just(STDOUT), Just(STDERR), any::<u8>()];
    prop_oneof![
        prop::collection::vec((kind, line), 0..9).prop_map(|contents| records(&contents)),
        any::<Vec<u8>>(),
    ]
}

proptest! {
    #[test]
    fn any_bytes_end(text in any_text(), more: Vec<u8>, closes: bool) {
        fastcgi(&[text, more].concat(), closes);
    }

    #[test]
    fn lengths_are_those_of_the_texts(
        params in prop::collection::vec(("[A-Z]{0,200}", "[a-z]{0,200}"), 0..5)
    ) {
        let bytes = encode(&params);
        let mut rest = bytes.as_slice();
        let length = |at: &mut &[u8]| match at[0] {
            short @ 0..=127 => { *at = &at[1..]; usize::from(short) }
            _ => {
                let long = u32::from_be_bytes(at[..4].try_into().unwrap()) & !(1 << 31);
                *at = &at[4..];
                long as usize
            }
        };
        for (name, value) in &params {
            let (name_length, value_length) = (length(&mut rest), length(&mut rest));
            assert_eq!((name_length, value_length), (name.len(), value.len()));
            let text = [name.as_str(), value].concat();
            assert!(rest.starts_with(text.as_bytes()));
            rest = &rest[text.len()..];
        }
        assert!(rest.is_empty());
    }
}
