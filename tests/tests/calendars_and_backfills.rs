//! What calendars take from the schedule, and the runs of backfills beside its own, on real rows.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use executor::{
    Executor,
    deliver::{Mailer, Sender, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use serde_json::{Value, json};
use shared::calendar::Days;
use shared::db::{
    backfills::{self, Backfill, NewBackfill},
    calendars, prompts, retention,
    runs::{Claim, NextStep},
};
use shared::exclusion::CalendarName;
use shared::ids::{BackfillId, CalendarId, PromptId, RunId};
use shared::message::WakeUp;
use shared::outbound::Policy;
use shared::price::Catalog;
use shared::queue::Queue;
use shared::seal::Sealer;
use tests::stage::{Stage, Tenant, prompt, spec, tenant};
use tests::worker::{LONG_MS, Looked, fire, resume, succeed};
use uuid::Uuid;

struct Scene {
    stage: Stage,
    tenant: Tenant,
}

impl Scene {
    async fn new() -> Self {
        let stage = Stage::new(4).await.unwrap();
        let tenant = tenant(&stage.db, "acme").await.unwrap();
        Self { stage, tenant }
    }

    async fn prompt(&self, changes: Value) -> PromptId {
        prompt(&self.stage.db, self.tenant, &changes, None)
            .await
            .unwrap()
    }

    /// So many slots, the first one at the beginning of 2026, and their runs, oldest first.
    async fn backfill(
        &self,
        prompt_id: PromptId,
        count: i64,
        pace_s: i32,
    ) -> (BackfillId, Vec<RunId>) {
        let from = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let slots: Vec<_> = (0..count).map(|n| from + TimeDelta::hours(n)).collect();
        let new = NewBackfill {
            id: BackfillId::new(),
            prompt_id,
            from,
            to: from + TimeDelta::hours(count),
            pace_s,
            slots: &slots,
            slots_to_come: 0,
            runs_max: i64::MAX,
        };
        let tx = self.stage.tx(self.tenant.id).await.unwrap();
        backfills::insert(&tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        let sql =
            "SELECT id FROM scheduled_prompt_runs WHERE backfill_id = $1 ORDER BY scheduled_for";
        let rows = self
            .stage
            .admin
            .query(sql, &[&new.id.uuid()])
            .await
            .unwrap();
        let runs = rows
            .iter()
            .map(|row| row.get::<_, Uuid>(0).into())
            .collect();
        (new.id, runs)
    }

    async fn read(&self, id: BackfillId) -> Backfill {
        let tx = self.stage.tx(self.tenant.id).await.unwrap();
        backfills::get(tx, id).await.unwrap().unwrap()
    }

    /// As if the time of every waiting run had come.
    async fn time_passes(&self) {
        let sql = "UPDATE scheduled_prompt_runs SET available_at = now() - interval '1 second'
                    WHERE status = 'queued'";
        self.stage.admin.execute(sql, &[]).await.unwrap();
    }

    /// Makes this minute's slot due, or an earlier one's.
    async fn make_due(&self, prompt_id: PromptId, minutes: i64) -> DateTime<Utc> {
        let due =
            DateTime::from_timestamp((Utc::now().timestamp() / 60 + minutes) * 60, 0).unwrap();
        let sql = "UPDATE scheduled_prompts SET next_run_at = $2 WHERE id = $1";
        self.stage
            .admin
            .execute(sql, &[&prompt_id.uuid(), &due])
            .await
            .unwrap();
        due
    }

    async fn look(&self, run: RunId) -> Looked {
        resume(&self.stage.db, self.tenant.id, run, LONG_MS)
            .await
            .unwrap()
    }

    async fn claim(&self, run: RunId) -> Claim {
        match self.look(run).await {
            Looked::Claimed(claim) => claim,
            other @ (Looked::GaveUp | Looked::Other(_) | Looked::NoRun | Looked::NoPlace) => {
                panic!("{other:?}")
            }
        }
    }

    async fn is_put_off(&self, run: RunId, why: NextStep) {
        match self.look(run).await {
            Looked::Other(found) => assert_eq!(found, why),
            other @ (Looked::GaveUp | Looked::Claimed(_) | Looked::NoRun | Looked::NoPlace) => {
                panic!("{other:?}")
            }
        }
    }

    async fn column(&self, run: RunId, column: &str) -> Value {
        let sql = format!("SELECT to_jsonb({column}) FROM scheduled_prompt_runs WHERE id = $1");
        let row = self.stage.admin.query_one(&sql, &[&run.uuid()]).await;
        row.unwrap().get(0)
    }

    /// Seconds until a run may begin.
    async fn begins_in_s(&self, run: RunId) -> f64 {
        let sql = "extract(epoch FROM available_at - clock_timestamp())";
        self.column(run, sql).await.as_f64().unwrap()
    }
}

#[tokio::test]
async fn runs_begin_one_after_another_the_oldest_first() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(json!({ "overlap": "skip" })).await;
    let (id, runs) = scene.backfill(prompt, 3, 30).await;
    let [first, second, third] = runs[..] else {
        panic!()
    };
    scene.time_passes().await;
    scene.is_put_off(second, NextStep::WaitTurn).await;
    scene.is_put_off(third, NextStep::WaitTurn).await;

    scene.time_passes().await;
    let claim = scene.claim(first).await;
    let called = scene.begins_in_s(second).await;
    assert!((25.0..=30.0).contains(&called), "{called} s");
    assert!(
        scene.begins_in_s(third).await < 0.0,
        "its turn is not yet to come"
    );
    scene.is_put_off(second, NextStep::Leave).await;
    scene.time_passes().await;
    scene.is_put_off(second, NextStep::Defer).await;
    assert_eq!(scene.read(id).await.runs.running, 1);

    succeed(&scene.stage.db, &claim, 0).await.unwrap();
    scene.time_passes().await;
    scene.is_put_off(third, NextStep::WaitTurn).await;
    scene.claim(second).await;
    let read = scene.read(id).await.runs;
    assert_eq!((read.succeeded, read.running, read.queued), (1, 1, 1));
}

#[tokio::test]
async fn where_runs_may_overlap_the_pace_alone_keeps_them_apart() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(json!({ "overlap": "allow_all" })).await;
    let (_, runs) = scene.backfill(prompt, 3, 30).await;
    scene.time_passes().await;
    scene.is_put_off(runs[2], NextStep::WaitTurn).await;
    scene.claim(runs[0]).await;
    scene.is_put_off(runs[1], NextStep::Leave).await;
    scene.time_passes().await;
    scene.claim(runs[1]).await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_holds_nobody_up() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(json!({ "overlap": "skip" })).await;
    let (_, runs) = scene.backfill(prompt, 2, 1).await;
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    shared::db::runs::cancel(&tx, runs[0]).await.unwrap();
    tx.commit().await.unwrap();
    scene.time_passes().await;
    scene.claim(runs[1]).await;
}

