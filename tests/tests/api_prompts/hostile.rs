//! Callers who mean harm: URLs into our own network, texts without measure, keys that may not, and a
//! database that is broken under their requests.

use serde_json::{Value, json};

use crate::{
    isolation::{Treasure, body_of, treasure},
    world::{Reply, World, id, prompt_body, text},
};

/// Longer than any text that the API takes, and shorter than its largest body.
const LONG: usize = 120_000;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// An operation of the API's document, with ids of the tenant's own.
struct Operation {
    method: String,
    /// As the document names it.
    pattern: String,
    path: String,
}

impl Operation {
    fn body(&self) -> Option<Value> {
        body_of(&self.method, &self.pattern)
    }
}

/// All that a tenant may call.
fn operations(treasure: &Treasure) -> Vec<Operation> {
    let document = serde_json::to_value(management::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let of_tenants = paths
        .iter()
        .filter(|(path, _)| path.starts_with("/v1/") && !path.starts_with("/v1/admin"));
    of_tenants
        .flat_map(|(path, item)| {
            let methods = METHODS.iter().filter(|method| item.get(method).is_some());
            methods.map(|method| Operation {
                method: method.to_uppercase(),
                pattern: path.clone(),
                path: treasure.real_path(path),
            })
        })
        .collect()
}

#[tokio::test]
async fn no_url_into_our_own_network_is_saved() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let table = include_str!("../../../shared/tests/vectors/urls.json");
    let table: Value = serde_json::from_str(table).unwrap();
    let made = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", id(&made));
    let with = |url: &Value| json!({ "destinations": [{ "kind": "webhook", "url": url }] });
    let refused = table["refused"].as_array().unwrap();
    assert!(refused.len() > 150);
    for one in refused {
        let body = with(&one["url"]);
        let create = world.post(&tenant.key, "/v1/prompts", prompt_body(body.clone()));
        let replace = world.send(&tenant.key, "PUT", &path, Some(prompt_body(body.clone())));
        let change = world.send(&tenant.key, "PATCH", &path, Some(body.clone()));
        for reply in [create.await, replace.await, change.await] {
            assert_eq!(reply.status, 422, "{one}: {}", reply.text);
            let expected = [(
                "destinations[0].url".to_owned(),
                "url_not_allowed".to_owned(),
            )];
            assert_eq!(reply.faults(), expected, "{one}: {}", reply.text);
            let told = text(&reply.body["errors"][0]["detail"]);
            assert!(
                told.contains(one["because"].as_str().unwrap()),
                "{one}: {told}"
            );
        }
    }
    assert_eq!(
        world
            .get(&tenant.key, "/v1/prompts")
            .await
            .items("id")
            .len(),
        1
    );
    assert_eq!(world.get(&tenant.key, &path).await.body, made);
    for url in table["allowed"].as_array().unwrap() {
        world.prompt(&tenant.key, with(url)).await;
        let reply = world
            .send(&tenant.key, "PATCH", &path, Some(with(url)))
            .await;
        assert_eq!(reply.status, 200, "{url}: {}", reply.text);
    }
}

/// The fields that the schema of an operation's body has.
fn fields(document: &Value, operation: &Operation) -> Vec<String> {
    let spec = &document["paths"][&operation.pattern][operation.method.to_lowercase()];
    let mut schema = &spec["requestBody"]["content"]["application/json"]["schema"];
    while let Some(name) = schema["$ref"].as_str() {
        schema = document.pointer(name.trim_start_matches('#')).unwrap();
    }
    let properties = schema["properties"].as_object();
    properties
        .map(|all| all.keys().cloned().collect())
        .unwrap_or_default()
}

