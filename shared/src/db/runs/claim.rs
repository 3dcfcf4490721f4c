//! The look at one run, its claim, and the lease that the claim holds.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{DbError, TenantTx, column, tenant_tx::step},
    CAPACITY, LOCK_CLAIMS, LOCK_PROMPT_OF_RUN, SETTLE_UNKNOWN, has_capacity, in_order, one_changed,
    previous_output, word,
};
use crate::{
    ids::{AttemptId, PromptId, RunId, TenantId},
    run::{RunStatus, RunTrigger},
};

/// A run that a claimant holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Whose.
    pub tenant_id: TenantId,
    /// The prompt.
    pub prompt_id: PromptId,
    /// The run.
    pub run_id: RunId,
    /// What every write of this claimant names.
    pub fence: i64,
    /// The try that this claim makes, from 1.
    pub attempt: i32,
    /// Tries at the most.
    pub attempts_max: i32,
}

/// What a claimant is about to do.
#[derive(Debug, Clone)]
pub struct Intent {
    /// What the model is given; `None` when it could not be rendered, and the run will fail.
    pub rendered_input: Option<String>,
    /// The system message beside it.
    pub rendered_system: Option<String>,
    /// Whose model is called.
    pub provider: &'static str,
    /// The model asked for.
    pub model: String,
    /// How long the claim holds without being renewed, in milliseconds.
    pub lease_ms: i64,
}

/// A run of a wake-up, locked together with its prompt.
#[derive(Debug)]
pub struct LockedRun {
    /// Which.
    pub run_id: RunId,
    /// Its prompt.
    pub prompt_id: PromptId,
    /// What to do with it.
    pub next: NextStep,
    /// What made it.
    pub trigger: RunTrigger,
    /// Its slot, or when it was asked for.
    pub scheduled_for: DateTime<Utc>,
    /// The prompt's version that it runs.
    pub spec: Value,
    /// The output of the prompt's last success, where that version may name it.
    pub previous_output: Option<String>,
    /// What an earlier try gave the model.
    pub rendered_input: Option<String>,
    /// The system message beside it.
    pub rendered_system: Option<String>,
    /// Tries begun.
    pub attempt: i32,
    /// Tries at the most.
    pub attempts_max: i32,
    fence: i64,
}

/// What to do with a run that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Claim it.
    Claim,
    /// Leave it: it is over, held by somebody, not yet available, or its tenant is suspended.
    Leave,
    /// Look again later: the prompt's overlap policy or the tenant's limit is in the way.
    Defer,
    /// End it: every try was begun, and the last one's claimant vanished.
    GiveUp,
    /// End it unrun: `max_runs` was reached by others.
    SkipLimit,
    /// End it: its prompt was cancelled or deleted while an earlier try was under way.
    Cancel(&'static str),
}

/// Locks a run and its prompt and decides what to do. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(tx: &TenantTx, run_id: RunId) -> Result<Option<LockedRun>, DbError> {
    let id = run_id.uuid();
    let results = tx
        .pipeline(&[
            step(LOCK_PROMPT_OF_RUN, &[&id]),
            step(LOCK_CLAIMS, &[]),
            step(
                concat!(
                    "-- runs::lock
                 SELECT r.prompt_id, r.status, r.trigger, r.scheduled_for, r.rendered_input, r.rendered_system, r.fence, ",
                    previous_output!("r.prompt_id"),
                    ",
                        r.attempt, r.attempts_max, v.spec,
                        p.deleted_at IS NOT NULL AS prompt_deleted, p.status = 'cancelled' AS prompt_cancelled,
                        r.available_at <= clock_timestamp() AS available,
                        r.lease_expires_at <= clock_timestamp() AS lease_over,
                        r.attempt = 0 AND r.trigger <> 'test' AND p.run_count >= p.max_runs AS over_limit,
                        r.trigger IN ('schedule', 'backfill') AND p.overlap <> 'allow_all'
                            AND EXISTS (SELECT FROM scheduled_prompt_runs o
                                         WHERE o.prompt_id = r.prompt_id AND o.status = 'running'
                                           AND o.trigger <> 'test' AND o.id <> r.id) AS overlapped
                   FROM scheduled_prompt_runs r
                   JOIN scheduled_prompts p ON p.tenant_id = r.tenant_id AND p.id = r.prompt_id
                   JOIN prompt_versions v ON v.tenant_id = r.tenant_id AND v.prompt_id = r.prompt_id
                                         AND v.version = r.prompt_version
                  WHERE r.id = $1 FOR NO KEY UPDATE OF r"
                ),
                &[&id],
            ),
            step(CAPACITY, &[]),
        ])
        .await?;
    let [_, _, run, capacity] = in_order(&results)?;
    let (Some(run), Some(capacity)) = (run.first(), capacity.first()) else {
        return Ok(None);
    };
    Ok(Some(LockedRun {
        run_id,
        prompt_id: PromptId::from(column::<Uuid>(run, "prompt_id")?),
        next: next_step(run, capacity)?,
        trigger: word(run, "trigger")?,
        scheduled_for: column(run, "scheduled_for")?,
        spec: column(run, "spec")?,
        previous_output: column(run, "previous_output")?,
        rendered_input: column(run, "rendered_input")?,
        rendered_system: column(run, "rendered_system")?,
        attempt: column(run, "attempt")?,
        attempts_max: column(run, "attempts_max")?,
        fence: column(run, "fence")?,
    }))
}

