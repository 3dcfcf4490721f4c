//! The dates of a yearly recurrence rule (RFC 5545, section 3.3.10): the part of the grammar in which
//! holidays are written.

use std::{collections::BTreeSet, ops::RangeInclusive};

use chrono::{Datelike, NaiveDate, Weekday};

use crate::fields::clip;

/// The highest COUNT.
const COUNT_MAX: u32 = 10_000;

/// A rule that repeats every year, or every few years.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Yearly {
    interval: i32,
    ends: Ends,
    months: BTreeSet<u32>,
    days: BTreeSet<i32>,
    weekdays: BTreeSet<(i32, u8)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Never,
    /// The last date that may count.
    Until(NaiveDate),
    /// How many dates there are, the first included.
    Count(u32),
}

impl Yearly {
    /// Reads a rule's text.
    ///
    /// # Errors
    ///
    /// What of it is not understood, in words that fit behind "its rule ".
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut rule = Self {
            interval: 1,
            ends: Ends::Never,
            months: BTreeSet::new(),
            days: BTreeSet::new(),
            weekdays: BTreeSet::new(),
        };
        let mut seen = BTreeSet::new();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or("is no list of NAME=VALUE")?;
            let name = name.to_ascii_uppercase();
            if !seen.insert(name.clone()) {
                return Err(format!("has {name} twice"));
            }
            rule.read_part(&name, value)?;
        }
        if !seen.contains("FREQ") {
            return Err("has no FREQ".to_owned());
        }
        rule.check()?;
        Ok(rule)
    }

    fn read_part(&mut self, name: &str, value: &str) -> Result<(), String> {
        let twice = || "has both COUNT and UNTIL".to_owned();
        match name {
            "FREQ" if value.eq_ignore_ascii_case("YEARLY") => {}
            "FREQ" => return Err("repeats otherwise than FREQ=YEARLY".to_owned()),
            "INTERVAL" => self.interval = number(name, value, 1..=100)?,
            "COUNT" if self.ends == Ends::Never => {
                self.ends = Ends::Count(number(name, value, 1..=COUNT_MAX)?);
            }
            "UNTIL" if self.ends == Ends::Never => {
                let day = value.get(..8).and_then(super::ics::basic_date);
                self.ends = Ends::Until(day.ok_or("has an UNTIL that is no date")?);
            }
            "COUNT" | "UNTIL" => return Err(twice()),
            "BYMONTH" => self.months = numbers(name, value, 1..=12)?,
            "BYMONTHDAY" => self.days = numbers(name, value, -31..=31)?,
            "BYDAY" => self.weekdays = weekdays(value)?,
            // It matters to weekly rules and to week numbers alone.
            "WKST" => {}
            _ => return Err(format!("has {}", clip(name))),
        }
        Ok(())
    }

    /// Days of the week are understood within months, where every program counts them alike.
    fn check(&self) -> Result<(), String> {
        if self.days.contains(&0) {
            return Err("has the BYMONTHDAY 0".to_owned());
        }
        if self.weekdays.is_empty() {
            return Ok(());
        }
        if self.months.is_empty() {
            return Err("has BYDAY without BYMONTH".to_owned());
        }
        let counted = self.weekdays.iter().any(|(ordinal, _)| *ordinal != 0);
        if counted && !self.days.is_empty() {
            return Err("has a counted BYDAY beside BYMONTHDAY".to_owned());
        }
        Ok(())
    }

    /// The dates in `years`, of an event whose first date is `first`: that one, which counts whatever
    /// the rule says, and those of the rule after it.
    pub(super) fn dates(&self, first: NaiveDate, years: &RangeInclusive<i32>) -> Vec<NaiveDate> {
        let of_rule = self
            .years(first, years)
            .flat_map(|year| self.of_year(year, first))
            .filter(|date| *date > first);
        let (until, count) = match self.ends {
            Ends::Never => (NaiveDate::MAX, u32::MAX),
            Ends::Until(until) => (until, u32::MAX),
            Ends::Count(count) => (NaiveDate::MAX, count),
        };
        std::iter::once(first)
            .chain(of_rule)
            .take_while(|date| *date <= until || *date == first)
            .zip(0..count)
            .map(|(date, _)| date)
            .filter(|date| years.contains(&date.year()))
            .collect()
    }

    /// The years that [`Yearly::dates`] looks at: what it costs.
    pub(super) fn years(
        &self,
        first: NaiveDate,
        years: &RangeInclusive<i32>,
    ) -> impl ExactSizeIterator<Item = i32> + use<> {
        let from = match self.ends {
            // How many came before decides when it ends.
            Ends::Count(_) => first.year(),
            Ends::Never | Ends::Until(_) => first.year().max(*years.start()),
        };
        let late = (from - first.year()).rem_euclid(self.interval);
        let begins = if late == 0 {
            from
        } else {
            from + self.interval - late
        };
        let step = usize::try_from(self.interval).unwrap_or(1);
        (begins..years.end() + 1).step_by(step)
    }

    /// The rule's dates in one year, earliest first.
    fn of_year(&self, year: i32, first: NaiveDate) -> BTreeSet<NaiveDate> {
        let by_default = self.days.is_empty() && self.weekdays.is_empty();
        let months: Vec<u32> = match self.months.is_empty() {
            false => self.months.iter().copied().collect(),
            true if by_default => vec![first.month()],
            true => (1..=12).collect(),
        };
        let days_of =
            |month| (1..=31).filter_map(move |day| NaiveDate::from_ymd_opt(year, month, day));
        months
            .into_iter()
            .flat_map(days_of)
            .filter(|date| match by_default {
                true => date.day() == first.day(),
                false => self.matches_day(*date) && self.matches_weekday(*date),
            })
            .collect()
    }

    fn matches_day(&self, date: NaiveDate) -> bool {
        let [from_start, from_end] = places(date);
        self.days.is_empty() || self.days.contains(&from_start) || self.days.contains(&from_end)
    }

    fn matches_weekday(&self, date: NaiveDate) -> bool {
        let [from_start, from_end] = places(date);
        let weekday = number_of(date.weekday());
        let ordinals = [0, (from_start - 1) / 7 + 1, (from_end + 1) / 7 - 1];
        self.weekdays.is_empty()
            || ordinals
                .iter()
                .any(|ordinal| self.weekdays.contains(&(*ordinal, weekday)))
    }
}

