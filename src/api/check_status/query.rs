//! The arguments of a request.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use percent_encoding::percent_decode;

use super::Format;
use crate::model::Printable;

/// What the arguments of a request ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// `format`: instead of the directive's.
    pub format: Option<Format>,
    /// `status`: the servers that are `up`, or `down`; none is both.
    pub up: Option<bool>,
    /// `upstream`: the servers of the upstreams of this name, in any case; none is all. Bytes that
    /// are no UTF-8 are replaced, as they are in the names of a status.
    pub upstream: Option<String>,
}

impl Query {
    /// Reads arguments as they stand behind the `?`. Of those with one name the first counts, as
    /// nginx has it; others are ignored. One whose value makes no sense is as if it were not there,
    /// and a text about it comes back for the log.
    pub fn parse(args: &[u8]) -> (Self, Vec<String>) {
        let mut complaints = vec![];
        let query = Self {
            format: read(
                args,
                "format",
                "html, csv, json or prometheus",
                &mut complaints,
                |value| Format::from_name(value.as_bytes()),
            ),
            up: read(args, "status", "up or down", &mut complaints, |value| {
                let down = value.eq_ignore_ascii_case("down");
                (down || value.eq_ignore_ascii_case("up")).then_some(!down)
            }),
            upstream: read(args, "upstream", "the name of an upstream", &mut complaints, |value| {
                (!value.is_empty()).then(|| value.to_owned())
            }),
        };
        (query, complaints)
    }

    /// Whether a server of this upstream and with this verdict is asked for.
    pub(super) fn wants(&self, upstream: &str, is_up: bool) -> bool {
        let named = self.upstream.as_ref();
        self.up.is_none_or(|up| up == is_up)
            && named.is_none_or(|name| name.eq_ignore_ascii_case(upstream))
    }
}

/// The meaning of an argument, if it is there and has one.
fn read<T>(
    args: &[u8],
    name: &str,
    expected: &str,
    complaints: &mut Vec<String>,
    meaning: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let value = argument(args, name)?;
    let meant = meaning(&value);
    if meant.is_none() {
        let value = Printable(&value);
        complaints.push(format!(
            "http upstream check, bad argument: \"{value}\" in \"{name}\", expected {expected}"
        ));
    }
    meant
}

/// The first argument of a name in any case, decoded. One without a `=` does not count.
fn argument<'a>(args: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    let mut pairs = args.split(|&byte| byte == b'&');
    let value = pairs.find_map(|pair| {
        let (key, value) = pair.split_at_checked(name.len())?;
        let value = value.strip_prefix(b"=")?;
        key.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
    })?;
    Some(match percent_decode(value).into() {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(args: &str) -> Query {
        let (query, complaints) = Query::parse(args.as_bytes());
        assert_eq!(complaints, [""; 0], "{args}");
        query
    }

    #[test]
    fn arguments() {
        assert_eq!(parse(""), Query::default());
        assert_eq!(parse("a&&=&b=1&formats=x&xformat=y&format&?"), Query::default());
        for format in Format::ALL {
            assert_eq!(parse(&format!("format={}", format.name())).format, Some(format));
        }
        for (args, up) in [("status=up", true), ("a=b&STATUS=Down&c", false)] {
            assert_eq!(parse(args).up, Some(up));
        }
        let all = Query {
            format: Some(Format::Csv),
            up: Some(true),
            upstream: Some("a b+c&\u{e9}\u{fffd}".into()),
        };
        assert_eq!(parse("upstream=a%20b+c%26%c3%a9%ff&status=%75p&format=csv"), all);
        assert_eq!(parse("upstream=50%").upstream.as_deref(), Some("50%"));
        assert_eq!(parse("upstream=a=b").upstream.as_deref(), Some("a=b"));
    }

    #[test]
    fn the_first_of_a_name_counts() {
        assert_eq!(parse("format=csv&format=json").format, Some(Format::Csv));
        let (query, complaints) = Query::parse(b"format=xml&format=json");
        assert_eq!((query, complaints.len()), (Query::default(), 1));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let (query, complaints) = Query::parse(b"format=JSON&status=%0a%22&upstream=");
        assert_eq!(query, Query::default());
        assert_eq!(
            complaints,
            [
                r#"http upstream check, bad argument: "JSON" in "format", expected html, csv, json or prometheus"#,
                r#"http upstream check, bad argument: "\n\"" in "status", expected up or down"#,
                r#"http upstream check, bad argument: "" in "upstream", expected the name of an upstream"#,
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_arguments(args: Vec<u8>) {
            let _ = Query::parse(&args);
        }

        #[test]
        fn any_value_is_read_or_told(value: Vec<u8>) {
            let mut args = b"status=".to_vec();
            args.extend(value.iter().filter(|&&byte| byte != b'&'));
            let (query, complaints) = Query::parse(&args);
            prop_assert_eq!(query.up.is_none(), complaints.len() == 1);
            prop_assert!(complaints.iter().all(|text| !text.contains(char::is_control)));
        }

        #[test]
        fn any_name_can_be_asked_for(name in ".+") {
            let all = percent_encoding::NON_ALPHANUMERIC;
            let encoded = percent_encoding::utf8_percent_encode(&name, all);
            let query = parse(&format!("upstream={encoded}"));
            prop_assert_eq!(query.upstream, Some(name));
        }
    }
}
