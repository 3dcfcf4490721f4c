use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;
use utoipa::PartialSchema;

use super::*;
use crate::{
    exclusion::{CalendarName, NO_HOLIDAYS},
    schedule::DstGap,
};

fn now() -> DateTime<Utc> {
    "2026-03-22T12:00:00Z".parse().unwrap()
}

fn with_rules<T>(use_rules: impl FnOnce(&Rules<'_>) -> T) -> T {
    let catalog = Catalog::shipped();
    use_rules(&Rules {
        now: now(),
        outbound: &outbound::Policy::PUBLIC,
        catalog: &catalog,
        interval_minutes_min: 5,
        default_timezone: chrono_tz::Europe::Paris,
        allow_echo: true,
        owner_email: Some("owner@example.com"),
        holidays: &NO_HOLIDAYS,
    })
}

fn parse(value: &Value) -> Result<PromptSpec, Vec<Fault>> {
    with_rules(|rules| PromptSpec::parse(value, rules))
}

fn patched(spec: &PromptSpec, patch: &Value) -> Result<PromptSpec, Vec<Fault>> {
    with_rules(|rules| spec.merge_patch(patch, rules))
}

/// A body with nothing that could be left out.
fn least() -> Value {
    json!({
        "prompt_name": "Brief",
        "prompt_text": "Write.",
        "model": "echo/demo",
        "schedule": {"type": "daily", "at": "08:00"},
    })
}

/// A body with every field.
fn full() -> Value {
    json!({
        "prompt_name": "Brief",
        "description": "What happened\nyesterday",
        "prompt_text": "On {{ context.topic }}, {{ slot.date }}: {{ previous.output }}",
        "system_text": "You write for {{ context.reader.name }}.",
        "model": "openai/gpt-5-mini",
        "model_settings": {"temperature": 1.5, "max_output_tokens": 500},
        "context": {"topic": "energy", "reader": {"name": "Ann"}},
        "schedule": {"type": "interval", "every_minutes": 45, "timezone": "Asia/Tokyo",
                     "start_at": "2026-04-01T00:00:00Z", "end_at": "2027-04-01T00:00:00Z"},
        "exclusions": {"dates": ["2026-12-25"], "ranges": [{"from": "2026-08-01", "to": "2026-08-14"}],
                       "weekdays": ["sat", "sun"], "calendars": []},
        "jitter_minutes": 44,
        "overlap": "buffer_one",
        "overlap_runs_max": 20,
        "catchup_window_s": 0,
        "misfire": "run_all",
        "max_runs": 7,
        "max_retries": 0,
        "retry_delay_ms": 1_000,
        "timeout_ms": 840_000,
        "pause_after_failures": 0,
        "destinations": [
            {"kind": "email", "to": ["ann@example.com"], "subject": "{{ context.topic }} {{ slot.date }}"},
            {"kind": "webhook", "url": "https://hooks.example.com/x"},
            {"kind": "storage"},
        ],
        "notification_email": "ops@example.com",
        "external_id": "brief-1",
        "tags": ["daily", "energy"],
        "metadata": {"team": 7},
    })
}

/// The least body with one field set; null takes it away.
fn least_with(field: &str, value: Value) -> Value {
    let mut body = least();
    body[field] = value;
    body
}

fn told(result: Result<PromptSpec, Vec<Fault>>) -> Vec<(String, &'static str)> {
    let faults = result.err().unwrap_or_default();
    faults
        .into_iter()
        .map(|fault| (fault.field, fault.code))
        .collect()
}

#[test]
fn defaults_are_spelled_out() {
    let spec = parse(&least()).unwrap();
    let expected = json!({
        "prompt_name": "Brief",
        "prompt_text": "Write.",
        "model": "echo/demo",
        "model_settings": {},
        "context": {},
        "schedule": {"type": "daily", "at": "08:00", "timezone": "Europe/Paris", "dst_gap": "shift"},
        "exclusions": {"dates": [], "ranges": [], "weekdays": [], "calendars": []},
        "jitter_minutes": 0,
        "overlap": "skip",
        "overlap_runs_max": 3,
        "catchup_window_s": 900,
        "misfire": "run_latest",
        "max_retries": 3,
        "retry_delay_ms": 60_000,
        "timeout_ms": 300_000,
        "pause_after_failures": 10,
        "destinations": [{"kind": "email", "to": ["owner@example.com"], "on_unknown": "resend"}],
        "tags": [],
        "metadata": {},
    });
    assert_eq!(spec.to_json(), expected);
}

#[test]
fn null_is_the_same_as_absent() {
    let mut body = least();
    let optional: Vec<String> = full()
        .as_object()
        .unwrap()
        .keys()
        .filter(|name| body.get(name).is_none())
        .cloned()
        .collect();
    for name in optional {
        body[name] = Value::Null;
    }
    body["schedule"]["timezone"] = Value::Null;
    assert_eq!(parse(&body).unwrap(), parse(&least()).unwrap());
}

#[test]
fn what_was_sent_is_what_is_kept() {
    let spec = parse(&full()).unwrap();
    let mut expected = full();
    expected["destinations"][0]["on_unknown"] = json!("resend");
    let mut kept = spec.to_json();
    // The schedule's own tests say what becomes of its anchor.
    kept["schedule"].as_object_mut().unwrap().remove("anchor");
    assert_eq!(kept, expected);
    assert_eq!(spec.max_runs(), Some(7));
    assert_eq!(spec.overlap(), Overlap::BufferOne);
    assert_eq!(spec.destinations().len(), 3);
}

#[test]
fn the_output_goes_to_the_best_address_there_is() {
    let to = |body: &Value, owner: Option<&str>| {
        with_rules(|rules| {
            let rules = Rules {
                owner_email: owner,
                ..*rules
            };
            PromptSpec::parse(body, &rules).unwrap().to_json()["destinations"].clone()
        })
    };
    let email = |address: &str| json!([{"kind": "email", "to": [address], "on_unknown": "resend"}]);
    let notified = least_with("notification_email", json!("n@example.com"));
    assert_eq!(
        to(&notified, Some("owner@example.com")),
        email("n@example.com")
    );
    assert_eq!(
        to(&least(), Some("owner@example.com")),
        email("owner@example.com")
    );
    assert_eq!(to(&least(), None), json!([]));
    assert_eq!(to(&least(), Some("no address")), json!([]));
    assert_eq!(
        to(
            &least_with("destinations", json!([])),
            Some("owner@example.com")
        ),
        json!([])
    );
}

#[test]
fn every_refusal_names_its_field_and_code() {
    let text = |count: usize| Value::from("x".repeat(count));
    let sized = |bytes: usize| json!({ "a": "x".repeat(bytes - 8) });
    let email =
        |subject: &str| json!([{"kind": "email", "to": ["a@b.example"], "subject": subject}]);
    let table = [
        ("prompt_name", json!(null), "prompt_name", "missing"),
        ("prompt_name", json!(7), "prompt_name", "wrong_type"),
        ("prompt_name", json!(" "), "prompt_name", "empty"),
        ("prompt_name", text(201), "prompt_name", "too_long"),
        (
            "prompt_name",
            json!("a\nb"),
            "prompt_name",
            "control_character",
        ),
        ("description", text(2_001), "description", "too_long"),
        (
            "description",
            json!("a\0"),
            "description",
            "control_character",
        ),
        ("prompt_text", json!(null), "prompt_text", "missing"),
        ("prompt_text", json!(""), "prompt_text", "empty"),
        ("prompt_text", text(100_001), "prompt_text", "too_long"),
        (
            "prompt_text",
            json!("{{ slot.day }}"),
            "prompt_text",
            "unknown_variable",
        ),
        (
            "prompt_text",
            json!("{{ context.x }}"),
            "prompt_text",
            "unknown_variable",
        ),
        (
            "prompt_text",
            json!("{{ open"),
            "prompt_text",
            "template_syntax",
        ),
        (
            "prompt_text",
            json!("{% set x = 1 %}"),
            "prompt_text",
            "template_unsupported",
        ),
        (
            "prompt_text",
            json!(format!("{{{{ {}1 }}}}", "-".repeat(999))),
            "prompt_text",
            "template_too_complex",
        ),
        (
            "system_text",
            json!("{{ foo }}"),
            "system_text",
            "unknown_variable",
        ),
        ("model", json!(null), "model", "missing"),
        ("model", json!("gpt"), "model", "malformed_model"),
        ("model", json!("nobody/gpt"), "model", "unknown_provider"),
        (
            "model",
            json!("openai/no-such-model"),
            "model",
            "unknown_model",
        ),
        (
            "model_settings",
            json!({"temperature": 3}),
            "model_settings.temperature",
            "out_of_range",
        ),
        ("context", json!([]), "context", "wrong_type"),
        ("context", sized(32 * 1024 + 1), "context", "too_long"),
        ("schedule", json!(null), "schedule", "missing"),
        ("schedule", json!("daily"), "schedule", "wrong_type"),
        (
            "schedule",
            json!({"type": "cron", "expression": "* * * * *"}),
            "schedule",
            "below_minimum_interval",
        ),
        (
            "schedule",
            json!({"type": "interval", "every_minutes": 4}),
            "schedule",
            "below_minimum_interval",
        ),
        (
            "schedule",
            json!({"type": "once", "at": "2026-03-22T11:00:00Z"}),
            "schedule.at",
            "in_the_past",
        ),
        (
            "schedule",
            json!({"type": "daily", "at": "08:00", "timezone": "Mars/X"}),
            "schedule.timezone",
            "unknown_timezone",
        ),
        ("overlap", json!("wait"), "overlap", "unknown_value"),
        ("misfire", json!("run"), "misfire", "unknown_value"),
        (
            "overlap_runs_max",
            json!(0),
            "overlap_runs_max",
            "out_of_range",
        ),
        (
            "overlap_runs_max",
            json!(21),
            "overlap_runs_max",
            "out_of_range",
        ),
        (
            "catchup_window_s",
            json!(604_801),
            "catchup_window_s",
            "out_of_range",
        ),
        (
            "catchup_window_s",
            json!(-1),
            "catchup_window_s",
            "out_of_range",
        ),
        ("max_runs", json!(0), "max_runs", "out_of_range"),
        ("max_runs", json!(1_000_001), "max_runs", "out_of_range"),
        ("max_runs", json!("3"), "max_runs", "wrong_type"),
        ("max_retries", json!(11), "max_retries", "out_of_range"),
        (
            "retry_delay_ms",
            json!(999),
            "retry_delay_ms",
            "out_of_range",
        ),
        (
            "retry_delay_ms",
            json!(3_600_001),
            "retry_delay_ms",
            "out_of_range",
        ),
        ("timeout_ms", json!(999), "timeout_ms", "out_of_range"),
        ("timeout_ms", json!(840_001), "timeout_ms", "out_of_range"),
        (
            "pause_after_failures",
            json!(1_001),
            "pause_after_failures",
            "out_of_range",
        ),
        ("destinations", json!({}), "destinations", "wrong_type"),
        (
            "destinations",
            json!([{"kind": "webhook", "url": "https://10.0.0.1/"}]),
            "destinations[0].url",
            "url_not_allowed",
        ),
        (
            "destinations",
            email("{{ foo }}"),
            "destinations[0].subject",
            "unknown_variable",
        ),
        (
            "destinations",
            email("{{ context.x }}"),
            "destinations[0].subject",
            "unknown_variable",
        ),
        (
            "notification_email",
            json!("nobody"),
            "notification_email",
            "invalid_email",
        ),
        ("external_id", text(201), "external_id", "too_long"),
        ("external_id", json!(""), "external_id", "empty"),
        ("tags", json!("a"), "tags", "wrong_type"),
        ("tags", json!(vec!["a"; 21]), "tags", "too_many"),
        ("tags", json!(["a", "x".repeat(51)]), "tags[1]", "too_long"),
        ("tags", json!(["a", "b", "a"]), "tags[2]", "duplicate"),
        ("metadata", json!(1), "metadata", "wrong_type"),
        ("metadata", sized(16 * 1024 + 1), "metadata", "too_long"),
        (
            "metadata",
            json!({"a": "\0"}),
            "metadata",
            "control_character",
        ),
        ("promt_name", json!("x"), "promt_name", "unknown_field"),
    ];
    for (field, value, place, code) in table {
        let body = least_with(field, value);
        assert_eq!(
            told(parse(&body)),
            [(place.to_owned(), code)],
            "{body:.200}"
        );
    }
}

#[test]
fn limits_are_inclusive() {
    let text = |count: usize| Value::from("ü".repeat(count));
    let table = [
        ("prompt_name", text(200)),
        ("description", text(2_000)),
        ("description", json!("")),
        ("prompt_text", text(50_000)),
        ("context", json!({ "a": "x".repeat(32 * 1024 - 8) })),
        ("catchup_window_s", json!(604_800)),
        ("max_runs", json!(1_000_000)),
        ("overlap_runs_max", json!(20)),
        ("max_retries", json!(10)),
        ("retry_delay_ms", json!(3_600_000)),
        ("timeout_ms", json!(1_000)),
        ("pause_after_failures", json!(1_000)),
        ("external_id", text(200)),
        (
            "tags",
            json!((0..20).map(|n| format!("{n:050}")).collect::<Vec<_>>()),
        ),
        ("metadata", json!({ "a": "x".repeat(16 * 1024 - 8) })),
        ("schedule", json!({"type": "interval", "every_minutes": 5})),
        ("schedule", json!({"type": "manual"})),
    ];
    for (field, value) in table {
        let body = least_with(field, value);
        assert_eq!(told(parse(&body)), [], "{body:.200}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let body = json!({
        "prompt_text": "{{ foo }}", "model": "x", "schedule": {"type": "daily"}, "tags": [1],
        "destinations": [{"kind": "pigeon"}], "max_runs": 0, "extra": 1,
    });
    let found: BTreeSet<_> = told(parse(&body)).into_iter().collect();
    let expected = [
        ("prompt_text", "unknown_variable"),
        ("model", "malformed_model"),
        ("schedule.at", "missing"),
        ("tags[0]", "wrong_type"),
        ("destinations[0].kind", "unknown_value"),
        ("max_runs", "out_of_range"),
        ("prompt_name", "missing"),
        ("extra", "unknown_field"),
    ];
    assert_eq!(
        found,
        expected
            .map(|(field, code)| (field.to_owned(), code))
            .into()
    );
}

#[test]
fn the_offline_provider_can_be_switched_off() {
    let refused = with_rules(|rules| {
        let rules = Rules {
            allow_echo: false,
            ..*rules
        };
        PromptSpec::parse(&least(), &rules)
    });
    assert_eq!(
        told(refused),
        [("model".to_owned(), "provider_not_allowed")]
    );
}

#[test]
fn settings_suit_the_models_provider() {
    let mut body = least_with("model_settings", json!({"temperature": 1.5}));
    assert!(parse(&body).is_ok());
    body["model"] = json!("anthropic/claude-sonnet-4-5");
    let place = "model_settings.temperature".to_owned();
    assert_eq!(told(parse(&body)), [(place, "out_of_range")]);
}

#[test]
fn what_is_stored_is_read_without_the_rules_of_the_day() {
    let mut stored = full();
    stored["model"] = json!("openai/withdrawn-model");
    stored["schedule"] = json!({"type": "once", "at": "2020-01-01T00:00:00Z"});
    stored["destinations"] = json!([{"kind": "webhook", "url": "https://10.0.0.1/"}]);
    let spec = PromptSpec::from_stored(&stored).unwrap();
    assert_eq!(spec.model().to_string(), "openai/withdrawn-model");
    assert_eq!(
        PromptSpec::from_stored(&json!([])).unwrap_err()[0].code,
        "wrong_type"
    );
    stored["destinations"] = json!([{"kind": "pigeon"}]);
    assert_eq!(
        PromptSpec::from_stored(&stored).unwrap_err()[0].field,
        "destinations"
    );
}

#[test]
fn both_bodies_survive_the_round_trip() {
    for body in [least(), full()] {
        let spec = parse(&body).unwrap();
        let read = PromptSpec::from_stored(&spec.to_json()).unwrap();
        assert_eq!(read, spec);
        assert_eq!(read.to_json(), spec.to_json());
        assert!(!read.schedule_changed(&spec));
        assert_eq!(patched(&spec, &json!({})).unwrap(), spec);
    }
}

#[test]
fn a_patch_changes_what_it_names() {
    let spec = parse(&full()).unwrap();
    let patch = json!({
        "prompt_name": "New", "description": null, "max_retries": null, "context": {"topic": null, "more": 1},
        "prompt_text": "{{ context.more }}", "tags": ["one"], "destinations": [{"kind": "storage"}],
    });
    let mut expected = spec.to_json();
    expected["prompt_name"] = json!("New");
    expected.as_object_mut().unwrap().remove("description");
    expected["max_retries"] = json!(3);
    expected["context"] = json!({"more": 1, "reader": {"name": "Ann"}});
    expected["prompt_text"] = json!("{{ context.more }}");
    expected["tags"] = json!(["one"]);
    expected["destinations"] = json!([{"kind": "storage"}]);
    assert_eq!(patched(&spec, &patch).unwrap().to_json(), expected);
}

#[test]
fn a_patch_of_the_schedule_is_seen() {
    let spec = parse(&least()).unwrap();
    for (patch, changed) in [
        (json!({"schedule": {"timezone": "Asia/Tokyo"}}), true),
        (json!({"schedule": {"at": "08:01"}}), true),
        (
            json!({"schedule": {"end_at": "2027-01-01T00:00:00Z"}}),
            true,
        ),
        (json!({"schedule": {"dst_gap": "skip"}}), true),
        (json!({"exclusions": {"weekdays": ["sun"]}}), true),
        (json!({"jitter_minutes": 5}), true),
        (json!({"schedule": {"at": "08:00"}}), false),
        (json!({"schedule": {"dst_gap": null}}), false),
        (json!({"exclusions": {"weekdays": []}}), false),
        (json!({"prompt_name": "x"}), false),
    ] {
        let after = patched(&spec, &patch).unwrap();
        assert_eq!(after.schedule_changed(&spec), changed, "{patch}");
    }
}

/// The least body, due as said.
fn due(schedule: Value, exclusions: Value) -> Value {
    let mut body = least_with("schedule", schedule);
    body["exclusions"] = exclusions;
    body
}

#[test]
fn what_can_never_fire_is_refused_with_its_field() {
    let weekly = json!({"type": "weekly", "days": ["sat", "sun"], "at": "08:00"});
    let cron = |expression: &str| json!({"type": "cron", "expression": expression});
    let once = |at: &str| json!({"type": "once", "at": at, "timezone": "Pacific/Auckland"});
    let week = json!({"type": "daily", "at": "08:00", "end_at": "2026-03-29T00:00:00Z"});
    let table = [
        (
            weekly.clone(),
            json!({"weekdays": ["sat", "sun"]}),
            "exclusions.weekdays",
        ),
        (
            cron("0 9 * * 1"),
            json!({"weekdays": ["mon"]}),
            "exclusions.weekdays",
        ),
        (
            once("2026-12-25T08:00"),
            json!({"dates": ["2026-12-25"]}),
            "exclusions.dates",
        ),
        // The date in the prompt's zone, where it is the 26th already.
        (
            once("2026-12-25T20:00:00Z"),
            json!({"dates": ["2026-12-26"]}),
            "exclusions.dates",
        ),
        (
            week.clone(),
            json!({"ranges": [{"from": "2026-03-22", "to": "2026-03-29"}]}),
            "exclusions.ranges",
        ),
        (
            week.clone(),
            json!({"ranges": [{"from": "2026-03-22", "to": "2026-03-27"}], "weekdays": ["sat"]}),
            "exclusions",
        ),
    ];
    for (schedule, exclusions, place) in table {
        let refused = parse(&due(schedule.clone(), exclusions));
        let expected = [(place.to_owned(), "every_slot_excluded")];
        assert_eq!(told(refused), expected, "{schedule}");
    }
    let accepted = [
        (weekly, json!({"weekdays": ["sat"]})),
        (cron("0 9 13 * 1"), json!({"weekdays": ["mon"]})),
        (
            once("2026-12-25T20:00:00Z"),
            json!({"dates": ["2026-12-25"]}),
        ),
        (
            week,
            json!({"ranges": [{"from": "2026-03-22", "to": "2026-03-27"}]}),
        ),
        (
            cron("0 9 29 2 *"),
            json!({"weekdays": ["mon", "tue", "wed", "thu", "fri", "sat"]}),
        ),
        (json!({"type": "manual"}), json!({"weekdays": ["sat"]})),
    ];
    for (schedule, exclusions) in accepted {
        assert_eq!(
            told(parse(&due(schedule.clone(), exclusions))),
            [],
            "{schedule}"
        );
    }
}

/// An interval runs in both passes of a fold: an excluded date has to end after its second pass.
#[test]
fn an_excluded_date_that_comes_twice_ends_once() {
    let interval = json!({"type": "interval", "every_minutes": 30, "timezone": "Asia/Beirut"});
    // From 00:00 on 25 October the clock goes back to 23:00 on the 24th.
    let spec = parse(&due(interval, json!({"dates": ["2026-10-24"]}))).unwrap();
    let slot = |after: &str| {
        spec.next_slot(after.parse().unwrap(), &NO_HOLIDAYS)
            .unwrap()
    };
    assert_eq!(
        slot("2026-10-23T20:00:00Z").to_rfc3339(),
        "2026-10-23T20:30:00+00:00"
    );
    for excluded in [
        "2026-10-23T20:30:00Z",
        "2026-10-24T20:40:00Z",
        "2026-10-24T21:10:00Z",
    ] {
        assert_eq!(
            slot(excluded).to_rfc3339(),
            "2026-10-24T22:00:00+00:00",
            "{excluded}"
        );
    }
}

#[test]
fn nothing_is_finer_than_a_minute() {
    let code = |body: &Value| told(parse(body));
    for name in ["jitter", "jitter_seconds", "jitter_s", "jitter_ms"] {
        let body = least_with(name, json!(30));
        assert_eq!(code(&body), [(name.to_owned(), "sub_minute")]);
    }
    let half = least_with("jitter_minutes", json!(0.5));
    assert_eq!(code(&half), [("jitter_minutes".to_owned(), "wrong_type")]);
    let seconds = json!({"type": "interval", "every_seconds": 30});
    let place = "schedule.every_seconds".to_owned();
    assert_eq!(
        code(&least_with("schedule", seconds)),
        [(place, "sub_minute")]
    );
}

#[test]
fn jitter_stays_under_the_distance_of_two_slots() {
    let code = |schedule: Value, minutes: u32| {
        let mut body = least_with("schedule", schedule);
        body["jitter_minutes"] = json!(minutes);
        told(parse(&body))
    };
    let refused = |code| [("jitter_minutes".to_owned(), code)];
    let five = json!({"type": "interval", "every_minutes": 5});
    assert_eq!(code(five.clone(), 4), []);
    assert_eq!(code(five, 5), refused("jitter_too_long"));
    let daily = json!({"type": "daily", "at": "08:00"});
    assert_eq!(code(daily.clone(), 60), []);
    assert_eq!(code(daily, 61), refused("out_of_range"));
    assert_eq!(
        code(json!({"type": "once", "at": "2026-12-25T08:00"}), 60),
        []
    );
    assert_eq!(code(json!({"type": "manual"}), 0), []);
    assert_eq!(code(json!({"type": "manual"}), 1), refused("no_slots"));
    let spec = parse(&full()).unwrap();
    let closer = patched(&spec, &json!({"schedule": {"every_minutes": 44}}));
    assert_eq!(told(closer), refused("jitter_too_long"));
}

#[test]
fn calendars_have_to_be_there() {
    let mut holidays = Holidays::default();
    let name = CalendarName::parse("uk-bank-holidays").unwrap();
    let day = "2026-03-23".parse().unwrap();
    holidays.insert(name, [(day, "A holiday".to_owned())]);
    let with_calendar = |use_rules: &dyn Fn(&Rules<'_>) -> Result<PromptSpec, Vec<Fault>>| {
        with_rules(|rules| {
            use_rules(&Rules {
                holidays: &holidays,
                ..*rules
            })
        })
    };
    let body = least_with("exclusions", json!({"calendars": ["uk-bank-holidays"]}));
    let spec = with_calendar(&|rules| PromptSpec::parse(&body, rules)).unwrap();
    let slot = |holidays| spec.next_slot(now(), holidays).unwrap().to_rfc3339();
    assert_eq!(slot(&holidays), "2026-03-24T07:00:00+00:00");
    assert_eq!(slot(&NO_HOLIDAYS), "2026-03-23T07:00:00+00:00");

    let place = "exclusions.calendars[0]".to_owned();
    assert_eq!(told(parse(&body)), [(place, "unknown_calendar")]);
    let near = least_with("exclusions", json!({"calendars": ["uk-bank-holiday"]}));
    let faults = with_calendar(&|rules| PromptSpec::parse(&near, rules)).unwrap_err();
    assert_eq!(faults[0].hint, "did you mean `uk-bank-holidays`?");
    // A calendar that is gone does not keep a prompt from being renamed.
    let renamed = patched(&spec, &json!({"prompt_name": "New"})).unwrap();
    assert_eq!(renamed.exclusions(), spec.exclusions());
    let touched = patched(&spec, &json!({"exclusions": {"weekdays": ["sun"]}}));
    assert_eq!(touched.unwrap_err()[0].code, "unknown_calendar");

    let once = json!({"type": "once", "at": "2026-03-23T08:00"});
    let body = due(once, json!({"calendars": ["uk-bank-holidays"]}));
    let refused = with_calendar(&|rules| PromptSpec::parse(&body, rules));
    let place = "exclusions.calendars".to_owned();
    assert_eq!(told(refused), [(place, "every_slot_excluded")]);
}

#[test]
fn words_and_warnings_know_the_exclusions() {
    let new_york = |exclusions: Value| {
        let schedule = json!({"type": "daily", "at": "02:30", "timezone": "America/New_York"});
        let mut body = due(schedule, exclusions);
        body["jitter_minutes"] = json!(15);
        parse(&body).unwrap()
    };
    let codes = |spec: &PromptSpec, holidays| -> Vec<&'static str> {
        let warnings = spec.warnings(now(), holidays);
        warnings.iter().map(|warning| warning.code).collect()
    };
    let open = new_york(json!({}));
    assert_eq!(codes(&open, &NO_HOLIDAYS), ["dst_gap"]);
    assert_eq!(
        open.describe(),
        "At 02:30 every day, America/New_York, started up to 15 minutes later"
    );
    // The clocks change on Sundays.
    let weekdays = new_york(json!({"weekdays": ["sat", "sun"]}));
    assert_eq!(codes(&weekdays, &NO_HOLIDAYS), [""; 0]);
    assert_eq!(
        weekdays.describe(),
        "At 02:30 every day, America/New_York, except on Saturday and Sunday, started up to 15 minutes later"
    );
    let manual = due(json!({"type": "manual"}), json!({"weekdays": ["sat"]}));
    assert_eq!(parse(&manual).unwrap().describe(), "Only when asked for");

    let mut stored = new_york(json!({"weekdays": ["sun"]})).to_json();
    stored["exclusions"]["calendars"] = json!(["old"]);
    let old = PromptSpec::from_stored(&stored).unwrap();
    let mut holidays = Holidays::default();
    let last = "2026-03-21".parse().unwrap();
    holidays.insert(
        CalendarName::parse("old").unwrap(),
        [(last, "A holiday".to_owned())],
    );
    assert_eq!(codes(&old, &holidays), ["calendar_ended"]);
}

