//! Schedules as their users see them: what is refused and why, what is stored, what is said.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use shared::{
    fault::Fault,
    schedule::{Form, Schedule, ScheduleType, eventbridge},
};

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn now() -> DateTime<Utc> {
    at("2026-01-01T10:07:20Z")
}

fn schedule(value: Value) -> Schedule {
    Schedule::parse(&value, now()).unwrap_or_else(|faults| panic!("{value}: {faults:?}"))
}

fn cron(expression: &str, timezone: &str) -> Schedule {
    schedule(json!({"type": "cron", "expression": expression, "timezone": timezone}))
}

fn faults(value: &Value) -> Vec<Fault> {
    match Schedule::parse(value, now()) {
        Ok(_) => panic!("{value} was accepted"),
        Err(faults) => faults,
    }
}

/// `field code` of each fault.
fn codes(value: &Value) -> Vec<String> {
    let faults = faults(value);
    faults
        .iter()
        .map(|fault| format!("{} {}", fault.field, fault.code))
        .collect()
}

fn warnings(schedule: &Schedule) -> Vec<&'static str> {
    let warnings = schedule.warnings(now());
    warnings.iter().map(|warning| warning.code).collect()
}

#[test]
fn every_fault_is_reported_at_once() {
    let sent = json!({
        "type": "cron", "expression": "60 9 L * *", "timezone": "Europe/Lodnon",
        "start_at": "2026-03-01T00:00:30Z", "end_at": 5, "colour": "blue",
    });
    assert_eq!(
        codes(&sent),
        [
            "timezone unknown_timezone",
            "start_at sub_minute",
            "end_at wrong_type",
            "expression range",
            "expression nonstandard_L",
            "colour unknown_field",
        ]
    );
}

