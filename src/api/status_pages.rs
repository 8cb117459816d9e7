//! The content handlers of `check_status` and `upsync_status`.

use std::ffi::{c_char, c_void};

use nginx_sys::{
    NGINX_VERSION, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR,
    NGX_HTTP_NOT_ALLOWED, NGX_LOG_INFO, NGX_OK, ngx_command_t, ngx_conf_t,
    ngx_http_discard_request_body, ngx_http_request_t, ngx_int_t, ngx_uint_t,
};

use super::answer::Answer;
use super::check_status::{self, Format, Query};
use super::send::send;
use super::shown;
use super::status::{Status, Upstream, Worker, json, page, prometheus};
use crate::conf::settings::{Location, Main};
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{Directive, ERROR, OK};
use crate::ngx::cycle;
use crate::shm::ledger;
use crate::shm::publish::now;

const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// What `upsync_status` may be.
const STATUS_FORMATS: [Format; 3] = [Format::Html, Format::Json, Format::Prometheus];

/// The `check_status` directive.
///
/// # Safety
///
/// nginx calls it for the directive in a `server {}` or `location {}`.
pub unsafe extern "C" fn check_status(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: the command names the settings of a location.
    unsafe { page_directive(cf, conf, &Format::ALL, answer_check_status) }
}

/// The `upsync_status` directive.
///
/// # Safety
///
/// nginx calls it for the directive in a `server {}` or `location {}`.
pub unsafe extern "C" fn upsync_status(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: the command names the settings of a location.
    unsafe { page_directive(cf, conf, &STATUS_FORMATS, answer_status) }
}

type Handler = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;

unsafe fn page_directive(
    cf: *mut ngx_conf_t,
    conf: *mut c_void,
    formats: &[Format],
    handler: Handler,
) -> *mut c_char {
    // SAFETY: the callers' word.
    guarded(ERROR, || unsafe {
        let (Some(mut directive), Some(location)) =
            (Directive::new(cf), conf.cast::<Location>().as_ref())
        else {
            return ERROR;
        };
        let words = directive.words();
        let (name, value) = (&words[0], words.get(1));
        let named = value.map(|value| Format::from_name(value.as_bytes()));
        let format = match named {
            None => Format::Html,
            Some(Some(format)) if formats.contains(&format) => format,
            Some(_) => {
                let expected: Vec<&str> = formats.iter().map(|format| format.name()).collect();
                return directive.error(format_args!(
                    "invalid format \"{}\" in \"{name}\", expected {}",
                    value.map_or("", String::as_str),
                    expected.join(", ")
                ));
            }
        };
        if location.format.replace(Some(format)).is_some() {
            return directive.error(format_args!(
                "\"{name}\" directive is duplicate, expected one status page in a location"
            ));
        }
        location.answer_by(cf, Some(handler));
        OK
    })
}

unsafe extern "C" fn answer_check_status(request: *mut ngx_http_request_t) -> ngx_int_t {
    let page = |main: &Main, format: Format, query: &Query| {
        let (kind, body) = check_status::answer(&status(main, None), format, query);
        Answer::page(kind, body)
    };
    // SAFETY: nginx calls content handlers with a request whose head has been read.
    unsafe { answer(request, page) }
}

unsafe extern "C" fn answer_status(request: *mut ngx_http_request_t) -> ngx_int_t {
    let page = |main: &Main, format: Format, query: &Query| {
        let asked = query.format.filter(|format| STATUS_FORMATS.contains(format));
        let format = asked.unwrap_or(format);
        let status = || status(main, query.upstream.as_deref());
        let (kind, body) = match format {
            Format::Json => ("application/json", json::render(&status())),
            Format::Prometheus => (prometheus::CONTENT_TYPE, prometheus::render(&status())),
            _ => ("text/html; charset=utf-8", page::page().to_owned()),
        };
        let policy = (format == Format::Html).then(page::policy);
        Answer { policy, ..Answer::page(kind, body) }
    };
    // SAFETY: nginx calls content handlers with a request whose head has been read.
    unsafe { answer(request, page) }
}

/// # Safety
///
/// nginx calls a content handler with `request`.
unsafe fn answer(
    request: *mut ngx_http_request_t,
    page: impl FnOnce(&Main, Format, &Query) -> Answer,
) -> ngx_int_t {
    // SAFETY: the caller's word.
    guarded(FAILED, || unsafe {
        if (*request).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as ngx_uint_t == 0 {
            return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
        }
        let discarded = ngx_http_discard_request_body(request);
        if discarded != NGX_OK as ngx_int_t {
            return discarded;
        }
        let (Some(main), Some(location)) =
            (Main::of_request(request), Location::of_request(request))
        else {
            return FAILED;
        };
        let (query, complaints) = Query::parse((*request).args.as_bytes());
        for complaint in complaints {
            ngx::ngx_log_error!(NGX_LOG_INFO, (*(*request).connection).log, "upsync: {complaint}");
        }
        send(request, &page(main, location.format.get().unwrap_or_default(), &query))
    })
}

/// Everything as of now, of all upstreams or of one.
fn status(main: &Main, only: Option<&str>) -> Status {
    if let Some(names) = main.names.get() {
        names.refresh();
    }
    let is_wanted =
        |upstream: &Upstream| only.is_none_or(|only| upstream.name.eq_ignore_ascii_case(only));
    let zone = main.zone.get();
    Status {
        module: env!("CARGO_PKG_VERSION"),
        nginx: version(),
        now: now(),
        since: main.since.get(),
        generation: zone.map_or(1, |zone| zone.cycle()),
        pages: zone.map_or((0, 0), |zone| zone.pages()),
        workers: (0..cycle::workers())
            .map(|number| {
                let pid = zone.and_then(|zone| ledger::process_of(&zone, number)).unwrap_or(0);
                Worker { number, pid }
            })
            .collect(),
        upstreams: shown::all(main).iter().map(|shown| shown.status()).filter(is_wanted).collect(),
    }
}

fn version() -> String {
    NGINX_VERSION.to_string_lossy().into_owned()
}
