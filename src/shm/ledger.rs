//! What each worker holds, so that it can be given back if the worker is killed.
//!
//! A connection is noted before it is counted and struck out after it is given back. A worker
//! killed in between makes the count one too low, never too high: it is right again as soon as
//! the server has no connections, where one too many would stay for ever.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::layout::{Header, LEDGER_CELLS, Ledger, LedgerPage};
use super::recover::lock_to_write;
use super::slot::Slot;
use super::zone::{Full, Locked, Zone};

/// Slots stand at multiples of this: a chunk's head, which has the same alignment, is before them.
pub(super) const SLOT_UNIT: u64 = align_of::<Slot>() as u64;

/// The ledger of this worker.
#[derive(Debug)]
pub struct Book {
    zone: Zone,
    /// None if the zone was full: then nothing is noted, and what this worker holds is lost to
    /// the counts if it is killed.
    ledger: Option<u64>,
    /// The zone has had a page whenever one was needed. Asking a full one with each request would
    /// take the lock each time.
    may_grow: Cell<bool>,
    /// When [`Book::reclaim`] last looked, in seconds.
    reclaimed: Cell<i64>,
    /// Offsets of cells that note nothing.
    free: RefCell<Vec<u64>>,
}

/// A connection that is counted at a slot. Dropping it gives it back.
#[derive(Debug)]
pub struct Held {
    book: Rc<Book>,
    /// 0 is none.
    cell: u64,
    slot: u64,
    generation: u32,
}

impl Book {
    /// Opens a ledger for this process, and gives back what workers held that are no more: those
    /// that `is_alive` denies, and one that had this process's id before it. `worker` is the number
    /// of this one in its configuration, `cycle` the configuration's.
    pub fn open(
        zone: Zone,
        (pid, worker, cycle): (i32, u64, u64),
        is_alive: impl Fn(i32) -> bool,
    ) -> Result<Self, Full> {
        let locked = lock_to_write(&zone);
        free_all(&zone, |owner| owner == pid || !is_alive(owner));
        let unused = offsets(&zone).find(|&at| ledger(&zone, at).pid.load(Relaxed) == 0);
        let at = match unused {
            Some(at) => at,
            None => add_ledger(&locked, zone.header())?,
        };
        let ours = ledger(&zone, at);
        ours.worker.store(worker as u32, Relaxed);
        ours.cycle.store(cycle, Relaxed);
        ours.pid.store(pid, Relaxed);
        let free = pages(&zone, ours).flat_map(cells_of).collect();
        Ok(Self { ledger: Some(at), free: RefCell::new(free), ..Self::without(zone) })
    }

    /// No ledger.
    pub fn without(zone: Zone) -> Self {
        Self {
            zone,
            ledger: None,
            may_grow: Cell::new(true),
            reclaimed: Cell::new(0),
            free: RefCell::default(),
        }
    }

    /// Gives back what workers hold that are no more, at most once a second. A worker that was
    /// killed while it was shutting down is not replaced, so nobody else looks. The lock is taken
    /// only if there is such a one.
    pub fn reclaim(&self, now: i64, is_alive: impl Fn(i32) -> bool) {
        let is_over = |owner| owner != 0 && !is_alive(owner);
        if self.reclaimed.replace(now) != now
            && all(&self.zone).any(|ledger| is_over(ledger.pid.load(Relaxed)))
        {
            let _locked = self.zone.lock();
            free_all(&self.zone, |owner| !is_alive(owner));
        }
    }

    /// Counts a connection at a slot, unless `max_conns` are there or its server has left.
    pub fn connect(self: &Rc<Self>, slot: u64, generation: u32, max_conns: u32) -> Option<Held> {
        let cell = self.free_cell().unwrap_or(0);
        if cell != 0 {
            self.cell(cell).store(((slot / SLOT_UNIT) << 32) | u64::from(generation), Relaxed);
        }
        if !self.slot(slot).connect(generation, max_conns) {
            self.strike_out(cell);
            return None;
        }
        Some(Held { book: Rc::clone(self), cell, slot, generation })
    }

    fn strike_out(&self, cell: u64) {
        if cell != 0 {
            self.cell(cell).store(0, Relaxed);
            self.free.borrow_mut().push(cell);
        }
    }

    /// Ends the worker's use of its ledger. What it still holds is given back.
    pub fn close(&self) {
        let _locked = self.zone.lock();
        if let Some(ours) = self.ledger.map(|at| ledger(&self.zone, at)) {
            give_back(&self.zone, ours);
            ours.pid.store(0, Relaxed);
        }
    }

