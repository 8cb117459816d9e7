//! The head of a CGI program's answer (RFC 3875, 6).
#![forbid(unsafe_code)]

use crate::model::Reason;

/// The most bytes of a head.
pub const HEAD_MAX: usize = 16 * 1024;

/// A head that is being read.
#[derive(Default)]
pub struct Cgi {
    line: Vec<u8>,
    /// All lines so far.
    length: usize,
    status: Option<u16>,
    is_redirect: bool,
}

impl Cgi {
    /// Takes the next byte, and says whether the head is whole with it.
    ///
    /// # Errors
    ///
    /// [`Reason::TooLong`], and [`Reason::NotFastcgi`] for what is no head.
    pub fn take(&mut self, byte: u8) -> Result<bool, Reason> {
        self.length += 1;
        if self.length > HEAD_MAX {
            return Err(Reason::TooLong);
        }
        if byte != b'\n' {
            self.line.push(byte);
            return Ok(false);
        }
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() {
            return Ok(true);
        }
        self.take_line(line).ok_or(Reason::NotFastcgi)?;
        Ok(false)
    }

    /// None if the line is no header. Of several with the same name the first counts, as with nginx.
    fn take_line(&mut self, line: &[u8]) -> Option<()> {
        // Some send the status line of HTTP too.
        if line.starts_with(b"HTTP/") {
            return Some(());
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) || value.contains(&0) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"status") {
            let status = status(value.strip_prefix(b":")?.trim_ascii_start())?;
            self.status.get_or_insert(status);
        }
        self.is_redirect |= name.eq_ignore_ascii_case(b"location");
        Some(())
    }

    /// The status that the head, if it is whole, says or implies; 0 to 999.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or(if self.is_redirect { 302 } else { 200 })
    }
}

/// Three digits, and text after them that does not matter.
fn status(value: &[u8]) -> Option<u16> {
    let (digits, rest) = value.split_at_checked(3)?;
    if rest.first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0, |status, digit| {
        digit.is_ascii_digit().then(|| status * 10 + u16::from(digit - b'0'))
    })
}
