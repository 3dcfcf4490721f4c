//! The EventBridge expressions of a schedule.
//!
//! The only place that writes EventBridge's cron. It must never change what a schedule means to make
//! an expression fit; it refuses instead.

use super::{
    cron::{Cron, Field, WEEKDAYS},
    eventbridge::EXPRESSION_CHARS_MAX,
    set::Set,
};
use crate::fault::Fault;

/// One expression, or two where both day fields are restricted: EventBridge has no "or" of its own.
///
/// A part that can never fire is left out.
pub(super) fn expressions(cron: &Cron) -> Result<Vec<String>, Fault> {
    let mut expressions = Vec::with_capacity(2);
    if cron.any_weekday() || (cron.either_day() && cron.day_of_month_fires()) {
        let days = field_text(Field::DayOfMonth, cron.days);
        expressions.push(expression(cron, &days, "?"));
    }
    if !cron.any_weekday() {
        let weekdays = field_text(Field::DayOfWeek, cron.weekdays);
        expressions.push(expression(cron, "?", &weekdays));
    }
    match expressions
        .iter()
        .find(|expression| expression.len() > EXPRESSION_CHARS_MAX)
    {
        None => Ok(expressions),
        Some(long) => Err(Fault::new(
            "expression",
            "expression_too_long",
            format!(
                "as an EventBridge expression this has {} characters",
                long.len()
            ),
            format!(
                "use ranges and shorter lists: EventBridge takes {EXPRESSION_CHARS_MAX} characters"
            ),
        )),
    }
}

fn expression(cron: &Cron, days: &str, weekdays: &str) -> String {
    format!(
        "cron({} {} {days} {} {weekdays} *)",
        field_text(Field::Minute, cron.minutes),
        field_text(Field::Hour, cron.hours),
        field_text(Field::Month, cron.months),
    )
}

/// The shortest of the forms that EventBridge documents without doubt: `*`, `a-b`, `a/n` that runs
/// to the field's end, a plain list. Days of the week are names, because EventBridge counts from 1
/// where Unix counts from 0, and take no `/`.
fn field_text(field: Field, set: Set) -> String {
    if set == field.all() {
        return String::from("*");
    }
    if let (Some(first), Some(last), Some(stride)) = (set.first(), set.last(), set.stride()) {
        if stride == 1 {
            return format!("{}-{}", value_text(field, first), value_text(field, last));
        }
        if field != Field::DayOfWeek && last + stride > field.max() {
            return format!("{first}/{stride}");
        }
    }
    let values: Vec<String> = set.iter().map(|value| value_text(field, value)).collect();
    values.join(",")
}

fn value_text(field: Field, value: u32) -> String {
    match field {
        Field::DayOfWeek => WEEKDAYS
            .iter()
            .zip(0..)
            .find(|(_, index)| *index == value)
            .map_or_else(|| value.to_string(), |(name, _)| (*name).to_owned()),
        Field::Minute | Field::Hour | Field::DayOfMonth | Field::Month => value.to_string(),
    }
}
