//! Times as nginx's directives write them (`ngx_parse_time`).
#![forbid(unsafe_code)]

use std::fmt;

/// A time that [`parse_milliseconds`] reads back: `30s`, or `500ms` where it is not of whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milliseconds(pub u32);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            time if time % 1000 == 0 => write!(f, "{}s", time / 1000),
            time => write!(f, "{time}ms"),
        }
    }
}

/// A unit's letter, its rank (units stand in falling order) and its seconds.
const UNITS: [(u8, u8, i64); 7] = [
    (b'y', 1, 365 * DAY),
    (b'M', 2, 30 * DAY),
    (b'w', 3, 7 * DAY),
    (b'd', 4, DAY),
    (b'h', 5, 3600),
    (b'm', 6, 60),
    (b's', 7, 1),
];

const DAY: i64 = 86_400;
const MONTH: u8 = 2;
const SECOND: u8 = 7;
const MILLISECOND: u8 = 8;
/// A number without a unit, which only the end of the text may follow.
const PLAIN: u8 = 9;

/// Reads a time in seconds: `10`, `10s`, `1m30s`, `1h 30m`, `1y6M`; no `ms`. The result is at most
/// `i64::MAX`.
pub fn parse_seconds(text: &str) -> Option<u64> {
    parse(text.as_bytes(), true)
}

/// Reads a time in milliseconds: as [`parse_seconds`] with `ms`, but without years and months.
pub fn parse_milliseconds(text: &str) -> Option<u64> {
    parse(text.as_bytes(), false)
}

fn parse(mut text: &[u8], in_seconds: bool) -> Option<u64> {
    let second = if in_seconds { 1 } else { 1000 };
    let mut rank = if in_seconds { 0 } else { MONTH };
    let mut total = 0i64;
    let mut any_digit = false;
    loop {
        let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
        let value = number(&text[..digits])?;
        any_digit |= digits > 0;
        text = &text[digits..];
        if text.is_empty() {
            total = total.checked_add(value.checked_mul(second)?)?;
            return u64::try_from(total).ok().filter(|_| any_digit);
        }
        let (next, scale, length) = unit(text, second)?;
        // A plain number may follow minutes but not seconds, as in nginx.
        let allowed = if next == PLAIN { rank < SECOND } else { rank < next };
        if !allowed || (next == MILLISECOND && in_seconds) {
            return None;
        }
        rank = next;
        total = total.checked_add(value.checked_mul(scale)?)?;
        text = &text[length..];
        while let [b' ', rest @ ..] = text {
            text = rest;
        }
    }
}

/// The rank, scale and length of the unit at the start of `text`, which is not empty.
fn unit(text: &[u8], second: i64) -> Option<(u8, i64, usize)> {
    match text {
        [b'm', b's', ..] => Some((MILLISECOND, 1, 2)),
        [b' ', ..] => Some((PLAIN, second, 1)),
        [letter, ..] => {
            let &(_, rank, seconds) = UNITS.iter().find(|(unit, ..)| unit == letter)?;
            Some((rank, seconds * second, 1))
        }
        [] => None,
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits
        .iter()
        .try_fold(0i64, |value, digit| value.checked_mul(10)?.checked_add(i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn seconds_as_in_nginx() {
        for (text, seconds) in [
            ("0", 0),
            ("10", 10),
            ("10s", 10),
            ("1m", 60),
            ("1m30s", 90),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("1h30", 3630),
            ("1d", 86_400),
            ("1w", 604_800),
            ("1M", 2_592_000),
            ("1y", 31_536_000),
            ("1y6M", 31_536_000 + 6 * 2_592_000),
            ("10 ", 10),
            (" 10", 10),
            ("1s5", 6),
        ] {
            assert_eq!(parse_seconds(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn milliseconds_as_in_nginx() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("10", 10_000),
            ("10s", 10_000),
            ("1s500ms", 1500),
            ("1m 1ms", 60_001),
            ("1w", 604_800_000),
        ] {
            assert_eq!(parse_milliseconds(text), Some(milliseconds), "{text}");
        }
    }

    #[test]
    fn times_are_written_in_seconds_if_they_are_whole() {
        let texts = [0, 999, 1000, 1500, 30_000].map(|time| Milliseconds(time).to_string());
        assert_eq!(texts, ["0s", "999ms", "1s", "1500ms", "30s"]);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "s", "-1", "+1", "1x", "1.5s", "10 s", "1s1m", "1m1m", "1S", "é", "1\t"] {
            assert_eq!((parse_seconds(text), parse_milliseconds(text)), (None, None), "{text}");
        }
        assert_eq!(parse_seconds("500ms"), None);
        assert_eq!(parse_milliseconds("1y"), None);
        assert_eq!(parse_milliseconds("1M"), None);
        assert_eq!(parse_milliseconds("1ms1s"), None);
    }

    #[test]
    fn overflow_is_refused() {
        assert_eq!(parse_seconds("9223372036854775807"), Some(i64::MAX as u64));
        assert_eq!(parse_seconds("9223372036854775808"), None);
        assert_eq!(parse_seconds("9223372036854775807s1"), None);
        assert_eq!(parse_seconds("153722867280912931m"), None);
        assert_eq!(parse_milliseconds("9223372036854775"), Some(9_223_372_036_854_775_000));
        assert_eq!(parse_milliseconds("9223372036854776"), None);
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in any::<String>()) {
            let _ = (parse_seconds(&text), parse_milliseconds(&text));
        }

        #[test]
        fn what_is_written_reads_back(time: u32) {
            let text = Milliseconds(time).to_string();
            prop_assert_eq!(parse_milliseconds(&text), Some(time.into()));
        }

        #[test]
        fn parts_add_up(h in 0u64..1000, m in 0u64..1000, s in 0u64..1000, ms in 0u64..1000) {
            let seconds = (h * 60 + m) * 60 + s;
            prop_assert_eq!(parse_seconds(&format!("{h}h{m}m{s}s")), Some(seconds));
            let text = format!("{h}h {m}m {s}s {ms}ms");
            prop_assert_eq!(parse_milliseconds(&text), Some(seconds * 1000 + ms));
        }
    }
}
