//! The lists that are posted and the files that keep them: what nginx writes into an `upstream`
//! block, read strictly. The first fault refuses all.
//!
//! White space and `#` comments stand between words as in nginx's configuration. There are no
//! nested blocks, no quotes and escapes but in `check` and its companions, and no variables but in the
//! key of `hash`.
#![forbid(unsafe_code)]

mod block;
mod checks;
mod choice;
mod reader;
mod refusal;

use super::check;
use super::method;
use super::parameter::{self, ParameterError};
use super::words::Word;
use crate::model::body::{Body, Changes, Place, Server, Target};
use crate::model::{Endpoint, Method, Name};
use checks::Checks;
use reader::Reader;

pub use block::{parse_upstream, render_upstream};
pub use refusal::{Reason, Refusal};

/// The most servers of one body.
pub const SERVERS_MAX: usize = 100_000;

/// The largest number of `keepalive`.
pub const KEEPALIVE_MAX: u32 = 65_535;

const DIRECTIVES: &str = "\"server\", \"keepalive\", \"least_conn\", \"ip_hash\", \"hash\", \"random\", \
                          \"least_time\" or \"check\"";
const PARAMETERS: &str = "weight=N, max_fails=N, fail_timeout=TIME, max_conns=N, slow_start=TIME, \
                          backup, drain or down";
const CHANGES: &str = "weight=N, max_fails=N, fail_timeout=TIME, max_conns=N, slow_start=TIME, \
                       backup[=on|off], drain[=on|off] or down[=on|off]";
const ADDRESS: &str = "an address after \"server\"";
const SEMICOLON_BEFORE: &str = "\";\" before it";

/// Directives of an `upstream` block, nginx's own and those of the modules whose place this one
/// takes, that cannot be posted.
const UNAVAILABLE: [&str; 17] = [
    "consistent_hash",
    "fair",
    "keepalive_requests",
    "keepalive_time",
    "keepalive_timeout",
    "ntlm",
    "queue",
    "resolver",
    "resolver_timeout",
    "session_sticky",
    "state",
    "sticky",
    "sticky_cookie_insert",
    "upsync",
    "upsync_dump_path",
    "vnswrr",
    "zone",
];

/// Directives that name files of this machine, which are for nginx.conf alone to name.
const FILES: [&str; 3] =
    ["check_ssl_certificate", "check_ssl_certificate_key", "check_ssl_trusted_certificate"];

/// Reads the content of an `upstream` block, in any order:
///
/// - `server ADDRESS [weight=N] [max_fails=N] [fail_timeout=TIME] [max_conns=N] [slow_start=TIME]
///   [backup] [drain] [down];`, 1 to [`SERVERS_MAX`] times; each parameter once at most. ADDRESS is what [`Endpoint::parse`]
///   reads, with 80 where no port is given, or `upstream:NAME`. That takes the port of a host
///   named `upstream`, which therefore is to be written `upstream.`.
/// - `keepalive N;` with N from 1 to [`KEEPALIVE_MAX`], once at most.
/// - One directive at most that [`method::read_any`] reads; `upsync_lb local` with networks. Whether the variables in a key exist is not
///   known here.
/// - `check` and its companions, as [`check::Draft::add`] has them. Their words may be in quotes, with
///   the escapes of nginx's configuration.
pub fn parse(text: &[u8]) -> Result<Body, Refusal> {
    let mut reader = Reader::new(text);
    let mut body = Body::default();
    let mut checks = Checks::default();
    while let Some(word) = reader.word()? {
        match word.text {
            "server" if body.servers.len() == SERVERS_MAX => {
                return Err(Refusal::of(&word, Reason::TooMany));
            }
            "server" => body.servers.push(server(&mut reader, &word)?),
            "keepalive" if body.keepalive.is_some() => {
                return Err(Refusal::of(&word, Reason::Duplicate("keepalive")));
            }
            "keepalive" => body.keepalive = Some((place(&word), keepalive(&mut reader)?)),
            name if name == "upsync_lb" || method::is_method(name) => {
                choice::read(&mut body.method, &mut reader, &word)?;
                if matches!(&body.method, Some((_, Method::Local(near))) if near.is_empty()) {
                    return Err(Refusal::of(&word, Reason::NoNetwork));
                }
            }
            name if check::is_check(name) => checks.read(&mut reader, &word)?,
            _ => return Err(no_directive(&word, DIRECTIVES)),
        }
    }
    body.check = checks.finish()?;
    if body.servers.is_empty() {
        return Err(Refusal::at((1, 1), Reason::NoServer));
    }
    Ok(body)
}

