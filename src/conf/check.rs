//! The directives of checks.

use std::ffi::{CStr, c_char, c_void};
use std::rc::Rc;

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_ANY, NGX_CONF_TAKE1, NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET,
    NGX_HTTP_SRV_CONF_OFFSET, NGX_HTTP_UPS_CONF, NGX_LOG_NOTICE, ngx_command_t, ngx_conf_t,
    ngx_http_upstream_srv_conf_t,
};

use super::directives::{command, handle};
use super::settings::{Main, Server};
use crate::grammar::parameter::number;
use crate::health::asked::{AskError, Asked, Base};
use crate::module::hooks::{blocks, refuse, warn};
use crate::ngx::conf::{Directive, OK};
use crate::upstream::Checks;

/// Checks at a time of one worker, where no `check_concurrency` says otherwise.
pub const CONCURRENCY: u32 = 128;

/// The largest `check_concurrency`.
const CONCURRENCY_MAX: u32 = 65_535;

/// What may be posted, too: see `grammar::check`.
const GRAMMAR: [&CStr; 8] = [
    c"check_http_send",
    c"check_http_expect_alive",
    c"check_http_expect_body",
    c"check_keepalive_requests",
    c"check_fastcgi_param",
    c"check_ssl_verify",
    c"check_ssl_name",
    c"check_fail_open",
];

/// What names a file.
const FILES: [&CStr; 3] =
    [c"check_ssl_trusted_certificate", c"check_ssl_certificate", c"check_ssl_certificate_key"];

/// How many commands [`commands`] makes.
pub const COUNT: usize = 3 + GRAMMAR.len() + FILES.len();

/// The commands for the module's table.
pub const fn commands() -> [ngx_command_t; COUNT] {
    const UPSTREAM: u32 = NGX_HTTP_UPS_CONF;
    const HTTP: u32 = NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1;
    let mut commands = [ngx_command_t::empty(); COUNT];
    commands[0] = command(c"check", UPSTREAM | NGX_CONF_ANY, check, NGX_HTTP_SRV_CONF_OFFSET);
    commands[1] = command(c"check_concurrency", HTTP, check_concurrency, NGX_HTTP_MAIN_CONF_OFFSET);
    commands[2] = command(c"check_shm_size", HTTP, check_shm_size, NGX_HTTP_MAIN_CONF_OFFSET);
    let mut i = 0;
    while i < GRAMMAR.len() {
        let type_ = UPSTREAM | NGX_CONF_1MORE;
        commands[3 + i] = command(GRAMMAR[i], type_, check, NGX_HTTP_SRV_CONF_OFFSET);
        i += 1;
    }
    let mut i = 0;
    while i < FILES.len() {
        let type_ = UPSTREAM | NGX_CONF_TAKE1;
        commands[3 + GRAMMAR.len() + i] = command(FILES[i], type_, file, NGX_HTTP_SRV_CONF_OFFSET);
        i += 1;
    }
    commands
}

unsafe extern "C" fn check(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, server: &Server, words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match server.check.borrow_mut().configure(&words) {
            Ok(repeated) => {
                repeated.iter().for_each(|repeated| directive.warn(repeated));
                OK
            }
            Err(error) => directive.error(error),
        }
    };
    // SAFETY: the command names the settings of an upstream.
    unsafe { handle(cf, conf, handler) }
}

unsafe extern "C" fn file(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, server: &Server, words: &[String]| {
        let (name, path) = (&words[0], &words[1]);
        let mut files = server.check_files.borrow_mut();
        let to = match name.as_str() {
            "check_ssl_trusted_certificate" => &mut files.trusted,
            "check_ssl_certificate" => &mut files.certificate,
            _ => &mut files.key,
        };
        if path.is_empty() {
            return directive.error(format_args!("empty path in \"{name}\", expected a file"));
        }
        match to.replace(path.clone()) {
            None => OK,
            Some(_) => {
                directive.error(format_args!("\"{name}\" directive is duplicate, expected it once"))
            }
        }
    };
    // SAFETY: the command names the settings of an upstream.
    unsafe { handle(cf, conf, handler) }
}

