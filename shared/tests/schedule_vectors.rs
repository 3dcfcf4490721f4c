//! Every vector in `vectors/`: expressions with their slots and EventBridge forms, refusals with
//! their codes, and what AWS was seen to accept and reject.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::schedule::{Schedule, eventbridge};

#[derive(Deserialize)]
struct Vectors {
    cron: Vec<Case>,
    errors: Vec<Refusal>,
    forms: Vec<FormCase>,
    aws_rejects: Expressions,
    aws_accepts: Expressions,
}

#[derive(Deserialize)]
struct RandomVectors {
    vectors: Vec<Case>,
    dst_edge: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    unix: String,
    timezone: String,
    after: DateTime<Utc>,
    next: Vec<DateTime<Utc>>,
    eventbridge: Vec<String>,
}

#[derive(Deserialize)]
struct Refusal {
    unix: String,
    error: String,
}

#[derive(Deserialize)]
struct Expressions {
    expressions: Vec<String>,
}

#[derive(Deserialize)]
struct FormCase {
    id: String,
    input: Value,
    error: Option<String>,
    after: Option<DateTime<Utc>>,
    timezone: Option<String>,
    start_date: Option<DateTime<Utc>>,
    end_date: Option<DateTime<Utc>>,
    #[serde(default)]
    eventbridge: Vec<String>,
    #[serde(default)]
    next: Vec<Option<DateTime<Utc>>>,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("vectors/vectors.json")).unwrap()
}

fn random_vectors() -> RandomVectors {
    serde_json::from_str(include_str!("vectors/vectors_random.json")).unwrap()
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// Before every vector.
fn long_ago() -> DateTime<Utc> {
    at("2010-01-01T00:00:00Z")
}

fn slots(schedule: &Schedule, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
    let slots = std::iter::successors(schedule.next(after), |slot| schedule.next(*slot));
    slots.take(count).collect()
}

fn expressions(schedule: &Schedule) -> Vec<String> {
    let entries = schedule.eventbridge();
    entries.into_iter().map(|entry| entry.expression).collect()
}

fn check_case(case: &Case) {
    // What EventBridge does alone.
    let sent = json!({
        "type": "cron", "expression": case.unix, "timezone": case.timezone, "dst_gap": "skip",
    });
    let schedule = Schedule::parse(&sent, long_ago()).expect(&case.unix);
    let name = format!("{} in {}", case.unix, case.timezone);
    assert_eq!(expressions(&schedule), case.eventbridge, "{name}");
    for entry in schedule.eventbridge() {
        assert_eq!(entry.timezone.as_ref(), Some(&case.timezone), "{name}");
    }
    assert_eq!(
        slots(&schedule, case.after, case.next.len()),
        case.next,
        "{name}"
    );
    let stored = Schedule::from_stored(&schedule.to_json()).expect(&name);
    assert_eq!(
        slots(&stored, case.after, case.next.len()),
        case.next,
        "{name}, stored"
    );
}

#[test]
fn cron_expressions_have_their_slots_and_eventbridge_forms() {
    let cases = vectors().cron;
    assert_eq!(cases.len(), 38);
    cases.iter().for_each(check_case);
}

#[test]
fn random_expressions_have_their_slots_and_eventbridge_forms() {
    let cases = random_vectors().vectors;
    assert_eq!(cases.len(), 346);
    cases.iter().for_each(check_case);
}

#[test]
fn slots_around_changes_of_the_clocks_follow_eventbridge() {
    let cases = random_vectors().dst_edge;
    assert_eq!(cases.len(), 51);
    cases.iter().for_each(check_case);
}

#[test]
fn refused_expressions_have_one_fault_with_its_code_and_a_hint() {
    let refusals = vectors().errors;
    assert_eq!(refusals.len(), 24);
    for refusal in refusals {
        let sent = json!({"type": "cron", "expression": refusal.unix});
        let faults = Schedule::parse(&sent, long_ago()).unwrap_err();
        let [fault] = faults.as_slice() else {
            panic!("{:?}: {faults:?}", refusal.unix);
        };
        assert_eq!(fault.code, refusal.error, "{:?}", refusal.unix);
        assert_eq!(fault.field, "expression");
        assert!(
            !fault.detail.is_empty() && !fault.hint.is_empty(),
            "{fault:?}"
        );
    }
}

/// The vectors' own shorthand as the JSON that a caller sends.
fn sent(input: &Value) -> Value {
    let has = |name: &str| input.get(name).is_some();
    let mut sent = if has("cron") {
        json!({"type": "cron", "expression": input["cron"]})
    } else if has("daily") {
        json!({"type": "daily", "at": input["daily"]})
    } else if has("weekly") {
        json!({"type": "weekly", "days": input["weekly"], "at": input["at"]})
    } else if has("once") {
        json!({"type": "once", "at": input["once"]})
    } else if has("once_local") {
        json!({"type": "once", "at": input["once_local"]})
    } else {
        json!({"type": "interval"})
    };
    let copied = [
        ("every_minutes", "every_minutes"),
        ("every_days", "every_days"),
        ("anchor", "anchor"),
        ("tz", "timezone"),
        ("start", "start_at"),
        ("end", "end_at"),
    ];
    for (from, to) in copied {
        if let Some(value) = input.get(from) {
            sent[to] = value.clone();
        }
    }
    sent
}

#[test]
fn forms_have_their_slots_entries_and_refusals() {
    let cases = vectors().forms;
    assert_eq!(cases.len(), 13);
    for case in cases {
        let now = match case.input.get("now") {
            Some(now) => at(now.as_str().unwrap()),
            None => at("2026-01-01T00:00:00Z"),
        };
        let parsed = Schedule::parse(&sent(&case.input), now);
        if let Some(error) = &case.error {
            let codes: Vec<&str> = parsed.unwrap_err().iter().map(|fault| fault.code).collect();
            assert_eq!(codes, [error], "{}", case.id);
            continue;
        }
        let schedule = parsed.expect(&case.id);
        assert_eq!(expressions(&schedule), case.eventbridge, "{}", case.id);
        for entry in schedule.eventbridge() {
            if case.timezone.is_some() {
                assert_eq!(entry.timezone, case.timezone, "{}", case.id);
            }
            assert_eq!(entry.start_date, case.start_date, "{}", case.id);
            assert_eq!(entry.end_date, case.end_date, "{}", case.id);
        }
        // How many runs a prompt may have is counted where runs are stored, not here.
        let counted = case.input.get("max_runs").is_some();
        let count = case.next.len() - usize::from(counted);
        let expected: Vec<DateTime<Utc>> = case.next.iter().flatten().copied().collect();
        assert_eq!(
            slots(&schedule, case.after.unwrap(), count),
            expected,
            "{}",
            case.id
        );
    }
}

#[test]
fn the_check_of_expressions_agrees_with_aws() {
    let vectors = vectors();
    for expression in vectors.aws_accepts.expressions {
        assert_eq!(eventbridge::check(&expression), Ok(()), "{expression}");
    }
    for expression in vectors.aws_rejects.expressions {
        assert!(eventbridge::check(&expression).is_err(), "{expression}");
    }
}
