//! Two that apply the same prompt at once: the newest generation stands at the end, whichever of
//! their calls lands last.

use serde_json::json;
use shared::{
    ids::PromptId,
    message,
    scheduler::{Scheduler, SyncStatus},
};
use std::time::Duration;
use tests::scripted::{
    Kind::{Create, Delete, Update},
    Scripted,
};
use tokio::task::JoinHandle;

use crate::world::{Tenant, World, daily, sync_of};

async fn scene() -> (Scripted, World, Tenant, PromptId) {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    let (id, _) = world.create(&tenant, daily()).await;
    (server, world, tenant, id)
}

/// A change that nobody has applied yet.
async fn change(world: &World, id: PromptId) {
    let sql = "UPDATE scheduled_prompts SET generation = generation + 1 WHERE id = $1";
    world.sql(sql, id).await;
}

/// Applies beside the test, with more patience than a caller of the API has.
fn applying(world: &World, tenant: &Tenant, id: PromptId) -> JoinHandle<SyncStatus> {
    let (db, scheduler, tenant) = (world.db().clone(), world.scheduler.clone(), tenant.id);
    tokio::spawn(async move {
        let time = Duration::from_secs(10);
        let applied = Scheduler::apply(&scheduler, &db, tenant, id, time).await;
        applied.unwrap().sync.status
    })
}

fn generation(server: &Scripted, id: PromptId) -> i64 {
    let entry = &server.entries()[&format!("{id}-1")];
    let input: serde_json::Value =
        serde_json::from_str(entry["Target"]["Input"].as_str().unwrap()).unwrap();
    let message = message::decode(input["MessageBody"].as_str().unwrap()).unwrap();
    message.fired.unwrap().generation
}

#[tokio::test]
async fn the_newer_one_waits_for_the_older_which_applies_both() {
    let (server, world, tenant, id) = scene().await;
    change(&world, id).await;
    let mut held = server.hold(Update);
    let older = applying(&world, &tenant, id);
    held.arrived().await;

    // A caller changes it meanwhile, and is told the truth.
    let body = world.post(&tenant, id, "pause").await;
    assert_eq!(sync_of(&body).0, "pending");
    held.release();
    assert_eq!(older.await.unwrap(), SyncStatus::Synced);
    assert_eq!(generation(&server, id), 3);
    assert_eq!(server.entries()[&format!("{id}-1")]["State"], "DISABLED");
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
}

#[tokio::test]
async fn an_older_call_that_lands_after_a_newer_one_does_not_stand() {
    let (server, world, tenant, id) = scene().await;
    change(&world, id).await;
    let mut held = server.hold(Update);
    let older = applying(&world, &tenant, id);
    held.arrived().await;

    // It is stuck for longer than its right lasts; another takes over.
    world.let_time_pass().await;
    let body = world.post(&tenant, id, "pause").await;
    assert_eq!(sync_of(&body), ("synced", None));
    assert_eq!(generation(&server, id), 3);

    held.release();
    assert_eq!(older.await.unwrap(), SyncStatus::Synced);
    assert_eq!(generation(&server, id), 3);
    assert_eq!(server.entries()[&format!("{id}-1")]["State"], "DISABLED");
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
}

#[tokio::test]
async fn an_older_call_that_lands_between_the_newer_call_and_its_note_does_not_stand() {
    let (server, world, tenant, id) = scene().await;
    change(&world, id).await;
    let mut first = server.hold(Update);
    let older = applying(&world, &tenant, id);
    first.arrived().await;
    world.let_time_pass().await;
    change(&world, id).await;
    // The newer one has updated the entry, and is held at its next call.
    let mut second = server.hold(Delete);
    let newer = applying(&world, &tenant, id);
    second.arrived().await;
    assert_eq!(generation(&server, id), 3);

    first.release();
    // The older one finds that it was overtaken, takes everything back, and applies the newest.
    assert_eq!(older.await.unwrap(), SyncStatus::Synced);
    assert_eq!(generation(&server, id), 3);
    second.release();
    newer.await.unwrap();
    assert_eq!(generation(&server, id), 3);
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
}

#[tokio::test]
async fn an_older_call_of_a_process_that_died_is_found_by_the_search() {
    let (server, world, tenant, id) = scene().await;
    change(&world, id).await;
    let mut held = server.hold(Update);
    let older = applying(&world, &tenant, id);
    held.arrived().await;
    world.let_time_pass().await;
    change(&world, id).await;
    world.apply(&tenant, id).await;
    assert_eq!(generation(&server, id), 3);

    older.abort();
    held.release();
    while generation(&server, id) == 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
    assert_eq!(world.repair().await.drifted, 1);
    assert_eq!(generation(&server, id), 3);
}

#[tokio::test]
async fn many_changes_at_once_end_in_one_entry_of_the_newest() {
    let (server, world, tenant, id) = scene().await;
    let changes = (0..12).map(|n| {
        let schedule = json!({"type": "daily", "at": format!("10:{n:02}"), "timezone": "UTC"});
        let (world, tenant) = (&world, &tenant);
        async move { world.patch(tenant, id, json!({"schedule": schedule})).await }
    });
    futures_util::future::join_all(changes).await;
    world.let_time_pass().await;
    world.repair().await;
    let body = world.get(&tenant, id).await;
    assert_eq!(sync_of(&body), ("synced", None));
    assert_eq!(generation(&server, id), 13);
    let entry = &server.entries()[&format!("{id}-1")];
    let at = body["schedule"]["at"].as_str().unwrap();
    let minute = at.strip_prefix("10:").unwrap().trim_start_matches('0');
    let minute = if minute.is_empty() { "0" } else { minute };
    assert_eq!(
        entry["ScheduleExpression"],
        format!("cron({minute} 10 * * ? *)")
    );
    assert_eq!(server.entries().len(), 1);
}

#[tokio::test]
async fn the_sweeper_and_a_caller_make_one_entry_of_a_new_prompt() {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    let mut held = server.hold(Create);
    let creating = world.create(&tenant, daily());
    let sweeping = async {
        held.arrived().await;
        let repaired = world.repair().await;
        held.release();
        repaired
    };
    let ((_, body), repaired) = tokio::join!(creating, sweeping);
    assert_eq!(sync_of(&body), ("synced", None));
    assert_eq!((repaired.applied, repaired.failed), (0, 0));
    let creates = server
        .calls()
        .into_iter()
        .filter(|(kind, _)| *kind == Create);
    assert_eq!(creates.count(), 1);
}
