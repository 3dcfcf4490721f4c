//! Hands finished messages to Amazon SES, with the tags by which its reports are known again.
//!
//! SES has no key that would make a repeated call harmless. So nothing is sent twice here, and a
//! call whose outcome is not known says so. No log line holds what SES says: it may name an address.

use std::{fmt, time::Duration};

use aws_sdk_ses::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::BuildError,
    primitives::Blob,
    types::{MessageTag, RawMessage},
};
use bytes::Bytes;
use lettre::message::Mailbox;
use shared::{
    aws::{Failed, Failure, SdkConfig},
    destination::{EmailAddress, RECIPIENTS_MAX},
    mail_tags::{self, MailTags},
};
use tokio::time::timeout;
use tracing::warn;

use super::{Answer, DeliveryError, Sent, excerpt};

/// What one message may weigh and whom it may go to (Amazon SES Developer Guide, "Service quotas in
/// Amazon SES", for the API of `SendRawEmail`).
const MESSAGE_BYTES_MAX: usize = 10 * 1000 * 1000;
const SES_RECIPIENTS_MAX: usize = 50;
const _: () = assert!(
    RECIPIENTS_MAX <= SES_RECIPIENTS_MAX,
    "an email's recipients fit into one call"
);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait where a day's quota is used up, which SES counts over the last 24 hours.
const QUOTA_WAIT: Duration = Duration::from_secs(3600);

/// Amazon SES, sending as one address and through one configuration set.
pub struct Ses {
    client: Client,
    source: String,
    configuration_set: String,
}

impl Ses {
    /// A client with AWS's usual settings: region, credentials, endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig, from: &Mailbox, configuration_set: String) -> Self {
        let config = aws_sdk_ses::config::Builder::from(aws)
            // A second call might be a second email.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
            .build();
        Self {
            client: Client::from_conf(config),
            source: from.email.to_string(),
            configuration_set,
        }
    }

    /// Sends a message once. What SES calls it becomes the excerpt of its answer.
    pub(super) async fn send(
        &self,
        tags: &MailTags,
        recipients: &[EmailAddress],
        message: Bytes,
    ) -> Result<Sent, DeliveryError> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(DeliveryError::MailTooLarge);
        }
        let message_tags = message_tags(tags).map_err(|_build| DeliveryError::InvalidTarget)?;
        let raw = RawMessage::builder()
            .data(Blob::new(message))
            .build()
            .map_err(|_build| DeliveryError::InvalidTarget)?;
        let to = recipients
            .iter()
            .map(|one| one.as_str().to_owned())
            .collect();
        let call = self
            .client
            .send_raw_email()
            .source(&self.source)
            .set_destinations(Some(to))
            .raw_message(raw)
            .configuration_set_name(&self.configuration_set)
            .set_tags(Some(message_tags))
            .send();
        let failure = match timeout(TIMEOUT, Box::pin(call)).await {
            Ok(Ok(answer)) => {
                return Ok(Sent {
                    status: Some(200),
                    excerpt: Some(excerpt(answer.message_id().as_bytes())),
                    location: None,
                });
            }
            Ok(Err(error)) => Failure::of(&error),
            Err(_elapsed) => Failure::deadline(),
        };
        warn!(
            delivery.id = %tags.delivery_id, tenant.id = %tags.tenant_id,
            aws.code = failure.code, aws.status = failure.status,
            "the mail service did not take an email"
        );
        Err(refused(failure))
    }
}

impl fmt::Debug for Ses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ses")
            .field("configuration_set", &self.configuration_set)
            .finish_non_exhaustive()
    }
}

