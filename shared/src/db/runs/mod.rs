//! Runs: from a due slot to a final status.
//!
//! Every change locks the prompt's row first and the run's row after it, so that two changes
//! cannot wait for each other. Every write of a claimant names its fence; one that changes no row
//! is a [`DbError::StaleLease`]. Counters change in the transaction that records the fact.

mod change;
mod claim;
mod plan;
mod record;

pub use change::{Changed, Enqueue, QUEUED_MAX, cancel, cancel_queued, enqueue, retry};
pub use claim::{
    Claim, Intent, LockedRun, NextStep, claim, defer, lock, renew, skip_over_limit, vanished_claim,
};
pub use plan::{DuePrompt, lock_due, write_plan};
pub use record::{
    AfterFailure, Answer, Failure, NewDelivery, Notice, Recorded, SealedSecrets, Spent, Tokens,
    finish_failure, finish_output, record_failure, record_output, settle_late,
};
pub(super) use record::{
    COUNT_END, Counted, DROP_PAUSED_SLOT, DeliveryRows, INSERT_DELIVERIES, INSERT_LOG, Log,
    SECRETS, kept, sealed_secrets,
};

use tokio_postgres::Row;

use super::{DbError, column};

/// Claims of one tenant take turns, so that its limit of running runs is exact.
const LOCK_CLAIMS: &str = "-- runs::lock_claims
    SELECT pg_advisory_xact_lock(
        hashtextextended('claims:' || current_setting('app.current_tenant_id'), 0))";

const CAPACITY: &str = "-- runs::capacity
    SELECT clock_timestamp() AS now, t.status = 'active' AS tenant_is_active, t.concurrent_runs_max,
           (SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'running') AS running
      FROM tenants t";

const LOCK_PROMPT_OF_RUN: &str = "-- runs::lock_prompt_of_run
    SELECT p.id FROM scheduled_prompts p
      JOIN scheduled_prompt_runs r ON r.tenant_id = p.tenant_id AND r.prompt_id = p.id
     WHERE r.id = $1 FOR NO KEY UPDATE OF p";

const SETTLE_UNKNOWN: &str = "-- runs::settle_unknown
    UPDATE run_attempts SET status = 'unknown', ended_at = clock_timestamp()
     WHERE run_id = $1 AND status = 'started'";

/// The output of a prompt's last success, where the version `v` names it: most do not, and need not
/// carry it.
macro_rules! previous_output {
    ($prompt_id:literal) => {
        concat!(
            "CASE WHEN v.spec::text LIKE '%previous%' THEN (
                 SELECT o.output FROM scheduled_prompt_runs o
                  WHERE o.prompt_id = ",
            $prompt_id,
            " AND o.status = 'succeeded' AND o.trigger <> 'test'
                  ORDER BY o.completed_at DESC LIMIT 1) END AS previous_output"
        )
    };
}
use previous_output;

pub(super) fn word<T: std::str::FromStr>(row: &Row, name: &'static str) -> Result<T, DbError>
where
    T::Err: std::fmt::Display,
{
    column::<String>(row, name)?
        .parse()
        .map_err(|error: T::Err| DbError::Stored {
            what: name,
            detail: error.to_string(),
        })
}

fn has_capacity(row: &Row) -> Result<bool, DbError> {
    let running: i64 = column(row, "running")?;
    let running_max: i32 = column(row, "concurrent_runs_max")?;
    Ok(running < i64::from(running_max))
}

/// Whether the first statement of a pipeline changed its row.
pub(super) fn one_changed(results: &[Vec<Row>]) -> Result<(), DbError> {
    match results.first().map(Vec::as_slice) {
        Some([_]) => Ok(()),
        _ => Err(DbError::StaleLease),
    }
}

/// The results of a pipeline of that many statements.
fn in_order<const N: usize>(results: &[Vec<Row>]) -> Result<[&[Row]; N], DbError> {
    let results: &[Vec<Row>; N] = results.try_into().map_err(|_| DbError::Aborted)?;
    Ok(results.each_ref().map(Vec::as_slice))
}
