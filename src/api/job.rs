//! One change, from the request's body to its answer, in a thread of its own: what may take its
//! time, such as resolving names and writing to disk, holds up no other request.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Answer;
use super::mail::{Ask, Line, Reply, Request};
use super::plan::{Part, Plan, Wanted};
use super::route::{Dialect, Write};
use super::slardar;
use crate::grammar::body;
use crate::model::body::{Body, Place, Server, Target};
use crate::model::{Address, Endpoint, Name, Parameters, Peer, Printable};
use crate::source::dns;
use crate::state::{Change, Folder, Lock};

/// The longest that a request waits for the names in its body to resolve, in all.
const RESOLVE_MAX: Duration = Duration::from_secs(10);

/// A part of a request's body.
#[derive(Debug)]
pub enum Bytes {
    /// What nginx has in memory.
    Memory(Vec<u8>),
    /// What nginx has put into a temporary file.
    File(File, Range<u64>),
}

/// A change to be made.
pub struct Job {
    /// What the request asks for.
    pub write: Write,
    /// In its order.
    pub body: Vec<Bytes>,
    /// The body's `Content-Type`, empty if there is none.
    pub content_type: Vec<u8>,
    /// How it wants to be answered, if the body does not say.
    pub dialect: Dialect,
    /// Where lists are kept over a restart.
    pub kept: Option<Kept>,
}

/// Where lists are kept over a restart.
pub struct Kept {
    /// The folder.
    pub folder: Folder,
    /// Whether a process is the living master of another nginx, whose the folder may be now.
    pub is_other: fn(i32) -> bool,
}

/// How it ended.
pub struct End {
    answer: Answer,
    /// A line for the error log.
    error: Option<String>,
}

impl From<Answer> for End {
    fn from(answer: Answer) -> Self {
        Self { answer, error: None }
    }
}

impl Job {
    /// Makes the change and says what came of it.
    pub fn run(self, line: &Line) {
        let End { answer, error } = self.work(line).unwrap_or_else(|end| end);
        line.done(answer, error);
    }

    fn work(self, line: &Line) -> Result<End, End> {
        let bytes = collect(&self.body).map_err(|error| End {
            answer: Answer::unreadable_body(self.dialect),
            error: Some(format!("cannot read a request's body: {error}")),
        })?;
        let is_json = slardar::is_json(&self.content_type, &bytes);
        let dialect = if is_json && self.write.has_body() { Dialect::Json } else { self.dialect };
        let reader = Reader { is_json, dialect };
        let name = self.write.name().clone();
        let request = reader.request(self.write, &bytes)?;
        match &self.kept {
            None => Ok(put(line, Ask::Put(request), dialect)?.into()),
            Some(kept) => Keeper { kept, name, dialect }.put(line, &request),
        }
    }
}

fn collect(parts: &[Bytes]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            Bytes::Memory(part) => bytes.extend_from_slice(part),
            Bytes::File(file, range) => {
                let start = bytes.len();
                let more = usize::try_from(range.end.saturating_sub(range.start));
                bytes.resize(start + more.map_err(io::Error::other)?, 0);
                file.read_exact_at(bytes.get_mut(start..).unwrap_or_default(), range.start)?;
            }
        }
    }
    Ok(bytes)
}

/// A list is in force, or why it is not.
fn put(line: &Line, ask: Ask, dialect: Dialect) -> Result<Answer, Answer> {
    match line.ask(ask) {
        Some(Reply::Published(answer)) => Ok(answer),
        Some(Reply::Refused(answer)) => Err(answer),
        _ => Err(Answer::shutting_down(dialect)),
    }
}

/// Reads bodies.
struct Reader {
    is_json: bool,
    dialect: Dialect,
}

impl Reader {
    fn request(&self, write: Write, bytes: &[u8]) -> Result<Request, Answer> {
        let (mut keepalive, mut method, mut check) = (None, None, None);
        let wanted = match write {
            Write::Replace(_) => {
                let body = self.body(bytes)?;
                keepalive = body.keepalive.map(|(place, _)| place);
                method = body.method.as_ref().map(|&(place, _)| place);
                check = body.check.as_ref().map(|&(place, _)| place);
                let own_method = body.method.map(|(_, method)| method);
                let own_check = body.check.map(|(_, check)| Arc::new(check));
                Wanted::Replace(self.resolve(body.servers)?, own_method, own_check)
            }
            Write::AddServer(_) => {
                let server = if self.is_json {
                    slardar::parse_server(bytes).map_err(|error| self.refused(error))?
                } else {
                    body::parse_server(bytes).map_err(|error| self.refused(error))?
                };
                Wanted::Add(self.resolve(vec![server])?)
            }
            Write::PatchServer(_, address) => {
                let changes = if self.is_json {
                    slardar::parse_changes(bytes).map_err(|error| self.refused(error))?
                } else {
                    body::parse_changes(bytes).map_err(|error| self.refused(error))?
                };
                Wanted::Patch(address, changes)
            }
            Write::RemoveServer(_, address) => Wanted::Remove(address),
            Write::Delete(_) => Wanted::Delete,
            Write::Reset(_) => Wanted::Reset,
        };
        Ok(Request { wanted, keepalive, method, check, dialect: self.dialect })
    }

