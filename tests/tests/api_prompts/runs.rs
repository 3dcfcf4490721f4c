//! Reading the history, and changing runs and deliveries.

use serde_json::{Value, json};
use shared::message::WakeUp;
use uuid::Uuid;

use super::world::{Tenant, World, id, text};

/// A run of a prompt, made so many minutes after the year's begin.
pub(crate) async fn insert_run(
    world: &World,
    tenant: &Tenant,
    prompt_id: Uuid,
    status: &str,
    minute: i32,
) -> Uuid {
    let run_id = Uuid::now_v7();
    world
        .sql(
            "INSERT INTO scheduled_prompt_runs
                    (tenant_id, id, prompt_id, scheduled_for, trigger, status, attempts_max,
                     prompt_version, created_at, completed_at)
             VALUES ($1, $2, $3, '2026-01-01T00:00:00Z'::timestamptz + $5::integer * interval '1 minute',
                     'schedule', $4, 4, 1, '2026-01-01T00:00:00Z'::timestamptz + $5::integer * interval '1 minute',
                     CASE WHEN $4 NOT IN ('queued', 'running', 'generated') THEN now() END)",
            &[&tenant.id, &run_id, &prompt_id, &status, &minute],
        )
        .await;
    run_id
}

/// The output of a run, as an executor would have recorded it.
pub(crate) async fn insert_output(world: &World, run_id: Uuid) {
    world
        .sql(
            "UPDATE scheduled_prompt_runs
                SET output = 'Good morning.', rendered_input = 'Say it.', output_bytes = 13,
                    output_sha256 = sha256('Good morning.'), provider = 'echo', model = 'echo-1',
                    input_tokens = 10, output_tokens = 3, tokens_used = 13, cost_usd = 0.001275,
                    latency_ms = 42, attempt = 2
              WHERE id = $1",
            &[&run_id],
        )
        .await;
    for fence in [1_i64, 2] {
        let status = if fence == 1 { "error" } else { "ok" };
        world
            .sql(
                "INSERT INTO run_attempts (tenant_id, id, run_id, attempt, fence, status, provider, model)
                 SELECT tenant_id, $2, id, $3, $4, $5, 'echo', 'echo-1'
                   FROM scheduled_prompt_runs WHERE id = $1",
                &[&run_id, &Uuid::now_v7(), &i32::try_from(fence).unwrap(), &fence, &status],
            )
            .await;
    }
}

pub(crate) async fn insert_delivery(
    world: &World,
    run_id: Uuid,
    position: i32,
    status: &str,
) -> Uuid {
    let delivery_id = Uuid::now_v7();
    world
        .sql(
            "INSERT INTO deliveries
                    (tenant_id, id, run_id, purpose, position, kind, target, destination, body, status,
                     attempt, attempts_max)
             SELECT tenant_id, $2, id, 'output', $3, 'webhook', 'https://example.com/hook',
                    '{\"kind\": \"webhook\", \"url\": \"https://example.com/hook\"}', 'secret bytes', $4, 8, 8
               FROM scheduled_prompt_runs WHERE id = $1",
            &[&run_id, &delivery_id, &position, &status],
        )
        .await;
    delivery_id
}

pub(crate) async fn insert_log(world: &World, run_id: Uuid, message: &str) -> Uuid {
    let log_id = Uuid::now_v7();
    world
        .sql(
            "INSERT INTO run_logs (tenant_id, id, run_id, at, level, message, context)
             SELECT tenant_id, $2, id, '2026-01-01T00:00:00Z', 'info', $3, '{\"n\": 1}'
               FROM scheduled_prompt_runs WHERE id = $1",
            &[&run_id, &log_id, &message],
        )
        .await;
    log_id
}

