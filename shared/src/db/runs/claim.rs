//! The look at one run, its claim, and the lease that the claim holds.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{DbError, TenantTx, column, prompts::DroppedRow, tenant_tx::step},
    CAPACITY, DROP_OVER_LIMIT, DueSlots, LOCK_CLAIMS, LOCK_PROMPT_OF_RUN, due_slots, has_capacity,
    in_order, one_changed, previous_output, read_due_slots, word,
};
use crate::{
    ids::{AttemptId, PromptId, RunId, TenantId},
    run::{RunStatus, RunTrigger},
    slots::Dropped,
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
    /// What made it.
    pub trigger: RunTrigger,
    /// What every write of this claimant names.
    pub fence: i64,
    /// The try that this claim makes, from 1.
    pub attempt: i32,
    /// Tries at the most.
    pub attempts_max: i32,
}

/// What a claimant is about to do.
#[derive(Debug, Clone, Default)]
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
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// What is due of its prompt, where this is the last run that `max_runs` allows.
    pub due_at_last: Option<DueSlots>,
    fence: i64,
    /// It has a claimant, who vanished: it is counted among the tenant's running runs.
    is_running: bool,
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
    /// Look again much later: an earlier slot of its backfill comes first, and calls it when it begins.
    WaitTurn,
    /// End it: every try was begun, and the last one's claimant vanished.
    GiveUp,
    /// End it unrun: `max_runs` was reached by others, or its prompt is paused.
    Skip(&'static str),
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
            step(LOCK_RUN, &[&id]),
            step(DUE_AT_LAST, &[&id]),
            step(CAPACITY, &[]),
        ])
        .await?;
    let [_, run, due, capacity] = in_order(&results)?;
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
        now: column(capacity, "now")?,
        due_at_last: due.first().map(read_due_slots).transpose()?,
        fence: column(run, "fence")?,
        is_running: word::<RunStatus>(run, "status")? == RunStatus::Running,
    }))
}

/// Of the runs of one prompt that wait, the oldest slot goes first; one whose looks fail does not
/// hold up the others.
const LOCK_RUN: &str = concat!(
    "-- runs::lock
     SELECT r.prompt_id, r.status, r.trigger, r.scheduled_for, r.rendered_input, r.rendered_system, r.fence, ",
    previous_output!("r.prompt_id"),
    ",
            r.attempt, r.attempts_max, v.spec,
            p.deleted_at IS NOT NULL AS prompt_deleted, p.status = 'cancelled' AS prompt_cancelled,
            p.status = 'paused' AND r.attempt = 0
                AND (r.trigger = 'schedule' OR r.trigger = 'backfill' AND p.status_reason IS NOT DISTINCT FROM 'failures')
                AS prompt_paused,
            r.available_at <= clock_timestamp() AS available,
            r.lease_expires_at <= clock_timestamp() AS lease_over,
            r.attempt = 0 AND r.trigger <> 'test' AND p.run_count >= p.max_runs AS over_limit,
            r.trigger IN ('schedule', 'backfill')
                AND ((SELECT count(*) FROM scheduled_prompt_runs o
                       WHERE o.prompt_id = r.prompt_id AND o.status = 'running'
                         AND o.trigger <> 'test' AND o.id <> r.id)
                     >= CASE p.overlap WHEN 'allow_all' THEN p.overlap_runs_max ELSE 1 END
                     OR p.overlap <> 'allow_all' AND EXISTS (
                         SELECT FROM scheduled_prompt_runs o
                          WHERE o.prompt_id = r.prompt_id AND o.status = 'queued'
                            AND o.attempt = 0 AND o.looks_failed = 0
                            AND (o.trigger = r.trigger AND o.scheduled_for < r.scheduled_for
                                 OR r.trigger = 'backfill' AND o.trigger = 'schedule'
                                    AND o.available_at <= clock_timestamp()))) AS overlapped,
            r.trigger = 'backfill' AND r.attempt = 0 AND EXISTS (
                SELECT FROM scheduled_prompt_runs o
                 WHERE o.backfill_id = r.backfill_id AND o.status = 'queued' AND o.attempt = 0
                   AND o.looks_failed = 0 AND o.scheduled_for < r.scheduled_for) AS waits_turn
       FROM scheduled_prompt_runs r
       JOIN scheduled_prompts p ON p.tenant_id = r.tenant_id AND p.id = r.prompt_id
       JOIN prompt_versions v ON v.tenant_id = r.tenant_id AND v.prompt_id = r.prompt_id
                             AND v.version = r.prompt_version
      WHERE r.id = $1 FOR NO KEY UPDATE OF r"
);

