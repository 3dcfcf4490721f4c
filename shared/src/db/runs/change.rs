//! What callers ask of runs: a run now, a cancellation, a retry.

use super::{
    super::{DbError, TenantTx, column, tenant_tx::step},
    LOCK_PROMPT_OF_RUN, SETTLE_UNKNOWN, word,
};
use crate::{
    ids::{PromptId, RunId},
    run::{DELIVERY_ATTEMPTS_MAX, RunStatus, RunTrigger},
};

/// What became of a request to run a prompt now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueue {
    /// The run waits for a claimant.
    Queued(RunId),
    /// There is no such prompt.
    NoSuchPrompt,
    /// The prompt has ended.
    PromptEnded,
    /// As many of its runs wait as may.
    TooManyQueued,
}

/// Runs of a prompt that may wait at once before a caller's next one is refused.
pub const QUEUED_MAX: i64 = 100;

/// Makes a run outside the schedule. A paused prompt may be run by hand. Two round trips with
/// the commit, which is the caller's.
///
/// # Errors
/// When the database does not answer.
pub async fn enqueue(
    tx: &TenantTx,
    prompt_id: PromptId,
    trigger: RunTrigger,
) -> Result<Enqueue, DbError> {
    let run_id = RunId::new();
    let row = tx
        .query_opt(
            "-- runs::enqueue
             WITH prompt AS (
                 SELECT tenant_id, id, spec_version, max_retries, status
                   FROM scheduled_prompts WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE
             ), waiting AS (
                 SELECT count(*) AS runs FROM scheduled_prompt_runs
                  WHERE prompt_id = $1 AND status = 'queued' AND trigger <> 'backfill'
             ), made AS (
                 INSERT INTO scheduled_prompt_runs
                        (tenant_id, id, prompt_id, scheduled_for, trigger, status, attempts_max, prompt_version,
                         available_at)
                 SELECT tenant_id, $2, id, clock_timestamp(), $3, 'queued', max_retries + 1, spec_version,
                        clock_timestamp()
                   FROM prompt, waiting
                  WHERE status IN ('active', 'paused') AND waiting.runs < $4
             )
             SELECT status IN ('active', 'paused') AS open, waiting.runs < $4 AS room FROM prompt, waiting",
            &[
                &prompt_id.uuid(),
                &run_id.uuid(),
                &trigger.as_str(),
                &QUEUED_MAX,
            ],
        )
        .await?;
    let Some(row) = row else {
        return Ok(Enqueue::NoSuchPrompt);
    };
    let (open, room): (bool, bool) = (column(&row, "open")?, column(&row, "room")?);
    Ok(match (open, room) {
        (false, _) => Enqueue::PromptEnded,
        (true, false) => Enqueue::TooManyQueued,
        (true, true) => Enqueue::Queued(run_id),
    })
}

/// What became of a request to change a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It was changed.
    Done,
    /// There is no such run.
    NoSuchRun,
    /// Its status does not allow it.
    Not(RunStatus),
    /// Its prompt was cancelled or deleted: the model is not called for it any more.
    PromptEnded,
}

/// Stops a run that is not over. A claimant finds its fence gone, and may yet say what its call
/// cost; deliveries that have not begun will not, and one that is being sent is not tried again.
///
/// # Errors
/// When the database does not answer.
pub async fn cancel(tx: &TenantTx, run_id: RunId) -> Result<Changed, DbError> {
    let Some(Standing { status, .. }) = lock_status(tx, run_id).await? else {
        return Ok(Changed::NoSuchRun);
    };
    if !status.may_become(RunStatus::Cancelled) {
        return Ok(Changed::Not(status));
    }
    tx.pipeline(&[
        step(
            "-- runs::cancel
             UPDATE scheduled_prompt_runs
                SET status = 'cancelled', reason = 'user', fence = fence + 1,
                    lease_expires_at = NULL, completed_at = clock_timestamp()
              WHERE id = $1",
            &[&run_id.uuid()],
        ),
        step(SETTLE_UNKNOWN, &[&run_id.uuid()]),
        step(
            "-- runs::cancel_deliveries
             UPDATE deliveries SET status = 'exhausted', error_code = 'cancelled',
                    error_message = 'the run was cancelled'
              WHERE run_id = $1 AND status IN ('pending', 'retrying') AND purpose = 'output'",
            &[&run_id.uuid()],
        ),
        step(
            "-- runs::last_attempts
             UPDATE deliveries SET attempts_max = attempt
              WHERE run_id = $1 AND status = 'sending' AND purpose = 'output'",
            &[&run_id.uuid()],
        ),
    ])
    .await?;
    Ok(Changed::Done)
}

/// Ends what waits of a prompt that is cancelled or deleted. The caller holds the prompt's lock.
///
/// # Errors
/// When the database does not answer.
pub async fn cancel_queued(
    tx: &TenantTx,
    prompt_id: PromptId,
    reason: &str,
) -> Result<u64, DbError> {
    tx.execute(
        "-- runs::cancel_queued
         UPDATE scheduled_prompt_runs
            SET status = 'cancelled', reason = $2, completed_at = clock_timestamp()
          WHERE prompt_id = $1 AND status = 'queued'",
        &[&prompt_id.uuid(), &reason],
    )
    .await
}

