//! Wake-ups: messages that say "look now". They carry no truth, so any of them may be lost,
//! doubled, late or stale.

use serde::{Deserialize, Serialize};

use crate::ids::{DeliveryId, PromptId, RunId, TenantId};

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
