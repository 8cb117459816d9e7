//! What passes between the threads that work on changes and the worker that puts lists in force.
#![forbid(unsafe_code)]

use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

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
    /// Where the method stands in the body, if one does.
    pub method: Option<Place>,
    /// Where `check` stands in the body, if it does.
    pub check: Option<Place>,
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
    /// Where the reply goes, if one is waited for.
    pub reply: Option<Sender<Reply>>,
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
}

impl Line {
    /// Of the thread that works on a change.
    pub fn new(job: u64, mail: Arc<Mail>) -> Self {
        Self { job, mail }
    }

    /// Asks the worker and waits for what it says; nothing if it cannot say anything any more.
    pub fn ask(&self, ask: Ask) -> Option<Reply> {
        let (reply, said) = mpsc::channel();
        self.mail.put(Letter { job: self.job, ask, reply: Some(reply) });
        said.recv().ok()
    }

    /// Says how it ended.
    pub fn done(&self, answer: Answer, error: Option<String>) {
        self.mail.put(Letter { job: self.job, ask: Ask::Done { answer, error }, reply: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::List;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    fn mail() -> (Arc<Mail>, Arc<AtomicUsize>) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        let wake = move || {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        (Arc::new(Mail::new(wake)), wakes)
    }

    fn letter(mail: &Mail) -> Letter {
        loop {
            if let Some(letter) = mail.take().pop() {
                return letter;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn a_question_waits_for_its_reply() {
        let (mail, wakes) = mail();
        let line = Line::new(7, Arc::clone(&mail));
        let ask = || Ask::Publish(Plan::Put(List::default()));
        let thread = thread::spawn(move || line.ask(ask()).is_some());
        let letter = letter(&mail);
        assert_eq!(letter.job, 7);
        letter.reply.unwrap().send(Reply::Changed).unwrap();
        assert!(thread.join().unwrap());
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_letter_that_is_lost_leaves_nobody_waiting() {
        let (mail, _) = mail();
        let line = Line::new(7, Arc::clone(&mail));
        let thread = thread::spawn(move || line.ask(Ask::Publish(Plan::Remove)).is_none());
        drop(letter(&mail));
        assert!(thread.join().unwrap());
    }

    #[test]
    fn letters_wake_once_until_they_are_taken() {
        let (mail, wakes) = mail();
        let line = Line::new(1, Arc::clone(&mail));
        for _ in 0..2 {
            line.done(Answer::success(Dialect::Text), None);
            line.done(Answer::success(Dialect::Text), None);
            assert_eq!(mail.take().len(), 2);
        }
        assert_eq!(wakes.load(Ordering::SeqCst), 2);
    }
}
