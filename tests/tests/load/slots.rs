//! Many at once: a hundred runs of a slow model, and ten thousand slots of one minute, in which a tenant
//! with nearly all of them delays the others' single ones by no more than their turn.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use shared::ids::PromptId;
use sweeper::ROWS_MAX;
use tests::stage::Tenant;

use crate::crowd::{Crowd, last_minute};
use crate::process::{Carillon, Start};
use crate::provider::Provider;
use crate::{full, turn};

/// Runs that are under way at the same time, and what the model takes for each.
const SLOW_RUNS: usize = 100;
const SLOW: Duration = Duration::from_secs(10);

/// What a process may have resident at the most. Far more than it needs: what this is to find is a
/// growth with the work.
const RESIDENT_MAX_MB: f64 = 400.0;

/// Processes over one database, and what each works on at once.
const PROCESSES: usize = 2;
const WORKERS: usize = 16;

/// Tenants with one slot each, beside one with all others.
const SMALL: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_runs_wait_for_a_slow_model_at_the_same_time() {
    let _turn = turn().await;
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start(SLOW).await;
    let mut crowd = Crowd::new().await;
    let tenant = crowd.tenant("slow").await;
    crowd.add(tenant, SLOW_RUNS, None).await;
    let start = Start {
        database_url: &crowd.database_url(),
        provider: &provider,
        workers: SLOW_RUNS + WORKERS,
        data_bytes_max: None,
    };
    let carillon = Carillon::start(home.path(), "slow", &start).await;
    let due = crowd.make_due(last_minute()).await;
    crowd.ended(SLOW_RUNS).await;
    crowd.assert_each_once(&provider, home.path()).await;
    assert_eq!(provider.at_once_max(), SLOW_RUNS, "under way at once");
    let lateness = crowd.lateness(due).await;
    let usage = carillon.usage();
    println!(
        "{SLOW_RUNS} runs at once of a model that takes {SLOW:?}: {lateness}; {:.0} MB resident at most, {:?} of CPU",
        usage.resident_max_mb, usage.cpu
    );
    assert!(usage.resident_max_mb < RESIDENT_MAX_MB, "{usage:?}");
    carillon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_slots_of_one_minute_are_run_once_each_and_nobody_waits_for_a_crowd() {
    let _turn = turn().await;
    let slots = if full() { 10_000 } else { 1_500 };
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start(Duration::ZERO).await;
    let mut crowd = Crowd::new().await;
    let many = crowd.tenant("many").await;
    let first = small_tenants(&crowd, "first").await;
    let late = small_tenants(&crowd, "late").await;
    let mut of_first = Vec::new();
    for tenant in &first {
        of_first.extend(crowd.add(*tenant, 1, None).await);
    }
    crowd.add(many, slots - 2 * SMALL, None).await;
    let database_url = crowd.database_url();
    let start = Start {
        database_url: &database_url,
        provider: &provider,
        workers: WORKERS,
        data_bytes_max: None,
    };
    let processes = started(home.path(), &start).await;
    let slot = slot_of_this_load();
    let due = crowd.make_due(slot).await;
    // These come when the others' work is under way.
    crowd.ended(SMALL).await;
    let mut of_late = Vec::new();
    let came = Utc::now();
    for tenant in &late {
        of_late.extend(crowd.add(*tenant, 1, Some(slot)).await);
    }
    crowd.ended(slots).await;
    crowd.assert_each_once(&provider, home.path()).await;

    let before_first = begun_before(&crowd, &of_first, due).await;
    let before_late = begun_before(&crowd, &of_late, came).await;
    let lateness = crowd.lateness(due.max(slot)).await;
    println!("{slots} slots of one minute, {PROCESSES} processes of {WORKERS} workers: {lateness}");
    println!(
        "of {SMALL} tenants with one slot each, the last began after {before_first} others; of {SMALL} that came later, after {before_late}"
    );
    for process in &processes {
        let usage = process.usage();
        let (most_mb, cpu) = (usage.resident_max_mb, usage.cpu);
        println!("a process: {most_mb:.0} MB resident at most, {cpu:?} of CPU");
        assert!(most_mb < RESIDENT_MAX_MB, "{usage:?}");
    }
    // Within the first sweep's finds; and those that come later, behind what the sweep before them has
    // found and what goes on until the next.
    let sweep = usize::try_from(ROWS_MAX).unwrap();
    assert!(before_first < sweep, "{before_first} others came first");
    let most = 2 * sweep + PROCESSES * WORKERS;
    assert!(before_late < most, "{before_late} others came first");
    join_all(processes.into_iter().map(Carillon::stop)).await;
}

/// One after the other: each gives the database's roles their passwords.
async fn started(home: &Path, start: &Start<'_>) -> Vec<Carillon> {
    let mut processes = Vec::new();
    for number in 0..PROCESSES {
        let name = format!("process-{number}");
        processes.push(Carillon::start(home, &name, start).await);
    }
    processes
}

async fn small_tenants(crowd: &Crowd, kind: &str) -> Vec<Tenant> {
    let mut tenants = Vec::new();
    for number in 0..SMALL {
        tenants.push(crowd.tenant(&format!("{kind}-{number}")).await);
    }
    tenants
}

/// A minute that is to come, where there is time to wait for it.
fn slot_of_this_load() -> DateTime<Utc> {
    if full() {
        last_minute() + TimeDelta::minutes(1)
    } else {
        last_minute()
    }
}

/// How many runs of others began between `since` and the last of these prompts' runs.
async fn begun_before(crowd: &Crowd, prompts: &[PromptId], since: DateTime<Utc>) -> usize {
    let ids: Vec<_> = prompts.iter().map(|prompt| prompt.uuid()).collect();
    let sql = "SELECT count(*) FROM scheduled_prompt_runs
                WHERE started_at >= $2 AND NOT prompt_id = ANY($1) AND started_at <
                      (SELECT max(started_at) FROM scheduled_prompt_runs WHERE prompt_id = ANY($1))";
    let row = crowd.stage.admin.query_one(sql, &[&ids, &since]).await;
    usize::try_from(row.unwrap().get::<_, i64>(0)).unwrap()
}
