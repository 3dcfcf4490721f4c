//! Calendars of holidays: the days that a tenant names, as JSON or as an iCalendar text.
//!
//! Pure: it never reads a clock, a table or the network. A day that is not understood is refused,
//! never left out: on a holiday that goes missing a prompt would run.

mod ics;
mod yearly;

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    exclusion::date,
    fault::Fault,
    fields::{Field, Fields},
};

/// The most days of a calendar.
pub const DAYS_MAX: usize = 2_000;
/// The longest name of a day, in characters.
pub const DAY_NAME_CHARS_MAX: usize = 200;
/// The longest iCalendar text, in bytes; a request has no room for more.
pub const ICS_BYTES_MAX: usize = 250_000;

/// More faults than this are not told: the answer must stay small.
const FAULTS_TOLD_MAX: usize = 20;

/// The days of a calendar, each date once, earliest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Days(BTreeMap<NaiveDate, Option<String>>);

/// A holiday.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = CalendarDay)]
pub struct Day {
    /// The date, in the zone of whichever prompt looks at it.
    #[schema(example = "2026-12-25")]
    pub date: NaiveDate,
    /// What it is called.
    #[schema(required, max_length = 200, example = "Christmas Day")]
    pub name: Option<String>,
}

/// What is put into a calendar: its days, or an iCalendar text that holds them.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum CalendarBody {
    /// The days themselves.
    Days(CalendarDays),
    /// Days from a calendar program.
    Ics(CalendarIcs),
}

/// The days of a calendar.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body; `Days::parse` reads it")]
pub struct CalendarDays {
    /// The days, each date once.
    #[schema(max_items = 2_000)]
    days: Vec<CalendarDayBody>,
}

/// A holiday to be kept.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body; `Days::parse` reads it")]
pub struct CalendarDayBody {
    /// The date, 1970-01-01 to 2999-12-31.
    #[schema(
        pattern = "^(19[7-9]|2[0-9]{2})[0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$",
        example = "2026-12-25"
    )]
    date: NaiveDate,
    /// What it is called.
    #[schema(
        nullable,
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
        example = "Christmas Day"
    )]
    name: Option<String>,
}

/// A calendar as another program writes it.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body; `Days::parse` reads it")]
pub struct CalendarIcs {
    /// iCalendar (RFC 5545), at most 250,000 bytes, with all-day events of one day or several, single
    /// or repeated yearly. Repeated ones give their days from last year to ten years from now.
    #[schema(min_length = 1, max_length = 250_000, pattern = "^[^\\u0000]*$")]
    ics: String,
}

impl Days {
    /// Reads what a caller puts into a calendar.
    ///
    /// # Errors
    ///
    /// Every fault at once, up to a bound, with fields from the body's root.
    pub fn parse(value: &Value, now: DateTime<Utc>) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(value);
        let mut given = 0;
        let days = fields.optional("days").parse(|value| {
            given += 1;
            listed(value)
        });
        let imported = fields.optional("ics").parse(|value| {
            given += 1;
            let mut faults = Vec::new();
            let text = Field::root(value, &mut faults).text_bytes(1..=ICS_BYTES_MAX);
            match text {
                Some(text) => ics::days(text, now.year()),
                None => Err(faults),
            }
        });
        if value.is_object() && given != 1 {
            fields.refuse(Fault::new(
                "",
                "days_or_ics",
                "the body must have either `days` or `ics`",
                "send {\"days\": [{\"date\": \"2026-12-25\", \"name\": \"Christmas Day\"}]} or {\"ics\": \"BEGIN:VCALENDAR…\"}",
            ));
        }
        fields.finish(days.or(imported))
    }

    /// Reads what `to_json` made.
    ///
    /// # Errors
    ///
    /// Why it was not written by `to_json`.
    pub fn from_stored(value: Value) -> Result<Self, serde_json::Error> {
        let days: Vec<Day> = serde_json::from_value(value)?;
        Ok(Self(
            days.into_iter().map(|day| (day.date, day.name)).collect(),
        ))
    }

    /// The days as stored.
    #[must_use]
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self.iter().collect::<Vec<_>>())
            .expect("dates and names are text, which serde_json always takes")
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The days, earliest first.
    pub fn iter(&self) -> impl Iterator<Item = Day> {
        self.0.iter().map(|(date, name)| Day {
            date: *date,
            name: name.clone(),
        })
    }
}