#[test]
fn refusals_name_the_field_and_the_rule() {
    let cases = [
        (json!([]), vec![" wrong_type"]),
        (json!({}), vec!["type missing"]),
        (json!({"type": 5}), vec!["type wrong_type"]),
        (json!({"type": "hourly"}), vec!["type unknown_value"]),
        (json!({"type": "cron"}), vec!["expression missing"]),
        (
            json!({"type": "cron", "expression": null}),
            vec!["expression missing"],
        ),
        (
            json!({"type": "cron", "expression": 5}),
            vec!["expression wrong_type"],
        ),
        (json!({"type": "interval"}), vec!["every_minutes missing"]),
        (
            json!({"type": "interval", "every_minutes": 5, "every_days": 1}),
            vec!["every_minutes conflict"],
        ),
        (
            json!({"type": "interval", "every_minutes": 0}),
            vec!["every_minutes out_of_range"],
        ),
        (
            json!({"type": "interval", "every_minutes": -5}),
            vec!["every_minutes out_of_range"],
        ),
        (
            json!({"type": "interval", "every_minutes": 0.5}),
            vec!["every_minutes wrong_type"],
        ),
        (
            json!({"type": "interval", "every_days": 367}),
            vec!["every_days out_of_range"],
        ),
        (
            json!({"type": "interval", "every_seconds": 5}),
            vec!["every_seconds sub_minute"],
        ),
        (
            json!({"type": "interval", "every_days": 1, "anchor": "2026-01-01T00:00:01Z"}),
            vec!["anchor sub_minute"],
        ),
        (json!({"type": "daily", "at": "24:00"}), vec!["at bad_time"]),
        (json!({"type": "daily", "at": "8:00"}), vec!["at bad_time"]),
        (
            json!({"type": "daily", "at": "08:00:30"}),
            vec!["at sub_minute"],
        ),
        (
            json!({"type": "daily", "at": "08:00", "days": [1]}),
            vec!["days unknown_field"],
        ),
        (
            json!({"type": "weekly", "days": [], "at": "08:00"}),
            vec!["days too_few"],
        ),
        (
            json!({"type": "weekly", "days": ["mon", "funday", 5]}),
            vec!["days[1] unknown_value", "days[2] wrong_type", "at missing"],
        ),
        (
            json!({"type": "monthly", "days": [0, 32, 1.5], "at": "08:00"}),
            vec![
                "days[0] out_of_range",
                "days[1] out_of_range",
                "days[2] wrong_type",
            ],
        ),
        (
            json!({"type": "monthly", "days": "1", "at": "08:00"}),
            vec!["days wrong_type"],
        ),
        (
            json!({"type": "once", "at": "tomorrow"}),
            vec!["at bad_time"],
        ),
        (
            json!({"type": "once", "at": "2026-07-01T13:00:30"}),
            vec!["at sub_minute"],
        ),
        (
            json!({"type": "once", "at": "2026-01-01T10:07:00Z"}),
            vec!["at in_the_past"],
        ),
        (
            json!({"type": "once", "at": "9999-01-01T00:00:00Z"}),
            vec!["at out_of_range"],
        ),
        (
            json!({"type": "once", "at": "2026-07-01T13:00:00Z", "end_at": "2026-06-01T00:00:00Z"}),
            vec!["end_at never_fires_in_window"],
        ),
        (
            json!({"type": "once", "at": "2026-07-01T13:00:00Z", "start_at": "2026-08-01T00:00:00Z"}),
            vec!["start_at never_fires_in_window"],
        ),
        (
            json!({"type": "manual", "at": "08:00"}),
            vec!["at unknown_field"],
        ),
        (
            json!({"type": "daily", "at": "08:00", "dst_gap": "shfit"}),
            vec!["dst_gap unknown_value"],
        ),
        (
            json!({"type": "cron", "expression": "0 9 * * *", "dst_gap": true}),
            vec!["dst_gap wrong_type"],
        ),
        (
            json!({"type": "cron", "expression": "0 9 * *", "dst_gap": "shift"}),
            vec!["expression field_count"],
        ),
        (
            json!({"type": "monthly", "days": [], "at": "8:00", "dst_gap": "none"}),
            vec!["days too_few", "at bad_time", "dst_gap unknown_value"],
        ),
        (
            json!({"type": "interval", "every_hours": 1, "dst_gap": "skip"}),
            vec!["dst_gap no_wall_clock"],
        ),
        (
            json!({"type": "once", "at": "2026-07-01T13:00", "dst_gap": "shift"}),
            vec!["dst_gap no_wall_clock"],
        ),
        (
            json!({"type": "manual", "dst_gap": "shift"}),
            vec!["dst_gap no_wall_clock"],
        ),
        (
            json!({"type": "once", "at": "2026-03-08T02:30", "timezone": "America/New_York"}),
            vec!["at nonexistent_local_time"],
        ),
        (
            json!({"type": "manual", "start_at": "2026-07-01T13:00:00"}),
            vec!["start_at bad_time"],
        ),
        (
            json!({"type": "daily", "at": "08:00", "start_at": "2027-01-01T00:00:00Z", "end_at": "2026-06-01T00:00:00Z"}),
            vec!["end_at end_before_start"],
        ),
        (
            json!({"type": "daily", "at": "08:00", "end_at": "2025-06-01T00:00:00Z"}),
            vec!["end_at in_the_past"],
        ),
    ];
    for (sent, expected) in cases {
        assert_eq!(codes(&sent), expected, "{sent}");
    }
}

#[test]
fn cron_beyond_the_vectors_is_refused_with_its_own_code() {
    let long = format!("0 9 * * {}", "1,".repeat(200));
    // EventBridge needs what lies around a hole listed one by one.
    let long_for_aws = "0-29,31-59 0-5,7-22 1-5,7-30 1-3,5-12 *";
    let cases = [
        (long.as_str(), "too_long"),
        ("0 9 * * １", "not_ascii"),
        ("0 9 *\n* *", "bad_character"),
        ("   ", "empty"),
        ("@reboot", "unknown_name"),
        ("rate(5 minutes)", "field_count_aws"),
        ("0 0 9 ? * MON", "field_count_seconds"),
        ("0 0 9 * * MON 2026", "field_count_seconds"),
        ("CRON_TZ=UTC 0 9 * * *", "field_count"),
        ("H 9 * * *", "nonstandard_H"),
        ("0 9 LW * *", "nonstandard_L"),
        ("0 9 * * 8", "range"),
        ("0 9 0 * *", "range"),
        ("99999999999999999999 9 * * *", "range"),
        ("-5 9 * * *", "bad_value"),
        ("1-2-3 9 * * *", "bad_value"),
        ("+5 9 * * *", "bad_value"),
        ("MON 9 * * *", "bad_name"),
        ("0 9 * JUNE *", "bad_name"),
        ("*/90 * * * *", "step"),
        ("*/ * * * *", "step"),
        ("*/+5 * * * *", "step"),
        ("/5 * * * *", "empty_item"),
        ("*/5/5 * * * *", "step"),
        ("0 9 * * FRI-SUN", "reversed_range"),
        ("0 9 1-31 * 1", "ambiguous_dom_dow"),
        ("0 9 */1 * 1", "ambiguous_dom_dow"),
        ("0 9 1 * *,1", "ambiguous_dom_dow"),
        ("0 9 31 4,6,9,11 *", "never_fires"),
        (long_for_aws, "expression_too_long"),
    ];
    for (expression, code) in cases {
        let sent = json!({"type": "cron", "expression": expression});
        assert_eq!(
            codes(&sent),
            [format!("expression {code}")],
            "{expression:?}"
        );
    }
}

