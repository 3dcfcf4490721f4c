//! The runs of backfills beside those of the schedule, on real rows.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::db::{
    backfills::{self, Backfill, NewBackfill},
    retention,
    runs::{Claim, NextStep},
};
use shared::ids::{BackfillId, PromptId, RunId};
use tests::stage::{Stage, Tenant, prompt, tenant};
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

    async fn make_due(&self, prompt_id: PromptId) -> DateTime<Utc> {
        let due = DateTime::from_timestamp(Utc::now().timestamp() / 60 * 60, 0).unwrap();
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
            other @ (Looked::GaveUp | Looked::Other(_) | Looked::NoRun) => panic!("{other:?}"),
        }
    }

    async fn is_put_off(&self, run: RunId, why: NextStep) {
        match self.look(run).await {
            Looked::Other(found) => assert_eq!(found, why),
            other @ (Looked::GaveUp | Looked::Claimed(_) | Looked::NoRun) => panic!("{other:?}"),
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
async fn the_schedule_goes_first() {
    let scene = Scene::new().await;
    let prompt = scene.prompt(json!({ "overlap": "skip" })).await;
    let (_, runs) = scene.backfill(prompt, 2, 1).await;
    // A waiting backfill is in no slot's way.
    let slot = scene.make_due(prompt).await;
    let claim = fire(&scene.stage.db, scene.tenant.id, prompt, LONG_MS).await;
    let claim = claim.unwrap().expect("the slot runs");
    assert_eq!(
        scene.column(claim.run_id, "scheduled_for").await,
        json!(slot)
    );
    scene.time_passes().await;
    scene.is_put_off(runs[0], NextStep::Defer).await;
    succeed(&scene.stage.db, &claim, 0).await.unwrap();
    scene.time_passes().await;
    scene.claim(runs[0]).await;
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
        retention::expire(tx, 10).await.unwrap()
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
