//! All that the interface answers: dyups' codes and texts, and Slardar's as JSON.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use super::json;
use crate::model::body::Place;
use crate::model::{Name, Printable};

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// That of dyups, without a content type.
    Text,
    /// That of Slardar.
    Json,
}

/// What goes back to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The code of HTTP.
    pub status: u16,
    /// May be empty. That of a 204 goes nowhere: nginx sends none.
    pub body: Cow<'static, str>,
    /// The field `Content-Type`, if there is to be one: dyups sends none.
    pub content_type: Option<&'static str>,
    /// The field `Allow` of a 405.
    pub allow: Option<&'static str>,
    /// The field `X-Keepalive`: the idle connections that each worker keeps, said to whoever asks
    /// for a number.
    pub keepalive: Option<u32>,
    /// The field `Content-Security-Policy` of a page.
    pub policy: Option<&'static str>,
}

/// Where `keepalive` would have to be for a body to set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keepalive<'a> {
    /// In the upstream that `dyups_upstream` names; or there is no such upstream.
    Template,
    /// In the block of this upstream.
    Block(&'a Name),
}

#[derive(Serialize)]
struct Message<'a> {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg: Option<&'a str>,
}

impl Answer {
    /// What a `GET` asked for, by [`super::text`] or [`super::json`]. Text without any upstream or
    /// server is 204.
    pub fn shown(dialect: Dialect, body: String) -> Self {
        let status = if body.is_empty() { 204 } else { 200 };
        Self::new(dialect, status, body)
    }

    /// A page for readers of this content type; 200 also if it is empty.
    pub fn page(content_type: &'static str, body: String) -> Self {
        Self { content_type: Some(content_type), ..Self::new(Dialect::Text, 200, body) }
    }

