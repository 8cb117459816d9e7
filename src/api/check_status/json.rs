//! An object, laid out as the originals do.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::{Row, Table};
use crate::api::json::text as quoted;

/// `{"servers": {…}}`. The numbers are of the servers that are shown.
pub(super) fn render(table: &Table<'_>) -> String {
    let mut text = format!(
        "{{\"servers\": {{\n  \
           \"total\": {},\n  \
           \"up\": {},\n  \
           \"down\": {},\n  \
           \"generation\": {},\n  \
           \"server\": [\n",
        table.total(),
        table.up(),
        table.down(),
        table.generation
    );
    for (place, row) in table.rows.iter().enumerate() {
        text += if place == 0 { "" } else { ",\n" };
        server(&mut text, row);
    }
    text += if table.rows.is_empty() { "" } else { "\n" };
    text += "  ]\n}}\n";
    text
}

fn server(text: &mut String, row: &Row<'_>) {
    let Row { index, upstream, name, kind, checked } = row;
    // Writing into a String cannot fail.
    let _ = write!(
        text,
        "    {{\"index\": {index}, \"upstream\": {}, \"name\": {}, \"status\": \"{}\", \
         \"rise\": {}, \"fall\": {}, \"type\": \"{}\", \"port\": {}}}",
        quoted(upstream),
        quoted(name),
        row.status(),
        checked.rise,
        checked.fall,
        kind.name(),
        row.port()
    );
}
