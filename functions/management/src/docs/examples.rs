//! One example of each schema that a request or an answer may have, for the OpenAPI document.
//!
//! They are the same few objects throughout, so that a reader meets them again. A test checks each
//! one against its schema.

use serde_json::{Value, json};

/// An example of the schema with this name.
pub(super) fn of(schema: &str) -> Option<Value> {
    if let Some(item) = schema.strip_prefix("Page_") {
        return of(item).map(|item| json!({ "items": [item], "next_cursor": null }));
    }
    Some(match schema {
        "PromptBody" => prompt_body(),
        "Prompt" => prompt(),
        "PromptSummary" => without(prompt(), &["prompt_text", "context"]),
        "Preview" => preview(),
        "Calendar" => calendar(),
        "CalendarSummary" => json!({
            "name": "uk-bank-holidays",
            "days_count": 2,
            "first_date": "2026-12-25",
            "last_date": "2026-12-28",
            "version": 1,
            "created_at": "2026-03-09T16:10:00Z",
            "updated_at": "2026-03-09T16:10:00Z",
        }),
        "Backfill" => backfill(),
        "PromptVersionSummary" => json!({
            "version": 2,
            "is_current": true,
            "prompt_name": "Morning brief",
            "model": "echo/echo-1",
            "changed_fields": ["schedule"],
            "created_at": "2026-03-11T08:05:00Z",
        }),
        "PromptVersion" => json!({
            "version": 2,
            "is_current": true,
            "spec": spec(),
            "created_at": "2026-03-11T08:05:00Z",
        }),
        "RunSummary" => run_summary(),
        "Run" => run(),
        "LogLine" => log_line(),
        "Delivery" => delivery(),
        "SuppressedAddress" => json!({
            "address": "ada@example.com",
            "reason": "bounce",
            "delivery_id": "019d0a6f-5592-7b07-a5d8-3f61c09e2b48",
            "message_id": "0107019d0a6f55a1-6f0d9f5e-1c2b-4e57-9a0b-8b3c8f0f6a11-000000",
            "created_at": "2026-03-20T09:00:31Z",
        }),
        "Tenant" => tenant(),
        "TenantSummary" => tenant_summary(),
        "TenantBody" => json!({
            "name": "Northwind",
            "owner_email": "ada@example.com",
            "default_timezone": "Europe/London",
            "limits": { "active_prompts_max": 200 },
        }),
        "TenantPatch" => json!({
            "limits": { "concurrent_runs_max": 40 },
            "retention": { "succeeded_days": 30 },
        }),
        "NewTenant" => json!({ "tenant": tenant(), "api_key": new_api_key() }),
        "UserBody" => json!({
            "email": "ada@example.com",
            "role": "editor",
            "identity": { "subject": "6a2f6c1e-8d3b-4f0e-9d7c-2b1f5a90c4d8" },
        }),
        "UserPatch" => json!({ "role": "viewer" }),
        "User" => user(),
        "ApiKeyBody" => json!({ "name": "Nightly import", "role": "editor" }),
        "ProviderKeyBody" => json!({ "key": "sk-proj-0123456789abcdef" }),
        "ProviderKey" => json!({
            "provider": "openai",
            "fingerprint": "9f86d081884c",
            "version": 1,
            "created_at": "2026-03-09T16:10:00Z",
            "updated_at": "2026-03-09T16:10:00Z",
        }),
        "ApiKey" => api_key(),
        "NewApiKey" => new_api_key(),
        "WebhookSecret" => json!({
            "rotated_at": "2026-03-20T14:00:00Z",
            "previous_valid_until": "2026-03-21T14:00:00Z",
        }),
        "NewWebhookSecret" => json!({
            "secret": "whsec_…",
            "rotated_at": "2026-03-20T14:00:00Z",
            "previous_valid_until": "2026-03-21T14:00:00Z",
        }),
        "AuditEvent" => audit_event(),
        "Health" => json!({
            "status": "healthy",
            "version": "0.1.0",
            "time_zone_data": "2025b",
            "database": { "status": "healthy", "latency_ms": 1 },
            "issues": [],
        }),
        _ => return None,
    })
}

