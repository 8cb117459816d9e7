//! What a request knows of its upstream, and how it chooses a server.

mod asking;

use std::cell::Cell;
use std::collections::HashSet;
use std::ptr;
use std::rc::Rc;

#[cfg(nginx_peer_sid)]
use nginx_sys::ngx_str_t;
use nginx_sys::{
    NGX_ERROR, NGX_OK, ngx_http_request_t, ngx_int_t, ngx_peer_connection_t, ngx_time,
};

use super::live::Live;
use super::names::Posted;
use super::snapshot::Snapshot;
#[cfg(nginx_http_ssl)]
use super::tls;
use crate::balance::{Tier, Tried, Walk};
use crate::model::Outs;
use crate::ngx::{cycle, pool};
use crate::shm::block::Record;
use crate::shm::ledger::Held;
use crate::shm::slot::{Failure, Slot};
use asking::Asking;

/// From `peer.init` until the request's pool is destroyed.
pub struct Choice {
    live: Rc<Live>,
    /// What nginx's own part of the request points to, if it is not of nginx.conf.
    posted: Option<Rc<Posted>>,
    /// The list in use.
    list: Rc<Snapshot>,
    /// Those it has picked from before. nginx's log refers to the names of servers tried long ago,
    /// so none of them goes before the request does.
    earlier: Option<Box<Earlier>>,
    tried: Tried,
    /// Servers tried, over all lists.
    attempts: usize,
    current: Option<Attempt>,
    /// How far it has gone by its key.
    walk: Cell<Walk>,
    /// Why servers were passed over.
    passed: Cell<Outs>,
    none_left: Cell<bool>,
    /// What the choice hangs on, of the request's memory.
    key: &'static [u8],
    request: *mut ngx_http_request_t,
}

/// A list that a request has picked from, and those before it.
struct Earlier {
    _list: Rc<Snapshot>,
    _before: Option<Box<Earlier>>,
}

/// How an attempt ended.
pub enum End {
    /// As it should.
    Good,
    /// nginx takes it for a failure of the server.
    Failed,
    /// The server had closed a kept connection before the request was on it. That says nothing
    /// about the server; nginx tries once more, and a new connection to the same one may be it.
    Stale,
}

/// How long an answer took, in milliseconds: until its header, if it has one, and to its end.
///
/// # Safety
///
/// `request` is one whose attempt has just ended.
unsafe fn times(request: *mut ngx_http_request_t) -> (Option<u64>, u64) {
    // SAFETY: the caller's word; nginx has made the state before the attempt.
    unsafe {
        let upstream = (*request).upstream;
        let taken = ngx_current_msec().saturating_sub((*upstream).start_time as u64);
        let Some(state) = (*upstream).state.as_ref() else {
            return (None, taken);
        };
        let known = |time: nginx_sys::ngx_msec_t| {
            (time != nginx_sys::ngx_msec_t::MAX).then_some(time as u64)
        };
        (known(state.header_time), known(state.response_time).unwrap_or(taken))
    }
}

/// A server that has been picked and not yet given back.
struct Attempt {
    server: u32,
    _connection: Held,
}

impl Choice {
    /// Pins the list in force.
    ///
    /// # Safety
    ///
    /// The choice is dropped with the request's pool; nginx has made `request.upstream`.
    #[inline]
    pub unsafe fn new(
        request: *mut ngx_http_request_t,
        live: Rc<Live>,
        posted: Option<Rc<Posted>>,
    ) -> Self {
        let list = live.snapshot();
        let key = match list.balancing.has_key() {
            // SAFETY: the caller's word: the key goes no later than the request.
            true => unsafe { list.balancing.key(request) },
            false => &[],
        };
        Self {
            live,
            posted,
            list,
            earlier: None,
            tried: Tried::default(),
            attempts: 0,
            current: None,
            walk: Cell::default(),
            passed: Cell::default(),
            none_left: Cell::default(),
            key,
            request,
        }
    }

    /// Why servers were passed over until now. Those that the operator or Consul keeps out are only
    /// looked at when no other was left.
    pub fn passed(&self) -> Outs {
        let mut passed = self.passed.get();
        if self.none_left.get() {
            for record in self.list.block().records() {
                let (slot, parameters) = (self.slot(record), record.parameters());
                passed.add(slot.outs(record.generation, &parameters, ngx_time()));
            }
        }
        passed
    }

