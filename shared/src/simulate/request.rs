//! What a caller wants simulated: the part of a prompt that says when it runs, and a range of time.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{COUNT_MAX, Past, RANGE_DAYS_MAX, RUN_S_MAX, TOKENS_MAX};
use crate::{
    fault::Fault,
    fields::Fields,
    ids::PromptId,
    prompt::{PromptSpec, Rules},
};

/// Slots that are shown where neither an end nor a count is given.
const COUNT: usize = 5;

/// The fields of a prompt that say when it runs and what a run costs.
pub(super) const OF_A_PROMPT: [&str; 9] = [
    "schedule",
    "exclusions",
    "jitter_minutes",
    "overlap",
    "overlap_runs_max",
    "misfire",
    "catchup_window_s",
    "max_runs",
    "model",
];

/// What stands for the rest of the prompt.
const STAND_IN: &str = "preview";

/// A simulation that was asked for, checked.
#[derive(Debug)]
pub struct Request {
    /// The prompt that it would be; what a preview does not take is a stand-in.
    pub(super) spec: PromptSpec,
    /// Whether the caller named the model.
    pub(super) names_model: bool,
    pub(super) span: Span,
    /// How long a run takes, as the caller assumes.
    pub(super) run_s: Option<u32>,
    /// Nobody looks at due slots from the first of these to the second.
    pub(super) downtime: Option<Downtime>,
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    pub(super) prompt_id: Option<PromptId>,
    pub(super) past: Option<Past>,
}

/// The range of a simulation: slots after the one and up to the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// As the caller has it.
    pub(super) from: DateTime<Utc>,
    pub(super) after: DateTime<Utc>,
    pub(super) until: Option<DateTime<Utc>>,
    /// It ends with this many slots, if it does not end before.
    pub(super) count: Option<usize>,
}

/// A time in which nothing works.
#[derive(Debug, Clone, Copy)]
pub(super) struct Downtime {
    pub(super) from: DateTime<Utc>,
    pub(super) until: DateTime<Utc>,
}

impl Request {
    /// Reads a request. What would be refused of the prompt itself is refused here in the same words.
    /// `past` is what is known of the prompt that [`Request::prompt_id`] finds.
    ///
    /// # Errors
    ///
    /// Every fault at once, its field a path from the body's root.
    pub fn parse(value: &Value, rules: &Rules<'_>, past: Option<Past>) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(value);
        if !value.is_object() {
            return fields.finish(None);
        }
        let (spec, names_model) = spec(&mut fields, rules);
        check_prompt(&mut fields, past.as_ref());
        check_max_runs(&mut fields, spec.as_ref(), past.as_ref());
        let span = span(&mut fields, rules.now);
        let run_s = fields.optional("assumed_run_s").integer(1..=RUN_S_MAX);
        let downtime = fields
            .optional("assumed_downtime")
            .parse(|value| downtime(value, span.from));
        let tokens = 0..=TOKENS_MAX;
        let input_tokens = fields
            .optional("assumed_input_tokens")
            .integer(tokens.clone());
        let output_tokens = fields.optional("assumed_output_tokens").integer(tokens);
        fields.finish(spec.map(|spec| Self {
            spec,
            names_model,
            span,
            run_s,
            downtime,
            input_tokens,
            output_tokens,
            prompt_id: Self::prompt_id(value),
            past,
        }))
    }

    /// The prompt whose past runs are to say what a run takes and costs, if the body names one.
    #[must_use]
    pub fn prompt_id(value: &Value) -> Option<PromptId> {
        value.get("prompt_id")?.as_str()?.parse().ok()
    }
}

