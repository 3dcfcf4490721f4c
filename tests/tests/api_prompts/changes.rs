//! Making, changing and ending prompts.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use shared::message::WakeUp;
use uuid::Uuid;

use super::world::{World, id, instant, prompt_body, text};

#[tokio::test]
async fn a_new_prompt_is_active_and_reads_back_as_it_was_made() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let body = prompt_body(json!({ "tags": ["daily", "team"], "external_id": "brief-1" }));
    let made = world.post(&tenant.key, "/v1/prompts", body.clone()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let prompt_id = id(&made.body);
    assert_eq!(made.header("location"), format!("/v1/prompts/{prompt_id}"));
    assert_eq!(made.header("etag"), "\"1\"");
    let mut expected = body.clone();
    expected["schedule"]["dst_gap"] = json!("shift");
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&made.body[name], value, "{name}");
    }
    assert_eq!(made.body["status"], "active");
    assert_eq!(made.body["total_runs"], 0);
    assert_eq!(made.body["schedule_type"], "daily");
    assert_eq!(made.body["timezone"], "Europe/London");
    assert_eq!(made.body["max_retries"], 3);

    let preview = world
        .post(
            &tenant.key,
            "/v1/prompts/preview",
            json!({ "schedule": body["schedule"], "count": 1 }),
        )
        .await;
    assert_eq!(
        instant(&preview.body["slots"][0]["scheduled_for"]),
        instant(&made.body["next_run_at"])
    );

    let read = world.get(&tenant.key, made.header("location")).await;
    assert_eq!(read.status, 200);
    assert_eq!(read.header("etag"), "\"1\"");
    assert_eq!(read.body, made.body);
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=prompt.created")
        .await;
    assert_eq!(events.items("target_id"), [prompt_id.to_string()]);
}

#[tokio::test]
async fn the_tenant_gives_the_zone_and_the_owner_the_address() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    world
        .sql("UPDATE tenants SET default_timezone = 'Asia/Tokyo'", &[])
        .await;
    let made = world
        .prompt(
            &tenant.key,
            json!({ "schedule": { "type": "daily", "at": "09:00" }, "destinations": null }),
        )
        .await;
    assert_eq!(made["timezone"], "Asia/Tokyo");
    assert_eq!(instant(&made["next_run_at"]).time().to_string(), "00:00:00");
    assert_eq!(made["destinations"][0]["to"], json!(["ada@example.com"]));
    let preview = world
        .post(
            &tenant.key,
            "/v1/prompts/preview",
            json!({ "schedule": { "type": "daily", "at": "09:00" } }),
        )
        .await;
    assert_eq!(preview.body["slots"].as_array().unwrap().len(), 5);
    assert_eq!(
        preview.body["slots"][0]["scheduled_for"],
        made["next_run_at"]
    );
}

#[tokio::test]
async fn a_repeated_post_makes_one_prompt() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let key = [("idempotency-key", "once")];
    let body = prompt_body(json!({}));
    let send = || world.send_with(&tenant.key, "POST", "/v1/prompts", Some(body.clone()), &key);
    let first = send().await;
    let second = send().await;
    assert_eq!(
        (first.status, second.status),
        (201.try_into().unwrap(), 201.try_into().unwrap())
    );
    assert_eq!(first.body, second.body);
    assert_eq!(second.header("idempotent-replayed"), "true");
    assert_eq!(first.header("etag"), second.header("etag"));
    assert_eq!(
        world
            .get(&tenant.key, "/v1/prompts")
            .await
            .items("id")
            .len(),
        1
    );
}

