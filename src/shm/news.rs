//! Which servers of an upstream got a connection back, told from worker to worker.
//!
//! A worker that orders servers by their connections sees its own come and go, and finds out
//! about others' when it looks at a server. What it cannot see is that a server it has for busy is
//! not any more: that is what the news are for. They are a ring of the last ones; who missed too
//! many looks at all servers.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::directory::Upstream;
use super::layout::{NEWS_CELLS, News};
use super::ledger::SLOT_UNIT;
use super::recover::lock_to_write;
use super::zone::Full;

/// How far one reader has read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    next: u64,
    recounts: u64,
}

/// What a reader finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// All that there was.
    All,
    /// Too much was missed: any server may have changed.
    Missed,
}

impl Upstream {
    /// Makes sure that there are news, and begins to read them.
    pub fn read_news(&self) -> Result<Reader, Full> {
        let locked = lock_to_write(self.zone());
        // The entry may be another name's by now, or be nobody's.
        if self.is_gone() {
            return Err(Full);
        }
        let news = &self.entry().news;
        if news.load(Relaxed) == 0 {
            let offset = locked.allocate::<News>(0)?;
            news.store(offset, Release);
            locked.settle();
        }
        let count = self.news().map_or(0, |news| news.count.load(Acquire));
        Ok(Reader { next: count, recounts: self.zone().header().recounts.load(Acquire) })
    }

    /// Tells whoever reads that a server got a connection back.
    pub fn tell(&self, slot: u64) {
        let Some(news) = self.news() else {
            return;
        };
        let number = news.count.fetch_add(1, Relaxed);
        let cell = (number.wrapping_add(1) << 32) | (slot / SLOT_UNIT);
        // Who sees the cell sees the connection's end, too.
        news.cells[number as usize % NEWS_CELLS].store(cell, Release);
    }

    fn news(&self) -> Option<&News> {
        let offset = self.entry().news.load(Acquire);
        // SAFETY: the offset is that of news, which are never freed: they stay with the entry.
        (offset != 0).then(|| unsafe { self.zone().at(offset) })
    }
}

impl Reader {
    /// Calls `heard` with the slot of each server of which there are news.
    pub fn read(&mut self, upstream: &Upstream, mut heard: impl FnMut(u64)) -> Read {
        let Some(news) = upstream.news() else {
            return Read::All;
        };
        let recounts = upstream.zone().header().recounts.load(Acquire);
        let count = news.count.load(Acquire);
        if recounts != self.recounts || count.wrapping_sub(self.next) > NEWS_CELLS as u64 {
            (self.next, self.recounts) = (count, recounts);
            return Read::Missed;
        }
        while self.next != count {
            let cell = news.cells[self.next as usize % NEWS_CELLS].load(Acquire);
            // One that is counted and not yet written is read the next time.
            if cell >> 32 != u64::from(self.next.wrapping_add(1) as u32) {
                return Read::All;
            }
            heard((cell & u64::from(u32::MAX)) * SLOT_UNIT);
            self.next += 1;
        }
        Read::All
    }
}