#[tokio::test]
async fn runs_are_filtered_sorted_and_paged() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let first = id(&world.prompt(&tenant.key, json!({})).await);
    let second = id(&world.prompt(&tenant.key, json!({})).await);
    let statuses = [
        "succeeded",
        "failed",
        "skipped",
        "queued",
        "succeeded",
        "timed_out",
    ];
    let mut ids = Vec::new();
    for (minute, status) in (0..).zip(statuses) {
        let prompt_id = if minute % 2 == 0 { first } else { second };
        ids.push(
            insert_run(&world, &tenant, prompt_id, status, minute)
                .await
                .to_string(),
        );
    }
    world
        .sql(
            "UPDATE scheduled_prompt_runs SET trigger = 'manual' WHERE status = 'timed_out'",
            &[],
        )
        .await;
    let cases: &[(String, &[usize])] = &[
        ("/v1/runs".into(), &[5, 4, 3, 2, 1, 0]),
        ("/v1/runs?order=asc".into(), &[0, 1, 2, 3, 4, 5]),
        (format!("/v1/runs?prompt_id={first}"), &[4, 2, 0]),
        (
            format!("/v1/runs?prompt_id={first}&order=asc&status=succeeded"),
            &[0, 4],
        ),
        (format!("/v1/runs?prompt_id={}", Uuid::now_v7()), &[]),
        (format!("/v1/prompts/{second}/runs"), &[5, 3, 1]),
        (
            format!("/v1/prompts/{second}/runs?status=failed&status=queued&order=asc"),
            &[1, 3],
        ),
        ("/v1/runs?status=failed&status=timed_out".into(), &[5, 1]),
        ("/v1/runs?trigger=manual&trigger=test".into(), &[5]),
        ("/v1/runs?since=2026-01-01T00:04:00Z".into(), &[5, 4]),
        ("/v1/runs?until=2026-01-01T00:01:00Z".into(), &[0]),
        (
            "/v1/runs?since=2026-01-01T00:01:00Z&until=2026-01-01T00:03:00Z&order=asc".into(),
            &[1, 2],
        ),
    ];
    for (path, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|index| ids[*index].clone()).collect();
        assert_eq!(
            world.get(&tenant.key, path).await.items("id"),
            expected,
            "{path}"
        );
        let mut found = Vec::new();
        let mut cursor = String::new();
        for _ in 0..10 {
            let mark = if path.contains('?') { '&' } else { '?' };
            let page = world
                .get(&tenant.key, &format!("{path}{mark}limit=1{cursor}"))
                .await;
            found.extend(page.items("id"));
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(found, expected, "{path}, one by one");
    }
    let path = format!("/v1/prompts/{second}/runs?prompt_id={first}");
    let refused = world.get(&tenant.key, &path).await;
    assert_eq!(
        refused.faults(),
        [("prompt_id".to_owned(), "unknown_parameter".to_owned())]
    );
    world
        .get(&tenant.key, &format!("/v1/prompts/{}/runs", Uuid::now_v7()))
        .await
        .refused(404, "not_found");
}

#[tokio::test]
async fn a_list_says_how_long_an_output_is_and_a_run_gives_it() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt_id = id(&world.prompt(&tenant.key, json!({})).await);
    let run_id = insert_run(&world, &tenant, prompt_id, "succeeded", 0).await;
    insert_output(&world, run_id).await;
    let page = world.get(&tenant.key, "/v1/runs").await;
    let item = page.body["items"][0].as_object().unwrap();
    assert!(!item.contains_key("output") && !item.contains_key("rendered_input"));
    assert_eq!(item["output_bytes"], 13);

    let run = world.get(&tenant.key, &format!("/v1/runs/{run_id}")).await;
    assert_eq!(run.status, 200, "{}", run.text);
    assert_eq!(run.body["output"], "Good morning.");
    assert_eq!(run.body["rendered_input"], "Say it.");
    assert_eq!(run.body["cost_usd"], 0.001_275);
    assert_eq!(run.body["tokens_used"], 13);
    assert_eq!(
        run.body["output_sha256"],
        "e3522eadca07c9501d5e4422f42559a7db6e4cee9d116248117bd4af2f884659"
    );
    let attempts = run.body["attempts"].as_array().unwrap();
    let statuses: Vec<_> = attempts
        .iter()
        .map(|attempt| text(&attempt["status"]))
        .collect();
    assert_eq!(statuses, ["error", "ok"]);
    for (name, value) in item {
        assert_eq!(&run.body[name], value, "{name}");
    }
    for path in ["/v1/runs/none", &format!("/v1/runs/{}", Uuid::now_v7())] {
        world.get(&tenant.key, path).await.refused(404, "not_found");
    }
}

#[tokio::test]
async fn logs_come_in_order_and_in_pages() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt_id = id(&world.prompt(&tenant.key, json!({})).await);
    let run_id = insert_run(&world, &tenant, prompt_id, "succeeded", 0).await;
    let other = insert_run(&world, &tenant, prompt_id, "succeeded", 1).await;
    for message in ["one", "two", "three"] {
        insert_log(&world, run_id, message).await;
        insert_log(&world, other, "another run's").await;
    }
    let path = format!("/v1/runs/{run_id}/logs");
    let first = world.get(&tenant.key, &format!("{path}?limit=2")).await;
    assert_eq!(first.items("message"), ["one", "two"]);
    assert_eq!(first.body["items"][0]["context"], json!({ "n": 1 }));
    let cursor = text(&first.body["next_cursor"]);
    let second = world
        .get(&tenant.key, &format!("{path}?limit=2&cursor={cursor}"))
        .await;
    assert_eq!(second.items("message"), ["three"]);
    assert_eq!(second.body["next_cursor"], Value::Null);
    world
        .get(&tenant.key, &format!("/v1/runs/{}/logs", Uuid::now_v7()))
        .await
        .refused(404, "not_found");
}