#[test]
fn a_patch_of_the_type_takes_a_gap_away_that_it_does_not_name() {
    let spec = parse(&least()).unwrap();
    let hourly = json!({"type": "interval", "every_hours": 1, "at": null});
    let interval = patched(&spec, &json!({"schedule": hourly})).unwrap();
    assert_eq!(interval.schedule().dst_gap(), None);
    let mut named = hourly;
    named["dst_gap"] = json!("skip");
    let refused = patched(&spec, &json!({"schedule": named}));
    assert_eq!(
        told(refused),
        [("schedule.dst_gap".to_owned(), "no_wall_clock")]
    );

    let skips = patched(&spec, &json!({"schedule": {"dst_gap": "skip"}})).unwrap();
    let weekly = json!({"schedule": {"type": "weekly", "days": ["mon"]}});
    let weekly = patched(&skips, &weekly).unwrap();
    assert_eq!(weekly.schedule().dst_gap(), Some(DstGap::Skip));
    let usual = patched(&weekly, &json!({"schedule": {"dst_gap": null}})).unwrap();
    assert_eq!(usual.schedule().dst_gap(), Some(DstGap::Shift));
}

#[test]
fn a_schedule_that_has_passed_may_stay() {
    let mut stored = parse(&least()).unwrap().to_json();
    stored["schedule"] = json!({"type": "once", "at": "2020-01-01T00:00:00Z"});
    let passed = PromptSpec::from_stored(&stored).unwrap();
    let renamed = patched(&passed, &json!({"prompt_name": "New"})).unwrap();
    assert_eq!(renamed.prompt_name(), "New");
    assert!(!renamed.schedule_changed(&passed));
    let again = patched(
        &passed,
        &json!({"schedule": {"at": "2021-01-01T00:00:00Z"}}),
    );
    assert_eq!(told(again), [("schedule.at".to_owned(), "in_the_past")]);
    let later = patched(
        &passed,
        &json!({"schedule": {"at": "2026-03-22T12:01:00Z"}}),
    )
    .unwrap();
    assert!(later.schedule_changed(&passed));
    stored["schedule"] = json!({"type": "cron", "expression": "* * * * *"});
    let frequent = PromptSpec::from_stored(&stored).unwrap();
    assert!(patched(&frequent, &json!({"prompt_name": "New"})).is_ok());
    // A body in its place need not spell out what was filled in.
    stored["schedule"] = json!({
        "type": "daily", "at": "08:00", "timezone": "UTC", "end_at": "2020-01-01T00:00:00Z",
    });
    let ended = PromptSpec::from_stored(&stored).unwrap();
    let replaced = |body: &Value| with_rules(|rules| ended.replace(body, rules));
    assert!(!replaced(&stored).unwrap().schedule_changed(&ended));
    assert!(replaced(&ended.to_json()).is_ok());
    stored["schedule"]["at"] = json!("09:00");
    let told = told(replaced(&stored));
    assert_eq!(told, [("schedule.end_at".to_owned(), "in_the_past")]);
}