/// Runs a failed run again: the model where there is no output, else the deliveries that failed.
/// An endpoint that was gone is tried again.
///
/// # Errors
/// When the database does not answer.
pub async fn retry(tx: &TenantTx, run_id: RunId) -> Result<Changed, DbError> {
    let Some(standing) = lock_status(tx, run_id).await? else {
        return Ok(Changed::NoSuchRun);
    };
    let run = run_id.uuid();
    match (standing.status, standing.has_output) {
        (RunStatus::Failed, true) => {
            tx.pipeline(&[
                step(UNCOUNT_FAILURE, &[&run]),
                step(
                    "-- runs::retry_gone_webhooks
                     DELETE FROM gone_webhooks g USING deliveries d
                      WHERE d.run_id = $1 AND d.purpose = 'output' AND d.status IN ('exhausted', 'held')
                        AND g.tenant_id = d.tenant_id AND g.url = d.target",
                    &[&run],
                ),
                step(
                    "-- runs::retry_deliveries
                     UPDATE deliveries
                        SET status = 'pending', attempts_max = attempt + $2,
                            looks_failed = 0, look_again_at = NULL,
                            next_attempt_at = clock_timestamp()
                      WHERE run_id = $1 AND purpose = 'output' AND status IN ('exhausted', 'held')",
                    &[&run, &DELIVERY_ATTEMPTS_MAX],
                ),
                step(
                    "-- runs::reopen_generated
                     UPDATE scheduled_prompt_runs
                        SET status = 'generated', reason = NULL, completed_at = NULL
                      WHERE id = $1",
                    &[&run],
                ),
            ])
            .await?;
            Ok(Changed::Done)
        }
        (RunStatus::Failed | RunStatus::TimedOut, _) if standing.prompt_over => {
            Ok(Changed::PromptEnded)
        }
        (RunStatus::Failed | RunStatus::TimedOut, _) => {
            tx.pipeline(&[
                step(UNCOUNT_FAILURE, &[&run]),
                step(
                    "-- runs::retry
                     UPDATE scheduled_prompt_runs r
                        SET status = 'queued', reason = NULL, completed_at = NULL,
                            looks_failed = 0, look_again_at = NULL,
                            attempts_max = r.attempt + p.max_retries + 1,
                            available_at = clock_timestamp()
                       FROM scheduled_prompts p
                      WHERE r.id = $1 AND p.tenant_id = r.tenant_id AND p.id = r.prompt_id",
                    &[&run],
                ),
            ])
            .await?;
            Ok(Changed::Done)
        }
        (
            RunStatus::Queued
            | RunStatus::Running
            | RunStatus::Generated
            | RunStatus::Succeeded
            | RunStatus::Cancelled
            | RunStatus::Skipped
            | RunStatus::Missed,
            _,
        ) => Ok(Changed::Not(standing.status)),
    }
}

/// How a run stands, locked.
struct Standing {
    status: RunStatus,
    has_output: bool,
    /// Its prompt was cancelled or deleted.
    prompt_over: bool,
}

async fn lock_status(tx: &TenantTx, run_id: RunId) -> Result<Option<Standing>, DbError> {
    let id = run_id.uuid();
    let mut results = tx
        .pipeline(&[
            step(LOCK_PROMPT_OF_RUN, &[&id]),
            step(
                "-- runs::lock_status
                 SELECT r.status, r.output_sha256 IS NOT NULL AS has_output,
                        p.deleted_at IS NOT NULL OR p.status = 'cancelled' AS prompt_over
                   FROM scheduled_prompt_runs r
                   JOIN scheduled_prompts p ON p.tenant_id = r.tenant_id AND p.id = r.prompt_id
                  WHERE r.id = $1 FOR NO KEY UPDATE OF r",
                &[&id],
            ),
        ])
        .await?;
    results
        .pop()
        .unwrap_or_default()
        .first()
        .map(|row| {
            Ok(Standing {
                status: word(row, "status")?,
                has_output: column(row, "has_output")?,
                prompt_over: column(row, "prompt_over")?,
            })
        })
        .transpose()
}

/// To be sent before the run is reopened. The failures in a row are the newest ones that there are,
/// so this one is among them when fewer are newer.
const UNCOUNT_FAILURE: &str = "-- runs::uncount_failure
    UPDATE scheduled_prompts p
       SET failure_count = p.failure_count - 1,
           consecutive_failures = p.consecutive_failures - CASE WHEN p.consecutive_failures > (
               SELECT count(*) FROM scheduled_prompt_runs f
                WHERE f.prompt_id = r.prompt_id AND f.status IN ('failed', 'timed_out')
                  AND f.trigger <> 'test' AND f.completed_at > r.completed_at) THEN 1 ELSE 0 END
      FROM scheduled_prompt_runs r
     WHERE r.id = $1 AND r.trigger <> 'test' AND p.tenant_id = r.tenant_id AND p.id = r.prompt_id";