const DUE_AT_LAST: &str = concat!(
    "-- runs::due_at_last
     SELECT ",
    due_slots!(),
    "  FROM scheduled_prompt_runs r
       JOIN scheduled_prompts p ON p.tenant_id = r.tenant_id AND p.id = r.prompt_id
       JOIN prompt_versions v ON v.tenant_id = p.tenant_id AND v.prompt_id = p.id
                             AND v.version = p.spec_version
      WHERE r.id = $1 AND r.attempt = 0 AND r.trigger <> 'test' AND p.status = 'active'
        AND p.deleted_at IS NULL AND p.run_count + 1 >= p.max_runs
        AND p.next_run_at <= clock_timestamp()"
);

fn next_step(run: &Row, capacity: &Row) -> Result<NextStep, DbError> {
    // The sweeper passes over the tenant too; its runs are found again when it is resumed.
    if !column::<bool>(capacity, "tenant_is_active")? {
        return Ok(NextStep::Leave);
    }
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
        (RunStatus::Queued, None) => of_queued(run, capacity)?,
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

fn of_queued(run: &Row, capacity: &Row) -> Result<NextStep, DbError> {
    Ok(if column(run, "prompt_paused")? {
        NextStep::Skip("paused")
    } else if !column::<bool>(run, "available")? {
        NextStep::Leave
    } else if column::<Option<bool>>(run, "over_limit")?.unwrap_or(false) {
        NextStep::Skip("max_runs")
    } else if column(run, "waits_turn")? {
        NextStep::WaitTurn
    } else if column(run, "overlapped")? || !has_capacity(capacity)? {
        NextStep::Defer
    } else {
        NextStep::Claim
    })
}

/// Claims a locked run: the next fence, a lease, the intent of a model call; the attempt of a
/// vanished claimant becomes `unknown`. Where that begins the last run that `max_runs` allows,
/// `dropped` is recorded as skipped. Ends the transaction. One round trip.
///
/// Gives `None` where the tenant's last free place was taken meanwhile: the run waits on.
///
/// # Errors
/// When the database does not answer; then nothing is kept.
pub async fn claim(
    tx: TenantTx,
    run: &LockedRun,
    intent: &Intent,
    dropped: Option<Dropped>,
) -> Result<Option<Claim>, DbError> {
    let tenant_id = tx.tenant();
    let (id, fence, attempt) = (run.run_id.uuid(), run.fence + 1, run.attempt + 1);
    let (prompt, attempt_id) = (run.prompt_id.uuid(), AttemptId::new().uuid());
    let counts = run.attempt == 0 && run.trigger != RunTrigger::Test;
    let calls_next = run.attempt == 0 && run.trigger == RunTrigger::Backfill;
    let dropped = DroppedRow::new(dropped);
    let results = tx
        .commit_with(&[
            step(LOCK_CLAIMS, &[]).when(!run.is_running),
            step(
                CLAIM,
                &[
                    &id,
                    &fence,
                    &attempt,
                    &intent.lease_ms,
                    &intent.rendered_input,
                    &intent.provider,
                    &intent.model,
                    &intent.rendered_system,
                    &run.is_running,
                ],
            ),
            step(SETTLE_VANISHED, &[&id]),
            step(
                INTEND,
                &[&id, &attempt_id, &fence, &intent.provider, &intent.model],
            ),
            step(COUNT_CLAIM, &[&prompt, &id, &fence]).when(counts),
            step(DROP_OVER_LIMIT, &dropped.params(&prompt, &"max_runs")).when(dropped.is_needed()),
            step(CALL_NEXT_OF_BACKFILL, &[&id, &fence]).when(calls_next),
        ])
        .await?;
    let claimed = results.get(1).map_or(0, Vec::len);
    Ok((claimed == 1).then_some(Claim {
        tenant_id,
        prompt_id: run.prompt_id,
        run_id: run.run_id,
        trigger: run.trigger,
        fence,
        attempt,
        attempts_max: run.attempts_max,
    }))
}

/// Behind [`LOCK_CLAIMS`]: what is running is then counted as it is. $9: it is one of them.
const CLAIM: &str = "-- runs::claim
    UPDATE scheduled_prompt_runs
       SET status = 'running', fence = $2, attempt = $3,
           started_at = coalesce(started_at, clock_timestamp()),
           lease_expires_at = clock_timestamp() + $4::bigint * interval '1 millisecond',
           rendered_input = $5, provider = $6, model = $7, rendered_system = $8,
           looks_failed = 0, look_again_at = NULL
     WHERE id = $1 AND fence = $2::bigint - 1
       AND ($9::boolean OR (SELECT count(*) FROM scheduled_prompt_runs o WHERE o.status = 'running')
                         < (SELECT t.concurrent_runs_max FROM tenants t))
    RETURNING id";

/// Without a claim the run's fence is that of its last attempt, which was settled.
const SETTLE_VANISHED: &str = "-- runs::settle_vanished
    UPDATE run_attempts SET status = 'unknown', ended_at = clock_timestamp()
     WHERE run_id = $1 AND status = 'started'
       AND fence < (SELECT r.fence FROM scheduled_prompt_runs r WHERE r.id = $1)";

const INTEND: &str = "-- runs::intend
    INSERT INTO run_attempts (tenant_id, id, run_id, attempt, fence, status, provider, model)
    SELECT r.tenant_id, $2, r.id, r.attempt, r.fence, 'started', $4, $5
      FROM scheduled_prompt_runs r WHERE r.id = $1 AND r.fence = $3";

const COUNT_CLAIM: &str = "-- runs::count_claim
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
     WHERE p.id = $1
       AND EXISTS (SELECT FROM scheduled_prompt_runs r WHERE r.id = $2 AND r.fence = $3)";

/// The next one of a backfill begins no sooner than its pace says, and waits no longer.
const CALL_NEXT_OF_BACKFILL: &str = "-- runs::call_next_of_backfill
    UPDATE scheduled_prompt_runs n
       SET available_at = clock_timestamp() + next.pace_s * interval '1 second'
      FROM (SELECT q.tenant_id, q.id, b.pace_s
              FROM scheduled_prompt_runs r
              JOIN backfills b ON b.tenant_id = r.tenant_id AND b.id = r.backfill_id
             CROSS JOIN LATERAL (
                   SELECT w.tenant_id, w.id FROM scheduled_prompt_runs w
                    WHERE w.tenant_id = r.tenant_id AND w.backfill_id = r.backfill_id
                      AND w.status = 'queued' AND w.attempt = 0
                    ORDER BY w.scheduled_for LIMIT 1) q
             WHERE r.id = $1 AND r.fence = $2) next
     WHERE n.tenant_id = next.tenant_id AND n.id = next.id";

/// Puts a locked run off. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn defer(tx: TenantTx, run: &LockedRun, delay_ms: i64) -> Result<(), DbError> {
    tx.commit_with(&[step(
        "-- runs::defer
         UPDATE scheduled_prompt_runs
            SET available_at = clock_timestamp() + $2::bigint * interval '1 millisecond',
                looks_failed = 0, look_again_at = NULL
          WHERE id = $1 AND status = 'queued'",
        &[&run.run_id.uuid(), &delay_ms],
    )])
    .await?;
    Ok(())
}

