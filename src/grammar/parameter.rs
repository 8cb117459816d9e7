//! The parameters of nginx's `server` directive, one word each. Consul's tags hold the same words.
#![forbid(unsafe_code)]

use thiserror::Error;

use super::time;
use crate::model::list::{COUNT_MAX, WEIGHT_MAX};
use crate::model::{Parameters, Printable};

/// Why a word is no parameter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParameterError {
    /// It has no parameter's name.
    #[error("unknown parameter \"{}\"", Printable(.0))]
    Unknown(String),
    /// It has a parameter's name, but not a value of it.
    #[error("invalid value in \"{}\", expected {}", Printable(.0), .1)]
    Value(String, &'static str),
}

const COUNT: &str = "0 to 2147483647";

/// Sets the parameter that `word` stands for: `weight=N` (0 to 65,535: unlike nginx also 0),
/// `max_fails=N`, `max_conns=N`, `fail_timeout=TIME`, `backup` or `down`. On an error nothing is
/// set.
pub fn set(parameters: &mut Parameters, word: &str) -> Result<(), ParameterError> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let value_error = |expected| ParameterError::Value(word.to_owned(), expected);
    let count = |value| number(value, COUNT_MAX).ok_or_else(|| value_error(COUNT));
    match (name, value) {
        ("weight", Some(value)) => {
            let weight = number(value, WEIGHT_MAX);
            parameters.weight = weight.ok_or_else(|| value_error("0 to 65535"))?;
        }
        ("max_fails", Some(value)) => parameters.max_fails = count(value)?,
        ("max_conns", Some(value)) => parameters.max_conns = count(value)?,
        ("fail_timeout", Some(value)) => {
            let seconds = time::parse_seconds(value).and_then(|n| u32::try_from(n).ok());
            parameters.fail_timeout = seconds
                .filter(|&seconds| seconds <= COUNT_MAX)
                .ok_or_else(|| value_error("a time of at most 2147483647 seconds"))?;
        }
        ("backup", None) => parameters.backup = true,
        ("down", None) => parameters.down = true,
        _ => return Err(ParameterError::Unknown(word.to_owned())),
    }
    Ok(())
}

/// Digits only, as `ngx_atoi` has it: `parse` alone would take a sign.
fn number(text: &str, max: u32) -> Option<u32> {
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
        assert_eq!(after("down"), Ok(Parameters { down: true, ..plain }));
    }

    #[test]
    fn a_value_out_of_range_says_what_is_right() {
        let message = "invalid value in \"weight=65536\", expected 0 to 65535";
        assert_eq!(after("weight=65536"), Err(message.into()));
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
        ] {
            assert!(after(word).is_err_and(|e| e.starts_with("invalid value")), "{word}");
        }
    }

    #[test]
    fn other_words_are_unknown() {
        for word in ["", "weight", "down=1", "backup=", "Weight=1", "slow_start=1s", "resolve"] {
            assert!(after(word).is_err_and(|e| e.starts_with("unknown parameter")), "{word}");
        }
    }
}
