//! What a schedule would do, before anything is saved.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use shared::{
    db::prompts,
    fields::Fields,
    schedule::{Form, Preview},
};
use utoipa::ToSchema;

use super::change::rules;
use crate::{app::App, auth::Caller, command::Command, error::ApiError, query::Query};

const COUNT: u8 = 5;
const COUNT_MAX: u8 = 100;

/// Preview a schedule
///
/// What a schedule would do: its next slots, what EventBridge would be told, a description and
/// warnings. Writes nothing.
#[utoipa::path(
    post, path = "/v1/prompts/preview", tag = "prompts",
    request_body(content = PreviewBody, example = json!({
        "schedule": { "type": "cron", "expression": "30 1 * * *", "timezone": "Europe/London" },
        "after": "2026-03-28T00:00:00Z",
        "count": 3,
    })),
    responses((status = 200, description = "The next slots", body = Preview))
)]
pub(super) async fn preview_schedule(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    command: Command,
) -> Result<Json<Preview>, ApiError> {
    query.finish()?;
    let body = command.json()?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let limits = prompts::limits(tx, &[]).await?;
    let mut fields = Fields::new(&body);
    let rules = rules(&app, &limits)?;
    let schedule = fields
        .required("schedule")
        .parse(|value| rules.schedule(value));
    let after = fields.optional("after").instant().unwrap_or(limits.now);
    let count = fields
        .optional("count")
        .integer(1..=COUNT_MAX)
        .unwrap_or(COUNT);
    let schedule = fields.finish(schedule)?;
    Ok(Json(schedule.preview(after, usize::from(count))))
}

/// What to look at.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; the handler reads it")]
#[serde(deny_unknown_fields)]
pub(super) struct PreviewBody {
    /// As in a prompt.
    schedule: Form,
    /// Slots after this; now unless given.
    #[schema(nullable)]
    after: Option<DateTime<Utc>>,
    /// How many slots.
    #[schema(minimum = 1, maximum = 100, default = 5, nullable)]
    count: Option<u8>,
}
