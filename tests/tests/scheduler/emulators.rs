//! Entries in ministack and in moto, from creation to deletion. Each test has a group of its own.

use aws_sdk_scheduler::{
    operation::get_schedule::GetScheduleOutput,
    types::{ActionAfterCompletion, FlexibleTimeWindowMode, ScheduleState},
};
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use shared::{
    ids::PromptId,
    message::{self, WakeUp},
};
use tests::peers::{ministack_url, moto_url};

use crate::world::{QUEUE_URL, Tenant, World, daily, instant, sync_of};

/// One test for each emulator.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod ministack {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::at(&super::ministack_url()).await).await;
            })*
        }
        mod moto {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::at(&super::moto_url()).await).await;
            })*
        }
    };
}

on_both!(
    an_entry_follows_its_prompt_from_creation_to_deletion,
    an_entry_that_is_there_already_is_made_equal,
    two_restricted_day_fields_make_two_entries,
    a_once_entry_goes_with_its_slot,
    a_rate_keeps_its_phase,
    jitter_becomes_a_window,
    start_and_end_stand_beside_the_minute,
    a_prompt_that_ends_loses_its_entry,
    drift_of_each_kind_is_repaired,
    a_manual_prompt_has_no_entry,
);

fn message_of(entry: &GetScheduleOutput) -> message::Message {
    let input = entry.target().unwrap().input().unwrap();
    let input: Value = serde_json::from_str(input).unwrap();
    message::decode(input["MessageBody"].as_str().unwrap()).unwrap()
}

fn generation_of(entry: &GetScheduleOutput) -> i64 {
    message_of(entry).fired.unwrap().generation
}

async fn present(world: &World, id: PromptId) -> GetScheduleOutput {
    world.entry(id, 1).await.expect("the entry is there")
}

async fn an_entry_follows_its_prompt_from_creation_to_deletion(world: World) {
    let tenant = world.tenant("a").await;
    let (id, body) = world.create(&tenant, daily()).await;
    assert_eq!(sync_of(&body), ("synced", None));

    let entry = present(&world, id).await;
    assert_eq!(entry.schedule_expression(), Some("cron(0 9 * * ? *)"));
    assert_eq!(entry.schedule_expression_timezone(), Some("Europe/London"));
    assert_eq!(entry.state(), Some(&ScheduleState::Enabled));
    assert_eq!(
        entry.action_after_completion(),
        Some(&ActionAfterCompletion::None)
    );
    let window = entry.flexible_time_window().unwrap();
    assert_eq!(window.mode(), &FlexibleTimeWindowMode::Off);
    shows_its_target(&entry, &tenant, id);
    assert_eq!(generation_of(&entry), 1);

    let change = json!({"schedule": {"type": "daily", "at": "18:30", "timezone": "Asia/Tokyo"}});
    let body = world.patch(&tenant, id, change).await;
    assert_eq!(sync_of(&body), ("synced", None));
    let changed = present(&world, id).await;
    assert_eq!(changed.schedule_expression(), Some("cron(30 18 * * ? *)"));
    assert_eq!(changed.schedule_expression_timezone(), Some("Asia/Tokyo"));
    assert_eq!(generation_of(&changed), 2);

    let body = world.post(&tenant, id, "pause").await;
    assert_eq!(sync_of(&body), ("synced", None));
    let paused = present(&world, id).await;
    assert_eq!(paused.state(), Some(&ScheduleState::Disabled));
    assert_eq!(paused.schedule_expression(), Some("cron(30 18 * * ? *)"));
    assert_eq!(paused.schedule_expression_timezone(), Some("Asia/Tokyo"));
    shows_its_target(&paused, &tenant, id);

    let body = world.post(&tenant, id, "resume").await;
    assert_eq!(sync_of(&body), ("synced", None));
    let resumed = present(&world, id).await;
    assert_eq!(resumed.state(), Some(&ScheduleState::Enabled));
    assert_eq!(generation_of(&resumed), 4);

    world.delete(&tenant, id).await;
    assert!(world.entry(id, 1).await.is_none());
    let row = world.row(id).await;
    assert_eq!(row["synced_generation"], row["generation"]);
}

