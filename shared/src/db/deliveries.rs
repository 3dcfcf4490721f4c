//! Deliveries: from a recorded output to the receiver.
//!
//! `sending` is recorded before anything is sent, so that an email whose sender vanished is known
//! to have an unknown outcome. The last delivery that settles ends its run.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Db, DbError, Param, TenantTx, column,
    prompts::{DROP_SLOTS, DroppedRow},
    runs::{self, Counted, DueSlots, Log, SealedSecrets, sealed_secrets, word},
    suppression::suppressed_of,
    tenant_tx::step,
};
use crate::{
    destination::Kind,
    ids::{AuditEventId, DeliveryId, PromptId, RunId, TenantId},
    run::{DELIVERY_ATTEMPTS_MAX, DeliveryStatus, RunStatus, RunTrigger},
    slots::Dropped,
};

/// A delivery that a sender holds.
#[derive(Debug, Clone, Copy)]
pub struct DeliveryClaim {
    /// Whose.
    pub tenant_id: TenantId,
    /// The run.
    pub run_id: RunId,
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// What every write of this sender names.
    pub fence: i64,
    /// This attempt, from 1.
    pub attempt: i32,
    /// Attempts at the most.
    pub attempts_max: i32,
}

/// A delivery of a wake-up, locked.
#[derive(Debug)]
pub struct LockedDelivery {
    /// Which.
    pub delivery_id: DeliveryId,
    /// The run.
    pub run_id: RunId,
    /// The prompt.
    pub prompt_id: PromptId,
    /// The run's slot, or when it was asked for.
    pub scheduled_for: DateTime<Utc>,
    /// How it goes out.
    pub kind: Kind,
    /// Where to: addresses, URL or key.
    pub target: String,
    /// The destination as stored.
    pub destination: Value,
    /// The bytes to send; `None`: the run's output.
    pub body: Option<Vec<u8>>,
    /// The run's output, where the body is.
    pub output: Option<String>,
    /// The tenant's signing secrets.
    pub secrets: SealedSecrets,
    /// The receiver answered 410 before.
    pub gone: bool,
    /// A sender vanished while it was sending: the outcome of that attempt is unknown.
    pub outcome_unknown: bool,
    /// Recipients that are to be left out, in lower case.
    pub suppressed: Vec<String>,
    /// Attempts begun.
    pub attempt: i32,
    /// Attempts at the most.
    pub attempts_max: i32,
    fence: i64,
}

