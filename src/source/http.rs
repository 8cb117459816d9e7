//! Bounded HTTP requests to one server.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

use super::dns;
use crate::model::{Endpoint, Printable};

/// The longest a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The largest head of an answer in bytes. Of its lines, ureq takes 128.
const HEAD_MAX: usize = 128 * 1024;

/// What is read at a time, in bytes; ureq wants a head in one piece.
const BUFFER: usize = 2 * HEAD_MAX;

/// How much of the body is kept if the status is not 200, in bytes. Consul says there why.
const REASON_MAX: u64 = 256;

/// Asks one server. Each request has its own connection: one kept open might be stale, and a
/// request that fails over it says nothing about the server.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    origin: String,
    max_body: u64,
}

/// An answer that is complete, of whatever status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 100 to 999.
    pub status: u16,
    /// The header `X-Consul-Index`, if it is a number.
    pub index: Option<u64>,
    /// At most `max_body` bytes; of another status than 200 only the start.
    pub body: Vec<u8>,
}

/// Why there is no complete answer.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The name of the server does not resolve.
    #[error("host not found: {}", Printable(.0))]
    Host(String),
    /// The connection failed: refused, reset, closed too early.
    #[error("{}", io_text(.0))]
    Io(io::Error),
    /// One of the bounds in time.
    #[error("timed out")]
    Timeout,
    /// The bound in size.
    #[error("answer of more than {0} bytes, see upsync_max_body")]
    TooLarge(u64),
    /// Not HTTP as it should be.
    #[error("{}", Printable(.0))]
    Protocol(String),
}

impl Client {
    /// A client for a server, which must be no `unix:` socket, and for bodies of at most
    /// `max_body` bytes.
    pub fn new(server: &Endpoint, max_body: u64) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("ngx_http_upsync_module/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(HEAD_MAX)
            .input_buffer_size(BUFFER)
            .output_buffer_size(16 * 1024)
            .max_idle_connections(0)
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::default(), SystemResolver);
        Self { agent, origin: format!("http://{server}"), max_body }
    }

    /// Gets `target`, a path with arguments. No read may take longer than `silence`, and the whole
    /// no longer than `total`.
    pub fn get(
        &self,
        target: &str,
        silence: Duration,
        total: Duration,
    ) -> Result<Response, FetchError> {
        let response = self
            .agent
            .get(format!("{}{target}", self.origin))
            .config()
            .timeout_connect(Some(CONNECT_MAX.min(total)))
            .timeout_per_read(Some(silence.min(total)))
            .timeout_per_write(Some(silence.min(total)))
            .timeout_global(Some(total))
            .build()
            .call()?;
        let index = response.headers().get("x-consul-index").and_then(|value| value.to_str().ok());
        let index = index.and_then(|index| index.trim().parse().ok());
        let status = response.status().as_u16();
        let body = if status == 200 {
            read_whole(response.into_body(), self.max_body)?
        } else {
            read_start(response.into_body())
        };
        Ok(Response { status, index, body })
    }

    /// Ends a request under way with an error, and lets no further one begin.
    pub fn shutdown(&self) {
        self.agent.clone().shutdown();
    }
}

fn read_whole(body: Body, max: u64) -> Result<Vec<u8>, FetchError> {
    // ureq counts a body of exactly the limit as too large.
    let limit = max.saturating_add(1);
    match body.into_with_config().limit(limit).read_to_vec() {
        Ok(body) if body.len() as u64 > max => Err(FetchError::TooLarge(max)),
        Err(ureq::Error::BodyExceedsLimit(_)) => Err(FetchError::TooLarge(max)),
        other => Ok(other?),
    }
}

/// What there is of a body that is only shown.
fn read_start(body: Body) -> Vec<u8> {
    let mut start = Vec::new();
    // On an error the part before it stays.
    let _ = body.into_reader().take(REASON_MAX).read_to_end(&mut start);
    start
}

impl From<ureq::Error> for FetchError {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::Timeout,
            ureq::Error::Io(error) if is_timeout(&error) => Self::Timeout,
            // The resolver's own: of no kind that the system's connections have.
            ureq::Error::Io(error) if error.get_ref().is_some_and(|e| e.is::<dns::DnsError>()) => {
                Self::Host(error.to_string())
            }
            ureq::Error::Io(error) => Self::Io(error),
            // Its text has how much had been read by chance: a new text each time.
            ureq::Error::LargeResponseHeader(_, max) => {
                Self::Protocol(format!("head of more than {max} bytes"))
            }
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// The kind in words, as it is without the number; the whole text where the kind says nothing.
fn io_text(error: &io::Error) -> String {
    let kind = error.kind().to_string();
    if matches!(kind.as_str(), "other error" | "uncategorized error") {
        Printable(&error.to_string()).to_string()
    } else {
        kind
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// ureq's own resolver panics if no thread can be started.
#[derive(Debug)]
struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(80);
        let found = dns::lookup_within(host, *timeout.after)
            .map_err(|error| ureq::Error::Io(io::Error::other(error)))?;
        let mut addresses = self.empty();
        // ureq's array holds 16 and panics beyond.
        for ip in found.into_iter().take(16) {
            addresses.push(SocketAddr::new(ip, port));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests;
