//! The answer of `check_status`: the texts of nginx_upstream_check_module, and those that Tengine
//! added, word for word where a name is plain. Other names are escaped, which neither did.
//!
//! ```text
//! arguments → query ┐
//! status → table ───┴→ html, csv, json, prometheus
//! ```
#![forbid(unsafe_code)]

mod csv;
mod html;
mod json;
mod prometheus;
mod query;
#[cfg(test)]
mod tests;

pub use query::Query;

use super::status::{Checked, Status};
use crate::model::check::Kind;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A page.
    #[default]
    Html,
    /// A line for each server, without a header.
    Csv,
    /// An object.
    Json,
    /// Prometheus's text format.
    Prometheus,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Html, Self::Csv, Self::Json, Self::Prometheus];

    /// The word for it, in the directive and in `?format=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Prometheus => "prometheus",
        }
    }

    /// The format of a word, which is in lower case.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name().as_bytes() == name)
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Html => "text/html",
            Self::Csv | Self::Prometheus => "text/plain",
            Self::Json => "application/json",
        }
    }
}

/// The content type and the body for a request, in the query's format or else in `format`. The body
/// is empty only as csv, where no server is to be shown.
pub fn answer(status: &Status, format: Format, query: &Query) -> (&'static str, String) {
    let format = query.format.unwrap_or(format);
    let table = Table::new(status, query);
    let body = match format {
        Format::Html => html::render(&table),
        Format::Csv => csv::render(&table),
        Format::Json => json::render(&table),
        Format::Prometheus => prometheus::render(&table),
    };
    (format.content_type(), body)
}

/// What is shown.
struct Table<'a> {
    generation: u64,
    rows: Vec<Row<'a>>,
}

/// A server that is checked.
struct Row<'a> {
    /// Its place among all that are checked, shown or not.
    index: usize,
    upstream: &'a str,
    /// Its address.
    name: &'a str,
    kind: Kind,
    checked: Checked,
}

impl<'a> Table<'a> {
    fn new(status: &'a Status, query: &Query) -> Self {
        let servers = status.upstreams.iter().flat_map(|upstream| {
            let servers = upstream.servers.iter();
            servers
                .filter_map(move |server| Some((upstream, upstream.check?, server, server.check?)))
        });
        let rows = servers.enumerate().map(|(index, (upstream, check, server, checked))| Row {
            index,
            upstream: &upstream.name,
            name: &server.address,
            kind: check.kind,
            checked,
        });
        let rows = rows.filter(|row| query.wants(row.upstream, row.checked.is_up)).collect();
        Self { generation: status.generation, rows }
    }

    fn total(&self) -> usize {
        self.rows.len()
    }

    fn up(&self) -> usize {
        self.rows.iter().filter(|row| row.checked.is_up).count()
    }

    fn down(&self) -> usize {
        self.total() - self.up()
    }
}

impl Row<'_> {
    /// The verdict as a word.
    fn status(&self) -> &'static str {
        if self.checked.is_up { "up" } else { "down" }
    }

    /// The port that is asked; 0 is the server's own.
    fn port(&self) -> u16 {
        self.checked.port.unwrap_or(0)
    }
}
