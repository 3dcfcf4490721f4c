//! One transaction that sees one tenant.

use deadpool_postgres::Object;
use futures_util::future::{join_all, try_join_all};
use std::sync::atomic::{AtomicU8, Ordering};
use tokio_postgres::{Row, Statement};

use super::{DbError, Param, in_time};
use crate::ids::TenantId;

const FRESH: u8 = 0;
const OPEN: u8 = 1;
const FAILED: u8 = 2;

/// A transaction bound to a tenant by `app.current_tenant_id`, which row-level security reads.
///
/// What cleans the session, `BEGIN` and the setting travel with the first statement, and `COMMIT` may
/// travel with the last, so that a short transaction costs two round trips. Dropped without a commit,
/// it takes its connection out of the pool and closes it: the server rolls back.
pub struct TenantTx {
    connection: Option<Object>,
    tenant: TenantId,
    state: AtomicU8,
}

/// Makes a session as it was when it was opened. A borrower may leave a transaction open or a setting
/// behind; the next must see neither. Without the first BEGIN the server would log a warning each time
/// that none is open; without the second the reset would be a part of what comes behind it.
pub(super) const CLEAN: &str = "BEGIN; ROLLBACK; BEGIN; RESET ALL; COMMIT";

/// Begins a transaction that sees this tenant's rows. One message with one answer: the server sends
/// what it has after each, and each costs the client a wake-up. The text of a UUID cannot end the
/// literal. No `SET LOCAL`: its statistics would have an entry for each tenant.
pub(super) fn begin(tenant: TenantId) -> String {
    format!("BEGIN; SELECT set_config('app.current_tenant_id', '{tenant}', true)")
}

/// One statement of a pipeline.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    sql: &'a str,
    params: &'a [Param<'a>],
    is_needed: bool,
}

/// A statement to send together with others.
pub(super) fn step<'a>(sql: &'a str, params: &'a [Param<'a>]) -> Step<'a> {
    Step {
        sql,
        params,
        is_needed: true,
    }
}

impl Step<'_> {
    /// Not sent unless `is_needed`; then it gives no rows.
    pub(super) fn when(self, is_needed: bool) -> Self {
        Self { is_needed, ..self }
    }

    /// `None` for what is not to be sent.
    pub(super) async fn prepare(
        &self,
        connection: &Object,
    ) -> Result<Option<Statement>, tokio_postgres::Error> {
        if !self.is_needed {
            return Ok(None);
        }
        connection.prepare_cached(self.sql).await.map(Some)
    }

    pub(super) async fn send(
        &self,
        connection: &Object,
        prepared: Option<&Statement>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match prepared {
            Some(statement) => connection.query(statement, self.params).await,
            None => Ok(Vec::new()),
        }
    }
}

impl TenantTx {
    pub(super) fn new(connection: Object, tenant: TenantId) -> Self {
        Self {
            connection: Some(connection),
            tenant,
            state: AtomicU8::new(FRESH),
        }
    }

    /// Whose rows this transaction sees.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Ends the transaction and keeps what it did.
    ///
    /// # Errors
    /// `DbError::Aborted` after a failed statement; any other error leaves the outcome unknown.
    pub async fn commit(self) -> Result<(), DbError> {
        self.commit_with(&[]).await.map(|_| ())
    }

    /// Ends the transaction, keeps nothing of it, and gives the connection back to the pool.
    ///
    /// # Errors
    /// When the connection broke; it is closed then, and the server rolls back by itself.
    pub async fn rollback(mut self) -> Result<(), DbError> {
        let rolled_back = in_time(self.roll_back()).await;
        self.watch(rolled_back)
    }

    async fn roll_back(&mut self) -> Result<(), DbError> {
        if self.state.load(Ordering::Relaxed) != FRESH {
            self.connection()?.batch_execute("ROLLBACK").await?;
        }
        drop(self.connection.take());
        Ok(())
    }