/// A date's place in its month, counted from its start and from its end.
fn places(date: NaiveDate) -> [i32; 2] {
    let day = date.day().cast_signed();
    let days = i32::from(date.num_days_in_month());
    [day, day - days - 1]
}

fn number_of(weekday: Weekday) -> u8 {
    match weekday {
        Weekday::Mon => 1,
        Weekday::Tue => 2,
        Weekday::Wed => 3,
        Weekday::Thu => 4,
        Weekday::Fri => 5,
        Weekday::Sat => 6,
        Weekday::Sun => 7,
    }
}

/// `MO`, `4TH`, `-1MO`: which of its weekday in the month, 0 for each, and the weekday.
fn weekdays(list: &str) -> Result<BTreeSet<(i32, u8)>, String> {
    const NAMES: [(&str, u8); 7] = [
        ("MO", 1),
        ("TU", 2),
        ("WE", 3),
        ("TH", 4),
        ("FR", 5),
        ("SA", 6),
        ("SU", 7),
    ];
    let one = |text: &str| {
        let text = text.trim().to_ascii_uppercase();
        let (_, number) = NAMES.iter().find(|(name, _)| text.ends_with(name))?;
        let ordinal = match text.get(..text.len().checked_sub(2)?)? {
            "" => 0,
            ordinal => ordinal
                .parse()
                .ok()
                .filter(|ordinal: &i32| (1..=5).contains(&ordinal.abs()))?,
        };
        Some((ordinal, *number))
    };
    list.split(',')
        .map(one)
        .collect::<Option<_>>()
        .ok_or_else(|| "has a BYDAY that is no list of days".to_owned())
}

fn numbers<T: std::str::FromStr + Ord>(
    name: &str,
    list: &str,
    range: RangeInclusive<T>,
) -> Result<BTreeSet<T>, String> {
    list.split(',')
        .map(|one| number_in(one, &range))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("has a {name} out of its range"))
}

fn number<T: std::str::FromStr + Ord>(
    name: &str,
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    number_in(text, &range).ok_or_else(|| format!("has a {name} out of its range"))
}

