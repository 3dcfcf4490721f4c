//! A worker without a model and without destinations: the executor's transactions, one for one,
//! with what the outside world does given as an argument.
//!
//! It decides nothing that the executor does not decide.

use anyhow::Result;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use shared::db::{
    Db, DbError, TenantTx,
    deliveries::{self, DeliveryClaim, LockedDelivery, Settled},
    runs::{
        self, AfterFailure, Answer, Claim, DuePrompt, DueSlots, Failure, FailureWriting, Intent,
        LockedRun, NewDelivery, NextStep, Recorded, Tokens, Writing,
    },
};
use shared::destination::Kind;
use shared::exclusion::NO_HOLIDAYS;
use shared::ids::{DeliveryId, PromptId, RunId, TenantId};
use shared::prompt::PromptSpec;
use shared::run::{DeliveryStatus, RunStatus, RunTrigger};
use shared::slots::{self, Dropped, Plan, Policy};

/// A lease that outlives any test.
pub const LONG_MS: i64 = 600_000;

/// How long a kept-back run waits.
const DEFER_MS: i64 = 0;

/// What a claimant is about to do, for so long.
#[must_use]
pub fn intent(lease_ms: i64) -> Intent {
    Intent {
        rendered_input: Some("say something".to_owned()),
        rendered_system: None,
        provider: "echo",
        model: "echo".to_owned(),
        lease_ms,
    }
}

/// The plan of a prompt.
///
/// # Panics
/// When its stored spec cannot be read.
#[must_use]
pub fn plan(due: &DuePrompt) -> Plan {
    let spec = read(&due.slots.spec);
    slots::plan(due.look(), policy(due, &spec), next_slot(&spec))
}

fn policy(due: &DuePrompt, spec: &PromptSpec) -> Policy {
    Policy::of(spec, due.prompt_id, due.runs_left)
}

fn next_slot(spec: &PromptSpec) -> impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>> {
    |after| spec.next_slot(after, &NO_HOLIDAYS)
}

fn read(spec: &Value) -> PromptSpec {
    PromptSpec::from_stored(spec).unwrap_or_else(|faults| panic!("{spec}: {faults:?}"))
}

/// Plans the due slots of a prompt and claims the first that may run now.
///
/// # Errors
/// When the database does not answer.
///
/// # Panics
/// When its stored spec cannot be read.
pub async fn fire(
    db: &Db,
    tenant: TenantId,
    prompt: PromptId,
    lease_ms: i64,
) -> Result<Option<Claim>, DbError> {
    if let Some(glance) = runs::glance(db, tenant, prompt).await? {
        let write =
            async |writing: &Writing<'_>| runs::write_glanced(db, tenant, &glance, writing).await;
        match written(&glance.due, lease_ms, write).await {
            Err(DbError::StaleLook) => {}
            claim => return claim,
        }
    }
    fire_locked(db, tenant, prompt, lease_ms).await
}

/// The same under the prompt's lock, as the executor does where the first look was overtaken.
///
/// # Errors
/// When the database does not answer.
///
/// # Panics
/// When its stored spec cannot be read.
pub async fn fire_locked(
    db: &Db,
    tenant: TenantId,
    prompt: PromptId,
    lease_ms: i64,
) -> Result<Option<Claim>, DbError> {
    let tx = db.tenant(tenant).await?;
    let Some(due) = runs::lock_due(&tx, prompt).await? else {
        tx.commit().await?;
        return Ok(None);
    };
    written(&due, lease_ms, async |writing: &Writing<'_>| {
        runs::write_plan(tx, &due, writing).await
    })
    .await
}

