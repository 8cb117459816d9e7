//! `server ADDRESS …;` lines, as the dump file holds them and nginx's `include` reads them.
#![forbid(unsafe_code)]

mod statements;

use std::fmt::{self, Write};

use thiserror::Error;

use super::parameter::{self, ParameterError};
use super::time::Milliseconds;
use crate::model::address::AddressError;
use crate::model::{Endpoint, List, Parameters, Peer, Printable};
use statements::{Statement, Statements};

/// A statement that was skipped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct Complaint {
    /// Counted from 1.
    pub line: usize,
    /// In bytes, counted from 1; what is not UTF-8 counts as the U+FFFD it is read as.
    pub column: usize,
    /// What is wrong with it.
    pub reason: Reason,
}

/// Why a statement is no server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// Ended by the end of the file or by the next statement.
    #[error("no \";\" at the end of \"{}\"", Printable(.0))]
    Unfinished(String),
    /// Another directive, or something that is none.
    #[error("expected \"server\", not \"{}\"", Printable(.0))]
    Unknown(String),
    /// `server;`
    #[error("no address after \"server\"")]
    NoAddress,
    /// Neither an address nor a name.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A name, which the reader of a file of addresses does not resolve.
    #[error("expected an address, not the host name \"{}\"", Printable(.0))]
    Name(String),
    /// Unknown, or with a value out of range.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
}

/// One server as a line of text, without indent and line end.
pub struct Line<A> {
    address: A,
    parameters: Parameters,
}

impl<A: fmt::Display> Line<A> {
    /// The line with the parameters as they are.
    pub fn new(address: A, parameters: Parameters) -> Self {
        Self { address, parameters }
    }

    /// The line for nginx's own `include`. nginx refuses `weight=0`; a server that takes no
    /// requests is one that is down to it.
    pub fn for_include(address: A, parameters: Parameters) -> Self {
        if parameters.weight == 0 {
            return Self::new(address, Parameters { weight: 1, down: true, ..parameters });
        }
        Self::new(address, parameters)
    }
}

impl<A: fmt::Display> fmt::Display for Line<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        } = self.parameters;
        write!(f, "server {} weight={weight} max_fails={max_fails}", self.address)?;
        write!(f, " fail_timeout={fail_timeout}s")?;
        if max_conns != 0 {
            write!(f, " max_conns={max_conns}")?;
        }
        if slow_start != 0 {
            write!(f, " slow_start={}", Milliseconds(slow_start))?;
        }
        f.write_str(if backup { " backup" } else { "" })?;
        f.write_str(if drain { " drain" } else { "" })?;
        f.write_str(if self.parameters.is_down() { " down;" } else { ";" })
    }
}

/// Servers as `upstream_show` lists them: each line with an indent of 8 spaces.
pub fn render_show<A: fmt::Display>(servers: impl Iterator<Item = (A, Parameters)>) -> String {
    render("        ", servers.map(|(address, parameters)| Line::new(address, parameters)))
}

/// The content of the dump file: what nginx's `include` and [`parse`] read. nginx refuses an
/// upstream whose servers are all `backup`; they serve alike without it.
pub fn render_dump(list: &List) -> String {
    let all_backup = list.peers().iter().all(|peer| peer.parameters.backup);
    let lines = list.peers().iter().map(|peer| {
        let backup = peer.parameters.backup && !all_backup;
        Line::for_include(&peer.address, Parameters { backup, ..peer.parameters })
    });
    render("", lines)
}

/// The lines, each with the indent before it and a line feed behind it.
pub(super) fn render<A: fmt::Display>(
    indent: &str,
    lines: impl Iterator<Item = Line<A>>,
) -> String {
    lines.fold(String::new(), |mut text, line| {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{indent}{line}");
        text
    })
}

/// Reads `server ADDRESS [weight=N] [max_fails=N] [fail_timeout=TIME] [max_conns=N]
/// [slow_start=TIME] [backup] [drain] [down];` statements with any white space and comments
/// between. Parameters that are not there have nginx's defaults, the port too. A bad statement is
/// skipped with a complaint and hides no other; of the same address the first stays.
pub fn parse(text: &[u8]) -> (List, Vec<Complaint>) {
    let text = String::from_utf8_lossy(text);
    let mut complaints = Vec::new();
    let mut peers = Vec::new();
    for statement in Statements::new(&text) {
        match server(&statement) {
            Ok(peer) => peers.push(peer),
            Err(reason) => {
                let (line, column) = statement.place;
                complaints.push(Complaint { line, column, reason });
            }
        }
    }
    (List::new(peers), complaints)
}

