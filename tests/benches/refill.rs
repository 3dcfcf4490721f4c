//! What a thousand runs of a call of ten seconds cost in Lambda at 128 MB, in GB-s: the executor's
//! bootstrap works on batches with ten slots, and a slot that is free takes the next record. The last
//! of them is the one that the stack deploys.
//!
//! ```text
//! CARILLON_BOOTSTRAP=$PWD/target/lambda/executor \
//!     ./dev with-peers --with none cargo bench -p tests --profile dev --bench refill
//! ```
//!
//! The model answers ten times as fast as it says, so one second stands for ten. What is measured is
//! the time from an event to its answer; everything in it, the database's part too, counts ten times.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark may panic, and prints its figures"
)]

use std::{path::Path, time::Instant};

use tests::{
    bootstrap::{self, Ground, all_done},
    model::WAITS,
    runtime_api::Function,
};

/// A second of the benchmark stands for so many.
const SCALE: u32 = 10;

/// What Lambda bills, in GB.
const MEMORY_GB: f64 = 128.0 / 1024.0;

/// Records of an event, and events.
const CASES: [(u32, u32); 3] = [(10, 8), (40, 3), (100, 2)];

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(bench());
}

async fn bench() {
    let program = match bootstrap::program() {
        Ok(program) => program,
        Err(how) => {
            println!("{how}");
            return;
        }
    };
    for (records, events) in CASES {
        cost(&program, "10 s each", records, events, |_| 10_000).await;
        cost(
            &program,
            "10 s in the mean, with a tail",
            records,
            events,
            with_tail,
        )
        .await;
    }
}

/// Of 50 calls, 45 take 8 s, 4 take 20 s, and one takes a minute: 10 s in the mean.
fn with_tail(n: u32) -> u32 {
    // 7 and 50 have no common factor: fifty in a row are all of them, well mixed.
    match n * 7 % 50 {
        0 => 60_000,
        1..=4 => 20_000,
        _ => 8_000,
    }
}

async fn cost(program: &Path, what: &str, records: u32, events: u32, call_ms: impl Fn(u32) -> u32) {
    let ground = Ground::new().await;
    let mut function = Function::launch(program, &[], "executor", &ground.environment).await;
    let mut billed_s = 0.0;
    let mut called_ms = 0_u32;
    for event in 0..events {
        let calls: Vec<_> = (0..records).map(|n| call_ms(event * records + n)).collect();
        called_ms += calls.iter().sum::<u32>();
        let texts: Vec<_> = calls
            .iter()
            .map(|call_ms| format!("{WAITS}{} please", call_ms / SCALE))
            .collect();
        let event = ground.event(&texts).await;
        let begun = Instant::now();
        let answered = function.invoke_with(event).await;
        billed_s += begun.elapsed().as_secs_f64() * f64::from(SCALE);
        assert_eq!(answered.body, all_done());
    }
    let runs = records * events;
    assert_eq!(ground.succeeded().await, i64::from(runs));
    println!(
        "{what}, {records} records an event: {:.0} GB-s per thousand runs (calls of {:.1} s in the mean)",
        billed_s * MEMORY_GB * 1000.0 / f64::from(runs),
        f64::from(called_ms) / 1000.0 / f64::from(runs)
    );
}
