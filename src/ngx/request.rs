//! What nginx keeps in bit-fields of a request, as C reads them: see `request.c`.

use nginx_sys::{ngx_http_request_t, ngx_uint_t};

unsafe extern "C" {
    fn upsync_header_only(request: *const ngx_http_request_t) -> ngx_uint_t;
}

/// Whether the answer has no body: to HEAD, with some codes, and in some subrequests.
///
/// # Safety
///
/// `request` is a request of nginx.
pub unsafe fn header_only(request: *const ngx_http_request_t) -> bool {
    // SAFETY: the caller's word.
    unsafe { upsync_header_only(request) != 0 }
}
