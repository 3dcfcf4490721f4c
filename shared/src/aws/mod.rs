//! What every client of AWS is built from, how a call of any service fails, and how long an
//! invocation has.

mod bucket;
mod error;
mod failure;
mod http;

use std::time::{Duration, SystemTime};

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_types::region::Region;
use tokio::time::Instant;

use crate::env;

pub use aws_types::SdkConfig;

pub use self::{
    bucket::{Bucket, Request, SignError},
    error::{CallError, Cause, Disposition},
    failure::{Failed, Failure},
};

/// The longest time-out that a function may have (Lambda Developer Guide, "Configure Lambda function
/// timeout").
const INVOCATION_MAX: Duration = Duration::from_secs(900);

/// One try of a call that somebody waits for. The client makes two: a connection that has been idle
/// may be gone.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Where nobody waits.
const CONNECT_TIMEOUT_USUAL: Duration = Duration::from_secs(3);
const ATTEMPTS_MAX: u32 = 2;
const BACKOFF: Duration = Duration::from_millis(100);

/// Region, credentials and endpoint, from the variables that Lambda or an operator sets
/// (`AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …). Nothing is called, now or later:
/// Lambda gives a process its credentials for as long as it lives.
#[must_use]
pub fn config() -> SdkConfig {
    let variable = |name| env::process(name).filter(|text| !text.is_empty());
    let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    let keys = variable("AWS_ACCESS_KEY_ID").zip(variable("AWS_SECRET_ACCESS_KEY"));
    let credentials = keys.map(|(id, key)| {
        let token = variable("AWS_SESSION_TOKEN");
        SharedCredentialsProvider::new(Credentials::new(id, key, token, None, "environment"))
    });
    let mut config = client_config().to_builder().region(region.map(Region::new));
    config.set_endpoint_url(variable("AWS_ENDPOINT_URL"));
    config.set_credentials_provider(credentials);
    config.build()
}

/// What the clients of every service have in common, without region, credentials or endpoint.
#[must_use]
pub fn client_config() -> SdkConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT_USUAL);
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http::client())
        .retry_config(RetryConfig::standard())
        .timeout_config(timeouts.build())
        .build()
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
