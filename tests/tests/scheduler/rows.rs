//! Which changes of a row are a new generation, whoever makes them.

use serde_json::json;
use tests::scripted::Scripted;

use crate::world::{World, daily};

#[tokio::test]
async fn every_change_that_entries_follow_is_a_new_generation() {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    let (id, _) = world.create(&tenant, daily()).await;
    world
        .sql(
            "UPDATE scheduled_prompts SET sync_error = 'old', sync_attempts = 3, sync_refused = true
              WHERE id = $1",
            id,
        )
        .await;
    let mut generation = 1;
    for (change, follows) in [
        ("prompt_name = 'other'", false),
        ("next_run_at = now()", false),
        ("run_count = run_count + 1, last_status = 'failed'", false),
        ("status = status, schedule = schedule", false),
        ("status = 'paused'", true),
        ("status = 'active'", true),
        ("status = 'completed', completed_at = now()", true),
        (
            "schedule = jsonb_set(schedule, '{at}', '\"10:00\"'), status = 'active'",
            true,
        ),
        ("generation = generation + 1", true),
        ("deleted_at = now()", true),
    ] {
        let sql = format!("UPDATE scheduled_prompts SET {change} WHERE id = $1");
        world.sql(&sql, id).await;
        generation += i64::from(follows);
        let row = world.row(id).await;
        assert_eq!(row["generation"], generation, "{change}");
        if follows {
            // What was said of the generation before is not said of this one.
            assert!(row["sync_error"].is_null(), "{change}");
            assert_eq!(row["sync_attempts"], 0, "{change}");
            assert_eq!(row["sync_refused"], false, "{change}");
            assert!(row["due_in_s"].as_i64().unwrap() > 0, "{change}: {row}");
        }
    }
}

#[tokio::test]
async fn texts_are_no_matter_of_the_scheduler_and_jitter_is() {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    let (id, _) = world.create(&tenant, daily()).await;
    for (change, generation) in [
        (json!({"prompt_text": "other", "tags": ["x"]}), 1),
        (json!({"jitter_minutes": 5}), 2),
        (json!({"jitter_minutes": 5}), 2),
        (
            json!({"schedule": {"type": "daily", "at": "09:01", "timezone": "UTC"}}),
            3,
        ),
    ] {
        world.patch(&tenant, id, change.clone()).await;
        assert_eq!(world.row(id).await["generation"], generation, "{change}");
    }
}
