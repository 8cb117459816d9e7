//! The key of `hash`: a text with nginx's variables, which a request gives their values.
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::model::Printable;

/// The longest key, in bytes.
pub const KEY_MAX: usize = 1024;

/// The most parts of a key.
pub const PARTS_MAX: usize = 32;

/// 1 to [`PARTS_MAX`] parts; the value of a key is theirs one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(Vec<Part>);

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text that stays as it is; no two of them in a row.
    Text(String),
    /// The name of a variable, in lower case: letters, digits and `_`, none of 1 to 9 at its start.
    Variable(String),
}

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Nothing to hash.
    #[error("empty key of \"hash\", expected at least one character")]
    Empty,
    /// Its bytes are told.
    #[error("the key of \"hash\" has {0} bytes, expected at most {KEY_MAX}")]
    TooLong(usize),
    /// It could not be written into a file that nginx reads.
    #[error(
        "unexpected \"{}\" in the key \"{}\" of \"hash\", expected a word without quotes, \
         backslashes, braces but those of \"${{NAME}}\", and \"#\" at its start",
        Printable(.0),
        Printable(.1)
    )]
    Character(String, String),
    /// Nobody knows what expression was matched last.
    #[error("capture in the key \"{}\" of \"hash\", expected variables with names", Printable(.0))]
    Capture(String),
    /// A `$` that begins no variable.
    #[error("no name after \"$\" in the key \"{}\" of \"hash\", expected \"$NAME\"", Printable(.0))]
    NoName(String),
    /// `${` without its end.
    #[error("no \"}}\" after \"${{\" in the key \"{}\" of \"hash\", expected \"${{NAME}}\"", Printable(.0))]
    Open(String),
    /// Too much to evaluate for each request.
    #[error("too many parts in the key \"{}\" of \"hash\", expected at most {PARTS_MAX}", Printable(.0))]
    Parts(String),
}

impl Key {
    /// Reads a key of 1 to [`KEY_MAX`] bytes of printable text with variables as `$NAME` or
    /// `${NAME}`. Whether there are such variables is not known here.
    ///
    /// A key is written into files that nginx reads, so there is no white space in it, and nothing
    /// that ends a word there or begins a comment.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        match text.len() {
            0 => return Err(KeyError::Empty),
            1..=KEY_MAX if text.starts_with('#') => return Err(character('#', text)),
            1..=KEY_MAX => {}
            length => return Err(KeyError::TooLong(length)),
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if parts.len() == PARTS_MAX {
                return Err(KeyError::Parts(text.to_owned()));
            }
            let (part, behind) = match rest.strip_prefix('$') {
                Some(behind) => variable(behind, text)?,
                None => literal(rest, text)?,
            };
            parts.push(part);
            rest = behind;
        }
        Ok(Self(parts))
    }

    /// The parts in their order.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }
}

/// Reads a variable whose `$` was read, and says what is behind it.
fn variable<'a>(rest: &'a str, whole: &str) -> Result<(Part, &'a str), KeyError> {
    let inner = rest.strip_prefix('{');
    let (name, behind) = split_where(inner.unwrap_or(rest), |c| !is_name_character(c));
    let behind = match inner {
        Some(_) => behind.strip_prefix('}').ok_or_else(|| KeyError::Open(whole.to_owned()))?,
        None => behind,
    };
    match name.bytes().next() {
        None => Err(KeyError::NoName(whole.to_owned())),
        Some(b'1'..=b'9') => Err(KeyError::Capture(whole.to_owned())),
        Some(_) => Ok((Part::Variable(name.to_ascii_lowercase()), behind)),
    }
}

fn literal<'a>(rest: &'a str, whole: &str) -> Result<(Part, &'a str), KeyError> {
    let (literal, behind) = split_where(rest, |c| c == '$');
    match literal.chars().find(|&c| !is_plain(c)) {
        Some(found) => Err(character(found, whole)),
        None => Ok((Part::Text(literal.to_owned()), behind)),
    }
}

/// Splits before the first character that `is_end` holds for.
fn split_where(text: &str, is_end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(is_end).unwrap_or(text.len()))
}

