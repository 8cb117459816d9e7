//! Conversations with servers of `h2`, and with whatever bytes.
#![forbid(unsafe_code)]

mod any;

use super::*;
use h2::server::SendResponse;
use http::HeaderValue;
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;

const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";
const CLOSED: Verdict = Verdict::Failed(Reason::Closed(Stage::Read));
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

type Respond = SendResponse<Bytes>;
type Seen = Rc<RefCell<Option<(Request<()>, Vec<u8>)>>>;

fn failed(reason: Reason) -> Verdict {
    Verdict::Failed(reason)
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// A server that takes one request, and whose bytes are those of `pipe`.
async fn serve(pipe: Pipe, seen: Seen, respond: impl FnOnce(&mut Respond)) {
    let mut connection = h2::server::handshake(pipe).await.unwrap();
    let (request, mut to) = connection.accept().await.unwrap().unwrap();
    respond(&mut to);
    let (head, mut body) = request.into_parts();
    poll_fn(|context| {
        let _ = connection.poll_closed(context);
        if let Poll::Ready(Some(Ok(bytes))) = body.poll_data(context) {
            *seen.borrow_mut() = Some((Request::from_parts(head.clone(), ()), bytes.to_vec()));
        }
        Poll::<()>::Pending
    })
    .await;
}

/// What was asked and answered in the conversation.
struct Said {
    request: Option<(Request<()>, Vec<u8>)>,
    answer: Vec<u8>,
    verdict: Option<Verdict>,
}

/// The conversation of `talk` with a server that answers by `respond`.
fn say(mut talk: Grpc, respond: impl FnOnce(&mut Respond) + 'static) -> Said {
    let (pipe, seen) = (Pipe::default(), Seen::default());
    let mut server = Box::pin(serve(pipe.clone(), seen.clone(), respond));
    let (mut answer, mut verdict) = (Vec::new(), None);
    pipe.feed(&talk.open());
    for _ in 0..10 {
        assert!(poll(&mut server).is_pending());
        let bytes = pipe.take();
        answer.extend_from_slice(&bytes);
        match talk.received(&bytes) {
            Step::Wait => {}
            Step::Send(bytes) => pipe.feed(&bytes),
            Step::Done(done) => verdict = verdict.or(Some(done)),
        }
    }
    Said { request: seen.take(), answer, verdict }
}

/// What comes of these bytes, in as many pieces.
fn heard(pieces: &[&[u8]]) -> Verdict {
    let mut talk = Grpc::new("a", false);
    talk.open();
    for piece in pieces {
        if let Step::Done(verdict) = talk.received(piece) {
            assert_eq!(talk.closed(), verdict);
            return verdict;
        }
    }
    talk.closed()
}

fn in_bytes(bytes: &[u8]) -> Verdict {
    heard(&bytes.chunks(1).collect::<Vec<_>>())
}

/// What comes of an answer, wherever it is split.
fn verdict(respond: impl FnOnce(&mut Respond) + 'static) -> Verdict {
    let said = say(Grpc::new("a", false), respond);
    let verdict = said.verdict.unwrap();
    for at in 0..=said.answer.len() {
        let (first, second) = said.answer.split_at(at);
        assert_eq!(heard(&[first, second]), verdict, "split at {at}");
    }
    assert_eq!(in_bytes(&said.answer), verdict);
    verdict
}

fn head(status: u16, kind: &'static str) -> Response<()> {
    let response = Response::builder().status(status);
    if kind.is_empty() { response } else { response.header("content-type", kind) }.body(()).unwrap()
}

fn fields(name: &'static str, value: &str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(name, HeaderValue::from_str(value).unwrap());
    fields
}

/// An answer of 200 with a body and trailers.
fn whole(kind: &'static str, body: &[u8], trailers: Option<HeaderMap>) -> Verdict {
    let body = Bytes::copy_from_slice(body);
    verdict(move |respond| {
        let mut stream = respond.send_response(head(200, kind), false).unwrap();
        stream.send_data(body, trailers.is_none()).unwrap();
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers).unwrap();
        }
    })
}

fn message(body: &[u8]) -> Verdict {
    whole("application/grpc", body, Some(fields("grpc-status", "0")))
}

/// A frame of HTTP/2 on stream 1, or on the connection.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend_from_slice(payload);
    frame
}