#[tokio::test]
async fn put_replaces_and_keeps_the_version_that_runs_were_made_with() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(&tenant.key, json!({ "description": "old", "tags": ["a"] }))
        .await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));

    let body = prompt_body(json!({ "prompt_text": "Another text.", "max_runs": 7 }));
    let put = world
        .send(&tenant.key, "PUT", &path, Some(body.clone()))
        .await;
    assert_eq!(put.status, 200, "{}", put.text);
    assert_eq!(put.header("etag"), "\"2\"");
    assert_eq!(put.body["prompt_text"], "Another text.");
    assert_eq!(put.body["max_runs"], 7);
    assert_eq!(put.body.get("description"), None);
    assert_eq!(put.body["tags"], json!([]));
    assert_eq!(put.body["next_run_at"], made["next_run_at"]);
    assert_eq!(put.body, world.get(&tenant.key, &path).await.body);

    let again = world.send(&tenant.key, "PUT", &path, Some(body)).await;
    assert_eq!(
        (again.status.as_u16(), again.header("etag")),
        (200, "\"2\"")
    );
    let versions = world
        .one(
            "SELECT array_agg(version ORDER BY version) AS versions,
                    array_agg(spec ->> 'prompt_text' ORDER BY version) AS texts FROM prompt_versions",
            &[],
        )
        .await;
    assert_eq!(versions["versions"], json!([1, 2]));
    assert_eq!(versions["texts"][0], made["prompt_text"]);
    let row = world
        .one("SELECT prompt_text, max_runs, description, generation, spec_version FROM scheduled_prompts", &[])
        .await;
    assert_eq!(
        row,
        json!({ "prompt_text": "Another text.", "max_runs": 7, "description": null,
                "generation": 1, "spec_version": 2 })
    );
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=prompt.updated")
        .await;
    assert_eq!(
        events.body["items"][0]["detail"]["fields"],
        json!(["description", "max_runs", "prompt_text", "tags"])
    );
    assert_eq!(events.items("id").len(), 1);
}

#[tokio::test]
async fn a_stale_version_changes_nothing() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let rename = |name: &str| Some(json!({ "prompt_name": name }));
    let send = async |method, body, etag| {
        world
            .send_with(&tenant.key, method, &path, body, &[("if-match", etag)])
            .await
    };
    assert_eq!(send("PATCH", rename("second"), "\"1\"").await.status, 200);
    send("PATCH", rename("third"), "\"1\"")
        .await
        .refused(412, "version_changed");
    send("PUT", Some(prompt_body(json!({}))), "\"1\"")
        .await
        .refused(412, "version_changed");
    send("PUT", Some(prompt_body(json!({}))), "W/\"2\"")
        .await
        .refused(412, "version_changed");
    assert_eq!(
        world.get(&tenant.key, &path).await.body["prompt_name"],
        "second"
    );
    assert_eq!(
        send("PATCH", rename("third"), "\"7\", \"2\"").await.status,
        200
    );
    assert_eq!(
        send("PATCH", rename("fourth"), "*").await.header("etag"),
        "\"4\""
    );
}

#[tokio::test]
async fn of_changes_of_one_version_that_wait_for_each_other_one_wins() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let change = async |name: &str, etag: &str| {
        let body = Some(json!({ "prompt_name": name }));
        let headers = [("if-match", etag)];
        let reply = world
            .send_with(&tenant.key, "PATCH", &path, body, &headers)
            .await;
        reply.status.as_u16()
    };
    world
        .admin
        .batch_execute("BEGIN; SELECT id FROM scheduled_prompts FOR UPDATE")
        .await
        .unwrap();
    let release = async {
        let waiting = "SELECT count(*) AS n FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'";
        for _ in 0..1_000 {
            // A transaction looks at the activity once, unless told otherwise.
            world
                .admin
                .batch_execute("SELECT pg_stat_clear_snapshot()")
                .await
                .unwrap();
            if world.one(waiting, &[]).await["n"] == 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.admin.batch_execute("COMMIT").await.unwrap();
    };
    let (a, b, anyway, ()) = tokio::join!(
        change("a", "\"1\""),
        change("b", "\"1\""),
        change("c", "*"),
        release
    );
    // The one that takes any version may come before both.
    let mut statuses = [a, b];
    statuses.sort_unstable();
    assert!([[200, 412], [412, 412]].contains(&statuses), "{statuses:?}");
    assert_eq!(anyway, 200);
    let changes = statuses.iter().filter(|status| **status == 200).count() + 1;
    let read = world.get(&tenant.key, &path).await;
    assert_eq!(read.body["version"], 1 + changes);
}

