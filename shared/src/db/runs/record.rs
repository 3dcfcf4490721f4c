//! What a try of a run came to: the answer or the failure, its deliveries, and what it counts.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{
        Db, DbError, Param, TenantTx, column,
        prompts::{DROP_SLOTS, DroppedRow},
        suppression::suppressed_of,
        tenant_tx::{Step, step},
    },
    Claim, DUE_AT_PAUSE, DueSlots, due_at_pause, in_order, word,
};
use crate::{
    destination::Kind,
    ids::{AuditEventId, DeliveryId},
    run::{RunStatus, RunTrigger},
    slots::Dropped,
};

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
    /// What is due of the prompt, where this failure would pause it.
    pub due_at_pause: Option<DueSlots>,
    /// Who is told of a failure.
    pub notification_email: Option<String>,
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

/// What was kept of an answer, and what its deliveries need to go out.
#[derive(Debug)]
pub struct Kept {
    /// The deliveries that were inserted.
    pub deliveries: Vec<KeptDelivery>,
    /// The tenant's sealed signing secrets, where a webhook is to be signed.
    pub secrets: Option<SealedSecrets>,
    /// Those of its webhooks that answered 410.
    pub gone_webhooks: Vec<String>,
}

/// Writes a model's answer into a claimed run: `generated` while deliveries are to follow, else
/// `succeeded`. Settles the attempt, inserts the deliveries as held by this claimant, counts, and
/// commits. One round trip, which other tenants' transactions share.
///
/// # Errors
/// `DbError::StaleLease` when somebody else holds the run, or a caller cancelled it; with any error
/// nothing of it is kept, unless it stayed unknown whether the commit was.
pub async fn record_output(
    db: &Db,
    claim: &Claim,
    answer: &Answer<'_>,
    status: RunStatus,
    deliveries: &[&NewDelivery],
    lease_ms: i64,
) -> Result<Kept, DbError> {
    let tenant = claim.tenant_id.uuid();
    let (prompt, run) = (claim.prompt_id.uuid(), claim.run_id.uuid());
    let bytes = i64::try_from(answer.output.len()).unwrap_or(i64::MAX);
    let inline = answer.output_uri.is_none().then_some(answer.output);
    let [input, output, cached] = columns_of(answer.tokens);
    let tokens_used = answer.tokens.map(|tokens| tokens.input + tokens.output);
    let sha256: &[u8] = &answer.sha256;
    let counted = Counted::of(status, claim.trigger);
    let word = status.as_str();
    let rows = DeliveryRows::new(deliveries);
    let calls_webhooks = deliveries.iter().any(|one| one.kind == Kind::Webhook);
    let log = log_of_answer(claim, answer);
    let update: [Param<'_>; 20] = [
        &run,
        &claim.fence,
        &word,
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
        &log.id,
        &log.level,
        &log.message,
        &log.context,
    ];
    let results = db
        .fly(
            claim.tenant_id,
            &[
                step(LOCK_PROMPT, &[&prompt]),
                step(RECORD_OUTPUT, &update),
                step(INSERT_DELIVERIES, &rows.params(&tenant, &run, &lease_ms))
                    .when(!deliveries.is_empty()),
                step(
                    COUNT_END,
                    &[
                        &prompt,
                        &counted.successes,
                        &counted.failures,
                        &word,
                        &false,
                        &NO_CODE,
                        &AuditEventId::new().uuid(),
                    ],
                )
                .when(counted.ends),
                step(SECRETS, &[]).when(calls_webhooks),
                step(GONE_WEBHOOKS, &[]).when(calls_webhooks),
            ],
        )
        .await?;
    let [_, _, deliveries, _, secrets, gone] = in_order(&results)?;
    Ok(Kept {
        deliveries: kept(deliveries)?,
        secrets: secrets.first().map(sealed_secrets).transpose()?,
        gone_webhooks: urls(gone)?,
    })
}

/// Adds an answered call to what its tenant has used this month.
macro_rules! use_tokens {
    ($calls:literal) => {
        concat!(
            "INSERT INTO tenant_usage
                    (tenant_id, period, runs, input_tokens, output_tokens, cost_settled_usd)
             SELECT tenant_id, date_trunc('month', now() AT TIME ZONE 'UTC')::date, 1,
                    coalesce(input_tokens, 0), coalesce(output_tokens, 0), coalesce(cost_usd, 0)
               FROM ",
            $calls,
            " ON CONFLICT (tenant_id, period) DO UPDATE
                SET runs = tenant_usage.runs + 1,
                    input_tokens = tenant_usage.input_tokens + excluded.input_tokens,
                    output_tokens = tenant_usage.output_tokens + excluded.output_tokens,
                    cost_settled_usd = tenant_usage.cost_settled_usd + excluded.cost_settled_usd"
        )
    };
}

