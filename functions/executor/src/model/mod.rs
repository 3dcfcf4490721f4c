//! Calls models: one request out, one answer or one classified error back.
//!
//! It talks to the fixed base URLs of its configuration only, never to an address that a tenant
//! chose. It never sleeps, and asks again only with a key that was changed since: whoever calls it
//! records the outcome and decides by [`ModelError::disposition`]. Keys leave it in request headers
//! and nowhere else.

use std::{sync::Arc, time::Duration};

use shared::{
    model::{ModelName, ModelSettings, Provider, Usage},
    provider_key::KeyedProvider,
    secret::Secret,
    secrets::{Kept, SecretArn, SecretsManager},
};
use tracing::warn;

use crate::provider_keys::TenantKeys;

mod anthropic;
mod bedrock;
mod config;
mod echo;
mod error;
mod openai;
mod transport;

pub use config::{
    AnthropicConfig, BedrockAuth, BedrockConfig, OpenAiConfig, ProvidersConfig, StoredKeys,
};
pub use error::{Disposition, ModelError, ProviderFault};
pub use transport::client;

/// The parsers of the providers' answers, for tests that feed them hostile bytes.
pub mod parse {
    pub use super::{
        anthropic::parse_answer as anthropic, bedrock::parse_answer as bedrock,
        openai::parse_answer as openai,
    };
}

/// The status of a key that is not known (RFC 9110, section 15.5.2).
pub(crate) const UNAUTHORIZED: u16 = 401;

const NO_KEY: &str = "there is no key for it; bring your own with PUT /v1/provider-keys, or ask the operator for one";

/// The longest model name, stop word or request id that is taken over from a provider, in bytes.
const WORD_BYTES_MAX: usize = 200;

/// A key that the operator has changed is used after so long at the latest; one that was refused, at
/// once.
const STORED_KEYS_AGE_MAX: Duration = Duration::from_secs(600);

/// The clients of all configured providers.
#[derive(Debug, Clone)]
pub struct Models {
    config: ProvidersConfig,
    client: reqwest::Client,
    stored_keys: Option<Arc<Kept<StoredKeys>>>,
    pub(crate) tenant_keys: Arc<TenantKeys>,
}

/// What to ask, and of which model.
#[derive(Debug, Clone, Copy)]
pub struct ModelRequest<'a> {
    /// Who answers.
    pub model: &'a ModelName,
    /// What the model is told about its part, if anything.
    pub system: Option<&'a str>,
    /// The rendered prompt.
    pub input: &'a str,
    /// How to answer.
    pub settings: &'a ModelSettings,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelAnswer {
    /// The text, whole; without the model's thinking. NUL characters, which Postgres cannot store,
    /// are replaced.
    pub output: String,
    /// What the call used. None when the server did not say, or said what cannot be: then the
    /// cost is unknown too, not zero.
    pub usage: Option<Usage>,
    /// Why the model stopped.
    pub stop: Stop,
    /// The model that answered, as the provider names it; as asked, where the provider is silent.
    pub model: String,
    /// The provider's id of this call, for its support.
    pub request_id: Option<String>,
}

/// Why a model stopped. Only [`Stop::End`] is a plain success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The model was done.
    End,
    /// A token limit cut the output: keep it, and mark it `output_truncated`.
    Length,
    /// The model refused. The output is its refusal, if it gave one: the run fails.
    Refused,
    /// A filter or a guardrail of the provider stopped the output: the run fails.
    Filtered,
    /// There is no text at all, whatever the provider gave as its reason: the run fails.
    Empty,
    /// Another reason, in the provider's word: keep the output, and say the word in the run's log.
    Other(String),
}

