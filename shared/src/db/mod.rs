//! All SQL, and the wall between tenants.
//!
//! Nothing outside this module can run a statement: the methods that do are visible to `db` alone.
//! A tenant's rows are reached through a [`TenantTx`], or a whole transaction of the same kind in a
//! flight, and nothing else; what must see all tenants (the lookup of an API key, the search for due
//! work) is a short list of functions in the database, called from [`system`] on a connection that
//! may do nothing else.

pub mod audit;
pub mod auth;
pub mod backfills;
pub mod calendars;
pub mod deliveries;
mod error;
pub mod events;
mod flight;
pub mod health;
pub mod history;
pub mod idempotency;
mod login;
pub mod looks;
pub mod migrate;
pub mod preview;
pub mod prompts;
pub mod provider_keys;
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
pub use login::{Login, Roots, Settings};
pub use tenant_tx::TenantTx;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod,
    Runtime,
};
use tokio::time::timeout;
use tokio_postgres::{
    Row,
    types::{FromSqlOwned, ToSql},
};

use self::{
    flight::{Flights, Leaves},
    login::{Current, Door},
    tenant_tx::{CLEAN, Step},
};
use crate::{ids::TenantId, secret::Secret};

/// Longest wait for a free connection, and for a new one to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that nobody took for longer is asked whether it is alive before it is relied on: AWS
/// forgets an idle one after 350 s (Amazon EC2 User Guide, "Connection tracking timeouts").
const IDLE_MAX: Duration = Duration::from_secs(300);

/// Longest wait for an answer. The server gives up on a statement well before; a connection whose
/// other end is gone without a word would otherwise be waited for without end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Bounds of a session. They survive `RESET ALL`, which goes back to what the connection began with.
const SESSION_OPTIONS: &str = "-c statement_timeout=15s -c lock_timeout=5s \
     -c idle_in_transaction_session_timeout=30s -c TimeZone=UTC -c application_name=carillon";

/// A bound parameter of a statement.
type Param<'a> = &'a (dyn ToSql + Sync);

/// Where the database is, once for each of the two roles that log in.
#[derive(Debug, Clone)]
pub struct DbConfig {
    /// Connects as `carillon_app`.
    pub app: Login,
    /// Connects as `carillon_system`.
    pub system: Login,
    /// What the database's certificate may be signed with, beside what the system trusts.
    pub roots: Roots,
    /// Connections of the app role at the most.
    pub app_connections_max: usize,
    /// Connections of the system role at the most.
    pub system_connections_max: usize,
}

impl DbConfig {
    /// With what stands in two URLs.
    #[must_use]
    pub fn of_urls(app: Secret, system: Secret, app_max: usize, system_max: usize) -> Self {
        Self {
            app: Login::Url(app),
            system: Login::Url(system),
            roots: Roots::default(),
            app_connections_max: app_max,
            system_connections_max: system_max,
        }
    }
}

/// Two pools: one for tenants' statements, one for the system functions.
#[derive(Clone)]
pub struct Db {
    app: Role,
    system: Role,
    flights: Flights,
}

impl Db {
    /// Connects, and refuses roles that could see past the wall.
    ///
    /// # Errors
    /// `DbError::Config` for a URL that cannot be read, `DbError::Secret` without credentials,
    /// `DbError::Role` for a role with too much power, anything else when the database does not
    /// answer.
    pub async fn connect(config: &DbConfig) -> Result<Self, DbError> {
        let db = Self::open(config).await?;
        drop(futures_util::try_join!(db.app.get(), db.system.get())?);
        Ok(db)
    }

    /// Connects as the app role alone. The system role's connection is made, and looked at, when it
    /// is first needed: for what begins with a tenant's work that is time saved at its start.
    ///
    /// # Errors
    /// Those of [`Self::connect`].
    pub async fn connect_app(config: &DbConfig) -> Result<Self, DbError> {
        let db = Self::open(config).await?;
        drop(db.app.get().await?);
        Ok(db)
    }

    /// What the two roles need to log in is fetched at once.
    async fn open(config: &DbConfig) -> Result<Self, DbError> {
        let roots = &config.roots;
        // A tenant's transaction cleans its session with its first statement.
        let (in_use, cleaned) = (
            RecyclingMethod::Fast,
            RecyclingMethod::Custom(CLEAN.to_owned()),
        );
        let (app, system) = futures_util::try_join!(
            Role::open(&config.app, roots, config.app_connections_max, in_use),
            Role::open(
                &config.system,
                roots,
                config.system_connections_max,
                cleaned
            ),
        )?;
        Ok(Self {
            flights: Flights::new(app.clone()),
            app,
            system,
        })
    }

    /// A transaction that sees one tenant's rows. Nothing is sent before its first statement.
    ///
    /// # Errors
    /// When no connection is free within five seconds.
    pub async fn tenant(&self, tenant: TenantId) -> Result<TenantTx, DbError> {
        Ok(TenantTx::new(self.app.get().await?, tenant))
    }

