//! How long `next` takes, beside `croner` and the crate `cron` handed the same times directly.
//!
//! The two others answer a simpler question: `cron` runs a repeated hour twice, and `croner` moves a
//! skipped time. Only figures from the same machine and moment compare. Before criterion's figures of
//! chosen cases comes a survey of every vector, for the typical case and the worst.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]
#![expect(clippy::print_stdout, reason = "the survey is for people to read")]

use std::{hint::black_box, str::FromStr, time::Instant};

use chrono::{DateTime, Days, NaiveDate, Utc};
use chrono_tz::Tz;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use shared::{
    exclusion::{CalendarName, Holidays, NO_HOLIDAYS},
    prompt::PromptSpec,
    schedule::{DstGap, Schedule},
};

/// Name, Unix cron, the same as the crate `cron` writes it, zone, and the instant asked after.
const CASES: [(&str, &str, &str, Tz, &str); 8] = [
    (
        "daily",
        "0 9 * * *",
        "0 0 9 * * *",
        Tz::UTC,
        "2026-01-01T09:00:00Z",
    ),
    (
        "weekdays",
        "0 9 * * 1-5",
        "0 0 9 * * MON-FRI",
        Tz::Europe__London,
        "2026-01-02T16:30:00Z",
    ),
    (
        "minutely",
        "* * * * *",
        "0 * * * * *",
        Tz::America__New_York,
        "2026-06-01T00:00:30Z",
    ),
    (
        "either day",
        "15 8 1,15 * 1,3",
        "0 15 8 1,15 * *",
        Tz::America__New_York,
        "2026-06-01T00:00:00Z",
    ),
    (
        "gap",
        "30 2 * * *",
        "0 30 2 * * *",
        Tz::America__New_York,
        "2026-03-07T12:00:00Z",
    ),
    (
        "second pass of a fold",
        "* * * * *",
        "0 * * * * *",
        Tz::America__New_York,
        "2026-11-01T06:10:00Z",
    ),
    (
        "a day that was skipped",
        "* * * * *",
        "0 * * * * *",
        Tz::Pacific__Apia,
        "2011-12-30T09:59:00Z",
    ),
    (
        "29 February",
        "0 0 29 2 *",
        "0 0 0 29 2 *",
        Tz::UTC,
        "2028-03-01T00:00:00Z",
    ),
];

/// Every vector, asked for its first slot in each way.
fn survey(_: &mut Criterion) {
    let cases = vectors();
    let (usual, most) = (usual_exclusions(), most_exclusions());
    let holidays = holidays();
    let told = |name: &str, ways: Vec<Box<dyn Fn()>>| tell(name, &cases, &ways);
    println!(
        "the first slot of {} vectors, in ns: median, worst and where (each the least of its samples)",
        cases.len()
    );
    for dst_gap in DstGap::ALL {
        let ways = cases.iter().map(|case| {
            let (schedule, after) = (case.schedule(dst_gap), case.after);
            boxed(move || schedule.next(black_box(after)))
        });
        told(&format!("carillon, {}", dst_gap.as_str()), ways.collect());
    }
    for (name, exclusions) in [("usual", &usual), ("the most", &most)] {
        let ways = cases.iter().map(|case| {
            let (spec, after) = (case.prompt(exclusions), case.after);
            let holidays = holidays.clone();
            boxed(move || spec.next_slot(black_box(after), &holidays))
        });
        told(&format!("carillon, {name} exclusions"), ways.collect());
    }
    let ways = cases.iter().map(|case| {
        let (croner, after) = (croner::Cron::from_str(&case.unix).unwrap(), case.local());
        boxed(move || croner.find_next_occurrence(black_box(&after), false))
    });
    told("croner", ways.collect());
    let ways = cases.iter().map(|case| {
        let (arms, after) = (case.naive(), case.local());
        let next = move || {
            arms.iter()
                .filter_map(|arm| arm.after(black_box(&after)).next())
                .min()
        };
        boxed(next)
    });
    told("cron", ways.collect());
}

/// An expression of the vectors, and the instant after which it is asked.
struct Vector {
    unix: String,
    timezone: Tz,
    after: DateTime<Utc>,
}

