//! The routes of backfills: runs of past slots.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    api_key::Role,
    db::{
        TenantTx,
        audit::Action,
        backfills::{self, Backfill, Cancelled, NewBackfill, Progress, SLOTS_MAX, Slots, Target},
        prompts::PromptStatus,
    },
    fault::Fault,
    fields::Fields,
    ids::{BackfillId, PromptId},
    message::WakeUp,
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
    request::PathId,
};

/// Seconds from one run to the next, unless the caller says.
const PACE_S: i32 = 60;
const PACE_S_MAX: i32 = 3_600;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(backfill_prompt))
        .routes(routes!(list_backfills))
        .routes(routes!(get_backfill))
        .routes(routes!(cancel_backfill))
}

/// Backfill a prompt
///
/// Runs the slots of a past range that have no run: those that were missed, skipped, cancelled before
/// they began, or that lie before the prompt was made. They are slots of the schedule and exclusions
/// that the prompt has now, run by the version that it has now; each run sees its own slot's date.
/// They run oldest first, one begun at least `pace_s` after the other, and wait for the prompt's other
/// runs unless `overlap` is `allow_all`. They count against `max_runs`, and leave the next slot where
/// it is. An active, paused or completed prompt can be backfilled; a paused one stays paused. Where
/// failures in a row pause the prompt, the runs that wait are skipped.
#[utoipa::path(
    post, path = "/v1/prompts/{id}/backfill", tag = "backfills",
    params(("id" = Uuid, Path, description = "The prompt")),
    request_body(content = BackfillBody, example = json!({
        "from": "2026-03-16T00:00:00Z", "to": "2026-03-20T00:00:00Z",
    })),
    responses(
        (status = 202, description = "The backfill, whose runs wait for their turns", body = BackfillView, headers(
            ("Location" = String, description = "The backfill's path"),
        )),
        (status = 409, description = "`prompt_ended`, `paused_by_failures`, `too_many_queued_runs`, or an equal request is under way",
         body = Problem, content_type = "application/problem+json"),
    )
)]
async fn backfill_prompt(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let target = backfills::lock_prompt(tx, id)
            .await?
            .ok_or_else(ApiError::not_found)?;
        let wanted = Wanted::parse(&command.json()?, target.now)?;
        backfill(tx, id, &target, &wanted).await
    };
    command
        .run(
            &app,
            &caller,
            Role::Editor,
            Action::BackfillRequested,
            handler,
        )
        .await
}

/// List a prompt's backfills
///
/// Newest first.
#[utoipa::path(
    get, path = "/v1/prompts/{id}/backfills", tag = "backfills",
    params(
        ("id" = Uuid, Path, description = "The prompt"),
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of backfills", body = Page<BackfillView>))
)]
async fn list_backfills(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<PromptId>,
    mut query: Query,
) -> Result<Json<Page<BackfillView>>, ApiError> {
    const SCOPE: &str = "backfills";
    let limit = query.limit();
    let cursor = query.cursor::<DateTime<Utc>>(SCOPE);
    query.finish()?;
    let after = cursor.map(|Cursor { key, id }| (key, BackfillId::from(id)));
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = backfills::list(tx, id, after, limit.fetch())
        .await?
        .ok_or_else(ApiError::not_found)?;
    let place = |row: &Backfill| (row.created_at, row.id.uuid());
    Ok(Json(Page::new(
        rows,
        limit,
        SCOPE,
        place,
        BackfillView::from,
    )))
}

/// Read a backfill
///
/// What became of its slots, and how far its runs are.
#[utoipa::path(
    get, path = "/v1/backfills/{id}", tag = "backfills",
    params(("id" = Uuid, Path, description = "The backfill")),
    responses((status = 200, description = "The backfill", body = BackfillView))
)]
async fn get_backfill(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<BackfillId>,
    query: Query,
) -> Result<Json<BackfillView>, ApiError> {
    query.finish()?;
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let backfill = backfills::get(tx, id)
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(Json(BackfillView::from(backfill)))
}

