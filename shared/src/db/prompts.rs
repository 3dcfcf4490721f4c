//! Scheduled prompts: what callers make, read, change and list.
//!
//! A prompt's spec is stored twice on purpose: `prompt_versions` keeps the document that runs are
//! made from, the table's columns are what the database checks, filters and sorts by. Nothing here
//! decides whether a change is allowed; and nothing here touches a deleted prompt.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::{Row, types::Timestamp};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    DbError, Param, TenantTx, calendars, column,
    sync::Standing,
    tenant_tx::{Step, step},
};
use crate::{
    exclusion::Holidays,
    ids::{PromptId, RunId, UserId},
    jitter,
    schedule::ScheduleType,
    slots::Dropped,
};

/// As the table's check has it.
const NAME_CHARS_MAX: usize = 200;

/// The columns that [`read`] reads, the spec apart.
macro_rules! columns {
    () => {
        "p.id, p.user_id, p.status, p.status_reason, p.status_note, p.schedule_type, p.timezone,
         p.next_run_at, p.last_run_at, p.last_status, p.run_count, p.success_count, p.failure_count,
         p.consecutive_failures, p.version, p.created_at, p.updated_at, p.completed_at, p.cancelled_at,
         p.generation = p.synced_generation AS is_synced, p.sync_error, p.sync_refused"
    };
}

/// The document that the current version was made from.
macro_rules! stored_spec {
    () => {
        "(SELECT v.spec FROM prompt_versions v
           WHERE v.tenant_id = p.tenant_id AND v.prompt_id = p.id AND v.version = p.spec_version)"
    };
}

pub(super) use stored_spec;

/// A spec as a row `s`, so that insert and update cannot read it differently.
macro_rules! spec_as_row {
    ($parameter:literal) => {
        concat!(
            "jsonb_to_record(",
            $parameter,
            ") AS s (
                 external_id text, prompt_name text, description text, prompt_text text, system_text text,
                 model text, model_settings jsonb, context jsonb, schedule jsonb, overlap text,
                 overlap_runs_max integer, catchup_window_s integer, misfire text, max_runs integer, max_retries integer,
                 retry_delay_ms integer, timeout_ms integer, pause_after_failures integer,
                 destinations jsonb, notification_email text, tags text[], metadata jsonb)"
        )
    };
}

/// The table's columns that come from a spec, and what they are in its row, in the same order.
macro_rules! spec_columns {
    () => {
        "external_id, prompt_name, description, prompt_text, system_text, model, model_settings, context,
         schedule, start_at, end_at, overlap, overlap_runs_max, catchup_window_s, misfire, max_runs, max_retries,
         retry_delay_ms, timeout_ms, pause_after_failures, destinations, notification_email, tags,
         metadata"
    };
}
macro_rules! spec_values {
    () => {
        "s.external_id, s.prompt_name, s.description, s.prompt_text, s.system_text, s.model,
         COALESCE(s.model_settings, '{}'), COALESCE(s.context, '{}'), s.schedule,
         (s.schedule ->> 'start_at')::timestamptz, (s.schedule ->> 'end_at')::timestamptz, s.overlap,
         COALESCE(s.overlap_runs_max, 3), s.catchup_window_s, s.misfire, s.max_runs, s.max_retries, s.retry_delay_ms, s.timeout_ms,
         s.pause_after_failures, s.destinations, s.notification_email, COALESCE(s.tags, '{}'),
         COALESCE(s.metadata, '{}')"
    };
}

/// A changed prompt is looked at again at once, whatever its looks came to.
macro_rules! look_afresh {
    () => {
        "looks_failed = 0, look_again_at = NULL"
    };
}

