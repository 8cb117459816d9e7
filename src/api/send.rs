//! Answers, sent by nginx.

use nginx_sys::{
    NGX_ERROR, NGX_OK, ngx_buf_t, ngx_chain_t, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_list_push, ngx_pcalloc, ngx_str_t, ngx_table_elt_t,
    ngx_uint_t,
};

use super::answer::Answer;
use crate::ngx::pool;
use crate::ngx::request::header_only;

/// Sends an answer as it is, instead of a page of nginx's own.
///
/// # Safety
///
/// `request` is a request whose answer has not begun.
pub unsafe fn send(request: *mut ngx_http_request_t, answer: &Answer) -> ngx_int_t {
    // SAFETY: the request is alive, and so is its pool; the buffer is memory of that pool.
    unsafe {
        let out = &mut (*request).headers_out;
        out.status = ngx_uint_t::from(answer.status);
        out.content_length_n = answer.body.len() as i64;
        if let Some(text) = answer.content_type {
            out.content_type = ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
            out.content_type_len = text.len();
        }
        let allow = answer.allow.map(|methods| ("Allow", methods.to_owned()));
        let keepalive = answer.keepalive.map(|number| ("X-Keepalive", number.to_string()));
        let policy = answer.policy.map(|policy| ("Content-Security-Policy", policy.to_owned()));
        for (name, value) in allow.into_iter().chain(keepalive).chain(policy) {
            if !add_field(request, name, &value) {
                return NGX_ERROR as ngx_int_t;
            }
        }
        let sent = ngx_http_send_header(request);
        if sent == NGX_ERROR as ngx_int_t || sent > NGX_OK as ngx_int_t || header_only(request) {
            return sent;
        }
        send_body(request, answer.body.as_bytes())
    }
}

unsafe fn add_field(request: *mut ngx_http_request_t, name: &'static str, value: &str) -> bool {
    // SAFETY: nginx has made the list of fields with the request; a field that is all zeros but
    // for its parts is what nginx's own modules push.
    unsafe {
        let Some(copy) = pool::copy_bytes((*request).pool, value.as_bytes()) else {
            return false;
        };
        let field = ngx_list_push(&raw mut (*request).headers_out.headers);
        let Some(field) = field.cast::<ngx_table_elt_t>().as_mut() else {
            return false;
        };
        *field = std::mem::zeroed();
        field.hash = 1;
        field.key = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
        field.value = ngx_str_t { len: value.len(), data: copy.as_ptr() };
        true
    }
}

unsafe fn send_body(request: *mut ngx_http_request_t, body: &[u8]) -> ngx_int_t {
    // SAFETY: as in `send`.
    unsafe {
        let buffer = ngx_pcalloc((*request).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        let (Some(buffer), Some(bytes)) =
            (buffer.as_mut(), pool::copy_bytes((*request).pool, body))
        else {
            return NGX_ERROR as ngx_int_t;
        };
        buffer.pos = bytes.as_ptr();
        buffer.last = bytes.as_ptr().add(body.len());
        let is_main = std::ptr::eq(request, (*request).main);
        buffer.set_memory(u32::from(!body.is_empty()));
        buffer.set_last_buf(u32::from(is_main));
        // nginx has no use for a buffer that is empty and says nothing.
        buffer.set_sync(u32::from(!is_main && body.is_empty()));
        buffer.set_last_in_chain(1);
        let mut chain = ngx_chain_t { buf: buffer, next: std::ptr::null_mut() };
        ngx_http_output_filter(request, &mut chain)
    }
}
