//! Which dialect a client speaks and wants to hear.
#![forbid(unsafe_code)]

use crate::api::answer::Dialect;

/// Whether a body is JSON: its content type says so, or its first byte that is not blank is a `{`,
/// with which no body of dyups begins. curl sends JSON with the content type of a form.
pub fn is_json(content_type: &[u8], body: &[u8]) -> bool {
    is_json_type(content_type) || body.trim_ascii_start().starts_with(b"{")
}

/// The dialect to answer in. The argument `format`, `json` or `text`, goes before the field
/// `Accept`, which has to name `application/json`; all else is text, as dyups' clients say nothing
/// about it.
pub fn wants_json(accept: &[u8], args: &[u8]) -> Dialect {
    let format = args.split(|&byte| byte == b'&').find_map(format);
    let accepted = || accept.split(|&byte| byte == b',').any(is_accepted_json);
    match format {
        Some(dialect) => dialect,
        None if accepted() => Dialect::Json,
        None => Dialect::Text,
    }
}

fn format(argument: &[u8]) -> Option<Dialect> {
    let value = argument.strip_prefix(b"format=")?;
    if value.eq_ignore_ascii_case(b"json") {
        Some(Dialect::Json)
    } else if value.eq_ignore_ascii_case(b"text") {
        Some(Dialect::Text)
    } else {
        None
    }
}

/// A media range with a weight of 0 is one that is not acceptable (RFC 9110, 12.4.2).
fn is_accepted_json(range: &[u8]) -> bool {
    is_json_type(range) && !range.split(|&byte| byte == b';').skip(1).any(is_weight_0)
}

fn is_weight_0(parameter: &[u8]) -> bool {
    let parameter = parameter.trim_ascii();
    let value = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    value.is_some_and(|value| value.starts_with(b"0") && value.iter().all(|b| b"0.".contains(b)))
}

/// Whether the type before any `;` is that of JSON.
fn is_json_type(text: &[u8]) -> bool {
    let media_type = text.split(|&byte| byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_body_is_json_by_its_type_or_its_first_byte() {
        for (content_type, body) in [
            ("application/json", ""),
            ("application/json", "server 127.0.0.1;"),
            ("Application/JSON; charset=utf-8", ""),
            ("application/json ;x", ""),
            ("application/x-www-form-urlencoded", "{}"),
            ("", " \r\n\t{"),
        ] {
            assert!(is_json(content_type.as_bytes(), body.as_bytes()), "{content_type} {body}");
        }
        for (content_type, body) in [
            ("", ""),
            ("", "server {"),
            ("", "[]"),
            ("text/plain", "x"),
            ("application/jsonx", ""),
            ("text/plain; application/json", ""),
        ] {
            assert!(!is_json(content_type.as_bytes(), body.as_bytes()), "{content_type} {body}");
        }
    }

    #[test]
    fn json_is_for_those_who_ask() {
        for (accept, args) in [
            ("application/json", ""),
            ("APPLICATION/Json", ""),
            ("text/html, application/json;q=0.5 , */*", ""),
            ("application/json; q=0.001", "format="),
            ("application/json", "format=xml"),
            ("", "format=json"),
            ("text/plain", "a=b&format=JSON"),
            ("", "format=json&format=text"),
            ("application/json;q=0", "format=json"),
        ] {
            let dialect = wants_json(accept.as_bytes(), args.as_bytes());
            assert_eq!(dialect, Dialect::Json, "{accept} {args}");
        }
        for (accept, args) in [
            ("", ""),
            ("*/*", ""),
            ("application/*", ""),
            ("text/plain", ""),
            ("application/json;q=0", ""),
            ("application/json; Q=0.000", ""),
            ("application/json ; x=1 ; q=0.", ""),
            ("application/json-seq", ""),
            ("application/json", "format=text"),
            ("", "xformat=json"),
            ("", "format=jsonx"),
            ("", "FORMAT=json"),
        ] {
            let dialect = wants_json(accept.as_bytes(), args.as_bytes());
            assert_eq!(dialect, Dialect::Text, "{accept} {args}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(a: Vec<u8>, b: Vec<u8>) {
            let _ = (wants_json(&a, &b), is_json(&a, &b));
        }

        #[test]
        fn near_misses_end(a in "((application/json|q=|0|[.,; =])){0,20}") {
            let _ = wants_json(a.as_bytes(), b"");
        }
    }
}
