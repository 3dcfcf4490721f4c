//! The nights on which the clocks change, zone by zone, with both answers to a gap; and a brute force
//! that walks every minute around such nights.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

#[cfg(test)]
mod seeded;

use chrono::{DateTime, Duration, NaiveDateTime, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::parser::{CronParser, Seconds};
use proptest::prelude::*;
use serde_json::json;
use shared::schedule::{DstGap, Occurrence, OccurrenceKind, Schedule};

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn cron(expression: &str, timezone: &str, dst_gap: DstGap) -> Schedule {
    let sent = json!({
        "type": "cron", "expression": expression, "timezone": timezone, "dst_gap": dst_gap,
    });
    Schedule::parse(&sent, at("2010-01-01T00:00:00Z")).unwrap()
}

fn slots(schedule: &Schedule, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
    let slots = std::iter::successors(schedule.next(after), |slot| schedule.next(*slot));
    slots.take(count).collect()
}

/// Slots after an instant, with `shift` and with `skip`.
#[track_caller]
fn check(timezone: &str, expression: &str, after: &str, shift: &[&str], skip: &[&str]) {
    for (dst_gap, expected) in [(DstGap::Shift, shift), (DstGap::Skip, skip)] {
        let schedule = cron(expression, timezone, dst_gap);
        let expected: Vec<DateTime<Utc>> = expected.iter().map(|slot| at(slot)).collect();
        assert_eq!(
            slots(&schedule, at(after), expected.len()),
            expected,
            "{expression} in {timezone}, {}",
            dst_gap.as_str()
        );
    }
}

/// The same with both.
#[track_caller]
fn check_both(timezone: &str, expression: &str, after: &str, expected: &[&str]) {
    check(timezone, expression, after, expected, expected);
}

#[test]
fn new_york() {
    let zone = "America/New_York";
    check(
        zone,
        "30 2 * * *",
        "2026-03-07T12:00:00Z",
        &["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"],
        &["2026-03-09T06:30:00Z", "2026-03-10T06:30:00Z"],
    );
    // 02:00, 02:30 and 03:00 fall on one instant, which is one slot.
    let after_the_gap = [
        "2026-03-08T07:00:00Z",
        "2026-03-08T07:30:00Z",
        "2026-03-09T06:00:00Z",
    ];
    check_both(
        zone,
        "0,30 2,3 * * *",
        "2026-03-07T12:00:00Z",
        &after_the_gap,
    );
    // A slot that was shifted is not given again to whoever asks at the gap's end.
    check_both(
        zone,
        "30 2 * * *",
        "2026-03-08T07:00:00Z",
        &["2026-03-09T06:30:00Z"],
    );
    check_both(
        zone,
        "30 1 * * *",
        "2026-10-31T12:00:00Z",
        &["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"],
    );
    check_both(
        zone,
        "*/30 * * * *",
        "2026-11-01T04:59:00Z",
        &[
            "2026-11-01T05:00:00Z",
            "2026-11-01T05:30:00Z",
            "2026-11-01T07:00:00Z",
        ],
    );
}

#[test]
fn london() {
    let zone = "Europe/London";
    check(
        zone,
        "30 1 * * *",
        "2026-03-28T12:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        &["2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"],
    );
    check_both(
        zone,
        "30 1 * * *",
        "2026-10-24T12:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
    );
}

/// Half an hour, not an hour.
#[test]
fn lord_howe() {
    let zone = "Australia/Lord_Howe";
    check(
        zone,
        "15 2 * * *",
        "2026-10-03T00:00:00Z",
        &["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"],
        &["2026-10-04T15:15:00Z", "2026-10-05T15:15:00Z"],
    );
    check_both(
        zone,
        "45 2 * * *",
        "2026-10-03T00:00:00Z",
        &["2026-10-03T15:45:00Z", "2026-10-04T15:45:00Z"],
    );
    check_both(
        zone,
        "45 1 * * *",
        "2026-04-04T00:00:00Z",
        &["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"],
    );
}

/// A quarter to the hour.
#[test]
fn chatham() {
    let zone = "Pacific/Chatham";
    check(
        zone,
        "0 3 * * *",
        "2026-09-26T00:00:00Z",
        &["2026-09-26T14:00:00Z", "2026-09-27T13:15:00Z"],
        &["2026-09-27T13:15:00Z", "2026-09-28T13:15:00Z"],
    );
    check_both(
        zone,
        "45 2,3 * * *",
        "2026-09-26T00:00:00Z",
        &["2026-09-26T14:00:00Z", "2026-09-27T13:00:00Z"],
    );
    check_both(
        zone,
        "0 3 * * *",
        "2026-04-04T00:00:00Z",
        &["2026-04-04T13:15:00Z", "2026-04-05T14:15:00Z"],
    );
}

/// 30 December 2011 does not exist: the zone changed sides of the date line.
#[test]
fn apia() {
    let zone = "Pacific/Apia";
    check(
        zone,
        "0 8 * * *",
        "2011-12-29T00:00:00Z",
        &[
            "2011-12-29T18:00:00Z",
            "2011-12-30T10:00:00Z",
            "2011-12-30T18:00:00Z",
        ],
        &[
            "2011-12-29T18:00:00Z",
            "2011-12-30T18:00:00Z",
            "2011-12-31T18:00:00Z",
        ],
    );
    check(
        zone,
        "0 8 30 * *",
        "2011-12-01T00:00:00Z",
        &["2011-12-30T10:00:00Z", "2012-01-29T18:00:00Z"],
        &["2012-01-29T18:00:00Z", "2012-03-29T18:00:00Z"],
    );
    // All 24 slots of that day, and 31 December's 00:00, are one.
    check_both(
        zone,
        "0 * * * *",
        "2011-12-30T08:30:00Z",
        &[
            "2011-12-30T09:00:00Z",
            "2011-12-30T10:00:00Z",
            "2011-12-30T11:00:00Z",
        ],
    );
}

/// The clocks go back for Ramadan, and forward after it.
#[test]
fn casablanca() {
    let zone = "Africa/Casablanca";
    check_both(
        zone,
        "30 2 * * *",
        "2026-02-14T12:00:00Z",
        &["2026-02-15T01:30:00Z", "2026-02-16T02:30:00Z"],
    );
    check(
        zone,
        "30 2 * * *",
        "2026-03-21T12:00:00Z",
        &["2026-03-22T02:00:00Z", "2026-03-23T01:30:00Z"],
        &["2026-03-23T01:30:00Z", "2026-03-24T01:30:00Z"],
    );
}

#[test]
fn changes_at_midnight_and_of_two_hours() {
    check(
        "Asia/Beirut",
        "0 0 * * *",
        "2026-03-28T12:00:00Z",
        &["2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z"],
        &["2026-03-29T21:00:00Z", "2026-03-30T21:00:00Z"],
    );
    check_both(
        "Asia/Beirut",
        "30 23 * * *",
        "2026-10-24T12:00:00Z",
        &["2026-10-24T20:30:00Z", "2026-10-25T21:30:00Z"],
    );
    // From 23:00 to 00:00: Saturday's slot moves into Sunday.
    check(
        "America/Nuuk",
        "30 23 * * *",
        "2026-03-28T12:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        &["2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"],
    );
    check(
        "Antarctica/Troll",
        "0,30 1,2 * * *",
        "2026-03-28T12:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-29T23:00:00Z"],
        &["2026-03-29T23:00:00Z", "2026-03-29T23:30:00Z"],
    );
}

