//! What a tenant may say about a prompt: one definition for the request, the row and the response.
//!
//! Pure: it never reads a clock, a table or the network; [`Rules`] brings in what the answer depends
//! on. A [`PromptSpec`] exists only if every field was checked, and nothing outside this module can
//! change one.

mod merge;
mod parse;
mod schema;
mod timing;

use std::fmt;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    destination::{Destination, EmailAddress},
    exclusion::{Exclusions, Holidays},
    fault::{Fault, Warning},
    model::{ModelName, ModelSettings},
    outbound,
    price::Catalog,
    schedule::{Form, Schedule, ScheduleType, eventbridge},
    template::TEXT_BYTES_MAX,
};

pub use self::{
    schema::{PromptBody, PromptPatch},
    timing::Timing,
};

/// The longest name of a prompt, and the longest external id, in characters.
pub const NAME_CHARS_MAX: usize = 200;
/// The longest description, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 2_000;
/// The largest context, in bytes of JSON.
pub const CONTEXT_BYTES_MAX: usize = 32 * 1024;
/// The largest metadata, in bytes of JSON.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// The most tags.
pub const TAGS_MAX: usize = 20;
/// The longest tag, in characters.
pub const TAG_CHARS_MAX: usize = 50;
/// The most runs that a prompt may be limited to.
pub const RUNS_MAX: u32 = 1_000_000;
/// The most runs of one prompt that may be open at once.
pub const OVERLAP_RUNS_MAX: u32 = 20;
/// A week: the longest time that a missed slot stays worth running.
pub const CATCHUP_WINDOW_S_MAX: u32 = 604_800;
/// The most retries of one run.
pub const RETRIES_MAX: u32 = 10;
/// The shortest pause before a retry.
pub const RETRY_DELAY_MS_MIN: u32 = 1_000;
/// The longest pause before a retry.
pub const RETRY_DELAY_MS_MAX: u32 = 3_600_000;
/// The shortest time that a model call may be given.
pub const TIMEOUT_MS_MIN: u32 = 1_000;
/// The longest: 14 minutes, so that a Lambda of 15 can still record the result.
pub const TIMEOUT_MS_MAX: u32 = 840_000;
/// The most failures in a row that may be allowed before a prompt pauses.
pub const PAUSE_AFTER_FAILURES_MAX: u32 = 1_000;

const OVERLAP_RUNS: u32 = 3;
const CATCHUP_WINDOW_S: u32 = 900;
const RETRIES: u32 = 3;
const RETRY_DELAY_MS: u32 = 60_000;
const TIMEOUT_MS: u32 = 300_000;
const PAUSE_AFTER_FAILURES: u32 = 10;

/// What a slot does that comes due while a run of the same prompt is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(default = "skip")]
pub enum Overlap {
    /// It is skipped, and recorded as skipped.
    #[default]
    Skip,
    /// It waits, in the place of the one that waits already.
    BufferOne,
    /// It runs at the same time, up to `overlap_runs_max`.
    AllowAll,
}

/// What becomes of slots that were missed and are still within `catchup_window_s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(default = "run_latest")]
pub enum Misfire {
    /// None runs.
    Skip,
    /// The latest runs.
    #[default]
    RunLatest,
    /// Each runs, oldest first and at even distances, up to 100.
    RunAll,
}

/// What a request for a prompt is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// The instant of the request.
    pub now: DateTime<Utc>,
    /// Where webhooks may lead.
    pub outbound: &'a outbound::Policy,
    /// Which models there are.
    pub catalog: &'a Catalog,
    /// The shortest time between two slots that the tenant may ask for.
    pub interval_minutes_min: u32,
    /// The zone of a schedule that names none.
    pub default_timezone: Tz,
    /// Whether the offline provider may be used.
    pub allow_echo: bool,
    /// Where the output goes when neither destinations nor a notification email are given.
    pub owner_email: Option<&'a str>,
    /// The tenant's calendars, or at least those that the prompt names.
    pub holidays: &'a Holidays,
}