#[tokio::test]
async fn deliveries_are_shown_without_their_bytes() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt_id = id(&world.prompt(&tenant.key, json!({})).await);
    let run_id = insert_run(&world, &tenant, prompt_id, "generated", 0).await;
    let path = format!("/v1/runs/{run_id}/deliveries");
    assert!(world.get(&tenant.key, &path).await.items("id").is_empty());
    let second = insert_delivery(&world, run_id, 1, "exhausted").await;
    let first = insert_delivery(&world, run_id, 0, "delivered").await;
    world
        .sql("UPDATE deliveries SET created_at = now()", &[])
        .await;
    let page = world.get(&tenant.key, &path).await;
    assert_eq!(page.items("id"), [first.to_string(), second.to_string()]);
    assert_eq!(page.items("target")[0], "https://example.com/hook");
    assert!(!page.text.contains("secret bytes") && !page.text.contains("body"));
    world
        .get(
            &tenant.key,
            &format!("/v1/runs/{}/deliveries", Uuid::now_v7()),
        )
        .await
        .refused(404, "not_found");
}

#[tokio::test]
async fn only_what_is_not_over_can_be_cancelled() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt_id = id(&world.prompt(&tenant.key, json!({})).await);
    for (minute, status, expected) in [
        (0, "queued", 200),
        (1, "running", 200),
        (2, "generated", 200),
        (3, "cancelled", 200),
        (4, "succeeded", 409),
        (5, "failed", 409),
        (6, "skipped", 409),
        (7, "missed", 409),
        (8, "timed_out", 409),
    ] {
        let run_id = insert_run(&world, &tenant, prompt_id, status, minute).await;
        let reply = world
            .send(
                &tenant.key,
                "POST",
                &format!("/v1/runs/{run_id}/cancel"),
                None,
            )
            .await;
        if expected == 409 {
            reply.refused(409, "run_ended");
        } else {
            assert_eq!(reply.status, 200, "{status}: {}", reply.text);
            assert_eq!(reply.body["status"], "cancelled");
        }
        let run = world.get(&tenant.key, &format!("/v1/runs/{run_id}")).await;
        let after = if expected == 200 { "cancelled" } else { status };
        assert_eq!(run.body["status"], after);
    }
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=run.cancelled")
        .await;
    assert_eq!(events.items("id").len(), 3);
}

#[tokio::test]
async fn only_what_failed_can_be_retried() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt_id = id(&world.prompt(&tenant.key, json!({})).await);
    for (minute, status, retried) in [
        (0, "failed", true),
        (1, "timed_out", true),
        (2, "queued", false),
        (3, "running", false),
        (4, "generated", false),
        (5, "succeeded", false),
        (6, "cancelled", false),
        (7, "skipped", false),
        (8, "missed", false),
    ] {
        let run_id = insert_run(&world, &tenant, prompt_id, status, minute).await;
        let reply = world
            .send(
                &tenant.key,
                "POST",
                &format!("/v1/runs/{run_id}/retry"),
                None,
            )
            .await;
        let woken = world.woken();
        if retried {
            assert_eq!(reply.status, 202, "{status}: {}", reply.text);
            assert_eq!(reply.body["status"], "queued");
            assert!(matches!(woken[..], [WakeUp::Run { run_id: id, .. }] if id.uuid() == run_id));
        } else {
            reply.refused(409, "run_not_failed");
            assert!(woken.is_empty());
        }
    }

    // An output that is kept is not made again: its deliveries are what is retried.
    let run_id = insert_run(&world, &tenant, prompt_id, "failed", 9).await;
    insert_output(&world, run_id).await;
    let failed = insert_delivery(&world, run_id, 0, "exhausted").await;
    insert_delivery(&world, run_id, 1, "delivered").await;
    let reply = world
        .send(
            &tenant.key,
            "POST",
            &format!("/v1/runs/{run_id}/retry"),
            None,
        )
        .await;
    assert_eq!(reply.body["status"], "generated", "{}", reply.text);
    let woken = world.woken();
    assert!(
        matches!(woken[..], [WakeUp::Delivery { delivery_id, .. }] if delivery_id.uuid() == failed),
        "{woken:?}"
    );
}

#[tokio::test]
async fn only_a_settled_delivery_is_sent_again() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt_id = id(&world.prompt(&tenant.key, json!({})).await);
    let run_id = insert_run(&world, &tenant, prompt_id, "succeeded", 0).await;
    for (position, status, sent) in [
        (0, "delivered", true),
        (1, "exhausted", true),
        (2, "held", true),
        (3, "pending", false),
        (4, "sending", false),
        (5, "retrying", false),
    ] {
        let delivery_id = insert_delivery(&world, run_id, position, status).await;
        let path = format!("/v1/deliveries/{delivery_id}/redeliver");
        let reply = world.send(&tenant.key, "POST", &path, None).await;
        let woken = world.woken();
        if sent {
            assert_eq!(reply.status, 202, "{status}: {}", reply.text);
            assert_eq!(reply.body["status"], "pending");
            assert_eq!(reply.body["id"], delivery_id.to_string());
            assert!(!reply.text.contains("secret bytes"));
            assert!(
                matches!(woken[..], [WakeUp::Delivery { delivery_id: id, .. }] if id.uuid() == delivery_id)
            );
        } else {
            reply.refused(409, "delivery_under_way");
            assert!(woken.is_empty());
        }
    }
    let path = format!("/v1/deliveries/{}/redeliver", Uuid::now_v7());
    world
        .send(&tenant.key, "POST", &path, None)
        .await
        .refused(404, "not_found");
}
