//! On which days a prompt is not due: dates, ranges of dates, days of the week, calendars of holidays.
//!
//! Pure: what the calendars hold is passed in. A slot is judged by its local date in the prompt's
//! zone; an excluded slot is no slot, so nothing is recorded of it.

use std::{
    borrow::{Borrow, Cow},
    collections::{BTreeMap, HashSet},
    fmt,
    hash::Hash,
};

use chrono::{DateTime, Datelike, Duration, NaiveDate, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{
            AdditionalProperties, Array, ArrayBuilder, KnownFormat, Object, ObjectBuilder,
            SchemaFormat, SchemaType, Type,
        },
    },
};

use crate::{
    fault::Fault,
    fields::{Field, Fields, nearest},
    schedule::{Day, day_start, joined, weekday_names},
};

/// The most single dates.
pub const DATES_MAX: usize = 366;
/// The most ranges of dates.
pub const RANGES_MAX: usize = 50;
/// The most days in one range, both ends counted.
pub const RANGE_DAYS_MAX: i64 = 366;
/// The most calendars.
pub const CALENDARS_MAX: usize = 5;
/// The longest name of a calendar.
pub const CALENDAR_NAME_BYTES_MAX: usize = 64;

/// So many times is a schedule asked for the slot after excluded days, and so many of those days are
/// looked at, a range counting as one. Every list filled with days of one schedule fits, with five
/// years of holidays; the bounds keep the search far under a millisecond.
const RUNS_OF_DAYS_MAX: u32 = 500;
const DAYS_MAX: u32 = 1_500;

/// Up to so many dates, or ranges, are named one by one in words.
const LISTED_MAX: usize = 3;

/// The days on which a prompt is not due. The lists are in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Exclusions {
    dates: Vec<NaiveDate>,
    ranges: Vec<DateRange>,
    weekdays: Vec<Day>,
    calendars: Vec<CalendarName>,
}

/// The dates from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
struct DateRange {
    from: NaiveDate,
    to: NaiveDate,
}

/// The name of a tenant's calendar: lower-case letters, digits and single hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(
    value_type = String,
    min_length = 1,
    max_length = 64,
    pattern = "^[a-z0-9]+(-[a-z0-9]+)*$",
    example = "uk-bank-holidays"
)]
pub struct CalendarName(String);

/// What calendars hold: per calendar, each holiday's name by its date.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holidays(BTreeMap<CalendarName, BTreeMap<NaiveDate, String>>);

/// No calendar, for a prompt that names none.
pub static NO_HOLIDAYS: Holidays = Holidays(BTreeMap::new());

/// Why a date is excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excluded {
    /// It is one of the dates.
    Date,
    /// It lies in a range.
    Range,
    /// It falls on one of the days of the week.
    Weekday,
    /// It is a holiday.
    Holiday {
        /// Of which calendar.
        calendar: CalendarName,
        /// Which.
        name: String,
    },
}

impl Excluded {
    /// The list of the exclusions that takes the date.
    #[must_use]
    pub fn list(&self) -> &'static str {
        match self {
            Self::Date => "dates",
            Self::Range => "ranges",
            Self::Weekday => "weekdays",
            Self::Holiday { .. } => "calendars",
        }
    }
}

