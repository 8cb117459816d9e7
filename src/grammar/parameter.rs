//! The parameters of nginx's `server` directive, one word each. Consul's tags hold the same words.
#![forbid(unsafe_code)]

use thiserror::Error;

use super::time;
use crate::model::body::Changes;
use crate::model::list::{COUNT_MAX, WEIGHT_MAX};
use crate::model::{Parameters, Printable};

/// What [`slow_start`] reads, for messages.
pub const SLOW_START: &str = "a time of at most 2147483647 milliseconds";

/// What JSON may have for it: a number without a unit is one of seconds, as in nginx's times.
pub const SLOW_START_JSON: &str =
    "a number of seconds or a time of at most 2147483647 milliseconds";

/// Why a word is no parameter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParameterError {
    /// It has no parameter's name.
    #[error("unknown parameter \"{}\"", Printable(.0))]
    Unknown(String),
    /// It has a parameter's name, but not a value of it.
    #[error("invalid value in \"{}\", expected {}", Printable(.0), .1)]
    Value(String, &'static str),
    /// It was given before.
    #[error("duplicate \"{0}\", expected it once at most")]
    Duplicate(&'static str),
}

/// Sets the parameter that `word` stands for, as [`add`] reads it; it may be set again and again.
/// On an error nothing is set.
pub fn set(parameters: &mut Parameters, word: &str) -> Result<(), ParameterError> {
    let mut changes = Changes::default();
    add(&mut changes, word)?;
    *parameters = changes.apply(*parameters);
    Ok(())
}

/// Notes the parameter that `word` stands for: `weight=N` (0 to 65,535: unlike nginx also 0),
/// `max_fails=N`, `max_conns=N`, `fail_timeout=TIME`, `slow_start=TIME` (0 to 2,147,483,647 ms),
/// `backup`, `drain` or `down`; each once at most. On an error nothing is noted.
pub fn add(changes: &mut Changes, word: &str) -> Result<(), ParameterError> {
    let invalid = |expected| ParameterError::Value(word.to_owned(), expected);
    let count = |value| number(value, COUNT_MAX).ok_or_else(|| invalid("0 to 2147483647"));
    match split(word) {
        ("weight", Some(value)) => {
            let weight = number(value, WEIGHT_MAX).ok_or_else(|| invalid("0 to 65535"))?;
            note(&mut changes.weight, weight, "weight")
        }
        ("max_fails", Some(value)) => note(&mut changes.max_fails, count(value)?, "max_fails"),
        ("max_conns", Some(value)) => note(&mut changes.max_conns, count(value)?, "max_conns"),
        ("fail_timeout", Some(value)) => {
            let expected = "a time of at most 2147483647 seconds";
            let time = seconds(value).ok_or_else(|| invalid(expected))?;
            note(&mut changes.fail_timeout, time, "fail_timeout")
        }
        ("slow_start", Some(value)) => {
            let time = slow_start(value).ok_or_else(|| invalid(SLOW_START))?;
            note(&mut changes.slow_start, time, "slow_start")
        }
        ("backup", None) => note(&mut changes.backup, true, "backup"),
        ("drain", None) => note(&mut changes.drain, true, "drain"),
        ("down", None) => note(&mut changes.down, true, "down"),
        _ => Err(ParameterError::Unknown(word.to_owned())),
    }
}

/// As [`add`], and also `on` and `off` as values of `backup`, `drain` and `down`.
pub fn change(changes: &mut Changes, word: &str) -> Result<(), ParameterError> {
    let switch = |value| match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ParameterError::Value(word.to_owned(), "on or off")),
    };
    match split(word) {
        ("backup", Some(value)) => note(&mut changes.backup, switch(value)?, "backup"),
        ("drain", Some(value)) => note(&mut changes.drain, switch(value)?, "drain"),
        ("down", Some(value)) => note(&mut changes.down, switch(value)?, "down"),
        _ => add(changes, word),
    }
}

fn split(word: &str) -> (&str, Option<&str>) {
    match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    }
}

fn note<T>(noted: &mut Option<T>, value: T, name: &'static str) -> Result<(), ParameterError> {
    if noted.is_some() {
        return Err(ParameterError::Duplicate(name));
    }
    *noted = Some(value);
    Ok(())
}

fn seconds(text: &str) -> Option<u32> {
    let seconds = time::parse_seconds(text).and_then(|seconds| u32::try_from(seconds).ok());
    seconds.filter(|&seconds| seconds <= COUNT_MAX)
}

/// Reads a time as nginx has it, in milliseconds: the value of `slow_start`.
pub fn slow_start(text: &str) -> Option<u32> {
    let time = time::parse_milliseconds(text).and_then(|time| u32::try_from(time).ok());
    time.filter(|&time| time <= COUNT_MAX)
}

