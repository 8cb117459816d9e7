//! Lines of values with commas between.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt::Write;

use super::{Row, Table};

/// Eight fields for each server. A name that would be read as several is quoted (RFC 4180).
pub(super) fn render(table: &Table<'_>) -> String {
    table.rows.iter().fold(String::new(), |mut text, row| {
        let Row { index, upstream, name, kind, checked } = row;
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{index},{},{},{},{},{},{},{}",
            field(upstream),
            field(name),
            row.status(),
            checked.rise,
            checked.fall,
            kind.name(),
            row.port()
        );
        text
    })
}

fn field(value: &str) -> Cow<'_, str> {
    if value.contains([',', '"', '\r', '\n']) {
        Cow::Owned(format!("\"{}\"", value.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(value)
    }
}
