//! Which changes of a prompt are allowed, and what follows from each.
//!
//! Everything happens in the caller's transaction, under the prompt's row lock and by the
//! database's clock. Nothing here reads a request or builds an answer.

use serde_json::{Map, Value};
use shared::{
    db::{
        DbError, TenantTx,
        prompts::{self, Limits, NewPrompt, NewSpec, NewStatus, Prompt, PromptStatus},
        runs,
    },
    destination::Destination,
    exclusion::{CALENDARS_MAX, CalendarName},
    fault::Fault,
    ids::{PromptId, UserId},
    prompt::{PromptSpec, Rules},
    schedule::ScheduleType,
    slots,
};

use crate::{app::App, error::ApiError, request::IfMatch};

/// A prompt after a change that was asked for.
pub(super) struct Changed {
    pub(super) prompt: Prompt,
    /// The names of the spec's fields that differ now; `None` when all was so already.
    pub(super) fields: Option<Vec<String>>,
}

/// What a caller wants of a prompt's spec.
pub(super) enum Edit<'a> {
    /// This, whatever it was.
    Replace(&'a Value),
    /// What it was, with this merged in (RFC 7396, "JSON Merge Patch").
    Merge(&'a Value),
}

pub(super) async fn create(
    app: &App,
    tx: &TenantTx,
    user_id: UserId,
    body: &Value,
) -> Result<Prompt, ApiError> {
    let limits = prompts::limits_to_create(tx, user_id, &named_calendars(body)).await?;
    let spec = PromptSpec::parse(body, &rules(app, &limits)?)?;
    room_for_one_more(&limits)?;
    let new = NewPrompt {
        id: PromptId::new(),
        user_id,
        spec: &spec.to_json(),
        next_run_at: spec.next_slot(limits.now, &limits.holidays),
        webhook_urls: &webhook_urls(&spec),
        calendars: &calendars(&spec),
    };
    prompts::insert(tx, &new).await.map_err(refusal)
}

pub(super) async fn edit(
    app: &App,
    tx: &TenantTx,
    id: PromptId,
    if_match: &IfMatch,
    edit: Edit<'_>,
) -> Result<Changed, ApiError> {
    let (Edit::Replace(body) | Edit::Merge(body)) = edit;
    let (limits, prompt) = found(prompts::get_to_change(tx, id, &named_calendars(body)).await?)?;
    if_match.check(prompt.version)?;
    refuse_ended(&prompt)?;
    let rules = rules(app, &limits)?;
    let spec = match edit {
        Edit::Replace(body) => replacement(body, &prompt, &rules)?,
        Edit::Merge(patch) => stored_spec(&prompt)?.merge_patch(patch, &rules)?,
    };
    let stored = spec.to_json();
    let fields = changed_fields(&prompt.spec, &stored);
    if fields.is_empty() {
        return Ok(Changed {
            prompt,
            fields: None,
        });
    }
    let changes = |name: &str| fields.iter().any(|field| field == name);
    if changes("max_runs") {
        refuse_spent(&spec, &prompt)?;
    }
    let reschedules = changes("schedule") || changes("exclusions");
    if reschedules {
        drop_due(tx, &prompt, &limits, "rescheduled").await?;
    }
    let named = changes("exclusions").then(|| calendars(&spec));
    let change = NewSpec {
        id,
        version: prompt.version,
        spec: &stored,
        next_run_at: reschedules.then(|| match prompt.status {
            PromptStatus::Active => spec.next_slot(limits.now, &limits.holidays),
            PromptStatus::Paused
            | PromptStatus::Completed
            | PromptStatus::Failed
            | PromptStatus::Cancelled => None,
        }),
        // An entry knows of no exclusions.
        reschedules: changes("schedule") || changes("jitter_minutes"),
        webhook_urls: &webhook_urls(&spec),
        calendars: named.as_deref(),
    };
    let prompt = prompts::replace(tx, &change).await.map_err(refusal)?;
    Ok(Changed {
        prompt,
        fields: Some(fields),
    })
}

pub(super) async fn pause(
    tx: &TenantTx,
    id: PromptId,
    note: Option<&str>,
) -> Result<Changed, ApiError> {
    let (limits, prompt) = found(prompts::get_to_change(tx, id, &[]).await?)?;
    refuse_ended(&prompt)?;
    if prompt.status == PromptStatus::Paused {
        return Ok(Changed {
            prompt,
            fields: None,
        });
    }
    drop_due(tx, &prompt, &limits, "paused").await?;
    let change = NewStatus {
        id,
        version: prompt.version,
        status: PromptStatus::Paused,
        reason: Some("user"),
        note,
        next_run_at: None,
    };
    status_changed(prompts::set_status(tx, &change).await?)
}

/// The next slot follows, never those of the pause.
pub(super) async fn resume(tx: &TenantTx, id: PromptId) -> Result<Changed, ApiError> {
    let (limits, prompt) = found(prompts::get_to_resume(tx, id).await?)?;
    refuse_ended(&prompt)?;
    if prompt.status == PromptStatus::Active {
        return Ok(Changed {
            prompt,
            fields: None,
        });
    }
    room_for_one_more(&limits)?;
    let max_runs = prompt.spec.get("max_runs").and_then(Value::as_i64);
    if max_runs.is_some_and(|max| max <= prompt.run_count) {
        return Err(ApiError::conflict(
            "max_runs_reached",
            "the prompt has had all the runs that max_runs allows; raise it, then resume",
        ));
    }
    let spec = stored_spec(&prompt)?;
    let next_run_at = spec.next_slot(limits.now, &limits.holidays);
    if next_run_at.is_none() && spec.schedule().kind() != ScheduleType::Manual {
        return Err(ApiError::conflict(
            "no_slot_left",
            "the schedule has no slot left; change the schedule, then resume",
        ));
    }
    let change = NewStatus {
        id,
        version: prompt.version,
        status: PromptStatus::Active,
        reason: None,
        note: None,
        next_run_at,
    };
    status_changed(prompts::set_status(tx, &change).await?)
}

pub(super) async fn cancel(
    tx: &TenantTx,
    id: PromptId,
    note: Option<&str>,
) -> Result<Changed, ApiError> {
    let (limits, prompt) = found(prompts::get_to_change(tx, id, &[]).await?)?;
    if prompt.status == PromptStatus::Cancelled {
        return Ok(Changed {
            prompt,
            fields: None,
        });
    }
    refuse_ended(&prompt)?;
    drop_due(tx, &prompt, &limits, "prompt_cancelled").await?;
    let change = NewStatus {
        id,
        version: prompt.version,
        status: PromptStatus::Cancelled,
        reason: Some("user"),
        note,
        next_run_at: None,
    };
    let changed = status_changed(prompts::set_status(tx, &change).await?);
    runs::cancel_queued(tx, id, "prompt_cancelled").await?;
    changed
}

pub(super) async fn delete(tx: &TenantTx, id: PromptId) -> Result<(), ApiError> {
    let (limits, prompt) = found(prompts::get_to_change(tx, id, &[]).await?)?;
    drop_due(tx, &prompt, &limits, "prompt_deleted").await?;
    prompts::tombstone(tx, id).await?;
    runs::cancel_queued(tx, id, "prompt_deleted").await?;
    Ok(())
}

/// Answers for slots that were due and that nobody has looked at yet.
async fn drop_due(
    tx: &TenantTx,
    prompt: &Prompt,
    Limits { now, holidays, .. }: &Limits,
    reason: &'static str,
) -> Result<(), ApiError> {
    let Some(first) = prompt.next_run_at.filter(|first| first <= now) else {
        return Ok(());
    };
    let spec = stored_spec(prompt)?;
    let next = |after| spec.next_slot(after, holidays);
    if let Some(dropped) = slots::dropped(first, *now, next) {
        prompts::drop_slots(tx, prompt.id, dropped, reason).await?;
    }
    Ok(())
}

fn room_for_one_more(limits: &Limits) -> Result<(), ApiError> {
    if limits.active_prompts < limits.active_prompts_max {
        return Ok(());
    }
    Err(ApiError::conflict(
        "too_many_active_prompts",
        format!(
            "the tenant has {} active prompts and may have {}; pause or delete one, or ask the operator",
            limits.active_prompts, limits.active_prompts_max
        ),
    ))
}

fn refuse_ended(prompt: &Prompt) -> Result<(), ApiError> {
    if !prompt.status.is_final() {
        return Ok(());
    }
    Err(ApiError::conflict(
        "prompt_ended",
        format!(
            "the prompt is {}, which is final; create a new one",
            prompt.status.as_str()
        ),
    ))
}

fn refuse_spent(spec: &PromptSpec, prompt: &Prompt) -> Result<(), ApiError> {
    match spec.max_runs() {
        Some(max) if i64::from(max) <= prompt.run_count => {
            Err(ApiError::validation(vec![Fault::new(
                "max_runs",
                "max_runs_reached",
                format!("the prompt has had {} runs already", prompt.run_count),
                format!("send more than {}, or null", prompt.run_count),
            )]))
        }
        _ => Ok(()),
    }
}

/// What a request is judged by.
pub(super) fn rules<'a>(app: &'a App, limits: &'a Limits) -> Result<Rules<'a>, ApiError> {
    Ok(Rules {
        now: limits.now,
        outbound: &app.outbound,
        catalog: &app.catalog,
        interval_minutes_min: u32::try_from(limits.interval_minutes_min)
            .map_err(ApiError::internal)?,
        default_timezone: limits
            .default_timezone
            .parse()
            .map_err(ApiError::internal)?,
        allow_echo: app.allow_echo,
        owner_email: limits.owner_email.as_deref(),
        holidays: &limits.holidays,
    })
}

/// A spec in the place of the prompt's own. An interval that is sent as it was, without the anchor that
/// it got when it was made, is no other one: it would count from now on.
fn replacement(body: &Value, prompt: &Prompt, rules: &Rules<'_>) -> Result<PromptSpec, ApiError> {
    let before = stored_spec(prompt)?;
    let stored = prompt.spec.get("schedule").unwrap_or(&Value::Null);
    let anchored = |schedule: &Value| schedule.get("anchor").is_some_and(|at| !at.is_null());
    let sent = body.get("schedule").unwrap_or(&Value::Null);
    if sent.is_object() && anchored(stored) && !anchored(sent) {
        let mut with_anchor = body.clone();
        with_anchor["schedule"]["anchor"] = stored["anchor"].clone();
        if let Ok(spec) = before.replace(&with_anchor, rules)
            && spec.schedule().to_json() == *stored
        {
            return Ok(spec);
        }
    }
    Ok(before.replace(body, rules)?)
}

/// The calendars that a body seems to name: what they hold is looked up before it is parsed.
pub(super) fn named_calendars(body: &Value) -> Vec<&str> {
    let names = body
        .get("exclusions")
        .and_then(|exclusions| exclusions.get("calendars"));
    names
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|name| CalendarName::parse(name).is_ok())
        .take(CALENDARS_MAX)
        .collect()
}

