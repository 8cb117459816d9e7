//! `http` and `https`: a request of HTTP/1, and whether its answer is good.
//!
//! Where no body is asked for, the status alone says whether the server is well. The body is then
//! read only to find out whether the connection can be used again, and nothing about it is a failure.
#![forbid(unsafe_code)]

mod body;
mod chunked;
mod head;
#[cfg(test)]
mod tests;

use std::fmt;
use std::rc::Rc;

use super::{Step, Talk, Verdict};
use crate::model::Reason;
use crate::model::check::Alive;
use crate::model::reason::Stage;
use body::{BODY_MAX, Body, Progress};
use chunked::Fault;
use head::{Framing, Head};

/// The most bytes of all heads of an answer, those of 1xx included.
const HEAD_MAX: usize = 16 * 1024;

/// Whether a body matches, of which there are 128 KiB at most.
pub type Matcher = Rc<dyn Fn(&[u8]) -> bool>;

/// What the body of a good answer is like.
#[derive(Clone)]
pub struct BodyRule {
    /// It must not match.
    pub negated: bool,
    /// What it must match otherwise.
    pub matches: Matcher,
}

impl fmt::Debug for BodyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyRule").field("negated", &self.negated).finish_non_exhaustive()
    }
}

/// The conversation.
pub struct Http {
    request: Vec<u8>,
    /// The request is of a kind whose answer has no body.
    no_body: bool,
    alive: Alive,
    rule: Option<BodyRule>,
    keepalive: bool,
    state: State,
}

enum State {
    /// The head is being read.
    Head {
        /// What has come of it: at most `room`, and what came with the last of it.
        received: Vec<u8>,
        /// How much of [`HEAD_MAX`] is left.
        room: usize,
    },
    /// The status is good; the body is being read. `keeps` is the server's word for the connection.
    Body { body: Body, keeps: bool },
}

impl Http {
    /// A conversation that sends `request` as it is. `keepalive` says that the connection would be
    /// of use for another.
    pub fn new(request: &[u8], alive: Alive, rule: Option<BodyRule>, keepalive: bool) -> Self {
        Self {
            request: request.to_vec(),
            no_body: request.trim_ascii_start().starts_with(b"HEAD "),
            alive,
            rule,
            keepalive,
            state: State::Head { received: Vec::new(), room: HEAD_MAX },
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Option<Verdict>, Reason> {
        let State::Head { received, room } = &mut self.state else {
            return self.take_body(bytes);
        };
        received.extend_from_slice(bytes);
        while let Some((head, length)) = read_head(received, *room, self.no_body)? {
            received.drain(..length);
            *room -= length;
            // A change of protocol is the last that is said in this one.
            if !(100..200).contains(&head.code) || head.code == 101 {
                let rest = std::mem::take(received);
                return self.take_answer(head, &rest);
            }
        }
        Ok(None)
    }

    fn take_answer(&mut self, head: Head, rest: &[u8]) -> Result<Option<Verdict>, Reason> {
        if !self.alive.has(head.code) {
            return Err(Reason::Status(head.code));
        }
        let keeps = self.keepalive && head.keeps;
        if self.rule.is_none() && !(keeps && is_worth_reading(head.framing)) {
            return Ok(Some(Verdict::WELL));
        }
        let body = Body::new(head.framing, self.rule.is_some()).ok_or(Reason::NotHttp)?;
        self.state = State::Body { body, keeps };
        self.take_body(rest)
    }

    fn take_body(&mut self, bytes: &[u8]) -> Result<Option<Verdict>, Reason> {
        let State::Body { body, keeps } = &mut self.state else { return Ok(None) };
        let reusable = match body.read(bytes) {
            Ok(Progress::More) => return Ok(None),
            Ok(Progress::Full) => false,
            Ok(Progress::End(rest)) => *keeps && rest.is_empty(),
            Err(_) if self.rule.is_none() => false,
            Err(Fault::Invalid) => return Err(Reason::NotHttp),
            Err(Fault::TooLong) => return Err(Reason::TooLong),
        };
        Ok(Some(self.judge(reusable)))
    }

    /// The verdict when all of the body is there that is looked at.
    fn judge(&self, reusable: bool) -> Verdict {
        match (&self.rule, &self.state) {
            (Some(rule), State::Body { body, .. })
                if (rule.matches)(body.kept()) == rule.negated =>
            {
                Verdict::Failed(Reason::Body)
            }
            _ => Verdict::Well { reusable },
        }
    }
}

/// The head that `received` begins with, of at most `room` bytes.
fn read_head(received: &[u8], room: usize, no_body: bool) -> Result<Option<(Head, usize)>, Reason> {
    let window = received.get(..room).unwrap_or(received);
    match Head::read(window, no_body)? {
        None if window.len() == room => Err(Reason::TooLong),
        head => Ok(head),
    }
}

/// Whether a body may leave a connection that can be used again, at a price below that of a new one.
fn is_worth_reading(framing: Framing) -> bool {
    match framing {
        Framing::Length(length) => length <= BODY_MAX as u64,
        Framing::Chunked => true,
        Framing::Close | Framing::Invalid => false,
    }
}

impl Talk for Http {
    fn open(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.request)
    }

    fn received(&mut self, bytes: &[u8]) -> Step {
        match self.take(bytes) {
            Ok(None) => Step::Wait,
            Ok(Some(verdict)) => Step::Done(verdict),
            Err(reason) => Step::Done(Verdict::Failed(reason)),
        }
    }

    fn closed(&mut self) -> Verdict {
        match &self.state {
            State::Body { body, .. } if body.ends_by_close() => self.judge(false),
            _ => self.cut(Reason::Closed(Stage::Read)),
        }
    }

    fn cut(&mut self, reason: Reason) -> Verdict {
        match self.state {
            State::Body { .. } if self.rule.is_none() => Verdict::WELL,
            _ => Verdict::Failed(reason),
        }
    }
}