/// An example of a problem that a route answers with this HTTP status.
pub(super) fn problem(path: &str, status: &str) -> Option<Value> {
    let (code, detail, errors) = match status {
        "400" => (
            "invalid_json",
            "the body is not JSON; look at line 1, column 17",
            None,
        ),
        "401" => (
            "unknown_key",
            "the key is not known here; check that it is complete and of this environment",
            None,
        ),
        "403" => (
            "role_too_low",
            "this needs the role editor, yours is viewer; use a key of a higher role, or ask an owner",
            None,
        ),
        "404" => ("not_found", "there is no such object; check its id", None),
        "409" if path == "/v1/api-keys/{id}" => (
            "last_owner_key",
            "without this key no owner could come in; make another one first",
            None,
        ),
        "409" if path == "/v1/users/{id}" => (
            "last_owner",
            "without this user no owner could come in; give another one a key or an identity first",
            None,
        ),
        "409" if path == "/v1/prompts/{id}" => (
            "prompt_ended",
            "the prompt is completed, which is final; create a new one",
            None,
        ),
        "409" => (
            "idempotency_key_in_flight",
            "a request with this Idempotency-Key is being worked on; try again when it has ended",
            None,
        ),
        "412" => (
            "version_changed",
            "somebody changed the object since; read it again and repeat with its new ETag",
            None,
        ),
        "413" => (
            "body_too_large",
            "the body is larger than 256 kB; send a smaller one",
            None,
        ),
        "415" => (
            "unsupported_media_type",
            "the body must be JSON; set Content-Type to application/json",
            None,
        ),
        "422" => (
            "validation_failed",
            "verbose: there is no such query parameter",
            Some(json!([{
                "field": "verbose",
                "code": "unknown_parameter",
                "detail": "there is no such query parameter",
                "hint": "send none",
            }])),
        ),
        "429" => (
            "rate_limited",
            "the caller, or the tenant, has made too many requests; wait for the time in Retry-After",
            None,
        ),
        "500" => (
            "internal",
            "something went wrong on our side; tell us the request_id if it stays",
            None,
        ),
        "503" => (
            "unavailable",
            "the service cannot answer at the moment; try again",
            None,
        ),
        _ => return None,
    };
    let mut problem = json!({
        "type": format!("urn:carillon:problem:{code}"),
        "title": code.replace('_', " "),
        "status": status.parse::<u16>().ok()?,
        "detail": detail,
        "code": code,
        "request_id": "019d12a0-7c1e-7b52-9d0e-4f2a1c6b8e31",
    });
    if let (Some(object), Some(errors)) = (problem.as_object_mut(), errors) {
        object.insert("errors".to_owned(), errors);
    }
    Some(problem)
}

fn prompt_body() -> Value {
    json!({
        "prompt_name": "Morning brief",
        "prompt_text": "Write a brief on {{ context.topic }} for {{ slot.weekday }}, {{ slot.date }}.",
        "model": "echo/echo-1",
        "context": { "topic": "the energy market" },
        "schedule": {
            "type": "weekly",
            "days": ["mon", "fri"],
            "at": "09:00",
            "timezone": "Europe/London",
        },
        "destinations": [{ "kind": "email", "to": ["ada@example.com"] }],
    })
}

