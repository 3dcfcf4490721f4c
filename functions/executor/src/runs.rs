//! One run, from its claim to its record.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use chrono::Utc;
use sha2::{Digest, Sha256};
use shared::{
    backoff, crash_point,
    db::{
        DbError, TenantTx, prompts,
        runs::{
            self, AfterFailure, Answer, Claim, DuePrompt, Failure, FailureWriting, Glance, Intent,
            Kept, LockedRun, NextStep, Spent, Tokens, Writing,
        },
        sync,
    },
    ids::{PromptId, RunId, TenantId},
    message::{Fired, WakeUp},
    prompt::PromptSpec,
    run::{RunStatus, RunTrigger},
    slots::{self, Dropped, Plan, Policy},
};
use tracing::{info, warn};

use crate::{
    Executor, Handled, Until,
    deliveries::{self, Prepared},
    job::{Job, Rendered, Texts, dropped_at_pause, stored_spec},
    lease,
    model::{Disposition, ModelAnswer, ModelError, ModelRequest},
    nothing_due, provider_keys,
};

/// How long a run waits that the overlap policy or the tenant's limit keeps back.
const DEFER_MS: i64 = 5_000;

/// How long a run of a backfill waits for the ones before it, unless one of them calls it.
const WAIT_TURN_MS: i64 = 600_000;

/// Longest wait between two tries of a run.
const RETRY_CAP: Duration = Duration::from_secs(3_600);

/// How often an answer is tried to be recorded before its run is left to its lease's end.
const RECORD_TRIES: u32 = 3;

/// Outputs up to this many bytes are kept in the row; longer ones are stored as an object.
const INLINE_BYTES_MAX: usize = 256 * 1024;

/// Looks that one wake-up has at a prompt: each accounts for a part of a long downtime.
const LOOKS_MAX: u32 = 100;

/// What each text of a run may take to render while its prompt is locked: whoever waits for the
/// prompt is given up after five seconds, and a hundred of its runs may wait.
const RENDER_TIME_LOCKED: Duration = Duration::from_millis(25);

/// Plans a prompt's due slots, and runs the first that runs. Two round trips to the claim. An entry
/// that `fired` with another generation than the prompt's wakes nobody: it is to be made anew, and the
/// sweeper finds the slot.
pub(crate) async fn fire(
    executor: &Executor,
    tenant_id: TenantId,
    prompt_id: PromptId,
    fired: Option<Fired>,
    until: Until,
) -> Result<Handled, DbError> {
    for _ in 0..LOOKS_MAX {
        match look(executor, tenant_id, prompt_id, fired, until).await? {
            Looked::Not(handled) => return Ok(handled),
            Looked::More => {}
            Looked::Claimed(claim, job) => {
                Box::pin(execute(executor, claim, job, until)).await?;
                break;
            }
            Looked::Queued(job) => {
                let (run_id, job) = (job.run_id, job.render().await?);
                return take(executor, tenant_id, run_id, Some(job), until).await;
            }
        }
    }
    Ok(Handled::Done)
}

/// What a look at a prompt came to.
enum Looked {
    /// There is no run to begin now.
    Not(Handled),
    /// A part of what is due is.
    More,
    /// A slot's run is ours.
    Claimed(Claim, Job),
    /// A slot's run waits: its texts take too long to render while the prompt is locked.
    Queued(Job),
}

async fn look(
    executor: &Executor,
    tenant_id: TenantId,
    prompt_id: PromptId,
    fired: Option<Fired>,
    until: Until,
) -> Result<Looked, DbError> {
    match glance(executor, tenant_id, prompt_id, fired, until).await? {
        Some(looked) => Ok(looked),
        None => Box::pin(look_locked(executor, tenant_id, prompt_id, fired, until)).await,
    }
}

