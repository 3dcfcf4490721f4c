//! The commands that need no running service.

use std::process::Output;

use serde_json::{Value, json};
use tests::{database, database_url};

use crate::{
    carillon::{Home, program},
    tenant::{Tenant, text},
};

/// Random vectors that are put to the program: each costs a process.
const SAMPLE: usize = 40;

fn vectors(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/tests/vectors");
    let text = std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn carillon(arguments: &[&str]) -> Output {
    program("KILL").args(arguments).output().unwrap()
}

#[track_caller]
fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The program gives a vector's slots and the expressions for EventBridge Scheduler.
#[track_caller]
fn assert_preview(case: &Value) {
    let next = case["next"].as_array().unwrap();
    let count = next.len().to_string();
    let zone = text(&case["timezone"]);
    let after = text(&case["after"]);
    // The vectors describe what EventBridge Scheduler alone does.
    let options = [
        "preview",
        "--json",
        "--dst-gap",
        "skip",
        "--timezone",
        zone,
        "--after",
        after,
    ];
    let rest = ["--count", &count, "--", text(&case["unix"])];
    let output = carillon(&[&options[..], &rest[..]].concat());
    assert!(output.status.success(), "{case}: {output:?}");
    let preview = json_of(&output);
    let field = |list: &str, field: &str| {
        let entries = preview[list].as_array().unwrap();
        Value::Array(entries.iter().map(|one| one[field].clone()).collect())
    };
    assert_eq!(field("slots", "scheduled_for"), case["next"], "{case}");
    assert_eq!(
        field("eventbridge", "expression"),
        case["eventbridge"],
        "{case}"
    );
}

#[test]
fn preview_gives_the_slots_of_every_vector() {
    for case in vectors("vectors.json")["cron"].as_array().unwrap() {
        assert_preview(case);
    }
}

#[test]
fn preview_gives_the_slots_of_random_vectors() {
    let random = vectors("vectors_random.json");
    let cases = random["vectors"].as_array().unwrap();
    let every = cases.len() / SAMPLE;
    cases.iter().step_by(every).for_each(assert_preview);
    random["dst_edge"]
        .as_array()
        .unwrap()
        .iter()
        .for_each(assert_preview);
}

#[test]
fn preview_shows_what_a_gap_does() {
    let slot = |options: &[&str]| {
        let zone = ["preview", "--json", "--timezone", "America/New_York"];
        let rest = [
            "--after",
            "2026-03-07T12:00:00Z",
            "--count",
            "1",
            "30 2 * * *",
        ];
        let output = carillon(&[&zone[..], options, &rest[..]].concat());
        text(&json_of(&output)["slots"][0]["local"]).to_owned()
    };
    assert_eq!(slot(&[]), "2026-03-08T03:00:00-04:00");
    assert_eq!(slot(&["--dst-gap", "shift"]), "2026-03-08T03:00:00-04:00");
    assert_eq!(slot(&["--dst-gap", "skip"]), "2026-03-09T02:30:00-04:00");
    let other = carillon(&["preview", "--dst-gap", "move", "30 2 * * *"]);
    assert_eq!(other.status.code(), Some(2), "{other:?}");
}

#[test]
fn preview_refuses_with_the_code_of_every_vector() {
    for case in vectors("vectors.json")["errors"].as_array().unwrap() {
        let output = carillon(&["preview", "--json", "--", text(&case["unix"])]);
        assert_eq!(output.status.code(), Some(2), "{case}: {output:?}");
        let problem = json_of(&output);
        assert_eq!(problem["status"], 422, "{case}: {problem}");
        let errors = problem["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{case}: {problem}");
        assert_eq!(errors[0]["code"], case["error"], "{case}");
        assert_eq!(errors[0]["field"], "schedule.expression", "{case}");
    }
}

#[tokio::test]
async fn a_database_of_ones_own_is_migrated_once() {
    let name = database("template_e2e", async |_| Ok(())).await.unwrap();
    let url = database_url(&name);
    let migrate = || {
        let output = carillon(&["migrate", "--database-url", &url]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let first = migrate();
    assert!(first.lines().count() >= 5, "{first}");
    assert!(
        first.lines().all(|line| line.starts_with("applied ")),
        "{first}"
    );
    assert_eq!(migrate(), "nothing to apply\n");

    let home = Home::new();
    let carillon = home.start(&["--database-url", &url]).await;
    let tenant = Tenant::first(&carillon);
    let prompt = tenant.prompt(json!({ "destinations": [{ "kind": "storage" }] }));
    let run = tenant.run(&prompt.await).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    carillon.stop().await;
    assert!(!home.data_dir().join("cluster").exists());

    let carillon = home.start(&["--database-url", &url]).await;
    let tenant = tenant.at(&carillon);
    assert_eq!(tenant.read_run(&run).await["output"], run["output"]);
    carillon.stop().await;
}
