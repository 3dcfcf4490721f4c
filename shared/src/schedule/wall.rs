//! The wall clock: which local times an expression names, and which instants they are.
//!
//! `next` is computed from the very text that EventBridge gets, as the crate `cron` reads it. Unix
//! cron must never reach that crate: it counts the days of the week from 1, as EventBridge does, and
//! would be a day off.

use std::str::FromStr;

use ::cron::TimeUnitSpec;
use chrono::{
    DateTime, Datelike, Duration, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, Offset,
    TimeZone, Timelike, Utc,
};
use chrono_tz::{GapInfo, Tz};

use super::{cron::month_days, form::DstGap, set::Set};

/// How many local times in a row may fall into gaps. No zone skips more than a few a year, and no
/// expression names skipped times only.
const GAPS_MAX: usize = 64;

/// The months of the longest wait between two dates of one expression: 29 February around 2100.
const MONTHS_BETWEEN_MAX: u32 = 9 * 12;

/// One EventBridge cron expression, and the times that it names.
#[derive(Debug, Clone)]
pub(super) struct Arm {
    expression: String,
    minutes: Set,
    hours: Set,
    days: Set,
    months: Set,
    /// 0 is Sunday.
    weekdays: Set,
}

impl Arm {
    /// Reads `cron(…)` as `emit` writes it; `None` for anything else.
    pub(super) fn new(expression: String) -> Option<Self> {
        let six = expression.strip_prefix("cron(")?.strip_suffix(')')?;
        let times = ::cron::Schedule::from_str(&format!("0 {six}")).ok()?;
        Some(Self {
            minutes: times.minutes().iter().collect(),
            hours: times.hours().iter().collect(),
            days: times.days_of_month().iter().collect(),
            months: times.months().iter().collect(),
            weekdays: times.days_of_week().iter().map(|day| day - 1).collect(),
            expression,
        })
    }

    pub(super) fn expression(&self) -> &str {
        &self.expression
    }

    /// The first local time after `after` that the expression names, whether or not it exists.
    pub(super) fn next_wall(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let from = minute_after(after)?;
        let date = self.date_from(from.date())?;
        let first = || Some((self.hours.first()?, self.minutes.first()?));
        let time = if date == from.date() {
            self.time_from(from.hour(), from.minute())
        } else {
            first()
        };
        let (date, (hour, minute)) = match time {
            Some(time) => (date, time),
            None => (self.date_from(date.succ_opt()?)?, first()?),
        };
        date.and_hms_opt(hour, minute, 0)
    }

    /// The first time of day from this one on.
    fn time_from(&self, hour: u32, minute: u32) -> Option<(u32, u32)> {
        let in_this_hour = self
            .minutes
            .first_from(minute)
            .filter(|_| self.hours.contains(hour));
        match in_this_hour {
            Some(minute) => Some((hour, minute)),
            None => Some((self.hours.first_from(hour + 1)?, self.minutes.first()?)),
        }
    }

    /// The first date from this one on.
    fn date_from(&self, from: NaiveDate) -> Option<NaiveDate> {
        let (mut year, mut month, mut day) = (from.year(), from.month(), from.day());
        for _ in 0..MONTHS_BETWEEN_MAX {
            match self.months.first_from(month) {
                Some(this) if this == month => {}
                Some(later) => (month, day) = (later, 1),
                None => (year, month, day) = (year + 1, self.months.first()?, 1),
            }
            if let Some(found) = self.days_of(year, month)?.first_from(day) {
                return NaiveDate::from_ymd_opt(year, month, found);
            }
            (month, day) = (month + 1, 1);
        }
        None
    }

    /// The days of a month that match.
    fn days_of(&self, year: i32, month: u32) -> Option<Set> {
        let first = NaiveDate::from_ymd_opt(year, month, 1)?;
        let lacking = u32::from(month == 2 && !first.leap_year());
        let all = Set::span(1, month_days(month) - lacking);
        let days = self.days.and(all);
        if self.weekdays.len() == 7 {
            return Some(days);
        }
        let before_first = first.weekday().num_days_from_sunday() + 6;
        let on_weekday = |day: &u32| self.weekdays.contains((before_first + day) % 7);
        Some(days.iter().filter(on_weekday).collect())
    }
}

