//! The routes, and the layers around them.

pub(crate) mod admin;
mod api_keys;
mod audit;
mod backfills;
pub mod bodies;
mod calendars;
mod deliveries;
mod health;
mod prompts;
mod provider_keys;
mod runs;
mod suppressed_addresses;
mod tenant;
mod users;
mod webhook_secret;

use std::{any::Any, time::Duration};

use axum::{
    Router,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
};
use tower_http::{
    catch_panic::CatchPanicLayer, limit::RequestBodyLimitLayer, timeout::TimeoutLayer,
};
use utoipa_axum::router::OpenApiRouter;

use crate::{answer, app::App, docs, error::ApiError};

/// Larger bodies are refused.
const BODY_BYTES_MAX: usize = 256_000;
/// Just under API Gateway's bound of 30 s ("Quotas for HTTP APIs"), and above a statement's.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(25);

/// The whole API, with its documentation.
pub fn router(app: App) -> Router {
    let (router, openapi) = documented().split_for_parts();
    framed(router.merge(docs::page::router(openapi))).with_state(app)
}

/// What surrounds every handler, the innermost first.
fn framed<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            REQUEST_TIMEOUT,
        ))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(answer::complete))
}

pub(crate) fn documented() -> OpenApiRouter<App> {
    let mut router = OpenApiRouter::with_openapi(docs::base())
        .merge(prompts::router())
        .merge(calendars::router())
        .merge(backfills::router())
        .merge(runs::router())
        .merge(deliveries::router())
        .merge(suppressed_addresses::router())
        .merge(tenant::router())
        .merge(api_keys::router())
        .merge(users::router())
        .merge(webhook_secret::router())
        .merge(provider_keys::router())
        .merge(audit::router())
        .merge(admin::router())
        .merge(health::router());
    docs::complete(router.get_openapi_mut());
    router
}

/// What a panic says may hold a tenant's data: it stays out of the answer and of our log line.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::internal("a handler panicked").into_response()
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::Request,
        routing::get,
    };
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn problem(router: Router, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = framed(router).oneshot(request).await.unwrap();
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        let status = response.status();
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing() {
        let panics = get(async || -> StatusCode { panic!("secret-prompt") });
        let (status, body) = problem(Router::new().route("/", panics), "/").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(body["code"], "internal");
        assert!(!body.to_string().contains("secret-prompt"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_hangs_is_a_503() {
        let hangs = get(async || -> StatusCode { std::future::pending().await });
        let (status, body) = problem(Router::new().route("/", hangs), "/").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["code"], "unavailable");
    }
}
