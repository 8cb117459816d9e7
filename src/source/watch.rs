//! The threads that follow one source.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use thiserror::Error;

use super::Settings;
use super::answer::{self, Answer};
use super::applier::{Applied, Applier};
use super::consul::{Entry, Kind, ParseError};
use super::dns::{self, Lookup};
use super::dump::Dump;
use super::http::{Client, FetchError};
use super::journal::Journal;
use super::mailbox::{Level, Mailbox};
use super::names::Names;
use super::progress::Progress;
use super::report::Report;
use super::schedule::{Ask, Schedule};
use crate::model::{List, Printable};

/// In bytes. The deepest calls are those of the JSON parser, which bounds itself.
const STACK: usize = 512 * 1024;

/// How long a list waits for new host names.
const NEW_NAMES: Duration = Duration::from_secs(1);

/// Follows one source until it is stopped.
pub struct Watcher {
    mailbox: Arc<Mailbox>,
    client: Client,
    names: Arc<Names>,
}

/// Why an answer was not used.
#[derive(Debug, Error)]
pub enum Error {
    /// There was none.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It has another status than 200.
    #[error("answered {0}{1}")]
    Status(u16, String),
    /// It is not what Consul answers.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// It has no server at all, and none in the list is not allowed.
    #[error("no servers under {0}")]
    NoServers(String),
    /// The worker could not put it in force.
    #[error("new list refused: {0}")]
    Refused(&'static str),
}

impl Error {
    /// Whether Consul answered, but nothing can be made of it.
    fn is_unreadable_answer(&self) -> bool {
        matches!(self, Self::Parse(_) | Self::Fetch(FetchError::TooLarge(_)))
    }
}

impl Watcher {
    /// Starts a thread that follows a source. `initial` is the list in force.
    ///
    /// It and those it starts inherit the caller's signal mask; the caller blocks all signals
    /// around the call, so that nginx's are handled by nginx's own thread.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn spawn(settings: Settings, initial: List, mailbox: Arc<Mailbox>) -> io::Result<Self> {
        Self::spawn_with(settings, initial, mailbox, Arc::new(dns::system))
    }

    fn spawn_with(
        settings: Settings,
        initial: List,
        mailbox: Arc<Mailbox>,
        lookup: Lookup,
    ) -> io::Result<Self> {
        let client = Client::new(&settings.consul, settings.max_body);
        let journal = Journal::new(Arc::clone(&mailbox), &settings.upstream);
        let names = Names::new(lookup, journal.clone());
        let watcher = Self {
            mailbox: Arc::clone(&mailbox),
            client: client.clone(),
            names: Arc::clone(&names),
        };
        let dump = settings.dump_path.clone().map(|path| Dump::new(path, journal.clone()));
        let applier = Applier::new(initial, Arc::clone(&mailbox), Arc::clone(&names), dump);
        let follower = Follower {
            schedule: Schedule::new(settings.interval, settings.timeout),
            report: Report::default(),
            applier: Arc::new(applier),
            has_resolver: false,
            settings,
            client,
            mailbox,
            names,
            journal,
        };
        start_thread(move || follower.run())?;
        Ok(watcher)
    }

    /// Makes the threads leave at once; from now on they put nothing into the mailbox and do not
    /// wake its worker.
    pub fn stop(&self) {
        self.mailbox.stop();
        self.names.stop();
        self.client.shutdown();
    }
}

/// Asks once, for a start that must not do without: the list that is there, names resolved. Takes
/// no longer than `timeout` and the time of the names, at most one second.
///
/// # Errors
///
/// No answer that can be used, or without a server, unless `allow_empty` is set.
pub fn fetch_once(settings: &Settings, timeout: Duration) -> Result<List, Error> {
    let client = Client::new(&settings.consul, settings.max_body);
    let timeout = timeout.min(settings.timeout);
    let (_, entries) = fetch(&client, settings, &Schedule::new(timeout, timeout).ask(), timeout)?;
    let answer = answer::read(settings.query.kind(), entries, &HashMap::new());
    let names = dns::lookup_all(answer::names(&answer.servers), NEW_NAMES);
    let list = answer::list(&answer.servers, |host| names.get(host).cloned().unwrap_or_default());
    let may_be_empty = settings.allow_empty && answer.is_empty;
    if list.is_empty() && !may_be_empty {
        return Err(Error::NoServers(settings.query.path().to_owned()));
    }
    Ok(List::default().after(list))
}

/// The index and the entries of an answer. A KV prefix without keys has the status 404.
fn fetch(
    client: &Client,
    settings: &Settings,
    ask: &Ask,
    timeout: Duration,
) -> Result<(Option<u64>, Vec<Entry>), Error> {
    let request = settings.query.request(ask.index, ask.wait);
    let response = client.get(&request, ask.silence, timeout)?;
    let entries = match response.status {
        200 => settings.query.parse(&response.body)?,
        404 if settings.query.kind() == Kind::Kv => Vec::new(),
        status => {
            let text = settings.query.masked(&String::from_utf8_lossy(&response.body));
            return Err(Error::Status(status, reason(&text)));
        }
    };
    Ok((response.index, entries))
}

