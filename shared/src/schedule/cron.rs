//! Unix cron, read strictly: five fields, or one of the `@` names.
//!
//! What different programs read differently is refused with a code and a hint, never guessed. This
//! module must never see or make EventBridge text: that is `emit`'s work.

use super::{form::DstGap, set::Set};
use crate::fault::Fault;

/// The longest expression that is looked at.
const EXPRESSION_BYTES_MAX: usize = 256;

/// How many days each month can have, January first; 29 February comes in leap years.
pub(super) const MONTH_DAYS: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// The English names of the week's days, Sunday first, as cron counts them.
pub(super) const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

const MONTHS: [&str; 12] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];

/// The wall-clock times that a schedule names.
///
/// With both `days` and `weekdays` restricted a date matches when either does.
#[derive(Debug, Clone)]
pub(super) struct Cron {
    pub(super) minutes: Set,
    pub(super) hours: Set,
    pub(super) days: Set,
    pub(super) months: Set,
    /// 0 is Sunday.
    pub(super) weekdays: Set,
    /// Neither the minute nor the hour was written as `*`, a step of it, or every value: such a
    /// schedule names times of day, the others name a rhythm. The line that Vixie cron draws.
    pub(super) fixed_hours: bool,
    pub(super) surprises: Vec<Surprise>,
}

/// Something that was accepted and may not do what its author thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surprise {
    /// `*/7` starts afresh at each field's beginning.
    StepRestarts { field: Field, step: u32 },
    /// A step so wide that it names one value only.
    StepOnce { field: Field, step: u32, value: u32 },
    /// `*,5` is the same as `*`.
    StarInList { field: Field },
}

/// One of the five fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Minute,
    Hour,
    DayOfMonth,
    Month,
    DayOfWeek,
}

impl Field {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of month",
            Self::Month => "month",
            Self::DayOfWeek => "day of week",
        }
    }

    pub(super) fn min(self) -> u32 {
        match self {
            Self::Minute | Self::Hour | Self::DayOfWeek => 0,
            Self::DayOfMonth | Self::Month => 1,
        }
    }

    /// The largest value that names something of its own: 7, in day of week, is Sunday again.
    pub(super) fn max(self) -> u32 {
        match self {
            Self::Minute => 59,
            Self::Hour => 23,
            Self::DayOfMonth => 31,
            Self::Month => 12,
            Self::DayOfWeek => 6,
        }
    }

    pub(super) fn all(self) -> Set {
        Set::span(self.min(), self.max())
    }

    /// The largest value that may be written.
    fn max_written(self) -> u32 {
        match self {
            Self::DayOfWeek => 7,
            Self::Minute | Self::Hour | Self::DayOfMonth | Self::Month => self.max(),
        }
    }

    fn width(self) -> u32 {
        self.max() - self.min() + 1
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Minute | Self::Hour | Self::DayOfMonth => &[],
            Self::Month => &MONTHS,
            Self::DayOfWeek => &WEEKDAYS,
        }
    }
}

impl Cron {
    /// Reads Unix cron. All faults are about the field `expression`; one per bad cron field.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let five = split(text).map_err(|fault| vec![fault])?;
        let mut surprises = Vec::new();
        let mut faults = Vec::new();
        let mut read = |field: Field, text: &str| {
            field_set(field, text, &mut surprises).unwrap_or_else(|fault| {
                faults.push(fault);
                Set::default()
            })
        };
        let cron = Self {
            minutes: read(Field::Minute, five[0]),
            hours: read(Field::Hour, five[1]),
            days: read(Field::DayOfMonth, five[2]),
            months: read(Field::Month, five[3]),
            weekdays: read(Field::DayOfWeek, five[4]),
            fixed_hours: false,
            surprises: Vec::new(),
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        let fixed_hours = is_fixed(Field::Minute, five[0], cron.minutes)
            && is_fixed(Field::Hour, five[1], cron.hours);
        let cron = Self {
            fixed_hours,
            surprises,
            ..cron
        };
        days_are_clear(&cron, five[2], five[4]).map_err(|fault| vec![fault])?;
        fires(&cron).map_err(|fault| vec![fault])?;
        Ok(cron)
    }

    /// Every day at these times.
    pub(super) fn every_day(minutes: Set, hours: Set) -> Self {
        Self {
            minutes,
            hours,
            days: Field::DayOfMonth.all(),
            months: Field::Month.all(),
            weekdays: Field::DayOfWeek.all(),
            fixed_hours: true,
            surprises: Vec::new(),
        }
    }

