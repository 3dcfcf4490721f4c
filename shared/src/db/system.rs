//! Calls of the system functions: the only questions that look across tenants.
//!
//! Each answers with ids (and a role), never with a tenant's content; what is found is then
//! read or changed in the tenant's own transaction.

use chrono::{DateTime, Utc};
use deadpool_postgres::Object;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Db, DbError, Param, column, in_time};
use crate::{
    api_key::Role,
    ids::{ApiKeyId, DeliveryId, PromptId, RunId, TenantId, UserId},
    message::WakeUp,
};

/// A user of a tenant, and what they may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The user.
    pub user_id: UserId,
    /// The role: of a key, never more than its user's.
    pub role: Role,
}

/// Why a caller who is known is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The key was revoked, or its user removed.
    Revoked,
    /// The key has expired.
    Expired,
    /// The tenant is suspended.
    TenantSuspended,
    /// The caller, or the tenant, has made too many requests.
    RateLimited {
        /// Until the next may be made.
        retry_after_ms: i32,
    },
}

/// Who makes a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Identified {
    /// Nobody who is known here.
    Nobody,
    /// A key's id was sent with wrong secrets, again and again.
    TooManyAttempts {
        /// Until the next may be made.
        retry_after_ms: i32,
    },
    /// A user of these tenants, who named none of them.
    OfSeveral(Vec<TenantId>),
    /// A user, or a key of theirs, who may not go on.
    Refused(Member, Refused),
    /// A user, or a key of theirs.
    Is(Member),
}

/// Who holds the key with this id and hash; counts the request, or the wrong secret, and notes the
/// key's use, to the minute.
///
/// # Errors
/// When the database does not answer.
pub async fn identify_key(db: &Db, id: ApiKeyId, hash: &[u8; 32]) -> Result<Identified, DbError> {
    let salt = rand::random::<[u8; 16]>();
    let rows = query(
        &db.system().await?,
        "-- system::identify_key
         SELECT tenant_id, user_id, role, refused, retry_after_ms
           FROM system_identify_key($1, $2, $3)",
        &[&id.uuid(), &hash.as_slice(), &salt.as_slice()],
    )
    .await?;
    identified(&rows)
}

/// The user whom this issuer calls by this subject, in the tenant `wanted`, or in the only one that
/// they belong to; counts the request.
///
/// # Errors
/// When the database does not answer.
pub async fn identify_user(
    db: &Db,
    issuer: &str,
    subject: &str,
    wanted: Option<TenantId>,
) -> Result<Identified, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::identify_user
         SELECT tenant_id, user_id, role, refused, retry_after_ms
           FROM system_identify_user($1, $2, $3)",
        &[&issuer, &subject, &wanted.map(TenantId::uuid)],
    )
    .await?;
    identified(&rows)
}

fn identified(rows: &[Row]) -> Result<Identified, DbError> {
    let Some(row) = rows.first() else {
        return Ok(Identified::Nobody);
    };
    let retry_after_ms =
        || Ok::<_, DbError>(column::<Option<i32>>(row, "retry_after_ms")?.unwrap_or_default());
    let refused = match column::<Option<String>>(row, "refused")?.as_deref() {
        None => return Ok(Identified::Is(member(row)?)),
        Some("too_many_attempts") => {
            let retry_after_ms = retry_after_ms()?;
            return Ok(Identified::TooManyAttempts { retry_after_ms });
        }
        Some("tenant_not_named") => {
            let tenants = rows.iter().map(|row| Ok(member(row)?.tenant_id));
            return Ok(Identified::OfSeveral(
                tenants.collect::<Result<_, DbError>>()?,
            ));
        }
        Some("revoked") => Refused::Revoked,
        Some("expired") => Refused::Expired,
        Some("tenant_suspended") => Refused::TenantSuspended,
        Some("rate_limited") => Refused::RateLimited {
            retry_after_ms: retry_after_ms()?,
        },
        Some(other) => {
            return Err(DbError::Stored {
                what: "refusal",
                detail: format!("there is no reason {other}"),
            });
        }
    };
    Ok(Identified::Refused(member(row)?, refused))
}

