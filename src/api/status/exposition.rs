//! Prometheus's text format, version 0.0.4.
//!
//! Each family is written at once, with its `HELP` and `TYPE`, so families are contiguous. Series are
//! told apart by [`Labelled::distinct`], so none is there twice.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt::{self, Display, Write};

/// The value of `Content-Type` that Prometheus knows the format by.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Families, one after the other.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// One family; its samples come now.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// Something with the labels of its series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled<T> {
    labels: String,
    of: T,
}

/// Milliseconds, written as seconds without loss: `1.500`.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

impl Exposition {
    /// A family of values that go up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// A family of values that only go up; its name ends with `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    /// A family of values that are something else than their name says.
    pub fn untyped(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "untyped", help)
    }

    /// All that was written.
    pub fn into_text(self) -> String {
        self.0
    }

    /// `help` has no line feed and no backslash.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        // Writing into a String cannot fail; so it is below.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { text: &mut self.0, name }
    }
}

impl Family<'_> {
    /// The only sample of a family without labels.
    pub fn only(self, value: impl Display) {
        let _ = writeln!(self.text, "{} {value}", self.name);
    }

    /// A sample for each that has a value.
    pub fn each<T, V: Display>(self, rows: &[Labelled<T>], value: impl Fn(&T) -> Option<V>) {
        for Labelled { labels, of } in rows {
            if let Some(value) = value(of) {
                let _ = writeln!(self.text, "{}{{{labels}}} {value}", self.name);
            }
        }
    }

    /// Several samples for each, which differ in one more label. No two of the same row have the
    /// same value of it. The words need no escaping.
    pub fn each_by<T, V: Display, S: IntoIterator<Item = (&'static str, V)>>(
        self,
        label: &'static str,
        rows: &[Labelled<T>],
        samples: impl Fn(&T) -> S,
    ) {
        for Labelled { labels, of } in rows {
            for (word, value) in samples(of) {
                let _ = writeln!(self.text, "{}{{{labels},{label}=\"{word}\"}} {value}", self.name);
            }
        }
    }
}

impl<T> Labelled<T> {
    /// Gives each its labels. Of those with the same labels the first stays: two of nginx.conf's
    /// upstreams may have one name, with different ports.
    pub fn distinct<const N: usize>(
        rows: impl IntoIterator<Item = ([(&'static str, impl AsRef<str>); N], T)>,
    ) -> Vec<Self> {
        let mut seen = HashSet::new();
        let rows = rows.into_iter().map(|(labels, of)| Self { labels: text(&labels), of });
        rows.filter(|row| seen.insert(row.labels.clone())).collect()
    }
}

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// `upstream="app",server="127.0.0.1:80"`. Different values give different texts.
fn text(labels: &[(&'static str, impl AsRef<str>)]) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        text += if text.is_empty() { "" } else { "," };
        text += name;
        text += "=\"";
        for character in value.as_ref().chars() {
            match character {
                '\\' => text += "\\\\",
                '"' => text += "\\\"",
                '\n' => text += "\\n",
                _ => text.push(character),
            }
        }
        text += "\"";
    }
    text
}

#[cfg(test)]
pub(in crate::api) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The samples of a text by name and labels, read by the grammar of the format. It panics at
    /// what is not valid: a family in pieces, a series that is there twice, a sample that has
    /// neither `HELP` nor `TYPE`.
    pub fn read(text: &str) -> BTreeMap<(String, Vec<(String, String)>), f64> {
        let (mut series, mut families) = (BTreeMap::new(), HashSet::new());
        let mut family = String::new();
        assert!(text.is_empty() || text.ends_with('\n'));
        for line in text.strip_suffix('\n').unwrap_or_default().split('\n') {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split_once(' ').unwrap().0.to_owned();
                assert!(families.insert(family.clone()), "{family} is there twice");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert!(["gauge", "counter", "untyped"].contains(&kind));
                assert!(kind != "counter" || name.ends_with("_total"), "{name}");
                assert!(kind != "gauge" || !name.ends_with("_total"), "{name}");
            } else {
                let (name, labels, value) = sample(line);
                assert_eq!(name, family);
                assert_eq!(series.insert((name, labels), value), None, "{line}");
            }
        }
        series
    }

    fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
        let end = line.find(['{', ' ']).unwrap();
        let (name, mut rest) = line.split_at(end);
        let mut labels = vec![];
        while let Some(label) = rest.strip_prefix(['{', ',']) {
            let (name, quoted) = label.split_once("=\"").unwrap();
            let (value, behind) = unquote(quoted);
            labels.push((name.to_owned(), value));
            rest = behind.strip_prefix('}').unwrap_or(behind);
        }
        (name.to_owned(), labels, rest.strip_prefix(' ').unwrap().parse().unwrap())
    }

    fn unquote(quoted: &str) -> (String, &str) {
        let (mut value, mut characters) = (String::new(), quoted.chars());
        loop {
            match characters.next().unwrap() {
                '"' => return (value, characters.as_str()),
                '\\' => value.push(match characters.next().unwrap() {
                    'n' => '\n',
                    other @ ('\\' | '"') => other,
                    other => panic!("\\{other}"),
                }),
                other => value.push(other),
            }
        }
    }

    #[test]
    fn families() {
        let rows =
            Labelled::distinct([([("a", "x")], 1), ([("a", "\"\\\n")], 2), ([("a", "x")], 3)]);
        let mut text = Exposition::default();
        text.gauge("one", "Is alone.").only(Seconds(1_500));
        text.counter("b_total", "B.").each(&rows, |&of| (of > 1).then_some(of));
        text.untyped("c", "C.").each_by("d", &rows, |&of| [("e", of), ("f", -of)]);
        assert_eq!(
            text.into_text(),
            "# HELP one Is alone.\n\
             # TYPE one gauge\n\
             one 1.500\n\
             # HELP b_total B.\n\
             # TYPE b_total counter\n\
             b_total{a=\"\\\"\\\\\\n\"} 2\n\
             # HELP c C.\n\
             # TYPE c untyped\n\
             c{a=\"x\",d=\"e\"} 1\n\
             c{a=\"x\",d=\"f\"} -1\n\
             c{a=\"\\\"\\\\\\n\",d=\"e\"} 2\n\
             c{a=\"\\\"\\\\\\n\",d=\"f\"} -2\n"
        );
    }

    proptest! {
        #[test]
        fn any_labels_are_read_back(values: Vec<(String, String)>) {
            let mut text = Exposition::default();
            let rows = values.iter().map(|(a, b)| ([("a", a), ("b", b)], 1));
            text.gauge("x", "X.").each(&Labelled::distinct(rows), |&of| Some(of));
            let series = read(&text.into_text());
            let wanted = values.into_iter().map(|(a, b)| {
                (("x".to_owned(), vec![("a".to_owned(), a), ("b".to_owned(), b)]), 1.0)
            });
            prop_assert_eq!(series, wanted.collect());
        }
    }
}
