//! The routes of a tenant's users.

use serde_json::{Value, json};

use super::world::{Reply, Tenant, World, text};

async fn post(world: &World, tenant: &Tenant, body: Value) -> Reply {
    world
        .send(&tenant.key, "POST", "/v1/users", Some(body))
        .await
}

async fn patch(world: &World, credential: &str, path: &str, body: Value) -> Reply {
    world.send(credential, "PATCH", path, Some(body)).await
}

#[tokio::test]
async fn an_owner_adds_reads_changes_and_removes() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let body = json!({ "email": "Bob@people.example", "role": "editor",
                       "identity": { "subject": "bob" } });
    let made = post(&world, &tenant, body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let path = format!("/v1/users/{}", text(&made.body["id"]));
    assert_eq!(made.headers["location"], path);
    assert_eq!(made.headers["etag"], "\"1\"");
    let identity = json!({ "issuer": world.issuer.url, "subject": "bob" });
    assert_eq!(made.body["identity"], identity);
    let read = world.get(&tenant.key, &path).await;
    assert_eq!(
        (read.headers["etag"].to_str().unwrap(), &read.body),
        ("\"1\"", &made.body)
    );
    let listed = world.get(&tenant.key, "/v1/users").await.body;
    assert_eq!(listed["items"][0], made.body);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);

    let changed = patch(&world, &tenant.key, &path, json!({ "role": "viewer" })).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    assert_eq!(changed.headers["etag"], "\"2\"");
    assert_eq!(changed.body["identity"], identity);
    let same = patch(&world, &tenant.key, &path, json!({ "role": "viewer" })).await;
    assert_eq!(same.headers["etag"], "\"2\"");
    let stale = world
        .send_with(
            &tenant.key,
            "PATCH",
            &path,
            Some(json!({ "role": "owner" })),
            &[("if-match", "\"1\"")],
        )
        .await;
    stale.refused(412, "version_changed");
    let without = patch(&world, &tenant.key, &path, json!({ "identity": null })).await;
    assert_eq!(without.body["identity"], Value::Null);
    assert_eq!(without.body["role"], "viewer");

    for _ in 0..2 {
        let gone = world.send(&tenant.key, "DELETE", &path, None).await;
        assert_eq!(gone.status, 204);
    }
    world
        .get(&tenant.key, &path)
        .await
        .refused(404, "not_found");
    let again = patch(&world, &tenant.key, &path, json!({ "role": "owner" })).await;
    again.refused(404, "not_found");
    let listed = world.get(&tenant.key, "/v1/users").await.body;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    let events = world
        .get(&tenant.key, "/v1/audit-events?limit=5")
        .await
        .body;
    let events = events["items"].as_array().unwrap().iter();
    let actions: Vec<_> = events.map(|event| text(&event["action"])).collect();
    assert_eq!(
        actions[..4],
        [
            "user.removed",
            "user.updated",
            "user.updated",
            "user.created"
        ]
    );
    // The address holds the same person, who comes back as who they were.
    let back = json!({ "email": "bob@people.example", "role": "viewer" });
    let back = post(&world, &tenant, back).await;
    assert_eq!(
        (back.status.as_u16(), &back.body["id"]),
        (201, &made.body["id"])
    );
}

#[tokio::test]
async fn no_two_users_of_a_tenant_are_the_same_person() {
    let world = World::new().await;
    let (tenant, other) = (world.tenant("ada").await, world.tenant("other").await);
    let bob = |email: &str, subject: &str| json!({ "email": email, "role": "viewer", "identity": { "subject": subject } });
    let first = post(&world, &tenant, bob("bob@people.example", "bob")).await;
    assert_eq!(first.status, 201);
    let taken = post(&world, &tenant, bob("BOB@people.example", "bob-2")).await;
    taken.refused(409, "email_taken");
    let taken = post(&world, &tenant, bob("bob-2@people.example", "bob")).await;
    taken.refused(409, "identity_taken");
    let second = post(&world, &tenant, bob("bob-2@people.example", "bob-2")).await;
    let path = format!("/v1/users/{}", text(&second.body["id"]));
    for (change, code) in [
        (json!({ "email": "bob@people.example" }), "email_taken"),
        (
            json!({ "identity": { "subject": "bob" } }),
            "identity_taken",
        ),
    ] {
        let refused = patch(&world, &tenant.key, &path, change).await;
        refused.refused(409, code);
    }
    assert_eq!(world.get(&tenant.key, &path).await.body, second.body);
    // Another tenant may have all of them.
    let theirs = post(&world, &other, bob("bob@people.example", "bob")).await;
    assert_eq!(theirs.status, 201, "{}", theirs.body);
}

