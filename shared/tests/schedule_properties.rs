//! What holds for every schedule, whatever was sent.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

#[cfg(test)]
mod seeded;

use std::time::{Duration as Elapsed, Instant};

use chrono::{DateTime, Duration, NaiveDateTime, TimeZone, Timelike, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::parser::{CronParser, Seconds};
use proptest::prelude::*;
use serde_json::{Value, json};
use shared::schedule::{DstGap, Schedule, eventbridge};

const SLOTS: usize = 6;

/// The promise is 1 ms for optimised code; this also runs unoptimised on a busy machine. What it is
/// to find is a search without a bound.
const TOO_LONG: Elapsed = Elapsed::from_millis(25);

/// How long something takes when nothing else gets in its way: the best of three.
fn took<T>(work: impl Fn() -> T) -> Elapsed {
    let once = || {
        let started = Instant::now();
        std::hint::black_box(work());
        started.elapsed()
    };
    once().min(once()).min(once())
}

fn now() -> DateTime<Utc> {
    "2026-01-01T10:07:20Z".parse().unwrap()
}

/// As EventBridge has it: a gap is skipped.
fn parse(expression: &str, timezone: Tz) -> Option<Schedule> {
    parse_with(expression, timezone, DstGap::Skip)
}

fn parse_with(expression: &str, timezone: Tz, dst_gap: DstGap) -> Option<Schedule> {
    let sent = json!({
        "type": "cron", "expression": expression, "timezone": timezone.name(), "dst_gap": dst_gap,
    });
    Schedule::parse(&sent, now()).ok()
}

fn any_gap() -> impl Strategy<Value = DstGap> {
    prop::sample::select(DstGap::ALL.to_vec())
}

fn slots(schedule: &Schedule, after: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    std::iter::successors(schedule.next(after), |slot| schedule.next(*slot))
        .take(SLOTS)
        .collect()
}

fn item(min: u32, max: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (min..=max).prop_map(|value| value.to_string()),
        1 => (min..=max, min..=max).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        1 => (min..=max, min..=max, 1..=9u32)
            .prop_map(|(a, b, step)| format!("{}-{}/{step}", a.min(b), a.max(b))),
    ]
}

fn field(min: u32, max: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just(String::from("*")),
        1 => (1..=(max - min)).prop_map(|step| format!("*/{step}")),
        4 => prop::collection::vec(item(min, max), 1..4).prop_map(|items| items.join(",")),
    ]
}

/// Unix cron by its grammar; some of it is refused for what it means.
fn expression() -> impl Strategy<Value = String> {
    (
        field(0, 59),
        field(0, 23),
        field(1, 31),
        field(1, 12),
        field(0, 7),
    )
        .prop_map(|(minute, hour, day, month, weekday)| {
            format!("{minute} {hour} {day} {month} {weekday}")
        })
}

fn zone() -> impl Strategy<Value = Tz> {
    prop::sample::select(TZ_VARIANTS.to_vec())
}

/// From 1975, when every zone counts whole minutes, to 2200.
fn instant() -> impl Strategy<Value = DateTime<Utc>> {
    (157_766_400i64..7_258_118_400).prop_map(|timestamp| Utc.timestamp_opt(timestamp, 0).unwrap())
}

/// An instant anywhere in a minute.
fn moment() -> impl Strategy<Value = DateTime<Utc>> {
    (instant(), 0i64..60_000)
        .prop_map(|(minute, milliseconds)| minute + Duration::milliseconds(milliseconds))
}

/// An instant within hours of a change of the clocks, where the zone has one in the year.
fn near_a_change(timezone: Tz, from: DateTime<Utc>, minutes: i64) -> DateTime<Utc> {
    let offset = |at: DateTime<Utc>| at.with_timezone(&timezone).naive_local() - at.naive_utc();
    (0..366)
        .map(|day| from + Duration::days(day))
        .find(|at| offset(*at) != offset(*at + Duration::days(1)))
        .unwrap_or(from)
        + Duration::minutes(minutes)
}

