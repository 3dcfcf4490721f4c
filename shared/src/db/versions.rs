//! What a prompt's owner wrote, edit by edit. Rows are made by the changes of prompts, and read here.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::{DbError, TenantTx, column, tenant_tx::step};
use crate::ids::PromptId;

/// A version in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = PromptVersionSummary)]
pub struct Summary {
    /// The prompt's version when it was written. Changes of status count too, so that numbers may be
    /// missing here.
    pub version: i64,
    /// Whether new runs use it.
    pub is_current: bool,
    /// The name that the prompt had.
    #[schema(example = "Morning brief")]
    pub prompt_name: String,
    /// The model that it named.
    #[schema(example = "openai/gpt-5-mini")]
    pub model: String,
    /// The fields that differ from the version before; empty for the first.
    #[schema(example = json!(["prompt_text", "schedule"]))]
    pub changed_fields: Vec<String>,
    /// When it was written.
    pub created_at: DateTime<Utc>,
}

/// A version, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// The prompt's version when it was written.
    pub version: i64,
    /// Whether new runs use it.
    pub is_current: bool,
    /// What was written, with the defaults of its time filled in.
    pub spec: Value,
    /// When it was written.
    pub created_at: DateTime<Utc>,
}

/// A page of a prompt's versions before one, newest first, or `None` when callers see no such
/// prompt. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    tx: TenantTx,
    prompt_id: PromptId,
    before: Option<i64>,
    rows_max: i64,
) -> Result<Option<Vec<Summary>>, DbError> {
    let (prompt_id, before) = (prompt_id.uuid(), before.unwrap_or(i64::MAX));
    let results = tx
        .commit_with(&[
            step(
                "-- versions::prompt_exists
                 SELECT p.id FROM scheduled_prompts p WHERE p.id = $1 AND p.deleted_at IS NULL",
                &[&prompt_id],
            ),
            step(
                "-- versions::list
                 SELECT v.version, v.version = p.spec_version AS is_current,
                        v.spec ->> 'prompt_name' AS prompt_name, v.spec ->> 'model' AS model,
                        ARRAY (SELECT COALESCE(new.key, old.key) AS field
                                 FROM jsonb_each(v.spec) new
                                 FULL JOIN jsonb_each(earlier.spec) old ON old.key = new.key
                                WHERE earlier.spec IS NOT NULL AND new.value IS DISTINCT FROM old.value
                                ORDER BY field) AS changed_fields,
                        v.created_at
                   FROM (SELECT w.tenant_id, w.prompt_id, w.version, w.spec, w.created_at
                           FROM prompt_versions w
                          WHERE w.prompt_id = $1 AND w.version < $2
                          ORDER BY w.version DESC LIMIT $3) v
                   JOIN scheduled_prompts p ON p.tenant_id = v.tenant_id AND p.id = v.prompt_id
                   LEFT JOIN LATERAL (
                        SELECT o.spec FROM prompt_versions o
                         WHERE o.tenant_id = v.tenant_id AND o.prompt_id = v.prompt_id
                           AND o.version < v.version
                         ORDER BY o.version DESC LIMIT 1) earlier ON true
                  ORDER BY v.version DESC",
                &[&prompt_id, &before, &rows_max],
            ),
        ])
        .await?;
    match results.as_slice() {
        [found, _] if found.is_empty() => Ok(None),
        [_, rows] => rows
            .iter()
            .map(read_summary)
            .collect::<Result<_, _>>()
            .map(Some),
        _ => Err(DbError::Aborted),
    }
}

/// A version of a prompt that callers see. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn get(
    tx: TenantTx,
    prompt_id: PromptId,
    version: i64,
) -> Result<Option<Version>, DbError> {
    let results = tx
        .commit_with(&[step(GET, &[&prompt_id.uuid(), &version])])
        .await?;
    results.iter().flatten().next().map(read).transpose()
}

/// The same, inside a transaction that goes on.
///
/// # Errors
/// When the database does not answer.
pub async fn find(
    tx: &TenantTx,
    prompt_id: PromptId,
    version: i64,
) -> Result<Option<Version>, DbError> {
    let row = tx.query_opt(GET, &[&prompt_id.uuid(), &version]).await?;
    row.as_ref().map(read).transpose()
}

const GET: &str = "-- versions::get
     SELECT v.version, v.version = p.spec_version AS is_current, v.spec, v.created_at
       FROM prompt_versions v
       JOIN scheduled_prompts p ON p.tenant_id = v.tenant_id AND p.id = v.prompt_id
      WHERE v.prompt_id = $1 AND v.version = $2 AND p.deleted_at IS NULL";

fn read_summary(row: &Row) -> Result<Summary, DbError> {
    Ok(Summary {
        version: column(row, "version")?,
        is_current: column(row, "is_current")?,
        prompt_name: column(row, "prompt_name")?,
        model: column(row, "model")?,
        changed_fields: column(row, "changed_fields")?,
        created_at: column(row, "created_at")?,
    })
}

fn read(row: &Row) -> Result<Version, DbError> {
    Ok(Version {
        version: column(row, "version")?,
        is_current: column(row, "is_current")?,
        spec: column(row, "spec")?,
        created_at: column(row, "created_at")?,
    })
}
