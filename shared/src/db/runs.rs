//! Runs: from a due slot to a final status.
//!
//! Every change locks the prompt's row first and the run's row after it, so that two changes
//! cannot wait for each other. Every write of a claimant names its fence; one that changes no row
//! is a [`DbError::StaleLease`]. Counters change in the transaction that records the fact.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    DbError, Param, TenantTx, column,
    deliveries::ATTEMPTS_MAX,
    tenant_tx::{Step, step},
};
use crate::{
    destination::Kind,
    ids::{AttemptId, DeliveryId, PromptId, RunId, TenantId},
    run::{RunStatus, RunTrigger},
    slots::{Fate, OpenRun, Plan},
};

/// Claims of one tenant take turns, so that its limit of running runs is exact.
const LOCK_CLAIMS: &str = "-- runs::lock_claims
    SELECT pg_advisory_xact_lock(
        hashtextextended('claims:' || current_setting('app.current_tenant_id'), 0))";

const CAPACITY: &str = "-- runs::capacity
    SELECT clock_timestamp() AS now, t.status = 'active' AS tenant_is_active, t.concurrent_runs_max,
           (SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'running') AS running
      FROM tenants t";

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

/// A model's answer, as it is kept.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The text.
    pub output: &'a str,
    /// The model stopped at its length limit.
    pub truncated: bool,
    /// SHA-256 of the text.
    pub sha256: [u8; 32],
    /// The model, as the provider names it.
    pub model: &'a str,
    /// Where a text over 256 KiB was stored; such a text is not kept in the row.
    pub output_uri: Option<&'a str>,
    /// What the call used; `None` when the provider did not say.
    pub tokens: Option<Tokens>,
    /// US dollars; `None` when the price is not known.
    pub cost_usd: Option<Decimal>,
    /// The price snapshot that gave the cost.
    pub price_version: &'a str,
    /// Of the call.
    pub latency_ms: i64,
}

/// Tokens of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens read, cached ones included.
    pub input: i64,
    /// Tokens written.
    pub output: i64,
    /// Tokens of the input that the provider had cached.
    pub cached: i64,
}

/// Facts about the prompt that a recording needs, locked.
#[derive(Debug)]
pub struct Recorded {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// When the run's first try began.
    pub started_at: DateTime<Utc>,
    /// What made the run.
    pub trigger: RunTrigger,
    /// The prompt is paused by this failure.
    pub pauses: bool,
    /// Failures in a row, with this one if it is one.
    pub consecutive_failures: i32,
    /// Who is told of a failure.
    pub notification_email: Option<String>,
    /// The tenant's sealed signing secrets.
    pub secrets: SealedSecrets,
    /// Webhooks that answered 410.
    pub gone_webhooks: Vec<String>,
}

impl Recorded {
    /// Who is told of a failure, and of what.
    #[must_use]
    pub fn notice(&self) -> Notice<'_> {
        Notice {
            at: self.now,
            to: self
                .notification_email
                .as_deref()
                .filter(|_| self.trigger != RunTrigger::Test),
            pauses: self.pauses,
            consecutive_failures: self.consecutive_failures,
        }
    }
}

/// Who is told of a failure, and of what.
#[derive(Debug, Clone, Copy)]
pub struct Notice<'a> {
    /// When it failed.
    pub at: DateTime<Utc>,
    /// The prompt's notification address; `None`: nobody is told.
    pub to: Option<&'a str>,
    /// The failure pauses the prompt.
    pub pauses: bool,
    /// Failures in a row, this one included.
    pub consecutive_failures: i32,
}

/// A tenant's webhook secrets, sealed.
#[derive(Debug, Clone)]
pub struct SealedSecrets {
    /// The one that signs.
    pub current: Vec<u8>,
    /// The one before it, within its overlap of 24 hours.
    pub previous: Option<Vec<u8>>,
}

