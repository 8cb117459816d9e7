//! What passes between a watcher's threads and the worker whose event loop applies its lists.
#![forbid(unsafe_code)]

use std::mem;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::progress::Progress;
use crate::model::List;

/// The most events that wait for the worker. Log lines beyond are dropped and counted.
const EVENTS_MAX: usize = 256;

/// How loud a log line is, in nginx's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `error`
    Error,
    /// `warn`
    Warn,
    /// `notice`
    Notice,
    /// `info`
    Info,
}

/// What a watcher has for the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The list to put in force as it is, in this order. To be answered by [`Mailbox::applied`].
    List(List),
    /// The source has the list that is in force. Sent once.
    Confirmed,
    /// A printable line for the error log.
    Log(Level, String),
    /// What came of the watcher's questions since the last event of this kind.
    Progress(Progress),
}

/// What became of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in force.
    Applied,
    /// The list before it stays in force, and why; the watcher comes again with the then newest
    /// list.
    Refused(&'static str),
}

/// Shared by one watcher and the worker. No method waits for the other side for longer than it
/// takes to move a few words, but [`Mailbox::offer`] and [`Mailbox::pause`], which are the
/// watcher's.
pub struct Mailbox {
    inner: Mutex<Inner>,
    /// Signalled on an outcome and on the stop.
    changed: Condvar,
}

struct Inner {
    events: Vec<Event>,
    dropped: usize,
    outcome: Option<Outcome>,
    stopped: bool,
    wake: Box<dyn Fn() + Send>,
}

impl Mailbox {
    /// `wake` is called from the watcher's threads when there is something to take where there
    /// was nothing. It must not block, nor use the mailbox: its lock is held, so that no call
    /// comes after [`Mailbox::stop`] has returned.
    pub fn new(wake: impl Fn() + Send + 'static) -> Self {
        let inner = Inner {
            events: Vec::new(),
            dropped: 0,
            outcome: None,
            stopped: false,
            wake: Box::new(wake),
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Takes all there is, in its order.
    pub fn take(&self) -> Vec<Event> {
        let mut inner = self.inner.lock();
        let mut events = mem::take(&mut inner.events);
        let dropped = mem::take(&mut inner.dropped);
        if dropped > 0 {
            events.push(Event::Log(Level::Warn, format!("upsync: {dropped} log lines dropped")));
        }
        events
    }

    /// Says what became of the list that was taken.
    pub fn applied(&self, outcome: Outcome) {
        self.inner.lock().outcome = Some(outcome);
        self.changed.notify_all();
    }

    /// Makes the watcher's threads leave as soon as they notice; from now on they call and put
    /// nothing.
    pub fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stopped = true;
        inner.events.clear();
        self.changed.notify_all();
    }

    /// Whether [`Mailbox::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.inner.lock().stopped
    }

    /// Puts a log line.
    pub fn log(&self, level: Level, line: String) {
        let mut inner = self.inner.lock();
        if inner.events.len() < EVENTS_MAX {
            inner.put(Event::Log(level, line));
        } else {
            inner.dropped += 1;
        }
    }

    /// Says that the source has the list in force.
    pub fn confirm(&self) {
        self.inner.lock().put(Event::Confirmed);
    }

    /// Says what came of a question. What the worker has not taken yet is told with it, so that no
    /// more than one event waits.
    pub fn note(&self, progress: Progress) {
        let mut inner = self.inner.lock();
        let waiting = inner.events.iter_mut().find_map(|event| match event {
            Event::Progress(waiting) => Some(waiting),
            _ => None,
        });
        match waiting {
            Some(waiting) => waiting.add(progress),
            None => inner.put(Event::Progress(progress)),
        }
    }

    /// Puts a list in the place of one not yet taken and waits for the worker's answer; nothing
    /// after the stop.
    pub fn offer(&self, list: List) -> Option<Outcome> {
        let mut inner = self.inner.lock();
        inner.events.retain(|event| !matches!(event, Event::List(_)));
        inner.outcome = None;
        inner.put(Event::List(list));
        self.wait(&mut inner, |inner| inner.outcome.is_some(), None);
        inner.outcome.take().filter(|_| !inner.stopped)
    }

    /// Sleeps; false if stopped before it is over or at its end.
    pub fn pause(&self, duration: Duration) -> bool {
        let mut inner = self.inner.lock();
        // What is too long to be added to the clock is for ever.
        let until = Instant::now().checked_add(duration);
        self.wait(&mut inner, |_| until.is_some_and(|until| Instant::now() >= until), until);
        !inner.stopped
    }