#[tokio::test]
async fn what_is_too_much_for_a_field_is_refused_by_its_name() {
    let world = World::new().await;
    let treasure = treasure(&world).await;
    let document = serde_json::to_value(management::openapi()).unwrap();
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let too_much = [
        ("a long text", json!("x".repeat(LONG))),
        ("a NUL", json!("a\0b")),
        ("a long list", json!(vec!["x"; 20_000])),
        ("a long list of lists", json!(vec![json!([]); 20_000])),
        (
            "many names",
            (0..8_000).map(|n| (format!("n{n}"), json!("x"))).collect(),
        ),
        ("a long name", json!({ "x".repeat(LONG): 1 })),
        ("a long value", json!({ "x": "x".repeat(LONG) })),
        ("depth", deep),
        ("a large number", json!(1e300)),
        ("a negative number", json!(-1)),
    ];
    let mut named = 0;
    for operation in operations(&treasure) {
        for field in fields(&document, &operation) {
            for (what, value) in &too_much {
                let mut body = operation.body().unwrap_or_else(|| json!({}));
                body[&field] = value.clone();
                let key = &treasure.tenant.key;
                let reply = world
                    .send(key, &operation.method, &operation.path, Some(body))
                    .await;
                let asked = format!(
                    "{} {}: {what} for {field}",
                    operation.method, operation.pattern
                );
                let told = reply.text.chars().take(500).collect::<String>();
                assert!(
                    (400..500).contains(&reply.status.as_u16()),
                    "{asked}: {} {told}",
                    reply.status
                );
                // What is repeated is short.
                assert!(
                    reply.text.len() < 20_000,
                    "{asked}: {} bytes",
                    reply.text.len()
                );
                if reply.status == 422 {
                    let faults = reply.faults();
                    let names = |fault: &(String, String)| fault.0.starts_with(&*field);
                    assert!(faults.iter().any(names), "{asked}: {told}");
                    named += 1;
                }
            }
            // The limit of requests is not what this test is about.
            world.sql("DELETE FROM request_rates", &[]).await;
        }
    }
    assert!(named > 300, "only {named} refusals named a field");
}

#[tokio::test]
async fn a_key_that_may_not_is_refused_by_every_operation() {
    let world = World::new().await;
    let treasure = treasure(&world).await;
    let owner = &treasure.tenant.key;
    let viewer = world.key_of_role(owner, "viewer").await;
    let expired = world.key_of_role(owner, "owner").await;
    let revoked = world.key_of_role(owner, "owner").await;
    let row = |key: &str| -> uuid::Uuid { key.split('_').nth(2).unwrap().parse().unwrap() };
    let sql = "UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1";
    assert_eq!(world.sql(sql, &[&row(&expired)]).await, 1);
    let path = format!("/v1/api-keys/{}", row(&revoked));
    assert_eq!(world.send(owner, "DELETE", &path, None).await.status, 204);
    let before = world.one("SELECT count(*) FROM prompt_versions", &[]).await;
    let all = operations(&treasure);
    assert!(all.len() > 45, "only {} operations", all.len());
    for one in &all {
        let asked = format!("{} {}", one.method, one.pattern);
        for (key, code) in [(&expired, "key_expired"), (&revoked, "key_revoked")] {
            let reply = world.send(key, &one.method, &one.path, one.body()).await;
            assert_eq!(
                (reply.status.as_u16(), text(&reply.body["code"]).as_str()),
                (401, code),
                "{asked}"
            );
        }
        // It reads and writes nothing, so anybody may.
        if one.method == "GET" || one.pattern == "/v1/prompts/preview" {
            continue;
        }
        let reply = world
            .send(&viewer, &one.method, &one.path, one.body())
            .await;
        assert_eq!(
            (reply.status.as_u16(), reply.body["code"].as_str()),
            (403, Some("role_too_low")),
            "{asked}: {}",
            reply.text
        );
    }
    assert_eq!(
        world.one("SELECT count(*) FROM prompt_versions", &[]).await,
        before
    );
}

