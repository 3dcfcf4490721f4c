//! Backfills as callers ask for them; `tests/calendars_and_backfills.rs` runs them.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::message::WakeUp;

use super::{
    runs::insert_run,
    world::{Reply, Tenant, World, id, instant, text},
};

/// A prompt that is due at every full hour, made just now.
async fn hourly(world: &World, tenant: &Tenant, change: Value) -> Value {
    let mut hourly = json!({
        "schedule": { "type": "cron", "expression": "0 * * * *", "timezone": "UTC" },
    });
    for (name, value) in change.as_object().unwrap() {
        hourly[name] = value.clone();
    }
    world.prompt(&tenant.key, hourly).await
}

async fn backfill(world: &World, tenant: &Tenant, prompt: &Value, body: Value) -> Reply {
    let path = format!("/v1/prompts/{}/backfill", id(prompt));
    world.post(&tenant.key, &path, body).await
}

/// Hours of the first of March 2026.
fn hours(from: u32, to: u32) -> Value {
    let at = |hour: u32| format!("2026-03-01T{hour:02}:00:00Z");
    json!({ "from": at(from), "to": at(to) })
}

async fn scheduled(world: &World) -> Vec<String> {
    let query = "SELECT coalesce(json_agg(to_char(scheduled_for, 'HH24') ORDER BY scheduled_for), '[]') AS hours
                   FROM scheduled_prompt_runs WHERE trigger = 'backfill' AND status = 'queued'";
    let hours = world.one(query, &[]).await["hours"].clone();
    hours.as_array().unwrap().iter().map(text).collect()
}

#[tokio::test]
async fn the_slots_of_a_past_range_get_runs_that_follow_each_other() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({ "max_retries": 2 })).await;
    let mut body = hours(9, 12);
    body["pace_s"] = json!(30);
    let asked_at = Utc::now();
    let made = backfill(&world, &tenant, &prompt, body).await;
    assert_eq!(made.status, 202, "{}", made.text);
    assert_eq!(
        made.body["slots"],
        json!({ "queued": 3, "has_run": 0, "to_come": 0, "over_limit": 0 })
    );
    assert_eq!(made.body["runs"]["queued"], 3);
    assert_eq!(made.body["status"], "running");
    assert_eq!(made.body["prompt_version"], 1);
    let path = made.header("location").to_owned();
    assert_eq!(path, format!("/v1/backfills/{}", id(&made.body)));
    assert_eq!(world.get(&tenant.key, &path).await.body, made.body);

    let runs = format!(
        "/v1/prompts/{}/runs?trigger=backfill&order=asc",
        id(&prompt)
    );
    let runs = world.get(&tenant.key, &runs).await;
    let slots = ["09", "10", "11"].map(|hour| format!("2026-03-01T{hour}:00:00Z"));
    assert_eq!(runs.items("scheduled_for"), slots);
    let first = &runs.body["items"][0];
    assert_eq!(
        (&first["attempts_max"], &first["prompt_version"]),
        (&json!(3), &json!(1))
    );
    let begins: Vec<_> = (0..3)
        .map(|index| instant(&runs.body["items"][index]["available_at"]))
        .collect();
    assert!(begins[0] >= asked_at && begins[0] <= Utc::now());
    assert_eq!(begins[1] - begins[0], TimeDelta::seconds(30));
    assert_eq!(begins[2] - begins[1], TimeDelta::seconds(30));
    assert_eq!(
        world.woken(),
        [WakeUp::Run {
            tenant_id: tenant.id.into(),
            run_id: id(first).into()
        }]
    );
    let path = format!("/v1/prompts/{}", id(&prompt));
    let after = world.get(&tenant.key, &path).await.body;
    for field in ["next_run_at", "last_run_at", "run_count", "version"] {
        assert_eq!(after[field], prompt[field], "{field}");
    }
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=backfill.requested")
        .await;
    assert_eq!(events.items("target_id"), [id(&made.body).to_string()]);
}

