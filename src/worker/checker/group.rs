//! An upstream whose servers are checked.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use nginx_sys::{NGX_LOG_NOTICE, NGX_LOG_WARN};

use crate::health::asked::Asked;
use crate::health::probe::{Probe, Server};
use crate::shm::block::Record;
use crate::shm::health::Outcome;
use crate::upstream::Live;
use crate::upstream::snapshot::Snapshot;
use crate::worker::log;

/// What this worker knows of it.
pub(super) struct Group {
    pub name: Rc<str>,
    pub live: Rc<Live>,
    pub list: Rc<Snapshot>,
    pub asked: Rc<Asked>,
    pub targets: Targets,
    /// When it was last asked whether verdicts are to be ignored; 0 is not since one changed.
    pub reviewed: u64,
}

/// The servers of a group.
pub(super) type Targets = HashMap<Server, Target, foldhash::fast::RandomState>;

/// One of them.
pub(super) struct Target {
    /// Its place in the group's list.
    pub place: u32,
    /// A check under way, or a connection kept for the next.
    pub probe: Option<Rc<Probe>>,
    pub under_way: Option<UnderWay>,
}

/// What a check began with. Times are milliseconds of nginx's clock.
pub(super) struct UnderWay {
    pub asked: Rc<Asked>,
    pub _one: OneMore,
    /// When it was due.
    pub due: u64,
    /// What the due time was moved to.
    pub lease: u64,
    pub began: u64,
}

/// Counts a check under way until it is dropped.
pub(super) struct OneMore(Rc<Cell<u32>>);

impl OneMore {
    pub fn of(running: &Rc<Cell<u32>>) -> Self {
        running.set(running.get() + 1);
        Self(Rc::clone(running))
    }
}

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Group {
    /// Compares how many would be out with `check_fail_open`.
    pub fn review(&self) {
        let (check, upstream) = (&self.asked.check, self.live.upstream());
        let takes_requests = |record: &&Record| {
            let parameters = record.parameters();
            !parameters.is_down() && !parameters.drain && parameters.weight != 0
        };
        let is_out = |record: &&Record| {
            let health = &upstream.slot(record.slot).health;
            health.is_up(record.generation) == Some(false)
        };
        let mut is_open = false;
        let (mut all, mut out) = (0, 0);
        if check.fail_open < 100 {
            let records = || self.list.block().records().iter().filter(takes_requests);
            (all, out) = (records().count(), records().filter(is_out).count());
            is_open = out * 100 > all * usize::from(check.fail_open);
        }
        if !upstream.set_open(is_open) {
            return;
        }
        let name = &self.name;
        if is_open {
            log(
                NGX_LOG_WARN,
                format_args!(
                    "upsync: upstream \"{name}\": checks would take {out} of {all} servers out: their verdicts are ignored"
                ),
            );
        } else {
            log(
                NGX_LOG_NOTICE,
                format_args!("upsync: upstream \"{name}\": verdicts of checks count again"),
            );
        }
    }

    /// Its servers are checked no more: what checks said does not count.
    pub fn forget(&self) {
        let upstream = self.live.upstream();
        for server in self.targets.keys() {
            upstream.slot(server.slot).health.forget(server.generation);
        }
        upstream.set_open(false);
    }

    /// The text of a server's address.
    pub fn address(&self, server: Server) -> Cow<'_, str> {
        let block = self.list.block();
        let record = self.targets.get(&server).map(|target| self.list.record(target.place));
        String::from_utf8_lossy(record.map_or(&b""[..], |record| block.name(record)))
    }

    /// A server has another verdict than before.
    pub fn log_flip(&self, server: Server, is_up: bool, outcome: &Outcome) {
        let (name, address) = (&self.name, self.address(server));
        match outcome.failed {
            Some(reason) if !is_up => log(
                NGX_LOG_WARN,
                format_args!("upsync: upstream \"{name}\": server {address} is down: {reason}"),
            ),
            _ => log(
                NGX_LOG_NOTICE,
                format_args!("upsync: upstream \"{name}\": server {address} is up"),
            ),
        }
    }
}
