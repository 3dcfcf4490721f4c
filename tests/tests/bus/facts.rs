//! Which fact is told by which event: each once, with its transaction, and never without it.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use shared::{
    bus::Bus,
    db::{
        prompts::{self, NewSpec, NewStatus, PromptStatus},
        runs::{self, AfterFailure, Changed},
    },
    ids::PromptId,
    run::{DeliveryStatus, RunStatus, RunTrigger},
};
use tests::stage::{prompt, spec};
use tests::worker::{
    LONG_MS, Looked, answer, enqueue, fail, failure, fire, held, new_delivery, resume, settle,
    settle_as, settled, succeed,
};
use tests::world::due_prompt;

use super::world::{World, drain};

#[tokio::test]
async fn a_run_with_its_deliveries_tells_each_step_once() {
    let world = World::new().await;
    let claim = world.running(&json!({})).await;
    let sent = succeed(world.db(), &claim, 2).await.unwrap();
    assert_eq!(world.types().await, ["prompt.created", "run.started"]);
    settle(world.db(), &sent[0], DeliveryStatus::Delivered)
        .await
        .unwrap();
    settle(world.db(), &sent[1], DeliveryStatus::Delivered)
        .await
        .unwrap();
    let told = world.told().await;
    let kinds: Vec<_> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["delivery.delivered", "delivery.delivered", "run.succeeded"]
    );
    let (first, last) = (&told[0].1, &told[2].1);
    assert_eq!(first["delivery_id"], json!(sent[0].delivery_id));
    assert_eq!(
        (&first["kind"], &first["response_status"]),
        (&json!("webhook"), &json!(200))
    );
    assert_eq!(last["run_id"], json!(claim.run_id));
    assert_eq!(last["prompt_id"], json!(claim.prompt_id));
    assert_eq!(last["tenant_id"], json!(world.id()));
    assert_eq!(
        (&last["input_tokens"], &last["cost_usd"]),
        (&json!(7), &json!("0.010000"))
    );
    assert_eq!(
        (&last["status"], &last["attempt"]),
        (&json!("succeeded"), &json!(1))
    );
}

#[tokio::test]
async fn a_run_without_destinations_and_its_prompts_last_run() {
    let world = World::new().await;
    let claim = world.running(&json!({"max_runs": 1})).await;
    succeed(world.db(), &claim, 0).await.unwrap();
    let told = world.told().await;
    let kinds: Vec<_> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "prompt.created",
            "run.started",
            "prompt.completed",
            "run.succeeded"
        ]
    );
    assert_eq!(
        (&told[2].1["reason"], &told[2].1["run_count"]),
        (&json!("max_runs"), &json!(1))
    );
}

#[tokio::test]
async fn every_try_is_told_and_only_the_last_failure() {
    let world = World::new().await;
    let claim = world
        .running(&json!({"max_retries": 1, "pause_after_failures": 1}))
        .await;
    let again = failure("provider_timeout", AfterFailure::RetryIn { delay_ms: 0 });
    fail(world.db(), &claim, &again, "error").await.unwrap();
    let Looked::Claimed(claim) = resume(world.db(), world.id(), claim.run_id, LONG_MS)
        .await
        .unwrap()
    else {
        panic!("the second try does not begin");
    };
    let last = failure("provider_timeout", AfterFailure::End(RunStatus::TimedOut));
    fail(world.db(), &claim, &last, "error").await.unwrap();
    let told = world.told().await;
    let kinds: Vec<_> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    // The prompt is paused by it: one event, with its reason, after the run's.
    let expected = [
        "prompt.created",
        "run.started",
        "run.started",
        "run.failed",
        "prompt.paused",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(
        (&told[1].1["attempt"], &told[2].1["attempt"]),
        (&json!(1), &json!(2))
    );
    let failed = &told[3].1;
    assert_eq!(
        (&failed["status"], &failed["reason"]),
        (&json!("timed_out"), &json!("provider_timeout"))
    );
    let paused = &told[4].1;
    assert_eq!(
        (&paused["status"], &paused["reason"]),
        (&json!("paused"), &json!("failures"))
    );
    assert_eq!(
        (&paused["failure_count"], &paused["consecutive_failures"]),
        (&json!(1), &json!(1))
    );
}

#[tokio::test]
async fn deliveries_that_come_to_nothing_are_told_with_the_run_that_they_fail() {
    let world = World::new().await;
    for (status, kind) in [
        (DeliveryStatus::Exhausted, "delivery.exhausted"),
        (DeliveryStatus::Held, "delivery.held"),
    ] {
        let claim = world.running(&json!({"pause_after_failures": 1})).await;
        let sent = succeed(world.db(), &claim, 1).await.unwrap();
        world.told().await;
        settle(world.db(), &sent[0], status).await.unwrap();
        let told = world.told().await;
        let kinds: Vec<_> = told.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, [kind, "run.failed", "prompt.paused"]);
        assert_eq!(told[1].1["reason"], json!("delivery_failed"));
    }
}

