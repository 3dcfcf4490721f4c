//! What becomes of an output on its way to receivers that are not at their best.

use std::fs;

use serde_json::{Value, json};
use tests::peers;

use crate::{
    carillon::{Carillon, eventually, shared},
    tenant::{Tenant, each, email, text, unique},
};

async fn tenant(carillon: &Carillon, name: &str) -> Tenant {
    let tenant = Tenant::new(carillon, name).await;
    tenant.verify_with("", &tenant.new_secret().await).await;
    tenant
}

/// Runs a prompt with this one destination; gives the prompt, the run when its deliveries are
/// through, and its delivery.
async fn deliver(tenant: &Tenant, destination: Value) -> (Value, Value, Value) {
    let prompt = tenant
        .prompt(json!({ "destinations": [destination] }))
        .await;
    let (run, delivery) = deliver_again(tenant, &prompt).await;
    (prompt, run, delivery)
}

async fn deliver_again(tenant: &Tenant, prompt: &Value) -> (Value, Value) {
    let run = tenant.run(prompt).await;
    let deliveries = tenant.settled(&run).await;
    (run, deliveries.into_iter().next().unwrap())
}

/// Sends a delivery again, and gives it when it is through.
async fn redeliver(tenant: &Tenant, run: &Value, delivery: &Value) -> Value {
    let queued = tenant.redeliver(delivery).await;
    assert_eq!(queued["status"], "pending", "{queued}");
    let settled = tenant.settled(run).await;
    let same = |one: &Value| one["id"] == delivery["id"];
    settled.into_iter().find(same).unwrap()
}

/// The same delivery in all that matters to a receiver, each with a good signature.
#[track_caller]
fn assert_same(received: &[Value], delivery: &Value, times: usize) {
    assert_eq!(received.len(), times, "{delivery}");
    for request in received {
        assert_eq!(request["verified"], true, "{request}");
        assert_eq!(request["headers"]["webhook-id"], delivery["id"]);
        assert_eq!(request["body_base64"], received[0]["body_base64"]);
    }
}