impl Vector {
    fn sent(&self, dst_gap: DstGap) -> Value {
        json!({
            "type": "cron", "expression": self.unix, "timezone": self.timezone.name(), "dst_gap": dst_gap,
        })
    }

    fn schedule(&self, dst_gap: DstGap) -> Schedule {
        Schedule::from_stored(&self.sent(dst_gap)).unwrap()
    }

    fn prompt(&self, exclusions: &Value) -> PromptSpec {
        let body = json!({
            "prompt_name": "Brief", "prompt_text": "Write.", "model": "echo/demo",
            "schedule": self.sent(DstGap::Shift), "exclusions": exclusions,
        });
        PromptSpec::from_stored(&body).unwrap()
    }

    fn local(&self) -> DateTime<Tz> {
        self.after.with_timezone(&self.timezone)
    }

    /// Unix cron counts the days of the week from another day: what EventBridge gets fits.
    fn naive(&self) -> Vec<cron::Schedule> {
        let entries = self.schedule(DstGap::Skip).eventbridge();
        let arm = |expression: &str| {
            let six = expression.trim_start_matches("cron(").trim_end_matches(')');
            cron::Schedule::from_str(&format!("0 {six}")).unwrap()
        };
        entries.iter().map(|entry| arm(&entry.expression)).collect()
    }
}

fn vectors() -> Vec<Vector> {
    let files = [
        (
            include_str!("../../shared/tests/vectors/vectors.json"),
            vec!["cron"],
        ),
        (
            include_str!("../../shared/tests/vectors/vectors_random.json"),
            vec!["vectors", "dst_edge"],
        ),
    ];
    let lists = files.into_iter().flat_map(|(text, names)| {
        let file: Value = serde_json::from_str(text).unwrap();
        names
            .into_iter()
            .map(move |name| file[name].as_array().unwrap().clone())
    });
    let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
    lists
        .flatten()
        .map(|case| Vector {
            unix: text(&case, "unix"),
            timezone: text(&case, "timezone").parse().unwrap(),
            after: text(&case, "after").parse().unwrap(),
        })
        .collect()
}

fn usual_exclusions() -> Value {
    json!({
        "dates": ["2026-12-24", "2026-12-31"], "ranges": [{"from": "2026-08-01", "to": "2026-08-14"}],
        "weekdays": ["sat", "sun"], "calendars": ["c0"],
    })
}

/// As many as there may be, and all of them one after the other from the vectors' days on.
fn most_exclusions() -> Value {
    let first = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
    let dates: Vec<NaiveDate> = (0..366).map(|n| first + Days::new(n)).collect();
    let ranges: Vec<Value> = (0..50)
        .map(|n| first + Days::new(366 * (n + 1)))
        .map(|from| json!({"from": from, "to": from + Days::new(365)}))
        .collect();
    json!({
        "dates": dates, "ranges": ranges, "weekdays": ["mon", "tue", "wed", "thu", "fri", "sat"],
        "calendars": ["c0", "c1", "c2", "c3", "c4"],
    })
}

/// Five calendars; what the last holds follows on the most exclusions.
fn holidays() -> Holidays {
    let first = NaiveDate::from_ymd_opt(2076, 1, 1).unwrap();
    let mut holidays = Holidays::default();
    for calendar in 0..5 {
        let name = CalendarName::parse(&format!("c{calendar}")).unwrap();
        let dates = (0..200).map(|n| (first + Days::new(5 * n + calendar), "A holiday".to_owned()));
        holidays.insert(name, dates);
    }
    holidays
}

fn boxed<T>(next: impl Fn() -> T + 'static) -> Box<dyn Fn()> {
    Box::new(move || {
        black_box(next());
    })
}

fn tell(name: &str, cases: &[Vector], ways: &[Box<dyn Fn()>]) {
    let mut took: Vec<(u128, usize)> = ways
        .iter()
        .enumerate()
        .map(|(index, way)| (least_ns(way), index))
        .collect();
    took.sort_unstable();
    let (median, _) = took[took.len() / 2];
    let (worst, index) = took[took.len() - 1];
    let case = &cases[index];
    println!(
        "  {name:32} {median:>8} {worst:>9}  {} in {} after {}",
        case.unix, case.timezone, case.after
    );
}

