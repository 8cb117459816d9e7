//! How a worker learns which servers there are to be checked.

use std::collections::HashSet;
use std::rc::Rc;

use super::Checker;
use super::group::{Group, Target, Targets};
use crate::conf::settings::{Main, Managed};
use crate::health::probe::Server;
use crate::upstream::Live;
use crate::upstream::snapshot::Snapshot;

/// After so many milliseconds in which no worker checks an upstream its verdicts are not known any more.
const OLD: u64 = 60_000;

/// The upstreams whose servers may be checked, as of one moment.
#[derive(Default)]
pub(super) struct Lists {
    /// The number of the names that are known.
    names: Option<u64>,
    known: Vec<Known>,
}

struct Known {
    id: u64,
    name: Rc<str>,
    live: Rc<Live>,
    /// The list that was last looked at.
    seen: Option<u64>,
}

impl Checker {
    /// Learns of lists that have changed: one atomic load for each that has not.
    pub(super) fn look(&self, now: u64) {
        let mut lists = self.lists.borrow_mut();
        let names = self.main().names.get();
        let version = names.and_then(|names| {
            names.refresh();
            names.version()
        });
        if lists.known.is_empty() || lists.names != version {
            self.renew(&mut lists);
            lists.names = version;
        }
        for known in &mut lists.known {
            let published = known.live.upstream().published();
            if known.seen != Some(published) {
                known.seen = Some(published);
                self.look_at(known, now);
            }
        }
        for group in self.groups.borrow().values() {
            group.live.upstream().watch(now);
        }
    }

    fn renew(&self, lists: &mut Lists) {
        let before: std::collections::HashMap<u64, Option<u64>, foldhash::fast::RandomState> =
            lists.known.iter().map(|known| (known.id, known.seen)).collect();
        let known = upstreams(self.main()).map(|(name, live)| {
            let id = live.upstream().id();
            let is_same = self.groups.borrow().get(&id).is_some_and(|g| Rc::ptr_eq(&g.live, &live));
            let seen = before.get(&id).copied().flatten().filter(|_| is_same);
            Known { id, name: name.into(), live, seen }
        });
        lists.known = known.collect();
        let still: HashSet<u64, foldhash::fast::RandomState> =
            lists.known.iter().map(|known| known.id).collect();
        let gone: Vec<u64> =
            self.groups.borrow().keys().copied().filter(|id| !still.contains(id)).collect();
        gone.into_iter().for_each(|id| self.leave(id));
    }

    /// Learns of the list of one upstream.
    fn look_at(&self, known: &Known, now: u64) {
        let (id, live) = (known.id, &known.live);
        let is_checked = live.checks().asked.is_some() || live.upstream().has_own_check();
        let list = is_checked.then(|| live.snapshot());
        let asked = list.as_ref().and_then(|list| list.asked.clone());
        let (Some(list), Some(asked)) = (list, asked) else {
            if let Some(group) = self.groups.borrow().get(&id) {
                group.forget();
            }
            return self.leave(id);
        };
        let before = self.groups.borrow_mut().remove(&id);
        let is_new = before.is_none();
        let is_same = before.as_ref().is_some_and(|group| Rc::ptr_eq(&group.asked, &asked));
        let targets = before.map(|group| group.targets).unwrap_or_default();
        let targets = self.adopt(id, targets, &list, is_same, now);
        let (name, live) = (Rc::clone(&known.name), Rc::clone(live));
        let group = Group { name, live, list, asked, targets, reviewed: 0 };
        if is_new && group.live.upstream().watch(now).is_some_and(|ago| ago > OLD) {
            group.forget();
        }
        self.groups.borrow_mut().insert(id, group);
    }

    /// Takes over the servers of a list; those that have left are checked no more. Those that stay
    /// keep their time, unless their checks are others now.
    fn adopt(
        &self,
        upstream: u64,
        mut before: Targets,
        list: &Snapshot,
        is_same: bool,
        now: u64,
    ) -> Targets {
        let mut schedule = self.schedule.borrow_mut();
        let mut targets = Targets::default();
        for (place, record) in (0..).zip(list.block().records()) {
            let server = Server { upstream, slot: record.slot, generation: record.generation };
            let target = before.remove(&server).map(|target| Target { place, ..target });
            targets
                .insert(server, target.unwrap_or(Target { place, probe: None, under_way: None }));
            schedule.add(server, now);
            if !is_same {
                schedule.again(server, now);
            }
        }
        drop(schedule);
        before.keys().for_each(|&server| self.forget(server));
        targets
    }

    /// The servers of an upstream are checked no more.
    fn leave(&self, id: u64) {
        let group = self.groups.borrow_mut().remove(&id);
        if let Some(group) = group {
            group.targets.keys().for_each(|&server| self.forget(server));
        }
    }

    fn forget(&self, server: Server) {
        self.schedule.borrow_mut().remove(server);
        self.waiting.borrow_mut().remove(server.upstream, server);
        self.unasked.borrow_mut().remove(&server);
    }
}

/// Those of nginx.conf, then those that were posted. A list that was posted takes the place of a
/// block's own.
fn upstreams(main: &Main) -> impl Iterator<Item = (String, Rc<Live>)> {
    let is_posted = |managed: &Managed<'_>| {
        let host = managed.nginx.host.as_bytes();
        managed.upsync().is_none()
            && main.names.get().is_some_and(|names| names.find(host).is_some())
    };
    let configured = main.managed().into_iter().filter_map(move |managed| {
        let live = managed.server.live.get().filter(|_| !is_posted(&managed))?;
        Some((managed.name(), Rc::clone(live)))
    });
    let posted = main.names.get().map(|names| names.all()).unwrap_or_default();
    configured.chain(posted)
}
