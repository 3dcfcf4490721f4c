//! Deliveries of a run: rendered when its result is recorded, sent at once, and again when due.

use std::pin::pin;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use shared::{
    crash_point,
    db::{
        DbError,
        deliveries::{self, DeliveryClaim, LockedDelivery, Settled},
        runs::{
            AfterFailure, Answer, Claim, Failure, KeptDelivery, NewDelivery, Notice, SealedSecrets,
        },
    },
    destination::{Destination, EmailAddress, Kind, OnUnknown},
    ids::{DeliveryId, PromptId, TenantId},
    mail_tags::MailTags,
    message::WakeUp,
    run::{DELIVERY_ATTEMPTS_MAX, DeliveryStatus, RunStatus},
    seal::{OpenError, Purpose},
    webhook_secret::{SigningSecrets, WebhookSecret},
};
use tracing::{error, info, warn};

use crate::{
    Executor, Handled,
    deliver::{
        self, DeliveryError, Disposition, Outgoing, Sent, Target,
        render::{self, FailureFacts, RenderError, Rendered, RunFacts},
    },
    job::{Job, dropped_at_pause, stored_spec},
    lease, nothing_due,
};

/// A delivery that was rendered, and the row that keeps it.
pub(crate) struct Prepared {
    pub(crate) row: NewDelivery,
    body: Option<Bytes>,
    /// The receiver answered 410 before.
    pub(crate) is_gone: bool,
    suppressed: Vec<String>,
}

/// Leaves those that the database kept, which said whom of their recipients to leave out.
pub(crate) fn keep(prepared: &mut Vec<Prepared>, kept: &[KeptDelivery]) {
    prepared.retain_mut(|one| {
        let Some(kept) = kept.iter().find(|kept| kept.id == one.row.id) else {
            return false;
        };
        one.suppressed.clone_from(&kept.suppressed);
        true
    });
}

/// Renders a run's output, completed just now, for each of its destinations. `stored_key` is where it
/// lies already, if it is too long for its row.
pub(crate) fn prepare(
    executor: &Executor,
    claim: &Claim,
    job: &Job,
    completed_at: DateTime<Utc>,
    answer: &Answer<'_>,
    stored_key: Option<&str>,
) -> Vec<Prepared> {
    let slot_local = job.slot_local();
    let facts = run_facts(claim, job, completed_at, answer, slot_local.as_deref());
    (0..)
        .zip(job.spec.destinations())
        .map(|(position, destination)| {
            let id = DeliveryId::new();
            let rendered = match destination {
                Destination::Email(email) => {
                    let subject = usize::try_from(position)
                        .ok()
                        .and_then(|at| job.subject(at));
                    render::email(&facts, id, email, subject, &executor.from)
                }
                Destination::Webhook(webhook) => render::webhook(&facts, webhook),
                Destination::Storage => Ok(render::storage(&facts).moved_to(stored_key)),
            };
            let destination_json = serde_json::to_value(destination).unwrap_or_default();
            prepared(
                id,
                "output",
                position,
                destination.kind(),
                destination_json,
                rendered,
            )
        })
        .collect()
}

/// The notice of a run's end or of a prompt's pause, if somebody is to be told.
pub(crate) fn notices(
    executor: &Executor,
    claim: &Claim,
    job: &Job,
    notice: &Notice<'_>,
    failure: &Failure,
) -> Vec<Prepared> {
    let Some(to) = notice.to.and_then(|to| EmailAddress::parse(to).ok()) else {
        return Vec::new();
    };
    let slot_local = job.slot_local();
    let facts = FailureFacts {
        prompt_id: claim.prompt_id,
        run_id: claim.run_id,
        prompt_name: job.spec.prompt_name(),
        slot_local: slot_local.as_deref(),
        error_code: &failure.code,
        error_message: &failure.message,
        attempts: u32::try_from(claim.attempt).unwrap_or(0),
        failed_at: notice.at,
    };
    let id = DeliveryId::new();
    let (purpose, rendered) = if notice.pauses {
        let failures = u32::try_from(notice.consecutive_failures).unwrap_or(0);
        (
            "paused_notice",
            render::paused_notice(&facts, failures, id, &to, &executor.from),
        )
    } else {
        (
            "failure_notice",
            render::failure_notice(&facts, id, &to, &executor.from),
        )
    };
    let destination = serde_json::json!({"kind": "email", "to": [to.as_str()]});
    vec![prepared(id, purpose, 0, Kind::Email, destination, rendered)]
}

