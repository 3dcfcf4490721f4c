//! A schedule in plain English.

use chrono::{DateTime, Utc};

use super::{
    Plan, Schedule,
    cron::{Cron, Field},
    form::{Day, DstGap, Form},
    set::Set,
};

/// Up to so many times of day are listed one by one.
const TIMES_LISTED_MAX: u32 = 6;

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// For example `At 09:00 on Monday through Friday, Europe/London`.
pub(super) fn schedule(schedule: &Schedule) -> String {
    let local = |at: DateTime<Utc>| {
        at.with_timezone(&schedule.window.timezone)
            .format("%Y-%m-%d %H:%M")
            .to_string()
    };
    let what = match (&schedule.form, &schedule.plan) {
        (_, Plan::Never) => return String::from("Only when asked for"),
        (_, Plan::At(at)) => format!("Once at {}", local(*at)),
        (_, Plan::Rate { anchor, every }) => {
            let length = every.to_string();
            let length = length.strip_prefix("1 ").unwrap_or(&length);
            format!("Every {length}, counted from {}", local(*anchor))
        }
        (Form::Interval(_), Plan::Wall { cron, .. }) => times(cron),
        (_, Plan::Wall { cron, .. }) => wall(cron),
    };
    let mut text = format!("{what}, {}", schedule.window.timezone);
    text.push_str(unusual_gap(schedule));
    if let Some(start) = schedule.window.start_at {
        text.push_str(&format!(", from {}", local(start)));
    }
    if let Some(end) = schedule.window.end_at {
        text.push_str(&format!(", until {}", local(end)));
    }
    text
}

/// What becomes of times that the clock jumps over, where that is not what it usually is.
fn unusual_gap(schedule: &Schedule) -> &'static str {
    let (Some(dst_gap), Plan::Wall { cron, .. }) = (schedule.dst_gap(), &schedule.plan) else {
        return "";
    };
    match dst_gap {
        _ if dst_gap == cron.usual_dst_gap() => "",
        DstGap::Shift => ", moved where the clocks jump over it",
        DstGap::Skip => ", skipped where the clocks jump over it",
    }
}

fn wall(cron: &Cron) -> String {
    let times = times(cron);
    let days = days(cron);
    if !days.is_empty() {
        format!("{times} {days}")
    } else if times.starts_with("At ") && !times.starts_with("At minute") {
        format!("{times} every day")
    } else {
        times
    }
}

/// When in the day, for example `At 08:15 and 12:15` or `Every 15 minutes of hours 9 through 17`.
fn times(cron: &Cron) -> String {
    let (minutes, hours) = (cron.minutes, cron.hours);
    if minutes.len() * hours.len() <= TIMES_LISTED_MAX {
        let times = hours
            .iter()
            .flat_map(|hour| {
                minutes
                    .iter()
                    .map(move |minute| format!("{hour:02}:{minute:02}"))
            })
            .collect();
        return format!("At {}", joined(times));
    }
    if minutes.first() == Some(0) && minutes.len() == 1 {
        return on_the_hour(hours);
    }
    let of_hours = of_hours(hours);
    match even_step(minutes, 60) {
        Some(1) => format!("Every minute{of_hours}"),
        Some(step) => format!("Every {step} minutes{of_hours}"),
        None => {
            let of_hours = if of_hours.is_empty() {
                " of every hour"
            } else {
                &of_hours
            };
            let word = if minutes.len() == 1 {
                "minute"
            } else {
                "minutes"
            };
            format!(
                "At {word} {}{of_hours}",
                spans(minutes, |minute| minute.to_string())
            )
        }
    }
}

fn on_the_hour(hours: Set) -> String {
    let clock = |hour: u32| format!("{hour:02}:00");
    match (even_step(hours, 24), hours.stride()) {
        (Some(1), _) => String::from("Every hour"),
        (Some(step), _) => format!("Every {step} hours"),
        (None, Some(1)) => format!("Every hour from {}", spans(hours, clock)),
        (None, _) => format!("At {}", spans(hours, clock)),
    }
}

