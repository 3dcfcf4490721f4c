//! Who calls.
//!
//! A tenant's caller has an API key; the operator of the installation has the platform's key. The
//! tenant comes from the key's row and from nothing else in the request.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use shared::{
    api_key::{ApiKey, Role},
    db::{system, system::FoundKey},
    ids::{ApiKeyId, TenantId, UserId},
};

use crate::{app::App, error::ApiError, request::RequestId};

/// A caller with a valid key of an active tenant.
#[derive(Debug, Clone)]
pub struct Caller {
    tenant_id: TenantId,
    user_id: UserId,
    key_id: ApiKeyId,
    role: Role,
    request_id: RequestId,
}

impl Caller {
    /// Whose rows the caller sees.
    #[must_use]
    pub fn tenant_id(&self) -> TenantId {
        self.tenant_id
    }

    /// The user that the key acts for.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.user_id
    }

    /// The key.
    #[must_use]
    pub fn key_id(&self) -> ApiKeyId {
        self.key_id
    }

    /// The id of this request.
    #[must_use]
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// Refuses a caller with less than `role`. Writes say their role to `Command::run` instead.
    ///
    /// # Errors
    /// 403.
    pub fn require(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        Err(ApiError::forbidden(
            "role_too_low",
            format!(
                "this needs the role {}, the key has {}; use a key of a higher role",
                role.as_str(),
                self.role.as_str()
            ),
        ))
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let request_id = RequestId::from_request_parts(parts, app).await?;
        let key =
            ApiKey::parse(bearer(&parts.headers)?, app.environment).ok_or_else(unknown_key)?;
        let found = system::find_api_key(&app.db, key.id())
            .await?
            .filter(|found| key.matches(&found.key_hash))
            .ok_or_else(unknown_key)?;
        tracing::Span::current()
            .record("tenant.id", tracing::field::display(found.tenant_id))
            .record("api_key.id", tracing::field::display(key.id()));
        refuse(&found)?;
        let role = Role::parse(&found.role)
            .ok_or_else(|| ApiError::internal("the key's row has an unknown role"))?;
        Ok(Self {
            tenant_id: found.tenant_id,
            user_id: found.user_id,
            key_id: key.id(),
            role,
            request_id,
        })
    }
}

/// The operator of the installation.
#[derive(Debug, Clone)]
pub struct Operator {
    request_id: RequestId,
}

impl Operator {
    /// The operator inside the process itself, where nobody asks for a key.
    pub(crate) fn of_process() -> Self {
        Self {
            request_id: RequestId::of(&HeaderMap::new()),
        }
    }

    /// The id of this request.
    #[must_use]
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        // An installation without a platform key looks as if it had no such routes.
        let expected = app
            .platform_key
            .as_ref()
            .ok_or_else(|| ApiError::of_status(StatusCode::NOT_FOUND))?;
        if !expected.matches(bearer(&parts.headers)?) {
            return Err(unknown_key());
        }
        Ok(Self {
            request_id: RequestId::from_request_parts(parts, app).await?,
        })
    }
}

/// The credentials of the scheme `Bearer` (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        ApiError::unauthorized(
            "missing_key",
            "the request has no key; send it in the header Authorization, after the word Bearer",
        )
    })?;
    let (scheme, key) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or_else(unknown_key)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unknown_key());
    }
    Ok(key.trim())
}

/// Only who holds the whole key learns why it is refused.
fn refuse(found: &FoundKey) -> Result<(), ApiError> {
    match found.refused.as_deref() {
        None => Ok(()),
        Some("revoked") => Err(ApiError::unauthorized(
            "key_revoked",
            "the key was revoked; use another one",
        )),
        Some("expired") => Err(ApiError::unauthorized(
            "key_expired",
            "the key has expired; use another one",
        )),
        Some("tenant_suspended") => Err(ApiError::forbidden(
            "tenant_suspended",
            "the tenant is suspended; ask the operator",
        )),
        Some(_) => Err(ApiError::internal("a key is refused for an unknown reason")),
    }
}

fn unknown_key() -> ApiError {
    ApiError::unauthorized(
        "unknown_key",
        "the key is not known here; check that it is complete and of this environment",
    )
}
