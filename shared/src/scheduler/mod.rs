//! Makes the scheduler's entries equal the rows.
//!
//! Level-triggered: whoever has changed a prompt applies it after the commit, and the sweeper applies
//! what is left. Entries are derived, so a failure here never undoes a change; and nothing here
//! decides when a prompt is due.

mod aws;
mod entry;

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use utoipa::ToSchema;

use crate::{
    aws::{CallError, Cause, Disposition},
    backoff, crash_point,
    db::{
        Db, DbError,
        sync::{self, Claim, Claimed, Failure, Settled, Standing},
    },
    ids::{PromptId, TenantId},
};

pub use self::{
    aws::{EventBridge, Listed, Page},
    entry::{Entry, EntryName, Refused, Settings, wanted},
};

/// How long one holds a prompt alone. Its calls end well before, so that none arrives after another
/// has begun.
const LEASE: Duration = Duration::from_secs(30);

/// The longest time for the calls of one application.
pub const TIME_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(TIME_MAX.as_secs() * 2 < LEASE.as_secs());

/// Generations that one application follows, when new ones begin while it is at it.
const ROUNDS_MAX: usize = 4;

const RETRY_BASE: Duration = Duration::from_secs(5);
const RETRY_CAP: Duration = Duration::from_secs(300);
/// Until the operator may have helped.
const WAIT: Duration = Duration::from_secs(300);
/// An entry that is not fit to be sent is worth another look after an upgrade.
const REFUSED_WAIT: Duration = Duration::from_secs(24 * 3600);

/// What wakes prompts when they are due.
#[derive(Debug, Clone)]
pub enum Scheduler {
    /// Entries in EventBridge Scheduler.
    EventBridge(EventBridge),
    /// Nothing: the sweeper of the same process is the clock.
    Local,
}

/// How a prompt's entries stand to what its owner wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncStatus {
    /// They follow it.
    Synced,
    /// They will: the sweeper tries again by itself, and meanwhile finds the prompt's slots.
    Pending,
    /// The scheduler does not take the schedule. The sweeper finds the prompt's slots.
    Failed,
}

/// The same, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncState {
    /// How they stand.
    pub status: SyncStatus,
    /// Why they do not follow yet, if a try has failed.
    pub error: Option<String>,
}

/// What came of applying a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// How its entries stand now.
    pub sync: SyncState,
    /// Why the last call failed, if one did.
    pub cause: Option<Cause>,
}

impl Applied {
    fn synced() -> Self {
        Self {
            sync: SyncState {
                status: SyncStatus::Synced,
                error: None,
            },
            cause: None,
        }
    }
}

impl Scheduler {
    /// How a row's entries stand.
    #[must_use]
    pub fn standing(&self, standing: &Standing) -> SyncState {
        let (status, error) = match self {
            Self::Local => (SyncStatus::Synced, None),
            Self::EventBridge(_) if standing.is_synced => (SyncStatus::Synced, None),
            Self::EventBridge(_) if standing.is_refused => {
                (SyncStatus::Failed, standing.error.clone())
            }
            Self::EventBridge(_) => (SyncStatus::Pending, standing.error.clone()),
        };
        SyncState { status, error }
    }

    /// Makes the entries of a prompt equal its row, within `time` for the calls (at most
    /// [`TIME_MAX`]). What cannot be done now is noted in the row, for the sweeper.
    ///
    /// Two that apply the same prompt do not overtake each other: one holds it at a time, and one
    /// that was overtaken all the same makes the newest generation stand.
    ///
    /// # Errors
    /// When the database does not answer. The row says that it is to be applied, or, if it was
    /// applied, will be applied again.
    pub async fn apply(
        &self,
        db: &Db,
        tenant_id: TenantId,
        prompt_id: PromptId,
        time: Duration,
    ) -> Result<Applied, DbError> {
        let Self::EventBridge(aws) = self else {
            return Ok(Applied::synced());
        };
        let deadline = Instant::now() + time.min(TIME_MAX);
        for _ in 0..ROUNDS_MAX {
            let tx = db.tenant(tenant_id).await?;
            let claim = match sync::claim(tx, prompt_id, LEASE).await? {
                Claimed::Ours(claim) => claim,
                Claimed::NoSuchPrompt => return Ok(Applied::synced()),
                Claimed::Not(standing) => {
                    return Ok(Applied {
                        sync: self.standing(&standing),
                        cause: None,
                    });
                }
            };
            crash_point!(SyncClaimed);
            let made = timeout_at(deadline, make_equal(aws, &claim))
                .await
                .unwrap_or_else(|_| Err(Fault::Call(CallError::deadline())));
            crash_point!(SyncCalled);
            let tx = db.tenant(tenant_id).await?;
            match made {
                Ok(()) => {
                    let settled = sync::settle(tx, &claim).await?;
                    crash_point!(SyncNoted);
                    match settled {
                        Settled::Synced => return Ok(Applied::synced()),
                        Settled::Again => {}
                    }
                }
                Err(fault) => {
                    let failure = failure(&fault, &claim);
                    sync::fail(tx, &claim, &failure).await?;
                    return Ok(fault.applied(failure));
                }
            }
        }
        Ok(Applied {
            sync: SyncState {
                status: SyncStatus::Pending,
                error: None,
            },
            cause: None,
        })
    }
}