/// A claimant that was late ends its transaction here.
const RECORD_OUTPUT: &str = concat!(
    "-- runs::record_output
    WITH recorded AS (
        UPDATE scheduled_prompt_runs
           SET status = $3, output = $4, output_sha256 = $5, output_bytes = $6,
               output_truncated = $7, model = $8, input_tokens = $9, output_tokens = $10,
               cached_tokens = $11, tokens_used = $12, cost_usd = $13, price_version = $14,
               latency_ms = $15, output_uri = $16, lease_expires_at = NULL, error_code = NULL,
               error_message = NULL, reason = NULL,
               completed_at = CASE WHEN $3 = 'succeeded' THEN clock_timestamp() END
         WHERE id = $1 AND fence = $2 AND status = 'running'
        RETURNING tenant_id, id, fence, input_tokens, output_tokens, cached_tokens, cost_usd
    ), settled AS (
        UPDATE run_attempts a
           SET status = 'ok', input_tokens = r.input_tokens, output_tokens = r.output_tokens,
               cached_tokens = r.cached_tokens, cost_usd = r.cost_usd, ended_at = clock_timestamp()
          FROM recorded r
         WHERE a.tenant_id = r.tenant_id AND a.run_id = r.id AND a.fence = r.fence
    ), used AS (",
    use_tokens!("recorded"),
    "), logged AS (
        INSERT INTO run_logs (tenant_id, run_id, id, level, message, context)
        SELECT tenant_id, id, $17::uuid, $18::text, $19::text, $20::jsonb FROM recorded
    )
    SELECT (count(*) = 1)::lease_held AS held FROM recorded"
);

fn log_of_answer(claim: &Claim, answer: &Answer<'_>) -> Log {
    Log::new(
        "info",
        "model answered",
        json!({
            "attempt": claim.attempt,
            "latency_ms": answer.latency_ms,
            "input_tokens": answer.tokens.map(|tokens| tokens.input),
            "output_tokens": answer.tokens.map(|tokens| tokens.output),
            "output_truncated": answer.truncated,
        }),
    )
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
    let (prompt, run) = (claim.prompt_id.uuid(), claim.run_id.uuid());
    let results = tx
        .pipeline(&[
            step(LOCK_PROMPT, &[&prompt]),
            update,
            step(DUE_AT_PAUSE, &[&run]),
        ])
        .await?;
    let [prompt, run, due] = in_order(&results)?;
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
        due_at_pause: due_at_pause(due)?,
        notification_email: column(prompt, "notification_email")?,
    })
}

const LOCK_PROMPT: &str = "-- runs::lock_prompt
    SELECT clock_timestamp() AS now, notification_email,
           consecutive_failures + 1 AS consecutive_failures,
           status = 'active' AND pause_after_failures > 0
               AND consecutive_failures + 1 >= pause_after_failures AS pauses
      FROM scheduled_prompts WHERE id = $1 FOR NO KEY UPDATE";

/// What is written with a failed try.
#[derive(Debug, Clone, Copy)]
pub struct FailureWriting<'a> {
    /// `error` or `unknown`.
    pub attempt_status: &'static str,
    /// Who is told, held by this claimant for so many milliseconds.
    pub notices: &'a [&'a NewDelivery],
    /// How long.
    pub lease_ms: i64,
    /// What is due of the prompt, where this failure pauses it.
    pub dropped: Option<Dropped>,
}

