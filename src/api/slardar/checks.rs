//! How servers are checked, as a JSON object. Its values are told to the grammar as directives.
#![forbid(unsafe_code)]

use serde_json::value::RawValue;

use super::raw;
use crate::grammar::check::{Draft, FASTCGI_PARAMS_MAX};
use crate::model::{Check, Printable};

/// The most codes and ranges of `http_expect_alive`.
const CODES_MAX: usize = 500;

const KEYS: &str = "type, interval, rise, fall, timeout, default_down, port, unique, http_send, \
                    http_expect_alive, http_expect_body, keepalive_requests, fastcgi_param, \
                    ssl_verify, ssl_name or fail_open";

/// Reads the parameters of `check`, under their names, and its companions, under theirs without
/// `check_`: `{"type":"http","interval":5000,"http_expect_alive":["http_2xx","404"],
/// "fastcgi_param":[["REQUEST_METHOD","HEAD"]]}`. All may be missing.
pub fn check(json: &RawValue) -> Result<Check, String> {
    let mut parameters = vec!["check".to_owned()];
    let mut draft = Draft::default();
    for (key, json) in raw::object(json)?.entries() {
        let Some(json) = raw::not_null(json) else { continue };
        let in_key = |reason: String| format!("\"{}\" {reason}", Printable(key));
        match key {
            "type" | "interval" | "rise" | "fall" | "timeout" | "port" => {
                parameters.push(format!("{key}={}", plain(json).map_err(in_key)?));
            }
            "default_down" | "unique" => {
                parameters.push(format!("{key}={}", raw::flag(json).map_err(in_key)?));
            }
            _ => {
                for words in companion(key, json).map_err(in_key)? {
                    add(&mut draft, &words)?;
                }
            }
        }
    }
    add(&mut draft, &parameters)?;
    let check = draft.finish().map_err(|error| error.to_string())?;
    Ok(check.unwrap_or_default())
}

fn add(draft: &mut Draft, words: &[String]) -> Result<(), String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    draft.add(&words).map_err(|error| error.to_string())
}

/// The directives that a key stands for.
fn companion(key: &str, json: &RawValue) -> Result<Vec<Vec<String>>, String> {
    let directive = format!("check_{key}");
    let one = |value| Ok(vec![vec![directive.clone(), value]]);
    match key {
        "http_send" | "ssl_name" => one(raw::text(json)?),
        "keepalive_requests" | "fail_open" => one(plain(json)?),
        "ssl_verify" => one(if raw::flag(json)? { "on" } else { "off" }.to_owned()),
        "http_expect_body" => {
            let text = raw::text(json)?;
            let words = text.splitn(2, ' ').map(str::to_owned);
            Ok(vec![[directive].into_iter().chain(words).collect()])
        }
        "http_expect_alive" => {
            let codes = raw::array(json, CODES_MAX)?.into_iter().map(plain);
            let words = [Ok(directive)].into_iter().chain(codes);
            Ok(vec![words.collect::<Result<_, _>>()?])
        }
        "fastcgi_param" => {
            let params = raw::array(json, FASTCGI_PARAMS_MAX)?;
            params.into_iter().map(|param| fastcgi_param(&directive, param)).collect()
        }
        _ => Err(format!("is no key of it, expected {KEYS}")),
    }
}

/// A name and its value.
fn fastcgi_param(directive: &str, json: &RawValue) -> Result<Vec<String>, String> {
    let words = raw::array(json, 2)?.into_iter().map(raw::text);
    [Ok(directive.to_owned())].into_iter().chain(words).collect()
}

/// A number, or a text.
fn plain(json: &RawValue) -> Result<String, String> {
    match json.get() {
        text if text.starts_with('"') => raw::text(json),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number.to_owned()),
        other => Err(format!("is {}, expected a number or a text", Printable(other))),
    }
}
