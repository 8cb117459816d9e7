//! All that is known for Prometheus.
//!
//! Labels are names and addresses, and words of which each is always there; what changes is a value.
//! So a series goes on as long as its server is in the list, whatever becomes of it.
#![forbid(unsafe_code)]

use super::exposition::{Exposition, Labelled, Seconds};
use super::{Checked, Follow, Server, Status, Upstream};
use crate::api::view::Source;
use crate::model::Out;

pub use super::exposition::CONTENT_TYPE;

/// All families; one without samples keeps its `HELP` and `TYPE`.
pub fn render(status: &Status) -> String {
    let mut text = Exposition::default();
    instance(&mut text, status);
    workers(&mut text, status);
    let rows = status.upstreams.iter().map(|upstream| ([("upstream", &upstream.name)], upstream));
    let rows = Labelled::distinct(rows);
    upstreams(&mut text, &rows);
    sources(&mut text, &rows);
    let servers = Labelled::distinct(status.upstreams.iter().flat_map(|upstream| {
        upstream
            .servers
            .iter()
            .map(|server| ([("upstream", &upstream.name), ("server", &server.address)], server))
    }));
    states(&mut text, &servers);
    counters(&mut text, &servers);
    times(&mut text, &servers);
    checks(&mut text, &servers, |server| server.check);
    text.into_text()
}

fn instance(text: &mut Exposition, status: &Status) {
    let build = [([("version", status.module), ("nginx_version", &status.nginx)], ())];
    text.gauge("upsync_build_info", "Always 1; the versions of the module and of nginx.")
        .each(&Labelled::distinct(build), |()| Some(1));
    text.gauge("upsync_config_generation", "Configurations since the zone was made.")
        .only(status.generation);
    text.gauge("upsync_config_timestamp_seconds", "When the configuration came in force.")
        .only(Seconds(status.since));
    let (free, all) = status.pages;
    text.gauge("upsync_zone_pages", "Pages of the shared zone.").only(all);
    text.gauge("upsync_zone_pages_free", "Free pages of the shared zone.").only(free);
}

fn workers(text: &mut Exposition, status: &Status) {
    let numbers: Vec<_> = status.workers.iter().map(|worker| worker.number.to_string()).collect();
    let workers = numbers.iter().zip(&status.workers);
    let workers = workers.map(|(number, worker)| ([("worker", number)], worker.pid));
    text.gauge("upsync_worker_up", "Whether the worker has a process.")
        .each(&Labelled::distinct(workers), |&pid| Some(u8::from(pid != 0)));
    let versions = Labelled::distinct(status.upstreams.iter().flat_map(|upstream| {
        let versions = numbers.iter().zip(&upstream.workers);
        versions
            .map(|(number, version)| ([("worker", number), ("upstream", &upstream.name)], *version))
    }));
    text.gauge("upsync_worker_version", "Version of the list that the worker last sent by.")
        .each(&versions, |&version| version);
}

fn upstreams(text: &mut Exposition, rows: &[Labelled<&Upstream>]) {
    text.gauge("upsync_upstream_source", "1 for who gave the upstream its list, else 0.").each_by(
        "source",
        rows,
        |upstream| {
            let source = upstream.source;
            let sources =
                [("config", Source::Config), ("consul", Source::Consul), ("api", Source::Api)];
            sources.map(|(word, other)| (word, u8::from(source == other)))
        },
    );
    text.gauge("upsync_upstream_version", "Changes of the upstream's list.")
        .each(rows, |upstream| Some(upstream.version));
    text.gauge("upsync_upstream_timestamp_seconds", "When the upstream's list came in force.")
        .each(rows, |upstream| Some(Seconds(upstream.since)));
    text.gauge("upsync_upstream_servers", "Servers in the upstream's list.")
        .each(rows, |upstream| Some(upstream.servers.len()));
    text.gauge("upsync_upstream_keepalive", "Idle connections that each worker may keep.")
        .each(rows, |upstream| upstream.keepalive);
    text.gauge("upsync_check_fail_open", "Whether checks are ignored, as too many servers fail.")
        .each(rows, |upstream| upstream.check.map(|check| u8::from(check.is_open)));
}

