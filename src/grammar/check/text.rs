//! Checks written as directives, and read back.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt::{self, Write};

use super::Draft;
use crate::grammar::words::Words;
use crate::model::Check;
use crate::model::check::Alive;

/// The directives that say it, without their semicolons, `check` first. Companions are there where
/// they say something else than their defaults. Values that may be any text are in quotes, so nginx's
/// configuration reads them, too, as long as they have less than 4,096 bytes there.
pub fn render(check: &Check) -> Vec<String> {
    let mut directives = vec![parameters(check)];
    if let Some(send) = &check.send {
        directives.push(format!("check_http_send {}", Quoted(send)));
    }
    if check.alive != Alive::default() {
        directives.push(format!("check_http_expect_alive {}", alive_words(&check.alive).join(" ")));
    }
    if let Some(body) = &check.body {
        let operator = if body.negated { "!~" } else { "~" };
        directives.push(format!("check_http_expect_body {operator} {}", Quoted(&body.regex)));
    }
    if check.keepalive_requests != 1 {
        directives.push(format!("check_keepalive_requests {}", check.keepalive_requests));
    }
    let params = check.fastcgi_params.iter();
    directives
        .extend(params.map(|(name, value)| {
            format!("check_fastcgi_param {} {}", Quoted(name), Quoted(value))
        }));
    if check.ssl_verify {
        directives.push("check_ssl_verify on".to_owned());
    }
    if let Some(name) = &check.ssl_name {
        directives.push(format!("check_ssl_name {name}"));
    }
    if check.fail_open != 100 {
        directives.push(format!("check_fail_open {}", check.fail_open));
    }
    directives
}

/// The same as one text, a line for each directive with its semicolon.
pub fn text(check: &Check) -> String {
    render(check).into_iter().map(|directive| directive + ";\n").collect()
}

/// Reads the text that [`text`] writes.
pub fn parse(text: &str) -> Option<Check> {
    let mut words = Words::new(text);
    let mut draft = Draft::default();
    let mut directive: Vec<Cow<'_, str>> = Vec::new();
    while let Some(argument) = words.argument() {
        if argument.word.text == ";" {
            let words: Vec<&str> = directive.iter().map(AsRef::as_ref).collect();
            draft.add(&words).ok()?;
            directive.clear();
        } else {
            directive.push(argument.value.ok()?);
        }
    }
    if directive.is_empty() { draft.finish().ok()? } else { None }
}

/// The parameters of `check_http_expect_alive` that say it.
pub fn alive_words(alive: &Alive) -> Vec<String> {
    let mut words = Vec::new();
    for &(first, last) in alive.ranges() {
        match (first % 100, last % 100) {
            _ if first == last => words.push(first.to_string()),
            (0, 99) => {
                let classes = first / 100..=last / 100;
                words.extend(classes.map(|class| format!("http_{class}xx")));
            }
            _ => words.push(format!("{first}-{last}")),
        }
    }
    words
}

fn parameters(check: &Check) -> String {
    let Check { kind, interval, rise, fall, timeout, default_down, .. } = check;
    let kind = kind.name();
    let port = check.port.map(|port| format!(" port={port}")).unwrap_or_default();
    format!(
        "check interval={interval} rise={rise} fall={fall} timeout={timeout} \
         default_down={default_down} type={kind}{port}"
    )
}

/// A word in quotes, with the escapes that nginx's configuration has.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '\t' => f.write_str("\\t")?,
                '\r' => f.write_str("\\r")?,
                '\n' => f.write_str("\\n")?,
                '"' | '\\' => write!(f, "\\{character}")?,
                _ => f.write_char(character)?,
            }
        }
        f.write_char('"')
    }
}