fn serving(respond: &mut Respond) {
    let mut stream = respond.send_response(head(200, "application/grpc"), false).unwrap();
    stream.send_data(SERVING.into(), false).unwrap();
    stream.send_trailers(fields("grpc-status", "0")).unwrap();
}

#[test]
fn the_request() {
    for (authority, tls, uri) in [
        ("10.0.0.1:80", false, "http://10.0.0.1:80/grpc.health.v1.Health/Check"),
        ("a_b.example", true, "https://a_b.example/grpc.health.v1.Health/Check"),
        ("[::1]:80", true, "https://[::1]:80/grpc.health.v1.Health/Check"),
        ("", false, "http://localhost/grpc.health.v1.Health/Check"),
        ("a b/\r\n", false, "http://localhost/grpc.health.v1.Health/Check"),
        ("unix:/run/a", true, "https://localhost/grpc.health.v1.Health/Check"),
    ] {
        let mut talk = Grpc::new(authority, tls);
        assert!(talk.open().starts_with(PREFACE));
        let said = say(Grpc::new(authority, tls), serving);
        let (request, message) = said.request.unwrap();
        assert_eq!(request.uri(), uri);
        assert_eq!(request.method(), "POST");
        let fields = request.headers();
        assert_eq!(fields["content-type"], "application/grpc");
        assert_eq!(fields["te"], "trailers");
        let agent = format!("ngx-upsync/{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(fields["user-agent"], agent.as_str());
        assert_eq!(fields.len(), 3);
        assert_eq!(message, [0; 5]);
        assert_eq!(said.verdict, Some(Verdict::WELL));
    }
}

#[test]
fn a_server_is_well_or_says_how_it_is() {
    assert_eq!(message(SERVING), Verdict::WELL);
    assert_eq!(message(b"\0\0\0\0\x04\x10\x07\x08\x01"), Verdict::WELL, "unknown field");
    assert_eq!(message(b"\0\0\0\0\0"), failed(Reason::NotServing(0)));
    assert_eq!(message(b"\0\0\0\0\x02\x08\x02"), failed(Reason::NotServing(2)));
    assert_eq!(message(b"\0\0\0\0\x02\x08\x03"), failed(Reason::NotServing(3)));
    let status = Some(fields("grpc-status", "0"));
    assert_eq!(whole("application/grpc+proto", SERVING, status), Verdict::WELL);
}

#[test]
fn a_call_that_failed() {
    for body in [SERVING, b"\0\0\0\0\0", b""] {
        let status = Some(fields("grpc-status", "14"));
        assert_eq!(whole("application/grpc", body, status), failed(Reason::Grpc(14)));
    }
    let only_trailers = |code| {
        verdict(move |respond| {
            let mut head = head(200, "application/grpc");
            head.headers_mut().extend(fields("grpc-status", code));
            respond.send_response(head, true).unwrap();
        })
    };
    assert_eq!(only_trailers("12"), failed(Reason::Grpc(12)));
    assert_eq!(only_trailers("0"), failed(Reason::NotGrpc));
}

#[test]
fn another_status_of_http() {
    for status in [204, 302, 404, 503] {
        let verdict = verdict(move |respond| {
            let mut head = head(status, "application/grpc");
            head.headers_mut().extend(fields("grpc-status", "0"));
            respond.send_response(head, true).unwrap();
        });
        assert_eq!(verdict, failed(Reason::Status(status)));
    }
}

#[test]
fn answers_that_are_not_of_grpc() {
    for body in [
        &b"\x01\0\0\0\x02\x08\x01"[..],
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\x03\x08\x01",
        b"\0\0\0\0\x02\x08\x01\0",
        b"\0\0\0\0\x02\x08\x01\0\0\0\0\x02\x08\x01",
        b"\0\0\0\0\x02\xff\xff",
        b"\0\0\0\0\x03\x08\xac\x02",
        b"<html></html>",
    ] {
        assert_eq!(message(body), failed(Reason::NotGrpc), "{body:?}");
    }
    for kind in ["", "text/html", "application/json"] {
        let status = Some(fields("grpc-status", "0"));
        assert_eq!(whole(kind, SERVING, status), failed(Reason::NotGrpc), "{kind}");
    }
    for trailers in [fields("grpc-message", "0"), fields("grpc-status", "OK")] {
        let verdict = whole("application/grpc", SERVING, Some(trailers));
        assert_eq!(verdict, failed(Reason::NotGrpc));
    }
    assert_eq!(whole("application/grpc", SERVING, None), failed(Reason::NotGrpc), "no trailers");
}

#[test]
fn a_server_that_breaks_off() {
    let reset = |respond: &mut Respond| respond.send_reset(h2::Reason::REFUSED_STREAM);
    assert_eq!(verdict(reset), failed(Reason::NotGrpc));
    let settings = frame(4, 0, 0, b"");
    let refused = frame(7, 0, 0, b"\0\0\0\0\0\0\0\x0b");
    assert_eq!(in_bytes(&[settings, refused].concat()), failed(Reason::NotGrpc));
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"J\0\0\0\x0a8.0.30\0", &[0xff; 64]] {
        assert_eq!(heard(&[bytes]), failed(Reason::NotGrpc));
        assert_eq!(in_bytes(bytes), failed(Reason::NotGrpc));
    }
}

