//! Holds a lease while something slow is done under it.

use std::{future::Future, pin::Pin};

use shared::{crash_point, db::DbError, ids::RunId};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::warn;

use crate::Executor;

/// Does the work and renews the lease meanwhile; `None` when somebody else holds it by now, and
/// the work was left where it was.
pub(crate) async fn hold<T, R>(
    executor: &Executor,
    run_id: RunId,
    mut work: Pin<&mut impl Future<Output = T>>,
    renew: impl Fn() -> R,
) -> Option<T>
where
    R: Future<Output = Result<(), DbError>>,
{
    let period = executor.lease / 3;
    let mut beat = interval_at(Instant::now() + period, period);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = work.as_mut() => return Some(done),
            _ = beat.tick() => match renew().await {
                Ok(()) => {
                    crash_point!(LeaseRenewed);
                }
                Err(DbError::StaleLease) => return None,
                // The fence guards the record whoever holds the lease by then.
                Err(error) => warn!(run.id = %run_id, %error, "lease not renewed"),
            },
        }
    }
}
