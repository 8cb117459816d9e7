//! The directives: what may stand in each, and what it says.
#![forbid(unsafe_code)]

use super::{
    CHECK, CheckError, EXPECT_ALIVE, FASTCGI_PARAM, FASTCGI_PARAMS_MAX, HTTP_SEND, Repeated,
    VALUE_MAX,
};
use crate::grammar::parameter::number;
use crate::grammar::time;
use crate::model::Check;
use crate::model::check::{Alive, ExpectBody, Kind};
use crate::model::list::COUNT_MAX;
use crate::model::name::NAME_MAX;

/// A directive.
pub struct Form {
    pub name: &'static str,
    /// How many words may stand behind the name, of which the first `texts` may be any text.
    words: (usize, usize),
    pub texts: usize,
    /// For messages.
    expected: &'static str,
    read: fn(&mut Check, Words<'_>) -> Result<(), CheckError>,
}

/// What stands behind the name of a directive: as many words as its form wants.
#[derive(Clone, Copy)]
struct Words<'a> {
    form: &'static Form,
    values: &'a [&'a str],
}

static FORMS: [Form; 9] = [
    Form { name: CHECK, words: (0, usize::MAX), texts: 0, expected: PARAMETERS, read: check },
    Form {
        name: HTTP_SEND,
        words: (1, 1),
        texts: 1,
        expected: "one text, which is not empty",
        read: http_send,
    },
    Form {
        name: EXPECT_ALIVE,
        words: (1, usize::MAX),
        texts: 0,
        expected: "http_1xx to http_5xx, codes from 100 to 599 and ranges such as 200-299",
        read: http_expect_alive,
    },
    Form {
        name: "check_http_expect_body",
        words: (2, 2),
        texts: 2,
        expected: "\"~ REGEX\" or \"!~ REGEX\"",
        read: http_expect_body,
    },
    Form {
        name: "check_keepalive_requests",
        words: (1, 1),
        texts: 0,
        expected: COUNT,
        read: |check, words| words.set(count(words.first()), &mut check.keepalive_requests),
    },
    Form {
        name: FASTCGI_PARAM,
        words: (2, 2),
        texts: 2,
        expected: "a name and a value",
        read: fastcgi_param,
    },
    Form {
        name: "check_ssl_verify",
        words: (1, 1),
        texts: 0,
        expected: "on or off",
        read: |check, words| words.set(one_of(words.first(), "on", "off"), &mut check.ssl_verify),
    },
    Form {
        name: "check_ssl_name",
        words: (1, 1),
        texts: 1,
        expected: "1 to 255 letters, digits, \".\", \"-\", \"_\" or \":\"",
        read: |check, words| words.set(host(words.first()).map(Some), &mut check.ssl_name),
    },
    Form {
        name: "check_fail_open",
        words: (1, 1),
        texts: 0,
        expected: "0 to 100, with or without \"%\"",
        read: |check, words| words.set(percent(words.first()), &mut check.fail_open),
    },
];

/// A parameter of `check`.
struct Parameter {
    name: &'static str,
    expected: &'static str,
    /// Nothing if it is not what is expected.
    set: fn(&mut Check, &str) -> Option<()>,
}

const PARAMETERS: &str =
    "interval=TIME, rise=N, fall=N, timeout=TIME, default_down=true|false, type=TYPE or port=N";
const TIME: &str = "1 to 2147483647 milliseconds or a time such as 5s";
const COUNT: &str = "1 to 2147483647";
const SWITCH: &str = "true or false";
const TEXT: &str = "text without control characters but tabs and ends of lines";

