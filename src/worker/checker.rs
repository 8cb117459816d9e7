//! Which server this worker checks next, and what comes of it.
//!
//! Each server has a due time in shared memory. Whoever moves it on makes the check; a server's
//! preferred worker looks when it is due, the others a little later, so that servers of a worker that
//! died or hangs are not left alone.

mod group;
mod lists;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use nginx_sys::{NGX_LOG_WARN, ngx_current_msec};

use group::{Group, OneMore, UnderWay};
use lists::Lists;

use super::log;
use crate::conf::check::CONCURRENCY;
use crate::conf::settings::Main;
use crate::health::probe::{self, Ending, Local, Owner, Probe, Server, turns};
use crate::health::schedule::{self, Schedule};
use crate::health::waiting::Waiting;
use crate::model::check::Check;
use crate::ngx::cycle;
use crate::ngx::timer::{Tick, Timer};
use crate::shm::health::{Health, Outcome};
use crate::shm::publish::now;
use crate::upstream::snapshot::Snapshot;

/// How often lists are looked at for changes, in milliseconds, where there is anything to check.
const LOOK: u64 = 100;

/// The same where there is not.
const LOOK_RARELY: u64 = 1000;

/// The shortest wait between two looks at the order, in milliseconds.
const STEP: u64 = 5;

/// How often it is seen whether there is room for those that wait for it, in milliseconds.
const LATER: u64 = 20;

/// How often it is asked whether verdicts are to be ignored, in milliseconds, even if none changed.
const REVIEW: u64 = 1000;

/// What becomes of a server that was looked at.
enum Next {
    /// It is to be looked at again then.
    Look(u64),
    /// It waits for room.
    Wait(Local),
    /// It is not checked here any more.
    Never,
}

/// What this worker checks.
pub struct Checker {
    this: Weak<Checker>,
    main: NonNull<Main>,
    zone_cycle: u64,
    most: u32,
    /// Checks under way.
    running: Rc<Cell<u32>>,
    lists: RefCell<Lists>,
    groups: RefCell<HashMap<u64, Group, foldhash::fast::RandomState>>,
    schedule: RefCell<Schedule<Server>>,
    /// Servers that are due, but there is no room for their checks.
    waiting: RefCell<Waiting<Server, Local>>,
    /// When the lists were last looked at.
    looked: Cell<u64>,
    /// Servers whose last check could not be made, and why. It was said of the first of each kind.
    unasked: RefCell<HashMap<Server, Local>>,
    timer: Timer<Checker>,
    /// When the timer goes off.
    wakes: Cell<u64>,
    is_over: Cell<bool>,
}

