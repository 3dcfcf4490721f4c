//! What the end-to-end tests share: where the servers of the testbed are, and a database a test.
//!
//! Nothing here starts anything. The binary `testbed` does, and says by environment variables what
//! runs where.

pub mod peers;

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls};

/// Any number does, as long as nothing else in the cluster takes it.
const TEMPLATE_LOCK: i64 = 0x6361_7269_6c6c;

/// The URL of the testbed's PostgreSQL: a superuser, on the database `postgres`.
///
/// # Panics
/// When the test does not run in a testbed.
pub fn postgres_url() -> String {
    required("CARILLON_TEST_POSTGRES")
}

/// The URL of the same server and user, on another database.
///
/// # Panics
/// When the test does not run in a testbed.
pub fn database_url(database: &str) -> String {
    let url = postgres_url();
    // The testbed's URL has no query: host, user and database are all that it names.
    match url.rsplit_once('/') {
        Some((server, _)) => format!("{server}/{database}"),
        None => url,
    }
}

/// Makes a database of its own for one test, and returns its name.
///
/// It is a copy of the template `template`, which the first caller makes and `migrate` fills: it
/// gets the URL of the empty template, and must leave no connection open.
///
/// # Errors
/// When PostgreSQL or `migrate` fails.
///
/// # Panics
/// When the test does not run in a testbed.
pub async fn database<F>(template: &str, migrate: impl FnOnce(String) -> F) -> Result<String>
where
    F: Future<Output = Result<()>>,
{
    let admin = connect(&postgres_url()).await?;
    make_template(&admin, template, migrate)
        .await
        .with_context(|| format!("cannot make the template {template}"))?;
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    let sql = format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#);
    admin.batch_execute(&sql).await.context(sql)?;
    Ok(name)
}

/// The program `carillon` that was built with the tests.
///
/// # Errors
/// When it is not beside the test's own folder.
pub fn carillon_program() -> Result<PathBuf> {
    let test = env::current_exe()?;
    let folder = test
        .ancestors()
        .nth(2)
        .context("the test lies in no target folder")?;
    let program = folder.join("carillon");
    anyhow::ensure!(
        program.is_file(),
        "{} is missing; run `cargo build --workspace` first",
        program.display()
    );
    Ok(program)
}

async fn make_template<F>(
    admin: &Client,
    template: &str,
    migrate: impl FnOnce(String) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    // Held by this session; other tests, in this process or another, wait here for the template.
    admin
        .execute("SELECT pg_advisory_lock($1)", &[&TEMPLATE_LOCK])
        .await?;
    let sql = "SELECT 1 FROM pg_database WHERE datname = $1";
    if admin.query_opt(sql, &[&template]).await?.is_none() {
        let unfinished = format!("{template}_unfinished");
        let drop_sql = format!(r#"DROP DATABASE IF EXISTS "{unfinished}" WITH (FORCE)"#);
        admin.batch_execute(&drop_sql).await?;
        admin
            .batch_execute(&format!(r#"CREATE DATABASE "{unfinished}""#))
            .await?;
        migrate(database_url(&unfinished)).await?;
        let sql = format!(r#"ALTER DATABASE "{unfinished}" RENAME TO "{template}""#);
        admin.batch_execute(&sql).await?;
    }
    admin
        .execute("SELECT pg_advisory_unlock($1)", &[&TEMPLATE_LOCK])
        .await?;
    Ok(())
}

async fn connect(url: &str) -> Result<Client> {
    let connecting = tokio_postgres::connect(url, NoTls).await;
    let (client, connection) = connecting.with_context(|| format!("cannot connect to {url}"))?;
    tokio::spawn(connection);
    Ok(client)
}

pub(crate) fn required(name: &str) -> String {
    match env::var(name) {
        Ok(value) => value,
        Err(_) => panic!(
            "{name} is not set: run `./dev test`, or `./dev with-peers cargo test …` for a part"
        ),
    }
}
