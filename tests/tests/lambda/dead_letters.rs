//! From the dead-letter queue to `failed(dead_letter)`.

use std::{sync::Mutex, time::Duration};

use aws_sdk_sqs::Client;
use serde_json::json;
use shared::{
    bus::Bus,
    ids::{RunId, TenantId},
    message::{self, WakeUp},
    queue::{DeadLetters, Queue, Sqs},
    run::{DeliveryStatus, RunTrigger},
    scheduler::Scheduler,
};
use sweeper::{dead_letters::consume, turn::Sweeper};
use tests::{
    stage::prompt,
    worker::{LONG_MS, enqueue, fire, resume, settle, succeed},
};
use tokio::time::Instant;

use crate::world::World;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

async fn bury(world: &World, body: &str) {
    world
        .worker
        .dead_letters
        .bury("was", body, "test")
        .await
        .unwrap();
}

async fn one(world: &World, sql: &str) -> serde_json::Value {
    let sql = format!("SELECT to_jsonb(q) FROM ({sql}) q");
    world.stage.admin.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_run_that_came_to_nothing_ends_once_and_counts_once() {
    let world = World::new(1).await;
    let (db, tenant_id) = (&world.stage.db, world.tenant.id);
    let prompt_id = prompt(db, world.tenant, &json!({}), None).await.unwrap();
    let run_id = enqueue(db, tenant_id, prompt_id, RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    let body = message::encode(WakeUp::Run { tenant_id, run_id });
    // The same one twice: it may come from SQS and from the executor.
    bury(&world, &body).await;
    bury(&world, &body).await;
    let consumed = consume(db, &world.worker.dead_letters, soon())
        .await
        .unwrap();
    assert_eq!((consumed.ended, consumed.deleted), (1, 2));
    let run = one(
        &world,
        "SELECT status, reason, error_code, attempt FROM scheduled_prompt_runs",
    )
    .await;
    assert_eq!(
        run,
        json!({"status": "failed", "reason": "dead_letter", "error_code": "dead_letter", "attempt": 0})
    );
    let counted = one(
        &world,
        "SELECT failure_count, consecutive_failures FROM scheduled_prompts",
    )
    .await;
    assert_eq!(
        counted,
        json!({"failure_count": 1, "consecutive_failures": 1})
    );
    assert_eq!(world.letters().await, []);
}

#[tokio::test]
async fn a_vanished_claimants_run_ends_and_its_cost_stays_unknown() {
    let world = World::new(1).await;
    let (db, tenant_id) = (&world.stage.db, world.tenant.id);
    let (prompt_id, _) = world.due(&json!({"max_retries": 3})).await;
    let claim = fire(db, tenant_id, prompt_id, 0).await.unwrap().unwrap();
    bury(
        &world,
        &message::encode(WakeUp::Run {
            tenant_id,
            run_id: claim.run_id,
        }),
    )
    .await;
    assert_eq!(
        consume(db, &world.worker.dead_letters, soon())
            .await
            .unwrap()
            .ended,
        1
    );
    let attempt = one(
        &world,
        "SELECT r.status, r.reason, a.status AS attempt FROM scheduled_prompt_runs r
           JOIN run_attempts a ON a.run_id = r.id",
    )
    .await;
    assert_eq!(
        attempt,
        json!({"status": "failed", "reason": "dead_letter", "attempt": "unknown"})
    );
}

/// A settled try keeps its outcome and its cost when its run ends unworked.
#[tokio::test]
async fn what_an_earlier_try_cost_stays_known() {
    let world = World::new(1).await;
    let (db, tenant_id) = (&world.stage.db, world.tenant.id);
    let (prompt_id, _) = world.due(&json!({"max_retries": 3})).await;
    let claim = fire(db, tenant_id, prompt_id, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    let retry = shared::db::runs::AfterFailure::RetryIn { delay_ms: 0 };
    tests::worker::fail(
        db,
        &claim,
        &tests::worker::failure("broken", retry),
        "error",
    )
    .await
    .unwrap();
    bury(
        &world,
        &message::encode(WakeUp::Run {
            tenant_id,
            run_id: claim.run_id,
        }),
    )
    .await;
    assert_eq!(
        consume(db, &world.worker.dead_letters, soon())
            .await
            .unwrap()
            .ended,
        1
    );
    let attempt = one(&world, "SELECT status, error_code FROM run_attempts").await;
    assert_eq!(attempt, json!({"status": "error", "error_code": "broken"}));
    assert_eq!(world.runs("failed").await, 1);
}

#[tokio::test]
async fn what_goes_on_without_the_message_is_left_alone() {
    let world = World::new(1).await;
    let (db, tenant_id) = (&world.stage.db, world.tenant.id);
    // Held by somebody, over, and a slot that is due.
    let (held_prompt, _) = world.due(&json!({})).await;
    let held = fire(db, tenant_id, held_prompt, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    let (over_prompt, _) = world.due(&json!({})).await;
    let over = fire(db, tenant_id, over_prompt, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    succeed(db, &over, 0).await.unwrap();
    let (_, due) = world.due(&json!({})).await;
    for wake_up in [
        WakeUp::Run {
            tenant_id,
            run_id: held.run_id,
        },
        WakeUp::Run {
            tenant_id,
            run_id: over.run_id,
        },
        WakeUp::Run {
            tenant_id: TenantId::new(),
            run_id: RunId::new(),
        },
        due,
    ] {
        bury(&world, &message::encode(wake_up)).await;
    }
    bury(&world, "nobody can read this").await;
    let consumed = consume(db, &world.worker.dead_letters, soon())
        .await
        .unwrap();
    assert_eq!((consumed.ended, consumed.deleted), (0, 5));
    assert_eq!(
        (world.runs("running").await, world.runs("succeeded").await),
        (1, 1)
    );
    // The slot is not lost with its wake-up.
    let (queue, mut wake_ups) = Queue::local(10);
    sweeper::sweep(db, &queue).await.unwrap();
    assert_eq!(wake_ups.next().await, Some(due));
}

#[tokio::test]
async fn a_delivery_that_came_to_nothing_is_exhausted_and_ends_its_run() {
    let world = World::new(1).await;
    let (db, tenant_id) = (&world.stage.db, world.tenant.id);
    let (prompt_id, _) = world.due(&json!({})).await;
    let claim = fire(db, tenant_id, prompt_id, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    let sent = succeed(db, &claim, 1).await.unwrap();
    settle(db, &sent[0], DeliveryStatus::Retrying)
        .await
        .unwrap();
    let delivery_id = sent[0].delivery_id;
    bury(
        &world,
        &message::encode(WakeUp::Delivery {
            tenant_id,
            delivery_id,
        }),
    )
    .await;
    assert_eq!(
        consume(db, &world.worker.dead_letters, soon())
            .await
            .unwrap()
            .ended,
        1
    );
    let delivery = one(&world, "SELECT status, error_code FROM deliveries").await;
    assert_eq!(
        delivery,
        json!({"status": "exhausted", "error_code": "dead_letter"})
    );
    let run = one(&world, "SELECT status, reason FROM scheduled_prompt_runs").await;
    assert_eq!(
        run,
        json!({"status": "failed", "reason": "delivery_failed"})
    );
}

/// The queue's own rule moves what failed too often; a turn of the sweeper ends its run.
#[tokio::test]
async fn a_turn_of_the_sweeper_ends_what_the_queue_gave_up() {
    let world = World::new(1).await;
    let (db, tenant_id) = (&world.stage.db, world.tenant.id);
    let prompt_id = prompt(db, world.tenant, &json!({}), None).await.unwrap();
    let run_id = enqueue(db, tenant_id, prompt_id, RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    let queue = Queue::Sqs(Sqs::new(
        &world.aws,
        world.queues.wake_ups.clone(),
        Duration::from_secs(30),
    ));
    assert_eq!(
        queue
            .offer(&[WakeUp::Run { tenant_id, run_id }], Duration::ZERO)
            .await,
        1
    );
    let client = Client::new(&world.aws);
    let mut takes = 0;
    loop {
        let taking = client
            .receive_message()
            .queue_url(&world.queues.wake_ups)
            .visibility_timeout(0);
        if taking.send().await.unwrap().messages().is_empty() {
            break;
        }
        takes += 1;
        assert!(takes < 20, "the queue never gives up");
    }
    let sweeper = Sweeper {
        db: db.clone(),
        queue,
        dead_letters: vec![
            world.worker.dead_letters.clone(),
            DeadLetters::new(&world.aws, world.queues.undelivered.clone()),
        ],
        mail_events: None,
        bus: Bus::Local,
        scheduler: Scheduler::Local,
        retention_after: Mutex::new(None),
    };
    sweeper.turn(soon()).await.unwrap();
    let run = one(&world, "SELECT status, reason FROM scheduled_prompt_runs").await;
    assert_eq!(run, json!({"status": "failed", "reason": "dead_letter"}));
    // A run that was retried by hand is a run like any other.
    let retried = async {
        let tx = world.stage.tx(tenant_id).await.unwrap();
        let changed = shared::db::runs::retry(&tx, run_id).await.unwrap();
        tx.commit().await.unwrap();
        changed
    };
    assert_eq!(retried.await, shared::db::runs::Changed::Done);
    let looked = resume(db, tenant_id, run_id, LONG_MS).await.unwrap();
    assert!(
        matches!(looked, tests::worker::Looked::Claimed(_)),
        "{looked:?}"
    );
}

#[tokio::test]
async fn a_part_that_fails_does_not_keep_the_others_from_being_done() {
    let world = World::new(1).await;
    let (_, due) = world.due(&json!({})).await;
    let nowhere = tests::rehearsal::aws("http://127.0.0.1:9");
    let (queue, mut wake_ups) = Queue::local(10);
    let sweeper = Sweeper {
        db: world.stage.db.clone(),
        queue,
        dead_letters: vec![
            DeadLetters::new(&nowhere, "http://127.0.0.1:9/1/q".to_owned()),
            world.worker.dead_letters.clone(),
        ],
        mail_events: None,
        bus: Bus::Local,
        scheduler: Scheduler::Local,
        retention_after: Mutex::new(None),
    };
    bury(&world, "nobody can read this").await;
    let error = sweeper.turn(soon()).await.unwrap_err().to_string();
    assert!(error.contains("dead letters"), "{error}");
    assert_eq!(wake_ups.next().await, Some(due));
    assert_eq!(world.letters().await, []);
}