/// All that a tenant says about a prompt, checked.
#[derive(Clone, PartialEq, Serialize, ToSchema)]
pub struct PromptSpec {
    /// The name that people see.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
        example = "Morning brief"
    )]
    prompt_name: String,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2_000, pattern = "^[^\\u0000]*$")]
    description: Option<String>,
    /// The template of the prompt, at most 100,000 bytes. It may name `slot.date`, `slot.time`,
    /// `slot.weekday`, `slot.timezone`, `context.*`, `previous.output` and `run.id`.
    #[schema(
        min_length = 1,
        max_length = 100_000,
        pattern = "^[^\\u0000]*$",
        example = "Write a brief for {{ slot.weekday }}, {{ slot.date }}."
    )]
    prompt_text: String,
    /// The template of the instructions that stand before it, at most 100,000 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 100_000, pattern = "^[^\\u0000]*$")]
    system_text: Option<String>,
    /// The model that answers.
    model: ModelName,
    /// How the model is to answer.
    model_settings: ModelSettings,
    /// Values for the templates, as `context.*`; at most 32 KiB of JSON.
    #[schema(value_type = Object)]
    context: Map<String, Value>,
    /// When it is due. Without a zone, the tenant's default zone counts.
    #[serde(serialize_with = "form")]
    #[schema(value_type = Form)]
    schedule: Schedule,
    /// On which days it is not due.
    exclusions: Exclusions,
    /// The prompt is woken up to so many minutes after its slot, always by the same time; a run's
    /// slot is the slot itself. Less than the shortest time between two slots.
    #[schema(minimum = 0, maximum = 60, default = 0)]
    jitter_minutes: u32,
    // A description here would not fit beside the one of the inlined type.
    #[schema(inline)]
    overlap: Overlap,
    /// With overlap `allow_all`: how many of its runs may wait or be under way at once. A slot beyond
    /// it is skipped.
    #[schema(minimum = 1, maximum = 20, default = 3)]
    overlap_runs_max: u32,
    /// How long a missed slot stays worth running, in seconds from the end of its jitter.
    #[schema(minimum = 0, maximum = 604_800, default = 900)]
    catchup_window_s: u32,
    #[schema(inline)]
    misfire: Misfire,
    /// After so many runs the prompt is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    max_runs: Option<u32>,
    /// How often a failed run is tried again.
    #[schema(minimum = 0, maximum = 10, default = 3)]
    max_retries: u32,
    /// The pause before the first retry, in milliseconds; it grows from there.
    #[schema(minimum = 1_000, maximum = 3_600_000, default = 60_000)]
    retry_delay_ms: u32,
    /// What one model call may take, in milliseconds.
    #[schema(minimum = 1_000, maximum = 840_000, default = 300_000)]
    timeout_ms: u32,
    /// After so many failed runs in a row the prompt pauses; 0 for never.
    #[schema(minimum = 0, maximum = 1_000, default = 10)]
    pause_after_failures: u32,
    /// Where the output goes. Left out, it is an email to `notification_email`, else to the prompt's
    /// owner; an empty list means nowhere.
    #[schema(max_items = 5)]
    destinations: Vec<Destination>,
    /// Who is told of failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Email, max_length = 254)]
    notification_email: Option<EmailAddress>,
    /// The caller's own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    external_id: Option<String>,
    /// Words to find it by, each at most 50 characters on one line, each once.
    #[schema(max_items = 20, example = json!(["daily", "energy"]))]
    tags: Vec<String>,
    /// Whatever the caller wants to keep with it; at most 16 KiB of JSON.
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

impl Rules<'_> {
    /// Reads a schedule as one of a prompt that a caller sent.
    ///
    /// # Errors
    ///
    /// Every fault at once, with fields relative to the schedule object.
    pub fn schedule(&self, value: &Value) -> Result<Schedule, Vec<Fault>> {
        parse::due(value, self)
    }
}

impl PromptSpec {
    /// Reads a prompt that a caller sent.
    ///
    /// # Errors
    ///
    /// Every fault at once, its field a path from the body's root.
    pub fn parse(value: &Value, rules: &Rules<'_>) -> Result<Self, Vec<Fault>> {
        parse::prompt(value, Some(rules), None)
    }

    /// Reads a prompt that `to_json` made: no check that depends on time, prices, policy or tenant.
    ///
    /// # Errors
    ///
    /// Every fault at once; what fails here was not written by `to_json`.
    pub fn from_stored(value: &Value) -> Result<Self, Vec<Fault>> {
        parse::prompt(value, None, None)
    }

