//! What was accepted, and may still surprise its author.

use chrono::{DateTime, Duration, NaiveDate, NaiveDateTime, Utc};
use chrono_tz::Tz;

use super::{
    Plan, Schedule,
    cron::{Cron, Field, Surprise, month_days},
    form::DstGap,
    wall::{self, Arm, Change},
};
use crate::fault::Warning;

/// Every warning about a schedule, looked at from `now`; what `excluded` takes is not warned of.
pub(super) fn schedule(
    schedule: &Schedule,
    now: DateTime<Utc>,
    excluded: &dyn Fn(NaiveDate) -> bool,
) -> Vec<Warning> {
    let from = schedule.window.start_at.map_or(now, |start| start.max(now));
    match &schedule.plan {
        Plan::Wall {
            cron,
            arms,
            timezone,
            dst_gap,
        } => {
            let mut warnings: Vec<Warning> = cron.surprises.iter().copied().map(surprise).collect();
            warnings.extend(every_minute(cron));
            warnings.extend(either_day(cron));
            warnings.extend(short_months(cron));
            let changes: Vec<Change> = wall::changes_in_year(*timezone, from)
                .into_iter()
                .filter(|change| schedule.window.end_at.is_none_or(|end| change.at <= end))
                .collect();
            let clock = Clock {
                arms,
                timezone: *timezone,
                changes: &changes,
                excluded,
            };
            if cron.hours == Field::Hour.all() {
                warnings.extend(fold(&clock));
            } else {
                warnings.extend(gap(&clock, *dst_gap));
            }
            warnings
        }
        Plan::Rate { every, .. } => {
            let whole_days = every.minutes() % super::MINUTES_A_DAY == 0;
            let moves =
                whole_days && !wall::changes_in_year(schedule.window.timezone, from).is_empty();
            moves.then(|| drifts(schedule)).into_iter().collect()
        }
        Plan::At(_) | Plan::Never => Vec::new(),
    }
}

fn warning(code: &'static str, detail: impl Into<String>) -> Warning {
    Warning {
        code,
        detail: detail.into(),
    }
}

fn surprise(surprise: Surprise) -> Warning {
    match surprise {
        Surprise::StepRestarts { field, step } => warning(
            "step_restarts",
            format!(
                "*/{step} in {} starts afresh {}, so the last distance is shorter or longer than {step}",
                field.name(),
                match field {
                    Field::Minute => "each hour",
                    Field::Hour => "each day",
                    Field::DayOfMonth => "each month",
                    Field::Month => "each year",
                    Field::DayOfWeek => "each Sunday",
                }
            ),
        ),
        Surprise::StepOnce { field, step, value } => warning(
            "step_once",
            format!("the step {step} in {} names {value} only", field.name()),
        ),
        Surprise::StarInList { field } => warning(
            "star_in_list",
            format!("the * in the list of {} makes it every value", field.name()),
        ),
    }
}

fn every_minute(cron: &Cron) -> Option<Warning> {
    let hours = cron.hours.len();
    (cron.minutes == Field::Minute.all() && hours < 24).then(|| {
        warning(
            "every_minute",
            format!(
                "the minute is *: this fires 60 times in each chosen hour, {} times a day",
                hours * 60
            ),
        )
    })
}

fn either_day(cron: &Cron) -> Vec<Warning> {
    if !cron.either_day() {
        return Vec::new();
    }
    if !cron.day_of_month_fires() {
        return vec![warning(
            "day_never_comes",
            "no chosen month has the chosen day of the month: only the day of the week counts",
        )];
    }
    vec![warning(
        "either_day",
        "day of month and day of week are both given: a date matches when either does, as in Unix cron",
    )]
}

/// Some chosen month lacks a day that was named. A step over days is said elsewhere.
fn short_months(cron: &Cron) -> Option<Warning> {
    let stepped = cron.surprises.iter().any(|surprise| {
        matches!(
            surprise,
            Surprise::StepRestarts {
                field: Field::DayOfMonth,
                ..
            }
        )
    });
    let last = cron.days.last()?;
    if cron.any_day_of_month() || stepped || !cron.day_of_month_fires() {
        return None;
    }
    let lacking = cron.months.iter().any(|month| month_days(month) < last);
    let february = last == 29 && cron.months.contains(2);
    if lacking {
        Some(warning(
            "short_months",
            format!("a month without a day {last} skips it"),
        ))
    } else if february {
        Some(warning(
            "short_months",
            "29 February comes in leap years only",
        ))
    } else {
        None
    }
}

/// A schedule's times beside its zone's changes of the clocks.
struct Clock<'a> {
    arms: &'a [Arm],
    timezone: Tz,
    changes: &'a [Change],
    excluded: &'a dyn Fn(NaiveDate) -> bool,
}

impl Clock<'_> {
    /// The first time among those that the change skips or repeats.
    fn first_within(&self, change: &Change) -> Option<NaiveDateTime> {
        let (first, last) = change.walls();
        self.arms
            .iter()
            .filter_map(|arm| arm.next_wall(first - Duration::seconds(1)))
            .min()
            .filter(|wall| *wall < last)
    }
}

/// A time that the clocks jump over. Not said of a schedule that runs in every hour: there the jump
/// takes no time away.
fn gap(clock: &Clock<'_>, dst_gap: DstGap) -> Option<Warning> {
    let gaps = clock.changes.iter().filter(|change| change.is_gap());
    let (change, wall) = gaps
        .filter_map(|change| Some((change, clock.first_within(change)?)))
        .find(|(change, wall)| {
            let ends = wall::local(clock.timezone, change.at);
            !(clock.excluded)(match dst_gap {
                DstGap::Shift => ends.date(),
                DstGap::Skip => wall.date(),
            })
        })?;
    let ends = wall::local(clock.timezone, change.at);
    let fate = match dst_gap {
        DstGap::Skip => String::from("is skipped; with dst_gap shift it moves to the gap's end"),
        DstGap::Shift if ends.date() == wall.date() => {
            format!("moves to {}", ends.format("%H:%M"))
        }
        DstGap::Shift => format!("moves to {}", ends.format("%Y-%m-%d %H:%M")),
    };
    Some(warning(
        "dst_gap",
        format!(
            "{} does not exist in {}, because the clocks go forward: that slot {fate}",
            wall.format("%Y-%m-%d %H:%M"),
            clock.timezone,
        ),
    ))
}

/// A schedule that runs in every hour is silent while the clocks repeat one.
fn fold(clock: &Clock<'_>) -> Option<Warning> {
    let folds = clock.changes.iter().filter(|change| !change.is_gap());
    let (change, _) = folds
        .filter_map(|change| Some((change, clock.first_within(change)?)))
        .find(|(_, wall)| !(clock.excluded)(wall.date()))?;
    let (first, last) = change.walls();
    Some(warning(
        "dst_fold",
        format!(
            "{} to {} comes twice in {}, because the clocks go back, and counts once: nothing is due in its second pass; an interval, or UTC, has no such pause",
            first.format("%Y-%m-%d %H:%M"),
            last.format("%H:%M"),
            clock.timezone,
        ),
    ))
}

fn drifts(schedule: &Schedule) -> Warning {
    warning(
        "local_time_moves",
        format!(
            "a day counts 24 hours here: the local time moves when the clocks change in {}; use daily for the same time each day",
            schedule.window.timezone
        ),
    )
}
