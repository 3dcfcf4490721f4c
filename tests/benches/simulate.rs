//! How long a simulation takes, beside `croner` and the crate `cron` that only name the same slots.
//!
//! The two others ask nothing of a policy, an exclusion or a run, explain nothing, and know the zone
//! alone: their figures say what the slots themselves cost. Only figures from the same machine and
//! moment compare.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::{hint::black_box, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use shared::{
    exclusion::NO_HOLIDAYS,
    outbound::Policy,
    price::Catalog,
    prompt::Rules,
    simulate::{self, Request},
};

const FROM: &str = "2026-01-01T00:00:00Z";
/// A year of every five minutes: 105,120 times, of which the clocks jump over twelve.
const UNTIL: &str = "2026-12-31T23:59:00Z";
const ZONE: Tz = Tz::Europe__London;

fn year(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a year of every five minutes");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(8));
    let catalog = Catalog::shipped();
    let plain = request("*/5 * * * *", UNTIL, &json!({}), &catalog);
    let totals = simulate::run(&plain, &NO_HOLIDAYS, &catalog).totals;
    assert_eq!((totals.due, totals.dst_gap), (105_108, 12));
    for (name, change) in [
        ("runs of a minute", json!({})),
        ("runs that overlap", json!({ "assumed_run_s": 400 })),
        (
            "runs that wait",
            json!({ "assumed_run_s": 400, "overlap": "buffer_one" }),
        ),
        (
            "without weekends",
            json!({ "exclusions": { "weekdays": ["sat", "sun"] } }),
        ),
        (
            "a priced model, a limit, a day down",
            json!({
                "model": "openai/gpt-5-mini", "max_runs": 100_000,
                "assumed_downtime": { "from": "2026-06-01T00:00:00Z", "until": "2026-06-02T00:00:00Z" },
            }),
        ),
    ] {
        let request = request("*/5 * * * *", UNTIL, &change, &catalog);
        group.bench_function(BenchmarkId::new("carillon", name), |bench| {
            bench.iter(|| simulate::run(black_box(&request), &NO_HOLIDAYS, &catalog));
        });
    }
    let until: DateTime<Utc> = UNTIL.parse().unwrap();
    let from = FROM.parse::<DateTime<Utc>>().unwrap().with_timezone(&ZONE);
    let from = from - chrono::TimeDelta::seconds(1);
    let croner = croner::Cron::from_str("*/5 * * * *").unwrap();
    let of_croner = || {
        croner
            .iter_after(from)
            .take_while(|at| *at <= until)
            .count()
    };
    group.bench_function("croner, slots only", |bench| {
        bench.iter(|| black_box(of_croner()));
    });
    let naive = cron::Schedule::from_str("0 */5 * * * *").unwrap();
    let of_cron = || naive.after(&from).take_while(|at| *at <= until).count();
    group.bench_function("cron, slots only", |bench| {
        bench.iter(|| black_box(of_cron()));
    });
    group.finish();
}

/// The most that a request can ask for, and the least.
fn bounds(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bounds");
    group.sample_size(10);
    let catalog = Catalog::shipped();
    let most = request(
        "* * * * *",
        "2027-02-05T00:00:00Z",
        &json!({ "assumed_run_s": 150 }),
        &catalog,
    );
    group.bench_function("400 days of every minute", |bench| {
        bench.iter(|| simulate::run(black_box(&most), &NO_HOLIDAYS, &catalog));
    });
    let five = request(
        "0 9 * * 1-5",
        UNTIL,
        &json!({ "until": null, "count": 5 }),
        &catalog,
    );
    group.bench_function("five slots", |bench| {
        bench.iter(|| simulate::run(black_box(&five), &NO_HOLIDAYS, &catalog));
    });
    group.finish();
}

fn request(expression: &str, until: &str, change: &Value, catalog: &Catalog) -> Request {
    let mut body = json!({
        "schedule": { "type": "cron", "expression": expression, "timezone": ZONE.name() },
        "from": FROM, "until": until,
    });
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    let rules = Rules {
        now: FROM.parse().unwrap(),
        outbound: &Policy::PUBLIC,
        catalog,
        interval_minutes_min: 1,
        default_timezone: Tz::UTC,
        allow_echo: true,
        owner_email: None,
        holidays: &NO_HOLIDAYS,
    };
    Request::parse(&body, &rules, None).unwrap()
}

criterion_group!(benches, year, bounds);
criterion_main!(benches);
