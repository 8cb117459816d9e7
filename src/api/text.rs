//! Upstreams as text, byte for byte that of ngx_http_dyups_module in Tengine.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::view::View;
use crate::grammar::time::Milliseconds;
use crate::model::Parameters;

/// `GET /list`: a line for each name.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().fold(String::new(), |text, name| text + name + "\n")
}

/// `GET /detail`: the name, a line for each server with its parameters, an empty line.
/// `fail_timeout` is in seconds, flags are 0 or 1. What Tengine lacks stands behind, if it is set.
pub fn detail(views: &[View<'_>]) -> String {
    let mut text = String::new();
    for view in views {
        text += view.name;
        text += "\n";
        for server in &view.servers {
            let Parameters {
                weight,
                max_fails,
                fail_timeout,
                max_conns,
                down: _,
                critical: _,
                backup,
                drain,
                slow_start,
            } = server.parameters;
            let (backup, down) = (u8::from(backup), u8::from(server.parameters.is_down()));
            // Writing into a String cannot fail.
            let _ = write!(
                text,
                "server {} weight={weight} max_conns={max_conns} max_fails={max_fails} \
                 fail_timeout={fail_timeout} backup={backup} down={down}",
                server.address
            );
            if slow_start != 0 {
                let _ = write!(text, " slow_start={}", Milliseconds(slow_start));
            }
            text += if drain { " drain=1\n" } else { "\n" };
        }
        text += "\n";
    }
    text
}

/// `GET /upstream/NAME`: a line for each server.
pub fn upstream(view: &View<'_>) -> String {
    view.servers.iter().fold(String::new(), |text, server| text + "server " + server.address + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::{ServerView, Source};

    fn server(address: &str, parameters: Parameters) -> ServerView<'_> {
        ServerView {
            address,
            parameters,
            connections: 1,
            fails: 2,
            out: true,
            requests: 3,
            failures: 4,
            check: None,
        }
    }

    fn view<'a>(name: &'a str, servers: Vec<ServerView<'a>>) -> View<'a> {
        View {
            name,
            source: Source::Api,
            version: 1,
            since: 0,
            keepalive: None,
            method: None,
            check: None,
            servers,
        }
    }

    fn two() -> [View<'static>; 2] {
        let all = Parameters {
            weight: 5,
            max_fails: 6,
            fail_timeout: 70,
            max_conns: 8,
            down: true,
            backup: true,
            ..Parameters::NGINX
        };
        let servers =
            vec![server("127.0.0.1:8088", Parameters::NGINX), server("unix:/run/a.sock", all)];
        [view("host1", servers), view("host2", vec![])]
    }

    #[test]
    fn a_list_is_a_line_for_each_name() {
        assert_eq!(list(["host1", "host2"]), "host1\nhost2\n");
        assert_eq!(list([]), "");
    }

    #[test]
    fn details_are_those_of_tengine() {
        assert_eq!(
            detail(&two()),
            "host1\n\
             server 127.0.0.1:8088 weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=0 down=0\n\
             server unix:/run/a.sock weight=5 max_conns=8 max_fails=6 fail_timeout=70 backup=1 down=1\n\
             \n\
             host2\n\
             \n"
        );
        assert_eq!(detail(&[]), "");
    }

    #[test]
    fn details_have_more_for_those_who_set_it() {
        let last = |parameters| {
            let text = detail(&[view("a", vec![server("[::1]:80", parameters)])]);
            text.split_once(" down=0").map(|(_, rest)| rest.to_owned())
        };
        let slow = Parameters { slow_start: 500, ..Parameters::NGINX };
        assert_eq!(last(slow), Some(" slow_start=500ms\n\n".into()));
        let both = Parameters { drain: true, slow_start: 30_000, ..slow };
        assert_eq!(last(both), Some(" slow_start=30s drain=1\n\n".into()));
    }

    #[test]
    fn what_consul_takes_out_is_down() {
        let critical = Parameters { critical: true, ..Parameters::NGINX };
        let text = detail(&[view("a", vec![server("[::1]:80", critical)])]);
        assert!(text.contains(" backup=0 down=1\n"), "{text}");
    }

    #[test]
    fn an_upstream_is_its_addresses() {
        let [host1, host2] = two();
        assert_eq!(upstream(&host1), "server 127.0.0.1:8088\nserver unix:/run/a.sock\n");
        assert_eq!(upstream(&host2), "");
    }
}
