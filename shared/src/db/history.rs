//! What has happened: runs, their attempts, logs and deliveries, read for callers.
//!
//! Nothing here writes. A list leaves out what may be long: outputs, inputs and delivery bodies.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::{Row, types::Timestamp};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{DbError, Param, TenantTx, column, prompts::Order, runs::word, tenant_tx::step};
use crate::{
    destination::Kind,
    ids::{AttemptId, BackfillId, DeliveryId, PromptId, RunId},
    run::{DeliveryStatus, RunStatus, RunTrigger},
};

/// A run as a list shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RunSummary {
    /// The run.
    pub id: RunId,
    /// Its prompt.
    pub prompt_id: PromptId,
    /// The slot; for a run without one, the instant it was asked for.
    pub scheduled_for: DateTime<Utc>,
    /// The last of the slots that this row stands for, where they are several.
    #[schema(required)]
    pub scheduled_until: Option<DateTime<Utc>>,
    /// How many slots this row stands for: more than one only for slots that did not run.
    pub slots_count: i32,
    /// What made it.
    pub trigger: RunTrigger,
    /// Where it stands.
    pub status: RunStatus,
    /// Why it was skipped, missed, cancelled or failed: a stable word. Skipped: `overlap`, `replaced`,
    /// `max_runs`, `paused`, `rescheduled`, `prompt_cancelled`, `prompt_deleted`. Missed: `too_late`,
    /// `misfire_skip`, `superseded`, `too_many`.
    #[schema(required)]
    pub reason: Option<String>,
    /// Of a skipped slot: the run that was in its way (`overlap`) or took its place (`replaced`). It may
    /// be gone by now.
    #[schema(required, value_type = Option<Uuid>)]
    pub overlapped_by: Option<RunId>,
    /// The backfill that asked for it.
    #[schema(required)]
    pub backfill_id: Option<BackfillId>,
    /// Tries begun.
    pub attempt: i32,
    /// Tries at the most.
    pub attempts_max: i32,
    /// A queued run is not begun before this.
    pub available_at: DateTime<Utc>,
    /// The version of the prompt that it runs.
    pub prompt_version: i64,
    /// Whose model was called.
    #[schema(required)]
    pub provider: Option<String>,
    /// The model that answered, as its provider names it.
    #[schema(required)]
    pub model: Option<String>,
    /// Tokens read, cached ones included.
    #[schema(required)]
    pub input_tokens: Option<i64>,
    /// Tokens written.
    #[schema(required)]
    pub output_tokens: Option<i64>,
    /// Tokens of the input that the provider had cached.
    #[schema(required)]
    pub cached_tokens: Option<i64>,
    /// Tokens read and written.
    #[schema(required)]
    pub tokens_used: Option<i64>,
    /// US dollars for the answered call; null when the price is not known.
    #[serde(with = "rust_decimal::serde::float_option")]
    #[schema(required, value_type = Option<f64>, example = 0.001275)]
    pub cost_usd: Option<Decimal>,
    /// The price list that gave the cost.
    #[schema(required)]
    pub price_version: Option<String>,
    /// How long the answered call took, in milliseconds.
    #[schema(required)]
    pub latency_ms: Option<i64>,
    /// Length of the whole output, in bytes.
    #[schema(required)]
    pub output_bytes: Option<i64>,
    /// SHA-256 of the whole output, in hexadecimal digits.
    #[schema(required)]
    pub output_sha256: Option<String>,
    /// Where an output over 256 KiB is kept.
    #[schema(required)]
    pub output_uri: Option<String>,
    /// Whether the model stopped at its length limit.
    pub output_truncated: bool,
    /// A stable word for the last error.
    #[schema(required)]
    pub error_code: Option<String>,
    /// The last error.
    #[schema(required)]
    pub error_message: Option<String>,
    /// W3C trace id.
    #[schema(required)]
    pub trace_id: Option<String>,
    /// W3C span id.
    #[schema(required)]
    pub span_id: Option<String>,
    /// When the first try began.
    #[schema(required)]
    pub started_at: Option<DateTime<Utc>>,
    /// When the status became final.
    #[schema(required)]
    pub completed_at: Option<DateTime<Utc>>,
    /// When the run was made.
    pub created_at: DateTime<Utc>,
}

