//! What a schedule and its policies would do, asked of the API.

use serde_json::{Value, json};

use super::{
    runs::{insert_output, insert_run},
    world::{Tenant, World, id, prompt_body, text},
};

const PATH: &str = "/v1/prompts/preview";

fn body(change: Value) -> Value {
    let mut body = json!({
        "schedule": { "type": "cron", "expression": "30 1 * * *", "timezone": "Europe/London" },
        "after": "2026-03-28T00:00:00Z", "count": 2,
    });
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// How many rows there are, in all tables of the tenants.
async fn rows(world: &World) -> Value {
    let sum = world
        .one(
            "SELECT string_agg(format('SELECT count(*) AS n FROM %I', table_name), ' UNION ALL ') AS sql
               FROM information_schema.columns
              WHERE table_schema = 'public' AND column_name = 'tenant_id'",
            &[],
        )
        .await;
    let query = format!(
        "SELECT sum(n)::bigint AS n FROM ({}) AS counts",
        text(&sum["sql"])
    );
    world.one(&query, &[]).await
}

/// So many prompts that are due at nine in London.
async fn crowd(world: &World, tenant: &Tenant, count: usize) -> Value {
    let mut made = Value::Null;
    for _ in 0..count {
        made = world.prompt(&tenant.key, json!({})).await;
    }
    made
}

#[tokio::test]
async fn a_preview_shows_the_jitter_as_the_entries_flexible_window() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let both_days = json!({"type": "cron", "expression": "0 9 1 * 1", "timezone": "UTC"});
    let asked = body(json!({"schedule": both_days, "jitter_minutes": 15}));
    let reply = world.post(&tenant.key, PATH, asked).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.body["jitter"]["minutes"], 15);
    assert_eq!(
        reply.body["eventbridge"],
        json!([
            {"expression": "cron(0 9 1 * ? *)", "timezone": "UTC", "flexible_window_minutes": 15},
            {"expression": "cron(0 9 ? * MON *)", "timezone": "UTC", "flexible_window_minutes": 15},
        ])
    );
}

#[tokio::test]
async fn a_preview_needs_no_right_to_write_and_writes_nothing() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let viewer = world.key_of_role(&tenant.key, "viewer").await;
    // A key's first request is counted in a row of its own.
    world.get(&viewer, "/v1/tenant").await;
    let before = rows(&world).await;
    let reply = world.post(&viewer, PATH, body(json!({}))).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let local = |number: usize| text(&reply.body["slots"][number]["local"]);
    assert_eq!(local(0), "2026-03-28T01:30:00+00:00");
    assert_eq!(local(1), "2026-03-29T02:00:00+01:00");
    assert_eq!(reply.body["slots"][1]["reason"], "dst_gap");
    assert_eq!(
        reply.body["eventbridge"],
        json!([{ "expression": "cron(30 1 * * ? *)", "timezone": "Europe/London" }])
    );
    assert_eq!(
        reply.body["description"],
        "At 01:30 every day, Europe/London"
    );
    assert_eq!(rows(&world).await, before);
    assert!(world.woken().is_empty());
}

#[tokio::test]
async fn a_range_is_explained_and_counted() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let reply = world
        .post(
            &tenant.key,
            PATH,
            json!({
                "schedule": { "type": "cron", "expression": "*/5 * * * *", "timezone": "America/New_York" },
                "from": "2026-01-01T05:00:00Z", "until": "2027-01-01T04:59:00Z",
                "exclusions": { "dates": ["2026-07-04"] }, "assumed_run_s": 400,
                "model": "openai/gpt-5-mini", "assumed_input_tokens": 1_000_000, "assumed_output_tokens": 0,
            }),
        )
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let totals = &reply.body["totals"];
    assert_eq!(totals["due"], 105_120 - 12 - 288);
    assert_eq!(
        (&totals["dst_gap"], &totals["excluded"]),
        (&json!(12), &json!(288))
    );
    assert_eq!(reply.body["truncated"], true);
    assert_eq!(reply.body["slots"].as_array().unwrap().len(), 1_000);
    let run = totals["run"].as_f64().unwrap();
    let skipped = totals["skipped_overlap"].as_f64().unwrap();
    assert_eq!(run + skipped, totals["due"].as_f64().unwrap());
    let cost = &reply.body["cost"];
    assert_eq!(cost["basis"], "assumed_tokens");
    assert_eq!(cost["cost_usd"].as_f64().unwrap(), run * 0.25);
    let reasons: Vec<_> = reply.body["not_due"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(&one["reason"]), one["slots_count"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("dst_gap".to_owned(), 12),
            ("excluded_date".to_owned(), 288)
        ]
    );
}