/// A page of a list. The row comparison stands alone so that it bounds the index scan; the filters
/// stand inside COALESCE, whose share of rows the planner takes to be a half: multiplied one by one
/// they would promise a single row, and it would fetch and sort all prompts of the tenant.
macro_rules! list {
    ($name:literal, $only:literal, $key:literal, $compare:literal, $order:literal) => {
        concat!(
            "-- prompts::list_",
            $name,
            "
             SELECT ",
            columns!(),
            ", ",
            stored_spec!(),
            " - ARRAY['prompt_text', 'system_text', 'context'] AS spec
               FROM scheduled_prompts p
              WHERE p.deleted_at IS NULL AND ",
            $only,
            " AND (",
            $key,
            ", p.id) ",
            $compare,
            " ($12, $13) AND ",
            filters!(),
            " ORDER BY ",
            $key,
            " ",
            $order,
            ", p.id ",
            $order,
            " LIMIT $14"
        )
    };
}
macro_rules! filters {
    () => {
        "COALESCE(
                 ($1::text[] IS NULL OR p.status = ANY ($1))
             AND ($2::text[] IS NULL OR p.schedule_type = ANY ($2))
             AND ($3::text[] IS NULL OR p.tags && $3)
             AND ($4::text[] IS NULL OR p.tags @> $4)
             AND ($5::text IS NULL OR p.prompt_name ~ $5)
             AND ($6::timestamptz IS NULL OR p.next_run_at < $6)
             AND ($7::timestamptz IS NULL OR p.next_run_at >= $7)
             AND ($8::timestamptz IS NULL OR p.created_at < $8)
             AND ($9::timestamptz IS NULL OR p.created_at >= $9)
             AND ($10::uuid IS NULL OR p.user_id = $10)
             AND ($11::text IS NULL OR p.external_id = $11), false)"
    };
}

/// What a caller sees of a prompt beside its spec, and the spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The prompt.
    pub id: PromptId,
    /// Whose it is.
    pub user_id: UserId,
    /// The spec as its owner wrote it, validated, with the defaults filled in. In a list it lacks
    /// `prompt_text`, `system_text` and `context`.
    pub spec: Value,
    /// Where it stands.
    pub status: PromptStatus,
    /// Why: a stable word.
    pub status_reason: Option<String>,
    /// A person's words beside it.
    pub status_note: Option<String>,
    /// The schedule's tag.
    pub schedule_type: String,
    /// The schedule's IANA zone.
    pub timezone: String,
    /// The next slot, if one is to come.
    pub next_run_at: Option<DateTime<Utc>>,
    /// When a run last finished.
    pub last_run_at: Option<DateTime<Utc>>,
    /// How it finished.
    pub last_status: Option<String>,
    /// Runs claimed, test runs apart.
    pub run_count: i64,
    /// Those that succeeded.
    pub success_count: i64,
    /// Those that failed or timed out.
    pub failure_count: i64,
    /// Failures since the last success or resume.
    pub consecutive_failures: i32,
    /// Counts changes by callers; the ETag.
    pub version: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When a caller last changed it.
    pub updated_at: DateTime<Utc>,
    /// When it completed.
    pub completed_at: Option<DateTime<Utc>>,
    /// When it was cancelled.
    pub cancelled_at: Option<DateTime<Utc>>,
    /// How the scheduler's entries stand to it.
    pub sync: Standing,
}

/// Where a prompt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptStatus {
    /// Its slots fire.
    Active,
    /// It waits for a resume.
    Paused,
    /// Its schedule has ended.
    Completed,
    /// It was given up.
    Failed,
    /// A caller ended it.
    Cancelled,
}

impl PromptStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [
        Self::Active,
        Self::Paused,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word that table and API use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status of this name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Whether nothing can start it again.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Active | Self::Paused => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// What a tenant may have, and has.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// The address of the user whose prompt it is, or is to be.
    pub owner_email: Option<String>,
    /// Used where a schedule names no zone.
    pub default_timezone: String,
    /// The shortest distance between two slots.
    pub interval_minutes_min: i32,
    /// Prompts that may be active at once.
    pub active_prompts_max: i64,
    /// Prompts that are active.
    pub active_prompts: i64,
    /// What the calendars hold that were asked for, and those that the prompt names.
    pub holidays: Holidays,
}

/// A prompt to be stored.
#[derive(Debug)]
pub struct NewPrompt<'a> {
    /// Its id.
    pub id: PromptId,
    /// Its owner.
    pub user_id: UserId,
    /// Its validated spec as JSON, defaults filled in.
    pub spec: &'a Value,
    /// Its first slot.
    pub next_run_at: Option<DateTime<Utc>>,
    /// The webhooks that it names.
    pub webhook_urls: &'a [&'a str],
    /// The calendars that it names.
    pub calendars: &'a [&'a str],
}

/// A change of a prompt's spec.
#[derive(Debug)]
pub struct NewSpec<'a> {
    /// Which prompt.
    pub id: PromptId,
    /// The version that the change was computed from.
    pub version: i64,
    /// The whole new spec as JSON, defaults filled in.
    pub spec: &'a Value,
    /// The new next slot, where the change moves it; the inner `None` is a prompt without one.
    pub next_run_at: Option<Option<DateTime<Utc>>>,
    /// Whether the scheduler's entries have to follow it.
    pub reschedules: bool,
    /// The webhooks that it names.
    pub webhook_urls: &'a [&'a str],
    /// The calendars that it names, where others than before.
    pub calendars: Option<&'a [&'a str]>,
}

