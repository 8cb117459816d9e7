//! Keys of Consul's key/value store that end in a server's address, with JSON values.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::{Entry, element};
use crate::grammar::parameter::{self, SLOW_START_JSON};
use crate::model::list::{COUNT_MAX, WEIGHT_MAX};
use crate::model::{Endpoint, Parameters, Printable};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(default)]
    value: Option<String>,
}

/// What a value may hold; other fields are ignored.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Fields {
    weight: Option<Value>,
    max_fails: Option<Value>,
    fail_timeout: Option<Value>,
    max_conns: Option<Value>,
    down: Option<Value>,
    backup: Option<Value>,
    drain: Option<Value>,
    slow_start: Option<Value>,
}

/// The server of an element, nothing for a folder.
pub fn entry(place: usize, json: &str, prefix: &str) -> Option<Entry> {
    let pair: Pair<'_> = match element(place, json, "/Key") {
        Ok(pair) => pair,
        Err(entry) => return Some(entry),
    };
    if pair.key.ends_with('/') {
        return None;
    }
    Some(Entry {
        endpoint: endpoint(&pair.key, prefix),
        parameters: parameters(pair.value.as_deref().unwrap_or_default()),
        name: pair.key.into_owned(),
    })
}

/// The address is the last part of the key, below any folders. The slashes of a socket's path are
/// part of it.
fn endpoint(key: &str, prefix: &str) -> Result<Endpoint, String> {
    let rest = key.strip_prefix(prefix).unwrap_or(key);
    let start = if rest.starts_with("unix:") {
        Some(0)
    } else {
        rest.find("/unix:").or_else(|| rest.rfind('/')).map(|slash| slash + 1)
    };
    Endpoint::parse(&rest[start.unwrap_or(0)..], None).map_err(|error| error.to_string())
}

fn parameters(base64: &str) -> Result<Parameters, String> {
    let value = STANDARD.decode(base64).map_err(|error| format!("value is no base64: {error}"))?;
    let value = value.trim_ascii();
    if value.is_empty() {
        return Ok(Parameters::CONSUL);
    }
    if !value.starts_with(b"{") {
        return Err("value is no JSON object".to_owned());
    }
    let fields: Fields = serde_json::from_slice(value)
        .map_err(|error| format!("value is no JSON object: {}", Printable(&error.to_string())))?;
    fields.parameters()
}

impl Fields {
    fn parameters(&self) -> Result<Parameters, String> {
        let default = Parameters::CONSUL;
        Ok(Parameters {
            weight: number("weight", &self.weight, WEIGHT_MAX, default.weight)?,
            max_fails: number("max_fails", &self.max_fails, COUNT_MAX, default.max_fails)?,
            fail_timeout: number(
                "fail_timeout",
                &self.fail_timeout,
                COUNT_MAX,
                default.fail_timeout,
            )?,
            max_conns: number("max_conns", &self.max_conns, COUNT_MAX, default.max_conns)?,
            down: flag("down", &self.down, default.down)?,
            critical: default.critical,
            backup: flag("backup", &self.backup, default.backup)?,
            drain: flag("drain", &self.drain, default.drain)?,
            slow_start: slow_start("slow_start", &self.slow_start, default.slow_start)?,
        })
    }
}

/// Whole numbers from 0 to `max`, also as text.
fn number(name: &str, value: &Option<Value>, max: u32, default: u32) -> Result<u32, String> {
    let number = match value {
        None | Some(Value::Null) => return Ok(default),
        Some(Value::Number(number)) => number.as_f64().filter(|number| number.fract() == 0.0),
        Some(Value::String(text)) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        Some(_) => None,
    };
    match number {
        // Exact: a u32 fits into an f64.
        Some(number) if (0.0..=f64::from(max)).contains(&number) => Ok(number as u32),
        _ => Err(unfit(name, value, &format!("0 to {max}"))),
    }
}

fn flag(name: &str, value: &Option<Value>, default: bool) -> Result<bool, String> {
    match value {
        None | Some(Value::Null) => return Ok(default),
        Some(Value::Bool(flag)) => return Ok(*flag),
        Some(Value::String(text)) if text == "true" => return Ok(true),
        Some(Value::String(text)) if text == "false" => return Ok(false),
        Some(_) => {}
    }
    number(name, value, 1, 0).map(|flag| flag == 1).map_err(|_| unfit(name, value, "0 or 1"))
}

/// A whole number of seconds, or a time of nginx's as text, in milliseconds.
fn slow_start(name: &str, value: &Option<Value>, default: u32) -> Result<u32, String> {
    let time = match value {
        None | Some(Value::Null) => return Ok(default),
        Some(Value::String(text)) => parameter::slow_start(text),
        // One that is not whole is written with a point, which no time has.
        Some(Value::Number(number)) => {
            number.as_f64().and_then(|number| parameter::slow_start(&number.to_string()))
        }
        Some(_) => None,
    };
    time.ok_or_else(|| unfit(name, value, SLOW_START_JSON))
}

fn unfit(name: &str, value: &Option<Value>, expected: &str) -> String {
    let value = value.as_ref().map(Value::to_string).unwrap_or_default();
    format!("\"{name}\" is {}, expected {expected}", Printable(&value))
}