/// The first whole minute after a local time.
fn minute_after(after: NaiveDateTime) -> Option<NaiveDateTime> {
    let minute = after.date().and_hms_opt(after.hour(), after.minute(), 0)?;
    minute.checked_add_signed(Duration::minutes(1))
}

/// The first instant after `after` at which one of `arms` is due in `timezone`.
pub(super) fn next(
    arms: &[Arm],
    timezone: Tz,
    dst_gap: DstGap,
    after: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let from = search_from(timezone, after);
    arms.iter()
        .filter_map(|arm| next_of_arm(arm, timezone, dst_gap, from))
        .min()
}

fn next_of_arm(
    arm: &Arm,
    timezone: Tz,
    dst_gap: DstGap,
    from: NaiveDateTime,
) -> Option<DateTime<Utc>> {
    let mut from = from;
    for _ in 0..GAPS_MAX {
        let wall = arm.next_wall(from)?;
        match (resolve(timezone, wall), dst_gap) {
            (Resolved::Once(at) | Resolved::FirstPass(at), _)
            | (Resolved::Gap { ends: at }, DstGap::Shift) => return Some(at),
            (Resolved::Gap { ends }, DstGap::Skip) => {
                from = local(timezone, ends) - Duration::seconds(1);
            }
        }
    }
    None
}

/// Where a local time lies in UTC.
pub(super) enum Resolved {
    /// It exists once.
    Once(DateTime<Utc>),
    /// It comes twice, first at this instant.
    FirstPass(DateTime<Utc>),
    /// The clock jumps over it; `ends` is the first instant after the jump.
    Gap { ends: DateTime<Utc> },
}

/// Places a local time in its zone: one that is skipped is a gap, one that comes twice is its first
/// pass. EventBridge Scheduler documents both ("Schedule types", daylight saving time).
pub(super) fn resolve(timezone: Tz, wall: NaiveDateTime) -> Resolved {
    match timezone.from_local_datetime(&wall) {
        MappedLocalTime::Single(at) => Resolved::Once(at.to_utc()),
        MappedLocalTime::Ambiguous(first, _) => Resolved::FirstPass(first.to_utc()),
        MappedLocalTime::None => Resolved::Gap {
            ends: gap_end(timezone, wall),
        },
    }
}

/// The first instant after the gap in which a local time lies: on the old clock, the gap's beginning.
pub(super) fn gap_end(timezone: Tz, wall: NaiveDateTime) -> DateTime<Utc> {
    let begin = GapInfo::new(&wall, &timezone).and_then(|gap| gap.begin);
    match begin {
        Some((begin, offset)) => (begin - offset.fix()).and_utc(),
        None => {
            let day = Duration::days(1);
            Change::between(timezone, wall.and_utc() - day, wall.and_utc() + day).at
        }
    }
}

/// The first instant of a date in `timezone`; of a date that its clock skipped, of the date after it.
pub(crate) fn day_start(timezone: Tz, date: NaiveDate) -> DateTime<Utc> {
    match resolve(timezone, date.and_time(NaiveTime::MIN)) {
        Resolved::Once(at) | Resolved::FirstPass(at) | Resolved::Gap { ends: at } => at,
    }
}

/// What the clock of `timezone` shows.
pub(super) fn local(timezone: Tz, at: DateTime<Utc>) -> NaiveDateTime {
    at.with_timezone(&timezone).naive_local()
}

/// The local time after which the slots after `after` lie. In the second pass of a fold that is the
/// fold's end, because its local times were due in the first pass.
pub(super) fn search_from(timezone: Tz, after: DateTime<Utc>) -> NaiveDateTime {
    let wall = local(timezone, after);
    match timezone.from_local_datetime(&wall) {
        MappedLocalTime::Ambiguous(first, _) if first < after => {
            fold_end(timezone, first.to_utc(), after) - Duration::seconds(1)
        }
        MappedLocalTime::Ambiguous(..) | MappedLocalTime::Single(_) | MappedLocalTime::None => wall,
    }
}

/// The first local time after a fold, given an instant in its first pass and one in its second.
fn fold_end(timezone: Tz, first: DateTime<Utc>, second: DateTime<Utc>) -> NaiveDateTime {
    let change = Change::between(timezone, first, second);
    change.at.naive_utc() + Duration::seconds(change.before_s.into())
}