/// A change of a prompt's status by a caller.
#[derive(Debug)]
pub struct NewStatus<'a> {
    /// Which prompt.
    pub id: PromptId,
    /// The version that the change was computed from.
    pub version: i64,
    /// The new status.
    pub status: PromptStatus,
    /// Why.
    pub reason: Option<&'a str>,
    /// The caller's words.
    pub note: Option<&'a str>,
    /// The next slot.
    pub next_run_at: Option<DateTime<Utc>>,
}

/// Which prompts a list holds. An empty list and `None` filter nothing.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of these statuses.
    pub status: Vec<PromptStatus>,
    /// One of these schedule types.
    pub schedule_type: Vec<ScheduleType>,
    /// At least one of these tags.
    pub tags_any: Vec<String>,
    /// All of these tags.
    pub tags_all: Vec<String>,
    /// This text somewhere in the name, whatever its case.
    pub name_contains: Option<String>,
    /// The caller's own id.
    pub external_id: Option<String>,
    /// This owner.
    pub user_id: Option<UserId>,
    /// The next slot lies before it.
    pub next_run_before: Option<DateTime<Utc>>,
    /// The next slot lies at or after it.
    pub next_run_after: Option<DateTime<Utc>>,
    /// Made before it.
    pub created_before: Option<DateTime<Utc>>,
    /// Made at or after it.
    pub created_after: Option<DateTime<Utc>>,
}

/// What a list is sorted by, with the place where the page before it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sort {
    /// By the time of making.
    Created(Option<(DateTime<Utc>, PromptId)>),
    /// By the next slot; prompts without one count as farthest in the future.
    NextRun(Option<(Option<DateTime<Utc>>, PromptId)>),
    /// By the name's code points.
    Name(Option<(String, PromptId)>),
}

/// Which way a list runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Smallest first.
    Asc,
    /// Largest first.
    Desc,
}

impl Order {
    /// Both.
    pub const ALL: &'static [Self] = &[Self::Asc, Self::Desc];

    /// The word that the API uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asc => "asc",
            Self::Desc => "desc",
        }
    }
}

/// The tenant's limits, and what the calendars of these names hold. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn limits(tx: TenantTx, calendars: &[&str]) -> Result<Limits, DbError> {
    let results = tx
        .commit_with(&[
            step(calendars::HOLIDAYS, &[&calendars, &NO_PROMPT]),
            step(LIMITS, &[&NO_USER]),
        ])
        .await?;
    let [holidays, limits] = results.as_slice() else {
        return Err(DbError::Aborted);
    };
    read_limits(limits.first(), holidays)
}

/// The tenant's limits, and what the calendars of these names hold, before a prompt of this user
/// becomes active. Until the transaction ends no other one gets here: two at once would both find
/// the last place free. Nor does a calendar change.
///
/// # Errors
/// When the database does not answer, or a lock is not free in time.
pub async fn limits_to_create(
    tx: &TenantTx,
    user_id: UserId,
    calendars: &[&str],
) -> Result<Limits, DbError> {
    let (tenant, user_id) = (tx.tenant().uuid(), Some(user_id.uuid()));
    let results = tx
        .pipeline(&[
            step(calendars::LOCK_SHARED, &[]),
            step(LOCK_ACTIVE, &[&tenant]),
            step(calendars::HOLIDAYS, &[&calendars, &NO_PROMPT]),
            step(LIMITS, &[&user_id]),
        ])
        .await?;
    let [.., holidays, limits] = results.as_slice() else {
        return Err(DbError::Aborted);
    };
    read_limits(limits.first(), holidays)
}

/// The tenant's limits, and a prompt of it that stays as it is until the transaction ends, as do the
/// calendars of these names and those that it names. One round trip.
///
/// # Errors
/// When the database does not answer, or a lock is not free in time.
pub async fn get_to_change(
    tx: &TenantTx,
    id: PromptId,
    calendars: &[&str],
) -> Result<Option<(Limits, Prompt)>, DbError> {
    let id = id.uuid();
    let results = tx
        .pipeline(&[
            step(calendars::LOCK_SHARED, &[]),
            step(LOCK, &[&id]),
            step(calendars::HOLIDAYS, &[&calendars, &Some(id)]),
            step(LIMITS, &[&NO_USER]),
            step(GET_TO_CHANGE, &[&id]),
        ])
        .await?;
    read_to_change(&results)
}

