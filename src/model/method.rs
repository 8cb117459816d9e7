//! How an upstream chooses a server for a request.
#![forbid(unsafe_code)]

use std::fmt;

use ipnet::IpNet;

/// A balancing method. Its text is that of the directive that chooses it, without the semicolon;
/// that of [`Method::RoundRobin`] and [`Method::Local`] is that of `upsync_lb`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Each server in its turn, as often as its weight says.
    #[default]
    RoundRobin,
    /// The server with the fewest connections by its weight.
    LeastConn,
    /// By the client's address: the first three bytes of an IPv4, all of an IPv6.
    IpHash,
    /// By a text with variables.
    Hash {
        /// The text as it is written in the directive.
        key: String,
        /// Keys of a server that leaves go to others, all other keys stay: nginx's ketama.
        consistent: bool,
    },
    /// Any server, by weight.
    Random,
    /// The better one of two that were chosen at random.
    RandomTwo(Better),
    /// The server with the least average time and the fewest connections, by its weight.
    LeastTime(Moment),
    /// Servers in these networks, and those of this machine's own sockets, in turn; the others when
    /// none of those is usable.
    Local(Vec<IpNet>),
}

/// What makes one of two servers the better one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Better {
    /// Fewer connections by its weight.
    #[default]
    LeastConn,
    /// Less time and fewer connections by its weight.
    LeastTime(Moment),
}

/// Up to which moment the time of an answer is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Its header is there.
    Header,
    /// All of it is there.
    LastByte,
}

/// A value of the directive `upsync_lb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lb {
    /// [`Method::RoundRobin`].
    RoundRobin,
    /// [`Method::IpHash`].
    IpHash,
    /// [`Method::LeastConn`].
    LeastConn,
    /// [`Method::Hash`] with the key of the directive `hash`.
    HashModula,
    /// The same, consistent.
    HashKetama,
    /// [`Method::Random`].
    Random,
    /// [`Method::LeastTime`] of the header.
    LeastTime,
    /// [`Method::Local`].
    Local(Vec<IpNet>),
}

impl Lb {
    /// The value as it is written, without networks.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => "roundrobin",
            Self::IpHash => "ip_hash",
            Self::LeastConn => "least_conn",
            Self::HashModula => "hash_modula",
            Self::HashKetama => "hash_ketama",
            Self::Random => "random",
            Self::LeastTime => "least_time",
            Self::Local(_) => "local",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundRobin => f.write_str("upsync_lb roundrobin"),
            Self::LeastConn => f.write_str("least_conn"),
            Self::IpHash => f.write_str("ip_hash"),
            Self::Hash { key, consistent } => {
                write!(f, "hash {key}{}", if *consistent { " consistent" } else { "" })
            }
            Self::Random => f.write_str("random"),
            Self::RandomTwo(Better::LeastConn) => f.write_str("random two least_conn"),
            Self::RandomTwo(Better::LeastTime(moment)) => {
                write!(f, "random two least_time={moment}")
            }
            Self::LeastTime(moment) => write!(f, "least_time {moment}"),
            Self::Local(networks) => {
                f.write_str("upsync_lb local")?;
                networks.iter().try_for_each(|network| write!(f, " {network}"))
            }
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::LastByte => "last_byte",
        })
    }
}
