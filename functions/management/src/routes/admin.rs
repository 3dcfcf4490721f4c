//! What the operator does with tenants, with the platform's key.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    db::{
        TenantTx,
        audit::Action,
        system::{self, TenantSummary},
        tenants::{self, Changes, NewTenant, TenantStatus},
    },
    destination::EmailAddress,
    fault::Fault,
    fields::{Field, Fields},
    ids::TenantId,
    seal::{Purpose, Sealing},
    secret::Secret,
    webhook_secret::WebhookSecret,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    api_keys::{KeyBody, KeyRequest, MadeKey, NewKeyView, make_key},
    tenant::TenantView,
};
use crate::{
    app::App,
    auth::Operator,
    command::{Answer, Command},
    error::ApiError,
    page::Page,
    query::Query,
    request::PathId,
};

const FIRST_KEY_NAME: &str = "First key";

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_tenant, list_tenants))
        .routes(routes!(get_tenant, update_tenant))
        .routes(routes!(suspend_tenant))
        .routes(routes!(resume_tenant))
        .routes(routes!(create_rescue_key))
}

/// Makes a tenant as the admin route does, and gives its first key: for an installation's start.
///
/// # Errors
/// As the route.
pub async fn bootstrap_tenant(
    app: &App,
    name: &str,
    owner_email: &str,
) -> Result<(TenantId, Secret), ApiError> {
    let body = json!({ "name": name, "owner_email": owner_email });
    let tenant_id = TenantId::new();
    let mut key = None;
    let sealing = app.sealer.ready(tenant_id, Purpose::WebhookSecret).await?;
    let operator = Operator::of_process();
    Command::of_process()
        .run_as_operator(
            app,
            &operator,
            tenant_id,
            Action::TenantCreated,
            async |tx| {
                let request = TenantRequest::parse(&body)?;
                let founded = found(app, tx, &sealing, &request).await?;
                key = Some(founded.key.key.text().clone());
                founded.answer()
            },
        )
        .await?;
    let key = key.ok_or_else(|| ApiError::internal("a tenant was made without a key"))?;
    Ok((tenant_id, key))
}

/// Create a tenant
///
/// With its owner and a first key, whose text is in this answer and nowhere else.
#[utoipa::path(
    post, path = "/v1/admin/tenants", tag = "admin", request_body = TenantBody,
    responses((status = 201, description = "The tenant and its first key", body = FoundedView, headers(
        ("Location" = String, description = "The tenant's path"),
    )))
)]
async fn create_tenant(
    State(app): State<App>,
    operator: Operator,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let id = command.id_of_new_tenant();
    let sealing = app.sealer.ready(id, Purpose::WebhookSecret).await?;
    command
        .run_as_operator(&app, &operator, id, Action::TenantCreated, async |tx| {
            let request = TenantRequest::parse(&command.json()?)?;
            found(&app, tx, &sealing, &request).await?.answer()
        })
        .await
}

/// List tenants
///
/// All of them, suspended ones included, in the order of their ids.
#[utoipa::path(
    get, path = "/v1/admin/tenants", tag = "admin",
    params(
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of tenants", body = Page<TenantSummaryView>))
)]
async fn list_tenants(
    State(app): State<App>,
    _operator: Operator,
    mut query: Query,
) -> Result<Json<Page<TenantSummaryView>>, ApiError> {
    let limit = query.limit();
    let cursor = query.cursor::<()>("tenants");
    query.finish()?;
    let after = cursor.map(|cursor| TenantId::from(cursor.id));
    let rows_max = i32::try_from(limit.fetch()).unwrap_or(i32::MAX);
    let rows = system::tenants(&app.db, after, rows_max).await?;
    let place = |row: &TenantSummary| ((), row.id.uuid());
    let view = TenantSummaryView::from;
    Ok(Json(Page::new(rows, limit, "tenants", place, view)))
}

