//! The elements of a JSON array, one at a time.
#![forbid(unsafe_code)]

use std::fmt;

use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Deserializer, Error};

/// Calls `read` with the place, from 0, and the text of each element. `null` is an array without
/// any.
///
/// # Errors
///
/// Not JSON, something behind it, or another kind of value. Elements before the fault were read.
pub fn each(json: &[u8], read: impl FnMut(usize, &str)) -> Result<(), Error> {
    let mut json = Deserializer::from_slice(json);
    json.deserialize_any(Elements(read))?;
    json.end()
}

struct Elements<F>(F);

impl<'de, F: FnMut(usize, &str)> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        let mut place = 0;
        while let Some(element) = elements.next_element::<&RawValue>()? {
            (self.0)(place, element.get());
            place += 1;
        }
        Ok(())
    }
}
