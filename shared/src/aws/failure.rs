//! A call of AWS without success, as the wire and the client tell it, whichever the service.
//!
//! It knows the codes that all services share. What a service's own codes mean, and what follows
//! from any of them, its caller says.

use std::{error::Error, iter::successors, time::Duration};

use aws_sdk_sqs::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

const DETAIL_CHARS_MAX: usize = 500;

/// A call without success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// How it failed.
    pub failed: Failed,
    /// The service's word for it; empty where it gave none.
    pub code: String,
    /// What it said beside the word; empty where it said nothing. It may repeat what it was sent.
    pub message: String,
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// How long AWS asks to wait.
    pub retry_after: Option<Duration>,
    /// All that the service or the client said, for the operator.
    pub detail: String,
}

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// Too many calls for the moment.
    Throttled,
    /// AWS has a fault.
    Unavailable,
    /// No answer in time.
    TimedOut,
    /// No connection was made.
    NotConnected,
    /// The connection broke.
    Unreachable,
    /// The answer cannot be read.
    Garbled,
    /// It could not be put together: no region, no credentials.
    NotSent,
    /// The credentials, the role or its rights are wrong.
    Denied,
    /// AWS is busy with the same thing.
    Conflict,
    /// Refused by a code of the service's own.
    Refused,
}

impl Failed {
    /// Its word in logs, and where the service gave no code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timeout",
            Self::NotConnected => "not_connected",
            Self::Unreachable => "unreachable",
            Self::Garbled => "garbled",
            Self::NotSent => "not_sent",
            Self::Denied => "denied",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
        }
    }
}

impl Failure {
    /// The deadline passed while the call was under way.
    #[must_use]
    pub fn deadline() -> Self {
        Self {
            failed: Failed::TimedOut,
            code: String::new(),
            message: String::new(),
            status: None,
            retry_after: None,
            detail: "our deadline passed".to_owned(),
        }
    }

    /// Reads what a service answered that no client speaks to; `header` looks one up.
    pub(super) fn answered<'a>(
        status: u16,
        code: String,
        message: String,
        header: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        let detail = match (code.as_str(), message.as_str()) {
            ("", "") => format!("status {status}"),
            (said, "") | ("", said) => said.to_owned(),
            (code, message) => format!("{code}: {message}"),
        };
        Self {
            failed: refused(&code, status),
            status: Some(status),
            retry_after: retry_after(header),
            detail: detail.chars().take(DETAIL_CHARS_MAX).collect(),
            code,
            message,
        }
    }

    /// Reads what a client gave.
    pub fn of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Self {
        let response = error.raw_response();
        let refusal = error.as_service_error();
        let said = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Self {
            failed: failed(error),
            code: said(refusal.and_then(ProvideErrorMetadata::code)),
            message: said(refusal.and_then(ProvideErrorMetadata::message)),
            status: response.map(|response| response.status().as_u16()),
            retry_after: response
                .and_then(|response| retry_after(|name| response.headers().get(name))),
            detail: detail(error),
        }
    }
}

fn failed<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Failed {
    match error {
        SdkError::ServiceError(refusal) => {
            let status = refusal.raw().status().as_u16();
            refused(refusal.err().code().unwrap_or_default(), status)
        }
        SdkError::TimeoutError(_) => Failed::TimedOut,
        SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
            Some(connector) if never_connected(connector) => Failed::NotConnected,
            _ if failure.is_timeout() => Failed::TimedOut,
            // A request that the client itself thinks wrong, such as one without a region.
            _ if failure.is_user() => Failed::NotSent,
            _ => Failed::Unreachable,
        },
        SdkError::ResponseError(broken) => match broken.raw().status().as_u16() {
            500.. => Failed::Unavailable,
            _ => Failed::Garbled,
        },
        SdkError::ConstructionFailure(_) => Failed::NotSent,
        // The client's own list may grow.
        _ => Failed::Unreachable,
    }
}

/// The one way to tell a server that was not reached from one that did not answer.
fn never_connected(connector: &(dyn Error + 'static)) -> bool {
    successors(Some(connector), |&cause| cause.source())
        .filter_map(|cause| cause.downcast_ref::<hyper_util::client::legacy::Error>())
        .any(hyper_util::client::legacy::Error::is_connect)
}

/// The codes of the services' references, "Common Error Types" and "Error responses"; the status
/// counts where a code is missing or new.
fn refused(code: &str, status: u16) -> Failed {
    match (code, status) {
        (
            "ThrottlingException"
            | "Throttling"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "SlowDown",
            _,
        ) => Failed::Throttled,
        (
            "InternalServerException" | "InternalFailure" | "InternalError" | "ServiceUnavailable",
            _,
        ) => Failed::Unavailable,
        ("RequestTimeout", _) => Failed::TimedOut,
        (
            "AccessDeniedException"
            | "AccessDenied"
            | "NotAuthorized"
            | "OptInRequired"
            | "ExpiredTokenException"
            | "ExpiredToken"
            | "InvalidToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "MissingAuthenticationToken"
            | "RequestExpired"
            | "RequestTimeTooSkewed",
            _,
        ) => Failed::Denied,
        (_, 429) => Failed::Throttled,
        (_, 408) => Failed::TimedOut,
        (_, 409) => Failed::Conflict,
        (_, 401 | 403) => Failed::Denied,
        (_, 500..) => Failed::Unavailable,
        _ => Failed::Refused,
    }
}

/// `Retry-After` in seconds, or AWS's own header in milliseconds.
fn retry_after<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Duration> {
    let number = |name: &str| header(name)?.trim().parse::<u64>().ok();
    number("x-amz-retry-after")
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs))
}

fn detail<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> String {
    let metadata = error.as_service_error();
    let code = metadata.and_then(ProvideErrorMetadata::code);
    let message = metadata.and_then(ProvideErrorMetadata::message);
    let said = match (code, message) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(said), None) | (None, Some(said)) => said.to_owned(),
        (None, None) => without_service(error),
    };
    said.chars().take(DETAIL_CHARS_MAX).collect()
}

/// The client's own words, and what lies behind them.
fn without_service<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> String {
    let status = error
        .raw_response()
        .map(|response| format!("status {}", response.status().as_u16()));
    let mut causes = Vec::new();
    if let SdkError::DispatchFailure(failure) = error
        && let Some(connector) = failure.as_connector_error()
    {
        let first: &(dyn Error + 'static) = connector;
        causes.extend(successors(Some(first), |&cause| cause.source()).map(ToString::to_string));
    }
    let parts: Vec<_> = std::iter::once(error.to_string())
        .chain(status)
        .chain(causes)
        .collect();
    parts.join(": ")
}