fn is_name_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// What is no plain text in a message is none in a file either.
fn is_plain(character: char) -> bool {
    let mut bytes = [0; 4];
    let text = &*character.encode_utf8(&mut bytes);
    !character.is_whitespace() && !";{}'".contains(character) && Printable(text).to_string() == text
}

fn character(found: char, whole: &str) -> KeyError {
    KeyError::Character(found.to_string(), whole.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<Part> {
        Key::parse(text).unwrap().parts().to_vec()
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn variable(name: &str) -> Part {
        Part::Variable(name.to_owned())
    }

    fn why(text: &str) -> String {
        Key::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_key_is_texts_and_variables() {
        assert_eq!(read("$uri"), [variable("uri")]);
        assert_eq!(read("consistent"), [text("consistent")]);
        assert_eq!(read("$Remote_Addr$uri"), [variable("remote_addr"), variable("uri")]);
        let expected = [text("é-"), variable("arg_a1"), text("b-"), variable("0"), text("#:")];
        assert_eq!(read("é-${ARG_a1}b-$0#:"), expected);
        assert_eq!(read(&"x".repeat(KEY_MAX)), [text(&"x".repeat(KEY_MAX))]);
        assert_eq!(read(&"$a-".repeat(PARTS_MAX / 2)).len(), PARTS_MAX);
    }

    #[test]
    fn a_fault_says_what_is_right() {
        let rest = "expected a word without quotes, backslashes, braces but those of \"${NAME}\", \
                    and \"#\" at its start";
        for (key, found) in [
            ("#a", "#"),
            ("a b", " "),
            ("a;", ";"),
            ("{$a", "{"),
            ("$a}", "}"),
            ("'a", "'"),
            ("a\u{a0}", "\u{a0}"),
        ] {
            let message =
                format!("unexpected \"{found}\" in the key \"{key}\" of \"hash\", {rest}");
            assert_eq!(why(key), message);
        }
        for (key, message) in [
            ("", r#"empty key of "hash", expected at least one character"#),
            ("a$1", r#"capture in the key "a$1" of "hash", expected variables with names"#),
            ("${9}", r#"capture in the key "${9}" of "hash", expected variables with names"#),
            ("a$", r#"no name after "$" in the key "a$" of "hash", expected "$NAME""#),
            ("$$a", r#"no name after "$" in the key "$$a" of "hash", expected "$NAME""#),
            ("$é", r#"no name after "$" in the key "$é" of "hash", expected "$NAME""#),
            ("${}", r#"no name after "$" in the key "${}" of "hash", expected "$NAME""#),
            ("${a", r#"no "}" after "${" in the key "${a" of "hash", expected "${NAME}""#),
            ("${a-}", r#"no "}" after "${" in the key "${a-}" of "hash", expected "${NAME}""#),
        ] {
            assert_eq!(why(key), message);
        }
        for key in ["a\"", "a\\", "a\t", "\u{202e}a", "a\u{7f}"] {
            assert!(why(key).starts_with("unexpected "), "{key}");
        }
        let long = "é".repeat(KEY_MAX / 2) + "x";
        assert_eq!(why(&long), "the key of \"hash\" has 1025 bytes, expected at most 1024");
        assert!(why(&"$a".repeat(PARTS_MAX + 1)).starts_with("too many parts in the key \"$a$a"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_an_error(text: String) {
            let _ = Key::parse(&text);
        }

        #[test]
        fn what_reads_is_written_alike(key in r##"([$]|[{]|[}]|[$][{]|[a-cA-C_0-9]|[-é#]){0,40}"##) {
            match Key::parse(&key) {
                Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
                Ok(read) => {
                    let braced: String = read.parts().iter().map(|part| match part {
                        Part::Text(text) => text.clone(),
                        Part::Variable(name) => format!("${{{name}}}"),
                    }).collect();
                    prop_assert_eq!(Key::parse(&braced), Ok(read));
                    prop_assert_eq!(key.replace(['{', '}'], "").len(), braced.replace(['{', '}'], "").len());
                }
            }
        }
    }
}