#[tokio::test]
async fn patch_merges_and_null_takes_away() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(
            &tenant.key,
            json!({ "description": "x", "max_retries": 9, "context": { "city": "Bonn", "n": 1 },
                    "prompt_text": "{{ context.city }}", "max_runs": 3 }),
        )
        .await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let patch = json!({ "description": null, "max_retries": null, "max_runs": null,
                        "context": { "n": null, "m": 2 } });
    let reply = world.send(&tenant.key, "PATCH", &path, Some(patch)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.body.get("description"), None);
    assert_eq!(reply.body.get("max_runs"), None);
    assert_eq!(reply.body["max_retries"], 3);
    assert_eq!(reply.body["context"], json!({ "city": "Bonn", "m": 2 }));
    assert_eq!(reply.body["prompt_text"], made["prompt_text"]);
    assert_eq!(reply.body["next_run_at"], made["next_run_at"]);
    assert_eq!(reply.body["version"], 2);

    let refused = world
        .send(
            &tenant.key,
            "PATCH",
            &path,
            Some(json!({ "model": null, "modle": 1 })),
        )
        .await;
    refused.refused(422, "validation_failed");
    let mut faults = refused.faults();
    faults.sort();
    assert_eq!(
        faults,
        [
            ("model".to_owned(), "missing".to_owned()),
            ("modle".to_owned(), "unknown_field".to_owned())
        ]
    );
    // A name that the context no longer has.
    let refused = world
        .send(
            &tenant.key,
            "PATCH",
            &path,
            Some(json!({ "context": { "city": null } })),
        )
        .await;
    assert_eq!(
        refused.faults(),
        [("prompt_text".to_owned(), "unknown_variable".to_owned())]
    );
    let none = world
        .send(&tenant.key, "PATCH", &path, Some(json!({})))
        .await;
    assert_eq!((none.status.as_u16(), none.header("etag")), (200, "\"2\""));
}

#[tokio::test]
async fn another_schedule_counts_from_now() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let now = Utc::now();
    let schedule =
        json!({ "type": "interval", "every_minutes": 15, "timezone": "UTC", "at": null });
    let reply = world
        .send(
            &tenant.key,
            "PATCH",
            &path,
            Some(json!({ "schedule": schedule })),
        )
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let next = instant(&reply.body["next_run_at"]);
    assert!(next > now && next <= now + TimeDelta::minutes(16), "{next}");
    assert_eq!(reply.body["schedule_type"], "interval");
    let row = world
        .one("SELECT generation FROM scheduled_prompts", &[])
        .await;
    assert_eq!(row["generation"], 2);

    // A paused prompt stays without a slot.
    world
        .post(&tenant.key, &format!("{path}/pause"), json!({}))
        .await;
    let schedule = json!({ "type": "daily", "at": "10:00", "every_minutes": null, "anchor": null });
    let reply = world
        .send(
            &tenant.key,
            "PATCH",
            &path,
            Some(json!({ "schedule": schedule })),
        )
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.body["next_run_at"], Value::Null);
    let resumed = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(
        instant(&resumed.body["next_run_at"]).time().to_string(),
        "10:00:00"
    );
}

#[tokio::test]
async fn an_excluded_day_has_no_slot() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(
            &tenant.key,
            json!({ "schedule": { "type": "daily", "at": "09:00", "timezone": "UTC" } }),
        )
        .await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let first = instant(&made["next_run_at"]);
    let patch = |body: Value| world.send(&tenant.key, "PATCH", &path, Some(body));

    let without = json!({ "exclusions": { "dates": [first.date_naive()] } });
    let reply = patch(without).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(
        reply.body["exclusions"]["dates"],
        json!([first.date_naive()])
    );
    let next = instant(&reply.body["next_run_at"]);
    assert_eq!(next, first + TimeDelta::days(1));

    let only = json!(["mon", "tue", "wed", "thu", "fri", "sat"]);
    let reply = patch(json!({ "exclusions": { "dates": [], "weekdays": only } })).await;
    let next = instant(&reply.body["next_run_at"]);
    assert_eq!(next.format("%a %H:%M").to_string(), "Sun 09:00");

    // A resume finds the same; a change of the text does not touch time.
    world
        .post(&tenant.key, &format!("{path}/pause"), json!({}))
        .await;
    let resumed = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(instant(&resumed.body["next_run_at"]), next);
    let renamed = patch(json!({ "prompt_name": "Sundays" })).await;
    assert_eq!(instant(&renamed.body["next_run_at"]), next);
}

