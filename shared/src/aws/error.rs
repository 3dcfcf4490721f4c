//! What can go wrong with a call of AWS, and what follows from it.

use std::time::Duration;

// The same types in every client.
use aws_sdk_kms::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::aws::{Failed, Failure};

/// A call without success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct CallError {
    /// Why.
    pub cause: Cause,
    /// How long AWS asks to wait.
    pub retry_after: Option<Duration>,
    /// What AWS or the client said, for the operator.
    pub detail: String,
}

/// Why a call had no success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Too many calls for the moment.
    #[error("AWS asks to slow down")]
    Throttled,
    /// AWS has a fault.
    #[error("AWS is not available")]
    Unavailable,
    /// No answer in time; the call may have had its effect.
    #[error("AWS did not answer in time")]
    TimedOut,
    /// No connection, or one that broke; the call may have had its effect.
    #[error("AWS cannot be reached")]
    Unreachable,
    /// An answer that cannot be read; the call may have had its effect.
    #[error("AWS's answer cannot be read")]
    Garbled,
    /// AWS is busy with the same object, or has one where there should be none.
    #[error("AWS is busy with the same object")]
    Conflict,
    /// The object is not there, or what it is to stand in.
    #[error("there is no such object in AWS; create it")]
    NotThere,
    /// The account has as many as it may.
    #[error("a quota of AWS is used up; raise it")]
    OverQuota,
    /// The credentials, the role or its rights are wrong.
    #[error("AWS refuses access; look at the rights of the role")]
    Denied,
    /// It could not be put together: no region, no credentials.
    #[error("AWS cannot be called from here; look at the region and the credentials")]
    NotSent,
    /// AWS does not take what was sent.
    #[error("AWS does not take this request")]
    Invalid,
    /// A refusal that no AWS page names.
    #[error("AWS refused for an unknown reason")]
    Unknown,
}

/// What follows from a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The same call may succeed a moment later.
    Retry,
    /// Only the operator can help; the call is worth trying now and then.
    Wait,
    /// The same request will never be taken.
    GiveUp,
}

impl Cause {
    /// What follows.
    #[must_use]
    pub fn disposition(self) -> Disposition {
        match self {
            Self::Throttled
            | Self::Unavailable
            | Self::TimedOut
            | Self::Unreachable
            | Self::Garbled
            | Self::Conflict => Disposition::Retry,
            Self::NotThere | Self::OverQuota | Self::Denied | Self::NotSent | Self::Unknown => {
                Disposition::Wait
            }
            Self::Invalid => Disposition::GiveUp,
        }
    }

    /// Whether the call may take effect although it failed, now or a little later.
    #[must_use]
    pub fn outcome_unknown(self) -> bool {
        match self {
            Self::TimedOut | Self::Unreachable | Self::Garbled | Self::Unavailable => true,
            Self::Throttled
            | Self::Conflict
            | Self::NotThere
            | Self::OverQuota
            | Self::Denied
            | Self::NotSent
            | Self::Invalid
            | Self::Unknown => false,
        }
    }

    /// Whether others would fail the same way, so that asking for them now is of no use.
    #[must_use]
    pub fn concerns_all(self) -> bool {
        match self {
            Self::Throttled
            | Self::Unavailable
            | Self::TimedOut
            | Self::Unreachable
            | Self::NotThere
            | Self::Denied
            | Self::NotSent => true,
            Self::Garbled | Self::Conflict | Self::OverQuota | Self::Invalid | Self::Unknown => {
                false
            }
        }
    }
}

impl CallError {
    /// The deadline passed while the call was under way.
    #[must_use]
    pub fn deadline() -> Self {
        Self {
            cause: Cause::TimedOut,
            retry_after: None,
            detail: "our deadline passed".to_owned(),
        }
    }

    /// Reads what the client gave.
    pub(crate) fn of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Self {
        let failure = Failure::of(error);
        Self {
            cause: cause(&failure),
            retry_after: failure.retry_after,
            detail: failure.detail,
        }
    }
}

