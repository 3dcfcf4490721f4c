//! From JSON to a checked schedule, collecting every fault on the way.

use chrono::{
    DateTime, Datelike, MappedLocalTime, NaiveDateTime, SecondsFormat, TimeZone, Timelike, Utc,
};
use chrono_tz::{TZ_VARIANTS, Tz};
use serde_json::Value;

use super::{
    Every, Plan, Schedule, Unit, Window,
    cron::{Cron, Field as CronField, quoted},
    emit,
    form::{
        CronSchedule, CronTag, DailySchedule, DailyTag, Day, DstGap, Form, IntervalSchedule,
        IntervalTag, ManualSchedule, ManualTag, MonthlySchedule, MonthlyTag, OnceSchedule, OnceTag,
        ScheduleType, TimeOfDay, WeeklySchedule, WeeklyTag,
    },
    set::Set,
    wall::{self, Arm},
};
use crate::{
    fault::Fault,
    fields::{Field, Fields},
};

const DAYS_BETWEEN_MAX: u32 = 366;

const INSTANT_EXAMPLE: &str = "2026-07-01T13:00:00Z";
const INSTANT_HINT: &str = "write an RFC 3339 instant, for example 2026-07-01T13:00:00Z";

/// Reads a schedule; `now` is `None` for a stored one, whose time may have passed.
pub(super) fn schedule(value: &Value, now: Option<DateTime<Utc>>) -> Result<Schedule, Vec<Fault>> {
    let mut fields = Fields::new(value);
    let kind = fields
        .required_such_as("type", "cron")
        .word(&ScheduleType::ALL, ScheduleType::as_str);
    let window = window(&mut fields, now);
    let Some(kind) = kind else {
        return Err(fields.give_up());
    };
    let read = match kind {
        ScheduleType::Cron => cron(&mut fields, window),
        ScheduleType::Interval => interval(&mut fields, window, now),
        ScheduleType::Daily => daily(&mut fields, window),
        ScheduleType::Weekly => weekly(&mut fields, window),
        ScheduleType::Monthly => monthly(&mut fields, window),
        ScheduleType::Once => once(&mut fields, window, now),
        ScheduleType::Manual => Some(manual(&mut fields, window)),
    };
    let (form, plan) = fields.finish(read)?;
    fires(Schedule { form, window, plan }, now)
}

/// The fields that all forms share. A zone that is bad reads as UTC, so that the rest can be checked
/// too.
fn window(fields: &mut Fields<'_>, now: Option<DateTime<Utc>>) -> Window {
    let timezone = fields.optional("timezone").parse_text(zone);
    let start_at = fields.optional("start_at").parse_text(instant);
    let end_at = fields.optional("end_at").parse_text(instant);
    if let (Some(start), Some(end)) = (start_at, end_at)
        && end < start
    {
        fields.refuse(Fault::new(
            "end_at",
            "end_before_start",
            "end_at lies before start_at",
            "write an end_at after start_at",
        ));
    } else if let (Some(end), Some(now)) = (end_at, now)
        && end <= now
    {
        fields.refuse(Fault::new(
            "end_at",
            "in_the_past",
            "end_at has passed",
            "write an end_at that is still to come",
        ));
    }
    Window {
        timezone: timezone.unwrap_or(Tz::UTC),
        start_at,
        end_at,
    }
}

/// Refuses a schedule none of whose slots lies in its window, or ahead.
fn fires(schedule: Schedule, now: Option<DateTime<Utc>>) -> Result<Schedule, Vec<Fault>> {
    let from = now.unwrap_or(DateTime::UNIX_EPOCH);
    if schedule.kind() == ScheduleType::Manual || schedule.next(from).is_some() {
        return Ok(schedule);
    }
    let field = if schedule.window.end_at.is_some() {
        "end_at"
    } else {
        "start_at"
    };
    Err(vec![Fault::new(
        field,
        "never_fires_in_window",
        "no slot lies between start_at and end_at",
        "widen the window, or change the schedule",
    )])
}