#[tokio::test]
async fn only_slots_without_a_run_are_made_up_for() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({})).await;
    // 2026-01-01 00:00 and the hours after it.
    let statuses = [
        "succeeded",
        "failed",
        "timed_out",
        "queued",
        "generated",
        "missed",
        "skipped",
        "cancelled",
    ];
    for (hour, status) in (0..).zip(statuses) {
        insert_run(&world, &tenant, id(&prompt), status, hour * 60).await;
    }
    let begun = insert_run(&world, &tenant, id(&prompt), "cancelled", 480).await;
    let begin = "UPDATE scheduled_prompt_runs SET attempt = 1 WHERE id = $1";
    world.sql(begin, &[&begun]).await;
    let range = json!({ "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T10:00:00Z" });
    let made = backfill(&world, &tenant, &prompt, range.clone()).await;
    assert_eq!(
        made.body["slots"],
        json!({ "queued": 4, "has_run": 6, "to_come": 0, "over_limit": 0 }),
        "{}",
        made.text
    );
    assert_eq!(scheduled(&world).await, ["05", "06", "07", "09"]);
    let kept =
        "SELECT count(*) AS n FROM scheduled_prompt_runs WHERE status IN ('missed', 'skipped')";
    assert_eq!(
        world.one(kept, &[]).await["n"],
        2,
        "what was missed stays told"
    );

    // A second delivery of the same request, without a key.
    let again = backfill(&world, &tenant, &prompt, range.clone()).await;
    assert_eq!(
        again.body["slots"],
        json!({ "queued": 0, "has_run": 10, "to_come": 0, "over_limit": 0 })
    );
    assert_eq!(again.body["status"], "ended");

    // Cancelled before they began, they may be asked for again, and again.
    for _ in 0..2 {
        let runs = world
            .get(&tenant.key, "/v1/runs?trigger=backfill&status=queued")
            .await;
        for run in runs.items("id") {
            let cancelled = world
                .send(&tenant.key, "POST", &format!("/v1/runs/{run}/cancel"), None)
                .await;
            assert_eq!(cancelled.status, 200, "{}", cancelled.text);
        }
        let again = backfill(&world, &tenant, &prompt, range.clone()).await;
        assert_eq!(again.body["slots"]["queued"], 4);
    }
}

#[tokio::test]
async fn a_repeated_request_makes_one_backfill() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({})).await;
    let path = format!("/v1/prompts/{}/backfill", id(&prompt));
    let key = [("idempotency-key", "once")];
    let send = || world.send_with(&tenant.key, "POST", &path, Some(hours(1, 3)), &key);
    let (first, second) = (send().await, send().await);
    assert_eq!((first.status, &first.body), (second.status, &second.body));
    assert_eq!(second.header("idempotent-replayed"), "true");
    let list = format!("/v1/prompts/{}/backfills", id(&prompt));
    assert_eq!(world.get(&tenant.key, &list).await.items("id").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backfills_of_one_range_at_once_share_its_slots() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({})).await;
    let ask = |from, to| backfill(&world, &tenant, &prompt, hours(from, to));
    let (a, b, c) = tokio::join!(ask(0, 20), ask(10, 23), ask(5, 15));
    let queued: i64 = [a, b, c]
        .iter()
        .map(|reply| reply.body["slots"]["queued"].as_i64().unwrap())
        .sum();
    assert_eq!(queued, 23);
    assert_eq!(scheduled(&world).await.len(), 23);
    let twice = "SELECT count(*) AS n FROM (SELECT scheduled_for FROM scheduled_prompt_runs
                  GROUP BY 1 HAVING count(*) > 1) t";
    assert_eq!(world.one(twice, &[]).await["n"], 0);
}

#[tokio::test]
async fn slots_that_the_schedule_has_yet_to_look_at_are_left_to_it() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({})).await;
    // Nobody has looked since ten o'clock.
    let stand = "UPDATE scheduled_prompts SET next_run_at = '2026-03-01T10:00:00Z'";
    world.sql(stand, &[]).await;
    let made = backfill(&world, &tenant, &prompt, hours(8, 13)).await;
    assert_eq!(
        made.body["slots"],
        json!({ "queued": 2, "has_run": 0, "to_come": 3, "over_limit": 0 })
    );
    assert_eq!(scheduled(&world).await, ["08", "09"]);
}

#[tokio::test]
async fn exclusions_and_calendars_count_for_the_past_too() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let calendar = json!({ "days": [{ "date": "2026-03-03" }] });
    world
        .send(&tenant.key, "PUT", "/v1/calendars/holidays", Some(calendar))
        .await;
    let change = json!({
        "schedule": { "type": "daily", "at": "12:00", "timezone": "Asia/Tokyo" },
        "exclusions": { "calendars": ["holidays"], "dates": ["2026-03-05"] },
    });
    let prompt = world.prompt(&tenant.key, change).await;
    let range = json!({ "from": "2026-03-02T00:00:00Z", "to": "2026-03-07T00:00:00Z" });
    let made = backfill(&world, &tenant, &prompt, range).await;
    assert_eq!(made.body["slots"]["queued"], 3, "{}", made.text);
    let runs = world
        .get(&tenant.key, "/v1/runs?trigger=backfill&order=asc")
        .await;
    let slots = ["02", "04", "06"].map(|day| format!("2026-03-{day}T03:00:00Z"));
    assert_eq!(runs.items("scheduled_for"), slots);
}