/// SES takes letters, digits, `_` and `-` (its API reference, "MessageTag"), which ids are made of.
fn message_tags(tags: &MailTags) -> Result<Vec<MessageTag>, BuildError> {
    [
        (mail_tags::TENANT, tags.tenant_id.to_string()),
        (mail_tags::PROMPT, tags.prompt_id.to_string()),
        (mail_tags::RUN, tags.run_id.to_string()),
        (mail_tags::DELIVERY, tags.delivery_id.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| MessageTag::builder().name(name).value(value).build())
    .collect()
}

/// The codes of the API reference, "SendRawEmail", and of the Developer Guide, "Errors related to
/// the sending quotas"; the rest is the same for every service.
fn refused(failure: Failure) -> DeliveryError {
    let says = |words: &str| failure.message.contains(words);
    match failure.code.as_str() {
        // Of the sender, or in the sandbox of a recipient.
        "MessageRejected" if says("not verified") => DeliveryError::MailNotSetUp(failure),
        "MessageRejected" | "InvalidParameterValue" => DeliveryError::MailRefused(answer(&failure)),
        "AccountSendingPausedException"
        | "ConfigurationSetDoesNotExist"
        | "ConfigurationSetDoesNotExistException"
        | "ConfigurationSetSendingPausedException"
        | "MailFromDomainNotVerifiedException" => DeliveryError::MailNotSetUp(failure),
        _ => match failure.failed {
            Failed::Throttled if says("Daily message quota") => DeliveryError::MailThrottled {
                retry_after: Some(QUOTA_WAIT),
            },
            Failed::Throttled | Failed::Conflict => DeliveryError::MailThrottled {
                retry_after: failure.retry_after,
            },
            Failed::NotConnected => DeliveryError::MailUnreachable(Some(Box::new(failure))),
            Failed::Unavailable | Failed::TimedOut | Failed::Unreachable | Failed::Garbled => {
                DeliveryError::MailOutcomeUnknown(Some(Box::new(failure)))
            }
            Failed::NotSent | Failed::Denied => DeliveryError::MailNotSetUp(failure),
            Failed::Refused => DeliveryError::MailRefused(answer(&failure)),
        },
    }
}

fn answer(failure: &Failure) -> Answer {
    Answer {
        status: failure.status.unwrap_or_default(),
        excerpt: excerpt(failure.detail.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use shared::ids::{DeliveryId, PromptId, RunId, TenantId};

    use super::*;
    use crate::deliver::Disposition;

    fn failure(failed: Failed, code: &str, message: &str) -> Failure {
        Failure {
            failed,
            code: code.to_owned(),
            message: message.to_owned(),
            status: Some(400),
            retry_after: None,
            detail: format!("{code}: {message}"),
        }
    }

    #[tokio::test]
    async fn a_message_that_ses_would_not_take_is_not_sent() {
        let aws = SdkConfig::builder()
            .behavior_version(aws_sdk_ses::config::BehaviorVersion::latest())
            .build();
        let ses = Ses::new(&aws, &"a@b.example".parse().unwrap(), "mail".to_owned());
        let tags = MailTags {
            tenant_id: TenantId::new(),
            prompt_id: PromptId::new(),
            run_id: RunId::new(),
            delivery_id: DeliveryId::new(),
        };
        let to = [EmailAddress::parse("a@example.com").unwrap()];
        let sent = async |bytes| ses.send(&tags, &to, Bytes::from(vec![b'x'; bytes])).await;
        let error = sent(MESSAGE_BYTES_MAX + 1).await.unwrap_err();
        assert_eq!(
            (error.code(), error.disposition()),
            ("mail_too_large", Disposition::GiveUp)
        );
        // A smaller one gets as far as a client that is not set up.
        let error = sent(MESSAGE_BYTES_MAX).await.unwrap_err();
        assert_ne!(error.code(), "mail_too_large");
    }

    #[test]
    fn every_failure_says_what_follows_and_whether_the_mail_may_have_gone_out() {
        let (soon, later, hour) = (
            Disposition::Retry { after: None },
            Disposition::Retry {
                after: Some(Duration::from_secs(900)),
            },
            Disposition::Retry {
                after: Some(QUOTA_WAIT),
            },
        );
        use Disposition::GiveUp;
        let unverified =
            "Email address is not verified. The following identities failed: a@b.example";
        for (failed, code, message, word, follows, unknown) in [
            (
                Failed::Throttled,
                "Throttling",
                "Maximum sending rate exceeded.",
                "mail_throttled",
                soon,
                false,
            ),
            (
                Failed::Throttled,
                "Throttling",
                "Daily message quota exceeded.",
                "mail_throttled",
                hour,
                false,
            ),
            (
                Failed::Refused,
                "MessageRejected",
                unverified,
                "mail_not_set_up",
                later,
                false,
            ),
            (
                Failed::Refused,
                "MessageRejected",
                "Message contains a virus.",
                "mail_refused",
                GiveUp,
                false,
            ),
            (
                Failed::Refused,
                "InvalidParameterValue",
                "Local address contains control",
                "mail_refused",
                GiveUp,
                false,
            ),
            (
                Failed::Refused,
                "AccountSendingPausedException",
                "",
                "mail_not_set_up",
                later,
                false,
            ),
            (
                Failed::Refused,
                "ConfigurationSetDoesNotExist",
                "",
                "mail_not_set_up",
                later,
                false,
            ),
            (
                Failed::Refused,
                "ConfigurationSetSendingPausedException",
                "",
                "mail_not_set_up",
                later,
                false,
            ),
            (
                Failed::Refused,
                "MailFromDomainNotVerifiedException",
                "",
                "mail_not_set_up",
                later,
                false,
            ),
            (Failed::Refused, "New", "", "mail_refused", GiveUp, false),
            (
                Failed::Denied,
                "AccessDenied",
                "",
                "mail_not_set_up",
                later,
                false,
            ),
            (Failed::NotSent, "", "", "mail_not_set_up", later, false),
            (
                Failed::NotConnected,
                "",
                "",
                "mail_unreachable",
                soon,
                false,
            ),
            (
                Failed::Unreachable,
                "",
                "",
                "mail_outcome_unknown",
                soon,
                true,
            ),
            (Failed::TimedOut, "", "", "mail_outcome_unknown", soon, true),
            (Failed::Garbled, "", "", "mail_outcome_unknown", soon, true),
            (
                Failed::Unavailable,
                "InternalFailure",
                "",
                "mail_outcome_unknown",
                soon,
                true,
            ),
        ] {
            let error = refused(failure(failed, code, message));
            assert_eq!(
                (error.code(), error.disposition(), error.outcome_unknown()),
                (word, follows, unknown),
                "{code} {message}"
            );
            // What concerns the operator's account is nothing for tenants.
            assert!(!error.to_string().contains("a@b.example"), "{error}");
            assert_eq!(error.answer().is_some(), word == "mail_refused", "{code}");
        }
    }
}
