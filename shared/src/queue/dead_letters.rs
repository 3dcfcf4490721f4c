//! The queue of messages that came to nothing.
//!
//! SQS moves a message here that was taken too often; the executor puts one here at once that it
//! cannot use. The sweeper takes them out. Nothing here says what a message holds.

use std::{fmt, time::Duration};

use aws_sdk_sqs::{
    Client,
    types::{
        DeleteMessageBatchRequestEntry, Message, MessageAttributeValue, MessageSystemAttributeName,
    },
};
use aws_types::SdkConfig;
use tokio::time::timeout;

use super::sqs::{BATCH_MAX, QueueError, client};
use crate::aws::Failure;

/// How long a letter that was taken is ours alone. One that is not deleted comes again after it.
const VISIBILITY_S: i32 = 120;

/// The longest wait for a message to be put here.
const BURY_LIMIT: Duration = Duration::from_secs(5);

/// Why a message is here, and which one it was before.
const REASON: &str = "carillon.reason";
const WAS: &str = "carillon.message_id";

/// What EventBridge Scheduler says of a fire that it could not deliver (its user guide,
/// "Configuring a dead-letter queue").
const SCHEDULER_REASON: &str = "ERROR_CODE";

/// A dead-letter queue of SQS.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    client: Client,
    url: String,
}

/// A message that came to nothing.
#[derive(Clone)]
pub struct Letter {
    /// SQS's id of it.
    pub id: String,
    /// What it says; it may be from anybody who may send there.
    pub body: String,
    /// Why it is here, where somebody said so.
    pub reason: Option<String>,
    /// Who sent it, as AWS names them.
    pub sender: Option<String>,
    receipt: String,
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Letter")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// A client of the queue with AWS's usual settings.
    #[must_use]
    pub fn new(aws: &SdkConfig, url: String) -> Self {
        Self {
            client: client(aws),
            url,
        }
    }

    /// Puts a message here that cannot be used, with a stable word that says why.
    ///
    /// # Errors
    /// When the queue does not take it in time.
    pub async fn bury(&self, id: &str, body: &str, reason: &'static str) -> Result<(), QueueError> {
        let call = self
            .client
            .send_message()
            .queue_url(&self.url)
            // SQS takes no empty body.
            .message_body(if body.is_empty() { " " } else { body })
            .message_attributes(REASON, text(reason)?)
            .message_attributes(WAS, text(if id.is_empty() { "none" } else { id })?)
            .send();
        match timeout(BURY_LIMIT, call).await {
            Ok(answer) => answer.map(drop).map_err(|error| Failure::of(&error).into()),
            Err(_) => Err(Failure::deadline().into()),
        }
    }

    /// Takes at most ten letters. They are not gone before they are deleted.
    ///
    /// # Errors
    /// When the queue does not answer.
    pub async fn take(&self) -> Result<Vec<Letter>, QueueError> {
        let answer = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(BATCH_MAX).unwrap_or(i32::MAX))
            .visibility_timeout(VISIBILITY_S)
            .wait_time_seconds(0)
            .message_system_attribute_names(MessageSystemAttributeName::SenderId)
            .message_attribute_names("All")
            .send()
            .await
            .map_err(|error| Failure::of(&error))?;
        Ok(answer
            .messages
            .unwrap_or_default()
            .into_iter()
            .map(letter)
            .collect())
    }

    /// Deletes letters, and says how many are gone. One that stays comes again, and finds its work
    /// done.
    ///
    /// # Errors
    /// When the queue does not answer.
    pub async fn delete(&self, letters: &[Letter]) -> Result<usize, QueueError> {
        let mut gone = 0;
        for batch in letters.chunks(BATCH_MAX) {
            let entries: Result<Vec<_>, _> = (0..)
                .zip(batch)
                .map(|(place, letter): (usize, _)| {
                    DeleteMessageBatchRequestEntry::builder()
                        .id(place.to_string())
                        .receipt_handle(&letter.receipt)
                        .build()
                })
                .collect();
            let answer = self
                .client
                .delete_message_batch()
                .queue_url(&self.url)
                .set_entries(Some(entries?))
                .send()
                .await
                .map_err(|error| Failure::of(&error))?;
            gone += answer.successful().len();
        }
        Ok(gone)
    }
}

fn text(value: &str) -> Result<MessageAttributeValue, QueueError> {
    Ok(MessageAttributeValue::builder()
        .data_type("String")
        .string_value(value)
        .build()?)
}

fn letter(message: Message) -> Letter {
    let said = |name: &str| {
        let value = message.message_attributes()?.get(name)?;
        value.string_value().map(str::to_owned)
    };
    let reason = said(REASON).or_else(|| said(SCHEDULER_REASON));
    let sender = message
        .attributes()
        .and_then(|known| known.get(&MessageSystemAttributeName::SenderId))
        .cloned();
    Letter {
        reason,
        sender,
        id: message.message_id.unwrap_or_default(),
        body: message.body.unwrap_or_default(),
        receipt: message.receipt_handle.unwrap_or_default(),
    }
}