#[tokio::test]
async fn runs_wait_through_a_pause_but_not_for_a_prompt_that_fails() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(json!({ "overlap": "skip" })).await;
    let (id, runs) = scene.backfill(prompt, 2, 1).await;
    let pause = async |reason: &str| {
        let sql = "UPDATE scheduled_prompts SET status = 'paused', status_reason = $1";
        scene.stage.admin.execute(sql, &[&reason]).await.unwrap();
    };
    pause("user").await;
    let claim = scene.claim(runs[0]).await;
    succeed(&scene.stage.db, &claim, 0).await.unwrap();
    pause("failures").await;
    scene.time_passes().await;
    scene.is_put_off(runs[1], NextStep::Skip("paused")).await;
    let read = scene.read(id).await.runs;
    assert_eq!((read.succeeded, read.skipped, read.queued), (1, 1, 0));
    // Once all is well again, the slot may be asked for again.
    let (_, again) = scene.backfill(prompt, 2, 1).await;
    assert_eq!(again.len(), 1);
}

#[tokio::test]
async fn the_schedule_goes_first() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(json!({ "overlap": "skip" })).await;
    let (_, runs) = scene.backfill(prompt, 2, 1).await;
    // A waiting backfill is in no slot's way.
    let slot = scene.make_due(prompt, 0).await;
    let claim = fire(&scene.stage.db, scene.tenant.id, prompt, LONG_MS).await;
    let claim = claim.unwrap().expect("the slot runs");
    let fired: DateTime<Utc> =
        serde_json::from_value(scene.column(claim.run_id, "scheduled_for").await).unwrap();
    assert_eq!(fired, slot);
    scene.time_passes().await;
    scene.is_put_off(runs[0], NextStep::Defer).await;
    succeed(&scene.stage.db, &claim, 0).await.unwrap();
    scene.time_passes().await;
    let of_backfill = scene.claim(runs[0]).await;

    // One that is under way costs no slot: it waits, and goes before the next of the backfill.
    let slot = scene.make_due(prompt, -1).await;
    let claim = fire(&scene.stage.db, scene.tenant.id, prompt, LONG_MS).await;
    assert_eq!(claim.unwrap(), None);
    let sql = "SELECT id FROM scheduled_prompt_runs
                WHERE trigger = 'schedule' AND status = 'queued' AND scheduled_for = $1";
    let row = scene.stage.admin.query_one(sql, &[&slot]).await.unwrap();
    let waiting: RunId = row.get::<_, Uuid>(0).into();
    scene.is_put_off(waiting, NextStep::Defer).await;
    succeed(&scene.stage.db, &of_backfill, 0).await.unwrap();
    scene.time_passes().await;
    scene.is_put_off(runs[1], NextStep::Defer).await;
    scene.claim(waiting).await;
}

