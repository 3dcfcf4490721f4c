//! Model calls that fail, each in its way.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tests::peers;

use crate::{
    carillon::{Carillon, shared},
    tenant::{Tenant, each, text, unique},
};

const MODEL: &str = "openai/gpt-5-mini";
const NOTIFIED: &str = "alarm@reader.example";

/// Runs a prompt whose text makes the emulator behave so.
async fn run(tenant: &Tenant, prompt_text: &str, change: Value) -> Value {
    let run = tenant.run(&prompt(tenant, prompt_text, change).await).await;
    tenant.settled(&run).await;
    run
}

async fn prompt(tenant: &Tenant, prompt_text: &str, mut change: Value) -> Value {
    change["prompt_text"] = json!(unique(prompt_text));
    if change["model"].is_null() {
        change["model"] = json!(MODEL);
    }
    tenant.prompt(change).await
}

#[track_caller]
fn attempts<'a>(run: &'a Value, field: &str) -> Vec<&'a str> {
    each(run["attempts"].as_array().unwrap(), field)
}

/// The notices that were sent about a run: purpose and subject of each.
async fn notices(carillon: &Carillon, tenant: &Tenant, run: &Value) -> Vec<(String, String)> {
    let mut notices = Vec::new();
    for delivery in tenant.settled(run).await {
        let purpose = text(&delivery["purpose"]);
        if purpose == "output" {
            continue;
        }
        assert_eq!(delivery["status"], "delivered", "{delivery}");
        let file = format!("{}.eml", text(&delivery["id"]));
        let mail = peers::read_mail(&carillon.outbox().join(file))
            .await
            .unwrap();
        assert_eq!(mail["to"], NOTIFIED);
        assert!(text(&mail["text"]).contains(text(&run["id"])), "{mail}");
        notices.push((purpose.to_owned(), text(&mail["subject"]).to_owned()));
    }
    notices
}

#[tokio::test]
async fn a_rate_limit_is_waited_out() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "limited").await;
    let marker = unique("");
    peers::aimock_limits_once(&marker, 2).await.unwrap();
    let change = json!({ "model": MODEL, "prompt_text": marker });
    let run = tenant.run(&tenant.prompt(change).await).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["output"], "Second time lucky.");
    assert_eq!(
        (&run["attempt"], &run["error_code"]),
        (&json!(2), &Value::Null)
    );
    assert_eq!(attempts(&run, "status"), ["error", "ok"]);
    assert_eq!(run["attempts"][0]["error_code"], "rate_limited");
    // The provider's floor, by the database's clock.
    let begun = |attempt: &Value| {
        text(&attempt["started_at"])
            .parse::<DateTime<Utc>>()
            .unwrap()
    };
    let wait = begun(&run["attempts"][1]) - begun(&run["attempts"][0]);
    assert!(wait >= TimeDelta::seconds(2), "{run}");
}

#[tokio::test]
async fn what_asking_again_does_not_mend_fails_at_once() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "final").await;
    for (model, fixture, code) in [
        (MODEL, "quota", "quota_exhausted"),
        (MODEL, "bad-key", "provider_auth"),
        (MODEL, "content-filter", "output_filtered"),
        ("anthropic/claude-haiku-4-5", "refusal", "model_refused"),
    ] {
        let change = json!({ "model": model, "notification_email": NOTIFIED });
        let run = run(&tenant, &format!("[fixture:{fixture}]"), change).await;
        assert_eq!(run["status"], "failed", "{run}");
        assert_eq!(run["error_code"], code, "{run}");
        assert_eq!(run["reason"], code);
        assert_eq!(run["output"], Value::Null);
        assert_eq!(attempts(&run, "status"), ["error"]);
        let subject = "Failed: Harbour watch".to_owned();
        let expected = [("failure_notice".to_owned(), subject)];
        assert_eq!(notices(&carillon, &tenant, &run).await, expected);
    }
}

#[tokio::test]
async fn an_output_that_was_cut_is_kept_and_said() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "cut").await;
    let run = run(&tenant, "[fixture:truncated]", json!({})).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["output"], "The report breaks off in the mid");
    assert_eq!(run["output_truncated"], true);
}

#[tokio::test]
async fn a_call_that_takes_too_long_times_out() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "late").await;
    let change = json!({ "timeout_ms": 1000, "max_retries": 0, "notification_email": NOTIFIED });
    let prompt = prompt(&tenant, "[fixture:slow]", change).await;
    let run = tenant.run(&prompt).await;
    assert_eq!(run["status"], "timed_out", "{run}");
    assert_eq!(run["error_code"], "provider_timeout");
    // The call may have been billed.
    assert_eq!(attempts(&run, "status"), ["unknown"]);
    assert_eq!(notices(&carillon, &tenant, &run).await.len(), 1);
    let prompt = tenant.read_prompt(&prompt).await;
    assert_eq!(prompt["failure_count"], 1, "{prompt}");
}

