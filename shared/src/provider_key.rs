//! A tenant's own key of a model provider.
//!
//! Pure. The key is stored sealed and never shown again: what may be told is its fingerprint.

use sha2::{Digest, Sha256};

use crate::{fault::Fault, model::Provider, secret::Secret};

/// The shortest key, in characters: a shorter one could be guessed from its fingerprint.
pub const KEY_CHARS_MIN: usize = 16;
/// The longest.
pub const KEY_CHARS_MAX: usize = 512;

/// A provider that is called with a key, which a tenant may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyedProvider {
    /// OpenAI.
    OpenAi,
    /// Anthropic.
    Anthropic,
}

impl KeyedProvider {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::OpenAi, Self::Anthropic];

    /// The same, where a provider has keys at all.
    #[must_use]
    pub fn of(provider: Provider) -> Option<Self> {
        match provider {
            Provider::OpenAi => Some(Self::OpenAi),
            Provider::Anthropic => Some(Self::Anthropic),
            Provider::Bedrock | Provider::Echo => None,
        }
    }

    /// As it stands in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => Provider::OpenAi.as_str(),
            Self::Anthropic => Provider::Anthropic.as_str(),
        }
    }

    /// Reads its name.
    ///
    /// # Errors
    /// `provider_without_keys` and `unknown_provider`; the fault's field is empty.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let hint = "name openai or anthropic";
        let found = Provider::ALL.into_iter().find(|one| one.as_str() == text);
        let Some(provider) = found else {
            let detail = "there is no such provider";
            return Err(Fault::new("", "unknown_provider", detail, hint));
        };
        Self::of(provider).ok_or_else(|| {
            let detail = match provider {
                Provider::Bedrock => "Bedrock is called with the rights of the installation's role",
                Provider::Echo | Provider::OpenAi | Provider::Anthropic => {
                    "the provider is called without a key"
                }
            };
            Fault::new("", "provider_without_keys", detail, hint)
        })
    }
}

/// A provider's key, of characters that a header can carry.
#[derive(Debug, Clone)]
pub struct ProviderKey(Secret);

impl ProviderKey {
    /// Takes a key in. The fault never repeats it.
    ///
    /// # Errors
    /// `malformed_provider_key`; the fault's field is empty.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let fits = (KEY_CHARS_MIN..=KEY_CHARS_MAX).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(Secret::new(text)));
        }
        Err(Fault::new(
            "",
            "malformed_provider_key",
            "the text is no key of a provider",
            "send 16 to 512 visible ASCII characters, as the provider shows them",
        ))
    }

    /// The key, to seal it or to call with it.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.0
    }

    /// The first twelve hexadecimal digits of the key's SHA-256: enough to see which key it is, and
    /// nothing to call with.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest: [u8; 32] = Sha256::digest(self.0.expose()).into();
        hex::encode(&digest[..6])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_without_keys_is_refused_with_the_reason() {
        for one in KeyedProvider::ALL {
            assert_eq!(KeyedProvider::parse(one.as_str()), Ok(one));
        }
        for (text, code) in [
            ("bedrock", "provider_without_keys"),
            ("echo", "provider_without_keys"),
            ("mistral", "unknown_provider"),
            ("OpenAI", "unknown_provider"),
            ("", "unknown_provider"),
        ] {
            assert_eq!(KeyedProvider::parse(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn a_key_fits_a_header_and_no_fault_repeats_it() {
        let key = ProviderKey::parse("sk-test-0123456789").unwrap();
        // printf %s sk-test-0123456789 | sha256sum | cut -c1-12
        assert_eq!(key.fingerprint(), "0d3b56072291");
        assert!(!format!("{key:?}").contains("0123"));
        for text in [
            "",
            "sk-hunter2",
            "sk-hunter2 hunter2 hunter2",
            "sk-hunter2-ä-hunter2",
        ] {
            let fault = ProviderKey::parse(text).unwrap_err();
            assert!(!format!("{fault:?}").contains("hunter2"));
        }
        assert!(ProviderKey::parse(&"k".repeat(512)).is_ok());
        assert!(ProviderKey::parse(&"k".repeat(513)).is_err());
    }
}
