//! Handlers of nginx's request phases.

use nginx_sys::{
    NGX_ERROR, NGX_OK, ngx_array_push, ngx_conf_t, ngx_http_conf_ctx_t, ngx_http_core_main_conf_t,
    ngx_http_core_module, ngx_http_handler_pt, ngx_http_phases_NGX_HTTP_PREACCESS_PHASE, ngx_int_t,
};

/// Has `handler` called for each request and subrequest, before access is checked and content
/// made.
///
/// # Safety
///
/// Called from `postconfiguration`, with its argument.
pub unsafe fn add_preaccess(cf: *mut ngx_conf_t, handler: ngx_http_handler_pt) -> ngx_int_t {
    // SAFETY: inside `http {}` the context is http's, and the core module has made its arrays of
    // handlers before it calls this.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        let core = (*(*context).main_conf.add(ngx_http_core_module.ctx_index))
            .cast::<ngx_http_core_main_conf_t>();
        let phase = ngx_http_phases_NGX_HTTP_PREACCESS_PHASE as usize;
        let handlers = &raw mut (*core).phases[phase].handlers;
        match ngx_array_push(handlers).cast::<ngx_http_handler_pt>().as_mut() {
            Some(place) => *place = handler,
            None => return NGX_ERROR as ngx_int_t,
        }
    }
    NGX_OK as ngx_int_t
}
