//! The call of EventBridge, and what its answers mean.
//!
//! Every call has a deadline. What EventBridge says of an entry, or of a call, is mapped here and
//! nowhere else.

use std::time::Duration;

use aws_sdk_eventbridge::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    primitives::DateTime,
    types::{PutEventsRequestEntry, PutEventsResultEntry},
};
use aws_types::SdkConfig;
use tokio::time::{Instant, timeout_at};

use super::entry::{Entry, SOURCE};
use crate::aws::{Failed, Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that has been idle may be gone.
const ATTEMPTS_MAX: u32 = 2;
const BACKOFF: Duration = Duration::from_millis(50);

/// The longest name or ARN of a bus (EventBridge API Reference, "PutEventsRequestEntry").
const NAME_BYTES_MAX: usize = 1600;

/// Codes of its own that every call would meet (EventBridge API Reference, "PutEvents"): the bus is
/// not there, its quota is used up, or this operation is closed to the account.
const OF_BUS: [&str; 4] = [
    "InternalException",
    "LimitExceededException",
    "OperationDisabledException",
    "ResourceNotFoundException",
];

/// A bus of EventBridge.
#[derive(Debug, Clone)]
pub struct EventBridge {
    client: Client,
    name: String,
}

/// What the bus says of one entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It has it.
    Taken,
    /// It cannot take it now, whatever it is.
    NotNow { code: String },
    /// It will never take it.
    Never { code: String },
    /// It does not take it, for a reason that is not known here.
    Refused { code: String },
}

/// Why a call had no answer for its entries.
#[derive(Debug)]
pub(super) enum Fault {
    /// Other events would meet the same: it is down, busy, missing, or closed to us.
    OfBus { code: String, detail: String },
    /// Something in this call is not as it should be.
    OfRequest { code: String, detail: String },
}

impl Fault {
    pub(super) fn code(&self) -> &str {
        match self {
            Self::OfBus { code, .. } | Self::OfRequest { code, .. } => code,
        }
    }

    pub(super) fn detail(&self) -> &str {
        match self {
            Self::OfBus { detail, .. } | Self::OfRequest { detail, .. } => detail,
        }
    }
}

impl EventBridge {
    /// A client of the bus of that name or ARN, with AWS's usual settings: region, credentials,
    /// endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig, name: String) -> Self {
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS_MAX)
            .with_initial_backoff(BACKOFF);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let config = aws_sdk_eventbridge::config::Builder::from(aws)
            .retry_config(retries)
            .timeout_config(timeouts)
            .build();
        Self {
            client: Client::from_conf(config),
            name,
        }
    }

    /// Puts a batch, and gives what is said of each of its entries.
    pub(super) async fn put(&self, batch: &[Entry], deadline: Instant) -> Result<Vec<Said>, Fault> {
        let entries = batch.iter().map(|entry| self.entry(entry)).collect();
        let call = self.client.put_events().set_entries(Some(entries)).send();
        let answer = match timeout_at(deadline, call).await {
            Ok(answer) => answer.map_err(|error| fault(Failure::of(&error)))?,
            Err(_) => return Err(fault(Failure::deadline())),
        };
        let said: Vec<Said> = answer.entries().iter().map(said).collect();
        if said.len() == batch.len() {
            return Ok(said);
        }
        Err(Fault::OfBus {
            code: "garbled".to_owned(),
            detail: format!("{} answers for {} entries", said.len(), batch.len()),
        })
    }

    fn entry(&self, entry: &Entry) -> PutEventsRequestEntry {
        PutEventsRequestEntry::builder()
            .event_bus_name(&self.name)
            .source(SOURCE)
            .detail_type(&entry.event.kind)
            .time(DateTime::from_millis(
                entry.event.occurred_at.timestamp_millis(),
            ))
            .detail(&entry.detail)
            .build()
    }
}

/// Takes the name or the ARN of a bus, for [`crate::env::Reader`].
///
/// # Errors
/// A sentence that says what to give.
pub fn read_name(text: &str) -> Result<String, String> {
    let is_sound = |letter: char| letter.is_ascii_alphanumeric() || "/.-_".contains(letter);
    let name = match text.strip_prefix("arn:") {
        Some(arn) => arn.split_once(":event-bus/").map(|(_, name)| name),
        None => Some(text),
    };
    let sound = name.is_some_and(|name| !name.is_empty() && name.chars().all(is_sound));
    (sound && text.len() <= NAME_BYTES_MAX)
        .then(|| text.to_owned())
        .ok_or_else(|| "must be the name or the ARN of an event bus".to_owned())
}

/// The codes of an entry (EventBridge API Reference, "PutEventsResultEntry"). What rights and
/// accounts lack is for the operator to mend, and no fault of the entry.
fn said(entry: &PutEventsResultEntry) -> Said {
    let Some(code) = entry.error_code() else {
        return Said::Taken;
    };
    let code = code.to_owned();
    match code.as_str() {
        "InternalFailure" | "InternalException" | "ThrottlingException" | "ServiceUnavailable" => {
            Said::NotNow { code }
        }
        "AccessDeniedException"
        | "InvalidAccountIdException"
        | "NotAuthorizedForSourceException"
        | "NotAuthorizedForDetailTypeException" => Said::NotNow { code },
        "MalformedDetail" | "InvalidArgument" | "RedactionFailure" => Said::Never { code },
        _ => Said::Refused { code },
    }
}

/// The errors of a call. A refusal that no page names may be of one entry alone.
fn fault(failure: Failure) -> Fault {
    let of_request = failure.failed == Failed::Refused
        && matches!(failure.status, Some(400 | 413 | 422))
        && !OF_BUS.contains(&failure.code.as_str());
    let code = match failure.code.as_str() {
        "" => failure.failed.as_str().to_owned(),
        code => code.to_owned(),
    };
    let detail = failure.detail;
    if of_request {
        return Fault::OfRequest { code, detail };
    }
    Fault::OfBus { code, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str) -> Said {
        said(&PutEventsResultEntry::builder().error_code(code).build())
    }

    #[test]
    fn every_documented_code_of_an_entry_has_its_meaning() {
        let taken = PutEventsResultEntry::builder().event_id("1").build();
        assert_eq!(said(&taken), Said::Taken);
        for code in [
            "InternalFailure",
            "ThrottlingException",
            "AccessDeniedException",
            "InvalidAccountIdException",
            "NotAuthorizedForSourceException",
            "NotAuthorizedForDetailTypeException",
        ] {
            let code = code.to_owned();
            assert_eq!(of(&code), Said::NotNow { code });
        }
        for code in ["MalformedDetail", "InvalidArgument", "RedactionFailure"] {
            let code = code.to_owned();
            assert_eq!(of(&code), Said::Never { code });
        }
        let code = "Whatever".to_owned();
        assert_eq!(of(&code), Said::Refused { code });
    }

    #[test]
    fn a_bus_is_a_name_or_an_arn() {
        let arn = "arn:aws:events:eu-central-1:123456789012:event-bus/Carillon-events";
        for name in ["default", "Carillon-events", "aws.partner/x/1", arn] {
            assert_eq!(read_name(name).as_deref(), Ok(name));
        }
        for name in [
            "",
            "two words",
            "arn:aws:sqs:eu-central-1:1:q",
            "https://x",
            "arn:x:event-bus/",
        ] {
            assert!(read_name(name).is_err(), "{name}");
        }
        assert!(read_name(&"x".repeat(1601)).is_err());
    }
}
