//! Brings the database to the shape that the functions expect, before they change.
//!
//! CloudFormation calls it as a custom resource, and an operator by hand. It is the only function that
//! knows the database's administrator, and it must never remove anything: a stack that is deleted leaves
//! its database as it is, and a database that is ahead is the newer program's.

pub mod config;
mod invocation;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use shared::{
    aws::SdkConfig,
    db::migrate::{self, Secrets},
    secrets::SecretsManager,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    config::Config,
    invocation::{ANSWERING_LIMIT, Invocation, Request},
};

/// What runs the migrations, whoever asks for it.
#[derive(Debug)]
pub struct Migration {
    config: Config,
    manager: SecretsManager,
    client: reqwest::Client,
}

impl Migration {
    /// Makes the clients; nothing is called yet.
    ///
    /// # Errors
    /// When no trusted certificates are found.
    pub fn new(config: Config, aws: &SdkConfig) -> Result<Self> {
        Ok(Self {
            config,
            manager: SecretsManager::new(aws),
            client: invocation::client()?,
        })
    }

    /// Does what the event asks for, and tells CloudFormation where it asked to be told. The answer of
    /// the function itself names what was applied.
    ///
    /// # Errors
    /// Without somebody to tell, the failure itself. With one, only that it could not be told.
    pub async fn work(&self, event: &Value, deadline: Instant) -> Result<Value> {
        let invocation = Invocation::read(event);
        let outcome = self.answer_to(&invocation.request, deadline).await;
        match &outcome {
            Ok(applied) => tracing::info!(?applied, "database is up to date"),
            Err(error) => tracing::error!(
                error.message = invocation::reason(error),
                "migration failed"
            ),
        }
        if let Some(to) = &invocation.reply_to {
            let told = outcome.as_ref().map(|_| ());
            invocation::answer(&self.client, to, told).await?;
            // An error would make Lambda call again, after CloudFormation has heard the end.
            return Ok(json!({ "applied": outcome.unwrap_or_default() }));
        }
        Ok(json!({ "applied": outcome? }))
    }

    async fn answer_to(&self, request: &Request, deadline: Instant) -> Result<Vec<String>> {
        match request {
            Request::Delete => Ok(Vec::new()),
            Request::Unknown => bail!("RequestType must be Create, Update or Delete"),
            Request::Migrate => {
                let end = deadline.checked_sub(ANSWERING_LIMIT).unwrap_or(deadline);
                // Boxed: the clients' futures are too deep for the compiler otherwise.
                match timeout_at(end, Box::pin(self.migrate())).await {
                    Ok(outcome) => outcome,
                    Err(_) => bail!(
                        "the migrations were not through in time; nothing of the last one is kept"
                    ),
                }
            }
        }
    }

    /// The secrets are read each time: a password that was changed is set by calling again.
    async fn migrate(&self) -> Result<Vec<String>> {
        let (admin, app, system) = tokio::try_join!(
            self.manager.fetch(&self.config.admin_secret_arn),
            self.manager.fetch(&self.config.app_secret_arn),
            self.manager.fetch(&self.config.system_secret_arn),
        )?;
        let secrets = Secrets { admin, app, system };
        Ok(migrate::run_stored(&secrets, &self.config.roots).await?)
    }
}
