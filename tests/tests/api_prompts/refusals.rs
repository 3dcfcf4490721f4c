//! What is refused, and how it is told.

use axum::{body::Body, http::Request};
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

use super::world::{World, prompt_body, text};

#[tokio::test]
async fn each_bad_field_has_its_own_code() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    world
        .sql("UPDATE tenants SET interval_minutes_min = 10", &[])
        .await;
    let past = (Utc::now() - TimeDelta::days(1))
        .format("%Y-%m-%dT%H:%M:00Z")
        .to_string();
    let long = "x".repeat(201);
    for (change, field, code) in [
        (json!({ "model": "nobody/x" }), "model", "unknown_provider"),
        (
            json!({ "model": "openai/none-such" }),
            "model",
            "unknown_model",
        ),
        (
            json!({ "prompt_text": "{{ nope }}" }),
            "prompt_text",
            "unknown_variable",
        ),
        (
            json!({ "prompt_text": "{{ context.x }}" }),
            "prompt_text",
            "unknown_variable",
        ),
        (
            json!({ "prompt_text": "{% if %}" }),
            "prompt_text",
            "template_syntax",
        ),
        (
            json!({ "schedule": { "type": "once", "at": past, "timezone": "UTC" } }),
            "schedule.at",
            "in_the_past",
        ),
        (
            json!({ "schedule": { "type": "interval", "every_minutes": 5 } }),
            "schedule",
            "below_minimum_interval",
        ),
        (
            json!({ "schedule": { "type": "interval", "every_seconds": 30 } }),
            "schedule.every_seconds",
            "sub_minute",
        ),
        (
            json!({ "schedule": { "type": "weekly", "days": ["sat"], "at": "09:00" },
                    "exclusions": { "weekdays": ["sat", "sun"] } }),
            "exclusions.weekdays",
            "every_slot_excluded",
        ),
        (
            json!({ "exclusions": { "calendars": ["none-such"] } }),
            "exclusions.calendars[0]",
            "unknown_calendar",
        ),
        (
            json!({ "exclusions": { "ranges": [{ "from": "2026-01-02", "to": "2026-01-01" }] } }),
            "exclusions.ranges[0].to",
            "end_before_start",
        ),
        (
            json!({ "schedule": { "type": "interval", "every_minutes": 15 }, "jitter_minutes": 15 }),
            "jitter_minutes",
            "jitter_too_long",
        ),
        (
            json!({ "schedule": { "type": "daily", "at": "09:00", "timezone": "Mars/Olympus" } }),
            "schedule.timezone",
            "unknown_timezone",
        ),
        (
            json!({ "destinations": [{ "kind": "storage" }, { "kind": "webhook", "url": "https://10.0.0.1/x" }] }),
            "destinations[1].url",
            "url_not_allowed",
        ),
        (
            json!({ "destinations": [{ "kind": "email", "to": ["nobody"] }] }),
            "destinations[0].to[0]",
            "invalid_email",
        ),
        (json!({ "prompt_name": long }), "prompt_name", "too_long"),
        (json!({ "prompt_name": null }), "prompt_name", "missing"),
        (json!({ "max_retries": 11 }), "max_retries", "out_of_range"),
        (json!({ "max_retries": "3" }), "max_retries", "wrong_type"),
        (
            json!({ "overlap": "sometimes" }),
            "overlap",
            "unknown_value",
        ),
        (
            json!({ "metadata": { "a": "\u{0}" } }),
            "metadata",
            "control_character",
        ),
        (json!({ "promt_name": "x" }), "promt_name", "unknown_field"),
    ] {
        let reply = world
            .post(&tenant.key, "/v1/prompts", prompt_body(change.clone()))
            .await;
        reply.refused(422, "validation_failed");
        assert_eq!(
            reply.faults(),
            [(field.to_owned(), code.to_owned())],
            "{change}"
        );
        let fault = &reply.body["errors"][0];
        assert!(
            !text(&fault["detail"]).is_empty() && !text(&fault["hint"]).is_empty(),
            "{fault}"
        );
    }
    assert!(
        world
            .get(&tenant.key, "/v1/prompts")
            .await
            .items("id")
            .is_empty()
    );
}