#[test]
fn zones_whose_clocks_never_change() {
    check_both(
        "Asia/Kolkata",
        "30 2 * * *",
        "2026-03-07T12:00:00Z",
        &["2026-03-07T21:00:00Z", "2026-03-08T21:00:00Z"],
    );
    let after = at("2026-01-01T00:00:00Z");
    for zone in [
        "UTC",
        "Asia/Kolkata",
        "Asia/Tokyo",
        "America/Phoenix",
        "Etc/GMT+5",
    ] {
        let [shift, skip] = [DstGap::Shift, DstGap::Skip]
            .map(|dst_gap| slots(&cron("15 2 * * *", zone, dst_gap), after, 366));
        assert_eq!(shift, skip, "{zone}");
        let day = Duration::days(1);
        assert!(
            shift.windows(2).all(|pair| pair[1] - pair[0] == day),
            "{zone}"
        );
        assert!(
            cron("15 2 * * *", zone, DstGap::Shift)
                .warnings(after)
                .is_empty()
        );
    }
}

/// What happens on the night is what stands in the list of times as well.
#[test]
fn each_time_says_what_became_of_it() {
    let told = |schedule: &Schedule, after: &str, count: usize| -> Vec<String> {
        let times = schedule.occurrences(at(after)).take(count);
        times
            .map(|time| {
                let slot = time
                    .at
                    .map_or("none".to_owned(), |at| at.format("%d %H:%MZ").to_string());
                format!("{} {:?} {slot}", time.wall.format("%d %H:%M"), time.kind)
            })
            .collect()
    };
    let expression = "0,30 2,3 * * *";
    assert_eq!(
        told(
            &cron(expression, "America/New_York", DstGap::Shift),
            "2026-03-07T12:00:00Z",
            5
        ),
        [
            "08 02:00 Shifted 08 07:00Z",
            "08 02:30 Merged none",
            "08 03:00 Merged none",
            "08 03:30 Normal 08 07:30Z",
            "09 02:00 Normal 09 06:00Z",
        ]
    );
    assert_eq!(
        told(
            &cron(expression, "America/New_York", DstGap::Skip),
            "2026-03-07T12:00:00Z",
            4
        ),
        [
            "08 02:00 SkippedGap none",
            "08 02:30 SkippedGap none",
            "08 03:00 Normal 08 07:00Z",
            "08 03:30 Normal 08 07:30Z",
        ]
    );
    assert_eq!(
        told(
            &cron("30 * * * *", "America/New_York", DstGap::Skip),
            "2026-11-01T05:00:00Z",
            2
        ),
        [
            "01 01:30 FoldFirstPass 01 05:30Z",
            "01 02:30 Normal 01 07:30Z"
        ]
    );
    let interval = json!({
        "type": "interval", "every_minutes": 30, "timezone": "America/New_York",
        "end_at": "2026-11-01T06:30:00Z",
    });
    let interval = Schedule::parse(&interval, at("2026-10-01T00:00:00Z")).unwrap();
    assert_eq!(
        told(&interval, "2026-11-01T05:00:00Z", 9),
        [
            "01 01:30 Normal 01 05:30Z",
            "01 01:00 Normal 01 06:00Z",
            "01 01:30 Normal 01 06:30Z",
        ]
    );
}