/// A run, whole.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Run {
    /// What a list shows too.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// What the model was given.
    #[schema(required)]
    pub rendered_input: Option<String>,
    /// What it answered, to 256 KiB.
    #[schema(required)]
    pub output: Option<String>,
    /// Where an output over 256 KiB may be read, without a key and for 15 minutes; null where it is
    /// not kept in S3.
    #[schema(required)]
    pub output_url: Option<String>,
    /// Its model calls, the first one first.
    pub attempts: Vec<Attempt>,
}

/// One model call.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Attempt {
    /// The call.
    pub id: AttemptId,
    /// Which try of its run, from 1.
    pub attempt: i32,
    /// `started` while it is under way, then `ok`, `error`, or `unknown` when its caller vanished.
    #[schema(example = "ok")]
    pub status: String,
    /// Whose model was called.
    pub provider: String,
    /// The model asked for.
    pub model: String,
    /// Tokens read, cached ones included.
    #[schema(required)]
    pub input_tokens: Option<i64>,
    /// Tokens written.
    #[schema(required)]
    pub output_tokens: Option<i64>,
    /// Cached part of the input.
    #[schema(required)]
    pub cached_tokens: Option<i64>,
    /// US dollars; null when not known.
    #[serde(with = "rust_decimal::serde::float_option")]
    #[schema(required, value_type = Option<f64>, example = 0.001275)]
    pub cost_usd: Option<Decimal>,
    /// A stable word for what went wrong.
    #[schema(required)]
    pub error_code: Option<String>,
    /// Just before the call.
    pub started_at: DateTime<Utc>,
    /// When its outcome was known.
    #[schema(required)]
    pub ended_at: Option<DateTime<Utc>>,
}

/// One line of a run's log.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LogLine {
    /// The line.
    pub id: Uuid,
    /// When.
    pub at: DateTime<Utc>,
    /// `info`, `warn` or `error`.
    #[schema(example = "info")]
    pub level: String,
    /// What happened.
    pub message: String,
    /// Numbers and codes beside it.
    #[schema(value_type = Object)]
    pub context: Value,
}

/// One delivery, without the bytes that it carries.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Delivery {
    /// The delivery; a webhook's `webhook-id`, the same at every attempt.
    pub id: DeliveryId,
    /// Its run.
    pub run_id: RunId,
    /// `output`, or a notice to the prompt's notification email: `failure_notice`, `paused_notice`.
    #[schema(example = "output")]
    pub purpose: String,
    /// Place of the destination in the prompt's list.
    pub position: i32,
    /// How it goes out.
    pub kind: Kind,
    /// Where to: addresses, URL or key.
    pub target: String,
    /// Recipients that the last attempt left out, in lower case: they are suppressed.
    pub suppressed: Vec<String>,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Attempts begun.
    pub attempt: i32,
    /// Attempts at the most.
    pub attempts_max: i32,
    /// No attempt before this.
    pub next_attempt_at: DateTime<Utc>,
    /// HTTP or SMTP status of the last attempt.
    #[schema(required)]
    pub response_status: Option<i32>,
    /// The receiver's words, cut.
    #[schema(required)]
    pub response_excerpt: Option<String>,
    /// Where a stored output lies.
    #[schema(required)]
    pub location: Option<String>,
    /// A stable word for the last error.
    #[schema(required)]
    pub error_code: Option<String>,
    /// The last error.
    #[schema(required)]
    pub error_message: Option<String>,
    /// When it arrived.
    #[schema(required)]
    pub delivered_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Which runs a list holds. An empty list and `None` filter nothing.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Of this prompt.
    pub prompt_id: Option<PromptId>,
    /// One of these statuses.
    pub status: Vec<RunStatus>,
    /// Made by one of these.
    pub trigger: Vec<RunTrigger>,
    /// Made at or after it.
    pub since: Option<DateTime<Utc>>,
    /// Made before it.
    pub until: Option<DateTime<Utc>>,
}

