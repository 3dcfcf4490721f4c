//! Ends what came to nothing: reads the dead-letter queues, and writes `failed(dead_letter)` for what
//! a message names, if nobody else will get on with it.
//!
//! A message is deleted after the commit that it led to, so that one that is read twice finds its
//! work done. One that nobody can read is told in the log and deleted: it carries no truth, and
//! whatever is due is found without it. No log line says what a message holds.

use serde_json::Value;
use shared::{
    db::{
        Db, DbError, deliveries,
        runs::{self, AfterFailure, Failure, FailureWriting, NextStep},
        wake_ups,
    },
    ids::{DeliveryId, RunId, TenantId},
    message::{self, Unreadable, WakeUp},
    queue::{DeadLetters, Letter, QueueError},
    run::{DeliveryStatus, RunStatus},
};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{error, warn};

/// Batches of ten that one pass takes of a queue.
const BATCHES_MAX: usize = 20;

/// The reason that stands in the row.
const REASON: &str = "dead_letter";

/// How long a delivery is held while its end is written.
const LEASE_MS: i64 = 60_000;

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consumed {
    /// Runs and deliveries that were ended.
    pub ended: usize,
    /// Letters that were deleted.
    pub deleted: usize,
}

/// Why a pass stopped before its end.
#[derive(Debug, Error)]
pub enum ConsumeError {
    /// The queue did not answer.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The database did not answer; the letters come again.
    #[error("a dead letter's work could not be ended")]
    Db(#[from] DbError),
}

/// What is to become of what a letter names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It was ended.
    Ended,
    /// It is over, or somebody else gets on with it: its holder, its lease's end, or the sweeper.
    Left,
    /// The tenant has nothing of that id.
    Unknown,
}

/// Reads a dead-letter queue until it is empty, for a bounded number of batches and no longer than
/// `deadline`.
///
/// # Errors
/// When the queue or the database does not answer; what was ended stays ended.
pub async fn consume(
    db: &Db,
    queue: &DeadLetters,
    deadline: Instant,
) -> Result<Consumed, ConsumeError> {
    let settle = async |letter: &Letter| {
        let verdict = settle(db, letter).await?;
        Ok(usize::from(verdict == Verdict::Ended))
    };
    each(queue, deadline, settle).await
}