    /// No server was left.
    pub fn note_none_left(&self) {
        self.none_left.set(true);
    }

    /// The list in use.
    pub fn list(&self) -> &Snapshot {
        &self.list
    }

    /// The request.
    pub fn request(&self) -> *mut ngx_http_request_t {
        self.request
    }

    /// What is known of the upstream by this worker.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The server in use, as TLS sessions name it.
    #[cfg(nginx_http_ssl)]
    pub fn server(&self) -> Option<(u64, u32)> {
        let attempt = self.current.as_ref()?;
        let record = self.list.record(attempt.server);
        Some((record.slot, record.generation))
    }

    /// Picks a server of the first tier that has a usable one.
    pub fn pick(&mut self) -> bool {
        if self.list.minds_connections()
            && let Some(book) = self.live.book()
        {
            // Nobody replaces a worker that was killed while it was shutting down.
            book.reclaim(ngx_time(), cycle::is_alive);
        }
        self.list.hear(self.live.upstream(), |server| self.load(server));
        let asking = Asking::of(self);
        let found = asking.pick();
        self.hold(found)
    }

    /// The server that nginx's `sticky` wants, if the request may have it.
    #[cfg(nginx_peer_sid)]
    pub fn pick_bound(&mut self, connection: &ngx_peer_connection_t) -> bool {
        // SAFETY: `sticky` sets it to a text that lives as long as its call of `get`.
        let Some(hint) = (unsafe { connection.hint.as_ref() }) else {
            return false;
        };
        let Some(server) = self.list.by_identity(hint.as_bytes()) else {
            return false;
        };
        let found = Asking::of(self).take_bound(server);
        self.hold(found)
    }

    fn hold(&mut self, found: Option<Attempt>) -> bool {
        let Some(attempt) = found else {
            return false;
        };
        self.tried.add(attempt.server);
        self.attempts += 1;
        self.current = Some(attempt);
        true
    }

    fn load(&self, server: u32) -> u64 {
        self.list.load(self.live.upstream(), server, ngx_time())
    }

    /// Tells nginx where the server is.
    pub fn address(&self, connection: &mut ngx_peer_connection_t) -> ngx_int_t {
        let Some(attempt) = &self.current else {
            return NGX_ERROR as ngx_int_t;
        };
        // nginx keeps pointers to both as long as the request, and so the lists are kept.
        let record = self.list.record(attempt.server);
        let sockaddr = self.list.block().sockaddr(record);
        connection.name = ptr::from_ref(self.list.name(attempt.server)).cast_mut();
        connection.sockaddr = sockaddr.as_ptr().cast_mut().cast();
        connection.socklen = sockaddr.len() as u32;
        #[cfg(nginx_peer_sid)]
        if self.live.balancing().is_sticky {
            let identity = self.list.identity(record);
            // SAFETY: the caller's request has a pool, which the copies are of.
            unsafe {
                let pool = (*self.request).pool;
                let sid = pool::copy_bytes(pool, identity.as_bytes()).and_then(|data| {
                    pool::copy(pool, ngx_str_t { len: identity.len(), data: data.as_ptr() })
                });
                connection.sid = sid.map_or(ptr::null_mut(), |sid| sid.as_ptr());
            }
        }
        #[cfg(nginx_http_ssl)]
        if self.posted.is_some() {
            // SAFETY: nginx has made `request.upstream`, and the pool lives as the request does.
            return unsafe { self.mark(connection) };
        }
        NGX_OK as ngx_int_t
    }

    /// Keeps TLS connections apart from those of other names.
    ///
    /// # Safety
    ///
    /// `connection` has the address of a server of `self`, whose request is alive.
    #[cfg(nginx_http_ssl)]
    unsafe fn mark(&self, connection: &mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: the caller's word; the address is one of a block, as long as `socklen` says.
        unsafe {
            if (*(*self.request).upstream).ssl() == 0 {
                return NGX_OK as ngx_int_t;
            }
            let from = connection.sockaddr.cast::<u8>().cast_const();
            let sockaddr = std::slice::from_raw_parts(from, connection.socklen as usize);
            let (marked, len) = tls::marked(sockaddr, self.live.upstream().id());
            let Some(place) = pool::copy((*self.request).pool, marked) else {
                return NGX_ERROR as ngx_int_t;
            };
            (connection.sockaddr, connection.socklen) = (place.as_ptr().cast(), len as u32);
        }
        NGX_OK as ngx_int_t
    }