    pub(super) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let mut results = self.pipeline(&[step(sql, params)]).await?;
        Ok(results.pop().unwrap_or_default())
    }

    pub(super) async fn query_opt(
        &self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, DbError> {
        let mut rows = self.query(sql, params).await?;
        if rows.len() > 1 {
            return Err(row_count(sql, 1, rows.len()));
        }
        Ok(rows.pop())
    }

    pub(super) async fn query_one(&self, sql: &str, params: &[Param<'_>]) -> Result<Row, DbError> {
        self.query_opt(sql, params)
            .await?
            .ok_or_else(|| row_count(sql, 1, 0))
    }

    /// Runs a statement without a result and says how many rows it changed.
    pub(super) async fn execute(&self, sql: &str, params: &[Param<'_>]) -> Result<u64, DbError> {
        self.watch(in_time(self.run(sql, params)).await)
    }

    async fn run(&self, sql: &str, params: &[Param<'_>]) -> Result<u64, DbError> {
        let connection = self.connection()?;
        let prepared = connection.prepare_cached(sql).await;
        let statement = self.watch(prepared.map_err(DbError::from))?;
        let opening = self.opening();
        let (opened, changed) =
            futures_util::join!(opening, connection.execute(&statement, params));
        self.watch(opened.and_then(|()| Ok(changed?)))
    }

    /// Sends statements together and gives their rows in the same order.
    pub(super) async fn pipeline(&self, steps: &[Step<'_>]) -> Result<Vec<Vec<Row>>, DbError> {
        self.watch(in_time(self.ask(steps)).await)
    }

    async fn ask(&self, steps: &[Step<'_>]) -> Result<Vec<Vec<Row>>, DbError> {
        let statements = self.prepare(steps).await?;
        let connection = self.connection()?;
        let opening = self.opening();
        let sent = join_all(
            steps
                .iter()
                .zip(&statements)
                .map(|(step, statement)| step.send(connection, statement.as_ref())),
        );
        let (opened, results) = futures_util::join!(opening, sent);
        self.watch(opened.and_then(|()| Ok(results.into_iter().collect::<Result<_, _>>()?)))
    }

    /// Sends statements together with the commit. None of them may depend on how many rows
    /// another changed: by the time that is known, all of it is kept.
    pub(super) async fn commit_with(
        mut self,
        steps: &[Step<'_>],
    ) -> Result<Vec<Vec<Row>>, DbError> {
        let sent = in_time(self.send_with_commit(steps)).await;
        self.watch(sent)
    }

    async fn send_with_commit(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<Row>>, DbError> {
        match self.state.load(Ordering::Relaxed) {
            FAILED => return Err(DbError::Aborted),
            FRESH if steps.is_empty() => {
                drop(self.connection.take());
                return Ok(Vec::new());
            }
            _ => {}
        }
        let statements = self.prepare(steps).await?;
        let results =
            {
                let connection = self.connection()?;
                let opening = self.opening();
                let sent = join_all(steps.iter().zip(&statements).map(
                    async |(step, statement)| {
                        let rows = step.send(connection, statement.as_ref()).await;
                        self.watch(rows.map_err(DbError::from))
                    },
                ));
                // Polled last, when every statement is on its way, or was refused before it was sent:
                // the server would not know of that one, and keep the others.
                let commit = async {
                    match self.state.load(Ordering::Relaxed) {
                        FAILED => Err(DbError::Aborted),
                        _ => Ok(connection.batch_execute("COMMIT").await?),
                    }
                };
                let (opened, results, committed) = futures_util::join!(opening, sent, commit);
                opened?;
                // A commit after a failed statement answers without an error and keeps nothing.
                let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
                committed?;
                results
            };
        drop(self.connection.take());
        Ok(results)
    }

    /// `BEGIN` and the tenant, once. Polled before the first statement, hence sent before it.
    async fn opening(&self) -> Result<(), DbError> {
        if self
            .state
            .compare_exchange(FRESH, OPEN, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
        {
            return Ok(());
        }
        let connection = self.connection()?;
        let opening = format!("{CLEAN}; {}", begin(self.tenant));
        Ok(connection.batch_execute(&opening).await?)
    }

    async fn prepare(&self, steps: &[Step<'_>]) -> Result<Vec<Option<Statement>>, DbError> {
        let connection = self.connection()?;
        let prepared = try_join_all(steps.iter().map(|step| step.prepare(connection)));
        // Inside a transaction a refused text has ended it as a refused statement has.
        self.watch(prepared.await.map_err(DbError::from))
    }

    fn connection(&self) -> Result<&Object, DbError> {
        self.connection.as_ref().ok_or(DbError::Aborted)
    }

    fn watch<T>(&self, result: Result<T, DbError>) -> Result<T, DbError> {
        if result.is_err() {
            self.state.store(FAILED, Ordering::Relaxed);
        }
        result
    }
}

impl Drop for TenantTx {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.state.load(Ordering::Relaxed) != FRESH
        {
            // An unclean exit: whatever the session holds must not reach the next borrower.
            drop(Object::take(connection));
        }
    }
}

fn row_count(sql: &str, expected: u64, changed: usize) -> DbError {
    DbError::RowCount {
        statement: name_of(sql),
        expected,
        changed: u64::try_from(changed).unwrap_or(u64::MAX),
    }
}

/// A statement's first line is a comment with its name.
fn name_of(sql: &str) -> String {
    sql.lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("-- ")
        .to_owned()
}