    /// A cell to note a connection in; none if the zone is full, in which case a connection is
    /// only lost to the count if this worker is killed.
    fn free_cell(&self) -> Option<u64> {
        let mut free = self.free.borrow_mut();
        if free.is_empty() && self.may_grow.get() {
            let ours = ledger(&self.zone, self.ledger?);
            let page = add_page(&lock_to_write(&self.zone), ours);
            self.may_grow.set(page.is_ok());
            free.extend(page.into_iter().flat_map(cells_of));
        }
        free.pop()
    }

    fn cell(&self, offset: u64) -> &AtomicU64 {
        cell(&self.zone, offset)
    }

    fn slot(&self, offset: u64) -> &Slot {
        // SAFETY: records in blocks name slots of chunks, which are never freed.
        unsafe { self.zone.at(offset) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.book.slot(self.slot).disconnect(self.generation);
        self.book.strike_out(self.cell);
    }
}

/// The process of a worker of the configuration in force, by its number; none if it has none just now,
/// or the zone was full.
pub fn process_of(zone: &Zone, worker: usize) -> Option<i32> {
    let cycle = zone.cycle();
    let is_it = |ledger: &&Ledger| {
        ledger.worker.load(Relaxed) as usize == worker && ledger.cycle.load(Relaxed) == cycle
    };
    all(zone).filter(is_it).map(|ledger| ledger.pid.load(Relaxed)).find(|&pid| pid != 0)
}

/// The ledgers of a zone, those of nobody included.
pub(super) fn all(zone: &Zone) -> impl Iterator<Item = &Ledger> {
    offsets(zone).map(|offset| ledger(zone, offset))
}

fn offsets(zone: &Zone) -> impl Iterator<Item = u64> {
    let some = |offset| (offset != 0).then_some(offset);
    let first = some(zone.header().ledgers.load(Acquire));
    std::iter::successors(first, move |&last| some(ledger(zone, last).next.load(Relaxed)))
}

fn ledger(zone: &Zone, offset: u64) -> &Ledger {
    // SAFETY: the offset is from the list of ledgers, which are never freed.
    unsafe { zone.at(offset) }
}

fn pages(zone: &Zone, ledger: &Ledger) -> impl Iterator<Item = u64> {
    let some = |offset| (offset != 0).then_some(offset);
    let first = some(ledger.pages.load(Relaxed));
    std::iter::successors(first, move |&last| some(page(zone, last).next.load(Relaxed)))
}

fn page(zone: &Zone, offset: u64) -> &LedgerPage {
    // SAFETY: the offset is from a ledger's list of pages, which are never freed.
    unsafe { zone.at(offset) }
}

fn cells_of(page: u64) -> impl Iterator<Item = u64> {
    let first = page + std::mem::offset_of!(LedgerPage, cells) as u64;
    (0..LEDGER_CELLS as u64).map(move |i| first + i * 8)
}

fn cell(zone: &Zone, offset: u64) -> &AtomicU64 {
    // SAFETY: the offset is from `cells_of` a page, and pages are never freed.
    unsafe { zone.at(offset) }
}

/// Frees the ledgers of processes that are over; what they note is given back.
fn free_all(zone: &Zone, is_over: impl Fn(i32) -> bool) {
    for ledger in all(zone) {
        let owner = ledger.pid.load(Relaxed);
        if owner != 0 && is_over(owner) {
            give_back(zone, ledger);
            ledger.pid.store(0, Relaxed);
        }
    }
}

fn give_back(zone: &Zone, ledger: &Ledger) {
    for offset in pages(zone, ledger).flat_map(cells_of) {
        let noted = cell(zone, offset).swap(0, Relaxed);
        if noted != 0 {
            // SAFETY: cells note slots of chunks, which are never freed.
            let slot: &Slot = unsafe { zone.at((noted >> 32) * SLOT_UNIT) };
            slot.disconnect(noted as u32);
        }
    }
    zone.header().recounts.fetch_add(1, Release);
}

fn add_ledger(locked: &Locked, header: &Header) -> Result<u64, Full> {
    let offset = locked.allocate::<Ledger>(0)?;
    ledger(locked.zone(), offset).next.store(header.ledgers.load(Relaxed), Relaxed);
    // `reclaim` looks at ledgers without the lock.
    header.ledgers.store(offset, Release);
    locked.settle();
    Ok(offset)
}

fn add_page(locked: &Locked, ledger: &Ledger) -> Result<u64, Full> {
    let offset = locked.allocate::<LedgerPage>(0)?;
    page(locked.zone(), offset).next.store(ledger.pages.load(Relaxed), Relaxed);
    ledger.pages.store(offset, Relaxed);
    locked.settle();
    Ok(offset)
}