fn next_step(run: &Row, capacity: &Row) -> Result<NextStep, DbError> {
    // The sweeper passes over the tenant too; its runs are found again when it is resumed.
    if !column::<bool>(capacity, "tenant_is_active")? {
        return Ok(NextStep::Leave);
    }
    let has_capacity = has_capacity(capacity)?;
    let spent = column::<i32>(run, "attempt")? >= column::<i32>(run, "attempts_max")?;
    let lease_over = column::<Option<bool>>(run, "lease_over")?.unwrap_or(true);
    let prompt_over = if column(run, "prompt_deleted")? {
        Some("prompt_deleted")
    } else if column(run, "prompt_cancelled")? {
        Some("prompt_cancelled")
    } else {
        None
    };
    Ok(match (word(run, "status")?, prompt_over) {
        (RunStatus::Queued, Some(reason)) => NextStep::Cancel(reason),
        (RunStatus::Running, Some(_)) if lease_over => NextStep::GiveUp,
        (RunStatus::Queued, None) if !column::<bool>(run, "available")? => NextStep::Leave,
        (RunStatus::Queued, None)
            if column::<Option<bool>>(run, "over_limit")?.unwrap_or(false) =>
        {
            NextStep::SkipLimit
        }
        (RunStatus::Queued, None) if column::<bool>(run, "overlapped")? || !has_capacity => {
            NextStep::Defer
        }
        (RunStatus::Queued, None) => NextStep::Claim,
        (RunStatus::Running, _) if !lease_over => NextStep::Leave,
        (RunStatus::Running, _) if spent => NextStep::GiveUp,
        (RunStatus::Running, _) => NextStep::Claim,
        (
            RunStatus::Generated
            | RunStatus::Succeeded
            | RunStatus::Failed
            | RunStatus::TimedOut
            | RunStatus::Cancelled
            | RunStatus::Skipped
            | RunStatus::Missed,
            _,
        ) => NextStep::Leave,
    })
}

