//! A worker for batches over a database of its own, with queues in an emulator of AWS.

use std::{sync::Arc, time::Duration};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use aws_types::SdkConfig;
use chrono::{DurationRound, TimeDelta, Utc};
use executor::{
    Executor, Pace,
    batch::Worker,
    deliver::{Mailer, Sender, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use serde_json::{Value, json};
use shared::{
    db::Db,
    ids::PromptId,
    message,
    message::WakeUp,
    outbound::Policy,
    price::Catalog,
    queue::{DeadLetters, Queue, WakeUps},
    seal::Sealer,
};
use tempfile::TempDir;
use tests::{
    model::Model,
    peers::ministack_url,
    rehearsal::{self, Queues},
    stage::{Stage, Tenant, prompt, tenant},
};
use tokio::time::Instant;
use uuid::Uuid;

/// Webhooks come back to the test.
const LOOPBACK: Policy = Policy {
    allow_loopback: true,
};

/// Longer than a batch of a test takes.
const LONG: Duration = Duration::from_secs(600);

pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) tenant: Tenant,
    pub(crate) model: Model,
    pub(crate) aws: SdkConfig,
    pub(crate) queues: Queues,
    pub(crate) worker: Worker,
    /// What the executor sent on.
    pub(crate) sent: WakeUps,
    _folder: TempDir,
}

impl World {
    pub(crate) async fn new(slots: usize) -> Self {
        Self::on(Stage::new(4).await.unwrap(), slots).await
    }

    /// The same on a database that is there.
    pub(crate) async fn on(stage: Stage, slots: usize) -> Self {
        let tenant = tenant(&stage.db, "acme").await.unwrap();
        let model = Model::start().await;
        let folder = tempfile::tempdir().unwrap();
        let aws = rehearsal::aws(&ministack_url());
        let name = format!("test-{}", Uuid::now_v7().simple());
        let queues = rehearsal::queues(&aws, &name).await.unwrap();
        let (queue, sent) = Queue::local(100);
        let executor = executor(&stage.db, queue, &model, &folder);
        Self {
            worker: Worker {
                executor: Arc::new(executor),
                dead_letters: DeadLetters::new(&aws, queues.dead_letters.clone()),
                slots,
                pace: Pace::default(),
            },
            stage,
            tenant,
            model,
            aws,
            queues,
            sent,
            _folder: folder,
        }
    }

    /// A prompt with a slot that is due, and the wake-up for it.
    pub(crate) async fn due(&self, changes: &Value) -> (PromptId, WakeUp) {
        self.due_of(self.tenant, changes).await
    }

    /// The same of another tenant.
    pub(crate) async fn due_of(&self, tenant: Tenant, changes: &Value) -> (PromptId, WakeUp) {
        let slot = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
        let mut all = json!({"model": "openai/gpt-4o-mini"});
        for (name, value) in changes.as_object().unwrap() {
            all[name] = value.clone();
        }
        let prompt_id = prompt(&self.stage.db, tenant, &all, Some(slot))
            .await
            .unwrap();
        let wake_up = WakeUp::Prompt {
            tenant_id: tenant.id,
            prompt_id,
        };
        (prompt_id, wake_up)
    }

    /// Works on messages with plenty of time; gives the ids of those that come again.
    pub(crate) async fn work(&self, records: Vec<SqsMessage>) -> Vec<String> {
        let worked = self.worker.work(records, Instant::now() + LONG).await;
        failures(&worked)
    }

    /// Each run's status, counted.
    pub(crate) async fn runs(&self, status: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM scheduled_prompt_runs WHERE status = '{status}'");
        self.stage.count(&sql).await.unwrap()
    }

    /// The letters in the dead-letter queue: body and reason.
    pub(crate) async fn letters(&self) -> Vec<(String, Option<String>)> {
        let letters = self.worker.dead_letters.take().await.unwrap();
        letters
            .into_iter()
            .map(|letter| (letter.body, letter.reason))
            .collect()
    }
}

fn executor(db: &Db, queue: Queue, model: &Model, folder: &TempDir) -> Executor {
    let base_url = model.base_url.clone();
    let providers = ProvidersConfig::from_vars(
        |name| (name == "OPENAI_BASE_URL").then(|| base_url.clone()),
        true,
    );
    Executor {
        db: db.clone(),
        queue,
        models: Models::new(providers.unwrap(), executor::model::client().unwrap()),
        sender: Sender::new(
            Mailer::Directory {
                path: folder.path().join("outbox"),
            },
            Storage::Directory {
                root: folder.path().join("storage"),
            },
            Guarded::new(LOOPBACK).unwrap(),
        ),
        sealer: Sealer::from_key_file(&folder.path().join("key")).unwrap(),
        catalog: Catalog::shipped(),
        from: "carillon@example.com".parse().unwrap(),
        lease: Duration::from_secs(60),
    }
}

/// A message as Lambda hands it over, that was received so often.
pub(crate) fn record(id: &str, body: &str, received: u32) -> SqsMessage {
    let event = json!({"Records": [{
        "messageId": id, "receiptHandle": id, "body": body, "messageAttributes": {},
        "attributes": {"ApproximateReceiveCount": received.to_string()},
        "eventSource": "aws:sqs",
    }]});
    let event: SqsEvent = serde_json::from_value(event).unwrap();
    event.records.into_iter().next().unwrap()
}

pub(crate) fn wake(id: &str, wake_up: WakeUp) -> SqsMessage {
    record(id, &message::encode(wake_up), 1)
}

pub(crate) fn failures(response: &SqsBatchResponse) -> Vec<String> {
    let failures = response.batch_item_failures.iter();
    let mut ids: Vec<_> = failures.map(|one| one.item_identifier.clone()).collect();
    ids.sort();
    ids
}

/// Looks until `found`, which must be within a minute on the busiest machine.
pub(crate) async fn eventually(what: &str, mut found: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !found().await {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
