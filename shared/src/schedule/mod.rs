//! When a prompt is due: one type for every kind of schedule, from its JSON to its slots.
//!
//! Pure: it must never read a clock, a table or the network; callers pass the instant. What a
//! schedule says, what EventBridge is told and what `next` answers come from the same expression, so
//! they cannot drift apart.

mod cron;
mod describe;
mod emit;
pub mod eventbridge;
mod form;
mod occurrence;
mod parse;
mod set;
mod wall;
mod warn;

use chrono::{DateTime, Duration, NaiveDate, Utc};
use chrono_tz::Tz;
use serde_json::Value;

use self::{cron::Cron, eventbridge::Entry, wall::Arm};
use crate::fault::{Fault, Warning};

pub(crate) use self::describe::{joined, weekday_names};
pub use self::form::{
    CronSchedule, DailySchedule, Day, DstGap, Form, IntervalSchedule, ManualSchedule,
    MonthlySchedule, OnceSchedule, ScheduleType, WeeklySchedule,
};
pub use self::occurrence::{Occurrence, OccurrenceKind, Occurrences};
pub(crate) use self::wall::day_start;

/// Where the search for slots ends: the year 9000, far enough from the end of what `chrono` counts.
const LATEST: DateTime<Utc> = match DateTime::from_timestamp(221_845_392_000, 0) {
    Some(latest) => latest,
    None => DateTime::UNIX_EPOCH,
};

const MINUTES_A_DAY: u32 = 24 * 60;

/// A checked schedule. It exists only if it can fire within its start and end, or is manual.
#[derive(Debug, Clone)]
pub struct Schedule {
    form: Form,
    window: Window,
    plan: Plan,
}

/// What all forms share.
#[derive(Debug, Clone, Copy)]
struct Window {
    timezone: Tz,
    start_at: Option<DateTime<Utc>>,
    end_at: Option<DateTime<Utc>>,
}

/// How the slots are computed.
#[derive(Debug, Clone)]
enum Plan {
    /// Times on the wall clock of `timezone`: one arm, or two whose union counts.
    Wall {
        cron: Cron,
        arms: Vec<Arm>,
        timezone: Tz,
        dst_gap: DstGap,
    },
    /// `anchor`, then every `every`.
    Rate { anchor: DateTime<Utc>, every: Every },
    /// One instant.
    At(DateTime<Utc>),
    /// No slots.
    Never,
}

/// An interval's length.
#[derive(Debug, Clone, Copy)]
struct Every {
    count: u32,
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Minute,
    Hour,
    Day,
}

/// Two schedules with the same JSON have the same slots.
impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.form == other.form
    }
}

impl Schedule {
    /// Reads a schedule that a caller sent.
    ///
    /// # Errors
    ///
    /// Every fault at once, with fields relative to the schedule object.
    pub fn parse(value: &Value, now: DateTime<Utc>) -> Result<Self, Vec<Fault>> {
        parse::schedule(value, Some(now))
    }

    /// Reads a schedule that `to_json` made. The same checks, but a schedule whose time has passed is
    /// still a schedule.
    ///
    /// # Errors
    ///
    /// Every fault at once; a row that fails here was not written by `to_json`.
    pub fn from_stored(value: &Value) -> Result<Self, Vec<Fault>> {
        parse::schedule(value, None)
    }

    /// The schedule as stored and as the API returns it: with its zone, with the anchor of a rate,
    /// and with the instant of a `once`. `from_stored` of it has the same slots.
    #[must_use]
    pub fn to_json(&self) -> Value {
        serde_json::to_value(&self.form)
            .expect("a form has text keys and plain values, which serde_json always takes")
    }

    /// The same as a value that serialises, for responses.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Which kind of schedule this is.
    #[must_use]
    pub fn kind(&self) -> ScheduleType {
        self.form.kind()
    }

    /// The zone whose clock the schedule follows.
    #[must_use]
    pub fn timezone(&self) -> Tz {
        self.window.timezone
    }