impl Exclusions {
    /// Reads the exclusions that a caller sent, or that were stored.
    ///
    /// # Errors
    ///
    /// Every fault at once, with fields relative to the object.
    pub fn parse(value: &Value) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(value);
        let dates = fields
            .optional("dates")
            .list(0..=DATES_MAX, |item| item.parse_text(date));
        let ranges = fields
            .optional("ranges")
            .list(0..=RANGES_MAX, |item| item.parse(DateRange::parse));
        let weekdays = fields
            .optional("weekdays")
            .list(0..=Day::ALL.len(), day_of_week);
        let calendars = fields
            .optional("calendars")
            .list(0..=CALENDARS_MAX, |item| {
                item.parse_text(CalendarName::parse)
            });
        let mut read = Self {
            dates: dates.unwrap_or_default(),
            ranges: ranges.unwrap_or_default(),
            weekdays: weekdays.unwrap_or_default(),
            calendars: calendars.unwrap_or_default(),
        };
        refuse_repeated(&mut fields, "dates", &read.dates);
        refuse_repeated(&mut fields, "ranges", &read.ranges);
        refuse_repeated(&mut fields, "weekdays", &read.weekdays);
        refuse_repeated(&mut fields, "calendars", &read.calendars);
        if HashSet::<&Day>::from_iter(&read.weekdays).len() == Day::ALL.len() {
            fields.refuse(Fault::new(
                "weekdays",
                "every_day_excluded",
                "every day of the week is excluded",
                "leave a day on which the prompt may run, or pause the prompt",
            ));
        }
        read.dates.sort_unstable();
        read.ranges.sort_unstable();
        read.weekdays.sort_unstable();
        fields.finish(Some(read))
    }

    /// The names of the calendars.
    #[must_use]
    pub fn calendars(&self) -> &[CalendarName] {
        &self.calendars
    }

    /// Whether nothing is excluded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dates.is_empty()
            && self.ranges.is_empty()
            && self.weekdays.is_empty()
            && self.calendars.is_empty()
    }

    /// Why a date is excluded, if it is. A calendar that `holidays` lacks excludes nothing.
    #[must_use]
    pub fn why(&self, date: NaiveDate, holidays: &Holidays) -> Option<Excluded> {
        let taken = Judge::new(self, holidays).taken(date)?;
        Some(match taken {
            Taken::Date => Excluded::Date,
            Taken::Range { .. } => Excluded::Range,
            Taken::Weekday => Excluded::Weekday,
            Taken::Holiday { calendar, name } => Excluded::Holiday {
                calendar: calendar.clone(),
                name: name.to_owned(),
            },
        })
    }

    /// In words, for example `on Saturday and Sunday and on 2026-12-25`; `None` when nothing is
    /// excluded.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        let mut parts = Vec::new();
        if !self.weekdays.is_empty() {
            parts.push(format!("on {}", weekday_names(&self.weekdays)));
        }
        match self.dates.as_slice() {
            [] => {}
            dates if dates.len() <= LISTED_MAX => {
                let dates = dates.iter().map(NaiveDate::to_string).collect();
                parts.push(format!("on {}", joined(dates)));
            }
            dates => parts.push(format!("on {} dates", dates.len())),
        }
        if self.ranges.len() <= LISTED_MAX {
            let ranges = self.ranges.iter();
            parts.extend(ranges.map(|range| format!("from {} to {}", range.from, range.to)));
        } else {
            parts.push(format!("in {} ranges of dates", self.ranges.len()));
        }
        if !self.calendars.is_empty() {
            let names = self.calendars.iter().map(CalendarName::to_string).collect();
            parts.push(format!("on the holidays of {}", joined(names)));
        }
        (!parts.is_empty()).then(|| joined(parts))
    }

    /// Which lists take the first slots after `after`, each once: for a message.
    pub(crate) fn lists_that_take(
        &self,
        after: DateTime<Utc>,
        timezone: Tz,
        holidays: &Holidays,
        next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
    ) -> Vec<&'static str> {
        const SLOTS_MAX: usize = 50;
        let slots = std::iter::successors(next(after), |slot| next(*slot)).take(SLOTS_MAX);
        let mut lists: Vec<_> = slots
            .filter_map(|slot| self.why(slot.with_timezone(&timezone).date_naive(), holidays))
            .map(|why| why.list())
            .collect();
        lists.sort_unstable();
        lists.dedup();
        lists
    }

    /// The first slot after `after` that no exclusion takes; `None` as well when more days in a row
    /// are excluded than are looked at. `next` gives the slot after an instant.
    pub(crate) fn first_slot(
        &self,
        after: DateTime<Utc>,
        timezone: Tz,
        holidays: &Holidays,
        next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
    ) -> Option<DateTime<Utc>> {
        if self.is_empty() {
            return next(after);
        }
        let judge = Judge::new(self, holidays);
        let mut after = after;
        let mut days_left = DAYS_MAX;
        for _ in 0..=RUNS_OF_DAYS_MAX {
            let slot = next(after)?;
            let date = slot.with_timezone(&timezone).date_naive();
            let free = judge.free_from(date, &mut days_left)?;
            if free == date {
                return Some(slot);
            }
            after = slot.max(day_start(timezone, free) - Duration::seconds(1));
        }
        None
    }
}

