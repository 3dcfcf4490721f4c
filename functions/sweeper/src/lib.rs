//! Finds what no wake-up has found: late slots, queued runs whose time has come, expired leases,
//! due delivery retries, dead letters, bounced emails, changes that the scheduler's entries do not
//! follow, and what retention lets go.
//!
//! It decides nothing about a run that can still go on: it sends wake-ups, and the executor looks
//! under a lock. What came to nothing too often is ended, see [`dead_letters`].

pub mod config;
pub mod dead_letters;
pub mod drift;
pub mod mail_events;
pub mod turn;

use std::time::Duration;

use shared::{
    crash_point,
    db::{
        Db, DbError,
        retention::{self, Expired},
        system,
    },
    ids::TenantId,
    message::WakeUp,
    queue::Queue,
    scheduler::Scheduler,
};

/// Rows of each kind that one sweep may find; the rest is found by the next. Where there is more,
/// tenants take turns.
pub const ROWS_MAX: i32 = 500;

/// Tenants that one pass of retention looks at.
const TENANTS_MAX: i32 = 50;

/// Rows of each kind that one pass deletes of a tenant.
const EXPIRED_MAX: i64 = 500;

/// What a sweep found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Wake-ups sent.
    pub sent: usize,
    /// Wake-ups that the queue did not take; the next sweep finds them again.
    pub postponed: usize,
}

/// Looks once for due work and sends a wake-up for each find. Three round trips, side by side.
///
/// # Errors
/// When the database does not answer; what was sent stays sent.
pub async fn sweep(db: &Db, queue: &Queue) -> Result<Swept, DbError> {
    let (deliveries, runs, prompts) = tokio::try_join!(
        system::due_deliveries(db, ROWS_MAX),
        system::due_runs(db, ROWS_MAX),
        system::due_prompts(db, ROWS_MAX),
    )?;
    let found: Vec<WakeUp> = in_turns([deliveries, runs, prompts]).collect();
    crash_point!(SweepFound);
    let sent = queue.offer(&found, Duration::ZERO).await;
    crash_point!(SweepOffered);
    Ok(Swept {
        sent,
        postponed: found.len().saturating_sub(sent),
    })
}

/// The first of each kind, then the second of each: a queue that has little room takes of all.
fn in_turns<const KINDS: usize>(found: [Vec<WakeUp>; KINDS]) -> impl Iterator<Item = WakeUp> {
    let turns = found.iter().map(Vec::len).max().unwrap_or(0);
    let mut kinds = found.map(Vec::into_iter);
    (0..turns).flat_map(move |_| kinds.each_mut().map(Iterator::next).into_iter().flatten())
}

/// Deletes what is over its time for the tenants after `after`; gives the tenant to go on from,
/// or `None` at the end of the list.
///
/// # Errors
/// When the database does not answer; what was deleted stays deleted.
pub async fn expire(
    db: &Db,
    scheduler: &Scheduler,
    after: Option<TenantId>,
) -> Result<(Expired, Option<TenantId>), DbError> {
    let have_entries = match scheduler {
        Scheduler::EventBridge(_) => true,
        Scheduler::Local => false,
    };
    let tenants = system::tenants(db, after, TENANTS_MAX).await?;
    let mut total = Expired::default();
    for tenant in &tenants {
        let expired =
            retention::expire(db.tenant(tenant.id).await?, EXPIRED_MAX, have_entries).await?;
        total.runs += expired.runs;
        total.idempotency_keys += expired.idempotency_keys;
        total.prompts += expired.prompts;
        total.backfills += expired.backfills;
    }
    let full = i32::try_from(tenants.len()) == Ok(TENANTS_MAX);
    Ok((total, tenants.last().filter(|_| full).map(|last| last.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::RunId;

    #[test]
    fn every_kind_has_its_turn() {
        let run = || WakeUp::Run {
            tenant_id: TenantId::new(),
            run_id: RunId::new(),
        };
        let (many, one) = (vec![run(), run(), run()], vec![run()]);
        let order = in_turns([many.clone(), Vec::new(), one.clone()]);
        assert!(order.eq([many[0], one[0], many[1], many[2]]));
    }
}