/// The same, before the prompt becomes active again: with the lock of [`limits_to_create`].
///
/// # Errors
/// When the database does not answer, or a lock is not free in time.
pub async fn get_to_resume(
    tx: &TenantTx,
    id: PromptId,
) -> Result<Option<(Limits, Prompt)>, DbError> {
    let (tenant, id, no_names) = (tx.tenant().uuid(), id.uuid(), Vec::<&str>::new());
    let results = tx
        .pipeline(&[
            step(calendars::LOCK_SHARED, &[]),
            step(LOCK_ACTIVE, &[&tenant]),
            step(LOCK, &[&id]),
            step(calendars::HOLIDAYS, &[&no_names, &Some(id)]),
            step(LIMITS, &[&NO_USER]),
            step(GET_TO_CHANGE, &[&id]),
        ])
        .await?;
    read_to_change(&results)
}

/// A prompt, whole.
///
/// # Errors
/// When the database does not answer.
pub async fn get(tx: TenantTx, id: PromptId) -> Result<Option<Prompt>, DbError> {
    let id = id.uuid();
    let mut rows = only_rows(tx.commit_with(&[step(GET, &[&id])]).await?);
    rows.next().as_ref().map(read).transpose()
}

/// A page of the tenant's prompts, without their long texts. Each statement is driven by an index
/// that begins with the tenant and has the list's order, whichever filters are set.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    tx: TenantTx,
    filter: &Filter,
    sort: &Sort,
    order: Order,
    rows_max: i64,
) -> Result<Vec<Prompt>, DbError> {
    let status = words(filter.status.iter().map(|status| status.as_str()));
    let schedule_type = words(filter.schedule_type.iter().map(|kind| kind.as_str()));
    let tags_any = words(filter.tags_any.iter().map(String::as_str));
    let tags_all = words(filter.tags_all.iter().map(String::as_str));
    let name = filter.name_contains.as_deref().map(name_pattern);
    let user_id = filter.user_id.map(UserId::uuid);
    let place = Place::of(sort, order);
    let key: Param<'_> = match &place.key {
        Key::Instant(instant) => instant,
        Key::Name(name) => name,
    };
    let params: [Param<'_>; 14] = [
        &status,
        &schedule_type,
        &tags_any,
        &tags_all,
        &name,
        &filter.next_run_before,
        &filter.next_run_after,
        &filter.created_before,
        &filter.created_after,
        &user_id,
        &filter.external_id,
        key,
        &place.id,
        &rows_max,
    ];
    let sql = list_statement(filter, sort, order);
    let rows = tx.commit_with(&[step(sql, &params)]).await?;
    rows.iter().flatten().map(read).collect()
}

/// Every text that [`list`] sends, for tests of their plans.
#[must_use]
pub fn list_statements() -> [&'static str; 9] {
    [
        LIST_CREATED_ASC,
        LIST_CREATED_DESC,
        LIST_NEXT_RUN_ASC,
        LIST_NEXT_RUN_DESC,
        LIST_NAME_ASC,
        LIST_NAME_DESC,
        LIST_OF_USER_ASC,
        LIST_OF_USER_DESC,
        LIST_EXTERNAL_ID,
    ]
}