#[test]
fn what_a_gap_does_is_chosen_or_follows_from_the_form() {
    let gap = |sent: serde_json::Value| {
        let schedule = Schedule::parse(&sent, at("2026-01-01T00:00:00Z")).unwrap();
        let stored = schedule.to_json();
        let told = stored.get("dst_gap").cloned();
        assert_eq!(told, schedule.dst_gap().map(|gap| json!(gap.as_str())));
        schedule.dst_gap()
    };
    let shifted = [
        "30 2 * * *",
        "0,30 2 * * *",
        "0 0-22 * * *",
        "0-58 2 * * *",
        "0 9 1 * 1",
        "@daily",
        "@weekly",
        "@monthly",
        "@yearly",
    ];
    for expression in shifted {
        let sent = json!({"type": "cron", "expression": expression});
        assert_eq!(gap(sent), Some(DstGap::Shift), "{expression}");
    }
    let skipped = [
        "* * * * *",
        "0 * * * *",
        "@hourly",
        "*/15 9 * * *",
        "30 */2 * * *",
        "0 */24 * * *",
        "* 2 * * *",
        "0-59 2 * * *",
        "0 0-23 * * *",
        "0,*/20 2 * * *",
    ];
    for expression in skipped {
        let sent = json!({"type": "cron", "expression": expression});
        assert_eq!(gap(sent), Some(DstGap::Skip), "{expression}");
        let sent = json!({"type": "cron", "expression": expression, "dst_gap": "shift"});
        assert_eq!(gap(sent), Some(DstGap::Shift), "{expression}");
    }
    for form in [
        json!({"type": "daily", "at": "02:30"}),
        json!({"type": "weekly", "days": ["sun"], "at": "02:30"}),
        json!({"type": "monthly", "days": [8], "at": "02:30"}),
    ] {
        assert_eq!(gap(form.clone()), Some(DstGap::Shift), "{form}");
        let mut skips = form;
        skips["dst_gap"] = json!("skip");
        assert_eq!(gap(skips.clone()), Some(DstGap::Skip), "{skips}");
    }
    assert_eq!(gap(json!({"type": "interval", "every_hours": 1})), None);
    assert_eq!(
        gap(json!({"type": "once", "at": "2026-07-01T13:00:00Z"})),
        None
    );
    assert_eq!(gap(json!({"type": "manual"})), None);
}

/// The local times of one change, so that both sides of it are looked at.
fn change_after(timezone: Tz, from: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let offset = |at: DateTime<Utc>| at.with_timezone(&timezone).naive_local() - at.naive_utc();
    (0..366 * 2)
        .map(|half_day| from + Duration::hours(12 * half_day))
        .find(|at| offset(*at) != offset(*at + Duration::hours(12)))
}