/// Cancel a backfill
///
/// Its runs that wait are cancelled; those under way finish. One that was cancelled stays as it is.
#[utoipa::path(
    post, path = "/v1/backfills/{id}/cancel", tag = "backfills",
    params(("id" = Uuid, Path, description = "The backfill")),
    responses(
        (status = 200, description = "The backfill", body = BackfillView),
        (status = 409, description = "`backfill_ended`: none of its runs waits; or an equal request is under way",
         body = Problem, content_type = "application/problem+json"),
    )
)]
async fn cancel_backfill(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<BackfillId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let answer = |backfill: Backfill| {
            let detail = json!({ "prompt_id": backfill.prompt_id });
            let answer = Answer::json(StatusCode::OK, &BackfillView::from(backfill))?;
            Ok(answer.about(id.uuid()).detail(detail))
        };
        match backfills::cancel(tx, id).await? {
            Cancelled::Done(backfill) => answer(backfill),
            Cancelled::Already(backfill) => answer(backfill).map(Answer::unchanged),
            Cancelled::Ended => Err(ApiError::conflict(
                "backfill_ended",
                "none of the backfill's runs waits; cancel those under way one by one",
            )),
            Cancelled::NoSuchBackfill => Err(ApiError::not_found()),
        }
    };
    command
        .run(
            &app,
            &caller,
            Role::Editor,
            Action::BackfillCancelled,
            handler,
        )
        .await
}

async fn backfill(
    tx: &TenantTx,
    prompt_id: PromptId,
    target: &Target,
    wanted: &Wanted,
) -> Result<Answer, ApiError> {
    refuse_ended(target.status)?;
    if target.has_failed {
        return Err(ApiError::conflict(
            "paused_by_failures",
            "failed runs in a row paused the prompt; see why, and resume it first",
        ));
    }
    let mut slots = wanted.slots(target)?;
    let looked_at = |slot: &DateTime<Utc>| target.next_run_at.is_none_or(|next| *slot < next);
    let to_come = slots.split_off(slots.partition_point(looked_at));
    let room = i64::try_from(SLOTS_MAX).unwrap_or(i64::MAX) - target.waiting;
    let new = NewBackfill {
        id: BackfillId::new(),
        prompt_id,
        from: wanted.from,
        to: wanted.to,
        pace_s: wanted.pace_s,
        slots: &slots,
        slots_to_come: i32::try_from(to_come.len()).unwrap_or(i32::MAX),
        runs_max: target.runs_left.unwrap_or(i64::MAX).max(0),
    };
    let (backfill, first_run) = backfills::insert(tx, &new).await?;
    if i64::from(backfill.slots.queued) > room {
        return Err(ApiError::conflict(
            "too_many_queued_runs",
            format!(
                "{} backfill runs of this prompt wait already, and at most {SLOTS_MAX} may; let some \
                 end, or cancel a backfill",
                target.waiting
            ),
        ));
    }
    let detail = json!({ "prompt_id": prompt_id, "runs": backfill.slots.queued });
    let answer = Answer::json(StatusCode::ACCEPTED, &BackfillView::from(backfill))?
        .location(format!("/v1/backfills/{}", new.id))
        .about(new.id.uuid())
        .detail(detail);
    let tenant_id = tx.tenant();
    Ok(match first_run {
        Some(run_id) => answer.wake(WakeUp::Run { tenant_id, run_id }),
        None => answer,
    })
}

fn refuse_ended(status: PromptStatus) -> Result<(), ApiError> {
    match status {
        PromptStatus::Active | PromptStatus::Paused | PromptStatus::Completed => Ok(()),
        PromptStatus::Failed | PromptStatus::Cancelled => Err(ApiError::conflict(
            "prompt_ended",
            format!("the prompt is {}; create a new one", status.as_str()),
        )),
    }
}

/// Which slots to run.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; `Wanted::parse` reads it")]
#[serde(deny_unknown_fields)]
struct BackfillBody {
    /// The slots at or after this.
    from: DateTime<Utc>,
    /// The slots before this, which must not be in the future. At most 1,000 in all.
    to: DateTime<Utc>,
    /// Seconds from the beginning of one run to that of the next, at the least.
    #[schema(minimum = 1, maximum = 3_600, default = 60, nullable)]
    pace_s: Option<i32>,
}

