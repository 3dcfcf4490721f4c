//! Puts what happened to the event bus, out of the outbox that the facts' own transactions fill.
//!
//! Nothing is lost and nothing overtakes: an event leaves the outbox when the bus has it, and one
//! that was not taken holds back those of its key that came after it. What is put and not noted is
//! put again, under the same id. Nothing here makes an event, or adds to what it says.

mod aws;
mod entry;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use tracing::{error, info, warn};
use uuid::Uuid;

pub use self::{
    aws::{EventBridge, read_name},
    entry::{SOURCE, VERSION, detail},
};
use self::{
    aws::{Fault, Said},
    entry::Entry,
};
use crate::{
    backoff, crash_point,
    db::{
        Db, DbError,
        events::{self, Event, Outcome},
    },
    ids::TenantId,
};

/// Keys of one claim at the most, and events of each.
const KEYS_MAX: i32 = 100;
const EACH_MAX: i32 = 10;

/// Claims of one draining at the most.
const CLAIMS_MAX: usize = 50;

/// How long a claim's events are this drainer's alone. It is done, or has given up, well before.
const LEASE: Duration = Duration::from_secs(60);
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Calls at once.
const CALLS_MAX: usize = 4;

/// An event that the bus has refused so often by itself is parked.
const REFUSALS_MAX: u32 = 10;

/// Between two puts of an event that was not taken.
const WAIT_BASE: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(300);
const WAIT_MIN: Duration = Duration::from_secs(1);

/// Where events go.
#[derive(Debug, Clone)]
pub enum Bus {
    /// A bus of EventBridge.
    EventBridge(EventBridge),
    /// None: on one machine each event is a line of the log.
    Local,
}

/// What a draining did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Events that the bus took.
    pub taken: usize,
    /// Events that are put again later.
    pub postponed: usize,
    /// Events that are not put any more.
    pub parked: usize,
    /// The bus itself failed, so that the rest was left for later.
    pub is_down: bool,
}

/// Events of one claim that are still to be put, in order for each key.
type Lanes = BTreeMap<(TenantId, Uuid), VecDeque<Event>>;

/// What became of some events, and whether the bus itself failed.
#[derive(Debug, Default)]
struct Round {
    settled: Vec<(Event, Outcome)>,
    is_down: bool,
}

/// Puts what waits in the outbox, until it is empty, the bus fails, or shortly after `deadline`.
/// Several may do so at once.
///
/// # Errors
/// When the database does not answer; what was put and could not be noted is put again.
pub async fn drain(db: &Db, bus: &Bus, deadline: Instant) -> Result<Drained, DbError> {
    let deadline = deadline.min(Instant::now() + DRAIN_MAX);
    let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
    let mut drained = Drained::default();
    for _ in 0..CLAIMS_MAX {
        if drained.is_down || Instant::now() >= deadline {
            break;
        }
        let claimed = events::claim(db, KEYS_MAX, EACH_MAX, lease_ms).await?;
        if claimed.is_empty() {
            break;
        }
        let may_be_cut = may_be_cut(&claimed);
        crash_point!(BusClaimed);
        let round = match bus {
            Bus::EventBridge(bridge) => put(bridge, claimed, deadline).await,
            Bus::Local => tell(claimed),
        };
        crash_point!(BusPut);
        let ours = events::settle(db, &round.settled).await?;
        crash_point!(BusNoted);
        if ours < round.settled.len() {
            warn!(
                events = round.settled.len() - ours,
                "the lease of events ended before they were noted; they are put again"
            );
        }
        drained.add(&round);
        if !may_be_cut {
            break;
        }
    }
    Ok(drained)
}

/// Whether a claim has as much as it may, so that another may find more. Nothing else is asked for
/// again: what comes due meanwhile, the next draining finds.
fn may_be_cut(claimed: &[Event]) -> bool {
    let mut of_key = HashMap::new();
    for event in claimed {
        *of_key.entry(event.order_key()).or_default() += 1;
    }
    let has = |count, max: i32| usize::try_from(max).is_ok_and(|max| count >= max);
    has(of_key.len(), KEYS_MAX) || of_key.values().any(|count| has(*count, EACH_MAX))
}

impl Drained {
    fn add(&mut self, round: &Round) {
        self.is_down |= round.is_down;
        for (event, outcome) in &round.settled {
            match outcome {
                Outcome::Taken => self.taken += 1,
                Outcome::Failed { .. } | Outcome::Refused { .. } | Outcome::HeldBack { .. } => {
                    self.postponed += 1;
                }
                Outcome::Parked { code } => {
                    self.parked += 1;
                    error!(
                        event.id = %event.id,
                        event.kind = event.kind,
                        tenant.id = %event.tenant_id,
                        error.code = code,
                        "the event bus can never take this event; it is parked"
                    );
                }
            }
        }
    }
}

fn tell(claimed: Vec<Event>) -> Round {
    let settled = claimed.into_iter().map(|event| {
        info!(
            event.id = %event.id,
            event.kind = event.kind,
            tenant.id = %event.tenant_id,
            prompt.id = %event.prompt_id,
            run.id = event.run_id.map(tracing::field::display),
            delivery.id = event.delivery_id.map(tracing::field::display),
            "event"
        );
        (event, Outcome::Taken)
    });
    Round {
        settled: settled.collect(),
        is_down: false,
    }
}

