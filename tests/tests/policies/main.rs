//! The policies of time: which slots run, are skipped or are missed, whatever happens.
//!
//! The same random lives of prompts are led twice: in memory, where they are cheap, and over
//! PostgreSQL with the product's own functions and API. Time is simulated in both. A judge that
//! shares no code with the product says what had to become of each slot.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod database;
mod judge;
mod life;
mod limits;
mod memory;
mod script;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{FutureExt, StreamExt, stream};
use tests::chance::{Chance, seed};

use crate::{
    database::{Caller, Prompt, Sim},
    judge::Judge,
    life::{Life, World},
    memory::Memory,
    script::Config,
};

/// Lives in memory.
const LIVES: u64 = 10_400;

/// Lives over PostgreSQL.
const LIVES_IN_DATABASE: u64 = 120;

/// Steps of time in each.
const TICKS: u64 = 40;

pub(crate) fn beginning() -> DateTime<Utc> {
    "2026-03-02T00:00:20Z".parse().unwrap()
}

/// The time that passes: mostly less than a minute, sometimes more than an hour.
fn passes(chance: &mut Chance) -> TimeDelta {
    let most = chance.pick(&[20, 60, 90, 300, 300, 6_000]);
    TimeDelta::seconds(1 + i64::try_from(chance.below(most)).unwrap())
}

#[test]
fn the_judge_agrees_with_ten_thousand_lives() {
    let seed = seed();
    println!("CARILLON_TEST_SEED={seed}");
    let mut fates = BTreeMap::new();
    for case in 0..LIVES {
        // One that goes wrong is led again, and told.
        let Ok(became) = catch_unwind(AssertUnwindSafe(|| lead(seed, case, false))) else {
            println!("life {case} of CARILLON_TEST_SEED={seed}");
            lead(seed, case, true);
            unreachable!("a life in memory goes wrong each time");
        };
        for fate in became {
            *fates.entry(fate).or_insert(0) += 1;
        }
    }
    println!("{fates:#?}");
    for fate in FATES {
        let found = fates.get(fate).copied().unwrap_or(0);
        assert!(found >= 20, "{found} slots were {fate}");
    }
}

/// What becomes of slots, in enough of the lives for their end to mean something.
const FATES: [&str; 22] = [
    "queued",
    "running",
    "succeeded",
    "failed broken",
    "failed worker_lost",
    "cancelled user",
    "cancelled prompt_cancelled",
    "cancelled prompt_deleted",
    "skipped overlap",
    "skipped replaced",
    "skipped max_runs",
    "skipped max_runs, several",
    "skipped paused",
    "skipped paused, several",
    "skipped rescheduled",
    "skipped rescheduled, several",
    "skipped prompt_deleted, several",
    "missed too_late",
    "missed too_late, several",
    "missed superseded",
    "missed misfire_skip",
    "missed too_many",
];

/// One life in memory; gives what became of its slots.
fn lead(seed: u64, case: u64, told: bool) -> Vec<String> {
    let mut chance = Chance::of_case(seed, case);
    let mut at = beginning() + TimeDelta::minutes(i64::try_from(chance.below(600)).unwrap());
    let config = Config::random(&mut chance, at);
    let memory = Memory::new(config.clone(), at);
    let judge = Judge::new(config.clone(), at, memory.delay(&config), true);
    let judge = if told { judge } else { judge.silent() };
    let mut life = Life::new(World::Memory(memory), judge, chance.clone());
    for _ in 0..TICKS {
        at += passes(&mut chance);
        // Nothing in memory waits.
        life.goes_on(at).now_or_never().unwrap();
        let World::Memory(memory) = &life.world else {
            unreachable!()
        };
        let found = memory.is_found(at);
        life.is_looked_at(at, found).now_or_never().unwrap();
    }
    life.ends().now_or_never().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judge_agrees_with_lives_over_postgres() {
    let seed = seed();
    println!("CARILLON_TEST_SEED={seed}");
    let mut chance = Chance::of_case(seed, u64::MAX);
    let mut at = beginning();
    let sim = Sim::new(at).await;
    let mut lives = Vec::new();
    // In most tenants nothing but its own policies keeps a prompt back; in some, there is a crowd.
    let mut callers: Vec<(Caller, bool)> = Vec::new();
    for number in 0..12 {
        let is_roomy = number % 4 > 0;
        let limit = if is_roomy { 10_000 } else { 3 };
        let caller = sim.tenant(&format!("t{number}"), limit).await;
        callers.push((caller, is_roomy));
    }
    for case in 0..LIVES_IN_DATABASE {
        let mut chance = Chance::of_case(seed, case);
        let (caller, is_alone) = chance.pick(&callers);
        let config = Config::random(&mut chance, at);
        let prompt = Prompt::new(&sim, &caller, &config).await;
        let judge = Judge::new(config.clone(), at, prompt.delay(&config), is_alone);
        lives.push(Life::new(World::Database(prompt), judge, chance));
    }
    for _ in 0..TICKS {
        at += passes(&mut chance);
        sim.set_clock(at).await;
        together(&mut lives, async |life| life.goes_on(at).await).await;
        let found = sim.found().await;
        together(&mut lives, async |life| {
            let World::Database(prompt) = &life.world else {
                unreachable!()
            };
            let is_found = found.contains(&prompt.id);
            life.is_looked_at(at, is_found).await;
        })
        .await;
        assert_eq!(over_the_limit(&sim).await, 0, "at {at}");
    }
    together(&mut lives, async |life| drop(life.ends().await)).await;
}

/// Does something to all lives, several at a time.
async fn together(lives: &mut [Life], work: impl AsyncFn(&mut Life)) {
    let at_once = 8;
    stream::iter(lives.iter_mut().map(|life| work(life)))
        .buffer_unordered(at_once)
        .collect::<()>()
        .await;
}

/// Tenants with more runs under way than they may have.
async fn over_the_limit(sim: &Sim) -> i64 {
    let sql = "SELECT count(*) FROM tenants t WHERE t.concurrent_runs_max
                < (SELECT count(*) FROM scheduled_prompt_runs r
                    WHERE r.tenant_id = t.id AND r.status = 'running')";
    sim.admin.query_one(sql, &[]).await.unwrap().get(0)
}
