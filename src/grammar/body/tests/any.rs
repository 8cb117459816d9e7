//! Nothing that may be posted is too much. `PROPTEST_CASES` sets how many are tried.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::grammar::check::tests::any_check;
use crate::grammar::method::tests::any_method;
use crate::grammar::words::Words;
use crate::model::list::{COUNT_MAX, WEIGHT_MAX};
use crate::model::{Address, List, Parameters, Peer};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What may stand between two words.
const BLANKS: [&str; 6] = [" ", "\t", "\r\n", "\n\n", " # server é;\n", "\n#\n\t"];

const BYTES: [u8; 16] = *b" \n;#{}$\"\\=:0a\0\xff\xc3";

prop_compose! {
    fn any_parameters()(
        weight in 0..=WEIGHT_MAX, max_fails in 0..=COUNT_MAX, fail_timeout in 0..=COUNT_MAX,
        max_conns in 0..=COUNT_MAX, down: bool, backup: bool, drain: bool,
        slow_start in 0..=COUNT_MAX,
    ) -> Parameters {
        let critical = false;
        Parameters {
            weight, max_fails, fail_timeout, max_conns, down, critical, backup, drain, slow_start,
        }
    }
}

prop_compose! {
    fn any_peer()(
        address in prop_oneof![
            any::<SocketAddr>()
                .prop_map(|a| Address::Ip(SocketAddr::new(a.ip(), a.port().max(1)))),
            "/[a-z0-9./_-]{1,100}".prop_map(Address::Unix),
        ],
        parameters in any_parameters(),
    ) -> Peer {
        Peer { address, parameters }
    }
}

/// The words of a statement that is right.
fn any_server() -> impl Strategy<Value = Vec<String>> {
    let target = prop_oneof![
        any_peer().prop_map(|peer| peer.address.to_string()),
        "upstream:[A-Za-z0-9._:-]{1,20}",
        "h[A-Za-z]{0,9}(:[1-9][0-9]{0,3})?",
    ];
    let names = vec!["weight", "max_fails", "fail_timeout", "max_conns", "slow_start"];
    let word = (select(names), 0..=WEIGHT_MAX)
        .prop_map(|(name, number)| (name, format!("{name}={number}")));
    let flag = select(vec!["backup", "drain", "down"]).prop_map(|name| (name, name.to_owned()));
    (target, vec(prop_oneof![word, flag], 0..6)).prop_map(|(target, mut words)| {
        let mut seen = HashSet::new();
        words.retain(|(name, _)| seen.insert(*name));
        let words = words.into_iter().map(|(_, word)| word);
        ["server".to_owned(), target].into_iter().chain(words).collect()
    })
}

/// The words of a directive that chooses a method.
fn any_directive() -> impl Strategy<Value = Vec<String>> {
    let words = any_method().prop_map(|method| method.to_string());
    let words = words.prop_filter("has a network", |text| text != "upsync_lb local");
    words.prop_map(|text| text.split(' ').map(str::to_owned).collect())
}

/// The words of each of the directives that say how servers are checked, as they are written.
fn any_checks() -> impl Strategy<Value = Vec<Vec<String>>> {
    any_check().prop_map(|check| {
        let split = |directive: String| {
            let mut words = Words::new(&directive);
            std::iter::from_fn(|| words.argument().map(|word| word.word.text.to_owned())).collect()
        };
        check::render(&check).into_iter().map(split).collect()
    })
}

/// Statements of a body that is right.
fn any_statements() -> impl Strategy<Value = Vec<Vec<String>>> {
    let keepalive = proptest::option::of((any::<Index>(), 1..=KEEPALIVE_MAX));
    let method = proptest::option::of((any::<Index>(), any_directive()));
    let checks = proptest::option::of((any::<Index>(), any_checks()));
    let all = (vec(any_server(), 1..12), keepalive, method, checks);
    all.prop_map(|(mut statements, keepalive, method, checks)| {
        for (index, words) in checks
            .into_iter()
            .flat_map(|(index, checks)| checks.into_iter().map(move |words| (index, words)))
        {
            statements.insert(index.index(statements.len() + 1), words);
        }
        if let Some((index, words)) = method {
            statements.insert(index.index(statements.len() + 1), words);
        }
        if let Some((index, number)) = keepalive {
            let place = index.index(statements.len() + 1);
            statements.insert(place, vec!["keepalive".to_owned(), number.to_string()]);
        }
        statements
    })
}

fn written(statements: &[Vec<String>]) -> String {
    statements.iter().map(|words| words.join(" ") + ";\n").collect()
}

/// A byte of the text, or its start if it is refused for what it lacks.
fn is_within(text: &[u8], place: Place) -> bool {
    let Place::Text { line, column } = place else { return false };
    let lines: Vec<_> = text.split(|&byte| byte == b'\n').collect();
    (line, column) == (1, 1)
        || lines.get(line - 1).is_some_and(|line| (1..=line.len()).contains(&column))
}