    /// What a caller sent in the place of this prompt. A schedule that is left as it is may have
    /// passed, and may be more frequent than the tenant's minimum of today; exclusions that are left
    /// as they are may name a calendar that is gone.
    ///
    /// # Errors
    ///
    /// Every fault at once.
    pub fn replace(&self, value: &Value, rules: &Rules<'_>) -> Result<Self, Vec<Fault>> {
        parse::prompt(value, Some(rules), Some(self))
    }

    /// This prompt with a merge patch applied (RFC 7396), checked as [`Self::replace`] does. A
    /// `dst_gap` that the patch does not name goes where the schedule's new type has none.
    ///
    /// # Errors
    ///
    /// Every fault of the result at once.
    pub fn merge_patch(&self, patch: &Value, rules: &Rules<'_>) -> Result<Self, Vec<Fault>> {
        if !patch.is_object() {
            let detail = "the patch is not an object";
            let hint = "send an object with the fields to change";
            return Err(vec![Fault::new("", "wrong_type", detail, hint)]);
        }
        let mut after = self.to_json();
        merge::apply(&mut after, patch);
        forget_gap(&mut after, patch);
        self.replace(&after, rules)
    }

    /// The prompt as stored and as the API returns it, every default spelled out.
    #[must_use]
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self)
            .expect("a prompt has text keys and finite numbers, which serde_json always takes")
    }

    /// Whether the two are due at different times, so that AWS has to be told.
    #[must_use]
    pub fn schedule_changed(&self, other: &Self) -> bool {
        self.schedule != other.schedule
            || self.exclusions != other.exclusions
            || self.jitter_minutes != other.jitter_minutes
    }

    /// The name that people see.
    #[must_use]
    pub fn prompt_name(&self) -> &str {
        &self.prompt_name
    }

    /// What it is for.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The template of the prompt.
    #[must_use]
    pub fn prompt_text(&self) -> &str {
        &self.prompt_text
    }

    /// The template of the system text.
    #[must_use]
    pub fn system_text(&self) -> Option<&str> {
        self.system_text.as_deref()
    }

    /// The model that answers.
    #[must_use]
    pub fn model(&self) -> &ModelName {
        &self.model
    }

    /// How it is to answer.
    #[must_use]
    pub fn model_settings(&self) -> &ModelSettings {
        &self.model_settings
    }

    /// The values for the templates.
    #[must_use]
    pub fn context(&self) -> &Map<String, Value> {
        &self.context
    }

    /// When it is due.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// On which days it is not due.
    #[must_use]
    pub fn exclusions(&self) -> &Exclusions {
        &self.exclusions
    }

    /// Over how many minutes its wake-ups are spread; [`crate::jitter::delay`] has its share.
    #[must_use]
    pub fn jitter_minutes(&self) -> u32 {
        self.jitter_minutes
    }

    /// What EventBridge Scheduler is told: the schedule's entries, each with the jitter as its flexible
    /// window. They know of no exclusions.
    #[must_use]
    pub fn eventbridge(&self) -> Vec<eventbridge::Entry> {
        let window = Some(self.jitter_minutes).filter(|minutes| *minutes > 0);
        let mut entries = self.schedule.eventbridge();
        for entry in &mut entries {
            entry.flexible_window_minutes = window;
        }
        entries
    }

    /// The first slot after `after` that no exclusion takes. `None` as well where exclusions take
    /// more slots in a row than are looked at.
    #[must_use]
    pub fn next_slot(&self, after: DateTime<Utc>, holidays: &Holidays) -> Option<DateTime<Utc>> {
        let timezone = self.schedule.timezone();
        self.exclusions
            .first_slot(after, timezone, holidays, |after| self.schedule.next(after))
    }

    /// When it is due in plain English: its schedule, what is excluded, and how it is spread.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = self.schedule.describe();
        if self.schedule.kind() == ScheduleType::Manual {
            return text;
        }
        if let Some(excluded) = self.exclusions.describe() {
            text.push_str(&format!(", except {excluded}"));
        }
        if self.jitter_minutes > 0 {
            let plural = if self.jitter_minutes == 1 { "" } else { "s" };
            let minutes = self.jitter_minutes;
            text.push_str(&format!(", started up to {minutes} minute{plural} later"));
        }
        text
    }

    /// What its author may not expect, as [`Schedule::warnings`] has it, but for excluded dates; and
    /// calendars that say nothing about the days from `now` on.
    #[must_use]
    pub fn warnings(&self, now: DateTime<Utc>, holidays: &Holidays) -> Vec<Warning> {
        let excluded = |date| self.exclusions.why(date, holidays).is_some();
        let mut warnings = self.schedule.warnings_but(now, &excluded);
        let today = now.with_timezone(&self.schedule.timezone()).date_naive();
        let ended = self.exclusions.calendars().iter();
        let ended = ended.filter(|name| holidays.last(name).is_some_and(|last| last < today));
        warnings.extend(ended.map(|name| Warning {
            code: "calendar_ended",
            detail: format!(
                "the last holiday of the calendar {name} has passed: it excludes nothing any more"
            ),
        }));
        warnings
    }

    /// Whether an exclusion takes this instant: a slot that was reckoned before its calendar changed.
    #[must_use]
    pub fn excludes(&self, slot: DateTime<Utc>, holidays: &Holidays) -> bool {
        let date = slot.with_timezone(&self.schedule.timezone()).date_naive();
        self.exclusions.why(date, holidays).is_some()
    }

    /// What a slot does that comes due while a run is going on.
    #[must_use]
    pub fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// With `allow_all`: how many of its runs may be open at once.
    #[must_use]
    pub fn overlap_runs_max(&self) -> u32 {
        self.overlap_runs_max
    }

    /// How long a missed slot stays worth running.
    #[must_use]
    pub fn catchup_window_s(&self) -> u32 {
        self.catchup_window_s
    }

    /// What becomes of missed slots.
    #[must_use]
    pub fn misfire(&self) -> Misfire {
        self.misfire
    }

    /// After so many runs the prompt is completed.
    #[must_use]
    pub fn max_runs(&self) -> Option<u32> {
        self.max_runs
    }

    /// How often a failed run is tried again.
    #[must_use]
    pub fn max_retries(&self) -> u32 {
        self.max_retries
    }

    /// The pause before the first retry.
    #[must_use]
    pub fn retry_delay_ms(&self) -> u32 {
        self.retry_delay_ms
    }

    /// What one model call may take.
    #[must_use]
    pub fn timeout_ms(&self) -> u32 {
        self.timeout_ms
    }

    /// After so many failed runs in a row the prompt pauses; 0 for never.
    #[must_use]
    pub fn pause_after_failures(&self) -> u32 {
        self.pause_after_failures
    }

    /// Where the output goes; may be empty.
    #[must_use]
    pub fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    /// Who is told of failures.
    #[must_use]
    pub fn notification_email(&self) -> Option<&EmailAddress> {
        self.notification_email.as_ref()
    }

    /// The caller's own id.
    #[must_use]
    pub fn external_id(&self) -> Option<&str> {
        self.external_id.as_deref()
    }

    /// Words to find it by, each once.
    #[must_use]
    pub fn tags(&self) -> &[String] {
        &self.tags
    }

    /// Whatever the caller keeps with it.
    #[must_use]
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }
}

