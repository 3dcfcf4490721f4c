//! From JSON to a checked prompt, collecting every fault on the way.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{
    CATCHUP_WINDOW_S, CATCHUP_WINDOW_S_MAX, CONTEXT_BYTES_MAX, DESCRIPTION_CHARS_MAX,
    METADATA_BYTES_MAX, Misfire, NAME_CHARS_MAX, OVERLAP_RUNS, OVERLAP_RUNS_MAX, Overlap,
    PAUSE_AFTER_FAILURES, PAUSE_AFTER_FAILURES_MAX, PromptSpec, RETRIES, RETRIES_MAX,
    RETRY_DELAY_MS, RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN, RUNS_MAX, Rules, TAG_CHARS_MAX,
    TAGS_MAX, TEXT_BYTES_MAX, TIMEOUT_MS, TIMEOUT_MS_MAX, TIMEOUT_MS_MIN,
};
use crate::{
    destination::{Destination, EmailAddress},
    exclusion::Exclusions,
    fault::Fault,
    fields::Fields,
    jitter::JITTER_MINUTES_MAX,
    model::{ModelName, ModelSettings, Provider},
    schedule::{self, Schedule, ScheduleType},
    template::Template,
};

/// Reads a prompt. `rules` is `None` for a stored one; `before` is the prompt that a patch changed.
pub(super) fn prompt(
    value: &Value,
    rules: Option<&Rules<'_>>,
    before: Option<&PromptSpec>,
) -> Result<PromptSpec, Vec<Fault>> {
    let mut fields = Fields::new(value);
    let context = fields.optional("context").object(CONTEXT_BYTES_MAX);
    let prompt_text = fields
        .required("prompt_text")
        .text_bytes(1..=TEXT_BYTES_MAX);
    let system_text = fields
        .optional("system_text")
        .text_bytes(1..=TEXT_BYTES_MAX);
    let schedule = schedule(&mut fields, rules, before);
    let exclusions = exclusions(&mut fields, rules, before);
    if let (Some(schedule), Some(exclusions), Some(rules)) = (&schedule, &exclusions, rules) {
        check_some_slot_is_left(&mut fields, schedule, exclusions, rules, before);
    }
    let jitter_minutes = jitter_minutes(&mut fields, schedule.as_ref());
    let model = model(&mut fields, rules);
    let model_settings = settings(&mut fields, model.as_ref(), rules);
    let notification_email = fields
        .optional("notification_email")
        .parse_text(EmailAddress::parse);
    let destinations = destinations(&mut fields, rules, notification_email.as_ref());
    let tags = tags(&mut fields);
    if rules.is_some() {
        check_template(&mut fields, "prompt_text", prompt_text, context);
        check_template(&mut fields, "system_text", system_text, context);
        check_subjects(&mut fields, &destinations, context);
    }
    let prompt_name = fields.required("prompt_name").line(1..=NAME_CHARS_MAX);
    let description = fields
        .optional("description")
        .text(0..=DESCRIPTION_CHARS_MAX);
    let external_id = fields.optional("external_id").line(1..=NAME_CHARS_MAX);
    let metadata = fields.optional("metadata").object(METADATA_BYTES_MAX);
    let overlap = fields
        .optional("overlap")
        .word(&Overlap::ALL, Overlap::as_str);
    let misfire = fields
        .optional("misfire")
        .word(&Misfire::ALL, Misfire::as_str);
    let max_runs = fields.optional("max_runs").integer(1..=RUNS_MAX);
    let mut number = |name, range, default| fields.optional(name).integer(range).unwrap_or(default);
    let overlap_runs_max = number("overlap_runs_max", 1..=OVERLAP_RUNS_MAX, OVERLAP_RUNS);
    let delays = RETRY_DELAY_MS_MIN..=RETRY_DELAY_MS_MAX;
    let failures = 0..=PAUSE_AFTER_FAILURES_MAX;
    let catchup_window_s = number(
        "catchup_window_s",
        0..=CATCHUP_WINDOW_S_MAX,
        CATCHUP_WINDOW_S,
    );
    let max_retries = number("max_retries", 0..=RETRIES_MAX, RETRIES);
    let retry_delay_ms = number("retry_delay_ms", delays, RETRY_DELAY_MS);
    let timeout_ms = number("timeout_ms", TIMEOUT_MS_MIN..=TIMEOUT_MS_MAX, TIMEOUT_MS);
    let pause_after_failures = number("pause_after_failures", failures, PAUSE_AFTER_FAILURES);
    let spec = || {
        Some(PromptSpec {
            prompt_name: prompt_name?.to_owned(),
            description: description.map(str::to_owned),
            prompt_text: prompt_text?.to_owned(),
            system_text: system_text.map(str::to_owned),
            model: model?,
            model_settings,
            context: context.cloned().unwrap_or_default(),
            schedule: schedule?,
            exclusions: exclusions?,
            jitter_minutes,
            overlap: overlap.unwrap_or_default(),
            overlap_runs_max,
            catchup_window_s,
            misfire: misfire.unwrap_or_default(),
            max_runs,
            max_retries,
            retry_delay_ms,
            timeout_ms,
            pause_after_failures,
            destinations,
            notification_email,
            external_id: external_id.map(str::to_owned),
            tags,
            metadata: metadata.cloned().unwrap_or_default(),
        })
    };
    fields.finish(spec())
}