/// What Consul says why, such as `ACL not found`.
fn reason(body: &str) -> String {
    match body.trim() {
        "" => String::new(),
        text => format!(" \"{}\"", Printable(text)),
    }
}

fn start_thread(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("upsync".to_owned()).stack_size(STACK).spawn(run).map(drop)
}

/// What runs in the thread.
struct Follower {
    settings: Settings,
    client: Client,
    mailbox: Arc<Mailbox>,
    journal: Journal,
    names: Arc<Names>,
    applier: Arc<Applier>,
    schedule: Schedule,
    report: Report,
    has_resolver: bool,
}

impl Follower {
    fn run(mut self) {
        loop {
            let ask = self.schedule.ask();
            let asked = Instant::now();
            let result = self.round(&ask);
            if self.mailbox.is_stopped() {
                break;
            }
            let pause = match result {
                Ok((index, changed)) => {
                    self.recovered();
                    self.schedule.answered(&ask, index, changed, asked.elapsed())
                }
                Err(error) => {
                    self.fault(&error);
                    self.schedule.failed(fastrand::f64())
                }
            };
            if !self.mailbox.pause(pause) {
                break;
            }
        }
        self.names.stop();
    }

    /// One request and what becomes of its answer: the index, and whether the list changed.
    fn round(&mut self, ask: &Ask) -> Result<(Option<u64>, bool), Error> {
        let (index, entries) = fetch(&self.client, &self.settings, ask, self.settings.timeout)?;
        let any_bad = entries.iter().any(|entry| entry.parameters.is_err());
        let known = if any_bad { self.applier.known() } else { HashMap::new() };
        let answer = answer::read(self.settings.query.kind(), entries, &known);
        self.complain(&answer);
        let keeps_last = match (answer.servers.is_empty(), answer.is_empty) {
            (true, true) => !self.settings.allow_empty,
            (nothing_usable, _) => nothing_usable,
        };
        if keeps_last {
            self.notice(answer.is_empty);
            return Ok((index, false));
        }
        let applied = self.apply(answer)?;
        if applied == Applied::NoAddress {
            self.notice(false);
        } else {
            self.report.no_notice();
            self.mailbox.note(Progress::used(index));
        }
        Ok((index, applied == Applied::Changed))
    }

    fn apply(&mut self, answer: Answer) -> Result<Applied, Error> {
        let wanted = answer::names(&answer.servers);
        self.names.want(&wanted);
        if !wanted.is_empty() {
            self.start_resolver();
            self.names.wait_for_new(NEW_NAMES);
        }
        match self.applier.apply(answer.servers) {
            Applied::Refused(reason) => Err(Error::Refused(reason)),
            applied => Ok(applied),
        }
    }

    fn start_resolver(&mut self) {
        if self.has_resolver {
            return;
        }
        let (names, applier) = (Arc::clone(&self.names), Arc::clone(&self.applier));
        let run = move || names.run(|| !matches!(applier.refresh(), Applied::Refused(_)));
        match start_thread(run) {
            Ok(()) => self.has_resolver = true,
            Err(error) => {
                let text = format!("no thread for host names: {}", Printable(&error.to_string()));
                self.journal.log(Level::Error, text);
            }
        }
    }

    fn complain(&mut self, answer: &Answer) {
        for complaint in self.report.complaints(answer.complaints.clone()) {
            self.journal.log(Level::Warn, complaint);
        }
    }

    fn notice(&mut self, is_empty: bool) {
        let what = if is_empty { "no servers" } else { "no usable servers" };
        let what = format!("{what} under {}", self.settings.query.path());
        self.mailbox.note(Progress::unusable(&what));
        let text = format!("{what}, {}", self.keeping());
        if let Some(text) = self.report.notice(text) {
            self.journal.log(Level::Warn, format!("consul {}: {text}", self.settings.consul));
        }
    }

    fn fault(&mut self, error: &Error) {
        let what = error.to_string();
        self.mailbox.note(Progress::failed(&what, error.is_unreadable_answer()));
        let text = format!("{what}, {}, retrying", self.keeping());
        if let Some(text) = self.report.fault(text) {
            self.journal.log(Level::Error, format!("consul {}: {text}", self.settings.consul));
        }
    }

    fn recovered(&mut self) {
        if self.report.recovered() {
            let text = format!("consul {} answers again", self.settings.consul);
            self.journal.log(Level::Notice, text);
        }
    }

    fn keeping(&self) -> String {
        match self.applier.len() {
            0 => "no list yet".to_owned(),
            1 => "keeping the last list (1 server)".to_owned(),
            n => format!("keeping the last list ({n} servers)"),
        }
    }
}

#[cfg(test)]
mod tests;