    /// 200: done, and saved.
    pub fn success(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Text => Self::new(dialect, 200, "success"),
            Dialect::Json => {
                Self::new(dialect, 200, json::text(&Message { status: 200, msg: None }))
            }
        }
    }

    /// A request that needs a body came without: 204 as text, 400 as JSON.
    pub fn no_content(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Text => Self::new(dialect, 204, "no content\n"),
            Dialect::Json => Self::message(dialect, 400, "decode body error: empty body"),
        }
    }

    /// 400: the body is not in the grammar. `reason` says where and why; as JSON it begins with
    /// Slardar's own words.
    pub fn refused_body(dialect: Dialect, reason: impl fmt::Display) -> Self {
        match dialect {
            Dialect::Text => Self::message(dialect, 400, format!("add server failed: {reason}")),
            Dialect::Json => Self::message(dialect, 400, reason.to_string()),
        }
    }

    /// 400: the body asks for something that there is not.
    fn refused_at(dialect: Dialect, place: Place, reason: fmt::Arguments<'_>) -> Self {
        let words = match (dialect, place) {
            (Dialect::Text, _) => "",
            (Dialect::Json, Place::Server(_)) => "servers invalid: ",
            (Dialect::Json, Place::Text { .. }) => "body invalid: ",
        };
        Self::refused_body(dialect, format_args!("{words}{place}: {reason}"))
    }

    /// 400: the body has a name that is unknown to the resolver.
    pub fn unresolved(dialect: Dialect, place: Place, host: &str) -> Self {
        let host = Printable(host);
        let reason = format_args!("host name \"{host}\" does not resolve");
        Self::refused_at(dialect, place, reason)
    }

    /// 400: `server upstream:NAME` names what is no upstream of nginx.conf.
    pub fn unknown_target(dialect: Dialect, place: Place, name: &Name) -> Self {
        let reason = format_args!("upstream \"{name}\" is not in nginx.conf");
        Self::refused_at(dialect, place, reason)
    }

    /// 400: `server upstream:NAME` names an upstream that has no servers now.
    pub fn empty_target(dialect: Dialect, place: Place, name: &Name) -> Self {
        let reason = format_args!("upstream \"{name}\" has no servers");
        Self::refused_at(dialect, place, reason)
    }

    /// 400: the key of `hash` has a variable that this nginx has not.
    pub fn unknown_variable(dialect: Dialect, place: Place, name: &str) -> Self {
        let reason = format_args!(
            "unknown variable \"${name}\" in \"hash\", expected one that nginx or nginx.conf has"
        );
        Self::refused_at(dialect, place, reason)
    }

    /// 400: servers cannot be checked as the body wants.
    pub fn refused_check(dialect: Dialect, place: Place, fault: &str) -> Self {
        Self::refused_at(dialect, place, format_args!("{fault}"))
    }

    /// 400: the body sets `keepalive`, which nginx sets up at its start only.
    pub fn refused_keepalive(dialect: Dialect, place: Place, missing: Keepalive<'_>) -> Self {
        let needed = match missing {
            Keepalive::Template => {
                "an upstream of nginx.conf that has it, named by \"dyups_upstream\"".to_owned()
            }
            Keepalive::Block(name) => {
                format!("\"keepalive\" in the block of upstream \"{name}\" in nginx.conf")
            }
        };
        Self::refused_at(dialect, place, format_args!("\"keepalive\" needs {needed}"))
    }

    /// 400: the path has something that is no name or no address.
    pub fn bad_path(dialect: Dialect, reason: impl fmt::Display) -> Self {
        Self::message(dialect, 400, reason.to_string())
    }

    /// 404: `GET` of an upstream that there is not; empty as text.
    pub fn nothing_to_show(dialect: Dialect, name: &Name) -> Self {
        match dialect {
            Dialect::Text => Self::new(dialect, 404, ""),
            Dialect::Json => Self::message(dialect, 404, format!("upstream {name} not found")),
        }
    }

    /// Another method than `GET` with an upstream that there is not: 404 as text, with dyups' typing
    /// error, which its users compare; 400 as JSON.
    pub fn unknown_upstream(dialect: Dialect, name: &Name) -> Self {
        match dialect {
            Dialect::Text => Self::message(dialect, 404, "not found uptream"),
            Dialect::Json => Self::message(dialect, 400, format!("upstream {name} not found")),
        }
    }

    /// 404: the upstream has no server of this address.
    pub fn unknown_server(dialect: Dialect) -> Self {
        Self::message(dialect, 404, "not found server")
    }

    /// 404: an upstream that is to go back to nginx.conf is not in it.
    pub fn not_configured(dialect: Dialect, name: &Name) -> Self {
        Self::message(dialect, 404, format!("upstream \"{name}\" is not in nginx.conf"))
    }

    /// 409: the next answer of Consul would undo the change.
    pub fn follows_consul(dialect: Dialect, name: &Name) -> Self {
        let text = format!("upstream \"{name}\" follows Consul, change it there");
        Self::message(dialect, 409, text)
    }

    /// 409: without this server the upstream would have none.
    pub fn last_server(dialect: Dialect, name: &Name) -> Self {
        let text = format!(
            "upstream \"{name}\" has no other server, remove it whole with DELETE /upstream/{name}"
        );
        Self::message(dialect, 409, text)
    }

    /// 404: no such word in a path for `GET`; empty as text.
    pub fn nothing_here(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Text => Self::new(dialect, 404, ""),
            Dialect::Json => Self::message(dialect, 404, "not found"),
        }
    }

    /// A path with too few or too many parts: 404, or 405 with the methods that it has, which
    /// dyups answers to a `DELETE`.
    pub fn unknown_interface(dialect: Dialect, allow: Option<&'static str>) -> Self {
        Self::unsupported(dialect, "not support this interface", allow)
    }

    /// A path whose first part is not `upstream`; codes as of [`Self::unknown_interface`].
    pub fn unknown_api(dialect: Dialect, allow: Option<&'static str>) -> Self {
        Self::unsupported(dialect, "not support this api", allow)
    }

    fn unsupported(dialect: Dialect, text: &'static str, allow: Option<&'static str>) -> Self {
        let status = if allow.is_some() { 405 } else { 404 };
        Self { allow, ..Self::message(dialect, status, text) }
    }

    /// 405: the methods are those of `allow`; empty as text.
    pub fn method_not_allowed(dialect: Dialect, allow: &'static str) -> Self {
        let answer = match dialect {
            Dialect::Text => Self::new(dialect, 405, ""),
            Dialect::Json => Self::message(dialect, 405, "method not allowed"),
        };
        Self { allow: Some(allow), ..answer }
    }

    /// 500: nothing has changed.
    pub fn out_of_memory(dialect: Dialect) -> Self {
        let text = "out of memory: no memory in the shared zone, raise \"upsync_zone\"";
        Self::message(dialect, 500, text)
    }

    /// 500: the state file cannot be written; nothing has changed.
    pub fn save_failed(dialect: Dialect, reason: impl fmt::Display) -> Self {
        Self::message(dialect, 500, format!("save failed: {reason}, nothing has changed"))
    }

    /// 500: the change is in force, but a restart will lose it.
    pub fn not_saved(dialect: Dialect, reason: impl fmt::Display) -> Self {
        Self::message(dialect, 500, format!("alert: update success but not saved: {reason}"))
    }

    /// 500: whatever else goes wrong; nothing has changed.
    pub fn failed(dialect: Dialect) -> Self {
        Self::message(dialect, 500, "init upstream failed")
    }

    /// 500: nginx has the body, but it cannot be read from there.
    pub fn unreadable_body(dialect: Dialect) -> Self {
        Self::message(dialect, 500, "the body of the request cannot be read")
    }

    /// 503: the state folder is that of another nginx, so that a change here would undo those there.
    pub fn not_the_owner(dialect: Dialect, owner: i32) -> Self {
        let text = format!("nginx of process {owner} has \"dyups_state_path\" now, ask that one");
        Self::message(dialect, 503, text)
    }

    /// 503: this worker has more changes to make than it keeps waiting.
    pub fn busy(dialect: Dialect) -> Self {
        Self::message(dialect, 503, "too many changes are waiting, try again")
    }

    /// 503: a worker of an older configuration changes nothing.
    pub fn shutting_down(dialect: Dialect) -> Self {
        Self::message(dialect, 503, "nginx is shutting down, try again")
    }

    /// A text, or the same as Slardar's `{"status":…,"msg":…}`.
    fn message(dialect: Dialect, status: u16, text: impl Into<Cow<'static, str>>) -> Self {
        let text = text.into();
        match dialect {
            Dialect::Text => Self::new(dialect, status, text),
            Dialect::Json => {
                let message = Message { status, msg: Some(&text) };
                Self::new(dialect, status, json::text(&message))
            }
        }
    }

    fn new(dialect: Dialect, status: u16, body: impl Into<Cow<'static, str>>) -> Self {
        let content_type = match dialect {
            Dialect::Text => None,
            Dialect::Json => Some("application/json"),
        };
        Self { status, body: body.into(), content_type, allow: None, keepalive: None, policy: None }
    }
}