#[tokio::test]
async fn a_busy_endpoint_gets_the_same_again_with_a_new_signature() {
    let carillon = shared().await;
    let tenant = tenant(&carillon, "busy").await;
    let (_, run, delivery) = deliver(&tenant, tenant.webhook("/busy-then-ok/2")).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(delivery["status"], "delivered", "{delivery}");
    assert_eq!(delivery["attempt"], 2);
    let received = tenant.received("").await;
    assert_same(&received, &delivery, 2);
    for header in ["webhook-timestamp", "webhook-signature"] {
        let [first, second] = [0, 1].map(|n: usize| &received[n]["headers"][header]);
        assert_ne!(first, second, "{header}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_not_called_again_until_somebody_says_so() {
    let carillon = shared().await;
    let tenant = tenant(&carillon, "gone").await;
    let (prompt, run, delivery) = deliver(&tenant, tenant.webhook("/gone-then-ok/1")).await;
    let (second_run, second) = deliver_again(&tenant, &prompt).await;
    for (run, delivery, status) in [
        (&run, &delivery, json!(410)),
        (&second_run, &second, Value::Null),
    ] {
        assert_eq!(run["status"], "failed", "{run}");
        assert_eq!(run["reason"], "delivery_failed");
        assert_eq!(delivery["status"], "exhausted", "{delivery}");
        assert_eq!(delivery["error_code"], "endpoint_gone");
        assert_eq!(delivery["response_status"], status);
        // The model did its part.
        assert!(text(&run["output"]).starts_with("[echo]"), "{run}");
    }
    assert_eq!(tenant.received("").await.len(), 1);

    let again = redeliver(&tenant, &run, &delivery).await;
    assert_eq!(again["status"], "delivered", "{again}");
    assert_same(&tenant.received("").await, &delivery, 2);
    let run = tenant.read_run(&run).await;
    assert_eq!(
        (&run["status"], &run["reason"]),
        (&json!("succeeded"), &Value::Null)
    );
    let read = tenant.read_prompt(&prompt).await;
    let counters = (&read["success_count"], &read["failure_count"]);
    assert_eq!(counters, (&json!(1), &json!(1)), "{read}");
    let (third_run, _) = deliver_again(&tenant, &prompt).await;
    assert_eq!(third_run["status"], "succeeded", "{third_run}");
}

#[tokio::test]
async fn a_refusal_or_a_redirect_is_final() {
    let carillon = shared().await;
    let tenant = tenant(&carillon, "refused").await;
    for (end, code, status) in [
        ("/status/404", "endpoint_refused", 404),
        ("/redirect", "endpoint_redirects", 307),
    ] {
        let (_, run, delivery) = deliver(&tenant, tenant.webhook(end)).await;
        assert_eq!(run["status"], "failed", "{run}");
        assert_eq!(delivery["status"], "exhausted", "{delivery}");
        assert_eq!(delivery["error_code"], code);
        assert_eq!(delivery["response_status"], status);
        assert_eq!(delivery["attempt"], 1);
    }
    let received = tenant.received("").await;
    let paths = each(&received, "path");
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert!(paths[1].ends_with("/redirect"), "{paths:?}");
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_tried_later() {
    let carillon = shared().await;
    let tenant = tenant(&carillon, "unreached").await;
    // Nobody listens there.
    let nowhere = json!({ "kind": "webhook", "url": "http://127.0.0.1:1/hooks/nowhere" });
    let run = tenant
        .start(&tenant.prompt(json!({ "destinations": [nowhere] })).await)
        .await;
    let delivery = eventually("the first attempt", async || {
        let mut deliveries = tenant.deliveries(&run).await;
        deliveries.pop().filter(|one| one["status"] == "retrying")
    })
    .await;
    assert_eq!(delivery["error_code"], "endpoint_unreachable", "{delivery}");
    assert_eq!(delivery["response_status"], Value::Null);
    assert_eq!(tenant.read_run(&run).await["status"], "generated");
}

#[tokio::test]
async fn what_was_delivered_can_be_sent_again() {
    let carillon = shared().await;
    let tenant = tenant(&carillon, "again").await;
    // Longer than what a row keeps, so that the output lies in the store alone.
    let (marker, long) = (unique(""), "All quiet. ".repeat(30_000));
    peers::aimock_answers(&marker, &long, 0).await.unwrap();
    let destinations = [
        email(),
        tenant.webhook("/again"),
        json!({ "kind": "storage" }),
    ];
    let prompt = json!({ "model": "openai/gpt-5-mini", "prompt_text": marker,
        "destinations": destinations });
    let prompt = tenant.prompt(prompt).await;
    let run = tenant.run(&prompt).await;
    assert_eq!(run["status"], "succeeded", "{}", run["error_message"]);
    assert_eq!(run["output"], Value::Null);
    assert_eq!(run["output_bytes"], long.len());
    assert_eq!(fs::read(text(&run["output_uri"])).unwrap(), long.as_bytes());
    for delivery in tenant.deliveries(&run).await {
        let again = redeliver(&tenant, &run, &delivery).await;
        assert_eq!(again["status"], "delivered", "{again}");
        assert_eq!(again["attempt"], 2);
        assert_eq!(again["location"], delivery["location"]);
        if delivery["kind"] == "webhook" {
            let received = tenant.received("").await;
            assert_same(&received, &delivery, 2);
            let body: Value = serde_json::from_str(text(&received[0]["body"])).unwrap();
            assert_eq!(body["data"]["output"], long);
        }
    }
    let read = tenant.read_prompt(&prompt).await;
    let counters = (&read["success_count"], &read["failure_count"]);
    assert_eq!(counters, (&json!(1), &json!(0)), "{read}");
}

#[tokio::test]
async fn both_secrets_sign_while_a_rotation_is_under_way() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "rotated").await;
    let (old, new) = (tenant.new_secret().await, tenant.new_secret().await);
    tenant.verify_with("/old", &old).await;
    tenant.verify_with("/new", &new).await;
    let destinations = [tenant.webhook("/old"), tenant.webhook("/new")];
    let prompt = tenant.prompt(json!({ "destinations": destinations })).await;
    let run = tenant.run(&prompt).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    for end in ["/old", "/new"] {
        let received = tenant.received(end).await;
        assert_eq!(received.len(), 1);
        assert_eq!(received[0]["verified"], true, "{}", received[0]);
    }

    // A secret that was rotated away twice signs no more.
    tenant.new_secret().await;
    deliver_again(&tenant, &prompt).await;
    assert_eq!(tenant.received("/old").await[1]["verified"], false);
    assert_eq!(tenant.received("/new").await[1]["verified"], true);
}

#[tokio::test]
async fn a_test_run_delivers_nothing_and_counts_nothing() {
    let carillon = shared().await;
    let tenant = tenant(&carillon, "tested").await;
    let destinations = [
        email(),
        tenant.webhook("/tested"),
        json!({ "kind": "storage" }),
    ];
    let prompt = tenant.prompt(json!({ "destinations": destinations })).await;
    let path = format!("/v1/prompts/{}/run", text(&prompt["id"]));
    let run = tenant.post(&path, json!({ "test": true })).await;
    let run = tenant.ended(&run).await;
    assert_eq!(
        (&run["status"], &run["trigger"]),
        (&json!("succeeded"), &json!("test"))
    );
    assert!(text(&run["output"]).starts_with("[echo]"), "{run}");
    assert!(tenant.deliveries(&run).await.is_empty());
    assert!(tenant.received("").await.is_empty());
    let read = tenant.read_prompt(&prompt).await;
    for counter in [
        "run_count",
        "success_count",
        "failure_count",
        "consecutive_failures",
    ] {
        assert_eq!(read[counter], 0, "{counter}");
    }
    assert_eq!(read["last_run_at"], Value::Null);
}

#[tokio::test]
async fn a_failed_delivery_is_retried_with_its_run() {
    let carillon = shared().await;
    let tenant = tenant(&carillon, "retried").await;
    let change = json!({ "destinations": [tenant.webhook("/gone-then-ok/1")],
        "notification_email": "alarm@reader.example" });
    let prompt = tenant.prompt(change).await;
    let (run, delivery) = deliver_again(&tenant, &prompt).await;
    assert_eq!(run["status"], "failed", "{run}");
    let told = eventually("the notice", async || {
        let settled = tenant.settled(&run).await;
        settled
            .into_iter()
            .find(|one| one["purpose"] == "failure_notice")
    });
    assert_eq!(told.await["status"], "delivered");

    let path = format!("/v1/runs/{}/retry", text(&run["id"]));
    tenant.post(&path, json!({})).await;
    let run = tenant.ended(&run).await;
    let deliveries = tenant.settled(&run).await;
    assert_eq!(run["status"], "succeeded", "{deliveries:?}");
    // The model was not asked again.
    assert_eq!(run["attempt"], 1);
    assert_same(&tenant.received("").await, &delivery, 2);
}
