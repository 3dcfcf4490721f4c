//! The secret that signs the tenant's webhooks.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    api_key::Role,
    db::{audit::Action, tenants},
    seal::Purpose,
    webhook_secret::WebhookSecret,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::ApiError,
    query::Query,
};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get_secret))
        .routes(routes!(rotate_secret))
}

/// Read the webhook secret's age
///
/// When the secret was rotated, and whether the one before it still signs. Never the secret. Needs an
/// owner.
#[utoipa::path(
    get, path = "/v1/webhook-secret", tag = "tenant",
    responses((status = 200, description = "Its age", body = SecretView))
)]
async fn get_secret(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<SecretView>, ApiError> {
    caller.require(Role::Owner)?;
    query.finish()?;
    let secrets = app
        .read(caller.tenant_id(), async |tx| {
            Ok(tenants::webhook_secrets(tx).await?)
        })
        .await?;
    Ok(Json(SecretView {
        rotated_at: secrets.rotated_at,
        previous_valid_until: secrets.previous_valid_until,
    }))
}

/// Rotate the webhook secret
///
/// Makes a new secret and shows it once. The one before it signs beside it for 24 hours. Needs an
/// owner.
#[utoipa::path(
    post, path = "/v1/webhook-secret/rotate", tag = "tenant",
    responses((status = 200, description = "The new secret", body = NewSecretView))
)]
async fn rotate_secret(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let action = Action::WebhookSecretRotated;
    let tenant = caller.tenant_id();
    let sealing = app.sealer.ready(tenant, Purpose::WebhookSecret).await?;
    command
        .run(&app, &caller, Role::Owner, action, async |tx| {
            let secret = WebhookSecret::generate().text();
            let sealed = sealing.seal(secret.expose().as_bytes())?;
            let secrets = tenants::rotate_webhook_secret(tx, &sealed).await?;
            let view = NewSecretView {
                secret: secret.expose().to_owned(),
                rotated_at: secrets.rotated_at,
                previous_valid_until: secrets.previous_valid_until,
            };
            Ok(Answer::json(StatusCode::OK, &view)?.about(tenant.uuid()))
        })
        .await
}

/// What may be told of the webhook secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookSecret)]
struct SecretView {
    /// When the current secret took over; null while the first one stands.
    #[schema(required)]
    rotated_at: Option<DateTime<Utc>>,
    /// Until when the one before it signs beside it; null when it does not.
    #[schema(required)]
    previous_valid_until: Option<DateTime<Utc>>,
}

/// A new webhook secret.
#[derive(Serialize, ToSchema)]
#[schema(as = NewWebhookSecret)]
struct NewSecretView {
    /// The secret, as a Standard Webhooks verifier takes it. Keep it: it is not shown again.
    #[schema(example = "whsec_…")]
    secret: String,
    /// When it took over.
    #[schema(required)]
    rotated_at: Option<DateTime<Utc>>,
    /// Until when the one before it signs beside it.
    #[schema(required)]
    previous_valid_until: Option<DateTime<Utc>>,
}