/// Makes a prompt and its first version.
///
/// # Errors
/// A unique violation of `scheduled_prompts_external_id` when another prompt has the external id.
pub async fn insert(tx: &TenantTx, prompt: &NewPrompt<'_>) -> Result<Prompt, DbError> {
    let sql = concat!(
        "-- prompts::insert
                 WITH p AS (
                     INSERT INTO scheduled_prompts
                            (tenant_id, id, user_id, next_run_at, jitter_delay_s, ",
        spec_columns!(),
        ")
                     SELECT $1, $2, $3, $4, $6, ",
        spec_values!(),
        " FROM ",
        spec_as_row!("$5"),
        " RETURNING *),
                 v AS (
                     INSERT INTO prompt_versions (tenant_id, prompt_id, version, spec)
                     SELECT p.tenant_id, p.id, p.version, $5 FROM p)
                 SELECT ",
        columns!(),
        ", $5::jsonb AS spec FROM p"
    );
    let params: [Param<'_>; 6] = [
        &tx.tenant().uuid(),
        &prompt.id.uuid(),
        &prompt.user_id.uuid(),
        &prompt.next_run_at,
        prompt.spec,
        &jitter_delay_s(prompt.id, prompt.spec),
    ];
    let write = step(sql, &params);
    let calendars = Some(prompt.calendars).filter(|names| !names.is_empty());
    write_spec(tx, write, prompt.id, prompt.webhook_urls, calendars).await
}

/// Gives a prompt another spec, as a new version. Runs that are queued keep theirs.
///
/// # Errors
/// `DbError::RowCount` when the prompt is gone or has another version than the change was computed
/// from; a unique violation as for [`insert`].
pub async fn replace(tx: &TenantTx, change: &NewSpec<'_>) -> Result<Prompt, DbError> {
    let sql = concat!(
                "-- prompts::replace
                 WITH p AS (
                     UPDATE scheduled_prompts p
                        SET version = p.version + 1, spec_version = p.version + 1, updated_at = now(),
                            generation = p.generation + CASE WHEN $7 THEN 1 ELSE 0 END,
                            next_run_at = CASE WHEN $3 THEN $4 ELSE p.next_run_at END,
                            jitter_delay_s = $6, ",
                look_afresh!(),
                ", (",
                spec_columns!(),
                ") = ROW (",
                spec_values!(),
                ")
                       FROM ",
                spec_as_row!("$5"),
                "
                      WHERE p.id = $1 AND p.version = $2 AND p.deleted_at IS NULL
                  RETURNING p.*),
                 v AS (
                     INSERT INTO prompt_versions (tenant_id, prompt_id, version, spec)
                     SELECT p.tenant_id, p.id, p.version, $5 FROM p)
                 SELECT ",
                columns!(),
                ", $5::jsonb AS spec FROM p"
    );
    let params: [Param<'_>; 7] = [
        &change.id.uuid(),
        &change.version,
        &change.next_run_at.is_some(),
        &change.next_run_at.flatten(),
        change.spec,
        &jitter_delay_s(change.id, change.spec),
        &change.reschedules,
    ];
    let write = step(sql, &params);
    write_spec(tx, write, change.id, change.webhook_urls, change.calendars).await
}

/// Pauses, resumes or cancels a prompt. A resume forgets the failures in a row.
///
/// # Errors
/// `DbError::RowCount` when the prompt is gone or has another version than the change was computed
/// from.
pub async fn set_status(tx: &TenantTx, change: &NewStatus<'_>) -> Result<Prompt, DbError> {
    let row = tx
        .query_one(
            concat!(
                "-- prompts::set_status
                 UPDATE scheduled_prompts p
                    SET status = $3, status_reason = $4, status_note = $5, next_run_at = $6,
                        consecutive_failures = CASE $3 WHEN 'active' THEN 0 ELSE p.consecutive_failures END,
                        cancelled_at = CASE $3 WHEN 'cancelled' THEN now() ELSE p.cancelled_at END,
                        version = p.version + 1, updated_at = now(), ",
                look_afresh!(),
                "
                  WHERE p.id = $1 AND p.version = $2 AND p.deleted_at IS NULL
              RETURNING ",
                columns!(),
                ", ",
                stored_spec!(),
                " AS spec"
            ),
            &[
                &change.id.uuid(),
                &change.version,
                &change.status.as_str(),
                &change.reason,
                &change.note,
                &change.next_run_at,
            ],
        )
        .await?;
    read(&row)
}

/// Takes a prompt away from its callers; `false` when there is none. Its runs stay until they have
/// served their time, and its external id is free again.
///
/// # Errors
/// When the database does not answer.
pub async fn tombstone(tx: &TenantTx, id: PromptId) -> Result<bool, DbError> {
    let changed = tx
        .execute(
            "-- prompts::tombstone
             UPDATE scheduled_prompts p
                SET deleted_at = now(), updated_at = now(), next_run_at = NULL,
                    version = p.version + 1
              WHERE p.id = $1 AND p.deleted_at IS NULL",
            &[&id.uuid()],
        )
        .await?;
    Ok(changed == 1)
}

/// Records slots that were due, and that a change of their prompt takes away before they were looked
/// at, in one row: no slot goes without a word. To be called before the change itself; `reason` says
/// what it was: `paused`, `prompt_cancelled`, `prompt_deleted` or `rescheduled`.
///
/// # Errors
/// When the database does not answer.
pub async fn drop_slots(
    tx: &TenantTx,
    id: PromptId,
    slots: Dropped,
    reason: &'static str,
) -> Result<u64, DbError> {
    let row = DroppedRow::new(Some(slots));
    tx.execute(DROP_SLOTS, &row.params(&id.uuid(), &reason))
        .await
}

/// A row for $5 dropped slots from $3 to $4.
macro_rules! dropped_row {
    ($name:literal, $only:literal) => {
        concat!(
            $name,
            "
     INSERT INTO scheduled_prompt_runs
            (tenant_id, id, prompt_id, scheduled_for, scheduled_until, slots_count, trigger, status,
             reason, attempts_max, prompt_version, completed_at)
     SELECT p.tenant_id, $2, p.id, $3::timestamptz, $4, $5, 'schedule', 'skipped', $6,
            p.max_retries + 1, p.spec_version, clock_timestamp()
       FROM scheduled_prompts p
      WHERE p.id = $1 AND p.deleted_at IS NULL AND ",
            $only,
            "
     ON CONFLICT DO NOTHING"
        )
    };
}
pub(super) use dropped_row;

/// To be sent before the change that takes the slots away.
pub(super) const DROP_SLOTS: &str = dropped_row!("-- prompts::drop_slots", "true");

/// What [`DROP_SLOTS`] writes; without slots it is not needed.
pub(super) struct DroppedRow {
    id: Uuid,
    first: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    count: i32,
}

impl DroppedRow {
    pub(super) fn is_needed(&self) -> bool {
        self.first.is_some()
    }

    pub(super) fn new(slots: Option<Dropped>) -> Self {
        Self {
            id: RunId::new().uuid(),
            first: slots.map(|slots| slots.first),
            until: slots
                .filter(|slots| slots.count > 1)
                .map(|slots| slots.last),
            count: slots.map_or(1, |slots| slots.count),
        }
    }

    pub(super) fn params<'a>(
        &'a self,
        prompt: &'a Uuid,
        reason: &'a &'static str,
    ) -> [Param<'a>; 6] {
        [
            prompt,
            &self.id,
            &self.first,
            &self.until,
            &self.count,
            reason,
        ]
    }
}

/// Webhooks that had said they were gone are tried again: somebody has named them anew.
const FORGET_GONE: &str = "-- prompts::forget_gone
     DELETE FROM gone_webhooks g WHERE g.url = ANY ($1)";

const LOCK_ACTIVE: &str = "-- prompts::lock_active
     SELECT pg_advisory_xact_lock(hashtextextended('active_prompts ' || $1::uuid, 0))";

pub(super) const NO_USER: Option<Uuid> = None;
pub(super) const NO_PROMPT: Option<Uuid> = None;

/// $1: the user whose address is wanted, if one is.
pub(super) const LIMITS: &str = "-- prompts::limits
     SELECT clock_timestamp() AS now, t.default_timezone,
            (SELECT u.email FROM users u WHERE u.id = $1) AS owner_email, t.interval_minutes_min, t.active_prompts_max::bigint AS active_prompts_max,
            (SELECT count(*) FROM scheduled_prompts p
              WHERE p.status = 'active' AND p.deleted_at IS NULL) AS active_prompts
       FROM tenants t";

const GET: &str = concat!(
    "-- prompts::get
     SELECT ",
    columns!(),
    ", ",
    stored_spec!(),
    " AS spec
       FROM scheduled_prompts p
      WHERE p.id = $1 AND p.deleted_at IS NULL"
);

/// Locks and nothing else. A statement that had to wait sees the locked row as it is now, but every
/// other row as it was before the wait: what belongs together is read by the statement after it.
const LOCK: &str = "-- prompts::lock
     SELECT p.id FROM scheduled_prompts p
      WHERE p.id = $1 AND p.deleted_at IS NULL
        FOR NO KEY UPDATE";

const GET_TO_CHANGE: &str = concat!(
    "-- prompts::get_to_change
     SELECT ",
    columns!(),
    ", ",
    stored_spec!(),
    " AS spec,
            (SELECT u.email FROM users u WHERE u.tenant_id = p.tenant_id AND u.id = p.user_id)
                AS owner_email
       FROM scheduled_prompts p
      WHERE p.id = $1 AND p.deleted_at IS NULL"
);

const LIST_CREATED_ASC: &str = list!("created_asc", "true", "p.created_at", ">", "ASC");
const LIST_CREATED_DESC: &str = list!("created_desc", "true", "p.created_at", "<", "DESC");
// As in the index: LEAST passes over a NULL, and a comparison with it may bound the scan under
// row-level security, where one with COALESCE may not.
const LIST_NEXT_RUN_ASC: &str = list!(
    "next_run_asc",
    "true",
    "LEAST(p.next_run_at, 'infinity')",
    ">",
    "ASC"
);
const LIST_NEXT_RUN_DESC: &str = list!(
    "next_run_desc",
    "true",
    "LEAST(p.next_run_at, 'infinity')",
    "<",
    "DESC"
);
const LIST_NAME_ASC: &str = list!(
    "name_asc",
    "true",
    "p.prompt_name COLLATE \"C\"",
    ">",
    "ASC"
);
const LIST_NAME_DESC: &str = list!(
    "name_desc",
    "true",
    "p.prompt_name COLLATE \"C\"",
    "<",
    "DESC"
);
const LIST_OF_USER_ASC: &str = list!("of_user_asc", "p.user_id = $10", "p.created_at", ">", "ASC");
const LIST_OF_USER_DESC: &str = list!(
    "of_user_desc",
    "p.user_id = $10",
    "p.created_at",
    "<",
    "DESC"
);
const LIST_EXTERNAL_ID: &str = list!(
    "external_id",
    "p.external_id = $11",
    "p.created_at",
    "<",
    "DESC"
);

fn list_statement(filter: &Filter, sort: &Sort, order: Order) -> &'static str {
    match (sort, order) {
        // One row at the most, whatever the order.
        (Sort::Created(_), Order::Desc) if filter.external_id.is_some() => LIST_EXTERNAL_ID,
        (Sort::Created(_), Order::Asc) if filter.user_id.is_some() => LIST_OF_USER_ASC,
        (Sort::Created(_), Order::Desc) if filter.user_id.is_some() => LIST_OF_USER_DESC,
        (Sort::Created(_), Order::Asc) => LIST_CREATED_ASC,
        (Sort::Created(_), Order::Desc) => LIST_CREATED_DESC,
        (Sort::NextRun(_), Order::Asc) => LIST_NEXT_RUN_ASC,
        (Sort::NextRun(_), Order::Desc) => LIST_NEXT_RUN_DESC,
        (Sort::Name(_), Order::Asc) => LIST_NAME_ASC,
        (Sort::Name(_), Order::Desc) => LIST_NAME_DESC,
    }
}

