//! The versions of a prompt, and what an edit does to its time.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::world::{World, id, instant, prompt_body, text};

#[tokio::test]
async fn every_edit_is_a_version_that_can_be_read() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(&tenant.key, json!({ "description": "first" }))
        .await;
    let path = format!("/v1/prompts/{}", id(&made));
    let patch = async |body: Value| world.send(&tenant.key, "PATCH", &path, Some(body)).await;
    patch(json!({ "prompt_text": "Another text.", "description": null })).await;
    // A change of status is none, and neither is an edit that changes nothing.
    world
        .post(&tenant.key, &format!("{path}/pause"), json!({}))
        .await;
    patch(json!({ "prompt_text": "Another text." })).await;
    patch(json!({ "prompt_name": "Evening brief", "model": "echo/echo-2" })).await;

    let list = format!("{path}/versions");
    let page = world.get(&tenant.key, &format!("{list}?limit=2")).await;
    assert_eq!(page.status, 200, "{}", page.text);
    let told: Vec<_> = page.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| {
            json!([
                version["version"],
                version["is_current"],
                version["changed_fields"],
                version["prompt_name"],
                version["model"]
            ])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!([
                4,
                true,
                ["model", "prompt_name"],
                "Evening brief",
                "echo/echo-2"
            ]),
            json!([
                2,
                false,
                ["description", "prompt_text"],
                "Morning brief",
                "echo/echo-1"
            ]),
        ]
    );
    let rest = format!("{list}?cursor={}", text(&page.body["next_cursor"]));
    let rest = world.get(&tenant.key, &rest).await;
    assert_eq!(rest.body["items"][0]["version"], 1);
    assert_eq!(rest.body["items"][0]["changed_fields"], json!([]));
    assert_eq!(rest.body["next_cursor"], Value::Null);

    let first = world.get(&tenant.key, &format!("{list}/1")).await;
    assert_eq!(
        (&first.body["version"], &first.body["is_current"]),
        (&json!(1), &json!(false))
    );
    for (name, value) in first.body["spec"].as_object().unwrap() {
        assert_eq!(&made[name], value, "{name}");
    }
    assert_eq!(first.body["spec"]["description"], "first");
    for missing in ["3", "0", "x", "99999999999999999999"] {
        let reply = world.get(&tenant.key, &format!("{list}/{missing}")).await;
        reply.refused(404, "not_found");
    }
    world.send(&tenant.key, "DELETE", &path, None).await;
    for gone in [list.clone(), format!("{list}/1")] {
        world
            .get(&tenant.key, &gone)
            .await
            .refused(404, "not_found");
    }
    let restore = format!("{list}/1/restore");
    let gone = world.send(&tenant.key, "POST", &restore, None).await;
    gone.refused(404, "not_found");
}

#[tokio::test]
async fn a_version_is_restored_as_a_new_one() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(
            &tenant.key,
            json!({ "description": "first", "external_id": "brief" }),
        )
        .await;
    let path = format!("/v1/prompts/{}", id(&made));
    let body = prompt_body(json!({
        "prompt_text": "Another text.", "external_id": "other",
        "schedule": { "type": "daily", "at": "10:00", "timezone": "Europe/London" },
    }));
    world.send(&tenant.key, "PUT", &path, Some(body)).await;
    let restore = async |version: i64, etag: &str| {
        let path = format!("{path}/versions/{version}/restore");
        let headers = [("if-match", etag)];
        world
            .send_with(&tenant.key, "POST", &path, None, &headers)
            .await
    };
    restore(1, "\"1\"").await.refused(412, "version_changed");
    let restored = restore(1, "\"2\"").await;
    assert_eq!(restored.status, 200, "{}", restored.text);
    assert_eq!(restored.header("etag"), "\"3\"");
    for field in [
        "description",
        "prompt_text",
        "schedule",
        "next_run_at",
        "external_id",
    ] {
        assert_eq!(restored.body[field], made[field], "{field}");
    }
    assert_eq!(restored.body["version"], 3);
    // The one that it is already changes nothing.
    assert_eq!(restore(3, "*").await.header("etag"), "\"3\"");
    assert_eq!(restore(1, "*").await.header("etag"), "\"3\"");
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=prompt.restored")
        .await;
    assert_eq!(events.items("target_id"), [id(&made).to_string()]);

    let key = [("idempotency-key", "once")];
    let again = format!("{path}/versions/2/restore");
    let first = world
        .send_with(&tenant.key, "POST", &again, None, &key)
        .await;
    let second = world
        .send_with(&tenant.key, "POST", &again, None, &key)
        .await;
    assert_eq!((first.header("etag"), &first.body), ("\"4\"", &second.body));
    let viewer = world.key_of_role(&tenant.key, "viewer").await;
    world
        .send(&viewer, "POST", &again, None)
        .await
        .refused(403, "role_too_low");
}