static CHECK_PARAMETERS: [Parameter; 8] = [
    Parameter {
        name: "interval",
        expected: TIME,
        set: |check, value| set(&mut check.interval, milliseconds(value)),
    },
    Parameter {
        name: "rise",
        expected: COUNT,
        set: |check, value| set(&mut check.rise, count(value)),
    },
    Parameter {
        name: "fall",
        expected: COUNT,
        set: |check, value| set(&mut check.fall, count(value)),
    },
    Parameter {
        name: "timeout",
        expected: TIME,
        set: |check, value| set(&mut check.timeout, milliseconds(value)),
    },
    Parameter {
        name: "default_down",
        expected: SWITCH,
        set: |check, value| set(&mut check.default_down, one_of(value, "true", "false")),
    },
    Parameter {
        name: "type",
        expected: "tcp, http, https, ssl_hello, mysql, ajp, fastcgi, grpc or grpcs",
        set: |check, value| {
            set(&mut check.kind, Kind::ALL.into_iter().find(|kind| kind.name() == value))
        },
    },
    Parameter {
        name: "port",
        expected: "1 to 65535, or no \"port\" for the server's own",
        set: |check, value| {
            let port = count(value).and_then(|port| u16::try_from(port).ok());
            set(&mut check.port, port.map(Some))
        },
    },
    Parameter {
        name: "unique",
        expected: SWITCH,
        set: |_, value| one_of(value, "true", "false").map(drop),
    },
];

impl Form {
    pub fn find(name: &str) -> Option<&'static Self> {
        FORMS.iter().find(|form| form.name == name)
    }

    /// Notes what the words behind the name say.
    pub fn read(&'static self, check: &mut Check, values: &[&str]) -> Result<(), CheckError> {
        let words = Words { form: self, values };
        let (fewest, most) = self.words;
        if values.len() < fewest {
            return Err(CheckError::Missing(self.name, self.expected));
        }
        match values.get(most) {
            Some(_) => Err(words.unexpected(most, self.expected)),
            None => (self.read)(check, words),
        }
    }

    /// The parameters among the words behind the name that are there more than once, each where it is
    /// there again.
    pub fn repeated(&self, values: &[&str]) -> Vec<Repeated> {
        let (mut seen, mut repeated): (Vec<&str>, Vec<Repeated>) = (Vec::new(), Vec::new());
        let parameters = if self.name == CHECK { values } else { &[] };
        for (place, word) in parameters.iter().enumerate() {
            let Some((Parameter { name, .. }, _)) = parameter(word) else { continue };
            if !seen.contains(name) {
                seen.push(name);
            } else if !repeated.iter().any(|other| other.name == *name) {
                repeated.push(Repeated { at: place + 1, name });
            }
        }
        repeated
    }
}

impl<'a> Words<'a> {
    fn first(self) -> &'a str {
        self.get(0)
    }

    fn get(self, place: usize) -> &'a str {
        self.values.get(place).copied().unwrap_or_default()
    }

    fn unexpected(self, place: usize, expected: &'static str) -> CheckError {
        let value = self.get(place).to_owned();
        CheckError::Unexpected { at: place + 1, name: self.form.name, value, expected }
    }

    /// Notes what the first word says; nothing is refused.
    fn set<T>(self, value: Option<T>, to: &mut T) -> Result<(), CheckError> {
        set(to, value).ok_or_else(|| self.unexpected(0, self.form.expected))
    }

    /// A word that may be any text.
    fn text(self, place: usize) -> Result<&'a str, CheckError> {
        let text = self.get(place);
        if text.len() > VALUE_MAX {
            let (name, length) = (self.form.name, text.len());
            return Err(CheckError::TooLong { at: place + 1, name, length });
        }
        match text.bytes().any(|byte| byte.is_ascii_control() && !b"\t\r\n".contains(&byte)) {
            true => Err(self.unexpected(place, TEXT)),
            false => Ok(text),
        }
    }

    /// The same, and not empty.
    fn some_text(self, place: usize) -> Result<&'a str, CheckError> {
        match self.text(place)? {
            "" => Err(self.unexpected(place, self.form.expected)),
            text => Ok(text),
        }
    }
}

