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

/// So many excluded days are looked at for one slot, a range counting as one. A tenth would do for
/// any schedule that people make; the bound keeps the search under a millisecond.
const DAYS_LOOKED_AT_MAX: u32 = 1_000;

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
        let mut days_left = DAYS_LOOKED_AT_MAX;
        loop {
            let slot = next(after)?;
            let date = slot.with_timezone(&timezone).date_naive();
            // It ends: a day that is excluded costs one of `days_left`.
            let free = judge.free_from(date, &mut days_left)?;
            if free == date {
                return Some(slot);
            }
            after = slot.max(day_start(timezone, free) - Duration::seconds(1));
        }
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