#[tokio::test]
async fn a_paused_prompt_waits_and_goes_on_with_the_next_slot() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(
            &tenant.key,
            json!({ "schedule": { "type": "cron", "expression": "* * * * *", "timezone": "UTC" } }),
        )
        .await;
    let prompt_id = id(&made);
    let path = format!("/v1/prompts/{prompt_id}");
    world
        .sql("UPDATE scheduled_prompts SET consecutive_failures = 4", &[])
        .await;
    let paused = world
        .post(
            &tenant.key,
            &format!("{path}/pause"),
            json!({ "note": "holidays" }),
        )
        .await;
    assert_eq!(paused.status, 200, "{}", paused.text);
    assert_eq!(paused.body["status"], "paused");
    assert_eq!(paused.body["status_reason"], "user");
    assert_eq!(paused.body["status_note"], "holidays");
    assert_eq!(paused.body["next_run_at"], Value::Null);
    let again = world
        .send(&tenant.key, "POST", &format!("{path}/pause"), None)
        .await;
    assert_eq!(again.body, paused.body);

    // Three hours later.
    let now = Utc::now();
    let resumed = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(resumed.status, 200, "{}", resumed.text);
    assert_eq!(resumed.body["status"], "active");
    assert_eq!(resumed.body["status_reason"], Value::Null);
    assert_eq!(resumed.body["status_note"], Value::Null);
    assert_eq!(resumed.body["consecutive_failures"], 0);
    let next = instant(&resumed.body["next_run_at"]);
    assert!(next > now && next <= now + TimeDelta::seconds(61), "{next}");
    assert_eq!(resumed.header("etag"), "\"3\"");
    let again = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(again.body, resumed.body);
    let runs = world.get(&tenant.key, "/v1/runs").await;
    assert_eq!(runs.items("id").len(), 0, "a resume makes no runs");
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=prompt.paused")
        .await;
    assert_eq!(
        events.items("id").len(),
        1,
        "what changes nothing leaves no trace"
    );
}

#[tokio::test]
async fn a_slot_that_a_change_takes_away_is_recorded() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    for (reason, method, action, body) in [
        ("paused", "POST", "/pause", None),
        ("prompt_cancelled", "POST", "/cancel", None),
        ("prompt_deleted", "DELETE", "", None),
        (
            "rescheduled",
            "PATCH",
            "",
            Some(json!({ "schedule": { "at": "11:00" } })),
        ),
    ] {
        let schedule = json!({ "type": "daily", "at": "09:00", "timezone": "UTC" });
        let made = world
            .prompt(&tenant.key, json!({ "schedule": schedule }))
            .await;
        let prompt_id = id(&made);
        let first = instant(&made["next_run_at"]) - TimeDelta::days(3);
        world
            .sql(
                "UPDATE scheduled_prompts SET next_run_at = $2 WHERE id = $1",
                &[&prompt_id, &first],
            )
            .await;
        let path = format!("/v1/prompts/{prompt_id}{action}");
        let reply = world.send(&tenant.key, method, &path, body).await;
        assert!(reply.status.is_success(), "{}", reply.text);
        let runs = world
            .get(&tenant.key, &format!("/v1/runs?prompt_id={prompt_id}"))
            .await;
        let run = &runs.body["items"][0];
        assert_eq!(runs.items("reason"), [reason]);
        assert_eq!(run["status"], "skipped");
        assert_eq!(run["slots_count"], 3, "{reason}");
        assert_eq!(instant(&run["scheduled_for"]), first);
        assert!(instant(&run["scheduled_until"]) > first + TimeDelta::hours(46));
    }
}