/// Reads what is given of a prompt as the prompt that it would be.
fn spec(fields: &mut Fields<'_>, rules: &Rules<'_>) -> (Option<PromptSpec>, bool) {
    let mut prompt = json!({
        "prompt_name": STAND_IN,
        "prompt_text": STAND_IN,
        "model": format!("echo/{STAND_IN}"),
        "destinations": [],
    });
    let mut names_model = false;
    for name in OF_A_PROMPT {
        fields.optional(name).parse(|given| {
            names_model |= name == "model";
            prompt[name] = given.clone();
            Ok(())
        });
    }
    let rules = Rules {
        allow_echo: rules.allow_echo || !names_model,
        ..*rules
    };
    match PromptSpec::parse(&prompt, &rules) {
        Ok(spec) => (Some(spec), names_model),
        Err(faults) => {
            faults.into_iter().for_each(|fault| fields.refuse(fault));
            (None, names_model)
        }
    }
}

fn check_prompt(fields: &mut Fields<'_>, past: Option<&Past>) {
    fields.optional("prompt_id").parse_text(|text| {
        if text.parse::<PromptId>().is_err() {
            let hint = "send for example 018f4e3a-7b1c-7c9d-8e2f-0a1b2c3d4e5f";
            return Err(Fault::new("", "invalid_id", "not a UUID", hint));
        }
        match past {
            Some(_) => Ok(()),
            None => Err(Fault::new(
                "",
                "unknown_prompt",
                "there is no such prompt",
                "check its id, or name a model instead",
            )),
        }
    });
}

/// As an edit of the prompt would be judged.
fn check_max_runs(fields: &mut Fields<'_>, spec: Option<&PromptSpec>, past: Option<&Past>) {
    let had = past.map_or(0, |past| past.run_count);
    let max_runs = spec.and_then(PromptSpec::max_runs);
    if max_runs.is_some_and(|max| u64::from(max) <= had) {
        fields.refuse(Fault::new(
            "max_runs",
            "max_runs_reached",
            format!("the prompt has had {had} runs already"),
            format!("send more than {had}, or null"),
        ));
    }
}

fn span(fields: &mut Fields<'_>, now: DateTime<Utc>) -> Span {
    let from = fields.optional("from").instant();
    let after = fields.optional("after").instant();
    let until = fields.optional("until").instant();
    let count = fields.optional("count").integer(1..=COUNT_MAX);
    let from = match (from, after) {
        // The instant before it leaves it in.
        (Some(from), None) => (from, from - TimeDelta::nanoseconds(1)),
        (Some(from), Some(after)) if from > after => (from, from - TimeDelta::nanoseconds(1)),
        (_, Some(after)) => (after, after),
        (None, None) => (now, now),
    };
    let (from, after) = from;
    if let Some(until) = until {
        check_range(fields, from, until);
    }
    let count = match until {
        Some(_) => count,
        None => Some(count.unwrap_or(COUNT)),
    };
    Span {
        from,
        after,
        until,
        count,
    }
}

fn check_range(fields: &mut Fields<'_>, from: DateTime<Utc>, until: DateTime<Utc>) {
    let length = until - from;
    if length <= TimeDelta::zero() {
        fields.refuse(Fault::new(
            "until",
            "end_before_start",
            "the range ends before it begins",
            format!("send an instant after {}", from.format("%FT%TZ")),
        ));
    } else if length > TimeDelta::days(RANGE_DAYS_MAX) {
        fields.refuse(Fault::new(
            "until",
            "range_too_long",
            format!("the range has {} days", length.num_days()),
            format!("look at {RANGE_DAYS_MAX} days at most"),
        ));
    }
}

/// Its end is the range's end, if that is sooner: hence the same bound.
fn downtime(value: &Value, range_from: DateTime<Utc>) -> Result<Downtime, Vec<Fault>> {
    let mut fields = Fields::new(value);
    let from = fields.required("from").instant();
    let until = fields.required("until").instant();
    let both = from.zip(until);
    if let Some((from, until)) = both {
        check_range(&mut fields, from.min(range_from), until);
    }
    fields.finish(both.map(|(from, until)| Downtime { from, until }))
}