/// Where an output lies that is too long for its row.
pub(crate) struct StoredOutput {
    pub(crate) key: String,
    pub(crate) location: String,
}

/// Stores an output that is too long for its row.
///
/// A claimant that vanished between this and its record leaves an object behind. The next one's
/// output differs from it, is as good, and was paid for: it goes under a key of its own.
pub(crate) async fn store_output(
    executor: &Executor,
    claim: &Claim,
    job: &Job,
    output: &str,
) -> Result<StoredOutput, Failure> {
    let key = render::storage_key(claim.tenant_id, claim.prompt_id, job.slot(), claim.run_id);
    let body = Bytes::copy_from_slice(output.as_bytes());
    let stored = match store(executor, key.clone(), body.clone()).await {
        Err(DeliveryError::ObjectDiffers) => {
            let key = format!("{}-{}.md", key.trim_end_matches(".md"), claim.fence);
            store(executor, key, body).await
        }
        stored => stored,
    };
    stored.map_err(|error| Failure {
        code: "output_not_stored".to_owned(),
        message: format!("the output is too long for its row, and storing it failed: {error}"),
        then: AfterFailure::End(RunStatus::Failed),
        spent: None,
    })
}

async fn store(
    executor: &Executor,
    key: String,
    body: Bytes,
) -> Result<StoredOutput, DeliveryError> {
    let sent = executor.sender.store(&key, body).await?;
    Ok(StoredOutput {
        location: sent.location.unwrap_or_else(|| key.clone()),
        key,
    })
}

/// Sends deliveries that this process holds, side by side, and settles each as soon as it is
/// through. `output` is what storage keeps; `secrets` sign webhooks.
pub(crate) async fn send_all(
    executor: &Executor,
    claim: &Claim,
    secrets: Option<&SealedSecrets>,
    prepared: Vec<Prepared>,
    output: String,
) -> Result<(), DbError> {
    if prepared.is_empty() {
        return Ok(());
    }
    let output = Bytes::from(output);
    let sent = join_all(prepared.into_iter().map(|one| {
        let held = Held {
            claim: DeliveryClaim {
                tenant_id: claim.tenant_id,
                run_id: claim.run_id,
                delivery_id: one.row.id,
                fence: 1,
                attempt: 1,
                attempts_max: one.row.attempts_max,
            },
            prompt_id: claim.prompt_id,
            kind: one.row.kind,
            gone: one.is_gone,
            suppressed: one.suppressed,
            holds: holds(&one.row.destination),
            body: one
                .body
                .or_else(|| (one.row.kind == Kind::Storage).then(|| output.clone())),
            target: one.row.target,
        };
        send_one(executor, held, secrets)
    }))
    .await;
    sent.into_iter().collect()
}

/// Sends a delivery whose next attempt has come, or settles what a vanished sender left.
pub(crate) async fn resume(
    executor: &Executor,
    tenant_id: TenantId,
    delivery_id: DeliveryId,
) -> Result<Handled, DbError> {
    let wake_up = WakeUp::Delivery {
        tenant_id,
        delivery_id,
    };
    let tx = executor.db.tenant(tenant_id).await?;
    let Some(locked) = deliveries::lock_due(&tx, delivery_id).await? else {
        return nothing_due(tx, wake_up).await;
    };
    let verdict = verdict(&locked);
    let sends = verdict.is_none();
    let claim = deliveries::claim(tx, &locked, sends, executor.lease_ms()).await?;
    crash_point!(DeliveryClaimed);
    if let Some(settled) = verdict {
        settle(executor, &claim, settled).await?;
        return Ok(Handled::Done);
    }
    let body = locked
        .body
        .map(Bytes::from)
        .or_else(|| locked.output.map(Bytes::from));
    let held = Held {
        claim,
        prompt_id: locked.prompt_id,
        kind: locked.kind,
        gone: locked.gone,
        suppressed: locked.suppressed,
        holds: holds(&locked.destination),
        body,
        target: locked.target,
    };
    send_one(executor, held, Some(&locked.secrets)).await?;
    Ok(Handled::Done)
}

/// What can be said about a delivery without sending it again.
fn verdict(locked: &LockedDelivery) -> Option<Settled> {
    if locked.outcome_unknown && holds(&locked.destination) {
        return Some(settled(
            DeliveryStatus::Held,
            "outcome_unknown",
            "the sender vanished while it sent the email; it may have gone out: send it again, or leave it",
        ));
    }
    if locked.attempt >= locked.attempts_max {
        return Some(settled(
            DeliveryStatus::Exhausted,
            "outcome_unknown",
            "the sender vanished during the last attempt",
        ));
    }
    None
}