impl Checker {
    /// Begins to check, soon after this.
    ///
    /// # Safety
    ///
    /// Called in a worker with the settings of its cycle, which outlive the result.
    pub unsafe fn start(main: &Main) -> Rc<Self> {
        let most = main.check_concurrency.get().unwrap_or(CONCURRENCY);
        turns::start(cycle::timer_resolution());
        let checker = Rc::new_cyclic(|this: &Weak<Self>| Self {
            this: Weak::clone(this),
            main: NonNull::from(main),
            zone_cycle: main.cycle.get(),
            most,
            running: Rc::default(),
            lists: RefCell::default(),
            groups: RefCell::default(),
            schedule: RefCell::default(),
            waiting: RefCell::default(),
            looked: Cell::new(0),
            unasked: RefCell::default(),
            timer: Timer::new(Weak::clone(this)),
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

    /// Waits no longer than until then.
    fn wait_until(&self, when: u64) {
        let now = now_msec();
        let when = when.max(now + STEP);
        if when < self.wakes.get() && !self.is_over.get() {
            self.wait(when - now);
        }
    }

    fn wait(&self, milliseconds: u64) {
        self.wakes.set(now_msec() + milliseconds);
        self.timer.set(milliseconds as usize);
    }

    /// Ends all checks. None begins any more.
    fn stop(&self) {
        self.is_over.set(true);
        self.timer.unset();
        let groups = self.groups.take().into_values();
        let targets = groups.flat_map(|group| group.targets.into_values());
        targets.filter_map(|target| target.probe).for_each(|probe| probe.close());
    }

    /// A server whose time has come, or may have. Without room for its check it waits.
    fn consider(&self, server: Server, now: u64) {
        match self.check(server, now) {
            Next::Look(when) => self.schedule.borrow_mut().again(server, when.max(now + 1)),
            Next::Wait(local) => self.waiting.borrow_mut().push(server.upstream, server, local),
            Next::Never => {}
        }
    }

    /// Begins the check of a server, if it is due and nobody else has.
    fn check(&self, server: Server, now: u64) -> Next {
        let groups = self.groups.borrow();
        let Some(group) = groups.get(&server.upstream) else {
            return Next::Never;
        };
        let (check, upstream) = (&group.asked.check, *group.live.upstream());
        let slot = upstream.slot(server.slot);
        let Some(target) = group.targets.get(&server) else {
            return Next::Never;
        };
        if !slot.is_current(server.generation) {
            return Next::Never;
        }
        if target.under_way.is_some() {
            return Next::Look(now + u64::from(check.interval));
        }
        let due = due(&slot.health, check, now);
        let patience =
            if self.is_preferred(server.slot) { 0 } else { schedule::grace(check.interval) };
        if now < due + patience {
            // Somebody else asks it, if this worker could not.
            self.unasked.borrow_mut().remove(&server);
            return Next::Look(due + patience);
        }
        let keeps_one = target.probe.as_ref().is_some_and(|probe| probe.keeps_connection());
        if let Some(local) = self.no_room(keeps_one) {
            return Next::Wait(local);
        }
        let lease = schedule::lease(due, now, check.interval, check.timeout);
        if slot.health.move_due(due, lease, check.interval) {
            let (asked, one) = (Rc::clone(&group.asked), OneMore::of(&self.running));
            drop(groups);
            self.begin(server, UnderWay { asked, _one: one, due, lease, began: now });
        }
        // Where the check has ended at once, this is when the next is due.
        Next::Look(upstream.slot(server.slot).health.due() + patience)
    }

    /// Why no check can begin, if none can; one over a connection that was kept needs no other.
    fn no_room(&self, keeps_one: bool) -> Option<Local> {
        if self.running.get() >= self.most {
            Some(Local::Busy)
        } else if !keeps_one && !probe::has_room() {
            Some(Local::NoConnection)
        } else {
            None
        }
    }

    /// Lets those go on that wait, as far as there is room.
    fn let_go_on(&self, now: u64) {
        loop {
            let first = self.waiting.borrow().first();
            let Some((server, local)) = first else { break };
            self.say_if_late(server, local, now);
            if self.no_room(false).is_some() {
                break;
            }
            self.waiting.borrow_mut().pop();
            self.consider(server, now);
        }
    }

    /// Whoever has waited for longer than an interval is told of.
    fn say_if_late(&self, server: Server, local: Local, now: u64) {
        let groups = self.groups.borrow();
        let group = groups.get(&server.upstream);
        if let Some(group) = group.filter(|group| group.targets.contains_key(&server)) {
            let due = group.live.upstream().slot(server.slot).health.due();
            if now > due + 2 * u64::from(group.asked.check.interval) {
                self.say(group, server, local);
            }
        }
    }

    fn is_preferred(&self, slot: u64) -> bool {
        schedule::preferred(slot, cycle::workers() as u64) == cycle::worker()
    }

    fn begin(&self, server: Server, under_way: UnderWay) {
        let asked = Rc::clone(&under_way.asked);
        let Some((probe, list, place)) = self.prepare(server, under_way) else {
            return;
        };
        let sockaddr = list.block().sockaddr(list.record(place));
        let mut ending = probe.begin(&asked, sockaddr);
        if ending == Some(Ending::Stale) {
            ending = probe.begin(&asked, sockaddr);
        }
        if let Some(ending) = ending {
            self.ended(server, ending);
        }
    }

    /// The probe of a server, and its place in a list.
    fn prepare(
        &self,
        server: Server,
        under_way: UnderWay,
    ) -> Option<(Rc<Probe>, Rc<Snapshot>, u32)> {
        let mut groups = self.groups.borrow_mut();
        let group = groups.get_mut(&server.upstream)?;
        let target = group.targets.get_mut(&server)?;
        let probe = target.probe.get_or_insert_with(|| {
            let owner: Weak<dyn Owner> = Weak::clone(&self.this) as Weak<dyn Owner>;
            Probe::new(server, owner)
        });
        target.under_way = Some(under_way);
        Some((Rc::clone(probe), Rc::clone(&group.list), target.place))
    }

    /// Counts what came of a check.
    fn count(&self, server: Server, under_way: &UnderWay, ending: Ending) {
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
            Ending::Local(local) => return self.say(group, server, local),
            Ending::Stale => return,
        };
        self.unasked.borrow_mut().remove(&server);
        if !Rc::ptr_eq(&under_way.asked, &group.asked) {
            // It is not what is asked now.
            return;
        }
        let took = u32::try_from(now_msec.saturating_sub(under_way.began)).unwrap_or(u32::MAX);
        let outcome = Outcome { failed, at: now(), took };
        if let Some(is_up) = slot.health.count(server.generation, check, &outcome) {
            group.reviewed = 0;
            if is_up {
                slot.grow(now_msec);
            }
            group.log_flip(server, is_up, &outcome);
        }
    }

    /// Says why a check could not be made: once for each reason, until there is no such server.
    fn say(&self, group: &Group, server: Server, local: Local) {
        let mut unasked = self.unasked.borrow_mut();
        let is_known = unasked.values().any(|known| *known == local);
        unasked.insert(server, local);
        if !is_known {
            let (name, address) = (&group.name, group.address(server));
            log(
                NGX_LOG_WARN,
                format_args!(
                    "upsync: upstream \"{name}\": server {address} cannot be checked: {local}; verdicts stay"
                ),
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

impl Tick for Checker {
    /// Does what is due, and waits for what is next.
    fn tick(&self) {
        let is_replaced = self.main().zone.get().is_none_or(|zone| zone.cycle() > self.zone_cycle);
        if cycle::is_exiting() || is_replaced {
            return self.stop();
        }
        turns::begin();
        let now = now_msec();
        let is_idle = self.groups.borrow().is_empty();
        let look = if is_idle { LOOK_RARELY } else { LOOK };
        if now.saturating_sub(self.looked.get()) >= look || self.looked.get() == 0 {
            self.looked.set(now);
            self.look(now);
        }
        self.let_go_on(now);
        loop {
            let next = self.schedule.borrow_mut().pop(now);
            let Some(server) = next else { break };
            self.consider(server, now);
        }
        self.review(now);
        let next = self.schedule.borrow().next();
        let wait = next.map_or(look, |next| next.saturating_sub(now)).clamp(STEP, look);
        let wait = if self.waiting.borrow().is_empty() { wait } else { wait.min(LATER) };
        let wait = if self.running.get() == 0 { wait } else { wait.min(turns::BEAT) };
        self.wait(wait);
    }
}

impl Owner for Checker {
    fn ended(&self, server: Server, ending: Ending) {
        let mut groups = self.groups.borrow_mut();
        let group = groups.get_mut(&server.upstream);
        let target = group.and_then(|group| group.targets.get_mut(&server)).and_then(|target| {
            let keeps = target.probe.as_ref().is_some_and(|probe| probe.keeps_connection());
            if !keeps && ending != Ending::Stale {
                target.probe = None;
            }
            target.under_way.take()
        });
        drop(groups);
        let Some(under_way) = target else {
            return;
        };
        if !self.waiting.borrow().is_empty() {
            self.wait_until(now_msec());
        }
        if ending != Ending::Stale {
            return self.count(server, &under_way, ending);
        }
        self.begin(server, under_way);
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
    }
}

fn now_msec() -> u64 {
    // SAFETY: a plain integer of this thread.
    unsafe { ngx_current_msec as u64 }
}
