//! The calls of SQS.
//!
//! Every call has a deadline, and nothing is sent twice here: whoever finds work again sends again.

use std::time::Duration;

use aws_sdk_sqs::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::BuildError,
    types::SendMessageBatchRequestEntry,
};
use aws_types::SdkConfig;
use futures_util::{StreamExt, stream};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::{
    aws::Failure,
    message::{self, WakeUp},
};

/// Messages of one call at the most (SQS API Reference, "SendMessageBatch").
pub(super) const BATCH_MAX: usize = 10;

/// Calls at once: enough to hide the way there and back, and few enough for a small function.
const CALLS_MAX: usize = 8;

const URL_BYTES_MAX: usize = 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that has been idle may be gone.
const ATTEMPTS_MAX: u32 = 2;
const BACKOFF: Duration = Duration::from_millis(50);

/// A queue of SQS that takes wake-ups.
#[derive(Debug, Clone)]
pub struct Sqs {
    client: Client,
    url: String,
    limit: Duration,
}

/// Why a call of SQS came to nothing. Its text holds nothing of a message.
#[derive(Debug, Error)]
pub enum QueueError {
    /// SQS refused it, or did not answer.
    #[error("the queue did not answer as it should: {0}")]
    Call(#[from] Failure),
    /// The client does not take what it was given.
    #[error("a call of the queue cannot be put together: {0}")]
    Malformed(#[from] BuildError),
}

impl Sqs {
    /// A client of the queue with AWS's usual settings: region, credentials, endpoint. Whatever is
    /// offered at once takes no longer than `limit`.
    #[must_use]
    pub fn new(aws: &SdkConfig, url: String, limit: Duration) -> Self {
        Self {
            client: client(aws),
            url,
            limit,
        }
    }

    /// Sends wake-ups in batches, several at a time, and says how many were taken in time.
    pub(super) async fn send(&self, wake_ups: &[WakeUp], delay: Duration) -> usize {
        let deadline = Instant::now() + self.limit;
        let delay_s = whole_seconds(delay);
        // Owned: a future that borrows from a slice's chunks is not `Send` for every lifetime.
        let batches: Vec<Vec<WakeUp>> = wake_ups.chunks(BATCH_MAX).map(<[_]>::to_vec).collect();
        let sent = stream::iter(batches)
            .map(|batch| self.send_batch(batch, delay_s, deadline))
            .buffer_unordered(CALLS_MAX)
            .fold(0, async |sum, taken| sum + taken)
            .await;
        if sent < wake_ups.len() {
            warn!(
                offered = wake_ups.len(),
                sent, "wake-ups were not taken; the sweeper finds their work again"
            );
        }
        sent
    }

    async fn send_batch(&self, wake_ups: Vec<WakeUp>, delay_s: i32, deadline: Instant) -> usize {
        if Instant::now() >= deadline {
            return 0;
        }
        let entries: Result<Vec<_>, BuildError> = (0..)
            .zip(&wake_ups)
            .map(|(place, wake_up)| entry(place, *wake_up, delay_s))
            .collect();
        let call = async {
            self.client
                .send_message_batch()
                .queue_url(&self.url)
                .set_entries(Some(entries?))
                .send()
                .await
                .map_err(|error| QueueError::from(Failure::of(&error)))
        };
        let answer = match timeout_at(deadline, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::deadline().into()),
        };
        match answer {
            Ok(answer) => {
                if let Some(refused) = answer.failed().first() {
                    warn!(
                        refused = answer.failed().len(),
                        code = refused.code(),
                        "the queue refused wake-ups"
                    );
                }
                answer.successful().len()
            }
            Err(error) => {
                warn!(%error, "cannot send wake-ups");
                0
            }
        }
    }
}

/// A tenant with much to do must not keep the others waiting: its id is the message group (SQS
/// Developer Guide, "Amazon SQS fair queues").
fn entry(
    place: usize,
    wake_up: WakeUp,
    delay_s: i32,
) -> Result<SendMessageBatchRequestEntry, BuildError> {
    SendMessageBatchRequestEntry::builder()
        .id(place.to_string())
        .message_body(message::encode(wake_up))
        .message_group_id(wake_up.tenant_id().to_string())
        .set_delay_seconds((delay_s > 0).then_some(delay_s))
        .build()
}

/// Rounded up: a wake-up that comes too early finds nothing due, and is spent.
fn whole_seconds(delay: Duration) -> i32 {
    let rounded_up = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    i32::try_from(rounded_up).unwrap_or(i32::MAX)
}

pub(super) fn client(aws: &SdkConfig) -> Client {
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS_MAX)
        .with_initial_backoff(BACKOFF);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .build();
    let config = aws_sdk_sqs::config::Builder::from(aws)
        .retry_config(retries)
        .timeout_config(timeouts)
        .build();
    Client::from_conf(config)
}

/// Takes the URL of a queue, for [`crate::env::Reader`]. It stands in the input of the scheduler's
/// entries too, whose size is bounded.
///
/// # Errors
/// A sentence that says what to give.
pub fn read_url(text: &str) -> Result<String, String> {
    let is_url = text.parse::<url::Url>().is_ok_and(|url| url.has_host());
    (is_url && text.len() <= URL_BYTES_MAX)
        .then(|| text.to_owned())
        .ok_or_else(|| "must be the URL of an SQS queue".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PromptId, TenantId};

    #[test]
    fn a_delay_is_never_shorter_than_asked() {
        for (delay_ms, seconds) in [
            (0, 0),
            (1, 1),
            (999, 1),
            (1_000, 1),
            (1_001, 2),
            (900_000, 900),
        ] {
            assert_eq!(
                whole_seconds(Duration::from_millis(delay_ms)),
                seconds,
                "{delay_ms}"
            );
        }
    }

    #[test]
    fn a_message_says_its_tenant_and_its_delay_and_is_read_back() {
        let wake_up = WakeUp::Prompt {
            tenant_id: TenantId::new(),
            prompt_id: PromptId::new(),
        };
        let entry = entry(3, wake_up, 60).unwrap();
        assert_eq!((entry.id(), entry.delay_seconds()), ("3", Some(60)));
        let tenant = wake_up.tenant_id().to_string();
        assert_eq!(entry.message_group_id(), Some(tenant.as_str()));
        let read = message::decode(entry.message_body()).unwrap();
        assert_eq!((read.wake_up, read.fired), (wake_up, None));
    }

    #[test]
    fn only_a_url_is_a_queue() {
        assert!(read_url("https://sqs.eu-central-1.amazonaws.com/123456789012/wake-ups").is_ok());
        assert!(read_url("http://127.0.0.1:4566/123456789012/wake-ups").is_ok());
        let long = format!("https://sqs.example/1/{}", "q".repeat(URL_BYTES_MAX));
        for text in [
            long.as_str(),
            "wake-ups",
            "arn:aws:sqs:eu-central-1:123456789012:wake-ups",
            "https://",
        ] {
            assert!(read_url(text).is_err(), "{text}");
        }
    }
}