    /// Gives the server back and counts how it went.
    pub fn finish(&mut self, end: End) -> Option<Failure> {
        let attempt = self.current.take()?;
        if matches!(end, End::Stale) {
            self.tried.remove(attempt.server);
        }
        let record = self.list.record(attempt.server);
        let failure = self.count(record, end);
        drop(attempt);
        self.live.upstream().tell(record.slot);
        failure
    }

    fn count(&self, record: &Record, end: End) -> Option<Failure> {
        let (slot, parameters) = (self.slot(record), record.parameters());
        // SAFETY: the hooks' request is alive, and nginx has made its upstream.
        unsafe { self.measure(record, slot, matches!(end, End::Good)) };
        match end {
            _ if self.list.is_single() => None,
            End::Good => {
                slot.succeeded(record.generation, &parameters, ngx_current_msec());
                None
            }
            End::Stale => None,
            End::Failed => Some(slot.failed(record.generation, &parameters, ngx_time())),
        }
    }

    /// Counts what the attempt that has just ended was like.
    ///
    /// # Safety
    ///
    /// nginx has made the upstream of the request.
    unsafe fn measure(&self, record: &Record, slot: &Slot, is_good: bool) {
        // SAFETY: the caller's word; nginx has made the state before the attempt.
        let Some(state) = (unsafe { (*(*self.request).upstream).state.as_ref() }) else {
            return;
        };
        if !slot.is_current(record.generation) {
            return;
        }
        let status = u16::try_from(state.status).ok();
        slot.answered(status, state.bytes_sent as u64, state.bytes_received as u64);
        if is_good {
            // SAFETY: the caller's word.
            let (header, response) = unsafe { times(self.request) };
            slot.timed(record.generation, header, response, ngx_time());
        }
    }

    fn slot(&self, record: &Record) -> &Slot {
        self.live.upstream().slot(record.slot)
    }

    /// How often the request may still try, with the server that it has, if it has one: as many
    /// servers as it has not tried, and as `proxy_next_upstream_tries` allows.
    pub fn tries_left(&self) -> usize {
        let servers = self.list.tiers().iter().flat_map(Tier::servers);
        let untried = servers.filter(|&server| !self.tried.has(server)).count();
        let now = usize::from(self.current.is_some());
        match self.tries_allowed() {
            0 => untried + now,
            limit => (untried + now).min((limit + now).saturating_sub(self.attempts)),
        }
    }

    /// Whether `proxy_next_upstream_tries` allows another server.
    pub fn may_go_on(&self) -> bool {
        let limit = self.tries_allowed();
        limit == 0 || self.attempts < limit
    }

    /// `proxy_next_upstream_tries`; 0 is any number.
    fn tries_allowed(&self) -> usize {
        // SAFETY: nginx sets the upstream's configuration before it calls `peer.init`.
        unsafe { (*(*(*self.request).upstream).conf).next_upstream_tries }
    }

    /// Goes on with the list in force, if it is another than the one in use. Servers that stand
    /// in both stay tried.
    pub fn renew(&mut self) -> bool {
        let newest = self.live.snapshot();
        let last = &self.list;
        if newest.published == last.published {
            return false;
        }
        let key = |record: &Record| (record.slot, record.generation);
        let records = (0..).zip(last.block().records());
        let tried: HashSet<_> = records
            .filter(|&(server, _)| self.tried.has(server))
            .map(|(_, record)| key(record))
            .collect();
        let mut still = Tried::default();
        for (server, record) in (0..).zip(newest.block().records()) {
            if tried.contains(&key(record)) {
                still.add(server);
            }
        }
        self.tried = still;
        self.walk = Cell::default();
        // SAFETY: the hooks' request is alive.
        self.key = unsafe { newest.balancing.key(self.request) };
        let list = std::mem::replace(&mut self.list, newest);
        self.earlier = Some(Box::new(Earlier { _list: list, _before: self.earlier.take() }));
        true
    }
}

/// nginx's clock in milliseconds, which is monotonic.
fn ngx_current_msec() -> u64 {
    // SAFETY: a plain integer, written by this thread only.
    unsafe { nginx_sys::ngx_current_msec as u64 }
}
