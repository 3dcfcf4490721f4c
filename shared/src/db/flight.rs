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

use std::{
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
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
    time::timeout,
};
use tokio_postgres::Row;

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
    /// Held while a transaction, or a statement to be prepared, is put on the connection, and
    /// poisoned by one that was cut off in the middle.
    sending: Mutex<()>,
    /// Whatever its last borrower left is gone: the first transaction has seen to that.
    is_clean: AtomicBool,
    /// An answer did not come: nobody may have this connection after.
    is_lost: AtomicBool,
    _clear: OwnedSemaphorePermit,
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
    ) -> Result<Vec<Vec<Row>>, DbError> {
        if let Some(flight) = self.board().await {
            let flown = timeout(FLIGHT_LIMIT, Box::pin(flight.carry(tenant, steps))).await;
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
        // Whoever is ready at the same moment comes along.
        yield_now().await;
        let connection = self.role.get().await.ok();
        let mut boarding = lock(&self.boarding);
        if boarding.number == number {
            boarding.departure = None;
        }
        Some(Arc::new(Flight {
            connection: Some(connection?),
            sending: Mutex::new(()),
            is_clean: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            _clear: clear,
        }))
    }
}

impl Flight {
    /// `None`: it cannot carry this one, and nothing was sent.
    async fn carry(
        &self,
        tenant: TenantId,
        steps: &[Step<'_>],
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
            let opening = if self.is_clean.swap(true, Ordering::Relaxed) {
                format!("{begin}, {WAIT_LITTLE}")
            } else {
                format!("{CLEAN}; {begin}, {WAIT_LITTLE}")
            };
            let begun = connection.batch_execute(&opening).await;
            // Whatever was in its way may be in that of the next.
            self.is_lost.fetch_or(begun.is_err(), Ordering::Relaxed);
            begun
        };
        let mut whole = pin!(async { futures_util::join!(begin, sent, end) });
        let mut is_sent = false;
        let answers = poll_fn(|context| {
            if is_sent {
                return whole.as_mut().poll(context).map(Some);
            }
            is_sent = true;
            // The first poll sends all of it.
            match self.sending.lock() {
                Ok(_alone) if !self.is_lost.load(Ordering::Relaxed) => {
                    whole.as_mut().poll(context).map(Some)
                }
                _ => Poll::Ready(None),
            }
        });
        let (begun, rows, ended) = answers.await?;
        // A commit after a failed statement answers without an error and keeps nothing.
        let rows = rows.into_iter().collect::<Result<Vec<_>, _>>();
        Some(
            begun
                .and(rows)
                .and_then(|rows| ended.map(|()| rows))
                .map_err(DbError::from),
        )
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
