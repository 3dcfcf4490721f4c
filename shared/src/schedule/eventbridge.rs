//! What EventBridge Scheduler is told, and what it takes.
//!
//! `check` follows the AWS page "Schedule types on EventBridge Scheduler". Where that page leaves a
//! form open, `check` refuses it: it guards what we send, and we send only what is documented.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

/// The longest expression that EventBridge Scheduler takes.
pub const EXPRESSION_CHARS_MAX: usize = 256;

/// One EventBridge Scheduler entry of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = EventBridgeEntry)]
pub struct Entry {
    /// `cron(…)`, `rate(…)` or `at(…)`.
    #[schema(example = "cron(0 9 ? * MON-FRI *)")]
    pub expression: String,
    /// The IANA zone in which the expression is read; a rate has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub timezone: Option<String>,
    /// No fire before. Half a minute before the schedule's start, so that a start on a slot
    /// includes it; for a rate, the first slot itself, because it sets the phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub start_date: Option<DateTime<Utc>>,
    /// No fire after: half a minute after the schedule's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub end_date: Option<DateTime<Utc>>,
    /// It fires within so many minutes of a slot, as the prompt's jitter has it; left out: within the
    /// slot's own minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 60)]
    pub flexible_window_minutes: Option<u32>,
}

/// Why EventBridge Scheduler would refuse an expression.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Refused(String);

/// Says whether EventBridge Scheduler takes `expression`, by its documented rules.
///
/// # Errors
///
/// The first rule that is broken, in words.
pub fn check(expression: &str) -> Result<(), Refused> {
    if expression.is_empty() || expression.len() > EXPRESSION_CHARS_MAX {
        return refuse(format!(
            "an expression has 1 to {EXPRESSION_CHARS_MAX} characters"
        ));
    }
    let Some((form, inner)) = expression
        .strip_suffix(')')
        .and_then(|text| text.split_once('('))
    else {
        return refuse("write cron(…), rate(…) or at(…)");
    };
    match form {
        "cron" => cron(inner),
        "rate" => rate(inner),
        "at" => at(inner),
        _ => refuse("write cron(…), rate(…) or at(…)"),
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(reason.into()))
}

/// What one of the six fields may hold.
struct Rule {
    name: &'static str,
    min: u32,
    max: u32,
    names: &'static [&'static str],
    steps: bool,
    any: bool,
    last: bool,
    nearest_weekday: bool,
    nth: bool,
}

const PLAIN: Rule = Rule {
    name: "",
    min: 0,
    max: 0,
    names: &[],
    steps: true,
    any: false,
    last: false,
    nearest_weekday: false,
    nth: false,
};

const RULES: [Rule; 6] = [
    Rule {
        name: "minutes",
        max: 59,
        ..PLAIN
    },
    Rule {
        name: "hours",
        max: 23,
        ..PLAIN
    },
    Rule {
        name: "day-of-month",
        min: 1,
        max: 31,
        any: true,
        last: true,
        nearest_weekday: true,
        ..PLAIN
    },
    Rule {
        name: "month",
        min: 1,
        max: 12,
        names: &[
            "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
        ],
        ..PLAIN
    },
    Rule {
        name: "day-of-week",
        min: 1,
        max: 7,
        names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        steps: false,
        any: true,
        last: true,
        nth: true,
        ..PLAIN
    },
    Rule {
        name: "year",
        min: 1970,
        max: 2199,
        ..PLAIN
    },
];

fn cron(inner: &str) -> Result<(), Refused> {
    let fields: Vec<&str> = inner.split(' ').collect();
    if fields.len() != RULES.len() {
        return refuse(format!("cron takes six fields, this has {}", fields.len()));
    }
    for (rule, text) in RULES.iter().zip(&fields) {
        if !rule.allows(text) {
            return refuse(format!("{}: {text:?} is not allowed", rule.name));
        }
    }
    match (fields[2], fields[4]) {
        ("?", "?") => refuse("day-of-month and day-of-week cannot both be ?"),
        ("?", _) | (_, "?") => Ok(()),
        _ => refuse("one of day-of-month and day-of-week must be ?"),
    }
}

impl Rule {
    fn allows(&self, text: &str) -> bool {
        text == "*" || (self.any && text == "?") || text.split(',').all(|item| self.item(item))
    }

    fn item(&self, item: &str) -> bool {
        if let Some((base, step)) = item.split_once('/') {
            let step = number(step).is_some_and(|step| (1..=self.max).contains(&step));
            return self.steps && step && (base == "*" || self.range(base));
        }
        self.range(item)
            || (self.last && item == "L")
            || (self.last && self.nth && item.strip_suffix('L').is_some_and(|day| self.one(day)))
            || (self.nearest_weekday
                && item
                    .strip_suffix('W')
                    .is_some_and(|day| day == "L" || self.one(day)))
            || (self.nth
                && item.split_once('#').is_some_and(|(day, nth)| {
                    self.one(day) && number(nth).is_some_and(|nth| (1..=5).contains(&nth))
                }))
    }

    fn range(&self, text: &str) -> bool {
        match text.split_once('-') {
            None => self.one(text),
            Some((first, last)) => matches!(
                (self.value(first), self.value(last)),
                (Some(first), Some(last)) if first <= last
            ),
        }
    }

    fn one(&self, text: &str) -> bool {
        self.value(text).is_some()
    }

    fn value(&self, text: &str) -> Option<u32> {
        let named = self
            .names
            .iter()
            .zip(self.min..)
            .find(|(name, _)| **name == text);
        match named {
            Some((_, value)) => Some(value),
            None => number(text).filter(|value| (self.min..=self.max).contains(value)),
        }
    }
}

/// Digits only: `parse` alone would take a plus sign.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

fn rate(inner: &str) -> Result<(), Refused> {
    let Some((value, unit)) = inner.split_once(' ') else {
        return refuse("write rate(value unit)");
    };
    if number(value).is_none_or(|value| value == 0) {
        return refuse("a rate's value is a positive whole number");
    }
    match unit {
        "minute" | "hour" | "day" => Ok(()),
        "minutes" | "hours" | "days" if number(value) != Some(1) => Ok(()),
        "minutes" | "hours" | "days" => refuse("the unit of a rate of 1 is singular"),
        _ => refuse("a rate's unit is minutes, hours or days"),
    }
}

fn at(inner: &str) -> Result<(), Refused> {
    const FORM: &str = "YYYY-MM-DDTHH:MM:SS";
    match NaiveDateTime::parse_from_str(inner, "%Y-%m-%dT%H:%M:%S") {
        Ok(_) if inner.len() == FORM.len() => Ok(()),
        Ok(_) | Err(_) => refuse(format!("write at({FORM}) without a zone")),
    }
}
