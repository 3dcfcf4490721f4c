//! Wake-ups: messages that say "look now". They carry no truth, so any of them may be lost,
//! doubled, late or stale.
//!
//! Inside a process a wake-up is a [`WakeUp`]. On a queue it is text with a version: what cannot be
//! read is an error value, and whoever reads decides what becomes of it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{DeliveryId, PromptId, RunId, TenantId};

/// The version that is written, and the only one that is read.
const VERSION: u64 = 1;

/// Where EventBridge Scheduler puts the slot when an entry fires (its user guide, "Adding context
/// attributes").
const SCHEDULED_TIME: &str = "<aws.scheduler.scheduled-time>";

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WakeUp {
    /// A prompt may have slots that are due.
    Prompt {
        /// Whose.
        tenant_id: TenantId,
        /// Which.
        prompt_id: PromptId,
    },
    /// A run may be claimable.
    Run {
        /// Whose.
        tenant_id: TenantId,
        /// Which.
        run_id: RunId,
    },
    /// A delivery may be claimable.
    Delivery {
        /// Whose.
        tenant_id: TenantId,
        /// Which.
        delivery_id: DeliveryId,
    },
}

impl WakeUp {
    /// Whose it is.
    #[must_use]
    pub fn tenant_id(self) -> TenantId {
        match self {
            Self::Prompt { tenant_id, .. }
            | Self::Run { tenant_id, .. }
            | Self::Delivery { tenant_id, .. } => tenant_id,
        }
    }
}

/// A message of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// What to look at.
    pub wake_up: WakeUp,
    /// What the entry said that sent it, if an entry of the scheduler did.
    pub fired: Option<Fired>,
}

/// What an entry of the scheduler says when it fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fired {
    /// The prompt's generation when the entry was made equal to it.
    pub generation: i64,
    /// The slot, for the log; `None` where the scheduler left its placeholder as it was. It makes
    /// nothing due: the stored schedule does.
    pub scheduled_for: Option<DateTime<Utc>>,
}

/// Why a message cannot be read. Its text holds nothing of the message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// It is no JSON object with a version.
    #[error("the message is not JSON with a version; look at who sends to this queue")]
    NoVersion,
    /// A later program wrote it, or an earlier one that is long gone.
    #[error("the message has version {0}, and this program reads {VERSION}; deploy the newer one")]
    OtherVersion(u64),
    /// It has our version and not our fields.
    #[error(
        "the message has version {VERSION} and not its fields; look at who sends to this queue"
    )]
    OtherShape,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u64,
    #[serde(flatten)]
    wake_up: WakeUp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheduled_for: Option<String>,
}

#[derive(Deserialize)]
struct Versioned {
    v: u64,
}

/// A wake-up as text for a queue.
#[must_use]
pub fn encode(wake_up: WakeUp) -> String {
    text(&Envelope {
        v: VERSION,
        wake_up,
        generation: None,
        scheduled_for: None,
    })
}

/// What an entry of the scheduler sends: a wake-up for its prompt, with a place where the scheduler
/// writes the slot.
#[must_use]
pub fn encode_entry(tenant_id: TenantId, prompt_id: PromptId, generation: i64) -> String {
    text(&Envelope {
        v: VERSION,
        wake_up: WakeUp::Prompt {
            tenant_id,
            prompt_id,
        },
        generation: Some(generation),
        scheduled_for: Some(SCHEDULED_TIME.to_owned()),
    })
}

/// Reads a message of a queue.
///
/// # Errors
/// For text of another version or of another sender.
pub fn decode(text: &str) -> Result<Message, Unreadable> {
    // The version first: what else a later one holds is not ours to judge.
    match serde_json::from_str(text) {
        Ok(Versioned { v: VERSION }) => {}
        Ok(Versioned { v }) => return Err(Unreadable::OtherVersion(v)),
        Err(_) => return Err(Unreadable::NoVersion),
    }
    let envelope: Envelope = serde_json::from_str(text).map_err(|_| Unreadable::OtherShape)?;
    let scheduled_for = envelope.scheduled_for.and_then(|text| text.parse().ok());
    Ok(Message {
        wake_up: envelope.wake_up,
        fired: envelope.generation.map(|generation| Fired {
            generation,
            scheduled_for,
        }),
    })
}

fn text(envelope: &Envelope) -> String {
    serde_json::to_string(envelope)
        .expect("an envelope has text keys and plain values, which serde_json always takes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const TENANT: &str = "01931f5e-7c4f-7d3a-8b1e-2f6a9c0d4e5b";
    const PROMPT: &str = "01931f5e-7c4f-7d3a-8b1e-2f6a9c0d4e5c";

    fn prompt() -> WakeUp {
        WakeUp::Prompt {
            tenant_id: TENANT.parse().unwrap(),
            prompt_id: PROMPT.parse().unwrap(),
        }
    }

    #[test]
    fn every_wake_up_comes_back() {
        let tenant_id = TenantId::new();
        for wake_up in [
            prompt(),
            WakeUp::Run {
                tenant_id,
                run_id: RunId::new(),
            },
            WakeUp::Delivery {
                tenant_id,
                delivery_id: DeliveryId::new(),
            },
        ] {
            let expected = Message {
                wake_up,
                fired: None,
            };
            assert_eq!(decode(&encode(wake_up)), Ok(expected));
        }
    }

    /// Messages lie in queues and entries while programs change: this text must stay readable.
    #[test]
    fn the_text_of_version_1_stays_as_it_is() {
        let text = encode_entry(TENANT.parse().unwrap(), PROMPT.parse().unwrap(), 7);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({"v": 1, "kind": "prompt", "tenant_id": TENANT, "prompt_id": PROMPT,
                "generation": 7, "scheduled_for": "<aws.scheduler.scheduled-time>"})
        );
        let fired = text.replace(SCHEDULED_TIME, "2026-03-22T18:59:43Z");
        let message = decode(&fired).unwrap();
        assert_eq!(message.wake_up, prompt());
        assert_eq!(
            message.fired,
            Some(Fired {
                generation: 7,
                scheduled_for: Some("2026-03-22T18:59:43Z".parse().unwrap()),
            })
        );
    }

    #[test]
    fn a_placeholder_that_was_left_alone_is_no_slot() {
        let text = encode_entry(TENANT.parse().unwrap(), PROMPT.parse().unwrap(), 7);
        let fired = decode(&text).unwrap().fired.unwrap();
        assert_eq!((fired.generation, fired.scheduled_for), (7, None));
    }

    #[test]
    fn what_is_not_ours_is_told_apart() {
        let later = json!({"v": 2, "slots": []}).to_string();
        assert_eq!(decode(&later), Err(Unreadable::OtherVersion(2)));
        for text in [
            "",
            "[]",
            "null",
            "{\"v\":-1}",
            "{\"v\":\"1\"}",
            "{\"kind\":\"prompt\"}",
        ] {
            assert_eq!(decode(text), Err(Unreadable::NoVersion), "{text}");
        }
        for text in [
            json!({"v": 1}),
            json!({"v": 1, "kind": "tenant", "tenant_id": TENANT}),
            json!({"v": 1, "kind": "prompt", "tenant_id": TENANT}),
            json!({"v": 1, "kind": "prompt", "tenant_id": "*", "prompt_id": PROMPT}),
            json!({"v": 1, "kind": "prompt", "tenant_id": TENANT, "prompt_id": PROMPT, "generation": "7"}),
        ] {
            assert_eq!(
                decode(&text.to_string()),
                Err(Unreadable::OtherShape),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = decode(&text);
        }
    }
}
