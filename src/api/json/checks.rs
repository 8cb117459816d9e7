//! How servers are checked, as an object that can be posted.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::grammar::check::alive_words;
use crate::model::Check;

/// The keys of `check` are those of its parameters, the others those of its companions without
/// `check_`. Times are milliseconds.
#[derive(Serialize)]
pub struct Checks<'a> {
    r#type: &'static str,
    interval: u32,
    rise: u32,
    fall: u32,
    timeout: u32,
    default_down: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_send: Option<&'a str>,
    http_expect_alive: Vec<String>,
    /// `~ REGEX` or `!~ REGEX`.
    #[serde(skip_serializing_if = "Option::is_none")]
    http_expect_body: Option<String>,
    keepalive_requests: u32,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    fastcgi_param: &'a [(String, String)],
    ssl_verify: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssl_name: Option<&'a str>,
    fail_open: u8,
}

impl<'a> Checks<'a> {
    pub fn of(check: &'a Check) -> Self {
        Self {
            r#type: check.kind.name(),
            interval: check.interval,
            rise: check.rise,
            fall: check.fall,
            timeout: check.timeout,
            default_down: check.default_down,
            port: check.port,
            http_send: check.send.as_deref(),
            http_expect_alive: alive_words(&check.alive),
            http_expect_body: check.body.as_ref().map(|body| {
                let operator = if body.negated { "!~" } else { "~" };
                format!("{operator} {}", body.regex)
            }),
            keepalive_requests: check.keepalive_requests,
            fastcgi_param: &check.fastcgi_params,
            ssl_verify: check.ssl_verify,
            ssl_name: check.ssl_name.as_deref(),
            fail_open: check.fail_open,
        }
    }
}