#[tokio::test]
async fn a_broken_provider_is_tried_as_often_as_the_prompt_says() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "broken").await;
    let change = json!({ "max_retries": 2, "notification_email": NOTIFIED });
    let prompt = prompt(&tenant, "[fixture:server-error]", change).await;
    let run = tenant.run(&prompt).await;
    assert_eq!(run["status"], "failed", "{run}");
    assert_eq!(run["error_code"], "provider_unavailable");
    assert_eq!(
        (&run["attempt"], &run["attempts_max"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(attempts(&run, "status"), ["error"; 3]);
    assert_eq!(notices(&carillon, &tenant, &run).await.len(), 1);
    let read = tenant.read_prompt(&prompt).await;
    assert_eq!(read["run_count"], 1, "{read}");
    assert_eq!(read["failure_count"], 1, "{read}");

    // Somebody asks for more: as many tries again, and no second failure of the same run.
    let path = format!("/v1/runs/{}/retry", text(&run["id"]));
    tenant.post(&path, json!({})).await;
    let run = tenant.ended(&run).await;
    assert_eq!(
        (&run["status"], &run["attempt"]),
        (&json!("failed"), &json!(6))
    );
    let read = tenant.read_prompt(&prompt).await;
    assert_eq!(read["failure_count"], 1, "{read}");
    let about_it = mails_about(&carillon, &run).await;
    let recorded = notices(&carillon, &tenant, &run).await;
    assert_eq!(
        about_it,
        recorded.len(),
        "a mail went out that no row knows"
    );
}

/// Every mail in the outbox that names a run, whether a delivery knows it or not.
async fn mails_about(carillon: &Carillon, run: &Value) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(carillon.outbox()).unwrap() {
        let path = entry.unwrap().path();
        // A draft has a name of its own, and may be gone by now.
        if path.extension().is_some_and(|end| end == "eml") {
            let mail = peers::read_mail(&path).await.unwrap();
            count += usize::from(text(&mail["text"]).contains(text(&run["id"])));
        }
    }
    count
}

#[tokio::test]
async fn a_prompt_that_keeps_failing_is_paused() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "paused").await;
    let change = json!({ "pause_after_failures": 2, "notification_email": NOTIFIED,
        "schedule": { "type": "daily", "at": "09:00", "timezone": "UTC" } });
    let prompt = prompt(&tenant, "[fixture:quota]", change).await;
    let mut purposes = Vec::new();
    for _ in 0..2 {
        let run = tenant.run(&prompt).await;
        let notices = notices(&carillon, &tenant, &run).await;
        purposes.extend(notices.into_iter().map(|(purpose, _)| purpose));
    }
    assert_eq!(purposes, ["failure_notice", "paused_notice"]);
    let paused = tenant.read_prompt(&prompt).await;
    assert_eq!(paused["status"], "paused", "{paused}");
    assert_eq!(paused["status_reason"], "failures");
    assert_eq!(paused["next_run_at"], Value::Null);
    assert_eq!(paused["consecutive_failures"], 2);
    let trail = "/v1/audit-events?action=prompt.paused";
    let path = format!("{trail}&target_id={}", text(&prompt["id"]));
    let events = tenant.get(&path).await;
    let events = events["items"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["actor_kind"], "system");
    assert_eq!(events[0]["detail"]["reason"], "failures");
    assert_eq!(events[0]["detail"]["note"], paused["status_note"]);

    let path = format!("/v1/prompts/{}/resume", text(&prompt["id"]));
    let resumed = tenant.post(&path, json!({})).await;
    assert_eq!(resumed["status"], "active", "{resumed}");
    assert_eq!(resumed["status_reason"], Value::Null);
    assert_eq!(resumed["consecutive_failures"], 0);
    assert_eq!(resumed["next_run_at"], prompt["next_run_at"]);
}

#[tokio::test]
async fn a_run_under_way_can_be_cancelled() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "cancelled").await;
    let change = json!({ "destinations": [tenant.webhook("/cancelled")] });
    let prompt = prompt(&tenant, "[fixture:slow]", change).await;
    let run = tenant.start(&prompt).await;
    let running = |run: &Value| run["status"] == "running";
    tenant.until(&run, "the run to begin", running).await;
    let path = format!("/v1/runs/{}/cancel", text(&run["id"]));
    let cancelled = tenant.post(&path, json!({})).await;
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(cancelled["reason"], "user");

    // The model answers later: what that cost is kept, and nothing else.
    let answered = |run: &Value| run["attempts"][0]["status"] == "ok";
    let run = tenant.until(&run, "the late answer", answered).await;
    assert_eq!(run["status"], "cancelled", "{run}");
    assert_eq!(run["output"], Value::Null);
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(run["attempts"][0]["output_tokens"], 4);
    assert!(tenant.deliveries(&run).await.is_empty());
    assert!(tenant.received("").await.is_empty());
    let prompt = tenant.read_prompt(&prompt).await;
    assert_eq!(
        (&prompt["success_count"], &prompt["failure_count"]),
        (&json!(0), &json!(0))
    );
}
