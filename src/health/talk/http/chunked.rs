//! A body in chunks (RFC 9112, 7.1), as it comes.
#![forbid(unsafe_code)]

/// The most bytes of a body that are none of its data: sizes, extensions and trailers. It lets
/// 128 KiB through in chunks of one byte.
const OVERHEAD_MAX: usize = 1024 * 1024;

/// The most digits of a chunk's size, so that it fits into 64 bits.
const DIGITS_MAX: u8 = 16;

/// A reader of chunks. After an error, or the end, it reads no more.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    overhead: usize,
}

/// What a reader makes of the bytes it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Data of the body, and what follows.
    Data(&'a [u8], &'a [u8]),
    /// The body has ended; this is what follows.
    End(&'a [u8]),
    /// More has to come.
    More,
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// These are no chunks.
    Invalid,
    /// There is too much besides the data.
    TooLong,
}

/// What comes next. A line may end without its carriage return, as nginx has it.
#[derive(Clone, Copy, Debug)]
enum State {
    /// A size's next digit, or what ends it.
    Size { size: u64, digits: u8 },
    /// Anything up to the end of the size's line.
    Extension { size: u64 },
    /// So much data.
    Data { left: u64 },
    /// The end of the line after data, with its carriage return if `cr`.
    DataEnd { cr: bool },
    /// A line after the last chunk; `empty` if nothing of it has come.
    Trailer { empty: bool },
}

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, overhead: 0 }
    }
}

impl Chunked {
    /// Reads on, up to `room` bytes of data at once, which is at least 1.
    ///
    /// # Errors
    ///
    /// See [`Fault`].
    pub fn read<'a>(&mut self, mut bytes: &'a [u8], room: usize) -> Result<Part<'a>, Fault> {
        loop {
            if let State::Data { left } = &mut self.state {
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(room);
                let (data, rest) = bytes.split_at(most.min(bytes.len()));
                *left -= data.len() as u64;
                if *left == 0 {
                    self.state = State::DataEnd { cr: false };
                }
                return Ok(if data.is_empty() { Part::More } else { Part::Data(data, rest) });
            }
            let Some((byte, rest)) = bytes.split_first() else { return Ok(Part::More) };
            bytes = rest;
            self.overhead += 1;
            if self.overhead > OVERHEAD_MAX {
                return Err(Fault::TooLong);
            }
            match self.state.next(*byte).ok_or(Fault::Invalid)? {
                Some(state) => self.state = state,
                None => return Ok(Part::End(rest)),
            }
        }
    }
}

impl State {
    /// The state after one more byte that is not data, or the end; none if that cannot be.
    fn next(self, byte: u8) -> Option<Option<Self>> {
        Some(Some(match (self, byte) {
            (Self::Size { digits: 0, .. }, b) if !b.is_ascii_hexdigit() => return None,
            (Self::Size { size, .. } | Self::Extension { size }, b'\n') => match size {
                0 => Self::Trailer { empty: true },
                left => Self::Data { left },
            },
            (Self::Size { size, .. }, b';' | b' ' | b'\t' | b'\r') => Self::Extension { size },
            (Self::Size { digits: DIGITS_MAX, .. }, _) => return None,
            (Self::Size { size, digits }, _) => {
                let digit = char::from(byte).to_digit(16)?;
                Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Extension { size }, _) => Self::Extension { size },
            (Self::DataEnd { cr: false }, b'\r') => Self::DataEnd { cr: true },
            (Self::DataEnd { .. }, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::DataEnd { .. } | Self::Data { .. }, _) => return None,
            (Self::Trailer { empty: true }, b'\n') => return Some(None),
            (Self::Trailer { .. }, b'\n') => Self::Trailer { empty: true },
            (Self::Trailer { empty }, b'\r') => Self::Trailer { empty },
            (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All data, and what follows the end if it has come.
    fn read(text: &[u8], room: usize) -> Result<(Vec<u8>, Option<Vec<u8>>), Fault> {
        let mut chunked = Chunked::default();
        let (mut data, mut rest) = (Vec::new(), text);
        loop {
            match chunked.read(rest, room)? {
                Part::Data(part, then) => {
                    data.extend_from_slice(part);
                    rest = then;
                }
                Part::End(after) => return Ok((data, Some(after.to_vec()))),
                Part::More => return Ok((data, None)),
            }
        }
    }

    #[test]
    fn chunks_are_joined() {
        for text in [
            "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
            "005\nhello\n6 ; a=\"b\"\r\n world\r\n00;x\r\nTrailer: 1\r\nB: 2\n\r\n",
            "B\r\nhello world\r\n0\r\n\r\n",
        ] {
            assert_eq!(read(text.as_bytes(), 4), Ok((b"hello world".into(), Some(Vec::new()))));
            let more = format!("{text}HTTP");
            assert_eq!(
                read(more.as_bytes(), 99),
                Ok((b"hello world".into(), Some(b"HTTP".into())))
            );
            for end in 0..text.len() {
                assert_eq!(read(&text.as_bytes()[..end], 99).unwrap().1, None, "{text} {end}");
            }
        }
    }

    #[test]
    fn what_are_no_chunks() {
        for text in [
            "\r\n",
            "x",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            ";a\r\n",
            "1g\r\n",
            " 1\r\n",
            "1\r\nab",
            "1\r\na\r\r\n",
            "10000000000000000\r\n",
        ] {
            assert_eq!(read(text.as_bytes(), 99), Err(Fault::Invalid), "{text}");
        }
        assert_eq!(read(b"ffffffffffffffff\r\nab", 1), Ok((b"ab".into(), None)));
    }

    #[test]
    fn the_rest_is_bounded() {
        let line = "Trailer: 1\r\n".repeat(OVERHEAD_MAX / 12 + 1);
        for text in [format!("0\r\n{line}"), format!("1;{}", line.replace('\n', " "))] {
            assert_eq!(read(text.as_bytes(), 99), Err(Fault::TooLong));
        }
        let small = "1\r\na\r\n".repeat(128 * 1024);
        assert_eq!(read(small.as_bytes(), 99).unwrap().0.len(), 128 * 1024);
    }

    proptest! {
        #[test]
        fn what_was_cut_into_chunks_is_whole_again(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..9),
            room in 1..50_usize,
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            assert_eq!(read(&text, room), Ok((chunks.concat(), Some(Vec::new()))));
        }

        #[test]
        fn any_bytes_end(text in "[0-9a-f;\r\n]{0,40}", bytes: Vec<u8>, room in 1..50_usize) {
            let _ = read(&bytes, room);
            let _ = read(text.as_bytes(), room);
        }
    }
}
