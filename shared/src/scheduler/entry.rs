//! The entries that a prompt's row asks for, checked against what EventBridge Scheduler takes.
//!
//! Pure. An [`Entry`] exists only if AWS's documented limits allow it (API reference,
//! "CreateSchedule", "Target", "RetryPolicy", "FlexibleTimeWindow"), so that none is sent to be
//! refused.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use thiserror::Error;

use crate::{
    db::{prompts::PromptStatus, sync::Followed},
    env::Reader,
    ids::PromptId,
    message,
    prompt::PromptSpec,
    queue,
    schedule::{
        Schedule, ScheduleType,
        eventbridge::{self, check},
    },
};

/// Entries of a prompt at the most: Unix cron's "or" of its day fields takes two.
pub(super) const ARMS_MAX: usize = 2;

/// The universal target for SQS: unlike the templated one it takes a message group for any queue.
pub(super) const TARGET_ARN: &str = "arn:aws:scheduler:::aws-sdk:sqs:sendMessage";

/// How often a wake-up is offered to a queue that does not take it. The sweeper finds the slot
/// within its minute, so a longer stubbornness would only wake in vain.
pub(super) const RETRIES: u16 = 10;
/// For how long.
pub(super) const RETRY_AGE_S: u32 = 900;

const NAME_CHARS_MAX: usize = 64;
const TIMEZONE_CHARS_MAX: usize = 50;
const ARN_CHARS_MAX: usize = 1600;
const INPUT_BYTES_MAX: usize = 256 * 1024;
const WINDOW_MINUTES_MAX: u32 = 1440;
const _: () = assert!(RETRIES <= 185 && RETRY_AGE_S >= 60 && RETRY_AGE_S <= 86_400);

/// Where entries stand, and what they wake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    group: String,
    queue_url: String,
    role_arn: String,
    dead_letter_arn: String,
}

impl Settings {
    /// Reads `CARILLON_SCHEDULE_GROUP`, `CARILLON_QUEUE_URL`, `CARILLON_SCHEDULER_ROLE_ARN` and
    /// `CARILLON_SCHEDULER_DLQ_ARN`; what is missing or bad is told to the reader.
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let group = reader.required("CARILLON_SCHEDULE_GROUP", group);
        let queue_url = reader.required("CARILLON_QUEUE_URL", queue::read_url);
        let role_arn = reader.required("CARILLON_SCHEDULER_ROLE_ARN", |text| arn(text, "iam"));
        let dead_letter_arn =
            reader.required("CARILLON_SCHEDULER_DLQ_ARN", |text| arn(text, "sqs"));
        Some(Self {
            group: group?,
            queue_url: queue_url?,
            role_arn: role_arn?,
            dead_letter_arn: dead_letter_arn?,
        })
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn queue_url(&self) -> &str {
        &self.queue_url
    }

    pub(super) fn role_arn(&self) -> &str {
        &self.role_arn
    }

    pub(super) fn dead_letter_arn(&self) -> &str {
        &self.dead_letter_arn
    }
}

fn group(text: &str) -> Result<String, String> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 letters, digits, -, _ or .".to_owned())
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_CHARS_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

fn arn(text: &str, service: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let is_arn = matches!(parts.as_slice(), ["arn", _, found, _, _, resource]
        if *found == service && !resource.is_empty());
    if is_arn && text.len() <= ARN_CHARS_MAX {
        Ok(text.to_owned())
    } else {
        Err(format!("must be an ARN of {service}"))
    }
}

/// The name of a prompt's entry: its id and the number of the arm.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryName(String);

impl EntryName {
    /// The name of the arm `arm`, from 1.
    #[must_use]
    pub fn of(prompt_id: PromptId, arm: usize) -> Self {
        Self(format!("{prompt_id}-{arm}"))
    }

    /// The names of all entries that a prompt may have.
    pub fn all(prompt_id: PromptId) -> impl Iterator<Item = Self> {
        (1..=ARMS_MAX).map(move |arm| Self::of(prompt_id, arm))
    }

    /// Whose entry this is, and which arm; `None` for a name that we never give.
    #[must_use]
    pub fn parse(text: &str) -> Option<(PromptId, usize)> {
        let (id, arm) = text.rsplit_once('-')?;
        let (id, arm) = (id.parse().ok()?, arm.parse().ok()?);
        // Ids and numbers can be written in more than one way; we write them in one.
        let ours = (1..=ARMS_MAX).contains(&arm) && Self::of(id, arm).as_str() == text;
        ours.then_some((id, arm))
    }

