//! The tags that an email carries through the mail service, so that what is reported of it can be
//! brought back to its delivery.
//!
//! They are a hint: whoever reads them from a report asks the database whether it is so.

use crate::ids::{DeliveryId, PromptId, RunId, TenantId};

/// The tag with the tenant's id.
pub const TENANT: &str = "tenant";
/// The tag with the prompt's id.
pub const PROMPT: &str = "prompt";
/// The tag with the run's id.
pub const RUN: &str = "run";
/// The tag with the delivery's id.
pub const DELIVERY: &str = "delivery";

/// Which delivery an email is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailTags {
    /// Whose.
    pub tenant_id: TenantId,
    /// The prompt.
    pub prompt_id: PromptId,
    /// Its run.
    pub run_id: RunId,
    /// The delivery.
    pub delivery_id: DeliveryId,
}