/// Ends a locked run unrun, for the reason that [`NextStep::Skip`] gave. Ends the transaction. One
/// round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn skip(tx: TenantTx, run: &LockedRun, reason: &'static str) -> Result<(), DbError> {
    tx.commit_with(&[step(
        "-- runs::skip
         UPDATE scheduled_prompt_runs
            SET status = 'skipped', reason = $2, completed_at = clock_timestamp()
          WHERE id = $1 AND status = 'queued'",
        &[&run.run_id.uuid(), &reason],
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
        trigger: run.trigger,
        fence: run.fence,
        attempt: run.attempt,
        attempts_max: run.attempts_max,
    }
}

/// Takes a locked run that nobody gets on with, so that its end can be recorded in the same
/// transaction: without a try, and without a lease. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn take_over(tx: &TenantTx, run: &LockedRun) -> Result<Claim, DbError> {
    // The last try of a run that waits is settled, and must not be settled again with this one.
    let row = tx
        .query_opt(
            "-- runs::take_over
             UPDATE scheduled_prompt_runs
                SET status = 'running', started_at = coalesce(started_at, clock_timestamp()),
                    fence = fence + CASE status WHEN 'queued' THEN 1 ELSE 0 END
              WHERE id = $1 AND fence = $2 AND status IN ('queued', 'running')
             RETURNING fence",
            &[&run.run_id.uuid(), &run.fence],
        )
        .await?;
    let row = row.ok_or(DbError::StaleLease)?;
    Ok(Claim {
        fence: column(&row, "fence")?,
        ..vanished_claim(tx.tenant(), run)
    })
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