fn shows_its_target(entry: &GetScheduleOutput, tenant: &Tenant, id: PromptId) {
    let target = entry.target().unwrap();
    assert_eq!(target.arn(), "arn:aws:scheduler:::aws-sdk:sqs:sendMessage");
    assert_eq!(
        target.role_arn(),
        "arn:aws:iam::123456789012:role/scheduler"
    );
    assert_eq!(
        target.dead_letter_config().unwrap().arn(),
        Some("arn:aws:sqs:eu-central-1:123456789012:dead-letters")
    );
    let retries = target.retry_policy().unwrap();
    assert_eq!(retries.maximum_retry_attempts(), Some(10));
    assert_eq!(retries.maximum_event_age_in_seconds(), Some(900));
    let input: Value = serde_json::from_str(target.input().unwrap()).unwrap();
    assert_eq!(input["QueueUrl"], QUEUE_URL);
    assert_eq!(input["MessageGroupId"], tenant.id.to_string());
    let body = input["MessageBody"].as_str().unwrap();
    assert!(body.contains("<aws.scheduler.scheduled-time>"), "{body}");
    let expected = WakeUp::Prompt {
        tenant_id: tenant.id,
        prompt_id: id,
    };
    assert_eq!(message_of(entry).wake_up, expected);
}

async fn an_entry_that_is_there_already_is_made_equal(world: World) {
    let tenant = world.tenant("a").await;
    let (id, _) = world.create(&tenant, daily()).await;
    // As after a database that was brought back to yesterday.
    world
        .sql(
            "UPDATE scheduled_prompts SET synced_generation = 0, sync_fence = 0 WHERE id = $1",
            id,
        )
        .await;
    let change = json!({"schedule": {"type": "daily", "at": "10:15", "timezone": "UTC"}});
    let body = world.patch(&tenant, id, change).await;
    assert_eq!(sync_of(&body), ("synced", None));
    let entry = present(&world, id).await;
    assert_eq!(entry.schedule_expression(), Some("cron(15 10 * * ? *)"));
}

async fn two_restricted_day_fields_make_two_entries(world: World) {
    let tenant = world.tenant("a").await;
    let cron =
        |expression: &str| json!({"type": "cron", "expression": expression, "timezone": "UTC"});
    let (id, body) = world.create(&tenant, cron("0 9 13 * 5")).await;
    assert_eq!(sync_of(&body), ("synced", None));
    let second = world.entry(id, 2).await.unwrap();
    let expressions = [
        present(&world, id)
            .await
            .schedule_expression()
            .map(str::to_owned),
        second.schedule_expression().map(str::to_owned),
    ];
    assert_eq!(
        expressions.map(Option::unwrap),
        ["cron(0 9 13 * ? *)", "cron(0 9 ? * FRI *)"]
    );

    world
        .patch(&tenant, id, json!({"schedule": cron("0 9 * * 5")}))
        .await;
    assert!(world.entry(id, 2).await.is_none());
    let first = present(&world, id).await;
    assert_eq!(first.schedule_expression(), Some("cron(0 9 ? * FRI *)"));

    world
        .patch(&tenant, id, json!({"schedule": cron("0 9 13 * 5")}))
        .await;
    assert!(world.entry(id, 2).await.is_some());
    world.delete(&tenant, id).await;
    assert!(world.entry(id, 1).await.is_none());
    assert!(world.entry(id, 2).await.is_none());
}

async fn a_once_entry_goes_with_its_slot(world: World) {
    let tenant = world.tenant("a").await;
    let once = json!({"type": "once", "at": "2099-03-01T09:00:00", "timezone": "Europe/Berlin"});
    let (id, _) = world.create(&tenant, once).await;
    let entry = present(&world, id).await;
    assert_eq!(entry.schedule_expression(), Some("at(2099-03-01T08:00:00)"));
    assert_eq!(entry.schedule_expression_timezone(), Some("UTC"));
    assert_eq!(
        entry.action_after_completion(),
        Some(&ActionAfterCompletion::Delete)
    );
    assert_eq!((entry.start_date(), entry.end_date()), (None, None));
}

