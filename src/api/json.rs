//! Upstreams as JSON.
#![forbid(unsafe_code)]

mod checks;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::view::{Moment, ServerView, Source, View};
use crate::model::{Method, Parameters};
use checks::Checks;

/// `GET /list`: `{"upstreams":["a","b"]}`.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    text(&Upstreams { upstreams: names.into_iter().collect::<Vec<_>>() })
}

/// `GET /detail`: `{"upstreams":{"NAME":{…}}}` in the order of the views, whose names differ.
pub fn detail(views: &[View<'_>]) -> String {
    text(&Upstreams { upstreams: ByName(views) })
}

/// `GET /upstream/NAME`: the object that [`detail`] has under the name.
pub fn upstream(view: &View<'_>) -> String {
    text(&Upstream::new(view))
}

/// The JSON of a value whose maps have texts for keys, which cannot fail.
pub(super) fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[derive(Serialize)]
struct Upstreams<T> {
    upstreams: T,
}

struct ByName<'a>(&'a [View<'a>]);

impl Serialize for ByName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for view in self.0 {
            map.serialize_entry(view.name, &Upstream::new(view))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Upstream<'a> {
    name: &'a str,
    source: Source,
    version: u32,
    since: String,
    keepalive: Option<u32>,
    /// As the directive that chooses it is written; not there if the list came with none.
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    /// Not there if the list came with none.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Checks<'a>>,
    servers: Vec<Server<'a>>,
}

#[derive(Serialize)]
struct Server<'a> {
    server: &'a str,
    weight: u32,
    max_fails: u32,
    fail_timeout: u32,
    max_conns: u32,
    /// As nginx writes times, which is how it can be posted: `30s`, or `500ms`.
    slow_start: Seconds,
    backup: bool,
    /// For the operator's reason or Consul's.
    down: bool,
    /// For Consul's.
    critical: bool,
    drain: bool,
    connections: u32,
    requests: u64,
    failures: u64,
}

impl<'a> Upstream<'a> {
    fn new(view: &'a View<'a>) -> Self {
        Self {
            name: view.name,
            source: view.source,
            version: view.version,
            since: Moment(view.since).rfc3339(),
            keepalive: view.keepalive,
            method: view.method.as_ref().map(Method::to_string),
            check: view.check.as_ref().map(Checks::of),
            servers: view.servers.iter().map(Server::new).collect(),
        }
    }
}

/// A time in seconds, to the millisecond, which is how it can be posted.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Seconds {
    Whole(u32),
    Part(f64),
}

impl Seconds {
    pub(super) fn of(milliseconds: u32) -> Self {
        match milliseconds % 1000 {
            0 => Self::Whole(milliseconds / 1000),
            _ => Self::Part(f64::from(milliseconds) / 1000.0),
        }
    }
}

