//! Text from outside, made fit for a log line.
#![forbid(unsafe_code)]

use std::fmt::{self, Write};

/// The longest part of a text that is shown, in bytes of the original.
const SHOWN_MAX: usize = 128;

/// Shows a text of any origin on one line: control characters, quotes and backslashes escaped,
/// and cut with `...` after 128 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (start, character) in self.0.char_indices() {
            if start + character.len_utf8() > SHOWN_MAX {
                return f.write_str("...");
            }
            if needs_escape(character) {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// The line and paragraph separators and the marks that turn the writing direction would let a
/// name in Consul forge what an administrator reads.
fn needs_escape(character: char) -> bool {
    character.is_control()
        || matches!(character, '"' | '\\')
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_stays() {
        assert_eq!(Printable("upstreams/app/é:80").to_string(), "upstreams/app/é:80");
    }

    #[test]
    fn control_characters_and_quotes_are_escaped() {
        assert_eq!(Printable("a\n\"\\\u{7f}").to_string(), r#"a\n\"\\\u{7f}"#);
        assert_eq!(Printable("\u{202e}x").to_string(), r"\u{202e}x");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let exact = "a".repeat(SHOWN_MAX);
        assert_eq!(Printable(&exact).to_string(), exact);
        assert_eq!(Printable(&format!("{exact}b")).to_string(), format!("{exact}..."));
        let wide = format!("{}é", "a".repeat(SHOWN_MAX - 1));
        assert_eq!(Printable(&wide).to_string(), format!("{}...", "a".repeat(SHOWN_MAX - 1)));
    }

    proptest! {
        #[test]
        fn any_text_is_one_bounded_line(text in any::<String>()) {
            let shown = Printable(&text).to_string();
            prop_assert!(!shown.contains(char::is_control));
            prop_assert!(shown.len() <= SHOWN_MAX * 10 + 3);
        }
    }
}
