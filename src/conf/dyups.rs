//! The directives of lists that are posted.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use nginx_sys::{
    NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET,
    NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF_OFFSET, NGX_HTTP_UPS_CONF,
    NGX_OK, ngx_array_t, ngx_command_t, ngx_conf_t, ngx_http_compile_complex_value,
    ngx_http_compile_complex_value_t, ngx_http_complex_value_t, ngx_str_t,
};

use super::balancer;
use super::directives::{add_placeholder, command, handle};
use super::settings::{Location, Main, Server};
use crate::api::dyups::answer;
use crate::api::route::Access;
use crate::ngx::conf::{Directive, ERROR, OK};
use crate::ngx::pool;

/// How many commands [`commands`] makes.
pub const COUNT: usize = 4 + OBSOLETE.len();

/// Directives of `ngx_http_dyups_module` that have nothing to set here, and why.
const OBSOLETE: [(&std::ffi::CStr, &str); 5] = [
    (c"dyups_shm_zone_size", "the size of shared memory is that of \"upsync_zone\""),
    (c"dyups_read_msg_timeout", "all workers see a change at once"),
    (c"dyups_trylock", "nobody waits for a lock"),
    (c"dyups_read_msg_log", "no messages pass between workers"),
    (c"dyups_upstream_conf", "lists outlive a restart by \"dyups_state_path\""),
];

/// Why they do not go together.
pub const WITH_UPSYNC: &str = "\"dyups\" and \"upsync\" are in the same upstream, expected one of them: a list is posted or follows its source";

/// The commands for the module's table.
pub const fn commands() -> [ngx_command_t; COUNT] {
    const HTTP: u32 = NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1;
    let mut commands = [ngx_command_t::empty(); COUNT];
    commands[0] = command(
        c"dyups_interface",
        NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS | NGX_CONF_TAKE1,
        dyups_interface,
        NGX_HTTP_LOC_CONF_OFFSET,
    );
    commands[1] =
        command(c"dyups", NGX_HTTP_UPS_CONF | NGX_CONF_TAKE1, dyups, NGX_HTTP_SRV_CONF_OFFSET);
    commands[2] = command(c"dyups_upstream", HTTP, dyups_upstream, NGX_HTTP_MAIN_CONF_OFFSET);
    commands[3] = command(c"dyups_state_path", HTTP, dyups_state_path, NGX_HTTP_MAIN_CONF_OFFSET);
    let mut i = 0;
    while i < OBSOLETE.len() {
        commands[4 + i] = command(OBSOLETE[i].0, HTTP, obsolete, NGX_HTTP_MAIN_CONF_OFFSET);
        i += 1;
    }
    commands
}

unsafe extern "C" fn dyups_interface(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, location: &Location, words: &[String]| {
        let access = match words.get(1).map(String::as_str) {
            None => Access::Full,
            Some("read") => Access::ReadOnly,
            Some(other) => {
                return directive.error(format_args!(
                    "invalid parameter \"{other}\" in \"dyups_interface\", expected \"read\" or none"
                ));
            }
        };
        if location.interface.replace(Some(access)).is_some() {
            return directive.error(
                "\"dyups_interface\" directive is duplicate, expected it once in a location",
            );
        }
        // SAFETY: the directive stands in a `location {}`, whose settings these are.
        unsafe {
            location.answer_by(cf, Some(answer));
            want_posting(cf)
        }
    };
    // SAFETY: the command names the settings of a location.
    unsafe { handle(cf, conf, handler) }
}

/// # Safety
///
/// `cf` is what nginx hands to the handler of a directive in `http {}`.
unsafe fn want_posting(cf: *mut ngx_conf_t) -> *mut c_char {
    // SAFETY: the caller's word.
    unsafe { Main::of_conf(cf) }.map_or(ERROR, |main| {
        main.posting.set(true);
        OK
    })
}

unsafe extern "C" fn dyups(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, server: &Server, words: &[String]| {
        if server.name.get().is_some() {
            return directive
                .error("\"dyups\" directive is duplicate, expected it once in an upstream");
        }
        if server.upsync.get().is_some() {
            return directive.error(WITH_UPSYNC);
        }
        if !words[1].contains('$') {
            let value = &words[1];
            return directive.error(format_args!(
                "no variable in \"{value}\" of \"dyups\", expected one such as $host"
            ));
        }
        // SAFETY: `dyups` stands in an `upstream {}`, whose settings these are.
        unsafe {
            let Some(value) = compile(cf) else {
                return ERROR;
            };
            server.name.set(Some(value));
            let upstream = balancer::current_upstream(cf);
            if add_placeholder(cf, &mut *upstream).is_none() {
                return ERROR;
            }
            want_posting(cf)
        }
    };
    // SAFETY: the command names the settings of an upstream.
    unsafe { handle(cf, conf, handler) }
}

/// The first argument of the directive being read, as a value with variables.
///
/// # Safety
///
/// `cf` is what nginx hands to the handler of a directive that has an argument.
pub unsafe fn compile(cf: *mut ngx_conf_t) -> Option<NonNull<ngx_http_complex_value_t>> {
    // SAFETY: nginx keeps the words of a directive in an array of strings; zeros are what it wants
    // of a request to compile and of its result before it is filled.
    unsafe {
        let words = (*cf).args.cast::<ngx_array_t>().as_ref()?.as_slice::<ngx_str_t>();
        let mut word = *words.get(1)?;
        let value = pool::copy((*cf).pool, std::mem::zeroed::<ngx_http_complex_value_t>())?;
        let mut compile: ngx_http_compile_complex_value_t = std::mem::zeroed();
        compile.cf = cf;
        compile.value = &mut word;
        compile.complex_value = value.as_ptr();
        (ngx_http_compile_complex_value(&mut compile) == NGX_OK as isize).then_some(value)
    }
}

unsafe extern "C" fn dyups_upstream(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, main: &Main, words: &[String]| {
        main.posting.set(true);
        match main.template_name.set(words[1].clone()) {
            Ok(()) => OK,
            Err(_) => {
                directive.error("\"dyups_upstream\" directive is duplicate, expected it once")
            }
        }
    };
    // SAFETY: the command names the settings of `http {}`.
    unsafe { handle(cf, conf, handler) }
}

unsafe extern "C" fn dyups_state_path(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, main: &Main, words: &[String]| {
        if words[1].is_empty() {
            return directive.error("empty path in \"dyups_state_path\", expected a folder");
        }
        let Some(path) = directive.full_path(&words[1]) else {
            return ERROR;
        };
        main.posting.set(true);
        match main.state_path.set(path) {
            Ok(()) => OK,
            Err(_) => {
                directive.error("\"dyups_state_path\" directive is duplicate, expected it once")
            }
        }
    };
    // SAFETY: the command names the settings of `http {}`.
    unsafe { handle(cf, conf, handler) }
}

unsafe extern "C" fn obsolete(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, _: &Main, words: &[String]| {
        let name = words[0].as_str();
        let why = OBSOLETE.iter().find(|(other, _)| other.to_bytes() == name.as_bytes());
        let why = why.map_or("", |(_, why)| why);
        directive.warn(format_args!("\"{name}\" has no effect: {why}"));
        OK
    };
    // SAFETY: the command names the settings of `http {}`.
    unsafe { handle(cf, conf, handler) }
}
