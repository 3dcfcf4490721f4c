use std::collections::BTreeMap;

use chrono::{NaiveDate, TimeDelta};
use proptest::prelude::*;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::{
    exclusion::{CalendarName, NO_HOLIDAYS},
    fault::Fault,
    ids::{PromptId, RunId},
    outbound,
    prompt::{Overlap, PromptSpec, Rules},
    schedule::OccurrenceKind,
    slots::{self, Fate, Look, OpenRuns, Policy, SharedRow},
};

const NOW: &str = "2026-03-22T12:00:00Z";
const PROMPT: &str = "019d1298-1a00-7c3f-8a64-6f0b2f1d9c55";

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn with_rules<T>(holidays: &Holidays, use_rules: impl FnOnce(&Rules<'_>) -> T) -> T {
    use_rules(&Rules {
        now: at(NOW),
        outbound: &outbound::Policy::PUBLIC,
        catalog: &Catalog::shipped(),
        interval_minutes_min: 1,
        default_timezone: chrono_tz::Europe::London,
        allow_echo: true,
        owner_email: None,
        holidays,
    })
}

fn simulate_with(body: &Value, past: Option<Past>, holidays: &Holidays) -> Simulation {
    let request = with_rules(holidays, |rules| Request::parse(body, rules, past)).unwrap();
    run(&request, holidays, &Catalog::shipped())
}

fn simulate(body: &Value) -> Simulation {
    simulate_with(body, None, &NO_HOLIDAYS)
}

fn refused_with(body: &Value, past: Option<Past>) -> Vec<(String, &'static str)> {
    let faults: Vec<Fault> =
        with_rules(&NO_HOLIDAYS, |rules| Request::parse(body, rules, past)).unwrap_err();
    faults
        .into_iter()
        .inspect(|fault| {
            assert!(
                !fault.hint.is_empty() && !fault.detail.is_empty(),
                "{fault:?}"
            );
        })
        .map(|fault| (fault.field, fault.code))
        .collect()
}

fn refused(body: &Value) -> Vec<(String, &'static str)> {
    refused_with(body, None)
}

fn cron(expression: &str) -> Value {
    json!({ "type": "cron", "expression": expression, "timezone": "Europe/London" })
}

fn past() -> Past {
    Past {
        run_count: 7,
        model: "openai/gpt-5-mini".to_owned(),
        runs: 5,
        input_tokens: Some(412),
        output_tokens: Some(530),
        cost_usd: Some(Decimal::new(1_163, 6)),
        latency_ms: Some(5_210),
    }
}

/// Local time, outcome and reason of each slot.
fn told(simulation: &Simulation) -> Vec<(&str, Outcome, Option<&'static str>)> {
    simulation
        .slots
        .iter()
        .map(|slot| (&slot.local[..16], slot.outcome, slot.reason))
        .collect()
}

fn never(simulation: &Simulation) -> Vec<(String, NotDueReason, u32)> {
    simulation
        .not_due
        .iter()
        .map(|one| (one.local.to_string(), one.reason, one.slots_count))
        .collect()
}

#[test]
fn the_simple_request_stays_simple() {
    let simulation = simulate(&json!({ "schedule": cron("0 9 * * 1-5") }));
    let local: Vec<&str> = simulation.slots.iter().map(|slot| &*slot.local).collect();
    assert_eq!(
        local,
        [
            "2026-03-23T09:00:00+00:00",
            "2026-03-24T09:00:00+00:00",
            "2026-03-25T09:00:00+00:00",
            "2026-03-26T09:00:00+00:00",
            "2026-03-27T09:00:00+00:00",
        ]
    );
    assert_eq!(simulation.not_due, []);
    assert_eq!(simulation.warnings, []);
    assert_eq!(simulation.cost, None);
    assert_eq!(
        (simulation.run_s, simulation.run_s_from),
        (60, RunLength::Default)
    );
    assert_eq!(simulation.range.after, at(NOW));
    assert_eq!(simulation.range.until, at("2026-03-27T09:00:00Z"));
    assert_eq!(
        simulation.description,
        "At 09:00 on Monday through Friday, Europe/London"
    );
    assert_eq!(
        simulation.eventbridge[0].expression,
        "cron(0 9 ? * MON-FRI *)"
    );
    let slot = serde_json::to_value(&simulation.slots[0]).unwrap();
    assert_eq!(
        slot,
        json!({
            "scheduled_for": "2026-03-23T09:00:00Z", "local": "2026-03-23T09:00:00+00:00",
            "outcome": "run", "slots_count": 1,
        })
    );
}

#[test]
fn both_nights_on_which_the_clocks_change_are_explained() {
    let mut skip = cron("30 1 * * *");
    skip["dst_gap"] = json!("skip");
    let simulation =
        simulate(&json!({ "schedule": skip, "after": "2026-03-28T00:00:00Z", "count": 2 }));
    assert_eq!(
        told(&simulation),
        [
            ("2026-03-28T01:30", Outcome::Run, None),
            ("2026-03-30T01:30", Outcome::Run, None),
        ]
    );
    assert_eq!(
        never(&simulation),
        [("2026-03-29 01:30:00".to_owned(), NotDueReason::DstGap, 1)]
    );
    assert_eq!(simulation.totals.dst_gap, 1);

    let shifted = simulate(&json!({
        "schedule": cron("30 1 * * *"), "from": "2026-03-29T00:00:00Z", "count": 1,
    }));
    assert_eq!(
        told(&shifted),
        [("2026-03-29T02:00", Outcome::Run, Some("dst_gap"))]
    );
    let detail = shifted.slots[0].detail.as_deref().unwrap();
    assert!(detail.contains("01:30"), "{detail}");
    assert_eq!((shifted.totals.shifted, shifted.totals.dst_gap), (1, 0));

    let merged = simulate(&json!({
        "schedule": cron("15,45 1,2 * * *"), "from": "2026-03-29T00:00:00Z",
        "until": "2026-03-29T03:00:00Z",
    }));
    assert_eq!(
        told(&merged),
        [
            ("2026-03-29T02:00", Outcome::Run, Some("dst_gap")),
            ("2026-03-29T02:15", Outcome::Run, None),
            ("2026-03-29T02:45", Outcome::Run, None),
        ]
    );
    assert_eq!(
        never(&merged),
        [("2026-03-29 01:45:00".to_owned(), NotDueReason::DstMerged, 1)]
    );

    let fold = simulate(&json!({
        "schedule": cron("30 1 * * *"), "from": "2026-10-25T00:00:00Z", "count": 2,
    }));
    assert_eq!(
        told(&fold),
        [
            ("2026-10-25T01:30", Outcome::Run, Some("dst_fold")),
            ("2026-10-26T01:30", Outcome::Run, None),
        ]
    );
    assert_eq!(fold.slots[0].local, "2026-10-25T01:30:00+01:00");
}

#[test]
fn excluded_days_are_named_once_each() {
    let mut holidays = Holidays::default();
    let calendar = CalendarName::parse("uk-bank-holidays").unwrap();
    let day = |day| NaiveDate::from_ymd_opt(2026, 12, day).unwrap();
    let names = [
        (day(25), "Christmas Day".to_owned()),
        (day(28), "Boxing Day".to_owned()),
    ];
    holidays.insert(calendar, names);
    let body = json!({
        "schedule": cron("0 */6 * * *"),
        "exclusions": {
            "dates": ["2026-12-29"], "weekdays": ["sat", "sun"], "calendars": ["uk-bank-holidays"],
        },
        "from": "2026-12-24T12:00:00Z", "until": "2026-12-30T00:00:00Z",
    });
    let simulation = simulate_with(&body, None, &holidays);
    let due: Vec<_> = told(&simulation)
        .into_iter()
        .map(|(local, ..)| local)
        .collect();
    assert_eq!(
        due,
        ["2026-12-24T12:00", "2026-12-24T18:00", "2026-12-30T00:00"]
    );
    assert_eq!(
        never(&simulation),
        [
            ("2026-12-25 00:00:00".to_owned(), NotDueReason::Holiday, 4),
            (
                "2026-12-26 00:00:00".to_owned(),
                NotDueReason::ExcludedWeekday,
                8
            ),
            ("2026-12-28 00:00:00".to_owned(), NotDueReason::Holiday, 4),
            (
                "2026-12-29 00:00:00".to_owned(),
                NotDueReason::ExcludedDate,
                4
            ),
        ]
    );
    let weekend = &simulation.not_due[1];
    assert_eq!(
        weekend.local_until.unwrap().to_string(),
        "2026-12-27 18:00:00"
    );
    assert_eq!(
        simulation.not_due[0].detail,
        "Christmas Day, a holiday of the calendar uk-bank-holidays"
    );
    assert_eq!((simulation.totals.due, simulation.totals.excluded), (3, 20));
}

#[test]
fn long_runs_meet_the_overlap_policy() {
    let body = |overlap| {
        json!({
            "schedule": cron("*/10 * * * *"), "from": "2026-06-01T00:00:00Z",
            "until": "2026-06-01T00:40:00Z", "assumed_run_s": 1_500, "overlap": overlap,
        })
    };
    let skip = simulate(&body("skip"));
    assert_eq!(
        told(&skip),
        [
            ("2026-06-01T01:00", Outcome::Run, None),
            ("2026-06-01T01:10", Outcome::Skipped, Some("overlap")),
            ("2026-06-01T01:20", Outcome::Skipped, Some("overlap")),
            ("2026-06-01T01:30", Outcome::Run, None),
            ("2026-06-01T01:40", Outcome::Skipped, Some("overlap")),
        ]
    );
    assert_eq!(
        skip.slots[1].detail.as_deref(),
        Some("the run of 2026-06-01 01:00:00 is under way until 2026-06-01 01:25:00")
    );
    assert_eq!(
        (
            skip.totals.due,
            skip.totals.run,
            skip.totals.skipped_overlap
        ),
        (5, 2, 3)
    );
    let warning = skip.warnings.iter().find(|one| one.code == "runs_overlap");
    assert!(
        warning
            .unwrap()
            .detail
            .starts_with("with runs of 1500 s, 3 of 5 slots")
    );

    let buffer = simulate(&body("buffer_one"));
    assert_eq!(buffer.slots[1].outcome, Outcome::Skipped);
    assert_eq!(buffer.slots[1].reason, Some("replaced"));
    assert_eq!(buffer.slots[2].outcome, Outcome::Wait);
    assert_eq!(buffer.slots[2].starts_at, Some(at("2026-06-01T00:25:00Z")));
    assert_eq!(buffer.slots[2].reason, Some("overlap"));
    assert_eq!(
        buffer.slots[2].detail.as_deref(),
        Some("the run of 2026-06-01 01:00:00 is under way until then")
    );
    assert!(buffer.totals.wait > 0 && buffer.totals.run > skip.totals.run);
    // What still waits when the range ends is played to its start.
    let waits = buffer
        .slots
        .iter()
        .filter(|slot| slot.outcome == Outcome::Wait);
    assert!(waits.into_iter().all(|slot| slot.starts_at.is_some()));

    let mut all = body("allow_all");
    all["overlap_runs_max"] = json!(2);
    let all = simulate(&all);
    assert_eq!((all.totals.run, all.totals.skipped_overlap), (4, 1));
    assert_eq!(all.slots[2].outcome, Outcome::Skipped);
}

#[test]
fn a_limit_of_runs_ends_the_prompt() {
    let body = json!({
        "schedule": cron("0 * * * *"), "from": "2026-06-01T00:00:00Z",
        "until": "2026-06-01T09:00:00Z", "max_runs": 3,
    });
    let simulation = simulate(&body);
    assert_eq!(simulation.slots.len(), 3);
    assert_eq!(
        never(&simulation),
        [("2026-06-01 04:00:00".to_owned(), NotDueReason::MaxRuns, 7)]
    );
    assert_eq!(
        (simulation.totals.run, simulation.totals.after_max_runs),
        (3, 7)
    );

    let mut counted = body.clone();
    counted["until"] = Value::Null;
    counted["count"] = json!(8);
    let simulation = simulate(&counted);
    assert_eq!(simulation.slots.len(), 3);
    assert_eq!(never(&simulation).len(), 1);

    let mut edited = body;
    edited["prompt_id"] = json!(PROMPT);
    edited["max_runs"] = json!(9);
    let simulation = simulate_with(&edited, Some(past()), &NO_HOLIDAYS);
    assert_eq!(simulation.totals.run, 2, "it has had 7 of 9");
}

#[test]
fn the_limits_of_the_schedule_are_told() {
    let mut schedule = cron("0 * * * *");
    schedule["start_at"] = json!("2026-06-01T03:00:00Z");
    schedule["end_at"] = json!("2026-06-01T05:00:00Z");
    let simulation = simulate(&json!({
        "schedule": schedule, "from": "2026-06-01T00:00:00Z", "until": "2026-06-02T00:00:00Z",
    }));
    assert_eq!(simulation.totals.due, 3);
    assert_eq!(
        never(&simulation),
        [
            ("2026-06-01 04:00:00".to_owned(), NotDueReason::StartAt, 0),
            ("2026-06-01 06:00:00".to_owned(), NotDueReason::EndAt, 0),
        ]
    );
    let later = simulate(&json!({
        "schedule": schedule, "from": "2026-06-01T00:00:00Z", "until": "2026-06-01T02:00:00Z",
    }));
    assert_eq!(later.slots, []);
    assert!(later.warnings.iter().any(|one| one.code == "nothing_due"));
    let manual = simulate(&json!({ "schedule": { "type": "manual" } }));
    assert_eq!((manual.slots.len(), manual.warnings.len()), (0, 0));
}

#[test]
fn an_hour_of_downtime_is_seen_before_it_comes() {
    let body = |misfire| {
        json!({
            "schedule": cron("*/20 * * * *"), "from": "2026-06-01T00:00:00Z",
            "until": "2026-06-01T01:40:00Z", "misfire": misfire, "catchup_window_s": 3_600,
            "assumed_downtime": { "from": "2026-06-01T00:10:00Z", "until": "2026-06-01T01:30:00Z" },
        })
    };
    let latest = simulate(&body("run_latest"));
    assert_eq!(
        told(&latest),
        [
            ("2026-06-01T01:00", Outcome::Run, None),
            ("2026-06-01T01:20", Outcome::Missed, Some("too_late")),
            ("2026-06-01T01:40", Outcome::Missed, Some("superseded")),
            ("2026-06-01T02:00", Outcome::Missed, Some("superseded")),
            ("2026-06-01T02:20", Outcome::Wait, Some("downtime")),
            ("2026-06-01T02:40", Outcome::Run, None),
        ]
    );
    assert_eq!(latest.slots[4].starts_at, Some(at("2026-06-01T01:30:00Z")));
    assert_eq!(
        (latest.totals.missed, latest.totals.run, latest.totals.wait),
        (3, 3, 1)
    );

    let all = simulate(&body("run_all"));
    assert_eq!(
        (all.totals.missed, all.totals.run, all.totals.wait),
        (1, 5, 3)
    );
    let none = simulate(&body("skip"));
    assert_eq!((none.totals.missed, none.totals.run), (4, 2));
}

#[test]
fn lists_are_bounded_and_totals_are_not() {
    let year = simulate(&json!({
        "schedule": cron("*/5 * * * *"), "from": "2026-01-01T00:00:00Z",
        "until": "2026-12-31T23:59:00Z", "assumed_run_s": 400,
    }));
    assert_eq!(
        (year.slots.len(), year.not_due.len(), year.truncated),
        (ENTRIES_MAX, 1, true)
    );
    let totals = year.totals;
    // 365 days; the hour that is skipped, and the second pass of the one that comes twice.
    assert_eq!((totals.due, totals.dst_gap), (105_120 - 12, 12));
    assert_eq!(totals.run + totals.skipped_overlap, totals.due);
    assert_eq!(totals.run.abs_diff(totals.skipped_overlap), 0);

    let mut sparse = json!({
        "schedule": cron("0 9 * * *"), "from": "2026-01-01T00:00:00Z", "count": 1_000,
        "exclusions": { "weekdays": ["mon", "tue", "wed", "thu", "fri", "sat"] },
    });
    let simulation = simulate(&sparse);
    assert_eq!(
        (simulation.slots.len(), simulation.truncated),
        (1_000, false)
    );
    sparse["count"] = json!(1_001);
    assert_eq!(refused(&sparse), [("count".to_owned(), "out_of_range")]);
}

#[test]
fn a_count_reaches_as_far_as_it_must() {
    let simulation = simulate(&json!({ "schedule": cron("0 0 29 2 *"), "count": 3 }));
    let years: Vec<_> = simulation
        .slots
        .iter()
        .map(|slot| &slot.local[..4])
        .collect();
    assert_eq!(years, ["2028", "2032", "2036"]);
}

#[test]
fn every_fault_is_told_at_once_in_the_words_of_a_prompt() {
    let body = json!({
        "schedule": { "type": "cron", "expression": "61 * * * *", "timezone": "Nowhere" },
        "exclusions": { "dates": ["2026-02-30"], "calendars": ["missing"] },
        "overlap": "sometimes", "max_runs": 0, "jitter_minutes": 61, "model": "openai/none-such",
        "prompt_id": "x", "until": "2026-01-01T00:00:00Z", "count": 0, "assumed_run_s": 86_401,
        "assumed_downtime": { "from": "2026-06-01T00:00:00Z" }, "surprise": 1,
    });
    let mut told = refused(&body);
    told.sort();
    let mut expected = [
        ("assumed_downtime.until", "missing"),
        ("assumed_run_s", "out_of_range"),
        ("count", "out_of_range"),
        ("exclusions.dates[0]", "bad_date"),
        ("jitter_minutes", "out_of_range"),
        ("max_runs", "out_of_range"),
        ("model", "unknown_model"),
        ("overlap", "unknown_value"),
        ("prompt_id", "invalid_id"),
        ("schedule.expression", "range"),
        ("schedule.timezone", "unknown_timezone"),
        ("surprise", "unknown_field"),
        ("until", "end_before_start"),
    ]
    .map(|(field, code)| (field.to_owned(), code));
    expected.sort();
    assert_eq!(told, expected);
}

#[test]
fn a_refusal_is_that_of_the_prompt_itself() {
    let cases = [
        json!({ "schedule": { "type": "once", "at": "2020-01-01T00:00:00Z" } }),
        json!({ "schedule": { "type": "daily", "at": "08:00" }, "jitter_minutes": 1_440 }),
        json!({ "schedule": { "type": "manual" }, "jitter_minutes": 5 }),
        json!({ "schedule": cron("0 9 * * *"), "exclusions": { "weekdays": ["mon", "mon"] } }),
        json!({ "schedule": cron("0 9 * * *"), "exclusions": { "calendars": ["missing"] } }),
        json!({ "schedule": cron("0 9 30 2 *") }),
        json!({ "max_runs": 3 }),
        json!({ "schedule": cron("0 9 * * *"), "misfire": 1, "catchup_window_s": -1 }),
    ];
    for body in cases {
        let mut prompt = body.clone();
        for (name, value) in [
            ("prompt_name", "x"),
            ("prompt_text", "x"),
            ("model", "echo/x"),
        ] {
            prompt[name] = json!(value);
        }
        let saved = with_rules(&NO_HOLIDAYS, |rules| PromptSpec::parse(&prompt, rules));
        let saved = saved.unwrap_err();
        let previewed = with_rules(&NO_HOLIDAYS, |rules| Request::parse(&body, rules, None));
        assert_eq!(previewed.unwrap_err(), saved, "{body}");
    }
    assert_eq!(refused(&json!([])), [(String::new(), "wrong_type")]);
}

#[test]
fn a_range_has_a_bound_and_names_it() {
    let body = |from: &str, until: &str| json!({ "schedule": cron("0 9 * * *"), "from": from, "until": until });
    assert_eq!(
        simulate(&body("2026-01-01T00:00:00Z", "2027-02-05T00:00:00Z"))
            .totals
            .due,
        400
    );
    let too_long = body("2026-01-01T00:00:00Z", "2027-02-05T00:00:01Z");
    assert_eq!(refused(&too_long), [("until".to_owned(), "range_too_long")]);
    let faults = with_rules(&NO_HOLIDAYS, |rules| Request::parse(&too_long, rules, None));
    assert!(faults.unwrap_err()[0].hint.contains("400 days"));
    let mut down = body("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    down["assumed_downtime"] =
        json!({ "from": "2026-01-01T00:00:00Z", "until": "2027-06-01T00:00:00Z" });
    assert_eq!(
        refused(&down),
        [("assumed_downtime.until".to_owned(), "range_too_long")]
    );
    let end = at("2999-01-01T00:00:00Z");
    let far = simulate(&json!({ "schedule": cron("0 9 * * *"), "after": end, "count": 1 }));
    assert_eq!(far.slots[0].scheduled_for, at("2999-01-01T09:00:00Z"));
}

#[test]
fn a_forecast_says_what_it_is_from() {
    let body = |change: Value| {
        let mut body = json!({
            "schedule": { "type": "daily", "at": "09:00" }, "from": "2026-06-01T00:00:00Z",
            "until": "2026-06-10T23:00:00Z",
        });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let by_past = simulate_with(
        &body(json!({ "prompt_id": PROMPT })),
        Some(past()),
        &NO_HOLIDAYS,
    );
    let cost = by_past.cost.unwrap();
    assert_eq!(cost.basis, ForecastBasis::PastCost);
    assert_eq!(cost.cost_usd, Some(Decimal::new(11_630, 6)));
    assert_eq!(
        cost.detail,
        "the average cost of the prompt's last 5 successful runs"
    );
    assert_eq!(
        (by_past.run_s, by_past.run_s_from),
        (6, RunLength::PastRuns)
    );

    let price = |tokens: (u64, u64)| {
        let usage = crate::model::Usage {
            input_tokens: tokens.0,
            output_tokens: tokens.1,
            ..Default::default()
        };
        let model = "openai/gpt-5-mini".parse().unwrap();
        Catalog::shipped().cost_usd(&model, &usage).unwrap() * Decimal::TEN
    };
    let mut unpriced = past();
    unpriced.cost_usd = None;
    let by_tokens = simulate_with(
        &body(json!({ "prompt_id": PROMPT })),
        Some(unpriced),
        &NO_HOLIDAYS,
    );
    let cost = by_tokens.cost.unwrap();
    assert_eq!(cost.basis, ForecastBasis::PastTokens);
    assert_eq!(cost.cost_usd, Some(price((412, 530))));

    let assumed = json!({
        "model": "openai/gpt-5-mini", "assumed_input_tokens": 2_000_000, "assumed_output_tokens": 0,
    });
    let cost = simulate(&body(assumed)).cost.unwrap();
    assert_eq!(cost.basis, ForecastBasis::AssumedTokens);
    assert_eq!(cost.cost_usd, Some(price((2_000_000, 0))));
    assert_eq!(cost.runs, 10);

    let catalog = Catalog::with_extra("openai/our-own").unwrap();
    let own = body(json!({ "model": "openai/our-own" }));
    let request = with_rules(&NO_HOLIDAYS, |rules| {
        let rules = Rules {
            catalog: &catalog,
            ..*rules
        };
        Request::parse(&own, &rules, None)
    });
    let cost = run(&request.unwrap(), &NO_HOLIDAYS, &catalog).cost.unwrap();
    assert_eq!((cost.cost_per_run_usd, cost.cost_usd), (None, None));
    assert!(cost.detail.contains("not known"), "{}", cost.detail);

    let new = Past {
        runs: 0,
        input_tokens: None,
        output_tokens: None,
        cost_usd: None,
        latency_ms: None,
        ..past()
    };
    let fresh = simulate_with(
        &body(json!({ "prompt_id": PROMPT })),
        Some(new),
        &NO_HOLIDAYS,
    );
    assert_eq!(fresh.cost.unwrap().basis, ForecastBasis::AssumedTokens);
    assert_eq!(fresh.run_s_from, RunLength::Default);
}

#[test]
fn what_is_named_of_a_prompt_must_be_there() {
    let body = json!({ "schedule": cron("0 9 * * *"), "prompt_id": PROMPT, "max_runs": 7 });
    assert_eq!(refused(&body), [("prompt_id".to_owned(), "unknown_prompt")]);
    assert_eq!(
        refused_with(&body, Some(past())),
        [("max_runs".to_owned(), "max_runs_reached")]
    );
    assert_eq!(Request::prompt_id(&body), Some(PROMPT.parse().unwrap()));
}

#[test]
fn jitter_is_exact_for_a_prompt_that_has_an_id() {
    let mut body = json!({ "schedule": cron("0 9 * * *"), "jitter_minutes": 15 });
    let told = simulate(&body).jitter.unwrap();
    assert_eq!((told.minutes, told.delay_s), (15, None));
    body["prompt_id"] = json!(PROMPT);
    let told = simulate_with(&body, Some(past()), &NO_HOLIDAYS)
        .jitter
        .unwrap();
    let id: PromptId = PROMPT.parse().unwrap();
    assert_eq!(told.delay_s, Some(jitter::delay(id, 15).num_seconds()));
}

#[test]
fn crowded_minutes_are_told() {
    let mut simulation = simulate(&json!({ "schedule": cron("0 9 * * *"), "count": 3 }));
    let slots = simulation.conflict_slots();
    assert_eq!(slots.len(), 3);
    simulation.tell_conflicts(&[(slots[0], 12), (slots[2], 40)]);
    assert_eq!(simulation.conflicts.len(), 2);
    assert_eq!(simulation.conflicts[1].local, "2026-03-25T09:00:00+00:00");
    let warning = simulation.warnings.last().unwrap();
    assert_eq!(warning.code, "crowded_minute");
    assert!(warning.detail.starts_with("40 other"), "{}", warning.detail);
}

/// What the planner does with one slot, as its rows would show.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    slot: DateTime<Utc>,
    count: u32,
    what: &'static str,
    starts: Option<DateTime<Utc>>,
}

/// The planner as it works: somebody looks, plans what is due, claims what may run. Written without
/// the simulator, to be compared with it.
struct Worker {
    spec: PromptSpec,
    policy: Policy,
    run: TimeDelta,
    until: DateTime<Utc>,
    claimed: u64,
    next: Option<DateTime<Utc>>,
    /// Slot and end.
    running: Vec<(DateTime<Utc>, DateTime<Utc>)>,
    /// Slot, and when it is available.
    queued: BTreeMap<DateTime<Utc>, DateTime<Utc>>,
    rows: BTreeMap<DateTime<Utc>, Row>,
}

fn run_id(slot: DateTime<Utc>) -> RunId {
    RunId::from(Uuid::from_u128(slot.timestamp().unsigned_abs().into()))
}

impl Worker {
    fn is_completed(&self) -> bool {
        let max = self.spec.max_runs();
        max.is_some_and(|max| self.claimed >= u64::from(max))
    }

    fn next_after(&self, slot: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let next = self.spec.next_slot(slot, &NO_HOLIDAYS);
        next.filter(|next| *next <= self.until)
    }

    /// The instants at which something may happen.
    fn happens(&self) -> Vec<DateTime<Utc>> {
        let looked = self.next.map(|next| next + self.policy.delay);
        let ends = self.running.iter().map(|(_, ends)| *ends);
        ends.chain(self.queued.values().copied())
            .chain(looked)
            .collect()
    }

    fn claim(&mut self, slot: DateTime<Utc>, now: DateTime<Utc>) {
        self.queued.remove(&slot);
        self.claimed += 1;
        self.running.push((slot, now + self.run));
        self.rows.get_mut(&slot).unwrap().starts = Some(now);
        if self.is_completed() {
            let first = self.next.take().filter(|first| *first <= now);
            let dropped =
                first.and_then(|first| slots::dropped(first, now, |after| self.next_after(after)));
            if let Some(dropped) = dropped {
                self.write(dropped.first, "max_runs", dropped.count);
            }
        }
    }

    /// The oldest slot goes first, unless all may run at once.
    fn claim_queued(&mut self, now: DateTime<Utc>) {
        let at_once = usize::try_from(self.policy.at_once()).unwrap();
        for (slot, available) in self.queued.clone() {
            let oldest = self.queued.keys().next() == Some(&slot);
            let in_turn = oldest || self.spec.overlap() == Overlap::AllowAll;
            if available <= now && self.running.len() < at_once && in_turn {
                self.claim(slot, now);
            }
        }
    }

    fn write(&mut self, slot: DateTime<Utc>, what: &'static str, count: i32) {
        let count = u32::try_from(count).unwrap();
        let row = Row {
            slot,
            count,
            what,
            starts: None,
        };
        self.rows.insert(slot, row);
    }

    fn open(&self) -> OpenRuns {
        let running = self.running.first().map(|(slot, _)| *slot);
        let oldest = self.queued.keys().next().copied();
        OpenRuns {
            count: u32::try_from(self.running.len() + self.queued.len()).unwrap(),
            running: u32::try_from(self.running.len()).unwrap(),
            in_the_way: running.or(oldest).map(run_id),
            waiting: self.queued.keys().next_back().map(|slot| run_id(*slot)),
        }
    }

    fn shared(&self) -> Option<SharedRow> {
        let (slot, row) = self.rows.last_key_value()?;
        let is_missed = !["run", "overlap", "replaced", "max_runs"].contains(&row.what);
        let until = (1..row.count).try_fold(*slot, |slot, _| self.next_after(slot))?;
        (row.count > 1 && is_missed).then_some(SharedRow {
            run_id: run_id(*slot),
            until,
        })
    }

    fn look(&mut self, now: DateTime<Utc>) {
        while let Some(first) = self.next.filter(|next| *next <= now) {
            let waiting = u64::try_from(self.queued.len()).unwrap();
            let policy = Policy {
                runs_left: self
                    .spec
                    .max_runs()
                    .map(|max| u64::from(max).saturating_sub(self.claimed + waiting)),
                ..self.policy
            };
            let look = Look {
                first,
                now,
                shared: self.shared(),
                open: self.open(),
            };
            let plan = slots::plan(look, policy, |after| {
                self.spec.next_slot(after, &NO_HOLIDAYS)
            });
            self.next = plan.next.filter(|next| *next <= self.until);
            if let Some(extension) = plan.extension {
                let row = self.rows.values_mut().next_back().unwrap();
                assert_eq!(run_id(row.slot), extension.run_id);
                row.count += u32::try_from(extension.count).unwrap();
            }
            if let Some(replaced) = plan.replaced {
                let slot = *self
                    .queued
                    .keys()
                    .find(|slot| run_id(**slot) == replaced)
                    .unwrap();
                self.queued.remove(&slot);
                self.rows.get_mut(&slot).unwrap().what = "replaced";
            }
            for row in &plan.rows {
                let slot = row.scheduled_for;
                match row.fate {
                    Fate::Run { after } => {
                        self.queued.insert(slot, now + after);
                        self.write(slot, "run", 1);
                    }
                    Fate::Overlapped { .. } => self.write(slot, "overlap", 1),
                    Fate::OverLimit => self.write(slot, "max_runs", 1),
                    Fate::Missed { reason, count, .. } => self.write(slot, reason, count),
                }
            }
            if let Some(slot) = plan.begins(policy, &look.open) {
                self.claim(slot, now);
            }
            if !plan.is_cut {
                break;
            }
        }
    }
}

fn step_by_step(request: &Request, run_s: u32, until: DateTime<Utc>) -> Vec<Row> {
    let spec = request.spec.clone();
    let id = request.prompt_id.unwrap_or(PromptId::from(Uuid::nil()));
    let mut now = request.span.after;
    let mut worker = Worker {
        policy: Policy::of(&spec, id, None),
        next: spec
            .next_slot(now, &NO_HOLIDAYS)
            .filter(|next| *next <= until),
        spec,
        run: TimeDelta::seconds(run_s.into()),
        until,
        claimed: 0,
        running: Vec::new(),
        queued: BTreeMap::new(),
        rows: BTreeMap::new(),
    };
    if request.prompt_id.is_none() {
        worker.policy.delay = TimeDelta::zero();
    }
    while worker.next.is_some() || !worker.queued.is_empty() {
        let down = request
            .downtime
            .filter(|down| down.from <= now && now < down.until);
        worker.running.retain(|(_, ends)| *ends > now);
        if down.is_none() {
            worker.claim_queued(now);
            if worker
                .next
                .is_some_and(|next| next + worker.policy.delay <= now)
            {
                worker.look(now);
                worker.claim_queued(now);
            }
        }
        let later = worker.happens().into_iter().filter(|at| *at > now).min();
        now = match (down, later) {
            (None, Some(later)) => later,
            (Some(down), later) => later.map_or(down.until, |later| later.min(down.until)),
            (None, None) => break,
        };
    }
    worker.rows.into_values().collect()
}

/// The same, as the simulator tells it.
fn rows_of(simulation: &Simulation) -> Vec<Row> {
    simulation
        .slots
        .iter()
        .map(|slot| {
            let (what, starts) = match slot.outcome {
                Outcome::Run => ("run", slot.starts_at.or(Some(slot.scheduled_for))),
                Outcome::Wait => ("run", slot.starts_at),
                Outcome::Skipped | Outcome::Missed => (slot.reason.unwrap(), None),
            };
            Row {
                slot: slot.scheduled_for,
                count: slot.slots_count,
                what,
                starts,
            }
        })
        .collect()
}

fn schedules() -> impl Strategy<Value = Value> {
    let zones = prop_oneof![
        Just("Europe/London"),
        Just("America/New_York"),
        Just("Australia/Lord_Howe"),
        Just("Pacific/Chatham"),
        Just("Africa/Casablanca"),
        Just("Asia/Kolkata"),
    ];
    let expressions = prop_oneof![
        Just("* * * * *".to_owned()),
        (2u32..60).prop_map(|step| format!("*/{step} * * * *")),
        (0u32..60, 1u32..6).prop_map(|(minute, step)| format!("{minute} */{step} * * *")),
        (0u32..60, 0u32..4).prop_map(|(minute, hour)| format!("{minute},59 {hour} * * *")),
        (0u32..60).prop_map(|minute| format!("{minute} 1-3 1,15,29 * 0,6")),
    ];
    let gap = prop_oneof![Just(None), Just(Some("skip")), Just(Some("shift"))];
    let cron = (expressions, zones, gap).prop_map(|(expression, timezone, dst_gap)| {
        json!({ "type": "cron", "expression": expression, "timezone": timezone, "dst_gap": dst_gap })
    });
    let interval = (1u32..200).prop_map(|minutes| {
        json!({ "type": "interval", "every_minutes": minutes, "anchor": "2026-01-01T00:07:00Z" })
    });
    prop_oneof![3 => cron, 1 => interval]
}

fn bodies() -> impl Strategy<Value = Value> {
    let starts = prop_oneof![
        Just("2026-03-08T04:00:00Z"),
        Just("2026-03-28T22:00:00Z"),
        Just("2026-04-04T10:00:00Z"),
        Just("2026-10-24T20:00:00Z"),
        Just("2026-11-01T03:00:00Z"),
        Just("2026-06-01T00:00:00Z"),
    ];
    let policies = (
        prop_oneof![
            Just(("skip", 1)),
            Just(("buffer_one", 1)),
            (1u32..=5).prop_map(|runs_max| ("allow_all", runs_max)),
        ],
        prop_oneof![Just("skip"), Just("run_latest"), Just("run_all")],
        prop_oneof![Just(0u32), Just(900), 0u32..20_000],
        proptest::option::of(1u32..40),
    );
    let weekdays = proptest::sample::subsequence(vec!["mon", "thu", "sat", "sun"], 0..=3);
    let down = proptest::option::of((0i64..2_000, 1i64..3_000));
    (
        schedules(),
        starts,
        1i64..30,
        policies,
        weekdays,
        1u32..600,
        down,
    )
        .prop_map(|(schedule, from, hours, policies, weekdays, tens, down)| {
            let ((overlap, runs_max), misfire, catchup_window_s, max_runs) = policies;
            let start = at(from);
            let down = down.map(|(first, length)| {
                let first = start + TimeDelta::seconds(first * 10);
                json!({ "from": first, "until": first + TimeDelta::seconds(length * 10) })
            });
            json!({
                "schedule": schedule, "after": from, "until": start + TimeDelta::hours(hours),
                "overlap": overlap, "overlap_runs_max": runs_max, "misfire": misfire, "catchup_window_s": catchup_window_s,
                "max_runs": max_runs, "exclusions": { "weekdays": weekdays },
                "assumed_run_s": tens * 10, "assumed_downtime": down,
            })
        })
}

/// The same for a prompt with an id and a jitter, where its schedule has room for that.
fn read(body: &Value, jitter: Option<u32>) -> Request {
    let mut spread = body.clone();
    spread["jitter_minutes"] = json!(jitter);
    spread["prompt_id"] = json!(Uuid::from_u128(u128::from(jitter.unwrap_or(0)) << 64));
    let new = Past {
        run_count: 0,
        ..past()
    };
    with_rules(&NO_HOLIDAYS, |rules| {
        Request::parse(&spread, rules, Some(new)).or_else(|_| Request::parse(body, rules, None))
    })
    .unwrap()
}

fn jitters() -> impl Strategy<Value = Option<u32>> {
    proptest::option::of(1u32..=60)
}

#[test]
fn a_catch_up_is_played_as_it_is_worked() {
    // Runs of a catch-up wait for their time, and a slot that comes due meanwhile goes first.
    let overtaken = json!({
        "schedule": { "type": "interval", "every_minutes": 4, "anchor": "2026-06-01T00:00:00Z" },
        "after": "2026-06-01T00:00:00Z", "until": "2026-06-01T02:00:00Z", "overlap": "allow_all",
        "overlap_runs_max": 20, "misfire": "run_all", "catchup_window_s": 3_600, "assumed_run_s": 10,
        "assumed_downtime": { "from": "2026-06-01T00:10:00Z", "until": "2026-06-01T00:51:55Z" },
    });
    let request = read(&overtaken, None);
    let simulation = run(&request, &NO_HOLIDAYS, &Catalog::shipped());
    assert_eq!(
        rows_of(&simulation),
        step_by_step(&request, 10, simulation.range.until)
    );
    let starts = simulation.slots.windows(2).map(|pair| {
        let start = |slot: &SimulatedSlot| slot.starts_at.unwrap_or(slot.scheduled_for);
        start(&pair[0]) <= start(&pair[1])
    });
    assert!(
        starts.into_iter().any(|in_order| !in_order),
        "{:?}",
        simulation.slots
    );

    // A downtime of a month is accounted for in parts, which share a row.
    let month = json!({
        "schedule": { "type": "interval", "every_minutes": 1 }, "after": "2026-06-01T00:00:00Z",
        "until": "2026-07-02T00:00:00Z", "assumed_run_s": 30,
        "assumed_downtime": { "from": "2026-06-01T12:00:00Z", "until": "2026-07-01T12:00:00Z" },
    });
    let request = read(&month, None);
    let simulation = run(&request, &NO_HOLIDAYS, &Catalog::shipped());
    let worked = step_by_step(&request, 30, simulation.range.until);
    let simulated = rows_of(&simulation);
    assert_eq!(simulated, worked[..simulated.len()]);
    assert_eq!(simulation.totals.missed, 43_198);
    let shared = simulation.slots.iter().map(|slot| slot.slots_count).max();
    assert!(shared.unwrap() > 40_000, "{shared:?}");
}

proptest! {
    #[test]
    fn the_simulator_agrees_with_the_planner_step_by_step(body in bodies(), jitter in jitters()) {
        let request = read(&body, jitter);
        let simulation = run(&request, &NO_HOLIDAYS, &Catalog::shipped());
        let worked = step_by_step(&request, simulation.run_s, simulation.range.until);
        let simulated = rows_of(&simulation);
        let listed = worked.iter().take(ENTRIES_MAX).cloned().collect::<Vec<_>>();
        prop_assert_eq!(&simulated, &listed);
        let count = |what: &dyn Fn(&Row) -> bool| {
            worked.iter().filter(|row| what(row)).map(|row| row.count).sum::<u32>()
        };
        let totals = simulation.totals;
        prop_assert_eq!(totals.due, count(&|_| true));
        prop_assert_eq!(totals.run, count(&|row| row.what == "run"));
        let delay = TimeDelta::seconds(simulation.jitter.and_then(|told| told.delay_s).unwrap_or(0));
        prop_assert_eq!(totals.wait, count(&|row| row.starts.is_some_and(|at| at > row.slot + delay)));
        let in_the_way = |row: &Row| ["overlap", "replaced"].contains(&row.what);
        prop_assert_eq!(totals.skipped_overlap, count(&in_the_way));
        prop_assert_eq!(totals.skipped_max_runs, count(&|row| row.what == "max_runs"));
        prop_assert_eq!(
            totals.due,
            totals.run + totals.skipped_overlap + totals.skipped_max_runs + totals.missed
        );
    }

    #[test]
    fn every_time_of_the_range_is_accounted_for(body in bodies(), jitter in jitters()) {
        let request = read(&body, jitter);
        let simulation = run(&request, &NO_HOLIDAYS, &Catalog::shipped());
        let schedule = request.spec.schedule();
        let until = simulation.range.until;
        let wall = until.with_timezone(&schedule.timezone()).naive_local();
        let times = schedule
            .occurrences(request.span.after)
            .take_while(|time| match time.at {
                Some(at) => at <= until,
                None => time.wall <= wall,
            })
            .inspect(|time| {
                let is_slot = !matches!(time.kind, OccurrenceKind::Merged | OccurrenceKind::SkippedGap);
                assert_eq!(is_slot, time.at.is_some());
            })
            .count();
        let totals = simulation.totals;
        let told = totals.due + totals.dst_gap + totals.excluded + totals.after_max_runs;
        prop_assert_eq!(usize::try_from(told).unwrap(), times);
        let listed: u32 = simulation.not_due.iter().map(|one| one.slots_count).sum();
        prop_assert_eq!(listed, totals.dst_gap + totals.excluded + totals.after_max_runs);
        prop_assert!(simulation.slots.windows(2).all(|pair| pair[0].scheduled_for < pair[1].scheduled_for));
        prop_assert!(simulation.not_due.windows(2).all(|pair| pair[0].local <= pair[1].local));
    }
}
