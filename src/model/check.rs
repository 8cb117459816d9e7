//! How servers are checked: what `check` and its companions say.
#![forbid(unsafe_code)]

/// The checks of one upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// `type`: what is asked.
    pub kind: Kind,
    /// `interval`, from the start of one check to the start of the next, in milliseconds; at least 1.
    pub interval: u32,
    /// `rise`: good checks in a row that bring a server back; at least 1.
    pub rise: u32,
    /// `fall`: failed checks in a row that take it out; at least 1.
    pub fall: u32,
    /// `timeout`: the most that one check may take, in milliseconds; at least 1.
    pub timeout: u32,
    /// `default_down`: a server that has not been checked yet is out.
    pub default_down: bool,
    /// `port`: another port than the server's own, 1 to 65,535.
    pub port: Option<u16>,
    /// `check_http_send`: the whole request; none is [`Check::HTTP_SEND`]. For `http` and `https`.
    pub send: Option<String>,
    /// `check_http_expect_alive`: the codes of a server that is well. For `http`, `https` and `fastcgi`.
    pub alive: Alive,
    /// `check_http_expect_body`. For `http` and `https`.
    pub body: Option<ExpectBody>,
    /// `check_keepalive_requests`: checks over one connection; at least 1.
    pub keepalive_requests: u32,
    /// `check_fastcgi_param`: names and values in their order; none is [`Check::FASTCGI_PARAMS`].
    pub fastcgi_params: Vec<(String, String)>,
    /// `check_ssl_verify`: the server's certificate has to be good. For `https` and `grpcs`.
    pub ssl_verify: bool,
    /// `check_ssl_name`: the name in the handshake and in the certificate; none is the upstream's.
    pub ssl_name: Option<String>,
    /// `check_fail_open`: when more than this many of a hundred servers would be out, verdicts are
    /// ignored; 100 is never.
    pub fail_open: u8,
}

/// What a check asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A connection, and whether the server has closed it by the time it is there.
    #[default]
    Tcp,
    /// A request of HTTP/1.
    Http,
    /// The same over TLS.
    Https,
    /// TLS up to the server's hello.
    SslHello,
    /// The server's greeting.
    Mysql,
    /// CPing and CPong.
    Ajp,
    /// A request.
    Fastcgi,
    /// `grpc.health.v1.Health/Check` over cleartext HTTP/2.
    Grpc,
    /// The same over TLS.
    Grpcs,
}

/// Which status codes are good.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Alive(Vec<(u16, u16)>);

/// What the body of an answer has to be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExpectBody {
    /// It must not match.
    pub negated: bool,
    /// As PCRE reads it.
    pub regex: String,
}

impl Check {
    /// The request where no `check_http_send` says otherwise.
    pub const HTTP_SEND: &str = "GET / HTTP/1.0\r\n\r\n";

    /// The parameters where no `check_fastcgi_param` says otherwise.
    pub const FASTCGI_PARAMS: [(&str, &str); 3] =
        [("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/"), ("SCRIPT_FILENAME", "index.php")];

    /// What tells apart checks that ask for different things, however often; never 0. It is the same in
    /// each process of one build.
    pub fn identity(&self) -> u64 {
        let asked = Self {
            interval: 0,
            rise: 0,
            fall: 0,
            timeout: 0,
            default_down: false,
            keepalive_requests: 0,
            fail_open: 0,
            ..self.clone()
        };
        let digest = md5::compute(format!("{asked:?}"));
        let [a, b, c, d, e, f, g, h, ..] = digest.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
    }
}

impl Default for Check {
    /// What `check;` without parameters says (nginx_upstream_check_module).
    fn default() -> Self {
        Self {
            kind: Kind::Tcp,
            interval: 30_000,
            rise: 2,
            fall: 5,
            timeout: 1000,
            default_down: true,
            port: None,
            send: None,
            alive: Alive::default(),
            body: None,
            keepalive_requests: 1,
            fastcgi_params: Vec::new(),
            ssl_verify: false,
            ssl_name: None,
            fail_open: 100,
        }
    }
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Tcp,
        Self::Http,
        Self::Https,
        Self::SslHello,
        Self::Mysql,
        Self::Ajp,
        Self::Fastcgi,
        Self::Grpc,
        Self::Grpcs,
    ];

    /// The value of `type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::SslHello => "ssl_hello",
            Self::Mysql => "mysql",
            Self::Ajp => "ajp",
            Self::Fastcgi => "fastcgi",
            Self::Grpc => "grpc",
            Self::Grpcs => "grpcs",
        }
    }

    /// Whether a TLS connection carries what is asked.
    pub fn is_over_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }
}

impl Alive {
    /// Takes ranges of codes, first and last, both 100 to 599; they are sorted and joined.
    pub fn new(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// The ranges in their order, with a gap between each two.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Whether a code is among them.
    pub fn has(&self, code: u16) -> bool {
        self.0.iter().any(|&(first, last)| first <= code && code <= last)
    }
}

impl Default for Alive {
    /// 2xx and 3xx.
    fn default() -> Self {
        Self(vec![(200, 399)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined() {
        let alive = Alive::new(vec![(404, 404), (200, 299), (300, 301), (250, 260)]);
        assert_eq!(alive.ranges(), [(200, 301), (404, 404)]);
        assert!(alive.has(200) && alive.has(301) && alive.has(404));
        assert!(!alive.has(302) && !alive.has(199) && !alive.has(403));
    }

    #[test]
    fn a_verdict_holds_as_long_as_the_same_is_asked() {
        let check = Check::default();
        let often = Check { interval: 1, rise: 1, fail_open: 1, ..check.clone() };
        assert_eq!(check.identity(), often.identity());
        assert_ne!(check.identity(), 0);
        for other in [
            Check { kind: Kind::Http, ..check.clone() },
            Check { port: Some(1), ..check.clone() },
            Check { send: Some("x".into()), ..check.clone() },
        ] {
            assert_ne!(check.identity(), other.identity());
        }
    }
}
