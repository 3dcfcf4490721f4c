//! What can go wrong between Carillon and its database.

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

use crate::secrets::SecretError;

/// A failed statement or transaction. Its text may hold database words: never show it to a tenant.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// A setting that cannot work.
    #[error("database configuration: {0}")]
    Config(String),
    /// A role that could see past the wall between tenants.
    #[error("database role: {0}")]
    Role(String),
    /// Nothing to log in with.
    #[error("no database credentials")]
    Secret(#[from] SecretError),
    /// No connection in time.
    #[error("no database connection")]
    Pool(#[from] PoolError),
    /// The database refused a statement, or the connection broke.
    #[error("database statement")]
    Statement(#[source] tokio_postgres::Error),
    /// The connection stayed silent. What was asked may have been done.
    #[error("the database did not answer in time")]
    NoAnswer,
    /// A migration failed, or what was applied differs from what this program holds.
    #[error("database migration")]
    Migration(#[from] refinery::Error),
    /// A fenced write changed no row: somebody else holds the run or delivery now.
    #[error("the lease was lost")]
    StaleLease,
    /// What was seen without a lock is not so any more: look again.
    #[error("what was looked at has changed")]
    StaleLook,
    /// A statement changed another number of rows than it must.
    #[error("{statement} changed {changed} rows instead of {expected}")]
    RowCount {
        /// The statement's name.
        statement: String,
        /// How many rows it must change.
        expected: u64,
        /// How many it changed.
        changed: u64,
    },
    /// A stored document that no longer reads.
    #[error("stored {what} cannot be read: {detail}")]
    Stored {
        /// Which.
        what: &'static str,
        /// Why.
        detail: String,
    },
    /// An earlier statement of the transaction failed, so there is nothing to commit.
    #[error("the transaction had failed before its commit")]
    Aborted,
}

impl From<tokio_postgres::Error> for DbError {
    fn from(error: tokio_postgres::Error) -> Self {
        let checked = error
            .as_db_error()
            .filter(|db| *db.code() == SqlState::CHECK_VIOLATION);
        match checked.and_then(|db| db.constraint()) {
            Some("stale_lease") => Self::StaleLease,
            Some("stale_look") => Self::StaleLook,
            _ => Self::Statement(error),
        }
    }
}

impl DbError {
    /// Whether a transaction may have failed because of those that it was sent with, or of their
    /// connection: a lock that it could not wait for, or no answer.
    pub(super) fn is_of_the_way(&self) -> bool {
        let Self::Statement(error) = self else {
            return false;
        };
        error.code().is_none_or(|code| {
            *code == SqlState::LOCK_NOT_AVAILABLE
                || ["08", "40"].contains(&&code.code()[..2])
                || code.code().starts_with("57P")
        })
    }

    /// The unique constraint or index that a statement ran into.
    #[must_use]
    pub fn unique_violation(&self) -> Option<&str> {
        let Self::Statement(error) = self else {
            return None;
        };
        error
            .as_db_error()
            .filter(|db| *db.code() == SqlState::UNIQUE_VIOLATION)
            .and_then(|db| db.constraint())
    }

    /// Whether the same call may succeed a moment later: no connection, a lock or a time-out.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Pool(_) | Self::NoAnswer => true,
            Self::Secret(error) => error.is_transient(),
            Self::Statement(error) => match error.code() {
                None => true,
                Some(code) => ["08", "40", "53", "57", "55"].contains(&&code.code()[..2]),
            },
            Self::Config(_)
            | Self::Role(_)
            | Self::Migration(_)
            | Self::StaleLease
            | Self::StaleLook
            | Self::RowCount { .. }
            | Self::Stored { .. }
            | Self::Aborted => false,
        }
    }
}
