//! Whole transactions of several tenants, sent together over one connection.
//!
//! Each is one tenant's, from `BEGIN` to `COMMIT`, and is put on the connection in one go: no
//! statement of another can come between. Each of its statements ends by itself, so one that fails
//! takes back its own transaction and no other's. What has to see an answer before its next
//! statement does not belong here, but in a [`TenantTx`].
//!
//! Nothing waits for company: a flight leaves as soon as the one before has landed, with whoever is
//! there by then. One connection is enough for all of a process's flights, and while one is under
//! way the next fills.
//!
//! Commits of one connection would wait for the disk one after another. So those that are on a flight
//! together wait for it once: each is committed without, and none is told before a last commit, sent
//! behind them, has made all of them durable.

use std::{
    mem,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use deadpool_postgres::Object;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, join_all, poll_fn},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::yield_now,
    time::timeout,
};
use tokio_postgres::Row;
use tracing::warn;

use super::{
    DbError, Role, TenantTx,
    tenant_tx::{CLEAN, Step, begin},
};
use crate::ids::TenantId;

/// Transactions of one flight at the most.
const SEATS_MAX: usize = 16;

/// A flight that takes longer is given up, and its connection with it.
const FLIGHT_LIMIT: Duration = Duration::from_secs(20);

/// Whoever waits for a row's lock holds up the others of its flight, so it gives up soon, and waits
/// again alone.
const WAIT_LITTLE: &str = "set_config('lock_timeout', '250ms', true)";

/// Does not wait for the disk: [`KEEP`] does, behind it.
const WAIT_FOR_NO_DISK: &str = "set_config('synchronous_commit', 'off', true)";

/// A transaction whose commit waits for the disk, and with it for all that was written before.
/// Without something written it would not wait.
const KEEP: &str = "SELECT pg_logical_emit_message(true, 'carillon', '')";

/// What transactions leave behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    /// They only look.
    Nothing,
    /// What they wrote.
    Rows,
}

/// Where transactions wait for a flight. A clone shares it.
#[derive(Clone)]
pub(super) struct Flights {
    role: Role,
    /// One flight is under way at a time.
    clear: Arc<Semaphore>,
    boarding: Arc<Mutex<Boarding>>,
}

/// The flight that leaves next.
#[derive(Default)]
struct Boarding {
    number: u64,
    seats: usize,
    departure: Option<Departure>,
}

/// `None`: there is no connection.
type Departure = Shared<BoxFuture<'static, Option<Arc<Flight>>>>;

/// It lands when the last who is on it lets go of it.
struct Flight {
    connection: Option<Object>,
    is_shared: bool,
    /// Held while a transaction, or a statement to be prepared, is put on the connection, and
    /// poisoned by one that was cut off in the middle.
    sending: Mutex<Sending>,
    landed: watch::Sender<Landed>,
    /// Whatever its last borrower left is gone: the first transaction has seen to that.
    is_clean: AtomicBool,
    /// An answer did not come: nobody may have this connection after.
    is_lost: AtomicBool,
    _clear: OwnedSemaphorePermit,
}

/// What was put on a flight's connection.
#[derive(Default)]
struct Sending {
    /// Transactions that the disk is to have.
    written: u64,
    /// A [`KEEP`] will be put behind them.
    is_landing: bool,
}

/// What is known of those transactions.
#[derive(Clone, Copy, Default)]
struct Landed {
    /// The disk has so many, the first ones.
    kept: u64,
    /// Of the rest nobody will know.
    is_lost: bool,
}

impl Flights {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            clear: Arc::new(Semaphore::new(1)),
            boarding: Arc::default(),
        }
    }

    /// One tenant's transaction, whole; gives its statements' rows in their order.
    ///
    /// It is sent again, alone, where the flight fails it through no fault of its own; that the first
    /// one came to nothing is not certain then. So a statement in it must guard it against being done
    /// twice.
    pub(super) async fn fly(
        &self,
        tenant: TenantId,
        steps: &[Step<'_>],
        leaves: Leaves,
    ) -> Result<Vec<Vec<Row>>, DbError> {
        if let Some(flight) = self.board().await {
            let flown = timeout(FLIGHT_LIMIT, Box::pin(flight.carry(tenant, steps, leaves))).await;
            match flown {
                Ok(Some(Err(error))) if error.is_of_the_way() => {}
                Ok(Some(flown)) => return flown,
                Ok(None) => {}
                Err(_) => flight.is_lost.store(true, Ordering::Relaxed),
            }
        }
        let alone = TenantTx::new(self.role.get().await?, tenant);
        alone.commit_with(steps).await
    }

    async fn board(&self) -> Option<Arc<Flight>> {
        let departure = {
            let mut boarding = lock(&self.boarding);
            match boarding.departure.clone() {
                Some(departure) if boarding.seats < SEATS_MAX => {
                    boarding.seats += 1;
                    departure
                }
                _ => {
                    boarding.number += 1;
                    boarding.seats = 1;
                    let departure = self.clone().depart(boarding.number).boxed().shared();
                    boarding.departure = Some(departure.clone());
                    departure
                }
            }
        };
        departure.await
    }

    async fn depart(self, number: u64) -> Option<Arc<Flight>> {
        let clear = self.clear.acquire_owned().await.ok()?;
        // Whoever is ready at the same moment comes along. To yield here would not do: each of them
        // polls this, and the second would find it done.
        drop(tokio::spawn(yield_now()).await);
        let connection = self.role.get().await.ok();
        let mut boarding = lock(&self.boarding);
        let mut is_shared = true;
        if boarding.number == number {
            boarding.departure = None;
            is_shared = boarding.seats > 1;
        }
        Some(Arc::new(Flight {
            connection: Some(connection?),
            is_shared,
            sending: Mutex::default(),
            landed: watch::Sender::default(),
            is_clean: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            _clear: clear,
        }))
    }
}

