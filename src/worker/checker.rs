//! Which server this worker checks next, and what comes of it.
//!
//! Each server has a due time in shared memory. Whoever moves it on makes the check; a server's
//! preferred worker looks when it is due, the others a little later, so that servers of a worker that
//! died or hangs are not left alone.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};

use nginx_sys::{
    NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_connection_t, ngx_current_msec, ngx_cycle, ngx_event_t,
};

use super::log;
use crate::conf::check::CONCURRENCY;
use crate::conf::settings::{Main, Managed};
use crate::health::asked::Asked;
use crate::health::probe::{self, Ending, Local, Owner, Probe, Server};
use crate::health::schedule::{self, Schedule};
use crate::model::check::Check;
use crate::ngx::boundary::guarded;
use crate::ngx::{cycle, timer};
use crate::shm::health::{Health, Outcome};
use crate::shm::publish::now;
use crate::shm::slot::Slot;
use crate::upstream::Live;
use crate::upstream::snapshot::Snapshot;

/// How often lists are looked at for changes, in milliseconds, where there is anything to check.
const LOOK: u64 = 100;

/// The same where there is not.
const LOOK_RARELY: u64 = 1000;

/// The shortest wait between two looks at the order, in milliseconds.
const STEP: u64 = 5;

/// How long a check waits that finds no room, in milliseconds.
const LATER: u64 = 20;

/// How often it is asked whether verdicts are to be ignored, in milliseconds, even if none changed.
const REVIEW: u64 = 1000;

/// What this worker checks.
pub struct Checker {
    this: Weak<Checker>,
    main: NonNull<Main>,
    zone_cycle: u64,
    most: u32,
    running: Cell<u32>,
    groups: RefCell<HashMap<u64, Group>>,
    targets: RefCell<HashMap<Server, Target>>,
    schedule: RefCell<Schedule<Server>>,
    /// When the lists were last looked at.
    looked: Cell<u64>,
    /// Servers whose last check could not be made. It was said when the first of them could not.
    unasked: RefCell<HashSet<Server>>,
    timer: NonNull<Timer>,
    /// When the timer goes off.
    wakes: Cell<u64>,
    is_over: Cell<bool>,
}

/// An upstream whose servers are checked.
struct Group {
    name: String,
    live: Rc<Live>,
    list: Rc<Snapshot>,
    asked: Rc<Asked>,
    /// When it was last asked whether verdicts are to be ignored; 0 is not since one changed.
    reviewed: u64,
}

/// A server of a group.
struct Target {
    /// Its place in the group's list.
    place: u32,
    /// A check under way, or a connection kept for the next.
    probe: Option<Rc<Probe>>,
    under_way: Option<UnderWay>,
}

/// What a check began with, all in milliseconds of nginx's clock.
#[derive(Clone, Copy)]
struct UnderWay {
    /// When it was due.
    due: u64,
    /// What the due time was moved to.
    lease: u64,
    began: u64,
}

/// A timer of nginx's: the event and what its log wants to have for data.
#[repr(C)]
struct Timer {
    event: ngx_event_t,
    connection: ngx_connection_t,
    checker: *const Checker,
}

impl Checker {
    /// Begins to check, soon after this.
    ///
    /// # Safety
    ///
    /// Called in a worker with the settings of its cycle, which outlive the result.
    pub unsafe fn start(main: &Main) -> Rc<Self> {
        let most = main.check_concurrency.get().unwrap_or(CONCURRENCY);
        let checker = Rc::new_cyclic(|this: &Weak<Self>| Self {
            this: Weak::clone(this),
            main: NonNull::from(main),
            zone_cycle: main.cycle.get(),
            most,
            running: Cell::new(0),
            groups: RefCell::default(),
            targets: RefCell::default(),
            schedule: RefCell::default(),
            looked: Cell::new(0),
            unasked: RefCell::default(),
            timer: Timer::new(this.as_ptr()),
            wakes: Cell::new(0),
            is_over: Cell::new(false),
        });
        checker.wait(1);
        checker
    }

