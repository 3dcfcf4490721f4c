//! The tenant's audit trail.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use shared::{
    db::audit::{self, Action, Filter, Recorded},
    ids::AuditEventId,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{app::App, auth::Caller, error::ApiError, page::Page, query::Query};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_events))
}

/// Lists who did what to which object, newest first.
#[utoipa::path(
    get, path = "/v1/audit-events", tag = "tenant",
    params(
        ("action" = Option<String>, Query, description = "Only this action, for example `prompt.created`"),
        ("target_id" = Option<Uuid>, Query, description = "Only what was done to this object"),
        ("since" = Option<DateTime<Utc>>, Query, description = "Not older than this"),
        ("until" = Option<DateTime<Utc>>, Query, description = "Older than this"),
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = Page<AuditEventView>))
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
struct AuditEventView {
    id: AuditEventId,
    at: DateTime<Utc>,
    /// `api_key`, `platform` (the operator) or `system` (Carillon itself).
    actor_kind: String,
    /// The API key, where one acted.
    #[schema(required)]
    actor_id: Option<Uuid>,
    #[schema(example = "prompt.created")]
    action: String,
    #[schema(example = "prompt")]
    target_kind: String,
    #[schema(required)]
    target_id: Option<Uuid>,
    /// `ok`, or `refused` when the caller's role was too low.
    result: String,
    #[schema(required)]
    request_id: Option<String>,
    /// Small facts.
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
            action: event.action,
            target_kind: event.target_kind,
            target_id: event.target_id,
            result: event.result,
            request_id: event.request_id,
            detail: event.detail,
        }
    }
}
