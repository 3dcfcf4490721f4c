//! The look at a prompt whose slots are due, and the writing of what becomes of them.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{DbError, TenantTx, column, tenant_tx::step},
    CAPACITY, Claim, Intent, LOCK_CLAIMS, has_capacity, in_order, previous_output,
};
use crate::{
    ids::{AttemptId, PromptId, RunId},
    run::RunStatus,
    slots::{Fate, OpenRun, Plan},
};

/// The prompt of a wake-up, locked, and what stands in its way.
#[derive(Debug)]
pub struct DuePrompt {
    /// Which.
    pub prompt_id: PromptId,
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// The first slot that is not yet accounted for.
    pub next_run_at: DateTime<Utc>,
    /// The version that new runs use.
    pub spec_version: i64,
    /// That version, as stored.
    pub spec: Value,
    /// The output of the last success, where that version may name it.
    pub previous_output: Option<String>,
    /// Runs that `max_runs` still allows, queued ones taken off.
    pub runs_left: Option<u64>,
    /// Its runs that are not over, test runs apart.
    pub open: Vec<OpenRun>,
    /// Whether the tenant may have another run under way.
    pub has_capacity: bool,
}

/// Locks a prompt if it and its tenant are active and a slot of it is due. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn lock_due(tx: &TenantTx, prompt_id: PromptId) -> Result<Option<DuePrompt>, DbError> {
    let id = prompt_id.uuid();
    let results = tx
        .pipeline(&[
            step(
                "-- runs::lock_due
                 SELECT p.id FROM scheduled_prompts p
                  WHERE p.id = $1 AND p.status = 'active' AND p.deleted_at IS NULL
                    AND p.next_run_at <= clock_timestamp()
                    FOR NO KEY UPDATE",
                &[&id],
            ),
            // After the lock: a statement that waited for it would not see a version made meanwhile.
            step(
                concat!(
                    "-- runs::due
                     SELECT p.next_run_at, p.spec_version, p.run_count, p.max_runs, v.spec, ",
                    previous_output!("p.id"),
                    "  FROM scheduled_prompts p
                       JOIN prompt_versions v ON v.tenant_id = p.tenant_id AND v.prompt_id = p.id
                                             AND v.version = p.spec_version
                      WHERE p.id = $1 AND p.status = 'active' AND p.deleted_at IS NULL
                        AND p.next_run_at <= clock_timestamp()"
                ),
                &[&id],
            ),
            step(LOCK_CLAIMS, &[]),
            step(
                "-- runs::open_of_prompt
                 SELECT id, status, attempt FROM scheduled_prompt_runs
                  WHERE prompt_id = $1 AND status IN ('queued', 'running') AND trigger <> 'test'
                  ORDER BY created_at, id LIMIT 200",
                &[&id],
            ),
            step(CAPACITY, &[]),
        ])
        .await?;
    let [_, prompt, _, open, capacity] = in_order(&results)?;
    let (Some(prompt), Some(capacity)) = (prompt.first(), capacity.first()) else {
        return Ok(None);
    };
    if !column::<bool>(capacity, "tenant_is_active")? {
        return Ok(None);
    }
    let not_counted = open
        .iter()
        .map(|row| column::<i32>(row, "attempt"))
        .filter(|attempt| matches!(attempt, Ok(0)))
        .count();
    Ok(Some(DuePrompt {
        prompt_id,
        now: column(capacity, "now")?,
        next_run_at: column(prompt, "next_run_at")?,
        spec_version: column(prompt, "spec_version")?,
        spec: column(prompt, "spec")?,
        previous_output: column(prompt, "previous_output")?,
        runs_left: runs_left(
            column(prompt, "max_runs")?,
            column(prompt, "run_count")?,
            not_counted,
        ),
        open: open.iter().map(open_run).collect::<Result<_, _>>()?,
        has_capacity: has_capacity(capacity)?,
    }))
}