#[test]
fn hints_say_what_to_send() {
    let hint = |expression: &str| {
        faults(&json!({"type": "cron", "expression": expression}))[0]
            .hint
            .clone()
    };
    assert_eq!(hint("5/15 * * * *"), "write 5-59/15 for a step from 5 on");
    assert_eq!(hint("0 22-2 * * *"), "write 22-23,0-2 to run past the end");
    assert_eq!(hint("0 9 * * FRI-SUN"), "write 5-7: 7 is Sunday too");
    assert_eq!(hint("0 9 15 * 0-6"), "write * in day of week");
    let zone = |timezone: &str| {
        faults(&json!({"type": "manual", "timezone": timezone}))[0]
            .hint
            .clone()
    };
    assert_eq!(zone("london"), "did you mean Europe/London?");
    assert_eq!(zone("America/New York"), "did you mean America/New_York?");
    assert_eq!(zone("Europe/Lodnon"), "did you mean Europe/London?");
    assert_eq!(
        zone("Mars/Olympus"),
        "write an IANA name, for example Europe/London"
    );
    let twice =
        json!({"type": "once", "at": "2026-11-01T01:30:00", "timezone": "America/New_York"});
    assert_eq!(
        faults(&twice)[0].hint,
        "write 2026-11-01T01:30:00-04:00 or 2026-11-01T01:30:00-05:00"
    );
    let gap = json!({"type": "once", "at": "2026-03-08T02:30", "timezone": "America/New_York"});
    assert_eq!(
        faults(&gap)[0].hint,
        "write 2026-03-08T03:00:00-04:00, the first time after the jump, or another"
    );
}

#[test]
fn the_hints_of_refused_expressions_are_accepted() {
    for expression in [
        "5-59/15 * * * *",
        "0 22-23,0-2 * * *",
        "0 9 * * 5-7",
        "0 9 15 * *",
    ] {
        cron(expression, "UTC");
    }
}

