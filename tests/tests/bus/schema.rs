//! The documented schema, against what is written down and against what is put.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use shared::{
    db::prompts::{self, NewStatus, PromptStatus},
    run::DeliveryStatus,
};
use tests::worker::{LONG_MS, fire, settle, succeed};

use super::world::World;

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name)
}

/// What a validator that is not ours finds wrong.
fn faults(details: &[Value]) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/check_events.py");
    let python = std::env::var("CARILLON_TEST_PYTHON").unwrap();
    let mut child = Command::new(python)
        .arg(script)
        .arg(docs("events.schema.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = json!(details).to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every type that the schema knows.
fn types() -> BTreeSet<String> {
    let text = std::fs::read_to_string(docs("events.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let families = schema["$defs"].as_object().unwrap().values();
    families
        .flat_map(|family| family["properties"]["type"]["enum"].as_array().unwrap())
        .map(|kind| kind.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn each_type_is_documented_with_an_example_that_holds() {
    let text = std::fs::read_to_string(docs("events.md")).unwrap();
    let examples: Vec<Value> = text
        .split("```json\n")
        .skip(1)
        .map(|rest| serde_json::from_str(rest.split("```").next().unwrap()).unwrap())
        .collect();
    assert_eq!(faults(&examples), [""; 0]);
    let named: Vec<_> = examples
        .iter()
        .map(|one| one["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(named.iter().cloned().collect::<BTreeSet<_>>(), types());
    assert_eq!(named.len(), types().len());
    for kind in &named {
        assert!(text.contains(&format!("### {kind}\n")), "{kind}");
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let text = std::fs::read_to_string(docs("events.md")).unwrap();
    let example = text
        .split("```json\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let sound: Value = serde_json::from_str(example).unwrap();
    for (name, value) in [
        ("version", json!(2)),
        ("id", json!("no id")),
        ("occurred_at", json!("yesterday")),
        ("type", json!("prompt.exploded")),
        ("prompt_text", json!("say something")),
        ("reason", json!("a sentence with an address@example.com")),
    ] {
        let mut broken = sound.clone();
        broken[name] = value;
        assert!(!faults(&[broken]).is_empty(), "{name}");
    }
}

#[tokio::test]
async fn what_is_put_holds_to_the_schema() {
    let world = World::new().await;
    let (mut details, mut kinds) = (Vec::new(), BTreeSet::new());
    for status in [
        DeliveryStatus::Delivered,
        DeliveryStatus::Exhausted,
        DeliveryStatus::Held,
    ] {
        let claim = world
            .running(&json!({"pause_after_failures": 1, "max_runs": 1}))
            .await;
        let sent = succeed(world.db(), &claim, 1).await.unwrap();
        settle(world.db(), &sent[0], status).await.unwrap();
    }
    let id = world.prompt(&json!({})).await;
    for (version, status) in [
        (1, PromptStatus::Paused),
        (2, PromptStatus::Active),
        (3, PromptStatus::Failed),
        (4, PromptStatus::Cancelled),
    ] {
        let tx = world.stage.tx(world.id()).await.unwrap();
        let change = NewStatus {
            id,
            version,
            status,
            reason: None,
            note: None,
            next_run_at: None,
        };
        prompts::set_status(&tx, &change).await.unwrap();
        if status == PromptStatus::Paused {
            tx.commit().await.unwrap();
            let run = world.run(id).await;
            let tx = world.stage.tx(world.id()).await.unwrap();
            shared::db::runs::cancel(&tx, run).await.unwrap();
            tx.commit().await.unwrap();
            continue;
        }
        tx.commit().await.unwrap();
    }
    let tx = world.stage.tx(world.id()).await.unwrap();
    prompts::tombstone(&tx, id).await.unwrap();
    tx.commit().await.unwrap();
    world
        .sql(
            "UPDATE scheduled_prompts SET spec_version = spec_version + 1 WHERE deleted_at IS NULL",
        )
        .await;
    let late = world
        .due(&json!({"misfire": "skip", "catchup_window_s": 60, "overlap": "skip"}))
        .await;
    world.sql("UPDATE scheduled_prompts SET next_run_at = next_run_at - interval '5 hours' WHERE status = 'active'").await;
    fire(world.db(), world.id(), late, LONG_MS).await.unwrap();
    world.sql("UPDATE scheduled_prompt_runs SET status = 'skipped', reason = 'overlap' WHERE status = 'missed'").await;
    for (kind, detail) in world.told().await {
        kinds.insert(kind);
        details.push(detail);
    }
    assert_eq!(faults(&details), [""; 0]);
    assert_eq!(kinds, types());
}