impl Stop {
    /// The error code and message of the run that this stop fails, or None where the output is
    /// worth keeping. None of these failures is mended by asking again.
    #[must_use]
    pub fn failure(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Refused => Some((
                "model_refused",
                "the model refused to answer; change the prompt or choose another model",
            )),
            Self::Filtered => Some((
                "output_filtered",
                "the provider's filter stopped the output; change the prompt or choose another model",
            )),
            Self::Empty => Some((
                "output_empty",
                "the model wrote no text; if it thinks before it writes, raise max_output_tokens",
            )),
            Self::End | Self::Length | Self::Other(_) => None,
        }
    }

    /// Whether a token limit cut the output.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        match self {
            Self::Length => true,
            Self::End | Self::Refused | Self::Filtered | Self::Empty | Self::Other(_) => false,
        }
    }
}

impl Models {
    /// Clients of the configured providers over one HTTP client, which should come from
    /// [`client`]: it follows no redirects and has a connect timeout.
    #[must_use]
    pub fn new(config: ProvidersConfig, client: reqwest::Client) -> Self {
        Self {
            config,
            client,
            stored_keys: None,
            tenant_keys: Arc::new(TenantKeys::default()),
        }
    }

    /// The same, with the installation's keys in a secret.
    #[must_use]
    pub fn with_stored_keys(self, manager: SecretsManager, arn: SecretArn) -> Self {
        let age_max = Some(STORED_KEYS_AGE_MAX);
        let kept = Kept::new(manager, arn, StoredKeys::read, age_max);
        Self {
            stored_keys: Some(Arc::new(kept)),
            ..self
        }
    }

    /// Fetches the installation's keys ahead of the first call. Tenants' own keys work without them,
    /// so that they cannot be fetched is no reason not to start.
    pub async fn fetch_keys(&self) {
        if let Some(stored) = &self.stored_keys
            && let Err(error) = stored.get().await
        {
            warn!(%error, "the providers' keys cannot be fetched; the first call tries again");
        }
    }

    /// Asks once, with the installation's key. Takes no longer than the deadline, connecting and
    /// reading included.
    ///
    /// # Errors
    /// Every [`ModelError`] but those of a tenant's key. After some the call may still have been
    /// billed: [`ModelError::outcome_unknown`].
    pub async fn call(
        &self,
        request: &ModelRequest<'_>,
        deadline: Duration,
    ) -> Result<ModelAnswer, ModelError> {
        tokio::time::timeout(deadline, self.ask(request))
            .await
            .unwrap_or(Err(ModelError::Timeout))
    }

    /// The same, with a tenant's own key.
    ///
    /// # Errors
    /// As [`Models::call`], and [`ModelError::TenantKeyRefused`].
    pub(crate) async fn call_with(
        &self,
        key: &Secret,
        request: &ModelRequest<'_>,
        deadline: Duration,
    ) -> Result<ModelAnswer, ModelError> {
        tokio::time::timeout(deadline, self.ask_with(Some(key), request))
            .await
            .unwrap_or(Err(ModelError::Timeout))
            .map_err(ModelError::of_a_tenants_key)
    }

    async fn ask(&self, request: &ModelRequest<'_>) -> Result<ModelAnswer, ModelError> {
        let Some(provider) = KeyedProvider::of(request.model.provider()) else {
            return self.ask_with(None, request).await;
        };
        let Some(stored) = &self.stored_keys else {
            return self.ask_with(self.config.key(provider), request).await;
        };
        let keys = stored.get().await.map_err(|error| {
            warn!(%error, "no key for the provider");
            ModelError::KeyUnavailable
        })?;
        match self.ask_with(keys.of(provider), request).await {
            Err(ModelError::Auth(fault)) if fault.status == UNAUTHORIZED => {
                match stored.instead_of(&keys).await {
                    Some(newer) => self.ask_with(newer.of(provider), request).await,
                    None => Err(ModelError::Auth(fault)),
                }
            }
            other => other,
        }
    }

