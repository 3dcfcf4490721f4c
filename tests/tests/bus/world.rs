//! A database whose outbox is looked at, and emptied.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{
    bus::{self, Bus, Drained, EventBridge},
    db::{Db, events},
    ids::{PromptId, RunId, TenantId},
};
use tests::{
    rehearsal,
    stage::{Stage, Tenant, prompt, tenant},
    worker::{LONG_MS, enqueue, fire},
};
use tokio::time::Instant;

pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) tenant: Tenant,
}

impl World {
    pub(crate) async fn new() -> Self {
        let stage = Stage::new(8).await.unwrap();
        let tenant = tenant(&stage.db, "acme").await.unwrap();
        Self { stage, tenant }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.stage.db
    }

    pub(crate) fn id(&self) -> TenantId {
        self.tenant.id
    }

    /// A prompt without a slot.
    pub(crate) async fn prompt(&self, changes: &Value) -> PromptId {
        prompt(self.db(), self.tenant, changes, None).await.unwrap()
    }

    /// A prompt with a slot that is due.
    pub(crate) async fn due(&self, changes: &Value) -> PromptId {
        tests::world::due_prompt(self.db(), self.tenant, changes).await
    }

    /// A run that waits.
    pub(crate) async fn run(&self, prompt: PromptId) -> RunId {
        let trigger = shared::run::RunTrigger::Manual;
        let made = enqueue(self.db(), self.id(), prompt, trigger).await;
        made.unwrap().unwrap()
    }

    /// A run under way, of a prompt of its own.
    pub(crate) async fn running(&self, changes: &Value) -> shared::db::runs::Claim {
        let prompt = self.due(changes).await;
        fire(self.db(), self.id(), prompt, LONG_MS)
            .await
            .unwrap()
            .unwrap()
    }

    /// What waits in the outbox, oldest first, as the superuser sees it.
    pub(crate) async fn outbox(&self) -> Vec<Value> {
        let sql = "SELECT to_jsonb(e) FROM bus_events e ORDER BY seq";
        let rows = self.stage.admin.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Types of what waits, oldest first, and what they say; the outbox is empty then.
    pub(crate) async fn told(&self) -> Vec<(String, Value)> {
        let claimed = events::claim(self.db(), 1000, 1000, 60_000).await.unwrap();
        let sql = "DELETE FROM bus_events";
        let gone = self.stage.admin.execute(sql, &[]).await.unwrap();
        assert_eq!(usize::try_from(gone).unwrap(), claimed.len());
        claimed
            .iter()
            .map(|event| {
                (
                    event.kind.clone(),
                    serde_json::from_str(&bus::detail(event)).unwrap(),
                )
            })
            .collect()
    }

    pub(crate) async fn types(&self) -> Vec<String> {
        self.told()
            .await
            .into_iter()
            .map(|(kind, _)| kind)
            .collect()
    }

    /// Lets the time pass until every lease and every wait is over.
    pub(crate) async fn let_time_pass(&self) {
        let sql =
            "UPDATE bus_events SET due_at = now() - interval '1 second' WHERE due_at IS NOT NULL";
        self.stage.admin.execute(sql, &[]).await.unwrap();
    }

    pub(crate) async fn sql(&self, statement: &str) {
        self.stage.admin.batch_execute(statement).await.unwrap();
    }

    /// An event of any kind, of a run that need not be there.
    pub(crate) async fn insert(&self, run: RunId, data: &Value) {
        let sql = "INSERT INTO bus_events (tenant_id, order_key, type, prompt_id, run_id, data)
                   VALUES ($1, $2, 'run.succeeded', $2, $2, $3)";
        let (tenant, run) = (self.id().uuid(), run.uuid());
        let inserted = self.stage.admin.execute(sql, &[&tenant, &run, data]).await;
        assert_eq!(inserted.unwrap(), 1);
    }

    pub(crate) async fn insert_many(&self, run: RunId, count: u32) {
        for number in 0..count {
            self.insert(run, &json!({ "number": number })).await;
        }
    }
}

/// A bus that is asked there.
pub(crate) fn bus(url: &str, name: &str) -> Bus {
    Bus::EventBridge(EventBridge::new(&rehearsal::aws(url), name.to_owned()))
}

pub(crate) async fn drain(db: &Db, bus: &Bus) -> Drained {
    let deadline = Instant::now() + Duration::from_secs(25);
    bus::drain(db, bus, deadline).await.unwrap()
}