/// Does with each letter what `settle` does, which gives the number of things that it ended, and
/// deletes it then.
///
/// # Errors
/// As [`consume`].
pub(crate) async fn each(
    queue: &DeadLetters,
    deadline: Instant,
    settle: impl AsyncFn(&Letter) -> Result<usize, DbError>,
) -> Result<Consumed, ConsumeError> {
    let mut consumed = Consumed::default();
    for _ in 0..BATCHES_MAX {
        if Instant::now() >= deadline {
            break;
        }
        let letters = queue.take().await?;
        if letters.is_empty() {
            break;
        }
        let mut done = Vec::new();
        let mut failed = None;
        for letter in letters {
            match settle(&letter).await {
                Ok(ended) => {
                    consumed.ended += ended;
                    done.push(letter);
                }
                Err(error) => failed = Some(error),
            }
        }
        consumed.deleted += queue.delete(&done).await?;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(consumed)
}

async fn settle(db: &Db, letter: &Letter) -> Result<Verdict, DbError> {
    let wake_up = match read(&letter.body) {
        Ok(wake_up) => wake_up,
        Err(unreadable) => {
            error!(
                message.id = letter.id,
                message.bytes = letter.body.len(),
                message.sender = letter.sender,
                reason = letter.reason,
                error = %unreadable,
                "dead letter that nobody can read; it is deleted"
            );
            return Ok(Verdict::Left);
        }
    };
    let verdict = match wake_up {
        WakeUp::Prompt { tenant_id, .. } => look(db, tenant_id, wake_up).await?,
        WakeUp::Run { tenant_id, run_id } => end_run(db, tenant_id, run_id).await?,
        WakeUp::Delivery {
            tenant_id,
            delivery_id,
        } => end_delivery(db, tenant_id, delivery_id).await?,
    };
    tell(letter, wake_up, verdict);
    Ok(verdict)
}

/// What EventBridge Scheduler could not deliver is the call that it would have made.
fn read(body: &str) -> Result<WakeUp, Unreadable> {
    let call = |text: &str| {
        let call: Value = serde_json::from_str(text).ok()?;
        Some(call.get("MessageBody")?.as_str()?.to_owned())
    };
    let message = match (message::decode(body), call(body)) {
        (Err(Unreadable::NoVersion), Some(inner)) => message::decode(&inner),
        (read, _) => read,
    };
    message.map(|message| message.wake_up)
}

fn tell(letter: &Letter, wake_up: WakeUp, verdict: Verdict) {
    let (kind, id) = match wake_up {
        WakeUp::Prompt { prompt_id, .. } => ("prompt", prompt_id.uuid()),
        WakeUp::Run { run_id, .. } => ("run", run_id.uuid()),
        WakeUp::Delivery { delivery_id, .. } => ("delivery", delivery_id.uuid()),
    };
    let outcome = match verdict {
        Verdict::Ended => "ended",
        Verdict::Left => "left",
        Verdict::Unknown => "unknown to its tenant",
    };
    warn!(
        message.id = letter.id,
        reason = letter.reason,
        tenant.id = %wake_up.tenant_id(),
        names.kind = kind,
        names.id = %id,
        outcome,
        "dead letter"
    );
}

/// A prompt's slots are not lost with a wake-up: one that is due is found by the next sweep.
async fn look(db: &Db, tenant_id: TenantId, wake_up: WakeUp) -> Result<Verdict, DbError> {
    let is_known = wake_ups::is_known(db.tenant(tenant_id).await?, wake_up).await?;
    Ok(if is_known {
        Verdict::Left
    } else {
        Verdict::Unknown
    })
}

/// Ends a run that the executor would have to take on now, and could not so often. One that
/// somebody holds, or that waits for its turn, goes on.
async fn end_run(db: &Db, tenant_id: TenantId, run_id: RunId) -> Result<Verdict, DbError> {
    let tx = db.tenant(tenant_id).await?;
    let Some(locked) = runs::lock(&tx, run_id).await? else {
        return look(db, tenant_id, WakeUp::Run { tenant_id, run_id }).await;
    };
    match locked.next {
        NextStep::Claim | NextStep::GiveUp => {}
        NextStep::Leave
        | NextStep::Defer
        | NextStep::WaitTurn
        | NextStep::Skip(_)
        | NextStep::Cancel(_) => {
            tx.rollback().await?;
            return Ok(Verdict::Left);
        }
    }
    let failure = Failure {
        code: REASON.to_owned(),
        message:
            "the run could not be worked on, however often it was tried; look at it, then retry it"
                .to_owned(),
        then: AfterFailure::End(RunStatus::Failed),
        spent: None,
    };
    let claim = runs::take_over(&tx, &locked).await?;
    let recorded = runs::record_failure(&tx, &claim, &failure).await?;
    let due = recorded.due_at_pause.as_ref().filter(|_| recorded.pauses);
    let writing = FailureWriting {
        attempt_status: "unknown",
        notices: &[],
        lease_ms: LEASE_MS,
        dropped: due.and_then(|due| due.dropped(recorded.now)),
    };
    runs::finish_failure(tx, &claim, &recorded, &failure, &writing).await?;
    Ok(Verdict::Ended)
}

/// Ends a delivery that is due, and could not be sent so often; the last one ends its run.
async fn end_delivery(
    db: &Db,
    tenant_id: TenantId,
    delivery_id: DeliveryId,
) -> Result<Verdict, DbError> {
    let tx = db.tenant(tenant_id).await?;
    let Some(locked) = deliveries::lock_due(&tx, delivery_id).await? else {
        tx.rollback().await?;
        let wake_up = WakeUp::Delivery {
            tenant_id,
            delivery_id,
        };
        return look(db, tenant_id, wake_up).await;
    };
    let claim = deliveries::claim(tx, &locked, false, LEASE_MS).await?;
    let settled = deliveries::Settled {
        status: DeliveryStatus::Exhausted,
        retry_in_ms: 0,
        response_status: None,
        response_excerpt: None,
        location: None,
        error_code: Some(REASON.to_owned()),
        error_message: Some(
            "the delivery could not be worked on, however often it was tried; it may have gone out"
                .to_owned(),
        ),
        gone_url: None,
    };
    let tx = db.tenant(tenant_id).await?;
    let end = deliveries::settle(&tx, &claim, &settled).await?;
    let due = end.due_at_pause.as_ref().filter(|_| end.pauses);
    let dropped = due.and_then(|due| due.dropped(end.now));
    deliveries::finish(tx, &claim, &settled, &end, &[], LEASE_MS, dropped).await?;
    Ok(Verdict::Ended)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::ids::PromptId;

    use super::*;

    #[test]
    fn what_the_scheduler_could_not_deliver_is_read_too() {
        let (tenant_id, prompt_id) = (TenantId::new(), PromptId::new());
        let wake_up = WakeUp::Prompt {
            tenant_id,
            prompt_id,
        };
        let body = message::encode_entry(tenant_id, prompt_id, 3);
        let call = json!({"QueueUrl": "https://sqs.example/1/q", "MessageBody": body});
        for text in [body, call.to_string()] {
            assert_eq!(read(&text), Ok(wake_up));
        }
        let empty = json!({"MessageBody": {"v": 1}}).to_string();
        assert_eq!(read(&empty), Err(Unreadable::NoVersion));
        let later = json!({"v": 2, "MessageBody": "{}"}).to_string();
        assert_eq!(read(&later), Err(Unreadable::OtherVersion(2)));
    }
}
