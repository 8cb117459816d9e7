//! The peer hooks of nginx (`ngx_http_upstream.h`): which server a request is sent to.

use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use nginx_sys::{
    NGX_BUSY, NGX_ERROR, NGX_LOG_WARN, NGX_OK, NGX_PEER_FAILED, ngx_http_request_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_uint_t,
};

use super::choice::{Choice, End};
use super::live::Live;
use super::names::Posted;
use crate::ngx::boundary::guarded;
use crate::ngx::pool;
use crate::shm::slot::Failure;

/// What the hooks of one request have.
struct Hooked {
    choice: Choice,
    /// For messages where no server is left.
    upstream_name: *mut nginx_sys::ngx_str_t,
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
    // SAFETY: the choice goes with the request's pool; an upstream of nginx.conf outlives its
    // requests, another is pinned by the choice.
    let hooked = unsafe {
        Hooked {
            choice: Choice::new(request, live, posted),
            upstream_name: &raw mut (*upstream).host,
        }
    };
    let tries = hooked.choice.list().tries();
    // SAFETY: nginx calls `peer.init` after it has made `request.upstream`.
    unsafe {
        let Some(data) = pool::place((*request).pool, hooked) else {
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

/// What a request knows of the last upstream of ours that it went to; also when nginx has redirected it
/// since, as by `error_page`.
///
/// # Safety
///
/// `request` is a request of nginx, which outlives the result.
pub unsafe fn choice<'a>(request: *mut ngx_http_request_t) -> Option<&'a Choice> {
    // SAFETY: the caller's word; `init` puts it into the request's pool, which subrequests share.
    let mut all = unsafe { pool::placed::<Hooked>((*request).pool) };
    all.find(|hooked| ptr::eq(hooked.choice.request(), request)).map(|hooked| &hooked.choice)
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
    body: impl FnOnce(&mut ngx_peer_connection_t, &mut Hooked) -> T,
) -> T {
    // SAFETY: the caller's word; hooks of one request are not nested.
    guarded(failed, || unsafe { body(&mut *connection, &mut *data.cast::<Hooked>()) })
}

unsafe extern "C" fn get(connection: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    let get = |connection: &mut ngx_peer_connection_t, hooked: &mut Hooked| {
        let choice = &mut hooked.choice;
        connection.set_cached(0);
        connection.connection = ptr::null_mut();
        #[cfg(nginx_peer_sid)]
        if choice.pick_bound(connection) {
            return choice.address(connection);
        }
        // A list that has changed since the request came is asked only if the pinned one has no
        // server left: then the change must not be what fails the request.
        if choice.pick() {
            return choice.address(connection);
        }
        if choice.renew() && choice.pick() {
            // This one, and those of the newer list that are left.
            connection.tries = choice.tries_left();
            return choice.address(connection);
        }
        choice.note_none_left();
        connection.name = hooked.upstream_name;
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
    let free = |connection: &mut ngx_peer_connection_t, hooked: &mut Hooked| {
        let choice = &mut hooked.choice;
        let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
        let end = match failed {
            false => End::Good,
            // SAFETY: nginx closes the connection of a failed attempt after this.
            true if unsafe { is_stale(connection, choice.request()) } => End::Stale,
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
            connection.tries = choice.tries_left();
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
    let set = |connection: &mut ngx_peer_connection_t, hooked: &mut Hooked| {
        let choice = &hooked.choice;
        let sessions = choice.live().sessions.borrow();
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
    let save = |connection: &mut ngx_peer_connection_t, hooked: &mut Hooked| {
        let choice = &hooked.choice;
        let gone = |(slot, generation)| !choice.live().upstream().slot(slot).is_current(generation);
        if let Some(server) = choice.server().filter(|&server| !gone(server)) {
            // SAFETY: nginx calls it when the handshake is over.
            unsafe { choice.live().sessions.borrow_mut().keep(server, connection.connection) };
        }
    };
    // SAFETY: nginx calls it with what `init` has set.
    unsafe { with(connection, data, (), save) }
}
