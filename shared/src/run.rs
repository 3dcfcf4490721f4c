//! Runs: their words, and which status may follow which.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// After this many failed attempts a delivery is exhausted; a redelivery has as many again.
pub const DELIVERY_ATTEMPTS_MAX: i32 = 16;

/// A closed set of words that stand in a column, in JSON and in the code alike.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:tt,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every value, in the order of the design.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in tables, JSON and documents.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord(text.to_owned())),
                }
            }
        }
    };
}

/// A word outside a closed set.
#[derive(Debug, thiserror::Error)]
#[error("unknown word {0:?}")]
pub struct UnknownWord(String);

words! {
    /// Where a run stands.
    RunStatus {
        /// Waits for `available_at` and for a claimant.
        Queued = "queued",
        /// Somebody holds its lease.
        Running = "running",
        /// The output is recorded; deliveries are under way.
        Generated = "generated",
        /// The output is recorded and has arrived everywhere.
        Succeeded = "succeeded",
        /// The model call or a delivery failed for good.
        Failed = "failed",
        /// The model did not answer in time, at the last try.
        TimedOut = "timed_out",
        /// Stopped by a caller.
        Cancelled = "cancelled",
        /// Not run, by the prompt's own policy.
        Skipped = "skipped",
        /// Not run, because it was found too late.
        Missed = "missed",
    }
}

words! {
    /// What made a run.
    RunTrigger {
        /// A slot of the schedule.
        Schedule = "schedule",
        /// A caller's "run now".
        Manual = "manual",
        /// A retry made as a run of its own.
        Retry = "retry",
        /// A past slot, asked for.
        Backfill = "backfill",
        /// An event of the tenant's.
        Event = "event",
        /// The end of another prompt's run.
        Chain = "chain",
        /// A trial: everything but the deliveries and the counters.
        Test = "test",
    }
}

words! {
    /// Where a delivery stands.
    DeliveryStatus {
        /// Waits for its first attempt.
        Pending = "pending",
        /// Somebody is sending it.
        Sending = "sending",
        /// It arrived.
        Delivered = "delivered",
        /// An attempt failed and another will follow.
        Retrying = "retrying",
        /// No attempt will follow.
        Exhausted = "exhausted",
        /// An email's outcome is unknown, and its destination says to wait for a person.
        Held = "held",
    }
}

impl RunStatus {
    /// Whether nothing but a caller's retry changes it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::Generated => false,
            Self::Succeeded
            | Self::Failed
            | Self::TimedOut
            | Self::Cancelled
            | Self::Skipped
            | Self::Missed => true,
        }
    }

    /// Whether a run may go from this status to the next.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => matches!(
                next,
                Self::Running | Self::Cancelled | Self::Skipped | Self::Failed
            ),
            Self::Running => matches!(
                next,
                Self::Queued
                    | Self::Running
                    | Self::Generated
                    | Self::Succeeded
                    | Self::Failed
                    | Self::TimedOut
                    | Self::Cancelled
            ),
            Self::Generated => {
                matches!(next, Self::Succeeded | Self::Failed | Self::Cancelled)
            }
            // A caller's retry: the model again, or the deliveries of an output that is kept.
            Self::Failed => matches!(next, Self::Queued | Self::Generated | Self::Succeeded),
            Self::TimedOut => matches!(next, Self::Queued),
            Self::Succeeded | Self::Cancelled | Self::Skipped | Self::Missed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use utoipa::PartialSchema;

    use super::*;

    #[test]
    fn words_read_back() {
        for status in RunStatus::ALL {
            assert_eq!(status.as_str().parse::<RunStatus>().unwrap(), *status);
            assert_eq!(
                serde_json::to_value(status).unwrap(),
                json!(status.as_str())
            );
        }
        assert!("done".parse::<RunStatus>().is_err());
    }

    #[test]
    fn the_documents_have_the_same_words() {
        fn documented<T: PartialSchema>() -> Value {
            serde_json::to_value(T::schema()).unwrap()["enum"].clone()
        }
        assert_eq!(documented::<RunStatus>(), json!(RunStatus::ALL));
        assert_eq!(documented::<RunTrigger>(), json!(RunTrigger::ALL));
        assert_eq!(documented::<DeliveryStatus>(), json!(DeliveryStatus::ALL));
    }

    #[test]
    fn what_ended_well_or_was_never_run_stays_so() {
        for from in [
            RunStatus::Succeeded,
            RunStatus::Cancelled,
            RunStatus::Skipped,
            RunStatus::Missed,
        ] {
            assert!(RunStatus::ALL.iter().all(|to| !from.may_become(*to)));
        }
    }
}