#[test]
fn what_is_stored_is_complete_and_reads_back() {
    let cases = [
        (
            json!({"type": "cron", "expression": " 0  9 * * 1-5 ", "end_at": "2026-03-01T02:00:00+02:00"}),
            json!({"type": "cron", "expression": "0 9 * * 1-5", "dst_gap": "shift", "timezone": "UTC", "end_at": "2026-03-01T00:00:00Z"}),
        ),
        (
            json!({"type": "interval", "every_minutes": 45}),
            json!({"type": "interval", "every_minutes": 45, "anchor": "2026-01-01T10:07:00Z", "timezone": "UTC"}),
        ),
        (
            json!({"type": "interval", "every_hours": 5, "start_at": "2026-02-01T00:00:00Z"}),
            json!({"type": "interval", "every_hours": 5, "anchor": "2026-02-01T00:00:00Z", "start_at": "2026-02-01T00:00:00Z", "timezone": "UTC"}),
        ),
        (
            json!({"type": "interval", "every_minutes": 15, "timezone": "Asia/Tokyo"}),
            json!({"type": "interval", "every_minutes": 15, "timezone": "Asia/Tokyo"}),
        ),
        (
            json!({"type": "daily", "at": "08:00", "timezone": "Asia/Kolkata"}),
            json!({"type": "daily", "at": "08:00", "dst_gap": "shift", "timezone": "Asia/Kolkata"}),
        ),
        (
            json!({"type": "weekly", "days": ["sun", "mon", "mon"], "at": "08:00"}),
            json!({"type": "weekly", "days": ["mon", "sun"], "at": "08:00", "dst_gap": "shift", "timezone": "UTC"}),
        ),
        (
            json!({"type": "monthly", "days": [15, 1, 15], "at": "09:00"}),
            json!({"type": "monthly", "days": [1, 15], "at": "09:00", "dst_gap": "shift", "timezone": "UTC"}),
        ),
        (
            json!({"type": "once", "at": "2026-07-01T13:00", "timezone": "America/Los_Angeles"}),
            json!({"type": "once", "at": "2026-07-01T13:00:00-07:00", "timezone": "America/Los_Angeles"}),
        ),
        (
            json!({"type": "once", "at": "2026-07-01T13:00:00Z"}),
            json!({"type": "once", "at": "2026-07-01T13:00:00Z", "timezone": "UTC"}),
        ),
        (
            json!({"type": "manual", "timezone": null}),
            json!({"type": "manual", "timezone": "UTC"}),
        ),
    ];
    for (sent, stored) in cases {
        let schedule = schedule(sent);
        assert_eq!(schedule.to_json(), stored);
        assert_eq!(schedule.kind().as_str(), stored["type"]);
        let read = Schedule::from_stored(&stored).unwrap();
        assert_eq!(read.to_json(), stored);
        let times =
            |schedule: &Schedule| -> Vec<_> { schedule.occurrences(now()).take(5).collect() };
        assert_eq!(times(&read), times(&schedule));
    }
}

#[test]
fn a_stored_schedule_whose_time_has_passed_still_reads() {
    let once = json!({"type": "once", "at": "2020-07-01T13:00:00Z", "timezone": "UTC"});
    let read = Schedule::from_stored(&once).unwrap();
    assert_eq!(read.next(now()), None);
    assert_eq!(
        read.next(at("2020-07-01T12:59:59Z")),
        Some(at("2020-07-01T13:00:00Z"))
    );
}

#[test]
fn an_entry_is_the_documented_json() {
    let entries = cron("0 9 * * 1-5", "Europe/London").eventbridge();
    assert_eq!(
        serde_json::to_value(entries).unwrap(),
        json!([{"expression": "cron(0 9 ? * MON-FRI *)", "timezone": "Europe/London"}])
    );
}

#[test]
fn a_manual_schedule_has_no_slots_and_no_entries() {
    let manual = schedule(json!({"type": "manual"}));
    assert_eq!(manual.next(now()), None);
    assert_eq!(manual.eventbridge(), []);
    assert_eq!(manual.kind(), ScheduleType::Manual);
    assert_eq!(manual.shortest_gap_minutes(), None);
}

#[test]
fn intervals_keep_their_phase() {
    let hourly =
        schedule(json!({"type": "interval", "every_hours": 1, "timezone": "America/New_York"}));
    assert_eq!(hourly.eventbridge()[0].expression, "cron(0 * * * ? *)");
    // The clocks of New York go back at 06:00 UTC; elapsed time does not.
    let after = at("2026-11-01T05:00:00Z");
    assert_eq!(hourly.next(after), Some(at("2026-11-01T06:00:00Z")));

    let halves = schedule(
        json!({"type": "interval", "every_minutes": 30, "anchor": "2026-01-01T00:10:00Z"}),
    );
    assert_eq!(halves.eventbridge()[0].expression, "rate(30 minutes)");
    assert_eq!(halves.next(now()), Some(at("2026-01-01T10:10:00Z")));

    let later = schedule(json!({
        "type": "interval", "every_minutes": 45,
        "anchor": "2026-01-01T00:10:00Z", "start_at": "2026-02-01T00:00:00Z",
    }));
    let first = at("2026-02-01T00:10:00Z");
    assert_eq!(later.next(now()), Some(first));
    assert_eq!(later.eventbridge()[0].start_date, Some(first));
}