fn cron(fields: &mut Fields<'_>, window: Window) -> Option<(Form, Plan)> {
    let dst_gap = dst_gap(fields);
    let text = fields
        .required_such_as("expression", "0 9 * * 1-5")
        .parse_text(Ok)?;
    let cron = match Cron::parse(text) {
        Ok(cron) => cron,
        Err(faults) => {
            faults.into_iter().for_each(|fault| fields.refuse(fault));
            return None;
        }
    };
    let dst_gap = dst_gap.unwrap_or(cron.usual_dst_gap());
    let plan = wall_plan(fields, cron, window.timezone, dst_gap)?;
    let expression: Vec<&str> = text.split_ascii_whitespace().collect();
    let form = Form::Cron(CronSchedule {
        tag: CronTag::Cron,
        expression: expression.join(" "),
        dst_gap,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn interval(
    fields: &mut Fields<'_>,
    window: Window,
    now: Option<DateTime<Utc>>,
) -> Option<(Form, Plan)> {
    const MINUTES_MAX: u32 = DAYS_BETWEEN_MAX * 24 * 60;
    let faults_before = fields.faults();
    let every_minutes = fields.optional("every_minutes").integer(1..=MINUTES_MAX);
    let every_hours = fields
        .optional("every_hours")
        .integer(1..=DAYS_BETWEEN_MAX * 24);
    let every_days = fields.optional("every_days").integer(1..=DAYS_BETWEEN_MAX);
    let anchor = fields.optional("anchor").parse_text(instant);
    refuse_seconds(fields);
    refuse_dst_gap(
        fields,
        "an interval is elapsed time, from which a change of the clocks takes nothing",
    );
    if fields.faults() > faults_before {
        return None;
    }
    let every = match (every_minutes, every_hours, every_days) {
        (Some(count), None, None) => (count, Unit::Minute),
        (None, Some(count), None) => (count, Unit::Hour),
        (None, None, Some(count)) => (count, Unit::Day),
        (None, None, None) => {
            let detail = "the interval's length is missing";
            fields.refuse(Fault::new("every_minutes", "missing", detail, ONE_OF));
            return None;
        }
        _ => {
            let detail = "the interval has two lengths";
            fields.refuse(Fault::new("every_minutes", "conflict", detail, ONE_OF));
            return None;
        }
    };
    let every = Every {
        count: every.0,
        unit: every.1,
    };
    let plan = match anchor {
        None if 60 % every.minutes() == 0 => {
            let minutes = (0..60).step_by(every.minutes() as usize).collect();
            let cron = Cron::every_day(minutes, CronField::Hour.all());
            // UTC has no gap.
            wall_plan(fields, cron, Tz::UTC, DstGap::Skip)?
        }
        anchor => Plan::Rate {
            anchor: first_slot(fields, anchor.or(window.start_at).or(now))?,
            every,
        },
    };
    let form = Form::Interval(IntervalSchedule {
        tag: IntervalTag::Interval,
        every_minutes,
        every_hours,
        every_days,
        anchor: match &plan {
            Plan::Rate { anchor, .. } => Some(*anchor),
            Plan::Wall { .. } | Plan::At(_) | Plan::Never => None,
        },
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn refuse_seconds(fields: &mut Fields<'_>) {
    for name in ["every_seconds", "every_second", "seconds"] {
        let detail = "schedules are precise to the minute";
        let hint = "send every_minutes, a whole number from 1 on";
        fields.refuse_field(name, "sub_minute", detail, hint);
    }
}

/// Of a form whose times are not those of a wall clock.
fn refuse_dst_gap(fields: &mut Fields<'_>, detail: &str) {
    let hint = "leave dst_gap out";
    fields.refuse_field("dst_gap", "no_wall_clock", detail, hint);
}

const ONE_OF: &str = "send exactly one of every_minutes, every_hours and every_days; \
    schedules are precise to the minute";

/// The anchor, on its minute: a clock's seconds never become part of a slot.
fn first_slot(fields: &mut Fields<'_>, anchor: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    let Some(anchor) = anchor else {
        let detail = "the stored interval has no anchor";
        fields.refuse(Fault::new("anchor", "missing", detail, INSTANT_HINT));
        return None;
    };
    DateTime::from_timestamp(anchor.timestamp().div_euclid(60) * 60, 0)
}

fn daily(fields: &mut Fields<'_>, window: Window) -> Option<(Form, Plan)> {
    let at = at(fields);
    let dst_gap = dst_gap(fields).unwrap_or(DstGap::Shift);
    let at = at?;
    let plan = plan_at(fields, at, window, dst_gap, |_| {})?;
    let form = Form::Daily(DailySchedule {
        tag: DailyTag::Daily,
        at,
        dst_gap,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn weekly(fields: &mut Fields<'_>, window: Window) -> Option<(Form, Plan)> {
    let named = days(fields, "[\"mon\", \"fri\"]", Day::ALL.len(), |item| {
        item.word(&Day::ALL, |(_, name, _)| name)
    });
    let at = at(fields);
    let dst_gap = dst_gap(fields).unwrap_or(DstGap::Shift);
    let (named, at) = (named?, at?);
    let days: Vec<Day> = Day::ALL
        .iter()
        .filter(|(day, _, _)| named.iter().any(|(named, _, _)| named == day))
        .map(|(day, _, _)| *day)
        .collect();
    let weekdays: Set = named.iter().map(|(_, _, number)| *number).collect();
    let plan = plan_at(fields, at, window, dst_gap, |cron| cron.weekdays = weekdays)?;
    let form = Form::Weekly(WeeklySchedule {
        tag: WeeklyTag::Weekly,
        days,
        at,
        dst_gap,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn monthly(fields: &mut Fields<'_>, window: Window) -> Option<(Form, Plan)> {
    let days = days(fields, "[1, 15]", 31, |item| item.integer(1..=31));
    let at = at(fields);
    let dst_gap = dst_gap(fields).unwrap_or(DstGap::Shift);
    let (days, at) = (days?.into_iter().collect::<Set>(), at?);
    let plan = plan_at(fields, at, window, dst_gap, |cron| cron.days = days)?;
    let form = Form::Monthly(MonthlySchedule {
        tag: MonthlyTag::Monthly,
        days: days.iter().collect(),
        at,
        dst_gap,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn once(
    fields: &mut Fields<'_>,
    window: Window,
    now: Option<DateTime<Utc>>,
) -> Option<(Form, Plan)> {
    refuse_dst_gap(
        fields,
        "a single time that the clock jumps over is refused, not moved",
    );
    let at = fields
        .required_such_as("at", INSTANT_EXAMPLE)
        .parse_text(|text| {
            let at = once_at(text, window.timezone)?;
            if now.is_some_and(|now| at <= now) {
                return Err(Fault::new(
                    "",
                    "in_the_past",
                    format!("{} has passed", quoted(text)),
                    "write a time that is still to come",
                ));
            }
            Ok(at)
        })?;
    let form = Form::Once(OnceSchedule {
        tag: OnceTag::Once,
        at: at
            .with_timezone(&window.timezone)
            .to_rfc3339_opts(SecondsFormat::Secs, window.timezone == Tz::UTC),
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, Plan::At(at)))
}

fn manual(fields: &mut Fields<'_>, window: Window) -> (Form, Plan) {
    refuse_dst_gap(fields, "a manual schedule has no slots");
    let form = Form::Manual(ManualSchedule {
        tag: ManualTag::Manual,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    (form, Plan::Never)
}

fn plan_at(
    fields: &mut Fields<'_>,
    at: TimeOfDay,
    window: Window,
    dst_gap: DstGap,
    restrict: impl FnOnce(&mut Cron),
) -> Option<Plan> {
    let mut cron = Cron::every_day(Set::span(at.minute, at.minute), Set::span(at.hour, at.hour));
    restrict(&mut cron);
    wall_plan(fields, cron, window.timezone, dst_gap)
}

fn wall_plan(fields: &mut Fields<'_>, cron: Cron, timezone: Tz, dst_gap: DstGap) -> Option<Plan> {
    let arms = emit::expressions(&cron).and_then(|expressions| {
        let arms: Option<Vec<Arm>> = expressions.into_iter().map(Arm::new).collect();
        arms.ok_or_else(|| {
            Fault::new(
                "expression",
                "unsupported",
                "the expression cannot be evaluated",
                "write it with plain lists and ranges",
            )
        })
    });
    match arms {
        Ok(arms) => Some(Plan::Wall {
            cron,
            arms,
            timezone,
            dst_gap,
        }),
        Err(fault) => {
            fields.refuse(fault);
            None
        }
    }
}

fn dst_gap(fields: &mut Fields<'_>) -> Option<DstGap> {
    fields
        .optional("dst_gap")
        .word(&DstGap::ALL, DstGap::as_str)
}

fn at(fields: &mut Fields<'_>) -> Option<TimeOfDay> {
    fields
        .required_such_as("at", "08:00")
        .parse_text(time_of_day)
}

fn days<T>(
    fields: &mut Fields<'_>,
    example: &str,
    count_max: usize,
    one: impl Fn(Field<'_, '_>) -> Option<T>,
) -> Option<Vec<T>> {
    fields
        .required_such_as("days", example)
        .list(1..=count_max, one)
}

/// An instant with an offset, or a local time that exists exactly once.
fn once_at(text: &str, timezone: Tz) -> Result<DateTime<Utc>, Fault> {
    let at = |code, detail: String, hint: String| Fault::new("", code, detail, hint);
    let Some(wall) = local_time(text) else {
        return instant(text);
    };
    whole_minute(text, wall)?;
    match timezone.from_local_datetime(&wall) {
        MappedLocalTime::Single(found) => Ok(found.to_utc()),
        MappedLocalTime::Ambiguous(first, second) => Err(at(
            "ambiguous_local_time",
            format!(
                "{} comes twice in {timezone}: the clock is set back",
                quoted(text)
            ),
            format!("write {} or {}", first.to_rfc3339(), second.to_rfc3339()),
        )),
        MappedLocalTime::None => Err(at(
            "nonexistent_local_time",
            format!(
                "{} does not exist in {timezone}: the clock jumps over it",
                quoted(text)
            ),
            format!(
                "write {}, the first time after the jump, or another",
                wall::gap_end(timezone, wall)
                    .with_timezone(&timezone)
                    .to_rfc3339()
            ),
        )),
    }
}

fn local_time(text: &str) -> Option<NaiveDateTime> {
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
}

fn instant(text: &str) -> Result<DateTime<Utc>, Fault> {
    let Ok(instant) = DateTime::parse_from_rfc3339(text) else {
        let hint = match local_time(text) {
            Some(_) => "add Z or an offset, for example 2026-07-01T13:00:00Z",
            None => INSTANT_HINT,
        };
        let detail = format!("{} is not an instant", quoted(text));
        return Err(Fault::new("", "bad_time", detail, hint));
    };
    let instant = instant.to_utc();
    whole_minute(text, instant.naive_utc())?;
    Ok(instant)
}

/// Refuses what is finer than a minute, and years in which nothing is scheduled.
fn whole_minute(text: &str, time: NaiveDateTime) -> Result<(), Fault> {
    if time.second() != 0 || time.nanosecond() != 0 {
        return Err(Fault::new(
            "",
            "sub_minute",
            format!("{} is not on a whole minute", quoted(text)),
            "write :00 for the seconds: schedules are precise to the minute",
        ));
    }
    if !(1970..3000).contains(&time.year()) {
        return Err(Fault::new(
            "",
            "out_of_range",
            format!("{} is out of range", quoted(text)),
            "write a year from 1970 to 2999",
        ));
    }
    Ok(())
}

fn zone(name: &str) -> Result<Tz, Fault> {
    name.parse().map_err(|_| {
        let detail = format!("there is no time zone {}", quoted(name));
        let hint = match near_zone(name) {
            Some(near) => format!("did you mean {near}?"),
            None => String::from("write an IANA name, for example Europe/London"),
        };
        Fault::new("", "unknown_timezone", detail, hint)
    })
}

fn time_of_day(text: &str) -> Result<TimeOfDay, Fault> {
    let part = |range: std::ops::Range<usize>, max: u32| {
        text.get(range)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .filter(|value| *value <= max)
    };
    let time = part(0..2, 23).zip(part(3..5, 59));
    match time {
        Some((hour, minute)) if text.len() == 5 && text.get(2..3) == Some(":") => {
            Ok(TimeOfDay { hour, minute })
        }
        Some(_) if text.len() > 5 && text.get(5..6) == Some(":") => Err(Fault::new(
            "",
            "sub_minute",
            format!("{} has seconds", quoted(text)),
            "write HH:MM: schedules are precise to the minute",
        )),
        Some(_) | None => Err(Fault::new(
            "",
            "bad_time",
            format!("{} is not a time of day", quoted(text)),
            "write HH:MM from 00:00 to 23:59, for example 08:00",
        )),
    }
}

/// A zone whose name, or last part, differs from `name` in case, separators or one slip of the
/// finger.
fn near_zone(name: &str) -> Option<&'static str> {
    const NAME_BYTES_MAX: usize = 50;
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let key = |text: &str| -> Vec<u8> {
        text.bytes()
            .filter(u8::is_ascii_alphanumeric)
            .map(|byte| byte.to_ascii_lowercase())
            .collect()
    };
    let wanted = key(name);
    let by = |same: &dyn Fn(&[u8]) -> bool| {
        TZ_VARIANTS.iter().map(|zone| zone.name()).find(|zone| {
            let city = zone.rsplit('/').next().unwrap_or(zone);
            same(&key(zone)) || same(&key(city))
        })
    };
    by(&|zone| zone == wanted).or_else(|| by(&|zone| one_slip(zone, &wanted)))
}

/// The two differ in one place, by at most two neighbouring letters.
fn one_slip(a: &[u8], b: &[u8]) -> bool {
    const LETTERS_MIN: usize = 5;
    let same =
        |pairs: &mut dyn Iterator<Item = (&u8, &u8)>| pairs.take_while(|(a, b)| a == b).count();
    let front = same(&mut a.iter().zip(b));
    let back = same(&mut a.iter().rev().zip(b.iter().rev()));
    a.len().min(b.len()) >= LETTERS_MIN && front + back + 2 >= a.len().max(b.len())
}