/// Why entries could not be made equal to their row.
#[derive(Debug)]
enum Fault {
    NotFit(Refused),
    Call(CallError),
}

async fn make_equal(aws: &EventBridge, claim: &Claim) -> Result<(), Fault> {
    let wanted = wanted(&claim.row, aws.settings()).map_err(Fault::NotFit)?;
    for entry in &wanted {
        aws.put(entry, claim.applied_before)
            .await
            .map_err(Fault::Call)?;
    }
    // Before the first claim there was nothing to take away.
    if !claim.is_first {
        for name in EntryName::all(claim.row.prompt_id).skip(wanted.len()) {
            aws.delete(&name).await.map_err(Fault::Call)?;
        }
    }
    Ok(())
}

/// What is noted of a fault. AWS's own words are for the operator: they stand in the log alone.
fn failure(fault: &Fault, claim: &Claim) -> Failure {
    let (error, detail, retry_in, is_refused, outcome_unknown) = match fault {
        Fault::NotFit(refused) => (
            told(Cause::Invalid).to_owned(),
            refused.to_string(),
            REFUSED_WAIT,
            true,
            false,
        ),
        Fault::Call(error) => {
            let disposition = error.cause.disposition();
            (
                told(error.cause).to_owned(),
                error.detail.clone(),
                pause(disposition, claim.attempts, error.retry_after),
                disposition == Disposition::GiveUp,
                error.cause.outcome_unknown(),
            )
        }
    };
    warn!(
        tenant.id = %claim.row.tenant_id,
        prompt.id = %claim.row.prompt_id,
        error,
        detail,
        retry_in_s = retry_in.as_secs(),
        "the scheduler's entries do not follow the prompt yet"
    );
    Failure {
        error,
        retry_in,
        is_refused,
        outcome_unknown,
    }
}

/// What a tenant reads of a failed call.
fn told(cause: Cause) -> &'static str {
    match cause {
        Cause::Throttled => "the scheduler asks to slow down; it is tried again by itself",
        Cause::Unavailable => "the scheduler is not available; it is tried again by itself",
        Cause::TimedOut => "the scheduler did not answer in time; it is tried again by itself",
        Cause::Unreachable => "the scheduler cannot be reached; it is tried again by itself",
        Cause::Garbled => "the scheduler's answer cannot be read; it is tried again by itself",
        Cause::Conflict => "the scheduler is busy with this entry; it is tried again by itself",
        // A missing entry alone is no failure.
        Cause::NotThere => "the schedule group is missing; the operator has to create it",
        Cause::OverQuota => "the scheduler's quota is used up; the operator has to raise it",
        Cause::Denied => "the scheduler refuses access; the operator has to look at the rights",
        Cause::NotSent => {
            "the scheduler cannot be called from here; the operator has to look at the configuration"
        }
        Cause::Invalid => {
            "the scheduler does not take this schedule; change it, or ask the operator"
        }
        Cause::Unknown => "the scheduler refused for an unknown reason; the operator has to look",
    }
}

/// How long to wait after a failed call.
fn pause(disposition: Disposition, attempts: i32, retry_after: Option<Duration>) -> Duration {
    match disposition {
        Disposition::Retry => {
            let attempt = u32::try_from(attempts).unwrap_or(0).saturating_add(1);
            backoff::delay(attempt, RETRY_BASE, RETRY_CAP, retry_after)
        }
        Disposition::Wait => WAIT,
        Disposition::GiveUp => REFUSED_WAIT,
    }
}

impl Fault {
    fn applied(self, failure: Failure) -> Applied {
        Applied {
            sync: SyncState {
                status: if failure.is_refused {
                    SyncStatus::Failed
                } else {
                    SyncStatus::Pending
                },
                error: Some(failure.error),
            },
            cause: match self {
                Self::NotFit(_) => Some(Cause::Invalid),
                Self::Call(error) => Some(error.cause),
            },
        }
    }
}
