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

/// The user with this address, made if there is none, or again if they were removed. Their role is at
/// least `role`: no key may do more than its user.
///
/// # Errors
/// When the database does not answer.
pub async fn user_with_email(tx: &TenantTx, email: &str, role: Role) -> Result<UserId, DbError> {
    let row = tx
        .query_one(
            "-- auth::user_with_email
             INSERT INTO users (tenant_id, id, email, role) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant_id, lower(email)) DO UPDATE
                SET role = CASE WHEN users.removed_at IS NOT NULL THEN excluded.role
                                WHEN 'owner' IN (users.role, excluded.role) THEN 'owner'
                                WHEN 'editor' IN (users.role, excluded.role) THEN 'editor'
                                ELSE 'viewer' END,
                    version = users.version
                            + CASE WHEN users.removed_at IS NULL
                                    AND (users.role IN ('owner', excluded.role)
                                         OR excluded.role = 'viewer') THEN 0 ELSE 1 END,
                    removed_at = NULL
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

/// Taken before an owner's way in is closed, in a statement of its own: two who close one each must
/// not each count on the other's.
const LOCK_KEYS: &str = "-- auth::lock_keys
    SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";

fn lock_name(tx: &TenantTx) -> String {
    format!("api_keys:{}", tx.tenant())
}

/// An owner who can come in by a token, or by a key that works. It asks for the issuer and not for the
/// subject, which would invite the planner to the one index that does not begin with the tenant.
macro_rules! owner_comes_in {
    ($of_user:literal, $of_key:literal) => {
        concat!(
            "EXISTS (SELECT FROM users o
                      WHERE o.role = 'owner' AND o.removed_at IS NULL AND o.oidc_issuer IS NOT NULL
                        AND ",
            $of_user,
            ") OR EXISTS (SELECT FROM users o JOIN api_keys way
                              ON way.tenant_id = o.tenant_id AND way.user_id = o.id
                           WHERE o.role = 'owner' AND o.removed_at IS NULL AND way.role = 'owner'
                             AND way.revoked_at IS NULL
                             AND (way.expires_at IS NULL OR way.expires_at > now())
                             AND ",
            $of_user,
            " AND ",
            $of_key,
            ")"
        )
    };
}

/// Revokes a key, unless no owner could come in without it.
///
/// # Errors
/// When the database does not answer.
pub async fn revoke_key(tx: &TenantTx, id: ApiKeyId) -> Result<Revoke, DbError> {
    let rows = tx
        .pipeline(&[
            step(LOCK_KEYS, &[&lock_name(tx)]),
            step(
                concat!(
                    "-- auth::revoke_key
                     UPDATE api_keys SET revoked_at = now()
                      WHERE id = $1 AND revoked_at IS NULL
                        AND (role <> 'owner' OR expires_at <= now() OR ",
                    owner_comes_in!("true", "way.id <> $1"),
                    ")
                     RETURNING id"
                ),
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

/// Whom the issuer of tokens calls by which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcIdentity {
    /// The claim `iss`.
    pub issuer: String,
    /// The claim `sub`.
    pub subject: String,
}

/// What a user is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    /// Their address.
    pub email: String,
    /// What they may do, with a token or with a key.
    pub role: Role,
    /// By which tokens they are known.
    pub identity: Option<OidcIdentity>,
}

/// A stored user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredUser {
    /// Their id.
    pub id: UserId,
    /// What they are.
    pub spec: UserSpec,
    /// Counts changes.
    pub version: i64,
    /// When they were made.
    pub created_at: DateTime<Utc>,
    /// When they were last changed.
    pub updated_at: DateTime<Utc>,
}

/// Two users of a tenant cannot have this in common.
pub const IDENTITY_IS_TAKEN: &str = "users_identity";
/// Nor this.
pub const EMAIL_IS_TAKEN: &str = "users_email";

/// Makes a user; one who was removed comes back. `None` when there is one with this address.
///
/// # Errors
/// A unique violation of [`IDENTITY_IS_TAKEN`], or when the database does not answer.
pub async fn insert_user(tx: &TenantTx, spec: &UserSpec) -> Result<Option<StoredUser>, DbError> {
    let identity = spec.identity.as_ref();
    let row = tx
        .query_opt(
            "-- auth::insert_user
             INSERT INTO users (tenant_id, id, email, role, oidc_issuer, oidc_subject)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (tenant_id, lower(email)) DO UPDATE
                SET email = excluded.email, role = excluded.role,
                    oidc_issuer = excluded.oidc_issuer, oidc_subject = excluded.oidc_subject,
                    version = users.version + 1, updated_at = now(), removed_at = NULL
              WHERE users.removed_at IS NOT NULL
             RETURNING id, email, role, oidc_issuer, oidc_subject, version, created_at, updated_at",
            &[
                &tx.tenant().uuid(),
                &UserId::new().uuid(),
                &spec.email,
                &spec.role.as_str(),
                &identity.map(|identity| &identity.issuer),
                &identity.map(|identity| &identity.subject),
            ],
        )
        .await?;
    row.as_ref().map(stored_user).transpose()
}

/// A page of the tenant's users, newest first, without those who were removed.
///
/// # Errors
/// When the database does not answer.
pub async fn users(
    tx: &TenantTx,
    after: Option<UserId>,
    rows_max: i64,
) -> Result<Vec<StoredUser>, DbError> {
    let after = after.map_or(Uuid::max(), UserId::uuid);
    let rows = tx
        .query(
            "-- auth::users
             SELECT id, email, role, oidc_issuer, oidc_subject, version, created_at, updated_at
               FROM users
              WHERE id < $1 AND removed_at IS NULL
              ORDER BY id DESC LIMIT $2",
            &[&after, &rows_max],
        )
        .await?;
    rows.iter().map(stored_user).collect()
}

/// A user, unless they were removed.
///
/// # Errors
/// When the database does not answer.
pub async fn user(tx: &TenantTx, id: UserId) -> Result<Option<StoredUser>, DbError> {
    let row = tx.query_opt(USER, &[&id.uuid()]).await?;
    row.as_ref().map(stored_user).transpose()
}

const USER: &str = "-- auth::user
    SELECT id, email, role, oidc_issuer, oidc_subject, version, created_at, updated_at
      FROM users WHERE id = $1 AND removed_at IS NULL";

/// A user, to be changed by [`change_user`]; nobody else changes a user of the tenant meanwhile.
///
/// # Errors
/// When the database does not answer.
pub async fn user_to_change(tx: &TenantTx, id: UserId) -> Result<Option<StoredUser>, DbError> {
    let rows = tx
        .pipeline(&[
            step(LOCK_KEYS, &[&lock_name(tx)]),
            step(USER, &[&id.uuid()]),
        ])
        .await?;
    let [_, found] = rows.as_slice() else {
        return Err(DbError::Aborted);
    };
    found.first().map(stored_user).transpose()
}

/// Changes a user whom [`user_to_change`] found. `None`, and nothing is changed, when no owner could
/// come in afterwards.
///
/// # Errors
/// A unique violation of [`EMAIL_IS_TAKEN`] or [`IDENTITY_IS_TAKEN`], or when the database does not
/// answer.
pub async fn change_user(
    tx: &TenantTx,
    id: UserId,
    spec: &UserSpec,
) -> Result<Option<StoredUser>, DbError> {
    let identity = spec.identity.as_ref();
    let row = tx
        .query_opt(
            concat!(
                "-- auth::change_user
                 UPDATE users
                    SET email = $2, role = $3, oidc_issuer = $4, oidc_subject = $5,
                        version = version + 1, updated_at = now()
                  WHERE id = $1 AND removed_at IS NULL
                    AND (role <> 'owner' OR ($3 = 'owner' AND $5::text IS NOT NULL)
                         OR ($3 = 'owner' AND EXISTS (
                                 SELECT FROM api_keys k
                                  WHERE k.user_id = $1 AND k.role = 'owner' AND k.revoked_at IS NULL
                                    AND (k.expires_at IS NULL OR k.expires_at > now())))
                         OR ",
                owner_comes_in!("o.id <> $1", "true"),
                ")
                 RETURNING id, email, role, oidc_issuer, oidc_subject, version, created_at, updated_at"
            ),
            &[
                &id.uuid(),
                &spec.email,
                &spec.role.as_str(),
                &identity.map(|identity| &identity.issuer),
                &identity.map(|identity| &identity.subject),
            ],
        )
        .await?;
    row.as_ref().map(stored_user).transpose()
}

/// What became of the wish to remove a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Their tokens and keys are refused from now on.
    Removed,
    /// They were removed before.
    AlreadyRemoved,
    /// No owner could come in without them.
    LastOwner,
    /// The tenant has no such user.
    NoSuchUser,
}

/// Removes a user and revokes their keys, unless no owner could come in without them. What they have
/// made stays.
///
/// # Errors
/// When the database does not answer.
pub async fn remove_user(tx: &TenantTx, id: UserId) -> Result<Removed, DbError> {
    let rows = tx
        .pipeline(&[
            step(LOCK_KEYS, &[&lock_name(tx)]),
            step(
                concat!(
                    "-- auth::remove_user
                     UPDATE users
                        SET removed_at = now(), oidc_issuer = NULL, oidc_subject = NULL,
                            version = version + 1, updated_at = now()
                      WHERE id = $1 AND removed_at IS NULL AND (role <> 'owner' OR ",
                    owner_comes_in!("o.id <> $1", "true"),
                    ")
                     RETURNING id"
                ),
                &[&id.uuid()],
            ),
            step(
                "-- auth::revoke_keys_of_removed
                 UPDATE api_keys k SET revoked_at = now()
                   FROM users u
                  WHERE k.user_id = $1 AND k.revoked_at IS NULL
                    AND u.tenant_id = k.tenant_id AND u.id = k.user_id AND u.removed_at IS NOT NULL",
                &[&id.uuid()],
            ),
            step(
                "-- auth::user_is_removed
                 SELECT removed_at IS NOT NULL AS removed FROM users WHERE id = $1",
                &[&id.uuid()],
            ),
        ])
        .await?;
    let [_, changed, _, state] = rows.as_slice() else {
        return Err(DbError::Aborted);
    };
    Ok(match (changed.first(), state.first()) {
        (Some(_), _) => Removed::Removed,
        (None, None) => Removed::NoSuchUser,
        (None, Some(row)) if column(row, "removed")? => Removed::AlreadyRemoved,
        (None, Some(_)) => Removed::LastOwner,
    })
}

fn stored_user(row: &Row) -> Result<StoredUser, DbError> {
    let role: String = column(row, "role")?;
    let issuer: Option<String> = column(row, "oidc_issuer")?;
    let subject: Option<String> = column(row, "oidc_subject")?;
    Ok(StoredUser {
        id: UserId::from(column::<Uuid>(row, "id")?),
        spec: UserSpec {
            email: column(row, "email")?,
            role: Role::parse(&role).ok_or_else(|| DbError::Stored {
                what: "role",
                detail: format!("there is no role {role}"),
            })?,
            identity: issuer
                .zip(subject)
                .map(|(issuer, subject)| OidcIdentity { issuer, subject }),
        },
        version: column(row, "version")?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
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