/// A delivery to insert, held by its inserter.
#[derive(Debug)]
pub struct NewDelivery {
    /// Which.
    pub id: DeliveryId,
    /// `output`, `failure_notice` or `paused_notice`.
    pub purpose: &'static str,
    /// Place of the destination in the prompt's list.
    pub position: i32,
    /// How it goes out.
    pub kind: Kind,
    /// Addresses, URL or key.
    pub target: String,
    /// The destination as stored.
    pub destination: Value,
    /// The bytes that every attempt sends; `None`: the run's output itself.
    pub body: Option<Bytes>,
    /// Attempts at the most.
    pub attempts_max: i32,
}

/// Writes a model's answer into a claimed run: `generated` while deliveries are to follow, else
/// `succeeded`. One round trip; [`finish_output`] must follow in the same transaction.
///
/// # Errors
/// `DbError::StaleLease` when somebody else holds the run, or a caller cancelled it.
pub async fn record_output(
    tx: &TenantTx,
    claim: &Claim,
    answer: &Answer<'_>,
    status: RunStatus,
) -> Result<Recorded, DbError> {
    let run = claim.run_id.uuid();
    let bytes = i64::try_from(answer.output.len()).unwrap_or(i64::MAX);
    let inline = answer.output_uri.is_none().then_some(answer.output);
    let [input, output, cached] = columns_of(answer.tokens);
    let tokens_used = answer.tokens.map(|tokens| tokens.input + tokens.output);
    let sha256: &[u8] = &answer.sha256;
    let status = status.as_str();
    let update: [Param<'_>; 16] = [
        &run,
        &claim.fence,
        &status,
        &inline,
        &sha256,
        &bytes,
        &answer.truncated,
        &answer.model,
        &input,
        &output,
        &cached,
        &tokens_used,
        &answer.cost_usd,
        &answer.price_version,
        &answer.latency_ms,
        &answer.output_uri,
    ];
    recorded(
        tx,
        claim,
        step(
            "-- runs::record_output
             UPDATE scheduled_prompt_runs
                SET status = $3, output = $4, output_sha256 = $5, output_bytes = $6,
                    output_truncated = $7, model = $8, input_tokens = $9, output_tokens = $10,
                    cached_tokens = $11, tokens_used = $12, cost_usd = $13, price_version = $14,
                    latency_ms = $15, output_uri = $16, lease_expires_at = NULL, error_code = NULL,
                    error_message = NULL, reason = NULL,
                    completed_at = CASE WHEN $3 = 'succeeded' THEN clock_timestamp() END
              WHERE id = $1 AND fence = $2 AND status = 'running'
             RETURNING trigger, started_at",
            &update,
        ),
    )
    .await
}

/// Why a try failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// Fit for the tenant.
    pub message: String,
    /// What becomes of the run.
    pub then: AfterFailure,
    /// What the call used, where the model answered and the run failed all the same.
    pub spent: Option<Spent>,
}

/// What an answered call used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// `None` when the provider did not say.
    pub tokens: Option<Tokens>,
    /// US dollars; `None` when the price is not known.
    pub cost_usd: Option<Decimal>,
}

/// What becomes of a run whose try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Another try, so much later.
    RetryIn {
        /// Milliseconds.
        delay_ms: i64,
    },
    /// No other try: `failed` or `timed_out`.
    End(RunStatus),
}

impl AfterFailure {
    /// Whether no other try follows.
    #[must_use]
    pub fn ends(self) -> bool {
        match self {
            Self::RetryIn { .. } => false,
            Self::End(_) => true,
        }
    }
}

