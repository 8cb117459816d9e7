//! What a request to the interface asks for, from its method and path.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use super::answer::Answer;
pub use super::answer::Dialect;
use crate::model::{Address, Endpoint, Name, Printable};

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Shows something.
    Get,
    /// Makes or replaces something.
    Post,
    /// The same as `POST`.
    Put,
    /// Changes parameters of a server.
    Patch,
    /// Removes something.
    Delete,
    /// Any other; none is answered.
    Other,
}

/// What an interface is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `GET` only.
    ReadOnly,
    /// Everything.
    Full,
}

/// Something to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The names of all upstreams.
    List,
    /// All upstreams with their servers.
    Detail,
    /// The servers of one.
    Upstream(Name),
    /// What Slardar shows, which is JSON in either dialect.
    Status,
}

/// Something to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The body is all of the upstream, which need not be there.
    Replace(Name),
    /// The upstream goes.
    Delete(Name),
    /// The upstream gets back the servers of nginx.conf.
    Reset(Name),
    /// The body is one more server.
    AddServer(Name),
    /// One server goes.
    RemoveServer(Name, Address),
    /// The body changes parameters of one server.
    PatchServer(Name, Address),
}

impl Write {
    /// The upstream it is about.
    pub fn name(&self) -> &Name {
        match self {
            Self::Replace(name)
            | Self::Delete(name)
            | Self::Reset(name)
            | Self::AddServer(name)
            | Self::RemoveServer(name, _)
            | Self::PatchServer(name, _) => name,
        }
    }