/// Exclusions with their calendars looked up.
struct Judge<'a> {
    exclusions: &'a Exclusions,
    calendars: Vec<(&'a CalendarName, &'a BTreeMap<NaiveDate, String>)>,
}

/// What takes a date.
enum Taken<'a> {
    Date,
    Range {
        to: NaiveDate,
    },
    Weekday,
    Holiday {
        calendar: &'a CalendarName,
        name: &'a str,
    },
}

impl<'a> Judge<'a> {
    fn new(exclusions: &'a Exclusions, holidays: &'a Holidays) -> Self {
        let calendars = exclusions
            .calendars
            .iter()
            .filter_map(|name| Some((name, holidays.0.get(name)?)))
            .collect();
        Self {
            exclusions,
            calendars,
        }
    }

    fn taken(&self, date: NaiveDate) -> Option<Taken<'a>> {
        if self.exclusions.dates.binary_search(&date).is_ok() {
            return Some(Taken::Date);
        }
        let mut ranges = self.exclusions.ranges.iter();
        if let Some(range) = ranges.find(|range| range.contains(date)) {
            return Some(Taken::Range { to: range.to });
        }
        if self.exclusions.weekdays.contains(&Day::of(date.weekday())) {
            return Some(Taken::Weekday);
        }
        self.calendars.iter().find_map(|(calendar, holidays)| {
            let name = holidays.get(&date)?;
            Some(Taken::Holiday { calendar, name })
        })
    }

    /// This date, or the first after it that is not excluded.
    fn free_from(&self, date: NaiveDate, days_left: &mut u32) -> Option<NaiveDate> {
        let mut date = date;
        while let Some(taken) = self.taken(date) {
            *days_left = days_left.checked_sub(1)?;
            let last = match taken {
                Taken::Range { to } => to,
                Taken::Date | Taken::Weekday | Taken::Holiday { .. } => date,
            };
            date = last.succ_opt()?;
        }
        Some(date)
    }
}

impl DateRange {
    fn parse(value: &Value) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(value);
        let from = fields.required("from").parse_text(date);
        let to = fields.required("to").parse_text(date);
        let range = from.zip(to).map(|(from, to)| Self { from, to });
        if let Some(range) = range {
            range.check().unwrap_or_else(|fault| fields.refuse(fault));
        }
        fields.finish(range)
    }

    fn check(self) -> Result<(), Fault> {
        let days = (self.to - self.from).num_days() + 1;
        if days < 1 {
            return Err(Fault::new(
                "to",
                "end_before_start",
                "the range ends before it begins",
                "write a date that is not before `from`",
            ));
        }
        if days > RANGE_DAYS_MAX {
            return Err(Fault::new(
                "to",
                "range_too_long",
                format!("the range has {days} days"),
                format!("send at most {RANGE_DAYS_MAX} days, or several ranges"),
            ));
        }
        Ok(())
    }

    fn contains(self, date: NaiveDate) -> bool {
        (self.from..=self.to).contains(&date)
    }
}