#[tokio::test]
async fn all_faults_are_told_at_once_by_post_put_and_patch() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let change = json!({
        "prompt_name": 7, "model": "x", "max_runs": 0, "tags": ["a", 1, "a"],
        "schedule": { "type": "cron", "expression": "* * *", "timezone": "Nowhere", "extra": 1 },
        "destinations": [{ "kind": "webhook", "url": "http://example.com" }, { "kind": "pigeon" }],
        "context": [], "surprise": true,
    });
    let whole = prompt_body(change.clone());
    let mut patch = change;
    // The schedule that there is has a time, which a cron has not.
    patch["schedule"]["at"] = Value::Null;
    let mut told = Vec::new();
    for (method, path, body) in [
        ("POST", "/v1/prompts", whole.clone()),
        ("PUT", path.as_str(), whole),
        ("PATCH", path.as_str(), patch),
    ] {
        let reply = world.send(&tenant.key, method, path, Some(body)).await;
        reply.refused(422, "validation_failed");
        let mut fields: Vec<_> = reply.faults().into_iter().map(|(field, _)| field).collect();
        fields.sort();
        for field in [
            "prompt_name",
            "model",
            "max_runs",
            "tags[1]",
            "schedule.expression",
            "schedule.timezone",
            "schedule.extra",
            "destinations[0].url",
            "destinations[1].kind",
            "context",
            "surprise",
        ] {
            assert!(
                fields.iter().any(|found| found == field),
                "{method} {field}: {}",
                reply.text
            );
        }
        told.push(fields);
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0], told[2]);
    assert_eq!(world.get(&tenant.key, &path).await.body, made);
}

#[tokio::test]
async fn what_is_no_json_object_is_refused_by_its_kind() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let one = format!("/v1/prompts/{}", text(&made["id"]));
    let pause = format!("{one}/pause");
    for (method, path) in [
        ("POST", "/v1/prompts"),
        ("POST", "/v1/prompts/preview"),
        ("PUT", &one),
        ("PATCH", &one),
        ("POST", &pause),
    ] {
        for (kind, body, status, code) in [
            (
                "application/json",
                "{\"a\":".to_owned(),
                400,
                "invalid_json",
            ),
            ("text/plain", "{}".to_owned(), 415, "unsupported_media_type"),
            (
                "application/json",
                "[1]".to_owned(),
                422,
                "validation_failed",
            ),
            (
                "application/json",
                format!("\"{}\"", "x".repeat(256_001)),
                413,
                "body_too_large",
            ),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("authorization", format!("Bearer {}", tenant.key))
                .header("content-type", kind)
                .header("content-length", body.len())
                .body(Body::from(body))
                .unwrap();
            let reply = world.send_raw(request).await;
            assert_eq!(reply.body["code"], code, "{method} {path}: {}", reply.text);
            reply.refused(status, code);
        }
    }
}

#[tokio::test]
async fn a_viewer_reads_and_an_editor_writes() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let viewer = world.key_of_role(&tenant.key, "viewer").await;
    let editor = world.key_of_role(&tenant.key, "editor").await;
    let made = world.prompt(&editor, json!({})).await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let run = world
        .send(&editor, "POST", &format!("{path}/run"), None)
        .await;
    let run = format!("/v1/runs/{}", text(&run.body["id"]));
    let delivery = format!("/v1/deliveries/{}/redeliver", uuid::Uuid::now_v7());
    let writes: [(&str, &str, Option<Value>); 11] = [
        ("POST", "/v1/prompts", Some(prompt_body(json!({})))),
        ("PUT", &path, Some(prompt_body(json!({})))),
        ("PATCH", &path, Some(json!({ "prompt_name": "x" }))),
        ("DELETE", &path, None),
        ("POST", &format!("{path}/pause"), None),
        ("POST", &format!("{path}/resume"), None),
        ("POST", &format!("{path}/cancel"), None),
        ("POST", &format!("{path}/run"), None),
        ("POST", &format!("{run}/cancel"), None),
        ("POST", &format!("{run}/retry"), None),
        ("POST", &delivery, None),
    ];
    for (method, path, body) in writes {
        let reply = world.send(&viewer, method, path, body).await;
        reply.refused(403, "role_too_low");
    }
    for path in [
        "/v1/prompts",
        &path,
        &format!("{path}/runs"),
        "/v1/runs",
        &run,
        &format!("{run}/logs"),
        &format!("{run}/deliveries"),
    ] {
        assert_eq!(world.get(&viewer, path).await.status, 200, "{path}");
    }
    assert_eq!(world.get(&viewer, &path).await.body, made);
    world
        .get("ck_local_x", &path)
        .await
        .refused(401, "unknown_key");
}