#[test]
fn the_shortest_distance_between_slots_is_known() {
    let cases = [
        ("* * * * *", 1),
        ("*/7 * * * *", 4),
        ("0 * * * *", 60),
        ("50 23 * * *", 1440),
        ("0,30 0,23 * * *", 30),
        ("0 0,23 * * *", 60),
        ("0 0,23 * * 1", 23 * 60),
        ("0 9 * * 1", 7 * 1440),
        ("0 9 * * 0,6", 1440),
        ("0 9 1 * *", 28 * 1440),
        ("0 9 1,31 * *", 1440),
        ("0 9 1 * 1", 1440),
        ("0 0 29 2 *", 1461 * 1440),
    ];
    for (expression, minutes) in cases {
        assert_eq!(
            cron(expression, "UTC").shortest_gap_minutes(),
            Some(minutes),
            "{expression}"
        );
    }
    let rate = schedule(json!({"type": "interval", "every_hours": 5}));
    assert_eq!(rate.shortest_gap_minutes(), Some(300));
    let once = schedule(json!({"type": "once", "at": "2026-07-01T13:00:00Z"}));
    assert_eq!(once.shortest_gap_minutes(), None);
}

#[test]
fn descriptions_are_plain_english() {
    let cases = [
        ("0 9 * * 1-5", "At 09:00 on Monday through Friday"),
        ("0 9 * * *", "At 09:00 every day"),
        ("* * * * *", "Every minute"),
        ("*/15 * * * *", "Every 15 minutes"),
        ("*/30 * * * 6,0", "Every 30 minutes on Saturday and Sunday"),
        (
            "*/7 * * * *",
            "At minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56 of every hour",
        ),
        ("0 * * * *", "Every hour"),
        ("20 * * * *", "At minute 20 of every hour"),
        ("0 */2 * * *", "Every 2 hours"),
        ("5 */2 * * *", "At minute 5 of every 2nd hour from 00:00"),
        (
            "0 9-17 * * 1-5",
            "Every hour from 09:00 through 17:00 on Monday through Friday",
        ),
        ("*/10 9-17 * * *", "Every 10 minutes of hours 9 through 17"),
        ("* 9 * * *", "Every minute of hour 9"),
        (
            "0 8,12,18 * * 1-5",
            "At 08:00, 12:00 and 18:00 on Monday through Friday",
        ),
        (
            "0 0 13 * 5",
            "At 00:00 on the 13th of the month or on Friday",
        ),
        (
            "0 6 1 1-3 0",
            "At 06:00 on the 1st of the month or on Sunday, in January through March",
        ),
        ("0 0 30 2 1", "At 00:00 on Monday, in February"),
        (
            "0 0 1 */3 *",
            "At 00:00 on the 1st of January, April, July and October",
        ),
        ("0 0 29 2 *", "At 00:00 on the 29th of February"),
        (
            "0 0 */2 * *",
            "At 00:00 on every 2nd day from the 1st of the month",
        ),
        ("0 0 * 7 *", "At 00:00 every day in July"),
        (
            "0 0 1,2,3,10,22 * *",
            "At 00:00 on the 1st through 3rd, 10th and 22nd of the month",
        ),
        ("@weekly", "At 00:00 on Sunday"),
        ("0 12 * * 5-7", "At 12:00 on Friday through Sunday"),
    ];
    for (expression, text) in cases {
        assert_eq!(
            cron(expression, "UTC").describe(),
            format!("{text}, UTC"),
            "{expression}"
        );
    }
    let forms = [
        (
            json!({"type": "interval", "every_minutes": 45}),
            "Every 45 minutes, counted from 2026-01-01 10:07, UTC",
        ),
        (
            json!({"type": "interval", "every_days": 1, "timezone": "Asia/Tokyo"}),
            "Every day, counted from 2026-01-01 19:07, Asia/Tokyo",
        ),
        (
            json!({"type": "interval", "every_minutes": 15}),
            "Every 15 minutes, UTC",
        ),
        (
            json!({"type": "daily", "at": "08:00", "timezone": "Asia/Kolkata"}),
            "At 08:00 every day, Asia/Kolkata",
        ),
        (
            json!({"type": "weekly", "days": ["mon", "wed"], "at": "10:00"}),
            "At 10:00 on Monday and Wednesday, UTC",
        ),
        (
            json!({"type": "monthly", "days": [1, 15], "at": "09:00"}),
            "At 09:00 on the 1st and 15th of the month, UTC",
        ),
        (
            json!({"type": "once", "at": "2026-07-01T20:00:00Z", "timezone": "America/Los_Angeles"}),
            "Once at 2026-07-01 13:00, America/Los_Angeles",
        ),
        (json!({"type": "manual"}), "Only when asked for"),
        (
            json!({"type": "daily", "at": "02:30", "timezone": "America/New_York", "dst_gap": "skip"}),
            "At 02:30 every day, America/New_York, skipped where the clocks jump over it",
        ),
        (
            json!({"type": "cron", "expression": "*/15 * * * *", "dst_gap": "shift"}),
            "Every 15 minutes, UTC, moved where the clocks jump over it",
        ),
        (
            json!({"type": "daily", "at": "08:00", "start_at": "2026-02-01T00:00:00Z", "end_at": "2026-03-01T00:00:00Z"}),
            "At 08:00 every day, UTC, from 2026-02-01 00:00, until 2026-03-01 00:00",
        ),
    ];
    for (sent, text) in forms {
        assert_eq!(schedule(sent).describe(), text);
    }
}

