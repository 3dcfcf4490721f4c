//! What one prompt or tenant does not take from another: places, turns, sweeps and locks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use executor::{
    Executor,
    deliver::{Mailer, Sender, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use shared::db::{
    Db, looks,
    runs::AfterFailure,
    system,
    tenants::{self, TenantStatus},
};
use shared::ids::{PromptId, RunId, TenantId};
use shared::message::WakeUp;
use shared::outbound::Policy;
use shared::price::Catalog;
use shared::queue::Queue;
use shared::run::{DeliveryStatus, RunStatus, RunTrigger};
use shared::seal::Sealer;
use sweeper::ROWS_MAX;
use tests::chance::{Chance, seed};
use tests::stage::{Stage, Tenant, prompt, tenant};
use tests::worker::{
    LONG_MS, Looked, enqueue, fail, failure, fire, resume, settle, succeed, take_delivery,
};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::beginning;
use crate::database::Sim;
use crate::script::Config;

/// Due rows of the tenant that has many.
const MANY: i64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_wake_ups_at_once_cannot_both_win() {
    let mut at = beginning();
    let sim = Sim::new(at).await;
    note_what_runs_at_once(&sim.admin).await;
    let caller = sim.tenant("acme", 10_000).await;
    let mut prompts = Vec::new();
    for (overlap, bound) in [
        ("skip", 1),
        ("buffer_one", 1),
        ("allow_all", 2),
        ("allow_all", 3),
    ] {
        let mut body = every_minute();
        body["overlap"] = json!(overlap);
        body["overlap_runs_max"] = json!(bound);
        body["misfire"] = json!("run_all");
        let made = sim.call(&caller, "POST", "/v1/prompts", Some(body)).await;
        prompts.push((id(&made), bound));
    }
    let seed = seed();
    println!("CARILLON_TEST_SEED={seed}");
    for minute in 0..12 {
        // Now and then several slots at once.
        at += TimeDelta::minutes(if minute % 4 == 3 { 6 } else { 1 });
        sim.set_clock(at).await;
        let workers = (0..8).map(|worker| {
            let (sim, prompts) = (Arc::clone(&sim), prompts.clone());
            let chance = Chance::of_case(seed, minute * 8 + worker);
            let tenant = caller.tenant;
            tokio::spawn(async move { work(&sim, tenant, &prompts, chance).await })
        });
        for worker in join_all(workers).await {
            worker.unwrap();
        }
    }
    let mut most = BTreeMap::new();
    for row in sim
        .admin
        .query("SELECT prompt_id, max(runs) FROM at_once GROUP BY 1", &[])
        .await
        .unwrap()
    {
        most.insert(PromptId::from(row.get::<_, Uuid>(0)), row.get::<_, i64>(1));
    }
    for (prompt, bound) in prompts {
        let at_once = most[&prompt];
        assert!(
            (1..=bound).contains(&at_once),
            "{at_once} runs of {prompt} at once"
        );
    }
}

/// Under the lock of the prompt, which whoever changes one of its runs holds.
async fn note_what_runs_at_once(admin: &Client) {
    admin
        .batch_execute(
            "CREATE TABLE at_once (prompt_id uuid, runs bigint);
             CREATE FUNCTION note_at_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN
                 INSERT INTO public.at_once
                 SELECT NEW.prompt_id, count(*) FROM public.scheduled_prompt_runs r
                  WHERE r.prompt_id = NEW.prompt_id AND r.status = 'running';
                 RETURN NULL;
             END $$;
             CREATE TRIGGER note_at_once AFTER UPDATE OF status ON scheduled_prompt_runs
             FOR EACH ROW WHEN (NEW.status = 'running') EXECUTE FUNCTION note_at_once()",
        )
        .await
        .unwrap();
}

/// Wakes prompts, takes runs and ends them, as it comes.
async fn work(sim: &Sim, tenant: TenantId, prompts: &[(PromptId, i64)], mut chance: Chance) {
    for _ in 0..12 {
        let (prompt, _) = chance.pick(prompts);
        let mut claimed = fire(&sim.db, tenant, prompt, LONG_MS).await.unwrap();
        if let (None, Some(run)) = (claimed, waiting(sim, prompt).await)
            && let Looked::Claimed(claim) = resume(&sim.db, tenant, run, LONG_MS).await.unwrap()
        {
            claimed = Some(claim);
        }
        if let Some(claim) = claimed {
            tokio::time::sleep(Duration::from_millis(chance.below(8))).await;
            succeed(&sim.db, &claim, 0).await.unwrap();
        }
    }
}

async fn waiting(sim: &Sim, prompt: PromptId) -> Option<RunId> {
    let sql = "SELECT id FROM scheduled_prompt_runs WHERE prompt_id = $1 AND status = 'queued'
                ORDER BY scheduled_for LIMIT 1";
    let row = sim.admin.query_opt(sql, &[&prompt.uuid()]).await.unwrap();
    row.map(|row| RunId::from(row.get::<_, Uuid>(0)))
}

fn every_minute() -> Value {
    let mut chance = Chance::of_case(0, 0);
    let mut config = Config::random(&mut chance, beginning());
    (config.minutes, config.hours, config.end) = (1, 1, None);
    (config.jitter_minutes, config.max_runs, config.pause_after) = (0, None, 0);
    config.to_json()
}

fn id(made: &Value) -> PromptId {
    let id: Uuid = made["id"].as_str().unwrap().parse().unwrap();
    id.into()
}

/// One tenant with many due rows of each kind, all older than what others have.
struct Crowd {
    stage: Stage,
    many: Tenant,
    one: Tenant,
}

impl Crowd {
    async fn new() -> Self {
        let stage = Stage::new(4).await.unwrap();
        let many = tenant(&stage.db, "many").await.unwrap();
        let one = tenant(&stage.db, "one").await.unwrap();
        let crowd = Self { stage, many, one };
        for (tenant, count) in [(many, MANY), (one, 1)] {
            crowd.fill(tenant, count).await;
        }
        crowd
            .sql(
                "UPDATE tenants SET concurrent_runs_max = 100000;
                  ANALYZE",
            )
            .await;
        crowd
    }

    async fn sql(&self, sql: &str) {
        self.stage.admin.batch_execute(sql).await.unwrap();
    }

    /// Copies of a prompt, a queued run and a delivery that the product made.
    async fn fill(&self, tenant: Tenant, count: i64) {
        let db = &self.stage.db;
        let slot = Utc::now() + TimeDelta::hours(1);
        let prompt = prompt(db, tenant, &json!({}), Some(slot)).await.unwrap();
        let run = enqueue(db, tenant.id, prompt, RunTrigger::Manual)
            .await
            .unwrap();
        let Looked::Claimed(claim) = resume(db, tenant.id, run.unwrap(), LONG_MS).await.unwrap()
        else {
            panic!("not claimed");
        };
        let sent = succeed(db, &claim, 1).await.unwrap();
        settle(db, &sent[0], DeliveryStatus::Retrying)
            .await
            .unwrap();
        let run = enqueue(db, tenant.id, prompt, RunTrigger::Manual)
            .await
            .unwrap();
        let (prompt, run, delivery) = (
            prompt.uuid(),
            run.unwrap().uuid(),
            sent[0].delivery_id.uuid(),
        );
        let age = count - 1;
        let copies = [
            (
                "scheduled_prompts",
                prompt,
                "next_run_at",
                "external_id = NULL",
            ),
            ("scheduled_prompt_runs", run, "available_at", "attempt = 0"),
            ("deliveries", delivery, "next_attempt_at", "position = n"),
        ];
        for (table, id, due, change) in copies {
            self.sql(&format!(
                "UPDATE {table} SET {due} = now() - interval '1 second' - {age} * interval '1 ms'
                  WHERE id = '{id}';
                 CREATE TEMP TABLE copies AS SELECT t.*, n FROM {table} t, generate_series(1, {age}) n
                  WHERE t.id = '{id}';
                 UPDATE copies SET id = gen_random_uuid(), {due} = {due} + n * interval '1 ms', {change};
                 ALTER TABLE copies DROP n, DROP due_at;
                 DO $$ BEGIN EXECUTE (
                     SELECT format('INSERT INTO {table} (%1$s) SELECT %1$s FROM copies',
                                   string_agg(quote_ident(attname), ', '))
                       FROM pg_attribute WHERE attrelid = 'copies'::regclass AND attnum > 0
                        AND NOT attisdropped AND attname <> 'schedule_type' AND attname <> 'timezone');
                 END $$;
                 DROP TABLE copies"
            ))
            .await;
        }
    }

    /// What one sweep finds, of each kind and tenant.
    async fn found(&self) -> [BTreeMap<TenantId, usize>; 3] {
        let db = &self.stage.db;
        let (prompts, runs, deliveries) = tokio::try_join!(
            system::due_prompts(db, ROWS_MAX),
            system::due_runs(db, ROWS_MAX),
            system::due_deliveries(db, ROWS_MAX),
        )
        .unwrap();
        [prompts, runs, deliveries].map(|found| {
            let mut tenants = BTreeMap::new();
            for wake_up in found {
                *tenants.entry(whose(wake_up)).or_insert(0) += 1;
            }
            tenants
        })
    }

    async fn set_status(&self, tenant: Tenant, status: TenantStatus) {
        let tx = self.stage.tx(tenant.id).await.unwrap();
        assert!(tenants::set_status(&tx, status).await.unwrap());
        tx.commit().await.unwrap();
    }
}

fn whose(wake_up: WakeUp) -> TenantId {
    let (WakeUp::Prompt { tenant_id, .. }
    | WakeUp::Run { tenant_id, .. }
    | WakeUp::Delivery { tenant_id, .. }) = wake_up;
    tenant_id
}

#[tokio::test]
async fn ten_thousand_due_slots_delay_anothers_single_one_by_no_more_than_a_batch() {
    let crowd = Crowd::new().await;
    let batch = usize::try_from(ROWS_MAX).unwrap();
    for found in crowd.found().await {
        let expected = [(crowd.many.id, batch - 1), (crowd.one.id, 1)];
        assert_eq!(found, BTreeMap::from(expected));
    }
    // The sweeper itself, with a queue that has room for a part of what it finds.
    let (queue, mut wake_ups) = Queue::local(30);
    let swept = sweeper::sweep(&crowd.stage.db, &queue).await.unwrap();
    assert_eq!((swept.sent, swept.postponed), (30, 3 * batch - 30));
    drop(queue);
    let mut of_one = 0;
    while let Some(wake_up) = wake_ups.next().await {
        of_one += usize::from(whose(wake_up) == crowd.one.id);
    }
    assert_eq!(of_one, 3, "its prompt, its run and its delivery");

    // With a third tenant, each has its share.
    let third = tenant(&crowd.stage.db, "third").await.unwrap();
    crowd.fill(third, 400).await;
    crowd
        .sql("UPDATE tenants SET concurrent_runs_max = 100000")
        .await;
    for found in crowd.found().await {
        let share = (batch - 1) / 2;
        assert_eq!(found[&crowd.one.id], 1);
        assert!(found[&third.id] >= share, "{found:?}");
    }
}

#[tokio::test]
async fn a_tenant_without_a_free_place_and_one_that_is_suspended_fill_no_sweep() {
    let crowd = Crowd::new().await;
    crowd
        .sql(&format!(
            "UPDATE tenants SET concurrent_runs_max = 2 WHERE id = '{}'",
            crowd.many.id
        ))
        .await;
    let [_, runs, _] = crowd.found().await;
    assert_eq!(runs[&crowd.many.id], 2);

    crowd.set_status(crowd.many, TenantStatus::Suspended).await;
    for found in crowd.found().await {
        assert_eq!(found, BTreeMap::from([(crowd.one.id, 1)]));
    }
    // Not even an entry of an index is read of what is suspended.
    for table in ["scheduled_prompts", "scheduled_prompt_runs", "deliveries"] {
        let due = format!("SELECT count(*) FROM {table} WHERE due_at <= now()");
        assert_eq!(crowd.stage.count(&due).await.unwrap(), 1, "{table}");
    }
    crowd.set_status(crowd.many, TenantStatus::Active).await;
    let [prompts, _, deliveries] = crowd.found().await;
    assert!(prompts[&crowd.many.id] > 1 && deliveries[&crowd.many.id] > 1);
}

/// An executor over a database, with a model that answers at once.
fn executor(db: &Db, folder: &std::path::Path) -> Executor {
    Executor {
        db: db.clone(),
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
                path: folder.join("outbox"),
            },
            Storage::Directory {
                root: folder.join("storage"),
            },
            Guarded::new(Policy::PUBLIC).unwrap(),
        ),
        sealer: Sealer::from_key_file(&folder.join("key")).unwrap(),
        catalog: Catalog::shipped(),
        from: "carillon@example.com".parse().unwrap(),
        lease: Duration::from_secs(60),
    }
}

