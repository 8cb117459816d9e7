//! The content handler of `upstream_show`.

use std::ffi::{c_char, c_void};
use std::rc::Rc;

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED, NGX_OK,
    ngx_command_t, ngx_conf_t, ngx_http_discard_request_body, ngx_http_request_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_uint_t,
};

use super::answer::{Answer, Dialect};
use super::send::send;
use super::show;
use super::shown::run_time_names;
use crate::conf::initial::configured;
use crate::conf::settings::{Location, Main, Server};
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{ERROR, OK};
use crate::shm::block::Block;

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
        let text = show_text(main, (*request).args.as_bytes());
        send(request, &Answer { content_type: Some(TEXT), ..Answer::shown(Dialect::Text, text) })
    })
}

fn show_text(main: &Main, name: &[u8]) -> String {
    if let Some(names) = main.names.get() {
        names.refresh();
    }
    let mut upstreams = upstreams(main);
    if name.is_empty() {
        let all: Vec<_> = upstreams.map(|(name, list)| (name, list())).collect();
        return show::all(all.iter().map(|(name, list)| (name.as_str(), list)));
    }
    match upstreams.find(|(other, _)| other.as_bytes().eq_ignore_ascii_case(name)) {
        Some((name, list)) => show::one(&name, &list()),
        None => show::UNKNOWN.to_owned(),
    }
}

/// All upstreams: those of nginx.conf, then the names made at run time.
fn upstreams(main: &Main) -> impl Iterator<Item = (String, impl FnOnce() -> Block)> {
    let configured = main.all_upstreams().map(|nginx| (nginx.host.to_string(), Some(nginx)));
    let run_time = run_time_names(main).into_iter().map(|name| (name, None));
    configured.chain(run_time).map(move |(name, nginx)| {
        let of = name.clone();
        (name, move || list(main, &of, nginx))
    })
}

/// The list in force of an upstream, or its `server` lines if it has no other.
fn list(main: &Main, name: &str, nginx: Option<&ngx_http_upstream_srv_conf_t>) -> Block {
    let server = nginx.and_then(Server::of);
    let own = server.and_then(|server| server.live.get()).cloned();
    // A list that was posted goes before the `server` lines, but no source's.
    let follows = server.is_some_and(|server| server.upsync.get().is_some());
    let posted = || main.names.get()?.find(name.as_bytes());
    let posted = if follows { None } else { posted().map(|posted| Rc::clone(&posted.live)) };
    let live = posted.or(own);
    let block = live.and_then(|live| live.upstream().block()).map(|(_, block)| block);
    block.unwrap_or_else(|| Block::new(&nginx.map(configured).unwrap_or_default()))
}