/// The look of most wake-ups: without a lock, so that those of a batch share their round trips. `None`
/// where it has to be made under one, because it changed or because it is of a rarer kind.
async fn glance(
    executor: &Executor,
    tenant_id: TenantId,
    prompt_id: PromptId,
    fired: Option<Fired>,
    until: Until,
) -> Result<Option<Looked>, DbError> {
    let Some(glance) = runs::glance(&executor.db, tenant_id, prompt_id).await? else {
        return Ok(None);
    };
    let due = &glance.due;
    if fired.is_some_and(|fired| fired.generation != due.generation) {
        return Ok(None);
    }
    let spec = stored_spec(&due.slots.spec)?;
    if spec.excludes(due.slots.first, &due.slots.holidays) {
        return Ok(None);
    }
    let next = |after| spec.next_slot(after, &due.slots.holidays);
    let plan = slots::plan(
        due.look(),
        Policy::of(&spec, prompt_id, due.runs_left),
        next,
    );
    let hold = Hold::Glance(tenant_id, &glance);
    match begin(executor, hold, spec, &plan, until).await {
        Err(DbError::StaleLook) => Ok(None),
        looked => looked.map(Some),
    }
}

async fn look_locked(
    executor: &Executor,
    tenant_id: TenantId,
    prompt_id: PromptId,
    fired: Option<Fired>,
    until: Until,
) -> Result<Looked, DbError> {
    let tx = executor.db.tenant(tenant_id).await?;
    let due = runs::lock_due(&tx, prompt_id).await?;
    // One that is not due may be stale for all that, and only then does the look cost anything.
    if let Some(fired) = fired
        && due
            .as_ref()
            .is_none_or(|due| due.generation != fired.generation)
        && sync::mark_stale(&tx, prompt_id, fired.generation).await?
    {
        info!(
            tenant.id = %tenant_id,
            prompt.id = %prompt_id,
            slot = ?fired.scheduled_for,
            "a stale entry fired; it will be made anew"
        );
        tx.commit().await?;
        return Ok(Looked::Not(Handled::Done));
    }
    let Some(due) = due else {
        let wake_up = WakeUp::Prompt {
            tenant_id,
            prompt_id,
        };
        return Ok(Looked::Not(nothing_due(tx, wake_up).await?));
    };
    crash_point!(RunLocked);
    let spec = stored_spec(&due.slots.spec)?;
    let next = |after| spec.next_slot(after, &due.slots.holidays);
    let first = due.slots.first;
    let plan = if spec.excludes(first, &due.slots.holidays) {
        prompts::drop_slots(&tx, prompt_id, Dropped::one(first), "excluded").await?;
        Plan::pass_over(next(first))
    } else {
        slots::plan(
            due.look(),
            Policy::of(&spec, prompt_id, due.runs_left),
            next,
        )
    };
    begin(executor, Hold::Lock(tx, &due), spec, &plan, until).await
}

/// What a look rests on until it is written.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and it is used up at once"
)]
enum Hold<'a> {
    /// The prompt's lock.
    Lock(TenantTx, &'a DuePrompt),
    /// That it is still so then.
    Glance(TenantId, &'a Glance),
}

impl<'a> Hold<'a> {
    fn due(&self) -> &'a DuePrompt {
        match self {
            Self::Lock(_, due) => due,
            Self::Glance(_, glance) => &glance.due,
        }
    }

    async fn write(
        self,
        executor: &Executor,
        writing: &Writing<'_>,
    ) -> Result<Option<Claim>, DbError> {
        match self {
            Self::Lock(tx, due) => runs::write_plan(tx, due, writing).await,
            Self::Glance(tenant_id, glance) => {
                runs::write_glanced(&executor.db, tenant_id, glance, writing).await
            }
        }
    }

    async fn let_go(self) -> Result<(), DbError> {
        match self {
            Self::Lock(tx, _) => tx.rollback().await,
            Self::Glance(..) => Ok(()),
        }
    }
}

