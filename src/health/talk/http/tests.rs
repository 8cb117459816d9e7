//! Answers of real servers and of others, in any pieces.
#![forbid(unsafe_code)]

use std::cell::Cell;

use proptest::prelude::*;

use super::super::testing::{hear, judge};
use super::input::{EMPTY_LINES_MAX, HEAD_MAX, LINE_MAX};
use super::*;

/// What nginx answers.
const HELLO: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\n\
    Date: Sat, 21 Nov 2026 16:27:59 GMT\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\
    Connection: keep-alive\r\n\r\nhello";
const CHUNKS: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nTransfer-Encoding: chunked\r\n\
    Connection: keep-alive\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Temporarily Unavailable\r\n\
    Server: nginx/1.22.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
const NO_CONTENT: &str =
    "HTTP/1.1 204 No Content\r\nServer: nginx/1.22.1\r\nConnection: keep-alive\r\n\r\n";

const REUSABLE: Option<Verdict> = Some(Verdict::Well { reusable: true });
const WELL: Option<Verdict> = Some(Verdict::WELL);
const CUT: Option<Verdict> = Some(Verdict::Failed(Reason::Closed(Stage::Read)));

fn failed(reason: Reason) -> Option<Verdict> {
    Some(Verdict::Failed(reason))
}

fn rule(negated: bool, text: &'static str) -> Option<BodyRule> {
    Some(BodyRule { negated, matches: Rc::new(move |body| body == text.as_bytes()) })
}

fn http(rule: Option<BodyRule>, keepalive: bool) -> Http {
    Http::new(b"GET / HTTP/1.1\r\n\r\n", Alive::default(), rule, keepalive)
}

/// Without a rule for the body, and a connection that is of no more use.
fn once(text: &str, closes: bool) -> Option<Verdict> {
    judge(|| http(None, false), text.as_bytes(), closes)
}

fn kept(text: &str, closes: bool) -> Option<Verdict> {
    judge(|| http(None, true), text.as_bytes(), closes)
}

/// Where the body has to be `hello`.
fn ruled(text: &str, closes: bool) -> Option<Verdict> {
    judge(|| http(rule(false, "hello"), true), text.as_bytes(), closes)
}

