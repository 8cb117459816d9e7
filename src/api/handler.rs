//! Content handlers: nginx's side of the answers.

use std::ffi::{c_char, c_void};

use nginx_sys::{
    NGX_ERROR, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED,
    NGX_HTTP_OK, NGX_OK, ngx_buf_t, ngx_chain_t, ngx_command_t, ngx_conf_t, ngx_http_conf_ctx_t,
    ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_discard_request_body,
    ngx_http_output_filter, ngx_http_request_t, ngx_http_send_header,
    ngx_http_upstream_main_conf_t, ngx_http_upstream_module, ngx_http_upstream_srv_conf_t,
    ngx_int_t, ngx_pcalloc, ngx_str_t, ngx_uint_t,
};

use super::show;
use crate::conf::initial::configured;
use crate::conf::settings::Server;
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{ERROR, OK};
use crate::ngx::pool;
use crate::shm::block::Block;

const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// The `upstream_show` directive.
///
/// # Safety
///
/// nginx calls it for the directive in a `location {}`.
pub unsafe extern "C" fn upstream_show(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    _conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: inside `location {}` the core module's settings are those of the location.
    guarded(ERROR, || unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        let location = (*(*context).loc_conf.add(ngx_http_core_module.ctx_index))
            .cast::<ngx_http_core_loc_conf_t>();
        (*location).handler = Some(answer_show);
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
        let text = show_text(upstreams(request), (*request).args.as_bytes());
        send_text(request, &text)
    })
}

fn show_text(upstreams: &[*mut ngx_http_upstream_srv_conf_t], name: &[u8]) -> String {
    // SAFETY: nginx's array holds pointers to upstreams that live as the configuration does.
    let mut upstreams = upstreams.iter().filter_map(|&upstream| unsafe { upstream.as_ref() });
    let name_of = |upstream: &ngx_http_upstream_srv_conf_t| upstream.host.to_string();
    if name.is_empty() {
        let all: Vec<_> = upstreams.map(|upstream| (name_of(upstream), list(upstream))).collect();
        return show::all(all.iter().map(|(name, list)| (name.as_str(), list)));
    }
    match upstreams.find(|upstream| upstream.host.as_bytes().eq_ignore_ascii_case(name)) {
        Some(upstream) => show::one(&name_of(upstream), &list(upstream)),
        None => show::UNKNOWN.to_owned(),
    }
}

/// The list in force of an upstream, or its `server` lines if it has no other.
fn list(upstream: &ngx_http_upstream_srv_conf_t) -> Block {
    let live = Server::of(upstream).and_then(|server| server.live.get());
    let block = live.and_then(|live| live.upstream().block()).map(|(_, block)| block);
    block.unwrap_or_else(|| Block::new(&configured(upstream)))
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

/// Answers 200 with a text.
unsafe fn send_text(request: *mut ngx_http_request_t, text: &str) -> ngx_int_t {
    const TEXT: &str = "text/plain";
    // SAFETY: the request is alive, and so is its pool; the buffer is memory of that pool.
    unsafe {
        let out = &mut (*request).headers_out;
        out.status = NGX_HTTP_OK as ngx_uint_t;
        out.content_length_n = text.len() as i64;
        out.content_type = ngx_str_t { len: TEXT.len(), data: TEXT.as_ptr().cast_mut() };
        out.content_type_len = TEXT.len();
        let sent = ngx_http_send_header(request);
        if sent == NGX_ERROR as ngx_int_t
            || sent > NGX_OK as ngx_int_t
            || (*request).header_only() != 0
        {
            return sent;
        }
        let buffer = ngx_pcalloc((*request).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        let (Some(buffer), Some(bytes)) =
            (buffer.as_mut(), pool::copy_bytes((*request).pool, text.as_bytes()))
        else {
            return NGX_ERROR as ngx_int_t;
        };
        buffer.pos = bytes.as_ptr();
        buffer.last = bytes.as_ptr().add(text.len());
        buffer.set_memory(u32::from(!text.is_empty()));
        buffer.set_last_buf(u32::from(std::ptr::eq(request, (*request).main)));
        buffer.set_last_in_chain(1);
        let mut chain = ngx_chain_t { buf: buffer, next: std::ptr::null_mut() };
        ngx_http_output_filter(request, &mut chain)
    }
}
