//! What is deleted because its time is over, a part at a time.

use super::{DbError, TenantTx, tenant_tx::step};

/// How much one pass over a tenant deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Ended runs, with their attempts, logs and deliveries.
    pub runs: usize,
    /// Answers kept for `Idempotency-Key`.
    pub idempotency_keys: usize,
    /// Deleted prompts that no run names any more.
    pub prompts: usize,
    /// Backfills that no run names any more.
    pub backfills: usize,
}

/// Deletes at most `rows_max` rows of each kind, ends the transaction. One round trip.
///
/// Where prompts `have_entries`, a deleted prompt's row waits until they are gone: without it, nobody
/// would know that they are to go.
///
/// # Errors
/// When the database does not answer.
pub async fn expire(tx: TenantTx, rows_max: i64, have_entries: bool) -> Result<Expired, DbError> {
    let results = tx
        .commit_with(&[
            step(
                "-- retention::runs
                 DELETE FROM scheduled_prompt_runs r
                  USING (SELECT e.id
                           FROM tenants t
                          CROSS JOIN LATERAL (VALUES ('succeeded', t.retention_succeeded_days),
                                                     ('failed', t.retention_failed_days),
                                                     ('timed_out', t.retention_failed_days),
                                                     ('cancelled', t.retention_other_days),
                                                     ('skipped', t.retention_other_days),
                                                     ('missed', t.retention_other_days))
                                          AS s (status, days)
                          CROSS JOIN LATERAL (SELECT c.id FROM scheduled_prompt_runs c
                                               WHERE c.status = s.status
                                                 AND c.completed_at < now() - s.days * interval '1 day'
                                               ORDER BY c.completed_at LIMIT $1) e) old
                  WHERE r.id = old.id
                 RETURNING r.id",
                &[&rows_max],
            ),
            step(
                "-- retention::idempotency_keys
                 DELETE FROM idempotency_keys k
                  USING (SELECT key FROM idempotency_keys
                          WHERE created_at < now() - interval '24 hours'
                          ORDER BY created_at LIMIT $1) old
                  WHERE k.key = old.key
                 RETURNING k.key",
                &[&rows_max],
            ),
            step(
                "-- retention::prompts
                 DELETE FROM scheduled_prompts p
                  USING (SELECT d.id FROM scheduled_prompts d
                          WHERE d.deleted_at < now() - interval '1 hour'
                            AND (d.synced_generation = d.generation OR NOT $2)
                            AND NOT EXISTS (SELECT FROM scheduled_prompt_runs r WHERE r.prompt_id = d.id)
                          ORDER BY d.deleted_at LIMIT $1) old
                  WHERE p.id = old.id
                 RETURNING p.id",
                &[&rows_max, &have_entries],
            ),
            step(
                "-- retention::backfills
                 DELETE FROM backfills b
                  USING (SELECT d.id
                           FROM tenants t
                          CROSS JOIN LATERAL (
                                SELECT c.id FROM backfills c
                                 WHERE c.created_at < now() - t.retention_other_days * interval '1 day'
                                   AND NOT EXISTS (SELECT FROM scheduled_prompt_runs r
                                                    WHERE r.backfill_id = c.id)
                                 ORDER BY c.created_at LIMIT $1) d) old
                  WHERE b.id = old.id
                 RETURNING b.id",
                &[&rows_max],
            ),
        ])
        .await?;
    let count = |index: usize| results.get(index).map_or(0, Vec::len);
    Ok(Expired {
        runs: count(0),
        idempotency_keys: count(1),
        prompts: count(2),
        backfills: count(3),
    })
}
