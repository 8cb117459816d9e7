//! Nothing that Consul may answer, and no path, is too much. `PROPTEST_CASES` sets how many are tried.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;

/// JSON that has the shape of an answer here and there.
fn near_json() -> impl Strategy<Value = String> {
    let word = proptest::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "7",
        "-1",
        "\"Key\"",
        "\"Value\"",
        "\"Service\"",
        "\"Port\"",
        "\"Address\"",
        "\"a/1.2.3.4:5\"",
        "\"e30=\"",
        "\"Tags\"",
        "\"Checks\"",
        "\"\\u0000\"",
    ]);
    proptest::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

fn any_json() -> impl Strategy<Value = Value> {
    let names = proptest::sample::select(vec![
        "Key",
        "Value",
        "Service",
        "Node",
        "Port",
        "Address",
        "Tags",
        "Checks",
        "Status",
        "Weights",
        "Passing",
        "ServicePort",
        "ServiceTags",
        "ServiceWeights",
        "ServiceID",
        "ID",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "(unix:)?[\\[\\]a-z0-9.:/]{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::hash_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn parse_as_all(body: &[u8]) {
    for kind in [Kind::Kv, Kind::Catalog, Kind::Health] {
        let query = Query::new(kind, &format!("{}a", kind.path_start())).unwrap();
        let _ = query.parse(body);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read(body in any::<Vec<u8>>()) {
        parse_as_all(&body);
    }

    #[test]
    fn near_answers_are_read(body in near_json()) {
        parse_as_all(body.as_bytes());
        parse_as_all(format!("[{body}]").as_bytes());
    }

    #[test]
    fn any_json_is_read(elements in proptest::collection::vec(any_json(), 0..4)) {
        parse_as_all(Value::from(elements).to_string().as_bytes());
    }

    #[test]
    fn no_token_is_left_in_any_text(
        token in "[A-Za-z0-9%-]{5,20}",
        around in proptest::collection::vec(any::<String>(), 1..4),
        cut in 0usize..20,
    ) {
        let query = Query::new(Kind::Kv, &format!("/v1/kv/a/?token={token}")).unwrap();
        let text = around.join(&token) + token.get(..cut).unwrap_or(&token);
        prop_assert!(!query.masked(&text).contains(&token), "{}", query.masked(&text));
    }

    #[test]
    fn any_value_is_read(text in any::<String>(), json in any_json()) {
        let _ = value(&text);
        let _ = value(&json.to_string());
    }

    #[test]
    fn any_path_is_a_query_or_an_error(path in any::<String>()) {
        for kind in [Kind::Kv, Kind::Catalog, Kind::Health] {
            let _ = Query::new(kind, &path);
            if let Ok(query) = Query::new(kind, &format!("{}{path}", kind.path_start())) {
                prop_assert!(query.request(1, Duration::ZERO).is_ascii());
            }
        }
    }
}