impl CalendarName {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// When it is no name of a calendar; the fault's field is empty.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let part = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if text.len() <= CALENDAR_NAME_BYTES_MAX && text.split('-').all(part) {
            return Ok(Self(text.to_owned()));
        }
        Err(Fault::new(
            "",
            "bad_calendar_name",
            "this is no name of a calendar",
            format!(
                "write lower-case letters, digits and single hyphens, at most \
                 {CALENDAR_NAME_BYTES_MAX}, for example uk-bank-holidays"
            ),
        ))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for CalendarName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CalendarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Holidays {
    /// Adds a calendar. Two holidays on one date: the later in the list gives the name.
    pub fn insert(
        &mut self,
        calendar: CalendarName,
        holidays: impl IntoIterator<Item = (NaiveDate, String)>,
    ) {
        self.0.insert(calendar, holidays.into_iter().collect());
    }

    /// Whether a calendar is there.
    #[must_use]
    pub fn contains(&self, calendar: &str) -> bool {
        self.0.contains_key(calendar)
    }

    /// The names of the calendars that are there.
    pub fn calendars(&self) -> impl Iterator<Item = &CalendarName> {
        self.0.keys()
    }

    /// The last holiday of a calendar.
    pub(crate) fn last(&self, calendar: &CalendarName) -> Option<NaiveDate> {
        self.0.get(calendar)?.keys().next_back().copied()
    }

    /// Refuses exclusions that name a calendar which is not there; fields relative to them.
    pub(crate) fn check(&self, exclusions: &Exclusions) -> Vec<Fault> {
        let calendars = exclusions.calendars.iter().enumerate();
        let unknown = calendars.filter(|(_, name)| !self.contains(name.as_str()));
        unknown
            .map(|(index, name)| {
                let known = self.calendars().map(CalendarName::as_str);
                Fault::new(
                    format!("calendars[{index}]"),
                    "unknown_calendar",
                    format!("there is no calendar `{name}`"),
                    match nearest(name.as_str(), known) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => String::from("create the calendar first, or leave it out"),
                    },
                )
            })
            .collect()
    }
}

/// A date as `2026-12-25`.
pub(crate) fn date(text: &str) -> Result<NaiveDate, Fault> {
    let hint = "write a date from 1970-01-01 to 2999-12-31, for example 2026-12-25";
    Some(text)
        .filter(|text| text.len() == "2026-12-25".len())
        .filter(|text| text.starts_with(|first: char| first.is_ascii_digit()))
        .and_then(|text| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok())
        .filter(|date| (1970..3000).contains(&date.year()))
        .ok_or_else(|| Fault::new("", "bad_date", "this is no date", hint))
}

fn day_of_week(item: Field<'_, '_>) -> Option<Day> {
    item.word(&Day::ALL, |(_, name, _)| name)
        .map(|(day, _, _)| day)
}

fn refuse_repeated<T: Eq + Hash>(fields: &mut Fields<'_>, name: &str, items: &[T]) {
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        if !seen.insert(item) {
            fields.refuse(Fault::new(
                format!("{name}[{index}]"),
                "duplicate",
                "this is there already",
                "name each once",
            ));
        }
    }
}

impl PartialSchema for Exclusions {
    fn schema() -> RefOr<Schema> {
        let dates = list("Single dates.", DATES_MAX, date_schema("One date."));
        let ranges = list("Ranges of dates.", RANGES_MAX, range_schema());
        let weekdays = list("Days of the week.", Day::ALL.len(), Day::schema());
        let calendars = list(
            "Calendars of the tenant, by name: the prompt is not due on their holidays.",
            CALENDARS_MAX,
            CalendarName::schema(),
        );
        let object = ObjectBuilder::new()
            .description(Some(
                "The days on which a prompt is not due, judged by a slot's local date in the \
                 prompt's zone. An excluded slot is not run and leaves no run behind.",
            ))
            .property("dates", dates)
            .property("ranges", ranges)
            .property("weekdays", weekdays)
            .property("calendars", calendars)
            .additional_properties(Some(AdditionalProperties::FreeForm(false)))
            .default(Some(
                json!({"dates": [], "ranges": [], "weekdays": [], "calendars": []}),
            ))
            .examples([json!({"dates": ["2026-12-25"], "weekdays": ["sat", "sun"]})]);
        object.into()
    }
}

impl ToSchema for Exclusions {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Exclusions")
    }
}

/// A list in which each item stands once; null is the same as absent.
fn list(description: &str, count_max: usize, items: impl Into<RefOr<Schema>>) -> Array {
    ArrayBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Array, Type::Null]))
        .description(Some(description))
        .items(items.into())
        .max_items(Some(count_max))
        .unique_items(true)
        .build()
}

fn date_schema(description: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Date)))
        .pattern(Some(
            "^(19[7-9]|2[0-9]{2})[0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$",
        ))
        .description(Some(description))
        .build()
}

