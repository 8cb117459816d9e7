//! Splits a text into statements of words, whatever is wrong with them.
#![forbid(unsafe_code)]

use std::iter::Peekable;

use crate::grammar::words::Words;

/// Words up to a `;`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Statement<'a> {
    pub words: Vec<&'a str>,
    /// Line and column of the first word, counted from 1.
    pub place: (usize, usize),
    /// Whether there was a `;`.
    pub finished: bool,
}

/// Statements in their order. A `server` that starts a line also starts a statement, so that a
/// lost `;` costs one line.
pub struct Statements<'a>(Peekable<Words<'a>>);

impl<'a> Statements<'a> {
    pub fn new(text: &'a str) -> Self {
        Self(Words::new(text).peekable())
    }
}

impl<'a> Iterator for Statements<'a> {
    type Item = Statement<'a>;

    fn next(&mut self) -> Option<Statement<'a>> {
        let first = self.0.peek()?;
        let mut statement = Statement { place: (first.line, first.column), ..Statement::default() };
        loop {
            let goes_on = statement.words.is_empty();
            let word =
                self.0.next_if(|word| goes_on || !(word.starts_line && word.text == "server"));
            match word {
                Some(word) if word.text != ";" => statement.words.push(word.text),
                end => {
                    statement.finished = end.is_some();
                    return Some(statement);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(String, (usize, usize), bool)> {
        Statements::new(text)
            .map(|statement| (statement.words.join(" "), statement.place, statement.finished))
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
        fn any_text_ends(text in any::<String>()) {
            let words: usize = Statements::new(&text).map(|s| s.words.len()).sum();
            prop_assert!(words <= text.len());
        }
    }
}
