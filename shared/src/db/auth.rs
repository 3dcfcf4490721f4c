//! Users and API keys of a tenant.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{DbError, TenantTx, column, tenant_tx::step};
use crate::{
    api_key::Role,
    ids::{ApiKeyId, UserId},
};

/// A key that is to be stored; its text is not part of it.
#[derive(Debug)]
pub struct NewKey<'a> {
    /// The id in the key's text.
    pub id: ApiKeyId,
    /// The user that it acts for.
    pub user_id: UserId,
    /// What its maker calls it.
    pub name: &'a str,
    /// Its text up to the secret part.
    pub prefix: &'a str,
    /// SHA-256 of its text.
    pub hash: [u8; 32],
    /// What it may do.
    pub role: Role,
    /// From when on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A stored key.
#[derive(Debug)]
pub struct StoredKey {
    /// Its id.
    pub id: ApiKeyId,
    /// The user that it acts for.
    pub user_id: UserId,
    /// That user's address.
    pub email: String,
    /// What its maker calls it.
    pub name: String,
    /// Its text up to the secret part.
    pub prefix: String,
    /// What it may do.
    pub role: String,
    /// From when on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
    /// Since when it is refused.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, exact to a minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// The user with this address, made if there is none. A user's role is the highest of its keys'.
///
/// # Errors
/// When the database does not answer.
pub async fn user_with_email(tx: &TenantTx, email: &str, role: Role) -> Result<UserId, DbError> {
    let row = tx
        .query_one(
            "-- auth::user_with_email
             INSERT INTO users (tenant_id, id, email, role) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant_id, lower(email)) DO UPDATE
                SET role = CASE WHEN 'owner' IN (users.role, excluded.role) THEN 'owner'
                                WHEN 'editor' IN (users.role, excluded.role) THEN 'editor'
                                ELSE 'viewer' END
             RETURNING id",
            &[
                &tx.tenant().uuid(),
                &UserId::new().uuid(),
                &email,
                &role.as_str(),
            ],
        )
        .await?;
    Ok(UserId::from(column::<Uuid>(&row, "id")?))
}

/// Stores a key and gives it back as stored.
///
/// # Errors
/// When the database does not answer.
pub async fn insert_key(tx: &TenantTx, key: &NewKey<'_>) -> Result<StoredKey, DbError> {
    let row = tx
        .query_one(
            "-- auth::insert_key
             WITH k AS (
                 INSERT INTO api_keys
                        (tenant_id, id, user_id, name, prefix, key_hash, role, expires_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                 RETURNING id, user_id, name, prefix, role, expires_at, revoked_at, last_used_at,
                           created_at)
             SELECT k.id, k.user_id, u.email, k.name, k.prefix, k.role, k.expires_at, k.revoked_at,
                    k.last_used_at, k.created_at
               FROM k JOIN users u ON u.id = k.user_id",
            &[
                &tx.tenant().uuid(),
                &key.id.uuid(),
                &key.user_id.uuid(),
                &key.name,
                &key.prefix,
                &key.hash.as_slice(),
                &key.role.as_str(),
                &key.expires_at,
            ],
        )
        .await?;
    stored(&row)
}

/// A page of the tenant's keys, newest first, revoked ones included.
///
/// # Errors
/// When the database does not answer.
pub async fn keys(
    tx: &TenantTx,
    after: Option<ApiKeyId>,
    rows_max: i64,
) -> Result<Vec<StoredKey>, DbError> {
    let after = after.map_or(Uuid::max(), ApiKeyId::uuid);
    let rows = tx
        .query(
            "-- auth::keys
             SELECT k.id, k.user_id, u.email, k.name, k.prefix, k.role, k.expires_at, k.revoked_at,
                    k.last_used_at, k.created_at
               FROM api_keys k JOIN users u ON u.tenant_id = k.tenant_id AND u.id = k.user_id
              WHERE k.id < $1
              ORDER BY k.id DESC LIMIT $2",
            &[&after, &rows_max],
        )
        .await?;
    rows.iter().map(stored).collect()
}

/// What became of the wish to revoke a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoke {
    /// It is refused from now on.
    Revoked,
    /// It was refused before.
    AlreadyRevoked,
    /// It is the last one that may make others.
    LastOwnerKey,
    /// The tenant has no such key.
    NoSuchKey,
}

/// Revokes a key, unless it is the last owner key that works.
///
/// # Errors
/// When the database does not answer.
pub async fn revoke_key(tx: &TenantTx, id: ApiKeyId) -> Result<Revoke, DbError> {
    let lock_name = format!("api_keys:{}", tx.tenant());
    // The lock first, in a statement of its own: two revocations at once must not each count on
    // the other's key.
    let rows = tx
        .pipeline(&[
            step(
                "-- auth::lock_keys
                 SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
                &[&lock_name],
            ),
            step(
                "-- auth::revoke_key
                 UPDATE api_keys SET revoked_at = now()
                  WHERE id = $1 AND revoked_at IS NULL
                    AND (role <> 'owner' OR expires_at <= now()
                         OR EXISTS (SELECT FROM api_keys other
                                     WHERE other.role = 'owner' AND other.id <> $1
                                       AND other.revoked_at IS NULL
                                       AND (other.expires_at IS NULL OR other.expires_at > now())))
                 RETURNING id",
                &[&id.uuid()],
            ),
            step(
                "-- auth::key_is_revoked
                 SELECT revoked_at IS NOT NULL AS revoked FROM api_keys WHERE id = $1",
                &[&id.uuid()],
            ),
        ])
        .await?;
    let [_, changed, state] = rows.as_slice() else {
        return Err(DbError::Aborted);
    };
    Ok(match (changed.first(), state.first()) {
        (Some(_), _) => Revoke::Revoked,
        (None, None) => Revoke::NoSuchKey,
        (None, Some(row)) if column(row, "revoked")? => Revoke::AlreadyRevoked,
        (None, Some(_)) => Revoke::LastOwnerKey,
    })
}

fn stored(row: &Row) -> Result<StoredKey, DbError> {
    Ok(StoredKey {
        id: ApiKeyId::from(column::<Uuid>(row, "id")?),
        user_id: UserId::from(column::<Uuid>(row, "user_id")?),
        email: column(row, "email")?,
        name: column(row, "name")?,
        prefix: column(row, "prefix")?,
        role: column(row, "role")?,
        expires_at: column(row, "expires_at")?,
        revoked_at: column(row, "revoked_at")?,
        last_used_at: column(row, "last_used_at")?,
        created_at: column(row, "created_at")?,
    })
}
