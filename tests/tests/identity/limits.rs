//! How often a caller may come, with the right secret and with a wrong one.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::world::{Tenant, World, id_of, text};

async fn used_at(world: &World, key: &str) -> Option<DateTime<Utc>> {
    let sql = "SELECT last_used_at FROM api_keys WHERE id = $1";
    let row = world.stage.admin.query_one(sql, &[&id_of(key)]).await;
    row.unwrap().get(0)
}

/// The key's id with another secret.
fn guess(key: &str) -> String {
    format!("{}{}", &key[..key.len() - 64], "0".repeat(64))
}

/// Lets so many seconds pass for every bucket.
async fn pass(world: &World, seconds: i32) {
    let sql = "UPDATE request_rates SET full_at = full_at - make_interval(secs => $1)";
    let seconds = f64::from(seconds);
    world.stage.admin.execute(sql, &[&seconds]).await.unwrap();
}

async fn another_key(world: &World, tenant: &Tenant) -> String {
    let body = json!({ "name": "another", "role": "viewer" });
    let made = world
        .send(&tenant.key, "POST", "/v1/api-keys", Some(body))
        .await;
    assert_eq!(made.status, 201, "{}", made.body);
    text(&made.body["key"])
}

#[tokio::test]
async fn wrong_secrets_are_throttled_and_the_right_one_goes_on() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let guessed = guess(&tenant.key);
    for _ in 0..10 {
        let reply = world.get(&guessed, "/v1/tenant").await;
        reply.refused(401, "unknown_key");
    }
    // A guess is no use.
    assert_eq!(used_at(&world, &tenant.key).await, None);
    for _ in 0..5 {
        let reply = world.get(&guessed, "/v1/tenant").await;
        reply.refused(429, "too_many_attempts");
        assert!(
            (1..=6).contains(&reply.retry_after()),
            "{:?}",
            reply.headers
        );
    }
    // Whoever knows a key's id must not be able to lock out who has the key.
    assert_eq!(world.get(&tenant.key, "/v1/tenant").await.status, 200);
    let other = another_key(&world, &tenant).await;
    let reply = world.get(&guess(&other), "/v1/tenant").await;
    reply.refused(401, "unknown_key");
    pass(&world, 6).await;
    let reply = world.get(&guessed, "/v1/tenant").await;
    reply.refused(401, "unknown_key");
    // An id that there is not leaves nothing behind.
    let nobodys = format!(
        "ck_local_{}_{}",
        uuid::Uuid::now_v7().simple(),
        "0".repeat(64)
    );
    let rows = "SELECT count(*) FROM request_rates";
    let before = world.stage.count(rows).await.unwrap();
    for _ in 0..20 {
        let reply = world.get(&nobodys, "/v1/tenant").await;
        reply.refused(401, "unknown_key");
    }
    assert_eq!(world.stage.count(rows).await.unwrap(), before);
}

#[tokio::test]
async fn a_use_is_noted_once_a_minute() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    assert_eq!(used_at(&world, &tenant.key).await, None);
    world.get(&tenant.key, "/v1/tenant").await;
    assert!(used_at(&world, &tenant.key).await.is_some());
    for (seconds, is_noted) in [(55, false), (61, true)] {
        let sql = "UPDATE api_keys SET last_used_at = now() - make_interval(secs => $1)";
        let ago = f64::from(seconds);
        world.stage.admin.execute(sql, &[&ago]).await.unwrap();
        let before = used_at(&world, &tenant.key).await;
        world.get(&tenant.key, "/v1/tenant").await;
        let after = used_at(&world, &tenant.key).await;
        assert_eq!(before != after, is_noted, "{seconds}");
    }
}

#[tokio::test]
async fn each_caller_has_their_own_number_of_requests() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    world.member(&tenant, "ada", "viewer").await;
    let (key, token) = (another_key(&world, &tenant).await, world.token("ada"));
    world
        .limits(&tenant, json!({ "caller_requests_per_minute_max": 3 }))
        .await;
    for credential in [&key, &token] {
        for _ in 0..3 {
            assert_eq!(world.get(credential, "/v1/tenant").await.status, 200);
        }
        for method in ["GET", "POST"] {
            let reply = world.send(credential, method, "/v1/prompts", None).await;
            reply.refused(429, "rate_limited");
            assert!(
                (1..=20).contains(&reply.retry_after()),
                "{:?}",
                reply.headers
            );
        }
    }
    // A third of a minute gives one of three.
    pass(&world, 20).await;
    for credential in [&key, &token] {
        assert_eq!(world.get(credential, "/v1/tenant").await.status, 200);
        world
            .get(credential, "/v1/tenant")
            .await
            .refused(429, "rate_limited");
    }
    // What was refused was not counted: after a minute there are three again.
    pass(&world, 60).await;
    for _ in 0..3 {
        assert_eq!(world.get(&key, "/v1/tenant").await.status, 200);
    }
    world
        .limits(&tenant, json!({ "caller_requests_per_minute_max": 1000 }))
        .await;
    // The bucket stays as empty as it was, and fills faster.
    pass(&world, 1).await;
    assert_eq!(world.get(&key, "/v1/tenant").await.status, 200);
}

#[tokio::test]
async fn a_tenants_callers_share_its_number_and_no_other_tenants() {
    let world = World::new().await;
    let (tenant, other) = (world.tenant("ada").await, world.tenant("other").await);
    let second = another_key(&world, &tenant).await;
    world.get(&second, "/v1/tenant").await;
    world
        .limits(
            &tenant,
            json!({ "requests_per_minute_max": 3, "caller_requests_per_minute_max": 2 }),
        )
        .await;
    pass(&world, 60).await;
    let mut given = 0;
    for _ in 0..8 {
        for key in [&tenant.key, &second] {
            let reply = world.get(key, "/v1/tenant").await;
            if reply.status == 200 {
                given += 1;
            } else {
                reply.refused(429, "rate_limited");
                assert!(
                    (1..=30).contains(&reply.retry_after()),
                    "{:?}",
                    reply.headers
                );
            }
        }
    }
    assert_eq!(given, 3);
    assert_eq!(world.get(&other.key, "/v1/tenant").await.status, 200);
    // The operator comes in still.
    world
        .limits(&tenant, json!({ "requests_per_minute_max": 100 }))
        .await;
    pass(&world, 40).await;
    assert_eq!(world.get(&second, "/v1/tenant").await.status, 200);
}

#[tokio::test]
async fn requests_at_once_are_all_counted() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    world
        .limits(&tenant, json!({ "caller_requests_per_minute_max": 2 }))
        .await;
    let sent = (0..40).map(|_| world.get(&tenant.key, "/v1/tenant"));
    let replies = futures_util::future::join_all(sent).await;
    let given = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!(given, 2);
}
