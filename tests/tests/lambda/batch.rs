//! Batches: what comes again, what goes to the dead-letter queue, and what nothing holds up.

use std::time::Duration;

use executor::FINISH_MAX;
use serde_json::json;
use shared::{
    ids::{DeliveryId, PromptId, RunId, TenantId},
    message::{self, WakeUp},
    queue::DeadLetters,
};
use tests::{model::HELD, stage::tenant};
use tokio::time::Instant;

use crate::world::{World, eventually, failures, record, wake};

#[tokio::test]
async fn one_poisoned_record_goes_to_the_dead_letters_and_the_others_run() {
    let world = World::new(10).await;
    let mut records = Vec::new();
    for n in 0..4 {
        let (_, wake_up) = world.due(&json!({})).await;
        records.push(wake(&format!("good-{n}"), wake_up));
    }
    records.insert(2, record("poison", "{\"v\":1,\"kind\":\"tenant\"}", 1));
    records.push(record("later", "{\"v\":2}", 1));
    records.push(record("empty", "", 1));
    assert_eq!(world.work(records).await, Vec::<String>::new());
    assert_eq!(world.runs("succeeded").await, 4);
    let mut letters = world.letters().await;
    letters.sort();
    let reason = |word: &str| Some(word.to_owned());
    assert_eq!(
        letters,
        [
            (" ".to_owned(), reason("no_version")),
            (
                "{\"v\":1,\"kind\":\"tenant\"}".to_owned(),
                reason("other_shape")
            ),
            ("{\"v\":2}".to_owned(), reason("other_version")),
        ]
    );
}

#[tokio::test]
async fn where_the_dead_letter_queue_does_not_answer_the_poisoned_record_alone_comes_again() {
    let mut world = World::new(10).await;
    // Nobody listens there.
    let nowhere = tests::rehearsal::aws("http://127.0.0.1:9");
    world.worker.dead_letters = DeadLetters::new(&nowhere, "http://127.0.0.1:9/1/dead".to_owned());
    let (_, wake_up) = world.due(&json!({})).await;
    let records = vec![wake("good", wake_up), record("poison", "nonsense", 1)];
    assert_eq!(world.work(records).await, ["poison"]);
    assert_eq!(world.runs("succeeded").await, 1);
}

#[tokio::test]
async fn a_wake_up_for_another_tenants_objects_is_buried_and_touches_nothing() {
    let world = World::new(10).await;
    let other = tenant(&world.stage.db, "other").await.unwrap();
    let (prompt_id, _) = world.due(&json!({})).await;
    let tenant_id = other.id;
    let of_other = WakeUp::Prompt {
        tenant_id,
        prompt_id,
    };
    let unknown = [
        of_other,
        WakeUp::Run {
            tenant_id,
            run_id: RunId::new(),
        },
        WakeUp::Delivery {
            tenant_id,
            delivery_id: DeliveryId::new(),
        },
        WakeUp::Prompt {
            tenant_id: TenantId::new(),
            prompt_id: PromptId::new(),
        },
    ];
    let records = unknown.map(|wake_up| wake("unknown", wake_up)).to_vec();
    assert_eq!(world.work(records).await, Vec::<String>::new());
    let letters = world.letters().await;
    assert_eq!(letters.len(), unknown.len());
    for (body, reason) in letters {
        assert!(unknown.contains(&message::decode(&body).unwrap().wake_up));
        assert_eq!(reason.as_deref(), Some("not_of_tenant"));
    }
    assert_eq!(
        world
            .stage
            .count("SELECT count(*) FROM scheduled_prompt_runs")
            .await
            .unwrap(),
        0
    );
}

#[tokio::test]
async fn near_the_deadline_nothing_begins_and_everything_comes_again() {
    let world = World::new(2).await;
    let mut records = Vec::new();
    for n in 0..5 {
        let (_, wake_up) = world.due(&json!({"timeout_ms": 60_000})).await;
        records.push(wake(&format!("r{n}"), wake_up));
    }
    // Time to record and deliver, but not for a call of up to a minute.
    for left in [FINISH_MAX + Duration::from_secs(30), Duration::ZERO] {
        let deadline = Instant::now() + left;
        let worked = world.worker.work(records.clone(), deadline).await;
        assert_eq!(failures(&worked), ["r0", "r1", "r2", "r3", "r4"]);
    }
    assert_eq!(world.model.asked(), 0);
    let untouched =
        "SELECT count(*) FROM scheduled_prompts WHERE next_run_at <= now() AND run_count = 0";
    assert_eq!(world.stage.count(untouched).await.unwrap(), 5);
    assert_eq!(
        world
            .stage
            .count("SELECT count(*) FROM scheduled_prompt_runs")
            .await
            .unwrap(),
        0
    );
    // With time they all run.
    assert_eq!(world.work(records).await, Vec::<String>::new());
    assert_eq!(world.runs("succeeded").await, 5);
}

#[tokio::test]
async fn what_came_back_often_for_want_of_time_is_sent_anew() {
    let mut world = World::new(2).await;
    let (_, often) = world.due(&json!({})).await;
    let (_, seldom) = world.due(&json!({})).await;
    let records = vec![
        record("often", &message::encode(often), 3),
        record("seldom", &message::encode(seldom), 2),
    ];
    let worked = world.worker.work(records, Instant::now()).await;
    assert_eq!(failures(&worked), ["seldom"]);
    assert_eq!(world.sent.next().await, Some(often));
}