/// Puts the first event of each key, then the second of each: never two of a key in one call, which
/// may fail for either alone.
async fn put(bridge: &EventBridge, claimed: Vec<Event>, deadline: Instant) -> Round {
    let mut lanes = Lanes::new();
    for event in claimed {
        lanes.entry(event.order_key()).or_default().push_back(event);
    }
    let mut whole = Round::default();
    while !lanes.is_empty() && !whole.is_down && Instant::now() < deadline {
        let mut firsts = Vec::new();
        lanes.retain(|_, lane| {
            firsts.extend(lane.pop_front());
            !lane.is_empty()
        });
        let (batches, too_large) = entry::batches(firsts);
        let rounds: Vec<Round> = stream::iter(batches)
            .map(|batch| put_batch(bridge, batch, deadline))
            .buffer_unordered(CALLS_MAX)
            .collect()
            .await;
        let unsendable = too_large.into_iter().map(|event| {
            let code = "too_large".to_owned();
            (event, Outcome::Parked { code })
        });
        whole.settled.extend(unsendable);
        for round in rounds {
            whole.is_down |= round.is_down;
            for (event, outcome) in &round.settled {
                whole.settled.extend(hold_back(&mut lanes, event, outcome));
            }
            whole.settled.extend(round.settled);
        }
    }
    let wait_ms = if whole.is_down { wait_ms(1) } else { 0 };
    let left = lanes.into_values().flatten();
    whole
        .settled
        .extend(left.map(|event| (event, Outcome::HeldBack { wait_ms })));
    whole
}

/// What waits behind an event that was not taken.
fn hold_back(lanes: &mut Lanes, event: &Event, outcome: &Outcome) -> Vec<(Event, Outcome)> {
    let wait_ms = match outcome {
        Outcome::Taken | Outcome::Parked { .. } => return Vec::new(),
        Outcome::Failed { wait_ms, .. }
        | Outcome::Refused { wait_ms, .. }
        | Outcome::HeldBack { wait_ms } => *wait_ms,
    };
    let behind = lanes.remove(&event.order_key()).unwrap_or_default();
    behind
        .into_iter()
        .map(|event| (event, Outcome::HeldBack { wait_ms }))
        .collect()
}

/// One call; and where it is refused as a whole, one for each of its entries.
async fn put_batch(bridge: &EventBridge, batch: Vec<Entry>, deadline: Instant) -> Round {
    let fault = match bridge.put(&batch, deadline).await {
        Ok(said) => return heard(batch, said),
        Err(fault) => fault,
    };
    warn!(
        events = batch.len(),
        error.code = fault.code(),
        detail = fault.detail(),
        "the event bus refused a call; its events are put again"
    );
    if matches!(fault, Fault::OfRequest { .. }) && batch.len() > 1 {
        return one_by_one(bridge, batch, deadline).await;
    }
    faulted(batch, &fault)
}

async fn one_by_one(bridge: &EventBridge, batch: Vec<Entry>, deadline: Instant) -> Round {
    let mut whole = Round::default();
    for entry in batch {
        if whole.is_down {
            let wait_ms = wait_ms(1);
            let outcome = Outcome::HeldBack { wait_ms };
            whole.settled.push((entry.event, outcome));
            continue;
        }
        let alone = vec![entry];
        let round = match bridge.put(&alone, deadline).await {
            Ok(said) => heard(alone, said),
            Err(fault) => faulted(alone, &fault),
        };
        whole.is_down = round.is_down;
        whole.settled.extend(round.settled);
    }
    whole
}

/// What a call that was answered says of each entry.
fn heard(batch: Vec<Entry>, said: Vec<Said>) -> Round {
    let settled = batch.into_iter().zip(said).map(|(entry, said)| {
        let event = entry.event;
        let outcome = match said {
            Said::Taken => Outcome::Taken,
            Said::NotNow { code } => failed(&event, code),
            Said::Never { code } => Outcome::Parked { code },
            Said::Refused { code } => refused(&event, code),
        };
        (event, outcome)
    });
    Round {
        settled: settled.collect(),
        is_down: false,
    }
}

fn faulted(batch: Vec<Entry>, fault: &Fault) -> Round {
    let is_down = match fault {
        Fault::OfBus { .. } => true,
        Fault::OfRequest { .. } => false,
    };
    let settled = batch.into_iter().map(|entry| {
        let (event, code) = (entry.event, fault.code().to_owned());
        let outcome = if is_down {
            failed(&event, code)
        } else {
            refused(&event, code)
        };
        (event, outcome)
    });
    Round {
        settled: settled.collect(),
        is_down,
    }
}

fn failed(event: &Event, code: String) -> Outcome {
    Outcome::Failed {
        wait_ms: wait_ms(event.attempts + 1),
        code,
    }
}

fn refused(event: &Event, code: String) -> Outcome {
    if event.refusals + 1 >= REFUSALS_MAX {
        return Outcome::Parked { code };
    }
    Outcome::Refused {
        wait_ms: wait_ms(event.attempts + 1),
        code,
    }
}

fn wait_ms(attempt: u32) -> i64 {
    let wait = backoff::delay(attempt, WAIT_BASE, WAIT_MAX, Some(WAIT_MIN));
    i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)
}