#[tokio::test]
async fn every_fault_is_told_at_once() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let wrong = body(json!({
        "schedule": { "type": "cron", "expression": "61 * * * *" }, "count": 1_001, "overlap": "never",
        "until": "2029-01-01T00:00:00Z", "prompt_id": uuid::Uuid::now_v7(), "x": 1,
    }));
    let refused = world.post(&tenant.key, PATH, wrong).await;
    refused.refused(422, "validation_failed");
    let mut told = refused.faults();
    told.sort();
    let expected = [
        ("count", "out_of_range"),
        ("overlap", "unknown_value"),
        ("prompt_id", "unknown_prompt"),
        ("schedule.expression", "range"),
        ("until", "range_too_long"),
        ("x", "unknown_field"),
    ]
    .map(|(field, code)| (field.to_owned(), code.to_owned()));
    assert_eq!(told, expected);

    world
        .sql("UPDATE tenants SET interval_minutes_min = 60", &[])
        .await;
    let too_often = json!({ "schedule": { "type": "interval", "every_minutes": 59 } });
    let refused = world.post(&tenant.key, PATH, too_often).await;
    assert_eq!(
        refused.faults(),
        [("schedule".to_owned(), "below_minimum_interval".to_owned())]
    );
    // A refusal gives its connection back.
    for _ in 0..20 {
        let refused = world.post(&tenant.key, PATH, json!({})).await;
        refused.refused(422, "validation_failed");
    }
}

#[tokio::test]
async fn past_runs_say_what_a_run_takes_and_costs() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let prompt = id(&world.prompt(&tenant.key, json!({})).await);
    let named = body(json!({ "prompt_id": prompt }));
    let reply = world.post(&tenant.key, PATH, named.clone()).await;
    assert_eq!(
        reply.body["cost"]["basis"], "assumed_tokens",
        "{}",
        reply.text
    );
    assert_eq!(reply.body["run_s_from"], "default");

    for minute in 0..2 {
        let run = insert_run(&world, &tenant, prompt, "succeeded", minute).await;
        insert_output(&world, run).await;
    }
    let failed = insert_run(&world, &tenant, prompt, "failed", 9).await;
    insert_output(&world, failed).await;
    world
        .sql(
            "UPDATE scheduled_prompt_runs SET latency_ms = CASE status WHEN 'failed' THEN 900000 ELSE 90500 END,
                    cost_usd = CASE WHEN scheduled_for = '2026-01-01T00:00:00Z' THEN 0.002 ELSE 0.004 END",
            &[],
        )
        .await;
    world
        .sql("UPDATE scheduled_prompts SET run_count = 3", &[])
        .await;
    let reply = world.post(&tenant.key, PATH, named).await;
    let cost = &reply.body["cost"];
    assert_eq!(cost["basis"], "past_cost", "{}", reply.text);
    assert_eq!(cost["cost_per_run_usd"], 0.003);
    assert_eq!(cost["cost_usd"], 0.006);
    assert_eq!(
        (&cost["input_tokens"], &cost["output_tokens"]),
        (&json!(10), &json!(3))
    );
    assert!(text(&cost["detail"]).contains("last 2 successful runs"));
    assert_eq!(reply.body["run_s"], 91);
    assert_eq!(reply.body["run_s_from"], "past_runs");

    let spent = body(json!({ "prompt_id": prompt, "max_runs": 3 }));
    let refused = world.post(&tenant.key, PATH, spent.clone()).await;
    assert_eq!(
        refused.faults(),
        [("max_runs".to_owned(), "max_runs_reached".to_owned())]
    );
    let edit = world
        .send(
            &tenant.key,
            "PATCH",
            &format!("/v1/prompts/{prompt}"),
            Some(json!({ "max_runs": 3 })),
        )
        .await;
    assert_eq!(edit.faults(), refused.faults());
    let one_left = body(json!({ "prompt_id": prompt, "max_runs": 4 }));
    let reply = world.post(&tenant.key, PATH, one_left).await;
    assert_eq!(reply.body["totals"]["run"], 1);

    let thief = world.tenant("bob").await;
    let refused = world.post(&thief.key, PATH, spent).await;
    assert_eq!(
        refused.faults(),
        [("prompt_id".to_owned(), "unknown_prompt".to_owned())]
    );
}

