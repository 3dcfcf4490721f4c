//! Which prompts the scheduler's entries do not yet follow, and who may make them.
//!
//! A claimant holds a prompt for a short lease, so that two that apply it do not overtake each other
//! outside; every write of it names its fence. Nothing here calls AWS.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;

use super::{
    DbError, Param, TenantTx, column,
    prompts::{PromptStatus, stored_spec},
    tenant_tx::step,
};
use crate::ids::{PromptId, TenantId};

/// What of a prompt's row its entries follow.
#[derive(Debug, Clone)]
pub struct Followed {
    /// Whose.
    pub tenant_id: TenantId,
    /// Which.
    pub prompt_id: PromptId,
    /// Counts the changes that the entries follow.
    pub generation: i64,
    /// Where it stands; `None` for one that was deleted.
    pub status: Option<PromptStatus>,
    /// Its next slot.
    pub next_run_at: Option<DateTime<Utc>>,
    /// What its owner wrote.
    pub spec: Value,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

/// The right to apply a prompt.
#[derive(Debug)]
pub struct Claim {
    /// What the entries are to follow.
    pub row: Followed,
    /// Whether entries of an earlier generation were applied to the end.
    pub applied_before: bool,
    /// Whether nobody has ever held this right, so that there is no entry yet.
    pub is_first: bool,
    /// Tries since the last success.
    pub attempts: i32,
    fence: i64,
}

/// How a prompt's entries stand to its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// They follow it.
    pub is_synced: bool,
    /// Why they do not: the last error.
    pub error: Option<String>,
    /// They are not tried again before the prompt changes, or a day has passed.
    pub is_refused: bool,
}

impl Standing {
    /// Of a row with the columns `is_synced`, `sync_error` and `sync_refused`.
    pub(super) fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            is_synced: column(row, "is_synced")?,
            error: column(row, "sync_error")?,
            is_refused: column(row, "sync_refused")?,
        })
    }
}

/// What came of asking for the right to apply a prompt.
#[derive(Debug)]
pub enum Claimed {
    /// It is ours.
    Ours(Box<Claim>),
    /// There is nothing to apply, or somebody else is at it.
    Not(Standing),
    /// There is no such prompt.
    NoSuchPrompt,
}

/// Takes the right to apply a prompt for `lease`, if its entries do not follow it and nobody has that
/// right. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn claim(tx: TenantTx, id: PromptId, lease: Duration) -> Result<Claimed, DbError> {
    let tenant_id = tx.tenant();
    let lease_ms = milliseconds(lease);
    let results = tx
        .commit_with(&[
            step(
                concat!(
                    "-- sync::claim
                     UPDATE scheduled_prompts p
                        SET sync_fence = p.sync_fence + 1,
                            sync_lease_expires_at = clock_timestamp() + $2::bigint * interval '1 millisecond'
                      WHERE p.id = $1 AND p.generation <> p.synced_generation
                        AND (p.sync_lease_expires_at IS NULL OR p.sync_lease_expires_at <= clock_timestamp())
                  RETURNING p.id, p.generation, p.status, p.deleted_at IS NOT NULL AS is_deleted,
                            p.next_run_at, clock_timestamp() AS now, p.sync_fence,
                            p.synced_generation > 0 AS applied_before, p.sync_attempts, ",
                    stored_spec!(),
                    " AS spec"
                ),
                &[&id.uuid(), &lease_ms],
            ),
            step(STANDING, &[&id.uuid()]),
        ])
        .await?;
    let mut rows = results.iter().map(|rows| rows.first());
    if let Some(row) = rows.next().flatten() {
        let fence: i64 = column(row, "sync_fence")?;
        return Ok(Claimed::Ours(Box::new(Claim {
            row: followed(tenant_id, id, row)?,
            applied_before: column(row, "applied_before")?,
            is_first: fence == 1,
            attempts: column(row, "sync_attempts")?,
            fence,
        })));
    }
    match rows.next().flatten() {
        Some(row) => Ok(Claimed::Not(Standing::read(row)?)),
        None => Ok(Claimed::NoSuchPrompt),
    }
}

/// What came of noting that a claimed generation was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The entries follow the row.
    Synced,
    /// Another generation is still to be applied: it began meanwhile, or somebody else applied it
    /// before our last call overwrote what they did.
    Again,
}

/// Notes that the entries follow the claimed generation, and gives the right back. Ends the
/// transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn settle(tx: TenantTx, claim: &Claim) -> Result<Settled, DbError> {
    let params: [Param<'_>; 3] = [
        &claim.row.prompt_id.uuid(),
        &claim.fence,
        &claim.row.generation,
    ];
    let results = tx
        .commit_with(&[
            step(
                "-- sync::settle
                 UPDATE scheduled_prompts p
                    SET synced_generation = $3, sync_lease_expires_at = NULL,
                        sync_error = NULL, sync_attempts = 0, sync_refused = false
                  WHERE p.id = $1 AND p.sync_fence = $2
              RETURNING p.generation = $3 AS is_synced",
                &params,
            ),
            step(DISOWN, &params),
        ])
        .await?;
    Ok(match results.iter().flatten().next() {
        Some(row) if column(row, "is_synced")? => Settled::Synced,
        Some(_) | None => Settled::Again,
    })
}