/// A prompt is its tenant's: no part of its text may reach a log.
impl fmt::Debug for PromptSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("PromptSpec");
        shown.field("model", &self.model).finish_non_exhaustive()
    }
}

impl Overlap {
    /// Every choice, the default first.
    pub const ALL: [Self; 3] = [Self::Skip, Self::BufferOne, Self::AllowAll];

    /// The text in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::BufferOne => "buffer_one",
            Self::AllowAll => "allow_all",
        }
    }
}

impl Misfire {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Skip, Self::RunLatest, Self::RunAll];

    /// The text in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::RunLatest => "run_latest",
            Self::RunAll => "run_all",
        }
    }
}

/// Nobody has to take away what nobody wrote: `dst_gap` is stored even where it was left out.
fn forget_gap(after: &mut Value, patch: &Value) {
    let kind = after.pointer("/schedule/type").and_then(Value::as_str);
    let off_the_wall = ScheduleType::ALL
        .iter()
        .any(|known| Some(known.as_str()) == kind && !known.is_on_the_wall_clock());
    if off_the_wall && patch.pointer("/schedule/dst_gap").is_none() {
        let schedule = after.get_mut("schedule").and_then(Value::as_object_mut);
        schedule.map(|schedule| schedule.remove("dst_gap"));
    }
}

fn form<S: Serializer>(schedule: &Schedule, serializer: S) -> Result<S::Ok, S::Error> {
    schedule.form().serialize(serializer)
}

#[cfg(test)]
mod tests;