    /// As AWS has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One entry as it is to stand in EventBridge Scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub(super) name: EntryName,
    pub(super) expression: String,
    pub(super) timezone: Option<String>,
    pub(super) start: Option<DateTime<Utc>>,
    pub(super) end: Option<DateTime<Utc>>,
    /// For a rate, the time from slot to slot: its start may move by whole ones.
    pub(super) period: Option<TimeDelta>,
    pub(super) window_minutes: u32,
    pub(super) is_enabled: bool,
    /// AWS deletes it when it has fired.
    pub(super) is_once: bool,
    pub(super) input: String,
}

/// Why no entry can be made of a row: a defect of ours, since the row was checked when it was
/// written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Refused(String);

/// The entries that a row asks for now: none for a prompt that has ended, that was deleted, or whose
/// schedule has no slot left. They know of no exclusions: a wake-up on an excluded day finds nothing
/// due.
///
/// # Errors
/// When AWS would refuse one of them.
pub fn wanted(row: &Followed, settings: &Settings) -> Result<Vec<Entry>, Refused> {
    let is_enabled = match row.status {
        Some(PromptStatus::Active) => true,
        Some(PromptStatus::Paused) => false,
        Some(PromptStatus::Completed | PromptStatus::Failed | PromptStatus::Cancelled) | None => {
            return Ok(Vec::new());
        }
    };
    let spec = PromptSpec::from_stored(&row.spec).map_err(|faults| {
        let codes: Vec<_> = faults.iter().map(|fault| fault.code).collect();
        Refused(format!(
            "the stored prompt does not read: {}",
            codes.join(", ")
        ))
    })?;
    let schedule = spec.schedule();
    if schedule.next(row.now).is_none() {
        return Ok(Vec::new());
    }
    let arms = spec.eventbridge();
    if arms.len() > ARMS_MAX {
        return Err(Refused(format!("{} entries for one prompt", arms.len())));
    }
    arms.into_iter()
        .zip(1..)
        .map(|(arm, number)| {
            let is_rate = arm.expression.starts_with("rate(");
            Entry {
                name: EntryName::of(row.prompt_id, number),
                start: start(row, schedule, &arm, is_rate),
                period: is_rate.then(|| period(schedule)).flatten(),
                expression: arm.expression,
                timezone: arm.timezone,
                end: arm.end_date,
                window_minutes: arm.flexible_window_minutes.unwrap_or(0),
                is_enabled,
                is_once: schedule.kind() == ScheduleType::Once,
                input: input(row, settings),
            }
            .checked()
        })
        .collect()
}

/// A rate counts from its start, so that is the stored next slot, which keeps the phase. Any other
/// start matters only while it is to come, and AWS refuses one that is older than five minutes.
fn start(
    row: &Followed,
    schedule: &Schedule,
    arm: &eventbridge::Entry,
    is_rate: bool,
) -> Option<DateTime<Utc>> {
    let wanted = if is_rate {
        row.next_run_at
    } else {
        arm.start_date
    };
    let to_come = wanted.filter(|start| *start > row.now);
    if is_rate {
        to_come.or_else(|| schedule.next(row.now))
    } else {
        to_come
    }
}

fn period(schedule: &Schedule) -> Option<TimeDelta> {
    schedule
        .shortest_gap_minutes()
        .map(|minutes| TimeDelta::minutes(minutes.into()))
}

/// What the universal target calls SQS with. The tenant is the message group, so that a queue with
/// fair queues lets no tenant wait behind another's burst.
fn input(row: &Followed, settings: &Settings) -> String {
    json!({
        "QueueUrl": settings.queue_url(),
        "MessageBody": message::encode_entry(row.tenant_id, row.prompt_id, row.generation),
        "MessageGroupId": row.tenant_id,
    })
    .to_string()
}