    async fn ask_with(
        &self,
        key: Option<&Secret>,
        request: &ModelRequest<'_>,
    ) -> Result<ModelAnswer, ModelError> {
        let provider = request.model.provider();
        let not_configured = |reason| ModelError::NotConfigured { provider, reason };
        match provider {
            Provider::OpenAi => {
                let config = self.config.openai.as_ref();
                let config = config.filter(|config| key.is_some() || !config.is_openai());
                let config = config.ok_or_else(|| not_configured(NO_KEY))?;
                openai::ask(&self.client, config, key, request).await
            }
            Provider::Anthropic => {
                let config = self.config.anthropic.as_ref().zip(key);
                let (config, key) = config.ok_or_else(|| not_configured(NO_KEY))?;
                anthropic::ask(&self.client, config, key, request).await
            }
            Provider::Bedrock => {
                let config = self.config.bedrock.as_ref();
                let config = config.ok_or_else(|| {
                    not_configured("set AWS_REGION and AWS credentials or AWS_BEARER_TOKEN_BEDROCK")
                })?;
                bedrock::ask(&self.client, config, request).await
            }
            Provider::Echo if self.config.allow_echo => Ok(echo::answer_to(request)),
            Provider::Echo => Err(not_configured(
                "echo is off in production; choose a real model",
            )),
        }
    }
}

impl ModelAnswer {
    /// Fills in the model that was asked where the provider did not say which one answered.
    fn or_model(mut self, asked: &ModelName) -> Self {
        if self.model.is_empty() {
            asked.name().clone_into(&mut self.model);
        }
        self
    }
}

/// Puts an answer together; whatever the provider says, an answer without text is `Empty`, and one
/// that was refused or filtered stays so.
fn answer(output: &str, usage: Option<Usage>, stop: Stop, model: Option<&str>) -> ModelAnswer {
    let blank = output.trim().is_empty();
    let stop = match stop {
        Stop::End | Stop::Length | Stop::Empty | Stop::Other(_) if blank => Stop::Empty,
        Stop::Other(word) => Stop::Other(bounded(&word)),
        Stop::End | Stop::Length | Stop::Refused | Stop::Filtered | Stop::Empty => stop,
    };
    ModelAnswer {
        output: output.replace('\0', "\u{fffd}"),
        usage: usage.filter(is_plausible),
        stop,
        model: bounded(model.unwrap_or_default()),
        request_id: None,
    }
}

fn is_plausible(usage: &Usage) -> bool {
    [
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
    ]
    .into_iter()
    .all(|tokens| tokens <= Usage::TOKENS_MAX)
}

/// A provider's word, without control characters and short enough to store.
fn bounded(word: &str) -> String {
    let end = word.floor_char_boundary(WORD_BYTES_MAX);
    word[..end].replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse::openai(&bytes);
            let _ = parse::anthropic(&bytes);
            let _ = parse::bedrock(&bytes);
        }

        #[test]
        fn answers_with_any_words_and_numbers_never_panic(
            text in any::<String>(), reason in any::<String>(), a in any::<f64>(), b in any::<u64>(), c in any::<i64>()
        ) {
            let usage = json!({
                "prompt_tokens": a, "completion_tokens": b, "prompt_tokens_details": {"cached_tokens": c},
                "input_tokens": b, "output_tokens": c, "cache_read_input_tokens": b,
                "inputTokens": b, "outputTokens": b, "cacheReadInputTokens": c,
            });
            let body = json!({
                "model": text, "usage": usage, "stop_reason": reason, "stopReason": reason,
                "choices": [{"message": {"content": text}, "finish_reason": reason}],
                "content": [{"type": "text", "text": text}],
                "output": {"message": {"content": [{"text": text}]}},
            });
            let bytes = serde_json::to_vec(&body).unwrap();
            for answer in [parse::openai(&bytes), parse::anthropic(&bytes), parse::bedrock(&bytes)] {
                let answer = answer.unwrap();
                prop_assert_eq!(&answer.output, &text.replace('\0', "\u{fffd}"));
                prop_assert!(answer.model.len() <= WORD_BYTES_MAX + 3);
                let blank = answer.output.trim().is_empty();
                prop_assert!(!blank || answer.stop.failure().is_some());
                prop_assert!(blank || answer.stop != Stop::Empty);
            }
        }
    }
}