/// Where a page begins: behind this key and id. A first page begins before or behind every key,
/// since a condition that may be absent could not bound the index scan.
struct Place {
    key: Key,
    id: Uuid,
}

enum Key {
    Instant(Timestamp<DateTime<Utc>>),
    Name(String),
}

impl Place {
    fn of(sort: &Sort, order: Order) -> Self {
        let (first_instant, first_id) = match order {
            Order::Asc => (Timestamp::NegInfinity, Uuid::nil()),
            Order::Desc => (Timestamp::PosInfinity, Uuid::max()),
        };
        match sort {
            Sort::Created(Some((at, id))) => Self {
                key: Key::Instant(Timestamp::Value(*at)),
                id: id.uuid(),
            },
            Sort::NextRun(Some((at, id))) => Self {
                key: Key::Instant(at.map_or(Timestamp::PosInfinity, Timestamp::Value)),
                id: id.uuid(),
            },
            Sort::Name(Some((name, id))) => Self {
                key: Key::Name(name.clone()),
                id: id.uuid(),
            },
            Sort::Created(None) | Sort::NextRun(None) => Self {
                key: Key::Instant(first_instant),
                id: first_id,
            },
            Sort::Name(None) => Self {
                key: Key::Name(match order {
                    Order::Asc => String::new(),
                    Order::Desc => "\u{10FFFF}".repeat(NAME_CHARS_MAX + 1),
                }),
                id: first_id,
            },
        }
    }
}