#[test]
fn the_request_is_sent_as_it_is() {
    assert_eq!(http(None, false).open(), b"GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn the_status_decides() {
    let (head, _) = HELLO.split_once("hello").unwrap();
    for text in [HELLO, head, CHUNKS, NO_CONTENT, "HTTP/1.0 302\n\n"] {
        assert_eq!(once(text, false), WELL, "{text}");
    }
    for make in [once, kept, ruled] {
        assert_eq!(make(UNAVAILABLE, true), failed(Reason::Status(503)));
        let (head, _) = UNAVAILABLE.split_at(UNAVAILABLE.len() - 2);
        assert_eq!(make(head, false), failed(Reason::Status(503)));
        for garbage in ["<html>", "SSH-2.0\r\n", "\x15\x03\x03\0\x02\x02\x46", "\rH", "HTTP/1.1 x"]
        {
            assert_eq!(make(garbage, false), failed(Reason::NotHttp), "{garbage}");
        }
        for cut in ["", "H", "\r\n", "HTTP/1.1 200 OK\r", "HTTP/1.1 100 \n", "HTTP/1.1 100 \n\n"] {
            assert_eq!(make(cut, false), None, "{cut}");
            assert_eq!(make(cut, true), CUT, "{cut}");
        }
    }
}

#[test]
fn nothing_behind_the_status_line_makes_a_good_status_bad() {
    let line = "HTTP/1.1 200 OK\r\n";
    let headers = "A: b\r\n".repeat(head::HEADERS_MAX + 1);
    let long = "b".repeat(HEAD_MAX);
    for (rest, reason) in [
        (format!("{headers}\r\n"), Reason::TooLong),
        (format!("A: {long}\r\n\r\n"), Reason::TooLong),
        (long, Reason::TooLong),
        ("A: \0\r\n\r\n".to_owned(), Reason::NotHttp),
        ("A: b\rc\r\n\r\n".to_owned(), Reason::NotHttp),
        ("Content-Length: x\r\n\r\n".to_owned(), Reason::NotHttp),
    ] {
        let (text, shown) = (format!("{line}{rest}"), &rest[..rest.len().min(20)]);
        for size in [7, 1000, text.len()] {
            let of = |rule, keepalive| {
                hear(&mut http(rule, keepalive), text.as_bytes().chunks(size), false)
            };
            assert_eq!(of(None, false), WELL, "{shown}");
            assert_eq!(of(None, true), WELL, "{shown}");
            assert_eq!(of(rule(false, "hello"), true), failed(reason), "{shown}");
        }
    }
    for cut in [line, "HTTP/1.1 200 OK\n", "HTTP/1.1 200 OK\r\nA: b\r\n", "HTTP/1.1 200\r\nA"] {
        assert_eq!(once(cut, false), WELL, "{cut}");
        assert_eq!((kept(cut, false), kept(cut, true)), (None, WELL), "{cut}");
        assert_eq!((ruled(cut, false), ruled(cut, true)), (None, CUT), "{cut}");
    }
}

#[test]
fn other_versions_are_good_but_keep_nothing() {
    for version in ["2.0", "1.2", "3.14"] {
        let text = HELLO.replace("1.1", version);
        assert_eq!(once(&text, false), WELL, "{version}");
        assert_eq!(kept(&text, false), WELL, "{version}");
        assert_eq!(ruled(&text, false), WELL, "{version}");
        let text = UNAVAILABLE.replace("1.1", version);
        assert_eq!(once(&text, false), failed(Reason::Status(503)), "{version}");
    }
}

#[test]
fn empty_lines_may_stand_before() {
    for before in ["\r\n", "\n", "\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n\r\n"] {
        assert_eq!(once(&format!("{before}{HELLO}"), false), WELL, "{before:?}");
        assert_eq!(kept(&format!("{before}{HELLO}"), false), REUSABLE, "{before:?}");
        assert_eq!(ruled(&format!("{before}{CHUNKS}"), false), REUSABLE, "{before:?}");
    }
    let many = "\r\n".repeat(EMPTY_LINES_MAX + 1);
    assert_eq!(once(&format!("{many}{HELLO}"), false), failed(Reason::NotHttp));
}

#[test]
fn other_codes_may_be_good() {
    let alive = Alive::new(vec![(101, 101), (503, 503)]);
    let talk = || Http::new(b"GET /", alive.clone(), None, true);
    assert_eq!(judge(talk, UNAVAILABLE.as_bytes(), false), WELL);
    assert_eq!(judge(talk, HELLO.as_bytes(), false), failed(Reason::Status(200)));
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n";
    assert_eq!(judge(talk, switching.as_bytes(), false), WELL);
    assert_eq!(once(switching, false), failed(Reason::Status(101)));
}

#[test]
fn what_comes_before_the_answer_is_skipped() {
    let before = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    assert_eq!(once(&format!("{before}{HELLO}"), false), WELL);
    assert_eq!(kept(&format!("{before}{HELLO}"), false), REUSABLE);
    assert_eq!(ruled(&format!("{before}{CHUNKS}"), false), REUSABLE);
    assert_eq!(once(&format!("{before}{UNAVAILABLE}"), false), failed(Reason::Status(503)));
    assert_eq!(once(&format!("{before}{before}hello"), false), failed(Reason::NotHttp));
}

#[test]
fn heads_are_bounded() {
    let start = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: ";
    let of =
        |length: usize| format!("{start}{}\r\n\r\nhello", "b".repeat(length - start.len() - 4));
    let many = |count| format!("{start}{}\r\nhello", "\r\nA: b".repeat(count - 2) + "\r\n");
    let line = |length| format!("HTTP/1.1 200 {}\r\n", "x".repeat(length - 15));
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    for (text, expected, kept_expected) in [
        (of(HEAD_MAX), REUSABLE, REUSABLE),
        (of(HEAD_MAX + 1), failed(Reason::TooLong), WELL),
        (many(head::HEADERS_MAX), REUSABLE, REUSABLE),
        (many(head::HEADERS_MAX + 1), failed(Reason::TooLong), WELL),
        (line(LINE_MAX) + "Content-Length: 5\r\n\r\nhello", REUSABLE, REUSABLE),
        (line(LINE_MAX + 1), failed(Reason::TooLong), failed(Reason::TooLong)),
        (interim.repeat(HEAD_MAX / 25 + 1), failed(Reason::TooLong), failed(Reason::TooLong)),
    ] {
        for size in [7, 1000, text.len()] {
            let of = |rule| hear(&mut http(rule, true), text.as_bytes().chunks(size), false);
            assert_eq!(of(rule(false, "hello")), expected);
            assert_eq!(of(None), kept_expected);
        }
    }
}

#[test]
fn a_connection_is_reused_after_the_whole_body() {
    for text in [HELLO, CHUNKS, NO_CONTENT] {
        assert_eq!(kept(text, false), REUSABLE, "{text}");
        assert_eq!(kept(&format!("{text}HTTP"), false), WELL, "{text}");
    }
    for text in [HELLO, CHUNKS] {
        let cut = &text[..text.len() - 1];
        assert_eq!(kept(cut, false), None, "{text}");
        assert_eq!(kept(cut, true), WELL, "{text}");
    }
    for text in [
        HELLO.replace("keep-alive", "close"),
        HELLO.replace("Content-Length", "X"),
        HELLO.replace("Length: 5", "Length: 131073"),
        HELLO.replace("Length: 5", "Length: -5"),
        CHUNKS.replace("3\r\nhel", "x"),
        CHUNKS.replace("chunked", "chunked\r\nContent-Length: 7"),
    ] {
        assert_eq!(kept(&text, false), WELL, "{text}");
    }
}

#[test]
fn a_head_has_no_body() {
    let text = HELLO.replace("hello", "");
    for (request, expected) in [(&b"HEAD / HTTP/1.1\r\n\r\n"[..], REUSABLE), (b"HEADS /", None)] {
        let talk = || Http::new(request, Alive::default(), None, true);
        assert_eq!(judge(talk, text.as_bytes(), false), expected);
    }
    let empty = || Http::new(b"HEAD / HTTP/1.1\r\n\r\n", Alive::default(), rule(false, ""), true);
    assert_eq!(judge(empty, text.as_bytes(), false), REUSABLE);
}

#[test]
fn the_body_is_looked_at() {
    for text in [HELLO, CHUNKS] {
        assert_eq!(ruled(text, false), REUSABLE, "{text}");
        let not = || http(rule(true, "hello"), true);
        assert_eq!(judge(not, text.as_bytes(), false), failed(Reason::Body), "{text}");
        let not = || http(rule(true, "other"), false);
        assert_eq!(judge(not, text.as_bytes(), false), WELL, "{text}");
        let other = text.replace("lo", "p!");
        assert_eq!(ruled(&other, false), failed(Reason::Body), "{text}");
        let cut = &text[..text.len() - 1];
        assert_eq!(ruled(cut, false), None, "{text}");
        assert_eq!(ruled(cut, true), CUT, "{text}");
    }
    for text in [
        HELLO.replace("Length: 5", "Length: -5"),
        CHUNKS.replace("3\r\nhel", "x"),
        CHUNKS.replace("chunked", "chunked\r\nContent-Length: 7"),
    ] {
        assert_eq!(ruled(&text, false), failed(Reason::NotHttp), "{text}");
    }
    assert_eq!(ruled(NO_CONTENT, false), failed(Reason::Body));
}

#[test]
fn a_body_without_a_length_ends_with_the_connection() {
    let text = "HTTP/1.0 200 OK\r\n\r\nhello";
    assert_eq!(ruled(text, false), None);
    assert_eq!(ruled(text, true), WELL);
    assert_eq!(ruled("HTTP/1.0 200 OK\r\n\r\nhell", true), failed(Reason::Body));
    let empty = || http(rule(false, ""), false);
    assert_eq!(judge(empty, b"HTTP/1.0 200 OK\r\n\r\n", true), WELL);
}

#[test]
fn of_a_long_body_the_beginning_is_looked_at() {
    let body = "a".repeat(BODY_MAX + 1);
    for (head, body) in [
        ("", body.clone()),
        ("Content-Length: 131073\r\n", body.clone()),
        ("Transfer-Encoding: chunked\r\n", format!("20001\r\n{body}\r\n0\r\n\r\n")),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}");
        let seen = Rc::new(Cell::new(0));
        let noted = seen.clone();
        let matches: Matcher = Rc::new(move |body| {
            noted.set(body.len());
            true
        });
        for size in [1, 1000, text.len()] {
            seen.set(0);
            let mut talk = http(Some(BodyRule { negated: false, matches: matches.clone() }), true);
            assert_eq!(hear(&mut talk, text.as_bytes().chunks(size), false), WELL, "{head}");
            assert_eq!(seen.get(), BODY_MAX, "{head}");
        }
        assert_eq!(hear(&mut http(None, true), [text.as_bytes()], false), WELL, "{head}");
    }
    let exact = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_MAX}\r\n\r\n{}", &body[1..]);
    assert_eq!(hear(&mut http(rule(true, ""), true), [exact.as_bytes()], false), REUSABLE);
}