fn member(row: &Row) -> Result<Member, DbError> {
    let role: String = column(row, "role")?;
    Ok(Member {
        tenant_id: TenantId::from(column::<Uuid>(row, "tenant_id")?),
        user_id: UserId::from(column::<Uuid>(row, "user_id")?),
        role: Role::parse(&role).ok_or_else(|| DbError::Stored {
            what: "role",
            detail: format!("there is no role {role}"),
        })?,
    })
}

/// Prompts whose next slot has come: tenants take turns, oldest first.
///
/// # Errors
/// When the database does not answer.
pub async fn due_prompts(db: &Db, rows_max: i32) -> Result<Vec<WakeUp>, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::due_prompts
         SELECT tenant_id, prompt_id AS id FROM system_due_prompts($1)",
        &[&rows_max],
    )
    .await?;
    wake_ups(&rows, |tenant_id, id| WakeUp::Prompt {
        tenant_id,
        prompt_id: PromptId::from(id),
    })
}

/// Queued runs whose time has come and whose tenant has a place free, and running ones whose claimant
/// vanished: tenants take turns, oldest first.
///
/// # Errors
/// When the database does not answer.
pub async fn due_runs(db: &Db, rows_max: i32) -> Result<Vec<WakeUp>, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::due_runs
         SELECT tenant_id, run_id AS id FROM system_due_runs($1)",
        &[&rows_max],
    )
    .await?;
    wake_ups(&rows, |tenant_id, id| WakeUp::Run {
        tenant_id,
        run_id: RunId::from(id),
    })
}

/// Deliveries whose next attempt has come, and those whose sender vanished: tenants take turns, oldest
/// first.
///
/// # Errors
/// When the database does not answer.
pub async fn due_deliveries(db: &Db, rows_max: i32) -> Result<Vec<WakeUp>, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::due_deliveries
         SELECT tenant_id, delivery_id AS id FROM system_due_deliveries($1)",
        &[&rows_max],
    )
    .await?;
    wake_ups(&rows, |tenant_id, id| WakeUp::Delivery {
        tenant_id,
        delivery_id: DeliveryId::from(id),
    })
}

/// What the operator's list of tenants shows.
#[derive(Debug)]
pub struct TenantSummary {
    /// The tenant.
    pub id: TenantId,
    /// Its name.
    pub name: String,
    /// `active` or `suspended`.
    pub status: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A page of tenants in the order of their ids.
///
/// # Errors
/// When the database does not answer.
pub async fn tenants(
    db: &Db,
    after: Option<TenantId>,
    rows_max: i32,
) -> Result<Vec<TenantSummary>, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::tenants
         SELECT tenant_id, name, status, created_at FROM system_tenants($1, $2)",
        &[&after.map(TenantId::uuid), &rows_max],
    )
    .await?;
    rows.iter()
        .map(|row| {
            Ok(TenantSummary {
                id: TenantId::from(column::<Uuid>(row, "tenant_id")?),
                name: column(row, "name")?,
                status: column(row, "status")?,
                created_at: column(row, "created_at")?,
            })
        })
        .collect()
}

/// A prompt, and whose it is.
pub type Owned = (TenantId, PromptId);

/// Tenants with prompts whose entries do not follow their rows, in the order of their ids.
///
/// # Errors
/// When the database does not answer.
pub async fn unsynced_tenants(
    db: &Db,
    after: TenantId,
    rows_max: i32,
) -> Result<Vec<TenantId>, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::unsynced_tenants
         SELECT tenant_id FROM system_unsynced_tenants($1, $2)",
        &[&after.uuid(), &rows_max],
    )
    .await?;
    rows.iter()
        .map(|row| Ok(TenantId::from(column::<Uuid>(row, "tenant_id")?)))
        .collect()
}

/// Prompts of these tenants whose entries are to be made to follow their rows now, each tenant in
/// turn.
///
/// # Errors
/// When the database does not answer.
pub async fn unsynced_prompts(
    db: &Db,
    tenants: &[TenantId],
    rows_max: i32,
) -> Result<Vec<Owned>, DbError> {
    let tenants: Vec<Uuid> = tenants.iter().map(|tenant| tenant.uuid()).collect();
    let rows = query(
        &db.system().await?,
        "-- system::unsynced_prompts
         SELECT tenant_id, prompt_id FROM system_unsynced_prompts($1, $2)",
        &[&tenants, &rows_max],
    )
    .await?;
    rows.iter().map(owned).collect()
}

