//! Schedules beside two cron libraries of another language: what three programs read the same is
//! most likely what its author meant.
//!
//! They differ on the nights when the clocks change, so slots near such a night are not compared
//! here; `shared/tests/schedule_dst.rs` has a brute force for them.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be, and tells its seed"
)]

use std::{
    env,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use chrono::{DateTime, Duration, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{RngAlgorithm, RngSeed, TestRunner},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::schedule::Schedule;

const CASES: usize = 3_000;
const SLOTS: usize = 3;
/// Another seed looks at other schedules; one that finds something belongs here.
const SEED: u64 = 20_261_121;

#[derive(Debug, Clone, Serialize)]
struct Case {
    expression: String,
    timezone: String,
    after: DateTime<Utc>,
    count: usize,
}

#[derive(Debug, Deserialize)]
struct Answer {
    croniter: Option<Vec<DateTime<Utc>>>,
    cronsim: Option<Vec<DateTime<Utc>>>,
}

#[test]
fn slots_are_those_of_croniter_and_cronsim() {
    let seed = env::var("CARILLON_TEST_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    eprintln!("CARILLON_TEST_SEED={seed}");
    let cases = cases(seed);
    let asked: Vec<&Case> = cases.iter().map(|(case, _)| case).collect();
    let answers = ask(&asked);
    let mut compared = [0, 0];
    for ((case, expected), answer) in cases.iter().zip(answers) {
        for (index, (name, slots)) in [("croniter", answer.croniter), ("cronsim", answer.cronsim)]
            .into_iter()
            .enumerate()
        {
            if let Some(slots) = slots {
                assert_eq!(&slots, expected, "{name}: {case:?}");
                compared[index] += 1;
            }
        }
    }
    eprintln!("compared with croniter and cronsim: {compared:?} of {CASES}");
    assert!(
        compared.iter().all(|count| *count > CASES * 9 / 10),
        "{compared:?}"
    );
}

/// Sound schedules with their slots, none of them near a change of the clocks.
fn cases(seed: u64) -> Vec<(Case, Vec<DateTime<Utc>>)> {
    let config = ProptestConfig {
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    let strategy = (
        expression(),
        prop::sample::select(TZ_VARIANTS.to_vec()),
        // From 1975, when every zone counts whole minutes, to where zones are foretold.
        157_766_400i64..2_145_916_800,
    );
    std::iter::repeat_with(|| strategy.new_tree(&mut runner).unwrap().current())
        .take(CASES * 20)
        .filter_map(|(expression, timezone, after_s)| {
            let after = DateTime::from_timestamp(after_s, 0)?;
            let slots = slots(&expression, timezone, after)?;
            let case = Case {
                expression,
                timezone: timezone.name().to_owned(),
                after,
                count: SLOTS,
            };
            Some((case, slots))
        })
        .take(CASES)
        .collect()
}

fn slots(expression: &str, timezone: Tz, after: DateTime<Utc>) -> Option<Vec<DateTime<Utc>>> {
    let sent = json!({"type": "cron", "expression": expression, "timezone": timezone.name()});
    let schedule = Schedule::parse(&sent, DateTime::UNIX_EPOCH).ok()?;
    let slots: Vec<_> = std::iter::successors(schedule.next(after), |slot| schedule.next(*slot))
        .take(SLOTS)
        .collect();
    let calm = |at: &DateTime<Utc>| is_calm(timezone, *at);
    (calm(&after) && slots.iter().all(calm)).then_some(slots)
}

/// No change of the clocks within a day and two hours.
fn is_calm(timezone: Tz, at: DateTime<Utc>) -> bool {
    let offset = |at: DateTime<Utc>| at.with_timezone(&timezone).naive_local() - at.naive_utc();
    (-26..=26).all(|hours| offset(at + Duration::hours(hours)) == offset(at))
}

fn ask(cases: &[&Case]) -> Vec<Answer> {
    let python = env::var("CARILLON_TEST_PYTHON").expect("run `./dev test`, or `./dev with-peers`");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/cron_oracles.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(&serde_json::to_vec(cases).unwrap())
        .unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// No range has one value only: croniter reads `28-28` as a turn around the whole month.
fn item(min: u32, max: u32) -> impl Strategy<Value = String> {
    let range = move || (min..max).prop_flat_map(move |first| (Just(first), first + 1..=max));
    prop_oneof![
        4 => (min..=max).prop_map(|value| value.to_string()),
        1 => range().prop_map(|(first, last)| format!("{first}-{last}")),
        1 => (range(), 1..=9u32)
            .prop_map(|((first, last), step)| format!("{first}-{last}/{step}")),
    ]
}

fn field(min: u32, max: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("*".to_owned()),
        1 => (1..=(max - min)).prop_map(|step| format!("*/{step}")),
        4 => prop::collection::vec(item(min, max), 1..4).prop_map(|items| items.join(",")),
    ]
}

/// Unix cron by its grammar; some of it is refused for what it means.
fn expression() -> impl Strategy<Value = String> {
    let fields = (
        field(0, 59),
        field(0, 23),
        field(1, 31),
        field(1, 12),
        field(0, 7),
    );
    fields.prop_map(|(minute, hour, day, month, weekday)| {
        format!("{minute} {hour} {day} {month} {weekday}")
    })
}
