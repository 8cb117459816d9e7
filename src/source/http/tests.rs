//! Tests of requests against a server that answers as it is told.
#![forbid(unsafe_code)]

use super::*;
use crate::source::testing::{self, Script, close_early, reset};
use std::thread;
use std::time::Instant;

const LONG: Duration = Duration::from_secs(10);

fn get_with(script: Script, max_body: u64, total: Duration) -> Result<Response, FetchError> {
    let server = testing::Server::start(vec![script]);
    Client::new(&server.endpoint(), max_body).get("/v1/kv/a/?recurse", total, total)
}

fn get(answer: impl Into<Vec<u8>>) -> Result<Response, FetchError> {
    get_with(Script::Answer(answer.into()), 1000, LONG)
}

fn message(answer: impl Into<Vec<u8>>) -> String {
    get(answer).unwrap_err().to_string()
}

fn ok(index: Option<u64>, body: &str) -> Response {
    Response { status: 200, index, body: body.into() }
}

#[test]
fn a_body_of_known_length_is_read() {
    let answer = "HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 2\r\n\r\n[]";
    assert_eq!(get(answer).unwrap(), ok(Some(7), "[]"));
}

#[test]
fn a_chunked_body_is_read() {
    let answer = "HTTP/1.1 200 OK\r\nx-consul-index: 7\r\nTransfer-Encoding: chunked\r\n\r\n\
                  1\r\n[\r\n4;x=y\r\n1,2]\r\n0\r\nTrailer: x\r\n\r\n";
    assert_eq!(get(answer).unwrap(), ok(Some(7), "[1,2]"));
}

#[test]
fn a_body_up_to_the_end_of_the_connection_is_read() {
    assert_eq!(get("HTTP/1.0 200 OK\r\n\r\n[]").unwrap(), ok(None, "[]"));
}

#[test]
fn header_names_are_of_any_case() {
    for name in ["X-CONSUL-INDEX", "x-consul-index", "X-Consul-Index", "x-cONSUL-iNDEX"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{name}:  42 \r\nCONTENT-length: 0\r\n\r\n");
        assert_eq!(get(answer).unwrap(), ok(Some(42), ""), "{name}");
    }
}