/// Writes a failed try into a claimed run. One round trip; [`finish_failure`] must follow in the
/// same transaction.
///
/// # Errors
/// `DbError::StaleLease` when somebody else holds the run, or a caller cancelled it.
pub async fn record_failure(
    tx: &TenantTx,
    claim: &Claim,
    failure: &Failure,
) -> Result<Recorded, DbError> {
    let (status, delay_ms) = match failure.then {
        AfterFailure::RetryIn { delay_ms } => (RunStatus::Queued, delay_ms),
        AfterFailure::End(status) => (status, 0),
    };
    let status = status.as_str();
    recorded(
        tx,
        claim,
        step(
            "-- runs::record_failure
             UPDATE scheduled_prompt_runs
                SET status = $3, error_code = $4, error_message = $5,
                    reason = CASE WHEN $3 <> 'queued' THEN $4 END,
                    lease_expires_at = NULL,
                    available_at = clock_timestamp() + $6::bigint * interval '1 millisecond',
                    completed_at = CASE WHEN $3 <> 'queued' THEN clock_timestamp() END
              WHERE id = $1 AND fence = $2 AND status = 'running'
             RETURNING trigger, started_at",
            &[
                &claim.run_id.uuid(),
                &claim.fence,
                &status,
                &failure.code,
                &failure.message,
                &delay_ms,
            ],
        ),
    )
    .await
}

fn columns_of(tokens: Option<Tokens>) -> [Option<i64>; 3] {
    [
        tokens.map(|tokens| tokens.input),
        tokens.map(|tokens| tokens.output),
        tokens.map(|tokens| tokens.cached),
    ]
}

async fn recorded(tx: &TenantTx, claim: &Claim, update: Step<'_>) -> Result<Recorded, DbError> {
    let prompt = claim.prompt_id.uuid();
    let results = tx
        .pipeline(&[
            step(
                "-- runs::lock_prompt
                 SELECT clock_timestamp() AS now, notification_email,
                        consecutive_failures + 1 AS consecutive_failures,
                        status = 'active' AND pause_after_failures > 0
                            AND consecutive_failures + 1 >= pause_after_failures AS pauses
                   FROM scheduled_prompts WHERE id = $1 FOR NO KEY UPDATE",
                &[&prompt],
            ),
            update,
            step(SECRETS, &[]),
            step(
                "-- runs::gone_webhooks
                 SELECT url FROM gone_webhooks ORDER BY url LIMIT 1000",
                &[],
            ),
        ])
        .await?;
    let [prompt, run, secrets, gone] = in_order(&results)?;
    let (Some(prompt), Some(run)) = (prompt.first(), run.first()) else {
        return Err(DbError::StaleLease);
    };
    let trigger: RunTrigger = word(run, "trigger")?;
    Ok(Recorded {
        now: column(prompt, "now")?,
        started_at: column(run, "started_at")?,
        trigger,
        pauses: column::<bool>(prompt, "pauses")? && trigger != RunTrigger::Test,
        consecutive_failures: column(prompt, "consecutive_failures")?,
        notification_email: column(prompt, "notification_email")?,
        secrets: sealed_secrets(secrets)?,
        gone_webhooks: gone
            .iter()
            .map(|row| column(row, "url"))
            .collect::<Result<_, _>>()?,
    })
}