/// Read a tenant
///
/// As its owner sees it: limits, retention, this month's usage, and what it has.
#[utoipa::path(
    get, path = "/v1/admin/tenants/{id}", operation_id = "get_any_tenant", tag = "admin", params(("id" = TenantId, Path, description = "The tenant")),
    responses((status = 200, description = "The tenant", body = TenantView))
)]
async fn get_tenant(
    State(app): State<App>,
    _operator: Operator,
    PathId(id): PathId<TenantId>,
    query: Query,
) -> Result<Json<TenantView>, ApiError> {
    query.finish()?;
    app.read(id, async |tx| Ok(Json(view(tx).await?))).await
}

/// Change a tenant
///
/// Its name, timezone, limits or retention; what is not sent stays as it is.
#[utoipa::path(
    patch, path = "/v1/admin/tenants/{id}", tag = "admin", params(("id" = TenantId, Path, description = "The tenant")),
    request_body = ChangesBody, responses((status = 200, description = "The tenant", body = TenantView))
)]
async fn update_tenant(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    command
        .run_as_operator(&app, &operator, id, Action::TenantUpdated, async |tx| {
            let body = command.json()?;
            let changes = parse_changes(&body)?;
            let changed: Vec<&String> = body
                .as_object()
                .into_iter()
                .flat_map(|o| o.keys())
                .collect();
            if !tenants::update(tx, &changes).await? {
                return Err(ApiError::not_found());
            }
            Ok(Answer::json(StatusCode::OK, &view(tx).await?)?
                .about(id.uuid())
                .detail(json!({ "fields": changed })))
        })
        .await
}

/// Suspend a tenant
///
/// Its keys are refused and its slots do not fire. One that is suspended stays as it is.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{id}/suspend", tag = "admin", params(("id" = TenantId, Path, description = "The tenant")),
    responses((status = 200, description = "The tenant", body = TenantView))
)]
async fn suspend_tenant(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let action = Action::TenantSuspended;
    command
        .run_as_operator(&app, &operator, id, action, async |tx| {
            set_status(tx, TenantStatus::Suspended).await
        })
        .await
}

/// Resume a tenant
///
/// Ends its suspension. One that is active stays as it is.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{id}/resume", tag = "admin", params(("id" = TenantId, Path, description = "The tenant")),
    responses((status = 200, description = "The tenant", body = TenantView))
)]
async fn resume_tenant(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let action = Action::TenantResumed;
    command
        .run_as_operator(&app, &operator, id, action, async |tx| {
            set_status(tx, TenantStatus::Active).await
        })
        .await
}

/// Create a key for a tenant
///
/// For a tenant that has lost its own. The key acts for the first owner unless an address is given.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{id}/api-keys", tag = "admin", params(("id" = TenantId, Path, description = "The tenant")),
    request_body = KeyBody, responses((status = 201, description = "The key, with its text", body = NewKeyView, headers(
        ("Location" = String, description = "The key's path, for the tenant's own callers"),
    )))
)]
async fn create_rescue_key(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    command
        .run_as_operator(&app, &operator, id, Action::ApiKeyCreated, async |tx| {
            let request = KeyRequest::parse(&command.json()?, Utc::now())?;
            let owner = tenants::first_owner(tx)
                .await?
                .ok_or_else(ApiError::not_found)?;
            make_key(&app, tx, &request, owner).await?.answer()
        })
        .await
}

async fn set_status(tx: &TenantTx, status: TenantStatus) -> Result<Answer, ApiError> {
    let changed = tenants::set_status(tx, status).await?;
    let answer = Answer::json(StatusCode::OK, &view(tx).await?)?.about(tx.tenant().uuid());
    Ok(if changed { answer } else { answer.unchanged() })
}

async fn view(tx: &TenantTx) -> Result<TenantView, ApiError> {
    let tenant = tenants::get(tx).await?.ok_or_else(ApiError::not_found)?;
    Ok(TenantView::new(tx.tenant(), tenant))
}

/// A tenant that was made, with the only sight of its first key.
struct Founded {
    tenant: TenantView,
    key: MadeKey,
}

impl Founded {
    fn answer(self) -> Result<Answer, ApiError> {
        let view = FoundedView {
            tenant: self.tenant,
            api_key: self.key.view(),
        };
        let id = view.tenant.id();
        Ok(Answer::json(StatusCode::CREATED, &view)?
            .location(format!("/v1/admin/tenants/{id}"))
            .about(id.uuid()))
    }
}