fn listed(value: &Value) -> Result<Days, Vec<Fault>> {
    let mut faults = Vec::new();
    let read = Field::root(value, &mut faults).list(0..=DAYS_MAX, |item| item.parse(day));
    let mut days = BTreeMap::new();
    for (index, (date, name)) in read.into_iter().flatten().enumerate() {
        if days.insert(date, name).is_some() {
            faults.push(Fault::new(
                format!("[{index}]"),
                "duplicate",
                format!("{date} is there already"),
                "name each date once",
            ));
        }
    }
    if faults.is_empty() {
        return Ok(Days(days));
    }
    faults.truncate(FAULTS_TOLD_MAX);
    Err(faults)
}

fn day(value: &Value) -> Result<(NaiveDate, Option<String>), Vec<Fault>> {
    let mut fields = Fields::new(value);
    let date = fields
        .required_such_as("date", "2026-12-25")
        .parse_text(date);
    let name = fields.optional("name").line(1..=DAY_NAME_CHARS_MAX);
    fields.finish(date.map(|date| (date, name.map(str::to_owned))))
}

fn may_be_kept(date: NaiveDate) -> bool {
    (1970..3000).contains(&date.year())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Days, Vec<Fault>> {
        Days::parse(value, "2026-11-21T12:00:00Z".parse().unwrap())
    }

    fn told(value: &Value) -> Vec<(String, &'static str)> {
        let faults = parse(value).unwrap_err();
        faults
            .into_iter()
            .map(|fault| (fault.field, fault.code))
            .collect()
    }

    #[test]
    fn days_read_back_in_their_order() {
        let days = parse(&json!({ "days": [
            { "date": "2026-12-25", "name": "Christmas Day" }, { "date": "2026-01-01" },
        ] }))
        .unwrap();
        let stored = days.to_json();
        assert_eq!(
            stored,
            json!([{ "date": "2026-01-01", "name": null },
                   { "date": "2026-12-25", "name": "Christmas Day" }])
        );
        assert_eq!(Days::from_stored(stored).unwrap(), days);
        assert_eq!(parse(&json!({ "days": [] })).unwrap(), Days::default());
    }

    #[test]
    fn every_fault_is_told_with_its_place() {
        let body = json!({ "days": [
            { "date": "2026-12-25" }, { "date": "2026-02-30" }, { "date": "1969-12-31" },
            { "date": "+026-12-25" }, { "name": "x" }, { "date": "2026-12-26", "name": "a\nb" },
            { "date": "2026-12-27", "nam": "x" }, 7,
        ], "dayz": 1 });
        let expected = [
            ("days[1].date", "bad_date"),
            ("days[2].date", "bad_date"),
            ("days[3].date", "bad_date"),
            ("days[4].date", "missing"),
            ("days[5].name", "control_character"),
            ("days[6].nam", "unknown_field"),
            ("days[7]", "wrong_type"),
            ("dayz", "unknown_field"),
        ];
        let expected = expected.map(|(field, code)| (field.to_owned(), code));
        assert_eq!(told(&body), expected);
        let twice = json!({ "days": [{ "date": "2026-12-25" }, { "date": "2026-12-25" }] });
        assert_eq!(told(&twice), [("days[1]".to_owned(), "duplicate")]);
    }

    #[test]
    fn either_days_or_an_ics_text() {
        for body in [
            json!({}),
            json!({ "days": [], "ics": "x" }),
            json!({ "days": null }),
        ] {
            let codes: Vec<_> = told(&body).into_iter().map(|(_, code)| code).collect();
            assert!(codes.contains(&"days_or_ics"), "{body} {codes:?}");
        }
        assert_eq!(told(&json!([])), [(String::new(), "wrong_type")]);
        assert_eq!(
            told(&json!({ "ics": 7 })),
            [("ics".to_owned(), "wrong_type")]
        );
    }

    #[test]
    fn days_and_faults_are_bounded() {
        let day = |n: usize| {
            let first: NaiveDate = "2026-01-01".parse().unwrap();
            json!({ "date": first + chrono::Days::new(n as u64) })
        };
        let full: Vec<_> = (0..DAYS_MAX).map(day).collect();
        assert_eq!(
            parse(&json!({ "days": full })).unwrap().iter().count(),
            DAYS_MAX
        );
        let over: Vec<_> = (0..=DAYS_MAX).map(day).collect();
        assert_eq!(
            told(&json!({ "days": over })),
            [("days".to_owned(), "too_many")]
        );
        let wrong = json!({ "days": vec![json!({ "date": "x" }); 100] });
        assert_eq!(told(&wrong).len(), FAULTS_TOLD_MAX);
    }
}
