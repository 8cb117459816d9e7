//! Pieces of JSON that are known to be well formed, read one layer at a time: what is not asked for
//! takes no memory, and the order of keys stays.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Error;
use serde_json::value::RawValue;

use crate::grammar::parameter::{self, SLOW_START_JSON};
use crate::model::Printable;
use crate::model::body::Place;

/// The most keys that an object may have, and levels that a cluster.
const KEYS_MAX: usize = 1000;

/// The keys and values of an object in its order, none twice.
pub struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The value of a key, if it is there and not `null`.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        let (_, value) = self.entries().find(|(name, _)| *name == key)?;
        not_null(value)
    }

    /// All keys with their values.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), *value))
    }
}

/// A value that is not `null`.
pub fn not_null(json: &RawValue) -> Option<&RawValue> {
    Some(json).filter(|json| json.get() != "null")
}

/// The one value of a body. The whole of it has been checked, but for what escapes in texts stand
/// for.
pub fn whole(body: &[u8]) -> Result<&RawValue, String> {
    if body.trim_ascii().is_empty() {
        return Err("empty body".to_owned());
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        let place = place_of(body.get(..error.valid_up_to()).unwrap_or_default());
        format!("{place}: invalid UTF-8")
    })?;
    serde_json::from_str(text).map_err(|error| {
        let place = Place::Text { line: error.line(), column: error.column() };
        format!("{place}: {}", reason(&error))
    })
}

/// The keys and values of an object.
pub fn object(json: &RawValue) -> Result<Object<'_>, String> {
    expect(json, '{', "an object")?;
    let pairs = read(json, Pairs)?;
    let mut keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_ref()).collect();
    keys.sort_unstable();
    let twice = keys.windows(2).find(|pair| pair.first() == pair.last());
    if let Some(key) = twice.and_then(|pair| pair.first()) {
        return Err(format!("key \"{}\" is there twice", Printable(key)));
    }
    Ok(Object(pairs))
}

/// The elements of an array, at most `max`.
pub fn array(json: &RawValue, max: usize) -> Result<Vec<&RawValue>, String> {
    expect(json, '[', "an array")?;
    read(json, Elements(max))
}

/// The values of an object or the elements of an array, in order.
pub fn values(json: &RawValue) -> Result<Vec<&RawValue>, String> {
    if json.get().starts_with('{') {
        return object(json).map(|object| object.entries().map(|(_, value)| value).collect());
    }
    expect(json, '[', "an array or an object")?;
    array(json, KEYS_MAX)
}

/// A whole number without sign, fraction and exponent, or a text of digits.
pub fn number(json: &RawValue, range: RangeInclusive<u32>) -> Result<u32, String> {
    let digits = unquoted(json);
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|number| all_digits && range.contains(number));
    number.ok_or_else(|| unfit(json, &format!("{} to {}", range.start(), range.end())))
}

/// A whole number of seconds, or a text that is a time of nginx's; in milliseconds.
pub fn slow_start(json: &RawValue) -> Result<u32, String> {
    // What is no text has no unit, and may be a fraction.
    let time = match json.get().split_once('.') {
        Some((whole, part)) if part.len() <= 3 => format!("{whole}s{part:0<3}ms"),
        _ => unquoted(json).to_owned(),
    };
    parameter::slow_start(&time).ok_or_else(|| unfit(json, SLOW_START_JSON))
}

/// `false`, `true`, 0 or 1, also as texts.
pub fn flag(json: &RawValue) -> Result<bool, String> {
    match json.get().trim_matches('"') {
        "false" | "0" => Ok(false),
        "true" | "1" => Ok(true),
        _ => Err(unfit(json, "false or true")),
    }
}

/// A text, with its escapes resolved.
pub fn text(json: &RawValue) -> Result<String, String> {
    serde_json::from_str(json.get()).map_err(|_| unfit(json, "a text"))
}

/// Where a piece stands in the whole that it is of.
pub fn place(json: &RawValue, whole: &RawValue) -> Place {
    let (text, part) = (whole.get().as_bytes(), json.get());
    let offset = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    place_of(text.get(..offset).unwrap_or_default())
}

/// The place behind `before`.
fn place_of(before: &[u8]) -> Place {
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    Place::Text { line, column }
}

/// A value as it is written, a text without its quotes.
fn unquoted(json: &RawValue) -> &str {
    let text = json.get();
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

fn expect(json: &RawValue, start: char, expected: &str) -> Result<(), String> {
    let fits = json.get().starts_with(start);
    fits.then_some(()).ok_or_else(|| format!("expected {expected}, not {}", Printable(json.get())))
}

fn unfit(json: &RawValue, expected: &str) -> String {
    format!("is {}, expected {expected}", Printable(json.get()))
}

fn read<'a, V: Visitor<'a>>(json: &'a RawValue, visitor: V) -> Result<V::Value, String> {
    let mut json = serde_json::Deserializer::from_str(json.get());
    json.deserialize_any(visitor).map_err(|error| reason(&error))
}

/// The text of an error without its place.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// A key, which has no memory of its own unless it has escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some((Key(key), value)) = map.next_entry()? {
            check_count(pairs.len(), KEYS_MAX, "keys")?;
            pairs.push((key, value));
        }
        Ok(pairs)
    }
}

struct Elements(usize);

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            check_count(elements.len(), self.0, "elements")?;
            elements.push(element);
        }
        Ok(elements)
    }
}

fn check_count<E: de::Error>(count: usize, max: usize, what: &str) -> Result<(), E> {
    if count < max { Ok(()) } else { Err(E::custom(format!("more than {max} {what}"))) }
}