fn prompt() -> Value {
    json!({
        "id": "019d1298-1a00-7c3f-8a64-6f0b2f1d9c55",
        "user_id": "019d1290-02b4-7e11-b2a7-90c1d5e3f806",
        "prompt_name": "Morning brief",
        "prompt_text": "Write a brief on {{ context.topic }} for {{ slot.weekday }}, {{ slot.date }}.",
        "model": "echo/echo-1",
        "model_settings": {},
        "context": { "topic": "the energy market" },
        "schedule": {
            "type": "weekly",
            "days": ["mon", "fri"],
            "at": "09:00",
            "timezone": "Europe/London",
            "dst_gap": "shift",
        },
        "destinations": [{
            "kind": "email",
            "to": ["ada@example.com"],
            "on_unknown": "resend",
        }],
        "exclusions": { "dates": ["2026-12-25"], "ranges": [], "weekdays": [], "calendars": [] },
        "jitter_minutes": 0,
        "overlap": "skip",
        "overlap_runs_max": 3,
        "misfire": "run_latest",
        "catchup_window_s": 900,
        "max_retries": 3,
        "retry_delay_ms": 60000,
        "timeout_ms": 300_000,
        "pause_after_failures": 10,
        "tags": [],
        "metadata": {},
        "status": "active",
        "status_reason": null,
        "status_note": null,
        "schedule_type": "weekly",
        "timezone": "Europe/London",
        "next_run_at": "2026-03-23T09:00:00Z",
        "last_run_at": "2026-03-20T09:00:07Z",
        "last_status": "succeeded",
        "run_count": 4,
        "total_runs": 4,
        "success_count": 4,
        "failure_count": 0,
        "consecutive_failures": 0,
        "version": 2,
        "created_at": "2026-03-09T16:20:00Z",
        "updated_at": "2026-03-11T08:05:00Z",
        "completed_at": null,
        "cancelled_at": null,
        "sync": "synced",
        "sync_error": null,
    })
}

/// What of a prompt its owner said.
fn spec() -> Value {
    without(
        prompt(),
        &[
            "id",
            "user_id",
            "status",
            "status_reason",
            "status_note",
            "schedule_type",
            "timezone",
            "next_run_at",
            "last_run_at",
            "last_status",
            "run_count",
            "total_runs",
            "success_count",
            "failure_count",
            "consecutive_failures",
            "version",
            "created_at",
            "updated_at",
            "completed_at",
            "cancelled_at",
            "sync",
            "sync_error",
        ],
    )
}

fn calendar() -> Value {
    json!({
        "name": "uk-bank-holidays",
        "days": [
            { "date": "2026-12-25", "name": "Christmas Day" },
            { "date": "2026-12-28", "name": "Boxing Day (in lieu)" },
        ],
        "version": 1,
        "created_at": "2026-03-09T16:10:00Z",
        "updated_at": "2026-03-09T16:10:00Z",
    })
}

fn backfill() -> Value {
    json!({
        "id": "019d12a4-0b3c-7d95-9a27-5e61f0c8d2b4",
        "prompt_id": "019d1298-1a00-7c3f-8a64-6f0b2f1d9c55",
        "status": "running",
        "from": "2026-03-01T00:00:00Z",
        "to": "2026-03-20T00:00:00Z",
        "pace_s": 60,
        "prompt_version": 2,
        "slots": { "queued": 4, "has_run": 1, "to_come": 0, "over_limit": 0 },
        "runs": {
            "queued": 2, "running": 1, "generated": 0, "succeeded": 1, "failed": 0, "cancelled": 0,
            "skipped": 0,
        },
        "created_at": "2026-03-20T10:00:00Z",
        "cancelled_at": null,
    })
}