/// Which part of a list of runs, and which way it runs.
#[derive(Debug, Clone)]
pub struct RunPage {
    /// Oldest or newest first.
    pub order: Order,
    /// The run that ended the page before.
    pub after: Option<(DateTime<Utc>, RunId)>,
    /// Runs at the most.
    pub rows_max: i64,
}

/// The columns of [`RunSummary`].
macro_rules! run_columns {
    () => {
        "r.id, r.prompt_id, r.scheduled_for, r.scheduled_until, r.slots_count, r.trigger, r.status,
         r.reason, r.overlapped_by, r.backfill_id, r.attempt, r.attempts_max, r.available_at, r.prompt_version, r.provider, r.model,
         r.input_tokens, r.output_tokens, r.cached_tokens, r.tokens_used, r.cost_usd, r.price_version,
         r.latency_ms, r.output_bytes, encode(r.output_sha256, 'hex') AS output_sha256, r.output_uri,
         r.output_truncated, r.error_code, r.error_message, r.trace_id, r.span_id, r.started_at,
         r.completed_at, r.created_at"
    };
}

/// The columns of [`Delivery`].
macro_rules! delivery_columns {
    () => {
        "d.id, d.run_id, d.purpose, d.position, d.kind, d.target, d.status, d.attempt, d.attempts_max,
         d.next_attempt_at, d.response_status, d.response_excerpt, d.location, d.error_code,
         d.error_message, d.delivered_at, d.created_at, d.suppressed"
    };
}

/// A page of runs. Every bound of the scan is there in every page, and the filters stand inside
/// COALESCE, for the reasons given at `prompts::list`.
macro_rules! list {
    ($name:literal, $only:literal, $compare:literal, $order:literal) => {
        concat!(
            "-- history::",
            $name,
            "
             SELECT ",
            run_columns!(),
            "
               FROM scheduled_prompt_runs r
              WHERE ",
            $only,
            " AND r.created_at >= $1 AND r.created_at < $2 AND (r.created_at, r.id) ",
            $compare,
            " ($3, $4)
                AND COALESCE(
                    ($5::text[] IS NULL OR r.status = ANY ($5))
                AND ($6::text[] IS NULL OR r.trigger = ANY ($6)), false)
              ORDER BY r.created_at ",
            $order,
            ", r.id ",
            $order,
            " LIMIT $7"
        )
    };
}

/// A page of the tenant's runs, or of one prompt's, by the time of their making. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn runs(
    tx: TenantTx,
    filter: &RunFilter,
    page: &RunPage,
) -> Result<Vec<RunSummary>, DbError> {
    let query = RunQuery::new(filter, page);
    let Some(prompt_id) = filter.prompt_id.map(PromptId::uuid) else {
        let sql = match page.order {
            Order::Asc => RUNS_ASC,
            Order::Desc => RUNS_DESC,
        };
        let rows = tx.commit_with(&[step(sql, &query.params())]).await?;
        return rows.iter().flatten().map(read_run).collect();
    };
    let params = query.params_of_prompt(&prompt_id);
    let rows = tx.commit_with(&[step(of_prompt(page), &params)]).await?;
    rows.iter().flatten().map(read_run).collect()
}

/// A page of the runs of a prompt, or `None` when callers see no such prompt. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn runs_of_prompt(
    tx: TenantTx,
    prompt_id: PromptId,
    filter: &RunFilter,
    page: &RunPage,
) -> Result<Option<Vec<RunSummary>>, DbError> {
    let query = RunQuery::new(filter, page);
    let prompt_id = prompt_id.uuid();
    let results = tx
        .commit_with(&[
            step(
                "-- history::prompt_exists
                 SELECT p.id FROM scheduled_prompts p WHERE p.id = $1 AND p.deleted_at IS NULL",
                &[&prompt_id],
            ),
            step(of_prompt(page), &query.params_of_prompt(&prompt_id)),
        ])
        .await?;
    if_found(&results, read_run)
}

