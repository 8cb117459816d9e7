//! Upstreams as text, byte for byte that of ngx_http_dyups_module in Tengine.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::view::View;
use crate::model::Parameters;

/// `GET /list`: a line for each name.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().fold(String::new(), |text, name| text + name + "\n")
}

/// `GET /detail`: the name, a line for each server with its parameters, an empty line.
/// `fail_timeout` is in seconds, flags are 0 or 1.
pub fn detail(views: &[View<'_>]) -> String {
    let mut text = String::new();
    for view in views {
        text += view.name;
        text += "\n";
        for server in &view.servers {
            let Parameters { weight, max_fails, fail_timeout, max_conns, down, backup } =
                server.parameters;
            let (backup, down) = (u8::from(backup), u8::from(down));
            // Writing into a String cannot fail.
            let _ = writeln!(
                text,
                "server {} weight={weight} max_conns={max_conns} max_fails={max_fails} \
                 fail_timeout={fail_timeout} backup={backup} down={down}",
                server.address
            );
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
        }
    }

    fn view<'a>(name: &'a str, servers: Vec<ServerView<'a>>) -> View<'a> {
        View { name, source: Source::Api, version: 1, since: 0, keepalive: None, servers }
    }

    fn two() -> [View<'static>; 2] {
        let all = Parameters {
            weight: 5,
            max_fails: 6,
            fail_timeout: 70,
            max_conns: 8,
            down: true,
            backup: true,
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
    fn an_upstream_is_its_addresses() {
        let [host1, host2] = two();
        assert_eq!(upstream(&host1), "server 127.0.0.1:8088\nserver unix:/run/a.sock\n");
        assert_eq!(upstream(&host2), "");
    }
}
