//! What passes between the threads that work on changes and the worker that puts lists in force.
#![forbid(unsafe_code)]

use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use parking_lot::Mutex;

use super::answer::Answer;
use super::plan::{Plan, Wanted};
use super::route::Dialect;
use crate::model::body::Place;

/// What is wanted, and what has to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The change.
    pub wanted: Wanted,
    /// Where `keepalive` stands in the body, if it does.
    pub keepalive: Option<Place>,
    /// How a refusal is said.
    pub dialect: Dialect,
}

/// What a thread has for the worker.
#[derive(Debug)]
pub enum Ask {
    /// To put a change in force. To be replied to.
    Put(Request),
    /// To work out what a change comes to. To be replied to.
    Plan(Request),
    /// To put in force what was worked out last. To be replied to.
    Publish(Plan),
    /// To answer the request. Nothing comes after it.
    Done {
        /// The answer.
        answer: Answer,
        /// A printable line for the error log.
        error: Option<String>,
    },
}

/// What the worker says.
#[derive(Debug)]
pub enum Reply {
    /// It is in force. The answer says what else there is to say.
    Published(Answer),
    /// What there is to do.
    Planned(Plan),
    /// Somebody else changed the list since it was worked out.
    Changed,
    /// Nothing was done, and why.
    Refused(Answer),
}

/// One message of a thread.
#[derive(Debug)]
pub struct Letter {
    /// The change it is about.
    pub job: u64,
    /// The message.
    pub ask: Ask,
    /// Where the reply goes.
    pub reply: Sender<Reply>,
}

/// The messages of all threads of one worker.
pub struct Mail {
    letters: Mutex<Vec<Letter>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Mail {
    /// `wake` is called from the threads when there is something to take where there was nothing.
    /// It must not block.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { letters: Mutex::default(), wake: Box::new(wake) }
    }

    /// Takes all there is, in its order.
    pub fn take(&self) -> Vec<Letter> {
        mem::take(&mut self.letters.lock())
    }

    fn put(&self, letter: Letter) {
        let mut letters = self.letters.lock();
        letters.push(letter);
        if letters.len() == 1 {
            (self.wake)();
        }
    }
}

/// A thread's end.
pub struct Line {
    job: u64,
    mail: Arc<Mail>,
    reply: Sender<Reply>,
    replies: Receiver<Reply>,
}

impl Line {
    /// Of the thread that works on a change.
    pub fn new(job: u64, mail: Arc<Mail>) -> Self {
        let (reply, replies) = mpsc::channel();
        Self { job, mail, reply, replies }
    }

    /// Asks the worker and waits for what it says.
    pub fn ask(&self, ask: Ask) -> Option<Reply> {
        self.put(ask);
        self.replies.recv().ok()
    }

    /// Says how it ended.
    pub fn done(&self, answer: Answer, error: Option<String>) {
        self.put(Ask::Done { answer, error });
    }

    fn put(&self, ask: Ask) {
        self.mail.put(Letter { job: self.job, ask, reply: self.reply.clone() });
    }
}