fn preview() -> Value {
    json!({
        "slots": [
            {
                "scheduled_for": "2026-03-28T01:30:00Z",
                "local": "2026-03-28T01:30:00+00:00",
                "outcome": "run",
                "slots_count": 1,
            },
            {
                "scheduled_for": "2026-03-30T00:30:00Z",
                "local": "2026-03-30T01:30:00+01:00",
                "outcome": "run",
                "slots_count": 1,
            },
        ],
        "not_due": [{
            "local": "2026-03-29T01:30:00",
            "slots_count": 1,
            "reason": "dst_gap",
            "detail": "the clock jumps over it",
        }],
        "truncated": false,
        "range": { "from": "2026-03-28T00:00:00Z", "until": "2026-03-30T00:30:00Z" },
        "totals": {
            "due": 2,
            "run": 2,
            "wait": 0,
            "skipped_overlap": 0,
            "skipped_max_runs": 0,
            "missed": 0,
            "shifted": 0,
            "dst_gap": 1,
            "excluded": 0,
            "after_max_runs": 0,
        },
        "run_s": 60,
        "run_s_from": "default",
        "jitter": null,
        "cost": {
            "basis": "assumed_tokens",
            "detail": "the list price of openai/gpt-5-mini as of 2026-10-21, for 1000 tokens read and 500 written, which are assumed",
            "runs": 2,
            "model": "openai/gpt-5-mini",
            "input_tokens": 1000,
            "output_tokens": 500,
            "cost_per_run_usd": 0.001_25,
            "cost_usd": 0.002_5,
            "price_version": "2026-10-21",
        },
        "conflicts": [],
        "eventbridge": [{ "expression": "cron(30 1 * * ? *)", "timezone": "Europe/London" }],
        "description": "At 01:30 every day, Europe/London",
        "warnings": [{
            "code": "dst_gap",
            "detail": "2026-03-29 01:30 does not exist in Europe/London, because the clocks go forward: that slot is skipped",
        }],
    })
}

fn run_summary() -> Value {
    json!({
        "id": "019d0a6f-3d20-7a90-b6f4-2c8e51d07b13",
        "prompt_id": "019d1298-1a00-7c3f-8a64-6f0b2f1d9c55",
        "scheduled_for": "2026-03-20T09:00:00Z",
        "scheduled_until": null,
        "slots_count": 1,
        "trigger": "schedule",
        "status": "succeeded",
        "reason": null,
        "overlapped_by": null,
        "backfill_id": null,
        "attempt": 1,
        "attempts_max": 4,
        "available_at": "2026-03-20T09:00:00Z",
        "prompt_version": 2,
        "provider": "openai",
        "model": "gpt-5-mini",
        "input_tokens": 412,
        "output_tokens": 530,
        "cached_tokens": 0,
        "tokens_used": 942,
        "cost_usd": 0.001_163,
        "price_version": "2026-10-21",
        "latency_ms": 5210,
        "output_bytes": 21,
        "output_sha256": "415378c805f65030fb082450663127f4244fdf2e3f78a6dc135c69456430deb5",
        "output_uri": null,
        "output_truncated": false,
        "error_code": null,
        "error_message": null,
        "trace_id": null,
        "span_id": null,
        "started_at": "2026-03-20T09:00:01Z",
        "completed_at": "2026-03-20T09:00:07Z",
        "created_at": "2026-03-20T09:00:00Z",
    })
}

fn run() -> Value {
    let mut run = run_summary();
    if let Some(fields) = run.as_object_mut() {
        let more = json!({
            "rendered_input": "Write a brief on the energy market for Friday, 2026-03-20.",
            "output": "Gas fell again. […]",
            "output_url": null,
            "attempts": [{
                "id": "019d0a6f-4108-7d6c-9f3b-7a12e8c04d96",
                "attempt": 1,
                "status": "ok",
                "provider": "openai",
                "model": "gpt-5-mini",
                "input_tokens": 412,
                "output_tokens": 530,
                "cached_tokens": 0,
                "cost_usd": 0.001_163,
                "error_code": null,
                "started_at": "2026-03-20T09:00:01Z",
                "ended_at": "2026-03-20T09:00:06Z",
            }],
        });
        fields.extend(more.as_object().cloned().unwrap_or_default());
    }
    run
}

fn log_line() -> Value {
    json!({
        "id": "019d0a6f-5590-7182-8c1d-e94b06af7325",
        "at": "2026-03-20T09:00:06Z",
        "level": "info",
        "message": "model answered",
        "context": { "attempt": 1, "input_tokens": 412, "output_tokens": 530 },
    })
}

