//! Splits a text into words, as nginx's configuration has them, but without variables and blocks, and
//! with quotes only where they are asked for.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::mem;
use std::ops::Range;

/// What ends a word, in quotes or not.
const ENDS: &str = " \t\r\n;";

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

/// A word whose quotes and escapes count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument<'a> {
    /// As it is written: only the end of a directive is a bare `;`.
    pub word: Word<'a>,
    /// What it says.
    pub value: Result<Cow<'a, str>, Fault>,
}

/// Why a word is no argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The quote at its start has no other.
    Open(char),
    /// This stands right behind the quote at its end.
    Behind(char),
    /// A brace that would begin or end a block.
    Brace(char),
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

    /// The next word as nginx reads it (`ngx_conf_read_token`): in quotes of either kind or without,
    /// with the escapes `\"`, `\'`, `\\`, `\t`, `\r` and `\n`; any other backslash stays.
    pub fn argument(&mut self) -> Option<Argument<'a>> {
        self.skip_blanks();
        let (line, column) = self.place();
        let starts_line = mem::replace(&mut self.at_line_start, false);
        let (length, inner) = match self.rest.chars().next()? {
            ';' => (1, Ok(0..1)),
            quote @ ('"' | '\'') => quoted(self.rest, quote),
            _ => bare(self.rest),
        };
        let text = self.take(length);
        let value = inner.map(|inner| unescaped(text.get(inner).unwrap_or_default()));
        Some(Argument { word: Word { text, line, column, starts_line }, value })
    }

    fn skip_blanks(&mut self) {
        while let Some(byte) = self.rest.bytes().next() {
            match byte {
                b'\n' => {
                    self.take(1);
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
        match taken.rfind('\n') {
            None => self.column += length,
            Some(last) => {
                self.line += taken.bytes().filter(|&byte| byte == b'\n').count();
                self.column = length - last;
            }
        }
        taken
    }
}

/// The length of a word in quotes at the start of `text`, and where its inner part is.
fn quoted(text: &str, quote: char) -> (usize, Result<Range<usize>, Fault>) {
    let mut escaped = true;
    let end = text.bytes().position(|byte| {
        let is_end = byte == quote as u8 && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    });
    let Some(end) = end else { return (text.len(), Err(Fault::Open(quote))) };
    let behind = text.get(end + 1..).and_then(|behind| behind.chars().next());
    match behind.filter(|&character| !ENDS.contains(character)) {
        Some(character) => (end + 1, Err(Fault::Behind(character))),
        None => (end + 1, Ok(1..end)),
    }
}

/// The same of a word that begins with no quote.
fn bare(text: &str) -> (usize, Result<Range<usize>, Fault>) {
    let (mut escaped, mut in_variable) = (false, false);
    for (place, character) in text.char_indices() {
        let is_in_variable = mem::take(&mut in_variable);
        match character {
            _ if mem::take(&mut escaped) => {}
            '\\' => escaped = true,
            '$' => in_variable = true,
            '{' if is_in_variable => in_variable = true,
            '}' if place == 0 => return (1, Err(Fault::Brace(character))),
            '{' => return (place + 1, Err(Fault::Brace(character))),
            _ if ENDS.contains(character) => return (place, Ok(0..place)),
            _ => {}
        }
    }
    (text.len(), Ok(0..text.len()))
}

fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let escape = match (character, characters.clone().next()) {
            ('\\', Some(escaped @ ('"' | '\'' | '\\'))) => Some(escaped),
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some('n')) => Some('\n'),
            _ => None,
        };
        if escape.is_some() {
            characters.next();
        }
        value.push(escape.unwrap_or(character));
    }
    Cow::Owned(value)
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

    /// What each word says, or what is wrong with it, up to the first fault.
    fn arguments(text: &str) -> Vec<Result<String, Fault>> {
        let mut words = Words::new(text);
        std::iter::from_fn(|| words.argument())
            .map(|argument| argument.value.map(Cow::into_owned))
            .collect()
    }

    fn said(texts: &[&str]) -> Vec<Result<String, Fault>> {
        texts.iter().map(|&text| Ok(text.to_owned())).collect()
    }

    #[test]
    fn arguments_are_those_of_nginx() {
        for (text, expected) in [
            (r#"a "b c" 'd"e';"#, &["a", "b c", "d\"e", ";"][..]),
            (r#""" '';"#, &["", "", ";"]),
            (r#""a\"b" 'a\'b' "a\'b" a\"b"#, &["a\"b", "a'b", "a'b", "a\"b"]),
            (r#""\r\n\t\\n" \t\r"#, &["\r\n\t\\n", "\t\r"]),
            (r#""\d+\." \d+\. \\\\d"#, &[r"\d+\.", r"\d+\.", r"\\d"]),
            (r#"a"b"c d'e"#, &["a\"b\"c", "d'e"]),
            (r#"a\ b\;c;d"#, &[r"a\ b\;c", ";", "d"]),
            (r#""a;{}#$b" a#b # c"#, &["a;{}#$b", "a#b"]),
            ("$a ${a} a} $a$b ${{", &["$a", "${a}", "a}", "$a$b", "${{"]),
            ("\"a\nb\"\r\nc", &["a\nb", "c"]),
            (r"\é é\", &[r"\é", r"é\"]),
        ] {
            assert_eq!(arguments(text), said(expected), "{text}");
        }
        assert_eq!(Words::new(r#"";""#).argument().unwrap().word.text, r#"";""#);
    }

    #[test]
    fn an_argument_that_nginx_would_not_read_is_a_fault() {
        for (text, fault) in [
            (r#""a"#, Fault::Open('"')),
            (r#"'a\'"#, Fault::Open('\'')),
            (r#""a\\\""#, Fault::Open('"')),
            (r#""a"b"#, Fault::Behind('b')),
            (r#"'a'"b""#, Fault::Behind('"')),
            (r#""a"{"#, Fault::Behind('{')),
            ("a{2}", Fault::Brace('{')),
            ("{", Fault::Brace('{')),
            ("}", Fault::Brace('}')),
            (r"$\a{", Fault::Brace('{')),
            ("$a{", Fault::Brace('{')),
        ] {
            assert_eq!(arguments(text).first(), Some(&Err(fault)), "{text}");
        }
    }

    #[test]
    fn an_argument_of_some_lines_is_counted() {
        let mut words = Words::new("'a\n\nbc' d\n e");
        let places: Vec<_> = std::iter::from_fn(|| words.argument())
            .map(|Argument { word, .. }| (word.line, word.column, word.starts_line))
            .collect();
        assert_eq!(places, [(1, 1, true), (3, 5, false), (4, 2, true)]);
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
        fn any_argument_is_where_it_says(text in r#"([a-cé;#{}$ \n'"\\]|[\\][nrt"'\\])*"#) {
            let lines: Vec<_> = text.split('\n').collect();
            let mut words = Words::new(&text);
            while let Some(Argument { word, value }) = words.argument() {
                let start = word.text.lines().next().unwrap_or_default();
                prop_assert!(lines[word.line - 1][word.column - 1..].starts_with(start));
                prop_assert!(!word.text.is_empty());
                prop_assert!(value.is_err() || value.is_ok_and(|value| value.len() <= word.text.len()));
            }
            prop_assert!(words.is_at_end());
        }

        #[test]
        fn any_text_ends_and_each_word_is_where_it_says(text in any::<String>()) {
            let lines: Vec<_> = text.split('\n').collect();
            for word in Words::new(&text) {
                prop_assert!(lines[word.line - 1][word.column - 1..].starts_with(word.text));
            }
        }
    }
}
