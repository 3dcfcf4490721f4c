//! What a token's user may do stands in our tables, and what they say holds at once.

use serde_json::json;

use super::{
    issuer::RSA,
    world::{World, id_of, text},
};

#[tokio::test]
async fn the_tenant_and_the_role_come_from_our_tables() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let ada = world.member(&tenant, "ada", "viewer").await;
    // Whatever the token says of itself.
    let boasts = json!({
        "role": "owner", "tenant_id": world.tenant("bob").await.id, "cognito:groups": ["owner"],
    });
    let token = RSA.token(&RSA.header(), &world.issuer.claims("ada", &boasts));
    let seen = world.get(&token, "/v1/tenant").await;
    assert_eq!(seen.body["id"], tenant.id.to_string(), "{}", seen.body);
    assert_eq!(world.get(&token, "/v1/prompts").await.status, 200);
    let prompt = json!({
        "prompt_name": "Brief", "prompt_text": "Write.", "model": "echo/echo-1",
        "schedule": { "type": "manual" },
    });
    let write = async || {
        world
            .send(&token, "POST", "/v1/prompts", Some(prompt.clone()))
            .await
    };
    write().await.refused(403, "role_too_low");
    world
        .get(&token, "/v1/users")
        .await
        .refused(403, "role_too_low");

    let path = format!("/v1/users/{ada}");
    let editor = json!({ "role": "editor" });
    let changed = world.send(&tenant.key, "PATCH", &path, Some(editor)).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    let made = write().await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["user_id"], ada.to_string());

    // The trail names the user, in what was done and in what was refused.
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=prompt.created")
        .await;
    let events = events.body["items"].as_array().unwrap().clone();
    let results: Vec<_> = events.iter().map(|event| text(&event["result"])).collect();
    assert_eq!(results, ["ok", "refused"]);
    for event in &events {
        assert_eq!(event["actor_kind"], "user");
        assert_eq!(event["actor_id"], ada.to_string());
        assert_eq!(event["actor_user_id"], ada.to_string());
    }

    let viewer = json!({ "role": "viewer" });
    world.send(&tenant.key, "PATCH", &path, Some(viewer)).await;
    write().await.refused(403, "role_too_low");
    let gone = world.send(&tenant.key, "DELETE", &path, None).await;
    assert_eq!(gone.status, 204);
    world
        .get(&token, "/v1/tenant")
        .await
        .refused(403, "not_a_member");
}

#[tokio::test]
async fn nobody_comes_in_by_a_token_alone() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let id = tenant.id.to_string();
    let token = world.token("stranger");
    world
        .get(&token, "/v1/tenant")
        .await
        .refused(403, "not_a_member");
    world.get_in(&token, &id).await.refused(403, "not_a_member");
    // A user without an identity is not reached by an address or an id.
    let users = world.get(&tenant.key, "/v1/users").await.body;
    let owner = &users["items"][0];
    assert_eq!(owner["identity"], json!(null));
    for subject in [text(&owner["email"]), text(&owner["id"])] {
        let token = world.token(&subject);
        world.get_in(&token, &id).await.refused(403, "not_a_member");
    }
    // Nor is one of another issuer's by the same name.
    let sql = "UPDATE users SET oidc_issuer = 'https://other.example', oidc_subject = 'stranger'";
    world.stage.admin.execute(sql, &[]).await.unwrap();
    world
        .get(&token, "/v1/tenant")
        .await
        .refused(403, "not_a_member");
}

