//! Directives that say how servers are checked.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use super::reader::Reader;
use super::refusal::{Reason, Refusal};
use super::{SEMICOLON_BEFORE, is_directive, place};
use crate::grammar::check::{self, Draft};
use crate::grammar::words::Word;
use crate::model::Check;
use crate::model::body::Place;

/// All of one body, as far as they were read.
#[derive(Default)]
pub struct Checks {
    draft: Draft,
    /// The place of the first of them.
    first: Option<(usize, usize)>,
    /// Where `check` itself stands.
    check: Option<Place>,
}

impl Checks {
    /// Reads the rest of the directive whose name stands at `name`.
    pub fn read<'a>(&mut self, reader: &mut Reader<'a>, name: &Word<'a>) -> Result<(), Refusal> {
        let (words, texts) = statement(reader, name)?;
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        self.draft.add(&texts).map_err(|error| {
            Refusal::of(words.get(error.at()).unwrap_or(name), Reason::Check(error))
        })?;
        self.first = self.first.or(Some((name.line, name.column)));
        if name.text == "check" {
            self.check = Some(place(name));
        }
        Ok(())
    }

    /// What they say together, and where `check` stands.
    pub fn finish(self) -> Result<Option<(Place, Check)>, Refusal> {
        let first = self.first.unwrap_or((1, 1));
        let check = self.draft.finish();
        let check = check.map_err(|error| Refusal::at(first, Reason::Check(error)))?;
        Ok(self.check.zip(check))
    }
}

/// The words up to the `;`, as they are written and as what they say.
fn statement<'a>(
    reader: &mut Reader<'a>,
    name: &Word<'a>,
) -> Result<(Vec<Word<'a>>, Vec<Cow<'a, str>>), Refusal> {
    let mut words = vec![*name];
    let mut texts = vec![Cow::Borrowed(name.text)];
    let any_text = check::texts(name.text);
    loop {
        let (word, text) = reader.argument("\";\"")?;
        match word.text {
            ";" => return Ok((words, texts)),
            name if words.len() > any_text && is_directive(name) => {
                return Err(Refusal::unexpected(&word, SEMICOLON_BEFORE));
            }
            _ => {}
        }
        words.push(word);
        texts.push(text);
    }
}
