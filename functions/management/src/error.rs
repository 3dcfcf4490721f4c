//! Everything that a request can end with other than success, and the one place that turns it into
//! a problem body (RFC 9457, "Problem Details for HTTP APIs").
//!
//! An error has a stable code and a detail for the caller. Its cause is private: it is logged once,
//! where the answer is completed, and never sent.

use std::{error::Error, sync::Arc};

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use shared::{
    db::DbError,
    fault::Fault,
    seal::{OpenError, SealError},
    telemetry,
};
use utoipa::ToSchema;

use crate::request::RequestId;

/// Seconds after which a caller may try again when the database does not answer.
const RETRY_AFTER_S: &str = "2";

/// An error answer. It becomes a body once the request's id is known.
#[derive(Debug, Clone)]
pub struct ApiError(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<Fault>,
    header: Option<(HeaderName, HeaderValue)>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Names the kind of problem; the same as `code`, as a URI.
    #[schema(example = "urn:carillon:problem:prompt_ended")]
    r#type: String,
    /// The kind of problem in words.
    #[schema(example = "prompt ended")]
    title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened, and what to do about it.
    detail: String,
    /// Stable, lower snake case.
    #[schema(example = "prompt_ended")]
    code: String,
    /// The request's id, as in the header `x-request-id`.
    request_id: String,
    /// What is wrong with the request, where it is the request: one entry per fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<Fault>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Arc::new(Parts {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            header: None,
            cause: None,
        }))
    }

    fn with(mut self, change: impl FnOnce(&mut Parts)) -> Self {
        // A new error has one owner.
        if let Some(parts) = Arc::get_mut(&mut self.0) {
            change(parts);
        }
        self
    }

    /// 400: the body is no JSON.
    pub fn invalid_json(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", detail)
    }

    /// 401: who calls is not known.
    pub fn unauthorized(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail).with(|parts| {
            let challenge = HeaderValue::from_static("Bearer realm=\"carillon\"");
            parts.header = Some((header::WWW_AUTHENTICATE, challenge));
        })
    }

    /// 403: who calls is known, and may not do this.
    pub fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 404: the tenant has no such object. The same for another tenant's.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is no such object; check its id",
        )
    }

    /// 409: the object's state forbids it.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 409: an equal request is being worked on.
    #[must_use]
    pub fn in_flight() -> Self {
        Self::conflict(
            "idempotency_key_in_flight",
            "a request with this Idempotency-Key is being worked on; try again when it has ended",
        )
        .with(|parts| {
            parts.header = Some((header::RETRY_AFTER, HeaderValue::from_static("1")));
        })
    }

    /// 412: the object is not at the version that the caller saw.
    #[must_use]
    pub fn precondition_failed() -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "version_changed",
            "somebody changed the object since; read it again and repeat with its new ETag",
        )
    }

    /// 422: every fault of the request.
    #[must_use]
    pub fn validation(errors: Vec<Fault>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.field.is_empty() => one.detail.clone(),
            [one] => format!("{}: {}", one.field, one.detail),
            many => format!("the request has {} faults; `errors` lists them", many.len()),
        };
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "validation_failed",
            detail,
        )
        .with(|parts| parts.errors = errors)
    }

    /// 422: the key stands for another request.
    #[must_use]
    pub fn idempotency_mismatch() -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "this Idempotency-Key was used for another request; take a new key",
        )
    }

    /// 429: the caller makes more requests than they may.
    pub fn too_many(code: &'static str, detail: impl Into<String>, retry_after_ms: i32) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail).with(|parts| {
            // Whole seconds, and never so few that the same request would be refused again.
            let seconds = HeaderValue::from(retry_after_ms.max(1).saturating_add(999) / 1000);
            parts.header = Some((header::RETRY_AFTER, seconds));
        })
    }

    /// 503: whether the token is the issuer's cannot be told at the moment. `cause` is logged.
    pub fn issuer_unavailable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let detail = "the token's issuer cannot be asked for its keys at the moment; try again";
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "issuer_unavailable",
            detail,
        )
        .with(|parts| {
            let seconds = HeaderValue::from_static(RETRY_AFTER_S);
            parts.header = Some((header::RETRY_AFTER, seconds));
            parts.cause = Some(cause.into());
        })
    }

    /// 500: our own fault. `cause` is logged.
    pub fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::of_status(StatusCode::INTERNAL_SERVER_ERROR)
            .with(|parts| parts.cause = Some(cause.into()))
    }

    /// 503: the same request may succeed a moment later. `cause` is logged.
    pub fn unavailable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::of_status(StatusCode::SERVICE_UNAVAILABLE)
            .with(|parts| parts.cause = Some(cause.into()))
    }

    /// What a bare status means, where a layer or axum itself gave it.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => ("no_such_route", "there is no such route; see /docs"),
            StatusCode::METHOD_NOT_ALLOWED => (
                "method_not_allowed",
                "the route has no such method; the header Allow lists those it has",
            ),
            StatusCode::REQUEST_TIMEOUT => (
                "body_too_slow",
                "the body did not come whole in time; send it again",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => (
                "body_too_large",
                "the body is larger than 256 kB; send a smaller one",
            ),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => (
                "unsupported_media_type",
                "the body must be JSON; set Content-Type to application/json",
            ),
            StatusCode::SERVICE_UNAVAILABLE => (
                "unavailable",
                "the service cannot answer at the moment; try again",
            ),
            status if status.is_client_error() => {
                ("bad_request", "the request cannot be read; see /docs")
            }
            _ => (
                "internal",
                "something went wrong on our side; tell us the request_id if it stays",
            ),
        };
        Self::new(status, code, detail).with(|parts| {
            if status == StatusCode::SERVICE_UNAVAILABLE {
                let seconds = HeaderValue::from_static(RETRY_AFTER_S);
                parts.header = Some((header::RETRY_AFTER, seconds));
            }
        })
    }

    /// The HTTP status that the error is sent with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The error's stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    #[cfg(test)]
    pub(crate) fn told(&self) -> Vec<(&str, &str)> {
        let faults = self.0.errors.iter();
        faults.map(|fault| (&*fault.field, fault.code)).collect()
    }

    /// Why it happened, for the log.
    pub(crate) fn cause_text(&self) -> Option<String> {
        let first: &(dyn Error + 'static) = self.0.cause.as_deref()?;
        Some(telemetry::whole(first))
    }

    /// What happened, fit for the caller.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The body of the answer.
    #[must_use]
    pub fn problem(&self, request_id: &RequestId) -> Problem {
        let parts = &self.0;
        Problem {
            r#type: format!("urn:carillon:problem:{}", parts.code),
            title: parts.code.replace('_', " "),
            status: parts.status.as_u16(),
            detail: parts.detail.clone(),
            code: parts.code.to_owned(),
            request_id: request_id.as_str().to_owned(),
            errors: parts.errors.clone(),
        }
    }

    /// The answer as it is sent. Headers that `bare` carries are kept: `Allow` is one.
    pub(crate) fn render(&self, request_id: &RequestId, bare: Response) -> Response {
        let parts = &self.0;
        let mut response = (parts.status, Json(self.problem(request_id))).into_response();
        let headers = response.headers_mut();
        if let Some(allow) = bare.headers().get(header::ALLOW) {
            headers.insert(header::ALLOW, allow.clone());
        }
        if let Some((name, value)) = &parts.header {
            headers.insert(name.clone(), value.clone());
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        if error.is_transient() {
            Self::unavailable(error)
        } else {
            Self::internal(error)
        }
    }
}

impl From<SealError> for ApiError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Failed => Self::internal(error),
            SealError::Kms(_) => Self::unavailable(error),
        }
    }
}

impl From<OpenError> for ApiError {
    fn from(error: OpenError) -> Self {
        if error.is_transient() {
            Self::unavailable(error)
        } else {
            Self::internal(error)
        }
    }
}

impl From<Vec<Fault>> for ApiError {
    fn from(errors: Vec<Fault>) -> Self {
        Self::validation(errors)
    }
}