#[tokio::test]
async fn a_crowded_minute_of_the_tenants_own_is_told() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let made = crowd(&world, &tenant, 11).await;
    let asked = json!({ "schedule": prompt_body(json!({}))["schedule"], "count": 2 });
    let reply = world.post(&tenant.key, PATH, asked.clone()).await;
    let conflicts = reply.body["conflicts"].as_array().unwrap();
    assert_eq!(conflicts.len(), 1, "{}", reply.text);
    assert_eq!(conflicts[0]["other_prompts"], 11);
    assert_eq!(conflicts[0]["scheduled_for"], made["next_run_at"]);
    assert_eq!(conflicts[0]["local"], reply.body["slots"][0]["local"]);
    let warnings = reply.body["warnings"].as_array().unwrap();
    let crowded = warnings.iter().find(|one| one["code"] == "crowded_minute");
    assert!(text(&crowded.unwrap()["detail"]).starts_with("11 other"));

    // It is not in its own way, and paused ones are in nobody's.
    let mut own = asked.clone();
    own["prompt_id"] = made["id"].clone();
    let reply = world.post(&tenant.key, PATH, own.clone()).await;
    assert_eq!(
        reply.body["conflicts"][0]["other_prompts"], 10,
        "{}",
        reply.text
    );
    world
        .sql(
            "UPDATE scheduled_prompts SET status = 'paused' WHERE id = (
                 SELECT id FROM scheduled_prompts WHERE id <> $1 LIMIT 1)",
            &[&id(&made)],
        )
        .await;
    let reply = world.post(&tenant.key, PATH, own).await;
    assert_eq!(reply.body["conflicts"], json!([]));

    let other = world.tenant("bob").await;
    let reply = world.post(&other.key, PATH, asked).await;
    assert_eq!(reply.body["conflicts"], json!([]), "{}", reply.text);
}

#[tokio::test]
async fn holidays_are_those_of_the_tenants_calendar() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let days = json!({ "days": [{ "date": "2026-03-29", "name": "Mothering Sunday" }] });
    let path = "/v1/calendars/uk-holidays";
    let made = world.send(&tenant.key, "PUT", path, Some(days)).await;
    assert!(made.status.is_success(), "{}", made.text);
    let asked = body(json!({ "exclusions": { "calendars": ["uk-holidays"] } }));
    let reply = world.post(&tenant.key, PATH, asked.clone()).await;
    let not_due = &reply.body["not_due"][0];
    assert_eq!(not_due["reason"], "holiday", "{}", reply.text);
    assert_eq!(not_due["local"], "2026-03-29T01:30:00");
    assert!(
        text(&not_due["detail"]).starts_with("Mothering Sunday"),
        "{not_due}"
    );
    assert_eq!(reply.body["slots"][1]["local"], "2026-03-30T01:30:00+01:00");

    let other = world.tenant("bob").await;
    let refused = world.post(&other.key, PATH, asked).await;
    let expected = (
        "exclusions.calendars[0]".to_owned(),
        "unknown_calendar".to_owned(),
    );
    assert_eq!(refused.faults(), [expected]);
}