/// What is done to the database.
const DAMAGES: [(&str, &str); 7] = [
    (
        "a constraint",
        "DO $$ DECLARE t regclass; BEGIN
           FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
              AND relname NOT IN ('refinery_schema_history', 'request_rates', 'drift_cursor', 'tenants') LOOP
             EXECUTE format('ALTER TABLE %s ADD CONSTRAINT telltale CHECK (tenant_id IS NULL) NOT VALID', t);
           END LOOP; END $$",
    ),
    (
        "a trigger that quotes the row",
        "CREATE FUNCTION public.telltale() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN RAISE EXCEPTION 'telltale %', to_jsonb(NEW)::text; END $$;
         DO $$ DECLARE t regclass; BEGIN
           FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
              AND relname NOT IN ('refinery_schema_history', 'request_rates', 'drift_cursor') LOOP
             EXECUTE format('CREATE TRIGGER telltale BEFORE INSERT OR UPDATE ON %s FOR EACH ROW
                             EXECUTE FUNCTION public.telltale()', t);
           END LOOP; END $$",
    ),
    ("no rights to tables", "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM carillon_app"),
    (
        "no rights to functions",
        "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM carillon_system, PUBLIC",
    ),
    ("a table that is gone", "DROP TABLE scheduled_prompt_runs CASCADE"),
    ("a column that is gone", "ALTER TABLE scheduled_prompts RENAME COLUMN status TO telltale"),
    ("a table of another name", "ALTER TABLE api_keys RENAME TO telltale"),
];

/// Words of the database, and of what this test did to it.
const WORDS: [&str; 12] = [
    "telltale",
    "violates",
    "constraint",
    "permission denied",
    "does not exist",
    "relation",
    "SQLSTATE",
    "carillon_app",
    "carillon_system",
    "scheduled_prompt",
    "postgres",
    "db error",
];

#[tokio::test]
async fn no_word_of_the_database_reaches_a_caller() {
    for (damage, sql) in DAMAGES {
        let world = World::new().await;
        let treasure = treasure(&world).await;
        world.admin.batch_execute(sql).await.unwrap();
        let failed = call_all(&world, &treasure, damage).await;
        assert!(failed > 5, "{damage}: only {failed} requests failed");
    }
}

#[tokio::test]
async fn no_word_of_a_database_that_is_away_reaches_a_caller() {
    let database = crate::world::new_database().await;
    let world = World::over(&database, tests::database_url(&database), 4).await;
    let treasure = treasure(&world).await;
    let admin = tests::connect(&tests::postgres_url()).await.unwrap();
    let close = format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS false");
    admin.batch_execute(&close).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = $1 AND usename LIKE 'carillon%'";
    admin.query(end, &[&database]).await.unwrap();
    let failed = call_all(&world, &treasure, "no database").await;
    assert_eq!(failed, operations(&treasure).len());
}

/// Calls every operation, and gives the number of those that ended with a fault of ours.
async fn call_all(world: &World, treasure: &Treasure, damage: &str) -> usize {
    let mut failed = 0;
    for one in operations(treasure) {
        let reply = world
            .send(&treasure.tenant.key, &one.method, &one.path, one.body())
            .await;
        let asked = format!("{damage}: {} {}", one.method, one.pattern);
        if reply.status.is_server_error() {
            assert_generic(&reply, &asked);
            failed += 1;
        }
        for word in WORDS {
            assert!(
                !reply.text.contains(word),
                "{asked}: {word} in {}",
                reply.text
            );
        }
    }
    failed
}

#[track_caller]
fn assert_generic(reply: &Reply, asked: &str) {
    let status = reply.status.as_u16();
    let (code, detail) = match status {
        503 => (
            "unavailable",
            "the service cannot answer at the moment; try again",
        ),
        _ => (
            "internal",
            "something went wrong on our side; tell us the request_id if it stays",
        ),
    };
    let expected = json!({
        "type": format!("urn:carillon:problem:{code}"), "title": code, "status": status, "code": code,
        "detail": detail, "request_id": reply.header("x-request-id"),
    });
    assert_eq!(reply.body, expected, "{asked}");
    assert_eq!(
        reply.header("content-type"),
        "application/problem+json",
        "{asked}"
    );
    assert!(!reply.header("x-request-id").is_empty(), "{asked}");
}
