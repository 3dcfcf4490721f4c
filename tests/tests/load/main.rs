//! Many slots at once, many tenants at once, little memory, and a full disk: over real processes, a
//! real PostgreSQL, and a model server that keeps a journal.
//!
//! What is asserted are counts, orders and bounds, never a time: how late slots began is told, as a
//! figure. `CARILLON_LOAD=full` (`./dev load`) has the full sizes; without it they fit into CI.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod crowd;
mod disk;
mod memory;
mod process;
mod provider;
mod slots;

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

/// Waits of a test end here, as a failure.
const PATIENCE: Duration = Duration::from_secs(1_200);
const POLL: Duration = Duration::from_millis(100);

/// Each test has the machine for itself: its figures are of its own load.
static TURN: Mutex<()> = Mutex::const_new(());

async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Whether the sizes are those of `./dev load`.
fn full() -> bool {
    std::env::var("CARILLON_LOAD").is_ok_and(|size| size == "full")
}

/// Asks until the answer is there.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        let waits = tokio::time::Instant::now() < deadline;
        assert!(waits, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// A connection for each request: the API closes those that wait for long, and after a body that it
/// has refused.
fn client() -> reqwest::Client {
    let builder = reqwest::Client::builder().pool_max_idle_per_host(0);
    builder.build().unwrap()
}
