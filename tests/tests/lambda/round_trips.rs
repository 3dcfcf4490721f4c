//! How often runs wait for the database, counted on the wire: each time that a connection's client
//! sends something after an answer. What is counted is a process that has run before: it is connected,
//! and its statements are prepared.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{
    db::tenants::{self, NewTenant},
    ids::TenantId,
    message::WakeUp,
    seal::Purpose,
    webhook_secret::WebhookSecret,
};
use tests::{
    stage::{Stage, Tenant},
    tap::Tap,
};

use crate::world::{World, wake};

/// Answers are held back for so long: what is sent within it was not sent for their sake.
const HELD_BACK: Duration = Duration::from_millis(30);

/// Of a run alone, from its wake-up to the settled deliveries.
const ALONE_MAX: usize = 6;

/// Records of a batch.
const BATCH: usize = 10;

struct Tapped {
    tap: Tap,
    world: World,
}

impl Tapped {
    async fn new() -> Self {
        let tap = Tap::open(HELD_BACK).await.unwrap();
        let stage = Stage::behind(&tap, 4).await.unwrap();
        let world = World::on(stage, BATCH).await;
        Self { tap, world }
    }

    /// A tenant whose webhooks can be signed.
    async fn tenant(&self, name: &str) -> Tenant {
        let id = TenantId::new();
        let secret = WebhookSecret::generate().text();
        let sealed = self
            .world
            .worker
            .executor
            .sealer
            .ready(id, Purpose::WebhookSecret)
            .await
            .unwrap()
            .seal(secret.expose().as_bytes())
            .unwrap();
        let tx = self.world.stage.tx(id).await.unwrap();
        let owner_email = format!("owner@{name}.example");
        let new = NewTenant {
            name,
            owner_email: &owner_email,
            webhook_secret_sealed: &sealed,
        };
        let user = tenants::create(&tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        Tenant { id, user }
    }

    /// A prompt whose output goes to a webhook and into storage.
    async fn due(&self, tenant: Tenant) -> WakeUp {
        let destinations: Value = json!([
            {"kind": "webhook", "url": self.world.model.hook_url},
            {"kind": "storage"},
        ]);
        let changes = json!({"destinations": destinations, "timeout_ms": 60_000});
        self.world.due_of(tenant, &changes).await.1
    }

    /// Works on these in one batch; gives the turns that it took.
    async fn turns(&self, wake_ups: Vec<WakeUp>) -> usize {
        let records = wake_ups
            .into_iter()
            .enumerate()
            .map(|(n, wake_up)| wake(&format!("r{n}"), wake_up))
            .collect();
        let before = self.tap.turns();
        assert_eq!(self.world.work(records).await, Vec::<String>::new());
        self.tap.turns() - before
    }

    async fn delivered(&self) -> (i64, i64, usize) {
        let delivered =
            "SELECT count(*) FROM deliveries WHERE status = 'delivered' AND attempt = 1";
        (
            self.world.runs("succeeded").await,
            self.world.stage.count(delivered).await.unwrap(),
            self.world.model.hooks(),
        )
    }
}

#[tokio::test]
async fn a_run_alone_waits_six_times_at_most() {
    let tapped = Tapped::new().await;
    let tenant = tapped.tenant("acme").await;
    let mut counted = Vec::new();
    for _ in 0..3 {
        let wake_up = tapped.due(tenant).await;
        counted.push(tapped.turns(vec![wake_up]).await);
    }
    println!("a run with a webhook and an object: {counted:?} round trips");
    assert_eq!(tapped.delivered().await, (3, 6, 3));
    assert!(
        counted[1] <= ALONE_MAX && counted[2] <= ALONE_MAX,
        "{counted:?}"
    );
}

#[tokio::test]
async fn a_batch_of_ten_tenants_waits_once_a_run_at_most() {
    let tapped = Tapped::new().await;
    let mut tenants = Vec::new();
    for n in 0..BATCH {
        tenants.push(tapped.tenant(&format!("t{n}")).await);
    }
    let mut counted = Vec::new();
    for _ in 0..3 {
        let mut wake_ups = Vec::new();
        for tenant in &tenants {
            wake_ups.push(tapped.due(*tenant).await);
        }
        counted.push(tapped.turns(wake_ups).await);
    }
    println!("ten runs with a webhook and an object each: {counted:?} round trips");
    assert_eq!(tapped.delivered().await, (30, 60, 30));
    assert!(counted[1] <= BATCH && counted[2] <= BATCH, "{counted:?}");
    // Each tenant has its own, and nothing else: two deliveries and an attempt of each of its runs.
    let sql = "SELECT count(*) FROM scheduled_prompt_runs r
                WHERE (SELECT count(*) FROM deliveries d WHERE d.run_id = r.id AND d.tenant_id = r.tenant_id) = 2
                  AND (SELECT count(*) FROM run_attempts a WHERE a.run_id = r.id AND a.tenant_id = r.tenant_id) = 1";
    assert_eq!(tapped.world.stage.count(sql).await.unwrap(), 30);
    let sql = "SELECT count(*) FROM scheduled_prompts WHERE run_count = 1 AND success_count = 1";
    assert_eq!(tapped.world.stage.count(sql).await.unwrap(), 30);
}