/// Every text that sends a page of runs, for tests of their plans.
#[must_use]
pub fn list_statements() -> [&'static str; 4] {
    [RUNS_ASC, RUNS_DESC, RUNS_OF_PROMPT_ASC, RUNS_OF_PROMPT_DESC]
}

/// A run, whole. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn run(tx: TenantTx, id: RunId) -> Result<Option<Run>, DbError> {
    let id = id.uuid();
    let results = tx
        .commit_with(&[
            step(
                concat!(
                    "-- history::run
                     SELECT ",
                    run_columns!(),
                    ", r.rendered_input, r.output
                       FROM scheduled_prompt_runs r WHERE r.id = $1"
                ),
                &[&id],
            ),
            step(
                "-- history::attempts
                 SELECT a.id, a.attempt, a.status, a.provider, a.model, a.input_tokens, a.output_tokens,
                        a.cached_tokens, a.cost_usd, a.error_code, a.started_at, a.ended_at
                   FROM run_attempts a WHERE a.run_id = $1
                  ORDER BY a.fence LIMIT 1000",
                &[&id],
            ),
        ])
        .await?;
    let [found, attempts] = results.as_slice() else {
        return Err(DbError::Aborted);
    };
    let Some(row) = found.first() else {
        return Ok(None);
    };
    Ok(Some(Run {
        summary: read_run(row)?,
        rendered_input: column(row, "rendered_input")?,
        output: column(row, "output")?,
        output_url: None,
        attempts: attempts
            .iter()
            .map(read_attempt)
            .collect::<Result<_, _>>()?,
    }))
}

/// A page of a run's log, oldest line first, or `None` when there is no such run. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn logs(
    tx: TenantTx,
    run_id: RunId,
    after: Option<(DateTime<Utc>, Uuid)>,
    rows_max: i64,
) -> Result<Option<Vec<LogLine>>, DbError> {
    let run_id = run_id.uuid();
    let (at, line_id) = after.map_or((Timestamp::NegInfinity, Uuid::nil()), |(at, id)| {
        (Timestamp::Value(at), id)
    });
    let results = tx
        .commit_with(&[
            step(RUN_EXISTS, &[&run_id]),
            step(
                "-- history::logs
                 SELECT l.id, l.at, l.level, l.message, l.context
                   FROM run_logs l
                  WHERE l.run_id = $1 AND (l.at, l.id) > ($2, $3)
                  ORDER BY l.at, l.id LIMIT $4",
                &[&run_id, &at, &line_id, &rows_max],
            ),
        ])
        .await?;
    if_found(&results, read_log_line)
}

/// All deliveries of a run: those of its output in the order of its destinations, then notices.
/// `None` when there is no such run. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn deliveries(tx: TenantTx, run_id: RunId) -> Result<Option<Vec<Delivery>>, DbError> {
    let run_id = run_id.uuid();
    let results = tx
        .commit_with(&[
            step(RUN_EXISTS, &[&run_id]),
            step(
                concat!(
                    "-- history::deliveries
                     SELECT ",
                    delivery_columns!(),
                    "
                       FROM deliveries d WHERE d.run_id = $1
                      ORDER BY d.purpose <> 'output', d.created_at, d.position, d.id LIMIT 100"
                ),
                &[&run_id],
            ),
        ])
        .await?;
    if_found(&results, read_delivery)
}

/// A delivery, inside a transaction that goes on.
///
/// # Errors
/// When the database does not answer.
pub async fn delivery(tx: &TenantTx, id: DeliveryId) -> Result<Option<Delivery>, DbError> {
    let row = tx
        .query_opt(
            concat!(
                "-- history::delivery
                 SELECT ",
                delivery_columns!(),
                " FROM deliveries d WHERE d.id = $1"
            ),
            &[&id.uuid()],
        )
        .await?;
    row.as_ref().map(read_delivery).transpose()
}