fn sources(text: &mut Exposition, rows: &[Labelled<&Upstream>]) {
    fn of<'a>(upstream: &&'a Upstream) -> Option<&'a Follow> {
        upstream.follow.as_ref()
    }
    text.gauge("upsync_source_up", "Whether the last attempt to ask the source succeeded.")
        .each(rows, |upstream| of(upstream).map(|follow| u8::from(!follow.failing)));
    text.gauge("upsync_source_index", "Consul's index of the last answer that was used.")
        .each(rows, |upstream| of(upstream).map(|follow| follow.index));
    text.gauge("upsync_source_last_success_timestamp_seconds", "When the source last answered.")
        .each(rows, |upstream| of(upstream)?.answered.map(Seconds));
    text.gauge(
        "upsync_source_last_failure_timestamp_seconds",
        "When asking the source last failed.",
    )
    .each(rows, |upstream| of(upstream)?.failed.as_ref().map(|&(at, _)| Seconds(at)));
    text.counter("upsync_source_updates_applied_total", "Changes of the source put in force.")
        .each(rows, |upstream| of(upstream).map(|follow| follow.applied));
    text.counter("upsync_source_updates_refused_total", "Answers of the source that were refused.")
        .each(rows, |upstream| of(upstream).map(|follow| follow.refused));
}

fn states(text: &mut Exposition, rows: &[Labelled<&Server>]) {
    text.gauge("upsync_server_up", "Whether the server gets requests.")
        .each(rows, |server| Some(u8::from(server.out.is_none())));
    text.gauge("upsync_server_out", "1 for each who keeps requests away from the server, else 0.")
        .each_by("reason", rows, |server| {
            let out = server.out;
            Out::ALL.map(|reason| (reason.name(), u8::from(out.has(reason))))
        });
    text.gauge("upsync_server_weight", "The server's weight.")
        .each(rows, |server| Some(server.parameters.weight));
    text.gauge("upsync_server_connections", "Connections to the server under way.")
        .each(rows, |server| Some(server.connections));
    text.gauge("upsync_server_fails", "Failed attempts within fail_timeout.")
        .each(rows, |server| Some(server.fails));
}

fn counters(text: &mut Exposition, rows: &[Labelled<&Server>]) {
    text.counter("upsync_server_requests_total", "Attempts to have a request answered.")
        .each(rows, |server| Some(server.requests));
    text.counter("upsync_server_failures_total", "Attempts that failed.")
        .each(rows, |server| Some(server.failures));
    text.counter("upsync_server_responses_total", "Answers by the class of their status.").each_by(
        "code",
        rows,
        |server| ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(server.responses),
    );
    text.counter("upsync_server_sent_bytes_total", "Bytes sent to the server.")
        .each(rows, |server| Some(server.sent));
    text.counter("upsync_server_received_bytes_total", "Bytes received from the server.")
        .each(rows, |server| Some(server.received));
}

fn times(text: &mut Exposition, rows: &[Labelled<&Server>]) {
    text.gauge("upsync_server_header_time_seconds", "Moving average until an answer's header.")
        .each(rows, |server| server.header_time.map(Seconds));
    text.gauge("upsync_server_response_time_seconds", "Moving average until an answer's end.")
        .each(rows, |server| server.response_time.map(Seconds));
}