/// Writes the plan, and claims its first run if that may begin now.
async fn begin(
    executor: &Executor,
    hold: Hold<'_>,
    spec: PromptSpec,
    plan: &Plan,
    until: Until,
) -> Result<Looked, DbError> {
    let due = hold.due();
    let policy = Policy::of(&spec, due.prompt_id, due.runs_left);
    let run_id = RunId::new();
    let mut writing = Writing {
        plan,
        attempts_max: attempts_max(&spec),
        run_id,
        intent: None,
        dropped: None,
    };
    let begins = plan.begins(policy, &due.open);
    let Some(slot) = begins.filter(|_| due.has_capacity) else {
        hold.write(executor, &writing).await?;
        return Ok(if plan.is_cut {
            Looked::More
        } else {
            Looked::Not(Handled::Done)
        });
    };
    if !until.allows(timeout_of(&spec)) {
        hold.let_go().await?;
        return Ok(Looked::Not(Handled::NoTime));
    }
    let job = Job::new(run_id, spec, slot, RunTrigger::Schedule).after(due.previous_output.clone());
    let job = match job.render_within(RENDER_TIME_LOCKED).await? {
        Rendered::Ready(job) => job,
        Rendered::TooSlow(job) => {
            hold.write(executor, &writing).await?;
            return Ok(Looked::Queued(job));
        }
    };
    let intent = intent(executor, &job);
    writing.intent = Some(&intent);
    let next = |after| job.spec.next_slot(after, &due.slots.holidays);
    writing.dropped = plan
        .next
        .filter(|_| due.next_is_last)
        .and_then(|first| slots::dropped(first, due.now, next));
    crash_point!(RunPlanned);
    let claim = hold.write(executor, &writing).await?;
    Ok(match claim {
        Some(claim) => Looked::Claimed(claim, job),
        None => Looked::Not(Handled::Done),
    })
}

/// Runs a queued run whose time has come, or one whose claimant vanished.
pub(crate) async fn resume(
    executor: &Executor,
    tenant_id: TenantId,
    run_id: RunId,
    until: Until,
) -> Result<Handled, DbError> {
    take(executor, tenant_id, run_id, None, until).await
}

/// The same, where its texts may have been rendered already.
async fn take(
    executor: &Executor,
    tenant_id: TenantId,
    run_id: RunId,
    rendered: Option<Job>,
    until: Until,
) -> Result<Handled, DbError> {
    let tx = executor.db.tenant(tenant_id).await?;
    let Some(mut locked) = runs::lock(&tx, run_id).await? else {
        return nothing_due(tx, WakeUp::Run { tenant_id, run_id }).await;
    };
    crash_point!(RunLocked);
    if locked.next != NextStep::Claim {
        pass_by(executor, tx, &locked).await?;
        return Ok(Handled::Done);
    }
    let job = match locked_job(&mut locked, rendered).await? {
        Rendered::Ready(job) => job,
        Rendered::TooSlow(job) => {
            tx.commit().await?;
            let job = job.render().await?;
            return Box::pin(take(executor, tenant_id, run_id, Some(job), until)).await;
        }
    };
    if !until.allows(timeout_of(&job.spec)) {
        tx.rollback().await?;
        return Ok(Handled::NoTime);
    }
    let due = locked.due_at_last.as_ref();
    let over_limit = due.and_then(|due| due.dropped(locked.now));
    let claim = runs::claim(tx, &locked, &intent(executor, &job), over_limit).await?;
    if let Some(claim) = claim {
        Box::pin(execute(executor, claim, job, until)).await?;
    }
    Ok(Handled::Done)
}

/// What becomes of a locked run that is not to be claimed.
async fn pass_by(executor: &Executor, tx: TenantTx, locked: &LockedRun) -> Result<(), DbError> {
    match locked.next {
        NextStep::Claim | NextStep::Leave => tx.commit().await,
        NextStep::Defer => runs::defer(tx, locked, DEFER_MS).await,
        NextStep::WaitTurn => runs::defer(tx, locked, WAIT_TURN_MS).await,
        NextStep::Skip(reason) => runs::skip(tx, locked, reason).await,
        NextStep::Cancel(reason) => {
            runs::cancel_queued(&tx, locked.prompt_id, reason).await?;
            tx.commit().await
        }
        NextStep::GiveUp => {
            let tenant_id = tx.tenant();
            tx.commit().await?;
            Box::pin(give_up(executor, tenant_id, locked)).await
        }
    }
}

