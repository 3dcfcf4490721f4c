//! Whom a token speaks for.
//!
//! A token is checked here and nowhere else trusted: its signature against the issuer's keys, by an
//! algorithm that the key decides and not the token, then issuer, audience, use and times. What comes
//! out is an issuer and a subject. Nothing here decides what they may do: that stands in our tables.

mod fetch;
mod keys;
mod settings;
mod token;

pub use keys::KeyTimes;
pub use settings::{Audience, Issuer, OidcSettings};

use chrono::{DateTime, Utc};
use shared::db::auth::OidcIdentity;

use self::{fetch::FetchError, keys::Keys, token::Unverified};

/// The check of one issuer's tokens, with the issuer's keys as they were last seen.
pub struct Tokens {
    settings: OidcSettings,
    keys: Keys,
}

impl Tokens {
    /// Nothing is called before the first token comes.
    #[must_use]
    pub fn new(settings: OidcSettings, times: KeyTimes) -> Self {
        let keys = Keys::new(settings.issuer.clone(), times);
        Self { settings, keys }
    }

    /// Whose tokens these are, as it stands in them.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.settings.issuer.as_str()
    }

    /// Whether a credential has the shape of a token: three parts.
    #[must_use]
    pub fn are_like(credential: &str) -> bool {
        credential.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Whom the token speaks for.
    ///
    /// # Errors
    /// Why it cannot be believed.
    pub async fn verify(&self, text: &str, now: DateTime<Utc>) -> Result<OidcIdentity, Refusal> {
        let token = Unverified::parse(text)?;
        let key = self.keys.find(token.kid(), token.algorithm()).await?;
        let subject = token
            .verify(&key)?
            .subject(self.issuer(), &self.settings.audience, now)?;
        Ok(OidcIdentity {
            issuer: self.issuer().to_owned(),
            subject,
        })
    }
}

/// Why a token is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Too long, not of three parts, no JSON, another algorithm, no key id, or a header that demands
    /// more than we do.
    #[error("the token is malformed")]
    Malformed,
    /// The issuer has no such key.
    #[error("the token's key is not known")]
    UnknownKey,
    /// It was not signed with that key.
    #[error("the token's signature is wrong")]
    WrongSignature,
    /// It lacks a claim, or one has another type.
    #[error("the token's claims cannot be used")]
    Claims,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Somebody else vouches for it.
    #[error("the token is of another issuer")]
    OtherIssuer,
    /// It was made for somebody else.
    #[error("the token is for another audience")]
    OtherAudience,
    /// It is no access token.
    #[error("the token is for another use")]
    OtherUse,
    /// The issuer's keys cannot be had.
    #[error("the issuer's keys cannot be had")]
    NoKeys(#[source] Option<FetchError>),
}