async fn a_rate_keeps_its_phase(world: World) {
    let tenant = world.tenant("a").await;
    let (id, body) = world
        .create(&tenant, json!({"type": "interval", "every_minutes": 7}))
        .await;
    let period_s = 7 * 60;
    let first = present(&world, id).await;
    assert_eq!(first.schedule_expression(), Some("rate(7 minutes)"));
    let start = first.start_date().unwrap().secs();
    assert_eq!(start, instant(&body["next_run_at"]).timestamp());

    world.post(&tenant, id, "pause").await;
    let paused = present(&world, id).await.start_date().unwrap().secs();
    assert_eq!((paused - start) % period_s, 0);
    let body = world.post(&tenant, id, "resume").await;
    let resumed = present(&world, id).await.start_date().unwrap().secs();
    assert_eq!((resumed - start) % period_s, 0);
    assert_eq!(resumed, instant(&body["next_run_at"]).timestamp());

    // A slot that nobody has looked at for an hour: AWS refuses a start that is so old.
    let late = instant(&body["next_run_at"]) - TimeDelta::minutes(7 * 9);
    let sql =
        "UPDATE scheduled_prompts SET next_run_at = $2, generation = generation + 1 WHERE id = $1";
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&id.uuid(), &late];
    world.stage.admin.execute(sql, &params).await.unwrap();
    world.apply(&tenant, id).await;
    let again = present(&world, id).await.start_date().unwrap().secs();
    assert_eq!((again - start) % period_s, 0);
    assert!(again > Utc::now().timestamp(), "{again}");
}

async fn jitter_becomes_a_window(world: World) {
    let tenant = world.tenant("a").await;
    let (id, _) = world
        .create_with(&tenant, json!({"jitter_minutes": 15}))
        .await;
    let entry = present(&world, id).await;
    let window = entry.flexible_time_window().unwrap();
    assert_eq!(window.mode(), &FlexibleTimeWindowMode::Flexible);
    assert_eq!(window.maximum_window_in_minutes(), Some(15));

    let body = world.patch(&tenant, id, json!({"jitter_minutes": 0})).await;
    assert_eq!(sync_of(&body), ("synced", None));
    let entry = present(&world, id).await;
    let window = entry.flexible_time_window().unwrap();
    assert_eq!(window.mode(), &FlexibleTimeWindowMode::Off);
}

async fn start_and_end_stand_beside_the_minute(world: World) {
    let tenant = world.tenant("a").await;
    let schedule = json!({"type": "daily", "at": "09:00", "timezone": "UTC",
        "start_at": "2098-01-01T09:00:00Z", "end_at": "2099-01-01T09:00:00Z"});
    let (id, _) = world.create(&tenant, schedule).await;
    let entry = present(&world, id).await;
    let second = |text: &str| instant(&json!(text)).timestamp();
    assert_eq!(
        entry.start_date().unwrap().secs(),
        second("2098-01-01T08:59:30Z")
    );
    assert_eq!(
        entry.end_date().unwrap().secs(),
        second("2099-01-01T09:00:30Z")
    );
}

async fn a_prompt_that_ends_loses_its_entry(world: World) {
    let tenant = world.tenant("a").await;
    let (cancelled, _) = world.create(&tenant, daily()).await;
    let body = world.post(&tenant, cancelled, "cancel").await;
    assert_eq!(sync_of(&body), ("synced", None));
    assert!(world.entry(cancelled, 1).await.is_none());

    // As the executor ends it, without a word to the scheduler.
    let (completed, _) = world.create(&tenant, daily()).await;
    world
        .sql(
            "UPDATE scheduled_prompts SET status = 'completed', next_run_at = NULL WHERE id = $1",
            completed,
        )
        .await;
    assert_eq!(sync_of(&world.get(&tenant, completed).await).0, "pending");
    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 1);
    assert!(world.entry(completed, 1).await.is_none());
    assert_eq!(sync_of(&world.get(&tenant, completed).await).0, "synced");
}

