//! Filters, sorts and pages.

use std::collections::HashSet;

use serde_json::json;
use uuid::Uuid;

use super::world::{Tenant, World, id, text};

/// Four prompts, made in this order:
/// `alpha` (daily, tags a b), `Beta` (cron, tags b c, external id), `gamma%_` (manual, no tags),
/// `ÄPFEL` (daily, tag c, paused).
async fn four_prompts(world: &World) -> (Tenant, Vec<Uuid>) {
    let tenant = world.tenant("ada").await;
    let cron = json!({ "type": "cron", "expression": "*/15 * * * *", "timezone": "UTC" });
    let mut ids = Vec::new();
    for (minute, change) in [
        json!({ "prompt_name": "alpha", "tags": ["a", "b"] }),
        json!({ "prompt_name": "Beta", "tags": ["b", "c"], "schedule": cron, "external_id": "my-beta" }),
        json!({ "prompt_name": "gamma%_", "schedule": { "type": "manual", "timezone": "UTC" } }),
        json!({ "prompt_name": "ÄPFEL", "tags": ["c"] }),
    ]
    .into_iter()
    .enumerate()
    {
        let made = world.prompt(&tenant.key, change).await;
        ids.push(id(&made));
        let minute = i32::try_from(minute).unwrap();
        world
            .sql(
                "UPDATE scheduled_prompts SET created_at = '2026-01-01T00:00:00Z'::timestamptz
                        + $2::integer * interval '1 minute' WHERE id = $1",
                &[&ids[ids.len() - 1], &minute],
            )
            .await;
    }
    let path = format!("/v1/prompts/{}/pause", ids[3]);
    world.send(&tenant.key, "POST", &path, None).await;
    (tenant, ids)
}

#[tokio::test]
async fn every_filter_finds_what_it_says() {
    let world = World::new().await;
    let (tenant, _) = four_prompts(&world).await;
    let user_id = text(&world.get(&tenant.key, "/v1/prompts").await.body["items"][0]["user_id"]);
    world
        .sql(
            "UPDATE scheduled_prompts SET next_run_at = '2027-05-01T00:00:00Z' WHERE prompt_name = 'alpha'",
            &[],
        )
        .await;
    let stranger = Uuid::now_v7();
    let all = ["ÄPFEL", "gamma%_", "Beta", "alpha"].as_slice();
    let cases: &[(String, &[&str])] = &[
        (String::new(), all),
        ("status=paused".into(), &["ÄPFEL"]),
        ("status=paused&status=active".into(), all),
        ("status=cancelled".into(), &[]),
        ("schedule_type=cron".into(), &["Beta"]),
        (
            "schedule_type=manual&schedule_type=cron".into(),
            &["gamma%_", "Beta"],
        ),
        ("tag_any=a&tag_any=c".into(), &["ÄPFEL", "Beta", "alpha"]),
        ("tag_all=b".into(), &["Beta", "alpha"]),
        ("tag_all=b&tag_all=c".into(), &["Beta"]),
        ("name_contains=A".into(), &["gamma%_", "Beta", "alpha"]),
        ("name_contains=bEt".into(), &["Beta"]),
        ("name_contains=%C3%A4pf".into(), &["ÄPFEL"]),
        ("name_contains=%25_".into(), &["gamma%_"]),
        ("name_contains=.*".into(), &[]),
        ("name_contains=%5B".into(), &[]),
        ("external_id=my-beta".into(), &["Beta"]),
        ("external_id=my-beta&sort=name".into(), &["Beta"]),
        ("external_id=my-beta&status=paused".into(), &[]),
        ("external_id=my".into(), &[]),
        (format!("user_id={user_id}"), all),
        (
            format!("user_id={user_id}&tag_all=c&order=asc"),
            &["Beta", "ÄPFEL"],
        ),
        (format!("user_id={stranger}"), &[]),
        ("next_run_before=2027-01-01T00:00:00Z".into(), &["Beta"]),
        ("next_run_after=2027-05-01T00:00:00Z".into(), &["alpha"]),
        ("next_run_after=2027-05-01T00:00:01Z".into(), &[]),
        (
            "created_after=2026-01-01T00:02:00Z".into(),
            &["ÄPFEL", "gamma%_"],
        ),
        ("created_before=2026-01-01T00:01:00Z".into(), &["alpha"]),
        (
            "created_before=2026-01-01T02:01:00%2B02:00".into(),
            &["alpha"],
        ),
        (
            "tag_any=c&schedule_type=daily&status=paused".into(),
            &["ÄPFEL"],
        ),
    ];
    for (query, expected) in cases {
        let page = world
            .get(&tenant.key, &format!("/v1/prompts?{query}"))
            .await;
        assert_eq!(page.items("prompt_name"), *expected, "{query}");
    }
}

