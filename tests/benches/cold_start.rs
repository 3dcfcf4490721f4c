//! From a process's start to its first answer: the executor's bootstrap beside a bundled function in
//! Node that builds clients of the same kinds and one database connection, started in turns; and what
//! the executor holds in memory at a batch of ten, and with outputs of 100 kB.
//!
//! ```text
//! cargo build --profile lambda -p executor --bin executor
//! (cd tests/peers/node-function && npm ci && npm run build)
//! CARILLON_BOOTSTRAP=$PWD/target/lambda/executor \
//!     ./dev with-peers --with none cargo bench -p tests --profile dev --bench cold_start
//! ```
//!
//! It prints figures and ratios; only those of one call compare.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark may panic, and prints its figures"
)]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use tests::{
    bootstrap::{self, Ground, Usage, all_done},
    model::WRITES,
    runtime_api::Function,
};

/// Starts of each.
const STARTS: usize = 15;

/// Records of a batch.
const BATCH: usize = 10;

/// Batches of the same process, of which the first few still grow its heap and prepare statements.
const BATCHES: usize = 28;
const BATCHES_WARMING: usize = 4;

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
    let size = fs::metadata(&program).unwrap().len();
    let hundredths = size / 10_000;
    println!("executor: {}.{:02} MB", hundredths / 100, hundredths % 100);
    let ground = Ground::new().await;
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/node-function/dist/index.cjs");
    let node = bundle.is_file().then_some(bundle);
    let path = std::env::var("PATH").unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        ours.push(start(&program, &[], &ground.environment).await);
        if let Some(bundle) = &node {
            let mut environment = ground.environment.clone();
            environment.push(("PATH", path.clone()));
            let arguments = [bundle.to_str().unwrap()];
            theirs.push(start(Path::new("node"), &arguments, &environment).await);
        }
    }
    let ours = middle("executor", &mut ours);
    let of_node = if theirs.is_empty() {
        println!("node: skipped, as there is no bundle; see the head of this file");
        None
    } else {
        let theirs = middle("node", &mut theirs);
        let ratio = theirs.0.as_secs_f64() / ours.0.as_secs_f64();
        println!("node takes {ratio:.1} times as long to its first answer");
        Some(theirs.1)
    };
    let of_a_run = hold(&program, &ground, "short outputs", "say something").await;
    if let Some(of_node) = of_node {
        let runs = of_node.as_secs_f64() / of_a_run.as_secs_f64();
        println!("a start of node costs as much CPU as {runs:.0} of these runs");
    }
    hold(
        &program,
        &ground,
        "outputs of 100 kB",
        &format!("{WRITES}100000 bytes"),
    )
    .await;
}

/// From the start to the first answer, and what that used.
async fn start(
    program: &Path,
    arguments: &[&str],
    environment: &[(&'static str, String)],
) -> (Duration, Usage) {
    let begun = Instant::now();
    let mut function = Function::launch(program, arguments, "executor", environment).await;
    let answered = function.invoke_with(b"{\"Records\": []}".to_vec()).await;
    let took = begun.elapsed();
    assert!(answered.ok, "{answered:?}");
    (took, Usage::of(function.process_id().unwrap()))
}

/// Prints the median and the least of each figure; gives the medians of the time and the CPU.
fn middle(name: &str, starts: &mut [(Duration, Usage)]) -> (Duration, Duration) {
    let half = starts.len() / 2;
    starts.sort_by_key(|(took, _)| *took);
    let (took, least) = (starts[half].0, starts[0].0);
    starts.sort_by_key(|(_, usage)| usage.cpu);
    let cpu = starts[half].1.cpu;
    let cpu_least = starts[0].1.cpu;
    println!(
        "{name}: first answer after {took:.1?} (least {least:.1?}), CPU {cpu:.1?} (least {cpu_least:.1?}), resident {:.1} MB",
        starts[half].1.resident_mb
    );
    (took, cpu)
}

/// What one process holds after batches, and the CPU of a run: of the batches after the first few, the
/// least and the middle one. Gives the middle one.
async fn hold(program: &Path, ground: &Ground, what: &str, text: &str) -> Duration {
    let mut function = Function::launch(program, &[], "executor", &ground.environment).await;
    let mut usage = Usage::of(function.process_id().unwrap());
    let mut of_a_run = Vec::new();
    let before = ground.succeeded().await;
    for n in 0..BATCHES {
        let event = ground.event(&vec![text.to_owned(); BATCH]).await;
        let began = Usage::of(function.process_id().unwrap()).cpu;
        let answered = function.invoke_with(event).await;
        assert_eq!(answered.body, all_done());
        usage = Usage::of(function.process_id().unwrap());
        if n >= BATCHES_WARMING {
            let used = usage.cpu.saturating_sub(began);
            of_a_run.push(used / u32::try_from(BATCH).unwrap());
        }
    }
    of_a_run.sort();
    assert_eq!(
        ground.succeeded().await - before,
        i64::try_from(BATCH * BATCHES).unwrap()
    );
    let middle = of_a_run[of_a_run.len() / 2];
    println!(
        "{what}, a batch of {BATCH}: resident {:.1} MB (most {:.1}), CPU {:.2?} a run (least {:.2?})",
        usage.resident_mb, usage.resident_max_mb, middle, of_a_run[0],
    );
    middle
}