impl Flight {
    /// `None`: this one is to go alone. Nothing of it was sent, or nobody knows whether the disk has it.
    async fn carry(
        self: &Arc<Self>,
        tenant: TenantId,
        steps: &[Step<'_>],
        leaves: Leaves,
    ) -> Option<Result<Vec<Vec<Row>>, DbError>> {
        let connection = self.connection.as_ref()?;
        let mut preparing = pin!(join_all(steps.iter().map(|step| step.prepare(connection))));
        // Between two transactions, never within one: there it could fail another's, whose COMMIT would
        // answer without an error and keep nothing.
        let prepared = poll_fn(|context| {
            let _alone = lock(&self.sending);
            preparing.as_mut().poll(context)
        });
        let statements = match prepared.await.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(statements) => statements,
            Err(error) => return Some(Err(error.into())),
        };
        let waits_for_others = self.is_shared && leaves == Leaves::Rows;
        let refused = AtomicBool::new(false);
        let sent = join_all(
            steps
                .iter()
                .zip(&statements)
                .map(async |(step, statement)| {
                    let rows = step.send(connection, statement.as_ref()).await;
                    refused.fetch_or(rows.is_err(), Ordering::Relaxed);
                    rows
                }),
        );
        // Polled last, when every statement is on its way, or was refused before it was sent: the
        // server would not know of that one, and keep the others.
        let end = async {
            let refused = refused.load(Ordering::Relaxed);
            connection
                .batch_execute(if refused { "ROLLBACK" } else { "COMMIT" })
                .await
        };
        // Polled first, under the lock: whether it is the first is known no sooner.
        let begin = async {
            let begin = begin(tenant);
            let mut opening = if self.is_clean.swap(true, Ordering::Relaxed) {
                format!("{begin}, {WAIT_LITTLE}")
            } else {
                format!("{CLEAN}; {begin}, {WAIT_LITTLE}")
            };
            if waits_for_others {
                opening.push_str(", ");
                opening.push_str(WAIT_FOR_NO_DISK);
            }
            let begun = connection.batch_execute(&opening).await;
            // Whatever was in its way may be in that of the next.
            self.is_lost.fetch_or(begun.is_err(), Ordering::Relaxed);
            begun
        };
        let mut whole = pin!(async { futures_util::join!(begin, sent, end) });
        let mut is_sent = false;
        let mut place = None;
        let answers = poll_fn(|context| {
            if is_sent {
                return whole.as_mut().poll(context).map(Some);
            }
            is_sent = true;
            // The first poll sends all of it.
            match self.sending.lock() {
                Ok(mut sending) if !self.is_lost.load(Ordering::Relaxed) => {
                    if waits_for_others {
                        sending.written += 1;
                        place = Some(sending.written);
                        if !mem::replace(&mut sending.is_landing, true) {
                            tokio::spawn(Self::land(Arc::clone(self)));
                        }
                    }
                    whole.as_mut().poll(context).map(Some)
                }
                _ => Poll::Ready(None),
            }
        });
        let (begun, rows, ended) = answers.await?;
        // A commit after a failed statement answers without an error and keeps nothing.
        let rows = rows.into_iter().collect::<Result<Vec<_>, _>>();
        let rows = begun.and(rows).and_then(|rows| ended.map(|()| rows));
        if let (Ok(_), Some(place)) = (&rows, place)
            && !self.keeps(place).await
        {
            return None;
        }
        Some(rows.map_err(DbError::from))
    }

    /// Waits until the disk has what was sent in that place; `false` if nobody knows.
    async fn keeps(&self, place: u64) -> bool {
        let mut landed = self.landed.subscribe();
        let known = landed.wait_for(|landed| landed.is_lost || landed.kept >= place);
        known.await.is_ok_and(|landed| landed.kept >= place)
    }

    /// Makes durable what was sent before.
    async fn land(self: Arc<Self>) {
        // Whoever is ready to be sent comes first.
        yield_now().await;
        let kept = timeout(FLIGHT_LIMIT, self.keep()).await.ok().flatten();
        self.is_lost.fetch_or(kept.is_none(), Ordering::Relaxed);
        self.landed.send_modify(|landed| match kept {
            Some(kept) => landed.kept = landed.kept.max(kept),
            None => landed.is_lost = true,
        });
    }

    /// How many the disk has then; `None` if nobody knows.
    async fn keep(&self) -> Option<u64> {
        let connection = self.connection.as_ref()?;
        let mut keeping = pin!(connection.batch_execute(KEEP));
        let mut sent = None;
        let answer = poll_fn(|context| {
            if sent.is_none() {
                // Behind a transaction that was cut off it would be a part of that.
                let Ok(mut sending) = self.sending.lock() else {
                    return Poll::Ready(None);
                };
                sending.is_landing = false;
                sent = Some(sending.written);
                return keeping.as_mut().poll(context).map(Some);
            }
            keeping.as_mut().poll(context).map(Some)
        });
        if let Err(error) = answer.await? {
            warn!(%error, "transactions of a flight may not be durable; each is tried again alone");
            return None;
        }
        sent
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let is_torn = self.is_lost.load(Ordering::Relaxed) || self.sending.is_poisoned();
        if let Some(connection) = self.connection.take().filter(|_| is_torn) {
            drop(Object::take(connection));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
