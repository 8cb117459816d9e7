//! How an upstream gets our `peer.init`, and which list a request then gets.

use std::ffi::CStr;
use std::rc::Rc;

use nginx_sys::{
    NGX_ERROR, NGX_LOG_EMERG, NGX_LOG_WARN, NGX_OK, ngx_conf_t, ngx_http_complex_value,
    ngx_http_request_t, ngx_http_upstream_init_round_robin, ngx_http_upstream_srv_conf_t,
    ngx_int_t, ngx_str_t,
};

use crate::conf::chosen::chosen;
use crate::conf::settings::{Main, Server};
use crate::conf::{balancer, directives};
use crate::ngx::boundary::guarded;
use crate::ngx::interfaces;
use crate::upstream::names::Posted;
use crate::upstream::peer;

/// The `upstream {}` blocks as nginx has them, to be changed while the configuration is read.
pub fn blocks(main: &Main) -> impl Iterator<Item = (*mut ngx_http_upstream_srv_conf_t, &Server)> {
    main.pointers().iter().filter_map(|&upstream| {
        // SAFETY: nginx's array holds pointers to upstreams that live as the settings do.
        Some((upstream, Server::of(unsafe { &*upstream })?))
    })
}

/// Finds out how each block balances, and puts our `init_upstream` over what it has where requests
/// may go by lists of ours.
///
/// # Safety
///
/// Called from `init_main_conf` with its argument and the settings of the `http {}` just read.
pub unsafe fn hook_all(cf: *mut ngx_conf_t, main: &Main) -> bool {
    for (upstream, server) in blocks(main) {
        // SAFETY: the caller's word.
        let result = unsafe { choose(cf, upstream, server) };
        if let Err(reason) = result {
            // SAFETY: the caller's word.
            unsafe { refuse(cf, upstream, &reason) };
            return false;
        }
        if main.posting.get() || server.is_managed() {
            // SAFETY: the caller's word.
            unsafe { balancer::hook(upstream, server) };
        }
    }
    true
}

/// Says why nginx does not take the configuration.
///
/// # Safety
///
/// Called while `init_main_conf` or `postconfiguration` of ours runs, with its argument and one of
/// the upstreams of a block.
pub unsafe fn refuse(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    reason: &str,
) {
    // SAFETY: the caller's word.
    unsafe { tell(cf, upstream, NGX_LOG_EMERG, reason) };
}

/// Says what is odd about a block that nginx takes.
///
/// # Safety
///
/// As of [`refuse`].
pub unsafe fn warn(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    warning: &str,
) {
    // SAFETY: the caller's word.
    unsafe { tell(cf, upstream, NGX_LOG_WARN, warning) };
}

/// # Safety
///
/// As of [`refuse`].
unsafe fn tell(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    level: u32,
    message: &str,
) {
    // SAFETY: an upstream of a block has its name and where that stands; the caller's `cf` has a log.
    unsafe {
        let (name, line) = (&(*upstream).host, (*upstream).line);
        let file = CStr::from_ptr((*upstream).file_name.cast()).to_string_lossy();
        ngx::ngx_log_error!(
            level,
            (*cf).log,
            "upsync: upstream \"{name}\": {message} in {file}:{line}"
        );
    }
}

/// # Safety
///
/// As of [`hook_all`].
unsafe fn choose(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    server: &Server,
) -> Result<(), String> {
    let method = server.method.borrow();
    match chosen(server.lb.get(), method.as_ref(), interfaces::networks) {
        Ok(method) => drop(server.chosen.set(method)),
        Err(error) if server.is_managed() => return Err(error.to_string()),
        // nginx knows what it says, and lists that are posted take turns.
        Err(_) => {}
    }
    if !server.is_managed() {
        let has_more = !server.more.borrow().is_empty();
        return if has_more { Err(NOT_OURS.to_owned()) } else { Ok(()) };
    }
    if server.has_route.get() {
        return Err(NO_ROUTE.to_owned());
    }
    // SAFETY: the caller's word.
    match unsafe { balancer::foreign(cf, upstream, server) } {
        Some(module) => Err(foreign(&module)),
        None => Ok(()),
    }
}

const NOT_OURS: &str = "\"slow_start\" and \"drain\" in \"server\" are for upstreams with \"upsync\", \"upsync_lb\" or \"check\", expected one of these";