fn server(statement: &Statement<'_>) -> Result<Peer, Reason> {
    if !statement.finished {
        return Err(Reason::Unfinished(statement.words.join(" ")));
    }
    let mut words = statement.words.iter().copied();
    match words.next().unwrap_or_default() {
        "server" => {}
        other => return Err(Reason::Unknown(other.to_owned())),
    }
    let endpoint = Endpoint::parse(words.next().ok_or(Reason::NoAddress)?, Some(80))?;
    let mut parameters = Parameters::NGINX;
    for word in words {
        parameter::set(&mut parameters, word)?;
    }
    match endpoint {
        Endpoint::Address(address) => Ok(Peer { address, parameters }),
        name @ Endpoint::Name { .. } => Err(Reason::Name(name.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Address;
    use crate::model::list::{COUNT_MAX, WEIGHT_MAX};
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn peer(address: &str, parameters: Parameters) -> Peer {
        match Endpoint::parse(address, None) {
            Ok(Endpoint::Address(address)) => Peer { address, parameters },
            other => panic!("{other:?}"),
        }
    }

    fn complaints(text: &str) -> Vec<String> {
        parse(text.as_bytes()).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn texts_equal_those_of_nginx_upsync_module() {
        let heavy = Parameters { weight: 10, max_fails: 3, ..Parameters::CONSUL };
        let down = Parameters { down: true, ..Parameters::CONSUL };
        let list = List::new([peer("127.0.0.1:8088", heavy), peer("127.0.0.1:8089", down)]);
        assert_eq!(
            render_show(list.peers().iter().map(|peer| (&peer.address, peer.parameters))),
            "        server 127.0.0.1:8088 weight=10 max_fails=3 fail_timeout=10s;\n        \
             server 127.0.0.1:8089 weight=1 max_fails=2 fail_timeout=10s down;\n"
        );
        assert_eq!(
            render_dump(&list),
            "server 127.0.0.1:8088 weight=10 max_fails=3 fail_timeout=10s;\n\
             server 127.0.0.1:8089 weight=1 max_fails=2 fail_timeout=10s down;\n"
        );
    }

    #[test]
    fn what_nginx_upsync_module_lacks_is_shown_only_if_set() {
        let parameters =
            Parameters { max_conns: 5, backup: true, down: true, ..Parameters::CONSUL };
        assert_eq!(
            Line::new("unix:/run/a", parameters).to_string(),
            "server unix:/run/a weight=1 max_fails=2 fail_timeout=10s max_conns=5 backup down;"
        );
        let line = |slow_start, drain, parameters| {
            let parameters = Parameters { slow_start, drain, ..parameters };
            let line = Line::new("unix:/run/a", parameters).to_string();
            line.replace("server unix:/run/a weight=1 max_fails=2 fail_timeout=10s", "")
        };
        assert_eq!(
            line(30_000, true, parameters),
            " max_conns=5 slow_start=30s backup drain down;"
        );
        assert_eq!(line(500, false, Parameters::CONSUL), " slow_start=500ms;");
        assert_eq!(line(0, true, Parameters::CONSUL), " drain;");
    }

    #[test]
    fn what_consul_takes_out_is_down_in_texts() {
        for (down, critical, end) in [
            (false, false, ";"),
            (true, false, " down;"),
            (false, true, " down;"),
            (true, true, " down;"),
        ] {
            let parameters = Parameters { down, critical, ..Parameters::CONSUL };
            let text = format!("server [::1]:80 weight=1 max_fails=2 fail_timeout=10s{end}");
            assert_eq!(Line::new("[::1]:80", parameters).to_string(), text);
            let dump = render_dump(&List::new([peer("[::1]:80", parameters)]));
            assert_eq!(dump, format!("{text}\n"));
            let down = Parameters { down: end != ";", critical: false, ..parameters };
            assert_eq!(parse(dump.as_bytes()).0.peers(), [peer("[::1]:80", down)], "read back");
        }
    }

    #[test]
    fn weight_0_is_down_in_the_dump_and_itself_in_the_show() {
        let list = List::new([peer("[::1]:80", Parameters { weight: 0, ..Parameters::CONSUL })]);
        let rest = "max_fails=2 fail_timeout=10s";
        assert_eq!(render_dump(&list), format!("server [::1]:80 weight=1 {rest} down;\n"));
        assert_eq!(
            render_show(list.peers().iter().map(|peer| (&peer.address, peer.parameters))),
            format!("        server [::1]:80 weight=0 {rest};\n")
        );
    }

    #[test]
    fn parameters_that_are_not_there_have_the_defaults_of_nginx() {
        let (list, complaints) = parse(b"server 10.0.0.1;\n\tserver\n10.0.0.2:81  backup # x\n;");
        let backup = Parameters { backup: true, ..Parameters::NGINX };
        let expected = [peer("10.0.0.1:80", Parameters::NGINX), peer("10.0.0.2:81", backup)];
        assert_eq!((list.peers(), complaints.len()), (&expected[..], 0));
    }

    #[test]
    fn a_bad_statement_hides_no_other() {
        let text = "server 1.1.1.1:1 weig\nserver 1.1.1.2:2;\nserver 1.1.1.3:3 x;\n  listen 80;\n\
                    server a.b:4; server; server 1.1.1.4:0;\nserver 1.1.1.5:5;\nserver 1.1.1.6:6 wei";
        let (list, _) = parse(text.as_bytes());
        let expected = [peer("1.1.1.2:2", Parameters::NGINX), peer("1.1.1.5:5", Parameters::NGINX)];
        assert_eq!(list.peers(), expected);
        assert_eq!(
            complaints(text),
            [
                r#"line 1, column 1: no ";" at the end of "server 1.1.1.1:1 weig""#,
                r#"line 3, column 1: unknown parameter "x""#,
                r#"line 4, column 3: expected "server", not "listen""#,
                r#"line 5, column 1: expected an address, not the host name "a.b:4""#,
                r#"line 5, column 15: no address after "server""#,
                r#"line 5, column 23: invalid port in "1.1.1.4:0", expected 1 to 65535"#,
                r#"line 7, column 1: no ";" at the end of "server 1.1.1.6:6 wei""#,
            ]
        );
    }

    #[test]
    fn complaints_are_printable() {
        let (_, complaints) = parse(b"\x1b[2J\xff;");
        assert_eq!(
            complaints[0].to_string(),
            "line 1, column 1: expected \"server\", not \"\\u{1b}[2J\u{fffd}\""
        );
    }

    prop_compose! {
        fn any_peer()(
            address in prop_oneof![
                any::<SocketAddr>()
                    .prop_map(|a| Address::Ip(SocketAddr::new(a.ip(), a.port().max(1)))),
                "/[a-z0-9./_-]{1,100}".prop_map(Address::Unix),
            ],
            weight in 1..=WEIGHT_MAX, max_fails in 0..=COUNT_MAX, fail_timeout in 0..=COUNT_MAX,
            max_conns in 0..=COUNT_MAX, down: bool, backup: bool, drain: bool,
            slow_start in 0..=COUNT_MAX,
        ) -> Peer {
            let parameters = Parameters {
                weight, max_fails, fail_timeout, max_conns, down, critical: false, backup, drain,
                slow_start,
            };
            Peer { address, parameters }
        }
    }

    proptest! {
        #[test]
        fn what_is_rendered_reads_back(peers in proptest::collection::vec(any_peer(), 0..20)) {
            let list = List::new(peers);
            let servers = list.peers().iter().map(|peer| (&peer.address, peer.parameters));
            prop_assert_eq!(parse(render_show(servers).as_bytes()), (list.clone(), vec![]));
            let any_primary = list.peers().iter().any(|peer| !peer.parameters.backup);
            let as_dumped = List::new(list.peers().iter().cloned().map(|mut peer| {
                peer.parameters.backup &= any_primary;
                peer
            }));
            prop_assert_eq!(parse(render_dump(&list).as_bytes()), (as_dumped, vec![]));
        }

        #[test]
        fn any_bytes_are_read(text in any::<Vec<u8>>()) {
            let _ = parse(&text);
        }

        #[test]
        fn near_misses_are_read(text in r"((server|weight=|slow_start=|drain|down|[0-9.:;# \n\[\]])){0,60}") {
            let (list, _) = parse(text.as_bytes());
            prop_assert_eq!(parse(render_dump(&list).as_bytes()).1, vec![]);
        }
    }
}