#[tokio::test]
async fn a_restored_version_is_judged_by_the_rules_of_today() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let frequent = json!({ "schedule": { "type": "interval", "every_minutes": 5 } });
    let made = world.prompt(&tenant.key, frequent).await;
    let path = format!("/v1/prompts/{}", id(&made));
    let daily = prompt_body(json!({ "external_id": "mine" }));
    world.send(&tenant.key, "PUT", &path, Some(daily)).await;
    world
        .sql("UPDATE tenants SET interval_minutes_min = 60", &[])
        .await;
    let restore = format!("{path}/versions/1/restore");
    let refused = world.send(&tenant.key, "POST", &restore, None).await;
    assert_eq!(
        refused.faults(),
        [("schedule".to_owned(), "below_minimum_interval".to_owned())]
    );

    // An id that another prompt has taken since.
    let body = prompt_body(json!({}));
    world.send(&tenant.key, "PUT", &path, Some(body)).await;
    world
        .prompt(&tenant.key, json!({ "external_id": "mine" }))
        .await;
    let restore = format!("{path}/versions/2/restore");
    world
        .send(&tenant.key, "POST", &restore, None)
        .await
        .refused(409, "external_id_taken");
    world
        .post(&tenant.key, &format!("{path}/cancel"), json!({}))
        .await;
    world
        .send(&tenant.key, "POST", &restore, None)
        .await
        .refused(409, "prompt_ended");
}

/// Makes the prompt's slot due, a while ago, and gives it.
async fn make_due(world: &World) -> DateTime<Utc> {
    let due = Utc::now() - TimeDelta::minutes(1);
    let due = DateTime::from_timestamp(due.timestamp(), 0).unwrap();
    let sql = "UPDATE scheduled_prompts SET next_run_at = $1";
    world.sql(sql, &[&due]).await;
    due
}

#[tokio::test]
async fn text_and_model_do_not_touch_time_even_of_a_slot_that_is_due() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", id(&made));
    let due = make_due(&world).await;
    let put =
        prompt_body(json!({ "model": "echo/echo-2", "jitter_minutes": 3, "overlap": "allow_all" }));
    for (method, path, body) in [
        (
            "PATCH",
            path.clone(),
            Some(json!({ "prompt_text": "Another text." })),
        ),
        ("PUT", path.clone(), Some(put)),
        ("POST", format!("{path}/versions/1/restore"), None),
    ] {
        let reply = world.send(&tenant.key, method, &path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(instant(&reply.body["next_run_at"]), due, "{method} {path}");
    }
    let rows = "SELECT count(*) AS n FROM scheduled_prompt_runs";
    assert_eq!(
        world.one(rows, &[]).await["n"],
        0,
        "the slot is still to be looked at"
    );
}

#[tokio::test]
async fn schedule_zone_and_exclusions_count_from_now_and_the_due_slot_is_told_once() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", id(&made));
    let today = Utc::now().date_naive();
    for (index, patch) in (1..).zip([
        json!({ "schedule": { "at": "10:00" } }),
        json!({ "schedule": { "timezone": "Asia/Tokyo" } }),
        json!({ "exclusions": { "dates": [today, today + chrono::Days::new(1)] } }),
    ]) {
        let due = make_due(&world).await;
        let reply = world
            .send(&tenant.key, "PATCH", &path, Some(patch.clone()))
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert!(instant(&reply.body["next_run_at"]) > Utc::now(), "{patch}");
        let told = "SELECT count(*) AS n, max(scheduled_for) = $1 AS is_it,
                           bool_and(status = 'skipped' AND reason = 'rescheduled') AS all_skipped
                      FROM scheduled_prompt_runs";
        let told = world.one(told, &[&due]).await;
        assert_eq!(
            told,
            json!({ "n": index, "is_it": true, "all_skipped": true }),
            "{patch}"
        );
    }
}

#[tokio::test]
async fn an_interval_that_is_sent_as_it_was_keeps_its_phase() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let every = |minutes: i32| json!({ "schedule": { "type": "interval", "every_minutes": minutes, "timezone": "UTC" } });
    let made = world.prompt(&tenant.key, every(45)).await;
    let path = format!("/v1/prompts/{}", id(&made));
    // As if it had been made a while ago.
    let anchor = instant(&made["schedule"]["anchor"]) - TimeDelta::minutes(20);
    let patch = json!({ "schedule": { "anchor": anchor } });
    let moved = world.send(&tenant.key, "PATCH", &path, Some(patch)).await;
    let body = prompt_body(every(45));
    let same = world.send(&tenant.key, "PUT", &path, Some(body)).await;
    assert_eq!(same.header("etag"), "\"2\"", "{}", same.text);
    let mut renamed = prompt_body(every(45));
    renamed["prompt_name"] = json!("Another");
    let renamed = world.send(&tenant.key, "PUT", &path, Some(renamed)).await;
    assert_eq!(renamed.body["schedule"], moved.body["schedule"]);
    assert_eq!(renamed.body["next_run_at"], moved.body["next_run_at"]);
    let other = world
        .send(&tenant.key, "PUT", &path, Some(prompt_body(every(50))))
        .await;
    assert_ne!(
        other.body["schedule"]["anchor"],
        moved.body["schedule"]["anchor"]
    );
}