/// Claims a locked run: the next fence, a lease, the intent of a model call; the attempt of a
/// vanished claimant becomes `unknown`. Where that begins the last run that `max_runs` allows, a
/// slot that is due and not planned yet is recorded as skipped. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer; then nothing is kept.
pub async fn claim(tx: TenantTx, run: &LockedRun, intent: &Intent) -> Result<Claim, DbError> {
    let tenant_id = tx.tenant();
    let (id, fence, attempt) = (run.run_id.uuid(), run.fence + 1, run.attempt + 1);
    let (prompt, attempt_id) = (run.prompt_id.uuid(), AttemptId::new().uuid());
    let counts = run.attempt == 0 && run.trigger != RunTrigger::Test;
    let results = tx.commit_with(&[
        step(
            "-- runs::claim
             UPDATE scheduled_prompt_runs
                SET status = 'running', fence = $2, attempt = $3,
                    started_at = coalesce(started_at, clock_timestamp()),
                    lease_expires_at = clock_timestamp() + $4::bigint * interval '1 millisecond',
                    rendered_input = $5, provider = $6, model = $7, rendered_system = $8
              WHERE id = $1 AND fence = $2::bigint - 1
             RETURNING id",
            &[
                &id,
                &fence,
                &attempt,
                &intent.lease_ms,
                &intent.rendered_input,
                &intent.provider,
                &intent.model,
                &intent.rendered_system,
            ],
        ),
        step(SETTLE_UNKNOWN, &[&id]),
        step(
            "-- runs::intend
             INSERT INTO run_attempts (tenant_id, id, run_id, attempt, fence, status, provider, model)
             VALUES ($1, $2, $3, $4, $5, 'started', $6, $7)",
            &[
                &tenant_id.uuid(),
                &attempt_id,
                &id,
                &attempt,
                &fence,
                &intent.provider,
                &intent.model,
            ],
        ),
        step(
            "-- runs::drop_slot_over_limit
             INSERT INTO scheduled_prompt_runs
                    (tenant_id, id, prompt_id, scheduled_for, trigger, status, reason, attempts_max,
                     prompt_version, completed_at)
             SELECT p.tenant_id, $2, p.id, p.next_run_at, 'schedule', 'skipped', 'max_runs',
                    p.max_retries + 1, p.spec_version, clock_timestamp()
               FROM scheduled_prompts p
              WHERE p.id = $1 AND $3::boolean AND p.status = 'active'
                AND p.run_count + 1 >= p.max_runs AND p.next_run_at <= clock_timestamp()
             ON CONFLICT (tenant_id, prompt_id, scheduled_for)
                WHERE trigger IN ('schedule', 'backfill') DO NOTHING",
            &[&prompt, &RunId::new().uuid(), &counts],
        ),
        step(
            "-- runs::count_claim
             UPDATE scheduled_prompts p
                SET run_count = p.run_count + 1,
                    next_run_at = CASE WHEN p.run_count + 1 >= p.max_runs THEN NULL ELSE p.next_run_at END,
                    completed_at = CASE WHEN p.status = 'active' AND p.run_count + 1 >= p.max_runs
                                        THEN clock_timestamp() ELSE p.completed_at END,
                    status_reason = CASE WHEN p.status = 'active' AND p.run_count + 1 >= p.max_runs
                                         THEN 'max_runs' ELSE p.status_reason END,
                    version = p.version + CASE WHEN p.status = 'active' AND p.run_count + 1 >= p.max_runs
                                               THEN 1 ELSE 0 END,
                    status = CASE WHEN p.status = 'active' AND p.run_count + 1 >= p.max_runs
                                  THEN 'completed' ELSE p.status END
              WHERE p.id = $1 AND $2::boolean",
            &[&prompt, &counts],
        ),
    ])
    .await?;
    one_changed(&results)?;
    Ok(Claim {
        tenant_id,
        prompt_id: run.prompt_id,
        run_id: run.run_id,
        fence,
        attempt,
        attempts_max: run.attempts_max,
    })
}

/// Puts a locked run off. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn defer(tx: TenantTx, run: &LockedRun, delay_ms: i64) -> Result<(), DbError> {
    tx.commit_with(&[step(
        "-- runs::defer
         UPDATE scheduled_prompt_runs
            SET available_at = clock_timestamp() + $2::bigint * interval '1 millisecond'
          WHERE id = $1 AND status = 'queued'",
        &[&run.run_id.uuid(), &delay_ms],
    )])
    .await?;
    Ok(())
}

/// Ends a locked run that `max_runs` leaves no room for. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn skip_over_limit(tx: TenantTx, run: &LockedRun) -> Result<(), DbError> {
    tx.commit_with(&[step(
        "-- runs::skip_over_limit
         UPDATE scheduled_prompt_runs
            SET status = 'skipped', reason = 'max_runs', completed_at = clock_timestamp()
          WHERE id = $1 AND status = 'queued'",
        &[&run.run_id.uuid()],
    )])
    .await?;
    Ok(())
}

/// The claim that a vanished claimant held, so that its failure can be recorded.
#[must_use]
pub fn vanished_claim(tenant_id: TenantId, run: &LockedRun) -> Claim {
    Claim {
        tenant_id,
        prompt_id: run.prompt_id,
        run_id: run.run_id,
        fence: run.fence,
        attempt: run.attempt,
        attempts_max: run.attempts_max,
    }
}

/// Holds a claim for longer. Ends the transaction. One round trip.
///
/// # Errors
/// `DbError::StaleLease` when somebody else holds the run, or a caller cancelled it.
pub async fn renew(tx: TenantTx, claim: &Claim, lease_ms: i64) -> Result<(), DbError> {
    let results = tx
        .commit_with(&[step(
            "-- runs::renew
             UPDATE scheduled_prompt_runs
                SET lease_expires_at = clock_timestamp() + $3::bigint * interval '1 millisecond'
              WHERE id = $1 AND fence = $2 AND status = 'running'
             RETURNING id",
            &[&claim.run_id.uuid(), &claim.fence, &lease_ms],
        )])
        .await?;
    one_changed(&results)
}