#[tokio::test]
async fn what_has_no_slot_left_cannot_be_resumed() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let soon = (Utc::now() + TimeDelta::minutes(90))
        .format("%Y-%m-%dT%H:%M:00Z")
        .to_string();
    let schedule = json!({ "type": "once", "at": soon, "timezone": "UTC" });
    let made = world
        .prompt(&tenant.key, json!({ "schedule": schedule }))
        .await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    world
        .send(&tenant.key, "POST", &format!("{path}/pause"), None)
        .await;
    let past = json!("2026-01-01T00:00:00+00:00");
    for table in [
        "scheduled_prompts SET schedule = jsonb_set(schedule, '{at}', $1)",
        "prompt_versions SET spec = jsonb_set(spec, '{schedule,at}', $1)",
    ] {
        world.sql(&format!("UPDATE {table}"), &[&past]).await;
    }
    let resume = format!("{path}/resume");
    world
        .send(&tenant.key, "POST", &resume, None)
        .await
        .refused(409, "no_slot_left");
    let patch = json!({ "schedule": { "at": soon } });
    assert_eq!(
        world
            .send(&tenant.key, "PATCH", &path, Some(patch))
            .await
            .status,
        200
    );
    assert_eq!(
        world.send(&tenant.key, "POST", &resume, None).await.status,
        200
    );

    world
        .send(&tenant.key, "POST", &format!("{path}/pause"), None)
        .await;
    world
        .send(&tenant.key, "PATCH", &path, Some(json!({ "max_runs": 5 })))
        .await;
    world
        .sql("UPDATE scheduled_prompts SET run_count = 5", &[])
        .await;
    world
        .send(&tenant.key, "POST", &resume, None)
        .await
        .refused(409, "max_runs_reached");
    let refused = world
        .send(&tenant.key, "PATCH", &path, Some(json!({ "max_runs": 4 })))
        .await;
    assert_eq!(
        refused.faults(),
        [("max_runs".to_owned(), "max_runs_reached".to_owned())]
    );
    world
        .send(&tenant.key, "PATCH", &path, Some(json!({ "max_runs": 6 })))
        .await;
    assert_eq!(
        world.send(&tenant.key, "POST", &resume, None).await.status,
        200
    );
}

#[tokio::test]
async fn a_manual_prompt_has_no_slots_and_may_be_resumed() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let schedule = json!({ "type": "manual", "timezone": "UTC" });
    let made = world
        .prompt(&tenant.key, json!({ "schedule": schedule }))
        .await;
    assert_eq!(made["next_run_at"], Value::Null);
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    world
        .send(&tenant.key, "POST", &format!("{path}/pause"), None)
        .await;
    let resumed = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(resumed.body["status"], "active");
}

#[tokio::test]
async fn a_cancelled_prompt_is_over_with_all_that_waits() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    let run = world
        .send(&tenant.key, "POST", &format!("{path}/run"), None)
        .await;
    let cancel = format!("{path}/cancel");
    let cancelled = world
        .post(&tenant.key, &cancel, json!({ "note": "over" }))
        .await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    assert_eq!(cancelled.body["status"], "cancelled");
    assert_eq!(cancelled.body["status_note"], "over");
    assert_eq!(cancelled.body["next_run_at"], Value::Null);
    assert!(instant(&cancelled.body["cancelled_at"]) <= Utc::now());
    let run = world.get(&tenant.key, run.header("location")).await;
    assert_eq!(run.body["status"], "cancelled");
    assert_eq!(run.body["reason"], "prompt_cancelled");

    let again = world.send(&tenant.key, "POST", &cancel, None).await;
    assert_eq!(again.body, cancelled.body);
    for action in ["pause", "resume", "run"] {
        let reply = world
            .send(&tenant.key, "POST", &format!("{path}/{action}"), None)
            .await;
        reply.refused(409, "prompt_ended");
    }
    let put = world
        .send(&tenant.key, "PUT", &path, Some(prompt_body(json!({}))))
        .await;
    put.refused(409, "prompt_ended");
    let patch = world
        .send(&tenant.key, "PATCH", &path, Some(json!({})))
        .await;
    patch.refused(409, "prompt_ended");

    let done = world.prompt(&tenant.key, json!({})).await;
    world
        .sql(
            "UPDATE scheduled_prompts SET status = 'completed' WHERE id = $1",
            &[&id(&done)],
        )
        .await;
    let path = format!("/v1/prompts/{}/cancel", text(&done["id"]));
    world
        .send(&tenant.key, "POST", &path, None)
        .await
        .refused(409, "prompt_ended");
}

