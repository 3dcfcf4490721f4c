//! What a preview has to know of its tenant. Nothing here writes.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    DbError, TenantTx, calendars, column,
    prompts::{self, Limits},
    tenant_tx::step,
};
use crate::{
    ids::PromptId,
    simulate::{CONFLICT_PROMPTS_MAX, CONFLICT_PROMPTS_MIN, Past},
};

/// What a preview is judged by and computed from.
#[derive(Debug)]
pub struct Basis {
    /// The tenant's limits.
    pub limits: Limits,
    /// The past of the prompt that was asked for, if it is there.
    pub past: Option<Past>,
}

/// Reads the tenant's limits, what the calendars of these names hold and, where a prompt is named, the
/// averages of its last hundred successful runs. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn basis(
    tx: &TenantTx,
    prompt_id: Option<PromptId>,
    calendars: &[&str],
) -> Result<Basis, DbError> {
    let prompt_id = prompt_id.map(PromptId::uuid);
    let results = tx
        .pipeline(&[
            step(calendars::HOLIDAYS, &[&calendars, &prompts::NO_PROMPT]),
            step(prompts::LIMITS, &[&prompts::NO_USER]),
            step(
                "-- preview::past
                 SELECT p.run_count, p.model, r.runs, r.input_tokens, r.output_tokens, r.cost_usd, r.latency_ms
                   FROM scheduled_prompts p,
                LATERAL (SELECT count(*) AS runs, round(avg(l.input_tokens))::bigint AS input_tokens,
                                round(avg(l.output_tokens))::bigint AS output_tokens,
                                round(avg(l.cost_usd), 6) AS cost_usd,
                                round(avg(l.latency_ms))::bigint AS latency_ms
                           FROM (SELECT s.input_tokens, s.output_tokens, s.cost_usd, s.latency_ms
                                   FROM scheduled_prompt_runs s
                                  WHERE s.tenant_id = p.tenant_id AND s.prompt_id = p.id
                                    AND s.status = 'succeeded'
                                  ORDER BY s.completed_at DESC LIMIT 100) l) r
                  WHERE p.id = $1 AND p.deleted_at IS NULL",
                &[&prompt_id],
            ),
        ])
        .await?;
    let [holidays, limits, past] = results.as_slice() else {
        return Err(DbError::Aborted);
    };
    let past = past.first().map(|row| {
        Ok::<_, DbError>(Past {
            run_count: count(column(row, "run_count")?),
            model: column(row, "model")?,
            runs: count(column(row, "runs")?),
            input_tokens: column::<Option<i64>>(row, "input_tokens")?.map(count),
            output_tokens: column::<Option<i64>>(row, "output_tokens")?.map(count),
            cost_usd: column(row, "cost_usd")?,
            latency_ms: column::<Option<i64>>(row, "latency_ms")?.map(count),
        })
    });
    Ok(Basis {
        limits: prompts::read_limits(limits.first(), holidays)?,
        past: past.transpose()?,
    })
}

/// Counts, for each of these slots, the other active prompts that wait for it, and gives those slots
/// for which many do. Ends the transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn conflicts(
    tx: TenantTx,
    slots: &[DateTime<Utc>],
    prompt_id: Option<PromptId>,
) -> Result<Vec<(DateTime<Utc>, i64)>, DbError> {
    let prompt_id: Option<Uuid> = prompt_id.map(PromptId::uuid);
    // LEAST is what the index has.
    let results = tx
        .commit_with(&[step(
            "-- preview::conflicts
             SELECT s.slot, o.prompts
               FROM unnest($1::timestamptz[]) AS s (slot),
            LATERAL (SELECT count(*) AS prompts
                       FROM (SELECT FROM scheduled_prompts p
                              WHERE LEAST(p.next_run_at, 'infinity') = s.slot AND p.status = 'active'
                                AND p.deleted_at IS NULL AND p.id IS DISTINCT FROM $2
                              LIMIT $3) q) o
              WHERE o.prompts >= $4
              ORDER BY s.slot",
            &[
                &slots,
                &prompt_id,
                &CONFLICT_PROMPTS_MAX,
                &CONFLICT_PROMPTS_MIN,
            ],
        )])
        .await?;
    let rows = results.iter().flatten();
    rows.map(|row| Ok((column(row, "slot")?, column(row, "prompts")?)))
        .collect()
}

/// A count is never negative.
fn count(number: i64) -> u64 {
    number.unsigned_abs()
}