fn schedule(
    fields: &mut Fields<'_>,
    rules: Option<&Rules<'_>>,
    before: Option<&PromptSpec>,
) -> Option<Schedule> {
    fields
        .required_such_as("schedule", r#"{"type": "daily", "at": "08:00"}"#)
        .parse(|value| {
            let Some(rules) = rules else {
                return Schedule::from_stored(value);
            };
            let zoned = schedule::with_timezone(value, rules.default_timezone);
            match (before, Schedule::from_stored(&zoned)) {
                (Some(before), Ok(schedule)) if schedule == before.schedule => Ok(schedule),
                _ => due(value, rules),
            }
        })
}

/// When a prompt of this tenant may be due.
pub(super) fn due(value: &Value, rules: &Rules<'_>) -> Result<Schedule, Vec<Fault>> {
    let zoned = schedule::with_timezone(value, rules.default_timezone);
    let schedule = Schedule::parse(&zoned, rules.now)?;
    match schedule.shortest_gap_minutes() {
        Some(gap) if gap < rules.interval_minutes_min => Err(vec![Fault::new(
            "",
            "below_minimum_interval",
            format!("two slots lie {gap} min apart"),
            format!(
                "leave at least {} min between slots",
                rules.interval_minutes_min
            ),
        )]),
        Some(_) | None => Ok(schedule),
    }
}

/// `None` where a fault was told.
fn exclusions(
    fields: &mut Fields<'_>,
    rules: Option<&Rules<'_>>,
    before: Option<&PromptSpec>,
) -> Option<Exclusions> {
    let faults_before = fields.faults();
    let read = fields.optional("exclusions").parse(|value| {
        let exclusions = Exclusions::parse(value)?;
        let untouched = before.is_some_and(|before| before.exclusions == exclusions);
        let unknown = match rules {
            Some(rules) if !untouched => rules.holidays.check(&exclusions),
            Some(_) | None => Vec::new(),
        };
        if unknown.is_empty() {
            Ok(exclusions)
        } else {
            Err(unknown)
        }
    });
    let sound = fields.faults() == faults_before;
    sound.then(|| read.unwrap_or_default())
}

/// Refuses exclusions that take every slot. What a patch leaves as it is may have run out.
fn check_some_slot_is_left(
    fields: &mut Fields<'_>,
    schedule: &Schedule,
    exclusions: &Exclusions,
    rules: &Rules<'_>,
    before: Option<&PromptSpec>,
) {
    let untouched = before
        .is_some_and(|before| before.schedule == *schedule && before.exclusions == *exclusions);
    let next = |after| schedule.next(after);
    let (holidays, timezone) = (rules.holidays, schedule.timezone());
    if untouched
        || next(rules.now).is_none()
        || exclusions
            .first_slot(rules.now, timezone, holidays, next)
            .is_some()
    {
        return;
    }
    let lists = exclusions.lists_that_take(rules.now, timezone, holidays, next);
    let place = match lists.as_slice() {
        [list] => format!("exclusions.{list}"),
        _ => String::from("exclusions"),
    };
    let detail = match (schedule.kind(), schedule.end_at()) {
        (ScheduleType::Once, _) => "the only slot is excluded",
        (_, Some(_)) => "every slot up to end_at is excluded",
        (_, None) => "every slot is excluded",
    };
    let hint = "leave a day on which the schedule is due, or change the schedule";
    fields.refuse(Fault::new(place, "every_slot_excluded", detail, hint));
}

/// A spread as long as the distance between two slots would wake the first after the second.
fn jitter_minutes(fields: &mut Fields<'_>, schedule: Option<&Schedule>) -> u32 {
    for name in ["jitter", "jitter_seconds", "jitter_s", "jitter_ms"] {
        let hint = "send jitter_minutes, a whole number of minutes";
        let detail = "jitter is given in minutes";
        fields.refuse_field(name, "sub_minute", detail, hint);
    }
    let minutes = fields
        .optional("jitter_minutes")
        .integer(0..=JITTER_MINUTES_MAX)
        .unwrap_or(0);
    let Some(schedule) = schedule.filter(|_| minutes > 0) else {
        return minutes;
    };
    if schedule.kind() == ScheduleType::Manual {
        fields.refuse(Fault::new(
            "jitter_minutes",
            "no_slots",
            "a manual prompt has no slots to spread",
            "leave jitter_minutes out",
        ));
    }
    if let Some(gap) = schedule
        .shortest_gap_minutes()
        .filter(|gap| minutes >= *gap)
    {
        fields.refuse(Fault::new(
            "jitter_minutes",
            "jitter_too_long",
            format!("two slots lie {gap} min apart"),
            format!("send at most {}", gap - 1),
        ));
    }
    minutes
}

fn model(fields: &mut Fields<'_>, rules: Option<&Rules<'_>>) -> Option<ModelName> {
    fields
        .required_such_as("model", "openai/gpt-5-mini")
        .parse_text(|text| {
            let model = ModelName::parse(text)?;
            let Some(rules) = rules else { return Ok(model) };
            rules.catalog.check(&model)?;
            if model.provider() == Provider::Echo && !rules.allow_echo {
                return Err(Fault::new(
                    "",
                    "provider_not_allowed",
                    "the offline provider is switched off here",
                    "name a model of another provider",
                ));
            }
            Ok(model)
        })
}

fn settings(
    fields: &mut Fields<'_>,
    model: Option<&ModelName>,
    rules: Option<&Rules<'_>>,
) -> ModelSettings {
    let read = fields.optional("model_settings").parse(|value| {
        let settings = ModelSettings::parse(value)?;
        let refused = match (model, rules) {
            (Some(model), Some(rules)) => rules.catalog.settings_faults(model, &settings),
            (None, _) | (_, None) => Vec::new(),
        };
        if refused.is_empty() {
            Ok(settings)
        } else {
            Err(refused)
        }
    });
    read.unwrap_or_default()
}

/// The destinations given, or the default: an email to the best address there is.
fn destinations(
    fields: &mut Fields<'_>,
    rules: Option<&Rules<'_>>,
    notification_email: Option<&EmailAddress>,
) -> Vec<Destination> {
    let mut absent = true;
    let read = fields.optional("destinations").parse(|value| {
        absent = false;
        match rules {
            Some(rules) => Destination::parse_all(value, rules.outbound),
            None => stored_destinations(value),
        }
    });
    match (read, rules) {
        (Some(destinations), _) => destinations,
        (None, Some(rules)) if absent => {
            let email = notification_email
                .map(EmailAddress::as_str)
                .or(rules.owner_email);
            email
                .and_then(|email| email_to(email, rules))
                .unwrap_or_default()
        }
        (None, _) => Vec::new(),
    }
}

/// An owner whose address is none gets no email.
fn email_to(address: &str, rules: &Rules<'_>) -> Option<Vec<Destination>> {
    let list = json!([{ "kind": "email", "to": [address] }]);
    Destination::parse_all(&list, rules.outbound).ok()
}

fn stored_destinations(value: &Value) -> Result<Vec<Destination>, Vec<Fault>> {
    serde_json::from_value(value.clone()).map_err(|error| {
        let hint = "restore the row from a backup";
        vec![Fault::new(
            "",
            "malformed_destinations",
            error.to_string(),
            hint,
        )]
    })
}

fn tags(fields: &mut Fields<'_>) -> Vec<String> {
    let read = fields
        .optional("tags")
        .list(0..=TAGS_MAX, |tag| tag.line(1..=TAG_CHARS_MAX));
    let tags: Vec<String> = read
        .unwrap_or_default()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut seen = HashSet::new();
    for (index, tag) in tags.iter().enumerate() {
        if !seen.insert(tag) {
            let place = format!("tags[{index}]");
            let detail = "the tag is there already";
            fields.refuse(Fault::new(place, "duplicate", detail, "name each tag once"));
        }
    }
    tags
}

fn check_subjects(
    fields: &mut Fields<'_>,
    destinations: &[Destination],
    context: Option<&Map<String, Value>>,
) {
    for (index, destination) in destinations.iter().enumerate() {
        if let Destination::Email(email) = destination {
            let place = format!("destinations[{index}].subject");
            check_template(fields, &place, email.subject(), context);
        }
    }
}

/// Reports what is wrong with a template, if there is one.
fn check_template(
    fields: &mut Fields<'_>,
    place: &str,
    text: Option<&str>,
    context: Option<&Map<String, Value>>,
) {
    let Some(text) = text else { return };
    let empty = Map::new();
    let faults = match Template::parse(text) {
        Ok(template) => template.unknown_in(context.unwrap_or(&empty)),
        Err(faults) => faults,
    };
    faults
        .into_iter()
        .for_each(|fault| fields.refuse(fault.under(place)));
}
