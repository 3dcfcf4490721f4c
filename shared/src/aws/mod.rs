//! What every client of AWS is built from, how a call of any service fails, and how long an
//! invocation has.

mod error;
mod failure;

use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, retry::RetryConfig, timeout::TimeoutConfig};
use tokio::time::Instant;

pub use self::{
    error::{CallError, Cause, Disposition},
    failure::{Failed, Failure},
};
pub use aws_config::SdkConfig;

/// The longest time-out that a function may have (Lambda Developer Guide, "Configure Lambda function
/// timeout").
const INVOCATION_MAX: Duration = Duration::from_secs(900);

/// One try of a call that somebody waits for. The client makes two: a connection that has been idle
/// may be gone.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS_MAX: u32 = 2;
const BACKOFF: Duration = Duration::from_millis(100);

/// Region, credentials and endpoint, from the variables that Lambda or an operator sets
/// (`AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …). Nothing is called yet.
pub async fn config() -> SdkConfig {
    aws_config::load_defaults(BehaviorVersion::latest()).await
}

/// The same for calls that somebody waits for: each ends within about three seconds.
pub(crate) fn impatient(aws: &SdkConfig) -> SdkConfig {
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS_MAX)
        .with_initial_backoff(BACKOFF);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .build();
    let config = aws.to_builder().retry_config(retries);
    config.timeout_config(timeouts).build()
}

/// When Lambda ends this invocation, on the clock that waiting is measured by.
#[must_use]
pub fn deadline(at: SystemTime) -> Instant {
    Instant::now() + left(at, SystemTime::now())
}

/// Nothing is left after the deadline. One that is long past is none: `cargo lambda watch` gives one
/// of 1970.
fn left(at: SystemTime, now: SystemTime) -> Duration {
    match at.duration_since(now) {
        Ok(left) => left,
        Err(past) if past.duration() > INVOCATION_MAX => INVOCATION_MAX,
        Err(_) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_lambda_cannot_have_given_is_none() {
        let now = SystemTime::now();
        let second = Duration::from_secs(1);
        assert_eq!(left(now + second, now), second);
        assert_eq!(left(now - second, now), Duration::ZERO);
        assert_eq!(left(SystemTime::UNIX_EPOCH + second, now), INVOCATION_MAX);
    }
}
