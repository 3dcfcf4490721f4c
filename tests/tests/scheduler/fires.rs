//! What the executor makes of a message that an entry sent.

use std::time::Duration;

use executor::{
    Executor, Until,
    deliver::{Mailer, Sender, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use serde_json::{Value, json};
use shared::{
    ids::PromptId, message, outbound::Policy, price::Catalog, queue::Queue, seal::Sealer,
};
use tempfile::TempDir;
use tests::scripted::Scripted;

use crate::world::{World, daily, sync_of};

/// Runs prompts of the model `echo`, and delivers into a folder.
fn executor(world: &World, folder: &TempDir) -> Executor {
    let mailer = Mailer::Directory {
        path: folder.path().join("outbox"),
    };
    let storage = Storage::Directory {
        root: folder.path().join("storage"),
    };
    let guarded = Guarded::new(Policy::PUBLIC).unwrap();
    let providers = ProvidersConfig::from_vars(|_| None, true).unwrap();
    Executor {
        db: world.db().clone(),
        queue: Queue::local(1).0,
        models: Models::new(providers, executor::model::client().unwrap()),
        sender: Sender::new(mailer, storage, guarded),
        sealer: Sealer::from_base64(&format!("{}=", "A".repeat(43))).unwrap(),
        catalog: Catalog::shipped(),
        from: "carillon@example.com".parse().unwrap(),
        lease: Duration::from_secs(60),
    }
}

/// What the entry sends when it fires, with the slot in its place.
fn message_of(entry: &Value) -> message::Message {
    let input: Value = serde_json::from_str(entry["Target"]["Input"].as_str().unwrap()).unwrap();
    let body = input["MessageBody"].as_str().unwrap();
    let fired = body.replace("<aws.scheduler.scheduled-time>", "2026-03-22T18:59:00Z");
    message::decode(&fired).unwrap()
}

async fn make_due(world: &World, id: PromptId) {
    world
        .sql(
            "UPDATE scheduled_prompts SET next_run_at = now() - interval '5 seconds' WHERE id = $1",
            id,
        )
        .await;
}

async fn runs(world: &World) -> i64 {
    let sql = "SELECT count(*) FROM scheduled_prompt_runs";
    world.stage.count(sql).await.unwrap()
}

#[tokio::test]
async fn an_entry_runs_its_prompt_and_a_stale_one_does_not() {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    let folder = tempfile::tempdir().unwrap();
    let executor = executor(&world, &folder);
    let (id, _) = world.create(&tenant, daily()).await;
    let name = format!("{id}-1");
    let stale = message_of(&server.entries()[&name]);
    let change = json!({"schedule": {"type": "daily", "at": "09:01", "timezone": "UTC"}});
    world.patch(&tenant, id, change).await;

    make_due(&world, id).await;
    executor.receive(stale, Until::STOPPED).await.unwrap();
    assert_eq!(runs(&world).await, 0);
    assert_eq!(sync_of(&world.get(&tenant, id).await).0, "pending");
    assert_eq!(world.repair().await.applied, 1);

    executor
        .receive(message_of(&server.entries()[&name]), Until::STOPPED)
        .await
        .unwrap();
    assert_eq!(runs(&world).await, 1);
    let (status, listed) = world
        .send(&tenant, "GET", &format!("/v1/prompts/{id}/runs"), None)
        .await;
    assert_eq!(
        (status.as_u16(), &listed["items"][0]["status"]),
        (200, &json!("succeeded"))
    );
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
    // The same message again finds nothing due.
    executor
        .receive(message_of(&server.entries()[&name]), Until::STOPPED)
        .await
        .unwrap();
    assert_eq!(runs(&world).await, 1);
}

#[tokio::test]
async fn an_entry_that_fires_for_a_paused_prompt_is_made_anew() {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    let folder = tempfile::tempdir().unwrap();
    let executor = executor(&world, &folder);
    let (id, _) = world.create(&tenant, daily()).await;
    let name = format!("{id}-1");
    let firing = server.entries()[&name].clone();
    world.post(&tenant, id, "pause").await;
    server.put(&name, firing.clone());

    executor
        .receive(message_of(&firing), Until::STOPPED)
        .await
        .unwrap();
    assert_eq!(runs(&world).await, 0);
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(server.entries()[&name]["State"], "DISABLED");

    // Of a prompt that nobody knows there is nothing to mend here: the search for drift does it.
    world.delete(&tenant, id).await;
    world
        .sql("DELETE FROM scheduled_prompts WHERE id = $1", id)
        .await;
    executor
        .receive(message_of(&firing), Until::STOPPED)
        .await
        .unwrap();
    assert_eq!(runs(&world).await, 0);
}
