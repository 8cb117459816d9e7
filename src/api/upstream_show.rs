//! The content handler of `upstream_show`.

use std::ffi::{c_char, c_void};
use std::rc::Rc;

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED, NGX_OK,
    ngx_command_t, ngx_conf_t, ngx_http_discard_request_body, ngx_http_request_t,
    ngx_http_upstream_main_conf_t, ngx_http_upstream_module, ngx_http_upstream_srv_conf_t,
    ngx_int_t, ngx_uint_t,
};

use super::answer::{Answer, Dialect};
use super::send::send;
use super::show;
use crate::conf::initial::configured;
use crate::conf::settings::{Location, Main, Server};
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{ERROR, OK};
use crate::shm::block::Block;
use crate::upstream::names::Posted;

const TEXT: &str = "text/plain";

const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// The `upstream_show` directive.
///
/// # Safety
///
/// nginx calls it for the directive in a `location {}`.
pub unsafe extern "C" fn upstream_show(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: the command names the settings of a location.
    guarded(ERROR, || unsafe {
        (*conf.cast::<Location>()).answer_by(cf, Some(answer_show));
        OK
    })
}

unsafe extern "C" fn answer_show(request: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx calls content handlers with a request whose head has been read.
    guarded(FAILED, || unsafe {
        if (*request).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as ngx_uint_t == 0 {
            return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
        }
        let discarded = ngx_http_discard_request_body(request);
        if discarded != NGX_OK as ngx_int_t {
            return discarded;
        }
        let Some(main) = Main::of_request(request) else {
            return FAILED;
        };
        let text = show_text(main, upstreams(request), (*request).args.as_bytes());
        send(request, &Answer { content_type: Some(TEXT), ..Answer::shown(Dialect::Text, text) })
    })
}

fn show_text(main: &Main, upstreams: &[*mut ngx_http_upstream_srv_conf_t], name: &[u8]) -> String {
    // SAFETY: nginx's array holds pointers to upstreams that live as the configuration does, or
    // as long as this worker knows of their names.
    let mut upstreams = upstreams.iter().filter_map(|&upstream| unsafe { upstream.as_ref() });
    let name_of = |upstream: &ngx_http_upstream_srv_conf_t| upstream.host.to_string();
    if name.is_empty() {
        let all = upstreams.map(|upstream| (name_of(upstream), list(main, upstream)));
        let all: Vec<_> = all.collect();
        return show::all(all.iter().map(|(name, list)| (name.as_str(), list)));
    }
    match upstreams.find(|upstream| upstream.host.as_bytes().eq_ignore_ascii_case(name)) {
        Some(upstream) => show::one(&name_of(upstream), &list(main, upstream)),
        None => show::UNKNOWN.to_owned(),
    }
}

/// The list in force of an upstream, or its `server` lines if it has no other.
fn list(main: &Main, upstream: &ngx_http_upstream_srv_conf_t) -> Block {
    let server = Server::of(upstream);
    let live = match server.and_then(|server| server.live.get()) {
        Some(followed) => Some(Rc::clone(followed)),
        None => posted(main, upstream, server).map(|posted| Rc::clone(&posted.live)),
    };
    let block = live.and_then(|live| live.upstream().block()).map(|(_, block)| block);
    block.unwrap_or_else(|| Block::new(&configured(upstream)))
}

fn posted(
    main: &Main,
    upstream: &ngx_http_upstream_srv_conf_t,
    server: Option<&Server>,
) -> Option<Rc<Posted>> {
    if server.is_some_and(|server| server.is_copied_to(upstream)) {
        // SAFETY: a copy in nginx's array is one that this worker knows of.
        return Some(unsafe { Posted::of(upstream) });
    }
    main.names.get()?.find(upstream.host.as_bytes())
}

unsafe fn upstreams<'a>(
    request: *mut ngx_http_request_t,
) -> &'a [*mut ngx_http_upstream_srv_conf_t] {
    // SAFETY: a request has the settings of all http modules.
    unsafe {
        let main = *(*request).main_conf.add(ngx_http_upstream_module.ctx_index);
        main.cast::<ngx_http_upstream_main_conf_t>()
            .as_ref()
            .map_or(&[], |main| main.upstreams.as_slice())
    }
}