/// Whether somebody wants to decide where nobody knows if an email went out.
fn holds(destination: &serde_json::Value) -> bool {
    match serde_json::from_value(destination.clone()) {
        Ok(Destination::Email(email)) => email.on_unknown() == OnUnknown::Hold,
        Ok(Destination::Webhook(_) | Destination::Storage) | Err(_) => false,
    }
}

/// A delivery that this process holds.
struct Held {
    claim: DeliveryClaim,
    prompt_id: PromptId,
    kind: Kind,
    gone: bool,
    suppressed: Vec<String>,
    holds: bool,
    body: Option<Bytes>,
    target: String,
}

async fn send_one(
    executor: &Executor,
    held: Held,
    secrets: Option<&SealedSecrets>,
) -> Result<(), DbError> {
    let claim = held.claim;
    let sending = pin!(attempt(executor, held, secrets));
    let renew = || renew(executor, &claim);
    let Some(attempted) = lease::hold(executor, claim.run_id, sending, renew).await else {
        info!(delivery.id = %claim.delivery_id, "delivery was taken over while it was sent");
        return Ok(());
    };
    let settled = match attempted {
        Ok(sent) => Settled {
            status: DeliveryStatus::Delivered,
            retry_in_ms: 0,
            response_status: sent.status.map(i32::from),
            response_excerpt: sent.excerpt,
            location: sent.location,
            error_code: None,
            error_message: None,
            gone_url: None,
        },
        Err(failed) => failed,
    };
    settle(executor, &claim, settled).await
}

async fn renew(executor: &Executor, claim: &DeliveryClaim) -> Result<(), DbError> {
    let tx = executor.db.tenant(claim.tenant_id).await?;
    deliveries::renew(tx, claim, executor.lease_ms()).await
}

async fn attempt(
    executor: &Executor,
    held: Held,
    secrets: Option<&SealedSecrets>,
) -> Result<Sent, Settled> {
    if held.gone {
        return Err(settled(
            DeliveryStatus::Exhausted,
            "endpoint_gone",
            "the endpoint answered 410 before; name it in the prompt again, or redeliver, to try it",
        ));
    }
    let body = match (&held.body, held.kind) {
        (Some(body), _) => body.clone(),
        // An output that is too long for its row was stored when it was recorded.
        (None, Kind::Storage) => executor
            .sender
            .stored(&held.target)
            .await
            .map_err(|error| after_error(&error, &held))?,
        (None, Kind::Email | Kind::Webhook) => {
            return Err(settled(
                DeliveryStatus::Exhausted,
                "not_rendered",
                "the output could not be put into the destination's form",
            ));
        }
    };
    let signing = match held.kind {
        Kind::Webhook => {
            let opened = open(executor, held.claim.tenant_id, secrets).await;
            Some(opened.map_err(|error| unopened(error.as_ref(), &held.claim))?)
        }
        Kind::Email | Kind::Storage => None,
    };
    let target = match (held.kind, &signing) {
        (Kind::Webhook, Some(signing)) => Target::Webhook(&held.target, signing),
        (Kind::Storage, _) => Target::Storage(&held.target),
        (Kind::Email | Kind::Webhook, _) => Target::Email(&held.target, &held.suppressed),
    };
    let item = Outgoing {
        of: MailTags {
            tenant_id: held.claim.tenant_id,
            prompt_id: held.prompt_id,
            run_id: held.claim.run_id,
            delivery_id: held.claim.delivery_id,
        },
        target,
        body,
        attempted_at: Utc::now(),
    };
    crash_point!(DeliverySending);
    let sent = executor.sender.send(&item).await;
    crash_point!(DeliverySent);
    sent.map_err(|error| after_error(&error, &held))
}