/// What a locked run is to do. An earlier try's texts go before all others.
async fn locked_job(locked: &mut LockedRun, rendered: Option<Job>) -> Result<Rendered, DbError> {
    let job = || {
        let spec = stored_spec(&locked.spec)?;
        let job = Job::new(locked.run_id, spec, locked.scheduled_for, locked.trigger);
        Ok::<_, DbError>(job)
    };
    match (locked.rendered_input.take(), rendered) {
        (Some(input), _) => {
            let system = locked.rendered_system.take();
            let job = job()?.after(locked.previous_output.take());
            Ok(Rendered::Ready(job.again(Texts { input, system })))
        }
        (None, Some(job)) => Ok(Rendered::Ready(job)),
        (None, None) => {
            let job = job()?.after(locked.previous_output.take());
            job.render_within(RENDER_TIME_LOCKED).await
        }
    }
}

fn timeout_of(spec: &PromptSpec) -> Duration {
    Duration::from_millis(spec.timeout_ms().into())
}

fn attempts_max(spec: &PromptSpec) -> i32 {
    i32::try_from(spec.max_retries()).map_or(i32::MAX, |retries| retries.saturating_add(1))
}

fn intent(executor: &Executor, job: &Job) -> Intent {
    let texts = job.texts.as_ref().ok();
    Intent {
        rendered_input: texts.map(|texts| texts.input.clone()),
        rendered_system: texts.and_then(|texts| texts.system.clone()),
        provider: job.spec.model().provider().as_str(),
        model: job.spec.model().name().to_owned(),
        lease_ms: executor.lease_ms(),
    }
}