#[tokio::test]
async fn max_runs_bounds_a_backfill() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({ "max_runs": 5 })).await;
    let spent = "UPDATE scheduled_prompts SET run_count = 1";
    world.sql(spent, &[]).await;
    let path = format!("/v1/prompts/{}/run", id(&prompt));
    world.send(&tenant.key, "POST", &path, None).await;
    let made = backfill(&world, &tenant, &prompt, hours(0, 10)).await;
    assert_eq!(
        made.body["slots"],
        json!({ "queued": 3, "has_run": 0, "to_come": 0, "over_limit": 7 })
    );
    assert_eq!(scheduled(&world).await, ["00", "01", "02"]);
}

#[tokio::test]
async fn a_thousand_slots_are_the_most() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({})).await;
    // 1,001 hours after New Year is 11 February, 17:00.
    let mut range = json!({ "from": "2026-01-01T00:00:00Z", "to": "2026-02-11T17:00:00Z" });
    let refused = backfill(&world, &tenant, &prompt, range.clone()).await;
    refused.refused(422, "validation_failed");
    assert_eq!(
        refused.faults(),
        [("to".to_owned(), "too_many_slots".to_owned())]
    );
    let hint = text(&refused.body["errors"][0]["hint"]);
    assert_eq!(
        hint,
        "end the range at 2026-02-11T16:00:00+00:00 at the latest"
    );
    range["to"] = json!("2026-02-11T16:00:00+00:00");
    let made = backfill(&world, &tenant, &prompt, range).await;
    assert_eq!(made.body["slots"]["queued"], 1000, "{}", made.text);

    // More may not wait at once, and "run now" is not in their way.
    backfill(&world, &tenant, &prompt, hours(0, 1))
        .await
        .refused(409, "too_many_queued_runs");
    assert_eq!(scheduled(&world).await.len(), 1000);
    let run = format!("/v1/prompts/{}/run", id(&prompt));
    let run = world.send(&tenant.key, "POST", &run, None).await;
    assert_eq!(run.status, 202, "{}", run.text);

    let path = format!("/v1/backfills/{}/cancel", id(&made.body));
    let cancelled = world.send(&tenant.key, "POST", &path, None).await;
    assert_eq!(
        cancelled.body["runs"]["cancelled"], 1000,
        "{}",
        cancelled.text
    );
    let made = backfill(&world, &tenant, &prompt, hours(0, 1)).await;
    assert_eq!(made.status, 202, "{}", made.text);
}

#[tokio::test]
async fn what_cannot_be_backfilled_is_refused() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({})).await;
    let faults = async |body: Value| {
        let refused = backfill(&world, &tenant, &prompt, body).await;
        assert_eq!(refused.status, 422, "{}", refused.text);
        refused.faults()
    };
    let fault = |field: &str, code: &str| (field.to_owned(), code.to_owned());
    let soon = Utc::now() + TimeDelta::hours(1);
    let future = json!({ "from": "2026-03-01T00:00:00Z", "to": soon });
    assert_eq!(faults(future).await, [fault("to", "in_the_future")]);
    assert_eq!(faults(hours(3, 3)).await, [fault("to", "end_before_start")]);
    let between = json!({ "from": "2026-03-01T00:01:00Z", "to": "2026-03-01T00:59:00Z" });
    assert_eq!(faults(between).await, [fault("from", "no_slots")]);
    let many = faults(json!({ "from": "yesterday", "pace_s": 0, "until": 1 })).await;
    let expected = [
        fault("from", "bad_time"),
        fault("pace_s", "out_of_range"),
        fault("to", "missing"),
        fault("until", "unknown_field"),
    ];
    let mut many = many;
    many.sort();
    assert_eq!(many, expected);

    let manual = json!({ "schedule": { "type": "manual" } });
    let manual = world.prompt(&tenant.key, manual).await;
    let refused = backfill(&world, &tenant, &manual, hours(0, 3)).await;
    assert_eq!(refused.faults(), [fault("from", "no_slots")]);

    let viewer = world.key_of_role(&tenant.key, "viewer").await;
    let path = format!("/v1/prompts/{}", id(&prompt));
    world
        .post(&viewer, &format!("{path}/backfill"), hours(0, 3))
        .await
        .refused(403, "role_too_low");
    world
        .post(&tenant.key, &format!("{path}/cancel"), json!({}))
        .await;
    backfill(&world, &tenant, &prompt, hours(0, 3))
        .await
        .refused(409, "prompt_ended");
    world.send(&tenant.key, "DELETE", &path, None).await;
    backfill(&world, &tenant, &prompt, hours(0, 3))
        .await
        .refused(404, "not_found");
    world
        .get(&tenant.key, &format!("{path}/backfills"))
        .await
        .refused(404, "not_found");
}