#[test]
fn a_patch_is_checked_as_a_whole() {
    let spec = parse(&full()).unwrap();
    for (patch, place, code) in [
        (json!(null), "", "wrong_type"),
        (json!([]), "", "wrong_type"),
        (json!({"prompt_name": null}), "prompt_name", "missing"),
        (
            json!({"context": {"topic": null}}),
            "prompt_text",
            "unknown_variable",
        ),
        (
            json!({"schedule": {"expression": "0 9 * * *"}}),
            "schedule.expression",
            "unknown_field",
        ),
        (
            json!({"metadata": {"a": "x".repeat(16 * 1024)}}),
            "metadata",
            "too_long",
        ),
        (json!({"nonsense": 1}), "nonsense", "unknown_field"),
    ] {
        let first = told(patched(&spec, &patch)).into_iter().next();
        assert_eq!(first, Some((place.to_owned(), code)), "{patch:.200}");
    }
}

#[test]
fn the_schemas_tell_the_fields_that_are_read() {
    let read: BTreeSet<String> = full().as_object().unwrap().keys().cloned().collect();
    let unknown = parse(&least_with("zzzzzzzzzzzzzzzz", json!(1))).unwrap_err();
    let known: BTreeSet<String> = unknown[0]
        .hint
        .trim_start_matches("use only ")
        .split(", ")
        .map(str::to_owned)
        .collect();
    assert_eq!(known, read);
    for schema in [
        PromptSpec::schema(),
        PromptBody::schema(),
        PromptPatch::schema(),
    ] {
        let schema = serde_json::to_value(schema).unwrap();
        let told: BTreeSet<String> = schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        assert_eq!(told, read);
    }
    let body = serde_json::to_value(PromptBody::schema()).unwrap();
    assert_eq!(body["additionalProperties"], false);
    assert_eq!(
        body["required"],
        json!(["prompt_name", "prompt_text", "model", "schedule"])
    );
    let example = parse(&body["example"]);
    assert_eq!(told(example), []);
    let patch = serde_json::to_value(PromptPatch::schema()).unwrap();
    assert_eq!(patch["required"], Value::Null);
    assert!(patched(&parse(&full()).unwrap(), &patch["example"]).is_ok());
}

