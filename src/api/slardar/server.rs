//! One server as a JSON object.
#![forbid(unsafe_code)]

use serde_json::value::RawValue;

use super::{BodyError, raw};
use crate::model::address::AddressError;
use crate::model::body::{Changes, Place, Server, Target};
use crate::model::list::{COUNT_MAX, WEIGHT_MAX};
use crate::model::{Endpoint, Name, Printable};

const PARAMETERS: &str =
    "weight, max_fails, fail_timeout, max_conns, slow_start, down, drain or backup";

/// Reads a server with its place in the body.
pub fn server(place: usize, json: &RawValue) -> Result<Server, BodyError> {
    let at_place = |reason| BodyError::Servers(format!("server {place}: {reason}"));
    let object = raw::object(json).map_err(at_place)?;
    let (mut host, mut port) = (None, None);
    let mut changes = Changes::default();
    for (key, value) in object.entries() {
        match key {
            "host" => host = raw::not_null(value),
            "port" => port = raw::not_null(value),
            _ => set(&mut changes, key, value, "host, port, ").map_err(at_place)?,
        }
    }
    let host = host.ok_or(BodyError::NoHostNorPort(place))?;
    let host = raw::text(host).map_err(|reason| at_place(format!("\"host\" {reason}")))?;
    let target = match port {
        _ if has_no_port(&host) => target_without_port(&host, port),
        Some(port) => target(&host, port),
        None => return Err(BodyError::NoHostNorPort(place)),
    };
    Ok(Server { place: Place::Server(place), target: target.map_err(at_place)?, changes })
}

/// Reads parameters alone, at least one.
pub fn changes(json: &RawValue) -> Result<Changes, String> {
    let mut changes = Changes::default();
    for (key, value) in raw::object(json)?.entries() {
        set(&mut changes, key, value, "")?;
    }
    if changes.is_empty() {
        return Err(format!("no parameter, expected {PARAMETERS}"));
    }
    Ok(changes)
}

/// Sets the parameter of a key. `others` are the keys that may stand beside parameters.
fn set(changes: &mut Changes, key: &str, json: &RawValue, others: &str) -> Result<(), String> {
    let number = |max| raw::not_null(json).map(|json| raw::number(json, 0..=max)).transpose();
    let flag = || raw::not_null(json).map(raw::flag).transpose();
    let result = match key {
        "weight" => number(WEIGHT_MAX).map(|number| changes.weight = number),
        "max_fails" => number(COUNT_MAX).map(|number| changes.max_fails = number),
        "fail_timeout" => number(COUNT_MAX).map(|number| changes.fail_timeout = number),
        "max_conns" => number(COUNT_MAX).map(|number| changes.max_conns = number),
        "slow_start" => {
            let time = raw::not_null(json).map(raw::slow_start).transpose();
            time.map(|time| changes.slow_start = time)
        }
        "drain" => flag().map(|flag| changes.drain = flag),
        "down" => flag().map(|flag| changes.down = flag),
        "backup" => flag().map(|flag| changes.backup = flag),
        _ => {
            let key = Printable(key);
            return Err(format!("unknown key \"{key}\", expected {others}{PARAMETERS}"));
        }
    };
    result.map_err(|reason| format!("\"{key}\" {reason}"))
}

fn has_no_port(host: &str) -> bool {
    host.starts_with("unix:") || host.starts_with("upstream:")
}

fn target_without_port(host: &str, port: Option<&RawValue>) -> Result<Target, String> {
    if let Some(port) = port {
        let (port, host) = (Printable(port.get()), Printable(host));
        return Err(format!("\"port\" is {port}, expected none for \"{host}\""));
    }
    match host.strip_prefix("upstream:") {
        Some(name) => {
            let name = Name::parse(name.as_bytes()).map_err(|error| error.to_string())?;
            Ok(Target::Upstream(name))
        }
        None => endpoint(Endpoint::parse(host, None)),
    }
}

fn target(host: &str, port: &RawValue) -> Result<Target, String> {
    let port = raw::number(port, 1..=u32::from(u16::MAX))
        .map_err(|reason| format!("\"port\" {reason}"))?;
    // In range: it is checked above.
    endpoint(Endpoint::from_host_port(host, port as u16))
}

fn endpoint(result: Result<Endpoint, AddressError>) -> Result<Target, String> {
    result.map(Target::Endpoint).map_err(|error| error.to_string())
}
