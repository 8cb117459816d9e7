//! The conversation that a check asks for.
#![forbid(unsafe_code)]

use super::Talk;
use super::ajp::Ajp;
use super::fastcgi::Fastcgi;
use super::grpc::Grpc;
use super::hello::Hello;
use super::http::{BodyRule, Http};
use super::mysql::Mysql;
use super::tcp::Tcp;
use crate::model::Check;
use crate::model::check::Kind;

/// The conversation of `check`, once, for a server that goes by the name `host`, as `host` or
/// `host:port`. `body` is `check_http_expect_body` with its regex compiled, `client_hello` a record
/// for `ssl_hello`. What is over TLS is the same as without.
pub fn of(
    check: &Check,
    body: Option<BodyRule>,
    client_hello: Vec<u8>,
    host: &str,
) -> Box<dyn Talk> {
    match check.kind {
        Kind::Tcp => Box::new(Tcp),
        Kind::Http | Kind::Https => {
            let request = check.send.as_deref().unwrap_or(Check::HTTP_SEND).as_bytes();
            let keepalive = check.keepalive_requests > 1;
            Box::new(Http::new(request, check.alive.clone(), body, keepalive))
        }
        Kind::SslHello => Box::new(Hello::new(client_hello)),
        Kind::Mysql => Box::new(Mysql::default()),
        Kind::Ajp => Box::new(Ajp::default()),
        Kind::Fastcgi => Box::new(fastcgi(check)),
        Kind::Grpc | Kind::Grpcs => Box::new(Grpc::new(host, check.kind.is_over_tls())),
    }
}

fn fastcgi(check: &Check) -> Fastcgi {
    if check.fastcgi_params.is_empty() {
        let params = Check::FASTCGI_PARAMS.map(|(name, value)| (name.into(), value.into()));
        return Fastcgi::new(&params, check.alive.clone());
    }
    Fastcgi::new(&check.fastcgi_params, check.alive.clone())
}

#[cfg(test)]
mod tests {
    use super::super::{Step, Verdict};
    use super::*;
    use crate::model::Reason;
    use std::rc::Rc;

    fn make(kind: Kind) -> Box<dyn Talk> {
        of(&Check { kind, ..Check::default() }, None, b"hello".to_vec(), "a")
    }

    #[test]
    fn each_kind_says_its_own() {
        for (kind, start) in [
            (Kind::Http, &b"GET / HTTP/1.0\r\n\r\n"[..]),
            (Kind::Https, b"GET / HTTP/1.0\r\n\r\n"),
            (Kind::SslHello, b"hello"),
            (Kind::Ajp, b"\x12\x34"),
            (Kind::Fastcgi, b"\x01\x01\x00\x01"),
            (Kind::Grpc, b"PRI * HTTP/2.0\r\n"),
            (Kind::Grpcs, b"PRI * HTTP/2.0\r\n"),
        ] {
            assert!(make(kind).open().starts_with(start), "{kind:?}");
        }
        for kind in [Kind::Tcp, Kind::Mysql] {
            assert!(make(kind).open().is_empty(), "{kind:?}");
        }
        for kind in Kind::ALL {
            let idle = make(kind).idle();
            let expected = if kind == Kind::Tcp { Step::Done(Verdict::WELL) } else { Step::Wait };
            assert_eq!(idle, expected, "{kind:?}");
        }
    }

    #[test]
    fn settings_of_http_are_used() {
        let check = Check {
            kind: Kind::Http,
            send: Some("HEAD /x HTTP/1.0\r\n\r\n".into()),
            ..Check::default()
        };
        let body = Some(BodyRule { negated: true, matches: Rc::new(<[u8]>::is_empty) });
        let mut talk = of(&check, body, Vec::new(), "a");
        assert_eq!(talk.open(), b"HEAD /x HTTP/1.0\r\n\r\n");
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(talk.received(answer), Step::Done(Verdict::Failed(Reason::Body)));

        for (keepalive_requests, reusable) in [(1, false), (2, true)] {
            let check = Check { keepalive_requests, ..check.clone() };
            let step = of(&check, None, Vec::new(), "a").received(answer);
            assert_eq!(step, Step::Done(Verdict::Well { reusable }));
        }
    }

    #[test]
    fn parameters_of_fastcgi_are_used() {
        let request = make(Kind::Fastcgi).open();
        let has =
            |request: &[u8], text: &[u8]| request.windows(text.len()).any(|window| window == text);
        assert!(has(&request, b"\x0f\x09SCRIPT_FILENAMEindex.php"));
        let fastcgi_params = vec![("A".into(), "b".into())];
        let check = Check { kind: Kind::Fastcgi, fastcgi_params, ..Check::default() };
        let request = of(&check, None, Vec::new(), "a").open();
        assert!(has(&request, b"\x01\x01Ab") && !has(&request, b"SCRIPT"));
    }
}
