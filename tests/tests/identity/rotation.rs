//! The issuer's keys come and go, and so does the issuer.

use std::time::Duration;

use futures_util::future::join_all;
use management::identity::KeyTimes;
use serde_json::json;

use super::{
    issuer::{EC, Issuer, Key, Mode, RSA, RSA_LATER},
    world::{LONG, ONCE, World},
};

/// Every token that names an unknown key makes us ask.
const EACH_UNKNOWN: KeyTimes = KeyTimes {
    between_fetches: Duration::ZERO,
    ..ONCE
};
/// Every token does.
const EACH: KeyTimes = KeyTimes {
    fresh: Duration::ZERO,
    usable: LONG,
    between_fetches: Duration::ZERO,
};

async fn world(keys: &[&Key], times: KeyTimes) -> World {
    let world = World::with(Issuer::start(keys).await, times).await;
    let tenant = world.tenant("ada").await;
    world.member(&tenant, "ada", "viewer").await;
    world
}

async fn status(world: &World, key: &Key) -> u16 {
    let token = world.issuer.token(key, "ada");
    world.get(&token, "/v1/tenant").await.status.as_u16()
}

#[tokio::test]
async fn a_new_key_is_known_after_one_call() {
    let world = world(&[&RSA], EACH_UNKNOWN).await;
    assert_eq!(world.issuer.calls(), 0, "nobody has sent a token yet");
    assert_eq!(status(&world, &RSA).await, 200);
    assert_eq!(status(&world, &RSA).await, 200);
    assert_eq!(world.issuer.calls(), 1);
    world.issuer.set_keys(&[&RSA, &RSA_LATER, &EC]);
    assert_eq!(status(&world, &RSA_LATER).await, 200);
    assert_eq!(status(&world, &RSA_LATER).await, 200);
    assert_eq!(status(&world, &EC).await, 200);
    assert_eq!(world.issuer.calls(), 2);
}

#[tokio::test]
async fn a_key_that_is_withdrawn_is_refused_once_the_keys_are_old() {
    let kept = world(&[&RSA, &EC], ONCE).await;
    let asked = world(&[&RSA, &EC], EACH).await;
    for world in [&kept, &asked] {
        assert_eq!(status(world, &RSA).await, 200);
        world.issuer.set_keys(&[&EC]);
    }
    assert_eq!(status(&kept, &RSA).await, 200);
    let token = asked.token("ada");
    let reply = asked.get(&token, "/v1/tenant").await;
    reply.refused(401, "invalid_token");
    assert_eq!(status(&asked, &EC).await, 200);
}

#[tokio::test]
async fn without_keys_the_answer_is_503_until_the_issuer_is_back() {
    let world = world(&[&RSA], EACH_UNKNOWN).await;
    let strange = format!("{}9", world.issuer.url);
    let many = vec![RSA.jwk(); 100];
    for mode in [
        Mode::Broken,
        Mode::Redirects,
        Mode::Endless,
        Mode::Nonsense,
        Mode::Describes(json!({ "issuer": strange })),
        Mode::Describes(json!({ "issuer": null })),
        Mode::Describes(json!({ "jwks_uri": null })),
        Mode::Describes(json!({ "jwks_uri": "http://192.0.2.1/jwks" })),
        Mode::Describes(json!({ "jwks_uri": "file:///etc/passwd" })),
        Mode::Describes(json!({ "jwks_uri": format!("{}/nowhere", world.issuer.url) })),
        Mode::Shows(json!({ "keys": many })),
        Mode::Shows(json!({ "error": "later" })),
    ] {
        world.issuer.set_mode(mode);
        let reply = world.get(&world.token("ada"), "/v1/tenant").await;
        reply.refused(503, "issuer_unavailable");
        assert_eq!(reply.retry_after(), 2);
        assert!(
            !reply.body.to_string().contains("127.0.0.1"),
            "{}",
            reply.body
        );
    }
    world.issuer.set_mode(Mode::Up);
    assert_eq!(status(&world, &RSA).await, 200);
}

#[tokio::test]
async fn keys_that_were_seen_serve_while_the_issuer_is_away() {
    let world = world(&[&RSA], EACH).await;
    assert_eq!(status(&world, &RSA).await, 200);
    world.issuer.set_mode(Mode::Broken);
    assert_eq!(status(&world, &RSA).await, 200);
    assert_eq!(world.issuer.calls(), 2);
    // Whether the issuer has this one by now cannot be told.
    let token = world.issuer.token(&RSA_LATER, "ada");
    let reply = world.get(&token, "/v1/tenant").await;
    reply.refused(503, "issuer_unavailable");
}

#[tokio::test]
async fn an_issuer_that_is_down_is_not_asked_by_every_request() {
    let world = world(&[&RSA], ONCE).await;
    world.issuer.set_mode(Mode::Broken);
    for _ in 0..20 {
        assert_eq!(status(&world, &RSA).await, 503);
    }
    assert_eq!(world.issuer.calls(), 1);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_no_flood_of_calls() {
    let world = world(&[&RSA], ONCE).await;
    let tokens: Vec<String> = (0..200)
        .map(|number| {
            let header = json!({ "alg": "RS256", "kid": format!("made-up-{number}") });
            RSA.token(&header, &world.issuer.claims("ada", &json!({})))
        })
        .collect();
    let sent = tokens.iter().map(|token| world.get(token, "/v1/tenant"));
    for reply in join_all(sent).await {
        reply.refused(401, "invalid_token");
    }
    assert_eq!(world.issuer.calls(), 1);
    assert_eq!(status(&world, &RSA).await, 200);
    assert_eq!(world.issuer.calls(), 1);
}

#[tokio::test]
async fn many_at_once_ask_once_and_wait_for_the_answer() {
    let world = world(&[&RSA], ONCE).await;
    world
        .issuer
        .set_mode(Mode::Slow(Duration::from_millis(300)));
    let sent = (0..20).map(|_| status(&world, &RSA));
    assert_eq!(join_all(sent).await, [200; 20]);
    assert_eq!(world.issuer.calls(), 1);
}