async fn write_spec(
    tx: &TenantTx,
    write: Step<'_>,
    id: PromptId,
    webhook_urls: &[&str],
    calendars: Option<&[&str]>,
) -> Result<Prompt, DbError> {
    let forget_params: [Param<'_>; 1] = [&webhook_urls];
    let (id, names) = (id.uuid(), calendars.unwrap_or_default());
    let link_params: [Param<'_>; 2] = [&id, &names];
    let mut steps = vec![write, step(FORGET_GONE, &forget_params)];
    if calendars.is_some() {
        steps.extend(calendars::link(&link_params));
    }
    let rows = tx.pipeline(&steps).await?;
    match rows.first().map(Vec::as_slice) {
        Some([row]) => read(row),
        _ => Err(DbError::RowCount {
            statement: "prompts::write_spec".to_owned(),
            expected: 1,
            changed: 0,
        }),
    }
}

/// When in its jitter the sweeper looks for a prompt's slots.
fn jitter_delay_s(id: PromptId, spec: &Value) -> i32 {
    let minutes = spec.get("jitter_minutes").and_then(Value::as_u64);
    let minutes = minutes.and_then(|minutes| u32::try_from(minutes).ok());
    let delay = jitter::delay(id, minutes.unwrap_or(0));
    i32::try_from(delay.num_seconds()).unwrap_or(0)
}

fn words<'a>(words: impl Iterator<Item = &'a str>) -> Option<Vec<&'a str>> {
    let words: Vec<&str> = words.collect();
    (!words.is_empty()).then_some(words)
}