/// Locks a delivery if it may be sent now. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn lock_due(
    tx: &TenantTx,
    delivery_id: DeliveryId,
) -> Result<Option<LockedDelivery>, DbError> {
    let id = delivery_id.uuid();
    let results = tx
        .pipeline(&[
            step(
                concat!("-- deliveries::lock_due
                 SELECT d.run_id, d.kind, d.target, d.destination, d.body, d.fence, d.attempt, d.attempts_max, d.status,
                        r.prompt_id, r.scheduled_for,
                        CASE WHEN d.body IS NULL THEN r.output END AS output,
                        EXISTS (SELECT FROM gone_webhooks g WHERE g.url = d.target) AS gone,
                        ", suppressed_of!("d.kind", "d.target"), " AS suppressed
                   FROM deliveries d
                   JOIN scheduled_prompt_runs r ON r.tenant_id = d.tenant_id AND r.id = d.run_id
                  WHERE d.id = $1
                    AND ((d.status IN ('pending', 'retrying') AND d.next_attempt_at <= clock_timestamp())
                         OR (d.status = 'sending' AND d.lease_expires_at <= clock_timestamp()))
                    FOR NO KEY UPDATE OF d SKIP LOCKED"),
                &[&id],
            ),
            step(runs::SECRETS, &[]),
        ])
        .await?;
    let [found, secrets] = results.as_slice() else {
        return Err(DbError::Aborted);
    };
    let (Some(row), Some(secrets)) = (found.first(), secrets.first()) else {
        return Ok(None);
    };
    Ok(Some(LockedDelivery {
        delivery_id,
        run_id: RunId::from(column::<Uuid>(row, "run_id")?),
        prompt_id: PromptId::from(column::<Uuid>(row, "prompt_id")?),
        scheduled_for: column(row, "scheduled_for")?,
        kind: word(row, "kind")?,
        target: column(row, "target")?,
        destination: column(row, "destination")?,
        body: column(row, "body")?,
        output: column(row, "output")?,
        secrets: sealed_secrets(secrets)?,
        gone: column(row, "gone")?,
        outcome_unknown: word::<DeliveryStatus>(row, "status")? == DeliveryStatus::Sending,
        suppressed: column(row, "suppressed")?,
        attempt: column(row, "attempt")?,
        attempts_max: column(row, "attempts_max")?,
        fence: column(row, "fence")?,
    }))
}

/// Claims a locked delivery: the next fence, a lease, and `sending` on record before anything is
/// sent. `sends` is false where the claim only serves to settle what a vanished sender left. Ends
/// the transaction. One round trip.
///
/// # Errors
/// `DbError::StaleLease` when it was locked in another transaction and somebody claimed it since.
pub async fn claim(
    tx: TenantTx,
    delivery: &LockedDelivery,
    sends: bool,
    lease_ms: i64,
) -> Result<DeliveryClaim, DbError> {
    let claim = DeliveryClaim {
        tenant_id: tx.tenant(),
        run_id: delivery.run_id,
        delivery_id: delivery.delivery_id,
        fence: delivery.fence + 1,
        attempt: delivery.attempt + i32::from(sends),
        attempts_max: delivery.attempts_max,
    };
    let results = tx
        .commit_with(&[step(
            "-- deliveries::claim
             UPDATE deliveries
                SET status = 'sending', fence = $2, attempt = $3, suppressed = $5,
                    looks_failed = 0, look_again_at = NULL,
                    lease_expires_at = clock_timestamp() + $4::bigint * interval '1 millisecond'
              WHERE id = $1 AND fence = $2::bigint - 1
             RETURNING id",
            &[
                &claim.delivery_id.uuid(),
                &claim.fence,
                &claim.attempt,
                &lease_ms,
                &delivery.suppressed,
            ],
        )])
        .await?;
    runs::one_changed(&results)?;
    Ok(claim)
}

/// Holds a delivery for longer. Ends the transaction. One round trip.
///
/// # Errors
/// `DbError::StaleLease` when somebody else holds it.
pub async fn renew(tx: TenantTx, claim: &DeliveryClaim, lease_ms: i64) -> Result<(), DbError> {
    let results = tx
        .commit_with(&[step(
            "-- deliveries::renew
             UPDATE deliveries
                SET lease_expires_at = clock_timestamp() + $3::bigint * interval '1 millisecond'
              WHERE id = $1 AND fence = $2 AND status = 'sending'
             RETURNING id",
            &[&claim.delivery_id.uuid(), &claim.fence, &lease_ms],
        )])
        .await?;
    runs::one_changed(&results)
}

/// What an attempt came to.
#[derive(Debug, Clone)]
pub struct Settled {
    /// `delivered`, `retrying`, `exhausted` or `held`.
    pub status: DeliveryStatus,
    /// How long until the next attempt, in milliseconds.
    pub retry_in_ms: i64,
    /// HTTP or SMTP status.
    pub response_status: Option<i32>,
    /// The receiver's words, cut.
    pub response_excerpt: Option<String>,
    /// Where a stored output lies.
    pub location: Option<String>,
    /// Stable code of what went wrong.
    pub error_code: Option<String>,
    /// Fit for the tenant.
    pub error_message: Option<String>,
    /// The endpoint that answered 410.
    pub gone_url: Option<String>,
}

/// How a run stands after one of its deliveries settled.
#[derive(Debug, Clone)]
pub struct RunEnd {
    /// How the delivery stands: one whose run was cancelled meanwhile has no other attempt.
    pub delivery: DeliveryStatus,
    /// Its new final status; `None` while deliveries are open, or where it had ended before.
    pub status: Option<RunStatus>,
    /// What made it.
    pub trigger: RunTrigger,
    /// When the delivery settled.
    pub now: DateTime<Utc>,
    /// The prompt is paused by this failure.
    pub pauses: bool,
    /// Failures in a row, with this one if it is one.
    pub consecutive_failures: i32,
    /// Who is told of a failure.
    pub notification_email: Option<String>,
    /// What the run ran, for a notice about it.
    pub spec: Option<Value>,
    /// Its slot, or when it was asked for.
    pub scheduled_for: DateTime<Utc>,
    /// The prompt.
    pub prompt_id: PromptId,
    /// Which rule ended it: `delivery_failed`, or nothing.
    pub reason: Option<&'static str>,
    /// What is due of the prompt, where this failure would pause it.
    pub due_at_pause: Option<DueSlots>,
    may_uncount: bool,
}

impl RunEnd {
    /// Who is told of the run's failure, and of what.
    #[must_use]
    pub fn notice(&self) -> runs::Notice<'_> {
        runs::Notice {
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

/// Writes what an attempt came to, and looks whether that ends the run. One round trip;
/// [`finish`] must follow in the same transaction.
///
/// # Errors
/// `DbError::StaleLease` when somebody else holds the delivery.
pub async fn settle(
    tx: &TenantTx,
    claim: &DeliveryClaim,
    settled: &Settled,
) -> Result<RunEnd, DbError> {
    let run = claim.run_id.uuid();
    let ids = (claim.delivery_id.uuid(), settled.status.as_str());
    let results = tx
        .pipeline(&[
            step(LOCK_PROMPT, &[&run]),
            step(SETTLE, &settling(claim, settled, &ids)),
            step(
                "-- deliveries::outcome_of_run
                 SELECT r.status, r.reason, r.trigger, c.open, c.failed,
                        CASE WHEN c.open = 0 AND c.failed > 0 THEN
                             (SELECT v.spec FROM prompt_versions v
                               WHERE v.prompt_id = r.prompt_id AND v.version = r.prompt_version)
                        END AS spec
                   FROM scheduled_prompt_runs r
                  CROSS JOIN LATERAL (
                        SELECT count(*) AS total,
                               count(*) FILTER (WHERE d.status IN ('pending', 'sending', 'retrying')) AS open,
                               count(*) FILTER (WHERE d.status IN ('exhausted', 'held')) AS failed
                          FROM deliveries d WHERE d.run_id = r.id AND d.purpose = 'output') c
                  WHERE r.id = $1 AND c.total > 0",
                &[&run],
            ),
            step(runs::DUE_AT_PAUSE, &[&run]),
        ])
        .await?;
    let [prompt, settled_rows, outcome, due] = results.as_slice() else {
        return Err(DbError::Aborted);
    };
    let (Some(prompt), Some(settled_row)) = (prompt.first(), settled_rows.first()) else {
        return Err(DbError::StaleLease);
    };
    let mut end = RunEnd {
        delivery: word(settled_row, "status")?,
        status: None,
        trigger: RunTrigger::Schedule,
        now: column(prompt, "now")?,
        pauses: column(prompt, "pauses")?,
        consecutive_failures: column(prompt, "consecutive_failures")?,
        spec: None,
        scheduled_for: column(prompt, "scheduled_for")?,
        notification_email: column(prompt, "notification_email")?,
        prompt_id: PromptId::from(column::<Uuid>(prompt, "id")?),
        reason: None,
        due_at_pause: runs::due_at_pause(due)?,
        may_uncount: false,
    };
    // A notice has no output beside it, and changes nothing about its run.
    if let Some(row) = outcome.first() {
        end.trigger = word(row, "trigger")?;
        let reason: Option<String> = column(row, "reason")?;
        let failed: i64 = column(row, "failed")?;
        let open: i64 = column(row, "open")?;
        match word::<RunStatus>(row, "status")? {
            RunStatus::Generated if open == 0 && failed == 0 => {
                end.status = Some(RunStatus::Succeeded);
            }
            RunStatus::Generated if open == 0 => {
                end.spec = column(row, "spec")?;
                end.status = Some(RunStatus::Failed);
                end.reason = Some("delivery_failed");
            }
            RunStatus::Failed
                if open == 0 && failed == 0 && reason.as_deref() == Some("delivery_failed") =>
            {
                end.status = Some(RunStatus::Succeeded);
                end.may_uncount = true;
            }
            RunStatus::Queued
            | RunStatus::Running
            | RunStatus::Generated
            | RunStatus::Succeeded
            | RunStatus::Failed
            | RunStatus::TimedOut
            | RunStatus::Cancelled
            | RunStatus::Skipped
            | RunStatus::Missed => {}
        }
    }
    end.pauses &= end.status == Some(RunStatus::Failed) && end.trigger != RunTrigger::Test;
    Ok(end)
}

const LOCK_PROMPT: &str = "-- deliveries::lock_prompt
    SELECT p.id, p.notification_email, clock_timestamp() AS now, r.scheduled_for,
           p.consecutive_failures + 1 AS consecutive_failures,
           p.status = 'active' AND p.pause_after_failures > 0
               AND p.consecutive_failures + 1 >= p.pause_after_failures AS pauses
      FROM scheduled_prompts p
      JOIN scheduled_prompt_runs r ON r.tenant_id = p.tenant_id AND r.prompt_id = p.id
     WHERE r.id = $1 FOR NO KEY UPDATE OF p";

/// What an attempt came to, in its row.
macro_rules! settle {
    () => {
        "UPDATE deliveries
            SET status = CASE WHEN $3 = 'retrying' AND attempt >= attempts_max THEN 'exhausted'
                              ELSE $3 END,
                lease_expires_at = NULL,
                next_attempt_at = clock_timestamp() + $4::bigint * interval '1 millisecond',
                response_status = $5, response_excerpt = $6,
                location = coalesce($7, location), error_code = $8, error_message = $9,
                delivered_at = CASE WHEN $3 = 'delivered' THEN clock_timestamp() ELSE delivered_at END
          WHERE id = $1 AND fence = $2 AND status = 'sending'
         RETURNING status"
    };
}

const SETTLE: &str = concat!("-- deliveries::settle\n         ", settle!());

/// Writes that a delivery went out, and ends its run if that was the last and none has failed.
/// Commits. Gives whether the run ended. One round trip, which other tenants' transactions share.
///
/// # Errors
/// `DbError::StaleLease` when somebody else holds the delivery, and `DbError::StaleLook` when its run
/// ends otherwise: then [`settle`] and [`finish`] are to write it. With any error nothing is kept,
/// unless it stayed unknown whether the commit was.
pub async fn settle_delivered(
    db: &Db,
    claim: &DeliveryClaim,
    settled: &Settled,
) -> Result<bool, DbError> {
    let (tenant, run) = (claim.tenant_id.uuid(), claim.run_id.uuid());
    let ids = (claim.delivery_id.uuid(), settled.status.as_str());
    let log = log_of(claim, settled, settled.status);
    let results = db
        .fly(
            claim.tenant_id,
            &[
                step(LOCK_PROMPT, &[&run]),
                step(SETTLE_DELIVERED, &settling(claim, settled, &ids)),
                step(END_DELIVERED, &log.params(&tenant, &run)),
            ],
        )
        .await?;
    let ended = results.last().and_then(|rows| rows.first());
    ended.map_or(Ok(false), |row| column(row, "ended"))
}

/// A sender that was late ends its transaction here.
const SETTLE_DELIVERED: &str = concat!(
    "-- deliveries::settle_delivered
     WITH settled AS (",
    settle!(),
    ") SELECT (count(*) = 1)::lease_held AS held FROM settled"
);

/// The run goes on, or has all it needs and ends as [`runs::COUNT_END`] counts a success; an end that
/// says or counts more is for [`finish`]. With a line of the run's log.
const END_DELIVERED: &str = "-- deliveries::end_delivered
    WITH ended AS (
        UPDATE scheduled_prompt_runs r
           SET status = 'succeeded', reason = NULL, completed_at = clock_timestamp(),
               error_code = NULL, error_message = NULL
         WHERE r.id = $2 AND r.status = 'generated'
           AND EXISTS (SELECT FROM deliveries d WHERE d.run_id = r.id AND d.purpose = 'output')
           AND NOT EXISTS (SELECT FROM deliveries d
                            WHERE d.run_id = r.id AND d.purpose = 'output' AND d.status <> 'delivered')
        RETURNING r.tenant_id, r.id, r.prompt_id, r.trigger
    ), counted AS (
        UPDATE scheduled_prompts p
           SET success_count = p.success_count + 1, consecutive_failures = 0,
               last_status = 'succeeded', last_run_at = clock_timestamp()
          FROM ended
         WHERE p.tenant_id = ended.tenant_id AND p.id = ended.prompt_id AND ended.trigger <> 'test'
    ), logged AS (
        INSERT INTO run_logs (tenant_id, run_id, id, level, message, context)
        VALUES ($1, $2, $3, $4, $5, $6)
    )
    SELECT (count(*) = 0)::look_stands AS stands, EXISTS (SELECT FROM ended) AS ended
      FROM scheduled_prompt_runs r
     CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE d.status IN ('pending', 'sending', 'retrying')) AS open,
                  count(*) FILTER (WHERE d.status IN ('exhausted', 'held')) AS failed
             FROM deliveries d WHERE d.run_id = r.id AND d.purpose = 'output') c
     WHERE r.id = $2 AND c.open = 0
       AND (r.status = 'generated' AND c.failed > 0
            OR r.status = 'failed' AND r.reason = 'delivery_failed' AND c.failed = 0)";

/// The parameters of `settle!`; `ids` are the delivery's and its new status.
fn settling<'a>(
    claim: &'a DeliveryClaim,
    settled: &'a Settled,
    ids: &'a (Uuid, &'static str),
) -> [Param<'a>; 9] {
    [
        &ids.0,
        &claim.fence,
        &ids.1,
        &settled.retry_in_ms,
        &settled.response_status,
        &settled.response_excerpt,
        &settled.location,
        &settled.error_code,
        &settled.error_message,
    ]
}

