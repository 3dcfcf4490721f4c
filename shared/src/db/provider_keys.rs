//! Tenants' own keys of model providers. They come and go sealed.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{DbError, TenantTx, column, tenant_tx::step};
use crate::provider_key::KeyedProvider;

/// A key as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The key's row.
    pub id: Uuid,
    /// Whose key it is.
    pub provider: String,
    /// Which key it is.
    pub fingerprint: String,
    /// Counts changes; the ETag.
    pub version: i64,
    /// When the tenant first brought one.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// A key to store.
#[derive(Debug)]
pub struct NewKey<'a> {
    /// Whose key it is.
    pub provider: KeyedProvider,
    /// The key, sealed.
    pub sealed: &'a [u8],
    /// Which key it is.
    pub fingerprint: &'a str,
}

/// A page of the tenant's keys, by provider. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    tx: TenantTx,
    after: Option<&str>,
    rows_max: i64,
) -> Result<Vec<StoredKey>, DbError> {
    let after = after.unwrap_or_default();
    let results = tx
        .commit_with(&[step(
            "-- provider_keys::list
             SELECT k.id, k.provider, k.fingerprint, k.version, k.created_at, k.updated_at
               FROM provider_keys k WHERE k.provider > $1 ORDER BY k.provider LIMIT $2",
            &[&after, &rows_max],
        )])
        .await?;
    results.iter().flatten().map(read).collect()
}

/// The version of the provider's key, if there is one; nobody else changes it until the transaction
/// ends. One round trip.
///
/// # Errors
/// When the database does not answer, or the row is not free in time.
pub async fn lock(tx: &TenantTx, provider: KeyedProvider) -> Result<Option<i64>, DbError> {
    let row = tx
        .query_opt(
            "-- provider_keys::lock
             SELECT k.version FROM provider_keys k WHERE k.provider = $1 FOR UPDATE",
            &[&provider.as_str()],
        )
        .await?;
    row.map(|row| column(&row, "version")).transpose()
}

/// Stores a key in place of the one that is there, if there is one. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn put(tx: &TenantTx, key: &NewKey<'_>) -> Result<StoredKey, DbError> {
    let row = tx
        .query_one(
            "-- provider_keys::put
             INSERT INTO provider_keys AS k (tenant_id, provider, id, key_sealed, fingerprint)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (tenant_id, provider) DO UPDATE
                SET key_sealed = excluded.key_sealed, fingerprint = excluded.fingerprint,
                    version = k.version + 1, updated_at = now()
             RETURNING k.id, k.provider, k.fingerprint, k.version, k.created_at, k.updated_at",
            &[
                &tx.tenant().uuid(),
                &key.provider.as_str(),
                &Uuid::now_v7(),
                &key.sealed,
                &key.fingerprint,
            ],
        )
        .await?;
    read(&row)
}

/// Deletes a key, and gives its id if there was one. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn delete(tx: &TenantTx, provider: KeyedProvider) -> Result<Option<Uuid>, DbError> {
    let row = tx
        .query_opt(
            "-- provider_keys::delete
             DELETE FROM provider_keys k WHERE k.provider = $1 RETURNING k.id",
            &[&provider.as_str()],
        )
        .await?;
    row.map(|row| column(&row, "id")).transpose()
}

/// The tenant's sealed key of a provider. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn sealed(tx: TenantTx, provider: KeyedProvider) -> Result<Option<Vec<u8>>, DbError> {
    let results = tx
        .commit_with(&[step(
            "-- provider_keys::sealed
             SELECT k.key_sealed FROM provider_keys k WHERE k.provider = $1",
            &[&provider.as_str()],
        )])
        .await?;
    let row = results.iter().flatten().next();
    row.map(|row| column(row, "key_sealed")).transpose()
}

fn read(row: &Row) -> Result<StoredKey, DbError> {
    Ok(StoredKey {
        id: column(row, "id")?,
        provider: column(row, "provider")?,
        fingerprint: column(row, "fingerprint")?,
        version: column(row, "version")?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
    })
}