pub(super) struct Wanted {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    pace_s: i32,
}

impl Wanted {
    pub(super) fn parse(body: &Value, now: DateTime<Utc>) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(body);
        let example = "2026-03-16T00:00:00Z";
        let from = fields.required_such_as("from", example).instant();
        let to = fields.required_such_as("to", example).instant();
        let pace_s = fields.optional("pace_s").integer(1..=PACE_S_MAX);
        if let Some(to) = to.filter(|to| *to > now) {
            fields.refuse(Fault::new(
                "to",
                "in_the_future",
                format!("{} is still to come", to.to_rfc3339()),
                "end the range now or earlier; the schedule runs what is to come",
            ));
        }
        if from.zip(to).is_some_and(|(from, to)| to <= from) {
            fields.refuse(Fault::new(
                "to",
                "end_before_start",
                "the range ends before it begins",
                "send a `to` after `from`",
            ));
        }
        let wanted = from.zip(to).map(|(from, to)| Self {
            from,
            to,
            pace_s: pace_s.unwrap_or(PACE_S),
        });
        fields.finish(wanted)
    }

    /// The slots of the range, oldest first.
    fn slots(&self, target: &Target) -> Result<Vec<DateTime<Utc>>, ApiError> {
        let next = |after| target.timing.next_slot(after, &target.holidays);
        let first = next(self.from - TimeDelta::nanoseconds(1));
        let slots: Vec<_> = std::iter::successors(first, |slot| next(*slot))
            .take_while(|slot| *slot < self.to)
            .take(SLOTS_MAX + 1)
            .collect();
        let (field, code, detail, hint) = match slots.get(SLOTS_MAX) {
            None if slots.is_empty() => (
                "from",
                "no_slots",
                "the schedule and its exclusions have no slot in the range".to_owned(),
                "send a range with a slot; POST /v1/prompts/preview shows them".to_owned(),
            ),
            None => return Ok(slots),
            Some(over) => (
                "to",
                "too_many_slots",
                format!(
                    "the range has more than {SLOTS_MAX} slots; slot {} is {over}",
                    SLOTS_MAX + 1
                ),
                format!("end the range at {} at the latest", over.to_rfc3339()),
            ),
        };
        Err(vec![Fault::new(field, code, detail, hint)].into())
    }
}

/// A backfill.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Backfill)]
struct BackfillView {
    /// The backfill.
    id: BackfillId,
    /// Whose slots.
    prompt_id: PromptId,
    /// Where it stands.
    status: BackfillStatus,
    /// The range begins here.
    from: DateTime<Utc>,
    /// And ends before this.
    to: DateTime<Utc>,
    /// Seconds from the beginning of one run to that of the next, at the least.
    pace_s: i32,
    /// The version of the prompt that gave the slots, and that the runs use.
    prompt_version: i64,
    /// What became of the slots of the range.
    slots: Slots,
    /// Its runs by status. Runs that have served their time are in none.
    runs: Progress,
    /// When it was asked for.
    created_at: DateTime<Utc>,
    /// When it was cancelled.
    #[schema(required)]
    cancelled_at: Option<DateTime<Utc>>,
}

/// Where a backfill stands.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BackfillStatus {
    /// Some of its runs wait or are under way.
    Running,
    /// All of its runs are over.
    Ended,
    /// A caller stopped it; runs that were under way may still be.
    Cancelled,
}

impl From<Backfill> for BackfillView {
    fn from(backfill: Backfill) -> Self {
        let status = match backfill.cancelled_at {
            Some(_) => BackfillStatus::Cancelled,
            None if backfill.runs.is_open() => BackfillStatus::Running,
            None => BackfillStatus::Ended,
        };
        Self {
            id: backfill.id,
            prompt_id: backfill.prompt_id,
            status,
            from: backfill.from,
            to: backfill.to,
            pace_s: backfill.pace_s,
            prompt_version: backfill.prompt_version,
            slots: backfill.slots,
            runs: backfill.runs,
            created_at: backfill.created_at,
            cancelled_at: backfill.cancelled_at,
        }
    }
}
