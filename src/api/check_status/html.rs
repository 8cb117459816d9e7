//! A page with one table.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::{Row, Table};

/// The public identifier has its second quote, which the originals forgot, so that browsers knew no
/// document type.
const HEAD: &str = r#"<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN"
"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
<head>
  <title>Nginx http upstream check status</title>
</head>
<body>
<h1>Nginx http upstream check status</h1>
"#;

const TABLE: &str = r##"<table style="background-color:white" cellspacing="0"        cellpadding="3" border="1">
  <tr bgcolor="#C0C0C0">
    <th>Index</th>
    <th>Upstream</th>
    <th>Name</th>
    <th>Status</th>
    <th>Rise counts</th>
    <th>Fall counts</th>
    <th>Check type</th>
    <th>Check port</th>
  </tr>
"##;

/// The number is of the servers that are shown.
pub(super) fn render(table: &Table<'_>) -> String {
    let (total, generation) = (table.total(), table.generation);
    let mut text = format!(
        "{HEAD}<h2>Check upstream server number: {total}, generation: {generation}</h2>\n{TABLE}"
    );
    for row in &table.rows {
        server(&mut text, row);
    }
    text += "</table>\n</body>\n</html>\n";
    text
}

fn server(text: &mut String, row: &Row<'_>) {
    let Row { index, upstream, name, kind, checked } = row;
    // Writing into a String cannot fail.
    let _ = write!(
        text,
        "  <tr{}>\n    \
             <td>{index}</td>\n    \
             <td>{}</td>\n    \
             <td>{}</td>\n    \
             <td>{}</td>\n    \
             <td>{}</td>\n    \
             <td>{}</td>\n    \
             <td>{}</td>\n    \
             <td>{}</td>\n  \
           </tr>\n",
        if checked.is_up { "" } else { " bgcolor=\"#FF0000\"" },
        escaped(upstream),
        escaped(name),
        row.status(),
        checked.rise,
        checked.fall,
        kind.name(),
        row.port()
    );
}

/// Text of an element. As the page does not name its character set, other characters than those of
/// ASCII are written by their numbers; control characters, which have no place in a page, by that of
/// the replacement character.
fn escaped(value: &str) -> String {
    value.chars().fold(String::new(), |mut text, character| {
        match character {
            '&' => text += "&amp;",
            '<' => text += "&lt;",
            '>' => text += "&gt;",
            '"' => text += "&quot;",
            '\'' => text += "&#39;",
            '\t' | ' '..='~' => text.push(character),
            _ => text += &format!("&#{};", number(character)),
        }
        text
    })
}

fn number(character: char) -> u32 {
    match character {
        '\n' | '\r' => u32::from(character),
        _ if character.is_control() => u32::from(char::REPLACEMENT_CHARACTER),
        _ => u32::from(character),
    }
}