#[test]
fn surprises_are_warned_of() {
    let cases = [
        ("0 9 * * 1-5", "Europe/London", vec![]),
        ("*/15 * * * *", "UTC", vec![]),
        ("*/7 * * * *", "UTC", vec!["step_restarts"]),
        ("0 */5 * * *", "UTC", vec!["step_restarts"]),
        ("0 0 */2 * *", "UTC", vec!["step_restarts"]),
        ("0 */24 * * *", "UTC", vec!["step_once"]),
        ("*,5 * * * *", "UTC", vec!["star_in_list"]),
        ("* 9 * * *", "UTC", vec!["every_minute"]),
        ("0 0 13 * 5", "UTC", vec!["either_day"]),
        ("0 0 30 2 1", "UTC", vec!["day_never_comes"]),
        ("0 0 31 * *", "UTC", vec!["short_months"]),
        ("0 0 31 1 *", "UTC", vec![]),
        ("0 0 29 2 *", "UTC", vec!["short_months"]),
        ("30 2 * * *", "America/New_York", vec!["dst_gap"]),
        ("0 2 * * *", "America/New_York", vec!["dst_gap"]),
        ("30 2 * 6 *", "America/New_York", vec![]),
        ("0 3 * * *", "America/New_York", vec![]),
        ("30 * * * *", "America/New_York", vec!["dst_fold"]),
        ("30 * * * *", "Asia/Tokyo", vec![]),
    ];
    for (expression, timezone, expected) in cases {
        assert_eq!(
            warnings(&cron(expression, timezone)),
            expected,
            "{expression} in {timezone}"
        );
    }
    let gap = |dst_gap: &str| {
        let sent = json!({
            "type": "cron", "expression": "30 2 * * *", "timezone": "America/New_York", "dst_gap": dst_gap,
        });
        schedule(sent).warnings(now())[0].detail.clone()
    };
    assert_eq!(
        gap("shift"),
        "2026-03-08 02:30 does not exist in America/New_York, because the clocks go forward: that slot moves to 03:00"
    );
    assert_eq!(
        gap("skip"),
        "2026-03-08 02:30 does not exist in America/New_York, because the clocks go forward: that slot is skipped; with dst_gap shift it moves to the gap's end"
    );
    let ended = schedule(json!({
        "type": "daily", "at": "02:30", "timezone": "America/New_York", "end_at": "2026-03-01T00:00:00Z",
    }));
    assert_eq!(warnings(&ended), [""; 0]);
    let days =
        schedule(json!({"type": "interval", "every_days": 1, "timezone": "America/New_York"}));
    assert_eq!(warnings(&days), ["local_time_moves"]);
    let monthly = schedule(json!({"type": "monthly", "days": [1, 30], "at": "09:00"}));
    assert_eq!(warnings(&monthly), ["short_months"]);
}

