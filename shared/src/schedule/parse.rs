//! From JSON to a checked schedule, collecting every fault on the way.

use chrono::{
    DateTime, Datelike, MappedLocalTime, NaiveDateTime, SecondsFormat, TimeZone, Timelike, Utc,
};
use chrono_tz::{TZ_VARIANTS, Tz};
use serde_json::{Map, Value};

use super::{
    Every, Plan, Schedule, Unit, Window,
    cron::{Cron, Field, quoted},
    emit,
    form::{
        CronSchedule, CronTag, DailySchedule, DailyTag, Day, Form, IntervalSchedule, IntervalTag,
        ManualSchedule, ManualTag, MonthlySchedule, MonthlyTag, OnceSchedule, OnceTag,
        ScheduleType, TimeOfDay, WeeklySchedule, WeeklyTag,
    },
    set::Set,
    wall::Arm,
};
use crate::fault::Fault;

const DAYS_BETWEEN_MAX: u32 = 366;

/// How many unknown fields are named before the rest is left unsaid.
const UNKNOWN_FIELDS_MAX: usize = 10;

const INSTANT_HINT: &str = "write an RFC 3339 instant, for example 2026-07-01T13:00:00Z";

/// Reads a schedule; `now` is `None` for a stored one, whose time may have passed.
pub(super) fn schedule(value: &Value, now: Option<DateTime<Utc>>) -> Result<Schedule, Vec<Fault>> {
    let Value::Object(fields) = value else {
        return Err(vec![wrong_type("", "an object with a type", value)]);
    };
    let mut reader = Reader {
        fields,
        faults: Vec::new(),
    };
    let kind = reader.kind();
    let window = reader.window(now);
    let read = kind.and_then(|kind| {
        reader.refuse_unknown(kind);
        match kind {
            ScheduleType::Cron => cron(&mut reader, window),
            ScheduleType::Interval => interval(&mut reader, window, now),
            ScheduleType::Daily => daily(&mut reader, window),
            ScheduleType::Weekly => weekly(&mut reader, window),
            ScheduleType::Monthly => monthly(&mut reader, window),
            ScheduleType::Once => once(&mut reader, window, now),
            ScheduleType::Manual => Some(manual(window)),
        }
    });
    match read {
        Some((form, plan)) if reader.faults.is_empty() => {
            fires(Schedule { form, window, plan }, now)
        }
        Some(_) | None => Err(reader.faults),
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

fn cron(reader: &mut Reader, window: Window) -> Option<(Form, Plan)> {
    let text = reader.text("expression", "for example 0 9 * * 1-5")?;
    let cron = Cron::parse(text)
        .map_err(|faults| reader.faults.extend(faults))
        .ok()?;
    let plan = wall_plan(cron, window.timezone)
        .map_err(|fault| reader.faults.push(fault))
        .ok()?;
    let expression: Vec<&str> = text.split_ascii_whitespace().collect();
    let form = Form::Cron(CronSchedule {
        tag: CronTag::Cron,
        expression: expression.join(" "),
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn interval(
    reader: &mut Reader,
    window: Window,
    now: Option<DateTime<Utc>>,
) -> Option<(Form, Plan)> {
    let faults_before = reader.faults.len();
    let every_minutes = reader.whole_number("every_minutes", DAYS_BETWEEN_MAX * 24 * 60);
    let every_hours = reader.whole_number("every_hours", DAYS_BETWEEN_MAX * 24);
    let every_days = reader.whole_number("every_days", DAYS_BETWEEN_MAX);
    let anchor = reader.instant("anchor");
    if reader.faults.len() > faults_before {
        return None;
    }
    let every = match (every_minutes, every_hours, every_days) {
        (Some(count), None, None) => (count, Unit::Minute),
        (None, Some(count), None) => (count, Unit::Hour),
        (None, None, Some(count)) => (count, Unit::Day),
        (None, None, None) => {
            reader.fault(
                "every_minutes",
                "missing",
                "the interval's length is missing",
                ONE_OF,
            );
            return None;
        }
        _ => {
            reader.fault(
                "every_minutes",
                "conflict",
                "the interval has two lengths",
                ONE_OF,
            );
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
            let cron = Cron::every_day(minutes, Field::Hour.all());
            wall_plan(cron, Tz::UTC)
                .map_err(|fault| reader.faults.push(fault))
                .ok()?
        }
        anchor => Plan::Rate {
            anchor: first_slot(reader, anchor.or(window.start_at).or(now))?,
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

const ONE_OF: &str = "send exactly one of every_minutes, every_hours and every_days";

/// The anchor, on its minute: a clock's seconds never become part of a slot.
fn first_slot(reader: &mut Reader, anchor: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    let Some(anchor) = anchor else {
        reader.fault(
            "anchor",
            "missing",
            "the stored interval has no anchor",
            INSTANT_HINT,
        );
        return None;
    };
    DateTime::from_timestamp(anchor.timestamp().div_euclid(60) * 60, 0)
}

fn daily(reader: &mut Reader, window: Window) -> Option<(Form, Plan)> {
    let at = reader.time_of_day("at")?;
    let plan = plan_at(reader, at, window, |_| {})?;
    let form = Form::Daily(DailySchedule {
        tag: DailyTag::Daily,
        at,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn weekly(reader: &mut Reader, window: Window) -> Option<(Form, Plan)> {
    const HINT: &str = "list days from mon, tue, wed, thu, fri, sat, sun";
    let named = reader.list("days", HINT, |value| {
        let name = value.as_str()?;
        Day::ALL.iter().find(|(_, known, _)| *known == name)
    });
    let at = reader.time_of_day("at");
    let (named, at) = (named?, at?);
    let days: Vec<Day> = Day::ALL
        .iter()
        .filter(|(day, _, _)| named.iter().any(|(named, _, _)| named == day))
        .map(|(day, _, _)| *day)
        .collect();
    let weekdays: Set = named.iter().map(|(_, _, number)| *number).collect();
    let plan = plan_at(reader, at, window, |cron| cron.weekdays = weekdays)?;
    let form = Form::Weekly(WeeklySchedule {
        tag: WeeklyTag::Weekly,
        days,
        at,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn monthly(reader: &mut Reader, window: Window) -> Option<(Form, Plan)> {
    let days = reader.list("days", "list days from 1 to 31", |value| {
        let day = u32::try_from(value.as_u64()?).ok()?;
        (1..=31).contains(&day).then_some(day)
    });
    let at = reader.time_of_day("at");
    let (days, at) = (days?.into_iter().collect::<Set>(), at?);
    let plan = plan_at(reader, at, window, |cron| cron.days = days)?;
    let form = Form::Monthly(MonthlySchedule {
        tag: MonthlyTag::Monthly,
        days: days.iter().collect(),
        at,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    Some((form, plan))
}

fn once(reader: &mut Reader, window: Window, now: Option<DateTime<Utc>>) -> Option<(Form, Plan)> {
    let text = reader.text("at", INSTANT_HINT)?;
    let at = once_at(text, window.timezone)
        .map_err(|fault| reader.faults.push(fault))
        .ok()?;
    if now.is_some_and(|now| at <= now) {
        reader.fault(
            "at",
            "in_the_past",
            format!("{} has passed", quoted(text)),
            "write a time that is still to come",
        );
        return None;
    }
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

fn manual(window: Window) -> (Form, Plan) {
    let form = Form::Manual(ManualSchedule {
        tag: ManualTag::Manual,
        timezone: window.timezone,
        start_at: window.start_at,
        end_at: window.end_at,
    });
    (form, Plan::Never)
}

fn plan_at(
    reader: &mut Reader,
    at: TimeOfDay,
    window: Window,
    restrict: impl FnOnce(&mut Cron),
) -> Option<Plan> {
    let mut cron = Cron::every_day(Set::span(at.minute, at.minute), Set::span(at.hour, at.hour));
    restrict(&mut cron);
    wall_plan(cron, window.timezone)
        .map_err(|fault| reader.faults.push(fault))
        .ok()
}

fn wall_plan(cron: Cron, timezone: Tz) -> Result<Plan, Fault> {
    let arms = emit::expressions(&cron)?
        .into_iter()
        .map(Arm::new)
        .collect::<Option<Vec<Arm>>>();
    match arms {
        Some(arms) => Ok(Plan::Wall {
            cron,
            arms,
            timezone,
        }),
        None => Err(Fault::new(
            "expression",
            "unsupported",
            "the expression cannot be evaluated",
            "write it with plain lists and ranges",
        )),
    }
}

/// An instant with an offset, or a local time that exists exactly once.
fn once_at(text: &str, timezone: Tz) -> Result<DateTime<Utc>, Fault> {
    let at = |code, detail: String, hint: String| Fault::new("at", code, detail, hint);
    let Some(wall) = local_time(text) else {
        return instant("at", text);
    };
    whole_minute("at", text, wall)?;
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
            String::from("write a time before or after the jump, or an instant with an offset"),
        )),
    }
}

fn local_time(text: &str) -> Option<NaiveDateTime> {
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
}

fn instant(field: &str, text: &str) -> Result<DateTime<Utc>, Fault> {
    let Ok(instant) = DateTime::parse_from_rfc3339(text) else {
        let hint = match local_time(text) {
            Some(_) => "add Z or an offset, for example 2026-07-01T13:00:00Z",
            None => INSTANT_HINT,
        };
        let detail = format!("{} is not an instant", quoted(text));
        return Err(Fault::new(field, "bad_time", detail, hint));
    };
    let instant = instant.to_utc();
    whole_minute(field, text, instant.naive_utc())?;
    Ok(instant)
}

/// Refuses what is finer than a minute, and years in which nothing is scheduled.
fn whole_minute(field: &str, text: &str, time: NaiveDateTime) -> Result<(), Fault> {
    if time.second() != 0 || time.nanosecond() != 0 {
        return Err(Fault::new(
            field,
            "sub_minute",
            format!("{} is not on a whole minute", quoted(text)),
            "write :00 for the seconds: schedules are precise to the minute",
        ));
    }
    if !(1970..3000).contains(&time.year()) {
        return Err(Fault::new(
            field,
            "out_of_range",
            format!("{} is out of range", quoted(text)),
            "write a year from 1970 to 2999",
        ));
    }
    Ok(())
}

/// The object's fields, and what was found wrong with them so far.
struct Reader<'a> {
    fields: &'a Map<String, Value>,
    faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    fn fault(
        &mut self,
        field: &str,
        code: &'static str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.faults.push(Fault::new(field, code, detail, hint));
    }

    /// A field's value; null is the same as none.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn required(&mut self, field: &str, hint: &str) -> Option<&'a Value> {
        let value = self.get(field);
        if value.is_none() {
            self.fault(field, "missing", format!("{field} is missing"), hint);
        }
        value
    }

    fn text(&mut self, field: &str, hint: &str) -> Option<&'a str> {
        let value = self.required(field, hint)?;
        if value.as_str().is_none() {
            self.faults.push(wrong_type(field, "a string", value));
        }
        value.as_str()
    }

    fn kind(&mut self) -> Option<ScheduleType> {
        let hint = "send one of cron, interval, daily, weekly, monthly, once, manual";
        let text = self.text("type", hint)?;
        let kind = ScheduleType::ALL.iter().find(|kind| kind.as_str() == text);
        if kind.is_none() {
            let detail = format!("there is no schedule type {}", quoted(text));
            self.fault("type", "unknown_type", detail, hint);
        }
        kind.copied()
    }

    /// The fields that all forms share. A zone that is bad reads as UTC, so that the rest can be
    /// checked too.
    fn window(&mut self, now: Option<DateTime<Utc>>) -> Window {
        let timezone = self.timezone();
        let start_at = self.instant("start_at");
        let end_at = self.instant("end_at");
        if let (Some(start), Some(end)) = (start_at, end_at)
            && end < start
        {
            self.fault(
                "end_at",
                "end_before_start",
                "end_at lies before start_at",
                "write an end_at after start_at",
            );
        } else if let (Some(end), Some(now)) = (end_at, now)
            && end <= now
        {
            self.fault(
                "end_at",
                "in_the_past",
                "end_at has passed",
                "write an end_at that is still to come",
            );
        }
        Window {
            timezone,
            start_at,
            end_at,
        }
    }

    fn timezone(&mut self) -> Tz {
        let Some(value) = self.get("timezone") else {
            return Tz::UTC;
        };
        let Some(name) = value.as_str() else {
            self.faults.push(wrong_type("timezone", "a string", value));
            return Tz::UTC;
        };
        name.parse().unwrap_or_else(|_| {
            self.fault(
                "timezone",
                "unknown_timezone",
                format!("there is no time zone {}", quoted(name)),
                match near_zone(name) {
                    Some(near) => format!("did you mean {near}?"),
                    None => String::from("write an IANA name, for example Europe/London"),
                },
            );
            Tz::UTC
        })
    }

    fn instant(&mut self, field: &str) -> Option<DateTime<Utc>> {
        let value = self.get(field)?;
        let Some(text) = value.as_str() else {
            self.faults.push(wrong_type(field, "a string", value));
            return None;
        };
        instant(field, text)
            .map_err(|fault| self.faults.push(fault))
            .ok()
    }

    /// A whole number from 1 to `max`.
    fn whole_number(&mut self, field: &str, max: u32) -> Option<u32> {
        let value = self.get(field)?;
        if !value.is_i64() && !value.is_u64() {
            self.faults.push(wrong_type(field, "a whole number", value));
            return None;
        }
        let number = value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| (1..=max).contains(number));
        if number.is_none() {
            self.fault(
                field,
                "out_of_range",
                format!("{field} is {value}"),
                format!("send a whole number from 1 to {max}"),
            );
        }
        number
    }

    fn time_of_day(&mut self, field: &str) -> Option<TimeOfDay> {
        const HINT: &str = "write HH:MM from 00:00 to 23:59, for example 08:00";
        let text = self.text(field, HINT)?;
        let part = |range: std::ops::Range<usize>, max: u32| {
            text.get(range)
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .filter(|value| *value <= max)
        };
        let time = part(0..2, 23).zip(part(3..5, 59));
        match time {
            Some((hour, minute)) if text.len() == 5 && text.get(2..3) == Some(":") => {
                Some(TimeOfDay { hour, minute })
            }
            Some(_) if text.len() > 5 && text.get(5..6) == Some(":") => {
                let detail = format!("{} has seconds", quoted(text));
                let hint = "write HH:MM: schedules are precise to the minute";
                self.fault(field, "sub_minute", detail, hint);
                None
            }
            Some(_) | None => {
                let detail = format!("{} is not a time of day", quoted(text));
                self.fault(field, "bad_time", detail, HINT);
                None
            }
        }
    }

    /// A list of 1 to 31 values, each read by `one`.
    fn list<T>(
        &mut self,
        field: &str,
        hint: &str,
        one: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        const ITEMS_MAX: usize = 31;
        let value = self.required(field, hint)?;
        let Value::Array(items) = value else {
            self.faults.push(wrong_type(field, "a list", value));
            return None;
        };
        if !(1..=ITEMS_MAX).contains(&items.len()) {
            let detail = format!("{field} has {} items", items.len());
            self.fault(field, "out_of_range", detail, hint);
            return None;
        }
        let faults_before = self.faults.len();
        let mut read = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match one(item) {
                Some(value) => read.push(value),
                None => {
                    let detail = format!("{} is no day", quoted(&short_json(item)));
                    self.fault(&format!("{field}[{index}]"), "bad_day", detail, hint);
                }
            }
        }
        (self.faults.len() == faults_before).then_some(read)
    }

    fn refuse_unknown(&mut self, kind: ScheduleType) {
        let own: &[&str] = match kind {
            ScheduleType::Cron => &["expression"],
            ScheduleType::Interval => &["every_minutes", "every_hours", "every_days", "anchor"],
            ScheduleType::Daily | ScheduleType::Once => &["at"],
            ScheduleType::Weekly | ScheduleType::Monthly => &["days", "at"],
            ScheduleType::Manual => &[],
        };
        let shared = ["type", "timezone", "start_at", "end_at"];
        let known = |name: &str| own.contains(&name) || shared.contains(&name);
        let unknown: Vec<&String> = self
            .fields
            .keys()
            .filter(|name| !known(name))
            .take(UNKNOWN_FIELDS_MAX)
            .collect();
        for name in unknown {
            let hint = match name.as_str() {
                "every_seconds" => {
                    String::from("use every_minutes: schedules are precise to the minute")
                }
                _ => format!(
                    "{kind} takes {}",
                    [own, shared.get(1..).unwrap_or(&[])].concat().join(", ")
                ),
            };
            let shown: String = name.chars().take(64).collect();
            let detail = format!("a {kind} schedule has no field {}", quoted(name));
            self.fault(&shown, "unknown_field", detail, hint);
        }
    }
}

fn wrong_type(field: &str, wanted: &str, value: &Value) -> Fault {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Fault::new(
        field,
        "wrong_type",
        format!("expected {wanted}, got {found}"),
        format!("send {wanted}"),
    )
}

/// A list's item as text; what is nested is only named, because it can be large.
fn short_json(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(_) => String::from("[…]"),
        Value::Object(_) => String::from("{…}"),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
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
