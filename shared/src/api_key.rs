//! The text of API keys, and what a key may do.
//!
//! A key is `ck_<environment>_<id of its row>_<32 random bytes in hex>`. It is shown once; what is
//! stored is its SHA-256, which is enough because the random part cannot be guessed. Nothing here
//! prints a key.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{env::Environment, ids::ApiKeyId, secret::Secret};

const SECRET_BYTES: usize = 32;
/// Longer texts are no keys and are not hashed.
const KEY_BYTES_MAX: usize = 200;

/// What a caller may do; each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Changes prompts and runs.
    Editor,
    /// Makes keys and rotates the webhook secret.
    Owner,
}

impl Role {
    /// All, the least powerful first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Editor, Self::Owner];

    /// As it stands in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Owner => "owner",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// An API key in full: a new one, or one that a caller sent.
#[derive(Debug, Clone)]
pub struct ApiKey {
    id: ApiKeyId,
    text: Secret,
}

impl ApiKey {
    /// Makes a new key.
    #[must_use]
    pub fn generate(environment: Environment) -> Self {
        let id = ApiKeyId::new();
        let secret = hex::encode(rand::random::<[u8; SECRET_BYTES]>());
        Self {
            id,
            text: Secret::new(format!("{}{secret}", prefix(environment, id))),
        }
    }

    /// Reads a key that a caller sent; `None` unless it has the shape of a key of this environment.
    #[must_use]
    pub fn parse(text: &str, environment: Environment) -> Option<Self> {
        if text.len() > KEY_BYTES_MAX {
            return None;
        }
        let rest = text
            .strip_prefix("ck_")?
            .strip_prefix(environment.as_str())?
            .strip_prefix('_')?;
        let (id, secret) = rest.split_once('_')?;
        let hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        (hex(id, 32) && hex(secret, 2 * SECRET_BYTES)).then_some(())?;
        Some(Self {
            id: ApiKeyId::from(Uuid::try_parse(id).ok()?),
            text: Secret::new(text),
        })
    }

    /// The row that the key names.
    #[must_use]
    pub fn id(&self) -> ApiKeyId {
        self.id
    }

    /// The whole key, to show once.
    #[must_use]
    pub fn text(&self) -> &Secret {
        &self.text
    }

    /// The key up to its secret part, to recognise it by.
    #[must_use]
    pub fn prefix(&self, environment: Environment) -> String {
        prefix(environment, self.id)
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.text.expose()).into()
    }
}

fn prefix(environment: Environment, id: ApiKeyId) -> String {
    format!("ck_{}_{}_", environment.as_str(), id.uuid().simple())
}

/// The SHA-256 of the platform's key, with which the operator manages tenants.
#[derive(Clone)]
pub struct PlatformKeyHash([u8; 32]);

impl PlatformKeyHash {
    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// A sentence that says what to give.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash)
            .map(|()| Self(hash))
            .map_err(|_| "must be the SHA-256 of the platform key, in 64 hex digits".to_owned())
    }

    /// Hashes a key, for an installation that makes its own.
    #[must_use]
    pub fn of(key: &Secret) -> Self {
        Self(Sha256::digest(key.expose()).into())
    }

    /// Whether `sent` is the platform's key. Takes the same time wherever they differ.
    #[must_use]
    pub fn matches(&self, sent: &str) -> bool {
        let sent: [u8; 32] = Sha256::digest(sent).into();
        self.0.ct_eq(&sent).into()
    }
}

impl fmt::Debug for PlatformKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_reads_back_and_matches_only_itself() {
        let key = ApiKey::generate(Environment::Dev);
        let text = key.text().expose();
        assert!(text.starts_with("ck_dev_"));
        assert_eq!(text.len(), "ck_dev_".len() + 32 + 1 + 64);
        assert!(text.starts_with(&key.prefix(Environment::Dev)));
        let sent = ApiKey::parse(text, Environment::Dev).unwrap();
        assert_eq!(sent.id(), key.id());
        assert_eq!(sent.hash(), key.hash());
        assert_ne!(sent.hash(), ApiKey::generate(Environment::Dev).hash());
        assert!(!format!("{key:?}").contains(text));
    }

    #[test]
    fn another_environment_or_shape_is_no_key() {
        let key = ApiKey::generate(Environment::Dev);
        let text = key.text().expose();
        assert!(ApiKey::parse(text, Environment::Prod).is_none());
        for wrong in [
            "",
            "ck_dev_",
            "Bearer",
            &text[..text.len() - 1],
            &format!("{text}0"),
            &text.replace('_', "-"),
            &text.replacen("ck_", "CK_", 1),
            &format!("{}é{}", &text[..50], &text[52..]),
            &"a".repeat(10_000),
        ] {
            assert!(ApiKey::parse(wrong, Environment::Dev).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_platform_key_is_known_by_its_hash() {
        let hash = PlatformKeyHash::of(&Secret::new("platform"));
        assert!(hash.matches("platform"));
        assert!(!hash.matches("platforn"));
        let hex = hex::encode(Sha256::digest("platform"));
        assert!(PlatformKeyHash::parse(&hex).unwrap().matches("platform"));
        assert!(PlatformKeyHash::parse("platform").is_err());
        assert!(!format!("{hash:?}").contains(&hex));
    }

    #[test]
    fn roles_are_ordered_by_power() {
        assert!(Role::Viewer < Role::Editor && Role::Editor < Role::Owner);
        assert_eq!(Role::parse("owner"), Some(Role::Owner));
        assert_eq!(Role::parse("root"), None);
    }
}