/// The local times after `after` that `croner` names, on a clock that never changes.
fn croner_walls(expression: &str, after: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
    let cron = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .build()
        .parse(expression)
        .unwrap();
    std::iter::successors(Some(after.and_utc()), move |at| {
        cron.find_next_occurrence(at, false).ok()
    })
    .skip(1)
    .map(|at| at.naive_utc())
}

/// The slots as the documentation defines them: each named local time at its first pass, if any.
fn expected(expression: &str, timezone: Tz, after: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    const HOURS_BEFORE: i64 = 26;
    let from = after.with_timezone(&timezone).naive_local() - Duration::hours(HOURS_BEFORE);
    let from = from.with_nanosecond(0).unwrap();
    croner_walls(expression, from)
        .filter_map(|wall| timezone.from_local_datetime(&wall).earliest())
        .map(|at| at.to_utc())
        .filter(|at| *at > after)
        .take(SLOTS)
        .collect()
}

/// Every kind of schedule, mostly sound, at times with other fields in it.
fn form() -> impl Strategy<Value = Value> {
    let time = || "[0-1][0-9]:[0-5][0-9]";
    let kind = prop_oneof![
        expression().prop_map(|text| json!({"type": "cron", "expression": text})),
        (1..2_000u32).prop_map(|every| json!({"type": "interval", "every_minutes": every})),
        (1..400u32, instant())
            .prop_map(|(every, at)| json!({"type": "interval", "every_days": every, "anchor": at})),
        time().prop_map(|at| json!({"type": "daily", "at": at})),
        (
            time(),
            prop::sample::subsequence(vec!["sun", "mon", "sat", "wed"], 1..4)
        )
            .prop_map(|(at, days)| json!({"type": "weekly", "at": at, "days": days})),
        (time(), prop::collection::vec(1..=31u32, 1..4))
            .prop_map(|(at, days)| json!({"type": "monthly", "at": at, "days": days})),
        instant().prop_map(|at| json!({"type": "once", "at": at})),
        Just(json!({"type": "manual"})),
    ];
    let fields = prop::collection::btree_map(
        prop::sample::select(vec![
            "every_hours",
            "anchor",
            "at",
            "days",
            "timezone",
            "dst_gap",
            "start_at",
            "end_at",
            "colour",
        ]),
        anything(),
        0..2,
    );
    (kind, zone(), fields).prop_map(|(mut value, zone, fields)| {
        value["timezone"] = json!(zone.name());
        for (name, field) in fields {
            value[name] = field;
        }
        value
    })
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..100u32).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        expression().prop_map(Value::from),
        zone().prop_map(|zone| Value::from(zone.name())),
        instant().prop_map(|at| json!(at)),
        "[0-2][0-9]:[0-5][0-9]".prop_map(Value::from),
        Just(json!(["mon", "fri"])),
        Just(json!("skip")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{0,12}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Asks a schedule everything, and returns how long its slowest `next` took.
fn ask(schedule: &Schedule, after: DateTime<Utc>) -> Elapsed {
    assert!(!schedule.describe().is_empty());
    let warnings = schedule.warnings(after);
    assert!(warnings.iter().all(|warning| !warning.detail.is_empty()));
    let entries = schedule.eventbridge();
    assert!(entries.len() <= 2);
    for entry in entries {
        eventbridge::check(&entry.expression).unwrap();
    }
    assert!(schedule.occurrences(after).take(SLOTS).count() <= SLOTS);
    assert_ne!(schedule.shortest_gap_minutes(), Some(0));
    took(|| schedule.next(after))
}

proptest! {
    #![proptest_config(seeded::cases(400))]

    #[test]
    fn slots_are_those_of_an_independent_implementation(
        expression in expression(), timezone in zone(), after in moment(),
    ) {
        if let Some(schedule) = parse(&expression, timezone) {
            prop_assert_eq!(slots(&schedule, after), expected(&expression, timezone, after));
        }
    }

    #[test]
    fn slots_near_a_change_of_the_clocks_are_first_passes(
        expression in "([0-5]?[0-9]|\\*|\\*/15) ([0-4]|\\*|0-3|\\*/2|0,23) \\* \\* \\*",
        timezone in zone(), from in moment(), minutes in -60i64..1_500,
    ) {
        let after = near_a_change(timezone, from, minutes);
        let schedule = parse(&expression, timezone).unwrap();
        prop_assert_eq!(slots(&schedule, after), expected(&expression, timezone, after));
    }

    #[test]
    fn slots_increase_on_whole_minutes_and_never_repeat_a_local_time(
        expression in expression(), timezone in zone(), dst_gap in any_gap(),
        from in moment(), minutes in -60i64..1_500,
    ) {
        let after = near_a_change(timezone, from, minutes);
        if let Some(schedule) = parse_with(&expression, timezone, dst_gap) {
            let slots = slots(&schedule, after);
            prop_assert_eq!(slots.len(), SLOTS);
            prop_assert!(slots[0] > after);
            for pair in slots.windows(2) {
                let local = |at: DateTime<Utc>| at.with_timezone(&timezone).naive_local();
                prop_assert!(pair[0] < pair[1]);
                prop_assert!(local(pair[0]) < local(pair[1]));
            }
            prop_assert!(slots.iter().all(|slot| slot.second() == 0 && slot.nanosecond() == 0));
        }
    }

    #[test]
    fn slots_match_their_fields_on_the_local_clock_but_at_the_end_of_a_gap(
        expression in expression(), timezone in zone(), dst_gap in any_gap(),
        from in moment(), minutes in -60i64..1_500,
    ) {
        let after = near_a_change(timezone, from, minutes);
        if let Some(schedule) = parse_with(&expression, timezone, dst_gap) {
            let cron = CronParser::builder().seconds(Seconds::Disallowed).build().parse(&expression).unwrap();
            let local = |at: DateTime<Utc>| at.with_timezone(&timezone).naive_local();
            for slot in slots(&schedule, after) {
                let second = Duration::seconds(1);
                let ends_a_gap = local(slot) - local(slot - second) > second;
                let matches = cron.is_time_matching(&local(slot).and_utc()).unwrap();
                prop_assert!(matches || (ends_a_gap && dst_gap == DstGap::Shift), "{}", slot);
            }
        }
    }

    #[test]
    fn a_date_that_matches_by_both_of_its_days_gives_one_slot(
        time in (field(0, 59), field(0, 23)), day in 1..=31u32, weekday in 0..=6u32,
        timezone in zone(), dst_gap in any_gap(), after in moment(),
    ) {
        let (minute, hour) = time;
        let both = parse_with(&format!("{minute} {hour} {day} * {weekday}"), timezone, dst_gap);
        let by_day = parse_with(&format!("{minute} {hour} {day} * *"), timezone, dst_gap);
        let by_weekday = parse_with(&format!("{minute} {hour} * * {weekday}"), timezone, dst_gap);
        if let (Some(both), Some(by_day), Some(by_weekday)) = (both, by_day, by_weekday) {
            let mut either = slots(&by_day, after);
            either.extend(slots(&by_weekday, after));
            either.sort_unstable();
            either.dedup();
            either.truncate(SLOTS);
            prop_assert_eq!(slots(&both, after), either);
        }
    }

    #[test]
    fn asking_later_never_gives_an_earlier_slot(
        expression in expression(), timezone in zone(), dst_gap in any_gap(),
        a in moment(), later_s in 0i64..10_000_000,
    ) {
        if let Some(schedule) = parse_with(&expression, timezone, dst_gap) {
            let b = a + Duration::seconds(later_s);
            let (next_a, next_b) = (schedule.next(a).unwrap(), schedule.next(b).unwrap());
            prop_assert!(next_a <= next_b);
            // What lies between `a` and its next slot has the same next slot.
            prop_assert!(next_a <= b || next_a == next_b);
        }
    }

    #[test]
    fn a_window_keeps_the_slots_within_it(
        expression in expression(), timezone in zone(), start_min in 0i64..2_000_000, length_min in 0i64..2_000_000,
    ) {
        let start = Utc.with_ymd_and_hms(2026, 1, 2, 0, 0, 0).unwrap() + Duration::minutes(start_min);
        let end = start + Duration::minutes(length_min);
        let sent = json!({
            "type": "cron", "expression": expression, "timezone": timezone.name(),
            "start_at": start, "end_at": end, "dst_gap": "skip",
        });
        if let Some(open) = parse(&expression, timezone) {
            let first = open.next(start - Duration::minutes(1)).unwrap();
            match Schedule::parse(&sent, now()) {
                Ok(schedule) => {
                    prop_assert_eq!(schedule.next(now()), Some(first));
                    prop_assert!(slots(&schedule, now()).iter().all(|slot| (start..=end).contains(slot)));
                    prop_assert_eq!(schedule.next(end), None);
                }
                Err(faults) => {
                    prop_assert!(first > end);
                    prop_assert_eq!(faults[0].code, "never_fires_in_window");
                }
            }
        }
    }

    #[test]
    fn no_two_slots_are_closer_than_the_shortest_gap(expression in expression(), after in moment()) {
        if let Some(schedule) = parse(&expression, Tz::UTC) {
            let shortest = i64::from(schedule.shortest_gap_minutes().unwrap());
            for pair in slots(&schedule, after).windows(2) {
                prop_assert!((pair[1] - pair[0]).num_minutes() >= shortest);
            }
        }
    }

    #[test]
    fn intervals_are_even_and_stay_on_their_anchor(
        every in 1u32..600_000, anchor_min in 0i64..20_000_000, after in moment(),
    ) {
        let anchor = Utc.timestamp_opt(anchor_min * 60, 0).unwrap();
        let sent = json!({"type": "interval", "every_minutes": every, "anchor": anchor});
        match Schedule::parse(&sent, now()) {
            Ok(schedule) => {
                for slot in slots(&schedule, after) {
                    prop_assert!(slot >= anchor && slot > after);
                    prop_assert_eq!((slot - anchor).num_minutes() % i64::from(every), 0);
                }
                ask(&schedule, after);
            }
            Err(faults) => prop_assert_eq!(faults[0].code, "out_of_range"),
        }
    }

    #[test]
    fn what_is_stored_reads_back_the_same(form in form(), after in moment()) {
        if let Ok(schedule) = Schedule::parse(&form, now()) {
            let stored = schedule.to_json();
            let read = Schedule::from_stored(&stored).unwrap();
            prop_assert_eq!(&read.to_json(), &stored);
            prop_assert_eq!(slots(&read, after), slots(&schedule, after));
            let named: Vec<_> = read.occurrences(after).filter_map(|time| time.at).take(SLOTS).collect();
            prop_assert_eq!(slots(&read, after), named);
        }
    }

    #[test]
    fn any_json_is_answered_at_once(value in prop_oneof![form(), anything()], after in moment()) {
        prop_assert!(took(|| Schedule::parse(&value, now())) < TOO_LONG);
        match Schedule::parse(&value, now()) {
            Ok(schedule) => prop_assert!(ask(&schedule, after) < TOO_LONG),
            Err(faults) => prop_assert!(!faults.is_empty()),
        }
    }

    #[test]
    fn any_text_is_answered_at_once(
        text in prop_oneof![
            any::<String>(),
            "[0-9*/,\\- A-Z?#@()]{0,300}",
            "([0-9*/,-]{1,12} ){4}[0-9*/,-]{1,12}",
            expression(),
        ],
        after in any::<i64>(),
    ) {
        let after = DateTime::from_timestamp(after / 1_000_000, 0).unwrap_or_else(now);
        prop_assert!(took(|| parse(&text, Tz::America__New_York)) < TOO_LONG);
        prop_assert!(took(|| eventbridge::check(&text)) < TOO_LONG);
        if let Some(schedule) = parse(&text, Tz::America__New_York) {
            prop_assert!(ask(&schedule, after) < TOO_LONG);
        }
    }
}
