//! Splits a text into words, as nginx's configuration has them, but without quotes, variables and
//! blocks.
#![forbid(unsafe_code)]

use std::mem;

/// A run of bytes between white space, or a `;`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    pub text: &'a str,
    /// Counted from 1.
    pub line: usize,
    /// In bytes, counted from 1.
    pub column: usize,
    /// Whether only white space stands before it in its line.
    pub starts_line: bool,
}

/// Words in their order. A `#` where a word could start is a comment up to the line's end.
pub struct Words<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
    at_line_start: bool,
}

impl<'a> Words<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1, column: 1, at_line_start: true }
    }

    /// Line and column behind what was read.
    pub fn place(&self) -> (usize, usize) {
        (self.line, self.column)
    }

    /// Whether all was read.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn skip_blanks(&mut self) {
        while let Some(byte) = self.rest.bytes().next() {
            match byte {
                b'\n' => {
                    self.take(1);
                    (self.line, self.column) = (self.line + 1, 1);
                    self.at_line_start = true;
                }
                b' ' | b'\t' | b'\r' => _ = self.take(1),
                b'#' => _ = self.take_until(b"\n"),
                _ => return,
            }
        }
    }

    fn take_until(&mut self, ends: &[u8]) -> &'a str {
        let length = self.rest.bytes().position(|byte| ends.contains(&byte));
        self.take(length.unwrap_or(self.rest.len()))
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.column += length;
        taken
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        self.skip_blanks();
        let (line, column) = self.place();
        let starts_line = mem::replace(&mut self.at_line_start, false);
        let text = match self.rest.bytes().next()? {
            b';' => self.take(1),
            _ => self.take_until(b" \t\r\n;"),
        };
        Some(Word { text, line, column, starts_line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_have_places() {
        let words: Vec<_> = Words::new("a  é\tb#;\r\n # no;\n c # d;\n ;e")
            .map(|word| (word.text, word.line, word.column, word.starts_line))
            .collect();
        let expected = [
            ("a", 1, 1, true),
            ("é", 1, 4, false),
            ("b#", 1, 7, false),
            (";", 1, 9, false),
            ("c", 3, 2, true),
            (";", 4, 2, true),
            ("e", 4, 3, false),
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn the_end_has_a_place() {
        let mut words = Words::new("a\n # b");
        assert!(!words.is_at_end());
        assert_eq!(words.by_ref().count(), 1);
        assert_eq!((words.is_at_end(), words.place()), (true, (2, 5)));
    }

    proptest! {
        #[test]
        fn any_text_ends_and_each_word_is_where_it_says(text in any::<String>()) {
            let lines: Vec<_> = text.split('\n').collect();
            for word in Words::new(&text) {
                prop_assert!(lines[word.line - 1][word.column - 1..].starts_with(word.text));
            }
        }
    }
}