/// The codes of EventBridge Scheduler, KMS and Secrets Manager (their API references); the rest is the
/// same for every service.
fn cause(failure: &Failure) -> Cause {
    match failure.code.as_str() {
        "ConflictException" => Cause::Conflict,
        "ResourceNotFoundException" | "NotFoundException" => Cause::NotThere,
        "ServiceQuotaExceededException" => Cause::OverQuota,
        // AWS says of a role that it cannot assume that the request is not valid.
        "ValidationException" | "ValidationError" if names_the_role(&failure.message) => {
            Cause::Denied
        }
        "ValidationException"
        | "ValidationError"
        | "InvalidCiphertextException"
        | "IncorrectKeyException"
        | "InvalidParameterException" => Cause::Invalid,
        "InternalServiceError"
        | "KMSInternalException"
        | "KeyUnavailableException"
        | "DependencyTimeoutException" => Cause::Unavailable,
        // A key or a secret that may not be used as it stands.
        "DisabledException"
        | "KMSInvalidStateException"
        | "InvalidKeyUsageException"
        | "DecryptionFailure"
        | "InvalidRequestException" => Cause::Denied,
        _ => match failure.failed {
            Failed::Throttled => Cause::Throttled,
            Failed::Unavailable => Cause::Unavailable,
            Failed::TimedOut => Cause::TimedOut,
            Failed::NotConnected | Failed::Unreachable => Cause::Unreachable,
            Failed::Garbled => Cause::Garbled,
            Failed::NotSent => Cause::NotSent,
            Failed::Denied => Cause::Denied,
            Failed::Conflict => Cause::Conflict,
            Failed::Refused => Cause::Unknown,
        },
    }
}

fn names_the_role(message: &str) -> bool {
    message.contains("execution role") || message.contains("assume the role")
}

#[cfg(test)]
mod tests {
    use aws_sdk_scheduler::{
        error::{BoxError, ConnectorError, ErrorMetadata},
        operation::create_schedule::CreateScheduleError,
    };

    use super::*;

    type Refusal = SdkError<CreateScheduleError, HttpResponse>;

    fn response(status: u16) -> HttpResponse {
        HttpResponse::new(status.try_into().unwrap(), "{}".into())
    }

    fn refusal(status: u16, code: &str) -> Refusal {
        let metadata = ErrorMetadata::builder().code(code).message("words").build();
        SdkError::service_error(CreateScheduleError::generic(metadata), response(status))
    }

    fn no_detail() -> BoxError {
        "detail".into()
    }

