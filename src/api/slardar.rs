//! The JSON that Slardar's clients send and read.
#![forbid(unsafe_code)]

mod checks;
mod dialect;
mod raw;
mod server;
mod status;
#[cfg(test)]
mod tests;

use serde_json::value::RawValue;
use thiserror::Error;

pub use dialect::{is_json, wants_json};
use raw::Object;
pub use status::{StatusFacts, status};

use crate::grammar::body::{KEEPALIVE_MAX, SERVERS_MAX};
use crate::grammar::method;
use crate::model::body::{Body, Changes, Place, Server};
use crate::model::{Check, Method};

/// Why a body is refused. The texts begin as Slardar's do; they are printable and bounded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// It is not JSON.
    #[error("decode body error: {0}")]
    Decode(String),
    /// It has another form.
    #[error("body invalid: {0}")]
    Body(String),
    /// An upstream or a level of it would have no server.
    #[error("can not update empty level: {0}")]
    EmptyLevel(String),
    /// Something is wrong with a server.
    #[error("servers invalid: {0}")]
    Servers(String),
    /// The server at this place has no `host`, or none of the `port` that it needs.
    #[error("no server.host nor server.port found: server {0}")]
    NoHostNorPort(usize),
}

/// Reads the body of `POST /upstream/NAME`: `{"servers":[…]}`, or levels of such objects in
/// `{"cluster":[…]}` or `{"cluster":{"KEY":…}}`, in the order of the body. The servers of all levels
/// but the first are `backup`. `keepalive`, `method`, a directive without its semicolon, and `check`,
/// an object, may stand beside; other keys are ignored, but for those of a server and of `check`. A
/// key that is `null` is one that is not there.
///
/// # Errors
///
/// Not JSON, a key twice, no server in a level, more than [`SERVERS_MAX`], or a fault in one.
pub fn parse(body: &[u8]) -> Result<Body, BodyError> {
    let whole = raw::whole(body).map_err(BodyError::Decode)?;
    let top = raw::object(whole).map_err(BodyError::Body)?;
    let keepalive = keepalive(&top, whole)?;
    let mut servers = Vec::new();
    for (level, list) in levels(&top)?.into_iter().enumerate() {
        let list = list.ok_or_else(|| empty(level))?;
        add_level(&mut servers, level, list)?;
    }
    Ok(Body { servers, keepalive, method: chosen(&top, whole)?, check: checked(&top, whole)? })
}

/// Reads one server, as it is in the array `servers` of [`parse`].
///
/// # Errors
///
/// As there.
pub fn parse_server(body: &[u8]) -> Result<Server, BodyError> {
    server::server(0, raw::whole(body).map_err(BodyError::Decode)?)
}

/// Reads the parameters of a server that are to change: `{"weight":5,"down":false}`.
///
/// # Errors
///
/// Not JSON, a key that is no parameter or is there twice, a value out of range, no parameter.
pub fn parse_changes(body: &[u8]) -> Result<Changes, BodyError> {
    server::changes(raw::whole(body).map_err(BodyError::Decode)?).map_err(BodyError::Body)
}

fn empty(level: usize) -> BodyError {
    BodyError::EmptyLevel(format!("level {level} has no servers"))
}

/// What each level has under `servers`, if it is there.
fn levels<'a>(top: &Object<'a>) -> Result<Vec<Option<&'a RawValue>>, BodyError> {
    let cluster = match (top.get("servers"), top.get("cluster")) {
        (Some(_), Some(_)) => {
            let reason = "\"servers\" and \"cluster\" exclude each other";
            return Err(BodyError::Body(reason.to_owned()));
        }
        (Some(servers), None) => return Ok(vec![Some(servers)]),
        (None, Some(cluster)) => cluster,
        (None, None) => {
            let reason = "neither \"servers\" nor \"cluster\" is there";
            return Err(BodyError::EmptyLevel(reason.to_owned()));
        }
    };
    let levels =
        raw::values(cluster).map_err(|reason| BodyError::Body(format!("\"cluster\": {reason}")))?;
    if levels.is_empty() {
        return Err(BodyError::EmptyLevel("\"cluster\" is empty".to_owned()));
    }
    let servers = |(place, level)| match raw::object(level) {
        Ok(level) => Ok(level.get("servers")),
        Err(reason) => Err(BodyError::Body(format!("level {place}: {reason}"))),
    };
    levels.into_iter().enumerate().map(servers).collect()
}

fn add_level(servers: &mut Vec<Server>, level: usize, list: &RawValue) -> Result<(), BodyError> {
    let in_servers = |reason| BodyError::Servers(format!("level {level}: {reason}"));
    let list = raw::array(list, SERVERS_MAX).map_err(in_servers)?;
    if list.is_empty() {
        return Err(empty(level));
    }
    if servers.len() + list.len() > SERVERS_MAX {
        return Err(BodyError::Servers(format!("more than {SERVERS_MAX} servers")));
    }
    for json in list {
        let mut server = server::server(servers.len(), json)?;
        if level > 0 {
            server.changes.backup = Some(true);
        }
        servers.push(server);
    }
    Ok(())
}

fn chosen(top: &Object<'_>, whole: &RawValue) -> Result<Option<(Place, Method)>, BodyError> {
    let Some(json) = top.get("method") else { return Ok(None) };
    let in_method = |reason: String| BodyError::Body(format!("\"method\" {reason}"));
    let text = raw::text(json).map_err(in_method)?;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let method =
        method::read_any(&words).map_err(|error| in_method(format!("is wrong: {error}")))?;
    if matches!(&method, Method::Local(near) if near.is_empty()) {
        return Err(in_method("has no network in \"upsync_lb local\"".to_owned()));
    }
    Ok(Some((raw::place(json, whole), method)))
}

fn checked(top: &Object<'_>, whole: &RawValue) -> Result<Option<(Place, Check)>, BodyError> {
    let Some(json) = top.get("check") else { return Ok(None) };
    let check =
        checks::check(json).map_err(|reason| BodyError::Body(format!("\"check\": {reason}")))?;
    Ok(Some((raw::place(json, whole), check)))
}

fn keepalive(top: &Object<'_>, whole: &RawValue) -> Result<Option<(Place, u32)>, BodyError> {
    let Some(json) = top.get("keepalive") else { return Ok(None) };
    let number = raw::number(json, 1..=KEEPALIVE_MAX)
        .map_err(|reason| BodyError::Body(format!("\"keepalive\" {reason}")))?;
    Ok(Some((raw::place(json, whole), number)))
}