#[test]
fn a_server_that_goes_away_after_this_answer_is_well() {
    let said = say(Grpc::new("a", false), serving);
    let last = frame(7, 0, 0, b"\0\0\0\x01\0\0\0\0");
    let settings = frame(4, 0, 0, b"");
    let all = [settings, last, said.answer].concat();
    assert_eq!(heard(&[&all]), Verdict::WELL);
    assert_eq!(in_bytes(&all), Verdict::WELL);
}

#[test]
fn hints_before_the_answer_are_passed_over() {
    let said = say(Grpc::new("a", false), serving);
    let hint = frame(1, 4, 1, b"\x08\x03103");
    let all = [frame(4, 0, 0, b""), hint, said.answer].concat();
    assert_eq!(heard(&[&all]), Verdict::WELL);
    assert_eq!(in_bytes(&all), Verdict::WELL);
}

#[test]
fn a_connection_that_is_closed_before_the_end() {
    let said = say(Grpc::new("a", false), serving);
    for end in 0..said.answer.len() {
        assert_eq!(heard(&[&said.answer[..end]]), CLOSED, "after {end} bytes");
    }
}

#[test]
fn pings_are_answered() {
    let mut talk = Grpc::new("a", false);
    talk.open();
    let step = talk.received(&[frame(4, 0, 0, b""), frame(6, 0, 0, b"12345678")].concat());
    let Step::Send(sent) = step else { panic!("{step:?}") };
    assert!(sent.ends_with(&frame(6, 1, 0, b"12345678")));
    assert_eq!(talk.received(b""), Step::Wait);
}

#[test]
fn an_answer_has_bounds() {
    let status = || Some(fields("grpc-status", "0"));
    let longest = |length: usize| {
        let tag = [&[0x12][..], &[(length - 3) as u8 | 0x80, ((length - 3) >> 7) as u8]].concat();
        let prefix = (length as u32).to_be_bytes();
        [&[0][..], &prefix, &tag, &vec![b'x'; length - 3]].concat()
    };
    let message = |bytes: Vec<u8>| {
        let respond = move |respond: &mut Respond| {
            let mut stream = respond.send_response(head(200, "application/grpc"), false).unwrap();
            stream.send_data(bytes.into(), false).unwrap();
            stream.send_trailers(status().unwrap()).unwrap();
        };
        say(Grpc::new("a", false), respond).verdict
    };
    assert_eq!(message(longest(4096)), Some(failed(Reason::NotServing(0))));
    assert_eq!(message(longest(4097)), Some(failed(Reason::TooLong)));
    let said = say(Grpc::new("a", false), |respond| {
        let mut head = head(200, "application/grpc");
        head.headers_mut().extend(fields("x", &"x".repeat(20_000)));
        respond.send_response(head, true).unwrap();
    });
    assert_eq!(said.verdict, Some(failed(Reason::NotGrpc)));
    let pings = [frame(4, 0, 0, b""), frame(6, 0, 0, b"12345678").repeat(4000)].concat();
    let chunks: Vec<&[u8]> = pings.chunks(1000).collect();
    assert_eq!(heard(&chunks), failed(Reason::TooLong));
    assert_eq!(heard(&[&pings]), failed(Reason::TooLong));
}