/// The deliveries of a run that wait for a sender, inside a transaction that goes on.
///
/// # Errors
/// When the database does not answer.
pub async fn waiting_deliveries(tx: &TenantTx, run_id: RunId) -> Result<Vec<DeliveryId>, DbError> {
    let rows = tx
        .query(
            "-- history::waiting_deliveries
             SELECT d.id FROM deliveries d
              WHERE d.run_id = $1 AND d.status IN ('pending', 'retrying') LIMIT 100",
            &[&run_id.uuid()],
        )
        .await?;
    rows.iter()
        .map(|row| Ok(DeliveryId::from(column::<Uuid>(row, "id")?)))
        .collect()
}

/// A run as lists show it, inside a transaction that goes on.
///
/// # Errors
/// When the database does not answer.
pub async fn run_summary(tx: &TenantTx, id: RunId) -> Result<Option<RunSummary>, DbError> {
    let row = tx
        .query_opt(
            concat!(
                "-- history::run_summary
                 SELECT ",
                run_columns!(),
                " FROM scheduled_prompt_runs r WHERE r.id = $1"
            ),
            &[&id.uuid()],
        )
        .await?;
    row.as_ref().map(read_run).transpose()
}

const RUNS_ASC: &str = list!("runs_asc", "true", ">", "ASC");
const RUNS_DESC: &str = list!("runs_desc", "true", "<", "DESC");
const RUNS_OF_PROMPT_ASC: &str = list!("runs_of_prompt_asc", "r.prompt_id = $8", ">", "ASC");
const RUNS_OF_PROMPT_DESC: &str = list!("runs_of_prompt_desc", "r.prompt_id = $8", "<", "DESC");

const RUN_EXISTS: &str = "-- history::run_exists
     SELECT r.id FROM scheduled_prompt_runs r WHERE r.id = $1";

fn of_prompt(page: &RunPage) -> &'static str {
    match page.order {
        Order::Asc => RUNS_OF_PROMPT_ASC,
        Order::Desc => RUNS_OF_PROMPT_DESC,
    }
}

/// The bound values of a page of runs. Absent bounds are infinite, since a condition that may be
/// absent could not bound the index scan.
struct RunQuery {
    since: Timestamp<DateTime<Utc>>,
    until: Timestamp<DateTime<Utc>>,
    after_at: Timestamp<DateTime<Utc>>,
    after_id: Uuid,
    status: Option<Vec<&'static str>>,
    trigger: Option<Vec<&'static str>>,
    rows_max: i64,
}

impl RunQuery {
    fn new(filter: &RunFilter, page: &RunPage) -> Self {
        let (first_at, first_id) = match page.order {
            Order::Asc => (Timestamp::NegInfinity, Uuid::nil()),
            Order::Desc => (Timestamp::PosInfinity, Uuid::max()),
        };
        let (after_at, after_id) = page.after.map_or((first_at, first_id), |(at, id)| {
            (Timestamp::Value(at), id.uuid())
        });
        Self {
            since: filter
                .since
                .map_or(Timestamp::NegInfinity, Timestamp::Value),
            until: filter
                .until
                .map_or(Timestamp::PosInfinity, Timestamp::Value),
            after_at,
            after_id,
            status: (!filter.status.is_empty())
                .then(|| filter.status.iter().map(|word| word.as_str()).collect()),
            trigger: (!filter.trigger.is_empty())
                .then(|| filter.trigger.iter().map(|word| word.as_str()).collect()),
            rows_max: page.rows_max,
        }
    }

    fn params(&self) -> [Param<'_>; 7] {
        [
            &self.since,
            &self.until,
            &self.after_at,
            &self.after_id,
            &self.status,
            &self.trigger,
            &self.rows_max,
        ]
    }

    fn params_of_prompt<'a>(&'a self, prompt_id: &'a Uuid) -> [Param<'a>; 8] {
        let [since, until, at, id, status, trigger, rows_max] = self.params();
        [since, until, at, id, status, trigger, rows_max, prompt_id]
    }
}

/// The second result's rows, if the first one has any.
fn if_found<T>(
    results: &[Vec<Row>],
    read: impl Fn(&Row) -> Result<T, DbError>,
) -> Result<Option<Vec<T>>, DbError> {
    match results {
        [found, _] if found.is_empty() => Ok(None),
        [_, rows] => rows.iter().map(read).collect::<Result<_, _>>().map(Some),
        _ => Err(DbError::Aborted),
    }
}