/// Settles the attempt, inserts a notice if there is one, counts, and commits. Gives the notices
/// that were inserted: a run has one notice of its failure, however often it is retried. One round
/// trip.
///
/// # Errors
/// When the database does not answer; then nothing of the recording is kept.
pub async fn finish_failure(
    tx: TenantTx,
    claim: &Claim,
    recorded: &Recorded,
    failure: &Failure,
    writing: &FailureWriting<'_>,
) -> Result<Vec<KeptDelivery>, DbError> {
    let tenant = tx.tenant().uuid();
    let run = claim.run_id.uuid();
    let [input, output, cached] = columns_of(failure.spent.and_then(|spent| spent.tokens));
    let cost = failure.spent.and_then(|spent| spent.cost_usd);
    let rows = DeliveryRows::new(writing.notices);
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
    let dropped = DroppedRow::new(writing.dropped.filter(|_| pauses));
    let prompt = claim.prompt_id.uuid();
    let results = tx
        .commit_with(&[
            step(
                INSERT_DELIVERIES,
                &rows.params(&tenant, &run, &writing.lease_ms),
            )
            .when(!writing.notices.is_empty()),
            step(
                "-- runs::settle_error
             UPDATE run_attempts
                SET status = $3, error_code = $4, input_tokens = $5, output_tokens = $6,
                    cached_tokens = $7, cost_usd = $8, ended_at = clock_timestamp()
              WHERE run_id = $1 AND fence = $2",
                &[
                    &run,
                    &claim.fence,
                    &writing.attempt_status,
                    &failure.code,
                    &input,
                    &output,
                    &cached,
                    &cost,
                ],
            ),
            step(USE_TOKENS, &[&tenant, &input, &output, &cost]).when(failure.spent.is_some()),
            step(DROP_SLOTS, &dropped.params(&prompt, &"paused")).when(dropped.is_needed()),
            step(
                COUNT_END,
                &[
                    &prompt,
                    &counted.successes,
                    &counted.failures,
                    &status.as_str(),
                    &pauses,
                    &failure.code,
                    &AuditEventId::new().uuid(),
                ],
            )
            .when(counted.ends),
            step(INSERT_LOG, &log.params(&tenant, &run)),
        ])
        .await?;
    kept(results.first().map_or(&[], Vec::as_slice))
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
        concat!(
            "-- runs::settle_late
         WITH settled AS (
             UPDATE run_attempts
                SET status = $3, input_tokens = $4, output_tokens = $5, cached_tokens = $6,
                    cost_usd = $7, error_code = 'stale_lease', ended_at = clock_timestamp()
              WHERE run_id = $1 AND fence = $2 AND status IN ('started', 'unknown')
             RETURNING tenant_id, status, input_tokens, output_tokens, cost_usd
         ) ",
            use_tokens!("settled WHERE status = 'ok'"),
        ),
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

pub(in crate::db) const SECRETS: &str = "-- runs::secrets
    SELECT webhook_secret_sealed AS current,
           CASE WHEN webhook_secret_rotated_at > clock_timestamp() - interval '24 hours'
                THEN webhook_secret_previous_sealed END AS previous
      FROM tenants";

/// A run has one notice of its failure, however often it is retried: who asks for a retry looks at
/// it. A pause has a notice of its own each time.
pub(in crate::db) const INSERT_DELIVERIES: &str = concat!(
    "-- runs::insert_deliveries
    INSERT INTO deliveries
           (tenant_id, run_id, id, purpose, position, kind, target, destination, body, attempts_max,
            status, attempt, fence, lease_expires_at, suppressed)
    SELECT $1, $2, t.id, t.purpose,
           t.position + CASE t.purpose WHEN 'paused_notice' THEN notices.paused ELSE 0 END,
           t.kind, t.target, t.destination, t.body, t.attempts_max,
           'sending', 1, 1, clock_timestamp() + $3::bigint * interval '1 millisecond',
           ",
    suppressed_of!("t.kind", "t.target"),
    "
      FROM unnest($4::uuid[], $5::text[], $6::int[], $7::text[], $8::text[], $9::jsonb[], $10::bytea[],
                  $11::int[])
        AS t (id, purpose, position, kind, target, destination, body, attempts_max),
           (SELECT count(*) AS any, count(*) FILTER (WHERE purpose = 'paused_notice')::int AS paused
              FROM deliveries WHERE run_id = $2 AND purpose <> 'output') notices
     WHERE t.purpose <> 'failure_notice' OR notices.any = 0
    ON CONFLICT (tenant_id, run_id, purpose, position) DO NOTHING
    RETURNING id, suppressed"
);

/// A delivery that was inserted, and is held by its inserter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDelivery {
    /// Which.
    pub id: DeliveryId,
    /// Recipients that are to be left out, in lower case.
    pub suppressed: Vec<String>,
}

/// The deliveries that [`INSERT_DELIVERIES`] kept.
pub(in crate::db) fn kept(rows: &[Row]) -> Result<Vec<KeptDelivery>, DbError> {
    rows.iter()
        .map(|row| {
            Ok(KeptDelivery {
                id: DeliveryId::from(column::<Uuid>(row, "id")?),
                suppressed: column(row, "suppressed")?,
            })
        })
        .collect()
}