/// Every slot after `from` and up to `until`, found by walking each minute of the zone's clock. It
/// asks the zone only what the clock shows at an instant, and croner only whether a time matches.
fn by_brute_force(
    expression: &str,
    timezone: Tz,
    dst_gap: DstGap,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Vec<DateTime<Utc>> {
    /// Longer than any fold: what has been shown before is known from here on.
    const LOOK_BACK: Duration = Duration::hours(26);
    let minute = Duration::minutes(1);
    let cron = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .build()
        .parse(expression)
        .unwrap();
    let matches = |wall: NaiveDateTime| cron.is_time_matching(&wall.and_utc()).unwrap();
    let mut found = Vec::new();
    let mut at = from - LOOK_BACK;
    let mut latest_shown = at.with_timezone(&timezone).naive_local() - minute;
    while at <= until {
        let shown = at.with_timezone(&timezone).naive_local();
        if shown > latest_shown {
            let mut jumped_over = latest_shown + minute;
            let mut due = matches(shown);
            while jumped_over < shown {
                due |= dst_gap == DstGap::Shift && matches(jumped_over);
                jumped_over += minute;
            }
            if due && at > from {
                found.push(at);
            }
            latest_shown = shown;
        }
        at += minute;
    }
    found
}

fn any_gap() -> impl Strategy<Value = DstGap> {
    prop::sample::select(DstGap::ALL.to_vec())
}

/// Times of every kind that a change of the clocks can touch.
fn nightly() -> impl Strategy<Value = String> {
    let minute = prop_oneof![
        2 => (0..60u32).prop_map(|minute| minute.to_string()),
        1 => Just("*".to_owned()),
        1 => Just("*/15".to_owned()),
        1 => (0..30u32, 30..60u32).prop_map(|(a, b)| format!("{a},{b}")),
    ];
    let hour = prop_oneof![
        3 => (0..5u32).prop_map(|hour| hour.to_string()),
        1 => Just("*".to_owned()),
        1 => Just("0-3".to_owned()),
        1 => Just("*/2".to_owned()),
        1 => Just("0,23".to_owned()),
        1 => Just("22-23".to_owned()),
    ];
    let days = prop_oneof![
        3 => Just("* * *".to_owned()),
        1 => Just("* * 0,6".to_owned()),
        1 => Just("1-15 * 0".to_owned()),
        1 => Just("20-31 * *".to_owned()),
    ];
    (minute, hour, days).prop_map(|(minute, hour, days)| format!("{minute} {hour} {days}"))
}

proptest! {
    #![proptest_config(seeded::cases(300))]

    #[test]
    fn slots_around_a_change_are_those_of_the_brute_force(
        expression in nightly(), timezone in prop::sample::select(TZ_VARIANTS.to_vec()),
        dst_gap in any_gap(), from_min in 2_629_440i64..43_000_000, before_min in 1i64..1_500,
    ) {
        let from = Utc.timestamp_opt(from_min * 60, 0).unwrap();
        let change = change_after(timezone, from).unwrap_or(from) + Duration::hours(12);
        let (from, until) = (change - Duration::minutes(before_min), change + Duration::hours(14));
        let schedule = cron(&expression, timezone.name(), dst_gap);
        let found: Vec<_> = std::iter::successors(schedule.next(from), |slot| schedule.next(*slot))
            .take_while(|slot| *slot <= until)
            .collect();
        prop_assert_eq!(&found, &by_brute_force(&expression, timezone, dst_gap, from, until));
        // Asking from within gives the rest of the same list.
        for (index, slot) in found.iter().enumerate() {
            prop_assert_eq!(schedule.next(*slot - Duration::seconds(1)), Some(*slot));
            let rest = found.get(index + 1);
            prop_assert!(rest.is_none_or(|rest| schedule.next(*slot) == Some(*rest)));
        }
        // The list of times has the same slots, and a reason for each that is none.
        let times: Vec<Occurrence> = schedule
            .occurrences(from)
            .take_while(|time| time.at.is_none_or(|at| at <= until))
            .take(5_000)
            .collect();
        let given: Vec<_> = times.iter().filter_map(|time| time.at).collect();
        prop_assert!(found.starts_with(&given) || given.starts_with(&found));
        for time in times {
            let local = time.at.map(|at| at.with_timezone(&timezone).naive_local());
            match time.kind {
                OccurrenceKind::Normal | OccurrenceKind::FoldFirstPass => {
                    prop_assert_eq!(local, Some(time.wall));
                }
                OccurrenceKind::Shifted => {
                    prop_assert_eq!(dst_gap, DstGap::Shift);
                    prop_assert!(local.unwrap() > time.wall);
                }
                OccurrenceKind::Merged => {
                    prop_assert!(dst_gap == DstGap::Shift && local.is_none());
                }
                OccurrenceKind::SkippedGap => {
                    prop_assert!(dst_gap == DstGap::Skip && local.is_none());
                }
            }
        }
    }
}
