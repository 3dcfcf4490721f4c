//! The routes of calendars: holidays that prompts leave out.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use serde_json::json;
use shared::{
    api_key::Role,
    calendar::{CalendarBody, Day, Days},
    db::{
        TenantTx,
        audit::Action,
        calendars::{self, CALENDARS_MAX, Calendar, Summary},
    },
    exclusion::CalendarName,
    ids::CalendarId,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::{ApiError, Problem},
    page::{Cursor, Page},
    query::Query,
    request::{IfMatch, PathName},
};

/// Prompts whose slots are moved at once.
const PROMPTS_AT_ONCE: i64 = 500;
/// Rounds of them: more prompts than a tenant may have.
const ROUNDS_MAX: usize = 4_000;
/// Prompts that are named where a calendar cannot be deleted.
const USERS_TOLD_MAX: i64 = 10;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_calendars))
        .routes(routes!(get_calendar, put_calendar, delete_calendar))
}

/// List calendars
///
/// By name, without their days.
#[utoipa::path(
    get, path = "/v1/calendars", tag = "calendars",
    params(
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of calendars", body = Page<CalendarSummary>))
)]
async fn list_calendars(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<CalendarSummary>>, ApiError> {
    const SCOPE: &str = "calendars";
    let limit = query.limit();
    let cursor = query.cursor::<String>(SCOPE);
    query.finish()?;
    let after = cursor.map(|Cursor { key, .. }| key);
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = calendars::list(tx, after.as_deref(), limit.fetch()).await?;
    let place = |row: &Summary| (row.name.clone(), row.id.uuid());
    Ok(Json(Page::new(
        rows,
        limit,
        SCOPE,
        place,
        CalendarSummary::from,
    )))
}

/// Read a calendar
///
/// With its days. The header `ETag` holds its version, for `If-Match`.
#[utoipa::path(
    get, path = "/v1/calendars/{name}", tag = "calendars",
    params(("name" = String, Path, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$", description = "The calendar")),
    responses((status = 200, description = "The calendar", body = CalendarView, headers(
        ("ETag" = String, description = "Its version"),
    )))
)]
async fn get_calendar(
    State(app): State<App>,
    caller: Caller,
    PathName(name): PathName,
    query: Query,
) -> Result<Response, ApiError> {
    query.finish()?;
    let name = known(&name)?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let calendar = calendars::get(tx, &name)
        .await?
        .ok_or_else(ApiError::not_found)?;
    let etag = (header::ETAG, format!("\"{}\"", calendar.version));
    Ok(([etag], Json(CalendarView::from(calendar))).into_response())
}

/// Make or replace a calendar
///
/// Its days become those of the body: a list of them, or those of an iCalendar text. The next slots of
/// the active prompts that name it follow at once; a slot that is due already is recorded as skipped
/// when it is looked at. A prompt names it in `exclusions.calendars`.
#[utoipa::path(
    put, path = "/v1/calendars/{name}", tag = "calendars",
    params(
        ("name" = String, Path, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$", description = "The calendar"),
        ("If-Match" = Option<String>, Header, description = "Only if the calendar is at the version of this ETag"),
    ),
    request_body(content = CalendarBody, example = json!({
        "days": [
            { "date": "2026-12-25", "name": "Christmas Day" },
            { "date": "2026-12-28", "name": "Boxing Day (in lieu)" },
        ],
    })),
    responses(
        (status = 200, description = "The calendar, with other days than before", body = CalendarView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 201, description = "The calendar, which is new", body = CalendarView, headers(
            ("ETag" = String, description = "Its version"),
            ("Location" = String, description = "The calendar's path"),
        )),
        (status = 409, description = "`too_many_calendars`", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn put_calendar(
    State(app): State<App>,
    caller: Caller,
    PathName(name): PathName,
    if_match: IfMatch,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let name = CalendarName::parse(&name).map_err(|fault| vec![fault.under("name")])?;
        put(tx, &name, &if_match, &command).await
    };
    command
        .run(&app, &caller, Role::Editor, Action::CalendarSaved, handler)
        .await
}

/// Delete a calendar
///
/// Only while no prompt that is active or paused names it.
#[utoipa::path(
    delete, path = "/v1/calendars/{name}", tag = "calendars",
    params(("name" = String, Path, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$", description = "The calendar")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 409, description = "`calendar_in_use`: prompts name it; `detail` says which", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn delete_calendar(
    State(app): State<App>,
    caller: Caller,
    PathName(name): PathName,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let name = known(&name)?;
        let standing = calendars::get_to_change(tx, &name).await?;
        let calendar = standing.calendar.ok_or_else(ApiError::not_found)?;
        refuse_in_use(tx, &calendar).await?;
        calendars::delete(tx, calendar.id).await?;
        Ok(Answer::no_content()
            .about(calendar.id.uuid())
            .detail(json!({ "name": calendar.name })))
    };
    command
        .run(
            &app,
            &caller,
            Role::Editor,
            Action::CalendarDeleted,
            handler,
        )
        .await
}

/// A name that no calendar can have names none.
fn known(name: &str) -> Result<CalendarName, ApiError> {
    CalendarName::parse(name).map_err(|_| ApiError::not_found())
}

async fn put(
    tx: &TenantTx,
    name: &CalendarName,
    if_match: &IfMatch,
    command: &Command,
) -> Result<Answer, ApiError> {
    // Before the lock, which keeps all changes of prompts waiting.
    let days = Days::parse(&command.json()?, Utc::now())?;
    let standing = calendars::get_to_change(tx, name).await?;
    match &standing.calendar {
        Some(calendar) => if_match.check(calendar.version)?,
        None => if_match.check_absent()?,
    }
    let Some(calendar) = standing.calendar else {
        if standing.calendars >= CALENDARS_MAX {
            return Err(ApiError::conflict(
                "too_many_calendars",
                format!("the tenant has {CALENDARS_MAX} calendars, which is the most; delete one"),
            ));
        }
        let made = calendars::insert(tx, CalendarId::new(), name, &days).await?;
        let path = format!("/v1/calendars/{name}");
        return Ok(answer(StatusCode::CREATED, made, 0)?.location(path));
    };
    if calendar.days == days {
        return Ok(answer(StatusCode::OK, calendar, 0)?.unchanged());
    }
    let changed = calendars::replace(tx, calendar.id, calendar.version, &days).await?;
    let moved = move_slots(tx, calendar.id, standing.now).await?;
    answer(StatusCode::OK, changed, moved)
}

/// Moves the next slots of the prompts that name the calendar, and gives how many moved. A slot that
/// is due stays: whoever looks at it says what becomes of it.
async fn move_slots(tx: &TenantTx, id: CalendarId, now: DateTime<Utc>) -> Result<usize, ApiError> {
    let holidays = calendars::holidays_beside(tx, id).await?;
    let mut moved_count = 0;
    let mut after = None;
    for _ in 0..ROUNDS_MAX {
        let prompts = calendars::lock_prompts(tx, id, after, PROMPTS_AT_ONCE).await?;
        let Some(last) = prompts.last() else { break };
        after = Some(last.id);
        let still_to_come = prompts
            .iter()
            .filter(|prompt| prompt.next_run_at.is_none_or(|slot| slot > now));
        let moved: Vec<_> = still_to_come
            .map(|prompt| (prompt, prompt.timing.next_slot(now, &holidays)))
            .filter(|(prompt, slot)| *slot != prompt.next_run_at)
            .map(|(prompt, slot)| (prompt.id, slot))
            .collect();
        if !moved.is_empty() {
            calendars::move_slots(tx, &moved).await?;
        }
        moved_count += moved.len();
        if prompts.len() < usize::try_from(PROMPTS_AT_ONCE).unwrap_or(usize::MAX) {
            break;
        }
    }
    Ok(moved_count)
}

async fn refuse_in_use(tx: &TenantTx, calendar: &Calendar) -> Result<(), ApiError> {
    let users = calendars::users(tx, calendar.id, USERS_TOLD_MAX).await?;
    if users.count == 0 {
        return Ok(());
    }
    let ids: Vec<String> = users.ids.iter().map(ToString::to_string).collect();
    let more = match usize::try_from(users.count).unwrap_or(usize::MAX) - ids.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(ApiError::conflict(
        "calendar_in_use",
        format!(
            "prompts name the calendar: {}{more}; take it out of their exclusions first",
            ids.join(", ")
        ),
    ))
}

fn answer(status: StatusCode, calendar: Calendar, moved: usize) -> Result<Answer, ApiError> {
    let (id, version) = (calendar.id.uuid(), calendar.version);
    let detail = json!({
        "name": calendar.name, "days": calendar.days.count(), "prompts_moved": moved,
    });
    Ok(Answer::json(status, &CalendarView::from(calendar))?
        .etag(version)
        .about(id)
        .detail(detail))
}

/// A calendar.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Calendar)]
struct CalendarView {
    /// What prompts call it.
    #[schema(example = "uk-bank-holidays")]
    name: String,
    /// Its days, earliest first.
    #[schema(max_items = 2_000)]
    days: Vec<Day>,
    /// Counts changes of its days; the ETag.
    version: i64,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When its days were last changed.
    updated_at: DateTime<Utc>,
}

/// A calendar in a list: without its days.
#[derive(Debug, Serialize, ToSchema)]
struct CalendarSummary {
    /// What prompts call it.
    #[schema(example = "uk-bank-holidays")]
    name: String,
    /// How many days it has.
    days_count: i32,
    /// The earliest of them.
    #[schema(required)]
    first_date: Option<NaiveDate>,
    /// The latest of them: from then on it leaves nothing out.
    #[schema(required)]
    last_date: Option<NaiveDate>,
    /// Counts changes of its days; the ETag.
    version: i64,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When its days were last changed.
    updated_at: DateTime<Utc>,
}

impl From<Calendar> for CalendarView {
    fn from(calendar: Calendar) -> Self {
        Self {
            name: calendar.name,
            days: calendar.days.iter().collect(),
            version: calendar.version,
            created_at: calendar.created_at,
            updated_at: calendar.updated_at,
        }
    }
}

impl From<Summary> for CalendarSummary {
    fn from(calendar: Summary) -> Self {
        Self {
            name: calendar.name,
            days_count: calendar.days_count,
            first_date: calendar.first_date,
            last_date: calendar.last_date,
            version: calendar.version,
            created_at: calendar.created_at,
            updated_at: calendar.updated_at,
        }
    }
}
