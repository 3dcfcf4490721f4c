//! The routes of scheduled prompts.

#![expect(
    unused_qualifications,
    reason = "utoipa qualifies the types of parameters"
)]

mod change;
mod preview;
mod versions;
mod view;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use shared::{
    api_key::Role,
    db::{
        TenantTx,
        audit::Action,
        history::{self, RunSummary},
        prompts::{self, Filter, Order, Prompt, PromptStatus, Sort},
        runs::{self, Enqueue, QUEUED_MAX},
    },
    fault::Fault,
    fields::Fields,
    ids::{PromptId, UserId},
    message::WakeUp,
    prompt::{NAME_CHARS_MAX, PromptBody, PromptPatch, TAG_CHARS_MAX, TAGS_MAX},
    run::RunTrigger,
    schedule::ScheduleType,
    scheduler::Scheduler,
};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::{
    change::{Changed, Edit},
    view::{PromptSummary, PromptView},
};
use super::runs::{RunListParams, Wanted};
use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::{ApiError, Problem},
    page::{Cursor, Limit, Page, SortKey},
    query::Query,
    request::{IfMatch, PathId},
};

/// The longest note beside a status, in characters.
const NOTE_CHARS_MAX: usize = 500;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_prompt, list_prompts))
        .routes(routes!(preview::preview_schedule))
        .routes(routes!(
            get_prompt,
            replace_prompt,
            patch_prompt,
            delete_prompt
        ))
        .routes(routes!(pause_prompt))
        .routes(routes!(resume_prompt))
        .routes(routes!(cancel_prompt))
        .routes(routes!(run_prompt))
        .routes(routes!(list_prompt_runs))
        .routes(routes!(versions::list_prompt_versions))
        .routes(routes!(versions::get_prompt_version))
        .routes(routes!(versions::restore_prompt_version))
}

/// Create a prompt
///
/// It is active at once, and its next slot is the first one from now on.
#[utoipa::path(
    post, path = "/v1/prompts", tag = "prompts",
    request_body(content = PromptBody, example = json!({
        "prompt_name": "Morning brief",
        "prompt_text": "Write a brief for {{ slot.weekday }}, {{ slot.date }}.",
        "model": "echo/echo-1",
        "schedule": { "type": "weekly", "days": ["mon", "fri"], "at": "09:00", "timezone": "Europe/London" },
        "destinations": [{ "kind": "email", "to": ["ada@example.com"] }],
    })),
    responses(
        (status = 201, description = "The prompt", body = PromptView, headers(
            ("Location" = String, description = "The prompt's path"),
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`external_id_taken`, `too_many_active_prompts`, or an equal request is under way",
         body = Problem, content_type = "application/problem+json"),
    )
)]
async fn create_prompt(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let prompt = change::create(&app, tx, caller.user_id(), &command.json()?).await?;
        let id = prompt.id;
        let path = format!("/v1/prompts/{id}");
        Ok(answer(&app, StatusCode::CREATED, prompt)?
            .location(path)
            .apply(id))
    };
    command
        .run(&app, &caller, Role::Editor, Action::PromptCreated, handler)
        .await
}

/// List prompts
///
/// Newest first unless asked otherwise, and without their long texts: `prompt_text`, `system_text`
/// and `context` come with a single prompt. Deleted prompts are not listed.
#[utoipa::path(
    get, path = "/v1/prompts", tag = "prompts",
    params(ListParams),
    responses((status = 200, description = "A page of prompts", body = Page<PromptSummary>))
)]
async fn list_prompts(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<Page<PromptSummary>>, ApiError> {
    let list = List::read(query)?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = prompts::list(tx, &list.filter, &list.sort, list.order, list.limit.fetch()).await?;
    Ok(Json(list.page(rows, &app.scheduler)))
}

/// Read a prompt
///
/// What its owner said of it, and where it stands. The header `ETag` holds its version, for `If-Match`.
#[utoipa::path(
    get, path = "/v1/prompts/{id}", tag = "prompts",
    params(("id" = Uuid, Path, description = "The prompt")),
    responses((status = 200, description = "The prompt", body = PromptView, headers(
        ("ETag" = String, description = "Its version"),
    )))
)]
async fn get_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
) -> Result<Response, ApiError> {
    query.finish()?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let prompt = prompts::get(tx, id)
        .await?
        .ok_or_else(ApiError::not_found)?;
    let etag = (header::ETAG, format!("\"{}\"", prompt.version));
    Ok(([etag], Json(PromptView::new(prompt, &app.scheduler))).into_response())
}