fn delivery() -> Value {
    json!({
        "id": "019d0a6f-5592-7b07-a5d8-3f61c09e2b48",
        "run_id": "019d0a6f-3d20-7a90-b6f4-2c8e51d07b13",
        "purpose": "output",
        "position": 0,
        "kind": "email",
        "target": "ada@example.com",
        "suppressed": [],
        "status": "delivered",
        "attempt": 1,
        "attempts_max": 16,
        "next_attempt_at": "2026-03-20T09:00:06Z",
        "response_status": null,
        "response_excerpt": null,
        "location": null,
        "error_code": null,
        "error_message": null,
        "delivered_at": "2026-03-20T09:00:07Z",
        "created_at": "2026-03-20T09:00:06Z",
    })
}

fn tenant() -> Value {
    json!({
        "id": "019d1290-02a1-7f58-93c6-1be7a40d85f2",
        "name": "Northwind",
        "status": "active",
        "default_timezone": "Europe/London",
        "limits": {
            "active_prompts_max": 200,
            "concurrent_runs_max": 20,
            "interval_minutes_min": 1,
            "requests_per_minute_max": 3000,
            "caller_requests_per_minute_max": 1500,
        },
        "retention": { "succeeded_days": 7, "failed_days": 30, "other_days": 90 },
        "usage": {
            "month": "2026-03",
            "runs": 4,
            "input_tokens": 1640,
            "output_tokens": 2108,
            "cost_usd": 0.004_626,
        },
        "counts": {
            "prompts_active": 1,
            "prompts_paused": 0,
            "runs_queued": 0,
            "runs_running": 0,
        },
        "created_at": "2026-03-09T16:00:00Z",
        "updated_at": "2026-03-09T16:00:00Z",
    })
}

fn tenant_summary() -> Value {
    json!({
        "id": "019d1290-02a1-7f58-93c6-1be7a40d85f2",
        "name": "Northwind",
        "status": "active",
        "created_at": "2026-03-09T16:00:00Z",
    })
}

fn user() -> Value {
    json!({
        "id": "019d1290-02b4-7e11-b2a7-90c1d5e3f806",
        "email": "ada@example.com",
        "role": "editor",
        "identity": {
            "issuer": "https://login.example.com",
            "subject": "6a2f6c1e-8d3b-4f0e-9d7c-2b1f5a90c4d8",
        },
        "version": 1,
        "created_at": "2026-03-09T16:00:00Z",
        "updated_at": "2026-03-09T16:00:00Z",
    })
}

fn api_key() -> Value {
    json!({
        "id": "019d1291-6b30-7409-bd27-c5f81e93a06d",
        "name": "Nightly import",
        "prefix": "ck_prod_019d12916b307409bd27c5f81e93a06d_",
        "role": "editor",
        "user_id": "019d1290-02b4-7e11-b2a7-90c1d5e3f806",
        "email": "ada@example.com",
        "expires_at": null,
        "revoked_at": null,
        "last_used_at": "2026-03-20T02:00:00Z",
        "created_at": "2026-03-09T16:01:00Z",
    })
}

fn new_api_key() -> Value {
    let mut key = without(api_key(), &["last_used_at"]);
    if let Some(fields) = key.as_object_mut() {
        fields.insert("last_used_at".to_owned(), Value::Null);
        fields.insert(
            "key".to_owned(),
            json!("ck_prod_019d12916b307409bd27c5f81e93a06d_…"),
        );
    }
    key
}

fn audit_event() -> Value {
    json!({
        "id": "019d129a-5e44-7c60-8f19-d23b7e01a4c8",
        "at": "2026-03-11T08:05:00Z",
        "actor_kind": "api_key",
        "actor_id": "019d1291-6b30-7409-bd27-c5f81e93a06d",
        "actor_user_id": "019d1290-02b4-7e11-b2a7-90c1d5e3f806",
        "action": "prompt.updated",
        "target_kind": "prompt",
        "target_id": "019d1298-1a00-7c3f-8a64-6f0b2f1d9c55",
        "result": "ok",
        "request_id": "019d129a-5e3f-7d18-b0aa-61f4c7e82d95",
        "detail": { "fields": ["schedule"] },
    })
}

fn without(mut object: Value, names: &[&str]) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|name, _| !names.contains(&name.as_str()));
    }
    object
}
