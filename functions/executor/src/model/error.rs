//! What can go wrong with a model call, and whether to try again.

use std::time::Duration;

use shared::model::Provider;

/// Why there is no answer. The text of each is fit for the tenant: it holds no key, no address of
/// ours, and at most a masked excerpt of what the provider said. The source is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The provider has no key here, or is switched off.
    #[error("{provider} cannot be called here: {reason}")]
    NotConfigured {
        /// Which one.
        provider: Provider,
        /// What the operator has to do.
        reason: &'static str,
    },
    /// The deadline passed.
    #[error("the model did not answer in time; raise timeout_ms or ask for a shorter output")]
    Timeout,
    /// No connection: nothing was sent.
    #[error("no connection to the provider could be made")]
    Unreachable(#[source] reqwest::Error),
    /// The connection broke after the request may have been sent.
    #[error("the connection to the provider broke before the answer was complete")]
    Interrupted(#[source] reqwest::Error),
    /// Too many calls, or too many tokens, for the moment.
    #[error("the provider limits the rate of calls: {0}")]
    RateLimited(ProviderFault),
    /// The account has run out; asking again does not help.
    #[error("the provider account has no quota or credit left: {0}")]
    QuotaExhausted(ProviderFault),
    /// The provider has a fault, is overloaded, or was busy with a conflicting call.
    #[error("the provider is not available: {0}")]
    Unavailable(ProviderFault),
    /// The key is wrong, or may not use this model.
    #[error("the provider refused access: {0}")]
    Auth(ProviderFault),
    /// The key is the tenant's own, and wrong, or may not use this model.
    #[error(
        "the provider refused your own key: {0}; set one that works with PUT /v1/provider-keys"
    )]
    TenantKeyRefused(ProviderFault),
    /// The tenant's own key is there and cannot be read.
    #[error("your own key of the provider cannot be read; set it again with PUT /v1/provider-keys")]
    TenantKeyUnreadable,
    /// The key to call with cannot be had at the moment. Nothing was sent.
    #[error("the key of the provider cannot be read at the moment")]
    KeyUnavailable,
    /// The provider does not accept this request, for example its model or its length.
    #[error("the provider rejected the request: {0}")]
    Rejected(ProviderFault),
    /// The answer is not what the provider documents.
    #[error("the provider's answer could not be read: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
}

/// A provider's own account of an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (status {status})")]
pub struct ProviderFault {
    /// The HTTP status.
    pub status: u16,
    /// What it said: masked, in one line, of at most 500 characters.
    pub message: String,
    /// How long to wait at least, where it said so.
    pub after: Option<Duration>,
    /// Its own advice (`x-should-retry`), which wins over what the status suggests.
    pub should_retry: Option<bool>,
    /// Its id of the call, for its support.
    pub request_id: Option<String>,
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again, as often as the prompt allows.
    Retry {
        /// The least wait that the provider asked for: a floor, not a schedule.
        after: Option<Duration>,
    },
    /// Another try would fail alike.
    GiveUp,
}

impl ModelError {
    /// Whether to try again, and how soon at the earliest.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Timeout
            | Self::Unreachable(_)
            | Self::Interrupted(_)
            | Self::Malformed { .. }
            | Self::KeyUnavailable => Disposition::Retry { after: None },
            Self::RateLimited(fault) | Self::Unavailable(fault) => fault.disposition(true),
            Self::Auth(fault) | Self::TenantKeyRefused(fault) | Self::Rejected(fault) => {
                fault.disposition(false)
            }
            // Not even when the provider's header says so: credit does not come back by asking.
            Self::QuotaExhausted(_) | Self::NotConfigured { .. } | Self::TenantKeyUnreadable => {
                Disposition::GiveUp
            }
        }
    }

    /// A stable name for tables, problem bodies and dashboards.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotConfigured { .. } => "provider_not_configured",
            Self::Timeout => "provider_timeout",
            Self::Unreachable(_) | Self::Interrupted(_) | Self::Unavailable(_) => {
                "provider_unavailable"
            }
            Self::RateLimited(_) => "rate_limited",
            Self::QuotaExhausted(_) => "quota_exhausted",
            Self::Auth(_) => "provider_auth",
            Self::TenantKeyRefused(_) => "tenant_key_refused",
            Self::TenantKeyUnreadable => "tenant_key_unreadable",
            Self::KeyUnavailable => "provider_key_unavailable",
            Self::Rejected(_) => "provider_rejected",
            Self::Malformed { .. } => "malformed_answer",
        }
    }

    /// The same, of a call with a tenant's own key.
    pub(super) fn of_a_tenants_key(self) -> Self {
        match self {
            Self::Auth(fault) => Self::TenantKeyRefused(fault),
            other @ (Self::NotConfigured { .. }
            | Self::Timeout
            | Self::Unreachable(_)
            | Self::Interrupted(_)
            | Self::RateLimited(_)
            | Self::QuotaExhausted(_)
            | Self::Unavailable(_)
            | Self::TenantKeyRefused(_)
            | Self::TenantKeyUnreadable
            | Self::KeyUnavailable
            | Self::Rejected(_)
            | Self::Malformed { .. }) => other,
        }
    }

    /// An answer without the documented form. The parser's own text may quote the answer, so only
    /// the place is taken over.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the signature that map_err wants"
    )]
    pub(super) fn not_as_documented(error: serde_json::Error) -> Self {
        let reason = if error.is_data() {
            let (line, column) = (error.line(), error.column());
            format!("its JSON is not as documented at line {line}, column {column}")
        } else {
            "it is not JSON".to_owned()
        };
        Self::Malformed { reason }
    }

    /// Whether the model may have answered, and the call been billed, without our seeing it.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Timeout | Self::Interrupted(_) | Self::Malformed { .. } => true,
            Self::NotConfigured { .. }
            | Self::Unreachable(_)
            | Self::RateLimited(_)
            | Self::QuotaExhausted(_)
            | Self::Unavailable(_)
            | Self::Auth(_)
            | Self::TenantKeyRefused(_)
            | Self::TenantKeyUnreadable
            | Self::KeyUnavailable
            | Self::Rejected(_) => false,
        }
    }
}

impl ProviderFault {
    fn disposition(&self, by_status: bool) -> Disposition {
        if self.should_retry.unwrap_or(by_status) {
            Disposition::Retry { after: self.after }
        } else {
            Disposition::GiveUp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(should_retry: Option<bool>) -> ProviderFault {
        ProviderFault {
            status: 400,
            message: "no".to_owned(),
            after: Some(Duration::from_secs(7)),
            should_retry,
            request_id: None,
        }
    }

    #[test]
    fn the_providers_advice_wins_over_the_status_but_not_over_an_empty_account() {
        let again = Disposition::Retry {
            after: Some(Duration::from_secs(7)),
        };
        for (error, expected) in [
            (ModelError::Unavailable(fault(None)), again),
            (
                ModelError::Unavailable(fault(Some(false))),
                Disposition::GiveUp,
            ),
            (
                ModelError::RateLimited(fault(Some(false))),
                Disposition::GiveUp,
            ),
            (ModelError::Rejected(fault(None)), Disposition::GiveUp),
            (ModelError::Rejected(fault(Some(true))), again),
            (
                ModelError::QuotaExhausted(fault(Some(true))),
                Disposition::GiveUp,
            ),
        ] {
            assert_eq!(error.disposition(), expected, "{error}");
        }
    }
}
