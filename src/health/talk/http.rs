//! `http` and `https`: a request of HTTP/1, and whether its answer is good.
//!
//! Where no body is asked for, the status line alone says whether the server is well, as in
//! nginx_upstream_check_module. What follows is then read only to find out whether the connection can be
//! used again, if that is wanted, and nothing about it is a failure.
#![forbid(unsafe_code)]

mod body;
mod chunked;
mod head;
mod input;
mod status_line;
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
use input::Input;
use status_line::{StatusLine, Version};

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
    /// What has come of the heads.
    input: Input,
    state: State,
}

enum State {
    /// A status line is to come.
    Status,
    /// It has come, and headers are to: the status is good, or one of 1xx.
    Headers(StatusLine),
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
            input: Input::default(),
            state: State::Status,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Option<Verdict>, Reason> {
        if let State::Body { .. } = self.state {
            return self.take_body(bytes);
        }
        self.input.push(bytes);
        loop {
            if let State::Headers(line) = self.state {
                let Some(headers) = self.input.headers()? else { return Ok(None) };
                if !line.is_interim() {
                    return self.take_head(Head::read(line, &headers, self.no_body)?);
                }
            }
            self.state = State::Status;
            let Some(line) = self.input.status_line()? else { return Ok(None) };
            if self.is_enough(line)? {
                return Ok(Some(Verdict::WELL));
            }
            self.state = State::Headers(line);
        }
    }

    /// Whether the status is good and no more is asked for.
    fn is_enough(&self, line: StatusLine) -> Result<bool, Reason> {
        if line.is_interim() {
            return Ok(false);
        }
        if !self.alive.has(line.code) {
            return Err(Reason::Status(line.code));
        }
        Ok(self.rule.is_none() && !(self.keepalive && line.version != Version::Other))
    }

    fn take_head(&mut self, head: Head) -> Result<Option<Verdict>, Reason> {
        let keeps = self.keepalive && head.keeps;
        if self.rule.is_none() && !(keeps && is_worth_reading(head.framing)) {
            return Ok(Some(Verdict::WELL));
        }
        let body = Body::new(head.framing, self.rule.is_some()).ok_or(Reason::NotHttp)?;
        self.state = State::Body { body, keeps };
        let rest = std::mem::take(&mut self.input).into_rest();
        self.take_body(&rest)
    }

    fn take_body(&mut self, bytes: &[u8]) -> Result<Option<Verdict>, Reason> {
        let State::Body { body, keeps } = &mut self.state else { return Ok(None) };
        let reusable = match body.read(bytes) {
            Ok(Progress::More) => return Ok(None),
            Ok(Progress::Full) => false,
            Ok(Progress::End(rest)) => *keeps && rest.is_empty(),
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
            Err(reason) => Step::Done(self.cut(reason)),
        }
    }

    fn closed(&mut self) -> Verdict {
        match &self.state {
            State::Body { body, .. } if body.ends_by_close() => self.judge(false),
            _ => self.cut(Reason::Closed(Stage::Read)),
        }
    }

    fn cut(&mut self, reason: Reason) -> Verdict {
        let is_good = match self.state {
            State::Status => false,
            State::Headers(line) => !line.is_interim(),
            State::Body { .. } => true,
        };
        if is_good && self.rule.is_none() { Verdict::WELL } else { Verdict::Failed(reason) }
    }
}
