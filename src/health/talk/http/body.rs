//! The body of an answer, as it comes.
#![forbid(unsafe_code)]

use super::chunked::{Chunked, Fault, Part};
use super::head::Framing;

/// The most of a body that is looked at, in bytes.
pub const BODY_MAX: usize = 128 * 1024;

/// A body of which a part has come.
#[derive(Debug)]
pub struct Body {
    left: Left,
    /// What has come, up to [`BODY_MAX`].
    size: usize,
    kept: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Left {
    Length(u64),
    Chunked(Chunked),
    Close,
}

/// How far a body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// More has to come.
    More,
    /// As much has come as is looked at, but not all.
    Full,
    /// All has come, and this follows.
    End(&'a [u8]),
}

impl Body {
    /// A body that ends as `framing` says, of which `keep` keeps what comes; none if it ends in no
    /// known way.
    pub fn new(framing: Framing, keep: bool) -> Option<Self> {
        let left = match framing {
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunked(Chunked::default()),
            Framing::Close => Left::Close,
            Framing::Invalid => return None,
        };
        Some(Self { left, size: 0, kept: keep.then(Vec::new) })
    }

    /// Takes what has come.
    ///
    /// # Errors
    ///
    /// What is wrong with a body in chunks.
    pub fn read<'a>(&mut self, mut bytes: &'a [u8]) -> Result<Progress<'a>, Fault> {
        loop {
            let room = BODY_MAX - self.size;
            let part = match &mut self.left {
                Left::Length(0) => Part::End(bytes),
                _ if room == 0 => return Ok(Progress::Full),
                Left::Length(left) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(room);
                    let part = part(bytes, most);
                    if let Part::Data(data, _) = part {
                        *left -= data.len() as u64;
                    }
                    part
                }
                Left::Chunked(chunked) => chunked.read(bytes, room)?,
                Left::Close => part(bytes, room),
            };
            match part {
                Part::Data(data, rest) => {
                    self.size += data.len();
                    if let Some(kept) = &mut self.kept {
                        kept.extend_from_slice(data);
                    }
                    bytes = rest;
                }
                Part::End(rest) => return Ok(Progress::End(rest)),
                Part::More => return Ok(Progress::More),
            }
        }
    }

    /// Whether it is the end of the connection that ends this body.
    pub fn ends_by_close(&self) -> bool {
        matches!(self.left, Left::Close)
    }

    /// What was kept of it.
    pub fn kept(&self) -> &[u8] {
        self.kept.as_deref().unwrap_or_default()
    }
}

fn part(bytes: &[u8], most: usize) -> Part<'_> {
    match bytes.split_at(most.min(bytes.len())) {
        ([], _) => Part::More,
        (data, rest) => Part::Data(data, rest),
    }
}
