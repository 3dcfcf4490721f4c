//! The versions of a prompt: what its owner wrote, edit by edit.

use axum::{Json, extract::State, response::Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use shared::{
    api_key::Role,
    db::{
        TenantTx,
        audit::Action,
        versions::{self, Summary, Version},
    },
    ids::PromptId,
    prompt::PromptSpec,
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    IfMatchParam,
    change::{self, Edit},
    changed,
    view::PromptView,
};
use crate::{
    app::App,
    auth::Caller,
    command::Command,
    error::{ApiError, Problem},
    page::{Cursor, Page},
    query::Query,
    request::{IfMatch, PathId, PathVersion},
};

/// List a prompt's versions
///
/// Newest first. Each edit of what a prompt is made one; a change of status made none.
#[utoipa::path(
    get, path = "/v1/prompts/{id}/versions", tag = "prompts",
    params(
        ("id" = Uuid, Path, description = "The prompt"),
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of versions", body = Page<Summary>))
)]
pub(super) async fn list_prompt_versions(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    mut query: Query,
) -> Result<Json<Page<Summary>>, ApiError> {
    const SCOPE: &str = "prompt_versions";
    let limit = query.limit();
    let cursor = query.cursor::<i64>(SCOPE);
    query.finish()?;
    let before = cursor.map(|Cursor { key, .. }| key);
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = versions::list(tx, id, before, limit.fetch())
        .await?
        .ok_or_else(ApiError::not_found)?;
    let place = |row: &Summary| (row.version, Uuid::nil());
    Ok(Json(Page::new(rows, limit, SCOPE, place, |row| row)))
}

/// Read a version of a prompt
///
/// What the prompt was, whole.
#[utoipa::path(
    get, path = "/v1/prompts/{id}/versions/{version}", tag = "prompts",
    params(
        ("id" = Uuid, Path, description = "The prompt"),
        ("version" = i64, Path, minimum = 1, description = "The number of the version"),
    ),
    responses((status = 200, description = "The version", body = VersionView))
)]
pub(super) async fn get_prompt_version(
    State(app): State<App>,
    caller: Caller,
    PathVersion(id, version): PathVersion,
    query: Query,
) -> Result<Json<VersionView>, ApiError> {
    query.finish()?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let version = versions::get(tx, id, version)
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(Json(VersionView::from(version)))
}

/// Restore a version of a prompt
///
/// Makes the prompt what it was, as a new version: the same as a PUT of that version, judged by the
/// rules of today.
#[utoipa::path(
    post, path = "/v1/prompts/{id}/versions/{version}/restore", tag = "prompts",
    params(
        ("id" = Uuid, Path, description = "The prompt"),
        ("version" = i64, Path, minimum = 1, description = "The number of the version"),
        IfMatchParam,
    ),
    responses(
        (status = 200, description = "The prompt", body = PromptView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`prompt_ended`, `external_id_taken`, or an equal request is under way",
         body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The prompt is not at the version of `If-Match`", body = Problem,
         content_type = "application/problem+json"),
    )
)]
pub(super) async fn restore_prompt_version(
    State(app): State<App>,
    caller: Caller,
    PathVersion(id, version): PathVersion,
    if_match: IfMatch,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let version = versions::find(tx, id, version)
            .await?
            .ok_or_else(ApiError::not_found)?;
        let edit = change::edit(&app, tx, id, &if_match, Edit::Replace(&version.spec));
        changed(&app, edit.await?)
    };
    command
        .run(&app, &caller, Role::Editor, Action::PromptRestored, handler)
        .await
}

/// A version of a prompt.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PromptVersion)]
pub(super) struct VersionView {
    /// The prompt's version when it was written.
    version: i64,
    /// Whether new runs use it.
    is_current: bool,
    /// What the prompt was.
    #[schema(value_type = PromptSpec)]
    spec: Value,
    /// When it was written.
    created_at: DateTime<Utc>,
}

impl From<Version> for VersionView {
    fn from(version: Version) -> Self {
        Self {
            version: version.version,
            is_current: version.is_current,
            spec: version.spec,
            created_at: version.created_at,
        }
    }
}
