//! A directive that chooses a method.
#![forbid(unsafe_code)]

use super::reader::Reader;
use super::refusal::{Reason, Refusal};
use super::{SEMICOLON_BEFORE, place};
use crate::grammar::method;
use crate::grammar::words::Word;
use crate::model::Method;
use crate::model::body::Place;

const KEY: &str = "a key after \"hash\"";

/// Reads the rest of the directive whose name stands at `name`, unless `there` is a method already.
pub fn read<'a>(
    there: &mut Option<(Place, Method)>,
    reader: &mut Reader<'a>,
    name: &Word<'a>,
) -> Result<(), Refusal> {
    if let Some((_, method)) = there {
        return Err(Refusal::of(name, Reason::Methods(name.text.to_owned(), method.to_string())));
    }
    let words = statement(reader, name)?;
    let texts: Vec<&str> = words.iter().map(|word| word.text).collect();
    let method = method::read_any(&texts).map_err(|error| {
        Refusal::of(words.get(error.at()).unwrap_or(name), Reason::Method(error))
    })?;
    *there = Some((place(name), method));
    Ok(())
}

/// The words up to the `;`; of a directive of few words one more than it may have is the last read.
fn statement<'a>(reader: &mut Reader<'a>, name: &Word<'a>) -> Result<Vec<Word<'a>>, Refusal> {
    let most = if name.text == "upsync_lb" { usize::MAX } else { method::WORDS_MAX };
    let mut words = vec![*name];
    if name.text == "hash" {
        words.push(key(reader)?);
    }
    while words.len() <= most {
        let word = reader.expect("\";\"")?;
        match word.text {
            ";" => break,
            "server" | "keepalive" => return Err(Refusal::unexpected(&word, SEMICOLON_BEFORE)),
            _ => words.push(word),
        }
    }
    Ok(words)
}

/// The one word that may have variables; what else it may hold, its own reader knows.
fn key<'a>(reader: &mut Reader<'a>) -> Result<Word<'a>, Refusal> {
    let word = reader.expect_token(KEY)?;
    if word.text == ";" { Err(Refusal::unexpected(&word, KEY)) } else { Ok(word) }
}