#[tokio::test]
async fn a_paused_or_completed_prompt_can_be_backfilled() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let paused = hourly(&world, &tenant, json!({})).await;
    let path = format!("/v1/prompts/{}/pause", id(&paused));
    world.post(&tenant.key, &path, json!({})).await;
    let made = backfill(&world, &tenant, &paused, hours(0, 2)).await;
    assert_eq!(made.body["slots"]["queued"], 2, "{}", made.text);

    let over = hourly(&world, &tenant, json!({})).await;
    let complete =
        "UPDATE scheduled_prompts SET status = 'completed', next_run_at = NULL WHERE id = $1";
    world.sql(complete, &[&id(&over)]).await;
    let made = backfill(&world, &tenant, &over, hours(0, 2)).await;
    assert_eq!(made.body["slots"]["queued"], 2, "{}", made.text);
}

#[tokio::test]
async fn a_cancelled_backfill_lets_what_is_under_way_finish() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = hourly(&world, &tenant, json!({})).await;
    let made = backfill(&world, &tenant, &prompt, hours(0, 4)).await;
    let other = backfill(&world, &tenant, &prompt, hours(10, 12)).await;
    for (hour, status) in [(0, "succeeded"), (1, "running"), (2, "timed_out")] {
        let slot: DateTime<Utc> = format!("2026-03-01T{hour:02}:00:00Z").parse().unwrap();
        let advance =
            "UPDATE scheduled_prompt_runs SET status = $2, attempt = 1 WHERE scheduled_for = $1";
        world.sql(advance, &[&slot, &status]).await;
    }
    let path = format!("/v1/backfills/{}", id(&made.body));
    let read = world.get(&tenant.key, &path).await;
    assert_eq!(
        read.body["runs"],
        json!({ "queued": 1, "running": 1, "generated": 0, "succeeded": 1, "failed": 1,
                "cancelled": 0, "skipped": 0 })
    );
    let cancel = format!("{path}/cancel");
    let cancelled = world.send(&tenant.key, "POST", &cancel, None).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    assert_eq!(cancelled.body["status"], "cancelled");
    assert_eq!(
        (
            &cancelled.body["runs"]["cancelled"],
            &cancelled.body["runs"]["running"]
        ),
        (&json!(1), &json!(1))
    );
    let reason = "SELECT reason FROM scheduled_prompt_runs WHERE status = 'cancelled'";
    assert_eq!(world.one(reason, &[]).await["reason"], "backfill_cancelled");
    let again = world.send(&tenant.key, "POST", &cancel, None).await;
    assert_eq!((again.status.as_u16(), &again.body), (200, &cancelled.body));
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=backfill.cancelled")
        .await;
    assert_eq!(events.items("id").len(), 1);

    let list = format!("/v1/prompts/{}/backfills?limit=1", id(&prompt));
    let page = world.get(&tenant.key, &list).await;
    assert_eq!(page.items("id"), [id(&other.body).to_string()]);
    let cursor = text(&page.body["next_cursor"]);
    let page = world
        .get(&tenant.key, &format!("{list}&cursor={cursor}"))
        .await;
    assert_eq!(page.body["items"][0], cancelled.body);

    // With its prompt all of it is over, and there is nothing left to cancel.
    let path = format!("/v1/prompts/{}/cancel", id(&prompt));
    world.post(&tenant.key, &path, json!({})).await;
    let path = format!("/v1/backfills/{}", id(&other.body));
    let read = world.get(&tenant.key, &path).await;
    assert_eq!(
        (&read.body["status"], &read.body["runs"]["cancelled"]),
        (&json!("ended"), &json!(2))
    );
    world
        .send(&tenant.key, "POST", &format!("{path}/cancel"), None)
        .await
        .refused(409, "backfill_ended");
}