/// Replace a prompt
///
/// Puts another prompt in its place; what is not sent gets its default. Another schedule counts from
/// now on; the rest leaves the next slot as it is. A schedule that is left as it is may have passed.
/// Runs that wait keep the version that they were made with.
#[utoipa::path(
    put, path = "/v1/prompts/{id}", tag = "prompts",
    params(
        ("id" = Uuid, Path, description = "The prompt"),
        IfMatchParam,
    ),
    request_body = PromptBody,
    responses(
        (status = 200, description = "The prompt", body = PromptView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`prompt_ended` or `external_id_taken`", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn replace_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    if_match: IfMatch,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let body = command.json()?;
        let edit = change::edit(&app, tx, id, &if_match, Edit::Replace(&body));
        changed(&app, edit.await?)
    };
    command
        .run(&app, &caller, Role::Editor, Action::PromptUpdated, handler)
        .await
}

/// Change a prompt
///
/// A merge patch (RFC 7396): what is absent stays, null takes a field away or brings back its
/// default. Otherwise like PUT.
#[utoipa::path(
    patch, path = "/v1/prompts/{id}", tag = "prompts",
    params(
        ("id" = Uuid, Path, description = "The prompt"),
        IfMatchParam,
    ),
    request_body(content = PromptPatch, example = json!({ "prompt_name": "Evening brief", "max_runs": null })),
    responses(
        (status = 200, description = "The prompt", body = PromptView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`prompt_ended` or `external_id_taken`", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn patch_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    if_match: IfMatch,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let patch = command.json()?;
        let edit = change::edit(&app, tx, id, &if_match, Edit::Merge(&patch));
        changed(&app, edit.await?)
    };
    command
        .run(&app, &caller, Role::Editor, Action::PromptUpdated, handler)
        .await
}

/// Delete a prompt
///
/// Runs that wait are cancelled; those of the past stay readable until they have served their time.
/// Its `external_id` is free again.
#[utoipa::path(
    delete, path = "/v1/prompts/{id}", tag = "prompts",
    params(("id" = Uuid, Path, description = "The prompt")),
    responses((status = 204, description = "It is gone"))
)]
async fn delete_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        change::delete(tx, id).await?;
        Ok(Answer::no_content().about(id.uuid()).apply(id))
    };
    command
        .run(&app, &caller, Role::Editor, Action::PromptDeleted, handler)
        .await
}

/// Pause a prompt
///
/// No slot fires until it is resumed. One that is paused stays as it is.
#[utoipa::path(
    post, path = "/v1/prompts/{id}/pause", tag = "prompts",
    params(("id" = Uuid, Path, description = "The prompt")),
    request_body(content = Option<NoteBody>, example = json!({ "note": "until the offer ends" })),
    responses(
        (status = 200, description = "The prompt", body = PromptView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`prompt_ended`, or an equal request is under way", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn pause_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let body = command.json_or_empty()?;
        changed(&app, change::pause(tx, id, note(&body)?).await?)
    };
    command
        .run(&app, &caller, Role::Editor, Action::PromptPaused, handler)
        .await
}

