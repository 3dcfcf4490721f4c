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
    db::{Db, DbError, looks},
    message::WakeUp,
    price::Catalog,
    seal::Sealer,
};
use tracing::warn;

use crate::{deliver::Sender, model::Models};

pub mod deliver;
mod deliveries;
pub mod http;
mod job;
mod lease;
pub mod model;
mod runs;

/// Everything that runs go through. One per process.
pub struct Executor {
    /// The database.
    pub db: Db,
    /// The models.
    pub models: Models,
    /// The ways out.
    pub sender: Sender,
    /// Opens the tenants' signing secrets.
    pub sealer: Sealer,
    /// Prices.
    pub catalog: Catalog,
    /// Who emails come from.
    pub from: Mailbox,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
}

impl Executor {
    /// Does what a wake-up asks to look at, if it is due.
    ///
    /// # Errors
    /// When the database does not answer. Nothing is lost: what was claimed comes back when its
    /// lease ends, and the sweeper finds the rest.
    pub async fn handle(&self, wake_up: WakeUp) -> Result<(), DbError> {
        let looked = AssertUnwindSafe(self.look(wake_up)).catch_unwind().await;
        if !matches!(looked, Ok(Ok(())))
            && let Err(error) = self.put_off(wake_up).await
        {
            warn!(%error, "failed look not put off; the next sweep finds it again");
        }
        looked.unwrap_or_else(|panic| resume_unwind(panic))
    }

    async fn look(&self, wake_up: WakeUp) -> Result<(), DbError> {
        match wake_up {
            WakeUp::Prompt {
                tenant_id,
                prompt_id,
            } => runs::fire(self, tenant_id, prompt_id).await,
            WakeUp::Run { tenant_id, run_id } => runs::resume(self, tenant_id, run_id).await,
            WakeUp::Delivery {
                tenant_id,
                delivery_id,
            } => deliveries::resume(self, tenant_id, delivery_id).await,
        }
    }

    /// What cannot be looked at must not fill every sweep.
    async fn put_off(&self, wake_up: WakeUp) -> Result<(), DbError> {
        let (WakeUp::Prompt { tenant_id, .. }
        | WakeUp::Run { tenant_id, .. }
        | WakeUp::Delivery { tenant_id, .. }) = wake_up;
        looks::put_off(self.db.tenant(tenant_id).await?, wake_up).await
    }

    fn lease_ms(&self) -> i64 {
        i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX)
    }
}