async fn written(
    due: &DuePrompt,
    lease_ms: i64,
    write: impl AsyncFnOnce(&Writing<'_>) -> Result<Option<Claim>, DbError>,
) -> Result<Option<Claim>, DbError> {
    let spec = read(&due.slots.spec);
    let plan = plan(due);
    let begins = plan.begins(policy(due, &spec), &due.open);
    let behind = plan.next.filter(|_| due.next_is_last);
    let intent = intent(lease_ms);
    let writing = Writing {
        plan: &plan,
        attempts_max: i32::try_from(spec.max_retries() + 1).unwrap_or(1),
        run_id: RunId::new(),
        intent: begins.filter(|_| due.has_capacity).map(|_| &intent),
        dropped: behind.and_then(|first| slots::dropped(first, due.now, next_slot(&spec))),
    };
    write(&writing).await
}

fn dropped(due: Option<&DueSlots>, now: DateTime<Utc>) -> Option<Dropped> {
    let due = due?;
    slots::dropped(due.first, now, next_slot(&read(&due.spec)))
}

/// What became of a run that was looked at.
#[derive(Debug)]
pub enum Looked {
    /// It is ours.
    Claimed(Claim),
    /// Its claimant vanished during the last try, and it was failed.
    GaveUp,
    /// Others took the tenant's last free place.
    NoPlace,
    /// Anything else.
    Other(NextStep),
    /// There is none.
    NoRun,
}

/// Claims a queued run whose time has come, or one whose claimant vanished.
///
/// # Errors
/// When the database does not answer.
pub async fn resume(
    db: &Db,
    tenant: TenantId,
    run: RunId,
    lease_ms: i64,
) -> Result<Looked, DbError> {
    let tx = db.tenant(tenant).await?;
    let Some(locked) = runs::lock(&tx, run).await? else {
        tx.commit().await?;
        return Ok(Looked::NoRun);
    };
    match locked.next {
        NextStep::Claim => {
            let over_limit = dropped(locked.due_at_last.as_ref(), locked.now);
            let claim = runs::claim(tx, &locked, &intent(lease_ms), over_limit).await?;
            return Ok(claim.map_or(Looked::NoPlace, Looked::Claimed));
        }
        NextStep::Leave => tx.commit().await?,
        NextStep::Defer | NextStep::WaitTurn => runs::defer(tx, &locked, DEFER_MS).await?,
        NextStep::Skip(reason) => runs::skip(tx, &locked, reason).await?,
        NextStep::Cancel(reason) => {
            runs::cancel_queued(&tx, locked.prompt_id, reason).await?;
            tx.commit().await?;
        }
        NextStep::GiveUp => {
            tx.commit().await?;
            give_up(db, tenant, &locked).await?;
            return Ok(Looked::GaveUp);
        }
    }
    Ok(Looked::Other(locked.next))
}

async fn give_up(db: &Db, tenant: TenantId, locked: &LockedRun) -> Result<(), DbError> {
    let claim = runs::vanished_claim(tenant, locked);
    let failure = failure("worker_lost", AfterFailure::End(RunStatus::Failed));
    match fail(db, &claim, &failure, "unknown").await {
        // The claimant was only slow.
        Err(DbError::StaleLease) => Ok(()),
        recorded => recorded.map(|_| ()),
    }
}

/// A failure of that code.
#[must_use]
pub fn failure(code: &str, then: AfterFailure) -> Failure {
    Failure {
        code: code.to_owned(),
        message: "it failed".to_owned(),
        then,
        spent: None,
    }
}

/// Records a failed try.
///
/// # Errors
/// `DbError::StaleLease` for a claimant that lost its run.
pub async fn fail(
    db: &Db,
    claim: &Claim,
    failure: &Failure,
    attempt_status: &'static str,
) -> Result<Recorded, DbError> {
    let tx = db.tenant(claim.tenant_id).await?;
    let recorded = runs::record_failure(&tx, claim, failure).await?;
    let pauses = recorded.pauses && failure.then.ends();
    let due = dropped(recorded.due_at_pause.as_ref(), recorded.now).filter(|_| pauses);
    let writing = FailureWriting {
        attempt_status,
        notices: &[],
        lease_ms: LONG_MS,
        dropped: due,
    };
    runs::finish_failure(tx, claim, &recorded, failure, &writing).await?;
    Ok(recorded)
}

/// What the model answers: one cent for ten tokens.
#[must_use]
pub fn answer(output: &str) -> Answer<'_> {
    Answer {
        output,
        truncated: false,
        sha256: [7; 32],
        model: "echo",
        output_uri: None,
        tokens: Some(Tokens {
            input: 7,
            output: 3,
            cached: 1,
        }),
        cost_usd: Some(Decimal::new(1, 2)),
        price_version: "2026-10-21",
        latency_ms: 12,
    }
}

/// An output's delivery to one webhook, or to an email address that asks to hold.
#[must_use]
pub fn new_delivery(position: i32, target: &str) -> NewDelivery {
    NewDelivery {
        id: DeliveryId::new(),
        purpose: "output",
        position,
        kind: Kind::Webhook,
        target: target.to_owned(),
        destination: json!({"kind": "webhook", "url": target}),
        body: Some(Bytes::from_static(b"{}")),
        attempts_max: 8,
    }
}

