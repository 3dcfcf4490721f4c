//! The caller's tenant.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use shared::{db::tenants, ids::TenantId};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{app::App, auth::Caller, error::ApiError, query::Query};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get_tenant))
}

/// Read your tenant
///
/// Limits, retention, this month's usage, and what it has.
#[utoipa::path(
    get, path = "/v1/tenant", tag = "tenant",
    responses((status = 200, description = "The tenant", body = TenantView))
)]
async fn get_tenant(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<TenantView>, ApiError> {
    query.finish()?;
    let id = caller.tenant_id();
    let tenant = app
        .read(id, async |tx| Ok(tenants::get(tx).await?))
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(Json(TenantView::new(id, tenant)))
}

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tenant)]
pub(super) struct TenantView {
    /// The tenant.
    id: TenantId,
    /// What the operator calls it.
    name: String,
    /// `active` or `suspended`.
    #[schema(example = "active")]
    status: String,
    /// Used where a schedule names no timezone.
    #[schema(example = "Europe/London")]
    default_timezone: String,
    /// What it may have.
    limits: Limits,
    /// How long its ended runs stay.
    retention: Retention,
    /// What it used this month.
    usage: Usage,
    /// What it has at the moment.
    counts: Counts,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When the operator last changed it.
    updated_at: DateTime<Utc>,
}

/// What a tenant may have.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantLimits)]
struct Limits {
    /// How many prompts may be active at once.
    active_prompts_max: i32,
    /// How many runs may be running at once.
    concurrent_runs_max: i32,
    /// The shortest distance between two slots of a prompt, in minutes.
    interval_minutes_min: i32,
    /// Requests a minute of all callers together; more are answered 429.
    requests_per_minute_max: i32,
    /// Requests a minute of each key, and of each user with a token.
    caller_requests_per_minute_max: i32,
}

/// Days until an ended run is deleted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantRetention)]
struct Retention {
    /// Of runs that succeeded.
    succeeded_days: i32,
    /// Of runs that failed or timed out.
    failed_days: i32,
    /// Of all others.
    other_days: i32,
}

/// What a tenant used in the current month.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantUsage)]
struct Usage {
    /// The month, UTC.
    #[schema(example = "2026-03")]
    month: String,
    /// Model calls that were answered.
    runs: i64,
    /// Tokens read.
    input_tokens: i64,
    /// Tokens written.
    output_tokens: i64,
    /// Sum of the costs that are known, in US dollars.
    #[serde(with = "rust_decimal::serde::float")]
    #[schema(value_type = f64)]
    cost_usd: Decimal,
}

/// What a tenant has at the moment.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantCounts)]
struct Counts {
    /// Prompts that fire.
    prompts_active: i64,
    /// Prompts that wait for a resume.
    prompts_paused: i64,
    /// Runs that wait.
    runs_queued: i64,
    /// Runs under way.
    runs_running: i64,
}

impl TenantView {
    pub(super) fn id(&self) -> TenantId {
        self.id
    }

    pub(super) fn new(id: TenantId, tenant: tenants::Tenant) -> Self {
        Self {
            id,
            name: tenant.name,
            status: tenant.status,
            default_timezone: tenant.default_timezone,
            limits: Limits {
                active_prompts_max: tenant.active_prompts_max,
                concurrent_runs_max: tenant.concurrent_runs_max,
                interval_minutes_min: tenant.interval_minutes_min,
                requests_per_minute_max: tenant.requests_per_minute_max,
                caller_requests_per_minute_max: tenant.caller_requests_per_minute_max,
            },
            retention: Retention {
                succeeded_days: tenant.retention_succeeded_days,
                failed_days: tenant.retention_failed_days,
                other_days: tenant.retention_other_days,
            },
            usage: Usage {
                month: tenant.period.format("%Y-%m").to_string(),
                runs: tenant.runs,
                input_tokens: tenant.input_tokens,
                output_tokens: tenant.output_tokens,
                cost_usd: tenant.cost_settled_usd,
            },
            counts: Counts {
                prompts_active: tenant.prompts_active,
                prompts_paused: tenant.prompts_paused,
                runs_queued: tenant.runs_queued,
                runs_running: tenant.runs_running,
            },
            created_at: tenant.created_at,
            updated_at: tenant.updated_at,
        }
    }
}
