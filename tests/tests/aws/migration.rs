//! What the migration of a deployed stack does when it is called again.

use std::sync::{Arc, Mutex};

use axum::{Router, extract::State, routing::put};
use serde_json::{Value, json};

use crate::{
    database::{ADMIN, ADMIN_PASSWORD},
    emulator::answer,
    journey::text,
    stack::Stack,
};

pub(crate) async fn judge(stack: &Stack, key: &str) {
    repeat(stack).await;
    rotate(stack, key).await;
    go_back(stack).await;
    refuse(stack).await;
}

/// What the deployment left is whole: the roles log in with the passwords of their secrets, and no
/// other function could do what the migration did.
async fn repeat(stack: &Stack) {
    let again = stack.invoke("Migrate", &json!({})).await;
    assert_eq!((again.ok, &again.body), (true, &json!({"applied": []})));
    for (output, role) in [
        ("DatabaseSecretArn", "carillon_app"),
        ("SystemDatabaseSecretArn", "carillon_system"),
    ] {
        let secret = stack.emulator.secret(stack.output(output)).await;
        assert_eq!(secret["username"], role);
        assert!(
            stack.database.admits(role, text(&secret["password"])).await,
            "{role}"
        );
        assert!(!stack.database.admits(role, "").await, "{role}");
    }
}

/// "New database passwords" of `docs/deploy.md`.
async fn rotate(stack: &Stack, key: &str) {
    let arn = stack.output("DatabaseSecretArn");
    let old = stack.emulator.secret(arn).await;
    let mut new = old.clone();
    new["password"] = json!("another \"one' with $igns");
    stack.emulator.put_secret(arn, &new).await;
    assert!(
        !stack
            .database
            .admits("carillon_app", text(&new["password"]))
            .await
    );
    let set = stack
        .invoke("Migrate", &json!({"RequestType": "Update"}))
        .await;
    assert!(set.ok, "{set:?}");
    assert!(
        stack
            .database
            .admits("carillon_app", text(&new["password"]))
            .await
    );
    assert!(
        !stack
            .database
            .admits("carillon_app", text(&old["password"]))
            .await
    );
    let superuser = stack.database.superuser().await;
    superuser
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'carillon_app'",
        )
        .await
        .unwrap();
    // Functions whose connections are gone find the new one by themselves.
    let request = stack
        .emulator
        .http
        .get(format!("{}/v1/prompts", stack.api()));
    let prompts: Value = serde_json::from_str(&answer(request.bearer_auth(key)).await).unwrap();
    assert_eq!(prompts["items"].as_array().unwrap().len(), 3, "{prompts}");
}

/// A roll-back calls an older program on a newer database.
async fn go_back(stack: &Stack) {
    let superuser = stack.database.superuser().await;
    superuser
        .batch_execute(
            "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
             VALUES (999, 'newer', '2026-01-01T00:00:00Z', '1')",
        )
        .await
        .unwrap();
    let again = stack
        .invoke("Migrate", &json!({"RequestType": "Update"}))
        .await;
    assert_eq!((again.ok, &again.body), (true, &json!({"applied": []})));
}

/// A failure is told with its reason, where CloudFormation waits and where somebody called by hand; and
/// a stack that goes takes nothing along.
async fn refuse(stack: &Stack) {
    let (url, told) = bucket().await;
    let wrong = json!({"username": ADMIN, "password": format!("{ADMIN_PASSWORD} not")});
    stack.emulator.put_secret(&stack.admin_secret, &wrong).await;
    let mut event = json!({"RequestType": "Update", "ResponseURL": url, "StackId": "stack",
        "RequestId": "request", "LogicalResourceId": "Migration", "PhysicalResourceId": "migrations"});
    assert!(
        stack.invoke("Migrate", &event).await.ok,
        "told twice: it would be called again"
    );
    event["RequestType"] = json!("Delete");
    assert!(stack.invoke("Migrate", &event).await.ok);
    let by_hand = stack.invoke("Migrate", &json!({})).await;
    assert!(!by_hand.ok, "{by_hand:?}");

    let told = told.lock().unwrap().clone();
    let statuses: Vec<_> = told.iter().map(|answer| text(&answer["Status"])).collect();
    assert_eq!(statuses, ["FAILED", "SUCCESS"], "{told:?}");
    for reason in [&told[0]["Reason"], &by_hand.body["errorMessage"]] {
        assert!(
            text(reason).contains("password authentication failed"),
            "{reason}"
        );
        assert!(!text(reason).contains(ADMIN_PASSWORD), "{reason}");
    }
    for answer in &told {
        assert_eq!(answer["PhysicalResourceId"], "migrations", "{answer}");
        assert_eq!(
            (&answer["StackId"], &answer["RequestId"]),
            (&json!("stack"), &json!("request"))
        );
    }
    let superuser = stack.database.superuser().await;
    let row = superuser
        .query_one("SELECT count(*) FROM tenants", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

type Told = Arc<Mutex<Vec<Value>>>;

/// Where CloudFormation has its answers put.
async fn bucket() -> (String, Told) {
    let told = Told::default();
    let router = Router::new()
        .route(
            "/answer",
            put(async |State(told): State<Told>, body: String| {
                told.lock()
                    .unwrap()
                    .push(serde_json::from_str(&body).unwrap());
            }),
        )
        .with_state(Arc::clone(&told));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = format!("http://{}/answer", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, told)
}
