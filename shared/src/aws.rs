//! What every client of AWS is built from, how a call of any service fails, and how long an
//! invocation has.

mod failure;

use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use tokio::time::Instant;

pub use self::failure::{Failed, Failure};
pub use aws_config::SdkConfig;

/// The longest time-out that a function may have (Lambda Developer Guide, "Configure Lambda function
/// timeout").
const INVOCATION_MAX: Duration = Duration::from_secs(900);

/// Region, credentials and endpoint, from the variables that Lambda or an operator sets
/// (`AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …). Nothing is called yet.
pub async fn config() -> SdkConfig {
    aws_config::load_defaults(BehaviorVersion::latest()).await
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
