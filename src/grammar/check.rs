//! How servers are checked, as `check` and its companions in `upstream {}` say it.
//!
//! Words, defaults and ranges are those of nginx_upstream_check_module; new are nginx's times, codes and
//! ranges of `check_http_expect_alive`, and the directives that it lacks.
#![forbid(unsafe_code)]

mod form;
mod text;

use std::fmt;

use thiserror::Error;

use crate::model::check::Alive;
use crate::model::{Check, Printable};
use form::Form;

pub use text::{alive_words, parse, render, text};

/// The longest value of a directive, in bytes; of `check_fastcgi_param` name and value together.
pub const VALUE_MAX: usize = 4096;

/// The most `check_fastcgi_param` of one upstream.
pub const FASTCGI_PARAMS_MAX: usize = 64;

const CHECK: &str = "check";

const HTTP_SEND: &str = "check_http_send";

const EXPECT_ALIVE: &str = "check_http_expect_alive";

const FASTCGI_PARAM: &str = "check_fastcgi_param";

/// What the directives of one block said so far, in whatever order. After an error it is of no use.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    check: Check,
    /// The names of the directives that were there.
    said: Vec<&'static str>,
}

/// Why a directive is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckError {
    /// No such directive.
    #[error("unknown directive \"{}\", expected \"check\" or one of its companions", Printable(.0))]
    Unknown(String),
    /// A directive that says too little.
    #[error("no parameter after \"{0}\", expected {1}")]
    Missing(&'static str, &'static str),
    /// A parameter that the directive has not, or not at this place.
    #[error("unexpected \"{}\" in \"{name}\", expected {expected}", Printable(.value))]
    Unexpected {
        /// Which word of the directive it is; its name is word 0.
        at: usize,
        /// The directive.
        name: &'static str,
        /// The parameter.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A parameter of `check` with a value that it cannot have.
    #[error("invalid value in \"{}\" of \"check\", expected {expected}", Printable(.value))]
    Value {
        /// Which word of the directive it is; its name is word 0.
        at: usize,
        /// The parameter.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// It was there before: a directive, or a parameter of `check`.
    #[error("duplicate \"{name}\", expected it once at most")]
    Duplicate {
        /// Which word of the directive it is; its name is word 0.
        at: usize,
        /// What was there.
        name: &'static str,
    },
    /// Longer than [`VALUE_MAX`].
    #[error("the value of \"{name}\" has {length} bytes, expected at most {VALUE_MAX}")]
    TooLong {
        /// Which word of the directive it is; its name is word 0.
        at: usize,
        /// The directive.
        name: &'static str,
        /// Bytes.
        length: usize,
    },
    /// More than [`FASTCGI_PARAMS_MAX`].
    #[error("too many \"check_fastcgi_param\", expected at most {FASTCGI_PARAMS_MAX}")]
    TooMany,
    /// A companion without `check`.
    #[error("\"{0}\" has no effect without \"check\", expected \"check\" beside it")]
    Alone(&'static str),
}

/// A directive, or a parameter of `check`, that was there before. As a text it warns of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// Which word of the directive it is; its name is word 0.
    at: usize,
    /// What was there.
    name: &'static str,
}

impl fmt::Display for Repeated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.name {
            EXPECT_ALIVE => "the codes of both are good",
            _ => "the last one is in force",
        };
        write!(f, "duplicate \"{}\", {outcome}", self.name)
    }
}

impl CheckError {
    /// Which word of the directive is wrong; its name is word 0.
    pub fn at(&self) -> usize {
        match self {
            Self::Unknown(_) | Self::Missing(..) | Self::TooMany | Self::Alone(_) => 0,
            Self::Unexpected { at, .. }
            | Self::Value { at, .. }
            | Self::Duplicate { at, .. }
            | Self::TooLong { at, .. } => *at,
        }
    }
}

/// Whether a directive of this name says how servers are checked. Those that name files,
/// `check_ssl_certificate` and the like, are not of these.
pub fn is_check(name: &str) -> bool {
    Form::find(name).is_some()
}

/// How many words behind a directive's name may be any text, other directives' names too.
pub(super) fn texts(name: &str) -> usize {
    Form::find(name).map_or(0, |form| form.texts)
}

