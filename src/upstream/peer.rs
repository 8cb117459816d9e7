//! The peer hooks of nginx (`ngx_http_upstream.h`): which server a request is sent to.

use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use nginx_sys::{
    NGX_BUSY, NGX_ERROR, NGX_LOG_WARN, NGX_OK, NGX_PEER_FAILED, ngx_http_request_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_str_t, ngx_time,
    ngx_uint_t,
};

use super::live::{Live, Turn};
use super::names::Posted;
use super::snapshot::Snapshot;
#[cfg(nginx_http_ssl)]
use super::tls;
use crate::balance::Tried;
use crate::ngx::boundary::guarded;
use crate::ngx::{cycle, pool};
use crate::shm::ledger::Held;
use crate::shm::slot::Failure;

/// What a request knows of its upstream, from `peer.init` until its pool is destroyed.
struct Choice {
    live: Rc<Live>,
    /// What nginx's own part of the request points to, if it is not of nginx.conf.
    posted: Option<Rc<Posted>>,
    /// The lists it has picked from, the last one in use. nginx's log refers to the names of
    /// servers tried long ago, so none of them goes before the request does.
    lists: Vec<Rc<Snapshot>>,
    tried: Tried,
    /// Servers tried, over all lists.
    attempts: usize,
    current: Option<Attempt>,
    request: *mut ngx_http_request_t,
    upstream_name: *mut ngx_str_t,
}

/// How an attempt ended.
enum End {
    Good,
    Failed,
    /// The server had closed a kept connection before the request was on it. That says nothing
    /// about the server; nginx tries once more, and a new connection to the same one may be it.
    Stale,
}

/// Whether a failed attempt found its kept connection closed: no byte of an answer came over it,
/// and not for want of time.
///
/// # Safety
///
/// nginx has called `free` for an attempt on `peer`, of this request.
unsafe fn is_stale(peer: &ngx_peer_connection_t, request: *mut ngx_http_request_t) -> bool {
    // SAFETY: a peer's connection, if there is one, has its events; nginx has set the state of
    // the attempt before it asked for a server.
    unsafe {
        let timed_out = peer.connection.as_ref().is_some_and(|connection| {
            (*connection.read).timedout() != 0 || (*connection.write).timedout() != 0
        });
        let state = (*(*request).upstream).state.as_ref();
        peer.cached() != 0 && !timed_out && state.is_none_or(|state| state.bytes_received == 0)
    }
}

/// A server that has been picked and not yet given back.
struct Attempt {
    server: u32,
    _connection: Held,
}

/// `peer.init`: pins the list in force.
///
/// # Safety
///
/// nginx calls it with a request and the upstream it goes to, which is of nginx.conf or of
/// `posted`.
pub unsafe fn init(
    request: *mut ngx_http_request_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    live: Rc<Live>,
    posted: Option<Rc<Posted>>,
) -> ngx_int_t {
    let snapshot = live.snapshot();
    let tries = snapshot.tries();
    let choice = Choice {
        live,
        posted,
        lists: vec![snapshot],
        tried: Tried::default(),
        attempts: 0,
        current: None,
        request,
        // SAFETY: an upstream of nginx.conf outlives its requests, another is pinned above.
        upstream_name: unsafe { &raw mut (*upstream).host },
    };
    // SAFETY: nginx calls `peer.init` after it has made `request.upstream`.
    unsafe {
        let Some(data) = pool::place((*request).pool, choice) else {
            return NGX_ERROR as ngx_int_t;
        };
        let peer = &mut (*(*request).upstream).peer;
        peer.data = data.as_ptr().cast();
        peer.get = Some(get);
        peer.free = Some(free);
        peer.tries = tries;
        #[cfg(nginx_http_ssl)]
        {
            peer.set_session = Some(set_session);
            peer.save_session = Some(save_session);
        }
    }
    NGX_OK as ngx_int_t
}

