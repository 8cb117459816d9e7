//! What is shown of an upstream, before it is text or JSON.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::model::{Check, Method, Parameters};

/// Who gave an upstream its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The `server` lines of nginx.conf.
    Config,
    /// Consul, which the upstream follows.
    Consul,
    /// A request to the interface.
    Api,
}

/// An upstream with the list that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct View<'a> {
    /// In lower case, or as nginx.conf writes it.
    pub name: &'a str,
    /// Who gave it the list.
    pub source: Source,
    /// Counts the changes of the list.
    pub version: u32,
    /// When the list came into force, in milliseconds since 1970.
    pub since: u64,
    /// Idle connections that each worker keeps; none where the upstream keeps none.
    pub keepalive: Option<u32>,
    /// The method that came with the list.
    pub method: Option<Method>,
    /// The checks that came with the list.
    pub check: Option<Check>,
    /// In the order of the list.
    pub servers: Vec<ServerView<'a>>,
}

/// One server of it, with what has come of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerView<'a> {
    /// As nginx's `server` directive writes it.
    pub address: &'a str,
    /// In force.
    pub parameters: Parameters,
    /// Under way now, over all workers.
    pub connections: u32,
    /// Failed attempts within `fail_timeout`.
    pub fails: u32,
    /// Whether `max_fails` is reached and `fail_timeout` not over.
    pub out: bool,
    /// Attempts since the server is in the list.
    pub requests: u64,
    /// Failed ones of these.
    pub failures: u64,
    /// What checks say, if it is checked.
    pub check: Option<CheckView>,
}

/// What checks say of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckView {
    /// The verdict; none as long as there is none.
    pub is_up: Option<bool>,
    /// When the last check ended, in milliseconds since 1970.
    pub at: Option<u64>,
}

/// A time in UTC, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

const DAY: u64 = 86_400_000;

impl Moment {
    /// `2026-11-21T10:00:00.123Z` (RFC 3339).
    pub fn rfc3339(self) -> String {
        let (date, time, milliseconds) = (self.date(), self.time(), self.0 % 1000);
        format!("{date}T{time}.{milliseconds:03}Z")
    }

    /// `2026-11-21 10:00:00`, without the fraction.
    pub fn date_and_time(self) -> String {
        format!("{} {}", self.date(), self.time())
    }

    fn date(self) -> String {
        let (year, month, day) = civil_from_days(self.0 / DAY);
        format!("{year:04}-{month:02}-{day:02}")
    }

    fn time(self) -> String {
        let seconds = self.0 % DAY / 1000;
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// The year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// A year is taken to begin in March, so that the day which leap years add is its last; all eras of
/// 400 years are alike.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    // From 0000-03-01.
    let days = days + 719_468;
    let day_of_era = days % ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = days / ERA * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_210_096_007, "2024-02-29T12:34:56.007Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (1_795_255_200_123, "2026-11-21T10:00:00.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Moment(milliseconds).rfc3339(), text);
        }
        let moment = Moment(1_795_255_200_999);
        assert_eq!(moment.date_and_time(), "2026-11-21 10:00:00");
    }

    fn is_leap(year: u64) -> bool {
        year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
    }

    #[test]
    fn each_day_of_600_years_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..219_146 {
            assert_eq!(civil_from_days(days), (year, month, day));
            let last = match month {
                2 => 28 + u64::from(is_leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (month, day) = if day == last { (month + 1, 1) } else { (month, day + 1) };
            (year, month) = if month == 13 { (year + 1, 1) } else { (year, month) };
        }
    }

    proptest! {
        #[test]
        fn any_moment_has_a_text(milliseconds: u64) {
            let _ = Moment(milliseconds).date_and_time();
            prop_assert!(Moment(milliseconds).rfc3339().ends_with('Z'));
        }

        #[test]
        fn texts_are_ordered_as_moments_are(a in 0..253_402_300_800_000u64, b in 0..1_000_000u64) {
            let text = |milliseconds| Moment(milliseconds).rfc3339();
            prop_assert!(text(a) < text(a + b + 1) || a + b >= 253_402_300_799_999);
        }
    }
}