/// Settles the attempt, inserts the deliveries as held by this claimant, counts, and commits.
/// Gives the deliveries that were inserted. One round trip.
///
/// # Errors
/// When the database does not answer; then nothing of the recording is kept.
pub async fn finish_output(
    tx: TenantTx,
    claim: &Claim,
    recorded: &Recorded,
    answer: &Answer<'_>,
    status: RunStatus,
    deliveries: &[&NewDelivery],
    lease_ms: i64,
) -> Result<Vec<DeliveryId>, DbError> {
    let tenant = tx.tenant().uuid();
    let run = claim.run_id.uuid();
    let [input, output, cached] = columns_of(answer.tokens);
    let cost = answer.cost_usd.unwrap_or_default();
    let rows = DeliveryRows::new(deliveries);
    let log = Log::new(
        "info",
        "model answered",
        json!({
            "attempt": claim.attempt,
            "latency_ms": answer.latency_ms,
            "input_tokens": input,
            "output_tokens": output,
            "output_truncated": answer.truncated,
        }),
    );
    let counted = Counted::of(status, recorded.trigger);
    let results = tx
        .commit_with(&[
            step(INSERT_DELIVERIES, &rows.params(&tenant, &run, &lease_ms)),
            step(
                "-- runs::settle_ok
             UPDATE run_attempts
                SET status = 'ok', input_tokens = $3, output_tokens = $4, cached_tokens = $5,
                    cost_usd = $6, ended_at = clock_timestamp()
              WHERE run_id = $1 AND fence = $2",
                &[
                    &run,
                    &claim.fence,
                    &input,
                    &output,
                    &cached,
                    &answer.cost_usd,
                ],
            ),
            step(
                COUNT_END,
                &[
                    &claim.prompt_id.uuid(),
                    &counted.successes,
                    &counted.failures,
                    &status.as_str(),
                    &counted.ends,
                    &false,
                ],
            ),
            step(
                USE_TOKENS,
                &[
                    &tenant,
                    &input.unwrap_or(0),
                    &output.unwrap_or(0),
                    &cost,
                    &true,
                ],
            ),
            step(INSERT_LOG, &log.params(&tenant, &run)),
        ])
        .await?;
    kept(results.first())
}

/// Settles the attempt, inserts a notice if there is one, counts, and commits. Gives the notices
/// that were inserted: the run may have sent one before. One round trip.
///
/// # Errors
/// When the database does not answer; then nothing of the recording is kept.
pub async fn finish_failure(
    tx: TenantTx,
    claim: &Claim,
    recorded: &Recorded,
    failure: &Failure,
    attempt_status: &'static str,
    notices: &[&NewDelivery],
    lease_ms: i64,
) -> Result<Vec<DeliveryId>, DbError> {
    let tenant = tx.tenant().uuid();
    let run = claim.run_id.uuid();
    let [input, output, cached] = columns_of(failure.spent.and_then(|spent| spent.tokens));
    let cost = failure.spent.and_then(|spent| spent.cost_usd);
    let rows = DeliveryRows::new(notices);
    let (status, level, words) = match failure.then {
        AfterFailure::RetryIn { .. } => {
            (RunStatus::Queued, "warn", "try failed, another will follow")
        }
        AfterFailure::End(status) => (status, "error", "run failed"),
    };
    let log = Log::new(
        level,
        words,
        json!({
            "attempt": claim.attempt,
            "attempts_max": claim.attempts_max,
            "code": failure.code,
        }),
    );
    let counted = Counted::of(status, recorded.trigger);
    let pauses = recorded.pauses && counted.failures > 0;
    let results = tx
        .commit_with(&[
            step(INSERT_DELIVERIES, &rows.params(&tenant, &run, &lease_ms)),
            step(
                "-- runs::settle_error
             UPDATE run_attempts
                SET status = $3, error_code = $4, input_tokens = $5, output_tokens = $6,
                    cached_tokens = $7, cost_usd = $8, ended_at = clock_timestamp()
              WHERE run_id = $1 AND fence = $2",
                &[
                    &run,
                    &claim.fence,
                    &attempt_status,
                    &failure.code,
                    &input,
                    &output,
                    &cached,
                    &cost,
                ],
            ),
            step(
                USE_TOKENS,
                &[
                    &tenant,
                    &input.unwrap_or(0),
                    &output.unwrap_or(0),
                    &cost.unwrap_or_default(),
                    &failure.spent.is_some(),
                ],
            ),
            step(
                DROP_PAUSED_SLOT,
                &[&claim.prompt_id.uuid(), &RunId::new().uuid(), &pauses],
            ),
            step(
                COUNT_END,
                &[
                    &claim.prompt_id.uuid(),
                    &counted.successes,
                    &counted.failures,
                    &status.as_str(),
                    &counted.ends,
                    &pauses,
                ],
            ),
            step(INSERT_LOG, &log.params(&tenant, &run)),
        ])
        .await?;
    kept(results.first())
}