/// Runs `body` with the connection and the choice that nginx hands to a peer hook.
///
/// # Safety
///
/// `connection` and `data` are those of a hook that [`init`] has set.
unsafe fn with<T>(
    connection: *mut ngx_peer_connection_t,
    data: *mut c_void,
    failed: T,
    body: impl FnOnce(&mut ngx_peer_connection_t, &mut Choice) -> T,
) -> T {
    // SAFETY: the caller's word; hooks of one request are not nested.
    guarded(failed, || unsafe { body(&mut *connection, &mut *data.cast::<Choice>()) })
}

unsafe extern "C" fn get(connection: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    let get = |connection: &mut ngx_peer_connection_t, choice: &mut Choice| {
        connection.set_cached(0);
        connection.connection = ptr::null_mut();
        // A list that has changed since the request came is asked only if the pinned one has no
        // server left: then the change must not be what fails the request.
        if choice.pick() || (choice.renew() && choice.pick()) {
            return choice.address(connection);
        }
        connection.name = choice.upstream_name;
        NGX_BUSY as ngx_int_t
    };
    // SAFETY: nginx calls it with what `init` has set.
    unsafe { with(connection, data, NGX_ERROR as ngx_int_t, get) }
}

unsafe extern "C" fn free(
    connection: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    let free = |connection: &mut ngx_peer_connection_t, choice: &mut Choice| {
        let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
        let end = match failed {
            false => End::Good,
            // SAFETY: nginx closes the connection of a failed attempt after this.
            true if unsafe { is_stale(connection, choice.request) } => End::Stale,
            true => End::Failed,
        };
        if choice.finish(end) == Some(Failure::Disabled) {
            ngx::ngx_log_error!(
                NGX_LOG_WARN,
                connection.log,
                "upstream server temporarily disabled"
            );
        }
        connection.tries =
            if choice.list().is_single() { 0 } else { connection.tries.saturating_sub(1) };
        if failed && connection.tries == 0 && choice.may_go_on() && choice.renew() {
            connection.tries = choice.untried();
        }
    };
    // SAFETY: nginx calls it with what `init` has set.
    unsafe { with(connection, data, (), free) }
}

#[cfg(nginx_http_ssl)]
unsafe extern "C" fn set_session(
    connection: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    let set = |connection: &mut ngx_peer_connection_t, choice: &mut Choice| {
        let sessions = choice.live.sessions.borrow();
        // SAFETY: nginx calls it when it has set up TLS on the connection.
        let good = choice
            .server()
            .is_none_or(|server| unsafe { sessions.offer(server, connection.connection) });
        if good { NGX_OK as ngx_int_t } else { NGX_ERROR as ngx_int_t }
    };
    // SAFETY: nginx calls it with what `init` has set.
    unsafe { with(connection, data, NGX_ERROR as ngx_int_t, set) }
}

#[cfg(nginx_http_ssl)]
unsafe extern "C" fn save_session(connection: *mut ngx_peer_connection_t, data: *mut c_void) {
    let save = |connection: &mut ngx_peer_connection_t, choice: &mut Choice| {
        let gone = |(slot, generation)| !choice.live.upstream().slot(slot).is_current(generation);
        if let Some(server) = choice.server().filter(|&server| !gone(server)) {
            // SAFETY: nginx calls it when the handshake is over.
            unsafe { choice.live.sessions.borrow_mut().keep(server, connection.connection) };
        }
    };
    // SAFETY: nginx calls it with what `init` has set.
    unsafe { with(connection, data, (), save) }
}

impl Choice {
    fn list(&self) -> &Snapshot {
        // There is always one: `init` puts it there and nothing takes it out.
        &self.lists[self.lists.len() - 1]
    }

    /// The server in use, as TLS sessions name it.
    #[cfg(nginx_http_ssl)]
    fn server(&self) -> Option<(u64, u32)> {
        let attempt = self.current.as_ref()?;
        let record = self.list().record(attempt.server);
        Some((record.slot, record.generation))
    }

