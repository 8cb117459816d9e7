//! Variables that say which list a request went by, for logs.

use std::ffi::CStr;

use nginx_sys::{
    NGX_ERROR, NGX_HTTP_VAR_NOCACHEABLE, NGX_OK, ngx_conf_t, ngx_http_add_variable,
    ngx_http_get_variable_pt, ngx_http_request_t, ngx_http_variable_value_t, ngx_int_t, ngx_str_t,
    ngx_uint_t,
};

use crate::ngx::boundary::guarded;
use crate::ngx::{pool, variable};
use crate::shm::directory::Origin;
use crate::upstream::choice::Choice;
use crate::upstream::peer;

/// Their names and what gives their values.
const VARIABLES: [(&CStr, ngx_http_get_variable_pt); 3] = [
    (c"upsync_upstream", Some(upstream)),
    (c"upsync_source", Some(source)),
    (c"upsync_reason", Some(reason)),
];

/// Makes them known.
///
/// # Safety
///
/// Called from `preconfiguration`, with its argument.
pub unsafe fn add(cf: *mut ngx_conf_t) -> bool {
    VARIABLES.into_iter().all(|(name, get)| {
        let mut name = ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() };
        // SAFETY: the caller's word; nginx copies the name.
        match unsafe {
            ngx_http_add_variable(cf, &mut name, NGX_HTTP_VAR_NOCACHEABLE as ngx_uint_t).as_mut()
        } {
            Some(variable) => {
                variable.get_handler = get;
                true
            }
            None => false,
        }
    })
}

unsafe extern "C" fn upstream(
    request: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    _data: usize,
) -> ngx_int_t {
    // SAFETY: nginx asks for variables of its requests.
    unsafe { give(request, value, |choice| choice.live().checks().host.clone()) }
}

unsafe extern "C" fn source(
    request: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    _data: usize,
) -> ngx_int_t {
    let source = |choice: &Choice| match choice.live().upstream().origin() {
        Origin::Config => "config".to_owned(),
        Origin::Source => "consul".to_owned(),
        Origin::Api => "api".to_owned(),
    };
    // SAFETY: as above.
    unsafe { give(request, value, source) }
}

unsafe extern "C" fn reason(
    request: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    _data: usize,
) -> ngx_int_t {
    // SAFETY: as above.
    unsafe { give(request, value, |choice| choice.passed().to_string()) }
}

/// Gives a text about the choice of a request as a variable's value; none if it made none, or the
/// text is empty.
///
/// # Safety
///
/// nginx asks for a variable of `request` and has room for its value.
unsafe fn give(
    request: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    text: impl FnOnce(&Choice) -> String,
) -> ngx_int_t {
    // SAFETY: the caller's word; what was chosen is in the request's pool.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        let text = peer::choice(request).map(text).unwrap_or_default();
        if text.is_empty() {
            variable::set_not_found(value);
            return NGX_OK as ngx_int_t;
        }
        let Some(data) = pool::copy_bytes((*request).pool, text.as_bytes()) else {
            return NGX_ERROR as ngx_int_t;
        };
        variable::set(value, data, text.len());
        NGX_OK as ngx_int_t
    })
}
