//! What every handler may reach.

use std::{ops::Deref, sync::Arc};

use shared::{
    api_key::PlatformKeyHash,
    db::{Db, TenantTx},
    env::Environment,
    ids::TenantId,
    outbound::Policy,
    price::Catalog,
    queue::Queue,
    scheduler::Scheduler,
    seal::Sealer,
};

use crate::{error::ApiError, identity::Tokens, outputs::Outputs};

/// The version that `/health` tells.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The application's state; a clone shares it.
#[derive(Clone)]
pub struct App(Arc<AppParts>);

/// What the state consists of.
pub struct AppParts {
    /// The database.
    pub db: Db,
    /// Where wake-ups go after a commit.
    pub queue: Queue,
    /// What wakes prompts when they are due.
    pub scheduler: Scheduler,
    /// Where long outputs lie.
    pub outputs: Outputs,
    /// Seals webhook secrets and stored answers.
    pub sealer: Sealer,
    /// The models that prompts may name.
    pub catalog: Catalog,
    /// Which addresses webhooks may have.
    pub outbound: Policy,
    /// Whether prompts may name the provider that only pretends.
    pub allow_echo: bool,
    /// Opens the operator's routes; without it there are none.
    pub platform_key: Option<PlatformKeyHash>,
    /// Checks the issuer's tokens; without it only API keys are taken.
    pub tokens: Option<Tokens>,
    /// Part of every key's text.
    pub environment: Environment,
}

impl App {
    /// Takes the parts together.
    #[must_use]
    pub fn new(parts: AppParts) -> Self {
        Self(Arc::new(parts))
    }

    /// Runs `reader` in one transaction of the tenant.
    ///
    /// # Errors
    /// What `reader` gives, and 503 when the database does not answer.
    pub async fn read<T>(
        &self,
        tenant: TenantId,
        reader: impl AsyncFnOnce(&TenantTx) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let tx = self.db.tenant(tenant).await?;
        let result = reader(&tx).await;
        // Nothing was changed, so how it ends is of no matter to the caller; a connection that
        // cannot even roll back is closed by the drop.
        let _ = tx.rollback().await;
        result
    }
}

impl Deref for App {
    type Target = AppParts;

    fn deref(&self) -> &AppParts {
        &self.0
    }
}
