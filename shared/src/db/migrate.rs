//! Brings a database to the shape that this program expects.

use tokio_postgres::{Client, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    CONNECT_TIMEOUT, DbError,
    login::{Roots, tls_config, uses_tls},
};
use crate::secret::Secret;

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// Held while migrations run, so that two starts at once apply them one after the other.
const LOCK_KEY: i64 = 0x6361_7269_6c6c_6f6e;

/// Passwords of the two roles that log in; without one a role keeps what it has.
#[derive(Debug, Clone, Default)]
pub struct RolePasswords {
    /// Of `carillon_app`.
    pub app: Option<Secret>,
    /// Of `carillon_system`.
    pub system: Option<Secret>,
}

/// Applies what is missing, in order, and says what it applied. Refuses a database whose applied
/// migrations differ from those of this program.
///
/// `admin_url` names a role that may create roles and tables.
///
/// # Errors
/// `DbError::Migration` when a migration fails or differs; nothing of a failed one is kept.
pub async fn run(admin_url: &Secret, passwords: &RolePasswords) -> Result<Vec<String>, DbError> {
    let mut client = connect(admin_url).await?;
    client
        .execute("SELECT pg_advisory_lock($1)", &[&LOCK_KEY])
        .await?;
    // The lock ends with the connection, whatever happens in between.
    let report = embedded::migrations::runner()
        .set_abort_divergent(true)
        .set_abort_missing(true)
        .run_async(&mut client)
        .await?;
    for (role, password) in [
        ("carillon_app", &passwords.app),
        ("carillon_system", &passwords.system),
    ] {
        if let Some(password) = password {
            set_password(&client, role, password).await?;
        }
    }
    Ok(report
        .applied_migrations()
        .iter()
        .map(ToString::to_string)
        .collect())
}

pub(super) async fn connect(url: &Secret) -> Result<Client, DbError> {
    let mut config: tokio_postgres::Config = url
        .expose()
        .parse()
        .map_err(|_| DbError::Config("the migration URL cannot be read".to_owned()))?;
    config.connect_timeout(CONNECT_TIMEOUT);
    config.options("-c lock_timeout=60s -c client_min_messages=warning");
    if uses_tls(&config) && config.get_ssl_mode() != SslMode::Disable {
        let (client, connection) = config
            .connect(MakeRustlsConnect::new(tls_config(&Roots::default())?))
            .await?;
        tokio::spawn(connection);
        Ok(client)
    } else {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

async fn set_password(client: &Client, role: &str, password: &Secret) -> Result<(), DbError> {
    let row = client
        .query_one(
            "-- migrate::set_password
             SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text) AS statement",
            &[&role, &password.expose()],
        )
        .await?;
    let statement: String = row.try_get("statement")?;
    Ok(client.batch_execute(&statement).await?)
}
