//! What no emulator does: the scheduler refuses, vanishes, or loses its answers.

use std::time::Duration;

use serde_json::json;
use shared::{
    aws::Cause,
    ids::PromptId,
    scheduler::{Scheduler, SyncStatus},
};
use tests::{
    scripted::{
        Kind::{Create, Delete, Get, List, Update},
        Scripted,
    },
    stage::{self, Stage},
    tap::Tap,
};

use crate::world::{Tenant, World, daily, sync_of};

/// The client tries each call twice.
const TRIES: usize = 2;

async fn scene() -> (Scripted, World, Tenant) {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    (server, world, tenant)
}

fn name(id: PromptId) -> String {
    format!("{id}-1")
}

#[tokio::test]
async fn a_created_prompt_costs_one_call() {
    let (server, world, tenant) = scene().await;
    let (id, body) = world.create(&tenant, daily()).await;
    assert_eq!(sync_of(&body), ("synced", None));
    assert_eq!(server.calls(), [(Create, name(id))]);

    world
        .patch(&tenant, id, json!({"prompt_name": "another"}))
        .await;
    assert_eq!(server.calls(), []);
    world.post(&tenant, id, "pause").await;
    // The second: a schedule may have had two entries before.
    assert_eq!(
        server.calls(),
        [(Update, name(id)), (Delete, format!("{id}-2"))]
    );
}

#[tokio::test]
async fn throttling_is_told_and_the_sweeper_waits_as_asked() {
    let (server, world, tenant) = scene().await;
    let asked = Some(("retry-after", "77"));
    server.refuse_with(Create, TRIES, 429, "ThrottlingException", "slow", asked);
    let (id, body) = world.create(&tenant, daily()).await;
    let (sync, error) = sync_of(&body);
    assert_eq!(sync, "pending");
    assert!(error.unwrap().contains("slow down"), "{error:?}");
    assert_eq!(sync_of(&world.get(&tenant, id).await), (sync, error));
    let row = world.row(id).await;
    assert_eq!(row["sync_attempts"], 1);
    assert!(row["due_in_s"].as_i64().unwrap() > 60, "{row}");
    // What was refused has had no effect, so nobody needs to wait for it.
    assert!(row["is_leased"].is_null(), "{row}");

    assert_eq!(world.repair().await.applied, 0);
    assert_eq!(server.entries().len(), 0);
    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(server.entries().len(), 1);
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
    assert_eq!(world.row(id).await["sync_attempts"], 0);
}

#[tokio::test]
async fn an_outage_leaves_every_change_for_later_and_asks_no_more() {
    let (server, world, tenant) = scene().await;
    server.vanish_after(0);
    let (mut prompts, spec) = (Vec::new(), json!({"destinations": []}));
    let owner = stage_tenant(&tenant, &world).await;
    for _ in 0..30 {
        let id = stage::prompt(world.db(), owner, &spec, None);
        prompts.push(id.await.unwrap());
    }
    let (watched, body) = world.create(&tenant, daily()).await;
    let (sync, error) = sync_of(&body);
    assert_eq!(sync, "pending");
    assert!(error.unwrap().contains("cannot be reached"), "{error:?}");

    // It comes back, answers ten more, and is gone again in the middle of a pass.
    world.let_time_pass().await;
    server.vanish_after(10);
    let repaired = world.repair().await;
    assert_eq!(repaired.applied, 10, "{repaired:?}");
    // No more than were under way at once.
    assert!((1..=8).contains(&repaired.failed), "{repaired:?}");
    assert_eq!((repaired.listed, repaired.compared), (0, 0));

    server.come_back();
    world.let_time_pass().await;
    let repaired = world.repair().await;
    assert_eq!((repaired.applied, repaired.failed), (21, 0));
    assert_eq!(server.entries().len(), 31);
    assert_eq!(
        sync_of(&world.get(&tenant, watched).await),
        ("synced", None)
    );
}

/// A prompt is made by SQL's own path, so the tenant's first user is its owner.
async fn stage_tenant(tenant: &Tenant, world: &World) -> stage::Tenant {
    let sql = "SELECT id FROM users WHERE tenant_id = $1";
    let row = world
        .stage
        .admin
        .query_one(sql, &[&tenant.id.uuid()])
        .await
        .unwrap();
    stage::Tenant {
        id: tenant.id,
        user: row.get::<_, uuid::Uuid>(0).into(),
    }
}