/// What a try came to.
enum Tried {
    Answered(ModelAnswer, Duration),
    Failed(Failure, &'static str),
    LeaseLost,
}

async fn execute(executor: &Executor, claim: Claim, job: Job, until: Until) -> Result<(), DbError> {
    crash_point!(RunClaimed);
    let tried = attempt(executor, &claim, &job, until).await;
    crash_point!(ModelAnswered);
    match tried {
        Tried::Answered(answer, latency) => {
            record_answer(executor, &claim, job, answer, latency).await
        }
        Tried::Failed(failure, attempt_status) => {
            record_failure(executor, &claim, Some(&job), failure, attempt_status).await
        }
        Tried::LeaseLost => {
            info!(run.id = %claim.run_id, tenant.id = %claim.tenant_id, "run was taken over or cancelled");
            let tx = executor.db.tenant(claim.tenant_id).await?;
            runs::settle_late(tx, &claim, None).await
        }
    }
}

async fn attempt(executor: &Executor, claim: &Claim, job: &Job, until: Until) -> Tried {
    let texts = match &job.texts {
        Ok(texts) => texts,
        Err(detail) => {
            let failure = final_failure("template_error", detail.clone(), RunStatus::Failed);
            return Tried::Failed(failure, "error");
        }
    };
    let begun = Instant::now();
    let called = tokio::select! {
        biased;
        () = until.too_late_for_an_answer() => {
            return Tried::Failed(interrupted(claim), "unknown");
        }
        called = call_model(executor, claim, job, texts) => called,
    };
    let Some(result) = called else {
        return Tried::LeaseLost;
    };
    match result {
        Ok(answer) => match answer.stop.failure() {
            Some((code, message)) => {
                let mut failure = final_failure(code, message.to_owned(), RunStatus::Failed);
                failure.spent = Some(spent(executor, job, &answer));
                Tried::Failed(failure, "error")
            }
            None => Tried::Answered(answer, begun.elapsed()),
        },
        Err(error) => {
            let status = if error.outcome_unknown() {
                "unknown"
            } else {
                "error"
            };
            Tried::Failed(after_error(&error, claim, job), status)
        }
    }
}

/// Calls the model and renews the lease meanwhile; `None` when the lease was lost.
async fn call_model(
    executor: &Executor,
    claim: &Claim,
    job: &Job,
    texts: &Texts,
) -> Option<Result<ModelAnswer, ModelError>> {
    let request = ModelRequest {
        model: job.spec.model(),
        system: texts.system.as_deref(),
        input: &texts.input,
        settings: job.spec.model_settings(),
    };
    let limit = timeout_of(&job.spec);
    let call = pin!(provider_keys::call(
        executor,
        claim.tenant_id,
        &request,
        limit
    ));
    lease::hold(executor, claim.run_id, call, || renew(executor, claim)).await
}

async fn renew(executor: &Executor, claim: &Claim) -> Result<(), DbError> {
    let tx = executor.db.tenant(claim.tenant_id).await?;
    runs::renew(tx, claim, executor.lease_ms()).await
}

async fn record_answer(
    executor: &Executor,
    claim: &Claim,
    job: Job,
    answer: ModelAnswer,
    latency: Duration,
) -> Result<(), DbError> {
    let spent = spent(executor, &job, &answer);
    let stored_at = if answer.output.len() > INLINE_BYTES_MAX {
        match deliveries::store_output(executor, claim, &job, &answer.output).await {
            Ok(stored) => {
                crash_point!(OutputStored);
                Some(stored)
            }
            Err(mut failure) => {
                failure.spent = Some(spent);
                return record_failure(executor, claim, Some(&job), failure, "ok").await;
            }
        }
    } else {
        None
    };
    let record = Answer {
        output: &answer.output,
        truncated: answer.stop.is_truncated(),
        sha256: Sha256::digest(answer.output.as_bytes()).into(),
        model: &answer.model,
        output_uri: stored_at.as_ref().map(|stored| stored.location.as_str()),
        tokens: spent.tokens,
        cost_usd: spent.cost_usd,
        price_version: executor.catalog.version(),
        latency_ms: i64::try_from(latency.as_millis()).unwrap_or(i64::MAX),
    };
    let job = &job.with_subjects().await?;
    let goes_out = job.trigger != RunTrigger::Test && !job.spec.destinations().is_empty();
    let status = if goes_out {
        RunStatus::Generated
    } else {
        RunStatus::Succeeded
    };
    let key = stored_at.as_ref().map(|stored| stored.key.as_str());
    let mut prepared = if goes_out {
        deliveries::prepare(executor, claim, job, Utc::now(), &record, key)
    } else {
        Vec::new()
    };
    let Some(kept) = write_answer(executor, claim, &record, status, &prepared).await? else {
        return Ok(());
    };
    crash_point!(RunRecorded);
    deliveries::keep(&mut prepared, &kept.deliveries);
    for one in &mut prepared {
        one.is_gone = kept.gone_webhooks.contains(&one.row.target);
    }
    info!(
        run.id = %claim.run_id, prompt.id = %claim.prompt_id, tenant.id = %claim.tenant_id,
        run.status = %status, run.attempt = claim.attempt, run.latency_ms = record.latency_ms,
        "model answered"
    );
    deliveries::send_all(
        executor,
        claim,
        kept.secrets.as_ref(),
        prepared,
        answer.output,
    )
    .await
}

/// Writes the answer and its deliveries, which this process then holds; `None` when somebody else
/// holds the run, and only the cost was kept.
async fn write_answer(
    executor: &Executor,
    claim: &Claim,
    record: &Answer<'_>,
    status: RunStatus,
    prepared: &[Prepared],
) -> Result<Option<Kept>, DbError> {
    let rows = prepared.iter().map(|one| &one.row).collect::<Vec<_>>();
    let (db, lease_ms) = (&executor.db, executor.lease_ms());
    let mut tries = 1;
    loop {
        match runs::record_output(db, claim, record, status, &rows, lease_ms).await {
            // The call is paid: a busy database must not throw its answer away.
            Err(error) if error.is_transient() && tries < RECORD_TRIES => tries += 1,
            Err(DbError::StaleLease) => {
                let tx = db.tenant(claim.tenant_id).await?;
                runs::settle_late(tx, claim, Some(record)).await?;
                return Ok(None);
            }
            kept => return kept.map(Some),
        }
    }
}

pub(crate) async fn record_failure(
    executor: &Executor,
    claim: &Claim,
    job: Option<&Job>,
    failure: Failure,
    attempt_status: &'static str,
) -> Result<(), DbError> {
    let tx = executor.db.tenant(claim.tenant_id).await?;
    let recorded = match runs::record_failure(&tx, claim, &failure).await {
        Err(DbError::StaleLease) => {
            drop(tx);
            let tx = executor.db.tenant(claim.tenant_id).await?;
            return runs::settle_late(tx, claim, None).await;
        }
        recorded => recorded?,
    };
    let mut notices = match (failure.then, job) {
        (AfterFailure::End(_), Some(job)) => {
            deliveries::notices(executor, claim, job, &recorded.notice(), &failure)
        }
        (AfterFailure::End(_) | AfterFailure::RetryIn { .. }, _) => Vec::new(),
    };
    let rows = notices.iter().map(|one| &one.row).collect::<Vec<_>>();
    let pauses = recorded.pauses && failure.then.ends();
    let writing = FailureWriting {
        attempt_status,
        notices: &rows,
        lease_ms: executor.lease_ms(),
        dropped: dropped_at_pause(pauses, recorded.due_at_pause.as_ref(), recorded.now),
    };
    crash_point!(FailureWritten);
    let kept = runs::finish_failure(tx, claim, &recorded, &failure, &writing).await?;
    crash_point!(FailureRecorded);
    deliveries::keep(&mut notices, &kept);
    warn!(
        run.id = %claim.run_id, prompt.id = %claim.prompt_id, tenant.id = %claim.tenant_id,
        run.attempt = claim.attempt, run.attempts_max = claim.attempts_max,
        error.code = failure.code, run.ended = failure.then.ends(),
        "try failed"
    );
    if let AfterFailure::RetryIn { delay_ms } = failure.then {
        let wake_up = WakeUp::Run {
            tenant_id: claim.tenant_id,
            run_id: claim.run_id,
        };
        executor.wake(wake_up, delay_ms).await;
    }
    deliveries::send_all(executor, claim, None, notices, String::new()).await
}

/// Ends a run whose last try vanished with its claimant.
async fn give_up(
    executor: &Executor,
    tenant_id: TenantId,
    locked: &LockedRun,
) -> Result<(), DbError> {
    let claim = runs::vanished_claim(tenant_id, locked);
    let spec = stored_spec(&locked.spec)?;
    let job = Job::new(locked.run_id, spec, locked.scheduled_for, locked.trigger);
    let failure = final_failure(
        "worker_lost",
        "the process that ran the last try vanished; the model may have been called".to_owned(),
        RunStatus::Failed,
    );
    record_failure(executor, &claim, Some(&job), failure, "unknown").await
}

fn spent(executor: &Executor, job: &Job, answer: &ModelAnswer) -> Spent {
    let usage = answer.usage.as_ref();
    Spent {
        tokens: usage.map(|usage| Tokens {
            input: signed(usage.input_total()),
            output: signed(usage.output_tokens),
            cached: signed(usage.cached_input_tokens),
        }),
        cost_usd: usage.and_then(|usage| executor.catalog.cost_usd(job.spec.model(), usage)),
    }
}

fn after_error(error: &ModelError, claim: &Claim, job: &Job) -> Failure {
    let then = match error.disposition() {
        Disposition::Retry { after } if claim.attempt < claim.attempts_max => {
            let attempt = u32::try_from(claim.attempt).unwrap_or(1);
            let base = Duration::from_millis(job.spec.retry_delay_ms().into());
            let delay = backoff::delay(attempt, base, RETRY_CAP, after);
            AfterFailure::RetryIn {
                delay_ms: i64::try_from(delay.as_millis()).unwrap_or(i64::MAX),
            }
        }
        Disposition::Retry { .. } | Disposition::GiveUp => {
            AfterFailure::End(if matches!(error, ModelError::Timeout) {
                RunStatus::TimedOut
            } else {
                RunStatus::Failed
            })
        }
    };
    Failure {
        code: error.code().to_owned(),
        message: error.to_string(),
        then,
        spent: None,
    }
}

/// The process ends before the model has answered: the run goes to another at once.
fn interrupted(claim: &Claim) -> Failure {
    let mut failure = final_failure(
        "interrupted",
        "the process that ran this try had to end before the model answered; the call may have been paid".to_owned(),
        RunStatus::Failed,
    );
    if claim.attempt < claim.attempts_max {
        failure.then = AfterFailure::RetryIn { delay_ms: 0 };
    }
    failure
}

fn final_failure(code: &str, message: String, status: RunStatus) -> Failure {
    Failure {
        code: code.to_owned(),
        message,
        then: AfterFailure::End(status),
        spent: None,
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