/// A regular expression for the text itself in any case. Letters are spelled out because a database
/// of the collation C knows the case of ASCII alone.
fn name_pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() * 4);
    for letter in text.chars() {
        match (only(letter.to_lowercase()), only(letter.to_uppercase())) {
            (Some(lower), Some(upper)) if lower != upper => {
                pattern.extend(['[', lower, upper, ']']);
            }
            _ if letter.is_ascii_punctuation() && letter != '_' => pattern.extend(['\\', letter]),
            _ => pattern.push(letter),
        }
    }
    pattern
}

fn only(mut letters: impl Iterator<Item = char>) -> Option<char> {
    letters.next().filter(|_| letters.next().is_none())
}

fn only_rows(results: Vec<Vec<Row>>) -> impl Iterator<Item = Row> {
    results.into_iter().flatten()
}

/// Of results that end with those of the calendars, of [`LIMITS`] and of [`GET_TO_CHANGE`].
fn read_to_change(results: &[Vec<Row>]) -> Result<Option<(Limits, Prompt)>, DbError> {
    let [.., holidays, limits, prompt] = results else {
        return Err(DbError::Aborted);
    };
    let mut limits = read_limits(limits.first(), holidays)?;
    let Some(row) = prompt.first() else {
        return Ok(None);
    };
    limits.owner_email = column(row, "owner_email")?;
    Ok(Some((limits, read(row)?)))
}

pub(super) fn read_limits(row: Option<&Row>, holidays: &[Row]) -> Result<Limits, DbError> {
    let row = row.ok_or_else(|| DbError::Stored {
        what: "tenant",
        detail: "its row is gone".to_owned(),
    })?;
    Ok(Limits {
        now: column(row, "now")?,
        owner_email: column(row, "owner_email")?,
        default_timezone: column(row, "default_timezone")?,
        interval_minutes_min: column(row, "interval_minutes_min")?,
        active_prompts_max: column(row, "active_prompts_max")?,
        active_prompts: column(row, "active_prompts")?,
        holidays: calendars::read_holidays(holidays)?,
    })
}

fn read(row: &Row) -> Result<Prompt, DbError> {
    let status: String = column(row, "status")?;
    Ok(Prompt {
        id: PromptId::from(column::<Uuid>(row, "id")?),
        user_id: UserId::from(column::<Uuid>(row, "user_id")?),
        spec: column(row, "spec")?,
        status: PromptStatus::parse(&status).ok_or_else(|| DbError::Stored {
            what: "prompt status",
            detail: status,
        })?,
        status_reason: column(row, "status_reason")?,
        status_note: column(row, "status_note")?,
        schedule_type: column(row, "schedule_type")?,
        timezone: column(row, "timezone")?,
        next_run_at: column(row, "next_run_at")?,
        last_run_at: column(row, "last_run_at")?,
        last_status: column(row, "last_status")?,
        run_count: column(row, "run_count")?,
        success_count: column(row, "success_count")?,
        failure_count: column(row, "failure_count")?,
        consecutive_failures: column(row, "consecutive_failures")?,
        version: column(row, "version")?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
        completed_at: column(row, "completed_at")?,
        cancelled_at: column(row, "cancelled_at")?,
        sync: Standing::read(row)?,
    })
}

#[cfg(test)]
mod tests {
    use super::name_pattern;

    #[test]
    fn a_name_pattern_holds_no_live_metacharacter() {
        assert_eq!(name_pattern("a.*_("), r"[aA]\.\*_\(");
        assert_eq!(name_pattern("***:x"), r"\*\*\*\:[xX]");
        assert_eq!(name_pattern("Ü ß[1]"), r"[üÜ] ß\[1\]");
    }
}