#[tokio::test]
async fn what_a_backfill_leaves_goes_with_its_runs() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(json!({})).await;
    let (old, runs) = scene.backfill(prompt, 1, 1).await;
    let claim = scene.claim(runs[0]).await;
    succeed(&scene.stage.db, &claim, 0).await.unwrap();
    let (new, _) = scene.backfill(prompt, 2, 1).await;
    let expire = async || {
        let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
        retention::expire(tx, 10, false).await.unwrap()
    };
    let end = "UPDATE scheduled_prompt_runs SET completed_at = now() - interval '400 days'
                WHERE completed_at IS NOT NULL";
    scene.stage.admin.batch_execute(end).await.unwrap();
    assert_eq!(expire().await.runs, 1);
    assert_eq!(
        scene.read(old).await.runs.succeeded,
        0,
        "it is not told any more"
    );
    let age = "UPDATE backfills SET created_at = now() - interval '400 days'";
    scene.stage.admin.batch_execute(age).await.unwrap();
    assert_eq!(expire().await.backfills, 1);
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    assert_eq!(backfills::get(tx, old).await.unwrap(), None);
    assert_eq!(scene.read(new).await.runs.queued, 1, "its run still waits");
}

/// The product's own executor, with a model that only pretends and folders to deliver to.
fn executor(scene: &Scene, folder: &std::path::Path) -> Executor {
    let providers = ProvidersConfig {
        allow_echo: true,
        ..ProvidersConfig::default()
    };
    Executor {
        db: scene.stage.db.clone(),
        queue: Queue::local(1).0,
        models: Models::new(providers, executor::model::client().unwrap()),
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

/// A prompt with a slot each minute but on these dates, whose slot of so many minutes ago is due.
async fn excluding(scene: &Scene, name: &str, dates: &[DateTime<Utc>], minutes: i64) -> PromptId {
    let days: Vec<_> = dates
        .iter()
        .map(|date| json!({ "date": date.date_naive() }))
        .collect();
    let days = Days::parse(&json!({ "days": days }), Utc::now()).unwrap();
    let id = PromptId::new();
    let tx = scene.stage.tx(scene.tenant.id).await.unwrap();
    let calendar = CalendarName::parse(name).unwrap();
    calendars::insert(&tx, CalendarId::new(), &calendar, &days)
        .await
        .unwrap();
    let spec = spec(
        &json!({ "exclusions": { "calendars": [name] }, "model": "echo/echo-1", "misfire": "skip" }),
    );
    let new = prompts::NewPrompt {
        id,
        user_id: scene.tenant.user,
        spec: &spec,
        next_run_at: None,
        webhook_urls: &[],
        calendars: &[name],
    };
    prompts::insert(&tx, &new).await.unwrap();
    tx.commit().await.unwrap();
    scene.make_due(id, minutes).await;
    id
}

#[tokio::test]
async fn a_due_slot_that_a_calendar_takes_is_recorded_and_nothing_after_it_is() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let executor = executor(&scene, folder.path());
    let now = Utc::now();
    let day = TimeDelta::days(1);
    let dates = [now - day, now, now + day];
    let taken = excluding(&scene, "taken", &dates, -3).await;
    let free = excluding(&scene, "free", &[now + day * 3], 0).await;
    for prompt_id in [taken, free] {
        let tenant_id = scene.tenant.id;
        let wake_up = WakeUp::Prompt {
            tenant_id,
            prompt_id,
        };
        executor.handle(wake_up).await.unwrap();
        executor.handle(wake_up).await.unwrap();
    }
    let rows = async |prompt_id: PromptId| {
        let sql = "SELECT coalesce(jsonb_agg(jsonb_build_array(status, reason, slots_count)), '[]')
                     FROM scheduled_prompt_runs WHERE prompt_id = $1";
        let row = scene.stage.admin.query_one(sql, &[&prompt_id.uuid()]).await;
        row.unwrap().get::<_, Value>(0)
    };
    // Three minutes' slots would have been due; the two after the first were none by then.
    assert_eq!(rows(taken).await, json!([["skipped", "excluded", 1]]));
    assert_eq!(rows(free).await, json!([["succeeded", null, 1]]));
    let sql = "SELECT next_run_at::date - now()::date FROM scheduled_prompts WHERE id = $1";
    let days = scene.stage.admin.query_one(sql, &[&taken.uuid()]).await;
    assert_eq!(
        days.unwrap().get::<_, i32>(0),
        2,
        "the first day that is free"
    );
}
