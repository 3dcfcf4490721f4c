//! How long `next` takes, beside `croner` and the crate `cron` handed the same times directly.
//!
//! The two others answer a simpler question: `cron` runs a repeated hour twice, and `croner` moves a
//! skipped time. Only figures from the same machine and moment compare.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::{hint::black_box, str::FromStr};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::json;
use shared::schedule::Schedule;

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

criterion_group!(benches, next, parse);
criterion_main!(benches);