fn after_error(error: &DeliveryError, held: &Held) -> Settled {
    let claim = &held.claim;
    let mut settled = settled(DeliveryStatus::Exhausted, error.code(), &error.to_string());
    let attempt = u32::try_from(claim.attempt).unwrap_or(1);
    match error.disposition() {
        // A person decides, however many attempts are left.
        _ if error.outcome_unknown() && held.holds => settled.status = DeliveryStatus::Held,
        Disposition::Retry { after } if claim.attempt < claim.attempts_max => {
            settled.status = DeliveryStatus::Retrying;
            let delay = deliver::backoff(attempt, after);
            settled.retry_in_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        }
        Disposition::Retry { .. } | Disposition::GiveUp => {}
    }
    if let Some(answer) = error.answer() {
        settled.response_status = Some(i32::from(answer.status));
        settled.response_excerpt = Some(answer.excerpt.clone());
    }
    settled.gone_url = matches!(error, DeliveryError::EndpointGone(_)).then(|| held.target.clone());
    settled
}

async fn settle(
    executor: &Executor,
    claim: &DeliveryClaim,
    settled: Settled,
) -> Result<(), DbError> {
    if settled.status == DeliveryStatus::Delivered {
        match deliveries::settle_delivered(&executor.db, claim, &settled).await {
            // The run ends otherwise than well, which takes more to write.
            Err(DbError::StaleLook) => {}
            Err(DbError::StaleLease) => {
                info!(delivery.id = %claim.delivery_id, "delivery was taken over");
                return Ok(());
            }
            ended => {
                let status = ended?.then_some(RunStatus::Succeeded);
                crash_point!(DeliverySettled);
                log(claim, &settled, settled.status, status);
                return Ok(());
            }
        }
    }
    let tx = executor.db.tenant(claim.tenant_id).await?;
    let end = match deliveries::settle(&tx, claim, &settled).await {
        Err(DbError::StaleLease) => {
            info!(delivery.id = %claim.delivery_id, "delivery was taken over");
            return Ok(());
        }
        end => end?,
    };
    let mut notices = notices_of_end(executor, claim, &end);
    let rows = notices.iter().map(|one| &one.row).collect::<Vec<_>>();
    let lease_ms = executor.lease_ms();
    let dropped = dropped_at_pause(end.pauses, end.due_at_pause.as_ref(), end.now);
    crash_point!(SettleWritten);
    let kept = deliveries::finish(tx, claim, &settled, &end, &rows, lease_ms, dropped).await?;
    crash_point!(DeliverySettled);
    keep(&mut notices, &kept);
    log(claim, &settled, end.delivery, end.status);
    if end.delivery == DeliveryStatus::Retrying {
        let wake_up = WakeUp::Delivery {
            tenant_id: claim.tenant_id,
            delivery_id: claim.delivery_id,
        };
        executor.wake(wake_up, settled.retry_in_ms).await;
    }
    // A notice's own end has no notice: this goes one level deep.
    Box::pin(send_notices(executor, claim, &end, notices)).await
}

fn log(claim: &DeliveryClaim, settled: &Settled, delivery: DeliveryStatus, run: Option<RunStatus>) {
    if settled.status == DeliveryStatus::Delivered {
        info!(
            delivery.id = %claim.delivery_id, run.id = %claim.run_id, tenant.id = %claim.tenant_id,
            delivery.attempt = claim.attempt, "delivered"
        );
    } else {
        warn!(
            delivery.id = %claim.delivery_id, run.id = %claim.run_id, tenant.id = %claim.tenant_id,
            delivery.status = %delivery, delivery.attempt = claim.attempt,
            error.code = settled.error_code, "delivery attempt failed"
        );
    }
    if let Some(status) = run {
        info!(run.id = %claim.run_id, tenant.id = %claim.tenant_id, run.status = %status, "run ended");
    }
}

fn notices_of_end(
    executor: &Executor,
    claim: &DeliveryClaim,
    end: &deliveries::RunEnd,
) -> Vec<Prepared> {
    let Some(job) = end
        .spec
        .as_ref()
        .and_then(|spec| stored_spec(spec).ok())
        .map(|spec| Job::new(claim.run_id, spec, end.scheduled_for, end.trigger))
    else {
        return Vec::new();
    };
    let failure = Failure {
        code: "delivery_failed".to_owned(),
        message: "the model answered and the output is kept, but not every destination has it"
            .to_owned(),
        then: AfterFailure::End(RunStatus::Failed),
        spent: None,
    };
    notices(
        executor,
        &run_claim(claim, end),
        &job,
        &end.notice(),
        &failure,
    )
}

async fn send_notices(
    executor: &Executor,
    claim: &DeliveryClaim,
    end: &deliveries::RunEnd,
    notices: Vec<Prepared>,
) -> Result<(), DbError> {
    let run = run_claim(claim, end);
    send_all(executor, &run, None, notices, String::new()).await
}

