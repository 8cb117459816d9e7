//! Tests of texts, which clients compare, and of names that want to be something else.
#![forbid(unsafe_code)]

use super::*;
use crate::api::status::exposition::tests::read;
use crate::api::status::samples::{self, HOSTILE};
use proptest::prelude::*;
use serde_json::{Value, json};

fn body(status: &Status, format: Format, query: &Query) -> String {
    let (content_type, body) = answer(status, format, query);
    assert_eq!(content_type, format.content_type());
    body
}

fn whole(status: &Status, format: Format) -> String {
    body(status, format, &Query::default())
}

fn filtered(format: Format, args: &str) -> String {
    let (query, complaints) = Query::parse(args.as_bytes());
    assert_eq!(complaints, [""; 0]);
    body(&samples::status(), format, &query)
}

/// One server of an upstream with checks, as the documents of the originals show it.
fn backend(is_up: bool) -> Status {
    let mut status = samples::named("backend", "192.168.0.1:80");
    let upstream = &mut status.upstreams[0];
    upstream.check =
        upstream.check.map(|check| crate::api::status::Checking { kind: Kind::Http, ..check });
    let checked = upstream.servers[0].check.as_mut().unwrap();
    let (rise, fall) = if is_up { (58, 0) } else { (0, 7) };
    *checked = Checked { is_up, rise, fall, port: Some(80), ..*checked };
    status
}

fn none() -> Status {
    Status { upstreams: vec![], ..samples::status() }
}

/// Fields of lines by RFC 4180, with line feeds for ends.
fn records(csv: &str) -> Vec<Vec<String>> {
    let (mut records, mut fields) = (vec![], vec![]);
    let mut rest = csv;
    while !rest.is_empty() {
        let (field, behind) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (field, behind) = rest.split_at(rest.find([',', '\n']).unwrap());
                assert!(!field.contains('"'));
                (field.to_owned(), behind)
            }
        };
        fields.push(field);
        rest = match behind.strip_prefix(',') {
            Some(next) => next,
            None => {
                records.push(std::mem::take(&mut fields));
                behind.strip_prefix('\n').unwrap()
            }
        };
    }
    assert!(fields.is_empty());
    records
}

fn unquote(quoted: &str) -> (String, &str) {
    let (mut field, mut rest) = (String::new(), quoted);
    loop {
        let (part, behind) = rest.split_once('"').unwrap();
        field += part;
        match behind.strip_prefix('"') {
            Some(next) => (field, rest) = (field + "\"", next),
            None => return (field, behind),
        }
    }
}

/// The texts of the cells of a page, with all references read.
fn cells(html: &str) -> Vec<String> {
    let cells = html.split("<td>").skip(1);
    cells.map(|cell| unescape(cell.split_once("</td>").unwrap().0)).collect()
}

fn unescape(text: &str) -> String {
    assert!(!text.contains(['<', '>', '"', '\'']) && text.is_ascii(), "{text}");
    let mut parts = text.split('&');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |text, part| {
        let (reference, rest) = part.split_once(';').unwrap();
        let character = match reference {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            number => char::from_u32(number.strip_prefix('#').unwrap().parse().unwrap()).unwrap(),
        };
        format!("{text}{character}{rest}")
    })
}

fn shown_in_html(name: &str) -> String {
    let shown = |character: char| match character {
        '\t' | '\n' | '\r' => character,
        _ if character.is_control() => '\u{fffd}',
        _ => character,
    };
    name.chars().map(shown).collect()
}

#[test]
fn words() {
    for format in Format::ALL {
        assert_eq!(Format::from_name(format.name().as_bytes()), Some(format));
    }
    assert_eq!(Format::from_name(b"HTML"), None);
    assert_eq!(Format::default(), Format::Html);
}

#[test]
fn csv_word_for_word() {
    let line = "0,backend,192.168.0.1:80,up,58,0,http,80\n";
    assert_eq!(answer(&backend(true), Format::Csv, &Query::default()), ("text/plain", line.into()));
    assert_eq!(whole(&backend(false), Format::Csv), "0,backend,192.168.0.1:80,down,0,7,http,80\n");
    assert_eq!(
        whole(&samples::status(), Format::Csv),
        "0,app,10.0.0.1:80,up,58,0,http,0\n\
         1,app,10.0.0.2:80,down,0,6,http,0\n\
         2,app,[2001:db8::3]:80,up,58,0,http,0\n\
         3,app,unix:/run/app.sock,down,0,0,http,0\n\
         4,open,10.0.0.6:80,down,0,6,ssl_hello,8081\n"
    );
    assert_eq!(whole(&none(), Format::Csv), "");
}