/// Prompts that may have entries, in the order of their ids.
///
/// # Errors
/// When the database does not answer.
pub async fn prompts_with_entries(
    db: &Db,
    after: PromptId,
    rows_max: i32,
) -> Result<Vec<Owned>, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::prompts_with_entries
         SELECT tenant_id, prompt_id FROM system_prompts_with_entries($1, $2)",
        &[&after.uuid(), &rows_max],
    )
    .await?;
    rows.iter().map(owned).collect()
}

/// A prompt that may have entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryOwner {
    /// Whose.
    pub tenant_id: TenantId,
    /// Which.
    pub prompt_id: PromptId,
    /// It has no slots, hence no entries.
    pub is_manual: bool,
    /// Its entries are to fire.
    pub is_active: bool,
}

/// Which of these prompts may have entries.
///
/// # Errors
/// When the database does not answer.
pub async fn entries_of(db: &Db, prompts: &[PromptId]) -> Result<Vec<EntryOwner>, DbError> {
    let prompts: Vec<Uuid> = prompts.iter().map(|prompt| prompt.uuid()).collect();
    let rows = query(
        &db.system().await?,
        "-- system::entries_of
         SELECT tenant_id, prompt_id, is_manual, is_active FROM system_entries_of($1)",
        &[&prompts],
    )
    .await?;
    rows.iter()
        .map(|row| {
            let (tenant_id, prompt_id) = owned(row)?;
            Ok(EntryOwner {
                tenant_id,
                prompt_id,
                is_manual: column(row, "is_manual")?,
                is_active: column(row, "is_active")?,
            })
        })
        .collect()
}

/// Where the search for drift goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftCursor {
    /// AWS's token for the next page of entries; `None`: from the start.
    pub list_token: Option<String>,
    /// The prompt whose entries were compared last.
    pub prompt_after: PromptId,
    /// The last tenant whose changes were looked for.
    pub tenant_after: TenantId,
}

/// Where the search for drift goes on.
///
/// # Errors
/// When the database does not answer.
pub async fn drift_cursor(db: &Db) -> Result<DriftCursor, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::drift_cursor
         SELECT list_token, prompt_after, tenant_after FROM system_drift_cursor()",
        &[],
    )
    .await?;
    let row = rows.first().ok_or_else(|| DbError::Stored {
        what: "drift cursor",
        detail: "its row is gone".to_owned(),
    })?;
    Ok(DriftCursor {
        list_token: column(row, "list_token")?,
        prompt_after: PromptId::from(column::<Uuid>(row, "prompt_after")?),
        tenant_after: TenantId::from(column::<Uuid>(row, "tenant_after")?),
    })
}

/// Notes where the search for drift goes on.
///
/// # Errors
/// When the database does not answer.
pub async fn move_drift_cursor(db: &Db, cursor: &DriftCursor) -> Result<(), DbError> {
    query(
        &db.system().await?,
        "-- system::move_drift_cursor
         SELECT system_move_drift_cursor($1, $2, $3)",
        &[
            &cursor.list_token,
            &cursor.prompt_after.uuid(),
            &cursor.tenant_after.uuid(),
        ],
    )
    .await
    .map(drop)
}

fn owned(row: &Row) -> Result<Owned, DbError> {
    Ok((
        TenantId::from(column::<Uuid>(row, "tenant_id")?),
        PromptId::from(column::<Uuid>(row, "prompt_id")?),
    ))
}

async fn query(connection: &Object, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
    // Its pool asks a connection whether it is well before the next borrower has it.
    in_time(async {
        let statement = connection.prepare_cached(sql).await?;
        Ok(connection.query(&statement, params).await?)
    })
    .await
}

fn wake_ups(
    rows: &[Row],
    build: impl Fn(TenantId, Uuid) -> WakeUp,
) -> Result<Vec<WakeUp>, DbError> {
    rows.iter()
        .map(|row| {
            Ok(build(
                TenantId::from(column::<Uuid>(row, "tenant_id")?),
                column(row, "id")?,
            ))
        })
        .collect()
}
