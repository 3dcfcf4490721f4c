//! Calls of the system functions: the only questions that look across tenants.
//!
//! Each answers with ids (and a key's hash), never with a tenant's content; what is found is then
//! read or changed in the tenant's own transaction.

use chrono::{DateTime, Utc};
use deadpool_postgres::Object;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Db, DbError, Param, column};
use crate::{
    ids::{ApiKeyId, DeliveryId, PromptId, RunId, TenantId, UserId},
    message::WakeUp,
};

/// An API key's row, found by the id in the key's text. Its hash is still to be compared.
#[derive(Debug)]
pub struct FoundKey {
    /// The tenant that the key acts for.
    pub tenant_id: TenantId,
    /// The user that the key acts for.
    pub user_id: UserId,
    /// SHA-256 of the whole key.
    pub key_hash: Vec<u8>,
    /// What the key may do: `owner`, `editor` or `viewer`.
    pub role: String,
    /// `revoked`, `expired` or `tenant_suspended`.
    pub refused: Option<String>,
}

/// The key with this id, whoever's it is; notes its use, to the minute.
///
/// # Errors
/// When the database does not answer.
pub async fn find_api_key(db: &Db, id: ApiKeyId) -> Result<Option<FoundKey>, DbError> {
    let rows = query(
        &db.system().await?,
        "-- system::find_api_key
         SELECT tenant_id, user_id, key_hash, role, refused FROM system_find_api_key($1)",
        &[&id.uuid()],
    )
    .await?;
    rows.first()
        .map(|row| {
            Ok(FoundKey {
                tenant_id: TenantId::from(column::<Uuid>(row, "tenant_id")?),
                user_id: UserId::from(column::<Uuid>(row, "user_id")?),
                key_hash: column(row, "key_hash")?,
                role: column(row, "role")?,
                refused: column(row, "refused")?,
            })
        })
        .transpose()
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
    let statement = connection.prepare_cached(sql).await?;
    Ok(connection.query(&statement, params).await?)
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