fn calendars(spec: &PromptSpec) -> Vec<&str> {
    let names = spec.exclusions().calendars().iter();
    names.map(CalendarName::as_str).collect()
}

fn webhook_urls(spec: &PromptSpec) -> Vec<&str> {
    spec.destinations()
        .iter()
        .filter_map(|destination| match destination {
            Destination::Webhook(webhook) => Some(webhook.url().as_str()),
            Destination::Email(_) | Destination::Storage => None,
        })
        .collect()
}

fn found<T>(looked_up: Option<T>) -> Result<T, ApiError> {
    looked_up.ok_or_else(ApiError::not_found)
}

fn stored_spec(prompt: &Prompt) -> Result<PromptSpec, ApiError> {
    PromptSpec::from_stored(&prompt.spec).map_err(|faults| unreadable(&faults))
}

fn unreadable(faults: &[Fault]) -> ApiError {
    let codes: Vec<_> = faults.iter().map(|fault| fault.code).collect();
    ApiError::internal(DbError::Stored {
        what: "prompt",
        detail: codes.join(", "),
    })
}

fn changed_fields(before: &Value, after: &Value) -> Vec<String> {
    let none = Map::new();
    let before = before.as_object().unwrap_or(&none);
    let after = after.as_object().unwrap_or(&none);
    let mut names: Vec<_> = before
        .keys()
        .chain(after.keys())
        .filter(|name| before.get(*name) != after.get(*name))
        .cloned()
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn status_changed(prompt: Prompt) -> Result<Changed, ApiError> {
    Ok(Changed {
        prompt,
        fields: Some(vec!["status".to_owned()]),
    })
}

fn refusal(error: DbError) -> ApiError {
    if error.unique_violation() == Some("scheduled_prompts_external_id") {
        return ApiError::conflict(
            "external_id_taken",
            "another prompt has this external_id; change that one, or send another id",
        );
    }
    error.into()
}