    fn wait(
        &self,
        inner: &mut MutexGuard<'_, Inner>,
        is_over: impl Fn(&Inner) -> bool,
        until: Option<Instant>,
    ) {
        while !inner.stopped && !is_over(inner) {
            match until {
                Some(until) => {
                    self.changed.wait_until(inner, until);
                }
                None => self.changed.wait(inner),
            }
        }
    }
}

impl Inner {
    fn put(&mut self, event: Event) {
        if self.stopped {
            return;
        }
        self.events.push(event);
        if self.events.len() == 1 {
            (self.wake)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    fn mailbox() -> (Arc<Mailbox>, Arc<AtomicUsize>) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        let wake = move || {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        (Arc::new(Mailbox::new(wake)), wakes)
    }

    fn take_list(mailbox: &Mailbox) -> List {
        loop {
            if let Some(Event::List(list)) = mailbox.take().pop() {
                return list;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn events_come_in_order_and_wake_once() {
        let (mailbox, wakes) = mailbox();
        mailbox.log(Level::Warn, "a".into());
        mailbox.log(Level::Info, "b".into());
        assert_eq!(
            mailbox.take(),
            [Event::Log(Level::Warn, "a".into()), Event::Log(Level::Info, "b".into())]
        );
        assert_eq!((mailbox.take(), wakes.load(Ordering::SeqCst)), (vec![], 1));
        mailbox.log(Level::Info, "c".into());
        assert_eq!(wakes.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn log_lines_are_bounded_and_counted() {
        let (mailbox, _) = mailbox();
        for _ in 0..EVENTS_MAX + 7 {
            mailbox.log(Level::Info, String::new());
        }
        let events = mailbox.take();
        assert_eq!(events.len(), EVENTS_MAX + 1);
        let last = Event::Log(Level::Warn, "upsync: 7 log lines dropped".into());
        assert_eq!(events.last(), Some(&last));
    }

    #[test]
    fn progress_waits_as_one_event() {
        let (mailbox, wakes) = mailbox();
        for index in 1..=1000 {
            mailbox.note(Progress { index: Some(index), refused: 1, ..Progress::default() });
            mailbox.log(Level::Info, String::new());
        }
        let events = mailbox.take();
        assert_eq!(events.len(), EVENTS_MAX + 1, "with the line that tells of those dropped");
        let sum = Progress { index: Some(1000), refused: 1000, ..Progress::default() };
        assert_eq!(events[0], Event::Progress(sum));
        mailbox.note(Progress::default());
        let again = mailbox.take();
        assert_eq!(
            again,
            [Event::Progress(Progress::default())],
            "what was taken is not told again"
        );
        assert_eq!(wakes.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_offer_waits_for_its_outcome() {
        for outcome in [Outcome::Applied, Outcome::Refused("full")] {
            let (mailbox, _) = mailbox();
            // Of an earlier list, too late.
            mailbox.applied(Outcome::Applied);
            let offering = Arc::clone(&mailbox);
            let thread = thread::spawn(move || offering.offer(List::default()));
            assert!(take_list(&mailbox).is_empty());
            mailbox.applied(outcome);
            assert_eq!(thread.join().unwrap(), Some(outcome));
        }
    }

    #[test]
    fn a_stop_ends_every_wait_and_nothing_comes_after_it() {
        let (mailbox, wakes) = mailbox();
        let offering = Arc::clone(&mailbox);
        let offer = thread::spawn(move || offering.offer(List::default()));
        let pausing = Arc::clone(&mailbox);
        let pause = thread::spawn(move || pausing.pause(Duration::MAX));
        take_list(&mailbox);
        mailbox.stop();
        assert_eq!(offer.join().unwrap(), None);
        assert!(!pause.join().unwrap());
        mailbox.log(Level::Error, String::new());
        mailbox.note(Progress::applied());
        assert_eq!(mailbox.offer(List::default()), None);
        assert_eq!((mailbox.take(), wakes.load(Ordering::SeqCst)), (vec![], 1));
        assert!(mailbox.is_stopped());
    }

    #[test]
    fn a_pause_lasts_as_long_as_it_should() {
        let (mailbox, _) = mailbox();
        let start = Instant::now();
        assert!(mailbox.pause(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(mailbox.pause(Duration::ZERO));
    }
}