/// Reads exactly one `server …;` as [`parse`] does.
pub fn parse_server(text: &[u8]) -> Result<Server, Refusal> {
    let mut reader = Reader::new(text);
    let word = reader.word()?.ok_or_else(|| Refusal::at((1, 1), Reason::NoServer))?;
    match word.text {
        "server" => {}
        name if is_directive(name) => {
            return Err(Refusal::unexpected(&word, "\"server\""));
        }
        _ => return Err(no_directive(&word, "\"server\"")),
    }
    let server = server(&mut reader, &word)?;
    reader.end("nothing after one \"server\"")?;
    Ok(server)
}

/// Reads one or more of the words `weight=N`, `max_fails=N`, `fail_timeout=TIME`, `max_conns=N`,
/// `slow_start=TIME`, `backup[=on|off]`, `drain[=on|off]` and `down[=on|off]`, each once at most,
/// with or without a `;` at the end.
pub fn parse_changes(text: &[u8]) -> Result<Changes, Refusal> {
    let mut reader = Reader::new(text);
    let mut changes = Changes::default();
    while let Some(word) = reader.word()? {
        if word.text == ";" && !changes.is_empty() {
            reader.end("nothing after \";\"")?;
            break;
        }
        parameter::change(&mut changes, word.text).map_err(|e| refused(&word, e, CHANGES))?;
    }
    if changes.is_empty() {
        return Err(Refusal::at((1, 1), Reason::NoParameter(CHANGES)));
    }
    Ok(changes)
}

/// Reads what follows the word `server`, which stands at `word`.
fn server(reader: &mut Reader<'_>, word: &Word<'_>) -> Result<Server, Refusal> {
    let target = target(&reader.expect(ADDRESS)?)?;
    Ok(Server { place: place(word), target, changes: parameters(reader)? })
}

fn target(word: &Word<'_>) -> Result<Target, Refusal> {
    if word.text == ";" {
        return Err(Refusal::unexpected(word, ADDRESS));
    }
    let target = match word.text.strip_prefix("upstream:") {
        Some(name) => Name::parse(name.as_bytes())
            .map(Target::Upstream)
            .map_err(|_| Reason::Name(word.text.to_owned())),
        None => Endpoint::parse(word.text, Some(80)).map(Target::Endpoint).map_err(Reason::from),
    };
    target.map_err(|reason| Refusal::of(word, reason))
}

/// Reads the parameters of a server and its `;`.
fn parameters(reader: &mut Reader<'_>) -> Result<Changes, Refusal> {
    let mut changes = Changes::default();
    loop {
        let word = reader.expect("\";\"")?;
        match word.text {
            ";" => return Ok(changes),
            name if is_directive(name) => {
                return Err(Refusal::unexpected(&word, SEMICOLON_BEFORE));
            }
            text => {
                parameter::add(&mut changes, text).map_err(|e| refused(&word, e, PARAMETERS))?
            }
        }
    }
}

fn keepalive(reader: &mut Reader<'_>) -> Result<u32, Refusal> {
    let word = reader.expect("a number after \"keepalive\"")?;
    if word.text == ";" {
        return Err(Refusal::unexpected(&word, "a number after \"keepalive\""));
    }
    let number = parameter::number(word.text, KEEPALIVE_MAX).filter(|&number| number != 0);
    let number =
        number.ok_or_else(|| Refusal::of(&word, Reason::Keepalive(word.text.to_owned())))?;
    match reader.expect("\";\"")? {
        Word { text: ";", .. } => Ok(number),
        word => Err(Refusal::unexpected(&word, SEMICOLON_BEFORE)),
    }
}

fn is_directive(name: &str) -> bool {
    let is_other = method::is_method(name) || check::is_check(name);
    matches!(name, "server" | "keepalive" | "upsync_lb") || is_other
}

fn no_directive(word: &Word<'_>, expected: &'static str) -> Refusal {
    let text = word.text.to_owned();
    match word.text {
        ";" => Refusal::unexpected(word, expected),
        name if UNAVAILABLE.contains(&name) => {
            Refusal::of(word, Reason::Unavailable(text, expected))
        }
        name if FILES.contains(&name) => Refusal::of(word, Reason::File(text)),
        _ => Refusal::of(word, Reason::Unknown(text, expected)),
    }
}

fn refused(word: &Word<'_>, error: ParameterError, expected: &'static str) -> Refusal {
    Refusal::of(
        word,
        match error {
            ParameterError::Unknown(text) => Reason::Parameter(text, expected),
            error => Reason::Value(error),
        },
    )
}

fn place(word: &Word<'_>) -> Place {
    Place::Text { line: word.line, column: word.column }
}

#[cfg(test)]
mod tests;
