//! Why a server gets no requests.
#![forbid(unsafe_code)]

use std::fmt;

/// One who keeps requests away from a server. Each says so for itself; the server gets requests
/// when none does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Out {
    /// The operator: `down`.
    Down = 1,
    /// The operator: `drain`. Requests that are bound to the server still get there.
    Drain = 2,
    /// The operator: a weight of 0.
    NoWeight = 4,
    /// Consul: a critical check of its own.
    Consul = 8,
    /// The active check.
    Check = 16,
    /// Failures of requests: `max_fails` within `fail_timeout`.
    MaxFails = 32,
    /// Its connections: `max_conns` are there.
    MaxConns = 64,
}

impl Out {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Down,
        Self::Drain,
        Self::NoWeight,
        Self::Consul,
        Self::Check,
        Self::MaxFails,
        Self::MaxConns,
    ];

    /// The word for it in texts, JSON and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Drain => "drain",
            Self::NoWeight => "weight",
            Self::Consul => "consul",
            Self::Check => "check",
            Self::MaxFails => "max_fails",
            Self::MaxConns => "max_conns",
        }
    }
}

/// All who keep requests away from a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outs(u8);

impl Outs {
    /// Adds one, if it is so.
    pub fn add_if(&mut self, is_so: bool, out: Out) {
        if is_so {
            self.0 |= out as u8;
        }
    }

    /// Adds those of another.
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether one of them is there.
    pub fn has(self, out: Out) -> bool {
        self.0 & out as u8 != 0
    }

    /// Whether the server gets requests.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Those that are there.
    pub fn iter(self) -> impl Iterator<Item = Out> {
        Out::ALL.into_iter().filter(move |&out| self.has(out))
    }
}

/// Their words, with commas between: `down,check`.
impl fmt::Display for Outs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, out) in self.iter().enumerate() {
            write!(f, "{}{}", if place == 0 { "" } else { "," }, out.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_kept_apart() {
        let mut outs = Outs::default();
        assert!(outs.is_none());
        outs.add_if(false, Out::Consul);
        outs.add_if(true, Out::Check);
        outs.add_if(true, Out::Down);
        assert_eq!(outs.to_string(), "down,check");
        assert!(outs.has(Out::Check) && !outs.has(Out::Consul));
    }
}