    fn main(&self) -> &Main {
        // SAFETY: the settings outlive the checker: see `start`.
        unsafe { self.main.as_ref() }
    }

    /// Does what is due, and waits for what is next.
    fn tick(&self) {
        let is_replaced = self.main().zone.get().is_none_or(|zone| zone.cycle() > self.zone_cycle);
        if cycle::is_exiting() || is_replaced {
            return self.stop();
        }
        let now = now_msec();
        let is_idle = self.groups.borrow().is_empty();
        let look = if is_idle { LOOK_RARELY } else { LOOK };
        if now.saturating_sub(self.looked.get()) >= look || self.looked.get() == 0 {
            self.looked.set(now);
            self.look(now);
        }
        loop {
            let next = self.schedule.borrow_mut().pop(now);
            let Some(server) = next else { break };
            self.consider(server, now);
        }
        self.review(now);
        let next = self.schedule.borrow().next();
        let wait = next.map_or(look, |next| next.saturating_sub(now)).clamp(STEP, look);
        self.wait(wait);
    }

    /// Waits no longer than until then.
    fn wait_until(&self, when: u64) {
        let now = now_msec();
        if when < self.wakes.get() && !self.is_over.get() {
            self.wait(when.saturating_sub(now).max(STEP));
        }
    }

    fn wait(&self, milliseconds: u64) {
        self.wakes.set(now_msec() + milliseconds);
        // SAFETY: the timer lives as long as the checker.
        unsafe { timer::set(&raw mut (*self.timer.as_ptr()).event, milliseconds as usize) };
    }

    /// Ends all checks. None begins any more.
    fn stop(&self) {
        self.is_over.set(true);
        // SAFETY: the timer lives as long as the checker.
        unsafe { timer::unset(&raw mut (*self.timer.as_ptr()).event) };
        let targets = self.targets.take();
        targets.into_values().filter_map(|target| target.probe).for_each(|probe| probe.close());
    }