/// Why a prompt was not applied, and what follows.
#[derive(Debug)]
pub struct Failure {
    /// Fit for the tenant.
    pub error: String,
    /// When the sweeper tries again.
    pub retry_in: Duration,
    /// The entry is not fit to be sent, or AWS refused it.
    pub is_refused: bool,
    /// The last call may yet take effect, so the right is kept until its lease ends.
    pub outcome_unknown: bool,
}

/// Notes why the claimed generation was not applied. What it says is forgotten if another has begun
/// meanwhile, which is due at once. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn fail(tx: TenantTx, claim: &Claim, failure: &Failure) -> Result<(), DbError> {
    let (id, generation) = (claim.row.prompt_id.uuid(), claim.row.generation);
    tx.commit_with(&[
        step(
            "-- sync::fail
             UPDATE scheduled_prompts p
                SET sync_error = CASE WHEN p.generation = $3 THEN $4::text ELSE p.sync_error END,
                    sync_attempts = p.sync_attempts + CASE WHEN p.generation = $3 THEN 1 ELSE 0 END,
                    sync_refused = p.generation = $3 AND $6::boolean,
                    sync_due_at = clock_timestamp() + CASE WHEN p.generation = $3
                        THEN $5::bigint * interval '1 millisecond' ELSE interval '0' END,
                    sync_lease_expires_at = CASE WHEN $7::boolean THEN p.sync_lease_expires_at END
              WHERE p.id = $1 AND p.sync_fence = $2",
            &[
                &id,
                &claim.fence,
                &generation,
                &failure.error,
                &milliseconds(failure.retry_in),
                &failure.is_refused,
                &failure.outcome_unknown,
            ],
        ),
        step(DISOWN, &[&id, &claim.fence, &generation]),
    ])
    .await
    .map(drop)
}

/// What a prompt's entries follow, for one whose entries are said to follow it; `None` for any other.
/// Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn synced(tx: TenantTx, id: PromptId) -> Result<Option<Followed>, DbError> {
    let tenant_id = tx.tenant();
    let results = tx
        .commit_with(&[step(
            concat!(
                "-- sync::synced
                 SELECT p.id, p.generation, p.status, p.deleted_at IS NOT NULL AS is_deleted,
                        p.next_run_at, clock_timestamp() AS now, ",
                stored_spec!(),
                " AS spec
                   FROM scheduled_prompts p
                  WHERE p.id = $1 AND p.generation = p.synced_generation"
            ),
            &[&id.uuid()],
        )])
        .await?;
    let row = results.iter().flatten().next();
    row.map(|row| followed(tenant_id, id, row)).transpose()
}

/// Takes back that a prompt's entries follow it, so that they are applied again, at once. `false`
/// when nobody said so. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn mark_drifted(tx: TenantTx, id: PromptId) -> Result<bool, DbError> {
    let results = tx
        .commit_with(&[step(MARK_DRIFTED, &[&id.uuid(), &NO_GENERATION])])
        .await?;
    Ok(results.iter().flatten().next().is_some())
}

/// Says whether an entry that fired is one of another generation than the prompt's. If nobody knows
/// of it yet, the entries are to be applied again. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn mark_stale(tx: &TenantTx, id: PromptId, fired: i64) -> Result<bool, DbError> {
    let results = tx
        .pipeline(&[
            step(MARK_DRIFTED, &[&id.uuid(), &Some(fired)]),
            step(
                "-- sync::is_stale
                 SELECT p.id FROM scheduled_prompts p WHERE p.id = $1 AND p.generation <> $2",
                &[&id.uuid(), &fired],
            ),
        ])
        .await?;
    Ok(results.last().is_some_and(|rows| !rows.is_empty()))
}

const NO_GENERATION: Option<i64> = None;

/// $2: the generation that an entry shows, if it is known.
const MARK_DRIFTED: &str = "-- sync::mark_drifted
     UPDATE scheduled_prompts p
        SET synced_generation = 0, sync_due_at = clock_timestamp()
      WHERE p.id = $1 AND p.synced_generation = p.generation
        AND ($2::bigint IS NULL OR p.generation <> $2)
  RETURNING p.id";

/// A claimant that somebody else has overtaken may have overwritten, outside, what they applied. What
/// it applied itself is right if its generation is still the prompt's; else everything is taken back,
/// the right of whoever is at it now included.
const DISOWN: &str = "-- sync::disown
     UPDATE scheduled_prompts p
        SET synced_generation = 0, sync_fence = p.sync_fence + 1, sync_lease_expires_at = NULL,
            sync_due_at = clock_timestamp()
      WHERE p.id = $1 AND p.sync_fence <> $2 AND p.generation <> $3";

const STANDING: &str = "-- sync::standing
     SELECT p.generation = p.synced_generation AS is_synced, p.sync_error, p.sync_refused
       FROM scheduled_prompts p WHERE p.id = $1";

fn followed(tenant_id: TenantId, prompt_id: PromptId, row: &Row) -> Result<Followed, DbError> {
    let word: String = column(row, "status")?;
    let status = PromptStatus::parse(&word).ok_or_else(|| DbError::Stored {
        what: "prompt status",
        detail: word,
    })?;
    let is_deleted: bool = column(row, "is_deleted")?;
    Ok(Followed {
        tenant_id,
        prompt_id,
        generation: column(row, "generation")?,
        status: (!is_deleted).then_some(status),
        next_run_at: column(row, "next_run_at")?,
        spec: column(row, "spec")?,
        now: column(row, "now")?,
    })
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