/// Resume a prompt
///
/// Its next slot is the first one from now on: those of the pause are not made up for. One that is
/// active stays as it is.
#[utoipa::path(
    post, path = "/v1/prompts/{id}/resume", tag = "prompts",
    params(("id" = Uuid, Path, description = "The prompt")),
    responses(
        (status = 200, description = "The prompt", body = PromptView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`prompt_ended`, `no_slot_left`, `max_runs_reached`, \
            `too_many_active_prompts`, or an equal request is under way", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn resume_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| changed(&app, change::resume(tx, id).await?);
    command
        .run(&app, &caller, Role::Editor, Action::PromptResumed, handler)
        .await
}

/// Cancel a prompt
///
/// Ends it for good. Runs that wait are cancelled too. One that is cancelled stays as it is.
#[utoipa::path(
    post, path = "/v1/prompts/{id}/cancel", tag = "prompts",
    params(("id" = Uuid, Path, description = "The prompt")),
    request_body(content = Option<NoteBody>, example = json!({ "note": "no longer needed" })),
    responses(
        (status = 200, description = "The prompt", body = PromptView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`prompt_ended`, or an equal request is under way", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn cancel_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let body = command.json_or_empty()?;
        changed(&app, change::cancel(tx, id, note(&body)?).await?)
    };
    command
        .run(
            &app,
            &caller,
            Role::Editor,
            Action::PromptCancelled,
            handler,
        )
        .await
}

/// Run a prompt now
///
/// Active or paused, beside its schedule. A test run does everything but the deliveries, and does not
/// count.
#[utoipa::path(
    post, path = "/v1/prompts/{id}/run", tag = "prompts",
    params(("id" = Uuid, Path, description = "The prompt")),
    request_body(content = Option<RunBody>, example = json!({ "test": true })),
    responses(
        (status = 202, description = "The run, which waits for its turn", body = RunSummary, headers(
            ("Location" = String, description = "The run's path"),
        )),
        (status = 409, description = "`prompt_ended`, or an equal request is under way", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn run_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let trigger = trigger(&command.json_or_empty()?)?;
        let run_id = match runs::enqueue(tx, id, trigger).await? {
            Enqueue::Queued(run_id) => run_id,
            Enqueue::NoSuchPrompt => return Err(ApiError::not_found()),
            Enqueue::PromptEnded => {
                return Err(ApiError::conflict(
                    "prompt_ended",
                    "the prompt has ended; create a new one",
                ));
            }
            Enqueue::TooManyQueued => {
                return Err(ApiError::conflict(
                    "too_many_queued_runs",
                    format!(
                        "{QUEUED_MAX} runs of this prompt wait already; let some end, or cancel them"
                    ),
                ));
            }
        };
        let run = super::runs::stored(tx, run_id).await?;
        let wake_up = WakeUp::Run {
            tenant_id: tx.tenant(),
            run_id,
        };
        Ok(Answer::json(StatusCode::ACCEPTED, &run)?
            .location(format!("/v1/runs/{run_id}"))
            .about(run_id.uuid())
            .detail(json!({ "prompt_id": id, "trigger": trigger }))
            .wake(wake_up))
    };
    command
        .run(&app, &caller, Role::Editor, Action::RunRequested, handler)
        .await
}

/// List a prompt's runs
///
/// Newest first unless asked otherwise, without their outputs.
#[utoipa::path(
    get, path = "/v1/prompts/{id}/runs", tag = "prompts",
    params(
        ("id" = Uuid, Path, description = "The prompt"),
        RunListParams,
    ),
    responses((status = 200, description = "A page of runs", body = Page<RunSummary>))
)]
async fn list_prompt_runs(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
) -> Result<Json<Page<RunSummary>>, ApiError> {
    let wanted = Wanted::read(query, None)?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = history::runs_of_prompt(tx, id, &wanted.filter, &wanted.page)
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(Json(wanted.answer(rows)))
}

/// A word beside a change of status.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; `note` reads it")]
#[serde(deny_unknown_fields)]
struct NoteBody {
    /// Kept as `status_note`.
    #[schema(max_length = 500, nullable, pattern = "^[^\\u0000]*$")]
    note: Option<String>,
}