#[tokio::test]
async fn a_deleted_prompt_is_gone_and_its_history_stays() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(&tenant.key, json!({ "external_id": "e" }))
        .await;
    let prompt_id = id(&made);
    let path = format!("/v1/prompts/{prompt_id}");
    let taken = world
        .post(
            &tenant.key,
            "/v1/prompts",
            prompt_body(json!({ "external_id": "e" })),
        )
        .await;
    taken.refused(409, "external_id_taken");
    world
        .send(&tenant.key, "POST", &format!("{path}/run"), None)
        .await;

    let deleted = world.send(&tenant.key, "DELETE", &path, None).await;
    assert_eq!((deleted.status.as_u16(), deleted.text.as_str()), (204, ""));
    for (method, suffix, body) in [
        ("GET", "", None),
        ("PUT", "", Some(prompt_body(json!({})))),
        ("PATCH", "", Some(json!({}))),
        ("DELETE", "", None),
        ("GET", "/runs", None),
        ("POST", "/run", None),
        ("POST", "/pause", None),
        ("POST", "/resume", None),
        ("POST", "/cancel", None),
    ] {
        let reply = world
            .send(&tenant.key, method, &format!("{path}{suffix}"), body)
            .await;
        reply.refused(404, "not_found");
    }
    assert!(
        world
            .get(&tenant.key, "/v1/prompts")
            .await
            .items("id")
            .is_empty()
    );
    let runs = world.get(&tenant.key, "/v1/runs").await;
    assert_eq!(runs.items("status"), ["cancelled"]);
    assert_eq!(runs.items("reason"), ["prompt_deleted"]);
    world
        .prompt(&tenant.key, json!({ "external_id": "e" }))
        .await;
}

#[tokio::test]
async fn an_external_id_is_the_tenants_own() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let other = world.tenant("bob").await;
    world
        .prompt(&tenant.key, json!({ "external_id": "e" }))
        .await;
    world
        .prompt(&other.key, json!({ "external_id": "e" }))
        .await;
    let second = world
        .prompt(&tenant.key, json!({ "external_id": "f" }))
        .await;
    let path = format!("/v1/prompts/{}", text(&second["id"]));
    let patch = Some(json!({ "external_id": "e" }));
    world
        .send(&tenant.key, "PATCH", &path, patch)
        .await
        .refused(409, "external_id_taken");
    assert_eq!(world.get(&tenant.key, &path).await.body["external_id"], "f");
}

#[tokio::test]
async fn the_limit_of_active_prompts_holds_even_at_once() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    world.tenant("bob").await;
    world
        .sql(
            "UPDATE tenants SET active_prompts_max = 3 WHERE id = $1",
            &[&tenant.id],
        )
        .await;
    let make = async || {
        let body = prompt_body(json!({}));
        world
            .post(&tenant.key, "/v1/prompts", body)
            .await
            .status
            .as_u16()
    };
    let statuses = tokio::join!(make(), make(), make(), make(), make(), make());
    let mut statuses: [u16; 6] = statuses.into();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 201, 201, 409, 409, 409]);

    let ids = world.get(&tenant.key, "/v1/prompts").await.items("id");
    let path = format!("/v1/prompts/{}", ids[0]);
    world
        .send(&tenant.key, "POST", &format!("{path}/pause"), None)
        .await;
    assert_eq!(make().await, 201);
    let resume = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    resume.refused(409, "too_many_active_prompts");
    let made = world
        .post(&tenant.key, "/v1/prompts", prompt_body(json!({})))
        .await;
    made.refused(409, "too_many_active_prompts");
    world
        .send(
            &tenant.key,
            "DELETE",
            &format!("/v1/prompts/{}", ids[1]),
            None,
        )
        .await;
    let resume = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(resume.status, 200, "{}", resume.text);
}

