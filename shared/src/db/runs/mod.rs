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
    Claim, Intent, LockedRun, NextStep, claim, defer, lock, renew, skip, take_over, vanished_claim,
};
pub use plan::{DuePrompt, Glance, Writing, glance, lock_due, write_glanced, write_plan};
pub use record::{
    AfterFailure, Answer, Failure, FailureWriting, Kept, KeptDelivery, NewDelivery, Notice,
    Recorded, SealedSecrets, Spent, Tokens, finish_failure, record_failure, record_output,
    settle_late,
};
pub(super) use record::{
    COUNT_END, Counted, DeliveryRows, INSERT_DELIVERIES, INSERT_LOG, Log, NO_CODE, SECRETS, kept,
    sealed_secrets,
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;

use super::{DbError, calendars::holidays_of, column, prompts::dropped_row};
use crate::{
    exclusion::Holidays,
    prompt::PromptSpec,
    slots::{self, Dropped},
};

/// What a prompt's slots follow from, and the first that is not accounted for.
#[derive(Debug, Clone)]
pub struct DueSlots {
    /// That slot.
    pub first: DateTime<Utc>,
    /// The version that new runs use, as stored.
    pub spec: Value,
    /// What the calendars hold that it names.
    pub holidays: Holidays,
}

impl DueSlots {
    /// What of it is due. Of a prompt whose stored text cannot be read, that is its first slot.
    #[must_use]
    pub fn dropped(&self, now: DateTime<Utc>) -> Option<Dropped> {
        let spec = PromptSpec::from_stored(&self.spec).ok();
        slots::dropped(self.first, now, |after| {
            spec.as_ref()?.next_slot(after, &self.holidays)
        })
    }
}

/// The columns of [`DueSlots`], of a prompt `p` and its version `v`.
macro_rules! due_slots {
    () => {
        concat!(
            "p.next_run_at, v.spec, ",
            crate::db::calendars::named_holidays!("p.id")
        )
    };
}
use due_slots;

fn read_due_slots(row: &Row) -> Result<DueSlots, DbError> {
    Ok(DueSlots {
        first: column(row, "next_run_at")?,
        spec: column(row, "spec")?,
        holidays: holidays_of(column(row, "holidays")?)?,
    })
}

/// What is due of a run's prompt that its next failure pauses. In a statement of its own, as one that
/// waited for the prompt's lock would not see a version made meanwhile.
pub(super) const DUE_AT_PAUSE: &str = concat!(
    "-- runs::due_at_pause
     SELECT ",
    due_slots!(),
    "  FROM scheduled_prompt_runs r
       JOIN scheduled_prompts p ON p.tenant_id = r.tenant_id AND p.id = r.prompt_id
       JOIN prompt_versions v ON v.tenant_id = p.tenant_id AND v.prompt_id = p.id
                             AND v.version = p.spec_version
      WHERE r.id = $1 AND p.status = 'active' AND p.deleted_at IS NULL
        AND p.pause_after_failures > 0 AND p.consecutive_failures + 1 >= p.pause_after_failures
        AND p.next_run_at <= clock_timestamp()"
);

/// What [`DUE_AT_PAUSE`] found.
pub(super) fn due_at_pause(rows: &[Row]) -> Result<Option<DueSlots>, DbError> {
    rows.first().map(read_due_slots).transpose()
}

/// What is due when the last run that `max_runs` allows is claimed. To be sent after the count.
const DROP_OVER_LIMIT: &str = dropped_row!(
    "-- runs::drop_over_limit",
    "p.status = 'completed' AND p.status_reason = 'max_runs'"
);

/// Claims of one tenant take turns, so that its limit of running runs is exact. To be sent with the
/// claim and the commit: others wait no longer than those take.
const LOCK_CLAIMS: &str = "-- runs::lock_claims
    SELECT pg_advisory_xact_lock(
               hashtextextended('claims:' || current_setting('app.current_tenant_id'), 0))";

macro_rules! capacity {
    () => {
        "SELECT clock_timestamp() AS now, t.status = 'active' AS tenant_is_active, t.concurrent_runs_max,
                (SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'running') AS running
           FROM tenants t"
    };
}
use capacity;

const CAPACITY: &str = concat!("-- runs::capacity\n         ", capacity!());

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
