//! Tests of what paths and methods mean.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;

const METHODS: [Method; 6] =
    [Method::Get, Method::Post, Method::Put, Method::Patch, Method::Delete, Method::Other];

fn full(method: Method, path: &str) -> Result<Route, Answer> {
    route(method, path.as_bytes(), Access::Full, Dialect::Text)
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn address(text: &str) -> Address {
    match Endpoint::parse(text, None) {
        Ok(Endpoint::Address(address)) => address,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_shown() {
    let app = || Read::Upstream(name("app"));
    for (path, read) in [
        ("/list", Read::List),
        ("list", Read::List),
        ("//LIST//x", Read::List),
        ("/detail", Read::Detail),
        ("/Detail/", Read::Detail),
        ("/status", Read::Status),
        ("/upstream/app", app()),
        ("upstream//App/", app()),
        ("/Upstream/app/server", app()),
    ] {
        assert_eq!(full(Method::Get, path), Ok(Route::Read(read.clone())), "{path}");
        let read_only = route(Method::Get, path.as_bytes(), Access::ReadOnly, Dialect::Json);
        assert_eq!(read_only, Ok(Route::Read(read)), "{path}");
    }
}

#[test]
fn what_is_changed() {
    let app = || name("app");
    for (methods, path, write) in [
        ("POST PUT", "/upstream/app", Write::Replace(app())),
        ("POST PUT", "UPSTREAM//APP/", Write::Replace(app())),
        ("POST", "/upstream/server", Write::Replace(name("server"))),
        ("DELETE", "/upstream/app", Write::Delete(app())),
        ("POST", "/upstream/app/reset", Write::Reset(app())),
        ("POST", "/upstream/app/Reset//", Write::Reset(app())),
        ("POST PUT", "/upstream/app/server", Write::AddServer(app())),
        ("POST PUT", "/upstream/app/SERVER/", Write::AddServer(app())),
    ] {
        for method in methods.split(' ').map(method) {
            assert_eq!(full(method, path), Ok(Route::Write(write.clone())), "{path}");
        }
        let has_body = !matches!(write, Write::Delete(_) | Write::Reset(_));
        assert_eq!(write.has_body(), has_body, "{path}");
    }
}

fn method(text: &str) -> Method {
    match text {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        _ => Method::Other,
    }
}

#[test]
fn an_address_is_the_rest_of_the_path() {
    for (text, expected) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("127.0.0.1", "127.0.0.1:80"),
        ("/127.0.0.1:80/", "127.0.0.1:80"),
        ("[::1]:81", "[::1]:81"),
        ("[::1]", "[::1]:80"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:/run/a/", "unix:/run/a/"),
    ] {
        let path = format!("/upstream/app/server/{text}");
        let (name, address) = (name("app"), address(expected));
        let write = Write::RemoveServer(name.clone(), address.clone());
        assert_eq!(full(Method::Delete, &path), Ok(Route::Write(write)), "{path}");
        let write = Write::PatchServer(name, address);
        assert_eq!(full(Method::Patch, &path), Ok(Route::Write(write)), "{path}");
    }
}

#[test]
fn a_name_or_address_that_is_none_is_named() {
    let name_error = "invalid upstream name, expected 1 to 255 letters, digits, \".\", \"-\", \
                      \"_\" or \":\"";
    for (methods, path, text) in [
        ("GET POST PUT DELETE", "/upstream/a b", name_error),
        ("POST PUT", "/upstream/é/server", name_error),
        ("POST", "/upstream/a\0/reset", name_error),
        ("DELETE PATCH", "/upstream/a;/server/x", name_error),
        (
            "DELETE PATCH",
            "/upstream/a/server/b.local",
            "expected an address, not the host name \"b.local:80\"",
        ),
        (
            "DELETE PATCH",
            "/upstream/a/server/1.1.1.1:0",
            "invalid port in \"1.1.1.1:0\", expected 1 to 65535",
        ),
        ("DELETE PATCH", "/upstream/a/server/1.1.1.1/x", "invalid host in \"1.1.1.1/x\""),
        (
            "DELETE",
            "/upstream/a/server/unix:run",
            "invalid path in \"unix:run\", expected unix:/PATH of at most 107 bytes",
        ),
    ] {
        for method in methods.split(' ').map(method) {
            assert_eq!(full(method, path), Err(Answer::bad_path(Dialect::Text, text)), "{path}");
        }
    }
}

/// Code, text and `Allow` of a refusal.
fn refused(method_name: &str, path: &str) -> (u16, String, &'static str) {
    let answer = full(method(method_name), path).unwrap_err();
    (answer.status, answer.body.into_owned(), answer.allow.unwrap_or_default())
}

#[test]
fn paths_that_are_not_there() {
    const INTERFACE: &str = "not support this interface";
    const API: &str = "not support this api";
    for (methods, path, status, text, allow) in [
        ("GET", "", 404, "", ""),
        ("GET", "/upstream/a/b", 404, "", ""),
        ("GET", "/upstream/a/server/1.1.1.1", 404, "", ""),
        ("GET", "/", 404, "", ""),
        ("GET", "/lists", 404, "", ""),
        ("GET", "/upstream", 404, "", ""),
        ("GET", "/upstream//", 404, "", ""),
        ("POST PUT", "", 404, INTERFACE, ""),
        ("POST PUT", "/list", 404, INTERFACE, ""),
        ("POST PUT", "/upstream", 404, INTERFACE, ""),
        ("POST PUT", "/upstream/a/b", 404, INTERFACE, ""),
        ("POST PUT", "/upstream/a/server/1.1.1.1", 404, INTERFACE, ""),
        ("POST PUT", "/upstream/a/reset/b", 404, INTERFACE, ""),
        ("POST PUT", "/a/b/server", 404, INTERFACE, ""),
        ("POST PUT", "/a/b", 404, API, ""),
        ("DELETE", "", 405, INTERFACE, "GET"),
        ("DELETE", "/upstream", 405, INTERFACE, "GET"),
        ("DELETE", "/upstream/a/b", 405, INTERFACE, "GET"),
        ("DELETE", "/upstream/a/server", 405, INTERFACE, "GET, POST, PUT"),
        ("DELETE", "/upstream/a/reset", 405, INTERFACE, "POST"),
        ("DELETE", "/a/b", 405, API, "GET"),
        ("PUT", "/upstream/a/reset", 405, "", "POST"),
        ("PATCH", "/upstream/a", 405, "", "GET, POST, PUT, DELETE"),
        ("PATCH", "/upstream/a/server", 405, "", "GET, POST, PUT"),
        ("PATCH", "/upstream/a/reset", 405, "", "POST"),
        ("PATCH", "/upstream", 405, "", "GET"),
        ("PATCH", "/a/b", 405, "", "GET"),
        ("HEAD", "/list", 405, "", ALL),
        ("OPTIONS", "/", 405, "", ALL),
    ] {
        for method in methods.split(' ') {
            let expected = (status, text.to_owned(), allow);
            assert_eq!(refused(method, path), expected, "{method} {path}");
        }
    }
}

#[test]
fn read_only_is_get_only_whatever_the_path() {
    for method in &METHODS[1..] {
        for path in ["/list", "/upstream/a b", "x"] {
            let answer = route(*method, path.as_bytes(), Access::ReadOnly, Dialect::Text);
            assert_eq!(answer, Err(Answer::method_not_allowed(Dialect::Text, "GET")));
        }
    }
}

#[test]
fn refusals_are_in_the_dialect() {
    let answer = route(Method::Delete, b"/a/b", Access::Full, Dialect::Json).unwrap_err();
    assert_eq!(answer.body, r#"{"status":405,"msg":"not support this api"}"#);
}

proptest! {
    #[test]
    fn any_path_ends(path: Vec<u8>, which in 0..METHODS.len()) {
        for dialect in [Dialect::Text, Dialect::Json] {
            let _ = route(METHODS[which], &path, Access::Full, dialect);
        }
    }

    #[test]
    fn near_misses_end(
        path in r"/?((upstream|server|reset|list|unix:|[a-z.:\[\]]|1\.1\.1\.1|/)){0,12}",
        which in 0..METHODS.len(),
    ) {
        if let Err(answer) = full(METHODS[which], &path) {
            prop_assert!([400, 404, 405].contains(&answer.status));
            prop_assert_eq!(answer.status == 405, answer.allow.is_some());
        }
    }

    #[test]
    fn every_address_is_found_by_its_own_text(ip: std::net::IpAddr, port in 1u16..) {
        let address = Address::Ip(std::net::SocketAddr::new(ip, port));
        let path = format!("/upstream/a/server/{address}");
        let write = Write::RemoveServer(name("a"), address);
        prop_assert_eq!(full(Method::Delete, &path), Ok(Route::Write(write)));
    }
}
