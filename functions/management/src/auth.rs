//! Who calls.
//!
//! A tenant's caller has an API key or a token of the issuer's; the operator of the installation has the
//! platform's key. The tenant comes from our own tables and from nothing else in the request: from the
//! key's row, or from a user's. The header `Carillon-Tenant` chooses among the tenants that a token's
//! user belongs to, and opens none.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use chrono::Utc;
use shared::{
    api_key::{ApiKey, Role},
    db::{
        audit::Actor,
        system::{self, Identified, Member, Refused},
    },
    ids::{TenantId, UserId},
};

use crate::{
    app::App,
    error::ApiError,
    identity::{Refusal, Tokens},
    request::RequestId,
};

const TENANT: &str = "carillon-tenant";

/// A caller who is known, in an active tenant.
#[derive(Debug, Clone)]
pub struct Caller {
    member: Member,
    actor: Actor,
    request_id: RequestId,
}

impl Caller {
    /// Whose rows the caller sees.
    #[must_use]
    pub fn tenant_id(&self) -> TenantId {
        self.member.tenant_id
    }

    /// The user: who sent the token, or whom the key acts for.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.member.user_id
    }

    /// As the audit trail names the caller.
    #[must_use]
    pub fn actor(&self) -> Actor {
        self.actor
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
        if self.member.role >= role {
            return Ok(());
        }
        Err(ApiError::forbidden(
            "role_too_low",
            format!(
                "this needs the role {}, yours is {}; use a key of a higher role, or ask an owner",
                role.as_str(),
                self.member.role.as_str()
            ),
        ))
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let request_id = RequestId::from_request_parts(parts, app).await?;
        let credential = bearer(&parts.headers)?;
        let wanted = wanted_tenant(&parts.headers)?;
        let (member, actor) = if Tokens::are_like(credential) {
            let member = by_token(app, credential, wanted).await?;
            (member, Actor::User(member.user_id))
        } else {
            by_key(app, credential, wanted).await?
        };
        tracing::Span::current().record("user.id", tracing::field::display(member.user_id));
        Ok(Self {
            member,
            actor,
            request_id,
        })
    }
}

async fn by_key(
    app: &App,
    text: &str,
    wanted: Option<TenantId>,
) -> Result<(Member, Actor), ApiError> {
    let key = ApiKey::parse(text, app.environment).ok_or_else(unknown_key)?;
    let identified = system::identify_key(&app.db, key.id(), &key.hash()).await?;
    if !matches!(identified, Identified::Nobody) {
        tracing::Span::current().record("api_key.id", tracing::field::display(key.id()));
    }
    let member = admitted(identified)?.ok_or_else(unknown_key)?;
    // A key is of one tenant: whoever names another one is mistaken about one of the two.
    if wanted.is_some_and(|wanted| wanted != member.tenant_id) {
        return Err(not_a_member());
    }
    let (key, user) = (key.id(), member.user_id);
    Ok((member, Actor::ApiKey { key, user }))
}

async fn by_token(app: &App, text: &str, wanted: Option<TenantId>) -> Result<Member, ApiError> {
    let tokens = app.tokens.as_ref().ok_or_else(|| {
        ApiError::unauthorized(
            "tokens_not_taken",
            "this installation takes API keys alone; send one in place of the token",
        )
    })?;
    let identity = tokens.verify(text, Utc::now()).await?;
    let identified =
        system::identify_user(&app.db, &identity.issuer, &identity.subject, wanted).await?;
    admitted(identified)?.ok_or_else(not_a_member)
}

/// `None` for somebody who is not known.
fn admitted(identified: Identified) -> Result<Option<Member>, ApiError> {
    let (member, refused) = match identified {
        Identified::Nobody => return Ok(None),
        Identified::TooManyAttempts { retry_after_ms } => {
            return Err(ApiError::too_many(
                "too_many_attempts",
                "this key's id was sent with wrong secrets too often; check that the key is complete",
                retry_after_ms,
            ));
        }
        Identified::OfSeveral(tenants) => return Err(tenant_not_named(&tenants)),
        Identified::Refused(member, refused) => (member, Some(refused)),
        Identified::Is(member) => (member, None),
    };
    tracing::Span::current().record("tenant.id", tracing::field::display(member.tenant_id));
    refused.map_or(Ok(Some(member)), |refused| Err(refuse(refused)))
}

/// Only who holds the whole key, or a token that is believed, learns why they are refused.
fn refuse(refused: Refused) -> ApiError {
    match refused {
        Refused::Revoked => {
            ApiError::unauthorized("key_revoked", "the key was revoked; use another one")
        }
        Refused::Expired => {
            ApiError::unauthorized("key_expired", "the key has expired; use another one")
        }
        Refused::TenantSuspended => ApiError::forbidden(
            "tenant_suspended",
            "the tenant is suspended; ask the operator",
        ),
        Refused::RateLimited { retry_after_ms } => ApiError::too_many(
            "rate_limited",
            "the caller, or the tenant, has made too many requests; wait for the time in Retry-After",
            retry_after_ms,
        ),
    }
}

fn tenant_not_named(tenants: &[TenantId]) -> ApiError {
    let ids: Vec<_> = tenants.iter().map(TenantId::to_string).collect();
    ApiError::forbidden(
        "tenant_not_named",
        format!(
            "you are a user of several tenants; name one in the header Carillon-Tenant: {}",
            ids.join(", ")
        ),
    )
}

/// The same for a tenant that there is not.
fn not_a_member() -> ApiError {
    ApiError::forbidden(
        "not_a_member",
        "you are no user of this tenant, or of any; ask an owner of it to add you",
    )
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (code, detail) = match refusal {
            // What is not the issuer's is not told apart.
            Refusal::Malformed | Refusal::UnknownKey | Refusal::WrongSignature => (
                "invalid_token",
                "the token is not one of the issuer's, or not whole; sign in again",
            ),
            Refusal::Claims => (
                "invalid_claims",
                "the token's iss, sub, exp or aud is missing or of another kind; ask the issuer",
            ),
            Refusal::Expired => ("token_expired", "the token has expired; sign in again"),
            Refusal::NotYetValid => (
                "token_not_yet_valid",
                "the token is of a time that is to come; check the issuer's clock",
            ),
            Refusal::OtherIssuer => (
                "wrong_issuer",
                "the token is of another issuer than this installation's",
            ),
            Refusal::OtherAudience => (
                "wrong_audience",
                "the token was not made for this API; ask the issuer for one with its audience",
            ),
            Refusal::OtherUse => (
                "wrong_token_use",
                "the token is no access token; send that one",
            ),
            Refusal::NoKeys(_) => return Self::issuer_unavailable(refusal),
        };
        Self::unauthorized(code, detail)
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
            "the request has no key or token; send one in the header Authorization, after the word Bearer",
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

/// What is no id names no tenant that anybody is in. Of two headers neither is taken.
fn wanted_tenant(headers: &HeaderMap) -> Result<Option<TenantId>, ApiError> {
    let mut values = headers.get_all(TENANT).iter();
    let id = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(_), Some(_)) => None,
        (Some(only), None) => only.to_str().ok().and_then(|text| text.parse().ok()),
    };
    id.map(Some).ok_or_else(not_a_member)
}

fn unknown_key() -> ApiError {
    ApiError::unauthorized(
        "unknown_key",
        "the key is not known here; check that it is complete and of this environment",
    )
}