/// What a call takes when nothing else gets in its way.
fn least_ns(way: &dyn Fn()) -> u128 {
    const SAMPLES: usize = 100;
    const SAMPLE_NS: u128 = 10_000;
    let sample = |calls: u32| {
        let started = Instant::now();
        (0..calls).for_each(|_| way());
        started.elapsed().as_nanos() / u128::from(calls)
    };
    let first = sample(1).min(sample(1)).max(1);
    let calls = u32::try_from(SAMPLE_NS / first).map_or(1, |calls| calls.clamp(1, 100));
    (0..SAMPLES).map(|_| sample(calls)).min().unwrap_or(first)
}

fn next(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("next");
    for (name, unix, naive, timezone, after) in CASES {
        let after: DateTime<Utc> = after.parse().unwrap();
        let local = after.with_timezone(&timezone);

        let ours = schedule(unix, timezone);
        group.bench_function(BenchmarkId::new("carillon", name), |bench| {
            bench.iter(|| ours.next(black_box(after)));
        });
        let croner = croner::Cron::from_str(unix).unwrap();
        group.bench_function(BenchmarkId::new("croner", name), |bench| {
            bench.iter(|| croner.find_next_occurrence(black_box(&local), false));
        });
        let naive = cron::Schedule::from_str(naive).unwrap();
        group.bench_function(BenchmarkId::new("cron", name), |bench| {
            bench.iter(|| naive.after(black_box(&local)).next());
        });
    }
    // The others do not reach these.
    let leap = schedule("0 0 29 2 *", Tz::UTC);
    let century: DateTime<Utc> = "2096-03-01T00:00:00Z".parse().unwrap();
    group.bench_function(
        BenchmarkId::new("carillon", "29 February around 2100"),
        |bench| {
            bench.iter(|| leap.next(black_box(century)));
        },
    );
    // A year of a five-minute schedule, with the reason for each time that is no slot.
    let often = schedule("*/5 * * * *", Tz::America__New_York);
    group.bench_function(BenchmarkId::new("carillon", "a year of times"), |bench| {
        let after: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
        bench.iter(|| often.occurrences(black_box(after)).take(105_120).count());
    });
    let never = Vector {
        unix: "0 9 * * 1".to_owned(),
        timezone: Tz::Europe__London,
        after: century,
    };
    let never = never.prompt(&json!({"weekdays": ["mon"]}));
    group.bench_function(
        BenchmarkId::new("carillon", "exclusions that leave nothing"),
        |bench| {
            bench.iter(|| never.next_slot(black_box(century), &NO_HOLIDAYS));
        },
    );
    group.finish();
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let now: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
    let long = format!("{} 0-5,7-22 * * 1-5", ["1-3,5-9/2"; 20].join(","));
    let cases = [
        (
            "weekdays",
            json!({"type": "cron", "expression": "0 9 * * 1-5"}),
        ),
        ("long list", json!({"type": "cron", "expression": long})),
        (
            "unknown zone",
            json!({"type": "manual", "timezone": "Mars/Olympus_Mons"}),
        ),
    ];
    for (name, sent) in cases {
        group.bench_function(name, |bench| {
            bench.iter(|| Schedule::parse(black_box(&sent), now));
        });
    }
    let stored = schedule("0 9 * * 1-5", Tz::America__New_York);
    group.bench_function("preview of 5 slots", |bench| {
        bench.iter(|| stored.preview(black_box(now), 5));
    });
    let rare = schedule("0 0 29 2 *", Tz::UTC);
    group.bench_function("shortest gap of 29 February", |bench| {
        bench.iter(|| black_box(&rare).shortest_gap_minutes());
    });
    group.finish();
}

fn schedule(expression: &str, timezone: Tz) -> Schedule {
    let sent = json!({"type": "cron", "expression": expression, "timezone": timezone.name()});
    Schedule::parse(&sent, "2010-01-01T00:00:00Z".parse().unwrap()).unwrap()
}

criterion_group!(benches, survey, next, parse);
criterion_main!(benches);