fn log_of(claim: &DeliveryClaim, settled: &Settled, status: DeliveryStatus) -> Log {
    let level = match status {
        DeliveryStatus::Delivered => "info",
        DeliveryStatus::Pending | DeliveryStatus::Sending | DeliveryStatus::Retrying => "warn",
        DeliveryStatus::Exhausted | DeliveryStatus::Held => "error",
    };
    Log::new(
        level,
        "delivery attempt settled",
        json!({
            "delivery_id": claim.delivery_id,
            "status": status,
            "attempt": claim.attempt,
            "attempts_max": claim.attempts_max,
            "response_status": settled.response_status,
            "code": settled.error_code,
        }),
    )
}

/// Ends the run if its last delivery settled, inserts a notice if there is one, counts, and
/// commits. Gives the notices that were inserted: the run may have sent one before. `dropped` is what
/// is due of the prompt, where this failure pauses it. One round trip.
///
/// # Errors
/// When the database does not answer; then nothing of the settling is kept.
pub async fn finish(
    tx: TenantTx,
    claim: &DeliveryClaim,
    settled: &Settled,
    end: &RunEnd,
    notices: &[&runs::NewDelivery],
    lease_ms: i64,
    dropped: Option<Dropped>,
) -> Result<Vec<runs::KeptDelivery>, DbError> {
    let tenant = tx.tenant().uuid();
    let run = claim.run_id.uuid();
    let rows = runs::DeliveryRows::new(notices);
    let log = log_of(claim, settled, end.delivery);
    let status = end.status.map(RunStatus::as_str);
    let counted = end
        .status
        .map_or(Counted::NOTHING, |status| Counted::of(status, end.trigger));
    let pauses = end.pauses && counted.ends;
    let prompt = end.prompt_id.uuid();
    let dropped = DroppedRow::new(dropped.filter(|_| pauses));
    let uncounted = i32::from(end.may_uncount && end.trigger != RunTrigger::Test);
    let results = tx
        .commit_with(&[
            step(
                runs::INSERT_DELIVERIES,
                &rows.params(&tenant, &run, &lease_ms),
            )
            .when(!notices.is_empty()),
            step(
                "-- deliveries::end_run
             UPDATE scheduled_prompt_runs
                SET status = $2, reason = $3::text, completed_at = clock_timestamp(),
                    error_code = $3::text, error_message = CASE WHEN $3::text IS NOT NULL
                        THEN 'the output is kept, but not every destination has it' END
              WHERE id = $1 AND status IN ('generated', 'failed')",
                &[&run, &status, &end.reason],
            )
            .when(status.is_some()),
            step(DROP_SLOTS, &dropped.params(&prompt, &"paused")).when(dropped.is_needed()),
            step(
                runs::COUNT_END,
                &[
                    &prompt,
                    &counted.successes,
                    &(counted.failures - uncounted),
                    &status,
                    &pauses,
                    &end.reason.unwrap_or(runs::NO_CODE),
                    &AuditEventId::new().uuid(),
                ],
            )
            .when(counted.ends),
            step(
                "-- deliveries::note_gone
             INSERT INTO gone_webhooks (tenant_id, url) VALUES ($1, $2)
             ON CONFLICT (tenant_id, url) DO NOTHING",
                &[&tenant, &settled.gone_url],
            )
            .when(settled.gone_url.is_some()),
            step(runs::INSERT_LOG, &log.params(&tenant, &run)),
        ])
        .await?;
    runs::kept(results.first().map_or(&[], Vec::as_slice))
}