    /// Learns of lists that have changed.
    fn look(&self, now: u64) {
        let main = self.main();
        if let Some(names) = main.names.get() {
            names.refresh();
        }
        // A list that was posted takes the place of a block's own.
        let is_posted = |managed: &Managed<'_>| {
            let host = managed.nginx.host.as_bytes();
            managed.upsync().is_none()
                && main.names.get().is_some_and(|names| names.find(host).is_some())
        };
        let configured = main.managed().into_iter().filter_map(|managed| {
            let live = managed.server.live.get().filter(|_| !is_posted(&managed))?;
            Some((managed.name(), Rc::clone(live)))
        });
        let posted = main.names.get().map(|names| names.all()).unwrap_or_default();
        let mut gone: Vec<u64> = self.groups.borrow().keys().copied().collect();
        for (name, live) in configured.chain(posted) {
            let id = live.upstream().id();
            if self.look_at(id, name, &live, now) {
                gone.retain(|other| *other != id);
            }
        }
        for id in gone {
            self.groups.borrow_mut().remove(&id);
            self.targets.borrow_mut().retain(|server, _| server.upstream != id);
            self.forget_gone();
        }
    }

    /// Learns of the list of one upstream; whether its servers are checked.
    fn look_at(&self, id: u64, name: String, live: &Rc<Live>, now: u64) -> bool {
        let list = live.snapshot();
        let mut groups = self.groups.borrow_mut();
        if let Some(group) = groups.get(&id)
            && Rc::ptr_eq(&group.list, &list)
            && Rc::ptr_eq(&group.live, live)
        {
            return true;
        }
        let Some(asked) = list.asked.clone() else {
            return false;
        };
        let is_same = groups.get(&id).is_some_and(|group| Rc::ptr_eq(&group.asked, &asked));
        self.adopt(id, &list, is_same, now);
        let group = Group { name, live: Rc::clone(live), list, asked, reviewed: 0 };
        groups.insert(id, group);
        true
    }

    /// Takes over the servers of a list; those that have left are checked no more. Those that stay
    /// keep their time, unless their checks are others now.
    fn adopt(&self, id: u64, list: &Snapshot, is_same: bool, now: u64) {
        let mut targets = self.targets.borrow_mut();
        let mut schedule = self.schedule.borrow_mut();
        let servers: HashMap<Server, u32, foldhash::fast::RandomState> = (0..)
            .zip(list.block().records())
            .map(|(place, record)| {
                let (slot, generation) = (record.slot, record.generation);
                (Server { upstream: id, slot, generation }, place)
            })
            .collect();
        targets.retain(|server, _| server.upstream != id || servers.contains_key(server));
        for (server, place) in servers {
            let target =
                targets.entry(server).or_insert(Target { place, probe: None, under_way: None });
            target.place = place;
            schedule.add(server, now);
            if !is_same {
                schedule.again(server, now);
            }
        }
        drop((schedule, targets));
        self.forget_gone();
    }

    fn forget_gone(&self) {
        let targets = self.targets.borrow();
        self.schedule.borrow_mut().keep_only(|server| targets.contains_key(&server));
        self.unasked.borrow_mut().retain(|server| targets.contains_key(server));
    }

    /// A server whose time has come, or may have.
    fn consider(&self, server: Server, now: u64) {
        let when = self.check(server, now);
        let is_known = self.targets.borrow().contains_key(&server);
        if let Some(when) = when.filter(|_| is_known) {
            self.schedule.borrow_mut().again(server, when.max(now + 1));
        }
    }

    /// Begins the check of a server, if it is due and nobody else has: when to look at it again.
    fn check(&self, server: Server, now: u64) -> Option<u64> {
        let groups = self.groups.borrow();
        let group = groups.get(&server.upstream)?;
        let check = &group.asked.check;
        let upstream = *group.live.upstream();
        let slot = upstream.slot(server.slot);
        if !slot.is_current(server.generation) {
            return None;
        }
        let health = &slot.health;
        let is_under_way =
            self.targets.borrow().get(&server).is_none_or(|target| target.under_way.is_some());
        if is_under_way {
            return Some(now + u64::from(check.interval));
        }
        let due = due(health, check, now);
        let patience =
            if self.is_preferred(server.slot) { 0 } else { schedule::grace(check.interval) };
        if now < due + patience {
            return Some(due + patience);
        }
        if self.running.get() >= self.most || !probe::has_room() {
            return Some(now + LATER);
        }
        let lease = schedule::lease(due, now, check.interval, check.timeout);
        if health.move_due(due, lease, check.interval) {
            let asked = Rc::clone(&group.asked);
            drop(groups);
            self.begin(server, &asked, UnderWay { due, lease, began: now });
        }
        // Where the check has ended at once, this is when the next is due.
        Some(upstream.slot(server.slot).health.due() + patience)
    }

    fn is_preferred(&self, slot: u64) -> bool {
        schedule::preferred(slot, cycle::workers() as u64) == cycle::worker()
    }

    fn begin(&self, server: Server, asked: &Rc<Asked>, under_way: UnderWay) {
        let Some((probe, address)) = self.prepare(server, asked, under_way) else {
            return;
        };
        self.running.set(self.running.get() + 1);
        let mut ending = probe.begin(asked, address.as_bytes());
        if ending == Some(Ending::Stale) {
            ending = probe.begin(asked, address.as_bytes());
        }
        if let Some(ending) = ending {
            self.ended(server, ending);
        }
    }

    /// The probe of a server, and the address that it asks.
    fn prepare(
        &self,
        server: Server,
        asked: &Asked,
        under_way: UnderWay,
    ) -> Option<(Rc<Probe>, Sockaddr)> {
        let groups = self.groups.borrow();
        let list = &groups.get(&server.upstream)?.list;
        let mut targets = self.targets.borrow_mut();
        let target = targets.get_mut(&server)?;
        let address =
            Sockaddr::new(list.block().sockaddr(list.record(target.place)), asked.check.port);
        let probe = target.probe.get_or_insert_with(|| {
            let owner: Weak<dyn Owner> = Weak::clone(&self.this) as Weak<dyn Owner>;
            Probe::new(server, owner)
        });
        target.under_way = Some(under_way);
        Some((Rc::clone(probe), address))
    }

    /// Counts what came of a check.
    fn count(&self, server: Server, under_way: UnderWay, ending: Ending) {
        let mut groups = self.groups.borrow_mut();
        let Some(group) = groups.get_mut(&server.upstream) else {
            return;
        };
        let upstream = *group.live.upstream();
        let slot = upstream.slot(server.slot);
        let now_msec = now_msec();
        let check = &group.asked.check;
        let next = schedule::due_after(under_way.due, now_msec, check.interval);
        if slot.health.move_due(under_way.lease, next, check.interval) {
            let is_preferred = self.is_preferred(server.slot);
            let patience = if is_preferred { 0 } else { schedule::grace(check.interval) };
            self.schedule.borrow_mut().again(server, next + patience);
            self.wait_until(next + patience);
        }
        let failed = match ending {
            Ending::Checked(failed) => failed,
            Ending::Local(local) => return self.say(server, local),
            Ending::Stale => return,
        };
        self.unasked.borrow_mut().remove(&server);
        let took = u32::try_from(now_msec.saturating_sub(under_way.began)).unwrap_or(u32::MAX);
        let outcome = Outcome { failed, at: now(), took };
        if let Some(is_up) = slot.health.count(server.generation, check, &outcome) {
            group.reviewed = 0;
            flipped(group, server, slot, is_up, &outcome);
        }
    }

    /// Says why checks cannot be made: once, until all can again.
    fn say(&self, server: Server, local: Local) {
        let mut unasked = self.unasked.borrow_mut();
        if unasked.insert(server) && unasked.len() == 1 {
            log(
                NGX_LOG_WARN,
                format_args!("upsync: servers cannot be checked: {local}; verdicts stay"),
            );
        }
    }

    /// Finds out for which upstreams verdicts are to be ignored.
    fn review(&self, now: u64) {
        for group in self.groups.borrow_mut().values_mut() {
            if now.saturating_sub(group.reviewed) >= REVIEW {
                group.reviewed = now;
                group.review();
            }
        }
    }
}

