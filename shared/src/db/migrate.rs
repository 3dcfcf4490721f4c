//! Brings a database to the shape that this program expects.

use std::collections::BTreeSet;

use postgres_protocol::password::scram_sha_256;
use refinery::Runner;
use serde::Deserialize;
use tokio_postgres::{Client, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    CONNECT_TIMEOUT, DbError,
    login::{self, Roots, uses_tls},
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

/// What secrets hold, each as its text.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// Of a role that may create roles and tables: `username` and `password`.
    pub admin: Secret,
    /// Of `carillon_app`, with the database's address, as [`super::Login::Stored`] takes it.
    pub app: Secret,
    /// Of `carillon_system`, the same.
    pub system: Secret,
}

#[derive(Deserialize)]
struct Admin {
    username: String,
    password: String,
}

/// Applies what is missing, in order, and says what it applied. Refuses a database whose applied
/// migrations differ from those of this program. One that is ahead, because a newer program was
/// there, is left as it is: migrations only add what an older program does not mind.
///
/// `admin_url` names a role that may create roles and tables.
///
/// # Errors
/// `DbError::Migration` when a migration fails or differs; nothing of a failed one is kept.
pub async fn run(admin_url: &Secret, passwords: &RolePasswords) -> Result<Vec<String>, DbError> {
    apply(&mut connect(admin_url).await?, passwords).await
}

/// As [`run`], with what stands in secrets: the address in that of `carillon_app`, and there and in
/// that of `carillon_system` the password which the role is given.
///
/// # Errors
/// As [`run`], and `DbError::Config` for a secret that holds something else.
pub async fn run_stored(secrets: &Secrets, roots: &Roots) -> Result<Vec<String>, DbError> {
    let (mut config, app) = role(&secrets.app, "carillon_app")?;
    let (_, system) = role(&secrets.system, "carillon_system")?;
    // The parser's own words may repeat what it read.
    let admin: Admin = serde_json::from_str(secrets.admin.expose()).map_err(|_| {
        DbError::Config(
            "the administrator's secret must hold JSON with username and password".to_owned(),
        )
    })?;
    config
        .user(admin.username)
        .password(Secret::new(admin.password).expose());
    let passwords = RolePasswords {
        app: Some(app),
        system: Some(system),
    };
    apply(&mut open(config, roots).await?, &passwords).await
}

/// Where a role's secret says that the database is, and the role's password. A secret of another role
/// would give the role a password that somebody else knows.
fn role(secret: &Secret, name: &str) -> Result<(tokio_postgres::Config, Secret), DbError> {
    let fault = |detail: &str| DbError::Config(format!("the secret of {name} {detail}"));
    let config = login::read_credentials(secret.expose()).map_err(fault)?;
    if config.get_user() != Some(name) {
        return Err(fault("names another role"));
    }
    let password = config
        .get_password()
        .and_then(|bytes| std::str::from_utf8(bytes).ok());
    let password = password.filter(|text| !text.is_empty());
    let password = password.ok_or_else(|| fault("holds no password"))?;
    let password = Secret::new(password);
    Ok((config, password))
}

async fn apply(client: &mut Client, passwords: &RolePasswords) -> Result<Vec<String>, DbError> {
    client
        .execute("SELECT pg_advisory_lock($1)", &[&LOCK_KEY])
        .await?;
    // The lock ends with the connection, whatever happens in between.
    let runner = embedded::migrations::runner().set_abort_divergent(true);
    let ahead = is_ahead(client, &runner).await?;
    let report = runner.set_abort_missing(!ahead).run_async(client).await?;
    for (role, password) in [
        ("carillon_app", &passwords.app),
        ("carillon_system", &passwords.system),
    ] {
        if let Some(password) = password {
            set_password(client, role, password).await?;
        }
    }
    Ok(report
        .applied_migrations()
        .iter()
        .map(ToString::to_string)
        .collect())
}

/// Whether the database has every migration of this program and newer ones. One that lacks an older
/// migration is not ahead but broken, and must not be left so in silence.
async fn is_ahead(client: &Client, runner: &Runner) -> Result<bool, DbError> {
    let row = client
        .query_one(
            "-- migrate::is_ahead
             SELECT to_regclass('refinery_schema_history') IS NOT NULL AS migrated",
            &[],
        )
        .await?;
    if !row.try_get::<_, bool>("migrated")? {
        return Ok(false);
    }
    let rows = client
        .query(
            "-- migrate::versions
             SELECT version::bigint AS version FROM refinery_schema_history",
            &[],
        )
        .await?;
    let applied: BTreeSet<i64> = rows
        .iter()
        .map(|row| row.try_get("version"))
        .collect::<Result<_, _>>()?;
    let ours = runner
        .get_migrations()
        .iter()
        .map(|one| i64::from(one.version()));
    let ours: BTreeSet<i64> = ours.collect();
    let mut others = applied.difference(&ours).peekable();
    Ok(others.peek().is_some()
        && ours.is_subset(&applied)
        && others.all(|version| ours.last().is_some_and(|last| version > last)))
}

pub(super) async fn connect(url: &Secret) -> Result<Client, DbError> {
    let config: tokio_postgres::Config = url
        .expose()
        .parse()
        .map_err(|_| DbError::Config("the migration URL cannot be read".to_owned()))?;
    open(config, &Roots::default()).await
}

async fn open(mut config: tokio_postgres::Config, roots: &Roots) -> Result<Client, DbError> {
    config.connect_timeout(CONNECT_TIMEOUT);
    config.options("-c lock_timeout=60s -c client_min_messages=warning");
    if uses_tls(&config) && config.get_ssl_mode() != SslMode::Disable {
        let (client, connection) = config
            .connect(MakeRustlsConnect::new(crate::tls::trusting(
                roots.certificates(),
            )))
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
    // The server may log statements that change roles: it gets what checks the password, not the
    // password.
    let verifier = scram_sha_256(password.expose().as_bytes());
    let row = client
        .query_one(
            "-- migrate::set_password
             SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text) AS statement",
            &[&role, &verifier],
        )
        .await?;
    let statement: String = row.try_get("statement")?;
    Ok(client.batch_execute(&statement).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(username: &str, password: &str) -> Secret {
        Secret::new(format!(
            r#"{{"host": "db", "port": "5432", "dbname": "carillon", "sslmode": "require",
                "username": "{username}", "password": "{password}"}}"#
        ))
    }

    #[test]
    fn a_role_is_given_its_own_password_alone() {
        let (config, password) = role(&secret("carillon_app", "hunter2"), "carillon_app").unwrap();
        assert_eq!(config.get_dbname(), Some("carillon"));
        assert_eq!(password.expose(), "hunter2");
        for (secret, fault) in [
            (secret("carillon_system", "hunter2"), "names another role"),
            (secret("carillon_app", ""), "holds no password"),
            (Secret::new("hunter2"), "must hold JSON"),
        ] {
            let told = role(&secret, "carillon_app").unwrap_err().to_string();
            assert!(
                told.contains("carillon_app") && told.contains(fault),
                "{told}"
            );
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
