//! Several drainers at once: nothing is lost, and of one key nothing overtakes.

use std::collections::HashMap;

use serde_json::{Value, json};
use shared::{db::events, ids::RunId};
use tests::worker::{LONG_MS, fire, settle, succeed};

use super::{
    scripted::Scripted,
    world::{World, bus, drain},
};
use shared::run::DeliveryStatus;

/// Events by run, or by prompt for those that have none, in the order in which they first came.
pub(crate) fn by_key(taken: &[Value]) -> HashMap<String, Vec<Value>> {
    let mut keys: HashMap<String, Vec<Value>> = HashMap::new();
    for detail in taken {
        let key = detail.get("run_id").unwrap_or(&detail["prompt_id"]);
        let seen = keys.entry(key.to_string()).or_default();
        if !seen.iter().any(|one| one["id"] == detail["id"]) {
            seen.push(detail.clone());
        }
    }
    keys
}

/// That each key's events came in order.
pub(crate) fn in_order(taken: &[Value]) {
    for (key, events) in by_key(taken) {
        let sequence: Vec<_> = events
            .iter()
            .map(|one| one["sequence"].as_i64().unwrap())
            .collect();
        assert!(sequence.is_sorted(), "{key}: {events:#?}");
    }
}

const RUNS: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drainers_at_once_keep_the_order_of_each_run_and_lose_nothing() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    let working = async {
        for _ in 0..RUNS {
            let claim = world.running(&json!({})).await;
            let sent = succeed(world.db(), &claim, 2).await.unwrap();
            settle(world.db(), &sent[1], DeliveryStatus::Delivered)
                .await
                .unwrap();
            settle(world.db(), &sent[0], DeliveryStatus::Delivered)
                .await
                .unwrap();
        }
    };
    let draining = async {
        for _ in 0..10 {
            drain(world.db(), &bus).await;
        }
    };
    tokio::join!(
        working,
        draining,
        async {
            for _ in 0..10 {
                drain(world.db(), &bus).await;
            }
        },
        async {
            for _ in 0..10 {
                drain(world.db(), &bus).await;
            }
        }
    );
    // What came while its run's earlier events were under way is not held back for long.
    drain(world.db(), &bus).await;
    assert_eq!(world.outbox().await, [json!(null); 0]);
    let taken = server.taken();
    in_order(&taken);
    let keys = by_key(&taken);
    let runs: Vec<_> = keys
        .values()
        .filter(|events| events[0].get("run_id").is_some())
        .collect();
    assert_eq!(runs.len(), RUNS);
    for run in runs {
        let kinds: Vec<_> = run
            .iter()
            .map(|one| one["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            [
                "run.started",
                "delivery.delivered",
                "delivery.delivered",
                "run.succeeded"
            ]
        );
    }
    // Without a failure nothing comes twice.
    assert_eq!(taken.len(), RUNS * 5);
}

#[tokio::test]
async fn two_events_of_a_key_never_share_a_call() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let run = RunId::new();
    world.insert_many(run, 25).await;
    for _ in 0..12 {
        world.insert(RunId::new(), &json!({})).await;
    }
    let drained = drain(world.db(), &bus(&server.url, "default")).await;
    assert_eq!(drained.taken, 37);
    for call in server.calls() {
        let keys: std::collections::HashSet<_> =
            call.iter().map(|one| one["run_id"].to_string()).collect();
        assert_eq!(keys.len(), call.len());
    }
    in_order(&server.taken());
}

#[tokio::test]
async fn a_key_is_leased_to_one_drainer_with_all_that_comes_behind() {
    let world = World::new().await;
    let (run, other) = (RunId::new(), RunId::new());
    world.insert_many(run, 3).await;
    let first = events::claim(world.db(), 10, 2, 60_000).await.unwrap();
    assert_eq!(first.len(), 2);
    world.insert(other, &json!({})).await;
    let second = events::claim(world.db(), 10, 10, 60_000).await.unwrap();
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].run_id, Some(other));
    let settled: Vec<_> = first
        .into_iter()
        .map(|event| (event, events::Outcome::Taken))
        .collect();
    assert_eq!(events::settle(world.db(), &settled).await.unwrap(), 2);
    // The third was held back while the lease held, and no longer.
    let third = events::claim(world.db(), 10, 10, 60_000).await.unwrap();
    assert_eq!((third.len(), third[0].run_id), (1, Some(run)));
    // What was settled is not settled again.
    assert_eq!(events::settle(world.db(), &settled).await.unwrap(), 0);
}

#[tokio::test]
async fn tenants_take_turns() {
    let world = World::new().await;
    for _ in 0..20 {
        world.insert(RunId::new(), &json!({})).await;
    }
    let other = tests::stage::tenant(world.db(), "other").await.unwrap();
    let id = tests::world::due_prompt(world.db(), other, &json!({})).await;
    fire(world.db(), other.id, id, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    let claimed = events::claim(world.db(), 2, 10, 60_000).await.unwrap();
    assert!(
        claimed.iter().any(|event| event.tenant_id == other.id),
        "{claimed:#?}"
    );
    assert!(
        claimed.iter().any(|event| event.tenant_id == world.id()),
        "{claimed:#?}"
    );
}