/// Writes a plan: a row per slot, the prompt's next slot, and, where `claim` is given, the claim
/// of the run that it names (one of the plan's rows). Ends the transaction. One round trip.
///
/// Gives `None` where nothing was claimed.
///
/// # Errors
/// When the database does not answer; then nothing is kept.
pub async fn write_plan(
    tx: TenantTx,
    due: &DuePrompt,
    plan: &Plan,
    attempts_max: i32,
    claim: Option<(RunId, &Intent)>,
) -> Result<Option<Claim>, DbError> {
    let tenant_id = tx.tenant();
    let tenant = tenant_id.uuid();
    let prompt = due.prompt_id.uuid();
    let rows = PlanRows::new(plan, claim.as_ref().map(|(id, _)| *id));
    let claimed = claim.as_ref().map(|(id, _)| id.uuid());
    let attempt_id = AttemptId::new().uuid();
    let none = Intent {
        rendered_input: None,
        rendered_system: None,
        provider: "",
        model: String::new(),
        lease_ms: 0,
    };
    let intent = claim.as_ref().map_or(&none, |(_, intent)| *intent);
    let ended = plan.next.is_none().then_some("schedule_ended");
    let results = tx
        .commit_with(&[
            step(
                "-- runs::insert_planned
                 INSERT INTO scheduled_prompt_runs
                        (tenant_id, id, prompt_id, scheduled_for, trigger, status, reason,
                         error_message, slots_count, scheduled_until, attempts_max, prompt_version,
                         completed_at)
                 SELECT $1, t.id, $2, t.scheduled_for, 'schedule', t.status, t.reason,
                        t.message, t.slots_count, t.scheduled_until, $3, $4,
                        CASE WHEN t.status <> 'queued' THEN clock_timestamp() END
                   FROM unnest($5::uuid[], $6::timestamptz[], $7::text[], $8::text[], $9::text[],
                               $10::int[], $11::timestamptz[])
                     AS t (id, scheduled_for, status, reason, message, slots_count, scheduled_until)
                 ON CONFLICT (tenant_id, prompt_id, scheduled_for)
                    WHERE trigger IN ('schedule', 'backfill') DO NOTHING",
                &[
                    &tenant,
                    &prompt,
                    &attempts_max,
                    &due.spec_version,
                    &rows.ids,
                    &rows.scheduled_for,
                    &rows.statuses,
                    &rows.reasons,
                    &rows.messages,
                    &rows.counts,
                    &rows.untils,
                ],
            ),
            step(
                "-- runs::claim_planned
                 UPDATE scheduled_prompt_runs
                    SET status = 'running', fence = 1, attempt = 1, started_at = clock_timestamp(),
                        lease_expires_at = clock_timestamp() + $2::bigint * interval '1 millisecond',
                        rendered_input = $3, provider = $4, model = $5, rendered_system = $6
                  WHERE id = $1 AND status = 'queued'
                 RETURNING id",
                &[
                    &claimed,
                    &intent.lease_ms,
                    &intent.rendered_input,
                    &intent.provider,
                    &intent.model,
                    &intent.rendered_system,
                ],
            ),
            step(
                "-- runs::intend_planned
                 INSERT INTO run_attempts (tenant_id, id, run_id, attempt, fence, status, provider, model)
                 SELECT tenant_id, $2, id, 1, 1, 'started', $3, $4
                   FROM scheduled_prompt_runs WHERE id = $1 AND status = 'running'",
                &[&claimed, &attempt_id, &intent.provider, &intent.model],
            ),
            step(
                "-- runs::advance_prompt
                 UPDATE scheduled_prompts p
                    SET run_count = n.run_count,
                        next_run_at = CASE WHEN n.reason IS NULL THEN $3::timestamptz END,
                        status = CASE WHEN n.reason IS NULL THEN p.status ELSE 'completed' END,
                        status_reason = coalesce(n.reason, p.status_reason),
                        completed_at = CASE WHEN n.reason IS NULL THEN p.completed_at
                                            ELSE clock_timestamp() END,
                        version = p.version + CASE WHEN n.reason IS NULL THEN 0 ELSE 1 END
                   FROM (SELECT q.run_count + c.claimed AS run_count,
                                CASE WHEN q.max_runs <= q.run_count + c.claimed THEN 'max_runs'
                                     ELSE $4::text END AS reason
                           FROM scheduled_prompts q,
                                (SELECT count(*) AS claimed FROM scheduled_prompt_runs
                                  WHERE id = $2 AND status = 'running') c
                          WHERE q.id = $1) n
                  WHERE p.id = $1",
                &[&prompt, &claimed, &plan.next, &ended],
            ),
        ])
        .await?;
    let claimed_rows = results.get(1).map_or(0, Vec::len);
    Ok(claim
        .filter(|_| claimed_rows == 1)
        .map(|(run_id, _)| Claim {
            tenant_id,
            prompt_id: due.prompt_id,
            run_id,
            fence: 1,
            attempt: 1,
            attempts_max,
        }))
}

/// Columns of `runs::insert_planned`.
#[derive(Default)]
struct PlanRows {
    ids: Vec<Uuid>,
    scheduled_for: Vec<DateTime<Utc>>,
    statuses: Vec<&'static str>,
    reasons: Vec<Option<&'static str>>,
    messages: Vec<Option<String>>,
    counts: Vec<i32>,
    untils: Vec<Option<DateTime<Utc>>>,
}

impl PlanRows {
    /// The first slot that runs gets the claimant's id.
    fn new(plan: &Plan, mut claimed: Option<RunId>) -> Self {
        let mut rows = Self::default();
        for planned in &plan.rows {
            let (status, reason, message, count, until) = match &planned.fate {
                Fate::Run => (RunStatus::Queued, None, None, 1, None),
                Fate::Overlapped { by } => (
                    RunStatus::Skipped,
                    Some("overlap"),
                    Some(format!("run {by} was under way")),
                    1,
                    None,
                ),
                Fate::OverLimit => (RunStatus::Skipped, Some("max_runs"), None, 1, None),
                Fate::Missed {
                    reason,
                    count,
                    until,
                } => (
                    RunStatus::Missed,
                    Some(*reason),
                    None,
                    *count,
                    (*count > 1).then_some(*until),
                ),
            };
            let id = if planned.fate == Fate::Run {
                claimed.take().unwrap_or_else(RunId::new)
            } else {
                RunId::new()
            };
            rows.ids.push(id.uuid());
            rows.scheduled_for.push(planned.scheduled_for);
            rows.statuses.push(status.as_str());
            rows.reasons.push(reason);
            rows.messages.push(message);
            rows.counts.push(count);
            rows.untils.push(until);
        }
        rows
    }
}

fn open_run(row: &Row) -> Result<OpenRun, DbError> {
    Ok(OpenRun {
        id: RunId::from(column::<Uuid>(row, "id")?),
        queued: column::<String>(row, "status")? == "queued",
    })
}

fn runs_left(max_runs: Option<i32>, run_count: i64, queued: usize) -> Option<u64> {
    let taken = run_count.saturating_add(i64::try_from(queued).unwrap_or(i64::MAX));
    max_runs.map(|max| u64::try_from(i64::from(max).saturating_sub(taken)).unwrap_or(0))
}
