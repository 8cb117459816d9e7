//! `fastcgi`: a request, and whether its answer has a good status.
#![forbid(unsafe_code)]

mod cgi;

use super::{Step, Talk, Verdict};
use crate::model::Reason;
use crate::model::check::Alive;
use crate::model::reason::Stage;
use cgi::Cgi;

/// Types of records (FastCGI 1.0, 8).
const BEGIN_REQUEST: u8 = 1;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

const VERSION: u8 = 1;

/// The number of the only request, in two bytes.
const REQUEST: [u8; 2] = [0, 1];

/// As a responder, over a connection that the server closes.
const RESPONDER: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];

/// The most bytes of content in a record.
const CONTENT_MAX: usize = u16::MAX as usize;

const HEADER: usize = 8;

/// The most bytes of records before the answer's head is whole, with what is passed over.
const RECEIVED_MAX: usize = 1024 * 1024;

/// The conversation.
pub struct Fastcgi {
    params: Vec<u8>,
    alive: Alive,
    answer: Cgi,
    /// What has come of a record's header, less than 8 bytes.
    header: Vec<u8>,
    record: Record,
    received: usize,
}

/// What is to come of the record that is being read.
#[derive(Clone, Copy, Default)]
struct Record {
    /// Whether its content is the answer's.
    is_answer: bool,
    content: usize,
    padding: usize,
}

impl Fastcgi {
    /// A conversation about a request with these parameters, names and values.
    pub fn new(params: &[(String, String)], alive: Alive) -> Self {
        Self {
            params: encode(params),
            alive,
            answer: Cgi::default(),
            header: Vec::with_capacity(HEADER),
            record: Record::default(),
            received: 0,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Option<u16>, Reason> {
        for byte in bytes {
            self.received += 1;
            if self.received > RECEIVED_MAX {
                return Err(Reason::TooLong);
            }
            if self.record.content > 0 {
                self.record.content -= 1;
                if self.record.is_answer && self.answer.take(*byte)? {
                    return Ok(Some(self.answer.status()));
                }
            } else if self.record.padding > 0 {
                self.record.padding -= 1;
            } else {
                self.header.push(*byte);
                self.take_header()?;
            }
        }
        Ok(None)
    }

    /// Looks at a header after each byte of it.
    fn take_header(&mut self) -> Result<(), Reason> {
        let header = self.header.as_slice();
        let begins_well = match *header {
            [] | [VERSION] | [VERSION, STDOUT | STDERR] | [_, _, 0] => true,
            [_, _, high, low, ..] => [high, low] == REQUEST,
            _ => false,
        };
        if !begins_well {
            return Err(Reason::NotFastcgi);
        }
        if let [_, kind, _, _, high, low, padding, _] = *header {
            let content = u16::from_be_bytes([high, low]).into();
            let is_answer = kind == STDOUT;
            // The end of the output, which has come before that of the head.
            if is_answer && content == 0 {
                return Err(Reason::NotFastcgi);
            }
            self.record = Record { is_answer, content, padding: padding.into() };
            self.header.clear();
        }
        Ok(())
    }
}

impl Talk for Fastcgi {
    fn open(&mut self) -> Vec<u8> {
        let params = std::mem::take(&mut self.params);
        let mut bytes = Vec::with_capacity(params.len() + 6 * HEADER);
        record(&mut bytes, BEGIN_REQUEST, &RESPONDER);
        for part in params.chunks(CONTENT_MAX) {
            record(&mut bytes, PARAMS, part);
        }
        record(&mut bytes, PARAMS, &[]);
        record(&mut bytes, STDIN, &[]);
        bytes
    }

    fn received(&mut self, bytes: &[u8]) -> Step {
        match self.take(bytes) {
            Ok(None) => Step::Wait,
            Ok(Some(status)) if self.alive.has(status) => Step::Done(Verdict::WELL),
            Ok(Some(status)) => Step::Done(Verdict::Failed(Reason::Status(status))),
            Err(reason) => Step::Done(Verdict::Failed(reason)),
        }
    }

    fn closed(&mut self) -> Verdict {
        Verdict::Failed(Reason::Closed(Stage::Read))
    }
}

/// Appends a record of at most [`CONTENT_MAX`] bytes of content.
fn record(bytes: &mut Vec<u8>, kind: u8, content: &[u8]) {
    let [high, low] = (content.len() as u16).to_be_bytes();
    let [request_high, request_low] = REQUEST;
    bytes.extend([VERSION, kind, request_high, request_low, high, low, 0, 0]);
    bytes.extend(content);
}

/// Name-value pairs (FastCGI 1.0, 3.4).
fn encode(params: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in params {
        for text in [name, value] {
            match u8::try_from(text.len()) {
                Ok(length @ 0..=127) => bytes.push(length),
                _ => bytes.extend((text.len() as u32 | 1 << 31).to_be_bytes()),
            }
        }
        bytes.extend(name.bytes().chain(value.bytes()));
    }
    bytes
}

#[cfg(test)]
mod tests;
