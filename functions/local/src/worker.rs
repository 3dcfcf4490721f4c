//! Takes wake-ups from the queue inside this process and runs them, a bounded number at a time.

use std::{sync::Arc, time::Duration};

use executor::Executor;
use shared::{
    bus::{self, Bus},
    message::WakeUp,
    queue::{Queue, WakeUps},
    scheduler::Scheduler,
    telemetry,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Between two looks for due work. Inside one process nothing else wakes a run.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// Between two passes of retention, each over a page of tenants.
const EXPIRE_PERIOD: Duration = Duration::from_secs(60);

/// Works until `stop`, then lets what is under way finish for at most `grace`. What it leaves
/// comes back when its lease ends.
pub(crate) async fn work(
    executor: Arc<Executor>,
    mut wake_ups: WakeUps,
    at_once: usize,
    stop: CancellationToken,
    grace: Duration,
) {
    let mut under_way = JoinSet::new();
    loop {
        let has_room = under_way.len() < at_once;
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = under_way.join_next() => note(ended),
            wake_up = wake_ups.next(), if has_room => match wake_up {
                Some(wake_up) => {
                    under_way.spawn(handle(executor.clone(), wake_up));
                }
                None => break,
            },
        }
    }
    finish(under_way, grace).await;
}

/// Looks for due work every second, and once a minute for what retention lets go.
pub(crate) async fn sweep(executor: Arc<Executor>, queue: Queue, stop: CancellationToken) {
    let mut sweeps = interval(SWEEP_PERIOD);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut passes = interval(EXPIRE_PERIOD);
    passes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut after = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = sweeps.tick() => {
                if let Err(error) = sweeper::sweep(&executor.db, &queue).await {
                    warn!(%error, "sweep failed; the next follows in a second");
                }
                let until = Instant::now() + SWEEP_PERIOD;
                if let Err(error) = bus::drain(&executor.db, &Bus::Local, until).await {
                    warn!(%error, "events not told; the next sweep tells them");
                }
            }
            _ = passes.tick() => match sweeper::expire(&executor.db, &Scheduler::Local, after).await {
                Ok((_, next)) => after = next,
                Err(error) => warn!(%error, "retention failed; the next pass follows in a minute"),
            },
        }
    }
}

async fn handle(executor: Arc<Executor>, wake_up: WakeUp) {
    if let Err(error) = executor.handle(wake_up).await {
        let causes = telemetry::causes(&error);
        error!(%error, causes, "wake-up failed; the sweeper will find the work again");
    }
}

async fn finish(mut under_way: JoinSet<()>, grace: Duration) {
    if !under_way.is_empty() {
        info!(under_way = under_way.len(), "letting running work finish");
    }
    let deadline = Instant::now() + grace;
    loop {
        match timeout_at(deadline, under_way.join_next()).await {
            Ok(Some(ended)) => note(ended),
            Ok(None) => return,
            Err(_) => {
                let left = under_way.len();
                warn!(left, "running work left; it comes back when its lease ends");
                return;
            }
        }
    }
}

fn note(ended: Result<(), JoinError>) {
    if ended.is_err() {
        // Not the error: it repeats the panic's message, which may quote a text.
        error!("a wake-up's task panicked; what it held comes back when its lease ends");
    }
}
