//! The tenant's audit trail.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use shared::{
    db::audit::{self, Action, Filter, Recorded},
    ids::{AuditEventId, UserId},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{app::App, auth::Caller, error::ApiError, page::Page, query::Query};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_events))
}

/// List audit events
///
/// Who did what to which object, newest first.
#[utoipa::path(
    get, path = "/v1/audit-events", tag = "tenant",
    params(
        ("action" = inline(Option<Action>), Query, description = "Only this action"),
        ("target_id" = Option<Uuid>, Query, description = "Only what was done to this object"),
        ("since" = Option<DateTime<Utc>>, Query, description = "Not older than this"),
        ("until" = Option<DateTime<Utc>>, Query, description = "Older than this"),
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of events", body = Page<AuditEventView>))
)]
async fn list_events(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<AuditEventView>>, ApiError> {
    let limit = query.limit();
    let target = query.id::<Uuid>("target_id");
    let filter = Filter {
        action: query.word("action", &Action::ALL, Action::as_str),
        since: query.instant("since"),
        until: query.instant("until"),
        after: query
            .cursor::<DateTime<Utc>>("audit_events")
            .map(|cursor| (cursor.key, cursor.id)),
        rows_max: limit.fetch(),
    };
    query.finish()?;
    let rows = app
        .read(caller.tenant_id(), async |tx| {
            Ok(match target {
                Some(target) => audit::list_of_target(tx, target, &filter).await?,
                None => audit::list(tx, &filter).await?,
            })
        })
        .await?;
    let place = |row: &Recorded| (row.at, row.id.uuid());
    let view = AuditEventView::from;
    Ok(Json(Page::new(rows, limit, "audit_events", place, view)))
}

/// A line of the audit trail.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEvent)]
struct AuditEventView {
    /// The line.
    id: AuditEventId,
    /// When it was done.
    at: DateTime<Utc>,
    /// `api_key`, `user` (with a token), `platform` (the operator) or `system` (Carillon itself).
    #[schema(example = "api_key")]
    actor_kind: String,
    /// The API key or the user, where one acted.
    #[schema(required)]
    actor_id: Option<Uuid>,
    /// The user who acted, with a key or with a token.
    #[schema(required)]
    actor_user_id: Option<UserId>,
    /// What was done: one of the words that the parameter `action` takes.
    #[schema(example = "prompt.created")]
    action: String,
    /// What kind of object it was done to.
    #[schema(example = "prompt")]
    target_kind: String,
    /// That object.
    #[schema(required)]
    target_id: Option<Uuid>,
    /// `ok`, or `refused` when the caller's role was too low.
    #[schema(example = "ok")]
    result: String,
    /// The request's id, as its answer's header `x-request-id` told it.
    #[schema(required)]
    request_id: Option<String>,
    /// Small facts, such as the names of changed fields.
    #[schema(value_type = Object)]
    detail: Value,
}

impl From<Recorded> for AuditEventView {
    fn from(event: Recorded) -> Self {
        Self {
            id: event.id,
            at: event.at,
            actor_kind: event.actor_kind,
            actor_id: event.actor_id,
            actor_user_id: event.actor_user_id,
            action: event.action,
            target_kind: event.target_kind,
            target_id: event.target_id,
            result: event.result,
            request_id: event.request_id,
            detail: event.detail,
        }
    }
}