async fn found(
    app: &App,
    tx: &TenantTx,
    sealing: &Sealing<'_>,
    request: &TenantRequest,
) -> Result<Founded, ApiError> {
    let secret = WebhookSecret::generate().text();
    let sealed = sealing.seal(secret.expose().as_bytes())?;
    let new = NewTenant {
        name: &request.name,
        owner_email: request.owner_email.as_str(),
        webhook_secret_sealed: &sealed,
    };
    let owner = tenants::create(tx, &new).await.map_err(|error| {
        if error.unique_violation() == Some("tenants_pkey") {
            // The key's answer is older than 24 hours, and the tenant has the key's id.
            return ApiError::conflict(
                "idempotency_key_expired",
                "this Idempotency-Key made a tenant over 24 hours ago; take a new key",
            );
        }
        error.into()
    })?;
    tenants::update(tx, &request.changes).await?;
    let key = make_key(app, tx, &KeyRequest::owner(FIRST_KEY_NAME), owner).await?;
    let tenant = view(tx).await?;
    Ok(Founded { tenant, key })
}

/// What a new tenant is to be.
#[derive(Debug, ToSchema)]
#[expect(
    dead_code,
    reason = "describes the body; `TenantRequest::parse` reads it"
)]
#[serde(deny_unknown_fields)]
struct TenantBody {
    /// What you call it.
    #[schema(
        min_length = 1,
        max_length = 200,
        example = "Northwind",
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    name: String,
    /// Address of the first user, who owns the tenant.
    #[schema(max_length = 254, format = "email")]
    owner_email: String,
    /// Used where a schedule names no timezone; UTC unless given.
    #[schema(
        min_length = 1,
        max_length = 50,
        pattern = "^[A-Za-z0-9_+/-]*$",
        example = "Europe/London"
    )]
    default_timezone: Option<String>,
    /// What it may have.
    limits: Option<LimitsBody>,
    /// How long its ended runs stay.
    retention: Option<RetentionBody>,
}

/// What is to change in a tenant.
#[derive(Debug, ToSchema)]
#[schema(as = TenantPatch)]
#[expect(dead_code, reason = "describes the body; `parse_changes` reads it")]
#[serde(deny_unknown_fields)]
struct ChangesBody {
    /// What you call it.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    name: Option<String>,
    /// Used where a schedule names no timezone.
    #[schema(
        min_length = 1,
        max_length = 50,
        pattern = "^[A-Za-z0-9_+/-]*$",
        example = "Europe/London"
    )]
    default_timezone: Option<String>,
    /// What it may have.
    limits: Option<LimitsBody>,
    /// How long its ended runs stay.
    retention: Option<RetentionBody>,
}

/// Limits to set; those not given stay as they are.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; `read_changes` reads it")]
#[serde(deny_unknown_fields)]
struct LimitsBody {
    /// How many prompts may be active at once.
    #[schema(minimum = 0, maximum = 1_000_000)]
    active_prompts_max: Option<i32>,
    /// How many runs may be running at once.
    #[schema(minimum = 1, maximum = 10_000)]
    concurrent_runs_max: Option<i32>,
    /// The shortest distance between two slots of a prompt, in minutes.
    #[schema(minimum = 1, maximum = 525_600)]
    interval_minutes_min: Option<i32>,
    /// Requests a minute of all callers together; more are answered 429.
    #[schema(minimum = 1, maximum = 1_000_000)]
    requests_per_minute_max: Option<i32>,
    /// Requests a minute of each key, and of each user with a token.
    #[schema(minimum = 1, maximum = 1_000_000)]
    caller_requests_per_minute_max: Option<i32>,
}

/// Days until ended runs are deleted; those not given stay as they are.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; `read_changes` reads it")]
#[serde(deny_unknown_fields)]
struct RetentionBody {
    /// Days that runs which succeeded stay.
    #[schema(minimum = 1, maximum = 3650)]
    succeeded_days: Option<i32>,
    /// Days that runs which failed or timed out stay.
    #[schema(minimum = 1, maximum = 3650)]
    failed_days: Option<i32>,
    /// Days that all other runs stay.
    #[schema(minimum = 1, maximum = 3650)]
    other_days: Option<i32>,
}

