//! What the end-to-end tests share: where the servers of the testbed are, and a database a test.
//!
//! Nothing here starts anything. The binary `testbed` does, and says by environment variables what
//! runs where.

pub mod bootstrap;
pub mod canary;
pub mod chance;
pub mod chaos;
pub mod fault_proxy;
pub mod fuzz;
pub mod hostile;
pub mod logs;
pub mod model;
pub mod peers;
pub mod rehearsal;
pub mod runtime_api;
pub mod scripted;
pub mod smtp_refusal;
pub mod stage;
pub mod tap;
pub mod worker;
pub mod world;

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls};

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
    make_once(&admin, template, migrate)
        .await
        .with_context(|| format!("cannot make the template {template}"))?;
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    let sql = format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#);
    admin.batch_execute(&sql).await.context(sql)?;
    Ok(name)
}

/// Makes a database that all tests of the cluster share, unless another test has made it already.
/// `fill` gets the URL of the empty database, and must leave no connection open.
///
/// # Errors
/// When PostgreSQL or `fill` fails.
///
/// # Panics
/// When the test does not run in a testbed.
pub async fn shared_database<F>(name: &str, fill: impl FnOnce(String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let admin = connect(&postgres_url()).await?;
    make_once(&admin, name, fill)
        .await
        .with_context(|| format!("cannot make the database {name}"))
}

/// A connection of its own; it ends when the client is dropped.
///
/// # Errors
/// When PostgreSQL refuses it.
pub async fn connect(url: &str) -> Result<Client> {
    let connecting = tokio_postgres::connect(url, NoTls).await;
    let (client, connection) = connecting.with_context(|| format!("cannot connect to {url}"))?;
    tokio::spawn(connection);
    Ok(client)
}

/// The program `carillon` that was built with the tests.
///
/// # Errors
/// When it is not beside the test's own folder.
pub fn carillon_program() -> Result<PathBuf> {
    program("carillon")
}

/// A program of this workspace that was built with the tests.
///
/// # Errors
/// When it is not beside the test's own folder.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = env::current_exe()?;
    // A test lies one folder deeper than a program.
    let folders = test.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .with_context(|| {
            let test = test.display();
            format!("no {name} is beside {test}; run `cargo build --workspace` first")
        })
}

async fn make_once<F>(admin: &Client, name: &str, fill: impl FnOnce(String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    // Held by this session; other tests, in this process or another, wait here for this database.
    let lock = format!("make {name}");
    admin
        .execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", &[&lock])
        .await?;
    let sql = "SELECT 1 FROM pg_database WHERE datname = $1";
    if admin.query_opt(sql, &[&name]).await?.is_none() {
        let unfinished = format!("{name}_unfinished");
        let drop_sql = format!(r#"DROP DATABASE IF EXISTS "{unfinished}" WITH (FORCE)"#);
        admin.batch_execute(&drop_sql).await?;
        admin
            .batch_execute(&format!(r#"CREATE DATABASE "{unfinished}""#))
            .await?;
        fill(database_url(&unfinished)).await?;
        let sql = format!(r#"ALTER DATABASE "{unfinished}" RENAME TO "{name}""#);
        admin.batch_execute(&sql).await?;
    }
    admin
        .execute(
            "SELECT pg_advisory_unlock(hashtextextended($1, 0))",
            &[&lock],
        )
        .await?;
    Ok(())
}

pub(crate) fn required(name: &str) -> String {
    match env::var(name) {
        Ok(value) => value,
        Err(_) => panic!(
            "{name} is not set: run `./dev test`, or `./dev with-peers cargo test …` for a part"
        ),
    }
}
