//! Every route of the OpenAPI document, called by another tenant with this tenant's ids.

use serde_json::{Value, json};

use super::{
    runs::{insert_delivery, insert_log, insert_output, insert_run},
    world::{Tenant, World, id, prompt_body, text},
};

/// What of a tenant no other one may ever see or change.
pub(crate) struct Treasure {
    pub(crate) tenant: Tenant,
    /// Ids and words that only its own answers may hold.
    marks: Vec<String>,
    prompt: String,
    run: String,
    delivery: String,
    api_key: String,
    backfill: String,
    user: String,
}

/// Each tenant may have a calendar of this name.
const CALENDAR: &str = "/v1/calendars/holidays";
/// And a key of this provider.
const PROVIDER_KEY: &str = "/v1/provider-keys/openai";

impl Treasure {
    /// A path of the document with the ids of these objects.
    pub(crate) fn real_path(&self, path: &str) -> String {
        let real = match path.split('/').nth(2) {
            Some("prompts") => path.replace("{id}", &self.prompt),
            Some("runs") => path.replace("{id}", &self.run),
            Some("deliveries") => path.replace("{id}", &self.delivery),
            Some("users") => path.replace("{id}", &self.user),
            Some("api-keys") => path.replace("{id}", &self.api_key),
            Some("backfills") => path.replace("{id}", &self.backfill),
            Some("suppressed-addresses") => path.replace("{address}", "treasure@example.com"),
            Some("calendars") => path.replace("/v1/calendars/{name}", CALENDAR),
            Some("provider-keys") => path.replace("{provider}", "openai"),
            _ => path.to_owned(),
        };
        let real = real.replace("{version}", "1");
        assert!(
            !real.contains('{'),
            "{path} has an id that this test does not know"
        );
        real
    }
}

pub(crate) async fn treasure(world: &World) -> Treasure {
    let tenant = world.tenant("ada").await;
    let made = world
        .prompt(
            &tenant.key,
            json!({ "prompt_name": "treasure-name", "prompt_text": "treasure-text",
                    "external_id": "treasure-id", "tags": ["treasure-tag"] }),
        )
        .await;
    let prompt_id = id(&made);
    let run_id = insert_run(world, &tenant, prompt_id, "failed", 0).await;
    insert_output(world, run_id).await;
    world
        .sql(
            "UPDATE scheduled_prompt_runs SET output = 'treasure-output'",
            &[],
        )
        .await;
    let delivery_id = insert_delivery(world, run_id, 0, "exhausted").await;
    let log_id = insert_log(world, run_id, "treasure-log").await;
    world
        .send(
            &tenant.key,
            "POST",
            &format!("/v1/prompts/{prompt_id}/run"),
            None,
        )
        .await;
    let calendar = json!({ "days": [{ "date": "2026-12-25", "name": "treasure-day" }] });
    let kept = world
        .send(&tenant.key, "PUT", CALENDAR, Some(calendar))
        .await;
    assert_eq!(kept.status, 201, "{}", kept.text);
    world
        .sql(
            "INSERT INTO suppressed_addresses
                    (tenant_id, address, id, reason, delivery_id, message_id)
             VALUES ($1, 'treasure@example.com', $2, 'bounce', $2, 'treasure-message')",
            &[&tenant.id, &delivery_id],
        )
        .await;
    let key = json!({ "key": "treasure-key-0123456789" });
    let kept = world
        .send(&tenant.key, "PUT", PROVIDER_KEY, Some(key))
        .await;
    assert_eq!(kept.status, 201, "{}", kept.text);
    let fingerprint = text(&kept.body["fingerprint"]);
    let range = json!({ "from": "2026-03-16T00:00:00Z", "to": "2026-03-18T00:00:00Z" });
    let path = format!("/v1/prompts/{prompt_id}/backfill");
    let backfill = world.post(&tenant.key, &path, range).await;
    assert_eq!(backfill.status, 202, "{}", backfill.text);
    let backfill = text(&backfill.body["id"]);
    let keys = world.get(&tenant.key, "/v1/api-keys").await;
    let (prompt, run, delivery) = (
        prompt_id.to_string(),
        run_id.to_string(),
        delivery_id.to_string(),
    );
    let (api_key, user) = (keys.items("id").remove(0), text(&made["user_id"]));
    let mut marks = vec![
        "treasure".to_owned(),
        "ada@example.com".to_owned(),
        log_id.to_string(),
        fingerprint,
    ];
    marks.extend([&prompt, &run, &delivery, &api_key, &backfill, &user].map(Clone::clone));
    marks.push(tenant.id.to_string());
    world.woken();
    Treasure {
        tenant,
        marks,
        prompt,
        run,
        delivery,
        api_key,
        backfill,
        user,
    }
}

/// Every row of the tenant, in every table.
async fn rows_of(world: &World, tenant: &Tenant) -> Value {
    let tables = world
        .one(
            "SELECT array_agg(table_name::text ORDER BY table_name) AS names
               FROM information_schema.columns
              WHERE table_schema = 'public' AND column_name = 'tenant_id'",
            &[],
        )
        .await;
    let mut rows = serde_json::Map::new();
    for table in tables["names"].as_array().unwrap() {
        let table = text(table);
        // When a key was last used is the system's to note.
        let query = format!(
            "SELECT jsonb_agg(to_jsonb(t) - 'last_used_at' ORDER BY to_jsonb(t)::text) AS rows
               FROM {table} t WHERE tenant_id = $1"
        );
        let found = world.one(&query, &[&tenant.id]).await;
        rows.insert(table, found["rows"].clone());
    }
    assert!(rows.len() >= 8, "the tables of a tenant");
    let own = world
        .one(
            "SELECT to_jsonb(t) AS row FROM tenants t WHERE id = $1",
            &[&tenant.id],
        )
        .await;
    rows.insert("tenants".to_owned(), own["row"].clone());
    Value::Object(rows)
}