/// What became of a request to send a delivery again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeliver {
    /// It waits for a sender.
    Queued,
    /// There is no such delivery.
    NoSuchDelivery,
    /// It is under way already.
    UnderWay(DeliveryStatus),
}

/// Sends stored bytes again, under the same id. An endpoint that was gone is tried again.
///
/// # Errors
/// When the database does not answer.
pub async fn redeliver(tx: &TenantTx, delivery_id: DeliveryId) -> Result<Redeliver, DbError> {
    let id = delivery_id.uuid();
    let row = tx
        .query_opt(
            "-- deliveries::redeliver
             WITH found AS (
                 SELECT tenant_id, id, status, target FROM deliveries WHERE id = $1 FOR NO KEY UPDATE
             ), queued AS (
                 UPDATE deliveries d
                    SET status = 'pending', attempts_max = d.attempt + $2,
                        looks_failed = 0, look_again_at = NULL,
                        next_attempt_at = clock_timestamp()
                   FROM found f
                  WHERE d.tenant_id = f.tenant_id AND d.id = f.id
                    AND f.status IN ('delivered', 'exhausted', 'held')
             ), back AS (
                 DELETE FROM gone_webhooks g USING found f
                  WHERE g.tenant_id = f.tenant_id AND g.url = f.target
             )
             SELECT status FROM found",
            &[&id, &DELIVERY_ATTEMPTS_MAX],
        )
        .await?;
    let Some(row) = row else {
        return Ok(Redeliver::NoSuchDelivery);
    };
    let status: DeliveryStatus = word(&row, "status")?;
    Ok(match status {
        DeliveryStatus::Delivered | DeliveryStatus::Exhausted | DeliveryStatus::Held => {
            Redeliver::Queued
        }
        DeliveryStatus::Pending | DeliveryStatus::Sending | DeliveryStatus::Retrying => {
            Redeliver::UnderWay(status)
        }
    })
}