impl<'a> Server<'a> {
    fn new(server: &'a ServerView<'a>) -> Self {
        let Parameters {
            weight,
            max_fails,
            fail_timeout,
            max_conns,
            down: _,
            critical,
            backup,
            drain,
            slow_start,
        } = server.parameters;
        Self {
            server: server.address,
            weight,
            max_fails,
            fail_timeout,
            max_conns,
            slow_start: Seconds::of(slow_start),
            backup,
            down: server.parameters.is_down(),
            critical,
            drain,
            connections: server.connections,
            requests: server.requests,
            failures: server.failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    use crate::model::Check;
    use crate::model::check::{Alive, ExpectBody, Kind};

    fn view<'a>(name: &'a str, address: &'a str) -> View<'a> {
        let server = ServerView {
            address,
            parameters: Parameters::NGINX,
            connections: 1,
            fails: 2,
            out: false,
            requests: u64::MAX,
            failures: 4,
            check: None,
        };
        View {
            name,
            source: Source::Consul,
            version: 7,
            since: 1_795_255_200_123,
            keepalive: None,
            method: None,
            check: None,
            servers: vec![server],
        }
    }

    const SERVER: &str = r#"{"server":"127.0.0.1:80","weight":1,"max_fails":1,"fail_timeout":10,"max_conns":0,"slow_start":0,"backup":false,"down":false,"critical":false,"drain":false,"connections":1,"requests":18446744073709551615,"failures":4}"#;

    #[test]
    fn names_are_a_list() {
        assert_eq!(list(["b", "a"]), r#"{"upstreams":["b","a"]}"#);
        assert_eq!(list([]), r#"{"upstreams":[]}"#);
    }

    #[test]
    fn an_upstream_has_its_list_and_where_it_comes_from() {
        assert_eq!(
            upstream(&view("app", "127.0.0.1:80")),
            format!(
                r#"{{"name":"app","source":"consul","version":7,"since":"2026-11-21T10:00:00.123Z","keepalive":null,"servers":[{SERVER}]}}"#
            )
        );
        let bare = View {
            source: Source::Config,
            since: 0,
            keepalive: Some(64),
            servers: vec![],
            ..view("b", "")
        };
        assert_eq!(
            upstream(&bare),
            r#"{"name":"b","source":"config","version":7,"since":"1970-01-01T00:00:00.000Z","keepalive":64,"servers":[]}"#
        );
        let key = "${host}\u{e9}".to_owned();
        let method = Some(Method::Hash { key, consistent: true });
        let api = upstream(&View { source: Source::Api, method, ..bare });
        assert!(api.contains(r#""source":"api""#), "{api}");
        let method = r#""keepalive":64,"method":"hash ${host}é consistent","servers":[]"#;
        assert!(api.contains(method), "{api}");
    }

    #[test]
    fn consuls_verdict_is_down_and_told_apart() {
        for (down, critical, shown) in [
            (true, false, r#""down":true,"critical":false,"#),
            (false, true, r#""down":true,"critical":true,"#),
            (true, true, r#""down":true,"critical":true,"#),
        ] {
            let mut view = view("app", "127.0.0.1:80");
            view.servers[0].parameters = Parameters { down, critical, ..Parameters::NGINX };
            assert!(upstream(&view).contains(shown), "{}", upstream(&view));
        }
    }

    #[test]
    fn checks_are_there_where_the_list_came_with_them() {
        let with = |check| upstream(&View { check: Some(check), ..view("app", "127.0.0.1:80") });
        let plain = r#""keepalive":null,"check":{"type":"tcp","interval":30000,"rise":2,"fall":5,"timeout":1000,"default_down":true,"http_expect_alive":["http_2xx","http_3xx"],"keepalive_requests":1,"ssl_verify":false,"fail_open":100},"servers":["#;
        assert!(with(Check::default()).contains(plain), "{}", with(Check::default()));
        let check = Check {
            kind: Kind::Https,
            port: Some(81),
            send: Some("GET /\r\n\r\n".to_owned()),
            alive: Alive::new(vec![(204, 206), (404, 404)]),
            body: Some(ExpectBody { negated: true, regex: r"\s".to_owned() }),
            fastcgi_params: vec![("A".to_owned(), "b".to_owned())],
            ssl_name: Some("a.b".to_owned()),
            ..Check::default()
        };
        let all = r#""default_down":true,"port":81,"http_send":"GET /\r\n\r\n","http_expect_alive":["204-206","404"],"http_expect_body":"!~ \\s","keepalive_requests":1,"fastcgi_param":[["A","b"]],"ssl_verify":false,"ssl_name":"a.b","fail_open":100}"#;
        assert!(with(check.clone()).contains(all), "{}", with(check));
    }

    #[test]
    fn details_are_upstreams_by_name_in_order() {
        let views = [view("b", "127.0.0.1:80"), view("a", "127.0.0.1:80")];
        assert_eq!(
            detail(&views),
            format!(
                r#"{{"upstreams":{{"b":{},"a":{}}}}}"#,
                upstream(&views[0]),
                upstream(&views[1])
            )
        );
        assert_eq!(detail(&[]), r#"{"upstreams":{}}"#);
    }

    proptest! {
        #[test]
        fn any_name_and_address_gives_json(name: String, address: String) {
            let views = [view(&name, &address)];
            let value: Value = serde_json::from_str(&detail(&views)).unwrap();
            let shown = &value["upstreams"][name.as_str()];
            prop_assert_eq!(shown["name"].as_str(), Some(name.as_str()));
            prop_assert_eq!(shown["servers"][0]["server"].as_str(), Some(address.as_str()));
            let value: Value = serde_json::from_str(&list([name.as_str()])).unwrap();
            prop_assert_eq!(value["upstreams"][0].as_str(), Some(name.as_str()));
        }
    }
}