    /// What becomes of a time that the clock jumps over when nobody says: a time of day keeps its
    /// run, a rhythm goes on.
    pub(super) fn usual_dst_gap(&self) -> DstGap {
        if self.fixed_hours {
            DstGap::Shift
        } else {
            DstGap::Skip
        }
    }

    pub(super) fn any_day_of_month(&self) -> bool {
        self.days == Field::DayOfMonth.all()
    }

    pub(super) fn any_weekday(&self) -> bool {
        self.weekdays == Field::DayOfWeek.all()
    }

    /// Both day fields are restricted: a date matches when either does.
    pub(super) fn either_day(&self) -> bool {
        !self.any_day_of_month() && !self.any_weekday()
    }

    /// Some chosen month has some chosen day.
    pub(super) fn day_of_month_fires(&self) -> bool {
        self.days
            .first()
            .is_some_and(|first| self.months.iter().any(|month| first <= month_days(month)))
    }
}

/// The most days that a month, 1 to 12, can have.
pub(super) fn month_days(month: u32) -> u32 {
    usize::try_from(month)
        .ok()
        .and_then(|month| MONTH_DAYS.get(month.checked_sub(1)?))
        .copied()
        .unwrap_or(0)
}

/// A value that a caller sent, short and safe enough to be said back.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let shown: String = text.chars().take(SHOWN_MAX).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!("\"{}{more}\"", shown.escape_debug())
}