/// What another `check` said is forgotten, but for the type if this one has none, as in the original.
fn check(check: &mut Check, words: Words<'_>) -> Result<(), CheckError> {
    let Check { interval, rise, fall, timeout, default_down, port, .. } = Check::default();
    let companions = std::mem::take(check);
    *check = Check { interval, rise, fall, timeout, default_down, port, ..companions };
    for (place, &word) in words.values.iter().enumerate() {
        let unknown = || words.unexpected(place, PARAMETERS);
        let (Parameter { expected, set, .. }, value) = parameter(word).ok_or_else(unknown)?;
        let invalid = || CheckError::Value { at: place + 1, value: word.to_owned(), expected };
        set(check, value).ok_or_else(invalid)?;
    }
    Ok(())
}

/// A parameter of `check` and its value.
fn parameter(word: &str) -> Option<(&'static Parameter, &str)> {
    let (name, value) = word.split_once('=')?;
    Some((CHECK_PARAMETERS.iter().find(|parameter| parameter.name == name)?, value))
}

fn http_send(check: &mut Check, words: Words<'_>) -> Result<(), CheckError> {
    check.send = Some(words.some_text(0)?.to_owned());
    Ok(())
}

fn http_expect_alive(check: &mut Check, words: Words<'_>) -> Result<(), CheckError> {
    let ranges = words.values.iter().enumerate().map(|(place, word)| {
        codes(word).ok_or_else(|| words.unexpected(place, words.form.expected))
    });
    check.alive = Alive::new(ranges.collect::<Result<_, _>>()?);
    Ok(())
}

fn http_expect_body(check: &mut Check, words: Words<'_>) -> Result<(), CheckError> {
    let negated = one_of(words.first(), "!~", "~");
    let negated = negated.ok_or_else(|| words.unexpected(0, words.form.expected))?;
    check.body = Some(ExpectBody { negated, regex: words.some_text(1)?.to_owned() });
    Ok(())
}

fn fastcgi_param(check: &mut Check, words: Words<'_>) -> Result<(), CheckError> {
    if check.fastcgi_params.len() == FASTCGI_PARAMS_MAX {
        return Err(CheckError::TooMany);
    }
    let (name, value) = (words.some_text(0)?, words.text(1)?);
    let length = name.len() + value.len();
    if length > VALUE_MAX {
        return Err(CheckError::TooLong { at: 2, name: words.form.name, length });
    }
    check.fastcgi_params.push((name.to_owned(), value.to_owned()));
    Ok(())
}

fn set<T>(to: &mut T, value: Option<T>) -> Option<()> {
    *to = value?;
    Some(())
}

/// A number without a unit is one of milliseconds; beside units it would be one of seconds, as nginx
/// has it, which nobody would expect here.
fn milliseconds(text: &str) -> Option<u32> {
    let time = match text.bytes().last()? {
        b'0'..=b'9' => number(text, COUNT_MAX)?.into(),
        _ => time::parse_milliseconds(text).filter(|_| !text.ends_with(' '))?,
    };
    u32::try_from(time).ok().filter(|time| (1..=COUNT_MAX).contains(time))
}

fn count(text: &str) -> Option<u32> {
    number(text, COUNT_MAX).filter(|&number| number != 0)
}

/// Whether it is the one word or the other, in whatever case.
fn one_of(text: &str, yes: &str, no: &str) -> Option<bool> {
    let is_yes = text.eq_ignore_ascii_case(yes);
    (is_yes || text.eq_ignore_ascii_case(no)).then_some(is_yes)
}

/// First and last of `http_2xx`, `404` or `200-299`.
fn codes(text: &str) -> Option<(u16, u16)> {
    let code = |text: &str| {
        let code = u16::try_from(number(text, 599)?).ok();
        code.filter(|&code| text.len() == 3 && code >= 100)
    };
    if let [b'h', b't', b't', b'p', b'_', class @ b'1'..=b'5', b'x', b'x'] =
        text.to_ascii_lowercase().as_bytes()
    {
        let first = u16::from(class - b'0') * 100;
        return Some((first, first + 99));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((code(first)?, code(last)?)).filter(|(first, last)| first <= last)
}

fn host(text: &str) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    let is_host = (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(fits);
    is_host.then(|| text.to_owned())
}

fn percent(text: &str) -> Option<u8> {
    let number = number(text.strip_suffix('%').unwrap_or(text), 100)?;
    u8::try_from(number).ok()
}