/// Digits only, as `ngx_atoi` has it: `parse` alone would take a sign.
pub fn number(text: &str, max: u32) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&number| digits && number <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(word: &str) -> Result<Parameters, String> {
        let mut parameters = Parameters::NGINX;
        match set(&mut parameters, word) {
            Ok(()) => Ok(parameters),
            Err(error) => {
                assert_eq!(parameters, Parameters::NGINX, "{word}");
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn each_parameter_is_set() {
        let plain = Parameters::NGINX;
        assert_eq!(after("weight=0"), Ok(Parameters { weight: 0, ..plain }));
        assert_eq!(after("weight=65535"), Ok(Parameters { weight: 65_535, ..plain }));
        assert_eq!(after("max_fails=0"), Ok(Parameters { max_fails: 0, ..plain }));
        assert_eq!(after("max_conns=2147483647"), Ok(Parameters { max_conns: COUNT_MAX, ..plain }));
        assert_eq!(after("fail_timeout=1m30s"), Ok(Parameters { fail_timeout: 90, ..plain }));
        assert_eq!(after("backup"), Ok(Parameters { backup: true, ..plain }));
        assert_eq!(after("slow_start=30s"), Ok(Parameters { slow_start: 30_000, ..plain }));
        assert_eq!(after("slow_start=1s500ms"), Ok(Parameters { slow_start: 1500, ..plain }));
        assert_eq!(after("slow_start=0"), Ok(plain));
        let longest = Parameters { slow_start: COUNT_MAX, ..plain };
        assert_eq!(after("slow_start=2147483647ms"), Ok(longest));
        assert_eq!(after("drain"), Ok(Parameters { drain: true, ..plain }));
        assert_eq!(after("down"), Ok(Parameters { down: true, ..plain }));
    }

    #[test]
    fn a_value_out_of_range_says_what_is_right() {
        let message = "invalid value in \"weight=65536\", expected 0 to 65535";
        assert_eq!(after("weight=65536"), Err(message.into()));
        let message =
            "invalid value in \"slow_start=x\", expected a time of at most 2147483647 milliseconds";
        assert_eq!(after("slow_start=x"), Err(message.into()));
        for word in [
            "weight=",
            "weight=-1",
            "weight=+1",
            "weight=1.5",
            "weight= 1",
            "max_fails=2147483648",
            "max_conns=x",
            "fail_timeout=500ms",
            "fail_timeout=",
            "fail_timeout=2147483648",
            "slow_start=",
            "slow_start=-1s",
            "slow_start=1M",
            "slow_start=2147483648ms",
            "slow_start=2147484s",
        ] {
            assert!(after(word).is_err_and(|e| e.starts_with("invalid value")), "{word}");
        }
    }

    #[test]
    fn other_words_are_unknown() {
        for word in [
            "",
            "weight",
            "down=1",
            "backup=",
            "drain=on",
            "Weight=1",
            "slow_start",
            "Slow_start=1s",
            "resolve",
        ] {
            assert!(after(word).is_err_and(|e| e.starts_with("unknown parameter")), "{word}");
        }
    }

    #[test]
    fn a_change_is_noted_once() {
        for word in [
            "weight=2",
            "max_fails=2",
            "max_conns=2",
            "fail_timeout=2",
            "slow_start=2",
            "backup",
            "drain",
            "down",
        ] {
            let mut changes = Changes::default();
            assert_eq!(add(&mut changes, word), Ok(()));
            let noted = changes;
            let name = word.trim_end_matches("=2");
            let message = format!("duplicate \"{name}\", expected it once at most");
            assert_eq!(add(&mut changes, word).unwrap_err().to_string(), message);
            assert_eq!(changes, noted);
        }
        let mut parameters = Parameters::NGINX;
        assert_eq!(set(&mut parameters, "weight=2"), Ok(()));
        assert_eq!(set(&mut parameters, "weight=3"), Ok(()));
        assert_eq!(parameters, Parameters { weight: 3, ..Parameters::NGINX });
    }

    #[test]
    fn a_change_may_switch_off() {
        let changed = |words: &str| {
            let mut changes = Changes::default();
            let all = words.split(' ').try_for_each(|word| change(&mut changes, word));
            all.map(|()| (changes.backup, changes.drain, changes.down))
                .map_err(|error| error.to_string())
        };
        assert_eq!(changed("backup=off down"), Ok((Some(false), None, Some(true))));
        assert_eq!(changed("weight=1 down=on"), Ok((None, None, Some(true))));
        assert_eq!(changed("drain=on"), Ok((None, Some(true), None)));
        assert_eq!(changed("slow_start=0 drain=off"), Ok((None, Some(false), None)));
        let message = "invalid value in \"drain=yes\", expected on or off";
        assert_eq!(changed("drain=yes"), Err(message.into()));
        let message = "invalid value in \"down=1\", expected on or off";
        assert_eq!(changed("down=1"), Err(message.into()));
        let message = "duplicate \"down\", expected it once at most";
        assert_eq!(changed("down down=off"), Err(message.into()));
        assert_eq!(changed("up=on"), Err("unknown parameter \"up=on\"".into()));
    }
}