/// Nothing when every hour counts.
fn of_hours(hours: Set) -> String {
    match even_step(hours, 24) {
        Some(1) => String::new(),
        Some(step) if hours.len() > 2 => format!(" of every {} hour from 00:00", ordinal(step)),
        Some(_) | None => {
            let word = if hours.len() == 1 { "hour" } else { "hours" };
            format!(" of {word} {}", spans(hours, |hour| hour.to_string()))
        }
    }
}

/// The step, where the set is every nth value of a cycle from 0 on and the cycle comes out even.
fn even_step(set: Set, cycle: u32) -> Option<u32> {
    if set.is_empty() || !cycle.is_multiple_of(set.len()) {
        return None;
    }
    let step = cycle / set.len();
    set.iter()
        .eq((0..cycle).step_by(step as usize))
        .then_some(step)
}

/// On which days, or nothing when every day counts.
fn days(cron: &Cron) -> String {
    let weekdays = || weekdays(cron.weekdays);
    let months = || spans(cron.months, |month| name(&MONTHS, month - 1));
    let all_months = cron.months == Field::Month.all();
    let days = match (
        cron.any_day_of_month() || !cron.day_of_month_fires(),
        cron.any_weekday(),
    ) {
        (true, true) => String::new(),
        (true, false) => format!("on {}", weekdays()),
        (false, true) if all_months => format!("on {} of the month", days_of_month(cron.days)),
        (false, true) => return format!("on {} of {}", days_of_month(cron.days), months()),
        (false, false) => format!(
            "on {} of the month or on {}",
            days_of_month(cron.days),
            weekdays()
        ),
    };
    match (days.is_empty(), all_months) {
        (_, true) => days,
        (true, false) => format!("every day in {}", months()),
        (false, false) => format!("{days}, in {}", months()),
    }
}

/// Days of the week by name, 0 being Sunday.
fn weekdays(days: Set) -> String {
    // Prose starts the week on Monday.
    let from_monday: Set = days.iter().map(|day| (day + 6) % 7).collect();
    spans(from_monday, |day| name(&DAYS, day))
}

/// For example `Monday through Friday`.
pub(crate) fn weekday_names(days: &[Day]) -> String {
    let named = Day::ALL.iter().filter(|(day, _, _)| days.contains(day));
    weekdays(named.map(|(_, _, number)| *number).collect())
}

fn days_of_month(days: Set) -> String {
    const STEPS_LISTED_MAX: u32 = 4;
    match (days.first(), days.last(), days.stride()) {
        (Some(first), Some(last), Some(stride))
            if stride > 1 && days.len() > STEPS_LISTED_MAX && last + stride > 31 =>
        {
            format!("every {} day from the {}", ordinal(stride), ordinal(first))
        }
        _ => format!("the {}", spans(days, ordinal)),
    }
}

fn name(names: &[&str], index: u32) -> String {
    usize::try_from(index)
        .ok()
        .and_then(|index| names.get(index))
        .map_or_else(|| index.to_string(), |name| (*name).to_owned())
}

fn ordinal(number: u32) -> String {
    let suffix = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}

/// A set as words, three or more neighbours as a span: `1, 3 and 5 through 9`.
fn spans(set: Set, word: impl Fn(u32) -> String) -> String {
    let mut words = Vec::new();
    let mut values = set.iter().peekable();
    while let Some(first) = values.next() {
        let mut last = first;
        while let Some(next) = values.next_if_eq(&(last + 1)) {
            last = next;
        }
        match last - first {
            0 => words.push(word(first)),
            1 => words.extend([word(first), word(last)]),
            _ => words.push(format!("{} through {}", word(first), word(last))),
        }
    }
    joined(words)
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn joined(mut words: Vec<String>) -> String {
    match words.pop() {
        None => String::new(),
        Some(last) if words.is_empty() => last,
        Some(last) => format!("{} and {last}", words.join(", ")),
    }
}