#[tokio::test]
async fn a_webhook_that_is_named_again_is_tried_again() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let other = world.tenant("bob").await;
    for owner in [&tenant, &other] {
        for url in ["https://a.example.com/hook", "https://b.example.com/hook"] {
            let insert = "INSERT INTO gone_webhooks (tenant_id, url) VALUES ($1, $2)";
            world.sql(insert, &[&owner.id, &url]).await;
        }
    }
    let made = world.prompt(&tenant.key, json!({})).await;
    let hook =
        json!({ "destinations": [{ "kind": "webhook", "url": "https://a.example.com/hook" }] });
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    assert_eq!(
        world
            .send(&tenant.key, "PATCH", &path, Some(hook))
            .await
            .status,
        200
    );
    let hook =
        json!({ "destinations": [{ "kind": "webhook", "url": "https://b.example.com/hook" }] });
    let left = |owner: Uuid| {
        let query = "SELECT coalesce(array_agg(url ORDER BY url), '{}') AS urls FROM gone_webhooks WHERE tenant_id = $1";
        let world = &world;
        async move { world.one(query, &[&owner]).await["urls"].clone() }
    };
    assert_eq!(left(tenant.id).await, json!(["https://b.example.com/hook"]));
    world.prompt(&tenant.key, hook).await;
    assert_eq!(left(tenant.id).await, json!([]));
    assert_eq!(left(other.id).await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_prompt_runs_when_asked_to_even_while_paused() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = world.prompt(&tenant.key, json!({ "max_retries": 2 })).await;
    let path = format!("/v1/prompts/{}", text(&made["id"]));
    world
        .send(&tenant.key, "POST", &format!("{path}/pause"), None)
        .await;
    world.woken();
    for (body, trigger) in [
        (None, "manual"),
        (Some(json!({})), "manual"),
        (Some(json!({ "test": false })), "manual"),
        (Some(json!({ "test": true })), "test"),
    ] {
        let run = world
            .send(&tenant.key, "POST", &format!("{path}/run"), body)
            .await;
        assert_eq!(run.status, 202, "{}", run.text);
        assert_eq!(run.body["trigger"], trigger);
        assert_eq!(run.body["status"], "queued");
        assert_eq!(run.body["attempts_max"], 3);
        let run_id = id(&run.body);
        assert_eq!(run.header("location"), format!("/v1/runs/{run_id}"));
        let woken = world.woken();
        assert!(
            matches!(woken[..], [WakeUp::Run { tenant_id, run_id: id }]
                if id.uuid() == run_id && tenant_id.uuid() == tenant.id),
            "{woken:?}"
        );
    }
    let refused = world
        .post(&tenant.key, &format!("{path}/run"), json!({ "tset": true }))
        .await;
    assert_eq!(
        refused.faults(),
        [("tset".to_owned(), "unknown_field".to_owned())]
    );
    let runs = world
        .get(&tenant.key, &format!("{path}/runs?trigger=test"))
        .await;
    assert_eq!(runs.items("trigger"), ["test"]);
    assert!(world.woken().is_empty());
}

#[tokio::test]
async fn a_schedule_that_has_passed_is_no_fault_where_it_is_sent_back() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let schedule = json!({ "type": "daily", "at": "08:00", "timezone": "UTC" });
    let made = world
        .prompt(&tenant.key, json!({ "schedule": schedule }))
        .await;
    let path = format!("/v1/prompts/{}", id(&made));
    let ended = "UPDATE prompt_versions
                    SET spec = jsonb_set(spec, '{schedule,end_at}', '\"2020-01-01T00:00:00Z\"')";
    assert_eq!(world.sql(ended, &[]).await, 1);
    let mut body = prompt_body(json!({ "prompt_name": "Another name", "schedule": schedule }));
    body["schedule"]["end_at"] = json!("2020-01-01T00:00:00Z");
    let reply = world
        .send(&tenant.key, "PUT", &path, Some(body.clone()))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.body["prompt_name"], "Another name");
    assert_eq!(reply.body["next_run_at"], made["next_run_at"]);
    body["schedule"]["at"] = json!("09:00");
    let reply = world
        .send(&tenant.key, "PUT", &path, Some(body.clone()))
        .await;
    reply.refused(422, "validation_failed");
    let faults = [("schedule.end_at".to_owned(), "in_the_past".to_owned())];
    assert_eq!(reply.faults(), faults);
}