#[tokio::test]
async fn some_owner_can_always_come_in() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let first = world.get(&tenant.key, "/v1/users").await.body;
    let first = format!("/v1/users/{}", text(&first["items"][0]["id"]));
    let refuse = async |credential: &str, path: &str| {
        let gone = world.send(credential, "DELETE", path, None).await;
        gone.refused(409, "last_owner");
        let lower = patch(&world, credential, path, json!({ "role": "editor" })).await;
        lower.refused(409, "last_owner");
    };
    refuse(&tenant.key, &first).await;
    // An owner who has neither a key nor an identity cannot come in.
    let mute = json!({ "email": "mute@people.example", "role": "owner" });
    assert_eq!(post(&world, &tenant, mute).await.status, 201);
    refuse(&tenant.key, &first).await;
    // Nor does a user with an identity help who is none.
    world.member(&tenant, "viewer", "viewer").await;
    refuse(&tenant.key, &first).await;
    let second = world.member(&tenant, "second", "owner").await;
    let second = format!("/v1/users/{second}");
    let token = world.token("second");
    let gone = world.send(&token, "DELETE", &first, None).await;
    assert_eq!(gone.status, 204, "{}", gone.body);
    world
        .get(&tenant.key, "/v1/tenant")
        .await
        .refused(401, "key_revoked");
    refuse(&token, &second).await;
    let without = patch(&world, &token, &second, json!({ "identity": null })).await;
    without.refused(409, "last_owner");
    // With a key of their own they need no identity, and the other way round.
    let body = json!({ "name": "mine", "role": "owner" });
    let key = world
        .send(&token, "POST", "/v1/api-keys", Some(body))
        .await
        .body;
    let revoke = format!("/v1/api-keys/{}", text(&key["id"]));
    let key = text(&key["key"]);
    let without = patch(&world, &token, &second, json!({ "identity": null })).await;
    assert_eq!(without.status, 200, "{}", without.body);
    world
        .get(&token, "/v1/tenant")
        .await
        .refused(403, "not_a_member");
    let refused = world.send(&key, "DELETE", &revoke, None).await;
    refused.refused(409, "last_owner_key");
    let with = json!({ "identity": { "subject": "second" } });
    assert_eq!(patch(&world, &key, &second, with).await.status, 200);
    let revoked = world.send(&key, "DELETE", &revoke, None).await;
    assert_eq!(revoked.status, 204, "{}", revoked.body);
    assert_eq!(world.get(&token, "/v1/users").await.status, 200);
}

#[tokio::test]
async fn two_owners_who_remove_each_other_leave_one() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let first = world.get(&tenant.key, "/v1/users").await.body;
    let first = text(&first["items"][0]["id"]);
    let second = world.member(&tenant, "second", "owner").await;
    let token = world.token("second");
    let (paths, credentials) = (
        [format!("/v1/users/{second}"), format!("/v1/users/{first}")],
        [&tenant.key, &token],
    );
    let (one, other) = tokio::join!(
        world.send(credentials[0], "DELETE", &paths[0], None),
        world.send(credentials[1], "DELETE", &paths[1], None),
    );
    let sql = "SELECT count(*) FROM users WHERE role = 'owner' AND removed_at IS NULL";
    let left = world.stage.count(sql).await.unwrap();
    assert_eq!(left, 1, "{} {}", one.status, other.status);
}

#[tokio::test]
async fn faults_of_a_user_are_told_at_once() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let body = json!({
        "email": "nobody", "role": "root",
        "identity": { "issuer": "https://other.example", "subject": "", "sub": "x" }, "name": "x",
    });
    let reply = post(&world, &tenant, body).await;
    reply.refused(422, "validation_failed");
    let mut faults: Vec<_> = reply.body["errors"].as_array().unwrap().iter().collect();
    faults.sort_by_key(|fault| text(&fault["field"]));
    let faults: Vec<_> = faults
        .iter()
        .map(|fault| (text(&fault["field"]), text(&fault["code"])))
        .collect();
    let expected = [
        ("email", "invalid_email"),
        ("identity.issuer", "other_issuer"),
        ("identity.sub", "unknown_field"),
        ("identity.subject", "empty"),
        ("name", "unknown_field"),
        ("role", "unknown_value"),
    ];
    assert_eq!(
        faults,
        expected.map(|(field, code)| (field.to_owned(), code.to_owned()))
    );
}

#[tokio::test]
async fn identities_can_be_given_before_there_is_an_issuer() {
    let world = World::without_tokens().await;
    let tenant = world.tenant("ada").await;
    let body = |identity: Value| json!({ "email": "bob@people.example", "role": "viewer", "identity": identity });
    let reply = post(&world, &tenant, body(json!({ "subject": "bob" }))).await;
    assert_eq!(reply.body["errors"][0]["field"], "identity.issuer");
    assert_eq!(reply.body["errors"][0]["code"], "missing");
    let identity = json!({ "issuer": "https://login.example.com", "subject": "bob" });
    let made = post(&world, &tenant, body(identity.clone())).await;
    assert_eq!(made.body["identity"], identity);
}
