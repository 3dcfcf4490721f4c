//! The secret that signs a tenant's webhooks, in the form of Standard Webhooks.
//!
//! Its text is shown once, when it is made, and stored only sealed. It must never reach a log.

use std::{fmt, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// How long the previous secret goes on signing after a rotation.
pub const OVERLAP: Duration = Duration::from_secs(24 * 3600);

const PREFIX: &str = "whsec_";
const KEY_BYTES: usize = 32;

/// A signing secret: `whsec_` and the base64 of its key, as the Standard Webhooks specification
/// ("Signature scheme") writes it.
#[derive(Clone)]
pub struct WebhookSecret {
    key: Zeroizing<Vec<u8>>,
}

impl WebhookSecret {
    /// Makes a new secret of 32 random bytes.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            key: Zeroizing::new(rand::random::<[u8; KEY_BYTES]>().to_vec()),
        }
    }

    /// Reads a secret back from its text.
    ///
    /// # Errors
    ///
    /// [`InvalidWebhookSecret`] unless the text is `whsec_` and the base64 of 24 to 64 bytes, the
    /// lengths that the specification allows.
    pub fn parse(text: &str) -> Result<Self, InvalidWebhookSecret> {
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidWebhookSecret)?;
        let key = BASE64_STANDARD
            .decode(encoded)
            .map(Zeroizing::new)
            .map_err(|_| InvalidWebhookSecret)?;
        if !(24..=64).contains(&key.len()) {
            return Err(InvalidWebhookSecret);
        }
        Ok(Self { key })
    }

    /// The text that a receiver's verifier takes. To show once, or to seal.
    #[must_use]
    pub fn text(&self) -> Secret {
        Secret::new(format!("{PREFIX}{}", BASE64_STANDARD.encode(&*self.key)))
    }

    /// Signs one attempt: the value of one signature in the header `webhook-signature`.
    ///
    /// `id` is the value of `webhook-id`, `timestamp` that of `webhook-timestamp`, in seconds.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.key));
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
    }
}

/// The secrets that sign a tenant's webhooks now.
#[derive(Debug, Clone)]
pub struct SigningSecrets {
    /// The newest.
    pub current: WebhookSecret,
    /// The one before, while its [`OVERLAP`] lasts.
    pub previous: Option<WebhookSecret>,
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(redacted)")
    }
}

/// The text is not a Standard Webhooks secret. It is left out on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a webhook secret; expected whsec_ and the base64 of 24 to 64 bytes")]
pub struct InvalidWebhookSecret;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_secret_survives_its_text_and_is_never_the_same() {
        let secret = WebhookSecret::generate();
        let text = secret.text();
        assert!(text.expose().starts_with("whsec_"));
        let read = WebhookSecret::parse(text.expose()).unwrap();
        assert_eq!(read.key, secret.key);
        assert_eq!(secret.key.len(), 32);
        assert_ne!(secret.key, WebhookSecret::generate().key);
    }

    #[test]
    fn the_reference_vector_holds() {
        // Of the reference libraries' own test suites.
        let secret = WebhookSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn debug_shows_nothing_of_the_key() {
        let secret = WebhookSecret::generate();
        assert_eq!(format!("{secret:?}"), "WebhookSecret(redacted)");
    }

    #[test]
    fn other_texts_are_refused() {
        let long = format!("whsec_{}", BASE64_STANDARD.encode([7; 65]));
        for text in [
            "",
            "whsec_",
            "whsec_AAAA",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!",
            " whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            &long,
        ] {
            assert!(WebhookSecret::parse(text).is_err(), "{text}");
        }
        assert!(WebhookSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").is_ok());
    }
}