pub(super) fn note(body: &Value) -> Result<Option<&str>, Vec<Fault>> {
    if body.is_null() {
        return Ok(None);
    }
    let mut fields = Fields::new(body);
    let note = fields.optional("note").text(0..=NOTE_CHARS_MAX);
    fields.finish(Some(note))
}

/// How a run is to be made.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; `trigger` reads it")]
#[serde(deny_unknown_fields)]
struct RunBody {
    /// Everything but the deliveries; the run does not count.
    #[schema(default = false, nullable)]
    test: Option<bool>,
}

pub(super) fn trigger(body: &Value) -> Result<RunTrigger, Vec<Fault>> {
    if body.is_null() {
        return Ok(RunTrigger::Manual);
    }
    let mut fields = Fields::new(body);
    let test = fields.optional("test").boolean().unwrap_or(false);
    let trigger = if test {
        RunTrigger::Test
    } else {
        RunTrigger::Manual
    };
    fields.finish(Some(trigger))
}

fn answer(app: &App, status: StatusCode, prompt: Prompt) -> Result<Answer, ApiError> {
    let (id, version) = (prompt.id, prompt.version);
    Ok(
        Answer::json(status, &PromptView::new(prompt, &app.scheduler))?
            .etag(version)
            .about(id.uuid()),
    )
}

fn changed(app: &App, changed: Changed) -> Result<Answer, ApiError> {
    let id = changed.prompt.id;
    let answer = answer(app, StatusCode::OK, changed.prompt)?;
    Ok(match changed.fields {
        Some(fields) => answer.detail(json!({ "fields": fields })).apply(id),
        None => answer.unchanged(),
    })
}

/// Which version a change is meant for.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes the header; `IfMatch` reads it")]
struct IfMatchParam {
    /// Only if the prompt is at the version of this ETag.
    #[param(
        rename = "If-Match",
        required = false,
        pattern = r#"^(\*|"[0-9]+")$"#,
        example = "\"1\""
    )]
    if_match: String,
}

/// How prompts are chosen.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "describes the query string; `List::read` reads it"
)]
struct ListParams {
    /// Only these statuses; repeat it for several.
    status: Option<Vec<PromptStatus>>,
    /// Only these types of schedule; repeat it for several.
    schedule_type: Option<Vec<ScheduleType>>,
    /// With at least one of these tags; repeat it for several.
    #[param(inline, max_items = 20)]
    tag_any: Option<Vec<Tag>>,
    /// With all of these tags; repeat it for several.
    #[param(inline, max_items = 20)]
    tag_all: Option<Vec<Tag>>,
    /// With this text in its name, whatever the case.
    #[param(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    name_contains: Option<String>,
    /// With your own id.
    #[param(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    external_id: Option<String>,
    /// Only this user's.
    user_id: Option<Uuid>,
    /// With a next slot at or after this.
    next_run_after: Option<DateTime<Utc>>,
    /// With a next slot before this.
    next_run_before: Option<DateTime<Utc>>,
    /// Made at or after this.
    created_after: Option<DateTime<Utc>>,
    /// Made before this.
    created_before: Option<DateTime<Utc>>,
    /// `created` unless given. Prompts without a next slot count as farthest in the future.
    #[param(inline)]
    sort: Option<SortBy>,
    /// `desc` for `created`, else `asc`, unless given.
    #[param(inline)]
    order: Option<Order>,
    /// Items a page; 50 unless given.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u8>,
    /// `next_cursor` of the page before, with the same sort and order.
    #[param(min_length = 1)]
    cursor: Option<String>,
}

/// A word to find prompts by.
#[derive(ToSchema)]
#[schema(
    min_length = 1,
    max_length = 50,
    pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
)]
#[expect(dead_code, reason = "describes a parameter")]
struct Tag(String);

/// What a list is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(as = PromptSort, rename_all = "snake_case")]
enum SortBy {
    /// The time of making.
    Created,
    /// The next slot.
    NextRun,
    /// The name.
    Name,
}