/// Keeps what a call cost although its run belongs to somebody else by now. Ends the transaction.
/// One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn settle_late(
    tx: TenantTx,
    claim: &Claim,
    answer: Option<&Answer<'_>>,
) -> Result<(), DbError> {
    let [input, output, cached] = columns_of(answer.and_then(|answer| answer.tokens));
    let cost = answer.and_then(|answer| answer.cost_usd);
    let status = if answer.is_some() { "ok" } else { "unknown" };
    tx.commit_with(&[step(
        "-- runs::settle_late
         WITH settled AS (
             UPDATE run_attempts
                SET status = $3, input_tokens = $4, output_tokens = $5, cached_tokens = $6,
                    cost_usd = $7, error_code = 'stale_lease', ended_at = clock_timestamp()
              WHERE run_id = $1 AND fence = $2 AND status IN ('started', 'unknown')
             RETURNING tenant_id, status, input_tokens, output_tokens, cost_usd
         )
         INSERT INTO tenant_usage (tenant_id, period, runs, input_tokens, output_tokens, cost_settled_usd)
         SELECT tenant_id, date_trunc('month', now() AT TIME ZONE 'UTC')::date, 1,
                coalesce(input_tokens, 0), coalesce(output_tokens, 0), coalesce(cost_usd, 0)
           FROM settled WHERE status = 'ok'
         ON CONFLICT (tenant_id, period) DO UPDATE
            SET runs = tenant_usage.runs + 1,
                input_tokens = tenant_usage.input_tokens + excluded.input_tokens,
                output_tokens = tenant_usage.output_tokens + excluded.output_tokens,
                cost_settled_usd = tenant_usage.cost_settled_usd + excluded.cost_settled_usd",
        &[
            &claim.run_id.uuid(),
            &claim.fence,
            &status,
            &input,
            &output,
            &cached,
            &cost,
        ],
    )])
    .await?;
    Ok(())
}

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
                  WHERE prompt_id = $1 AND status = 'queued'
             ), made AS (
                 INSERT INTO scheduled_prompt_runs
                        (tenant_id, id, prompt_id, scheduled_for, trigger, status, attempts_max, prompt_version)
                 SELECT tenant_id, $2, id, clock_timestamp(), $3, 'queued', max_retries + 1, spec_version
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
                            next_attempt_at = clock_timestamp()
                      WHERE run_id = $1 AND purpose = 'output' AND status IN ('exhausted', 'held')",
                    &[&run, &ATTEMPTS_MAX],
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

pub(super) const LOCK_PROMPT_OF_RUN: &str = "-- runs::lock_prompt_of_run
    SELECT p.id FROM scheduled_prompts p
      JOIN scheduled_prompt_runs r ON r.tenant_id = p.tenant_id AND r.prompt_id = p.id
     WHERE r.id = $1 FOR NO KEY UPDATE OF p";

const SETTLE_UNKNOWN: &str = "-- runs::settle_unknown
    UPDATE run_attempts SET status = 'unknown', ended_at = clock_timestamp()
     WHERE run_id = $1 AND status = 'started'";

pub(super) const SECRETS: &str = "-- runs::secrets
    SELECT webhook_secret_sealed AS current,
           CASE WHEN webhook_secret_rotated_at > clock_timestamp() - interval '24 hours'
                THEN webhook_secret_previous_sealed END AS previous
      FROM tenants";

/// A run that fails again after a retry has another notice, behind the earlier ones.
pub(super) const INSERT_DELIVERIES: &str = "-- runs::insert_deliveries
    INSERT INTO deliveries
           (tenant_id, run_id, id, purpose, position, kind, target, destination, body, attempts_max,
            status, attempt, fence, lease_expires_at)
    SELECT $1, $2, t.id, t.purpose,
           t.position + CASE t.purpose WHEN 'output' THEN 0 ELSE (
               SELECT count(*)::int FROM deliveries earlier
                WHERE earlier.run_id = $2 AND earlier.purpose = t.purpose) END,
           t.kind, t.target, t.destination, t.body, t.attempts_max,
           'sending', 1, 1, clock_timestamp() + $3::bigint * interval '1 millisecond'
      FROM unnest($4::uuid[], $5::text[], $6::int[], $7::text[], $8::text[], $9::jsonb[], $10::bytea[],
                  $11::int[])
        AS t (id, purpose, position, kind, target, destination, body, attempts_max)
    ON CONFLICT (tenant_id, run_id, purpose, position) DO NOTHING
    RETURNING id";

/// The deliveries that [`INSERT_DELIVERIES`] kept: a run has one notice of each sort, however often
/// it fails.
pub(super) fn kept(rows: Option<&Vec<Row>>) -> Result<Vec<DeliveryId>, DbError> {
    let rows = rows.into_iter().flatten();
    rows.map(|row| Ok(DeliveryId::from(column::<Uuid>(row, "id")?)))
        .collect()
}

/// An answered call, where $5 says that there was one.
const USE_TOKENS: &str = "-- runs::use_tokens
    INSERT INTO tenant_usage (tenant_id, period, runs, input_tokens, output_tokens, cost_settled_usd)
    SELECT $1::uuid, date_trunc('month', now() AT TIME ZONE 'UTC')::date, 1, $2::bigint, $3::bigint,
           $4::numeric
     WHERE $5::boolean
    ON CONFLICT (tenant_id, period) DO UPDATE
       SET runs = tenant_usage.runs + 1,
           input_tokens = tenant_usage.input_tokens + excluded.input_tokens,
           output_tokens = tenant_usage.output_tokens + excluded.output_tokens,
           cost_settled_usd = tenant_usage.cost_settled_usd + excluded.cost_settled_usd";

pub(super) const INSERT_LOG: &str = "-- runs::log
    INSERT INTO run_logs (tenant_id, run_id, id, level, message, context)
    VALUES ($1, $2, $3, $4, $5, $6)";

/// A run's end: $2 successes and $3 failures more, $5 whether it ended, $6 whether that pauses.
pub(super) const COUNT_END: &str = "-- runs::count_end
    UPDATE scheduled_prompts
       SET success_count = success_count + $2::int,
           failure_count = failure_count + $3::int,
           consecutive_failures = CASE WHEN $2::int > 0 THEN 0 ELSE greatest(consecutive_failures + $3::int, 0) END,
           last_status = $4::text,
           last_run_at = clock_timestamp(),
           status = CASE WHEN $6::boolean THEN 'paused' ELSE status END,
           status_reason = CASE WHEN $6::boolean THEN 'failures' ELSE status_reason END,
           next_run_at = CASE WHEN $6::boolean THEN NULL ELSE next_run_at END,
           version = version + CASE WHEN $6::boolean THEN 1 ELSE 0 END
     WHERE id = $1 AND $5::boolean";

/// A slot that was due when its prompt was paused, and that nobody had looked at: $3 says whether
/// the prompt is paused. To be sent before [`COUNT_END`], which takes the slot away.
pub(super) const DROP_PAUSED_SLOT: &str = "-- runs::drop_paused_slot
    INSERT INTO scheduled_prompt_runs
           (tenant_id, id, prompt_id, scheduled_for, trigger, status, reason, attempts_max,
            prompt_version, completed_at)
    SELECT p.tenant_id, $2, p.id, p.next_run_at, 'schedule', 'skipped', 'paused',
           p.max_retries + 1, p.spec_version, clock_timestamp()
      FROM scheduled_prompts p
     WHERE p.id = $1 AND $3::boolean AND p.next_run_at <= clock_timestamp()
    ON CONFLICT (tenant_id, prompt_id, scheduled_for)
       WHERE trigger IN ('schedule', 'backfill') DO NOTHING";

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

/// What a run's new status adds to its prompt's counters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) successes: i32,
    pub(super) failures: i32,
    pub(super) ends: bool,
}

