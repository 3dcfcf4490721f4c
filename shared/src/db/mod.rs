//! All SQL, and the wall between tenants.
//!
//! Nothing outside this module can run a statement: the methods that do are visible to `db` alone.
//! A tenant's rows are reached through a [`TenantTx`] and nothing else; what must see all tenants
//! (the lookup of an API key, the search for due work) is a short list of functions in the
//! database, called from [`system`] on a connection that may do nothing else.

pub mod audit;
pub mod auth;
pub mod backfills;
pub mod calendars;
pub mod deliveries;
mod error;
pub mod events;
pub mod health;
pub mod history;
pub mod idempotency;
pub mod looks;
pub mod migrate;
pub mod preview;
pub mod prompts;
pub mod retention;
pub mod runs;
pub mod suppression;
pub mod sync;
pub mod system;
pub mod takeover;
mod tenant_tx;
pub mod tenants;
pub mod versions;
pub mod wake_ups;

pub use error::DbError;
pub use tenant_tx::TenantTx;

use std::{path::Path, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::{
    NoTls,
    config::{Host, SslMode},
    types::{FromSqlOwned, ToSql},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    env::{self, Reader},
    ids::TenantId,
};

/// Longest wait for a free connection, and for a new one to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of a session. They survive `RESET ALL`, which goes back to what the connection began with.
const SESSION_OPTIONS: &str = "-c statement_timeout=15s -c lock_timeout=5s \
     -c idle_in_transaction_session_timeout=30s -c TimeZone=UTC -c application_name=carillon";

/// A bound parameter of a statement.
type Param<'a> = &'a (dyn ToSql + Sync);

/// Where the database is, once for each of the two roles that log in.
#[derive(Debug, Clone)]
pub struct DbConfig {
    /// Connects as `carillon_app`.
    pub app_url: crate::secret::Secret,
    /// Connects as `carillon_system`.
    pub system_url: crate::secret::Secret,
    /// Connections of the app role at the most.
    pub app_connections_max: usize,
    /// Connections of the system role at the most.
    pub system_connections_max: usize,
}

/// Connections of one process at the most; more is a slip.
const CONNECTIONS_MAX: usize = 100;

impl DbConfig {
    /// Reads `CARILLON_DATABASE_URL` and `CARILLON_SYSTEM_DATABASE_URL`, and, where they are set,
    /// `CARILLON_DATABASE_CONNECTIONS_MAX` and `CARILLON_SYSTEM_DATABASE_CONNECTIONS_MAX` instead of
    /// the two counts; what is missing or bad is told to the reader.
    pub fn read(reader: &mut Reader<'_>, app_max: usize, system_max: usize) -> Option<Self> {
        let app_url = reader.required("CARILLON_DATABASE_URL", env::database_url);
        let system_url = reader.required("CARILLON_SYSTEM_DATABASE_URL", env::database_url);
        let mut most = |name, otherwise| {
            let read = reader.optional(name, env::count(CONNECTIONS_MAX));
            read.unwrap_or(otherwise)
        };
        let app_connections_max = most("CARILLON_DATABASE_CONNECTIONS_MAX", app_max);
        let system_connections_max = most("CARILLON_SYSTEM_DATABASE_CONNECTIONS_MAX", system_max);
        Some(Self {
            app_url: app_url?,
            system_url: system_url?,
            app_connections_max,
            system_connections_max,
        })
    }
}

/// Two pools: one for tenants' statements, one for the system functions.
#[derive(Clone)]
pub struct Db {
    app: Pool,
    system: Pool,
}

impl Db {
    /// Connects, and refuses roles that could see past the wall.
    ///
    /// # Errors
    /// `DbError::Config` for a URL that cannot be read, `DbError::Role` for a role with too much
    /// power, anything else when the database does not answer.
    pub async fn connect(config: &DbConfig) -> Result<Self, DbError> {
        let db = Self {
            app: pool(config.app_url.expose(), config.app_connections_max)?,
            system: pool(config.system_url.expose(), config.system_connections_max)?,
        };
        let (app, system) = futures_util::try_join!(db.app.get(), db.system.get())?;
        futures_util::try_join!(refuse_power(&app), refuse_power(&system))?;
        Ok(db)
    }

    /// A transaction that sees one tenant's rows. Nothing is sent before its first statement.
    ///
    /// # Errors
    /// When no connection is free within five seconds.
    pub async fn tenant(&self, tenant: TenantId) -> Result<TenantTx, DbError> {
        Ok(TenantTx::new(self.app.get().await?, tenant))
    }

    /// Connections of the app role that are in use.
    #[must_use]
    pub fn busy(&self) -> usize {
        let status = self.app.status();
        status.size.saturating_sub(status.available)
    }

    async fn system(&self) -> Result<Object, DbError> {
        Ok(self.system.get().await?)
    }
}

fn pool(url: &str, connections_max: usize) -> Result<Pool, DbError> {
    let mut config: tokio_postgres::Config = url
        .parse()
        .map_err(|_| DbError::Config("the database URL cannot be read".to_owned()))?;
    config
        .options(SESSION_OPTIONS)
        .connect_timeout(CONNECT_TIMEOUT);
    let manager_config = ManagerConfig {
        // A borrower may leave a transaction open or a setting behind; the next must see neither.
        // Without the BEGIN the server would log a warning each time that none is open.
        recycling_method: RecyclingMethod::Custom("BEGIN; ROLLBACK; RESET ALL".to_owned()),
    };
    let manager = if uses_tls(&config) {
        Manager::from_config(
            config,
            MakeRustlsConnect::new(tls_config()?),
            manager_config,
        )
    } else {
        Manager::from_config(config, NoTls, manager_config)
    };
    Pool::builder(manager)
        .max_size(connections_max.max(1))
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .recycle_timeout(Some(CONNECT_TIMEOUT))
        .build()
        .map_err(|error| DbError::Config(error.to_string()))
}

/// A local socket is private already; elsewhere the URL's `sslmode` decides.
fn uses_tls(config: &tokio_postgres::Config) -> bool {
    let remote = config.get_hosts().iter().any(|host| match host {
        Host::Tcp(_) => true,
        Host::Unix(path) => path == Path::new(""),
    });
    remote && config.get_ssl_mode() != SslMode::Disable
}

fn tls_config() -> Result<ClientConfig, DbError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(DbError::Config(
            "no trusted certificates were found; set SSL_CERT_FILE".to_owned(),
        ));
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

async fn refuse_power(client: &Object) -> Result<(), DbError> {
    let row = client
        .query_one(
            "-- db::refuse_power
             SELECT current_user::text AS name,
                    EXISTS (SELECT FROM pg_roles r
                             WHERE (r.rolsuper OR r.rolbypassrls) AND pg_has_role(r.oid, 'MEMBER')) AS bypasses,
                    EXISTS (SELECT FROM pg_roles r
                             WHERE r.rolcreaterole AND pg_has_role(r.oid, 'MEMBER')) AS grants,
                    EXISTS (SELECT FROM pg_class c
                             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                               AND pg_has_role(c.relowner, 'MEMBER')) AS owns,
                    EXISTS (SELECT FROM pg_roles d
                             WHERE d.rolname = 'carillon_definer' AND pg_has_role(d.oid, 'MEMBER')) AS defines",
            &[],
        )
        .await?;
    let name: String = row.try_get("name")?;
    for (column, power) in [
        // A member of such a role needs one statement to become it.
        ("bypasses", "bypasses row-level security"),
        ("grants", "may make itself a member of other roles"),
        ("owns", "owns tables"),
        ("defines", "is a member of carillon_definer"),
    ] {
        if row.try_get(column)? {
            return Err(DbError::Role(format!(
                "role {name} {power}; connect as carillon_app and carillon_system"
            )));
        }
    }
    Ok(())
}

/// Reads one column by name; a wrong name or type is a defect of the statement.
fn column<T: FromSqlOwned>(row: &tokio_postgres::Row, name: &str) -> Result<T, DbError> {
    Ok(row.try_get(name)?)
}
