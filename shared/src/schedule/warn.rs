//! What was accepted, and may still surprise its author.

use chrono::{DateTime, Duration, NaiveDateTime, Utc};

use super::{
    Plan, Schedule,
    cron::{Cron, Field, Surprise, month_days},
    wall::{self, Arm, Change},
};
use crate::fault::Warning;

/// Every warning about a schedule, looked at from `now`.
pub(super) fn schedule(schedule: &Schedule, now: DateTime<Utc>) -> Vec<Warning> {
    let from = schedule.window.start_at.map_or(now, |start| start.max(now));
    match &schedule.plan {
        Plan::Wall {
            cron,
            arms,
            timezone,
            ..
        } => {
            let mut warnings: Vec<Warning> = cron.surprises.iter().copied().map(surprise).collect();
            warnings.extend(every_minute(cron));
            warnings.extend(either_day(cron));
            warnings.extend(short_months(cron));
            let changes: Vec<Change> = wall::changes_in_year(*timezone, from)
                .into_iter()
                .filter(|change| schedule.window.end_at.is_none_or(|end| change.at <= end))
                .collect();
            warnings.extend(gap(cron, arms, &changes, timezone.name()));
            warnings.extend(fold(cron, arms, &changes, timezone.name()));
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

/// A time that the clocks jump over. Not said of a schedule that runs in every hour: there the jump
/// takes no time away.
fn gap(cron: &Cron, arms: &[Arm], changes: &[Change], zone: &str) -> Option<Warning> {
    if cron.hours == Field::Hour.all() {
        return None;
    }
    changes
        .iter()
        .filter(|change| change.is_gap())
        .find_map(|change| first_within(arms, change))
        .map(|wall| {
            warning(
                "dst_gap",
                format!(
                    "{} does not exist in {zone}, because the clocks go forward: that slot is skipped",
                    wall.format("%Y-%m-%d %H:%M")
                ),
            )
        })
}

/// A schedule that runs in every hour is silent while the clocks repeat one.
fn fold(cron: &Cron, arms: &[Arm], changes: &[Change], zone: &str) -> Option<Warning> {
    if cron.hours != Field::Hour.all() {
        return None;
    }
    changes
        .iter()
        .filter(|change| !change.is_gap())
        .find_map(|change| first_within(arms, change).map(|_| change))
        .map(|change| {
            let (first, last) = change.walls();
            warning(
                "dst_fold",
                format!(
                    "{} to {} comes twice in {zone}, because the clocks go back, and counts once: nothing is due in its second pass; an interval, or UTC, has no such pause",
                    first.format("%Y-%m-%d %H:%M"),
                    last.format("%H:%M")
                ),
            )
        })
}

fn first_within(arms: &[Arm], change: &Change) -> Option<NaiveDateTime> {
    let (first, last) = change.walls();
    arms.iter()
        .filter_map(|arm| arm.next_wall(first - Duration::seconds(1)))
        .min()
        .filter(|wall| *wall < last)
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