    fn body(&self, bytes: &[u8]) -> Result<Body, Answer> {
        if self.is_json {
            slardar::parse(bytes).map_err(|error| self.refused(error))
        } else {
            body::parse(bytes).map_err(|error| self.refused(error))
        }
    }

    fn refused(&self, reason: impl std::fmt::Display) -> Answer {
        Answer::refused_body(self.dialect, reason)
    }

    /// Names become the addresses they have now.
    fn resolve(&self, servers: Vec<Server>) -> Result<Vec<Part>, Answer> {
        let hosts: BTreeSet<&str> = servers.iter().filter_map(host).collect();
        let found = match hosts.is_empty() {
            true => HashMap::new(),
            false => dns::lookup_all(hosts, RESOLVE_MAX),
        };
        let mut parts = Vec::with_capacity(servers.len());
        for Server { place, target, changes } in servers {
            let parameters = changes.apply(Parameters::NGINX);
            let peer = |address| Part::Peer(Peer { address, parameters });
            match target {
                Target::Upstream(name) => parts.push(Part::Upstream(place, name, changes)),
                Target::Endpoint(Endpoint::Address(address)) => parts.push(peer(address)),
                Target::Endpoint(Endpoint::Name { host, port }) => {
                    let addresses = self.addresses(&found, place, &host)?;
                    let sockets = addresses.iter().map(|&ip| SocketAddr::new(ip, port));
                    parts.extend(sockets.map(Address::Ip).map(peer));
                }
            }
        }
        Ok(parts)
    }

    fn addresses<'a>(
        &self,
        found: &'a HashMap<String, Vec<IpAddr>>,
        place: Place,
        host: &str,
    ) -> Result<&'a [IpAddr], Answer> {
        match found.get(host) {
            Some(addresses) if !addresses.is_empty() => Ok(addresses),
            _ => Err(Answer::unresolved(self.dialect, place, host)),
        }
    }
}

fn host(server: &Server) -> Option<&str> {
    match &server.target {
        Target::Endpoint(Endpoint::Name { host, .. }) => Some(host),
        _ => None,
    }
}

/// Keeps lists on disk. While the lock is held no other worker makes a change, so a file never
/// holds an older list than the one in force.
struct Keeper<'a> {
    kept: &'a Kept,
    name: Name,
    dialect: Dialect,
}

impl Keeper<'_> {
    /// The file is made before the list is in force, and takes its place after it: what can fail
    /// fails before anything has changed.
    fn put(&self, line: &Line, request: &Request) -> Result<End, End> {
        let lock = self.kept.folder.lock().map_err(|error| self.save_failed(&error))?;
        // While its binary is upgraded, nginx runs twice; the later one has read the files.
        if let Some(owner) = self.kept.folder.owner().filter(|&owner| (self.kept.is_other)(owner)) {
            return Err(Answer::not_the_owner(self.dialect, owner).into());
        }
        loop {
            let plan = match line.ask(Ask::Plan(request.clone())) {
                Some(Reply::Planned(plan)) => plan,
                Some(Reply::Refused(answer)) => return Err(answer.into()),
                _ => return Err(Answer::shutting_down(self.dialect).into()),
            };
            let change = self.prepare(&lock, &plan).map_err(|error| self.save_failed(&error))?;
            match line.ask(Ask::Publish(plan)) {
                Some(Reply::Published(answer)) => return self.commit(change, answer),
                Some(Reply::Changed) => {}
                Some(Reply::Refused(answer)) => return Err(answer.into()),
                _ => return Err(Answer::shutting_down(self.dialect).into()),
            }
        }
    }

    fn prepare(&self, lock: &Lock, plan: &Plan) -> io::Result<Change> {
        match plan {
            Plan::Put(list) => {
                let text = body::render_upstream(self.name.as_str(), list);
                self.kept.folder.prepare_list(lock, &self.name, &text)
            }
            Plan::Remove => self.kept.folder.prepare_removal(lock, &self.name),
        }
    }

    fn commit(&self, change: Change, answer: Answer) -> Result<End, End> {
        change.commit().map(|()| answer.into()).map_err(|error| End {
            answer: Answer::not_saved(self.dialect, self.printable(&error)),
            error: Some(self.log_line(&error)),
        })
    }

    fn save_failed(&self, error: &io::Error) -> End {
        End {
            answer: Answer::save_failed(self.dialect, self.printable(error)),
            error: Some(self.log_line(error)),
        }
    }

    fn printable(&self, error: &io::Error) -> String {
        Printable(&error.to_string()).to_string()
    }

    fn log_line(&self, error: &io::Error) -> String {
        let (name, error) = (&self.name, self.printable(error));
        format!("upstream \"{name}\": cannot write to \"dyups_state_path\": {error}")
    }
}
