//! Splits a text into statements of words, as nginx's configuration has them, but without quotes,
//! variables and blocks.
#![forbid(unsafe_code)]

use std::mem;

/// Words up to a `;`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Statement<'a> {
    pub words: Vec<&'a [u8]>,
    /// Line and column of the first word, counted from 1.
    pub place: (usize, usize),
    /// Whether there was a `;`.
    pub finished: bool,
}

/// Statements in their order. A `server` that starts a line also starts a statement, so that a
/// lost `;` costs one line.
pub struct Statements<'a> {
    text: &'a [u8],
    position: usize,
    line: usize,
    line_start: usize,
    /// Whether only white space stands before `position` in its line.
    at_line_start: bool,
}

impl<'a> Statements<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, position: 0, line: 1, line_start: 0, at_line_start: true }
    }

    fn skip_blanks(&mut self) {
        while let Some(&byte) = self.text.get(self.position) {
            match byte {
                b'\n' => {
                    self.position += 1;
                    self.line += 1;
                    self.line_start = self.position;
                    self.at_line_start = true;
                }
                b' ' | b'\t' | b'\r' => self.position += 1,
                b'#' => self.position += length_until(&self.text[self.position..], |b| b == b'\n'),
                _ => return,
            }
        }
    }

    /// The word at `position`, empty before a `;` and at the end.
    fn word(&self) -> &'a [u8] {
        let rest = &self.text[self.position..];
        &rest[..length_until(rest, |b| b" \t\r\n;".contains(&b))]
    }
}

impl<'a> Iterator for Statements<'a> {
    type Item = Statement<'a>;

    fn next(&mut self) -> Option<Statement<'a>> {
        let mut statement = Statement::default();
        loop {
            self.skip_blanks();
            let starts_line = mem::replace(&mut self.at_line_start, false);
            let word = self.word();
            if statement.words.is_empty() {
                statement.place = (self.line, self.position - self.line_start + 1);
            } else if starts_line && word == b"server" {
                self.at_line_start = true;
                return Some(statement);
            }
            self.position += word.len();
            if !word.is_empty() {
                statement.words.push(word);
            } else if self.position < self.text.len() {
                self.position += 1;
                statement.finished = true;
                return Some(statement);
            } else {
                return Some(statement).filter(|statement| !statement.words.is_empty());
            }
        }
    }
}

fn length_until(text: &[u8], end: impl Fn(u8) -> bool) -> usize {
    text.iter().position(|&byte| end(byte)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(String, (usize, usize), bool)> {
        Statements::new(text.as_bytes())
            .map(|statement| {
                let words: Vec<_> =
                    statement.words.iter().map(|w| String::from_utf8_lossy(w)).collect();
                (words.join(" "), statement.place, statement.finished)
            })
            .collect()
    }

    #[test]
    fn words_stand_between_blanks_comments_and_semicolons() {
        assert_eq!(
            read("a  b\t;\r\n # no;\n c # d;\n e;f"),
            [
                ("a b".into(), (1, 1), true),
                ("c e".into(), (3, 2), true),
                ("f".into(), (4, 4), false),
            ]
        );
        assert_eq!(read("a#b;"), [("a#b".into(), (1, 1), true)]);
        assert_eq!(read(" \n# x"), []);
        assert_eq!(read(";"), [(String::new(), (1, 1), true)]);
    }

    #[test]
    fn a_server_that_starts_a_line_starts_a_statement() {
        assert_eq!(
            read("server a\n server b;server c server\nx;"),
            [
                ("server a".into(), (1, 1), false),
                ("server b".into(), (2, 2), true),
                ("server c server x".into(), (2, 11), true),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_end(text in any::<Vec<u8>>()) {
            let words: usize = Statements::new(&text).map(|s| s.words.len()).sum();
            prop_assert!(words <= text.len());
        }
    }
}