    #[test]
    fn every_failure_has_a_cause_and_what_follows() {
        use Disposition::{GiveUp, Retry, Wait};
        let cases: [(Refusal, Cause, Disposition); 34] = [
            (refusal(429, "ThrottlingException"), Cause::Throttled, Retry),
            (refusal(400, "ThrottlingException"), Cause::Throttled, Retry),
            (refusal(503, "SlowDown"), Cause::Throttled, Retry),
            (refusal(429, "New"), Cause::Throttled, Retry),
            (
                refusal(500, "InternalServerException"),
                Cause::Unavailable,
                Retry,
            ),
            (
                refusal(503, "ServiceUnavailable"),
                Cause::Unavailable,
                Retry,
            ),
            (refusal(502, ""), Cause::Unavailable, Retry),
            (refusal(409, "ConflictException"), Cause::Conflict, Retry),
            // One emulator says so.
            (refusal(400, "ConflictException"), Cause::Conflict, Retry),
            (refusal(409, ""), Cause::Conflict, Retry),
            (refusal(408, ""), Cause::TimedOut, Retry),
            (
                refusal(404, "ResourceNotFoundException"),
                Cause::NotThere,
                Wait,
            ),
            (
                refusal(402, "ServiceQuotaExceededException"),
                Cause::OverQuota,
                Wait,
            ),
            (refusal(403, "AccessDeniedException"), Cause::Denied, Wait),
            (refusal(403, "ExpiredTokenException"), Cause::Denied, Wait),
            (
                refusal(403, "InvalidSignatureException"),
                Cause::Denied,
                Wait,
            ),
            (refusal(400, "IncompleteSignature"), Cause::Denied, Wait),
            (refusal(401, ""), Cause::Denied, Wait),
            (refusal(400, "ValidationException"), Cause::Invalid, GiveUp),
            (refusal(400, "NotFoundException"), Cause::NotThere, Wait),
            (
                refusal(400, "InvalidCiphertextException"),
                Cause::Invalid,
                GiveUp,
            ),
            (
                refusal(400, "IncorrectKeyException"),
                Cause::Invalid,
                GiveUp,
            ),
            (refusal(400, "DisabledException"), Cause::Denied, Wait),
            (
                refusal(500, "KeyUnavailableException"),
                Cause::Unavailable,
                Retry,
            ),
            (
                refusal(400, "InternalServiceError"),
                Cause::Unavailable,
                Retry,
            ),
            (refusal(400, "DecryptionFailure"), Cause::Denied, Wait),
            (refusal(418, "TeapotException"), Cause::Unknown, Wait),
            (
                SdkError::construction_failure(no_detail()),
                Cause::NotSent,
                Wait,
            ),
            (SdkError::timeout_error(no_detail()), Cause::TimedOut, Retry),
            (
                SdkError::dispatch_failure(ConnectorError::timeout(no_detail())),
                Cause::TimedOut,
                Retry,
            ),
            (
                SdkError::dispatch_failure(ConnectorError::io(no_detail())),
                Cause::Unreachable,
                Retry,
            ),
            (
                SdkError::dispatch_failure(ConnectorError::user(no_detail())),
                Cause::NotSent,
                Wait,
            ),
            (
                SdkError::response_error(no_detail(), response(200)),
                Cause::Garbled,
                Retry,
            ),
            (
                SdkError::response_error(no_detail(), response(502)),
                Cause::Unavailable,
                Retry,
            ),
        ];
        for (failed, cause, disposition) in cases {
            let error = CallError::of(&failed);
            assert_eq!(error.cause, cause, "{failed:?}");
            assert_eq!(error.cause.disposition(), disposition, "{failed:?}");
        }
    }

    #[test]
    fn a_role_that_cannot_be_assumed_is_no_fault_of_the_entry() {
        let message = "The execution role you provide must allow AWS EventBridge Scheduler to assume the role.";
        let metadata = ErrorMetadata::builder()
            .code("ValidationException")
            .message(message)
            .build();
        let failed: Refusal =
            SdkError::service_error(CreateScheduleError::generic(metadata), response(400));
        assert_eq!(CallError::of(&failed).cause, Cause::Denied);
    }

    #[test]
    fn what_may_have_happened_is_known() {
        for (failed, unknown) in [
            (refusal(429, "ThrottlingException"), false),
            (refusal(400, "ValidationException"), false),
            (refusal(500, "InternalServerException"), true),
            (SdkError::timeout_error(no_detail()), true),
            (
                SdkError::dispatch_failure(ConnectorError::io(no_detail())),
                true,
            ),
        ] {
            assert_eq!(CallError::of(&failed).cause.outcome_unknown(), unknown);
        }
    }

    #[test]
    fn aws_says_how_long_to_wait_in_two_ways() {
        let asked = |name: &'static str, value: &'static str| {
            let mut response = response(429);
            response.headers_mut().insert(name, value);
            let metadata = ErrorMetadata::builder().code("ThrottlingException").build();
            let failed: Refusal =
                SdkError::service_error(CreateScheduleError::generic(metadata), response);
            CallError::of(&failed).retry_after
        };
        assert_eq!(asked("retry-after", "3"), Some(Duration::from_secs(3)));
        assert_eq!(
            asked("x-amz-retry-after", "250"),
            Some(Duration::from_millis(250))
        );
        assert_eq!(asked("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }

    #[test]
    fn awss_own_words_are_the_detail_alone() {
        let error = CallError::of(&refusal(403, "AccessDeniedException"));
        assert_eq!(error.detail, "AccessDeniedException: words");
        assert!(!error.to_string().contains("words"));
        let unsent: Refusal =
            SdkError::dispatch_failure(ConnectorError::io("no route to host".into()));
        let detail = CallError::of(&unsent).detail;
        assert!(detail.contains("no route to host"), "{detail}");
    }
}
