//! The content handler of `dyups_interface`.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::rc::Rc;

use nginx_sys::{
    NGX_DONE, NGX_HTTP_DELETE, NGX_HTTP_GET, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_PATCH,
    NGX_HTTP_POST, NGX_HTTP_PUT, NGX_HTTP_SPECIAL_RESPONSE, NGX_LOG_ERR, NGX_OK, ngx_buf_t,
    ngx_chain_t, ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_discard_request_body,
    ngx_http_finalize_request, ngx_http_read_client_request_body, ngx_http_request_t, ngx_int_t,
    ngx_list_part_t, ngx_table_elt_t,
};

use super::answer::{Answer, Dialect};
use super::desk::Desk;
use super::job::{Bytes, Job, Kept};
use super::route::{Access, Method, Read, Route, route};
use super::send::send;
use super::shown::{self, Shown};
use super::slardar::StatusFacts;
use super::{json, slardar, text};
use crate::conf::settings::{Location, Main};
use crate::ngx::boundary::guarded;
use crate::ngx::cycle;
use crate::state::Folder;

const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// The content handler.
///
/// # Safety
///
/// nginx calls it with a request whose head has been read.
pub unsafe extern "C" fn answer(request: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: the caller's word.
    guarded(FAILED, || unsafe {
        let Some(main) = Main::of_request(request) else {
            return FAILED;
        };
        match asked(request) {
            Ok(Route::Write(_)) => {
                let read = ngx_http_read_client_request_body(request, Some(on_body));
                if read >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
                    read
                } else {
                    NGX_DONE as ngx_int_t
                }
            }
            Ok(Route::Read(read)) => answer_now(request, || show(main, &read, dialect(request))),
            Err(answer) => answer_now(request, || answer),
        }
    })
}

unsafe fn answer_now(
    request: *mut ngx_http_request_t,
    answer: impl FnOnce() -> Answer,
) -> ngx_int_t {
    // SAFETY: the caller has a request whose head has been read.
    unsafe {
        let discarded = ngx_http_discard_request_body(request);
        if discarded != NGX_OK as ngx_int_t {
            return discarded;
        }
        send(request, &answer())
    }
}

unsafe extern "C" fn on_body(request: *mut ngx_http_request_t) {
    // SAFETY: nginx calls it with the request that `answer` was called with, its body read. The
    // count that it took for this goes with `ngx_http_finalize_request`.
    guarded((), || unsafe {
        if let Err(answer) = begin(request) {
            ngx_http_finalize_request(request, send(request, &answer));
        }
    });
}

/// Begins a change, or says why not.
unsafe fn begin(request: *mut ngx_http_request_t) -> Result<(), Answer> {
    // SAFETY: the caller has a request whose body has been read.
    unsafe {
        let dialect = dialect(request);
        let failed = || Answer::failed(dialect);
        let Route::Write(write) = asked(request)? else {
            return Err(failed());
        };
        let body = body(request).ok_or_else(|| Answer::unreadable_body(dialect))?;
        if write.has_body() && body.is_empty() {
            return Err(Answer::no_content(dialect));
        }
        let main = Main::of_request(request).ok_or_else(failed)?;
        let desk = desk(main).ok_or_else(failed)?;
        let kept = main.state_path.get().map(|path| Kept {
            folder: Folder::open(path.as_ref()),
            is_other: cycle::is_other_master,
        });
        let content_type = content_type(request).to_vec();
        let job = Job { write, body, content_type, dialect, kept };
        let client = (*(*request).connection).addr_text.to_string();
        let request = NonNull::new(request).ok_or_else(failed)?;
        desk.begin(request, client, job).map_err(|error| {
            let log = (*(*request.as_ptr()).connection).log;
            ngx::ngx_log_error!(NGX_LOG_ERR, log, "upsync: cannot begin a change: {error}");
            match error.kind() {
                ErrorKind::QuotaExceeded => Answer::busy(dialect),
                _ => failed(),
            }
        })
    }
}

fn desk(main: &Main) -> Option<&Rc<Desk>> {
    let zone = main.zone.get()?;
    // SAFETY: the desk is kept with the settings.
    Some(main.desk.get_or_init(|| unsafe { Desk::new(main, zone) }))
}

/// What the request's method and path ask for.
unsafe fn asked(request: *const ngx_http_request_t) -> Result<Route, Answer> {
    // SAFETY: the caller has a request whose location has been found.
    unsafe {
        let access = Location::of_request(request).and_then(|location| location.interface.get());
        route(method(request), path(request), access.unwrap_or(Access::ReadOnly), dialect(request))
    }
}