fn range_schema() -> Object {
    ObjectBuilder::new()
        .description(Some(format!(
            "The dates from one to another, both included; at most {RANGE_DAYS_MAX} days."
        )))
        .property("from", date_schema("The first date."))
        .required("from")
        .property("to", date_schema("The last date."))
        .required("to")
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .build()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn exclusions(value: Value) -> Exclusions {
        Exclusions::parse(&value).unwrap_or_else(|faults| panic!("{value}: {faults:?}"))
    }

    fn told(value: &Value) -> Vec<String> {
        let faults = Exclusions::parse(value).err().unwrap_or_default();
        let told = faults.iter();
        told.map(|fault| format!("{} {}", fault.field, fault.code))
            .collect()
    }

    fn holidays() -> Holidays {
        let mut holidays = Holidays::default();
        let name = CalendarName::parse("uk-bank-holidays").unwrap();
        let boxing = [(day("2026-12-28"), "Boxing Day (substitute)".to_owned())];
        holidays.insert(name, boxing);
        holidays
    }

    /// A slot each midnight UTC.
    fn daily(after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let date = after.date_naive().succ_opt()?;
        Some(date.and_hms_opt(0, 0, 0)?.and_utc())
    }

    fn first_daily(exclusions: &Exclusions, after: &str, holidays: &Holidays) -> Option<NaiveDate> {
        let after = after.parse().unwrap();
        exclusions
            .first_slot(after, Tz::UTC, holidays, daily)
            .map(|slot| slot.date_naive())
    }

    #[test]
    fn a_date_is_excluded_for_a_reason() {
        let exclusions = exclusions(json!({
            "dates": ["2026-12-25"], "ranges": [{"from": "2026-08-01", "to": "2026-08-14"}],
            "weekdays": ["sun"], "calendars": ["uk-bank-holidays", "absent"],
        }));
        let why = |date: &str| exclusions.why(day(date), &holidays());
        assert_eq!(why("2026-12-25"), Some(Excluded::Date));
        assert_eq!(why("2026-07-31"), None);
        assert_eq!(why("2026-08-01"), Some(Excluded::Range));
        assert_eq!(why("2026-08-14"), Some(Excluded::Range));
        assert_eq!(why("2026-08-15"), None);
        assert_eq!(why("2026-08-16"), Some(Excluded::Weekday));
        let boxing = Excluded::Holiday {
            calendar: CalendarName::parse("uk-bank-holidays").unwrap(),
            name: "Boxing Day (substitute)".to_owned(),
        };
        assert_eq!(why("2026-12-28"), Some(boxing));
        assert_eq!(exclusions.why(day("2026-12-28"), &NO_HOLIDAYS), None);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let sent = json!({
            "dates": ["2026-02-30", "2026-12-25", "2026-12-25", 5],
            "ranges": [{"from": "2026-08-14", "to": "2026-08-01"}, {"from": "2026-01-01"},
                       {"from": "2026-01-01", "to": "2027-01-02"}],
            "weekdays": ["sat", "saturday"], "calendars": ["UK"], "weekends": true,
        });
        assert_eq!(
            told(&sent),
            [
                "dates[0] bad_date",
                "dates[3] wrong_type",
                "ranges[0].to end_before_start",
                "ranges[1].to missing",
                "ranges[2].to range_too_long",
                "weekdays[1] unknown_value",
                "calendars[0] bad_calendar_name",
                "weekends unknown_field",
            ]
        );
        assert_eq!(
            told(&json!({"weekdays": ["sun", "mon", "sun"]})),
            ["weekdays[2] duplicate"]
        );
        let week = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        assert_eq!(
            told(&json!({"weekdays": week})),
            ["weekdays every_day_excluded"]
        );
        assert_eq!(told(&json!([])), [" wrong_type"]);
    }

    #[test]
    fn bounds_are_exact_and_named() {
        let dates = |count: u64| -> Vec<NaiveDate> {
            let first = day("2026-01-01");
            (0..count).map(|n| first + chrono::Days::new(n)).collect()
        };
        let ranges = |count| -> Vec<Value> {
            let days = dates(count);
            days.iter()
                .map(|day| json!({"from": day, "to": day}))
                .collect()
        };
        let calendars = |count| -> Vec<String> { (0..count).map(|n| format!("c{n}")).collect() };
        let range = |to: &str| json!({"ranges": [{"from": "2024-01-01", "to": to}]});
        for fits in [
            json!({"dates": dates(366), "ranges": ranges(50), "calendars": calendars(5)}),
            range("2024-12-31"),
            json!({"calendars": ["a".repeat(64)], "dates": ["1970-01-01", "2999-12-31"]}),
            json!({"dates": null, "ranges": null, "weekdays": null, "calendars": null}),
        ] {
            assert_eq!(told(&fits), [""; 0], "{fits:.200}");
        }
        let beyond = [
            (
                json!({"dates": dates(367)}),
                "dates too_many",
                "send at most 366",
            ),
            (
                json!({"ranges": ranges(51)}),
                "ranges too_many",
                "send at most 50",
            ),
            (
                json!({"calendars": calendars(6)}),
                "calendars too_many",
                "send at most 5",
            ),
            (
                range("2025-01-01"),
                "ranges[0].to range_too_long",
                "send at most 366 days, or several ranges",
            ),
        ];
        for (sent, fault, hint) in beyond {
            assert_eq!(told(&sent), [fault]);
            assert_eq!(Exclusions::parse(&sent).unwrap_err()[0].hint, hint);
        }
        for bad in [
            "",
            "2026-1-1",
            "+026-01-01",
            "2026-01-01T",
            "1969-12-31",
            "3000-01-01",
            "２０２６-01",
        ] {
            assert_eq!(
                told(&json!({"dates": [bad]})),
                ["dates[0] bad_date"],
                "{bad}"
            );
        }
        for bad in ["", "-a", "a--b", "a-", "A", "a b", "é"] {
            let sent = json!({"calendars": [bad]});
            assert_eq!(told(&sent), ["calendars[0] bad_calendar_name"], "{bad}");
        }
        let long = json!({"calendars": ["a".repeat(65)]});
        assert_eq!(told(&long), ["calendars[0] bad_calendar_name"]);
    }

    #[test]
    fn what_is_stored_is_in_order_and_complete() {
        let sent = json!({
            "dates": ["2026-12-26", "2026-12-25"], "weekdays": ["sun", "sat"],
            "ranges": [{"from": "2027-01-01", "to": "2027-01-02"}, {"from": "2026-08-01", "to": "2026-08-14"}],
        });
        let read = exclusions(sent);
        let stored = json!({
            "dates": ["2026-12-25", "2026-12-26"], "weekdays": ["sat", "sun"], "calendars": [],
            "ranges": [{"from": "2026-08-01", "to": "2026-08-14"}, {"from": "2027-01-01", "to": "2027-01-02"}],
        });
        assert_eq!(serde_json::to_value(&read).unwrap(), stored);
        assert_eq!(exclusions(stored), read);
    }

    #[test]
    fn words_name_what_is_excluded() {
        let table = [
            (json!({}), None),
            (
                json!({"weekdays": ["sun", "sat"]}),
                Some("on Saturday and Sunday"),
            ),
            (
                json!({"dates": ["2026-12-25"], "ranges": [{"from": "2026-08-01", "to": "2026-08-14"}],
                       "calendars": ["uk-bank-holidays"]}),
                Some(
                    "on 2026-12-25, from 2026-08-01 to 2026-08-14 and on the holidays of uk-bank-holidays",
                ),
            ),
            (
                json!({"dates": ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"]}),
                Some("on 4 dates"),
            ),
        ];
        for (sent, words) in table {
            assert_eq!(exclusions(sent).describe().as_deref(), words);
        }
    }

    #[test]
    fn the_first_slot_left_is_found() {
        let none = exclusions(json!({}));
        assert_eq!(
            first_daily(&none, "2026-12-24T10:00:00Z", &NO_HOLIDAYS),
            Some(day("2026-12-25"))
        );
        let christmas = exclusions(json!({
            "dates": ["2026-12-25"], "weekdays": ["sat", "sun"], "calendars": ["uk-bank-holidays"],
        }));
        assert_eq!(
            first_daily(&christmas, "2026-12-24T10:00:00Z", &holidays()),
            Some(day("2026-12-29"))
        );
    }

    /// 50 ranges of a year end to end; and more single days in a row than are looked at.
    #[test]
    fn the_search_is_bounded() {
        let years: Vec<Value> = (2026..2076)
            .map(|year| json!({"from": format!("{year}-01-01"), "to": format!("{year}-12-31")}))
            .collect();
        let ranges = exclusions(json!({"ranges": years}));
        assert_eq!(
            first_daily(&ranges, "2026-01-01T00:00:00Z", &NO_HOLIDAYS),
            Some(day("2076-01-01"))
        );
        let name = CalendarName::parse("always").unwrap();
        let first = day("2026-01-01");
        let of_days = |count: u64| {
            let days = (0..count).map(|n| (first + chrono::Days::new(n), String::new()));
            let mut holidays = Holidays::default();
            holidays.insert(name.clone(), days);
            holidays
        };
        let calendar = exclusions(json!({"calendars": ["always"]}));
        let every_other_day = |count: u64| {
            let days = (0..count).map(|n| (first + chrono::Days::new(2 * n), String::new()));
            let mut holidays = Holidays::default();
            holidays.insert(name.clone(), days);
            let next = |after: DateTime<Utc>| daily(daily(after)?);
            let after = "2025-12-30T12:00:00Z".parse().unwrap();
            calendar.first_slot(after, Tz::UTC, &holidays, next)
        };
        assert!(every_other_day(500).is_some());
        assert_eq!(every_other_day(501), None);
        let after = "2025-12-31T12:00:00Z";
        let free = Some(first + chrono::Days::new(1_500));
        assert_eq!(first_daily(&calendar, after, &of_days(1_500)), free);
        assert_eq!(first_daily(&calendar, after, &of_days(1_501)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            text in prop_oneof![any::<String>(), "[0-9-]{10}", "[0-9]{4}-[01][0-9]-[0-3][0-9]", "[a-z-]{0,9}"],
        ) {
            let item = json!([text]);
            let ranges = json!([{"from": text, "to": text}]);
            for sent in [
                json!({"dates": item}), json!({"calendars": item}), json!({"weekdays": item}), json!({"ranges": ranges}),
            ] {
                match Exclusions::parse(&sent) {
                    Ok(read) => prop_assert_eq!(exclusions(json!(read)), read),
                    Err(faults) => prop_assert!(faults.iter().all(|fault| !fault.hint.is_empty())),
                }
            }
        }

        #[test]
        fn the_search_agrees_with_asking_day_by_day(
            dates in prop::collection::btree_set(0u64..60, 0..20),
            ranges in prop::collection::btree_set((0u64..60, 0u64..9), 0..4),
            weekdays in prop::sample::subsequence(vec!["mon", "wed", "sat", "sun"], 0..4),
            holidays in prop::collection::btree_set(0u64..60, 0..9),
            after in 0u64..60,
        ) {
            let first = day("2026-01-01");
            let nth = |n: u64| first + chrono::Days::new(n);
            let ranges: Vec<Value> = ranges
                .iter()
                .map(|(from, days)| json!({"from": nth(*from), "to": nth(from + days)}))
                .collect();
            let dates: Vec<NaiveDate> = dates.iter().map(|n| nth(*n)).collect();
            let exclusions = exclusions(json!({
                "dates": dates, "ranges": ranges, "weekdays": weekdays, "calendars": ["x"],
            }));
            let mut calendar = Holidays::default();
            let name = CalendarName::parse("x").unwrap();
            calendar.insert(name, holidays.iter().map(|n| (nth(*n), "H".to_owned())));
            let expected = (after + 1..).map(nth).find(|day| exclusions.why(*day, &calendar).is_none());
            let noon = format!("{}T12:00:00Z", nth(after));
            prop_assert_eq!(first_daily(&exclusions, &noon, &calendar), expected);
        }
    }
}
