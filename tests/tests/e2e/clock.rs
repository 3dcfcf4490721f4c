//! What waits for the next minute. All of it waits together.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use futures_util::future::join_all;
use local::child;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::peers;

use crate::{
    carillon::{Home, PATIENCE, ended_within, eventually, program, shared},
    tenant::{Tenant, each, items, text, unique},
};

/// Prompts that are due in the same minute.
const BURST: usize = 20;

#[tokio::test]
async fn what_is_due_runs_by_itself() {
    tokio::join!(
        Box::pin(slots_run_once()),
        Box::pin(no_slot_is_lost_or_doubled_by_a_kill()),
        Box::pin(the_demo_succeeds())
    );
}

async fn slots_run_once() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "clock").await;
    let slot = next_minute();
    let once = json!({ "schedule": { "type": "once", "at": slot } });
    let once = tenant.prompt(once).await;
    let minutely = tenant.prompt(every_minute()).await;
    let paused = tenant.prompt(every_minute()).await;
    let pause = format!("/v1/prompts/{}/pause", text(&paused["id"]));
    tenant.post(&pause, json!({})).await;
    assert_eq!(instant(&once["next_run_at"]), slot);
    sleep_until(slot).await;

    for prompt in [&once, &minutely] {
        let ran = eventually("the slot's run", async || {
            let runs = runs_of(&tenant, prompt).await;
            let run = runs
                .into_iter()
                .find(|run| instant(&run["scheduled_for"]) == slot);
            run.filter(|run| run["status"] == "succeeded")
        });
        assert_eq!(ran.await["trigger"], "schedule");
        assert_a_run_per_slot(&runs_of(&tenant, prompt).await);
    }
    assert!(runs_of(&tenant, &paused).await.is_empty());
    assert_eq!(runs_of(&tenant, &once).await.len(), 1);
    let once = tenant.read_prompt(&once).await;
    assert_eq!(once["status"], "completed", "{once}");
    assert_eq!(once["run_count"], 1);
    assert_eq!(once["next_run_at"], Value::Null);
    let minutely = tenant.read_prompt(&minutely).await;
    assert!(instant(&minutely["next_run_at"]) > slot, "{minutely}");
}

async fn no_slot_is_lost_or_doubled_by_a_kill() {
    let home = Home::new();
    let carillon = home.start(&["--lease-ms", "2000"]).await;
    let tenant = Tenant::first(&carillon);
    let marker = unique("");
    peers::aimock_answers(&marker, "All quiet.", 700)
        .await
        .unwrap();
    let made = (0..BURST).map(async |n| {
        let mut change = every_minute();
        change["model"] = json!("openai/gpt-5-mini");
        change["prompt_text"] = json!(marker);
        change["overlap"] = json!("allow_all");
        change["destinations"] = json!([tenant.webhook(&format!("/{n}/slow/0.3"))]);
        tenant.prompt(change).await
    });
    let prompts = join_all(made).await;
    // The first that all of them have.
    let slots = prompts.iter().map(|prompt| instant(&prompt["next_run_at"]));
    let slot = slots.max().unwrap();
    sleep_until(slot).await;
    let some_delivered = async || (!tenant.received("").await.is_empty()).then_some(());
    eventually("the first webhook of the burst", some_delivered).await;
    carillon.kill().await;

    let carillon = home.start(&["--lease-ms", "2000"]).await;
    let tenant = tenant.at(&carillon);
    for prompt in &prompts {
        eventually("the end of the slot's run", async || {
            let runs = runs_of(&tenant, prompt).await;
            let run = runs
                .iter()
                .find(|run| instant(&run["scheduled_for"]) == slot);
            run.filter(|run| run["status"] == "succeeded").map(drop)
        })
        .await;
        let path = format!("/v1/prompts/{}/pause", text(&prompt["id"]));
        tenant.post(&path, json!({})).await;
    }
    for prompt in &prompts {
        let runs = runs_of(&tenant, prompt).await;
        assert_a_run_per_slot(&runs);
        let ends = join_all(runs.iter().map(|run| tenant.ended(run))).await;
        for run in &ends {
            assert_eq!(run["status"], "succeeded", "{run}");
            assert_eq!(each(&tenant.deliveries(run).await, "status"), ["delivered"]);
        }
        let read = tenant.read_prompt(prompt).await;
        assert_eq!(read["run_count"], ends.len(), "{read}");
        assert_eq!(read["success_count"], ends.len(), "{read}");
    }
    assert_one_body_per_id(&tenant.received("").await);
    carillon.stop().await;
}

async fn the_demo_succeeds() {
    let home = Home::new();
    let log = home.path().join("demo.log");
    let file = std::fs::File::create(&log).unwrap();
    tests::logs::keep(&log).unwrap();
    let mut command = program("INT");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    command.args(["demo", "--model", "echo/echo", "--data-dir"]);
    command.arg(home.data_dir()).arg("--examples").arg(examples);
    command.stdout(file.try_clone().unwrap()).stderr(file);
    const STOP: &[child::StopStep] = &[(Signal::KILL, std::time::Duration::from_secs(10))];
    let mut demo = child::spawn(command, STOP).unwrap();
    // Its last prompt waits for a minute of its own choice.
    let status = ended_within(&mut demo, 3 * PATIENCE).await;
    let written = std::fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{status}:\n{written}");
    for said in [
        "schedule",
        "3 of 3",
        "webhooks  3 of 3 received with a valid signature",
    ] {
        assert!(written.contains(said), "{said} is missing:\n{written}");
    }
    assert!(home.postgres_processes().is_empty());
}

fn every_minute() -> Value {
    json!({ "schedule": { "type": "cron", "expression": "* * * * *", "timezone": "UTC" } })
}

/// The next whole minute that leaves time to make prompts for it.
fn next_minute() -> DateTime<Utc> {
    let minute = TimeDelta::minutes(1);
    let soon = Utc::now() + TimeDelta::seconds(15);
    soon.duration_trunc(minute).unwrap() + minute
}

async fn sleep_until(at: DateTime<Utc>) {
    let wait = (at - Utc::now()).to_std().unwrap_or_default();
    tokio::time::sleep(wait).await;
}

async fn runs_of(tenant: &Tenant, prompt: &Value) -> Vec<Value> {
    let path = format!("/v1/prompts/{}/runs?limit=100", text(&prompt["id"]));
    items(&tenant.get(&path).await)
}

#[track_caller]
fn assert_a_run_per_slot(runs: &[Value]) {
    let slots: BTreeSet<_> = runs
        .iter()
        .map(|run| instant(&run["scheduled_for"]))
        .collect();
    assert_eq!(slots.len(), runs.len(), "{runs:?}");
    let whole =
        |slot: &DateTime<Utc>| slot.timestamp() % 60 == 0 && slot.timestamp_subsec_nanos() == 0;
    assert!(slots.iter().all(whole), "{slots:?}");
    assert!(
        runs.iter().all(|run| run["trigger"] == "schedule"),
        "{runs:?}"
    );
}

/// However often a webhook came, it came with the same body.
#[track_caller]
pub(crate) fn assert_one_body_per_id(received: &[Value]) {
    let mut bodies = BTreeMap::new();
    for request in received {
        let id = text(&request["headers"]["webhook-id"]);
        let body = bodies.entry(id).or_insert(&request["body_base64"]);
        assert_eq!(*body, &request["body_base64"], "{id}");
    }
}

#[track_caller]
fn instant(value: &Value) -> DateTime<Utc> {
    text(value).parse().unwrap()
}