#[tokio::test]
async fn what_cannot_be_looked_at_does_not_fill_the_sweeps() {
    let mut at = beginning();
    let sim = Sim::new(at).await;
    let caller = sim.tenant("acme", 10_000).await;
    let folder = tempfile::tempdir().unwrap();
    let executor = executor(&sim.db, folder.path());
    let mut bad = BTreeSet::new();
    for _ in 0..5 {
        bad.insert(id(&sim
            .call(&caller, "POST", "/v1/prompts", Some(every_minute()))
            .await));
    }
    sim.admin
        .batch_execute(
            "CREATE TABLE sim.good AS SELECT * FROM prompt_versions;
             UPDATE prompt_versions SET spec = '{\"from\": \"another version\"}'",
        )
        .await
        .unwrap();
    at += TimeDelta::minutes(1);
    sim.set_clock(at).await;
    let slots = "SELECT array_agg(next_run_at ORDER BY id) FROM scheduled_prompts";
    let slots_of = async || {
        let row = sim.admin.query_one(slots, &[]).await.unwrap();
        row.get::<_, Vec<chrono::DateTime<Utc>>>(0)
    };
    let before = slots_of().await;
    let mut waited = 0;
    for pause_s in [5, 10, 20, 40, 80, 160, 320, 640, 1_200, 1_200] {
        let found: BTreeSet<PromptId> = sim.found().await.into_iter().collect();
        assert_eq!(found, bad, "after {waited} s");
        for prompt_id in found {
            let wake_up = WakeUp::Prompt {
                tenant_id: caller.tenant,
                prompt_id,
            };
            executor.handle(wake_up).await.unwrap_err();
        }
        sim.set_clock(at + TimeDelta::seconds(pause_s - 1)).await;
        assert_eq!(sim.found().await, [], "after {waited} s");
        at += TimeDelta::seconds(pause_s);
        waited += pause_s;
        sim.set_clock(at).await;
    }
    assert_eq!(slots_of().await, before);

    // Once it is mended it is looked at at once, whatever its looks came to.
    let mended = bad.pop_first().unwrap();
    let path = format!("/v1/prompts/{mended}");
    for prompt_id in [mended].iter().chain(&bad) {
        let wake_up = WakeUp::Prompt {
            tenant_id: caller.tenant,
            prompt_id: *prompt_id,
        };
        executor.handle(wake_up).await.unwrap_err();
    }
    assert_eq!(sim.found().await, []);
    sim.admin
        .execute(
            "UPDATE prompt_versions v SET spec = g.spec FROM sim.good g
              WHERE g.prompt_id = v.prompt_id AND v.prompt_id = $1",
            &[&mended.uuid()],
        )
        .await
        .unwrap();
    let text = json!({"prompt_text": "say it again"});
    sim.call(&caller, "PATCH", &path, Some(text)).await;
    assert_eq!(sim.found().await, [mended]);
}

