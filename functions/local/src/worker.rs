//! Takes wake-ups from the queue inside this process and runs them, a bounded number at a time.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use executor::Executor;
use shared::{db::DbError, message::WakeUp, queue::Queue};
use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
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
pub async fn work(
    executor: Arc<Executor>,
    mut wake_ups: mpsc::Receiver<WakeUp>,
    at_once: usize,
    stop: CancellationToken,
    grace: Duration,
) {
    let mut under_way = UnderWay::default();
    loop {
        let has_room = under_way.tasks.len() < at_once;
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = under_way.tasks.join_next_with_id() => under_way.forget(ended),
            wake_up = wake_ups.recv(), if has_room => match wake_up {
                Some(wake_up) => under_way.start(&executor, wake_up),
                None => break,
            },
        }
    }
    under_way.finish(grace).await;
}

/// Looks for due work every second, and once a minute for what retention lets go.
pub async fn sweep(executor: Arc<Executor>, queue: Queue, stop: CancellationToken) {
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
            }
            _ = passes.tick() => match sweeper::expire(&executor.db, after).await {
                Ok((_, next)) => after = next,
                Err(error) => warn!(%error, "retention failed; the next pass follows in a minute"),
            },
        }
    }
}

/// Wake-ups that are being looked at. The same one does not start twice at once: that would only
/// wait for the lock.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<WakeUp>,
    names: HashSet<WakeUp>,
    started: HashMap<Id, WakeUp>,
}

impl UnderWay {
    fn start(&mut self, executor: &Arc<Executor>, wake_up: WakeUp) {
        if !self.names.insert(wake_up) {
            return;
        }
        let executor = Arc::clone(executor);
        let handle = self.tasks.spawn(async move {
            if let Err(error) = executor.handle(wake_up).await {
                let causes = causes(&error);
                error!(%error, causes, "wake-up failed; the sweeper will find the work again");
            }
            wake_up
        });
        self.started.insert(handle.id(), wake_up);
    }

    fn forget(&mut self, ended: Result<(Id, WakeUp), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, _)) => id,
            Err(error) => {
                error!(%error, "a run's task panicked; its lease will end");
                error.id()
            }
        };
        if let Some(wake_up) = self.started.remove(&id) {
            self.names.remove(&wake_up);
        }
    }

    async fn finish(mut self, grace: Duration) {
        if !self.tasks.is_empty() {
            info!(under_way = self.tasks.len(), "letting running work finish");
        }
        let deadline = Instant::now() + grace;
        loop {
            match timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(Some(ended)) => self.forget(ended),
                Ok(None) => return,
                Err(_) => {
                    warn!(
                        left = self.tasks.len(),
                        "running work left; it comes back when its lease ends"
                    );
                    return;
                }
            }
        }
    }
}

/// What lies behind an error, in one line.
fn causes(error: &DbError) -> String {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |cause| cause.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