async fn set_status(world: &World, id: PromptId, version: i64, status: PromptStatus) {
    let tx = world.stage.tx(world.id()).await.unwrap();
    let change = NewStatus {
        id,
        version,
        status,
        reason: None,
        note: Some("a note"),
        next_run_at: None,
    };
    prompts::set_status(&tx, &change).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_prompts_life_is_told_and_no_count_of_it() {
    let world = World::new().await;
    let id = world.prompt(&json!({})).await;
    for (version, status, kind) in [
        (1, PromptStatus::Paused, "prompt.paused"),
        (2, PromptStatus::Active, "prompt.resumed"),
        (3, PromptStatus::Failed, "prompt.failed"),
        (4, PromptStatus::Completed, "prompt.completed"),
        (5, PromptStatus::Cancelled, "prompt.cancelled"),
    ] {
        world.told().await;
        set_status(&world, id, version, status).await;
        assert_eq!(world.types().await, [kind]);
    }
    let tx = world.stage.tx(world.id()).await.unwrap();
    let change = NewSpec {
        id,
        version: 6,
        spec: &spec(&json!({"prompt_name": "another name"})),
        next_run_at: None,
        reschedules: true,
        webhook_urls: &[],
        calendars: None,
    };
    prompts::replace(&tx, &change).await.unwrap();
    tx.commit().await.unwrap();
    let told = world.told().await;
    assert_eq!((told.len(), told[0].0.as_str()), (1, "prompt.updated"));
    assert_eq!(told[0].1["prompt_version"], json!(7));
    // Neither the scheduler's entries nor a look that failed is anybody's business.
    world.sql("UPDATE scheduled_prompts SET synced_generation = generation, looks_failed = 3, run_count = 7").await;
    assert_eq!(world.types().await, [""; 0]);
    let tx = world.stage.tx(world.id()).await.unwrap();
    assert!(prompts::tombstone(&tx, id).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(world.types().await, ["prompt.deleted"]);
    // The row goes with its tombstone, and nobody hears of it twice.
    world
        .sql(
            "UPDATE scheduled_prompts SET status = 'active', deleted_at = now() - interval '1 day'",
        )
        .await;
    world
        .sql("DELETE FROM prompt_versions; DELETE FROM scheduled_prompts")
        .await;
    assert_eq!(world.types().await, [""; 0]);
}

#[tokio::test]
async fn runs_that_are_not_run_are_told_with_their_count() {
    let world = World::new().await;
    let from = Utc::now() - TimeDelta::hours(10);
    let slot = from - TimeDelta::nanoseconds(from.timestamp_nanos_opt().unwrap() % 60_000_000_000);
    let changes = json!({"misfire": "skip", "catchup_window_s": 900});
    let id = prompt(world.db(), world.tenant, &changes, Some(slot))
        .await
        .unwrap();
    // Two looks: the second extends the row that the first wrote.
    for _ in 0..2 {
        fire(world.db(), world.id(), id, LONG_MS).await.unwrap();
        world
            .sql("UPDATE scheduled_prompts SET next_run_at = next_run_at - interval '30 minutes'")
            .await;
    }
    let told = world.told().await;
    let missed: Vec<&Value> = told
        .iter()
        .filter(|(kind, _)| kind == "run.missed")
        .map(|(_, told)| told)
        .collect();
    let counted: i64 = missed
        .iter()
        .map(|told| told["slots_count"].as_i64().unwrap())
        .sum();
    let sql = "SELECT sum(slots_count)::bigint FROM scheduled_prompt_runs WHERE status = 'missed'";
    assert_eq!(counted, world.stage.count(sql).await.unwrap());
    let rows = "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'missed'";
    assert!(
        counted > world.stage.count(rows).await.unwrap(),
        "{told:#?}"
    );
    let shared = missed
        .iter()
        .filter(|told| told.get("scheduled_until").is_some());
    assert!(shared.clone().count() > 0, "{told:#?}");
    assert!(
        shared.clone().all(|told| told["reason"].is_string()),
        "{told:#?}"
    );
}

#[tokio::test]
async fn a_row_that_grows_tells_what_was_added() {
    let world = World::new().await;
    let id = world.prompt(&json!({})).await;
    world.sql(&format!(
        "INSERT INTO scheduled_prompt_runs (tenant_id, id, prompt_id, scheduled_for, scheduled_until, trigger,
                                            status, slots_count, attempts_max, prompt_version)
         SELECT tenant_id, gen_random_uuid(), id, now(), now(), 'schedule', 'missed', 40, 1, 1
           FROM scheduled_prompts WHERE id = '{id}';
         UPDATE scheduled_prompt_runs SET slots_count = 57"
    )).await;
    let told = world.told().await;
    let counts: Vec<_> = told[1..]
        .iter()
        .map(|(kind, told)| {
            (
                kind.as_str(),
                told["slots_count"].as_i64(),
                told["slots_total"].as_i64(),
            )
        })
        .collect();
    assert_eq!(
        counts,
        [
            ("run.missed", Some(40), Some(40)),
            ("run.missed", Some(17), Some(57))
        ]
    );
}

#[tokio::test]
async fn skipped_and_cancelled_runs_are_told() {
    let world = World::new().await;
    let id = world.due(&json!({"overlap": "skip"})).await;
    let under_way = fire(world.db(), world.id(), id, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    world.told().await;
    world
        .sql("UPDATE scheduled_prompts SET next_run_at = date_trunc('minute', now())")
        .await;
    world
        .sql("UPDATE scheduled_prompt_runs SET scheduled_for = scheduled_for - interval '1 day'")
        .await;
    fire(world.db(), world.id(), id, LONG_MS).await.unwrap();
    let told = world.told().await;
    assert_eq!(told[0].0, "run.skipped");
    assert_eq!(
        (&told[0].1["reason"], &told[0].1["overlapped_by"]),
        (&json!("overlap"), &json!(under_way.run_id))
    );
    let tx = world.stage.tx(world.id()).await.unwrap();
    assert_eq!(
        runs::cancel(&tx, under_way.run_id).await.unwrap(),
        Changed::Done
    );
    tx.commit().await.unwrap();
    let told = world.told().await;
    assert_eq!((told.len(), told[0].0.as_str()), (1, "run.cancelled"));
    assert_eq!(told[0].1["reason"], json!("user"));
}

#[tokio::test]
async fn what_is_rolled_back_was_never_told() {
    let world = World::new().await;
    let id = world.prompt(&json!({})).await;
    let run = world.run(id).await;
    world.told().await;
    let tx = world.stage.tx(world.id()).await.unwrap();
    assert_eq!(runs::cancel(&tx, run).await.unwrap(), Changed::Done);
    assert!(prompts::tombstone(&tx, id).await.unwrap());
    tx.rollback().await.unwrap();
    // Dropped, as by a process that is killed.
    let tx = world.stage.tx(world.id()).await.unwrap();
    assert_eq!(runs::cancel(&tx, run).await.unwrap(), Changed::Done);
    drop(tx);
    assert_eq!(world.types().await, [""; 0]);
    // A claimant without its lease tells nothing either.
    let Looked::Claimed(claim) = resume(world.db(), world.id(), run, LONG_MS).await.unwrap() else {
        panic!("it does not begin");
    };
    world.told().await;
    world
        .sql("UPDATE scheduled_prompt_runs SET fence = fence + 1")
        .await;
    succeed(world.db(), &claim, 0).await.unwrap_err();
    assert_eq!(world.types().await, [""; 0]);
}

/// Something no event may hold.
const CANARY: &str = "Canary-7f3a";

#[tokio::test]
async fn no_event_holds_what_a_tenant_wrote_or_a_model_answered() {
    let world = World::new().await;
    let text = format!("{CANARY} text");
    let mail = format!("{CANARY}@example.com");
    let hook = format!("https://hooks.example/{CANARY}");
    let changes = json!({
        "prompt_name": text, "prompt_text": text, "system_text": text, "description": text,
        "external_id": text, "tags": [CANARY], "metadata": {CANARY: CANARY}, "context": {CANARY: CANARY},
        "notification_email": mail, "destinations": [{"kind": "webhook", "url": hook}],
        "pause_after_failures": 1,
    });
    let id = due_prompt(world.db(), world.tenant, &changes).await;
    let claim = fire(world.db(), world.id(), id, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    let mut answered = answer(&text);
    answered.model = CANARY;
    answered.output_uri = Some(&hook);
    let mut delivery = new_delivery(0, &hook);
    delivery.body = Some(text.clone().into());
    let rows = [&delivery];
    runs::record_output(
        world.db(),
        &claim,
        &answered,
        RunStatus::Generated,
        &rows,
        LONG_MS,
    )
    .await
    .unwrap();
    let mut result = settled(DeliveryStatus::Exhausted);
    result.response_excerpt = Some(text.clone());
    result.error_message = Some(text.clone());
    result.location = Some(hook.clone());
    // A code that is none could be anything.
    result.error_code = Some(text.clone());
    settle_as(world.db(), &held(&claim, &delivery), &result)
        .await
        .unwrap();

    let run = enqueue(world.db(), world.id(), id, RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    let Looked::Claimed(claim) = resume(world.db(), world.id(), run, LONG_MS).await.unwrap() else {
        panic!("it does not begin");
    };
    let mut broken = failure(&text, AfterFailure::End(RunStatus::Failed));
    broken.message.clone_from(&text);
    fail(world.db(), &claim, &broken, "error").await.unwrap();
    let change = NewStatus {
        id,
        version: 2,
        status: PromptStatus::Cancelled,
        reason: Some(&text),
        note: Some(&text),
        next_run_at: None,
    };
    let tx = world.stage.tx(world.id()).await.unwrap();
    prompts::set_status(&tx, &change).await.unwrap();
    prompts::tombstone(&tx, id).await.unwrap();
    tx.commit().await.unwrap();

    let outbox = world.outbox().await;
    assert!(!json!(outbox).to_string().contains(CANARY), "{outbox:#?}");
    let told = world.told().await;
    assert!(!json!(told).to_string().contains(CANARY), "{told:#?}");
    let others = told
        .iter()
        .filter(|(_, told)| told["reason"] == "other")
        .count();
    assert_eq!(others, 4, "{told:#?}");
}

#[tokio::test]
async fn on_one_machine_events_are_lines_of_the_log() {
    let world = World::new().await;
    let claim = world.running(&json!({})).await;
    succeed(world.db(), &claim, 0).await.unwrap();
    let drained = drain(world.db(), &Bus::Local).await;
    assert_eq!(
        (drained.taken, drained.postponed, drained.parked),
        (3, 0, 0)
    );
    assert_eq!(world.outbox().await, [json!(null); 0]);
}
