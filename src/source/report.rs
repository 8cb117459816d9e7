//! What is worth a log line: what is new since the last one.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::mem;

/// The most complaints that one answer puts into the log.
const COMPLAINTS_MAX: usize = 20;

/// Remembers what was said.
#[derive(Debug, Default)]
pub struct Report {
    fault: Option<String>,
    notice: Option<String>,
    complaints: HashSet<String>,
}

impl Report {
    /// A fault that holds: its text if it just began or changed.
    pub fn fault(&mut self, text: String) -> Option<String> {
        say(&mut self.fault, text)
    }

    /// No fault holds: whether one did.
    pub fn recovered(&mut self) -> bool {
        self.fault.take().is_some()
    }

    /// A state of the list that is no fault: its text if it just began or changed.
    pub fn notice(&mut self, text: String) -> Option<String> {
        say(&mut self.notice, text)
    }

    /// No such state holds.
    pub fn no_notice(&mut self) {
        self.notice = None;
    }

    /// All complaints that hold: those that did not before, in their order.
    pub fn complaints(&mut self, now: Vec<String>) -> Vec<String> {
        let before = mem::take(&mut self.complaints);
        let mut new = Vec::new();
        for complaint in now {
            if self.complaints.insert(complaint.clone()) && !before.contains(&complaint) {
                new.push(complaint);
            }
        }
        let more = new.len().saturating_sub(COMPLAINTS_MAX);
        if more > 0 {
            new.truncate(COMPLAINTS_MAX);
            new.push(format!("{more} more complaints like these"));
        }
        new
    }
}

fn say(said: &mut Option<String>, text: String) -> Option<String> {
    if said.as_ref() == Some(&text) {
        return None;
    }
    *said = Some(text.clone());
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_fault_is_said_when_it_begins_and_when_it_changes() {
        let mut report = Report::default();
        assert!(!report.recovered());
        assert_eq!(report.fault("a".into()), some("a"));
        assert_eq!(report.fault("a".into()), None);
        assert_eq!(report.fault("b".into()), some("b"));
        assert!(report.recovered());
        assert!(!report.recovered());
        assert_eq!(report.fault("b".into()), some("b"));
    }

    #[test]
    fn a_notice_is_said_once_per_occurrence() {
        let mut report = Report::default();
        assert_eq!(report.notice("empty".into()), some("empty"));
        assert_eq!(report.notice("empty".into()), None);
        report.no_notice();
        assert_eq!(report.notice("empty".into()), some("empty"));
    }

    #[test]
    fn a_complaint_is_said_when_it_is_new() {
        let mut report = Report::default();
        let mut new = |now: &str| report.complaints(now.split(' ').map(str::to_owned).collect());
        assert_eq!(new("a b a"), ["a", "b"]);
        assert_eq!(new("b c a"), ["c"]);
        assert_eq!(new("b"), Vec::<String>::new());
        assert_eq!(new("a b"), ["a"]);
    }

    #[test]
    fn a_flood_of_complaints_is_cut() {
        let all: Vec<_> = (0..COMPLAINTS_MAX + 5).map(|n| n.to_string()).collect();
        let mut report = Report::default();
        let said = report.complaints(all.clone());
        assert_eq!(said.len(), COMPLAINTS_MAX + 1);
        assert_eq!(said.last(), some("5 more complaints like these").as_ref());
        assert_eq!(report.complaints(all), Vec::<String>::new());
    }
}