#[tokio::test]
async fn a_lost_reply_makes_no_second_entry() {
    let (server, world, tenant) = scene().await;
    // Once: the client asks again, hears of the conflict, and it becomes an update.
    server.lose_replies(Create, 1);
    let (id, body) = world.create(&tenant, daily()).await;
    assert_eq!(sync_of(&body), ("synced", None));
    let kinds: Vec<_> = server.calls().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [Create, Create, Update]);

    // Every time: nobody knows, until the sweeper asks.
    server.lose_replies(Create, 1);
    server.refuse(Create, 1, 503, "ServiceUnavailable");
    let (other, body) = world.create(&tenant, daily()).await;
    assert_eq!(sync_of(&body).0, "pending");
    assert!(server.entries().contains_key(&name(other)));
    // It may yet have an effect, so nobody else is to begin for a while.
    assert_eq!(world.row(other).await["is_leased"], true);
    assert_eq!(world.repair().await.applied, 0);
    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(sync_of(&world.get(&tenant, other).await), ("synced", None));
    let mut names: Vec<_> = server.entries().into_keys().collect();
    names.sort();
    let mut expected = vec![name(id), name(other)];
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn create_and_update_give_way_to_each_other() {
    let (server, world, tenant) = scene().await;
    // Create finds one there, update finds none any more, create it is.
    server.refuse(Create, 1, 409, "ConflictException");
    let (id, body) = world.create(&tenant, daily()).await;
    assert_eq!(sync_of(&body), ("synced", None));
    let kinds: Vec<_> = server.calls().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [Create, Update, Create]);

    // Update finds none, create finds one again, update it is.
    server.refuse(Update, 1, 404, "ResourceNotFoundException");
    let body = world.post(&tenant, id, "pause").await;
    assert_eq!(sync_of(&body), ("synced", None));
    let kinds: Vec<_> = server.calls().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [Update, Create, Update, Delete]);
    assert_eq!(server.entries()[&name(id)]["State"], "DISABLED");

    // Neither gives way for ever.
    server.refuse(Update, 9, 404, "ResourceNotFoundException");
    let body = world.post(&tenant, id, "resume").await;
    assert_eq!(sync_of(&body).0, "pending");
    assert!(server.calls().len() <= 4);
}

#[tokio::test]
async fn an_entry_that_aws_is_busy_with_is_tried_again() {
    let (server, world, tenant) = scene().await;
    let (id, _) = world.create(&tenant, daily()).await;
    server.refuse(Update, 1, 409, "ConflictException");
    let body = world.post(&tenant, id, "pause").await;
    let (sync, error) = sync_of(&body);
    assert_eq!(sync, "pending");
    assert!(error.unwrap().contains("busy"), "{error:?}");
    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(server.entries()[&name(id)]["State"], "DISABLED");
}

#[tokio::test]
async fn a_silent_scheduler_does_not_hold_the_answer() {
    let (server, world, tenant) = scene().await;
    let (first, second) = (server.hold(Create), server.hold(Create));
    let (id, body) = world.create(&tenant, daily()).await;
    let (sync, error) = sync_of(&body);
    assert_eq!(sync, "pending");
    assert!(error.unwrap().contains("in time"), "{error:?}");
    assert_eq!(world.row(id).await["is_leased"], true);
    first.release();
    second.release();
    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(server.entries().len(), 1);
}

#[tokio::test]
async fn what_aws_does_not_take_is_not_sent_again() {
    let (server, world, tenant) = scene().await;
    server.refuse(Create, 1, 400, "ValidationException");
    let (id, body) = world.create(&tenant, daily()).await;
    let (sync, error) = sync_of(&body);
    assert_eq!(sync, "failed");
    assert!(error.unwrap().contains("does not take"), "{error:?}");
    assert_eq!(sync_of(&world.get(&tenant, id).await), (sync, error));
    let row = world.row(id).await;
    assert!(row["due_in_s"].as_i64().unwrap() > 80_000, "{row}");
    assert_eq!(world.repair().await.applied, 0);

    // Another schedule is another entry.
    let change = json!({"schedule": {"type": "daily", "at": "10:00", "timezone": "UTC"}});
    let body = world.patch(&tenant, id, change).await;
    assert_eq!(sync_of(&body), ("synced", None));
}

