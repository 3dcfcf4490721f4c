//! Processes that end, well or badly, and what the next one finds.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::peers;

use crate::{
    carillon::{Carillon, Home, ended, eventually, signal},
    clock::assert_one_body_per_id,
    tenant::{Tenant, each, text, unique},
};

/// A lease that ends soon after its process.
const SHORT_LEASE: [&str; 2] = ["--lease-ms", "2000"];

/// Starts a prompt's run whose model answers so much later, once it is under way.
async fn slow_run(tenant: &Tenant, latency_ms: u32, destination: Value) -> Value {
    let marker = unique("");
    let answer = "Worth the wait.";
    peers::aimock_answers(&marker, answer, latency_ms)
        .await
        .unwrap();
    let prompt = json!({ "model": "openai/gpt-5-mini", "prompt_text": marker,
        "destinations": [destination] });
    let run = tenant.start(&tenant.prompt(prompt).await).await;
    // The attempts may be read a moment later than the run's own columns.
    let begun =
        |run: &Value| run["status"] == "running" && run["attempts"][0]["status"] == "started";
    tenant.until(&run, "the model call to begin", begun).await
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_had_begun() {
    let home = Home::new();
    let carillon = home.start(&SHORT_LEASE).await;
    let tenant = Tenant::first(&carillon);
    let prompt = json!({ "destinations": [tenant.webhook("/sending/slow/4")] });
    let sending = tenant.start(&tenant.prompt(prompt).await).await;
    let arrived = async || (!tenant.received("/sending").await.is_empty()).then_some(());
    let asking = slow_run(&tenant, 4_000, tenant.webhook("/asking")).await;
    eventually("the webhook at its receiver", arrived).await;
    carillon.kill().await;

    let carillon = home.start(&SHORT_LEASE).await;
    assert!(carillon.first_key.is_none(), "a second first tenant");
    let tenant = tenant.at(&carillon);
    let sent = tenant.ended(&sending).await;
    assert_eq!(sent["status"], "succeeded", "{sent}");
    // Its answer was on record: the model was not asked again.
    assert_eq!(sent["attempt"], 1);
    let received = tenant.received("/sending").await;
    assert!(received.len() >= 2, "the lost delivery was not sent again");
    let ids: Vec<_> = received
        .iter()
        .map(|one| &one["headers"]["webhook-id"])
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_one_body_per_id(&received);

    let asked = tenant.ended(&asking).await;
    assert_eq!(asked["status"], "succeeded", "{asked}");
    assert_eq!(
        each(asked["attempts"].as_array().unwrap(), "status"),
        ["unknown", "ok"]
    );
    assert_eq!(asked["rendered_input"], asking["rendered_input"]);
    assert_eq!(tenant.received("/asking").await.len(), 1);
    carillon.stop().await;
}

#[tokio::test]
async fn a_lease_outlasts_what_is_slower_than_it() {
    let carillon = Home::new().start(&["--lease-ms", "1000"]).await;
    let tenant = Tenant::first(&carillon);
    let run = slow_run(&tenant, 3_000, tenant.webhook("/slow/3")).await;
    let run = tenant.ended(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(each(run["attempts"].as_array().unwrap(), "status"), ["ok"]);
    let deliveries = tenant.deliveries(&run).await;
    assert_eq!(deliveries[0]["attempt"], 1, "{deliveries:?}");
    assert_eq!(tenant.received("").await.len(), 1);
    carillon.stop().await;
}

#[tokio::test]
async fn an_interrupt_lets_running_work_finish() {
    let home = Home::new();
    let mut carillon = home.start(&[]).await;
    let tenant = Tenant::first(&carillon);
    let run = slow_run(&tenant, 3_000, tenant.webhook("/finished")).await;
    // A caller that never finishes its request must not keep the process.
    let mut idle = TcpStream::connect(carillon.url.strip_prefix("http://").unwrap()).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        .unwrap();
    carillon.interrupt();
    let status = carillon.ended().await;
    assert_eq!(status.code(), Some(0), "{}", carillon.written());
    assert_eq!(home.postgres_processes(), [""; 0]);
    let _ = idle.read(&mut [0; 16]);
    drop(carillon);
    assert_eq!(tenant.received("/finished").await.len(), 1);

    let carillon = home.start(&[]).await;
    let tenant = tenant.at(&carillon);
    let run = tenant.read_run(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["attempt"], 1);
    let again = tenant.run(&tenant.prompt(json!({})).await).await;
    assert_eq!(again["status"], "succeeded", "{again}");
    carillon.stop().await;
}

#[tokio::test]
async fn an_interrupt_while_it_starts_leaves_nothing_running() {
    let home = Home::new();
    let (mut child, _) = home.spawn(&[], &[]);
    let starting = async || home.data_dir().join("lock").exists().then_some(());
    eventually("the data folder", starting).await;
    signal(&child, Signal::INT);
    let status = ended(&mut child).await;
    assert!(!status.success());
    assert_eq!(home.postgres_processes(), [""; 0]);
    home.start(&[]).await.stop().await;
}

#[tokio::test]
async fn what_is_taken_is_named() {
    let home = Home::new();
    let carillon = home.start(&[]).await;
    let said = refusal(&home, &[]).await;
    assert!(said.contains("another carillon runs on"), "{said}");
    assert!(said.contains("choose another data folder"), "{said}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = Home::new();
    let said = refusal(&other, &["--listen", &address]).await;
    assert!(
        said.contains(&format!("cannot listen on {address}")),
        "{said}"
    );
    assert!(said.contains("--listen"), "{said}");
    assert!(!other.data_dir().join("cluster").exists());
    serves(&carillon).await;
    carillon.stop().await;
}

/// What `carillon up` says when it does not start.
async fn refusal(home: &Home, arguments: &[&str]) -> String {
    let (mut child, log) = home.spawn(arguments, &[]);
    let status = ended(&mut child).await;
    assert_eq!(status.code(), Some(1));
    std::fs::read_to_string(log).unwrap()
}

async fn serves(carillon: &Carillon) {
    let tenant = Tenant::first(carillon);
    let health = tokio::time::timeout(Duration::from_secs(10), tenant.get("/health"));
    assert_eq!(text(&health.await.unwrap()["status"]), "healthy");
}
