//! The search for drift: what a pass reads, and where the next one goes on.

use serde_json::{Value, json};
use shared::{
    db::{sync, system},
    ids::{PromptId, TenantId},
};
use tests::scripted::{
    Kind::{Get, List},
    Scripted,
};

use crate::world::{QUEUE_URL, Tenant, World, daily, sync_of};

async fn scene() -> (Scripted, World, Tenant) {
    let server = Scripted::start().await.unwrap();
    let world = World::without_group(&server.url()).await;
    let tenant = world.tenant("a").await;
    (server, world, tenant)
}

fn orphan() -> Value {
    let input = json!({"QueueUrl": QUEUE_URL}).to_string();
    json!({"State": "ENABLED", "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {"Arn": "a", "RoleArn": "r", "Input": input}})
}

#[tokio::test]
async fn a_pass_reads_a_few_pages_and_the_next_goes_on_behind_them() {
    let (server, world, _) = scene().await;
    // Two entries a page and five pages a pass.
    server.set_page_size(2);
    let others: Vec<String> = (0..25).map(|n| format!("other-{n:02}")).collect();
    for name in &others {
        server.put(name, orphan());
    }
    let lists = || -> Vec<String> {
        let calls = server.calls().into_iter();
        calls
            .filter(|(kind, _)| *kind == List)
            .map(|(_, token)| token)
            .collect()
    };
    assert_eq!(world.repair().await.listed, 10);
    assert_eq!(
        lists(),
        ["", "other-01", "other-03", "other-05", "other-07"]
    );
    let cursor = system::drift_cursor(world.db()).await.unwrap();
    assert_eq!(cursor.list_token.as_deref(), Some("other-09"));
    assert_eq!(world.repair().await.listed, 10);
    assert_eq!(world.repair().await.listed, 5);
    assert_eq!(lists().last().unwrap(), "other-23");
    // At the end it begins again.
    assert_eq!(world.repair().await.listed, 10);
    assert_eq!(lists()[0], "");
}

#[tokio::test]
async fn a_token_that_has_grown_old_begins_the_list_again() {
    let (server, world, _) = scene().await;
    server.set_page_size(1);
    for n in 0..7 {
        server.put(&format!("other-{n}"), orphan());
    }
    assert_eq!(world.repair().await.listed, 5);
    let _ = server.calls();
    server.refuse(List, 1, 400, "ValidationException");
    assert_eq!(world.repair().await.listed, 0);
    assert_eq!(world.repair().await.listed, 5);
    let tokens: Vec<_> = server.calls().into_iter().map(|(_, token)| token).collect();
    assert_eq!(tokens[..2], ["other-4".to_owned(), String::new()]);
}

#[tokio::test]
async fn every_prompt_is_compared_in_turn() {
    let (server, world, tenant) = scene().await;
    let mut prompts = Vec::new();
    for _ in 0..130 {
        prompts.push(world.create(&tenant, daily()).await.0);
    }
    let _ = server.calls();
    let compared = || -> Vec<String> {
        let calls = server.calls().into_iter();
        let mut names: Vec<_> = calls
            .filter(|(kind, _)| *kind == Get)
            .map(|(_, name)| name)
            .collect();
        names.sort();
        names
    };
    let names: Vec<_> = prompts.iter().map(|id| format!("{id}-1")).collect();
    assert_eq!(world.repair().await.compared, 100);
    assert_eq!(compared(), names[..100]);
    assert_eq!(world.repair().await.compared, 30);
    assert_eq!(compared(), names[100..]);
    assert_eq!(world.repair().await.compared, 100);
    assert_eq!(compared(), names[..100]);
}

#[tokio::test]
async fn every_field_that_differs_is_found() {
    let (server, world, tenant) = scene().await;
    let schedule = json!({"type": "interval", "every_minutes": 7,
        "end_at": "2099-01-01T00:00:00Z"});
    let (id, _) = world.create(&tenant, schedule).await;
    let name = format!("{id}-1");
    let sound = server.entries()[&name].clone();
    let start = sound["StartDate"].as_i64().unwrap();
    for (field, value) in [
        ("ScheduleExpression", json!("rate(8 minutes)")),
        ("ScheduleExpressionTimezone", json!("Europe/Paris")),
        ("StartDate", json!(start + 60)),
        ("StartDate", Value::Null),
        ("EndDate", json!(4_102_444_801_i64)),
        ("EndDate", Value::Null),
        ("State", json!("DISABLED")),
        ("ActionAfterCompletion", json!("DELETE")),
        (
            "FlexibleTimeWindow",
            json!({"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 5}),
        ),
        ("Target", orphan()["Target"].clone()),
    ] {
        let mut spoiled = server.entries()[&name].clone();
        spoiled[field] = value.clone();
        server.put(&name, spoiled);
        assert_eq!(world.repair().await.drifted, 1, "{field} {value}");
        assert_eq!(world.repair().await.drifted, 0, "{field} {value}");
    }
    // A start that is another slot of the same rate is no difference.
    let mut moved = server.entries()[&name].clone();
    moved["StartDate"] = json!(start + 7 * 60);
    server.put(&name, moved);
    assert_eq!(world.repair().await.drifted, 0);
}

#[tokio::test]
async fn a_second_entry_that_nobody_wants_goes() {
    let (server, world, tenant) = scene().await;
    let (id, _) = world.create(&tenant, daily()).await;
    server.put(&format!("{id}-2"), orphan());
    let both = json!({"type": "cron", "expression": "0 9 13 * 5", "timezone": "UTC"});
    let (two, _) = world.create(&tenant, both).await;
    assert_eq!(world.repair().await.drifted, 1);
    let names: Vec<_> = server.entries().into_keys().collect();
    let mut expected = vec![format!("{id}-1"), format!("{two}-1"), format!("{two}-2")];
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn an_entry_that_fires_though_its_prompt_is_paused_is_stopped() {
    let (server, world, tenant) = scene().await;
    let (id, _) = world.create(&tenant, daily()).await;
    let firing = server.entries()[&format!("{id}-1")].clone();
    world.post(&tenant, id, "pause").await;
    server.put(&format!("{id}-1"), firing);
    assert_eq!(world.repair().await.drifted, 1);
    assert_eq!(server.entries()[&format!("{id}-1")]["State"], "DISABLED");
}

#[tokio::test]
async fn a_stale_entrys_fire_has_it_made_anew() {
    let (server, world, tenant) = scene().await;
    let (id, _) = world.create(&tenant, daily()).await;
    let stale = server.entries()[&format!("{id}-1")].clone();
    world.post(&tenant, id, "pause").await;
    world.post(&tenant, id, "resume").await;
    server.put(&format!("{id}-1"), stale);

    let fire = async |generation: i64| {
        let tx = world.stage.tx(tenant.id).await.unwrap();
        let is_stale = sync::mark_stale(&tx, id, generation).await.unwrap();
        tx.commit().await.unwrap();
        is_stale
    };
    assert!(!fire(3).await);
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
    assert!(fire(1).await);
    assert_eq!(sync_of(&world.get(&tenant, id).await).0, "pending");
    // Twice is once: a backoff that runs is left alone.
    assert!(fire(1).await);
    assert_eq!(world.repair().await.applied, 1);
    assert_eq!(sync_of(&world.get(&tenant, id).await), ("synced", None));
    let input = server.entries()[&format!("{id}-1")]["Target"]["Input"].clone();
    assert!(
        input.as_str().unwrap().contains("\\\"generation\\\":3"),
        "{input}"
    );
    assert!(!{
        let tx = world.stage.tx(tenant.id).await.unwrap();
        let of_nobody = sync::mark_stale(&tx, PromptId::new(), 1).await.unwrap();
        tx.commit().await.unwrap();
        of_nobody
    });
}

#[tokio::test]
async fn a_tenant_with_many_changes_does_not_keep_others_waiting() {
    let (server, world, first) = scene().await;
    let second = world.tenant("b").await;
    server.vanish_after(0);
    for _ in 0..6 {
        world.create(&first, daily()).await;
    }
    let (lone, _) = world.create(&second, daily()).await;
    world.let_time_pass().await;
    let tenants = system::unsynced_tenants(world.db(), TenantId::BEFORE_ALL, 10)
        .await
        .unwrap();
    assert_eq!(tenants, [first.id, second.id]);
    let page = system::unsynced_tenants(world.db(), first.id, 10).await;
    assert_eq!(page.unwrap(), [second.id]);
    let page = system::unsynced_tenants(world.db(), TenantId::BEFORE_ALL, 1).await;
    assert_eq!(page.unwrap(), [first.id]);

    let next = system::unsynced_prompts(world.db(), &tenants, 3)
        .await
        .unwrap();
    assert_eq!(next.len(), 3);
    assert!(next.contains(&(second.id, lone)), "{next:?}");
}
