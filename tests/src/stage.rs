//! A migrated database for one test, and what every test of the database makes in it.
//!
//! Tenants, prompts and keys are made by the functions that the product uses. Only the superuser's
//! client goes around them: to look at the truth, never to fake it.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use shared::db::{
    Db, DbConfig, Login, TenantTx,
    migrate::{self, RolePasswords},
    prompts::{self, NewPrompt},
    tenants::{self, NewTenant},
};
use shared::ids::{PromptId, TenantId, UserId};
use shared::secret::Secret;
use tokio_postgres::Client;

use crate::tap::Tap;
use crate::{connect, database, database_url};

/// One test's database.
pub struct Stage {
    /// Its name.
    pub name: String,
    /// As the product connects.
    pub db: Db,
    /// A superuser, who sees past every wall.
    pub admin: Client,
}

impl Stage {
    /// A fresh database, with `connections` of the app role at the most.
    ///
    /// # Errors
    /// When PostgreSQL or a migration fails.
    pub async fn new(connections: usize) -> Result<Self> {
        let name = migrated_database().await?;
        let config = config(&name, connections);
        Self::connect(name, &config).await
    }

    /// The same, with all that the product sends passing a tap.
    ///
    /// # Errors
    /// When PostgreSQL or a migration fails.
    pub async fn behind(tap: &Tap, connections: usize) -> Result<Self> {
        let name = migrated_database().await?;
        let mut config = config(&name, connections);
        config.app = Login::Url(Secret::new(tap.url(&name, "carillon_app")));
        config.system = Login::Url(Secret::new(tap.url(&name, "carillon_system")));
        Self::connect(name, &config).await
    }

    async fn connect(name: String, config: &DbConfig) -> Result<Self> {
        Ok(Self {
            db: Db::connect(config).await?,
            admin: connect(&database_url(&name)).await?,
            name,
        })
    }

    /// A transaction of the tenant.
    ///
    /// # Errors
    /// When no connection is free.
    pub async fn tx(&self, tenant: TenantId) -> Result<TenantTx> {
        Ok(self.db.tenant(tenant).await?)
    }

    /// A number that the superuser counts.
    ///
    /// # Errors
    /// When the statement is wrong.
    pub async fn count(&self, sql: &str) -> Result<i64> {
        let row = self.admin.query_one(sql, &[]).await?;
        Ok(row.try_get(0)?)
    }
}

/// A fresh migrated database.
///
/// # Errors
/// When PostgreSQL or a migration fails.
pub async fn migrated_database() -> Result<String> {
    database(&format!("carillon_{}", migrations_hash()?), |url| async {
        migrate::run(&Secret::new(url), &RolePasswords::default()).await?;
        Ok(())
    })
    .await
}

/// Changes with every migration, so that no test meets a database of an older shape.
///
/// # Errors
/// When the migrations cannot be read.
pub fn migrations_hash() -> Result<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let mut files = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(&file)
            .with_context(|| file.display().to_string())?
            .hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// How the product connects to a database of the testbed.
#[must_use]
pub fn config(database: &str, connections: usize) -> DbConfig {
    DbConfig::of_urls(
        Secret::new(role_url(database, "carillon_app")),
        Secret::new(role_url(database, "carillon_system")),
        connections,
        2,
    )
}

/// The URL of a database for another role than the superuser; the testbed asks for no password.
///
/// # Panics
/// When the test does not run in a testbed.
#[must_use]
pub fn role_url(database: &str, role: &str) -> String {
    let url = database_url(database);
    match (url.split_once("://"), url.split_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{role}@{place}"),
        _ => url,
    }
}

/// A tenant and its first user.
#[derive(Debug, Clone, Copy)]
pub struct Tenant {
    /// The tenant.
    pub id: TenantId,
    /// Its owner.
    pub user: UserId,
}

/// Makes a tenant.
///
/// # Errors
/// When the database does not answer.
pub async fn tenant(db: &Db, name: &str) -> Result<Tenant> {
    let id = TenantId::new();
    let tx = db.tenant(id).await?;
    let owner_email = format!("owner@{name}.example");
    let user = tenants::create(
        &tx,
        &NewTenant {
            name,
            owner_email: &owner_email,
            webhook_secret_sealed: name.as_bytes(),
        },
    )
    .await?;
    tx.commit().await?;
    Ok(Tenant { id, user })
}

/// A prompt's spec: one with a slot each minute, with what `changes` names changed.
#[must_use]
pub fn spec(changes: &Value) -> Value {
    let mut spec = json!({
        "prompt_name": "a prompt",
        "prompt_text": "say something",
        "model": "echo/echo",
        "model_settings": {},
        "context": {},
        "schedule": {"type": "cron", "expression": "* * * * *", "timezone": "UTC"},
        "overlap": "allow_all",
        "catchup_window_s": 900,
        "misfire": "run_all",
        "max_retries": 1,
        "retry_delay_ms": 1000,
        "timeout_ms": 1000,
        "pause_after_failures": 0,
        "destinations": [],
        "notification_email": null,
        "tags": [],
        "metadata": {},
    });
    if let (Some(spec), Some(changes)) = (spec.as_object_mut(), changes.as_object()) {
        for (name, value) in changes {
            spec.insert(name.clone(), value.clone());
        }
    }
    spec
}

/// Makes a prompt whose next slot is `next_run_at`.
///
/// # Errors
/// When the database does not answer, or refuses the spec.
pub async fn prompt(
    db: &Db,
    tenant: Tenant,
    changes: &Value,
    next_run_at: Option<DateTime<Utc>>,
) -> Result<PromptId> {
    let id = PromptId::new();
    let tx = db.tenant(tenant.id).await?;
    prompts::insert(
        &tx,
        &NewPrompt {
            id,
            user_id: tenant.user,
            spec: &spec(changes),
            next_run_at,
            webhook_urls: &[],
            calendars: &[],
        },
    )
    .await?;
    tx.commit().await?;
    Ok(id)
}
