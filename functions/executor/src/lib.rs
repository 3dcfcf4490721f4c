//! Turns a wake-up into a run: claim, render, model call, record, deliver.
//!
//! A wake-up carries no truth. What it names is looked at under a lock, and what is not due, or is
//! held by somebody else, is left alone. No transaction spans a call to the outside.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use futures_util::FutureExt;
use lettre::message::Mailbox;
use shared::{
    db::{Db, DbError, TenantTx, looks, wake_ups},
    message::{Message, WakeUp},
    price::Catalog,
    queue::Queue,
    seal::Sealer,
};
use tracing::warn;

use crate::{deliver::Sender, model::Models};

pub mod batch;
pub mod config;
pub mod deliver;
mod deliveries;
pub mod http;
mod job;
mod lease;
pub mod model;
mod pace;
mod provider_keys;
mod runs;
mod until;

pub use pace::Pace;
pub use until::{FINISH_MAX, Until};

/// Everything that runs go through. One per process.
pub struct Executor {
    /// The database.
    pub db: Db,
    /// Where the wake-ups of other tries go.
    pub queue: Queue,
    /// The models.
    pub models: Models,
    /// The ways out.
    pub sender: Sender,
    /// Opens the tenants' signing secrets and keys.
    pub sealer: Sealer,
    /// Prices.
    pub catalog: Catalog,
    /// Who emails come from.
    pub from: Mailbox,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
}

/// What came of a wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// What was to be done now is done; often that is nothing.
    Done,
    /// It was not begun: it could not have ended in time.
    NoTime,
    /// The tenant has nothing of that id.
    Unknown,
}

impl Executor {
    /// Does what a wake-up asks to look at, if it is due.
    ///
    /// # Errors
    /// When the database does not answer. Nothing is lost: what was claimed comes back when its
    /// lease ends, and the sweeper finds the rest.
    pub async fn handle(&self, wake_up: WakeUp) -> Result<(), DbError> {
        let message = Message {
            wake_up,
            fired: None,
        };
        // What it names may be gone by now, which nobody inside this process needs to know.
        self.receive(message, Until::STOPPED).await.map(drop)
    }

    /// The same for a message of a queue, which an entry of the scheduler may have sent; and nothing
    /// begins that cannot end in time.
    ///
    /// # Errors
    /// As [`Executor::handle`].
    pub async fn receive(&self, message: Message, until: Until) -> Result<Handled, DbError> {
        if !until.allows(Duration::ZERO) {
            return Ok(Handled::NoTime);
        }
        let wake_up = message.wake_up;
        let looked = AssertUnwindSafe(self.look(message, until))
            .catch_unwind()
            .await;
        if !matches!(looked, Ok(Ok(_)))
            && let Err(error) = self.put_off(wake_up).await
        {
            warn!(%error, "failed look not put off; the next sweep finds it again");
        }
        looked.unwrap_or_else(|panic| resume_unwind(panic))
    }

    async fn look(&self, message: Message, until: Until) -> Result<Handled, DbError> {
        match message.wake_up {
            WakeUp::Prompt {
                tenant_id,
                prompt_id,
            } => runs::fire(self, tenant_id, prompt_id, message.fired, until).await,
            WakeUp::Run { tenant_id, run_id } => runs::resume(self, tenant_id, run_id, until).await,
            WakeUp::Delivery {
                tenant_id,
                delivery_id,
            } => deliveries::resume(self, tenant_id, delivery_id).await,
        }
    }

    /// What cannot be looked at must not fill every sweep.
    async fn put_off(&self, wake_up: WakeUp) -> Result<(), DbError> {
        let tx = self.db.tenant(wake_up.tenant_id()).await?;
        looks::put_off(tx, wake_up).await
    }

    fn lease_ms(&self) -> i64 {
        i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX)
    }

    /// Sends a wake-up that is to come after `delay_ms`. Without one the sweeper finds the work.
    async fn wake(&self, wake_up: WakeUp, delay_ms: i64) {
        let delay = Duration::from_millis(u64::try_from(delay_ms).unwrap_or(0));
        self.queue.offer(&[wake_up], delay).await;
    }
}

/// Ends a look that found nothing due: is there anything at all?
async fn nothing_due(tx: TenantTx, wake_up: WakeUp) -> Result<Handled, DbError> {
    Ok(if wake_ups::is_known(tx, wake_up).await? {
        Handled::Done
    } else {
        Handled::Unknown
    })
}