unsafe fn method(request: *const ngx_http_request_t) -> Method {
    // SAFETY: the caller's request.
    match unsafe { (*request).method } as u32 {
        NGX_HTTP_GET => Method::Get,
        NGX_HTTP_POST => Method::Post,
        NGX_HTTP_PUT => Method::Put,
        NGX_HTTP_PATCH => Method::Patch,
        NGX_HTTP_DELETE => Method::Delete,
        _ => Method::Other,
    }
}

/// The path below the location's prefix.
unsafe fn path<'a>(request: *const ngx_http_request_t) -> &'a [u8] {
    // SAFETY: a request has the settings of its location, and its path lives as long as it does.
    unsafe {
        let location = (*(*request).loc_conf.add(ngx_http_core_module.ctx_index))
            .cast::<ngx_http_core_loc_conf_t>();
        let path = (*request).uri.as_bytes();
        path.strip_prefix((*location).name.as_bytes()).unwrap_or(path)
    }
}

unsafe fn dialect(request: *const ngx_http_request_t) -> Dialect {
    // SAFETY: the caller's request.
    unsafe { slardar::wants_json(field(request, b"accept"), (*request).args.as_bytes()) }
}

unsafe fn content_type<'a>(request: *const ngx_http_request_t) -> &'a [u8] {
    // SAFETY: the caller's request.
    unsafe { field(request, b"content-type") }
}

/// The value of a field of the request's head, empty if it is not there.
unsafe fn field<'a>(request: *const ngx_http_request_t, name: &[u8]) -> &'a [u8] {
    // SAFETY: nginx keeps the fields in a list that lives as long as the request; a part of it
    // holds so many of them.
    unsafe {
        let mut part: *const ngx_list_part_t = &raw const (*request).headers_in.headers.part;
        while let Some(fields) = part.as_ref() {
            for i in 0..fields.nelts {
                let field = &*fields.elts.cast::<ngx_table_elt_t>().add(i);
                if field.key.as_bytes().eq_ignore_ascii_case(name) {
                    return field.value.as_bytes();
                }
            }
            part = fields.next;
        }
        &[]
    }
}

/// The body as nginx has it: in memory, or in a temporary file that the thread reads.
unsafe fn body(request: *const ngx_http_request_t) -> Option<Vec<Bytes>> {
    let mut parts = Vec::new();
    // SAFETY: the body has been read, so its chain of buffers is complete and stays as long as
    // the request.
    unsafe {
        let body = (*request).request_body.as_ref()?;
        let mut link: *const ngx_chain_t = body.bufs;
        while let Some(chain) = link.as_ref() {
            parts.extend(bytes(&*chain.buf)?);
            link = chain.next;
        }
    }
    Some(parts)
}

/// The content of one buffer; nothing in it if it is empty.
unsafe fn bytes(buffer: &ngx_buf_t) -> Option<Option<Bytes>> {
    // SAFETY: a buffer of a body is a run of memory or of an open file, or has neither.
    unsafe {
        if buffer.in_file() != 0 {
            let file = BorrowedFd::borrow_raw((*buffer.file).fd).try_clone_to_owned().ok()?;
            let range = buffer.file_pos as u64..buffer.file_last as u64;
            return Some((!range.is_empty()).then(|| Bytes::File(File::from(file), range)));
        }
        // The last one of a chunked body says that it is the last and holds nothing.
        if buffer.pos.is_null() || buffer.pos == buffer.last {
            return Some(None);
        }
        let len = usize::try_from(buffer.last.offset_from(buffer.pos)).ok()?;
        Some(Some(Bytes::Memory(std::slice::from_raw_parts(buffer.pos, len).to_vec())))
    }
}

fn show(main: &Main, read: &Read, dialect: Dialect) -> Answer {
    if let Some(names) = main.names.get() {
        names.refresh();
    }
    let body = match (read, dialect) {
        (Read::List, _) => {
            let names = shown::names(main);
            let names = names.iter().map(String::as_str);
            if dialect == Dialect::Json { json::list(names) } else { text::list(names) }
        }
        (Read::Detail, _) => {
            let all = shown::all(main);
            let views: Vec<_> = all.iter().map(Shown::view).collect();
            if dialect == Dialect::Json { json::detail(&views) } else { text::detail(&views) }
        }
        (Read::Upstream(name), _) => match shown::one(main, name) {
            Some(one) if dialect == Dialect::Json => json::upstream(&one.view()),
            Some(one) => text::upstream(&one.view()),
            None => return Answer::nothing_to_show(dialect, name),
        },
        (Read::Status, _) => {
            let all = shown::all(main);
            let views: Vec<_> = all.iter().map(Shown::view).collect();
            let workers = vec![true; cycle::workers()];
            let facts = StatusFacts {
                start_time: main.since.get(),
                version: views.iter().map(|view| u64::from(view.version)).sum(),
                workers: &workers,
            };
            return Answer::shown(Dialect::Json, slardar::status(&views, &facts));
        }
    };
    Answer::shown(dialect, body)
}
