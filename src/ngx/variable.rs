//! nginx's variables by name.

use std::ptr::NonNull;

use nginx_sys::{
    ngx_hash_find, ngx_http_conf_ctx_t, ngx_http_core_main_conf_t, ngx_http_core_module,
    ngx_http_variable_t, ngx_http_variable_value_t, ngx_uint_t,
};

/// nginx's hash of a name in lower case: `ngx_hash_key()`.
pub fn hash(name: &[u8]) -> ngx_uint_t {
    name.iter().fold(0, |hash: ngx_uint_t, &byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}

/// Whether requests have a variable of this name, which is in lower case.
///
/// # Safety
///
/// `context` is the context of an `http {}` that has been read.
pub unsafe fn is_known(context: NonNull<ngx_http_conf_ctx_t>, name: &[u8]) -> bool {
    // SAFETY: the core module is in every nginx with http, and has made its hash of variables.
    unsafe {
        let main = (*context.as_ptr()).main_conf.add(ngx_http_core_module.ctx_index);
        let Some(core) = (*main).cast::<ngx_http_core_main_conf_t>().as_mut() else {
            return false;
        };
        let (key, start) = (hash(name), name.as_ptr().cast_mut());
        let found = ngx_hash_find(&mut core.variables_hash, key, start, name.len());
        let prefixes = core.prefix_variables.as_slice::<ngx_http_variable_t>();
        !found.is_null() || prefixes.iter().any(|prefix| name.starts_with(prefix.name.as_bytes()))
    }
}

/// Gives a variable a value, which its request's pool keeps.
///
/// # Safety
///
/// nginx has room for the value at `value`; so many bytes are at `data`.
pub unsafe fn set(value: *mut ngx_http_variable_value_t, data: NonNull<u8>, len: usize) {
    // SAFETY: the caller's word.
    unsafe {
        (*value).set_len(len as u32);
        (*value).set_valid(1);
        (*value).set_no_cacheable(1);
        (*value).set_not_found(0);
        (*value).data = data.as_ptr();
    }
}

/// Says that a variable has no value.
///
/// # Safety
///
/// nginx has room for the value at `value`.
pub unsafe fn set_not_found(value: *mut ngx_http_variable_value_t) {
    // SAFETY: the caller's word.
    unsafe { (*value).set_not_found(1) };
}