impl Draft {
    /// Takes one directive, its name first, without the semicolon; quotes and escapes are undone
    /// already:
    ///
    /// - `check [interval=TIME] [timeout=TIME] [rise=N] [fall=N] [default_down=true|false] [type=TYPE]
    ///   [port=N] [unique=true|false]`; TIME of 1 to 2,147,483,647 ms, a number without a unit is one of
    ///   milliseconds; N from 1; TYPE is a name of [`Kind`](crate::model::check::Kind). `unique` says
    ///   nothing, as each upstream has verdicts of its own.
    /// - `check_http_send TEXT`, which is sent as it is.
    /// - `check_http_expect_alive http_1xx|…|http_5xx|CODE|CODE-CODE...`, from 100 to 599.
    /// - `check_http_expect_body ~|!~ REGEX`. Whether PCRE reads it is not known here.
    /// - `check_keepalive_requests N`.
    /// - `check_fastcgi_param NAME TEXT`, up to [`FASTCGI_PARAMS_MAX`] times; all others once.
    /// - `check_ssl_verify on|off`.
    /// - `check_ssl_name NAME`, of 1 to 255 letters, digits, `.`, `-`, `_` and `:`.
    /// - `check_fail_open N` or `N%`, 0 to 100.
    ///
    /// TEXT and REGEX have up to [`VALUE_MAX`] bytes, and no control characters but tabs and ends of
    /// lines. What does not fit the type is accepted, as it always was.
    pub fn add(&mut self, words: &[&str]) -> Result<(), CheckError> {
        let (form, values) = split(words)?;
        match self.read(form, values)?.first() {
            None => Ok(()),
            Some(&Repeated { at, name }) => Err(CheckError::Duplicate { at, name }),
        }
    }

    /// The same for nginx.conf, where it is no error to say something again, as it is none in
    /// nginx_upstream_check_module. The result tells what was there before:
    ///
    /// - A directive, or a parameter of `check`: the last one is in force. Another `check` says all anew,
    ///   but that the type stays where it names none.
    /// - `check_http_expect_alive`: the codes of all are good.
    ///
    /// An empty `check_http_send` says that the default is sent.
    pub fn configure(&mut self, words: &[&str]) -> Result<Vec<Repeated>, CheckError> {
        let (form, values) = split(words)?;
        if form.name == HTTP_SEND && values == [""] {
            self.check.send = None;
            return Ok(self.note(form).into_iter().collect());
        }
        let alive = self.said.contains(&EXPECT_ALIVE).then(|| self.check.alive.clone());
        let repeated = self.read(form, values)?;
        if let Some(alive) = alive
            && form.name == EXPECT_ALIVE
        {
            self.check.alive = Alive::new([alive.ranges(), self.check.alive.ranges()].concat());
        }
        Ok(repeated)
    }

    /// Notes what a directive says, and tells what was there before.
    fn read(&mut self, form: &'static Form, values: &[&str]) -> Result<Vec<Repeated>, CheckError> {
        form.read(&mut self.check, values)?;
        let mut repeated = form.repeated(values);
        repeated.splice(..0, self.note(form));
        Ok(repeated)
    }

    /// Notes that a directive was there, and tells whether it was before.
    fn note(&mut self, form: &Form) -> Option<Repeated> {
        if self.said.contains(&form.name) {
            return (form.name != FASTCGI_PARAM).then_some(Repeated { at: 0, name: form.name });
        }
        self.said.push(form.name);
        None
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// What all directives say together; nothing if there was none.
    ///
    /// # Errors
    ///
    /// There are companions, but no `check`.
    pub fn finish(self) -> Result<Option<Check>, CheckError> {
        match self.said.first() {
            None => Ok(None),
            Some(_) if self.said.contains(&CHECK) => Ok(Some(self.check)),
            Some(first) => Err(CheckError::Alone(first)),
        }
    }
}

/// A directive's form, and the words behind its name.
fn split<'a>(words: &'a [&'a str]) -> Result<(&'static Form, &'a [&'a str]), CheckError> {
    let (&name, values) = words.split_first().unwrap_or((&"", &[]));
    let form = Form::find(name).ok_or_else(|| CheckError::Unknown(name.to_owned()))?;
    Ok((form, values))
}

#[cfg(test)]
pub(crate) mod tests;
