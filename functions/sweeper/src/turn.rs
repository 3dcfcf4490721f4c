//! One invocation of the Lambda function: a sweep, the dead letters, what came back of emails, the
//! events, the scheduler's entries, and a part of retention.
//!
//! Each part has its time, and none keeps the next from being tried.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use shared::{
    bus::{self, Bus, Drained},
    db::{Db, DbError, events},
    ids::TenantId,
    queue::{DeadLetters, Queue},
    scheduler::Scheduler,
    telemetry,
};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info};

use crate::{
    Swept,
    dead_letters::{self, ConsumeError, Consumed},
    drift::{self, Repaired},
    mail_events::{self, Heard},
};

/// Between the end of all work and the moment at which Lambda ends the process.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);

/// What retention may take of a turn: it is never urgent.
const RETENTION_TIME: Duration = Duration::from_secs(10);

/// What putting events may take of a turn.
const EVENTS_TIME: Duration = Duration::from_secs(15);

/// Parked events that one turn forgets.
const PARKED_MAX: i32 = 500;

/// What turns work with. One per process.
pub struct Sweeper {
    /// The database.
    pub db: Db,
    /// Where wake-ups go.
    pub queue: Queue,
    /// The queues of messages that came to nothing.
    pub dead_letters: Vec<DeadLetters>,
    /// The queue of what the mail service reports, if there is one.
    pub mail_events: Option<DeadLetters>,
    /// Where events go.
    pub bus: Bus,
    /// What wakes prompts when they are due.
    pub scheduler: Scheduler,
    /// Where the next turn goes on with retention. A fresh process begins again at the front, which
    /// harms nothing.
    pub retention_after: Mutex<Option<TenantId>>,
}

/// A part of a turn failed. It was logged, and the next turn does it again.
#[derive(Debug, Error)]
#[error("{parts} of this sweep failed; see the lines before")]
pub struct TurnError {
    parts: String,
}

/// Why a part of a turn came to nothing.
#[derive(Debug, Error)]
enum PartError {
    #[error("the time for it is over")]
    Late,
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Letters(#[from] ConsumeError),
}

impl Sweeper {
    /// Makes one turn, until shortly before `deadline` at the latest.
    ///
    /// # Errors
    /// When a part failed; the others were done all the same.
    pub async fn turn(&self, deadline: Instant) -> Result<(), TurnError> {
        let stop = deadline.checked_sub(ANSWER_MARGIN).unwrap_or(deadline);
        let mut failed = Vec::new();
        let mut note = |part: &'static str, error: PartError| {
            let causes = telemetry::causes(&error);
            error!(part, %error, causes, "a part of the sweep failed; the next sweep does it again");
            failed.push(part);
        };
        let swept = self.sweep(stop).await.unwrap_or_else(|error| {
            note("the search for due work", error);
            Swept::default()
        });
        let mut consumed = Consumed::default();
        for queue in &self.dead_letters {
            match self.letters(queue, stop).await {
                Ok(one) => {
                    consumed.ended += one.ended;
                    consumed.deleted += one.deleted;
                }
                Err(error) => note("the reading of dead letters", error),
            }
        }
        let heard = self.hear(stop).await.unwrap_or_else(|error| {
            note("the reading of mail events", error);
            Heard::default()
        });
        let drained = self.put_events(stop).await.unwrap_or_else(|error| {
            note("the putting of events", error);
            Drained::default()
        });
        let repaired = self.repair(stop).await.unwrap_or_else(|error| {
            note("the repair of the scheduler's entries", error);
            Repaired::default()
        });
        let expired = self.expire(stop).await.unwrap_or_else(|error| {
            note("retention", error);
            0
        });
        info!(
            wake_ups.sent = swept.sent,
            wake_ups.postponed = swept.postponed,
            dead_letters.deleted = consumed.deleted,
            dead_letters.ended = consumed.ended,
            mail_events.deleted = heard.deleted,
            addresses.suppressed = heard.suppressed,
            events.taken = drained.taken,
            events.postponed = drained.postponed,
            events.parked = drained.parked,
            entries.applied = repaired.applied,
            entries.failed = repaired.failed,
            entries.drifted = repaired.drifted + repaired.orphans,
            expired,
            "swept"
        );
        if failed.is_empty() {
            return Ok(());
        }
        Err(TurnError {
            parts: failed.join(", "),
        })
    }

    async fn sweep(&self, stop: Instant) -> Result<Swept, PartError> {
        Ok(in_time(stop, crate::sweep(&self.db, &self.queue)).await??)
    }

    async fn letters(&self, queue: &DeadLetters, stop: Instant) -> Result<Consumed, PartError> {
        Ok(in_time(stop, Box::pin(dead_letters::consume(&self.db, queue, stop))).await??)
    }

    async fn hear(&self, stop: Instant) -> Result<Heard, PartError> {
        match &self.mail_events {
            Some(queue) => {
                let heard = Box::pin(mail_events::consume(&self.db, queue, stop));
                Ok(in_time(stop, heard).await??)
            }
            None => Ok(Heard::default()),
        }
    }

    /// It stops by itself, so that what was put is noted.
    async fn put_events(&self, stop: Instant) -> Result<Drained, PartError> {
        let until = stop.min(Instant::now() + EVENTS_TIME);
        let drained = bus::drain(&self.db, &self.bus, until).await?;
        events::forget_parked(&self.db, PARKED_MAX).await?;
        Ok(drained)
    }

    /// It stops by itself, so that what it has begun is noted.
    async fn repair(&self, stop: Instant) -> Result<Repaired, PartError> {
        let deadline = stop.checked_sub(RETENTION_TIME).unwrap_or(stop);
        Ok(drift::repair(&self.db, &self.scheduler, deadline).await?)
    }

    /// Goes through the tenants a page at a time; gives the rows that were deleted.
    async fn expire(&self, stop: Instant) -> Result<usize, PartError> {
        let stop = stop.min(Instant::now() + RETENTION_TIME);
        let mut after = self.place(|place| *place);
        let mut rows = 0;
        loop {
            let (expired, next) =
                in_time(stop, crate::expire(&self.db, &self.scheduler, after)).await??;
            rows += expired.runs + expired.idempotency_keys + expired.prompts + expired.backfills;
            after = next;
            self.place(|place| *place = next);
            if after.is_none() || Instant::now() >= stop {
                return Ok(rows);
            }
        }
    }

    fn place<T>(&self, work: impl FnOnce(&mut Option<TenantId>) -> T) -> T {
        work(
            &mut self
                .retention_after
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

async fn in_time<T>(stop: Instant, work: impl Future<Output = T>) -> Result<T, PartError> {
    timeout_at(stop, work).await.map_err(|_| PartError::Late)
}