#[tokio::test]
async fn runs_and_deliveries_that_fail_their_looks_are_put_off_too() {
    let at = beginning();
    let sim = Sim::new(at).await;
    let caller = sim.tenant("acme", 10_000).await;
    let made = sim
        .call(&caller, "POST", "/v1/prompts", Some(every_minute()))
        .await;
    let (db, tenant_id) = (&sim.db, caller.tenant);
    let run = enqueue(db, tenant_id, id(&made), RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    let Looked::Claimed(claim) = resume(db, tenant_id, run, LONG_MS).await.unwrap() else {
        panic!("not claimed");
    };
    let sent = succeed(db, &claim, 1).await.unwrap();
    settle(db, &sent[0], DeliveryStatus::Retrying)
        .await
        .unwrap();
    let delivery_id = sent[0].delivery_id;
    let run_id = enqueue(db, tenant_id, id(&made), RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    for wake_up in [
        WakeUp::Run { tenant_id, run_id },
        WakeUp::Delivery {
            tenant_id,
            delivery_id,
        },
    ] {
        assert_eq!(
            due(&sim)
                .await
                .iter()
                .filter(|one| **one == wake_up)
                .count(),
            1
        );
        looks::put_off(db.tenant(tenant_id).await.unwrap(), wake_up)
            .await
            .unwrap();
        assert!(!due(&sim).await.contains(&wake_up));
    }
    sim.set_clock(at + TimeDelta::seconds(5)).await;
    assert_eq!(due(&sim).await.len(), 2);
    // A look that succeeds forgets it.
    take_delivery(db, tenant_id, delivery_id, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    resume(db, tenant_id, run_id, LONG_MS).await.unwrap();
    for table in ["scheduled_prompt_runs", "deliveries"] {
        let sql = format!("SELECT max(looks_failed) FROM {table}");
        let most = sim.admin.query_one(&sql, &[]).await.unwrap();
        assert_eq!(most.get::<_, i32>(0), 0, "{table}");
    }
}

async fn due(sim: &Sim) -> Vec<WakeUp> {
    let mut due = system::due_runs(&sim.db, ROWS_MAX).await.unwrap();
    due.extend(system::due_deliveries(&sim.db, ROWS_MAX).await.unwrap());
    due
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_template_keeps_neither_a_lock_nor_a_connection() {
    // One connection: whoever holds it while it renders keeps all others out.
    let stage = Stage::new(1).await.unwrap();
    let acme = tenant(&stage.db, "acme").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let executor = Arc::new(executor(&stage.db, folder.path()));
    // The next slot must not come due while the test runs.
    let yearly = json!({"type": "cron", "expression": "0 0 1 1 *", "timezone": "UTC"});
    let slow_spec = json!({
        "schedule": yearly,
        "prompt_text": "{% for n in context.list %}{% if context.text | replace('a', 'b') == 'c' %}x{% endif %}{% endfor %}done",
        "context": {"list": vec![1; 300], "text": "a".repeat(4_000)},
    });
    let slot = Utc::now() - TimeDelta::seconds(1);
    let slow = prompt(&stage.db, acme, &slow_spec, Some(slot))
        .await
        .unwrap();
    let quick = prompt(&stage.db, acme, &json!({"schedule": yearly}), Some(slot))
        .await
        .unwrap();
    let wake_up = |prompt_id| WakeUp::Prompt {
        tenant_id: acme.id,
        prompt_id,
    };
    let (one, other) = (Arc::clone(&executor), wake_up(slow));
    let handled = tokio::spawn(async move { one.handle(other).await });
    let queued = format!("SELECT count(*) FROM scheduled_prompt_runs WHERE prompt_id = '{slow}'");
    while stage.count(&queued).await.unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    executor.handle(wake_up(quick)).await.unwrap();
    handled.await.unwrap().unwrap();
    let sql = "SELECT s.status, s.rendered_input, s.error_message, s.attempt,
                      s.started_at > q.completed_at AS was_later
                 FROM scheduled_prompt_runs s, scheduled_prompt_runs q
                WHERE s.prompt_id = $1 AND q.prompt_id = $2";
    let row = stage
        .admin
        .query_one(sql, &[&slow.uuid(), &quick.uuid()])
        .await
        .unwrap();
    let text = |name: &str| row.get::<_, Option<String>>(name);
    let slow = (
        text("status"),
        text("rendered_input"),
        text("error_message"),
    );
    assert_eq!(slow, (Some("succeeded".into()), Some("done".into()), None));
    assert_eq!(row.get::<_, i32>("attempt"), 1);
    assert!(
        row.get::<_, bool>("was_later"),
        "the quick one had to wait for the slow one"
    );
}

#[tokio::test]
async fn failures_pause_a_prompt_and_say_so() {
    let mut at = beginning();
    let sim = Sim::new(at).await;
    let caller = sim.tenant("acme", 10_000).await;
    let mut body = every_minute();
    body["pause_after_failures"] = json!(2);
    body["overlap"] = json!("allow_all");
    let made = sim.call(&caller, "POST", "/v1/prompts", Some(body)).await;
    let path = format!("/v1/prompts/{}", made["id"].as_str().unwrap());
    let mut claims = Vec::new();
    for _ in 0..2 {
        at += TimeDelta::minutes(1);
        sim.set_clock(at).await;
        let claim = fire(&sim.db, caller.tenant, id(&made), LONG_MS)
            .await
            .unwrap();
        claims.push(claim.unwrap());
    }
    // Five slots that nobody looks at.
    at += TimeDelta::minutes(5);
    sim.set_clock(at).await;
    let broken = failure("model_refused", AfterFailure::End(RunStatus::Failed));
    for claim in &claims {
        fail(&sim.db, claim, &broken, "error").await.unwrap();
    }
    let paused = sim.call(&caller, "GET", &path, None).await;
    assert_eq!(paused["status"], "paused");
    assert_eq!(paused["status_reason"], "failures");
    assert_eq!(
        paused["status_note"],
        "2 failed runs in a row; the last failed with model_refused"
    );
    assert_eq!(
        (&paused["consecutive_failures"], &paused["next_run_at"]),
        (&json!(2), &Value::Null)
    );
    let runs = sim
        .call(&caller, "GET", &format!("{path}/runs?status=skipped"), None)
        .await;
    let dropped = &runs["items"][0];
    assert_eq!(
        (&dropped["reason"], &dropped["slots_count"]),
        (&json!("paused"), &json!(5))
    );

    let resumed = sim
        .call(&caller, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(
        (&resumed["status"], &resumed["consecutive_failures"]),
        (&json!("active"), &json!(0))
    );
    assert_eq!(resumed["status_note"], Value::Null);
}

#[tokio::test]
async fn a_skipped_slot_says_in_the_api_which_run_was_in_its_way() {
    let mut at = beginning();
    let sim = Sim::new(at).await;
    let caller = sim.tenant("acme", 10_000).await;
    let mut body = every_minute();
    body["overlap"] = json!("skip");
    let made = sim.call(&caller, "POST", "/v1/prompts", Some(body)).await;
    let path = format!("/v1/prompts/{}/runs", made["id"].as_str().unwrap());
    let mut first = None;
    for _ in 0..2 {
        at += TimeDelta::minutes(1);
        sim.set_clock(at).await;
        let claim = fire(&sim.db, caller.tenant, id(&made), LONG_MS)
            .await
            .unwrap();
        first = first.or(claim);
    }
    let runs = sim
        .call(&caller, "GET", &format!("{path}?status=skipped"), None)
        .await;
    let skipped = &runs["items"][0];
    assert_eq!(skipped["reason"], "overlap");
    assert_eq!(skipped["overlapped_by"], json!(first.unwrap().run_id));
}

#[tokio::test]
async fn jitter_spreads_what_the_sweeper_finds_and_any_wake_up_is_early_enough() {
    let mut at = beginning();
    let sim = Sim::new(at).await;
    let caller = sim.tenant("acme", 10_000).await;
    let mut prompts = Vec::new();
    for _ in 0..30 {
        let mut body = every_minute();
        body["schedule"]["expression"] = json!("0 * * * *");
        body["jitter_minutes"] = json!(10);
        body["misfire"] = json!("skip");
        prompts.push(id(&sim
            .call(&caller, "POST", "/v1/prompts", Some(body))
            .await));
    }
    let slot = "2026-03-02T01:00:00Z".parse().unwrap();
    let mut found = BTreeMap::new();
    at = slot;
    while at <= slot + TimeDelta::minutes(10) {
        sim.set_clock(at).await;
        for prompt in sim.found().await {
            found.entry(prompt).or_insert(at);
        }
        at += TimeDelta::seconds(30);
    }
    assert_eq!(found.len(), 30);
    let times: BTreeSet<_> = found.values().collect();
    assert!(times.len() > 10, "{times:?}");

    // A scheduler's own window may end later than the sweeper's delay, and begin earlier.
    sim.set_clock(slot).await;
    let early = prompts.pop().unwrap();
    let claim = fire(&sim.db, caller.tenant, early, LONG_MS).await.unwrap();
    assert!(claim.is_some(), "a wake-up at the slot itself");
    for (late_s, runs) in [(12 * 60, true), (12 * 60 + 1, false)] {
        sim.set_clock(slot + TimeDelta::seconds(late_s)).await;
        let prompt = prompts.pop().unwrap();
        let claim = fire(&sim.db, caller.tenant, prompt, LONG_MS).await.unwrap();
        assert_eq!(claim.is_some(), runs, "{late_s} s after the slot");
    }
}