/// The body of a request for a tenant, read.
#[derive(Debug)]
pub(super) struct TenantRequest {
    name: String,
    owner_email: EmailAddress,
    changes: Changes,
}

impl TenantRequest {
    pub(super) fn parse(body: &Value) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(body);
        let name = fields.required("name").line(1..=200).map(str::to_owned);
        let owner_email = fields
            .required("owner_email")
            .parse_text(EmailAddress::parse);
        let changes = read_changes(&mut fields);
        let whole = name.zip(owner_email).map(|(name, owner_email)| Self {
            name,
            owner_email,
            changes,
        });
        fields.finish(whole)
    }
}

pub(super) fn parse_changes(body: &Value) -> Result<Changes, Vec<Fault>> {
    let mut fields = Fields::new(body);
    let name = fields.optional("name").line(1..=200).map(str::to_owned);
    let changes = Changes {
        name,
        ..read_changes(&mut fields)
    };
    fields.finish(Some(changes))
}

/// What a new tenant and a changed one have in common.
fn read_changes(fields: &mut Fields<'_>) -> Changes {
    let default_timezone = fields.optional("default_timezone").parse_text(timezone);
    let days = |field: Field<'_, '_>| field.integer(1..=3650);
    let limits = fields.optional("limits").parse(|value| {
        let mut fields = Fields::new(value);
        let prompts = fields.optional("active_prompts_max").integer(0..=1_000_000);
        let runs = fields.optional("concurrent_runs_max").integer(1..=10_000);
        let minutes = fields.optional("interval_minutes_min").integer(1..=525_600);
        let all = fields
            .optional("requests_per_minute_max")
            .integer(1..=1_000_000);
        let each = fields
            .optional("caller_requests_per_minute_max")
            .integer(1..=1_000_000);
        fields.finish(Some((prompts, runs, minutes, all, each)))
    });
    let retention = fields.optional("retention").parse(|value| {
        let mut fields = Fields::new(value);
        let succeeded = days(fields.optional("succeeded_days"));
        let failed = days(fields.optional("failed_days"));
        let other = days(fields.optional("other_days"));
        fields.finish(Some((succeeded, failed, other)))
    });
    let (
        active_prompts_max,
        concurrent_runs_max,
        interval_minutes_min,
        requests_per_minute_max,
        caller_requests_per_minute_max,
    ) = limits.unwrap_or_default();
    let (retention_succeeded_days, retention_failed_days, retention_other_days) =
        retention.unwrap_or_default();
    Changes {
        name: None,
        default_timezone,
        active_prompts_max,
        concurrent_runs_max,
        interval_minutes_min,
        requests_per_minute_max,
        caller_requests_per_minute_max,
        retention_succeeded_days,
        retention_failed_days,
        retention_other_days,
    }
}

fn timezone(text: &str) -> Result<String, Fault> {
    match text.parse::<chrono_tz::Tz>() {
        Ok(zone) => Ok(zone.name().to_owned()),
        Err(_) => Err(Fault::new(
            "",
            "unknown_timezone",
            "there is no such timezone",
            "send a name of the IANA database, for example Europe/London",
        )),
    }
}

/// A new tenant and its first key.
#[derive(Serialize, ToSchema)]
#[schema(as = NewTenant)]
struct FoundedView {
    /// The tenant.
    tenant: TenantView,
    /// Its first key.
    api_key: NewKeyView,
}

/// A tenant in a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantSummary)]
struct TenantSummaryView {
    /// The tenant.
    id: TenantId,
    /// What the operator calls it.
    name: String,
    /// `active` or `suspended`.
    #[schema(example = "active")]
    status: String,
    /// When it was made.
    created_at: DateTime<Utc>,
}

impl From<TenantSummary> for TenantSummaryView {
    fn from(tenant: TenantSummary) -> Self {
        Self {
            id: tenant.id,
            name: tenant.name,
            status: tenant.status,
            created_at: tenant.created_at,
        }
    }
}