    /// Picks a server: a backup one if no other is usable.
    fn pick(&mut self) -> bool {
        let list = self.list();
        let mut found = None;
        for (backup, rotation) in [(false, &list.primary), (true, &list.backup)] {
            let turn = match (self.attempts, backup) {
                (0, false) => Turn::Primary,
                (0, true) => Turn::Backup,
                _ => Turn::Retry,
            };
            let ticket = || self.live.ticket(turn);
            let take = |server| {
                found = self.connect(server);
                found.is_some()
            };
            if rotation.pick(ticket, take).is_some() {
                break;
            }
        }
        self.current = found;
        if let Some(attempt) = &self.current {
            self.tried.add(attempt.server);
            self.attempts += 1;
        }
        self.current.is_some()
    }

    /// Counts a connection to the server if it may be asked now.
    fn connect(&self, server: u32) -> Option<Attempt> {
        let (list, live) = (self.list(), &self.live);
        // nginx lets a request try the only server again where a kept connection was closed.
        if self.tried.has(server) && !list.is_single() {
            return None;
        }
        let record = list.record(server);
        let (slot, parameters) = (live.upstream().slot(record.slot), record.parameters());
        let connections = slot.connections(record.generation)?;
        if parameters.max_conns != 0 && connections >= parameters.max_conns {
            live.book()?.reclaim(ngx_time(), cycle::is_alive);
            return None;
        }
        if !list.is_single() && !slot.admits(record.generation, &parameters, ngx_time()) {
            return None;
        }
        let held = live.book()?.connect(record.slot, record.generation, parameters.max_conns)?;
        Some(Attempt { server, _connection: held })
    }

    /// Tells nginx where the server is.
    fn address(&self, connection: &mut ngx_peer_connection_t) -> ngx_int_t {
        let Some(attempt) = &self.current else {
            return NGX_ERROR as ngx_int_t;
        };
        let (block, record) = (self.list().block(), self.list().record(attempt.server));
        let (name, sockaddr) = (block.name(record), block.sockaddr(record));
        let name = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
        // SAFETY: the request's pool lives as long as the request, and so do the lists.
        let Some(name) = (unsafe { pool::copy((*self.request).pool, name) }) else {
            return NGX_ERROR as ngx_int_t;
        };
        connection.name = name.as_ptr();
        connection.sockaddr = sockaddr.as_ptr().cast_mut().cast();
        connection.socklen = sockaddr.len() as u32;
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
    fn finish(&mut self, end: End) -> Option<Failure> {
        let attempt = self.current.take()?;
        if matches!(end, End::Stale) {
            self.tried.remove(attempt.server);
        }
        let list = self.list();
        let record = list.record(attempt.server);
        if list.is_single() {
            return None;
        }
        let slot = self.live.upstream().slot(record.slot);
        match end {
            End::Good => slot.succeeded(record.generation),
            End::Stale => {}
            End::Failed => {
                return Some(slot.failed(record.generation, &record.parameters(), ngx_time()));
            }
        }
        None
    }

    /// How many servers of the list the request has not tried.
    fn untried(&self) -> usize {
        let list = self.list();
        let usable = list.primary.servers().chain(list.backup.servers());
        usable.filter(|&server| !self.tried.has(server)).count()
    }

    /// Whether `proxy_next_upstream_tries` allows another server.
    fn may_go_on(&self) -> bool {
        // SAFETY: nginx sets the upstream's configuration before it calls `peer.init`.
        let limit = unsafe { (*(*(*self.request).upstream).conf).next_upstream_tries };
        limit == 0 || self.attempts < limit
    }

    /// Goes on with the list in force, if it is another than the one in use. Servers that stand
    /// in both stay tried.
    fn renew(&mut self) -> bool {
        let newest = self.live.snapshot();
        let last = self.list();
        if newest.published == last.published {
            return false;
        }
        let key = |record: &crate::shm::block::Record| (record.slot, record.generation);
        let records = (0..).zip(last.block().records());
        let tried: Vec<_> = records
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
        self.lists.push(newest);
        true
    }
}