impl Group {
    /// Compares how many would be out with `check_fail_open`.
    fn review(&self) {
        let (check, upstream) = (&self.asked.check, self.live.upstream());
        let takes_requests = |record: &&crate::shm::block::Record| {
            let parameters = record.parameters();
            !parameters.is_down() && !parameters.drain && parameters.weight != 0
        };
        let is_out = |record: &&crate::shm::block::Record| {
            let health = &upstream.slot(record.slot).health;
            !health.is_up(record.generation).unwrap_or(!check.default_down)
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
}

/// When a server is due. The first time, and the first after the interval was changed, it is some
/// time in the next interval.
fn due(health: &Health, check: &Check, now: u64) -> u64 {
    let due = health.due();
    let is_paced = health.interval() == u64::from(check.interval);
    if due == 0 || !is_paced && due > now {
        let first = schedule::first_due(now, check.interval, fastrand::u64(..));
        health.move_due(due, first, check.interval);
    }
    health.due()
}

/// A server has another verdict than before.
fn flipped(group: &Group, server: Server, slot: &Slot, is_up: bool, outcome: &Outcome) {
    let name = &group.name;
    let records = group.list.block().records().iter();
    let found = records
        .clone()
        .find(|record| record.slot == server.slot && record.generation == server.generation);
    let address = found.map_or(&b""[..], |record| group.list.block().name(record));
    let address = String::from_utf8_lossy(address);
    if is_up {
        slot.grow(now_msec());
        log(NGX_LOG_NOTICE, format_args!("upsync: upstream \"{name}\": server {address} is up"));
    } else if let Some(reason) = outcome.failed {
        log(
            NGX_LOG_WARN,
            format_args!("upsync: upstream \"{name}\": server {address} is down: {reason}"),
        );
    }
}

impl Owner for Checker {
    fn ended(&self, server: Server, ending: Ending) {
        self.running.set(self.running.get().saturating_sub(1));
        let target = self.targets.borrow_mut().get_mut(&server).and_then(|target| {
            let keeps = target.probe.as_ref().is_some_and(|probe| probe.keeps_connection());
            if !keeps && ending != Ending::Stale {
                target.probe = None;
            }
            target.under_way.take()
        });
        let Some(under_way) = target else {
            return;
        };
        if ending != Ending::Stale {
            return self.count(server, under_way, ending);
        }
        let asked = self.groups.borrow().get(&server.upstream).map(|group| Rc::clone(&group.asked));
        if let Some(asked) = asked {
            self.begin(server, &asked, under_way);
        }
    }

    fn exiting(&self) {
        if !self.is_over.get() {
            self.stop();
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: made by `Timer::new`, freed here only; nginx has it no more.
        drop(unsafe { Box::from_raw(self.timer.as_ptr()) });
    }
}

impl Timer {
    fn new(checker: *const Checker) -> NonNull<Self> {
        // SAFETY: all zeros is an event that is not set; a worker has a cycle. nginx's debug log asks
        // the event's data for a connection's number.
        let mut timer: Box<Self> = unsafe { Box::new(std::mem::zeroed()) };
        timer.checker = checker;
        timer.connection.fd = -1;
        timer.event.handler = Some(on_timer);
        // SAFETY: as above.
        timer.event.log = unsafe { (*ngx_cycle).log };
        timer.event.data = ptr::from_mut(&mut timer.connection).cast::<c_void>();
        NonNull::from(Box::leak(timer))
    }
}

unsafe extern "C" fn on_timer(event: *mut ngx_event_t) {
    // SAFETY: the event is the first field of a `Timer`, whose checker unsets it before it goes.
    guarded((), || unsafe {
        let checker = (*event.cast::<Timer>()).checker;
        Rc::increment_strong_count(checker);
        Rc::from_raw(checker).tick();
    });
}

/// A `struct sockaddr`, perhaps with another port.
struct Sockaddr {
    words: [u64; 16],
    len: usize,
}

impl Sockaddr {
    fn new(from: &[u8], port: Option<u16>) -> Self {
        let mut sockaddr = Self { words: [0; 16], len: from.len().min(128) };
        let len = sockaddr.len;
        let bytes = sockaddr.bytes_mut();
        bytes[..len].copy_from_slice(&from[..len]);
        let family = libc::sa_family_t::from_ne_bytes([bytes[0], bytes[1]]);
        let has_port = matches!(i32::from(family), libc::AF_INET | libc::AF_INET6);
        if let Some(port) = port.filter(|_| has_port) {
            bytes[2..4].copy_from_slice(&port.to_be_bytes());
        }
        sockaddr
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: any initialised memory is bytes, and any bytes make a `u64`.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), 128) }
    }

    fn as_bytes(&self) -> &[u8] {
        // SAFETY: as above; `len` is no more than there are.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }
}

fn now_msec() -> u64 {
    // SAFETY: a plain integer of this thread.
    unsafe { ngx_current_msec as u64 }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(number) => write!(f, "{}", io::Error::from_raw_os_error(*number)),
            Self::NoConnection => f.write_str("no free connection, raise \"worker_connections\""),
            Self::Late => f.write_str("the worker was held up"),
            Self::Memory => f.write_str("no memory"),
        }
    }
}
