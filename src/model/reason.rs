//! Why a check failed.
#![forbid(unsafe_code)]

use std::fmt;

/// Why a check failed. It fits into a word, so that each process can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nobody listens.
    Refused,
    /// The network, or the machine, says that there is no way to the server.
    Unreachable,
    /// Another failure to connect, by its number in `errno.h`.
    Connect(u16),
    /// The time was over.
    Timeout(Stage),
    /// The server closed the connection before it had answered.
    Closed(Stage),
    /// It reset the connection.
    Reset(Stage),
    /// Another failure of the connection, by its number in `errno.h`.
    Broken(Stage, u16),
    /// The answer has this status, of HTTP or as FastCGI's `Status`.
    Status(u16),
    /// The body of the answer is not as `check_http_expect_body` wants it.
    Body,
    /// The answer is none of this protocol.
    NotHttp,
    /// As above.
    NotFastcgi,
    /// As above.
    NotMysql,
    /// As above.
    NotAjp,
    /// As above.
    NotTls,
    /// As above.
    NotGrpc,
    /// MySQL answers by an error, with this code.
    Mysql(u16),
    /// TLS was refused, by an alert of this number (RFC 8446, section 6).
    TlsAlert(u8),
    /// The handshake failed in another way.
    Handshake,
    /// The certificate is not good, by the number of OpenSSL's `X509_V_ERR_…`.
    Certificate(u16),
    /// The certificate is not for the name.
    CertificateName,
    /// gRPC answers with this status code.
    Grpc(u16),
    /// The service's own status (`grpc.health.v1`, `ServingStatus`).
    NotServing(u8),
    /// The answer is too long to be looked at.
    TooLong,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The connection is being made.
    Connect,
    /// TLS is.
    Handshake,
    /// The request is being sent.
    Send,
    /// The answer is waited for.
    Read,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Connect, Self::Handshake, Self::Send, Self::Read];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Send => "send",
            Self::Read => "read",
        })
    }
}

impl Reason {
    /// As a word: what it is in the lowest 8 bits, the stage in the next 8, a number in the next
    /// 16. Never 0.
    pub fn to_word(self) -> u32 {
        let (what, stage, number) = match self {
            Self::Refused => (1, 0, 0),
            Self::Unreachable => (2, 0, 0),
            Self::Connect(number) => (3, 0, number),
            Self::Timeout(stage) => (4, stage as u32, 0),
            Self::Closed(stage) => (5, stage as u32, 0),
            Self::Reset(stage) => (6, stage as u32, 0),
            Self::Broken(stage, number) => (7, stage as u32, number),
            Self::Status(number) => (8, 0, number),
            Self::Body => (9, 0, 0),
            Self::NotHttp => (10, 0, 0),
            Self::NotFastcgi => (11, 0, 0),
            Self::NotMysql => (12, 0, 0),
            Self::NotAjp => (13, 0, 0),
            Self::NotTls => (14, 0, 0),
            Self::NotGrpc => (15, 0, 0),
            Self::Mysql(number) => (16, 0, number),
            Self::TlsAlert(number) => (17, 0, number.into()),
            Self::Handshake => (18, 0, 0),
            Self::Certificate(number) => (19, 0, number),
            Self::CertificateName => (20, 0, 0),
            Self::Grpc(number) => (21, 0, number),
            Self::NotServing(number) => (22, 0, number.into()),
            Self::TooLong => (23, 0, 0),
        };
        what | stage << 8 | u32::from(number) << 16
    }