impl Counted {
    /// The run has not ended.
    pub(super) const NOTHING: Self = Self {
        successes: 0,
        failures: 0,
        ends: false,
    };

    pub(super) fn of(status: RunStatus, trigger: RunTrigger) -> Self {
        let counts = trigger != RunTrigger::Test;
        let (successes, failures) = match status {
            RunStatus::Succeeded => (1, 0),
            RunStatus::Failed | RunStatus::TimedOut => (0, 1),
            RunStatus::Queued
            | RunStatus::Running
            | RunStatus::Generated
            | RunStatus::Cancelled
            | RunStatus::Skipped
            | RunStatus::Missed => (0, 0),
        };
        Self {
            successes,
            failures,
            ends: counts && status.is_final(),
        }
    }
}

/// One line of a run's log.
pub(super) struct Log {
    id: Uuid,
    level: &'static str,
    message: &'static str,
    context: Value,
}

impl Log {
    pub(super) fn new(level: &'static str, message: &'static str, context: Value) -> Self {
        Self {
            id: Uuid::now_v7(),
            level,
            message,
            context,
        }
    }

    pub(super) fn params<'a>(&'a self, tenant: &'a Uuid, run: &'a Uuid) -> [Param<'a>; 6] {
        [
            tenant,
            run,
            &self.id,
            &self.level,
            &self.message,
            &self.context,
        ]
    }
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

