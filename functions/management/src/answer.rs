//! Completes every answer: the request's id, problem bodies, and one log line.
//!
//! The line holds the method, the route's pattern, the status and the time. It never holds a body,
//! a key, an address or the path as it was sent.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;

use crate::{error::ApiError, request::RequestId};

pub(crate) async fn complete(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id = RequestId::of(request.headers());
    request.extensions_mut().insert(request_id.clone());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let span = tracing::info_span!(
        "request",
        request.id = request_id.as_str(),
        http.method = request.method().as_str(),
        http.route = route,
        tenant.id = tracing::field::Empty,
        user.id = tracing::field::Empty,
        api_key.id = tracing::field::Empty,
    );
    let bare = next.run(request).instrument(span.clone()).await;
    let _entered = span.enter();
    let (mut response, error) = rendered(bare, &request_id);
    let headers = response.headers_mut();
    if let Some(value) = request_id.header_value() {
        headers.insert(RequestId::HEADER, value);
    }
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    // Answers hold tenants' data, some of them a new key.
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    log(response.status(), started, error.as_ref());
    response
}

/// What a handler, a layer or axum itself gave, with a problem body if it is an error.
fn rendered(mut bare: Response, request_id: &RequestId) -> (Response, Option<ApiError>) {
    let status = bare.status();
    let error = bare.extensions_mut().remove::<ApiError>().or_else(|| {
        let is_error = status.is_client_error() || status.is_server_error();
        (is_error && !is_health(&bare)).then(|| ApiError::of_status(status))
    });
    match error {
        Some(error) => (error.render(request_id, bare), Some(error)),
        None => (bare, None),
    }
}

/// An unhealthy installation answers 503 with a report, not with a problem.
fn is_health(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE)
        == Some(&HeaderValue::from_static("application/health+json"))
}

fn log(status: StatusCode, started: Instant, error: Option<&ApiError>) {
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let code = error.map(ApiError::code);
    match error.and_then(ApiError::cause_text) {
        Some(cause) => tracing::error!(
            http.status = status.as_u16(),
            http.duration_ms = milliseconds,
            error.code = code,
            error.cause = cause,
            "request failed"
        ),
        None => tracing::info!(
            http.status = status.as_u16(),
            http.duration_ms = milliseconds,
            error.code = code,
            "request answered"
        ),
    }
}