const GONE_WEBHOOKS: &str = "-- runs::gone_webhooks
    SELECT url FROM gone_webhooks ORDER BY url LIMIT 1000";

fn urls(rows: &[Row]) -> Result<Vec<String>, DbError> {
    rows.iter().map(|row| column(row, "url")).collect()
}

/// A call that was answered, and whose run failed all the same.
const USE_TOKENS: &str = concat!(
    "-- runs::use_tokens\n    ",
    use_tokens!(
        "(SELECT $1::uuid AS tenant_id, $2::bigint AS input_tokens, $3::bigint AS output_tokens,
                $4::numeric AS cost_usd) answered"
    )
);

pub(in crate::db) const INSERT_LOG: &str = "-- runs::log
    INSERT INTO run_logs (tenant_id, run_id, id, level, message, context)
    VALUES ($1, $2, $3, $4, $5, $6)";

/// A run's end: $2 successes and $3 failures more, $5 whether that pauses, $6 the failure's code, $7
/// the id of the audit event of a pause.
pub(in crate::db) const COUNT_END: &str = "-- runs::count_end
    WITH counted AS (
    UPDATE scheduled_prompts p
       SET success_count = p.success_count + $2::int,
           failure_count = p.failure_count + $3::int,
           consecutive_failures = f.in_a_row,
           last_status = $4::text,
           last_run_at = clock_timestamp(),
           status = CASE WHEN $5::boolean THEN 'paused' ELSE p.status END,
           status_reason = CASE WHEN $5::boolean THEN 'failures' ELSE p.status_reason END,
           status_note = CASE WHEN $5::boolean
                              THEN f.in_a_row || ' failed runs in a row; the last failed with ' || $6::text
                              ELSE p.status_note END,
           next_run_at = CASE WHEN $5::boolean THEN NULL ELSE p.next_run_at END,
           version = p.version + CASE WHEN $5::boolean THEN 1 ELSE 0 END
      FROM (SELECT q.id, CASE WHEN $2::int > 0 THEN 0
                              ELSE greatest(q.consecutive_failures + $3::int, 0) END AS in_a_row
              FROM scheduled_prompts q WHERE q.id = $1) f
     WHERE p.id = f.id
    RETURNING p.tenant_id, p.id, p.status_note)
    INSERT INTO audit_events (tenant_id, id, actor_kind, action, target_kind, target_id, result, detail)
    SELECT tenant_id, $7, 'system', 'prompt.paused', 'prompt', id, 'ok',
           jsonb_build_object('reason', 'failures', 'note', status_note)
      FROM counted WHERE $5::boolean";

/// For [`COUNT_END`], where nothing failed.
pub(in crate::db) const NO_CODE: &str = "";

/// What a run's new status adds to its prompt's counters.
#[derive(Debug, Clone, Copy)]
pub(in crate::db) struct Counted {
    pub(in crate::db) successes: i32,
    pub(in crate::db) failures: i32,
    pub(in crate::db) ends: bool,
}

impl Counted {
    /// The run has not ended.
    pub(in crate::db) const NOTHING: Self = Self {
        successes: 0,
        failures: 0,
        ends: false,
    };

    pub(in crate::db) fn of(status: RunStatus, trigger: RunTrigger) -> Self {
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
pub(in crate::db) struct Log {
    id: Uuid,
    level: &'static str,
    message: &'static str,
    context: Value,
}

impl Log {
    pub(in crate::db) fn new(level: &'static str, message: &'static str, context: Value) -> Self {
        Self {
            id: Uuid::now_v7(),
            level,
            message,
            context,
        }
    }

    pub(in crate::db) fn params<'a>(&'a self, tenant: &'a Uuid, run: &'a Uuid) -> [Param<'a>; 6] {
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

/// Columns of `runs::insert_deliveries`.
#[derive(Default)]
pub(in crate::db) struct DeliveryRows<'a> {
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
    pub(in crate::db) fn new(deliveries: &[&'a NewDelivery]) -> Self {
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

    pub(in crate::db) fn params(
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

pub(in crate::db) fn sealed_secrets(row: &Row) -> Result<SealedSecrets, DbError> {
    Ok(SealedSecrets {
        current: column(row, "current")?,
        previous: column(row, "previous")?,
    })
}
