//! Tests of the whole way from an HTTP server to the mailbox.
#![forbid(unsafe_code)]

use super::*;
use crate::model::{Endpoint, Parameters};
use crate::source::consul::Query;
use crate::source::mailbox::{Event, Outcome};
use crate::source::progress::TEXT_MAX;
use crate::source::testing::{Script, Server, close_early};

const LONG: Duration = Duration::from_secs(10);

fn answer(status: &str, index: u64, body: &str) -> Script {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nX-Consul-Index: {index}\r\nContent-Length: {length}");
    Script::Answer(format!("{head}\r\n\r\n{body}").into())
}

fn keys(index: u64, keys: &[&str]) -> Script {
    let pairs: Vec<_> =
        keys.iter().map(|key| format!(r#"{{"Key":"app/{key}","Value":null}}"#)).collect();
    answer("200 OK", index, &format!("[{}]", pairs.join(",")))
}

fn hang() -> Script {
    Script::Hang(vec![])
}

fn list(texts: &[&str]) -> List {
    let server = |text: &&str| (Endpoint::parse(text, None).unwrap(), Parameters::CONSUL);
    answer::list(&texts.iter().map(server).collect::<Vec<_>>(), |_| vec![])
}

fn settings(server: &Server) -> Settings {
    Settings {
        upstream: "app".to_owned(),
        consul: server.endpoint(),
        query: Query::new(Kind::Kv, "/v1/kv/app/?token=secret").unwrap(),
        interval: Duration::ZERO,
        timeout: LONG,
        max_body: 1000,
        allow_empty: false,
        dump_path: None,
    }
}

/// A watcher whose worker is the test.
struct Room {
    server: Server,
    mailbox: Arc<Mailbox>,
    watcher: Watcher,
    log: Vec<String>,
    progress: Progress,
}

fn room(scripts: Vec<Script>, initial: &[&str]) -> Room {
    room_with(scripts, initial, |_| {})
}

fn room_with(scripts: Vec<Script>, initial: &[&str], set: impl Fn(&mut Settings)) -> Room {
    let server = Server::start(scripts);
    let mailbox = Arc::new(Mailbox::new(|| {}));
    let mut settings = settings(&server);
    set(&mut settings);
    let lookup: Lookup = Arc::new(|host: &str| match host {
        "good" => Ok(vec!["10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap()]),
        _ => Err(dns::DnsError::NoAddress),
    });
    let watcher =
        Watcher::spawn_with(settings, list(initial), Arc::clone(&mailbox), lookup).unwrap();
    Room { server, mailbox, watcher, log: vec![], progress: Progress::default() }
}

impl Room {
    /// The next list, answered so.
    fn list(&mut self, outcome: Outcome) -> List {
        self.until(|event| match event {
            Event::List(list) => Some(list.clone()),
            Event::Log(..) | Event::Confirmed | Event::Progress(_) => None,
        })
        .inspect(|_| self.mailbox.applied(outcome))
        .unwrap()
    }

    /// Reads on to this number of requests.
    fn requests(&mut self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + LONG;
        while self.server.requests().len() < count {
            assert!(Instant::now() < deadline, "{:?}", self.log);
            thread::sleep(Duration::from_millis(1));
        }
        let line = |request: &String| request.lines().next().unwrap_or_default().to_owned();
        self.server.requests().iter().map(line).collect()
    }

    /// The progress so far: index, error, whether the last question failed, answers refused.
    fn progress(&mut self) -> (Option<u64>, &str, Option<bool>, u64) {
        let _ = self.take(|_| None::<()>);
        let Progress { index, failed, is_failing, refused, .. } = &self.progress;
        (*index, failed.as_ref().map_or("", |(_, why)| why), *is_failing, *refused)
    }

    /// What was logged so far.
    fn log(&mut self) -> Vec<String> {
        let _ = self.take(|_| None::<()>);
        let port = format!(":{}", self.server.port());
        let short =
            |line: &String| line.replace("upsync: upstream \"app\": ", "").replace(&port, "");
        self.log.iter().map(short).collect()
    }

    fn until<T>(&mut self, find: impl Fn(&Event) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + LONG;
        while Instant::now() < deadline {
            if let Some(found) = self.take(&find) {
                return Some(found);
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing but {:?}", self.log);
    }

    fn take<T>(&mut self, find: impl Fn(&Event) -> Option<T>) -> Option<T> {
        let mut found = None;
        for event in self.mailbox.take() {
            found = found.or_else(|| find(&event));
            match event {
                Event::Log(level, line) => {
                    assert!(!line.contains("secret"), "{line}");
                    self.log.push(format!("{level:?} {line}"));
                }
                Event::Progress(progress) => {
                    self.progress.add(progress);
                    let why = self.progress.failed.as_ref().map_or("", |(_, why)| why);
                    assert!(!why.contains("secret") && why.len() <= TEXT_MAX, "{why}");
                }
                Event::List(_) | Event::Confirmed => {}
            }
        }
        found
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.watcher.stop();
    }
}

#[test]
fn changes_are_followed_with_the_index_of_what_was_applied() {
    let scripts = vec![keys(5, &["1.1.1.1:1"]), keys(6, &["1.1.1.1:1", "1.1.1.2:2"]), hang()];
    let mut room = room(scripts, &[]);
    assert_eq!(room.list(Outcome::Applied), list(&["1.1.1.1:1"]));
    assert_eq!(room.list(Outcome::Applied), list(&["1.1.1.2:2", "1.1.1.1:1"]));
    assert_eq!(
        room.requests(3),
        [
            "GET /v1/kv/app/?recurse&token=secret HTTP/1.1",
            "GET /v1/kv/app/?recurse&token=secret&index=5&wait=8941ms HTTP/1.1",
            "GET /v1/kv/app/?recurse&token=secret&index=6&wait=8941ms HTTP/1.1",
        ]
    );
    assert_eq!(room.log(), Vec::<String>::new());
    assert_eq!(room.progress(), (Some(6), "", Some(false), 0));
    assert!(room.progress.answered.is_some());
}

#[test]
fn an_answer_with_the_list_in_force_only_confirms_it() {
    let scripts = vec![keys(5, &["1.1.1.2:2", "1.1.1.1:1"]), hang()];
    let mut room = room(scripts, &["1.1.1.1:1", "1.1.1.2:2"]);
    assert!(room.requests(2)[1].contains("index=5"));
    let events = room.mailbox.take();
    assert_eq!(events[0], Event::Confirmed);
    let used = |event: &Event| matches!(event, Event::Progress(used) if used.index == Some(5));
    assert!(events.len() == 2 && used(&events[1]), "{events:?}");
}

#[test]
fn a_refused_list_is_asked_for_and_offered_again() {
    let scripts = vec![keys(5, &["1.1.1.1:1"]), keys(5, &["1.1.1.1:1"]), hang()];
    let mut room = room(scripts, &[]);
    room.list(Outcome::Refused("full"));
    room.list(Outcome::Applied);
    let requests = room.requests(3);
    assert!(!requests[1].contains("index") && requests[2].contains("index=5"), "{requests:?}");
    assert_eq!(
        room.log(),
        [
            "Error consul 127.0.0.1: new list refused: full, no list yet, retrying",
            "Notice consul 127.0.0.1 answers again",
        ]
    );
    let refused = "new list refused: full";
    assert_eq!(room.progress(), (Some(5), refused, Some(false), 0), "counted by the worker");
}

#[test]
fn each_kind_of_failure_keeps_the_list_is_told_and_is_got_over() {
    let ok = || keys(5, &["1.1.1.1:1"]);
    let denied = || answer("403 Forbidden", 9, "ACL not found\n");
    let scripts = vec![
        close_early(),
        denied(),
        denied(),
        ok(),
        answer("500 X", 9, ""),
        answer("200 OK", 9, "{}"),
        answer("200 OK", 9, &" ".repeat(1001)),
        ok(),
        hang(),
    ];
    let mut room = room(scripts, &["1.1.1.1:1"]);
    // The connection that was closed at once brought no request.
    let requests = room.requests(8);
    let indices: Vec<_> = requests.iter().map(|request| request.contains("index=5")).collect();
    assert_eq!(indices, [false, false, false, true, false, false, false, true]);
    let log = room.log();
    let kept = "keeping the last list (1 server), retrying";
    assert_eq!(log[1..], [
        format!("Error consul 127.0.0.1: answered 403 \"ACL not found\", {kept}"),
        "Notice consul 127.0.0.1 answers again".into(),
        format!("Error consul 127.0.0.1: answered 500, {kept}"),
        "Error consul 127.0.0.1: answer is no JSON array of entries: invalid type: map, expected \
         an array at line 1 column 2, "
            .to_owned()
            + kept,
        format!("Error consul 127.0.0.1: answer of more than 1000 bytes, see upsync_max_body, {kept}"),
        "Notice consul 127.0.0.1 answers again".into(),
    ]);
    let last = "answer of more than 1000 bytes, see upsync_max_body";
    assert_eq!(room.progress(), (Some(5), last, Some(false), 2), "two could not be read");
}

#[test]
fn who_says_what_it_was_asked_for_says_no_token() {
    let echo = "no /v1/kv/app/?recurse&token=secret";
    let scripts = vec![answer("404 Not Found", 1, ""), answer("400 X", 1, echo), hang()];
    let mut room = room(scripts, &["1.1.1.1:1"]);
    room.requests(3);
    let why = r#"answered 400 "no /v1/kv/app/?recurse&token=***""#;
    assert_eq!(room.progress(), (None, why, Some(true), 1));
    assert_eq!(room.log().len(), 2);
}

#[test]
fn a_consul_that_is_away_is_told_once() {
    let mut room = room(vec![], &["1.1.1.1:1"]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        thread::sleep(Duration::from_millis(10));
        room.log();
    }
    assert_eq!(
        room.log(),
        ["Error consul 127.0.0.1: connection refused, keeping the last list (1 server), retrying"]
    );
    assert_eq!(room.progress(), (None, "connection refused", Some(true), 0));
    assert_eq!(room.progress.answered, None);
}

#[test]
fn an_emptied_prefix_keeps_the_list_and_is_told_once() {
    let empty = || answer("404 Not Found", 7, "");
    let scripts =
        vec![empty(), empty(), answer("200 OK", 8, "[]"), keys(9, &["1.1.1.1:1"]), empty(), hang()];
    let mut room = room(scripts, &["1.1.1.1:1"]);
    assert!(room.requests(2)[1].contains("index=7"));
    room.requests(6);
    let line =
        "Warn consul 127.0.0.1: no servers under /v1/kv/app/, keeping the last list (1 server)";
    assert_eq!(room.log(), [line, line]);
    let why = "no servers under /v1/kv/app/";
    assert_eq!(room.progress(), (Some(9), why, Some(false), 4));
}

#[test]
fn an_emptied_prefix_is_applied_where_that_is_allowed() {
    let scripts = vec![answer("404 Not Found", 7, ""), keys(8, &["x"]), hang()];
    let mut room = room_with(scripts, &["1.1.1.1:1"], |settings| settings.allow_empty = true);
    assert!(room.list(Outcome::Applied).is_empty());
    room.requests(3);
    assert_eq!(room.log().len(), 2, "keys without a good one are another matter");
}

#[test]
fn bad_keys_are_told_when_they_are_new_and_hide_no_other() {
    let scripts = vec![
        keys(5, &["bad", "1.1.1.1:1"]),
        keys(6, &["bad", "1.1.1.1:1", "1.1.1.2:2"]),
        keys(7, &["bad"]),
        hang(),
    ];
    let mut room = room(scripts, &[]);
    assert_eq!(room.list(Outcome::Applied).len(), 1);
    assert_eq!(room.list(Outcome::Applied).len(), 2);
    room.requests(4);
    assert_eq!(
        room.log(),
        [
            r#"Warn key "app/bad": no port in "bad", expected HOST:PORT, skipped"#,
            "Warn consul 127.0.0.1: no usable servers under /v1/kv/app/, keeping the last list (2 servers)",
        ]
    );
}

#[test]
fn names_stand_for_all_their_addresses_and_bad_ones_hide_no_other() {
    let scripts = vec![keys(5, &["bad:1", "good:2", "1.1.1.1:1"]), hang()];
    let mut room = room(scripts, &[]);
    let expected = list(&["1.1.1.1:1", "10.0.0.2:2", "10.0.0.1:2"]);
    assert_eq!(room.list(Outcome::Applied), expected);
    assert_eq!(room.log(), ["Warn host name \"bad\" does not resolve: no address, left out"]);
}

#[test]
fn changes_are_an_interval_apart() {
    let interval = Duration::from_millis(300);
    let scripts = vec![keys(5, &["1.1.1.1:1"]), keys(6, &["1.1.1.2:2"]), hang()];
    let mut room = room_with(scripts, &[], |settings| settings.interval = interval);
    room.list(Outcome::Applied);
    let first = Instant::now();
    room.list(Outcome::Applied);
    assert!(first.elapsed() > interval - Duration::from_millis(50));
}

#[test]
fn a_stop_ends_the_thread_in_a_request_too() {
    let mut room = room(vec![hang()], &[]);
    room.requests(1);
    let mailbox = Arc::clone(&room.mailbox);
    drop(room);
    let deadline = Instant::now() + LONG / 2;
    while Arc::strong_count(&mailbox) > 1 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(mailbox.take(), []);
}

#[test]
fn one_fetch_gets_the_list_or_says_why_not() {
    let fetch = |script, allow_empty| {
        let server = Server::start(vec![script]);
        let settings = Settings { allow_empty, ..settings(&server) };
        fetch_once(&settings, LONG).map_err(|error| error.to_string())
    };
    let two = keys(5, &["1.1.1.1:1", "bad", "localhost:2"]);
    let found = fetch(two, false).unwrap();
    assert!((2..=3).contains(&found.len()), "{found:?}");
    let none = Err("no servers under /v1/kv/app/".to_owned());
    assert_eq!(fetch(answer("404 X", 5, ""), false), none);
    assert_eq!(fetch(keys(5, &["bad"]), true), none);
    assert_eq!(fetch(answer("404 X", 5, ""), true), Ok(List::default()));
    assert_eq!(
        fetch(answer("500 X", 5, "No cluster leader"), true),
        Err("answered 500 \"No cluster leader\"".into())
    );
}

#[test]
fn the_deepest_answer_fits_into_the_stack() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let done = Arc::new(());
    let held = Arc::clone(&done);
    start_thread(move || {
        for (kind, path) in [(Kind::Kv, "/v1/kv/a/"), (Kind::Health, "/v1/health/service/a")] {
            let query = Query::new(kind, path).unwrap();
            for body in [deep.clone(), format!("[{deep}]"), format!(r#"[{{"Key":{deep}}}]"#)] {
                let _ = query.parse(body.as_bytes());
            }
        }
        drop(held);
    })
    .unwrap();
    while Arc::strong_count(&done) > 1 {
        thread::sleep(Duration::from_millis(1));
    }
}