unsafe extern "C" fn check_concurrency(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, main: &Main, words: &[String]| {
        let value = &words[1];
        let Some(most) = number(value, CONCURRENCY_MAX).filter(|&most| most > 0) else {
            return directive.error(format_args!(
                "invalid number \"{value}\" in \"check_concurrency\", expected 1 to {CONCURRENCY_MAX}"
            ));
        };
        match main.check_concurrency.replace(Some(most)) {
            None => OK,
            Some(_) => {
                directive.error("\"check_concurrency\" directive is duplicate, expected it once")
            }
        }
    };
    // SAFETY: the command names the settings of `http {}`.
    unsafe { handle(cf, conf, handler) }
}

unsafe extern "C" fn check_shm_size(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, _main: &Main, _words: &[String]| {
        ngx::ngx_conf_log_error!(
            NGX_LOG_NOTICE,
            directive.as_ptr(),
            "\"check_shm_size\" has no effect: the size of shared memory is that of \"upsync_zone\""
        );
        OK
    };
    // SAFETY: the command names the settings of `http {}`.
    unsafe { handle(cf, conf, handler) }
}

/// Makes the checks of all blocks ready, when the configuration has been read.
///
/// # Safety
///
/// Called from `init_main_conf` with its argument and the settings of the `http {}` just read.
pub unsafe fn finish(cf: *mut ngx_conf_t, main: &Main) -> bool {
    for (upstream, server) in blocks(main) {
        // SAFETY: the caller's word.
        let made = unsafe { checks(cf, upstream, server) };
        match made {
            Ok(checks) => drop(server.checks.set(checks)),
            Err(reason) => {
                // SAFETY: the caller's word.
                unsafe { refuse(cf, upstream, &reason) };
                return false;
            }
        }
    }
    let _ = main.posted_checks.set(of_other_names(main));
    true
}

/// # Safety
///
/// As of [`finish`].
unsafe fn checks(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    server: &Server,
) -> Result<Checks, String> {
    let text = |error: AskError| error.to_string();
    let files = server.check_files.borrow();
    if files.certificate.is_some() != files.key.is_some() {
        return Err(PAIR.to_owned());
    }
    // SAFETY: the caller's word.
    let base = unsafe { Base::configured(cf, &files) }.map_err(text)?;
    let check = server.check.take().finish().unwrap_or_else(|alone| {
        // SAFETY: the caller's word.
        unsafe { warn(cf, upstream, &alone.to_string()) };
        None
    });
    // SAFETY: an upstream of a block has its name.
    let host = unsafe { (*upstream).host.to_string() };
    let asked = match check {
        // SAFETY: the caller's word.
        Some(check) => Some(unsafe { Asked::configured(cf, check, &base, &host) }.map_err(text)?),
        None => None,
    };
    Ok(Checks { asked: asked.map(Rc::new), base, host })
}

const PAIR: &str = "\"check_ssl_certificate\" and \"check_ssl_certificate_key\" go together, expected both or none";

/// The checks of lists that are posted: of a name that nginx.conf has, as its block says; of another,
/// as the template does, or else the first block that takes its list by a variable.
pub fn of_posted(main: &Main, block: Option<&Server>) -> Checks {
    let checks = match block {
        Some(block) => block.checks.get(),
        None => main.posted_checks.get(),
    };
    checks.cloned().unwrap_or_default()
}

/// Those for names that nginx.conf does not have. Found once: later nginx's array of upstreams has
/// names that come and go.
fn of_other_names(main: &Main) -> Checks {
    // SAFETY: the template lives as the settings do.
    let template =
        main.template.get().and_then(|template| Server::of(unsafe { template.as_ref() }));
    let by_variable = || {
        let mut blocks = main.upstreams().map(|(_, server)| server);
        blocks.find(|server| server.name.get().is_some() && server.has_check())
    };
    let found = template.filter(|server| server.has_check()).or_else(by_variable).or(template);
    found.and_then(|server| server.checks.get()).cloned().unwrap_or_default()
}
