//! Sizes as nginx's directives write them (`ngx_parse_size`).
#![forbid(unsafe_code)]

const KILO: i64 = 1024;
const MEGA: i64 = 1024 * KILO;

/// Reads bytes, `k` or `m`, as for sizes of memory: `512k`. The result is at most `i64::MAX`.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, scale) = match text.bytes().next_back()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], KILO),
        b'm' => (&text[..text.len() - 1], MEGA),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<i64>().ok()?.checked_mul(scale)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_in_nginx() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("512k", 512 << 10), ("32M", 32 << 20)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        assert_eq!(parse_size("1g"), None);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "k", "-1", "+1", "1 k", " 1", "1kb", "1t", "0x1", "1.5m", "é"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn overflow_is_refused() {
        assert_eq!(parse_size("9223372036854775807"), Some(i64::MAX as u64));
        assert_eq!(parse_size("9223372036854775808"), None);
        assert_eq!(parse_size("8796093022207m"), Some(8_796_093_022_207 << 20));
        assert_eq!(parse_size("8796093022208m"), None);
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in any::<String>()) {
            let _ = parse_size(&text);
        }
    }
}