#[tokio::test]
async fn a_user_of_several_tenants_names_one_of_theirs() {
    let world = World::new().await;
    let (first, second) = (world.tenant("first").await, world.tenant("second").await);
    let other = world.tenant("other").await;
    let token = world.token("ada");
    world.member(&first, "ada", "owner").await;
    assert_eq!(
        world.get(&token, "/v1/tenant").await.body["id"],
        first.id.to_string()
    );
    let in_second = world.member(&second, "ada", "viewer").await;
    let unnamed = world.get(&token, "/v1/tenant").await;
    unnamed.refused(403, "tenant_not_named");
    let detail = text(&unnamed.body["detail"]);
    for tenant in [&first, &second] {
        let id = tenant.id.to_string();
        assert!(detail.contains(&id), "{detail}");
        assert_eq!(world.get_in(&token, &id).await.body["id"], id);
    }
    // Each has its own role.
    let body = json!({ "name": "mine", "role": "viewer" });
    for (tenant, status) in [(&first, 201), (&second, 403)] {
        let headers = [("carillon-tenant", &*tenant.id.to_string())];
        let body = Some(body.clone());
        let made = world
            .send_with(&token, "POST", "/v1/api-keys", body, &headers)
            .await;
        assert_eq!(made.status, status, "{}", made.body);
    }
    let other = other.id.to_string();
    let nobody = uuid::Uuid::now_v7().to_string();
    for named in [&*other, &nobody, "", "first", "' OR true --"] {
        world
            .get_in(&token, named)
            .await
            .refused(403, "not_a_member");
    }
    let (a, b) = (first.id.to_string(), second.id.to_string());
    let headers = [("carillon-tenant", &*a), ("carillon-tenant", &*b)];
    world
        .send_with(&token, "GET", "/v1/tenant", None, &headers)
        .await
        .refused(403, "not_a_member");
    // Removed from one of two, they need not name the other.
    let path = format!("/v1/users/{in_second}");
    world.send(&second.key, "DELETE", &path, None).await;
    world.get_in(&token, &b).await.refused(403, "not_a_member");
    assert_eq!(world.get(&token, "/v1/tenant").await.body["id"], a);
}

#[tokio::test]
async fn a_key_is_of_one_tenant_whatever_is_named() {
    let world = World::new().await;
    let (mine, theirs) = (world.tenant("mine").await, world.tenant("theirs").await);
    let (my_id, their_id) = (mine.id.to_string(), theirs.id.to_string());
    assert_eq!(world.get_in(&mine.key, &my_id).await.body["id"], my_id);
    world
        .get_in(&mine.key, &their_id)
        .await
        .refused(403, "not_a_member");
    world
        .get_in(&mine.key, "mine")
        .await
        .refused(403, "not_a_member");
}

#[tokio::test]
async fn a_suspended_tenant_is_closed_to_tokens_and_keys() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    world.member(&tenant, "ada", "owner").await;
    world.suspend(&tenant).await;
    for credential in [&tenant.key, &world.token("ada")] {
        let reply = world.get(credential, "/v1/tenant").await;
        reply.refused(403, "tenant_suspended");
    }
}

#[tokio::test]
async fn keys_go_on_beside_tokens_and_never_exceed_their_user() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let ada = world.member(&tenant, "ada", "owner").await;
    let body = json!({ "name": "mine", "role": "owner" });
    let made = world
        .send(&world.token("ada"), "POST", "/v1/api-keys", Some(body))
        .await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["user_id"], ada.to_string());
    let key = text(&made.body["key"]);
    assert_eq!(world.get(&key, "/v1/users").await.status, 200);
    let path = format!("/v1/users/{ada}");
    let viewer = json!({ "role": "viewer" });
    let changed = world.send(&tenant.key, "PATCH", &path, Some(viewer)).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    world
        .get(&key, "/v1/users")
        .await
        .refused(403, "role_too_low");
    assert_eq!(world.get(&key, "/v1/tenant").await.status, 200);
    let gone = world.send(&tenant.key, "DELETE", &path, None).await;
    assert_eq!(gone.status, 204);
    world
        .get(&key, "/v1/tenant")
        .await
        .refused(401, "key_revoked");
    let sql = "SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL";
    assert_eq!(world.stage.count(sql).await.unwrap(), 1);
    // Coming back opens no key of before.
    world.member(&tenant, "ada", "owner").await;
    world
        .get(&key, "/v1/tenant")
        .await
        .refused(401, "key_revoked");
    assert_eq!(
        world.get(&world.token("ada"), "/v1/users").await.status,
        200
    );
    assert_ne!(id_of(&key), id_of(&tenant.key));
}
