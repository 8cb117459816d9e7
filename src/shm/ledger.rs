//! What each worker holds, so that it can be given back if the worker is killed.
//!
//! A connection is noted before it is counted and struck out after it is given back. A worker
//! killed in between makes the count one too low, never too high: it is right again as soon as
//! the server has no connections, where one too many would stay for ever.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::layout::{Header, LEDGER_CELLS, Ledger, LedgerPage};
use super::publish::recover;
use super::slot::Slot;
use super::zone::{Full, Locked, Zone};

/// Slots stand at multiples of this.
const SLOT_UNIT: u64 = size_of::<Slot>() as u64;

/// The ledger of this worker.
#[derive(Debug)]
pub struct Book {
    zone: Zone,
    ledger: u64,
    /// Offsets of cells that note nothing.
    free: RefCell<Vec<u64>>,
}

/// A connection that is counted at a slot. Dropping it gives it back.
#[derive(Debug)]
pub struct Held {
    book: Rc<Book>,
    cell: Option<u64>,
    slot: u64,
    generation: u32,
}

impl Book {
    /// Opens the ledger of worker number `worker` of a cycle, and gives back what workers held
    /// that are no more: the one this replaces, and any whose process `is_alive` denies.
    pub fn open(
        zone: Zone,
        cycle: u64,
        worker: u64,
        pid: i32,
        is_alive: impl Fn(i32) -> bool,
    ) -> Result<Self, Full> {
        let locked = zone.lock();
        recover(&locked);
        let replaced = |ledger: &Ledger| {
            ledger.cycle.load(Relaxed) == cycle && ledger.worker.load(Relaxed) == worker
        };
        for ledger in all(&zone) {
            let owner = ledger.pid.load(Relaxed);
            if owner != 0 && (replaced(ledger) || !is_alive(owner)) {
                give_back(&zone, ledger);
                ledger.pid.store(0, Relaxed);
            }
        }
        let unused = offsets(&zone).find(|&at| ledger(&zone, at).pid.load(Relaxed) == 0);
        let at = match unused {
            Some(at) => at,
            None => add_ledger(&locked, zone.header())?,
        };
        let ours = ledger(&zone, at);
        ours.cycle.store(cycle, Relaxed);
        ours.worker.store(worker, Relaxed);
        ours.pid.store(pid, Relaxed);
        let free = pages(&zone, ours).flat_map(cells_of).collect();
        Ok(Self { zone, ledger: at, free: RefCell::new(free) })
    }

    /// Counts a connection at a slot, unless `max_conns` are there or its server has left.
    pub fn connect(self: &Rc<Self>, slot: u64, generation: u32, max_conns: u32) -> Option<Held> {
        let cell = self.free_cell();
        if let Some(cell) = cell {
            self.cell(cell).store(((slot / SLOT_UNIT) << 32) | u64::from(generation), Relaxed);
        }
        if !self.slot(slot).connect(generation, max_conns) {
            self.strike_out(cell);
            return None;
        }
        Some(Held { book: Rc::clone(self), cell, slot, generation })
    }

    fn strike_out(&self, cell: Option<u64>) {
        if let Some(cell) = cell {
            self.cell(cell).store(0, Relaxed);
            self.free.borrow_mut().push(cell);
        }
    }

    /// Ends the worker's use of its ledger. What it still holds is given back.
    pub fn close(&self) {
        let _locked = self.zone.lock();
        let ours = ledger(&self.zone, self.ledger);
        give_back(&self.zone, ours);
        ours.pid.store(0, Relaxed);
    }

    /// A cell to note a connection in; none if the zone is full, in which case a connection is
    /// only lost to the count if this worker is killed.
    fn free_cell(&self) -> Option<u64> {
        let mut free = self.free.borrow_mut();
        if free.is_empty() {
            let locked = self.zone.lock();
            recover(&locked);
            free.extend(cells_of(add_page(&locked, ledger(&self.zone, self.ledger)).ok()?));
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

/// The ledgers of a zone, those of nobody included.
pub(super) fn all(zone: &Zone) -> impl Iterator<Item = &Ledger> {
    offsets(zone).map(|offset| ledger(zone, offset))
}

fn offsets(zone: &Zone) -> impl Iterator<Item = u64> {
    let some = |offset| (offset != 0).then_some(offset);
    let first = some(zone.header().ledgers.load(Relaxed));
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

fn give_back(zone: &Zone, ledger: &Ledger) {
    for offset in pages(zone, ledger).flat_map(cells_of) {
        let noted = cell(zone, offset).swap(0, Relaxed);
        if noted != 0 {
            // SAFETY: cells note slots of chunks, which are never freed.
            let slot: &Slot = unsafe { zone.at((noted >> 32) * SLOT_UNIT) };
            slot.disconnect(noted as u32);
        }
    }
}

fn add_ledger(locked: &Locked, header: &Header) -> Result<u64, Full> {
    let offset = locked.allocate::<Ledger>(0)?;
    ledger(locked.zone(), offset).next.store(header.ledgers.load(Relaxed), Relaxed);
    header.ledgers.store(offset, Relaxed);
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
