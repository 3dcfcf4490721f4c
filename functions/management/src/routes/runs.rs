//! The routes of runs.

#![expect(
    unused_qualifications,
    reason = "utoipa qualifies the types of parameters"
)]

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use shared::{
    api_key::Role,
    db::{
        DbError, TenantTx,
        audit::Action,
        history::{self, Delivery, LogLine, Run, RunFilter, RunPage, RunSummary},
        prompts::Order,
        runs::{self, Changed},
    },
    ids::{PromptId, RunId},
    message::WakeUp,
    run::{RunStatus, RunTrigger},
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::ApiError,
    page::{Cursor, Limit, Page},
    query::Query,
    request::PathId,
};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_runs))
        .routes(routes!(get_run))
        .routes(routes!(cancel_run))
        .routes(routes!(retry_run))
        .routes(routes!(list_run_logs))
        .routes(routes!(list_run_deliveries))
}

/// List runs
///
/// All of the tenant's, newest first unless asked otherwise. Outputs are left out; read a run
/// for its output. Runs of a deleted prompt stay in this list until they have served their time.
#[utoipa::path(
    get, path = "/v1/runs", tag = "runs",
    params(
        ("prompt_id" = Option<Uuid>, Query, description = "Only runs of this prompt"),
        RunListParams,
    ),
    responses((status = 200, description = "A page of runs", body = Page<RunSummary>)),
)]
async fn list_runs(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<RunSummary>>, ApiError> {
    let prompt_id = query.id::<PromptId>("prompt_id");
    let wanted = Wanted::read(query, prompt_id)?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = history::runs(tx, &wanted.filter, &wanted.page).await?;
    Ok(Json(wanted.answer(rows)))
}

/// Read a run
///
/// With its output, the input that the model was given, and every model call. An output over 256 KiB
/// is not in the answer: `output_url` says where to read it.
#[utoipa::path(
    get, path = "/v1/runs/{id}", tag = "runs",
    params(("id" = Uuid, Path, description = "The run")),
    responses((status = 200, description = "The run", body = Run)),
)]
async fn get_run(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<RunId>,
    query: Query,
) -> Result<Json<Run>, ApiError> {
    query.finish()?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let mut run = history::run(tx, id)
        .await?
        .ok_or_else(ApiError::not_found)?;
    if let Some(uri) = &run.summary.output_uri {
        run.output_url = app.outputs.url(caller.tenant_id(), uri).await;
    }
    Ok(Json(run))
}

/// Cancel a run
///
/// Stops a run that is not over. A model call that is under way is not heeded any more, though it
/// may be paid; deliveries that have not begun are dropped. A run that was cancelled before stays
/// as it is.
#[utoipa::path(
    post, path = "/v1/runs/{id}/cancel", tag = "runs",
    params(("id" = Uuid, Path, description = "The run")),
    responses(
        (status = 200, description = "The run is cancelled", body = RunSummary),
        (status = 409, description = "`run_ended`: the run is over", body = crate::error::Problem,
         content_type = "application/problem+json"),
    ),
)]
async fn cancel_run(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<RunId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let changed = match runs::cancel(tx, id).await? {
            Changed::Done => true,
            Changed::Not(RunStatus::Cancelled) => false,
            Changed::Not(status) => {
                return Err(ApiError::conflict(
                    "run_ended",
                    format!("the run is {status}; only a run that is not over can be cancelled"),
                ));
            }
            Changed::NoSuchRun | Changed::PromptEnded => return Err(ApiError::not_found()),
        };
        let answer = Answer::json(StatusCode::OK, &stored(tx, id).await?)?.about(id.uuid());
        Ok(if changed { answer } else { answer.unchanged() })
    };
    command
        .run(&app, &caller, Role::Editor, Action::RunCancelled, handler)
        .await
}

/// Retry a run
///
/// Takes a run that failed or timed out up again: with a new model call where it has no output,
/// else with the deliveries that failed.
#[utoipa::path(
    post, path = "/v1/runs/{id}/retry", tag = "runs",
    params(("id" = Uuid, Path, description = "The run")),
    responses(
        (status = 202, description = "The run is under way again", body = RunSummary),
        (status = 409, description = "`run_not_failed`: the run has not failed; `prompt_ended`: its prompt was cancelled or deleted, and it has no output", body = crate::error::Problem,
         content_type = "application/problem+json"),
    ),
)]
async fn retry_run(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<RunId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        match runs::retry(tx, id).await? {
            Changed::Done => {}
            Changed::Not(status) => {
                return Err(ApiError::conflict(
                    "run_not_failed",
                    format!(
                        "the run is {status}; only one that failed or timed out can be retried"
                    ),
                ));
            }
            Changed::PromptEnded => {
                return Err(ApiError::conflict(
                    "prompt_ended",
                    "the run's prompt was cancelled or deleted; the model is not called for it any more",
                ));
            }
            Changed::NoSuchRun => return Err(ApiError::not_found()),
        }
        let run = stored(tx, id).await?;
        let mut answer = Answer::json(StatusCode::ACCEPTED, &run)?.about(id.uuid());
        let tenant_id = tx.tenant();
        if run.status == RunStatus::Generated {
            for delivery_id in history::waiting_deliveries(tx, id).await? {
                answer = answer.wake(WakeUp::Delivery {
                    tenant_id,
                    delivery_id,
                });
            }
        } else {
            answer = answer.wake(WakeUp::Run {
                tenant_id,
                run_id: id,
            });
        }
        Ok(answer)
    };
    command
        .run(&app, &caller, Role::Editor, Action::RunRetried, handler)
        .await
}