/// The bounds and defaults in the document are those that the parser keeps.
#[test]
fn the_schema_is_true() {
    let body = serde_json::to_value(PromptBody::schema()).unwrap();
    let defaults = parse(&least()).unwrap().to_json();
    for (name, schema) in body["properties"].as_object().unwrap() {
        if let Some(default) = schema.get("default") {
            assert_eq!(default, &defaults[name], "{name}");
        }
        for (bound, step) in [("minimum", -1), ("maximum", 1)] {
            let Some(edge) = schema.get(bound) else {
                continue;
            };
            let edge = edge.as_f64().unwrap();
            assert_eq!(
                told(parse(&least_with(name, json!(edge)))),
                [],
                "{name} {bound}"
            );
            let beyond = parse(&least_with(name, json!(edge + f64::from(step))));
            assert_eq!(
                told(beyond),
                [(name.clone(), "out_of_range")],
                "{name} {bound}"
            );
        }
        if let Some(longest) = schema.get("maxLength").and_then(Value::as_u64) {
            let over = "x".repeat(usize::try_from(longest).unwrap() + 1);
            assert!(parse(&least_with(name, json!(over))).is_err(), "{name}");
        }
    }
}

#[test]
fn the_schemas_stay_as_they_are() {
    let schemas = json!({"body": PromptBody::schema(), "patch": PromptPatch::schema()});
    insta::assert_json_snapshot!(schemas);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!("2026-04-01T00:00:00Z")),
        Just(json!("{{ context.a }}")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The full body with some fields replaced by anything.
fn damaged() -> impl Strategy<Value = Value> {
    let names: Vec<String> = full().as_object().unwrap().keys().cloned().collect();
    let damage = (proptest::sample::select(names), any_json());
    prop::collection::vec(damage, 0..4).prop_map(|damages| {
        let mut body = full();
        for (name, value) in damages {
            body[name] = value;
        }
        body
    })
}

proptest! {
    #[test]
    fn any_json_is_read_or_refused(value in any_json()) {
        let _ = PromptSpec::from_stored(&value);
        prop_assert!(parse(&value).is_err());
        let _ = patched(&parse(&full()).unwrap(), &value);
    }

    #[test]
    fn what_is_accepted_survives_the_round_trip(body in damaged()) {
        match parse(&body) {
            Ok(spec) => {
                let read = PromptSpec::from_stored(&spec.to_json());
                prop_assert_eq!(read, Ok(spec));
            }
            Err(faults) => prop_assert!(!faults.is_empty()),
        }
        let _ = patched(&parse(&least()).unwrap(), &body);
    }
}