fn read_run(row: &Row) -> Result<RunSummary, DbError> {
    Ok(RunSummary {
        id: RunId::from(column::<Uuid>(row, "id")?),
        prompt_id: PromptId::from(column::<Uuid>(row, "prompt_id")?),
        scheduled_for: column(row, "scheduled_for")?,
        scheduled_until: column(row, "scheduled_until")?,
        slots_count: column(row, "slots_count")?,
        trigger: word(row, "trigger")?,
        status: word(row, "status")?,
        reason: column(row, "reason")?,
        overlapped_by: column::<Option<Uuid>>(row, "overlapped_by")?.map(RunId::from),
        backfill_id: column::<Option<Uuid>>(row, "backfill_id")?.map(BackfillId::from),
        attempt: column(row, "attempt")?,
        attempts_max: column(row, "attempts_max")?,
        available_at: column(row, "available_at")?,
        prompt_version: column(row, "prompt_version")?,
        provider: column(row, "provider")?,
        model: column(row, "model")?,
        input_tokens: column(row, "input_tokens")?,
        output_tokens: column(row, "output_tokens")?,
        cached_tokens: column(row, "cached_tokens")?,
        tokens_used: column(row, "tokens_used")?,
        cost_usd: column(row, "cost_usd")?,
        price_version: column(row, "price_version")?,
        latency_ms: column(row, "latency_ms")?,
        output_bytes: column(row, "output_bytes")?,
        output_sha256: column(row, "output_sha256")?,
        output_uri: column(row, "output_uri")?,
        output_truncated: column(row, "output_truncated")?,
        error_code: column(row, "error_code")?,
        error_message: column(row, "error_message")?,
        trace_id: column(row, "trace_id")?,
        span_id: column(row, "span_id")?,
        started_at: column(row, "started_at")?,
        completed_at: column(row, "completed_at")?,
        created_at: column(row, "created_at")?,
    })
}

fn read_attempt(row: &Row) -> Result<Attempt, DbError> {
    Ok(Attempt {
        id: AttemptId::from(column::<Uuid>(row, "id")?),
        attempt: column(row, "attempt")?,
        status: column(row, "status")?,
        provider: column(row, "provider")?,
        model: column(row, "model")?,
        input_tokens: column(row, "input_tokens")?,
        output_tokens: column(row, "output_tokens")?,
        cached_tokens: column(row, "cached_tokens")?,
        cost_usd: column(row, "cost_usd")?,
        error_code: column(row, "error_code")?,
        started_at: column(row, "started_at")?,
        ended_at: column(row, "ended_at")?,
    })
}

fn read_log_line(row: &Row) -> Result<LogLine, DbError> {
    Ok(LogLine {
        id: column(row, "id")?,
        at: column(row, "at")?,
        level: column(row, "level")?,
        message: column(row, "message")?,
        context: column(row, "context")?,
    })
}

fn read_delivery(row: &Row) -> Result<Delivery, DbError> {
    Ok(Delivery {
        id: DeliveryId::from(column::<Uuid>(row, "id")?),
        run_id: RunId::from(column::<Uuid>(row, "run_id")?),
        purpose: column(row, "purpose")?,
        position: column(row, "position")?,
        kind: word(row, "kind")?,
        target: column(row, "target")?,
        suppressed: column(row, "suppressed")?,
        status: word(row, "status")?,
        attempt: column(row, "attempt")?,
        attempts_max: column(row, "attempts_max")?,
        next_attempt_at: column(row, "next_attempt_at")?,
        response_status: column(row, "response_status")?,
        response_excerpt: column(row, "response_excerpt")?,
        location: column(row, "location")?,
        error_code: column(row, "error_code")?,
        error_message: column(row, "error_message")?,
        delivered_at: column(row, "delivered_at")?,
        created_at: column(row, "created_at")?,
    })
}
