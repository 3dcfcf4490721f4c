//! The state machine of runs on real rows, with several workers at once.
//!
//! What is asserted are facts that a user can see: rows, counters, statuses. They are recounted by
//! the superuser from the rows, never read from what a function said.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use executor::{
    Executor,
    deliver::{Mailer, Sender, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use shared::db::{
    Db, DbError,
    deliveries::{self, DeliveryClaim, Redeliver},
    history, prompts,
    runs::{self, AfterFailure, Changed, Claim, Enqueue, FailureWriting, NextStep},
    tenants::{self, Changes, TenantStatus},
};
use shared::ids::{DeliveryId, PromptId, RunId};
use shared::message::WakeUp;
use shared::outbound::Policy;
use shared::price::Catalog;
use shared::queue::Queue;
use shared::run::{DeliveryStatus, RunStatus, RunTrigger};
use shared::seal::Sealer;
use tests::stage::{self, Stage, Tenant, prompt, tenant};
use tests::tap::Tap;
use tests::worker::{
    LONG_MS, Looked, answer, enqueue, fail, failure, fire, fire_locked, new_delivery, resume,
    settle, succeed, take_delivery,
};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// A lease that is over as soon as it is given.
const NO_MS: i64 = 0;

const FAILED: AfterFailure = AfterFailure::End(RunStatus::Failed);

/// A database that writes down each change of a run's status.
struct Scene {
    stage: Stage,
    tenant: Tenant,
}

impl Scene {
    async fn new() -> Self {
        let stage = Stage::new(10).await.unwrap();
        stage
            .admin
            .batch_execute(
                "CREATE TABLE transitions (id bigserial, run_id uuid, was text, became text, trigger text);
                 CREATE FUNCTION note_transition() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
                 BEGIN
                     INSERT INTO public.transitions (run_id, was, became, trigger)
                     VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status, NEW.trigger);
                     RETURN NULL;
                 END $$;
                 CREATE TRIGGER note_transition AFTER INSERT OR UPDATE OF status ON scheduled_prompt_runs
                 FOR EACH ROW EXECUTE FUNCTION note_transition()",
            )
            .await
            .unwrap();
        let tenant = tenant(&stage.db, "acme").await.unwrap();
        Self { stage, tenant }
    }

    fn db(&self) -> &Db {
        &self.stage.db
    }

    async fn prompt(&self, changes: &Value) -> PromptId {
        prompt(self.db(), self.tenant, changes, None).await.unwrap()
    }

    /// A prompt whose first slot was so long ago; it has one each minute.
    async fn due_prompt(&self, changes: &Value, age: TimeDelta) -> PromptId {
        let slot = whole_minute(Utc::now() - age);
        prompt(self.db(), self.tenant, changes, Some(slot))
            .await
            .unwrap()
    }

    async fn run_of(&self, prompt: PromptId, trigger: RunTrigger) -> RunId {
        enqueue(self.db(), self.tenant.id, prompt, trigger)
            .await
            .unwrap()
            .unwrap()
    }

    async fn look(&self, run: RunId, lease_ms: i64) -> Looked {
        resume(self.db(), self.tenant.id, run, lease_ms)
            .await
            .unwrap()
    }

    async fn claim(&self, run: RunId, lease_ms: i64) -> Claim {
        match self.look(run, lease_ms).await {
            Looked::Claimed(claim) => claim,
            other @ (Looked::GaveUp | Looked::NoPlace | Looked::Other(_) | Looked::NoRun) => {
                panic!("{other:?}")
            }
        }
    }

    /// A run of the prompt, made by hand and claimed.
    async fn claimed(&self, prompt: PromptId, lease_ms: i64) -> Claim {
        let run = self.run_of(prompt, RunTrigger::Manual).await;
        self.claim(run, lease_ms).await
    }

    async fn fails(&self, claim: &Claim) -> runs::Recorded {
        fail(self.db(), claim, &failure("broken", FAILED), "error")
            .await
            .unwrap()
    }

    async fn retry(&self, run: RunId) -> Changed {
        let tx = self.stage.tx(self.tenant.id).await.unwrap();
        let changed = runs::retry(&tx, run).await.unwrap();
        tx.commit().await.unwrap();
        changed
    }

    async fn cancel(&self, run: RunId) -> Changed {
        let tx = self.stage.tx(self.tenant.id).await.unwrap();
        let changed = runs::cancel(&tx, run).await.unwrap();
        tx.commit().await.unwrap();
        changed
    }

    async fn redeliver(&self, delivery: DeliveryId) -> Redeliver {
        let tx = self.stage.tx(self.tenant.id).await.unwrap();
        let answer = deliveries::redeliver(&tx, delivery).await.unwrap();
        tx.commit().await.unwrap();
        answer
    }

    /// Some columns of one row, as JSON.
    async fn row(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Value {
        let sql = format!("SELECT to_jsonb(t) FROM ({sql}) t");
        let row = self.stage.admin.query_one(&sql, params).await.unwrap();
        row.get(0)
    }

    async fn rows(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Value {
        let sql = format!("SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]') FROM ({sql}) t");
        let row = self.stage.admin.query_one(&sql, params).await.unwrap();
        row.get(0)
    }

    async fn run_row(&self, run: RunId) -> Value {
        let sql = "SELECT * FROM scheduled_prompt_runs WHERE id = $1";
        self.row(sql, &[&run.uuid()]).await
    }

    async fn status_of(&self, run: RunId) -> String {
        self.run_row(run).await["status"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn counters(&self, prompt: PromptId) -> Value {
        let sql = "SELECT run_count, success_count, failure_count, consecutive_failures, status,
                          status_reason, last_status
                     FROM scheduled_prompts WHERE id = $1";
        self.row(sql, &[&prompt.uuid()]).await
    }

    async fn attempts(&self, run: RunId) -> Value {
        let sql = "SELECT attempt, fence, status, cost_usd, error_code FROM run_attempts
                    WHERE run_id = $1 ORDER BY fence";
        self.rows(sql, &[&run.uuid()]).await
    }

    async fn usage(&self) -> Value {
        let sql = "SELECT runs, input_tokens, output_tokens, cost_settled_usd FROM tenant_usage
                    WHERE tenant_id = $1";
        self.rows(sql, &[&self.tenant.id.uuid()]).await
    }

    /// Every counter equals what the rows say, every change of status is one that is allowed.
    async fn facts_hold(&self) {
        let sql = "
            SELECT p.id::text, p.run_count, p.success_count, p.failure_count, p.consecutive_failures,
                   f.runs, f.successes, f.failures, f.tail
              FROM scheduled_prompts p
             CROSS JOIN LATERAL (
                   SELECT count(*) FILTER (WHERE attempt >= 1) AS runs,
                          count(*) FILTER (WHERE status = 'succeeded') AS successes,
                          count(*) FILTER (WHERE status IN ('failed', 'timed_out')) AS failures,
                          count(*) FILTER (WHERE status IN ('failed', 'timed_out') AND completed_at > (
                              SELECT coalesce(max(s.completed_at), '-infinity')
                                FROM scheduled_prompt_runs s
                               WHERE s.tenant_id = p.tenant_id AND s.prompt_id = p.id
                                 AND s.status = 'succeeded' AND s.trigger <> 'test')) AS tail
                     FROM scheduled_prompt_runs r
                    WHERE r.tenant_id = p.tenant_id AND r.prompt_id = p.id AND r.trigger <> 'test') f
             WHERE (p.run_count, p.success_count, p.failure_count, p.consecutive_failures)
                   IS DISTINCT FROM (f.runs, f.successes, f.failures, f.tail::int)";
        let wrong = self.rows(sql, &[]).await;
        assert_eq!(wrong, json!([]), "counters against facts");

        let sql =
            "SELECT u.tenant_id, u.runs, u.cost_settled_usd, f.calls, f.cost FROM tenant_usage u
                    CROSS JOIN LATERAL (SELECT count(*) AS calls, coalesce(sum(cost_usd), 0) AS cost
                                          FROM run_attempts a
                                         WHERE a.tenant_id = u.tenant_id AND a.status = 'ok') f
                    WHERE (u.runs, u.cost_settled_usd) IS DISTINCT FROM (f.calls, f.cost)";
        assert_eq!(
            self.rows(sql, &[]).await,
            json!([]),
            "usage against attempts"
        );

        let sql = "SELECT prompt_id, scheduled_for FROM scheduled_prompt_runs
                    WHERE trigger IN ('schedule', 'backfill')
                      AND (attempt > 0 OR status NOT IN ('missed', 'skipped', 'cancelled'))
                    GROUP BY 1, 2 HAVING count(*) > 1";
        assert_eq!(self.rows(sql, &[]).await, json!([]), "one run a slot");

        let sql = "SELECT r.id, r.status, r.fence, a.status AS attempt FROM scheduled_prompt_runs r
                     JOIN run_attempts a ON a.tenant_id = r.tenant_id AND a.run_id = r.id
                    WHERE a.status = 'started' AND (r.status <> 'running' OR a.fence <> r.fence)";
        assert_eq!(
            self.rows(sql, &[]).await,
            json!([]),
            "calls under way that nobody makes"
        );

        let sql = "SELECT id FROM scheduled_prompt_runs
                    WHERE (status IN ('queued', 'running', 'generated')) = (completed_at IS NOT NULL)
                       OR (status = 'running') <> (lease_expires_at IS NOT NULL)";
        assert_eq!(self.rows(sql, &[]).await, json!([]), "ends and leases");

        let sql = "SELECT DISTINCT was, became FROM transitions";
        for row in self.stage.admin.query(sql, &[]).await.unwrap() {
            let (was, became): (Option<String>, String) = (row.get(0), row.get(1));
            let next: RunStatus = became.parse().unwrap();
            let allowed = match &was {
                Some(was) => was.parse::<RunStatus>().unwrap().may_become(next),
                None => matches!(
                    next,
                    RunStatus::Queued | RunStatus::Skipped | RunStatus::Missed
                ),
            };
            assert!(allowed, "{was:?} became {next}");
        }
    }
}

fn whole_minute(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(at.timestamp().div_euclid(60) * 60, 0).unwrap()
}

fn is_stale<T>(result: Result<T, DbError>) -> bool {
    matches!(result, Err(DbError::StaleLease))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_workers_at_once_make_one_run_of_each_slot() {
    let scene = Scene::new().await;
    for overlap in ["allow_all", "skip", "buffer_one"] {
        let changes = json!({"overlap": overlap});
        let prompt = scene.due_prompt(&changes, TimeDelta::minutes(4)).await;
        let fired =
            join_all((0..8).map(|_| fire(scene.db(), scene.tenant.id, prompt, LONG_MS))).await;
        let claims: Vec<_> = fired.into_iter().filter_map(Result::unwrap).collect();
        assert_eq!(claims.len(), 1, "{overlap}");
        let sql = "SELECT count(*) AS rows, count(DISTINCT scheduled_for) AS slots,
                          max(scheduled_for) < p.next_run_at AS advanced
                     FROM scheduled_prompt_runs r JOIN scheduled_prompts p ON p.id = r.prompt_id
                    WHERE r.prompt_id = $1 GROUP BY p.next_run_at";
        let found = scene.row(sql, &[&prompt.uuid()]).await;
        assert_eq!(found["rows"], found["slots"], "{overlap}");
        assert!(found["slots"].as_i64().unwrap() >= 5, "{found}");
        assert_eq!(found["advanced"], true);
    }
    scene.facts_hold().await;
}

#[tokio::test]
async fn a_claimant_that_lost_its_run_writes_nothing_but_what_its_call_cost() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({"max_retries": 5})).await;
    let old = scene.claimed(prompt, NO_MS).await;
    let new = scene.claim(old.run_id, LONG_MS).await;
    assert_eq!((new.fence, new.attempt), (old.fence + 1, old.attempt + 1));
    assert_eq!(scene.attempts(old.run_id).await[0]["status"], "unknown");

    nothing_is_written_by(&scene, &old).await;
    late_answer_is_kept_once(&scene, &old).await;
    succeed(scene.db(), &new, 0).await.unwrap();
    nothing_is_written_by(&scene, &new).await;
    let sql = "SELECT count(*)::bigint, sum(cost_usd)::float8 AS cost FROM run_attempts WHERE status = 'ok'";
    assert_eq!(scene.row(sql, &[]).await, json!({"count": 2, "cost": 0.02}));
    scene.facts_hold().await;
}

async fn nothing_is_written_by(scene: &Scene, claim: &Claim) {
    let before = (
        scene.run_row(claim.run_id).await,
        scene.counters(claim.prompt_id).await,
    );
    let answer = answer("too late");
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    assert!(is_stale(runs::renew(tx, claim, LONG_MS).await));
    for status in [RunStatus::Generated, RunStatus::Succeeded] {
        let delivery = new_delivery(7, "https://hooks.example/late");
        let deliveries = [&delivery];
        let recorded =
            runs::record_output(scene.db(), claim, &answer, status, &deliveries, LONG_MS);
        assert!(is_stale(recorded.await));
    }
    for then in [FAILED, AfterFailure::RetryIn { delay_ms: 0 }] {
        assert!(is_stale(
            fail(scene.db(), claim, &failure("broken", then), "error").await
        ));
    }
    let after = (
        scene.run_row(claim.run_id).await,
        scene.counters(claim.prompt_id).await,
    );
    assert_eq!(before, after);
}

async fn late_answer_is_kept_once(scene: &Scene, claim: &Claim) {
    let before = scene.usage().await;
    let answer = answer("too late");
    for late in [None, Some(&answer), Some(&answer)] {
        let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
        runs::settle_late(tx, claim, late).await.unwrap();
    }
    let attempts = scene.attempts(claim.run_id).await;
    let fence = claim.fence;
    let attempt = attempts
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["fence"] == fence);
    let attempt = attempt.unwrap();
    assert_eq!(
        (&attempt["status"], &attempt["cost_usd"]),
        (&json!("ok"), &json!(0.01))
    );
    let usage = scene.usage().await;
    let runs = |usage: &Value| usage[0]["runs"].as_i64().unwrap_or(0);
    assert_eq!(runs(&usage), runs(&before) + 1);
}

#[tokio::test]
async fn a_refusal_that_was_paid_is_counted() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let claim = scene.claimed(prompt, LONG_MS).await;
    let paid = answer("I would rather not");
    let mut refusal = failure("model_refused", FAILED);
    refusal.spent = Some(runs::Spent {
        tokens: paid.tokens,
        cost_usd: paid.cost_usd,
    });
    fail(scene.db(), &claim, &refusal, "error").await.unwrap();
    let attempt = scene.attempts(claim.run_id).await[0].clone();
    assert_eq!(
        (&attempt["status"], &attempt["cost_usd"]),
        (&json!("error"), &json!(0.01))
    );
    let usage = scene.usage().await[0].clone();
    assert_eq!(
        (&usage["runs"], &usage["output_tokens"]),
        (&json!(1), &json!(3))
    );

    let unpaid = scene.claimed(prompt, LONG_MS).await;
    scene.fails(&unpaid).await;
    assert_eq!(scene.usage().await[0]["runs"], json!(1));
}

#[tokio::test]
async fn a_prompts_queue_has_an_end() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    for _ in 0..runs::QUEUED_MAX {
        scene.run_of(prompt, RunTrigger::Manual).await;
    }
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let one_more = runs::enqueue(&tx, prompt, RunTrigger::Manual)
        .await
        .unwrap();
    assert_eq!(one_more, Enqueue::TooManyQueued);
    tx.commit().await.unwrap();
    let runs = scene
        .rows("SELECT id FROM scheduled_prompt_runs", &[])
        .await;
    assert_eq!(runs.as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn a_cancelled_run_is_lost_to_its_claimant() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let claim = scene.claimed(prompt, LONG_MS).await;
    assert_eq!(scene.cancel(claim.run_id).await, Changed::Done);
    nothing_is_written_by(&scene, &claim).await;
    // A claimant that never comes back leaves no call "under way".
    assert_eq!(scene.attempts(claim.run_id).await[0]["status"], "unknown");
    late_answer_is_kept_once(&scene, &claim).await;
    assert_eq!(scene.status_of(claim.run_id).await, "cancelled");
    assert_eq!(
        scene.cancel(claim.run_id).await,
        Changed::Not(RunStatus::Cancelled)
    );

    let claim = scene.claimed(prompt, LONG_MS).await;
    let sent = succeed(scene.db(), &claim, 3).await.unwrap();
    settle(scene.db(), &sent[1], DeliveryStatus::Retrying)
        .await
        .unwrap();
    assert_eq!(scene.cancel(claim.run_id).await, Changed::Done);
    let waiting = take_delivery(scene.db(), scene.tenant.id, sent[1].delivery_id, LONG_MS).await;
    assert!(
        waiting.unwrap().is_none(),
        "a delivery of a cancelled run was begun"
    );
    // What was being sent may still settle, and changes nothing about the run.
    let end = settle(scene.db(), &sent[0], DeliveryStatus::Delivered)
        .await
        .unwrap();
    assert_eq!(end.status, None);
    let end = settle(scene.db(), &sent[2], DeliveryStatus::Exhausted)
        .await
        .unwrap();
    assert_eq!(end.status, None);
    assert_eq!(scene.status_of(claim.run_id).await, "cancelled");
    scene.facts_hold().await;
}

#[tokio::test]
async fn a_vanished_claimants_run_is_claimed_again_after_its_lease() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({"max_retries": 1})).await;
    let claim = scene.claimed(prompt, 400).await;
    let early = scene.look(claim.run_id, LONG_MS).await;
    assert!(matches!(early, Looked::Other(NextStep::Leave)), "{early:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let second = scene.claim(claim.run_id, NO_MS).await;
    assert_eq!((second.attempt, second.attempts_max), (2, 2));
    let statuses = |attempts: &Value| {
        let attempts = attempts.as_array().unwrap().iter();
        attempts
            .map(|one| one["status"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        statuses(&scene.attempts(claim.run_id).await),
        ["unknown", "started"]
    );

    let last = scene.look(claim.run_id, LONG_MS).await;
    assert!(matches!(last, Looked::GaveUp), "{last:?}");
    let row = scene.run_row(claim.run_id).await;
    assert_eq!(
        (&row["status"], &row["reason"], &row["error_code"]),
        (
            &json!("failed"),
            &json!("worker_lost"),
            &json!("worker_lost")
        )
    );
    assert_eq!(
        statuses(&scene.attempts(claim.run_id).await),
        ["unknown", "unknown"]
    );
    let counters = scene.counters(prompt).await;
    assert_eq!(
        (&counters["run_count"], &counters["failure_count"]),
        (&json!(1), &json!(1))
    );
    nothing_is_written_by(&scene, &second).await;
    scene.facts_hold().await;
}

#[tokio::test]
async fn a_renewed_lease_holds() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let claim = scene.claimed(prompt, NO_MS).await;
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    runs::renew(tx, &claim, LONG_MS).await.unwrap();
    let other = scene.look(claim.run_id, LONG_MS).await;
    assert!(matches!(other, Looked::Other(NextStep::Leave)), "{other:?}");

    let sent = succeed(scene.db(), &claim, 1).await.unwrap();
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    deliveries::renew(tx, &sent[0], NO_MS).await.unwrap();
    let taken = take_delivery(scene.db(), scene.tenant.id, sent[0].delivery_id, LONG_MS).await;
    let (second, locked) = taken.unwrap().unwrap();
    assert!(locked.outcome_unknown);
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    assert!(is_stale(deliveries::renew(tx, &sent[0], LONG_MS).await));
    assert!(is_stale(
        settle(scene.db(), &sent[0], DeliveryStatus::Delivered).await
    ));
    let end = settle(scene.db(), &second, DeliveryStatus::Delivered)
        .await
        .unwrap();
    assert_eq!(end.status, Some(RunStatus::Succeeded));
    scene.facts_hold().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_runs_is_exact_with_several_workers() {
    let scene = Scene::new().await;
    let changes = json!({"max_runs": 5, "overlap": "allow_all"});
    let prompt = scene.due_prompt(&changes, TimeDelta::minutes(2)).await;
    let mut open = Vec::new();
    for _ in 0..9 {
        open.push(scene.run_of(prompt, RunTrigger::Manual).await);
    }
    open.push(scene.run_of(prompt, RunTrigger::Test).await);
    let fires = join_all((0..4).map(|_| fire(scene.db(), scene.tenant.id, prompt, LONG_MS)));
    let looks = join_all(open.iter().map(|run| scene.look(*run, LONG_MS)));
    let (fired, looked) = tokio::join!(fires, looks);
    drop((fired, looked));
    for run in scene.open_runs(prompt).await {
        scene.look(run, LONG_MS).await;
    }
    let counters = scene.counters(prompt).await;
    assert_eq!(
        (
            &counters["run_count"],
            &counters["status"],
            &counters["status_reason"]
        ),
        (&json!(5), &json!("completed"), &json!("max_runs"))
    );
    let sql = "SELECT status, reason, trigger = 'test' AS test, count(*) FROM scheduled_prompt_runs
                WHERE prompt_id = $1 AND trigger <> 'schedule' GROUP BY 1, 2, 3 ORDER BY 1, 3";
    let found = scene.rows(sql, &[&prompt.uuid()]).await;
    for group in found.as_array().unwrap() {
        assert!(
            group["status"] == "running" || group["reason"] == "max_runs",
            "{found}"
        );
    }
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let more = runs::enqueue(&tx, prompt, RunTrigger::Manual)
        .await
        .unwrap();
    assert_eq!(more, Enqueue::PromptEnded);
    scene.facts_hold().await;
}

impl Scene {
    async fn open_runs(&self, prompt: PromptId) -> Vec<RunId> {
        let sql = "SELECT id FROM scheduled_prompt_runs
                    WHERE prompt_id = $1 AND status IN ('queued', 'running') ORDER BY created_at";
        let rows = self
            .stage
            .admin
            .query(sql, &[&prompt.uuid()])
            .await
            .unwrap();
        rows.iter()
            .map(|row| RunId::from(row.get::<_, Uuid>(0)))
            .collect()
    }
}

#[tokio::test]
async fn a_slot_that_the_last_run_takes_away_is_not_lost_in_silence() {
    let scene = Scene::new().await;
    let changes = json!({"max_runs": 1});
    let prompt = scene.due_prompt(&changes, TimeDelta::zero()).await;
    scene.claimed(prompt, LONG_MS).await;
    let fired = fire(scene.db(), scene.tenant.id, prompt, LONG_MS).await;
    assert!(fired.unwrap().is_none());
    let sql = "SELECT status, reason FROM scheduled_prompt_runs
                WHERE prompt_id = $1 AND trigger = 'schedule'";
    let slots = scene.rows(sql, &[&prompt.uuid()]).await;
    assert_eq!(slots, json!([{"status": "skipped", "reason": "max_runs"}]));

    let changes = json!({"pause_after_failures": 1});
    let prompt = scene.due_prompt(&changes, TimeDelta::zero()).await;
    let claim = scene.claimed(prompt, LONG_MS).await;
    assert!(scene.fails(&claim).await.pauses);
    let slots = scene.rows(sql, &[&prompt.uuid()]).await;
    assert_eq!(slots, json!([{"status": "skipped", "reason": "paused"}]));

    let prompt = scene.due_prompt(&changes, TimeDelta::zero()).await;
    let claim = scene.claimed(prompt, LONG_MS).await;
    let sent = succeed(scene.db(), &claim, 1).await.unwrap();
    let end = settle(scene.db(), &sent[0], DeliveryStatus::Exhausted)
        .await
        .unwrap();
    assert!(end.pauses);
    let slots = scene.rows(sql, &[&prompt.uuid()]).await;
    assert_eq!(slots, json!([{"status": "skipped", "reason": "paused"}]));
    scene.facts_hold().await;
}

#[tokio::test]
async fn a_slot_that_is_skipped_names_the_run_in_its_way() {
    let scene = Scene::new().await;
    // No slot but those that are set here.
    let yearly = json!({"type": "cron", "expression": "0 0 1 1 *", "timezone": "UTC"});
    let changes = json!({"overlap": "skip", "schedule": yearly});
    let prompt = scene.due_prompt(&changes, TimeDelta::zero()).await;
    let first = fire(scene.db(), scene.tenant.id, prompt, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    set_due(&scene, prompt).await;
    let second = fire(scene.db(), scene.tenant.id, prompt, LONG_MS)
        .await
        .unwrap();
    assert!(second.is_none());
    let sql = "SELECT reason, error_message, overlapped_by FROM scheduled_prompt_runs
                WHERE prompt_id = $1 AND status = 'skipped'";
    let skipped = scene.rows(sql, &[&prompt.uuid()]).await;
    assert_eq!(skipped[0]["reason"], "overlap");
    assert_eq!(skipped[0]["overlapped_by"], json!(first.run_id));
    let words = skipped[0]["error_message"].as_str().unwrap();
    assert!(words.contains(&first.run_id.to_string()), "{words}");

    // One that buffers lets the latest wait, which is kept back until the first is through.
    let changes = json!({"overlap": "buffer_one", "schedule": yearly});
    let prompt = scene.due_prompt(&changes, TimeDelta::zero()).await;
    let first = fire(scene.db(), scene.tenant.id, prompt, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    for _ in 0..2 {
        set_due(&scene, prompt).await;
        assert!(
            fire(scene.db(), scene.tenant.id, prompt, LONG_MS)
                .await
                .unwrap()
                .is_none()
        );
    }
    let sql = "SELECT status, count(*) FROM scheduled_prompt_runs WHERE prompt_id = $1 GROUP BY 1 ORDER BY 1";
    assert_eq!(
        scene.rows(sql, &[&prompt.uuid()]).await,
        json!([{"status": "queued", "count": 1}, {"status": "running", "count": 1}, {"status": "skipped", "count": 1}])
    );
    let open = scene.open_runs(prompt).await;
    let waiting = *open.iter().find(|run| **run != first.run_id).unwrap();
    let sql = "SELECT reason, overlapped_by FROM scheduled_prompt_runs
                WHERE prompt_id = $1 AND status = 'skipped'";
    let replaced = scene.row(sql, &[&prompt.uuid()]).await;
    assert_eq!(
        replaced,
        json!({"reason": "replaced", "overlapped_by": waiting})
    );
    let looked = scene.look(waiting, LONG_MS).await;
    assert!(
        matches!(looked, Looked::Other(NextStep::Defer)),
        "{looked:?}"
    );
    succeed(scene.db(), &first, 0).await.unwrap();
    scene.claim(waiting, LONG_MS).await;
    scene.facts_hold().await;
}

/// Another slot of the prompt is due, of another minute than those before.
async fn set_due(scene: &Scene, prompt: PromptId) {
    let sql = "UPDATE scheduled_prompts p SET next_run_at = (
                   SELECT min(scheduled_for) - interval '1 second' FROM scheduled_prompt_runs r
                    WHERE r.prompt_id = p.id AND r.trigger = 'schedule')
                WHERE id = $1";
    scene
        .stage
        .admin
        .execute(sql, &[&prompt.uuid()])
        .await
        .unwrap();
    let sql = "UPDATE scheduled_prompts SET next_run_at = date_trunc('minute', now()) WHERE id = $1
                  AND next_run_at IS NULL";
    scene
        .stage
        .admin
        .execute(sql, &[&prompt.uuid()])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_runs_max_is_exact_with_several_workers() {
    let scene = Scene::new().await;
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let changes = Changes {
        concurrent_runs_max: Some(3),
        ..Changes::default()
    };
    assert!(tenants::update(&tx, &changes).await.unwrap());
    tx.commit().await.unwrap();
    let mut waiting = Vec::new();
    let mut prompts = Vec::new();
    for _ in 0..6 {
        let prompt = scene.due_prompt(&json!({}), TimeDelta::zero()).await;
        waiting.push(scene.run_of(prompt, RunTrigger::Manual).await);
        waiting.push(scene.run_of(prompt, RunTrigger::Test).await);
        prompts.push(prompt);
    }
    let fires = join_all(
        prompts
            .iter()
            .map(|one| fire(scene.db(), scene.tenant.id, *one, LONG_MS)),
    );
    let looks = join_all(waiting.iter().map(|run| scene.look(*run, LONG_MS)));
    let (fired, looked) = tokio::join!(fires, looks);
    let fired: Vec<Claim> = fired.into_iter().filter_map(Result::unwrap).collect();
    let mut claims: Vec<Claim> = looked
        .into_iter()
        .filter_map(|one| match one {
            Looked::Claimed(claim) => Some(claim),
            Looked::GaveUp | Looked::NoPlace | Looked::Other(_) | Looked::NoRun => None,
        })
        .chain(fired)
        .collect();
    let running = "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'running'";
    assert_eq!(claims.len(), 3);
    assert_eq!(scene.stage.count(running).await.unwrap(), 3);

    // A place that gets free goes to one of them, and to one alone.
    let done = claims.pop().unwrap();
    succeed(scene.db(), &done, 0).await.unwrap();
    let looks = join_all(waiting.iter().map(|run| scene.look(*run, LONG_MS))).await;
    let claimed = looks.iter().filter(|one| matches!(one, Looked::Claimed(_)));
    assert_eq!(claimed.count(), 1);
    assert_eq!(scene.stage.count(running).await.unwrap(), 3);
    scene.facts_hold().await;
}

#[tokio::test]
async fn a_suspended_tenants_slots_do_not_fire() {
    let scene = Scene::new().await;
    let prompt = scene.due_prompt(&json!({}), TimeDelta::zero()).await;
    let run = scene.run_of(prompt, RunTrigger::Manual).await;
    set_tenant(&scene, TenantStatus::Suspended).await;
    assert!(
        fire(scene.db(), scene.tenant.id, prompt, LONG_MS)
            .await
            .unwrap()
            .is_none()
    );
    let looked = scene.look(run, LONG_MS).await;
    assert!(
        matches!(looked, Looked::Other(NextStep::Leave)),
        "{looked:?}"
    );
    let sql = "SELECT count(*) FROM scheduled_prompt_runs WHERE status <> 'queued'";
    assert_eq!(scene.stage.count(sql).await.unwrap(), 0);

    set_tenant(&scene, TenantStatus::Active).await;
    assert!(
        fire(scene.db(), scene.tenant.id, prompt, LONG_MS)
            .await
            .unwrap()
            .is_some()
    );
    scene.claim(run, LONG_MS).await;
}

async fn set_tenant(scene: &Scene, status: TenantStatus) {
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    assert!(tenants::set_status(&tx, status).await.unwrap());
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_redelivery_turns_a_failure_into_a_success() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let claim = scene.claimed(prompt, LONG_MS).await;
    let sent = succeed(scene.db(), &claim, 2).await.unwrap();
    assert_eq!(scene.status_of(claim.run_id).await, "generated");
    let end = settle(scene.db(), &sent[0], DeliveryStatus::Held)
        .await
        .unwrap();
    assert_eq!(end.status, None);
    let end = settle(scene.db(), &sent[1], DeliveryStatus::Exhausted)
        .await
        .unwrap();
    assert_eq!(end.status, Some(RunStatus::Failed));
    let row = scene.run_row(claim.run_id).await;
    assert_eq!(
        (&row["status"], &row["reason"]),
        (&json!("failed"), &json!("delivery_failed"))
    );
    let held = "SELECT status FROM deliveries WHERE id = $1";
    let row = scene.row(held, &[&sent[0].delivery_id.uuid()]).await;
    assert_eq!(row["status"], "held");
    assert_eq!(scene.counters(prompt).await["failure_count"], 1);
    scene.facts_hold().await;

    for (index, ends) in [(0, None), (1, Some(RunStatus::Succeeded))] {
        let delivery = sent[index].delivery_id;
        assert_eq!(scene.redeliver(delivery).await, Redeliver::Queued);
        assert_eq!(
            scene.redeliver(delivery).await,
            Redeliver::UnderWay(DeliveryStatus::Pending)
        );
        let taken = take_delivery(scene.db(), scene.tenant.id, delivery, LONG_MS).await;
        let (again, locked) = taken.unwrap().unwrap();
        assert_eq!((again.attempt, locked.outcome_unknown), (2, false));
        let end = settle(scene.db(), &again, DeliveryStatus::Delivered)
            .await
            .unwrap();
        assert_eq!(end.status, ends);
    }
    let counters = scene.counters(prompt).await;
    assert_eq!(
        counters,
        json!({"run_count": 1, "success_count": 1, "failure_count": 0, "consecutive_failures": 0,
               "status": "active", "status_reason": null, "last_status": "succeeded"})
    );
    let row = scene.run_row(claim.run_id).await;
    assert_eq!(
        (&row["reason"], &row["error_code"]),
        (&Value::Null, &Value::Null)
    );
    scene.facts_hold().await;
}

#[tokio::test]
async fn a_cancelled_runs_delivery_is_not_tried_again() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let claim = scene.claimed(prompt, LONG_MS).await;
    let sent = succeed(scene.db(), &claim, 2).await.unwrap();
    assert_eq!(scene.cancel(claim.run_id).await, Changed::Done);
    let statuses = [DeliveryStatus::Retrying, DeliveryStatus::Delivered];
    for (delivery, status) in sent.iter().zip(statuses) {
        settle(scene.db(), delivery, status).await.unwrap();
    }
    let sql = "SELECT status FROM deliveries WHERE run_id = $1 ORDER BY position";
    assert_eq!(
        scene.rows(sql, &[&claim.run_id.uuid()]).await,
        json!([{"status": "exhausted"}, {"status": "delivered"}])
    );
    assert_eq!(scene.status_of(claim.run_id).await, "cancelled");

    // Who asks for it by name gets all attempts again.
    let delivery = sent[0].delivery_id;
    assert_eq!(scene.redeliver(delivery).await, Redeliver::Queued);
    let taken = take_delivery(scene.db(), scene.tenant.id, delivery, LONG_MS).await;
    let (again, _) = taken.unwrap().unwrap();
    let end = settle(scene.db(), &again, DeliveryStatus::Retrying)
        .await
        .unwrap();
    assert_eq!((end.delivery, end.status), (DeliveryStatus::Retrying, None));
    scene.facts_hold().await;
}

#[tokio::test]
async fn no_model_is_called_for_a_prompt_that_was_deleted() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let retrying = scene.claimed(prompt, LONG_MS).await;
    let vanished = scene.claimed(prompt, NO_MS).await;
    let failed = scene.claimed(prompt, LONG_MS).await;
    scene.fails(&failed).await;
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    assert!(prompts::tombstone(&tx, prompt).await.unwrap());
    tx.commit().await.unwrap();

    let again = failure("busy", AfterFailure::RetryIn { delay_ms: 0 });
    fail(scene.db(), &retrying, &again, "error").await.unwrap();
    assert!(matches!(
        scene.look(retrying.run_id, LONG_MS).await,
        Looked::Other(NextStep::Cancel("prompt_deleted"))
    ));
    let row = scene.run_row(retrying.run_id).await;
    assert_eq!(
        (&row["status"], &row["reason"]),
        (&json!("cancelled"), &json!("prompt_deleted"))
    );
    assert!(matches!(
        scene.look(vanished.run_id, LONG_MS).await,
        Looked::GaveUp
    ));
    assert_eq!(scene.retry(failed.run_id).await, Changed::PromptEnded);
    assert_eq!(scene.status_of(failed.run_id).await, "failed");
    scene.facts_hold().await;
}

#[tokio::test]
async fn a_retry_takes_back_the_failure_that_it_repeats() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let first = scene.claimed(prompt, LONG_MS).await;
    scene.fails(&first).await;
    let good = scene.claimed(prompt, LONG_MS).await;
    succeed(scene.db(), &good, 0).await.unwrap();
    let second = scene.claimed(prompt, LONG_MS).await;
    scene.fails(&second).await;
    assert_eq!(scene.counters(prompt).await["consecutive_failures"], 1);

    // The first failure lies before the success: it is none of those in a row.
    assert_eq!(scene.retry(first.run_id).await, Changed::Done);
    let counters = scene.counters(prompt).await;
    assert_eq!(
        (
            &counters["failure_count"],
            &counters["consecutive_failures"]
        ),
        (&json!(1), &json!(1))
    );
    scene.facts_hold().await;
    assert_eq!(
        scene.retry(first.run_id).await,
        Changed::Not(RunStatus::Queued)
    );
    let again = scene.claim(first.run_id, LONG_MS).await;
    assert_eq!(again.attempt, 2);
    scene.fails(&again).await;
    assert_eq!(scene.counters(prompt).await["consecutive_failures"], 2);
    assert_eq!(scene.counters(prompt).await["run_count"], 3);
    assert_eq!(scene.retry(second.run_id).await, Changed::Done);
    scene.facts_hold().await;
    assert_eq!(
        scene.retry(good.run_id).await,
        Changed::Not(RunStatus::Succeeded)
    );
}

#[tokio::test]
async fn a_run_has_one_notice_of_its_failure_and_each_pause_has_one() {
    let scene = Scene::new().await;
    let prompt = scene
        .prompt(&json!({"notification_email": "a@b.example", "pause_after_failures": 2}))
        .await;
    let mut claim = scene.claimed(prompt, LONG_MS).await;
    // A retry takes its failure back: the prompt never gets to two.
    for kept in [1, 0, 0] {
        assert_eq!(fails_with(&scene, &claim, "failure_notice").await, kept);
        assert_eq!(scene.retry(claim.run_id).await, Changed::Done);
        claim = scene.claim(claim.run_id, LONG_MS).await;
    }
    let other = scene.claimed(prompt, LONG_MS).await;
    assert_eq!(fails_with(&scene, &other, "failure_notice").await, 1);
    for _ in 0..2 {
        assert_eq!(fails_with(&scene, &claim, "paused_notice").await, 1);
        assert_eq!(scene.counters(prompt).await["status"], "paused");
        scene.resume_prompt(prompt).await;
        assert_eq!(scene.counters(prompt).await["consecutive_failures"], 0);
        let other = scene.claimed(prompt, LONG_MS).await;
        scene.fails(&other).await;
        assert_eq!(scene.retry(claim.run_id).await, Changed::Done);
        claim = scene.claim(claim.run_id, LONG_MS).await;
    }
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let notices = history::deliveries(tx, claim.run_id).await.unwrap();
    let of_run: Vec<_> = notices
        .unwrap()
        .into_iter()
        .map(|one| (one.purpose, one.position))
        .collect();
    let expected = [
        ("failure_notice", 0),
        ("paused_notice", 0),
        ("paused_notice", 1),
    ];
    assert_eq!(
        of_run,
        expected.map(|(purpose, at)| (purpose.to_owned(), at))
    );
}

/// The run fails with a notice of that sort: gives how many are sent.
async fn fails_with(scene: &Scene, claim: &Claim, purpose: &'static str) -> usize {
    let mut notice = new_delivery(0, "a@b.example");
    notice.purpose = purpose;
    let failed = failure("broken", FAILED);
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let recorded = runs::record_failure(&tx, claim, &failed).await.unwrap();
    assert_eq!(recorded.notice().to, Some("a@b.example"));
    assert_eq!(recorded.pauses, purpose == "paused_notice");
    let writing = FailureWriting {
        attempt_status: "error",
        notices: &[&notice],
        lease_ms: LONG_MS,
        dropped: None,
    };
    let kept = runs::finish_failure(tx, claim, &recorded, &failed, &writing).await;
    let kept = kept.unwrap();
    for one in &kept {
        // What the claimant now sends is on record, under the id that it sends.
        assert_eq!(one.id, notice.id);
        let sent = tests::worker::held(claim, &notice);
        settle(scene.db(), &sent, DeliveryStatus::Delivered)
            .await
            .unwrap();
    }
    kept.len()
}

impl Scene {
    async fn resume_prompt(&self, prompt: PromptId) {
        let tx = self.stage.tx(self.tenant.id).await.unwrap();
        let (_, found) = prompts::get_to_resume(&tx, prompt).await.unwrap().unwrap();
        let change = prompts::NewStatus {
            id: prompt,
            version: found.version,
            status: prompts::PromptStatus::Active,
            reason: None,
            note: None,
            next_run_at: None,
        };
        prompts::set_status(&tx, &change).await.unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_pause_a_prompt_once() {
    let scene = Scene::new().await;
    let prompt = scene
        .due_prompt(&json!({"pause_after_failures": 3}), TimeDelta::zero())
        .await;
    let mut claims = Vec::new();
    for _ in 0..6 {
        claims.push(scene.claimed(prompt, LONG_MS).await);
    }
    let test = scene.run_of(prompt, RunTrigger::Test).await;
    let test = scene.claim(test, LONG_MS).await;
    let version = "SELECT version FROM scheduled_prompts";
    let before = scene.stage.count(version).await.unwrap();
    assert!(!scene.fails(&test).await.pauses);
    let recorded = join_all(claims.iter().map(|claim| scene.fails(claim))).await;
    let pauses = recorded.iter().filter(|one| one.pauses).count();
    assert_eq!(pauses, 1);
    let at: BTreeSet<i32> = recorded
        .iter()
        .map(|one| one.consecutive_failures)
        .collect();
    assert_eq!(at, (1..=6).collect());
    let counters = scene.counters(prompt).await;
    assert_eq!(
        (
            &counters["status"],
            &counters["status_reason"],
            &counters["consecutive_failures"]
        ),
        (&json!("paused"), &json!("failures"), &json!(6))
    );
    assert_eq!(scene.stage.count(version).await.unwrap(), before + 1);
    scene.facts_hold().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_up_that_waited_for_a_change_runs_the_new_version() {
    let scene = Scene::new().await;
    let prompt = scene.due_prompt(&json!({}), TimeDelta::zero()).await;
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let change = prompts::NewSpec {
        id: prompt,
        version: 1,
        spec: &stage::spec(&json!({"prompt_text": "say something else"})),
        next_run_at: None,
        reschedules: false,
        webhook_urls: &[],
        calendars: None,
    };
    prompts::replace(&tx, &change).await.unwrap();
    let (db, tenant) = (scene.db().clone(), scene.tenant.id);
    let fired = tokio::spawn(async move { fire(&db, tenant, prompt, LONG_MS).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while scene.stage.count(waiting).await.unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tx.commit().await.unwrap();
    let claim = fired.await.unwrap().unwrap().expect("the slot is due");
    assert_eq!(scene.run_row(claim.run_id).await["prompt_version"], 2);
}

/// What one of many workers does next, by chance: the seed is printed, and gives the same choices.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

/// Rows that a worker may pick from; a stale look is part of the game.
struct Found {
    runs: Vec<RunId>,
    deliveries: Vec<DeliveryId>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_equal_facts_after_whatever_happened() {
    let scene = Arc::new(Scene::new().await);
    let mut prompts = Vec::new();
    for changes in [
        json!({"overlap": "allow_all", "max_retries": 3}),
        json!({"overlap": "skip", "pause_after_failures": 4}),
        json!({"overlap": "buffer_one", "max_runs": 12, "max_retries": 2}),
    ] {
        prompts.push(scene.due_prompt(&changes, TimeDelta::minutes(20)).await);
    }
    let seed = u64::from(Utc::now().timestamp_subsec_nanos()) | 1;
    println!("seed {seed}");
    let workers = (0..6).map(|number| {
        let (scene, prompts) = (Arc::clone(&scene), prompts.clone());
        tokio::spawn(async move {
            let mut chance = Chance(seed.wrapping_mul(number * 2 + 3));
            for _ in 0..60 {
                act(&scene, &prompts, &mut chance).await;
            }
        })
    });
    for worker in join_all(workers).await {
        worker.unwrap();
    }
    scene.facts_hold().await;
    let sql = "SELECT count(DISTINCT (was, became)) FROM transitions WHERE was IS NOT NULL";
    let kinds = scene.stage.count(sql).await.unwrap();
    assert!(kinds >= 10, "only {kinds} kinds of changes were tried");
}

async fn act(scene: &Scene, prompts: &[PromptId], chance: &mut Chance) {
    let prompt = prompts[chance.below(prompts.len())];
    let found = found(scene).await;
    let run = (!found.runs.is_empty()).then(|| found.runs[chance.below(found.runs.len())]);
    let delivery = (!found.deliveries.is_empty())
        .then(|| found.deliveries[chance.below(found.deliveries.len())]);
    // Half of the leases are over at once, so that others take the work over.
    let lease_ms = [NO_MS, LONG_MS][chance.below(2)];
    match (chance.below(12), run, delivery) {
        (0, ..) => {
            set_due(scene, prompt).await;
            let claim = fire(scene.db(), scene.tenant.id, prompt, lease_ms)
                .await
                .unwrap();
            end(scene, claim, chance).await;
        }
        (1, ..) => {
            let trigger = [RunTrigger::Manual, RunTrigger::Test][chance.below(2)];
            enqueue(scene.db(), scene.tenant.id, prompt, trigger)
                .await
                .unwrap();
        }
        (2..=5, Some(run), _) => {
            if let Looked::Claimed(claim) = scene.look(run, lease_ms).await {
                end(scene, Some(claim), chance).await;
            }
        }
        (6, Some(run), _) => drop(scene.cancel(run).await),
        (7, Some(run), _) => drop(scene.retry(run).await),
        (8, _, Some(delivery)) => drop(scene.redeliver(delivery).await),
        (_, _, Some(delivery)) => {
            let taken = take_delivery(scene.db(), scene.tenant.id, delivery, lease_ms).await;
            if let Some((claim, _)) = taken.unwrap() {
                settle_somehow(scene, &claim, chance).await;
            }
        }
        (_, _, None) => {}
    }
}

async fn found(scene: &Scene) -> Found {
    let ids = async |sql: &str| {
        let rows = scene.stage.admin.query(sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| row.get::<_, Uuid>(0))
            .collect::<Vec<_>>()
    };
    let runs = ids(
        "SELECT id FROM scheduled_prompt_runs WHERE status NOT IN ('skipped', 'missed')
                     ORDER BY random() LIMIT 8",
    )
    .await;
    let deliveries = ids("SELECT id FROM deliveries ORDER BY random() LIMIT 8").await;
    Found {
        runs: runs.into_iter().map(RunId::from).collect(),
        deliveries: deliveries.into_iter().map(DeliveryId::from).collect(),
    }
}

/// Answers, fails, vanishes; whoever lost the run says what its call cost.
async fn end(scene: &Scene, claim: Option<Claim>, chance: &mut Chance) {
    let Some(claim) = claim else { return };
    let (db, last) = (scene.db(), claim.attempt >= claim.attempts_max);
    let then = match chance.below(8) {
        0 => return,
        1 | 2 => None,
        3 | 4 => {
            let destinations = i32::try_from(1 + chance.below(3)).unwrap();
            return match succeed(db, &claim, destinations).await {
                Ok(sent) => {
                    for one in sent {
                        settle_somehow(scene, &one, chance).await;
                    }
                }
                Err(error) => late(scene, &claim, error).await,
            };
        }
        5 if !last => Some(AfterFailure::RetryIn { delay_ms: 0 }),
        6 => Some(AfterFailure::End(RunStatus::TimedOut)),
        _ => Some(FAILED),
    };
    let recorded = match then {
        None => succeed(db, &claim, 0).await.map(drop),
        Some(then) => fail(db, &claim, &failure("broken", then), "error")
            .await
            .map(drop),
    };
    if let Err(error) = recorded {
        late(scene, &claim, error).await;
    }
}

async fn late(scene: &Scene, claim: &Claim, error: DbError) {
    assert!(matches!(error, DbError::StaleLease), "{error:?}");
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let answer = answer("too late");
    runs::settle_late(tx, claim, Some(&answer)).await.unwrap();
}

async fn settle_somehow(scene: &Scene, claim: &DeliveryClaim, chance: &mut Chance) {
    let status = match chance.below(8) {
        0 => return,
        1 => DeliveryStatus::Retrying,
        2 => DeliveryStatus::Held,
        3 => DeliveryStatus::Exhausted,
        _ => DeliveryStatus::Delivered,
    };
    match settle(scene.db(), claim, status).await {
        Ok(_) | Err(DbError::StaleLease) => {}
        Err(error) => panic!("{error:?}"),
    }
}

/// One connection, so that nothing hides.
struct Tapped {
    tap: Tap,
    stage: Stage,
    tenant: Tenant,
}

impl Tapped {
    async fn new() -> Self {
        let tap = Tap::open(Duration::from_millis(20)).await.unwrap();
        let stage = Stage::behind(&tap, 1).await.unwrap();
        let tenant = tenant(&stage.db, "acme").await.unwrap();
        Self { tap, stage, tenant }
    }

    async fn due(&self, changes: &Value) -> PromptId {
        let slot = whole_minute(Utc::now());
        prompt(&self.stage.db, self.tenant, changes, Some(slot))
            .await
            .unwrap()
    }

    /// What `work` gives, and the round trips that it took.
    async fn trips<T>(&self, work: impl Future<Output = T>) -> (T, usize) {
        let before = self.tap.round_trips();
        let result = work.await;
        (result, self.tap.round_trips() - before)
    }

    /// One of everything that happens to a run; gives each part's name and round trips.
    async fn live(&self) -> Vec<(&'static str, usize)> {
        let (db, tenant) = (&self.stage.db, self.tenant.id);
        let mut counted = Vec::new();
        let prompt = self.due(&json!({"max_retries": 5})).await;
        let (claim, count) = self.trips(fire(db, tenant, prompt, LONG_MS)).await;
        counted.push(("claim of a slot", count));
        let claim = claim.unwrap().unwrap();
        let tx = db.tenant(tenant).await.unwrap();
        counted.push(("renew", self.trips(runs::renew(tx, &claim, NO_MS)).await.1));
        let (again, count) = self.trips(resume(db, tenant, claim.run_id, LONG_MS)).await;
        counted.push(("claim of a run", count));
        let Looked::Claimed(again) = again.unwrap() else {
            panic!()
        };
        let late = async {
            let tx = db.tenant(tenant).await.unwrap();
            runs::settle_late(tx, &claim, Some(&answer("late")))
                .await
                .unwrap();
        };
        counted.push(("late answer", self.trips(late).await.1));
        let retry = failure("broken", AfterFailure::RetryIn { delay_ms: 0 });
        counted.push((
            "failed try",
            self.trips(fail(db, &again, &retry, "error")).await.1,
        ));
        let Looked::Claimed(last) = resume(db, tenant, claim.run_id, LONG_MS).await.unwrap() else {
            panic!()
        };
        let (sent, count) = self.trips(succeed(db, &last, 3)).await;
        counted.push(("record with 3 deliveries", count));
        let sent = sent.unwrap();
        let (_, count) = self
            .trips(settle(db, &sent[2], DeliveryStatus::Delivered))
            .await;
        counted.push(("settled delivery", count));
        let (_, count) = self
            .trips(settle(db, &sent[0], DeliveryStatus::Retrying))
            .await;
        counted.push(("delivery to be tried again", count));
        let next = take_delivery(db, tenant, sent[0].delivery_id, LONG_MS);
        let (taken, count) = self.trips(next).await;
        counted.push(("claim of a delivery", count));
        assert!(taken.unwrap().is_some());
        let (_, count) = self
            .trips(settle(db, &sent[1], DeliveryStatus::Exhausted))
            .await;
        counted.push(("exhausted delivery", count));
        counted
    }
}

#[tokio::test]
async fn a_run_costs_two_round_trips_to_claim_and_one_to_record() {
    let tapped = Tapped::new().await;
    tapped.live().await;
    // From here on every statement is prepared.
    let prepared = tapped.tap.prepared();
    let counted = tapped.live().await;
    println!("{counted:?}");
    for (part, count) in &counted {
        let most = match *part {
            "renew" | "late answer" | "record with 3 deliveries" | "settled delivery" => 1,
            _ => 2,
        };
        assert!(*count <= most, "{part} took {count} round trips");
    }
    assert!(counted.iter().any(|(_, count)| *count == 2), "{counted:?}");

    // One prepared statement for each function and connection, however often it is called; and
    // PostgreSQL holds what the tap saw.
    let again = tapped.tap.prepared().split_off(prepared.len());
    let again: Vec<_> = again.iter().filter(|one| !one.name.is_empty()).collect();
    assert!(again.is_empty(), "{again:?}");
    let connection = prepared.last().unwrap().connection;
    let held = "SELECT split_part(statement, chr(10), 1) FROM pg_prepared_statements ORDER BY 1";
    let held = tapped.tap.ask(connection, held).await.unwrap();
    let held: Vec<String> = held.into_iter().flatten().flatten().collect();
    let mut once = held.clone();
    once.dedup();
    assert_eq!(held, once);
    assert!(held.len() > 20, "{held:?}");
    assert!(
        held.iter().all(|title| title.starts_with("-- ")),
        "{held:?}"
    );
}

#[tokio::test]
async fn the_executor_keeps_to_the_same_count() {
    let tapped = Tapped::new().await;
    let folder = tempfile::tempdir().unwrap();
    let executor = Executor {
        db: tapped.stage.db.clone(),
        queue: Queue::local(1).0,
        models: Models::new(
            ProvidersConfig {
                allow_echo: true,
                ..ProvidersConfig::default()
            },
            executor::model::client().unwrap(),
        ),
        sender: Sender::new(
            Mailer::Directory {
                path: folder.path().join("outbox"),
            },
            Storage::Directory {
                root: folder.path().join("storage"),
            },
            Guarded::new(Policy::PUBLIC).unwrap(),
        ),
        sealer: Sealer::from_key_file(&folder.path().join("key")).unwrap(),
        catalog: Catalog::shipped(),
        from: "carillon@example.com".parse().unwrap(),
        lease: Duration::from_secs(60),
    };
    let tenant_id = tapped.tenant.id;
    let stores = json!([{"kind": "storage"}]);
    for (what, text, destinations, most) in [
        ("no destination", "say something", json!([]), 3),
        ("one destination", "say something", stores.clone(), 4),
        (
            "the previous output",
            "more of {{ previous.output }}",
            json!([]),
            3,
        ),
        // PostgreSQL stores no NUL; a slot whose text has one must not stay due for ever.
        ("a NUL", "a {{ '\\u0000' }} b", json!([]), 5),
    ] {
        let changes = json!({"prompt_text": text, "destinations": destinations});
        let mut count = 0;
        for _ in 0..2 {
            let prompt_id = tapped.due(&changes).await;
            let wake_up = WakeUp::Prompt {
                tenant_id,
                prompt_id,
            };
            let (handled, trips) = tapped.trips(Box::pin(executor.handle(wake_up))).await;
            handled.unwrap();
            count = trips;
            let sql = "SELECT status FROM scheduled_prompt_runs WHERE prompt_id = $1";
            let row = tapped
                .stage
                .admin
                .query_one(sql, &[&prompt_id.uuid()])
                .await;
            assert_eq!(row.unwrap().get::<_, String>(0), "succeeded", "{what}");
        }
        println!("{what}: {count} round trips");
        assert!(
            count <= most,
            "{what}: {count} round trips from the wake-up to the end"
        );
    }
}

#[tokio::test]
async fn what_comes_due_only_behind_its_lock_is_left_for_the_next_wake_up() {
    let scene = Scene::new().await;
    let prompt = scene.due_prompt(&json!({}), TimeDelta::minutes(2)).await;
    let slot = "SELECT next_run_at, run_count FROM scheduled_prompts WHERE id = $1";
    let before = scene.row(slot, &[&prompt.uuid()]).await;
    // The statement that locks reads a clock of an hour ago, and the look behind it the right one.
    let clock = format!(
        "CREATE SCHEMA early;
         CREATE FUNCTION early.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
         BEGIN
             RETURN pg_catalog.clock_timestamp() - CASE
                 WHEN current_query() LIKE '%runs::lock_due%' THEN interval '1 hour'
                 ELSE interval '0' END;
         END $$;
         GRANT USAGE ON SCHEMA early TO PUBLIC;
         ALTER ROLE carillon_app IN DATABASE \"{}\" SET search_path = early, public, pg_catalog",
        scene.stage.name
    );
    scene.stage.admin.batch_execute(&clock).await.unwrap();
    let db = Db::connect(&stage::config(&scene.stage.name, 1))
        .await
        .unwrap();
    let fired = fire_locked(&db, scene.tenant.id, prompt, LONG_MS).await;
    assert!(fired.unwrap().is_none());
    assert_eq!(scene.row(slot, &[&prompt.uuid()]).await, before);
    let runs = "SELECT id FROM scheduled_prompt_runs WHERE prompt_id = $1";
    assert_eq!(scene.rows(runs, &[&prompt.uuid()]).await, json!([]));
    // A process whose clock is right finds it.
    let fired = fire_locked(scene.db(), scene.tenant.id, prompt, LONG_MS).await;
    assert!(fired.unwrap().is_some());
}

#[tokio::test]
async fn a_runs_log_tells_of_its_answer_and_of_its_delivery() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(&json!({})).await;
    let claim = scene.claimed(prompt, LONG_MS).await;
    let sent = succeed(scene.db(), &claim, 1).await.unwrap();
    let end = settle(scene.db(), &sent[0], DeliveryStatus::Delivered)
        .await
        .unwrap();
    assert_eq!(end.status, Some(RunStatus::Succeeded));
    let lines = "SELECT level, message, context->'attempt' AS attempt,
                        context->'output_tokens' AS tokens, context->>'delivery_id' AS delivery,
                        context->>'status' AS status
                   FROM run_logs WHERE run_id = $1 ORDER BY id";
    let told = scene.rows(lines, &[&claim.run_id.uuid()]).await;
    let delivery = sent[0].delivery_id.to_string();
    assert_eq!(
        told,
        json!([
            {"level": "info", "message": "model answered", "attempt": 1, "tokens": 3,
             "delivery": null, "status": null},
            {"level": "info", "message": "delivery attempt settled", "attempt": 1, "tokens": null,
             "delivery": delivery, "status": "delivered"},
        ])
    );
    // Who comes late adds nothing to it.
    let late = succeed(scene.db(), &claim, 1).await;
    assert!(matches!(late, Err(DbError::StaleLease)));
    let again = settle(scene.db(), &sent[0], DeliveryStatus::Delivered).await;
    assert!(matches!(again, Err(DbError::StaleLease)));
    assert_eq!(scene.rows(lines, &[&claim.run_id.uuid()]).await, told);
}