/// Columns of `runs::insert_deliveries`.
#[derive(Default)]
pub(super) struct DeliveryRows<'a> {
    ids: Vec<Uuid>,
    purposes: Vec<&'static str>,
    positions: Vec<i32>,
    kinds: Vec<&'static str>,
    targets: Vec<&'a str>,
    destinations: Vec<&'a Value>,
    bodies: Vec<Option<&'a [u8]>>,
    attempts_max: Vec<i32>,
}

impl<'a> DeliveryRows<'a> {
    pub(super) fn new(deliveries: &[&'a NewDelivery]) -> Self {
        let mut rows = Self::default();
        for delivery in deliveries {
            rows.ids.push(delivery.id.uuid());
            rows.purposes.push(delivery.purpose);
            rows.positions.push(delivery.position);
            rows.kinds.push(delivery.kind.as_str());
            rows.targets.push(&delivery.target);
            rows.destinations.push(&delivery.destination);
            rows.bodies.push(delivery.body.as_deref());
            rows.attempts_max.push(delivery.attempts_max);
        }
        rows
    }

    pub(super) fn params(
        &'a self,
        tenant: &'a Uuid,
        run: &'a Uuid,
        lease_ms: &'a i64,
    ) -> [Param<'a>; 11] {
        [
            tenant,
            run,
            lease_ms,
            &self.ids,
            &self.purposes,
            &self.positions,
            &self.kinds,
            &self.targets,
            &self.destinations,
            &self.bodies,
            &self.attempts_max,
        ]
    }
}

pub(super) fn sealed_secrets(rows: &[Row]) -> Result<SealedSecrets, DbError> {
    let row = rows.first().ok_or(DbError::StaleLease)?;
    Ok(SealedSecrets {
        current: column(row, "current")?,
        previous: column(row, "previous")?,
    })
}

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

fn open_run(row: &Row) -> Result<OpenRun, DbError> {
    Ok(OpenRun {
        id: RunId::from(column::<Uuid>(row, "id")?),
        queued: column::<String>(row, "status")? == "queued",
    })
}

fn has_capacity(row: &Row) -> Result<bool, DbError> {
    let running: i64 = column(row, "running")?;
    let running_max: i32 = column(row, "concurrent_runs_max")?;
    Ok(running < i64::from(running_max))
}

fn runs_left(max_runs: Option<i32>, run_count: i64, queued: usize) -> Option<u64> {
    let taken = run_count.saturating_add(i64::try_from(queued).unwrap_or(i64::MAX));
    max_runs.map(|max| u64::try_from(i64::from(max).saturating_sub(taken)).unwrap_or(0))
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