    /// One tenant's whole transaction, sent together with those of others that are ready; see
    /// [`Flights::fly`] for what its statements must bear.
    async fn fly(&self, tenant: TenantId, steps: &[Step<'_>]) -> Result<Vec<Vec<Row>>, DbError> {
        self.flights.fly(tenant, steps, Leaves::Rows).await
    }

    /// As [`Self::fly`], of a statement that writes nothing.
    async fn fly_to_look(&self, tenant: TenantId, look: Step<'_>) -> Result<Vec<Row>, DbError> {
        let looked = self.flights.fly(tenant, &[look], Leaves::Nothing).await?;
        Ok(looked.into_iter().flatten().collect())
    }

    /// Connections of the app role that are in use.
    #[must_use]
    pub fn busy(&self) -> usize {
        let status = self.app.pool.status();
        status.size.saturating_sub(status.available)
    }

    async fn system(&self) -> Result<Object, DbError> {
        self.system.get().await
    }
}

/// A role's pool, and how it logs in.
#[derive(Clone)]
struct Role {
    pool: Pool,
    login: Login,
    current: Current,
    /// It cannot see past the wall.
    is_harmless: Arc<AtomicBool>,
}

impl Role {
    async fn open(
        login: &Login,
        roots: &Roots,
        connections_max: usize,
        recycling_method: RecyclingMethod,
    ) -> Result<Self, DbError> {
        let (door, current) = Door::new(login.config().await?, roots);
        Ok(Self {
            pool: pool(door, connections_max, recycling_method)?,
            login: login.clone(),
            current,
            is_harmless: Arc::default(),
        })
    }

    /// A connection, of a role that was looked at.
    async fn get(&self) -> Result<Object, DbError> {
        let connection = self.connection().await?;
        if !self.is_harmless.load(Ordering::Relaxed) {
            if let Err(error) = in_time(refuse_role(&connection)).await {
                drop(Object::take(connection));
                return Err(error);
            }
            self.is_harmless.store(true, Ordering::Relaxed);
        }
        Ok(connection)
    }

    /// Where the database refuses the password, it may have been changed: then once more, with what
    /// it is now.
    async fn connection(&self) -> Result<Object, DbError> {
        let held = self.current.get();
        match self.pool.get().await {
            Err(PoolError::Backend(error)) if login::is_refused(&error) => {
                let Some(config) = self.login.instead_of(&held).await else {
                    return Err(PoolError::Backend(error).into());
                };
                self.current.set(config);
                Ok(self.pool.get().await?)
            }
            other => Ok(other?),
        }
    }
}

/// Whoever is cut off by this has its connection closed: an answer that comes late must not be the
/// next borrower's.
async fn in_time<T>(work: impl Future<Output = Result<T, DbError>>) -> Result<T, DbError> {
    timeout(ANSWER_TIMEOUT, Box::pin(work))
        .await
        .unwrap_or(Err(DbError::NoAnswer))
}

fn pool(
    door: Door,
    connections_max: usize,
    recycling_method: RecyclingMethod,
) -> Result<Pool, DbError> {
    let manager_config = ManagerConfig { recycling_method };
    // The door knows what to connect with.
    let manager = Manager::from_connect(tokio_postgres::Config::new(), door, manager_config);
    Pool::builder(manager)
        .max_size(connections_max.max(1))
        // The one used last has its statements prepared.
        .queue_mode(QueueMode::Lifo)
        .pre_recycle(Hook::async_fn(|client, metrics| {
            Box::pin(async move {
                if metrics.last_used() < IDLE_MAX {
                    return Ok(());
                }
                match timeout(CONNECT_TIMEOUT, client.simple_query("")).await {
                    Ok(answered) => answered.map(drop).map_err(HookError::Backend),
                    Err(_) => Err(HookError::message("no answer")),
                }
            })
        }))
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .recycle_timeout(Some(CONNECT_TIMEOUT))
        .build()
        .map_err(|error| DbError::Config(error.to_string()))
}

async fn refuse_role(client: &Object) -> Result<(), DbError> {
    // Asked once a connection of a start: not prepared, which would be a round trip of its own.
    let rows = client
        .query_typed(
            "-- db::refuse_role
             SELECT current_user::text AS name,
                    coalesce(bool_or(r.rolsuper OR r.rolbypassrls), false) AS bypasses,
                    coalesce(bool_or(r.rolcreaterole), false) AS grants,
                    coalesce(bool_or(r.rolname = 'carillon_definer'), false) AS defines,
                    EXISTS (SELECT FROM pg_class c
                             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                               AND pg_has_role(c.relowner, 'MEMBER')) AS owns,
                    EXISTS (SELECT FROM pg_proc f
                             WHERE f.proname = 'pg_logical_emit_message'
                               AND f.pronamespace = 'pg_catalog'::regnamespace
                               AND NOT has_function_privilege(f.oid, 'EXECUTE')) AS cannot_keep
               FROM pg_roles r WHERE pg_has_role(r.oid, 'MEMBER')",
            &[],
        )
        .await?;
    let row = rows
        .first()
        .ok_or_else(|| DbError::Role("the role says nothing of itself".to_owned()))?;
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
    // Each flight would go twice, and its claims wait for their leases' end.
    if row.try_get("cannot_keep")? {
        return Err(DbError::Role(format!(
            "role {name} may not call pg_logical_emit_message; grant it EXECUTE"
        )));
    }
    Ok(())
}

/// Reads one column by name; a wrong name or type is a defect of the statement.
fn column<T: FromSqlOwned>(row: &Row, name: &str) -> Result<T, DbError> {
    Ok(row.try_get(name)?)
}
