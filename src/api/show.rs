//! The text of `upstream_show`, as nginx-upsync-module has it.
#![forbid(unsafe_code)]

use crate::grammar::server;
use crate::shm::block::Block;

/// What is said where no upstream has the name that was asked for.
pub const UNKNOWN: &str = "The upstream you requested does not exist. Please double-check the name";

/// What is said where there is no upstream.
pub const NONE: &str = "No upstreams defined";

/// One upstream.
pub fn one(name: &str, list: &Block) -> String {
    let servers = list.servers();
    let count = servers.len();
    format!(
        "Upstream name: {name}; Backend server count: {count}\n{}",
        server::render_show(servers)
    )
}

/// All upstreams by name, each followed by an empty line.
pub fn all<'a>(upstreams: impl IntoIterator<Item = (&'a str, &'a Block)>) -> String {
    let text: String = upstreams.into_iter().map(|(name, list)| one(name, list) + "\n").collect();
    if text.is_empty() { NONE.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, List, Parameters, Peer};

    #[test]
    fn texts() {
        let address = Address::Ip("127.0.0.1:80".parse().unwrap());
        let list = Block::new(&List::new([Peer { address, parameters: Parameters::CONSUL }]));
        let none = Block::new(&List::default());
        let test = "Upstream name: test; Backend server count: 1\n        \
                    server 127.0.0.1:80 weight=1 max_fails=2 fail_timeout=10s;\n";
        assert_eq!(one("test", &list), test);
        let empty = "Upstream name: b; Backend server count: 0\n";
        assert_eq!(all([("test", &list), ("b", &none)]), format!("{test}\n{empty}\n"));
        assert_eq!(all([]), NONE);
    }
}