#[test]
fn an_index_that_is_no_number_is_none() {
    for index in ["", "x", "-1", "18446744073709551616", "1 2"] {
        let answer =
            format!("HTTP/1.1 200 OK\r\nX-Consul-Index: {index}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(get(answer).unwrap().index, None, "{index}");
    }
}

#[test]
fn a_hundred_headers_and_long_ones_are_read() {
    let many: String = (0..100).map(|n| format!("X-Header-{n}: value\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "a".repeat(100_000));
    for headers in [many, long] {
        let answer =
            format!("HTTP/1.1 200 OK\r\n{headers}X-Consul-Index: 9\r\nContent-Length: 2\r\n\r\n[]");
        assert_eq!(get(answer).unwrap(), ok(Some(9), "[]"));
    }
}

#[test]
fn a_head_without_end_is_an_error() {
    let line = "HTTP/1.1 200 OK\r\nX-Long: ";
    let message = message(format!("{line}{}", "a".repeat(2 * HEAD_MAX)));
    assert!(message.starts_with("head of more than"), "{message}");
    let many: String = (0..1000).map(|n| format!("X-{n}: v\r\n")).collect();
    assert!(get(format!("HTTP/1.1 200 OK\r\n{many}\r\n")).is_err());
}

#[test]
fn a_truncated_body_is_an_error() {
    assert_eq!(message("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[]"), "unexpected end of file");
    for chunks in ["2\r\n[]\r\n", "5\r\n[]", "", "2"] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert!(get(answer).is_err(), "{chunks:?}");
    }
}

#[test]
fn a_truncated_head_is_an_error() {
    for head in ["", "HTTP/1.1", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"]
    {
        assert_eq!(message(head), "unexpected end of file", "{head:?}");
    }
}

#[test]
fn what_is_not_http_is_an_error() {
    for answer in [
        "garbage\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "HTTP/1.1 099 X\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
    ] {
        let message = message(answer);
        assert!(!message.contains(char::is_control), "{message}");
    }
}

#[test]
fn a_body_may_be_as_large_as_allowed_and_no_larger() {
    for (length, is_good) in [(999, true), (1000, true), (1001, false), (100_000, false)] {
        let body = "a".repeat(length);
        let known = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        let chunked = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
        );
        for answer in [known, chunked, format!("HTTP/1.0 200 OK\r\n\r\n{body}")] {
            match get(answer) {
                Ok(response) => assert!(is_good && response.body.len() == length),
                Err(error) => {
                    assert!(!is_good, "{error}");
                    let message = "answer of more than 1000 bytes, see upsync_max_body";
                    assert_eq!(error.to_string(), message);
                }
            }
        }
    }
}

#[test]
fn the_length_that_is_announced_is_not_allocated() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000000\r\n\r\n[]";
    assert!(get_with(Script::Answer(answer.into()), u64::MAX, LONG).is_err());
}

#[test]
fn of_another_status_only_the_start_is_kept() {
    let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 13\r\n\r\nACL not found";
    let expected = Response { status: 403, index: None, body: "ACL not found".into() };
    assert_eq!(get(answer).unwrap(), expected);
    let long = format!("HTTP/1.1 500 X\r\nContent-Length: 5000\r\n\r\n{}", "a".repeat(5000));
    assert_eq!(get(long).unwrap().body.len() as u64, REASON_MAX);
    assert_eq!(get("HTTP/1.1 404 X\r\nContent-Length: 9\r\n\r\n").unwrap().status, 404);
    assert_eq!(get("HTTP/1.1 204 X\r\n\r\n").unwrap().status, 204);
}

#[test]
fn a_redirect_is_not_followed() {
    let answer = "HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(get(answer).unwrap().status, 302);
}

#[test]
fn a_silent_server_is_a_time_out() {
    let start = Instant::now();
    let total = Duration::from_millis(100);
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[";
    for script in [Script::Hang(vec![]), Script::Hang(half.into())] {
        assert_eq!(get_with(script, 1000, total).unwrap_err().to_string(), "timed out");
    }
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn a_silence_is_bounded_by_itself() {
    let server = testing::Server::start(vec![Script::Hang(vec![])]);
    let silence = Duration::from_millis(100);
    let result = Client::new(&server.endpoint(), 1000).get("/", silence, LONG);
    assert!(matches!(result, Err(FetchError::Timeout)));
}

#[test]
fn a_server_that_drips_is_a_time_out() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
    let script = Script::Drip(head.into(), Duration::from_millis(20));
    let result = get_with(script, 1_000_000, Duration::from_millis(200));
    assert!(matches!(result, Err(FetchError::Timeout)));
}

#[test]
fn a_refused_or_broken_connection_says_so() {
    let server = testing::Server::start(vec![]);
    let endpoint = server.endpoint();
    drop(server);
    let get = |endpoint| Client::new(endpoint, 1000).get("/", LONG, LONG).unwrap_err().to_string();
    assert_eq!(get(&endpoint), "connection refused");
    let error = get_with(reset(), 1000, LONG).unwrap_err().to_string();
    assert_eq!(error, "connection reset");
    let error = get_with(close_early(), 1000, LONG).unwrap_err().to_string();
    assert!(["unexpected end of file", "connection reset"].contains(&&*error), "{error}");
}

#[test]
fn a_name_that_does_not_resolve_says_so() {
    let endpoint = Endpoint::parse("no-such-host.invalid:80", None).unwrap();
    let result = Client::new(&endpoint, 1000).get("/", LONG, LONG);
    assert!(result.unwrap_err().to_string().starts_with("host not found: "));
}

#[test]
fn a_name_and_an_ipv6_address_are_asked() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";
    for (bind, host) in [("127.0.0.1:0", "localhost"), ("[::1]:0", "[::1]")] {
        // Not every machine that runs tests has IPv6.
        let Some(server) = testing::Server::bind(bind, vec![Script::Answer(answer.into())]) else {
            continue;
        };
        let endpoint = Endpoint::parse(&format!("{host}:{}", server.port()), None).unwrap();
        let response = Client::new(&endpoint, 1000).get("/x?y", LONG, LONG).unwrap();
        assert_eq!(response, ok(None, "[]"));
        let request = server.requests().remove(0);
        assert!(request.starts_with("GET /x?y HTTP/1.1\r\n"), "{request}");
        let lower = request.to_lowercase();
        assert!(lower.contains(&format!("host: {host}:{}\r\n", server.port())), "{request}");
        assert!(lower.contains("user-agent: ngx_http_upsync_module/"), "{request}");
        assert!(!lower.contains("gzip"), "{request}");
    }
}

#[test]
fn a_server_that_restarts_between_requests_costs_no_failure() {
    let answer = || Script::Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]".into());
    let server = testing::Server::start(vec![answer(), answer()]);
    let client = Client::new(&server.endpoint(), 1000);
    for _ in 0..2 {
        assert!(client.get("/", LONG, LONG).is_ok());
    }
}

#[test]
fn a_shutdown_ends_a_request_at_once() {
    let server = testing::Server::start(vec![Script::Hang(vec![])]);
    let client = Client::new(&server.endpoint(), 1000);
    let asking = client.clone();
    let start = Instant::now();
    let thread = thread::spawn(move || asking.get("/", LONG, LONG));
    while server.requests().is_empty() {
        thread::yield_now();
    }
    client.shutdown();
    assert!(thread.join().unwrap().is_err());
    assert!(start.elapsed() < LONG / 2);
    assert!(client.get("/", LONG, LONG).is_err());
}