#[tokio::test]
async fn every_sort_runs_both_ways() {
    let world = World::new().await;
    let (tenant, _) = four_prompts(&world).await;
    world
        .sql(
            "UPDATE scheduled_prompts SET next_run_at = '2099-05-01T00:00:00Z' WHERE prompt_name = 'alpha'",
            &[],
        )
        .await;
    let names = ["Beta", "alpha", "gamma%_", "ÄPFEL"];
    let made = ["alpha", "Beta", "gamma%_", "ÄPFEL"];
    let next = ["Beta", "alpha", "gamma%_", "ÄPFEL"];
    for (sort, default, expected) in [
        ("created", "desc", made),
        ("next_run", "asc", next),
        ("name", "asc", names),
    ] {
        for order in ["asc", "desc"] {
            let mut expected = expected.map(str::to_owned);
            if order == "desc" {
                expected.reverse();
            }
            let path = format!("/v1/prompts?sort={sort}&order={order}");
            let page = world.get(&tenant.key, &path).await;
            assert_eq!(page.items("prompt_name"), expected, "{path}");
            if order == default {
                let page = world
                    .get(&tenant.key, &format!("/v1/prompts?sort={sort}"))
                    .await;
                assert_eq!(page.items("prompt_name"), expected, "{sort}");
            }
            // One by one: each once, in the same order.
            let mut found = Vec::new();
            let mut cursor = String::new();
            for _ in 0..10 {
                let page = world
                    .get(&tenant.key, &format!("{path}&limit=1{cursor}"))
                    .await;
                found.extend(page.items("prompt_name"));
                match page.body["next_cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(found, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn pages_hold_still_while_prompts_come_and_go() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    for n in 0..12 {
        world
            .prompt(&tenant.key, json!({ "prompt_name": format!("n{n:02}") }))
            .await;
    }
    for (sort, expected) in [
        (
            "name&order=asc",
            (0..12).map(|n| format!("n{n:02}")).collect::<Vec<_>>(),
        ),
        (
            "created",
            (0..12).rev().map(|n| format!("n{n:02}")).collect(),
        ),
    ] {
        let first = world
            .get(&tenant.key, &format!("/v1/prompts?limit=5&sort={sort}"))
            .await;
        let mut found = first.items("prompt_name");
        let mut cursor = text(&first.body["next_cursor"]);
        // New ones before and behind the cursor, and the cursor's own prompt goes.
        world
            .prompt(&tenant.key, json!({ "prompt_name": format!("a-{sort}") }))
            .await;
        let last = text(&first.body["items"][4]["id"]);
        world
            .send(&tenant.key, "DELETE", &format!("/v1/prompts/{last}"), None)
            .await;
        for _ in 0..5 {
            let path = format!("/v1/prompts?limit=5&sort={sort}&cursor={cursor}");
            let page = world.get(&tenant.key, &path).await;
            found.extend(page.items("prompt_name"));
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        found.retain(|name| name.starts_with('n'));
        let distinct: HashSet<_> = found.iter().collect();
        assert_eq!(distinct.len(), found.len(), "{sort}: {found:?}");
        assert_eq!(found, expected, "{sort}");
        world
            .prompt(
                &tenant.key,
                json!({ "prompt_name": text(&first.body["items"][4]["prompt_name"]) }),
            )
            .await;
        world
            .sql(
                "UPDATE scheduled_prompts SET created_at = $2 WHERE deleted_at IS NULL AND prompt_name = $1",
                &[
                    &text(&first.body["items"][4]["prompt_name"]),
                    &super::world::instant(&first.body["items"][4]["created_at"]),
                ],
            )
            .await;
    }
}

#[tokio::test]
async fn equal_keys_are_told_apart() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    for _ in 0..7 {
        world.prompt(&tenant.key, json!({})).await;
    }
    world
        .sql(
            "UPDATE scheduled_prompts SET created_at = '2026-01-01T00:00:00Z'",
            &[],
        )
        .await;
    for sort in ["created", "next_run", "name"] {
        for order in ["asc", "desc"] {
            let mut found = Vec::new();
            let mut cursor = String::new();
            for _ in 0..10 {
                let path = format!("/v1/prompts?sort={sort}&order={order}&limit=2{cursor}");
                let page = world.get(&tenant.key, &path).await;
                found.extend(page.items("id"));
                match page.body["next_cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            let distinct: HashSet<_> = found.iter().collect();
            assert_eq!((found.len(), distinct.len()), (7, 7), "{sort} {order}");
        }
    }
}

#[tokio::test]
async fn a_list_leaves_out_long_texts() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    world
        .prompt(
            &tenant.key,
            json!({ "system_text": "s", "context": { "a": 1 }, "metadata": { "m": 1 } }),
        )
        .await;
    let page = world.get(&tenant.key, "/v1/prompts").await;
    let item = page.body["items"][0].as_object().unwrap();
    for name in ["prompt_text", "system_text", "context"] {
        assert!(!item.contains_key(name), "{name}");
    }
    for name in [
        "prompt_name",
        "model",
        "schedule",
        "metadata",
        "destinations",
        "total_runs",
    ] {
        assert!(item.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_query_string_is_read_strictly_and_whole() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let path = "/v1/prompts?status=on&schedule_type=weekly&schedule_type=yearly&name_contains=\
                &next_run_before=tomorrow&user_id=7&limit=101&order=up&sort=size&cursor=x&tag=a\
                &external_id=a%00b&created_after=2026-01-01T00:00:00Z&created_after=2026-01-02T00:00:00Z";
    let refused = world.get(&tenant.key, path).await;
    refused.refused(422, "validation_failed");
    let mut faults = refused.faults();
    faults.sort();
    let expected = [
        ("created_after", "repeated"),
        ("cursor", "invalid_cursor"),
        ("external_id", "control_character"),
        ("limit", "out_of_range"),
        ("name_contains", "empty"),
        ("next_run_before", "invalid_instant"),
        ("order", "unknown_value"),
        ("schedule_type", "unknown_value"),
        ("sort", "unknown_value"),
        ("status", "unknown_value"),
        ("tag", "unknown_parameter"),
        ("user_id", "invalid_id"),
    ]
    .map(|(field, code)| (field.to_owned(), code.to_owned()));
    assert_eq!(faults, expected);

    world.prompt(&tenant.key, json!({})).await;
    world.prompt(&tenant.key, json!({})).await;
    let page = world.get(&tenant.key, "/v1/prompts?limit=1").await;
    let cursor = text(&page.body["next_cursor"]);
    for path in [
        "/v1/prompts?sort=name&cursor=",
        "/v1/prompts?order=asc&cursor=",
        "/v1/runs?cursor=",
    ] {
        let refused = world.get(&tenant.key, &format!("{path}{cursor}")).await;
        assert_eq!(
            refused.faults(),
            [("cursor".to_owned(), "invalid_cursor".to_owned())],
            "{path}"
        );
    }
    // Every other route refuses what it does not know, too.
    let prompt_id = text(&page.body["items"][0]["id"]);
    for (method, path) in [
        ("GET", format!("/v1/prompts/{prompt_id}?x=1")),
        ("DELETE", format!("/v1/prompts/{prompt_id}?x=1")),
        ("POST", format!("/v1/prompts/{prompt_id}/run?test=true")),
    ] {
        let refused = world.send(&tenant.key, method, &path, None).await;
        refused.refused(422, "validation_failed");
    }
}
