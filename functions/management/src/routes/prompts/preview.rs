//! What a schedule and its policies would do, before anything is saved.

use axum::{Json, extract::State};
use shared::{
    db::preview::{self, Basis},
    simulate::{self, PreviewBody, Request, Simulation},
};
use tokio::task::spawn_blocking;

use super::change::{named_calendars, rules};
use crate::{app::App, auth::Caller, command::Command, error::ApiError, query::Query};

/// Preview a schedule
///
/// What a schedule and its policies would do over a number of slots, or over a range of up to 400
/// days: every slot and what becomes of it, every time that never comes due and why, a forecast of the
/// cost, what EventBridge would be told, a description and warnings. Writes nothing.
#[utoipa::path(
    post, path = "/v1/prompts/preview", tag = "prompts",
    request_body(content = PreviewBody, example = json!({
        "schedule": { "type": "cron", "expression": "30 1 * * *", "timezone": "Europe/London" },
        "exclusions": { "weekdays": ["sat"], "dates": ["2026-04-03"] },
        "overlap": "buffer_one",
        "from": "2026-03-01T00:00:00Z",
        "until": "2026-04-30T00:00:00Z",
        "assumed_run_s": 120,
        "model": "openai/gpt-5-mini",
        "assumed_input_tokens": 800,
        "assumed_output_tokens": 600,
    })),
    responses((status = 200, description = "What would happen", body = Simulation))
)]
pub(super) async fn preview_schedule(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    command: Command,
) -> Result<Json<Simulation>, ApiError> {
    query.finish()?;
    let body = command.json()?;
    let prompt_id = Request::prompt_id(&body);
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let Basis { limits, past } = preview::basis(&tx, prompt_id, &named_calendars(&body)).await?;
    let request = match Request::parse(&body, &rules(&app, &limits)?, past) {
        Ok(request) => request,
        Err(faults) => {
            tx.rollback().await?;
            return Err(faults.into());
        }
    };
    // A year of minutes takes longer than a worker may be held up.
    let mut simulation =
        spawn_blocking(move || simulate::run(&request, &limits.holidays, &app.catalog))
            .await
            .map_err(ApiError::internal)?;
    let others = preview::conflicts(tx, &simulation.conflict_slots(), prompt_id).await?;
    simulation.tell_conflicts(&others);
    Ok(Json(simulation))
}
