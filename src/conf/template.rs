//! The upstream that names made at run time are copies of.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};

use nginx_sys::{
    NGX_HTTP_MODULE, NGX_HTTP_UPSTREAM_CREATE, ngx_array_create, ngx_conf_t, ngx_http_max_module,
    ngx_http_module_t, ngx_http_upstream_add, ngx_http_upstream_main_conf_t,
    ngx_http_upstream_module, ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t,
    ngx_pcalloc, ngx_str_t, ngx_uint_t, ngx_url_t,
};

use super::directives::add_placeholder;
use super::settings::Main;
use crate::ngx::conf::Directive;

/// The name of the hidden template. No request can name it: nginx ends a host at a slash.
static HIDDEN: &CStr = c"/dyups";

/// Finds the upstream that `dyups_upstream` names, or makes a hidden one.
///
/// # Safety
///
/// Called from `init_main_conf` with its argument and the settings being read.
pub unsafe fn find(cf: *mut ngx_conf_t, main: &Main) -> bool {
    let found = match main.template_name.get() {
        Some(name) => match main.upstream(name) {
            Some((nginx, _)) => Ok(NonNull::from(nginx)),
            None => Err(format!(
                "no upstream \"{name}\" for \"dyups_upstream\", expected the name of an \"upstream\" block"
            )),
        },
        None if main.upstream(&HIDDEN.to_string_lossy()).is_some() => Err(format!(
            "the name \"{}\" of an upstream is taken, expected another",
            HIDDEN.to_string_lossy()
        )),
        // SAFETY: the caller's word.
        None => unsafe { hidden(cf) }.ok_or_else(|| "out of memory".to_owned()),
    };
    match found {
        Ok(template) => {
            main.template.set(Some(template));
            true
        }
        Err(message) => {
            // SAFETY: the caller's word.
            if let Some(mut directive) = unsafe { Directive::new(cf) } {
                directive.error(message);
            }
            false
        }
    }
}

/// An upstream as `upstream /dyups { server 0.0.0.0:0 down; }` would make it.
unsafe fn hidden(cf: *mut ngx_conf_t) -> Option<NonNull<ngx_http_upstream_srv_conf_t>> {
    // SAFETY: this is what `ngx_http_upstream()` does for a block, within the context of `http {}`.
    unsafe {
        let mut url: ngx_url_t = std::mem::zeroed();
        url.host = ngx_str_t { len: HIDDEN.count_bytes(), data: HIDDEN.as_ptr().cast_mut().cast() };
        url.set_no_resolve(1);
        url.set_no_port(1);
        let flags = NGX_HTTP_UPSTREAM_CREATE as ngx_uint_t;
        let upstream = ngx_http_upstream_add(cf, &mut url, flags).as_mut()?;
        let settings = create_settings(cf)?;
        *settings.add(ngx_http_upstream_module.ctx_index) = ptr::from_mut(upstream).cast();
        upstream.srv_conf = settings;
        upstream.servers = ngx_array_create((*cf).pool, 1, size_of::<ngx_http_upstream_server_t>());
        if upstream.servers.is_null() {
            return None;
        }
        add_placeholder(cf, upstream)?;
        Some(NonNull::from(upstream))
    }
}

/// Settings of all http modules for one upstream.
unsafe fn create_settings(cf: *mut ngx_conf_t) -> Option<*mut *mut c_void> {
    // SAFETY: nginx has counted its http modules, and the cycle's modules end with null.
    unsafe {
        let count = ngx_http_max_module;
        let settings =
            ngx_pcalloc((*cf).pool, size_of::<*mut c_void>() * count).cast::<*mut c_void>();
        let mut modules = (*(*cf).cycle).modules;
        while let Some(module) = (*modules).as_ref().filter(|_| !settings.is_null()) {
            modules = modules.add(1);
            if module.type_ != NGX_HTTP_MODULE as ngx_uint_t {
                continue;
            }
            if let Some(create) = (*module.ctx.cast::<ngx_http_module_t>()).create_srv_conf {
                let conf = create(cf);
                if conf.is_null() {
                    return None;
                }
                *settings.add(module.ctx_index) = conf;
            }
        }
        (!settings.is_null()).then_some(settings)
    }
}

/// Takes the hidden template out of nginx's list of upstreams, when nginx has initialised it.
///
/// # Safety
///
/// Called from `postconfiguration` with the settings of the `http {}` just read.
pub unsafe fn hide(main: &Main) {
    let Some(context) = main.context.get() else {
        return;
    };
    // SAFETY: the upstream module's settings live as the cycle does; pointers can be moved.
    unsafe {
        let settings = (*context.as_ptr()).main_conf.add(ngx_http_upstream_module.ctx_index);
        let all = &mut (*(*settings).cast::<ngx_http_upstream_main_conf_t>()).upstreams;
        let upstreams = std::slice::from_raw_parts_mut(
            all.elts.cast::<*mut ngx_http_upstream_srv_conf_t>(),
            all.nelts,
        );
        let is_hidden = |upstream: &*mut ngx_http_upstream_srv_conf_t| {
            ptr::eq((**upstream).host.data, HIDDEN.as_ptr().cast())
        };
        if let Some(place) = upstreams.iter().position(is_hidden) {
            upstreams.copy_within(place + 1.., place);
            all.nelts -= 1;
        }
    }
}
