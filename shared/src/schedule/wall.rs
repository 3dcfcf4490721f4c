//! The wall clock: which local times an expression names, and which instants they are.
//!
//! `next` is computed from the very text that EventBridge gets. Unix cron must never reach the crate
//! `cron`: it counts the days of the week from 1, as EventBridge does, and would be a day off.

use std::str::FromStr;

use chrono::{
    DateTime, Datelike, Duration, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, Offset,
    TimeZone, Utc, Weekday,
};
use chrono_tz::{GapInfo, Tz};

use super::form::DstGap;

/// How many local times in a row may fall into gaps. No zone skips more than a few a year, and no
/// expression names skipped times only.
const GAPS_MAX: usize = 64;

/// The longest wait, in years, between two dates of one expression: 29 February around 2100.
const YEARS_BETWEEN_MAX: i32 = 8;

/// One EventBridge cron expression, ready to be iterated on the wall clock.
#[derive(Debug, Clone)]
pub(super) struct Arm {
    expression: String,
    times: ::cron::Schedule,
}

impl Arm {
    /// Reads `cron(…)` as `emit` writes it; `None` for anything else.
    pub(super) fn new(expression: String) -> Option<Self> {
        let six = expression.strip_prefix("cron(")?.strip_suffix(')')?;
        let times = ::cron::Schedule::from_str(&format!("0 {six}")).ok()?;
        Some(Self { expression, times })
    }

    pub(super) fn expression(&self) -> &str {
        &self.expression
    }

    /// The first local time after `after` that the expression names, whether or not it exists.
    pub(super) fn next_wall(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        self.times_after(after)
            .or_else(|| self.next_wall_by_twin(after))
    }

    /// What the crate says; it knows the years to 2100 only.
    fn times_after(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let next = self.times.after(&after.and_utc()).next()?;
        Some(next.naive_utc())
    }

    /// The same for years that the crate does not know. A year of the Gregorian calendar is one of
    /// fourteen kinds, by its first weekday and its leap day, and 2000 to 2027 have them all.
    fn next_wall_by_twin(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        (after.year()..=after.year() + YEARS_BETWEEN_MAX).find_map(|year| {
            let twin = twin_year(year)?;
            let from = if year == after.year() {
                after.with_year(twin)?
            } else {
                NaiveDate::from_yo_opt(twin, 1)?.and_time(NaiveTime::MIN) - Duration::seconds(1)
            };
            let found = self
                .times_after(from)
                .filter(|found| found.year() == twin)?;
            found.with_year(year)
        })
    }
}

fn twin_year(year: i32) -> Option<i32> {
    let kind = year_kind(year)?;
    (2000..2028).find(|twin| year_kind(*twin) == Some(kind))
}

fn year_kind(year: i32) -> Option<(Weekday, bool)> {
    let first = NaiveDate::from_yo_opt(year, 1)?;
    Some((first.weekday(), first.leap_year()))
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
fn gap_end(timezone: Tz, wall: NaiveDateTime) -> DateTime<Utc> {
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
