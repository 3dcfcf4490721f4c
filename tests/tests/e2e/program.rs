//! The commands that need no running service.

use std::process::Output;

use chrono::Utc;
use serde_json::{Value, json};
use shared::{
    exclusion::NO_HOLIDAYS,
    outbound::Policy,
    price::Catalog,
    prompt::Rules,
    simulate::{self, Request},
};
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

/// What a year holds: a night in spring, Christmas, a weekend, runs that last too long, and an end.
const POLICIES: [&str; 26] = [
    "--timezone",
    "Europe/London",
    "--dst-gap",
    "skip",
    "--from",
    "2026-03-27T00:00:00Z",
    "--until",
    "2026-03-31T23:00:00Z",
    "--exclude-date",
    "2026-03-30",
    "--exclude-range",
    "2026-12-24..2026-12-27",
    "--exclude-weekday",
    "sat",
    "--overlap",
    "allow_all",
    "--overlap-runs-max",
    "2",
    "--max-runs",
    "9",
    "--assumed-run-s",
    "5400",
    "--assumed-downtime",
    "2026-03-27T04:00:00Z..2026-03-27T06:30:00Z",
    "--model",
    "openai/gpt-5-mini",
];

#[test]
fn preview_is_the_answer_of_the_api_without_a_server() {
    let body = json!({
        "schedule": {
            "type": "cron", "expression": "30 * * * *", "timezone": "Europe/London", "dst_gap": "skip",
        },
        "exclusions": {
            "dates": ["2026-03-30"], "weekdays": ["sat"],
            "ranges": [{ "from": "2026-12-24", "to": "2026-12-27" }],
        },
        "overlap": "allow_all", "overlap_runs_max": 2, "max_runs": 9, "misfire": "run_all",
        "catchup_window_s": 3_600, "from": "2026-03-27T00:00:00Z", "until": "2026-03-31T23:00:00Z",
        "assumed_run_s": 5_400, "model": "openai/gpt-5-mini", "assumed_input_tokens": 10,
        "assumed_output_tokens": 20,
        "assumed_downtime": { "from": "2026-03-27T04:00:00Z", "until": "2026-03-27T06:30:00Z" },
    });
    let catalog = Catalog::shipped();
    let rules = Rules {
        now: Utc::now(),
        outbound: &Policy::PUBLIC,
        catalog: &catalog,
        interval_minutes_min: 1,
        default_timezone: chrono_tz::UTC,
        allow_echo: true,
        owner_email: None,
        holidays: &NO_HOLIDAYS,
    };
    let request = Request::parse(&body, &rules, None).unwrap();
    let expected = simulate::run(&request, &NO_HOLIDAYS, &catalog);
    let more = [
        "preview",
        "--json",
        "--misfire",
        "run_all",
        "--catchup-window-s",
        "3600",
        "--assumed-input-tokens",
        "10",
        "--assumed-output-tokens",
        "20",
        "30 * * * *",
    ];
    let output = carillon(&[&more[..], &POLICIES[..]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json_of(&output), serde_json::to_value(expected).unwrap());

    let schedule = body["schedule"].to_string();
    let output = carillon(&[&more[..10], &["--schedule", &schedule], &POLICIES[..]].concat());
    assert_eq!(json_of(&output)["totals"]["run"], 9, "{output:?}");
}

#[test]
fn preview_explains_itself_in_a_table() {
    let output = carillon(&[&["preview", "30 1,9 * * *"], &POLICIES[..]].concat());
    let told = String::from_utf8(output.stdout).unwrap();
    for line in [
        "At 01:30 and 09:30 every day, Europe/London, skipped where the clocks jump over it, except on Saturday, on 2026-03-30 and from 2026-12-24 to 2026-12-27",
        "Fri 2026-03-27 09:30 +00:00  2026-03-27 09:30Z  runs",
        "Sat 2026-03-28 01:30                            not due, 2 times until 2026-03-28 09:30: the day of the week is excluded",
        "Sun 2026-03-29 01:30                            not due: the clock jumps over it",
        "Sun 2026-03-29 09:30 +01:00  2026-03-29 08:30Z  runs",
        "Mon 2026-03-30 01:30                            not due, 2 times until 2026-03-30 09:30: the date is excluded",
        "5 due: 5 run, 1 not due for a clock's jump, 4 not due for exclusions",
        "EventBridge Scheduler: cron(30 1,9 * * ? *) in Europe/London",
    ] {
        assert!(told.lines().any(|told| told == line), "{line}\n{told}");
    }
    let cost = told.lines().find(|line| line.starts_with("cost: "));
    assert!(cost.unwrap().contains(" USD for 5 runs of "), "{told}");
}

#[test]
fn preview_tells_the_flexible_window() {
    let output = carillon(&["preview", "0 9 * * *", "--jitter-minutes", "15"]);
    let told = String::from_utf8(output.stdout).unwrap();
    let line =
        "EventBridge Scheduler: cron(0 9 * * ? *) in UTC, within a flexible window of 15 min";
    assert!(told.lines().any(|told| told == line), "{told}");
}

#[test]
fn preview_reads_a_calendar_of_holidays() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("UK bank_holidays.ics");
    let event = "BEGIN:VEVENT\r\nUID:1\r\nDTSTART;VALUE=DATE:20261225\r\nSUMMARY:Christmas Day\r\nEND:VEVENT";
    let calendar = format!("BEGIN:VCALENDAR\r\nVERSION:2.0\r\n{event}\r\nEND:VCALENDAR\r\n");
    std::fs::write(&file, calendar).unwrap();
    let options = [
        "preview",
        "0 9 * * *",
        "--from",
        "2026-12-24T00:00:00Z",
        "--until",
        "2026-12-26T12:00:00Z",
        "--holidays",
        file.to_str().unwrap(),
    ];
    let output = carillon(&options);
    let told = String::from_utf8(output.stdout).unwrap();
    let line = "Fri 2026-12-25 09:00                            not due: Christmas Day, a holiday of the calendar uk-bank-holidays";
    assert!(told.lines().any(|told| told == line), "{told}");

    std::fs::write(&file, "no calendar").unwrap();
    let output = carillon(&options);
    assert_eq!(output.status.code(), Some(2));
    let problem = json_of(&output);
    assert_eq!(problem["errors"][0]["field"], file.to_str().unwrap());
    assert_eq!(problem["errors"][0]["code"], "malformed_ics");
}

#[test]
fn preview_refuses_as_the_api_does() {
    let wrong = [
        "preview",
        "0 9 * * *",
        "--until",
        "2999-01-01T00:00:00Z",
        "--exclude-range",
        "2026-12-24",
        "--overlap",
        "never",
    ];
    let output = carillon(&wrong);
    assert_eq!(output.status.code(), Some(2));
    let problem = json_of(&output);
    let errors = problem["errors"].as_array().unwrap().iter();
    let told: Vec<_> = errors
        .map(|one| (text(&one["field"]), text(&one["code"])))
        .collect();
    assert_eq!(
        told,
        [
            ("exclusions.ranges[0].to", "missing"),
            ("overlap", "unknown_value"),
            ("until", "range_too_long"),
        ]
    );
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
