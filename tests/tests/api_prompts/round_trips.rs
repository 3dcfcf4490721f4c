//! How often a request waits for the database.
//!
//! A proxy between the API and Postgres counts the turns: bytes from the client after bytes from
//! the server. Each request takes a connection that is reset as it is taken, and looks up its key: two
//! turns before it begins.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    runs::{insert_delivery, insert_run},
    world::{World, id, new_database, prompt_body},
};

const SOCKET: &str = ".s.PGSQL.5432";
const IDENTIFIED: u64 = 2;

#[derive(Default)]
struct Turns(AtomicU64);

/// Passes every byte on, and counts.
async fn proxy(listener: UnixListener, server: String, turns: Arc<Turns>) {
    while let Ok((client, _)) = listener.accept().await {
        let server = UnixStream::connect(&server).await.unwrap();
        let (client_reads, client_writes) = client.into_split();
        let (server_reads, server_writes) = server.into_split();
        let answered = Arc::new(AtomicBool::new(false));
        let turns = turns.clone();
        let noted = answered.clone();
        tokio::spawn(pass(server_reads, client_writes, move || {
            noted.store(true, Ordering::SeqCst);
        }));
        tokio::spawn(pass(client_reads, server_writes, move || {
            if answered.swap(false, Ordering::SeqCst) {
                turns.0.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, note: impl Fn()) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 {
            return;
        }
        note();
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn counted_world(folder: &Path) -> (World, Arc<Turns>) {
    let database = new_database().await;
    let url = tests::database_url(&database);
    let (_, host) = url.split_once('@').unwrap();
    let (host, _) = host.split_once('/').unwrap();
    let server = format!("{}/{SOCKET}", host.replace("%2F", "/").replace("%2f", "/"));
    let turns = Arc::new(Turns::default());
    let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
    tokio::spawn(proxy(listener, server, turns.clone()));
    let folder = folder.to_str().unwrap().replace('/', "%2F");
    let url = format!("postgresql://postgres@{folder}/{database}");
    (World::over(&database, url, 1).await, turns)
}

#[tokio::test]
async fn no_route_waits_for_the_database_more_often_than_it_must() {
    let folder = tempfile::tempdir().unwrap();
    let (world, turns) = counted_world(folder.path()).await;
    let tenant = world.tenant("ada").await;
    let mut table = Vec::new();
    // The first call of each route prepares its statements.
    for measured in [false, true] {
        let prompt_id = id(&world.prompt(&tenant.key, json!({})).await);
        let prompt = format!("/v1/prompts/{prompt_id}");
        let run = insert_run(&world, &tenant, prompt_id, "failed", i32::from(measured)).await;
        let delivery = insert_delivery(&world, run, 0, "exhausted").await;
        // Three prompts name the calendar, or thirty: a change of it costs the same.
        let named = if measured { 30 } else { 3 };
        let day = |day: u8| json!({ "days": [{ "date": format!("2026-01-{day:02}") }] });
        let made = world
            .send(&tenant.key, "PUT", "/v1/calendars/holidays", Some(day(1)))
            .await;
        assert!(made.status.is_success(), "{}", made.text);
        let naming = json!({ "exclusions": { "calendars": ["holidays"] } });
        for _ in 0..named {
            world.prompt(&tenant.key, naming.clone()).await;
        }
        world.sql("UPDATE scheduled_prompts SET next_run_at = '2100-01-01' WHERE next_run_at IS NOT NULL", &[]).await;
        let past = json!({ "from": "2026-01-01T00:00:00Z", "to": "2026-04-01T00:00:00Z" });
        let calls: [(&str, String, Option<Value>, u64); 28] = [
            (
                "POST",
                "/v1/prompts".to_owned(),
                Some(prompt_body(json!({}))),
                3,
            ),
            ("GET", "/v1/prompts".to_owned(), None, 1),
            (
                "GET",
                "/v1/prompts?sort=name&status=active".to_owned(),
                None,
                1,
            ),
            (
                "POST",
                "/v1/prompts/preview".to_owned(),
                Some(json!({
                    "schedule": prompt_body(json!({}))["schedule"], "prompt_id": prompt_id,
                })),
                2,
            ),
            ("GET", prompt.clone(), None, 1),
            (
                "PUT",
                prompt.clone(),
                Some(prompt_body(json!({ "prompt_name": "x" }))),
                3,
            ),
            (
                "PATCH",
                prompt.clone(),
                Some(json!({ "prompt_name": "y" })),
                3,
            ),
            ("POST", format!("{prompt}/pause"), None, 3),
            ("POST", format!("{prompt}/resume"), None, 3),
            ("POST", format!("{prompt}/run"), None, 3),
            ("GET", format!("{prompt}/runs"), None, 1),
            ("POST", format!("{prompt}/backfill"), Some(past), 3),
            ("GET", format!("{prompt}/backfills"), None, 1),
            ("GET", format!("{prompt}/versions"), None, 1),
            ("GET", format!("{prompt}/versions/1"), None, 1),
            ("POST", format!("{prompt}/versions/1/restore"), None, 4),
            (
                "PUT",
                "/v1/calendars/holidays".to_owned(),
                Some(day(if measured { 3 } else { 2 })),
                6,
            ),
            ("GET", "/v1/calendars/holidays".to_owned(), None, 1),
            ("GET", "/v1/calendars".to_owned(), None, 1),
            (
                "PUT",
                "/v1/provider-keys/openai".to_owned(),
                Some(json!({ "key": "sk-counted-0123456789" })),
                3,
            ),
            ("GET", "/v1/provider-keys".to_owned(), None, 1),
            ("GET", "/v1/runs".to_owned(), None, 1),
            ("GET", format!("/v1/runs/{run}"), None, 1),
            ("GET", format!("/v1/runs/{run}/logs"), None, 1),
            ("GET", format!("/v1/runs/{run}/deliveries"), None, 1),
            (
                "POST",
                format!("/v1/deliveries/{delivery}/redeliver"),
                None,
                3,
            ),
            ("POST", format!("/v1/runs/{run}/retry"), None, 4),
            ("POST", format!("/v1/runs/{run}/cancel"), None, 4),
        ];
        let last: [(&str, String, Option<Value>, u64); 2] = [
            ("POST", format!("{prompt}/cancel"), None, 4),
            ("DELETE", prompt.clone(), None, 4),
        ];
        for (method, path, body, expected) in calls.into_iter().chain(last) {
            let before = turns.0.load(Ordering::SeqCst);
            let reply = world.send(&tenant.key, method, &path, body).await;
            assert!(reply.status.is_success(), "{method} {path}: {}", reply.text);
            let waited = turns.0.load(Ordering::SeqCst) - before;
            if measured {
                table.push((method, path, waited - IDENTIFIED, expected));
            }
        }
    }
    let wrong: Vec<_> = table
        .iter()
        .filter(|(_, _, waited, expected)| waited != expected)
        .collect();
    assert!(wrong.is_empty(), "more turns than expected: {wrong:#?}");
}
