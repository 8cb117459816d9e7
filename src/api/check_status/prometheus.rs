//! Tengine's series, which end and begin anew whenever a server goes up or down or changes its
//! place; and beside them those of `upsync_status`, which do not.
//!
//! Tengine calls the lengths of runs counters, though they go back to 0, and a gauge by a name that
//! is kept for counters; here their types are such that `promtool` has nothing against the names.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use super::{Row, Table};
use crate::api::status::exposition::{Exposition, Labelled};
use crate::api::status::prometheus::checks;

/// The numbers are of the servers that are shown.
pub(super) fn render(table: &Table<'_>) -> String {
    let mut text = Exposition::default();
    counts(&mut text, table);
    let rows = || table.rows.iter();
    runs(&mut text, &Labelled::distinct(rows().map(|row| (with_status(row), row))));
    let active = Labelled::distinct(rows().map(|row| (without_status(row), row)));
    text.gauge("nginx_upstream_server_active", "Nginx active 1 for UP / 0 for DOWN")
        .each(&active, |row| Some(u8::from(row.checked.is_up)));
    let clean = rows().map(|row| ([("upstream", row.upstream), ("server", row.name)], row.checked));
    checks(&mut text, &Labelled::distinct(clean), |&checked| Some(checked));
    text.into_text()
}

fn counts(text: &mut Exposition, table: &Table<'_>) {
    text.untyped("nginx_upstream_count_total", "Nginx total number of servers").only(table.total());
    text.gauge("nginx_upstream_count_up", "Nginx total number of servers that are UP")
        .only(table.up());
    text.gauge("nginx_upstream_count_down", "Nginx total number of servers that are DOWN")
        .only(table.down());
    text.gauge("nginx_upstream_count_generation", "Nginx generation").only(table.generation);
}

fn runs(text: &mut Exposition, rows: &[Labelled<&Row<'_>>]) {
    text.gauge("nginx_upstream_server_rise", "Nginx rise counter")
        .each(rows, |row| Some(row.checked.rise));
    text.gauge("nginx_upstream_server_fall", "Nginx fall counter")
        .each(rows, |row| Some(row.checked.fall));
}

type Label<'a> = (&'static str, Cow<'a, str>);

fn with_status<'a>(row: &'a Row<'_>) -> [Label<'a>; 6] {
    let [index, upstream, name, kind, port] = without_status(row);
    [index, upstream, name, ("status", row.status().into()), kind, port]
}

fn without_status<'a>(row: &'a Row<'_>) -> [Label<'a>; 5] {
    [
        ("index", row.index.to_string().into()),
        ("upstream", row.upstream.into()),
        ("name", row.name.into()),
        ("type", row.kind.name().into()),
        ("port", row.port().to_string().into()),
    ]
}