#[test]
fn a_good_status_stands_whatever_becomes_of_the_rest_that_nobody_asked_for() {
    let reset = Reason::Reset(Stage::Read);
    for (text, rule, expected) in [
        ("", None, Verdict::Failed(reset)),
        ("HTTP/1.1 200 OK", None, Verdict::Failed(reset)),
        ("HTTP/1.1 100 Continue\r\nA: b", None, Verdict::Failed(reset)),
        ("HTTP/1.1 200 OK\r\nA: b", None, Verdict::WELL),
        ("HTTP/1.1 200 OK\r\nA: b", rule(false, ""), Verdict::Failed(reset)),
        (HELLO, None, Verdict::WELL),
        (HELLO, rule(false, "hello"), Verdict::Failed(reset)),
    ] {
        let mut talk = http(rule, true);
        let cut = text.strip_suffix('o').unwrap_or(text);
        assert_eq!(hear(&mut talk, [cut.as_bytes()], false), None, "{text}");
        assert_eq!(talk.cut(reset), expected, "{text}");
    }
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(&b"HTTP/1.1 200 OK\r\n"[..]),
        Just(&b"HTTP/1.0 404 x\r\n"[..]),
        Just(&b"HTTP/2.0 200\r\n"[..]),
        Just(&b"HTTP/1.1 100 \n"[..]),
        Just(&b"Content-Length: 5\r\n"[..]),
        Just(&b"Transfer-Encoding: chunked\r\n"[..]),
        Just(&b"Connection: keep-alive\r\n"[..]),
        Just(&b"\r\n"[..]),
        Just(&b"\n"[..]),
        Just(&b"\r"[..]),
        Just(&b" x"[..]),
        Just(&b": y"[..]),
        Just(&b"@\xff"[..]),
        Just(&b"\0"[..]),
        Just(&b"5\r\nhello\r\n0\r\n\r\n"[..]),
        Just(&b"hello"[..]),
    ];
    let pieces = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    prop_oneof![
        pieces.clone(),
        pieces.prop_map(|rest| [&b"HTTP/1.1 200 OK\r\n"[..], &rest].concat()),
        any::<Vec<u8>>(),
    ]
}

proptest! {
    #[test]
    fn the_pieces_make_no_difference(text in any_text(), keepalive: bool, closes: bool) {
        judge(|| http(None, keepalive), &text, closes);
        judge(|| http(rule(false, "hello"), keepalive), &text, closes);
    }

    #[test]
    fn any_bytes_end(pieces in prop::collection::vec(any_text(), 0..5), keepalive: bool) {
        for rule in [None, rule(true, "")] {
            let pieces = pieces.iter().map(Vec::as_slice);
            assert!(hear(&mut http(rule, keepalive), pieces, true).is_some());
        }
    }
}
