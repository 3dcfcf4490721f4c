//! The routes, and the layers around them.

pub(crate) mod admin;
mod api_keys;
mod audit;
mod deliveries;
mod health;
mod prompts;
mod runs;
mod tenant;
mod webhook_secret;

use std::{any::Any, time::Duration};

use axum::{Router, http::StatusCode, middleware, response::Response};
use tower_http::{
    catch_panic::CatchPanicLayer, limit::RequestBodyLimitLayer, timeout::TimeoutLayer,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::{answer, app::App, docs, error::ApiError};

/// Larger bodies are refused.
const BODY_BYTES_MAX: usize = 256_000;
/// Just under API Gateway's bound of 30 s ("Quotas for HTTP APIs"), and above a statement's.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(25);

/// The whole API, with its documentation.
pub fn router(app: App) -> Router {
    let (router, openapi) = documented().split_for_parts();
    router
        .merge(SwaggerUi::new("/docs").url("/openapi.json", openapi))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            REQUEST_TIMEOUT,
        ))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(answer::complete))
        .with_state(app)
}

pub(crate) fn documented() -> OpenApiRouter<App> {
    let mut router = OpenApiRouter::with_openapi(docs::base())
        .merge(prompts::router())
        .merge(runs::router())
        .merge(deliveries::router())
        .merge(tenant::router())
        .merge(api_keys::router())
        .merge(webhook_secret::router())
        .merge(audit::router())
        .merge(admin::router())
        .merge(health::router());
    docs::complete(router.get_openapi_mut());
    router
}

/// What a panic says may hold a tenant's data: it stays out of the answer and of our log line.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    axum::response::IntoResponse::into_response(ApiError::internal("a handler panicked"))
}
