//! Lines of HTTP/1 as they come, and how many more may.
#![forbid(unsafe_code)]

use super::status_line::StatusLine;
use crate::model::Reason;

/// The most bytes of all heads of an answer, those of 1xx included.
pub const HEAD_MAX: usize = 64 * 1024;

/// The longest status line, in bytes with its end.
pub const LINE_MAX: usize = 8 * 1024;

/// The most empty lines before status lines.
pub const EMPTY_LINES_MAX: usize = 4;

/// What has come of heads and was not taken yet.
pub struct Input {
    /// At most `room`, and what came with the last of it.
    bytes: Vec<u8>,
    /// How many of them were looked through for the end of the headers.
    seen: usize,
    /// How much of [`HEAD_MAX`] is left.
    room: usize,
    /// How many of [`EMPTY_LINES_MAX`] are left.
    empty_lines: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: Vec::new(), seen: 0, room: HEAD_MAX, empty_lines: EMPTY_LINES_MAX }
    }
}

impl Input {
    /// Takes what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next line, which is that of a status; none if it has not come to its end.
    ///
    /// # Errors
    ///
    /// [`Reason::NotHttp`] and [`Reason::TooLong`].
    pub fn status_line(&mut self) -> Result<Option<StatusLine>, Reason> {
        while let Some(length) = empty_line(&self.bytes) {
            self.empty_lines = self.empty_lines.checked_sub(1).ok_or(Reason::NotHttp)?;
            self.remove(length);
        }
        if self.bytes == b"\r" {
            return Ok(None);
        }
        let most = self.room.min(LINE_MAX);
        match StatusLine::read(self.bytes.get(..most).unwrap_or(&self.bytes))? {
            Some((line, length)) => {
                self.remove(length);
                Ok(Some(line))
            }
            None if self.bytes.len() >= most => Err(Reason::TooLong),
            None => Ok(None),
        }
    }

    /// All behind the status line up to the empty line, with this; none if that has not come.
    ///
    /// # Errors
    ///
    /// [`Reason::TooLong`].
    pub fn headers(&mut self) -> Result<Option<Vec<u8>>, Reason> {
        let window = self.bytes.get(..self.room).unwrap_or(&self.bytes);
        let ends = |&at: &usize| window.get(at) == Some(&b'\n') && ends_with_line(window, at);
        match (self.seen..window.len()).find(ends) {
            Some(end) => Ok(Some(self.remove(end + 1))),
            None if window.len() == self.room => Err(Reason::TooLong),
            None => {
                self.seen = window.len();
                Ok(None)
            }
        }
    }

    /// What has come behind all that was taken.
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }

    fn remove(&mut self, length: usize) -> Vec<u8> {
        self.seen = 0;
        self.room = self.room.saturating_sub(length);
        let length = length.min(self.bytes.len());
        let rest = self.bytes.split_off(length);
        std::mem::replace(&mut self.bytes, rest)
    }
}

/// How long the empty line is that they begin with.
fn empty_line(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\n', ..] => Some(1),
        [b'\r', b'\n', ..] => Some(2),
        _ => None,
    }
}

/// Whether the line is empty whose end is at `end`.
fn ends_with_line(bytes: &[u8], end: usize) -> bool {
    let before = bytes.get(..end).unwrap_or_default();
    let before = before.strip_suffix(b"\r").unwrap_or(before);
    before.is_empty() || before.ends_with(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(bytes: &str) -> Input {
        let mut input = Input::default();
        input.push(bytes.as_bytes());
        input
    }

    fn code(input: &mut Input) -> Result<Option<u16>, Reason> {
        input.status_line().map(|line| line.map(|line| line.code))
    }

    #[test]
    fn a_head_is_taken_line_by_line() {
        for (headers, rest) in [
            ("\r\n", "rest"),
            ("\n", ""),
            ("\r\n", "\r\n"),
            ("A: b\r\nC: d\n\r\n", "\n"),
            ("A: b\n\n", "\r"),
            ("\r\r\nA\r\n\r\n", ""),
        ] {
            let mut input = input(&format!("\r\n\nHTTP/1.1 200 OK\r\n{headers}{rest}"));
            assert_eq!(code(&mut input), Ok(Some(200)));
            let expected = headers.as_bytes().to_vec();
            assert_eq!(input.headers(), Ok(Some(expected)), "{headers:?}");
            assert_eq!(input.into_rest(), rest.as_bytes());
        }
    }

    #[test]
    fn a_head_comes_in_pieces() {
        let mut input = Input::default();
        for byte in "\r\nHTTP/1.1 200 OK\r".bytes() {
            input.push(&[byte]);
            assert_eq!(code(&mut input), Ok(None));
        }
        input.push(b"\n");
        assert_eq!(code(&mut input), Ok(Some(200)));
        for byte in "A: b\r\n\r".bytes() {
            input.push(&[byte]);
            assert_eq!(input.headers(), Ok(None));
        }
        input.push(b"\n");
        assert_eq!(input.headers(), Ok(Some(b"A: b\r\n\r\n".to_vec())));
    }

    #[test]
    fn empty_lines_are_bounded() {
        let mut few = input(&format!("{}HTTP/1.1 200 OK\n", "\r\n".repeat(EMPTY_LINES_MAX)));
        assert_eq!(code(&mut few), Ok(Some(200)));
        let mut many = input(&"\n".repeat(EMPTY_LINES_MAX + 1));
        assert_eq!(code(&mut many), Err(Reason::NotHttp));
        assert_eq!(code(&mut input("\rH")), Err(Reason::NotHttp));
    }

    #[test]
    fn lines_and_heads_are_bounded() {
        let text = "x".repeat(LINE_MAX - 15);
        assert_eq!(code(&mut input(&format!("HTTP/1.1 200 {text}\r\n"))), Ok(Some(200)));
        let mut long = input(&format!("HTTP/1.1 200 {text}x\r\n"));
        assert_eq!(code(&mut long), Err(Reason::TooLong));
        let headers = format!("A: {}\n\n", "b".repeat(HEAD_MAX - 20));
        for (line, fits) in [("HTTP/1.1 200 \r\n", true), ("HTTP/1.1 200 x\r\n", false)] {
            let mut input = input(&format!("{line}{headers}"));
            assert_eq!(code(&mut input), Ok(Some(200)));
            assert_eq!(input.headers().is_ok(), fits);
        }
    }
}