fn fault(code: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Fault {
    Fault::new("expression", code, detail, hint)
}

/// The five fields of an expression, `@` names written out.
fn split(text: &str) -> Result<[&str; 5], Fault> {
    const EXAMPLE: &str =
        "write minute, hour, day of month, month and day of week, for example 0 9 * * 1-5";
    if text.len() > EXPRESSION_BYTES_MAX {
        let detail = format!("the expression has {} bytes", text.len());
        let hint = format!("write at most {EXPRESSION_BYTES_MAX} bytes");
        return Err(fault("too_long", detail, hint));
    }
    if !text.is_ascii() {
        let detail = "the expression has characters outside ASCII";
        return Err(fault("not_ascii", detail, EXAMPLE));
    }
    if text.chars().any(|c| c.is_ascii_control() && c != '\t') {
        let detail = "the expression has a line break or another control character";
        return Err(fault("bad_character", detail, EXAMPLE));
    }
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    match fields.as_slice() {
        [] => Err(fault("empty", "the expression is empty", EXAMPLE)),
        [name] if name.starts_with('@') => nickname(name),
        _ if is_eventbridge(text) => Err(fault(
            "field_count_aws",
            "this is an EventBridge expression, not Unix cron",
            "write five Unix fields, for example 0 9 * * 1-5, or use the types interval and once",
        )),
        [first, ..] if first.contains("TZ=") => Err(fault(
            "field_count",
            "the expression sets a time zone",
            "write the zone in the field timezone, and five fields here",
        )),
        &[minute, hour, day, month, weekday] => Ok([minute, hour, day, month, weekday]),
        [_, _, day, _, weekday, _] if *day == "?" || *weekday == "?" => Err(fault(
            "field_count_aws",
            "six fields with a ? are EventBridge's form, not Unix cron",
            "leave out the last field, the year, write * for ?, and count Monday as 1",
        )),
        [_, _, _, _, _, _] | [_, _, _, _, _, _, _] => Err(fault(
            "field_count_seconds",
            format!("expected 5 fields, got {}", fields.len()),
            "leave out the seconds: the first of five fields is the minute",
        )),
        _ => Err(fault(
            "field_count",
            format!("expected 5 fields, got {}", fields.len()),
            EXAMPLE,
        )),
    }
}

fn is_eventbridge(text: &str) -> bool {
    let text = text.trim_ascii_start().to_ascii_lowercase();
    ["cron(", "rate(", "at("]
        .iter()
        .any(|form| text.starts_with(form))
}

fn nickname(name: &str) -> Result<[&'static str; 5], Fault> {
    match name.to_ascii_lowercase().as_str() {
        "@hourly" => Ok(["0", "*", "*", "*", "*"]),
        "@daily" | "@midnight" => Ok(["0", "0", "*", "*", "*"]),
        "@weekly" => Ok(["0", "0", "*", "*", "0"]),
        "@monthly" => Ok(["0", "0", "1", "*", "*"]),
        "@yearly" | "@annually" => Ok(["0", "0", "1", "1", "*"]),
        _ => Err(fault(
            "unknown_name",
            format!("{} is not known here", quoted(name)),
            "use @hourly, @daily, @weekly, @monthly or @yearly, or write five fields",
        )),
    }
}

fn is_fixed(field: Field, text: &str, set: Set) -> bool {
    set != field.all() && !text.split(',').any(|item| item.starts_with('*'))
}

/// Reads one field, for example `1-5/2,7`.
fn field_set(field: Field, text: &str, surprises: &mut Vec<Surprise>) -> Result<Set, Fault> {
    let mut values = Vec::new();
    let several = text.contains(',');
    for item in text.split(',') {
        if item.is_empty() {
            return Err(fault(
                "empty_item",
                format!("{}: an empty item in {}", field.name(), quoted(text)),
                "remove the extra comma, or write the missing value",
            ));
        }
        if several && item == "*" {
            surprises.push(Surprise::StarInList { field });
        }
        values.extend(item_values(field, item, surprises)?);
    }
    let width = field.max() + 1;
    Ok(values
        .into_iter()
        .map(|value| {
            if value == width && field == Field::DayOfWeek {
                0
            } else {
                value
            }
        })
        .collect())
}

/// The values of one item, as written: in day of week, 7 has not become 0 yet.
fn item_values(field: Field, item: &str, surprises: &mut Vec<Surprise>) -> Result<Vec<u32>, Fault> {
    let (base, step) = match item.split_once('/') {
        Some((base, step)) => (base, Some(step)),
        None => (item, None),
    };
    let (first, last) = match base.split_once('-') {
        _ if base == "*" => (field.min(), field.max()),
        None if step.is_some() => return Err(step_without_range(field, base, item)),
        None => {
            let value = value(field, base, item)?;
            (value, value)
        }
        Some((first, last)) => (value(field, first, item)?, value(field, last, item)?),
    };
    if first > last {
        return Err(reversed(field, item, first, last));
    }
    let step = step.map_or(Ok(1), |step| step_size(field, step, item))?;
    let values: Vec<u32> = (first..=last).step_by(step as usize).collect();
    if step > 1 {
        surprises.extend(step_surprise(field, base, step, &values));
    }
    Ok(values)
}

fn step_surprise(field: Field, base: &str, step: u32, values: &[u32]) -> Option<Surprise> {
    if let &[value] = values {
        return Some(Surprise::StepOnce { field, step, value });
    }
    // Months differ in length and a week has seven days, so a step over days never comes out even.
    let even = match field {
        Field::Minute | Field::Hour | Field::Month => field.width().is_multiple_of(step),
        Field::DayOfMonth | Field::DayOfWeek => false,
    };
    (base == "*" && !even).then_some(Surprise::StepRestarts { field, step })
}

fn step_size(field: Field, step: &str, item: &str) -> Result<u32, Fault> {
    let size = Some(step)
        .filter(|step| (1..=3).contains(&step.len()))
        .filter(|step| step.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|step| step.parse().ok())
        .filter(|size| (1..=field.width()).contains(size));
    size.ok_or_else(|| {
        fault(
            "step",
            format!("{}: {} has a bad step", field.name(), quoted(item)),
            format!(
                "write a step from 1 to {}; for longer distances use the type interval",
                field.width()
            ),
        )
    })
}

/// One number or name.
fn value(field: Field, text: &str, item: &str) -> Result<u32, Fault> {
    let bounds = || {
        format!(
            "write a value from {} to {}",
            field.min(),
            field.max_written()
        )
    };
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text
            .parse()
            .ok()
            .filter(|value| (field.min()..=field.max_written()).contains(value))
            .ok_or_else(|| {
                let detail = format!("{}: {} is out of range", field.name(), quoted(text));
                fault("range", detail, bounds())
            });
    }
    let named = field
        .names()
        .iter()
        .position(|name| name.eq_ignore_ascii_case(text))
        .and_then(|index| u32::try_from(index).ok());
    match named {
        Some(index) => Ok(index + field.min()),
        None => Err(bad_value(field, text, item, bounds())),
    }
}

