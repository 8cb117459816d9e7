//! Words of a text, each checked before anybody sees it.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use super::refusal::{Reason, Refusal};
use crate::grammar::words::{Argument, Word, Words};

/// What quotes, opens a block, names a variable or escapes in nginx's configuration.
const SPECIAL: [char; 6] = ['"', '\'', '{', '}', '$', '\\'];

/// Reads as far as the text is one of UTF-8 without control characters.
pub struct Reader<'a> {
    words: Words<'a>,
    /// What ends the readable text before its end.
    cut: Option<Reason>,
    last: Option<Word<'a>>,
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        let control = |byte: &u8| byte.is_ascii_control() && !b"\t\r\n".contains(byte);
        let (plain, _) = text.split_at(text.iter().position(control).unwrap_or(text.len()));
        let readable = plain.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let cut = text.get(readable.len()).map(|&byte| {
            let text = "text without control characters";
            Reason::Byte(byte, if byte.is_ascii() { text } else { "UTF-8" })
        });
        Self { words: Words::new(readable), cut, last: None }
    }

    /// The next word, if there is one.
    pub fn word(&mut self) -> Result<Option<Word<'a>>, Refusal> {
        self.token(check)
    }

    /// The next word, which must be there.
    pub fn expect(&mut self, expected: &'static str) -> Result<Word<'a>, Refusal> {
        self.token(check)?.ok_or_else(|| self.ended(expected))
    }

    /// As [`Self::expect`], but the word may hold special characters, as the braces of a block and
    /// the variables of a key do.
    pub fn expect_token(&mut self, expected: &'static str) -> Result<Word<'a>, Refusal> {
        self.token(|_| Ok(()))?.ok_or_else(|| self.ended(expected))
    }

    /// The next word of a directive whose words may be in quotes and have escapes, and what it says.
    pub fn argument(
        &mut self,
        expected: &'static str,
    ) -> Result<(Word<'a>, Cow<'a, str>), Refusal> {
        let argument = self.words.argument();
        self.note(argument.as_ref().map(|argument| argument.word))?;
        let Argument { word, value } = argument.ok_or_else(|| self.ended(expected))?;
        match value {
            Ok(value) => Ok((word, value)),
            Err(fault) => Err(Refusal::of(&word, Reason::Argument(fault, word.text.to_owned()))),
        }
    }

    fn ended(&self, expected: &'static str) -> Refusal {
        let (place, after) = match self.last {
            Some(word) => ((word.line, word.column), word.text),
            None => ((1, 1), ""),
        };
        Refusal::at(place, Reason::End(after.to_owned(), expected))
    }

    /// Refuses what follows, if anything does.
    pub fn end(&mut self, expected: &'static str) -> Result<(), Refusal> {
        match self.token(|_| Ok(()))? {
            Some(word) => Err(Refusal::unexpected(&word, expected)),
            None => Ok(()),
        }
    }

    fn token(
        &mut self,
        check: impl Fn(&Word<'_>) -> Result<(), Refusal>,
    ) -> Result<Option<Word<'a>>, Refusal> {
        let word = self.words.next();
        word.as_ref().map_or(Ok(()), check)?;
        self.note(word)?;
        Ok(word)
    }

    /// Refuses the word that the readable text ends in, if more follows.
    fn note(&mut self, word: Option<Word<'a>>) -> Result<(), Refusal> {
        match (word, &self.cut) {
            (None, Some(cut)) => return Err(Refusal::at(self.words.place(), cut.clone())),
            (Some(word), Some(cut)) if word.text != ";" && self.words.is_at_end() => {
                return Err(Refusal::of(&word, cut.clone()));
            }
            _ => {}
        }
        self.last = word.or(self.last);
        Ok(())
    }
}

fn check(word: &Word<'_>) -> Result<(), Refusal> {
    let special = |&character: &char| SPECIAL.contains(&character);
    word.text.chars().find(special).map_or(Ok(()), |character| {
        let reason = Reason::Character(character.to_string(), word.text.to_owned());
        Err(Refusal::of(word, reason))
    })
}
