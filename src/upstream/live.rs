//! One upstream as one worker knows it.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use super::balancing::Balancing;
use super::snapshot::{self, Snapshot};
#[cfg(nginx_http_ssl)]
use super::tls::Sessions;
use crate::balance::ring::Ring;
use crate::health::asked::{Asked, Base};
use crate::model::List;
use crate::ngx::cycle;
use crate::ngx::thread::with_signals_blocked;
use crate::shm::block::Block;
use crate::shm::directory::Upstream;
use crate::shm::ledger::Book;

/// A ring of more points is made in a thread: so many take about a millisecond.
const POINTS_AT_ONCE: usize = 50_000;

/// The way from an upstream to its list in shared memory. Each worker has its own.
#[derive(Debug)]
pub struct Live {
    upstream: Upstream,
    /// How servers of a list are chosen that came without a method.
    balancing: Balancing,
    /// How their servers are checked.
    checks: Checks,
    /// How those of the last list are.
    asked: RefCell<Option<Rc<Asked>>>,
    /// The upstream's block follows a source. Such a list stays with workers that have it when a
    /// later configuration has no use for it.
    is_configured: bool,
    snapshot: RefCell<Option<Rc<Snapshot>>>,
    /// The next one, whose ring is being made.
    next: RefCell<Option<Next>>,
    book: OnceCell<Rc<Book>>,
    /// TLS sessions of this worker with the servers.
    #[cfg(nginx_http_ssl)]
    pub sessions: RefCell<Sessions>,
}

/// How servers are checked where the list does not say.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// As the block says; none if it has no `check`.
    pub asked: Option<Rc<Asked>>,
    /// What it has for lists that say it themselves.
    pub base: Base,
    /// The upstream's name, for TLS and gRPC.
    pub host: String,
}

#[derive(Debug)]
struct Next {
    published: u64,
    block: Block,
    balancing: Balancing,
    ring: JoinHandle<Ring>,
}

impl Live {
    /// Of an upstream of nginx.conf. Made by the master; knows nothing yet but where to look.
    pub fn configured(upstream: Upstream, balancing: Balancing, checks: Checks) -> Self {
        Self::new(upstream, balancing, checks, true, OnceCell::new())
    }

    /// Of a list that was posted.
    pub fn posted(
        upstream: Upstream,
        balancing: Balancing,
        checks: Checks,
        book: Option<Rc<Book>>,
    ) -> Self {
        let book = book.map_or_else(OnceCell::new, OnceCell::from);
        Self::new(upstream, balancing, checks, false, book)
    }

    fn new(
        upstream: Upstream,
        balancing: Balancing,
        checks: Checks,
        is_configured: bool,
        book: OnceCell<Rc<Book>>,
    ) -> Self {
        Self {
            upstream,
            balancing,
            asked: RefCell::new(checks.asked.clone()),
            checks,
            is_configured,
            snapshot: RefCell::default(),
            next: RefCell::default(),
            book,
            #[cfg(nginx_http_ssl)]
            sessions: RefCell::default(),
        }
    }

    /// How servers are chosen where a list does not say.
    pub fn balancing(&self) -> &Balancing {
        &self.balancing
    }

    /// How servers are checked where a list does not say.
    pub fn checks(&self) -> &Checks {
        &self.checks
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

    /// Makes the ring of the list in force, if it has one, while no request waits for it, however
    /// long it takes: when the worker starts.
    pub fn prepare(&self) {
        let method = self.upstream.block().map(|(_, block)| block.method());
        let method = method.flatten().unwrap_or_else(|| self.balancing.method.clone());
        if !snapshot::wants_ring(&method) {
            return;
        }
        self.snapshot();
        let next = self.next.take();
        if let Some(whole) = next.map(|next| self.whole(next)) {
            self.snapshot.replace(Some(whole));
        }
    }

    /// The list in force: one atomic load if it has not changed since the last request.
    pub fn snapshot(&self) -> Rc<Snapshot> {
        let published = self.upstream.published();
        let mut held = self.snapshot.borrow_mut();
        match &*held {
            Some(snapshot) if snapshot.published == published && snapshot.is_whole => {
                Rc::clone(snapshot)
            }
            last => {
                let renewed = self.renewed(published, last.as_ref());
                Rc::clone(held.insert(renewed))
            }
        }
    }

    fn renewed(&self, published: u64, last: Option<&Rc<Snapshot>>) -> Rc<Snapshot> {
        let next = self.next.take();
        match next {
            Some(next) if next.ring.is_finished() => {
                let whole = self.whole(next);
                return if whole.published == published {
                    whole
                } else {
                    self.begun(published, Some(&whole))
                };
            }
            Some(next) => {
                self.next.replace(Some(next));
                if let Some(last) = last.filter(|last| last.published == published) {
                    return Rc::clone(last);
                }
            }
            None => {}
        }
        self.begun(published, last)
    }

    /// The list in force. While its ring is being made it goes by that of the one before.
    fn begun(&self, published: u64, last: Option<&Rc<Snapshot>>) -> Rc<Snapshot> {
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
        let posted =
            block.method().map(|method| Balancing::posted(method, self.balancing.is_sticky));
        let balancing = posted.unwrap_or_else(|| self.balancing.clone());
        if !snapshot::wants_ring(&balancing.method) {
            return Rc::new(self.made(published, block, balancing, None));
        }
        if snapshot::points(&block) > POINTS_AT_ONCE && self.begin(published, &block, &balancing) {
            let ring = last.and_then(|last| last.ring_for(&block));
            return Rc::new(self.made(published, block, balancing, ring));
        }
        let ring = Arc::new(snapshot::ring(&block));
        Rc::new(self.made(published, block, balancing, Some(ring)).into_whole())
    }

    /// Begins to make a ring.
    fn begin(&self, published: u64, block: &Block, balancing: &Balancing) -> bool {
        let mut next = self.next.borrow_mut();
        if next.is_some() {
            return true;
        }
        let (block, balancing, servers) = (block.clone(), balancing.clone(), block.clone());
        let thread = thread::Builder::new().name("upsync ring".to_owned());
        let ring = with_signals_blocked(|| thread.spawn(move || snapshot::ring(&servers)));
        *next = ring.ok().map(|ring| Next { published, block, balancing, ring });
        next.is_some()
    }

    fn whole(&self, next: Next) -> Rc<Snapshot> {
        let Next { published, block, balancing, ring } = next;
        // A thread that failed leaves an empty ring, which leads to turns.
        let ring = Arc::new(ring.join().unwrap_or_default());
        Rc::new(self.made(published, block, balancing, Some(ring)).into_whole())
    }

    fn made(
        &self,
        published: u64,
        block: Block,
        balancing: Balancing,
        ring: Option<Arc<Ring>>,
    ) -> Snapshot {
        self.upstream.note_version(cycle::worker());
        let asked = self.asked(&block);
        Snapshot::new(published, block, balancing, ring, asked, &self.upstream)
    }

    /// How the servers of a list are checked. What takes long to prepare is kept from list to list.
    fn asked(&self, block: &Block) -> Option<Rc<Asked>> {
        let Some(check) = block.check() else {
            return self.checks.asked.clone();
        };
        let mut asked = self.asked.borrow_mut();
        if asked.as_ref().is_none_or(|asked| asked.check != check) {
            // It was tried when the list was posted.
            *asked = Asked::posted(check, &self.checks.base, &self.checks.host).ok().map(Rc::new);
        }
        asked.clone()
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
    /// The same where only servers of a later tier are left.
    Backup,
    /// Any later attempt.
    Retry,
}
