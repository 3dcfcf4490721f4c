//! Two tenants of one process: nothing of the one in any answer to the other.

use serde_json::{Value, json};

use crate::{
    carillon::shared,
    tenant::{Tenant, text, unique},
};

/// In every text that the first tenant wrote, and so in its outputs.
const CANARY: &str = "canary-of-the-first";

#[tokio::test]
async fn nothing_of_one_tenant_is_told_to_another() {
    let carillon = shared().await;
    let first = Tenant::new(&carillon, CANARY).await;
    let second = Tenant::new(&carillon, "second").await;
    let ids = canaries(&first).await;
    // So that its lists are not empty.
    let own = second
        .prompt(json!({ "destinations": [second.webhook("/own")] }))
        .await;
    second.run(&own).await;

    let api = second.get("/openapi.json").await;
    let mut asked = 0;
    for (path, methods) in api["paths"].as_object().unwrap() {
        if path.starts_with("/v1/admin") {
            continue;
        }
        for method in methods.as_object().unwrap().keys() {
            for id in &ids {
                asked += 1;
                ask(&second, method, path, id, &ids).await;
                if !path.contains("{id}") {
                    break;
                }
            }
        }
    }
    assert!(asked > 100, "only {asked} requests");
    for query in ["/v1/runs?prompt_id=", "/v1/audit-events?target_id="] {
        for id in &ids {
            let reply = second.send("GET", &format!("{query}{id}"), None).await;
            let echoed = reply.text.replace(id.as_str(), "");
            assert_foreign_to(&ids, &echoed, query);
        }
    }
    for id in &ids[..2] {
        let kind = if id == &ids[0] { "prompts" } else { "runs" };
        let found = first.get(&format!("/v1/{kind}/{id}")).await;
        assert_eq!(found["id"], id.as_str(), "the first tenant lost it");
    }
}

/// Makes one of everything for a tenant, and gives the ids: the prompt's and the run's first.
async fn canaries(tenant: &Tenant) -> Vec<String> {
    let prompt = tenant
        .prompt(json!({
            "prompt_name": CANARY, "description": CANARY, "external_id": CANARY,
            "prompt_text": unique(CANARY), "system_text": CANARY, "tags": [CANARY],
            "context": { "canary": CANARY }, "metadata": { "canary": CANARY },
            "destinations": [tenant.webhook(&format!("/{CANARY}")), { "kind": "storage" }],
            "notification_email": format!("{CANARY}@reader.example"),
        }))
        .await;
    let run = tenant.run(&prompt).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert!(text(&run["output"]).contains(CANARY), "{run}");
    let key = json!({ "name": CANARY, "role": "viewer" });
    let key = tenant.post("/v1/api-keys", key).await;
    let mut ids = vec![text(&prompt["id"]).to_owned(), text(&run["id"]).to_owned()];
    ids.push(text(&key["id"]).to_owned());
    for delivery in tenant.deliveries(&run).await {
        ids.push(text(&delivery["id"]).to_owned());
    }
    ids.push(text(&tenant.get("/v1/tenant").await["id"]).to_owned());
    ids
}

/// One request of the API's document, with an id that is not the caller's to know.
async fn ask(caller: &Tenant, method: &str, path: &str, id: &str, ids: &[String]) {
    let concrete = path.replace("{id}", id);
    let body = (method != "get").then(|| json!({}));
    let reply = caller
        .send(&method.to_uppercase(), &concrete, body.as_ref())
        .await;
    let asked = format!("{method} {concrete}");
    if path.contains("{id}") {
        // A body or a header that is missing may be named first.
        let hidden = [404, 400, 415, 422, 428].contains(&reply.status);
        assert!(hidden, "{asked}: {} {}", reply.status, reply.text);
        if method == "get" {
            assert_eq!(reply.status, 404, "{asked}: {}", reply.text);
        }
    }
    let told = reply.text.replace(&concrete, "");
    assert_foreign_to(ids, &told, &asked);
}

#[track_caller]
fn assert_foreign_to(ids: &[String], told: &str, asked: &str) {
    assert!(!told.contains(CANARY), "{asked}: {told}");
    for id in ids {
        assert!(!told.contains(id.as_str()), "{asked}: {told}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_shut_out() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "shut").await;
    let made = json!({ "name": "for a while", "role": "owner" });
    let made = tenant.post("/v1/api-keys", made).await;
    let other = Tenant::with_key(&carillon, text(&made["key"]));
    other.get("/v1/prompts").await;
    let path = format!("/v1/api-keys/{}", text(&made["id"]));
    assert_eq!(tenant.send("DELETE", &path, None).await.status, 204);
    let refused: Value = other.send("GET", "/v1/prompts", None).await.body;
    assert_eq!(refused["status"], 401, "{refused}");
    tenant.get("/v1/prompts").await;
}