/// A body that this operation takes.
pub(crate) fn body_of(method: &str, path: &str) -> Option<Value> {
    let body = match (method, path) {
        ("PUT", "/v1/calendars/{name}") => json!({ "days": [] }),
        ("PUT", "/v1/provider-keys/{provider}") => json!({ "key": "stolen-0123456789" }),
        ("POST", "/v1/prompts/{id}/backfill") => {
            json!({ "from": "2026-03-16T00:00:00Z", "to": "2026-03-18T00:00:00Z" })
        }
        ("POST", "/v1/prompts") | ("PUT", _) => {
            prompt_body(json!({ "external_id": "treasure-id" }))
        }
        ("PATCH", "/v1/prompts/{id}") => json!({ "prompt_name": "stolen" }),
        ("PATCH", "/v1/tenant") => json!({ "default_timezone": "Asia/Tokyo" }),
        ("POST", "/v1/prompts/preview") => {
            json!({ "schedule": { "type": "daily", "at": "09:00" } })
        }
        ("POST", "/v1/users") => json!({ "email": "bob-2@example.com", "role": "viewer" }),
        ("PATCH", "/v1/users/{id}") => json!({ "role": "owner" }),
        ("POST", "/v1/api-keys") => {
            json!({ "name": "mine", "role": "viewer", "email": "ada@example.com" })
        }
        _ => return None,
    };
    Some(body)
}

#[tokio::test]
async fn no_route_shows_or_changes_another_tenants_rows() {
    let world = World::new().await;
    let treasure = treasure(&world).await;
    let thief = world.tenant("bob").await;
    let before = rows_of(&world, &treasure.tenant).await;

    let document = serde_json::to_value(management::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut called = 0;
    for (path, item) in paths {
        if path == "/health" || path.starts_with("/v1/admin") {
            continue;
        }
        let real = treasure.real_path(path);
        for method in ["get", "post", "put", "patch", "delete"] {
            if item.get(method).is_none() {
                continue;
            }
            let method = method.to_uppercase();
            let reply = world
                .send(&thief.key, &method, &real, body_of(&method, path))
                .await;
            called += 1;
            // A name is free to each tenant: the thief makes a calendar of its own, and deletes it.
            // The same with a key.
            let own = [CALENDAR, PROVIDER_KEY].contains(&&*real) && method != "GET";
            if path.contains('{') && !own {
                assert_eq!(reply.status, 404, "{method} {path}: {}", reply.text);
            } else {
                assert!(reply.status.is_success(), "{method} {path}: {}", reply.text);
            }
            let answer = reply.text.replace("\"external_id\":\"treasure-id\"", "");
            let answer = answer.replace(&format!("\"tenant_id\":\"{}\"", thief.id), "");
            for mark in &treasure.marks {
                // The thief has given a key to somebody with this address.
                let own_choice =
                    (method == "POST" || path == "/v1/users") && mark == "ada@example.com";
                assert!(
                    own_choice || !answer.contains(mark),
                    "{method} {path} told {mark}: {answer}"
                );
            }
        }
    }
    assert!(called >= 35, "only {called} operations are in the document");
    assert_eq!(rows_of(&world, &treasure.tenant).await, before);
    assert!(
        world
            .woken()
            .iter()
            .all(|wake_up| !format!("{wake_up:?}").contains(&treasure.run)),
        "nothing of the other tenant was woken"
    );
}

#[tokio::test]
async fn filters_find_nothing_of_another_tenant() {
    let world = World::new().await;
    let treasure = treasure(&world).await;
    let thief = world.tenant("bob").await;
    for path in [
        format!("/v1/prompts?user_id={}", treasure.user),
        "/v1/prompts?external_id=treasure-id".to_owned(),
        "/v1/prompts?name_contains=treasure".to_owned(),
        "/v1/prompts?tag_any=treasure-tag".to_owned(),
        "/v1/prompts?tag_all=treasure-tag&sort=name".to_owned(),
        format!("/v1/runs?prompt_id={}", treasure.prompt),
        format!("/v1/audit-events?target_id={}", treasure.prompt),
    ] {
        let page = world.get(&thief.key, &path).await;
        assert!(page.items("id").is_empty(), "{path}: {}", page.text);
        assert_eq!(page.body["next_cursor"], Value::Null);
    }
    // A cursor names a place, not a tenant.
    world
        .send(
            &treasure.tenant.key,
            "POST",
            "/v1/prompts",
            Some(prompt_body(json!({}))),
        )
        .await;
    let first = world.get(&treasure.tenant.key, "/v1/prompts?limit=1").await;
    let cursor = text(&first.body["next_cursor"]);
    let page = world
        .get(&thief.key, &format!("/v1/prompts?cursor={cursor}"))
        .await;
    assert!(page.items("id").is_empty());
}
