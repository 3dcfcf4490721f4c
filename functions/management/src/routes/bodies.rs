//! The readers of the smaller bodies, for tests that feed them hostile values. Those of prompts,
//! previews and calendars are `shared`'s.

use chrono::{DateTime, Utc};
use serde_json::Value;
use shared::fault::Fault;

use super::{admin, api_keys, backfills, prompts, provider_keys, users};

/// What a body is sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// A new user.
    User,
    /// A change of a user.
    UserChange,
    /// A new API key.
    ApiKey,
    /// A tenant's own key of a provider.
    ProviderKey,
    /// A backfill.
    Backfill,
    /// A new tenant.
    Tenant,
    /// A change of a tenant.
    TenantChange,
    /// A change of a prompt's status.
    Note,
    /// A run that is asked for.
    Run,
}

impl Body {
    /// Each, with its name.
    pub const ALL: [(&str, Self); 9] = [
        ("user", Self::User),
        ("user_change", Self::UserChange),
        ("api_key", Self::ApiKey),
        ("provider_key", Self::ProviderKey),
        ("backfill", Self::Backfill),
        ("tenant", Self::Tenant),
        ("tenant_change", Self::TenantChange),
        ("note", Self::Note),
        ("run", Self::Run),
    ];

    /// Reads a body as its handler does.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn read(self, body: &Value, now: DateTime<Utc>) -> Result<(), Vec<Fault>> {
        match self {
            Self::User => users::parse_user(body, None).map(drop),
            Self::UserChange => users::Change::parse(body, None).map(drop),
            Self::ApiKey => api_keys::KeyRequest::parse(body, now).map(drop),
            Self::ProviderKey => provider_keys::parse(body).map(drop),
            Self::Backfill => backfills::Wanted::parse(body, now).map(drop),
            Self::Tenant => admin::TenantRequest::parse(body).map(drop),
            Self::TenantChange => admin::parse_changes(body).map(drop),
            Self::Note => prompts::note(body).map(drop),
            Self::Run => prompts::trigger(body).map(drop),
        }
    }
}