#[tokio::test]
async fn what_only_the_operator_can_mend_waits() {
    let (server, world, tenant) = scene().await;
    for (status, code, message, words) in [
        (
            403,
            "AccessDeniedException",
            "our account",
            "refuses access",
        ),
        (
            400,
            "ValidationException",
            "The execution role you provide must allow AWS EventBridge Scheduler to assume the role.",
            "refuses access",
        ),
        (402, "ServiceQuotaExceededException", "our account", "quota"),
        (
            404,
            "ResourceNotFoundException",
            "our account",
            "group is missing",
        ),
        (418, "TeapotException", "our account", "unknown reason"),
    ] {
        server.refuse_with(Create, 1, status, code, message, None);
        let (id, body) = world.create(&tenant, daily()).await;
        let (sync, error) = sync_of(&body);
        assert_eq!(sync, "pending", "{code}");
        assert!(error.unwrap().contains(words), "{code}: {error:?}");
        // AWS's own words are for the operator's log.
        assert!(!error.unwrap().contains(message), "{error:?}");
        let row = world.row(id).await;
        assert!(row["due_in_s"].as_i64().unwrap() > 200, "{code}: {row}");
    }
    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 5);
}

#[tokio::test]
async fn an_entry_that_aws_would_refuse_is_never_sent() {
    let (server, world, tenant) = scene().await;
    let (id, _) = world.create(&tenant, daily()).await;
    let _ = server.calls();
    // A defect of ours, or of somebody who writes rows: no caller can get so far.
    for spoiled in [
        "'{jitter_minutes}', '100000'",
        "'{schedule,expression}', '\"x\"'",
    ] {
        let sql = format!(
            "UPDATE prompt_versions SET spec = jsonb_set(spec, {spoiled}) WHERE prompt_id = $1"
        );
        world.sql(&sql, id).await;
        world
            .sql(
                "UPDATE scheduled_prompts SET generation = generation + 1 WHERE id = $1",
                id,
            )
            .await;
        let applied = world.apply(&tenant, id).await;
        assert_eq!(applied.sync.status, SyncStatus::Failed, "{spoiled}");
        assert_eq!(applied.cause, Some(Cause::Invalid));
        assert_eq!(server.calls(), [], "{spoiled}");
    }
}

#[tokio::test]
async fn a_tombstone_stays_until_its_entries_are_gone() {
    let (server, world, tenant) = scene().await;
    let (id, _) = world.create(&tenant, daily()).await;
    server.refuse(Delete, TRIES, 503, "ServiceUnavailable");
    world.delete(&tenant, id).await;
    assert_eq!(server.entries().len(), 1);
    world
        .sql(
            "UPDATE scheduled_prompts SET deleted_at = deleted_at - interval '2 hours' WHERE id = $1",
            id,
        )
        .await;
    let there = format!("SELECT count(*) FROM scheduled_prompts WHERE id = '{id}'");
    let expire = async || {
        let (expired, _) = sweeper::expire(world.db(), &world.scheduler, None)
            .await
            .unwrap();
        expired.prompts
    };
    assert_eq!(expire().await, 0);
    assert_eq!(world.stage.count(&there).await.unwrap(), 1);

    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(server.entries().len(), 0);
    assert_eq!(expire().await, 1);
    assert_eq!(world.stage.count(&there).await.unwrap(), 0);
}

#[tokio::test]
async fn a_local_scheduler_is_synced_without_a_question() {
    let tap = Tap::open(Duration::ZERO).await.unwrap();
    let stage = Stage::behind(&tap, 2).await.unwrap();
    let tenant = stage::tenant(&stage.db, "a").await.unwrap();
    let id = stage::prompt(&stage.db, tenant, &json!({}), None)
        .await
        .unwrap();
    let before = tap.round_trips();
    let applied = Scheduler::Local
        .apply(&stage.db, tenant.id, id, Duration::from_secs(2))
        .await
        .unwrap();
    assert_eq!(applied.sync.status, SyncStatus::Synced);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(9);
    sweeper::drift::repair(&stage.db, &Scheduler::Local, deadline)
        .await
        .unwrap();
    assert_eq!(tap.round_trips(), before);
}

#[tokio::test]
async fn a_search_for_drift_stops_where_aws_refuses_it() {
    let (server, world, tenant) = scene().await;
    let (id, _) = world.create(&tenant, daily()).await;
    let _ = server.calls();
    server.refuse(List, TRIES, 429, "ThrottlingException");
    let repaired = world.repair().await;
    assert_eq!((repaired.listed, repaired.compared), (0, 0));
    server.refuse(Get, TRIES, 429, "ThrottlingException");
    let repaired = world.repair().await;
    assert_eq!((repaired.listed, repaired.compared), (1, 0));
    // It goes on where it stopped.
    assert_eq!(world.repair().await.compared, 1);
    assert_eq!(server.calls().last().unwrap(), &(Get, name(id)));
}