#[test]
fn json_word_for_word() {
    let query = Query { format: Some(Format::Json), ..Query::default() };
    let (content_type, text) = answer(&backend(true), Format::Csv, &query);
    assert_eq!(content_type, "application/json");
    assert_eq!(
        text,
        r#"{"servers": {
  "total": 1,
  "up": 1,
  "down": 0,
  "generation": 3,
  "server": [
    {"index": 0, "upstream": "backend", "name": "192.168.0.1:80", "status": "up", "rise": 58, "fall": 0, "type": "http", "port": 80}
  ]
}}
"#
    );
    assert_eq!(
        whole(&none(), Format::Json),
        r#"{"servers": {
  "total": 0,
  "up": 0,
  "down": 0,
  "generation": 3,
  "server": [
  ]
}}
"#
    );
}

#[test]
fn html_word_for_word() {
    let text = whole(&backend(false), Format::Html);
    assert_eq!(
        text,
        r##"<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN"
"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
<head>
  <title>Nginx http upstream check status</title>
</head>
<body>
<h1>Nginx http upstream check status</h1>
<h2>Check upstream server number: 1, generation: 3</h2>
<table style="background-color:white" cellspacing="0"        cellpadding="3" border="1">
  <tr bgcolor="#C0C0C0">
    <th>Index</th>
    <th>Upstream</th>
    <th>Name</th>
    <th>Status</th>
    <th>Rise counts</th>
    <th>Fall counts</th>
    <th>Check type</th>
    <th>Check port</th>
  </tr>
  <tr bgcolor="#FF0000">
    <td>0</td>
    <td>backend</td>
    <td>192.168.0.1:80</td>
    <td>down</td>
    <td>0</td>
    <td>7</td>
    <td>http</td>
    <td>80</td>
  </tr>
</table>
</body>
</html>
"##
    );
    assert!(whole(&backend(true), Format::Html).contains("  <tr>\n    <td>0</td>\n"));
    assert!(whole(&none(), Format::Html).contains("number: 0, generation: 3</h2>"));
}

#[test]
fn prometheus_has_the_series_of_tengine() {
    let text = whole(&backend(true), Format::Prometheus);
    let rest = text.strip_prefix(
        r#"# HELP nginx_upstream_count_total Nginx total number of servers
# TYPE nginx_upstream_count_total untyped
nginx_upstream_count_total 1
# HELP nginx_upstream_count_up Nginx total number of servers that are UP
# TYPE nginx_upstream_count_up gauge
nginx_upstream_count_up 1
# HELP nginx_upstream_count_down Nginx total number of servers that are DOWN
# TYPE nginx_upstream_count_down gauge
nginx_upstream_count_down 0
# HELP nginx_upstream_count_generation Nginx generation
# TYPE nginx_upstream_count_generation gauge
nginx_upstream_count_generation 3
# HELP nginx_upstream_server_rise Nginx rise counter
# TYPE nginx_upstream_server_rise gauge
nginx_upstream_server_rise{index="0",upstream="backend",name="192.168.0.1:80",status="up",type="http",port="80"} 58
# HELP nginx_upstream_server_fall Nginx fall counter
# TYPE nginx_upstream_server_fall gauge
nginx_upstream_server_fall{index="0",upstream="backend",name="192.168.0.1:80",status="up",type="http",port="80"} 0
# HELP nginx_upstream_server_active Nginx active 1 for UP / 0 for DOWN
# TYPE nginx_upstream_server_active gauge
nginx_upstream_server_active{index="0",upstream="backend",name="192.168.0.1:80",type="http",port="80"} 1
"#,
    );
    assert!(
        rest.unwrap()
            .contains("\nupsync_check_up{upstream=\"backend\",server=\"192.168.0.1:80\"} 1\n")
    );
    assert_eq!(read(&whole(&none(), Format::Prometheus)).len(), 4);
}

