//! What a caller sees of a prompt.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use shared::{
    db::prompts::{Prompt, PromptStatus},
    ids::{PromptId, UserId},
    prompt::PromptSpec,
    run::RunStatus,
    schedule::ScheduleType,
    scheduler::{Scheduler, SyncStatus},
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, schema::Schema},
};

/// What a list leaves out of a spec.
const LEFT_OUT: [&str; 3] = ["prompt_text", "system_text", "context"];

/// A prompt: what its owner said of it, and where it stands.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Prompt)]
pub(super) struct PromptView {
    #[serde(flatten)]
    #[schema(value_type = PromptSpec)]
    spec: Value,
    #[serde(flatten)]
    standing: Standing,
}

/// A prompt in a list: without `prompt_text`, `system_text` and `context`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PromptSummary)]
pub(super) struct PromptSummary {
    #[serde(flatten)]
    #[schema(value_type = SpecSummary)]
    spec: Value,
    #[serde(flatten)]
    standing: Standing,
}

/// Where a prompt stands.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PromptStanding)]
struct Standing {
    /// The prompt.
    id: PromptId,
    /// Whose it is.
    user_id: UserId,
    /// `active` fires; `paused` waits for a resume; the others are final.
    status: PromptStatus,
    /// Why: `user`, `failures`, `max_runs` or `schedule_ended`.
    #[schema(required, example = "user")]
    status_reason: Option<String>,
    /// A person's words beside it.
    #[schema(required)]
    status_note: Option<String>,
    /// The schedule's type.
    #[schema(value_type = ScheduleType)]
    schedule_type: String,
    /// The schedule's IANA zone.
    #[schema(example = "Europe/London")]
    timezone: String,
    /// The next slot; null when none is to come.
    #[schema(required)]
    next_run_at: Option<DateTime<Utc>>,
    /// When a run last finished.
    #[schema(required)]
    last_run_at: Option<DateTime<Utc>>,
    /// How that run finished.
    #[schema(required, value_type = Option<RunStatus>)]
    last_status: Option<String>,
    /// Runs begun, test runs apart.
    run_count: i64,
    /// The same as `run_count`.
    total_runs: i64,
    /// Runs that succeeded.
    success_count: i64,
    /// Runs that failed or timed out.
    failure_count: i64,
    /// Failures since the last success or resume.
    consecutive_failures: i32,
    /// Counts changes of the prompt; the ETag.
    version: i64,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When somebody last changed it.
    updated_at: DateTime<Utc>,
    /// When it completed.
    #[schema(required)]
    completed_at: Option<DateTime<Utc>>,
    /// When it was cancelled.
    #[schema(required)]
    cancelled_at: Option<DateTime<Utc>>,
    /// Whether the scheduler follows the prompt yet. Its slots fire in any case, up to a minute
    /// late while it does not. An answer that is given again for its `Idempotency-Key` says how it stood
    /// while the change was made.
    sync: SyncStatus,
    /// Why it does not, if a try has failed.
    #[schema(required)]
    sync_error: Option<String>,
}

impl PromptView {
    pub(super) fn new(mut prompt: Prompt, scheduler: &Scheduler) -> Self {
        Self {
            spec: prompt.spec.take(),
            standing: Standing::new(prompt, scheduler),
        }
    }
}

impl PromptSummary {
    pub(super) fn new(mut prompt: Prompt, scheduler: &Scheduler) -> Self {
        Self {
            spec: prompt.spec.take(),
            standing: Standing::new(prompt, scheduler),
        }
    }
}

impl Standing {
    fn new(prompt: Prompt, scheduler: &Scheduler) -> Self {
        let sync = scheduler.standing(&prompt.sync);
        Self {
            id: prompt.id,
            user_id: prompt.user_id,
            status: prompt.status,
            status_reason: prompt.status_reason,
            status_note: prompt.status_note,
            schedule_type: prompt.schedule_type,
            timezone: prompt.timezone,
            next_run_at: prompt.next_run_at,
            last_run_at: prompt.last_run_at,
            last_status: prompt.last_status,
            run_count: prompt.run_count,
            total_runs: prompt.run_count,
            success_count: prompt.success_count,
            failure_count: prompt.failure_count,
            consecutive_failures: prompt.consecutive_failures,
            version: prompt.version,
            created_at: prompt.created_at,
            updated_at: prompt.updated_at,
            completed_at: prompt.completed_at,
            cancelled_at: prompt.cancelled_at,
            sync: sync.status,
            sync_error: sync.error,
        }
    }
}

/// The schema of a spec in a list.
struct SpecSummary;

impl PartialSchema for SpecSummary {
    fn schema() -> RefOr<Schema> {
        let mut schema = PromptSpec::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            for name in LEFT_OUT {
                object.properties.remove(name);
            }
            object
                .required
                .retain(|name| !LEFT_OUT.contains(&name.as_str()));
        }
        schema
    }
}

impl ToSchema for SpecSummary {
    fn name() -> Cow<'static, str> {
        "PromptSpecSummary".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        PromptSpec::schemas(schemas);
    }
}