#[tokio::test]
async fn a_slow_call_holds_up_nobody_else() {
    let world = World::new(10).await;
    let mut records = Vec::new();
    let (slow, wake_up) = world
        .due(&json!({"prompt_text": HELD, "timeout_ms": 60_000}))
        .await;
    records.push(wake("slow", wake_up));
    for n in 1..30 {
        let (_, wake_up) = world.due(&json!({"timeout_ms": 60_000})).await;
        records.push(wake(&format!("r{n}"), wake_up));
    }
    let ended = async {
        // The slow call is not released before all others are through: in batches of ten one after
        // another they would wait for it.
        eventually("29 runs end beside the slow one", async || {
            world.runs("succeeded").await == 29
        })
        .await;
        let sql = format!(
            "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'running' AND prompt_id = '{slow}'"
        );
        assert_eq!(world.stage.count(&sql).await.unwrap(), 1);
        world.model.release();
    };
    let (again, ()) = tokio::join!(world.work(records), ended);
    assert_eq!(again, Vec::<String>::new());
    assert_eq!(world.runs("succeeded").await, 30);
}

#[tokio::test]
async fn no_more_than_the_slots_are_worked_on_at_once() {
    let world = World::new(3).await;
    let mut records = Vec::new();
    for n in 0..5 {
        let (_, wake_up) = world
            .due(&json!({"prompt_text": HELD, "timeout_ms": 60_000}))
            .await;
        records.push(wake(&format!("r{n}"), wake_up));
    }
    let watched = async {
        eventually("three calls begin", async || world.model.asked() == 3).await;
        assert!(world.worker.pace.is_crowded());
        assert_eq!(world.runs("running").await, 3);
        world.model.release();
    };
    let (again, ()) = tokio::join!(world.work(records), watched);
    assert_eq!(again, Vec::<String>::new());
    assert!(!world.worker.pace.is_crowded());
    assert_eq!(world.runs("succeeded").await, 5);
}

/// A claim that took so long that no answer could come in time any more.
#[tokio::test]
async fn a_run_without_time_for_its_call_is_released_for_another_process() {
    let mut world = World::new(1).await;
    let (prompt_id, wake_up) = world
        .due(&json!({"timeout_ms": 1_000, "max_retries": 1, "prompt_text": HELD}))
        .await;
    let blocker = tests::connect(&tests::database_url(&world.stage.name))
        .await
        .unwrap();
    blocker
        .batch_execute("BEGIN; LOCK TABLE run_attempts")
        .await
        .unwrap();
    let unblocked = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        blocker.batch_execute("COMMIT").await.unwrap();
    };
    // The worker keeps five seconds to answer; a call of one second fits, three seconds long.
    let left = FINISH_MAX + Duration::from_secs(5 + 1 + 3 - 1);
    let working = world
        .worker
        .work(vec![wake("late", wake_up)], Instant::now() + left);
    let (worked, ()) = tokio::join!(working, unblocked);
    assert_eq!(failures(&worked), Vec::<String>::new());
    assert_eq!(world.model.asked(), 0);
    let row = world
        .stage
        .admin
        .query_one(
            "SELECT r.id, r.status, r.error_code, r.lease_expires_at IS NULL AND r.available_at <= now() AS free,
                    a.status AS attempt
               FROM scheduled_prompt_runs r JOIN run_attempts a ON a.run_id = r.id WHERE r.prompt_id = $1",
            &[&prompt_id.uuid()],
        )
        .await
        .unwrap();
    let text = |name: &str| row.get::<_, String>(name);
    assert_eq!(
        (text("status"), text("error_code")),
        ("queued".into(), "interrupted".into())
    );
    assert_eq!(
        (row.get::<_, bool>("free"), text("attempt")),
        (true, "unknown".into())
    );
    // Another process is woken for it at once, and ends it.
    let run = WakeUp::Run {
        tenant_id: world.tenant.id,
        run_id: RunId::from(row.get::<_, uuid::Uuid>("id")),
    };
    assert_eq!(world.sent.next().await, Some(run));
    world.model.release();
    assert_eq!(
        world.work(vec![wake("again", run)]).await,
        Vec::<String>::new()
    );
    assert_eq!(world.runs("succeeded").await, 1);
}

#[tokio::test]
async fn what_cannot_be_read_from_its_row_comes_again_alone() {
    let world = World::new(10).await;
    let (_, good) = world.due(&json!({})).await;
    let (broken_id, broken) = world.due(&json!({})).await;
    let spoil = format!("UPDATE prompt_versions SET spec = '{{}}' WHERE prompt_id = '{broken_id}'");
    world.stage.admin.batch_execute(&spoil).await.unwrap();
    // However often it came: it fails by itself, and is to end with the dead letters.
    let records = vec![
        wake("good", good),
        record("broken", &message::encode(broken), 4),
    ];
    assert_eq!(world.work(records).await, ["broken"]);
    assert_eq!(world.runs("succeeded").await, 1);
    assert_eq!(world.letters().await, []);
}