async fn drift_of_each_kind_is_repaired(world: World) {
    let tenant = world.tenant("a").await;
    let (missing, _) = world.create(&tenant, daily()).await;
    let (changed, _) = world.create(&tenant, daily()).await;
    let (untouched, _) = world.create(&tenant, daily()).await;
    let orphan = format!("{}-1", PromptId::new());
    let (foreign, unknown) = (format!("{}-1", PromptId::new()), "somebody-else");
    world.delete_by_hand(&format!("{missing}-1")).await;
    world.delete_by_hand(&format!("{changed}-1")).await;
    world.put_by_hand(&format!("{changed}-1"), QUEUE_URL).await;
    world.put_by_hand(&orphan, QUEUE_URL).await;
    world
        .put_by_hand(&foreign, "https://sqs.example/other")
        .await;
    world.put_by_hand(unknown, QUEUE_URL).await;
    let before = present(&world, untouched).await;

    let repaired = world.repair().await;
    assert_eq!(
        (repaired.drifted, repaired.orphans, repaired.compared),
        (2, 1, 3),
        "{repaired:?}"
    );
    for id in [missing, changed] {
        let entry = present(&world, id).await;
        assert_eq!(entry.schedule_expression(), Some("cron(0 9 * * ? *)"));
        shows_its_target(&entry, &tenant, id);
    }
    assert!(world.entry_named(&orphan).await.is_none());
    assert!(world.entry_named(&foreign).await.is_some());
    assert!(world.entry_named(unknown).await.is_some());
    let after = present(&world, untouched).await;
    assert_eq!(
        after.last_modification_date(),
        before.last_modification_date()
    );

    let again = world.repair().await;
    assert_eq!((again.drifted, again.orphans, again.applied), (0, 0, 0));
}

async fn a_manual_prompt_has_no_entry(world: World) {
    let tenant = world.tenant("a").await;
    let (id, body) = world.create(&tenant, json!({"type": "manual"})).await;
    assert_eq!(sync_of(&body), ("synced", None));
    assert!(world.entry(id, 1).await.is_none());
    let body = world.patch(&tenant, id, json!({"schedule": daily()})).await;
    assert_eq!(sync_of(&body), ("synced", None));
    assert!(world.entry(id, 1).await.is_some());
    world
        .patch(
            &tenant,
            id,
            json!({"schedule": {"type": "manual", "at": null, "dst_gap": null}}),
        )
        .await;
    assert!(world.entry(id, 1).await.is_none());
}

#[tokio::test]
async fn a_missing_group_is_named_and_awaited() {
    let world = World::without_group(&ministack_url()).await;
    // The emulator loads a service when it is first asked, for longer than a caller waits.
    assert!(world.entry(PromptId::new(), 1).await.is_none());
    let tenant = world.tenant("a").await;
    let (id, body) = world.create(&tenant, daily()).await;
    let (sync, error) = sync_of(&body);
    assert_eq!(sync, "pending");
    assert!(
        error.unwrap().contains("schedule group is missing"),
        "{error:?}"
    );
    assert_eq!(sync_of(&world.get(&tenant, id).await), (sync, error));

    world.make_group().await;
    world.let_time_pass().await;
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
    assert!(world.entry(id, 1).await.is_some());
}

/// Moto gives pages with tokens; ministack cuts a list off.
#[tokio::test]
async fn orphans_are_found_on_every_page() {
    let world = World::at(&moto_url()).await;
    let tenant = world.tenant("a").await;
    let (kept, _) = world.create(&tenant, daily()).await;
    let orphans: Vec<String> = (0..130).map(|_| format!("{}-1", PromptId::new())).collect();
    for orphan in &orphans {
        world.put_by_hand(orphan, QUEUE_URL).await;
    }
    let mut deleted = 0;
    // Moto's tokens point into a list that shrinks meanwhile: what is passed over has its turn again.
    for _ in 0..4 {
        deleted += world.repair().await.orphans;
    }
    assert_eq!(deleted, orphans.len());
    assert!(world.entry(kept, 1).await.is_some());
}