    /// Whether the body says what is wanted.
    pub fn has_body(&self) -> bool {
        matches!(self, Self::Replace(_) | Self::AddServer(_) | Self::PatchServer(..))
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Something to show.
    Read(Read),
    /// Something to change.
    Write(Write),
}

const ALL: &str = "GET, POST, PUT, PATCH, DELETE";

/// Reads the path below the location's prefix, decoded, with or without a `/` at its start. Empty
/// parts do not count, words are of any case. With `GET` parts behind the known ones do not count
/// either.
///
/// # Errors
///
/// The answer: no such path or method, or no name or address where there has to be one.
pub fn route(
    method: Method,
    path: &[u8],
    access: Access,
    dialect: Dialect,
) -> Result<Route, Answer> {
    match (access, method) {
        (_, Method::Get) => read(path, dialect).map(Route::Read),
        (Access::ReadOnly, _) => Err(Answer::method_not_allowed(dialect, "GET")),
        (Access::Full, Method::Other) => Err(Answer::method_not_allowed(dialect, ALL)),
        (Access::Full, _) => write(method, &Resource::of(path), dialect).map(Route::Write),
    }
}

fn read(path: &[u8], dialect: Dialect) -> Result<Read, Answer> {
    match first_part(path).0.to_ascii_lowercase().as_slice() {
        b"list" => Ok(Read::List),
        b"detail" => Ok(Read::Detail),
        b"status" => Ok(Read::Status),
        b"upstream" => match Resource::of(path) {
            Resource::Upstream(name) | Resource::Servers(name) => {
                parse_name(name, dialect).map(Read::Upstream)
            }
            _ => Err(Answer::nothing_here(dialect)),
        },
        _ => Err(Answer::nothing_here(dialect)),
    }
}

fn write(method: Method, resource: &Resource<'_>, dialect: Dialect) -> Result<Write, Answer> {
    use Method::{Delete, Patch, Post, Put};
    let name = |name| parse_name(name, dialect);
    let address = |address| parse_address(address, dialect);
    match (method, resource) {
        (Post | Put, Resource::Upstream(n)) => Ok(Write::Replace(name(n)?)),
        (Delete, Resource::Upstream(n)) => Ok(Write::Delete(name(n)?)),
        (Post, Resource::Reset(n)) => Ok(Write::Reset(name(n)?)),
        (Post | Put, Resource::Servers(n)) => Ok(Write::AddServer(name(n)?)),
        (Delete, Resource::Server(n, a)) => Ok(Write::RemoveServer(name(n)?, address(a)?)),
        (Patch, Resource::Server(n, a)) => Ok(Write::PatchServer(name(n)?, address(a)?)),
        (Patch, _) | (Put, Resource::Reset(_)) => {
            Err(Answer::method_not_allowed(dialect, resource.methods()))
        }
        _ => {
            let allow = (method == Delete).then(|| resource.methods());
            Err(match resource {
                Resource::OtherApi => Answer::unknown_api(dialect, allow),
                _ => Answer::unknown_interface(dialect, allow),
            })
        }
    }
}

/// What a path names, with the parts of it that are not checked yet.
enum Resource<'a> {
    /// `upstream/NAME`
    Upstream(&'a [u8]),
    /// `upstream/NAME/reset`
    Reset(&'a [u8]),
    /// `upstream/NAME/server`
    Servers(&'a [u8]),
    /// `upstream/NAME/server/ADDRESS`: the rest, as a socket's path has slashes.
    Server(&'a [u8], &'a [u8]),
    /// Two parts that mean nothing.
    OtherApi,
    /// More or fewer of them.
    OtherInterface,
}

impl<'a> Resource<'a> {
    fn of(path: &'a [u8]) -> Self {
        let (word, rest) = first_part(path);
        let (name, rest) = first_part(rest);
        let (kind, rest) = first_part(rest);
        let is_upstream = word.eq_ignore_ascii_case(b"upstream");
        match kind.to_ascii_lowercase().as_slice() {
            _ if name.is_empty() => Self::OtherInterface,
            b"" if is_upstream => Self::Upstream(name),
            b"" => Self::OtherApi,
            b"reset" if is_upstream && is_end(rest) => Self::Reset(name),
            b"server" if is_upstream && is_end(rest) => Self::Servers(name),
            b"server" if is_upstream => Self::Server(name, skip_slashes(rest)),
            _ => Self::OtherInterface,
        }
    }

    /// The methods that it has, for `Allow`.
    fn methods(&self) -> &'static str {
        match self {
            Self::Upstream(_) => "GET, POST, PUT, DELETE",
            Self::Reset(_) => "POST",
            Self::Servers(_) => "GET, POST, PUT",
            Self::Server(..) => "PATCH, DELETE",
            Self::OtherApi | Self::OtherInterface => "GET",
        }
    }
}

/// The first part that is not empty, and what is behind it.
fn first_part(path: &[u8]) -> (&[u8], &[u8]) {
    let path = skip_slashes(path);
    path.split_at(path.iter().position(|&byte| byte == b'/').unwrap_or(path.len()))
}

fn skip_slashes(path: &[u8]) -> &[u8] {
    let slashes = path.iter().take_while(|&&byte| byte == b'/').count();
    path.get(slashes..).unwrap_or_default()
}

fn is_end(rest: &[u8]) -> bool {
    skip_slashes(rest).is_empty()
}

fn parse_name(name: &[u8], dialect: Dialect) -> Result<Name, Answer> {
    Name::parse(name).map_err(|error| Answer::bad_path(dialect, error))
}

fn parse_address(text: &[u8], dialect: Dialect) -> Result<Address, Answer> {
    let text = String::from_utf8_lossy(text);
    // What a socket's path ends with is its own.
    let text = if text.starts_with("unix:") { &text } else { text.trim_end_matches('/') };
    match Endpoint::parse(text, Some(80)) {
        Ok(Endpoint::Address(address)) => Ok(address),
        Ok(name @ Endpoint::Name { .. }) => {
            let name = name.to_string();
            let name = Printable(&name);
            let reason = format_args!("expected an address, not the host name \"{name}\"");
            Err(Answer::bad_path(dialect, reason))
        }
        Err(error) => Err(Answer::bad_path(dialect, error)),
    }
}