#[test]
fn clean_series_have_neither_place_nor_state() {
    let clean = |is_up| {
        let series = read(&whole(&backend(is_up), Format::Prometheus)).into_keys();
        series.filter(|(name, _)| name.starts_with("upsync_")).collect::<Vec<_>>()
    };
    assert_eq!(clean(true), clean(false));
    let labels = |name: &str| {
        clean(true).iter().any(|(_, labels)| labels.iter().any(|label| label.0 == name))
    };
    assert!(labels("upstream") && !labels("index") && !labels("status"));
}

#[test]
fn filters_keep_the_places_and_count_what_is_shown() {
    let places = |args| {
        let records = records(&filtered(Format::Csv, args));
        records.into_iter().map(|record| record[0].clone()).collect::<Vec<_>>().join(" ")
    };
    for (args, wanted) in [
        ("", "0 1 2 3 4"),
        ("status=up", "0 2"),
        ("status=down", "1 3 4"),
        ("upstream=OPEN", "4"),
        ("upstream=app&status=down", "1 3"),
        ("upstream=open&status=up", ""),
        ("upstream=plain", ""),
        ("upstream=unknown", ""),
    ] {
        assert_eq!(places(args), wanted, "{args}");
        let value: Value = serde_json::from_str(&filtered(Format::Json, args)).unwrap();
        let servers = value["servers"]["server"].as_array().unwrap();
        let count = |word| servers.iter().filter(|server| server["status"] == word).count();
        let places: Vec<_> = servers.iter().map(|server| server["index"].to_string()).collect();
        assert_eq!(places.join(" "), wanted, "{args}");
        let (total, up, down) = (servers.len(), count("up"), count("down"));
        for (key, number) in [("total", total), ("up", up), ("down", down)] {
            assert_eq!(value["servers"][key], json!(number), "{args}");
        }
        let html = filtered(Format::Html, args);
        assert_eq!(cells(&html).len(), 8 * total);
        assert_eq!(html.matches(" bgcolor=\"#FF0000\"").count(), down);
        assert!(html.contains(&format!("number: {total}, generation: 3<")));
        let series = read(&filtered(Format::Prometheus, args));
        let number = |name: &str| series.get(&(name.to_owned(), vec![])).copied();
        assert_eq!(number("nginx_upstream_count_total"), Some(total as f64));
        assert_eq!(number("nginx_upstream_count_down"), Some(down as f64));
        let checks = series.keys().filter(|(name, _)| name == "upsync_check_up");
        assert_eq!(checks.count(), total);
    }
}

#[test]
fn a_server_without_a_verdict_has_no_place() {
    let mut status = samples::status();
    status.upstreams[0].servers[0].check = None;
    assert!(whole(&status, Format::Csv).starts_with("0,app,10.0.0.2:80,down,"));
}

fn assert_shown(name: &str, address: &str) {
    let status = samples::named(name, address);
    let fields = |name: &str, address: &str| {
        ["0", name, address, "up", "58", "0", "ssl_hello", "0"].map(str::to_owned).to_vec()
    };
    assert_eq!(records(&whole(&status, Format::Csv)), [fields(name, address)]);
    let value: Value = serde_json::from_str(&whole(&status, Format::Json)).unwrap();
    let server = &value["servers"]["server"][0];
    assert_eq!((&server["upstream"], &server["name"]), (&json!(name), &json!(address)));
    let html = cells(&whole(&status, Format::Html));
    assert_eq!(html, fields(&shown_in_html(name), &shown_in_html(address)));
    let series = read(&whole(&status, Format::Prometheus));
    let labels = [("upstream", name), ("server", address)].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(series.get(&("upsync_check_up".into(), labels.to_vec())), Some(&1.0));
}

#[test]
fn hostile_names_are_shown_as_they_are() {
    for name in HOSTILE {
        assert_shown(name, name);
    }
}

proptest! {
    #[test]
    fn any_names_are_shown_as_they_are(name: String, address: String) {
        assert_shown(&name, &address);
    }

    #[test]
    fn csv_has_eight_fields(name in "[a,\"\r\n ]{0,8}", address in "[a,\"\r\n ]{0,8}") {
        let records = records(&whole(&samples::named(&name, &address), Format::Csv));
        prop_assert!(records.iter().all(|record| record.len() == 8));
        prop_assert_eq!(&records[0][1..3], [name, address]);
    }
}
