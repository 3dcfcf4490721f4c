//! On which days a prompt is not due: dates, ranges of dates, days of the week, calendars of holidays.
//!
//! Pure: what the calendars hold is passed in. A slot is judged by its local date in the prompt's
//! zone; an excluded slot is no slot, so nothing is recorded of it.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashSet},
    fmt,
    hash::Hash,
};

use chrono::{DateTime, Datelike, Days, Duration, NaiveDate, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    fault::Fault,
    fields::{Field, Fields, nearest},
    schedule::{Day, day_start},
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

/// The days on which a prompt is not due.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exclusions {
    /// Single dates.
    #[schema(max_items = 366)]
    dates: Vec<NaiveDate>,
    /// Ranges of dates.
    #[schema(max_items = 50)]
    ranges: Vec<DateRange>,
    /// Days of the week.
    #[schema(max_items = 7)]
    weekdays: Vec<Day>,
    /// Calendars of the tenant, by name: the prompt is not due on their holidays.
    #[schema(max_items = 5)]
    calendars: Vec<CalendarName>,
}

/// The dates from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ExcludedRange)]
pub struct DateRange {
    /// The first date.
    from: NaiveDate,
    /// The last date, at most 366 days in all.
    to: NaiveDate,
}

/// The name of a tenant's calendar: lower-case letters, digits and hyphens, for example
/// `uk-bank-holidays`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$", example = "uk-bank-holidays")]
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
        let read = Self {
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
                "never_fires",
                "every day of the week is excluded",
                "leave a day on which the prompt may run, or pause the prompt",
            ));
        }
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
        *self == Self::default()
    }

    /// Why a date is excluded, if it is. A calendar that `holidays` lacks excludes nothing.
    #[must_use]
    pub fn why(&self, date: NaiveDate, holidays: &Holidays) -> Option<Excluded> {
        if self.dates.contains(&date) {
            return Some(Excluded::Date);
        }
        if self.ranges.iter().any(|range| range.contains(date)) {
            return Some(Excluded::Range);
        }
        if self.weekdays.contains(&Day::of(date.weekday())) {
            return Some(Excluded::Weekday);
        }
        self.calendars.iter().find_map(|calendar| {
            let name = holidays.0.get(calendar)?.get(&date)?;
            Some(Excluded::Holiday {
                calendar: calendar.clone(),
                name: name.clone(),
            })
        })
    }

    /// The first slot after `after` that no exclusion takes. `next` gives the slot after an instant.
    pub(crate) fn first_slot(
        &self,
        after: DateTime<Utc>,
        timezone: Tz,
        holidays: &Holidays,
        next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
    ) -> Option<DateTime<Utc>> {
        /// More excluded days in a row than this are no schedule.
        const DAYS_MAX: usize = 20_000;
        let mut after = after;
        for _ in 0..DAYS_MAX {
            let slot = next(after)?;
            let date = slot.with_timezone(&timezone).date_naive();
            if self.why(date, holidays).is_none() {
                return Some(slot);
            }
            let following = date.checked_add_days(Days::new(1))?;
            after = slot.max(day_start(timezone, following) - Duration::seconds(1));
        }
        None
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
fn date(text: &str) -> Result<NaiveDate, Fault> {
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