/// List a run's log
///
/// What happened to the run, oldest line first.
#[utoipa::path(
    get, path = "/v1/runs/{id}/logs", tag = "runs",
    params(
        ("id" = Uuid, Path, description = "The run"),
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of lines", body = Page<LogLine>)),
)]
async fn list_run_logs(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<RunId>,
    mut query: Query,
) -> Result<Json<Page<LogLine>>, ApiError> {
    const SCOPE: &str = "run_logs";
    let limit = query.limit();
    let cursor = query.cursor::<DateTime<Utc>>(SCOPE);
    query.finish()?;
    let after = cursor.map(|Cursor { key, id }| (key, id));
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let lines = history::logs(tx, id, after, limit.fetch())
        .await?
        .ok_or_else(ApiError::not_found)?;
    let place = |line: &LogLine| (line.at, line.id);
    Ok(Json(Page::new(lines, limit, SCOPE, place, |line| line)))
}

/// List a run's deliveries
///
/// Where its output went, in the order of the prompt's destinations, then the notices about it.
/// There is one page.
#[utoipa::path(
    get, path = "/v1/runs/{id}/deliveries", tag = "runs",
    params(("id" = Uuid, Path, description = "The run")),
    responses((status = 200, description = "The deliveries", body = Page<Delivery>)),
)]
async fn list_run_deliveries(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<RunId>,
    query: Query,
) -> Result<Json<Page<Delivery>>, ApiError> {
    query.finish()?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let items = history::deliveries(tx, id)
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(Json(Page {
        items,
        next_cursor: None,
    }))
}

/// How runs are chosen.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "describes the query string; `Wanted::read` reads it"
)]
pub(super) struct RunListParams {
    /// Only these statuses; repeat it for several.
    status: Option<Vec<RunStatus>>,
    /// Only what these made; repeat it for several.
    trigger: Option<Vec<RunTrigger>>,
    /// Only runs made at or after this.
    since: Option<DateTime<Utc>>,
    /// Only runs made before this.
    until: Option<DateTime<Utc>>,
    /// `desc` (newest first) unless given.
    #[param(inline)]
    order: Option<Order>,
    /// Items a page; 50 unless given.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u8>,
    /// `next_cursor` of the page before, with the same order.
    #[param(min_length = 1)]
    cursor: Option<String>,
}

/// A list of runs as a caller asked for it.
pub(super) struct Wanted {
    pub(super) filter: RunFilter,
    pub(super) page: RunPage,
    limit: Limit,
    scope: &'static str,
}

impl Wanted {
    /// Reads what is left of the query string.
    pub(super) fn read(mut query: Query, prompt_id: Option<PromptId>) -> Result<Self, ApiError> {
        let filter = RunFilter {
            prompt_id,
            status: query
                .words("status", RunStatus::ALL, RunStatus::as_str)
                .unwrap_or_default(),
            trigger: query
                .words("trigger", RunTrigger::ALL, RunTrigger::as_str)
                .unwrap_or_default(),
            since: query.instant("since"),
            until: query.instant("until"),
        };
        let order = query
            .word("order", Order::ALL, Order::as_str)
            .unwrap_or(Order::Desc);
        let scope = match order {
            Order::Asc => "runs_asc",
            Order::Desc => "runs_desc",
        };
        let limit = query.limit();
        let cursor = query.cursor::<DateTime<Utc>>(scope);
        query.finish()?;
        Ok(Self {
            filter,
            page: RunPage {
                order,
                after: cursor.map(|Cursor { key, id }| (key, RunId::from(id))),
                rows_max: limit.fetch(),
            },
            limit,
            scope,
        })
    }

    /// The page of these rows.
    pub(super) fn answer(&self, rows: Vec<RunSummary>) -> Page<RunSummary> {
        let place = |run: &RunSummary| (run.created_at, run.id.uuid());
        Page::new(rows, self.limit, self.scope, place, |run| run)
    }
}

/// The run as it stands inside this transaction, which has just found it.
pub(super) async fn stored(tx: &TenantTx, id: RunId) -> Result<RunSummary, ApiError> {
    history::run_summary(tx, id)
        .await?
        .ok_or_else(|| ApiError::internal(DbError::StaleLease))
}