/// The run of a delivery, for what only reads its ids.
fn run_claim(claim: &DeliveryClaim, end: &deliveries::RunEnd) -> Claim {
    Claim {
        tenant_id: claim.tenant_id,
        prompt_id: end.prompt_id,
        run_id: claim.run_id,
        trigger: end.trigger,
        fence: 0,
        attempt: claim.attempt,
        attempts_max: claim.attempts_max,
    }
}

/// The signing secrets; `Err(None)` where there are none, or what was sealed is none.
async fn open(
    executor: &Executor,
    tenant_id: TenantId,
    sealed: Option<&SealedSecrets>,
) -> Result<SigningSecrets, Option<OpenError>> {
    let sealed = sealed.ok_or(None)?;
    let open = async |blob: &[u8]| {
        let purpose = Purpose::WebhookSecret;
        let opened = executor.sealer.open(tenant_id, purpose, blob).await?;
        let text = std::str::from_utf8(&opened).map_err(|_| None)?;
        WebhookSecret::parse(text).map_err(|_| None)
    };
    let current = open(&sealed.current).await.inspect_err(|error| {
        error!(tenant.id = %tenant_id, ?error, "webhook secret cannot be opened");
    })?;
    let previous = match &sealed.previous {
        Some(blob) => match open(blob).await {
            Err(Some(error)) if error.is_transient() => return Err(Some(error)),
            opened => opened.ok(),
        },
        None => None,
    };
    Ok(SigningSecrets { current, previous })
}

/// What becomes of a delivery that could not be signed.
fn unopened(error: Option<&OpenError>, claim: &DeliveryClaim) -> Settled {
    if claim.attempt < claim.attempts_max && error.is_some_and(OpenError::is_transient) {
        let attempt = u32::try_from(claim.attempt).unwrap_or(1);
        let delay = deliver::backoff(attempt, None);
        let mut settled = settled(
            DeliveryStatus::Retrying,
            "signing_secret_unavailable",
            "the signing secret cannot be opened at the moment; it is tried again by itself",
        );
        settled.retry_in_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        return settled;
    }
    settled(
        DeliveryStatus::Exhausted,
        "signing_secret_unreadable",
        "the signing secret cannot be read; rotate it and redeliver",
    )
}

fn prepared(
    id: DeliveryId,
    purpose: &'static str,
    position: i32,
    kind: Kind,
    destination: serde_json::Value,
    rendered: Result<Rendered, RenderError>,
) -> Prepared {
    let (target, body) = match rendered {
        Ok(rendered) => (rendered.target, rendered.body),
        Err(failed) => {
            error!(delivery.id = %id, error = %failed, "destination not rendered");
            (String::new(), None)
        }
    };
    Prepared {
        row: NewDelivery {
            id,
            purpose,
            position,
            kind,
            target,
            destination,
            body: body.clone(),
            attempts_max: DELIVERY_ATTEMPTS_MAX,
        },
        body,
        is_gone: false,
        suppressed: Vec::new(),
    }
}

fn run_facts<'a>(
    claim: &Claim,
    job: &'a Job,
    completed_at: DateTime<Utc>,
    answer: &'a Answer<'_>,
    slot_local: Option<&'a str>,
) -> RunFacts<'a> {
    let tokens = answer.tokens;
    let unsigned = |count: i64| u64::try_from(count).unwrap_or(0);
    RunFacts {
        tenant_id: claim.tenant_id,
        prompt_id: claim.prompt_id,
        run_id: claim.run_id,
        prompt_name: job.spec.prompt_name(),
        scheduled_for: job.slot(),
        slot_local,
        trigger: job.trigger.as_str(),
        model: answer.model,
        output: answer.output,
        output_truncated: answer.truncated,
        completed_at,
        tokens: render::Tokens {
            input: tokens.map_or(0, |tokens| unsigned(tokens.input)),
            cached_input: tokens.map_or(0, |tokens| unsigned(tokens.cached)),
            output: tokens.map_or(0, |tokens| unsigned(tokens.output)),
        },
        cost_usd: answer.cost_usd,
    }
}

fn settled(status: DeliveryStatus, code: &str, message: &str) -> Settled {
    Settled {
        status,
        retry_in_ms: 0,
        response_status: None,
        response_excerpt: None,
        location: None,
        error_code: Some(code.to_owned()),
        error_message: Some(message.to_owned()),
        gone_url: None,
    }
}