    /// No slot lies before.
    #[must_use]
    pub fn start_at(&self) -> Option<DateTime<Utc>> {
        self.window.start_at
    }

    /// No slot lies after.
    #[must_use]
    pub fn end_at(&self) -> Option<DateTime<Utc>> {
        self.window.end_at
    }

    /// The first slot after `after`, which itself does not count. Slots lie between 1970 and 9000.
    #[must_use]
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let after = self.search_start(after)?;
        let next = match &self.plan {
            Plan::Wall {
                arms,
                timezone,
                dst_gap,
                ..
            } => wall::next(arms, *timezone, *dst_gap, after),
            Plan::Rate { anchor, every } => every.next(*anchor, after),
            Plan::At(at) => Some(*at).filter(|at| *at > after),
            Plan::Never => None,
        };
        next.filter(|next| *next < LATEST && self.window.end_at.is_none_or(|end| *next <= end))
    }

    /// Every time that the schedule names after `after`, in order and one by one, with what becomes
    /// of it. Those that are slots are the answers of `next`.
    #[must_use]
    pub fn occurrences(&self, after: DateTime<Utc>) -> Occurrences<'_> {
        Occurrences::new(self, after)
    }

    /// What becomes of a slot at a local time that the clock jumps over; `None` for a schedule
    /// whose times are not those of a wall clock.
    #[must_use]
    pub fn dst_gap(&self) -> Option<DstGap> {
        match &self.form {
            Form::Cron(form) => Some(form.dst_gap),
            Form::Daily(form) => Some(form.dst_gap),
            Form::Weekly(form) => Some(form.dst_gap),
            Form::Monthly(form) => Some(form.dst_gap),
            Form::Interval(_) | Form::Once(_) | Form::Manual(_) => None,
        }
    }

    /// `after`, or the instant before the start; `None` where no slot follows.
    fn search_start(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let before_start = self
            .window
            .start_at
            .map_or(DateTime::UNIX_EPOCH, |start| start - Duration::seconds(1));
        Some(after.max(before_start)).filter(|after| *after < LATEST)
    }

    /// The shortest distance between two slots, or `None` for a schedule with one or none.
    ///
    /// Computed from the times and dates that the schedule names, over every kind of year: start and
    /// end do not count, nor does the hour that a change of the clocks takes away.
    #[must_use]
    pub fn shortest_gap_minutes(&self) -> Option<u32> {
        match &self.plan {
            Plan::Wall { cron, .. } => shortest_gap_minutes(cron),
            Plan::Rate { every, .. } => Some(every.minutes()),
            Plan::At(_) | Plan::Never => None,
        }
    }

    /// What EventBridge Scheduler is told: nothing for a manual schedule, two entries where both day
    /// fields are restricted, else one.
    ///
    /// A rate's `start_date` is its first slot. Whoever applies the entry later sets it to `next` of
    /// that moment instead, since EventBridge refuses a start in the past and counts from it.
    #[must_use]
    pub fn eventbridge(&self) -> Vec<Entry> {
        let margin = Duration::seconds(30);
        let start_date = self.window.start_at.map(|start| start - margin);
        let end_date = self.window.end_at.map(|end| end + margin);
        match &self.plan {
            Plan::Wall { arms, timezone, .. } => arms
                .iter()
                .map(|arm| Entry {
                    expression: arm.expression().to_owned(),
                    timezone: Some(timezone.name().to_owned()),
                    start_date,
                    end_date,
                    flexible_window_minutes: None,
                })
                .collect(),
            Plan::Rate { every, anchor } => vec![Entry {
                expression: every.expression(),
                timezone: None,
                start_date: self.next(*anchor - margin),
                end_date,
                flexible_window_minutes: None,
            }],
            Plan::At(at) => vec![Entry {
                expression: format!("at({})", at.format("%Y-%m-%dT%H:%M:%S")),
                timezone: Some(Tz::UTC.name().to_owned()),
                start_date: None,
                end_date: None,
                flexible_window_minutes: None,
            }],
            Plan::Never => Vec::new(),
        }
    }

    /// The schedule in plain English, with its zone.
    #[must_use]
    pub fn describe(&self) -> String {
        describe::schedule(self)
    }

    /// What the author of the schedule may not expect. Changes of the clocks are looked for in the
    /// year after `now`.
    #[must_use]
    pub fn warnings(&self, now: DateTime<Utc>) -> Vec<Warning> {
        self.warnings_but(now, &|_| false)
    }

    /// The same without what concerns dates that are excluded.
    pub(crate) fn warnings_but(
        &self,
        now: DateTime<Utc>,
        excluded: &dyn Fn(NaiveDate) -> bool,
    ) -> Vec<Warning> {
        warn::schedule(self, now.clamp(DateTime::UNIX_EPOCH, LATEST), excluded)
    }
}