/// Records an answer with `destinations` deliveries, which this worker then holds.
///
/// # Errors
/// `DbError::StaleLease` for a claimant that lost its run.
pub async fn succeed(
    db: &Db,
    claim: &Claim,
    destinations: i32,
) -> Result<Vec<DeliveryClaim>, DbError> {
    let answer = answer("an answer");
    let status = if destinations > 0 {
        RunStatus::Generated
    } else {
        RunStatus::Succeeded
    };
    let rows: Vec<NewDelivery> = (0..destinations)
        .map(|position| new_delivery(position, "https://hooks.example/1"))
        .collect();
    let borrowed: Vec<&NewDelivery> = rows.iter().collect();
    runs::record_output(db, claim, &answer, status, &borrowed, LONG_MS).await?;
    Ok(rows.iter().map(|row| held(claim, row)).collect())
}

/// The claim that an inserter has on its delivery.
#[must_use]
pub fn held(claim: &Claim, row: &NewDelivery) -> DeliveryClaim {
    DeliveryClaim {
        tenant_id: claim.tenant_id,
        run_id: claim.run_id,
        delivery_id: row.id,
        fence: 1,
        attempt: 1,
        attempts_max: row.attempts_max,
    }
}

/// What an attempt to deliver came to.
#[must_use]
pub fn settled(status: DeliveryStatus) -> Settled {
    Settled {
        status,
        retry_in_ms: 0,
        response_status: Some(200),
        response_excerpt: Some("thanks".to_owned()),
        location: None,
        error_code: None,
        error_message: None,
        gone_url: None,
    }
}

/// How a settled delivery and its run stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// The delivery.
    pub delivery: DeliveryStatus,
    /// The run's new final status, if this ended it.
    pub status: Option<RunStatus>,
    /// That pauses its prompt.
    pub pauses: bool,
}

/// Settles a delivery, and with the last one its run.
///
/// # Errors
/// `DbError::StaleLease` for a sender that lost its delivery.
pub async fn settle(
    db: &Db,
    claim: &DeliveryClaim,
    status: DeliveryStatus,
) -> Result<Stand, DbError> {
    settle_as(db, claim, &settled(status)).await
}

/// The same, with all that was found.
///
/// # Errors
/// `DbError::StaleLease` for a sender that lost its delivery.
pub async fn settle_as(
    db: &Db,
    claim: &DeliveryClaim,
    settled: &Settled,
) -> Result<Stand, DbError> {
    if settled.status == DeliveryStatus::Delivered {
        match deliveries::settle_delivered(db, claim, settled).await {
            Err(DbError::StaleLook) => {}
            ended => {
                return Ok(Stand {
                    delivery: settled.status,
                    status: ended?.then_some(RunStatus::Succeeded),
                    pauses: false,
                });
            }
        }
    }
    let tx = db.tenant(claim.tenant_id).await?;
    let end = deliveries::settle(&tx, claim, settled).await?;
    let due = dropped(end.due_at_pause.as_ref(), end.now).filter(|_| end.pauses);
    deliveries::finish(tx, claim, settled, &end, &[], LONG_MS, due).await?;
    Ok(Stand {
        delivery: end.delivery,
        status: end.status,
        pauses: end.pauses,
    })
}

/// Claims a delivery that is due.
///
/// # Errors
/// When the database does not answer.
pub async fn take_delivery(
    db: &Db,
    tenant: TenantId,
    delivery: DeliveryId,
    lease_ms: i64,
) -> Result<Option<(DeliveryClaim, LockedDelivery)>, DbError> {
    let tx = db.tenant(tenant).await?;
    let Some(locked) = deliveries::lock_due(&tx, delivery).await? else {
        tx.commit().await?;
        return Ok(None);
    };
    let claim = deliveries::claim(tx, &locked, true, lease_ms).await?;
    Ok(Some((claim, locked)))
}

/// Queues a run outside the schedule.
///
/// # Errors
/// When the database does not answer.
pub async fn enqueue(
    db: &Db,
    tenant: TenantId,
    prompt: PromptId,
    trigger: RunTrigger,
) -> Result<Option<RunId>, DbError> {
    let tx: TenantTx = db.tenant(tenant).await?;
    let queued = match runs::enqueue(&tx, prompt, trigger).await? {
        runs::Enqueue::Queued(run) => Some(run),
        runs::Enqueue::NoSuchPrompt | runs::Enqueue::PromptEnded | runs::Enqueue::TooManyQueued => {
            None
        }
    };
    tx.commit().await?;
    Ok(queued)
}