impl Entry {
    fn checked(self) -> Result<Self, Refused> {
        check(&self.expression).map_err(|error| Refused(error.to_string()))?;
        let zone_chars = self.timezone.as_ref().map_or(0, String::len);
        let faults = [
            (
                !is_name(self.name.as_str()),
                "the name is not one that AWS takes",
            ),
            (
                zone_chars > TIMEZONE_CHARS_MAX,
                "the zone's name has more than 50 characters",
            ),
            (
                self.start
                    .zip(self.end)
                    .is_some_and(|(start, end)| start >= end),
                "the start is not before the end",
            ),
            (
                self.window_minutes > WINDOW_MINUTES_MAX,
                "the window is longer than a day",
            ),
            (
                self.input.len() > INPUT_BYTES_MAX,
                "the input is larger than 256 KB",
            ),
        ];
        match faults.into_iter().find(|(is_broken, _)| *is_broken) {
            Some((_, fault)) => Err(Refused(fault.to_owned())),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{env::Reader, ids::TenantId};

    const PROMPT: &str = "01931f5e-7c4f-7d3a-8b1e-2f6a9c0d4e5c";
    const TENANT: &str = "01931f5e-7c4f-7d3a-8b1e-2f6a9c0d4e5b";

    type Spoil = fn(&mut Entry);

    fn look_up(name: &str) -> Option<String> {
        let value = match name {
            "CARILLON_SCHEDULE_GROUP" => "carillon",
            "CARILLON_QUEUE_URL" => "https://sqs.eu-central-1.amazonaws.com/123456789012/q",
            "CARILLON_SCHEDULER_ROLE_ARN" => "arn:aws:iam::123456789012:role/scheduler",
            "CARILLON_SCHEDULER_DLQ_ARN" => "arn:aws:sqs:eu-central-1:123456789012:dead",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn settings() -> Settings {
        Settings::read(&mut Reader::new(&look_up)).unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn row(schedule: Value, jitter_minutes: u32) -> Followed {
        let spec = json!({
            "prompt_name": "p", "prompt_text": "t", "model": "echo/echo", "model_settings": {},
            "context": {}, "schedule": schedule, "jitter_minutes": jitter_minutes,
            "overlap": "skip", "catchup_window_s": 900, "misfire": "skip", "max_retries": 1,
            "retry_delay_ms": 1000, "timeout_ms": 1000, "pause_after_failures": 0,
            "destinations": [], "tags": [], "metadata": {},
        });
        let tenant_id: TenantId = TENANT.parse().unwrap();
        Followed {
            tenant_id,
            prompt_id: PROMPT.parse().unwrap(),
            generation: 7,
            status: Some(PromptStatus::Active),
            next_run_at: None,
            spec,
            now: at("2026-05-04T10:00:30Z"),
        }
    }

    fn daily() -> Value {
        json!({"type": "daily", "at": "09:00", "timezone": "Europe/London"})
    }

    #[test]
    fn a_name_is_the_prompts_and_no_other_text_is_a_name() {
        let id: PromptId = PROMPT.parse().unwrap();
        let names: Vec<_> = EntryName::all(id).collect();
        assert_eq!(names[0].as_str(), format!("{PROMPT}-1"));
        for (name, arm) in names.iter().zip(1..) {
            assert!(is_name(name.as_str()));
            assert_eq!(EntryName::parse(name.as_str()), Some((id, arm)));
        }
        for text in [
            PROMPT.to_owned(),
            format!("{PROMPT}-0"),
            format!("{PROMPT}-3"),
            format!("{PROMPT}-01"),
            format!("{PROMPT}-+1"),
            format!("{}-1", PROMPT.to_uppercase()),
            format!("{}-1", PROMPT.replace('-', "")),
            format!("{{{PROMPT}}}-1"),
            format!("x{PROMPT}-1"),
            "-1".to_owned(),
            String::new(),
        ] {
            assert_eq!(EntryName::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn an_ended_or_deleted_prompt_wants_nothing_and_a_paused_one_a_silent_entry() {
        for (status, expected) in [
            (Some(PromptStatus::Active), Some(true)),
            (Some(PromptStatus::Paused), Some(false)),
            (Some(PromptStatus::Completed), None),
            (Some(PromptStatus::Failed), None),
            (Some(PromptStatus::Cancelled), None),
            (None, None),
        ] {
            let row = Followed {
                status,
                ..row(daily(), 0)
            };
            let entries = wanted(&row, &settings()).unwrap();
            let enabled: Vec<_> = entries.iter().map(|entry| entry.is_enabled).collect();
            assert_eq!(enabled, Vec::from_iter(expected), "{status:?}");
        }
    }

    #[test]
    fn a_schedule_without_a_slot_to_come_wants_nothing() {
        for schedule in [
            json!({"type": "manual", "timezone": "UTC"}),
            json!({"type": "once", "at": "2026-05-04T10:00:00", "timezone": "UTC"}),
            json!({"type": "daily", "at": "09:00", "timezone": "UTC", "end_at": "2026-05-04T09:30:00Z"}),
        ] {
            let entries = wanted(&row(schedule.clone(), 0), &settings()).unwrap();
            assert_eq!(entries, [], "{schedule}");
        }
    }

    #[test]
    fn a_start_is_told_while_it_is_to_come() {
        let starts = |start: &str| {
            let schedule =
                json!({"type": "daily", "at": "09:00", "timezone": "UTC", "start_at": start});
            let entries = wanted(&row(schedule, 0), &settings()).unwrap();
            entries[0].start
        };
        assert_eq!(
            starts("2026-06-01T09:00:00Z"),
            Some(at("2026-06-01T08:59:30Z"))
        );
        // AWS refuses one that is older than five minutes.
        assert_eq!(starts("2026-05-04T09:00:00Z"), None);
    }

    #[test]
    fn a_rate_starts_at_the_stored_slot_or_at_the_next_one_of_its_phase() {
        let schedule = json!({"type": "interval", "every_minutes": 7, "anchor": "2026-05-04T08:00:00Z",
            "timezone": "UTC"});
        let start = |next_run_at: Option<&str>| {
            let row = Followed {
                next_run_at: next_run_at.map(at),
                ..row(schedule.clone(), 0)
            };
            let entry = wanted(&row, &settings()).unwrap().remove(0);
            assert_eq!(entry.period, Some(TimeDelta::minutes(7)));
            entry.start.unwrap()
        };
        assert_eq!(
            start(Some("2026-05-04T10:13:00Z")),
            at("2026-05-04T10:13:00Z")
        );
        // Paused, or not looked at for long: 08:00 and so many times seven minutes.
        assert_eq!(start(None), at("2026-05-04T10:06:00Z"));
        assert_eq!(
            start(Some("2026-05-04T09:03:00Z")),
            at("2026-05-04T10:06:00Z")
        );
    }

    #[test]
    fn what_aws_would_refuse_is_refused_here() {
        let sound = wanted(&row(daily(), 5), &settings()).unwrap().remove(0);
        assert_eq!(sound.clone().checked(), Ok(sound.clone()));
        let spoil: [(&str, Spoil); 9] = [
            ("cron", |entry| {
                entry.expression = "cron(0 9 * * * *)".to_owned();
            }),
            ("at(", |entry| {
                entry.expression = "at(2026-01-01T00:00:00Z)".to_owned();
            }),
            ("256", |entry| {
                entry.expression = format!("cron({} 9 * * ? *)", "0,".repeat(200));
            }),
            ("zone", |entry| entry.timezone = Some("x".repeat(51))),
            ("name", |entry| entry.name = EntryName("a b".to_owned())),
            ("name", |entry| entry.name = EntryName("x".repeat(65))),
            ("window", |entry| entry.window_minutes = 1441),
            ("input", |entry| entry.input = "x".repeat(256 * 1024 + 1)),
            ("start", |entry| {
                entry.start = Some(DateTime::UNIX_EPOCH);
                entry.end = Some(DateTime::UNIX_EPOCH);
            }),
        ];
        for (what, spoil) in spoil {
            let mut entry = sound.clone();
            spoil(&mut entry);
            let said = match entry.checked() {
                Err(refused) => refused.to_string(),
                Ok(entry) => panic!("{what}: {entry:?}"),
            };
            let fits = match what {
                "cron" => said.contains('?'),
                "at(" => said.contains("at("),
                _ => said.contains(what),
            };
            assert!(fits, "{what}: {said}");
        }
    }

    #[test]
    fn settings_that_aws_would_refuse_are_refused() {
        for (name, value) in [
            ("CARILLON_SCHEDULE_GROUP", "a group".to_owned()),
            ("CARILLON_SCHEDULE_GROUP", "x".repeat(65)),
            ("CARILLON_QUEUE_URL", "queue".to_owned()),
            ("CARILLON_SCHEDULER_ROLE_ARN", "arn:aws:sqs:::x".to_owned()),
            ("CARILLON_SCHEDULER_ROLE_ARN", "arn:aws:iam::1:".to_owned()),
            ("CARILLON_SCHEDULER_DLQ_ARN", "dead".to_owned()),
        ] {
            let look_up = |asked: &str| {
                if asked == name {
                    Some(value.clone())
                } else {
                    look_up(asked)
                }
            };
            let mut reader = Reader::new(&look_up);
            let settings = Settings::read(&mut reader);
            let said = reader.finish(settings).unwrap_err().to_string();
            assert!(said.contains(name), "{said}");
        }
    }
}