    /// Reads what [`Self::to_word`] wrote.
    pub fn from_word(word: u32) -> Option<Self> {
        let number = (word >> 16) as u16;
        let stage = Stage::ALL.get((word >> 8 & 0xff) as usize).copied()?;
        Some(match word & 0xff {
            1 => Self::Refused,
            2 => Self::Unreachable,
            3 => Self::Connect(number),
            4 => Self::Timeout(stage),
            5 => Self::Closed(stage),
            6 => Self::Reset(stage),
            7 => Self::Broken(stage, number),
            8 => Self::Status(number),
            9 => Self::Body,
            10 => Self::NotHttp,
            11 => Self::NotFastcgi,
            12 => Self::NotMysql,
            13 => Self::NotAjp,
            14 => Self::NotTls,
            15 => Self::NotGrpc,
            16 => Self::Mysql(number),
            17 => Self::TlsAlert(number as u8),
            18 => Self::Handshake,
            19 => Self::Certificate(number),
            20 => Self::CertificateName,
            21 => Self::Grpc(number),
            22 => Self::NotServing(number as u8),
            23 => Self::TooLong,
            _ => return None,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connect refused"),
            Self::Unreachable => f.write_str("no route to the server"),
            Self::Connect(number) => write!(f, "connect failed ({})", error(*number)),
            Self::Timeout(stage) => write!(f, "timeout in {stage}"),
            Self::Closed(stage) => write!(f, "connection closed in {stage}"),
            Self::Reset(stage) => write!(f, "connection reset in {stage}"),
            Self::Broken(stage, number) => write!(f, "{stage} failed ({})", error(*number)),
            Self::Status(code) => write!(f, "status {code}"),
            Self::Body => f.write_str("body does not match"),
            Self::NotHttp => f.write_str("no answer of HTTP"),
            Self::NotFastcgi => f.write_str("no answer of FastCGI"),
            Self::NotMysql => f.write_str("no greeting of MySQL"),
            Self::NotAjp => f.write_str("no answer of AJP"),
            Self::NotTls => f.write_str("no answer of TLS"),
            Self::NotGrpc => f.write_str("no answer of gRPC"),
            Self::Mysql(code) => write!(f, "MySQL error {code}"),
            Self::TlsAlert(number) => match alert(*number) {
                Some(name) => write!(f, "TLS alert {name}"),
                None => write!(f, "TLS alert {number}"),
            },
            Self::Handshake => f.write_str("TLS handshake failed"),
            Self::Certificate(number) => write!(f, "certificate not verified (error {number})"),
            Self::CertificateName => f.write_str("certificate does not match the name"),
            Self::Grpc(code) => write!(f, "gRPC status {code}"),
            Self::NotServing(2) => f.write_str("gRPC health NOT_SERVING"),
            Self::NotServing(3) => f.write_str("gRPC health SERVICE_UNKNOWN"),
            Self::NotServing(0) => f.write_str("gRPC health UNKNOWN"),
            Self::NotServing(number) => write!(f, "gRPC health {number}"),
            Self::TooLong => f.write_str("answer too long"),
        }
    }
}

/// What servers say when a client is not as they want it (RFC 8446, section 6.2).
fn alert(number: u8) -> Option<&'static str> {
    Some(match number {
        40 => "handshake_failure",
        42 => "bad_certificate",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        48 => "unknown_ca",
        49 => "access_denied",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        112 => "unrecognized_name",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => return None,
    })
}

fn error(number: u16) -> std::io::Error {
    std::io::Error::from_raw_os_error(number.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_the_same() {
        for what in 0..=255_u32 {
            for stage in 0..4 {
                let word = what | stage << 8 | 503 << 16;
                if let Some(reason) = Reason::from_word(word) {
                    assert_eq!(Reason::from_word(reason.to_word()), Some(reason));
                    assert!(!reason.to_string().is_empty());
                }
            }
        }
        assert_eq!(Reason::from_word(0), None);
    }

    #[test]
    fn texts() {
        for (reason, text) in [
            (Reason::Refused, "connect refused"),
            (Reason::Timeout(Stage::Read), "timeout in read"),
            (Reason::Status(503), "status 503"),
            (Reason::Body, "body does not match"),
        ] {
            assert_eq!(reason.to_string(), text);
            assert_eq!(Reason::from_word(reason.to_word()), Some(reason));
        }
    }
}
