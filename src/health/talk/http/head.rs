//! The head of an answer of HTTP/1: its status, and what it says of the body and the connection.
#![forbid(unsafe_code)]

use httparse::{EMPTY_HEADER, Header, ParserConfig, Response, Status};

use crate::model::Reason;

/// The most headers of an answer.
pub const HEADERS_MAX: usize = 100;

/// What the head of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status, 0 to 999.
    pub code: u16,
    /// Where the body ends.
    pub framing: Framing,
    /// The server keeps the connection for more requests.
    pub keeps: bool,
}

/// Where the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With a last chunk.
    Chunked,
    /// With the connection.
    Close,
    /// The headers contradict each other, or say what nobody asked for.
    Invalid,
}

impl Head {
    /// Reads a head, and says how long it is; none is one that has not come to its end. `no_body`
    /// says that the request was of a kind that gets none, as `HEAD`.
    ///
    /// As nginx does, it passes over lines that are no headers.
    ///
    /// # Errors
    ///
    /// [`Reason::NotHttp`] and, for too many headers, [`Reason::TooLong`].
    pub fn read(bytes: &[u8], no_body: bool) -> Result<Option<(Self, usize)>, Reason> {
        // The parser would pass over empty lines before it.
        if bytes.first().is_some_and(|first| *first != b'H') {
            return Err(Reason::NotHttp);
        }
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut response = Response::new(&mut headers);
        let length = match parser().parse_response(&mut response, bytes) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(Reason::TooLong),
            Err(_) => return Err(Reason::NotHttp),
        };
        let code = response.code.ok_or(Reason::NotHttp)?;
        let is_1_1 = response.version == Some(1);
        let framing = match code {
            100..=199 | 204 | 304 => Framing::Length(0),
            _ if no_body => Framing::Length(0),
            _ => framing(response.headers),
        };
        let keeps = keeps(is_1_1, response.headers)
            && code != 101
            && (is_1_1 || framing != Framing::Chunked);
        Ok(Some((Self { code, framing, keeps }, length)))
    }
}

fn parser() -> ParserConfig {
    let mut parser = ParserConfig::default();
    parser
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_space_before_first_header_name(true)
        .ignore_invalid_headers_in_responses(true);
    parser
}

/// RFC 9112, 6.3, but that like nginx it takes no coding besides `chunked`, and that not with a
/// length.
fn framing(headers: &[Header]) -> Framing {
    let mut codings = values(headers, "transfer-encoding");
    let mut lengths = values(headers, "content-length").map(length);
    match (codings.next(), lengths.next()) {
        (None, None) => Framing::Close,
        (None, Some(Some(length))) if lengths.all(|other| other == Some(length)) => {
            Framing::Length(length)
        }
        (Some(coding), None)
            if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() =>
        {
            Framing::Chunked
        }
        _ => Framing::Invalid,
    }
}

/// Digits alone: a sign, which a parser of numbers takes, would be read otherwise by others.
fn length(value: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(value).ok().filter(|_| value.iter().all(u8::is_ascii_digit))?;
    digits.parse().ok()
}

fn keeps(is_1_1: bool, headers: &[Header]) -> bool {
    let says = |option: &[u8]| {
        values(headers, "connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(option))
    };
    !says(b"close") && (is_1_1 || says(b"keep-alive"))
}

fn values<'a>(headers: &'a [Header], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        match Head::read(text.as_bytes(), false) {
            Ok(Some((head, length))) if length == text.len() => head,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn framing(headers: &str) -> Framing {
        head(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).framing
    }

    #[test]
    fn statuses() {
        for (text, code) in [
            ("HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\n\r\n", 200),
            ("HTTP/1.0 503\r\n\r\n", 503),
            ("HTTP/1.1  404  Not Found\n\n", 404),
            ("HTTP/1.1 000 \r\n\r\n", 0),
            ("HTTP/1.1 200 OK\r\nno header\r\n@: x\r\nA : b\r\nC: d\r\n e\r\n\r\n", 200),
        ] {
            assert_eq!(head(text).code, code, "{text}");
        }
    }

    #[test]
    fn what_is_not_http() {
        for text in [
            "<html>",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "Hello",
            "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
        ] {
            assert_eq!(Head::read(text.as_bytes(), false), Err(Reason::NotHttp), "{text}");
        }
        for text in ["", "H", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n"] {
            assert_eq!(Head::read(text.as_bytes(), false), Ok(None), "{text}");
        }
    }

    #[test]
    fn headers_are_bounded() {
        let of = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(head(&of(HEADERS_MAX)).code, 200);
        assert_eq!(Head::read(of(HEADERS_MAX + 1).as_bytes(), false), Err(Reason::TooLong));
    }

    #[test]
    fn where_the_body_ends() {
        for (headers, expected) in [
            ("", Framing::Close),
            ("Content-Length: 12\r\n", Framing::Length(12)),
            ("content-length:0012 \r\nContent-Length: 12\r\n", Framing::Length(12)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
            ("Transfer-Encoding : chunked\r\n", Framing::Chunked),
        ] {
            assert_eq!(framing(headers), expected, "{headers}");
        }
        for headers in [
            "Content-Length: 12\r\nContent-Length: 13\r\n",
            "Content-Length: 12\r\nContent-Length: x\r\n",
            "Content-Length: +12\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 12, 12\r\n",
            "Content-Length: 0x10\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 1\r\n 2\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 12\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
        ] {
            assert_eq!(framing(headers), Framing::Invalid, "{headers}");
        }
    }

    #[test]
    fn some_answers_have_no_body() {
        for status in ["204 No Content", "304 Not Modified", "101 Switching", "100 Continue"] {
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
            assert_eq!(head(&text).framing, Framing::Length(0), "{text}");
        }
        let text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let head = Head::read(text, true).unwrap().unwrap().0;
        assert_eq!((head.framing, head.keeps), (Framing::Length(0), true));
    }

    #[test]
    fn who_keeps_the_connection() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nConnection: upgrade, Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", true),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            ("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n", false),
        ] {
            assert_eq!(head(text).keeps, expected, "{text}");
        }
    }
}