/// What checks came to, for each server that has any.
pub(in crate::api) fn checks<T>(
    text: &mut Exposition,
    rows: &[Labelled<T>],
    checked: impl Fn(&T) -> Option<Checked>,
) {
    text.gauge("upsync_check_up", "The verdict of the checks: 1 is up, 0 is down.")
        .each(rows, |of| checked(of).map(|checked| u8::from(checked.is_up)));
    text.gauge("upsync_check_default", "Whether the server still has its verdict by default.")
        .each(rows, |of| checked(of).map(|checked| u8::from(checked.is_default)));
    text.gauge("upsync_check_rise", "Good checks in a row.")
        .each(rows, |of| checked(of).map(|checked| checked.rise));
    text.gauge("upsync_check_fall", "Failed checks in a row.")
        .each(rows, |of| checked(of).map(|checked| checked.fall));
    let last = |of: &T| checked(of)?.last;
    text.gauge("upsync_check_last_timestamp_seconds", "When the last check ended.")
        .each(rows, |of| last(of).map(|last| Seconds(last.at)));
    text.gauge("upsync_check_last_duration_seconds", "How long the last check took.")
        .each(rows, |of| last(of).map(|last| Seconds(last.took.into())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::exposition::tests::read;
    use crate::api::status::samples::{self, HOSTILE};
    use proptest::prelude::*;

    fn value(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        read(text).get(&(name.to_owned(), labels.collect())).copied()
    }

    #[test]
    fn the_instance() {
        let text = render(&samples::status());
        let build = [("version", "0.1.0"), ("nginx_version", "1.30.6")];
        for (name, labels, wanted) in [
            ("upsync_build_info", &build[..], 1.0),
            ("upsync_config_generation", &[], 3.0),
            ("upsync_config_timestamp_seconds", &[], 1_795_251_605.0),
            ("upsync_zone_pages", &[], 256.0),
            ("upsync_zone_pages_free", &[], 250.0),
            ("upsync_worker_up", &[("worker", "0")], 1.0),
            ("upsync_worker_up", &[("worker", "1")], 0.0),
            ("upsync_worker_version", &[("worker", "0"), ("upstream", "app")], 7.0),
        ] {
            assert_eq!(value(&text, name, labels), Some(wanted), "{name}");
        }
        let unused = [("worker", "1"), ("upstream", "app")];
        assert_eq!(value(&text, "upsync_worker_version", &unused), None);
    }

    #[test]
    fn upstreams_and_their_sources() {
        let text = render(&samples::status());
        for (name, app, plain) in [
            ("upsync_upstream_version", 7.0, Some(1.0)),
            ("upsync_upstream_timestamp_seconds", 1_795_255_140.0, Some(1_795_251_605.0)),
            ("upsync_upstream_servers", 4.0, Some(1.0)),
            ("upsync_upstream_keepalive", 16.0, None),
            ("upsync_check_fail_open", 0.0, None),
            ("upsync_source_up", 0.0, None),
            ("upsync_source_index", 812.0, None),
            ("upsync_source_last_success_timestamp_seconds", 1_795_255_200.0, None),
            ("upsync_source_last_failure_timestamp_seconds", 1_795_255_204.0, None),
            ("upsync_source_updates_applied_total", 6.0, None),
            ("upsync_source_updates_refused_total", 1.0, None),
        ] {
            assert_eq!(value(&text, name, &[("upstream", "app")]), Some(app), "{name}");
            assert_eq!(value(&text, name, &[("upstream", "plain")]), plain, "{name}");
        }
        assert_eq!(value(&text, "upsync_check_fail_open", &[("upstream", "open")]), Some(1.0));
        for (source, wanted) in [("consul", 1.0), ("config", 0.0), ("api", 0.0)] {
            let labels = [("upstream", "app"), ("source", source)];
            assert_eq!(value(&text, "upsync_upstream_source", &labels), Some(wanted));
        }
    }

    #[test]
    fn servers() {
        let text = render(&samples::status());
        for (name, good, bad) in [
            ("upsync_server_up", 1.0, Some(0.0)),
            ("upsync_server_weight", 1.0, Some(1.0)),
            ("upsync_server_connections", 3.0, Some(0.0)),
            ("upsync_server_fails", 0.0, Some(2.0)),
            ("upsync_server_requests_total", 1000.0, Some(0.0)),
            ("upsync_server_failures_total", 12.0, Some(0.0)),
            ("upsync_server_sent_bytes_total", 512_000.0, Some(0.0)),
            ("upsync_server_received_bytes_total", 1_048_576.0, Some(0.0)),
            ("upsync_server_header_time_seconds", 0.012, None),
            ("upsync_server_response_time_seconds", 1.5, None),
            ("upsync_check_up", 1.0, Some(0.0)),
            ("upsync_check_default", 0.0, Some(0.0)),
            ("upsync_check_rise", 58.0, Some(0.0)),
            ("upsync_check_fall", 0.0, Some(6.0)),
            ("upsync_check_last_timestamp_seconds", 1_795_255_204.0, Some(1_795_255_204.5)),
            ("upsync_check_last_duration_seconds", 0.003, Some(1.0)),
        ] {
            let labels = |server| [("upstream", "app"), ("server", server)];
            assert_eq!(value(&text, name, &labels("10.0.0.1:80")), Some(good), "{name}");
            assert_eq!(value(&text, name, &labels("10.0.0.2:80")), bad, "{name}");
        }
    }

    #[test]
    fn each_reason_and_class_is_a_series() {
        let text = render(&samples::status());
        let server = [("upstream", "app"), ("server", "10.0.0.2:80")];
        let with = |label| [server[0], server[1], label];
        for out in Out::ALL {
            let wanted = matches!(out, Out::Check | Out::MaxFails);
            let shown = value(&text, "upsync_server_out", &with(("reason", out.name())));
            assert_eq!(shown, Some(f64::from(u8::from(wanted))), "{out:?}");
        }
        let good = ("server", "10.0.0.1:80");
        for (code, wanted) in [("1xx", 0.0), ("2xx", 980.0), ("5xx", 2.0)] {
            let labels = [server[0], good, ("code", code)];
            assert_eq!(value(&text, "upsync_server_responses_total", &labels), Some(wanted));
        }
    }

    #[test]
    fn a_server_of_two_upstreams_has_two_series() {
        let text = render(&samples::status());
        for (upstream, wanted) in [("app", 1.0), ("plain", 0.0)] {
            let labels = [("upstream", upstream), ("server", "10.0.0.1:80")];
            assert_eq!(value(&text, "upsync_server_up", &labels), Some(wanted));
        }
    }

    #[test]
    fn what_is_there_twice_is_shown_once() {
        let once = samples::status();
        let mut twice = once.clone();
        twice.upstreams.extend(once.upstreams.clone());
        twice.workers.extend(once.workers.clone());
        assert_eq!(read(&render(&twice)), read(&render(&once)));
    }

    #[test]
    fn series_stay_whatever_becomes_of_the_servers() {
        let names = |status: &Status| -> Vec<_> { read(&render(status)).into_keys().collect() };
        let before = samples::status();
        let mut after = before.clone();
        for upstream in &mut after.upstreams {
            upstream.version += 1;
            upstream.source = Source::Api;
            upstream.servers.reverse();
            for server in &mut upstream.servers {
                server.out.add_if(true, Out::Down);
                server.check = server.check.map(|check| Checked { is_up: !check.is_up, ..check });
            }
        }
        assert_eq!(names(&after), names(&before));
    }

    #[test]
    fn hostile_names_are_labels() {
        for name in HOSTILE {
            let text = render(&samples::named(name, name));
            let labels = [("upstream", name), ("server", name)];
            assert_eq!(value(&text, "upsync_server_up", &labels), Some(1.0), "{name:?}");
        }
        let none = Status { upstreams: vec![], workers: vec![], ..samples::status() };
        assert_eq!(read(&render(&none)).len(), 5);
    }

    proptest! {
        #[test]
        fn any_names_are_labels(name: String, address: String) {
            let text = render(&samples::named(&name, &address));
            let labels = [("upstream", name.as_str()), ("server", address.as_str())];
            prop_assert_eq!(value(&text, "upsync_check_up", &labels), Some(1.0));
        }
    }
}