/// A change of a zone's offset from UTC.
pub(super) struct Change {
    /// The first instant with the new offset.
    pub(super) at: DateTime<Utc>,
    pub(super) before_s: i32,
    pub(super) after_s: i32,
}

impl Change {
    /// The change between two instants with different offsets, to the second.
    pub(super) fn between(timezone: Tz, before: DateTime<Utc>, after: DateTime<Utc>) -> Self {
        let offset = |timestamp: i64| offset_s(timezone, timestamp);
        let (mut low, mut high) = (before.timestamp(), after.timestamp());
        let before_s = offset(low);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if offset(middle) == before_s {
                low = middle;
            } else {
                high = middle;
            }
        }
        Self {
            at: DateTime::from_timestamp(high, 0).unwrap_or(after),
            before_s,
            after_s: offset(high),
        }
    }

    /// The local times that the change skips or repeats: first included, last excluded.
    pub(super) fn walls(&self) -> (NaiveDateTime, NaiveDateTime) {
        let wall = |offset_s: i32| self.at.naive_utc() + Duration::seconds(offset_s.into());
        let (a, b) = (wall(self.before_s), wall(self.after_s));
        (a.min(b), a.max(b))
    }

    /// The clock jumps forward.
    pub(super) fn is_gap(&self) -> bool {
        self.after_s > self.before_s
    }
}

/// The zone's changes in the 53 weeks after `from`. Looked for week by week: no zone has two in one.
pub(super) fn changes_in_year(timezone: Tz, from: DateTime<Utc>) -> Vec<Change> {
    let week = |n: i64| from + Duration::weeks(n);
    (0..53)
        .filter(|n| {
            offset_s(timezone, week(*n).timestamp()) != offset_s(timezone, week(n + 1).timestamp())
        })
        .map(|n| Change::between(timezone, week(n), week(n + 1)))
        .collect()
}

fn offset_s(timezone: Tz, timestamp: i64) -> i32 {
    DateTime::from_timestamp(timestamp, 0).map_or(0, |at| {
        timezone
            .offset_from_utc_datetime(&at.naive_utc())
            .fix()
            .local_minus_utc()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeded;

    /// What the crate `cron` makes of the same text: it knows the years to 2100.
    fn as_the_crate_walks(arm: &Arm, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let six = arm.expression.strip_prefix("cron(")?.strip_suffix(')')?;
        let times = ::cron::Schedule::from_str(&format!("0 {six}")).unwrap();
        Some(times.after(&after.and_utc()).next()?.naive_utc())
    }

    fn field(min: u32, max: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            2 => Just(String::from("*")),
            2 => (min..=max).prop_map(|value| value.to_string()),
            1 => (min..=max, 1..=9u32).prop_map(|(from, step)| format!("{from}/{step}")),
            1 => (min..=max, min..=max).prop_map(|(a, b)| format!("{},{}", a.min(b), a.max(b))),
        ]
    }

    /// Either day field, as EventBridge has it.
    fn expression() -> impl Strategy<Value = String> {
        let names = prop::sample::subsequence(vec!["SUN", "MON", "WED", "SAT"], 1..4);
        let days = prop_oneof![
            (field(1, 31)).prop_map(|days| (days, String::from("?"))),
            names.prop_map(|names| (String::from("?"), names.join(","))),
        ];
        (field(0, 59), field(0, 23), field(1, 12), days).prop_map(
            |(minute, hour, month, (day, weekday))| {
                format!("cron({minute} {hour} {day} {month} {weekday} *)")
            },
        )
    }

    proptest! {
        #![proptest_config(seeded::cases(2_000))]

        #[test]
        fn the_walk_is_that_of_the_crate_cron(
            expression in expression(), after_s in 0i64..3_800_000_000, nanosecond in 0u32..1_000_000_000,
        ) {
            let after = DateTime::from_timestamp(after_s, nanosecond).unwrap().naive_utc();
            let arm = Arm::new(expression).unwrap();
            prop_assert_eq!(arm.next_wall(after), as_the_crate_walks(&arm, after));
        }
    }
}