/// What a caller sent as a schedule, with this zone if it names none. What is no object stays what it
/// is, for [`Schedule::parse`] to refuse.
#[must_use]
pub fn with_timezone(value: &Value, timezone: Tz) -> Value {
    let mut value = value.clone();
    if let Value::Object(schedule) = &mut value {
        let given = schedule.entry("timezone").or_insert(Value::Null);
        if given.is_null() {
            *given = Value::from(timezone.name());
        }
    }
    value
}

impl Every {
    fn minutes(self) -> u32 {
        let unit = match self.unit {
            Unit::Minute => 1,
            Unit::Hour => 60,
            Unit::Day => MINUTES_A_DAY,
        };
        self.count * unit
    }

    fn next(self, anchor: DateTime<Utc>, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let every_s = i64::from(self.minutes()) * 60;
        let since_s = after.timestamp() - anchor.timestamp();
        let passed = if since_s < 0 {
            0
        } else {
            since_s / every_s + 1
        };
        DateTime::from_timestamp(anchor.timestamp() + passed * every_s, 0)
    }

    fn expression(self) -> String {
        format!("rate({self})")
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = match self.unit {
            Unit::Minute => "minute",
            Unit::Hour => "hour",
            Unit::Day => "day",
        };
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "{} {unit}{plural}", self.count)
    }
}

fn shortest_gap_minutes(cron: &Cron) -> Option<u32> {
    let times: Vec<u32> = cron
        .hours
        .iter()
        .flat_map(|hour| cron.minutes.iter().map(move |minute| hour * 60 + minute))
        .collect();
    let within = times.windows(2).map(|pair| pair[1] - pair[0]).min();
    let across = fewest_days_apart(cron)? * MINUTES_A_DAY - (times.last()? - times.first()?);
    Some(within.map_or(across, |within| within.min(across)))
}

/// The fewest days between two dates that match, over the 28 years from 2000 on, in which every date
/// falls on every day of the week.
fn fewest_days_apart(cron: &Cron) -> Option<u32> {
    /// 1 January 2000.
    const SATURDAY: u32 = 6;
    let either_day = cron.either_day();
    let months = (2000..2028).flat_map(|year| (1..=12).map(move |month| (year, month)));
    let dates = months.flat_map(|(year, month)| {
        let lacking = u32::from(month == 2 && year % 4 != 0);
        (1..=cron::month_days(month) - lacking).map(move |day| (month, day))
    });
    let due = dates.zip(0u32..).filter_map(|((month, day), count)| {
        let day = cron.days.contains(day);
        let weekday = cron.weekdays.contains((SATURDAY + count) % 7);
        let date = if either_day {
            day || weekday
        } else {
            day && weekday
        };
        (date && cron.months.contains(month)).then_some(count)
    });
    let mut fewest = None;
    let mut last = None;
    for count in due {
        if let Some(last) = last.replace(count) {
            let days = count - last;
            fewest = Some(fewest.map_or(days, |fewest: u32| fewest.min(days)));
        }
        if fewest == Some(1) {
            break;
        }
    }
    fewest
}