fn number_in<T: std::str::FromStr + Ord>(text: &str, range: &RangeInclusive<T>) -> Option<T> {
    text.trim()
        .parse()
        .ok()
        .filter(|number| range.contains(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEARS: RangeInclusive<i32> = 2025..=2036;

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn dates(first: &str, rule: &str) -> Vec<String> {
        let rule = Yearly::parse(rule).unwrap();
        let dates = rule.dates(date(first), &YEARS);
        dates.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn holidays_as_calendars_write_them() {
        let thanksgiving = dates("2007-11-22", "FREQ=YEARLY;BYMONTH=11;BYDAY=4TH;COUNT=20");
        assert_eq!(thanksgiving, ["2025-11-27", "2026-11-26"]);
        let memorial = dates(
            "2020-05-25",
            "FREQ=YEARLY;BYMONTH=5;BYDAY=-1MO;UNTIL=20260601",
        );
        assert_eq!(memorial, ["2025-05-26", "2026-05-25"]);
        let victoria =
            "FREQ=YEARLY;BYMONTH=5;BYDAY=MO;BYMONTHDAY=18,19,20,21,22,23,24;UNTIL=20270101T000000Z";
        assert_eq!(dates("2020-05-18", victoria), ["2025-05-19", "2026-05-18"]);
        assert_eq!(
            dates("2024-02-29", "FREQ=YEARLY"),
            ["2028-02-29", "2032-02-29", "2036-02-29"]
        );
        let olympic = dates("1896-04-06", "freq=yearly;interval=4;WKST=MO;");
        assert_eq!(olympic, ["2028-04-06", "2032-04-06", "2036-04-06"]);
        assert_eq!(
            dates("2026-03-31", "FREQ=YEARLY;BYMONTHDAY=-1;COUNT=3"),
            ["2026-03-31", "2026-04-30", "2026-05-31"]
        );
        // The event's own date counts, whatever its rule says.
        assert_eq!(
            dates("2026-03-02", "FREQ=YEARLY;BYMONTH=3;COUNT=2;BYMONTHDAY=5"),
            ["2026-03-02", "2026-03-05"]
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (rule, words) in [
            ("", "no FREQ"),
            ("INTERVAL=2", "no FREQ"),
            ("FREQ=DAILY", "otherwise"),
            ("FREQ", "no list of"),
            ("FREQ=YEARLY;FREQ=YEARLY", "FREQ twice"),
            ("FREQ=YEARLY;COUNT=2;UNTIL=20270101", "both"),
            ("FREQ=YEARLY;UNTIL=2027", "UNTIL that is no date"),
            ("FREQ=YEARLY;UNTIL=2027é101", "UNTIL that is no date"),
            ("FREQ=YEARLY;COUNT=0", "COUNT out of"),
            ("FREQ=YEARLY;INTERVAL=101", "INTERVAL out of"),
            ("FREQ=YEARLY;BYMONTH=13", "BYMONTH out of"),
            ("FREQ=YEARLY;BYMONTHDAY=0", "BYMONTHDAY 0"),
            ("FREQ=YEARLY;BYMONTHDAY=1,", "BYMONTHDAY out of"),
            ("FREQ=YEARLY;BYDAY=20MO", "BYDAY that is no"),
            ("FREQ=YEARLY;BYDAY=é", "BYDAY that is no"),
            ("FREQ=YEARLY;BYDAY=MO", "BYDAY without BYMONTH"),
            (
                "FREQ=YEARLY;BYMONTH=5;BYMONTHDAY=3;BYDAY=1MO",
                "counted BYDAY",
            ),
            ("FREQ=YEARLY;BYWEEKNO=1", "has BYWEEKNO"),
            ("FREQ=YEARLY;BYEASTER=1", "has BYEASTER"),
        ] {
            let why = Yearly::parse(rule).unwrap_err();
            assert!(why.contains(words), "{rule}: {why}");
        }
        let endless = format!("{}=1", "RRULE:".repeat(500));
        let why = Yearly::parse(&endless).unwrap_err();
        assert!(why.starts_with("has RRULE:") && why.len() < 100, "{why}");
    }

    fn any_rule() -> impl Strategy<Value = String> {
        let list = |one: BoxedStrategy<String>| {
            prop::collection::btree_set(one, 0..4)
                .prop_map(|set| set.into_iter().collect::<Vec<_>>().join(","))
        };
        let month = list((1..=12u32).prop_map(|month| month.to_string()).boxed());
        let day = prop_oneof![1..=31, -31..=-1].prop_map(|day: i32| day.to_string());
        let name = prop::sample::select(vec!["MO", "TU", "WE", "TH", "FR", "SA", "SU"]);
        let counted = (prop_oneof![1..=5, -5..=-1], name.clone())
            .prop_map(|(n, name): (i32, _)| format!("{n}{name}"));
        let plain = name.prop_map(str::to_owned);
        let end = prop_oneof![
            Just(String::new()),
            (1..200u32).prop_map(|count| format!(";COUNT={count}")),
            (2020..2040).prop_map(|year| format!(";UNTIL={year}0615")),
        ];
        let weekday = prop_oneof![list(counted.boxed()), list(plain.boxed())];
        (1..5u32, month, list(day.boxed()), weekday, end).prop_map(
            |(interval, month, day, weekday, end)| {
                let part = |name, list: String| {
                    if list.is_empty() {
                        list
                    } else {
                        format!(";{name}={list}")
                    }
                };
                format!(
                    "FREQ=YEARLY;INTERVAL={interval}{}{}{}{end}",
                    part("BYMONTH", month),
                    part("BYMONTHDAY", day),
                    part("BYDAY", weekday),
                )
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_dates_are_those_of_another_library(text in any_rule(), days in 0u64..20_000) {
            let Ok(rule) = Yearly::parse(&text) else { return Ok(()) };
            let after = date("1990-01-01") + chrono::Days::new(days);
            // From a date that the rule gives, where all programs agree.
            let Some(first) = (after.year()..after.year() + 30)
                .flat_map(|year| rule.of_year(year, after))
                .find(|date| *date >= after) else { return Ok(()) };
            let until = text.split("UNTIL=").nth(1).and_then(super::super::ics::basic_date);
            if until.is_some_and(|until| until < first) { return Ok(()) }
            let set = format!("DTSTART:{}\nRRULE:{}", first.format("%Y%m%dT000000Z"),
                text.replace("0615", "0615T000000Z"));
            let set: rrule::RRuleSet = set.parse().unwrap();
            let expected: Vec<NaiveDate> = set.into_iter()
                .map(|at| at.date_naive())
                .take_while(|date| date.year() <= *YEARS.end())
                .filter(|date| YEARS.contains(&date.year()))
                .collect();
            prop_assert_eq!(rule.dates(first, &YEARS), expected, "{}", text);
        }
    }
}