impl SortBy {
    const ALL: [Self; 3] = [Self::Created, Self::NextRun, Self::Name];

    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::NextRun => "next_run",
            Self::Name => "name",
        }
    }
}

/// A list as a caller asked for it.
struct List {
    filter: Filter,
    sort: Sort,
    order: Order,
    limit: Limit,
    scope: &'static str,
}

impl List {
    fn read(mut query: Query) -> Result<Self, ApiError> {
        let filter = Filter {
            status: query
                .words("status", &PromptStatus::ALL, PromptStatus::as_str)
                .unwrap_or_default(),
            schedule_type: query
                .words("schedule_type", &ScheduleType::ALL, ScheduleType::as_str)
                .unwrap_or_default(),
            tags_any: query
                .texts("tag_any", TAGS_MAX, TAG_CHARS_MAX)
                .unwrap_or_default(),
            tags_all: query
                .texts("tag_all", TAGS_MAX, TAG_CHARS_MAX)
                .unwrap_or_default(),
            name_contains: query.text("name_contains", NAME_CHARS_MAX),
            external_id: query.text("external_id", NAME_CHARS_MAX),
            user_id: query.id::<UserId>("user_id"),
            next_run_before: query.instant("next_run_before"),
            next_run_after: query.instant("next_run_after"),
            created_before: query.instant("created_before"),
            created_after: query.instant("created_after"),
        };
        let sort_by = query
            .word("sort", &SortBy::ALL, SortBy::as_str)
            .unwrap_or(SortBy::Created);
        let order = query
            .word("order", Order::ALL, Order::as_str)
            .unwrap_or(match sort_by {
                SortBy::Created => Order::Desc,
                SortBy::NextRun | SortBy::Name => Order::Asc,
            });
        let scope = scope(sort_by, order);
        let sort = match sort_by {
            SortBy::Created => Sort::Created(place(&mut query, scope)),
            SortBy::NextRun => Sort::NextRun(place(&mut query, scope)),
            SortBy::Name => Sort::Name(place(&mut query, scope)),
        };
        let limit = query.limit();
        query.finish()?;
        Ok(Self {
            filter,
            sort,
            order,
            limit,
            scope,
        })
    }

    fn page(&self, rows: Vec<Prompt>, scheduler: &Scheduler) -> Page<PromptSummary> {
        match self.sort {
            Sort::Created(_) => self.page_by(rows, scheduler, |prompt| prompt.created_at),
            Sort::NextRun(_) => self.page_by(rows, scheduler, |prompt| prompt.next_run_at),
            Sort::Name(_) => self.page_by(rows, scheduler, |prompt| {
                let name = prompt.spec.get("prompt_name").and_then(Value::as_str);
                name.unwrap_or_default().to_owned()
            }),
        }
    }

    fn page_by<K: SortKey>(
        &self,
        rows: Vec<Prompt>,
        scheduler: &Scheduler,
        key: impl Fn(&Prompt) -> K,
    ) -> Page<PromptSummary> {
        let place = |prompt: &Prompt| (key(prompt), prompt.id.uuid());
        let summary = |prompt| PromptSummary::new(prompt, scheduler);
        Page::new(rows, self.limit, self.scope, place, summary)
    }
}

/// A cursor is of one sort and one order.
fn scope(sort_by: SortBy, order: Order) -> &'static str {
    match (sort_by, order) {
        (SortBy::Created, Order::Asc) => "prompts_created_asc",
        (SortBy::Created, Order::Desc) => "prompts_created_desc",
        (SortBy::NextRun, Order::Asc) => "prompts_next_run_asc",
        (SortBy::NextRun, Order::Desc) => "prompts_next_run_desc",
        (SortBy::Name, Order::Asc) => "prompts_name_asc",
        (SortBy::Name, Order::Desc) => "prompts_name_desc",
    }
}

fn place<K: SortKey>(query: &mut Query, scope: &str) -> Option<(K, PromptId)> {
    let Cursor { key, id } = query.cursor::<K>(scope)?;
    Some((key, PromptId::from(id)))
}