/// Says why an item that is no value is none: most are the extensions of another program.
fn bad_value(field: Field, text: &str, item: &str, bounds: String) -> Fault {
    let upper = item.to_ascii_uppercase();
    let (code, hint) = match extension(&upper) {
        Some(found) => found,
        None if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            let hint = match field.names() {
                [] => bounds,
                [first, .., last] => {
                    format!("use a number, or a name of three letters from {first} to {last}")
                }
                [_] => bounds,
            };
            ("bad_name", hint)
        }
        None => ("bad_value", bounds),
    };
    fault(
        code,
        format!("{}: {} is not understood", field.name(), quoted(item)),
        hint,
    )
}

fn extension(upper: &str) -> Option<(&'static str, String)> {
    let day = |text: &str| {
        text.is_empty()
            || text.bytes().all(|byte| byte.is_ascii_digit())
            || WEEKDAYS.contains(&text)
    };
    let found = if upper.contains('?') {
        ("question_mark", "write * where any value will do")
    } else if upper.contains('#') {
        (
            "nonstandard_hash",
            "cron has no nth weekday: name the days of the month, for example 8-14, or use several prompts",
        )
    } else if upper.strip_suffix('L').is_some_and(day) || upper.starts_with("L-") || upper == "LW" {
        (
            "nonstandard_L",
            "cron has no last day: use day 28, or 1 for the month's first",
        )
    } else if upper.strip_suffix('W').is_some_and(day) {
        (
            "nonstandard_W",
            "cron has no nearest weekday: name the days themselves",
        )
    } else if upper == "H" || upper.starts_with("H/") || upper.starts_with("H(") {
        ("nonstandard_H", "write a number instead of H")
    } else {
        return None;
    };
    Some((found.0, found.1.to_owned()))
}

fn step_without_range(field: Field, base: &str, item: &str) -> Fault {
    if base.is_empty() {
        return fault(
            "empty_item",
            format!(
                "{}: nothing stands before the / in {}",
                field.name(),
                quoted(item)
            ),
            "write * or a range before the /",
        );
    }
    let (code, hint) = match (value(field, base, item), item.split_once('/')) {
        (Ok(_), Some((base, step))) => (
            "step_needs_range",
            format!(
                "write {base}-{}/{step} for a step from {base} on",
                field.max()
            ),
        ),
        (Ok(_), None) => (
            "step_needs_range",
            String::from("write * or a range before the /"),
        ),
        (Err(fault), _) => return fault,
    };
    fault(
        code,
        format!(
            "{}: the step in {} needs * or a range",
            field.name(),
            quoted(item)
        ),
        hint,
    )
}

fn reversed(field: Field, item: &str, first: u32, last: u32) -> Fault {
    let hint = match field {
        Field::DayOfWeek if last == 0 => format!("write {first}-7: 7 is Sunday too"),
        Field::Minute | Field::Hour | Field::DayOfMonth | Field::Month | Field::DayOfWeek => {
            format!(
                "write {first}-{},{}-{last} to run past the end",
                field.max(),
                field.min()
            )
        }
    };
    fault(
        "reversed_range",
        format!(
            "{}: the range {} runs backwards",
            field.name(),
            quoted(item)
        ),
        hint,
    )
}

/// Refuses day fields that one program joins with "and", another with "or".
fn days_are_clear(cron: &Cron, days: &str, weekdays: &str) -> Result<(), Fault> {
    if days == "*" || weekdays == "*" {
        return Ok(());
    }
    let unclear = [
        (Field::DayOfMonth, days, cron.any_day_of_month()),
        (Field::DayOfWeek, weekdays, cron.any_weekday()),
    ]
    .into_iter()
    .find(|(_, text, everything)| *everything || text.contains('*'));
    let Some((field, text, everything)) = unclear else {
        return Ok(());
    };
    let detail = format!(
        "both day fields are restricted, and {} is {}: programs differ on whether both or either must match",
        field.name(),
        quoted(text)
    );
    let hint = if everything {
        format!("write * in {}", field.name())
    } else {
        format!(
            "list the days in {}, or write * in one of the two",
            field.name()
        )
    };
    Err(fault("ambiguous_dom_dow", detail, hint))
}

fn fires(cron: &Cron) -> Result<(), Fault> {
    if cron.either_day() || cron.day_of_month_fires() {
        return Ok(());
    }
    Err(fault(
        "never_fires",
        "no chosen month has any of the chosen days",
        "choose a day that exists, for example 28 in February",
    ))
}