fn ends(text: &[u8]) -> Result<(), TestCaseError> {
    let refusals = [
        parse(text).err(),
        parse_server(text).err(),
        parse_changes(text).err(),
        parse_upstream(text).err(),
    ];
    for refusal in refusals.into_iter().flatten() {
        prop_assert!(is_within(text, refusal.place), "{}", refusal);
        prop_assert!(!refusal.to_string().contains(char::is_control));
        prop_assert!(refusal.to_string().len() < 3000);
    }
    Ok(())
}

/// `text` after some bytes were written over, put in or taken out.
fn mutated(text: &str, changes: &[(Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (index, byte, kind) in changes {
        let place = index.index(bytes.len() + 1);
        match (kind, bytes.get_mut(place)) {
            (0, Some(old)) => *old = *byte,
            (1, Some(_)) => _ = bytes.remove(place),
            (2, Some(_)) => bytes.truncate(place),
            _ => bytes.insert(place, *byte),
        }
    }
    bytes
}

fn any_mutations() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    let byte = prop_oneof![select(&BYTES[..]), any::<u8>()];
    vec((any::<Index>(), byte, select(vec![0, 0, 1, 1, 2, 3, 3])), 1..4)
}

fn without_places(mut body: Body) -> Body {
    let nowhere = Place::Server(0);
    body.servers.iter_mut().for_each(|server| server.place = nowhere);
    body.keepalive = body.keepalive.map(|(_, number)| (nowhere, number));
    body.method = body.method.map(|(_, method)| (nowhere, method));
    body.check = body.check.map(|(_, check)| (nowhere, check));
    body
}

fn any_list() -> impl Strategy<Value = List> {
    let check = proptest::option::of(any_check().prop_map(Arc::new));
    (vec(any_peer(), 0..20), proptest::option::of(any_method()), check)
        .prop_map(|(peers, method, check)| List::new(peers).with_method(method).with_check(check))
}

proptest! {
    #[test]
    fn any_bytes_end(text in any::<Vec<u8>>()) {
        ends(&text)?;
    }

    #[test]
    fn near_misses_end(
        text in r##"(server |keepalive |upstream |hash |check |check_http_send |random |least_conn|upsync_lb |weight=|down|[0-9.:;# \n\[\]{}"'\\$]){0,60}"##
    ) {
        ends(text.as_bytes())?;
    }

    #[test]
    fn a_mutated_body_ends(statements in any_statements(), changes in any_mutations()) {
        ends(&mutated(&written(&statements), &changes))?;
    }

    #[test]
    fn a_mutated_block_ends(list in any_list(), changes in any_mutations()) {
        ends(&mutated(&render_upstream("app", &list), &changes))?;
    }

    #[test]
    fn white_space_and_comments_say_nothing(
        statements in any_statements(),
        blanks in vec(select(&BLANKS[..]), 1..40),
    ) {
        let plain = parse(written(&statements).as_bytes());
        prop_assert!(plain.is_ok(), "{:?}", plain);
        let mut blanks = blanks.iter().cycle();
        let mut text = String::new();
        for word in statements.iter().flat_map(|words| words.iter().map(String::as_str).chain([";"])) {
            text.extend([blanks.next().unwrap_or(&" "), word]);
        }
        let spread = parse(text.as_bytes());
        prop_assert_eq!(spread.map(without_places), plain.map(without_places));
    }

    #[test]
    fn each_server_reads_alike_alone(statements in any_statements()) {
        let body = parse(written(&statements).as_bytes()).unwrap();
        let servers: Vec<_> = statements.iter().filter(|words| words[0] == "server").collect();
        prop_assert_eq!(servers.len(), body.servers.len());
        for (words, server) in servers.into_iter().zip(body.servers) {
            let alone = parse_server(written(std::slice::from_ref(words)).as_bytes()).unwrap();
            prop_assert_eq!((&alone.target, alone.changes), (&server.target, server.changes));
            if words.len() > 2 {
                prop_assert_eq!(parse_changes(words[2..].join("\n").as_bytes()), Ok(server.changes));
            }
        }
    }

    #[test]
    fn what_is_rendered_reads_back(name in "[A-Za-z0-9._:-]{1,255}", list in any_list()) {
        let read = parse_upstream(render_upstream(&name, &list).as_bytes());
        prop_assert_eq!(read, Ok((Name::parse(name.as_bytes()).unwrap(), list)));
    }

    #[test]
    fn checks_read_back(check in any_check()) {
        let text = format!("server a;\n{}", check::text(&check));
        let read = parse(text.as_bytes()).map(|body| body.check);
        prop_assert_eq!(read, Ok(Some((text_place(2, 1), check))));
    }

    #[test]
    fn a_block_that_is_cut_short_is_refused(list in any_list(), end: Index) {
        let text = render_upstream("app", &list);
        let cut = &text.as_bytes()[..end.index(text.len() - 1)];
        prop_assert!(parse_upstream(cut).is_err());
        ends(cut)?;
    }
}
