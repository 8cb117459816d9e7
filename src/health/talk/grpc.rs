//! gRPC's own question whether a server is well: `grpc.health.v1.Health/Check` for the server as a
//! whole, over HTTP/2.
#![forbid(unsafe_code)]

mod message;
mod pipe;
#[cfg(test)]
mod tests;

use super::{Step, Talk, Verdict};
use crate::model::Reason;
use crate::model::reason::Stage;
use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture};
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use pipe::Pipe;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// The most that is read from a server, in bytes.
const RECEIVED_MAX: usize = 64 * 1024;

/// The most that header fields may take, in bytes as RFC 9113 counts them (6.5.2).
const HEADERS_MAX: u32 = 16 * 1024;

/// The most that a server may send of its answer before it is told to go on, which it is never.
const WINDOW: u32 = 16 * 1024;

const PATH: &str = "/grpc.health.v1.Health/Check";

/// The conversation. The status of the service counts only if the call has ended well.
pub struct Grpc {
    authority: String,
    tls: bool,
    pipe: Pipe,
    call: Option<Call>,
    received: usize,
    verdict: Option<Verdict>,
}

/// What is under way once the request has been made.
struct Call {
    /// None once it has ended, as it must not be polled again.
    connection: Option<Connection<Pipe, Bytes>>,
    answer: Pin<Box<dyn Future<Output = Result<(), Reason>>>>,
}

impl Grpc {
    /// A conversation with a server that goes by the name `authority`, as `host` or `host:port`;
    /// what cannot be such a name becomes `localhost`. `tls` says which scheme the request names.
    pub fn new(authority: &str, tls: bool) -> Self {
        Self {
            authority: authority.into(),
            tls,
            pipe: Pipe::default(),
            call: None,
            received: 0,
            verdict: None,
        }
    }

    /// Lets HTTP/2 go on until nothing moves any more.
    fn go_on(&mut self) {
        while let (Some(call), None) = (&mut self.call, self.verdict) {
            let before = self.pipe.moved();
            self.verdict = call.go_on();
            if self.pipe.moved() == before {
                break;
            }
        }
    }

    fn fail(&mut self, reason: Reason) {
        self.verdict.get_or_insert(Verdict::Failed(reason));
    }
}

impl Talk for Grpc {
    fn open(&mut self) -> Vec<u8> {
        let mut start = Box::pin(start(self.pipe.clone(), request(&self.authority, self.tls)));
        match start.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(call)) => self.call = Some(call),
            _ => self.fail(Reason::NotGrpc),
        }
        self.go_on();
        self.pipe.take()
    }

    fn received(&mut self, bytes: &[u8]) -> Step {
        self.received = self.received.saturating_add(bytes.len());
        if self.received > RECEIVED_MAX {
            self.fail(Reason::TooLong);
        } else {
            self.pipe.feed(bytes);
            self.go_on();
        }
        let answer = self.pipe.take();
        match self.verdict {
            Some(verdict) => Step::Done(verdict),
            None if answer.is_empty() => Step::Wait,
            None => Step::Send(answer),
        }
    }

    fn closed(&mut self) -> Verdict {
        self.verdict.unwrap_or(Verdict::Failed(Reason::Closed(Stage::Read)))
    }
}

impl Call {
    /// Polls all once. The verdict, if there is one.
    fn go_on(&mut self) -> Option<Verdict> {
        let mut context = Context::from_waker(Waker::noop());
        let ended =
            self.connection.as_mut().is_none_or(|c| Pin::new(c).poll(&mut context).is_ready());
        if ended {
            self.connection = None;
        }
        match self.answer.as_mut().poll(&mut context) {
            Poll::Ready(Ok(())) => Some(Verdict::WELL),
            Poll::Ready(Err(reason)) => Some(Verdict::Failed(reason)),
            Poll::Pending => ended.then_some(Verdict::Failed(Reason::NotGrpc)),
        }
    }
}

/// Nothing of it waits: HTTP/2 may ask before the server has said anything.
async fn start(pipe: Pipe, request: Request<()>) -> Result<Call, h2::Error> {
    let (requests, connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .max_header_list_size(HEADERS_MAX)
        .handshake(pipe)
        .await?;
    let (response, mut body) = requests.ready().await?.send_request(request, false)?;
    body.send_data(message::request(), true)?;
    Ok(Call { connection: Some(connection), answer: Box::pin(answer(response)) })
}

fn request(authority: &str, tls: bool) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = uri(authority, tls).or_else(|_| uri("localhost", tls)).unwrap_or_default();
    let fields = request.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/grpc"),
        (header::TE, "trailers"),
        (header::USER_AGENT, concat!("ngx-upsync/", env!("CARGO_PKG_VERSION"))),
    ] {
        fields.insert(name, http::HeaderValue::from_static(value));
    }
    request
}

fn uri(authority: &str, tls: bool) -> Result<Uri, http::Error> {
    let scheme = if tls { "https" } else { "http" };
    Uri::builder().scheme(scheme).authority(authority).path_and_query(PATH).build()
}

/// Reads the answer to its end. Whatever `h2` complains of is no gRPC.
async fn answer(response: ResponseFuture) -> Result<(), Reason> {
    let response = response.await.map_err(|_| Reason::NotGrpc)?;
    check_head(&response)?;
    let mut body = response.into_body();
    let mut message = message::Answer::default();
    while let Some(bytes) = body.data().await {
        message.take(&bytes.map_err(|_| Reason::NotGrpc)?)?;
    }
    let trailers = body.trailers().await.map_err(|_| Reason::NotGrpc)?;
    match trailers.as_ref().and_then(status) {
        Some(0) => message.verdict(),
        Some(code) => Err(Reason::Grpc(code)),
        None => Err(Reason::NotGrpc),
    }
}

fn check_head<T>(response: &Response<T>) -> Result<(), Reason> {
    if response.status() != StatusCode::OK {
        return Err(Reason::Status(response.status().as_u16()));
    }
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Err(Reason::NotGrpc);
    }
    match status(response.headers()) {
        None | Some(0) => Ok(()),
        Some(code) => Err(Reason::Grpc(code)),
    }
}

/// `grpc-status`, if it is there and a number.
fn status(fields: &HeaderMap) -> Option<u16> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}