const NO_ROUTE: &str = "\"route\" in \"server\" cannot be used with \"upsync\", \"upsync_lb\" and \"check\", expected \"sticky\" by a server's address";

fn foreign(module: &str) -> String {
    format!(
        "a balancing directive of {module} stands in the block, expected one of nginx's own beside \"upsync\", \"upsync_lb\" and \"check\""
    )
}

/// An upstream that nginx has not initialised by way of ours has a balancer that we know nothing
/// of. Where requests go by our own that is an error; elsewhere a list that is posted takes the
/// place of all there is.
///
/// # Safety
///
/// Called from `postconfiguration` with its argument and the settings of the `http {}` just read.
pub unsafe fn all_are_ours(cf: *mut ngx_conf_t, main: &Main) -> bool {
    for (upstream, server) in blocks(main) {
        if server.initialized.get() {
            continue;
        }
        if server.is_managed() {
            // SAFETY: the caller's word.
            unsafe { refuse(cf, upstream, &foreign("another module")) };
            return false;
        }
        if main.posting.get() {
            // SAFETY: nginx's main thread alone reads the configuration.
            unsafe { take_over(upstream, server) };
        }
    }
    true
}

/// `init_upstream`: what was there before, else nginx's own round robin, so that whoever looks at
/// nginx's list finds one; then our `peer.init` if the upstream has a source or may get a list.
///
/// # Safety
///
/// nginx calls it for an upstream whose block has been read.
pub unsafe extern "C" fn init_upstream(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    // SAFETY: as above; the placeholder is only for nginx to have a list.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        let (Some(main), Some(server)) = (Main::of_conf(cf), Server::of(&*upstream)) else {
            return NGX_ERROR as ngx_int_t;
        };
        if server.upsync.get().is_none() {
            directives::remove_placeholder(&mut *upstream);
        }
        let result = match server.below.get() {
            Some(below) => below(cf, upstream),
            None => ngx_http_upstream_init_round_robin(cf, upstream),
        };
        if result == NGX_OK as ngx_int_t && (server.is_managed() || main.posting.get()) {
            take_over(upstream, server);
        }
        result
    })
}

/// Puts our `peer.init` over the one that is there.
unsafe fn take_over(upstream: *mut ngx_http_upstream_srv_conf_t, server: &Server) {
    server.own.set(upstream);
    // SAFETY: nginx's main thread alone reads the configuration.
    server.inner.set(unsafe { (*upstream).peer.init.replace(init_peer) });
    server.initialized.set(true);
}

/// `peer.init`: finds the list that the request is for.
unsafe extern "C" fn init_peer(
    request: *mut ngx_http_request_t,
    nginx: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    // SAFETY: nginx calls it with a request and the upstream it goes to.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        let Some(server) = Server::of(&*nginx) else {
            return NGX_ERROR as ngx_int_t;
        };
        if server.is_copied_to(&*nginx) {
            let posted = Posted::of(nginx);
            return peer::init(request, nginx, Rc::clone(&posted.live), Some(posted));
        }
        let follows = server.upsync.get().is_some();
        if !follows && let Some(posted) = posted(request, &*nginx, server) {
            let live = match server.name.get() {
                Some(_) if server.says_how() => posted.live_by(nginx, || server.balancing()),
                _ => Rc::clone(&posted.live),
            };
            return peer::init(request, nginx, live, Some(posted));
        }
        if let Some(live) = server.live.get() {
            return peer::init(request, nginx, Rc::clone(live), None);
        }
        server.inner.get().map_or(NGX_ERROR as ngx_int_t, |inner| inner(request, nginx))
    })
}

/// The list that was posted for the name that the request has, or else for the upstream itself.
unsafe fn posted(
    request: *mut ngx_http_request_t,
    nginx: &ngx_http_upstream_srv_conf_t,
    server: &Server,
) -> Option<Rc<Posted>> {
    // SAFETY: the caller's request.
    let names = unsafe { Main::of_request(request) }?.names.get()?;
    names.refresh();
    if let Some(value) = server.name.get() {
        let mut name = ngx_str_t::default();
        // SAFETY: the value was compiled with the configuration; nginx fills the name.
        let result = unsafe { ngx_http_complex_value(request, value.as_ptr(), &mut name) };
        if result == NGX_OK as ngx_int_t
            && let Some(posted) = names.find(name.as_bytes()).filter(|posted| posted.is_public())
        {
            return Some(posted);
        }
    }
    names.find(nginx.host.as_bytes())
}
