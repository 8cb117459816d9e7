//! One upstream as one worker knows it.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::snapshot::Snapshot;
#[cfg(nginx_http_ssl)]
use super::tls::Sessions;
use crate::model::List;
use crate::shm::block::Block;
use crate::shm::directory::Upstream;
use crate::shm::ledger::Book;

/// The way from an upstream to its list in shared memory. Each worker has its own.
#[derive(Debug)]
pub struct Live {
    upstream: Upstream,
    /// The upstream's block follows a source. Such a list stays with workers that have it when a
    /// later configuration has no use for it.
    is_configured: bool,
    snapshot: RefCell<Option<Rc<Snapshot>>>,
    book: OnceCell<Rc<Book>>,
    /// TLS sessions of this worker with the servers.
    #[cfg(nginx_http_ssl)]
    pub sessions: RefCell<Sessions>,
}

impl Live {
    /// Of an upstream of nginx.conf. Made by the master; knows nothing yet but where to look.
    pub fn configured(upstream: Upstream) -> Self {
        Self::new(upstream, true, OnceCell::new())
    }

    /// Of a list that was posted.
    pub fn posted(upstream: Upstream, book: Rc<Book>) -> Self {
        Self::new(upstream, false, OnceCell::from(book))
    }

    fn new(upstream: Upstream, is_configured: bool, book: OnceCell<Rc<Book>>) -> Self {
        Self {
            upstream,
            is_configured,
            snapshot: RefCell::default(),
            book,
            #[cfg(nginx_http_ssl)]
            sessions: RefCell::default(),
        }
    }

    /// Where its list is.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Gives this worker's ledger, once, when the worker starts.
    pub fn set_book(&self, book: Rc<Book>) {
        let _ = self.book.set(book);
    }

    /// This worker's ledger. None outside workers.
    pub fn book(&self) -> Option<&Rc<Book>> {
        self.book.get()
    }

    /// The list in force: one atomic load if it has not changed since the last request.
    pub fn snapshot(&self) -> Rc<Snapshot> {
        let published = self.upstream.published();
        let mut held = self.snapshot.borrow_mut();
        match &*held {
            Some(snapshot) if snapshot.published == published => Rc::clone(snapshot),
            last => {
                let renewed = self.renewed(published, last.as_ref());
                Rc::clone(held.insert(renewed))
            }
        }
    }

    fn renewed(&self, published: u64, last: Option<&Rc<Snapshot>>) -> Rc<Snapshot> {
        let block = self.upstream.block();
        if let (None, Some(last)) = (&block, last)
            && self.is_configured
            && self.upstream.is_gone()
        {
            return Rc::clone(last);
        }
        let (published, block) = block.unwrap_or_else(|| (published, Block::new(&List::default())));
        #[cfg(nginx_http_ssl)]
        self.sessions.borrow_mut().keep_only(block.records());
        Rc::new(Snapshot::new(published, block))
    }

    /// The next ticket of the order that all workers share.
    pub fn ticket(&self, turn: Turn) -> u64 {
        let entry = self.upstream.entry();
        let turn: &AtomicU64 = match turn {
            Turn::Primary => &entry.turn.0,
            Turn::Backup => &entry.backup_turn.0,
            Turn::Retry => &entry.retry_turn.0,
        };
        turn.fetch_add(1, Relaxed)
    }
}

/// Which of an upstream's orders a ticket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The first attempt of a request.
    Primary,
    /// The same where only `backup` servers are left.
    Backup,
    /// Any later attempt.
    Retry,
}