#[test]
fn slots_exist_beyond_the_year_2100_and_end_before_9000() {
    let weekdays = cron("0 9 * * 1-5", "UTC");
    assert_eq!(
        weekdays.next(at("2100-12-31T09:00:00Z")),
        Some(at("2101-01-03T09:00:00Z"))
    );
    let last = cron("59 23 31 12 *", "UTC");
    assert_eq!(
        last.next(at("2100-12-31T23:59:00Z")),
        Some(at("2101-12-31T23:59:00Z"))
    );
    assert_eq!(
        last.next(at("2399-12-31T23:59:00Z")),
        Some(at("2400-12-31T23:59:00Z"))
    );
    let leap = cron("0 0 29 2 *", "UTC");
    assert_eq!(
        leap.next(at("2396-03-01T00:00:00Z")),
        Some(at("2400-02-29T00:00:00Z"))
    );
    assert_eq!(leap.next(DateTime::<Utc>::MAX_UTC), None);
    assert!(leap.next(DateTime::<Utc>::MIN_UTC).is_some());
    for end_of_time in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
        let daily = cron("30 2 * * *", "America/New_York");
        let time = daily.occurrences(end_of_time).next();
        assert_eq!(time.is_none(), end_of_time == DateTime::<Utc>::MAX_UTC);
    }
    assert!(weekdays.next(at("8999-12-31T00:00:00Z")).is_some());
    assert_eq!(weekdays.next(at("9000-01-01T00:00:00Z")), None);
}

#[test]
fn the_check_of_expressions_knows_the_documented_forms() {
    let accepted = [
        "cron(0 9 ? * MON-FRI *)",
        "cron(15 10 ? * 6L 2022-2023)",
        "cron(0 9 L * ? *)",
        "cron(0 9 3W * ? *)",
        "cron(0 9 ? * 2#1 *)",
        "cron(0/5 8-17 ? * MON-FRI *)",
        "cron(0 9 1,15 JAN-MAR ? *)",
        "rate(45 minutes)",
        "rate(1 day)",
        "rate(12 hours)",
    ];
    for expression in accepted {
        assert_eq!(eventbridge::check(expression), Ok(()), "{expression}");
    }
    let long = format!("cron({} 9 * * ? *)", ["1"; 150].join(","));
    let refused = [
        "",
        "cron(0 9 ? * ? *)",
        "cron(0 9 * * MON *)",
        "cron(0 9 ? * 0 *)",
        "cron(0 9 ? * 8 *)",
        "cron(0 9 ? * MON/2 *)",
        "cron(0 24 * * ? *)",
        "cron(0 9 32 * ? *)",
        "cron(? 9 * * ? *)",
        "cron(0 9 ? * MON#6 *)",
        "cron(5-1 9 * * ? *)",
        "cron(0 9 * * ? 1969)",
        "cron(1, 9 * * ? *)",
        "cron(*/0 9 * * ? *)",
        "cron(+1 9 * * ? *)",
        "rate(0 minutes)",
        "rate(1 minutes)",
        "rate(1.5 hours)",
        "at(2026-02-30T00:00:00)",
        "at(2026-7-1T00:00:00)",
        "once(2026)",
        &long,
    ];
    for expression in refused {
        assert!(eventbridge::check(expression).is_err(), "{expression}");
    }
}

#[test]
fn the_openapi_schema_is_a_union_told_apart_by_type() {
    use utoipa::{PartialSchema, ToSchema};

    let union = serde_json::to_value(Form::schema()).unwrap();
    assert_eq!(union["discriminator"]["propertyName"], "type");
    let mapping = union["discriminator"]["mapping"].as_object().unwrap();
    let mut schemas = Vec::new();
    Form::schemas(&mut schemas);
    for kind in ScheduleType::ALL {
        let place = mapping[kind.as_str()].as_str().unwrap();
        let name = place.strip_prefix("#/components/schemas/").unwrap();
        let references = union["oneOf"].as_array().unwrap();
        assert!(
            references
                .iter()
                .any(|reference| reference["$ref"] == place),
            "{union}"
        );
        let (_, schema) = schemas.iter().find(|(known, _)| known == name).expect(name);
        let schema = serde_json::to_value(schema).unwrap();
        assert_eq!(
            schema["properties"]["type"]["enum"],
            json!([kind.as_str()]),
            "{schema}"
        );
        assert_eq!(schema["additionalProperties"], false, "{schema}");
        assert_eq!(
            schema["properties"]["timezone"]["type"],
            json!(["string", "null"]),
            "{schema}"
        );
        let required = schema["required"].as_array().unwrap();
        assert!(
            required.contains(&json!("type")) && !required.contains(&json!("timezone")),
            "{schema}"
        );
    }
    assert_eq!(Form::name(), "Schedule");
}
