//! Which providers may be called, where they are, and with which keys.
//!
//! Read once, at start, but for keys that the operator keeps in Secrets Manager. It is the operator's:
//! nothing in it comes from a tenant.

use reqwest::Url;
use serde::Deserialize;
use shared::{fault::Fault, provider_key::KeyedProvider, secret::Secret};

const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";
const ANTHROPIC_BASE_URL: &str = "https://api.anthropic.com";

/// The providers that this process may call.
#[derive(Debug, Clone, Default)]
pub struct ProvidersConfig {
    /// OpenAI, or a server that speaks its chat completions.
    pub openai: Option<OpenAiConfig>,
    /// Anthropic.
    pub anthropic: Option<AnthropicConfig>,
    /// Amazon Bedrock.
    pub bedrock: Option<BedrockConfig>,
    /// Whether the offline provider answers; never in production.
    pub allow_echo: bool,
}

/// OpenAI, or a server that speaks its chat completions.
#[derive(Debug, Clone)]
pub struct OpenAiConfig {
    /// The installation's key, where it has one; a server of one's own may do without.
    pub key: Option<Secret>,
    /// Up to and with `/v1`.
    pub base_url: Url,
}

impl OpenAiConfig {
    /// Whether this is OpenAI itself, which answers nobody without a key.
    pub(super) fn is_openai(&self) -> bool {
        match self.base_url.host_str() {
            Some(host) => host == "openai.com" || host.ends_with(".openai.com"),
            None => false,
        }
    }
}

/// Anthropic.
#[derive(Debug, Clone)]
pub struct AnthropicConfig {
    /// The installation's key, where it has one.
    pub key: Option<Secret>,
    /// Up to but without `/v1`.
    pub base_url: Url,
}

/// Amazon Bedrock in one Region.
#[derive(Debug, Clone)]
pub struct BedrockConfig {
    /// The Region, which is also signed.
    pub region: String,
    /// The runtime endpoint.
    pub base_url: Url,
    /// How calls prove who sends them.
    pub auth: BedrockAuth,
}

/// How a Bedrock call proves who sends it.
#[derive(Debug, Clone)]
pub enum BedrockAuth {
    /// Signature Version 4, with the keys that Lambda gives a function, or a user's.
    SigV4 {
        /// The public half.
        access_key_id: String,
        /// The secret half.
        secret_access_key: Secret,
        /// Given with temporary keys.
        session_token: Option<Secret>,
    },
    /// A Bedrock API key.
    Bearer(Secret),
}

/// The installation's keys, as the operator keeps them in a secret.
#[derive(Debug)]
pub struct StoredKeys {
    openai: Option<Secret>,
    anthropic: Option<Secret>,
}

impl StoredKeys {
    /// Reads `{"openai": "…", "anthropic": "…"}`; a key that is missing or empty is none.
    ///
    /// # Errors
    /// What the secret must hold; never what it holds.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Keys {
            openai: Option<String>,
            anthropic: Option<String>,
        }
        let keys: Keys = serde_json::from_str(text)
            .map_err(|_| "must hold JSON with the keys of openai and anthropic as texts")?;
        let key = |key: Option<String>| {
            let key = key.map(Secret::new)?;
            let trimmed = key.expose().trim();
            (!trimmed.is_empty()).then(|| Secret::new(trimmed))
        };
        Ok(Self {
            openai: key(keys.openai),
            anthropic: key(keys.anthropic),
        })
    }

    pub(super) fn of(&self, provider: KeyedProvider) -> Option<&Secret> {
        match provider {
            KeyedProvider::OpenAi => self.openai.as_ref(),
            KeyedProvider::Anthropic => self.anthropic.as_ref(),
        }
    }
}

impl ProvidersConfig {
    /// The installation's key from its environment.
    pub(super) fn key(&self, provider: KeyedProvider) -> Option<&Secret> {
        match provider {
            KeyedProvider::OpenAi => self.openai.as_ref()?.key.as_ref(),
            KeyedProvider::Anthropic => self.anthropic.as_ref()?.key.as_ref(),
        }
    }

    /// Reads the configuration through `var`, which gives a variable's text; an empty one counts
    /// as unset. Without a key of the installation's, only tenants that bring their own call a provider.
    ///
    /// - `OPENAI_API_KEY`, `OPENAI_BASE_URL` (a base URL of one's own needs no key)
    /// - `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL`
    /// - `AWS_REGION` with `AWS_BEARER_TOKEN_BEDROCK`, or with `AWS_ACCESS_KEY_ID`,
    ///   `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; `AWS_ENDPOINT_URL_BEDROCK_RUNTIME`
    ///
    /// # Errors
    /// All faults at once; each fault's field is the variable.
    pub fn from_vars(
        var: impl Fn(&str) -> Option<String>,
        allow_echo: bool,
    ) -> Result<Self, Vec<Fault>> {
        let text = |name: &str| {
            let value = var(name)?;
            let value = value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let mut faults = Vec::new();
        let mut url = |name: &str, default: String| {
            base_url(name, &text(name).unwrap_or(default))
                .map_err(|fault| faults.push(fault))
                .ok()
        };
        let openai_url = url("OPENAI_BASE_URL", OPENAI_BASE_URL.to_owned());
        let anthropic_url = url("ANTHROPIC_BASE_URL", ANTHROPIC_BASE_URL.to_owned());
        let region = text("AWS_REGION").unwrap_or_default();
        let bedrock_url = url(
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
            bedrock_endpoint(&region),
        );
        if !region
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            faults.push(Fault::new(
                "AWS_REGION",
                "malformed_region",
                "the text is not a Region's name",
                "set it to a name such as eu-central-1",
            ));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            openai: openai_url.map(|base_url| OpenAiConfig {
                key: text("OPENAI_API_KEY").map(Secret::new),
                base_url,
            }),
            anthropic: anthropic_url.map(|base_url| AnthropicConfig {
                key: text("ANTHROPIC_API_KEY").map(Secret::new),
                base_url,
            }),
            bedrock: bedrock_url
                .zip(bedrock_auth(text))
                .filter(|_| !region.is_empty())
                .map(|(base_url, auth)| BedrockConfig {
                    region,
                    base_url,
                    auth,
                }),
            allow_echo,
        })
    }
}

fn bedrock_auth(text: impl Fn(&str) -> Option<String>) -> Option<BedrockAuth> {
    if let Some(token) = text("AWS_BEARER_TOKEN_BEDROCK") {
        return Some(BedrockAuth::Bearer(Secret::new(token)));
    }
    Some(BedrockAuth::SigV4 {
        access_key_id: text("AWS_ACCESS_KEY_ID")?,
        secret_access_key: Secret::new(text("AWS_SECRET_ACCESS_KEY")?),
        session_token: text("AWS_SESSION_TOKEN").map(Secret::new),
    })
}

fn bedrock_endpoint(region: &str) -> String {
    // Without a Region Bedrock is not configured, and the address is only parsed.
    let region = if region.is_empty() { "none" } else { region };
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("https://bedrock-runtime.{region}.{domain}")
}

fn base_url(name: &str, text: &str) -> Result<Url, Fault> {
    let fault = |detail: &str| {
        Fault::new(
            name,
            "malformed_base_url",
            detail,
            "set it to an http or https address without user, query or fragment",
        )
    };
    let url = Url::parse(text).map_err(|_| fault("the text is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(fault("the scheme is neither http nor https"));
    }
    // A password in the address would be printed with it.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("the address contains a user"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(fault("the address contains a query or a fragment"));
    }
    Ok(url)
}

/// An address below a base URL, which may end with a slash or without.
pub(super) fn join(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<ProvidersConfig, Vec<Fault>> {
        let vars: HashMap<_, _> = vars.iter().copied().collect();
        ProvidersConfig::from_vars(|name| vars.get(name).map(|&text| text.to_owned()), false)
    }

    #[test]
    fn nothing_has_a_key_unless_it_is_given() {
        let config = read(&[("AWS_REGION", "eu-central-1"), ("OPENAI_API_KEY", "  ")]).unwrap();
        for provider in KeyedProvider::ALL {
            assert!(config.key(provider).is_none());
        }
        assert!(config.openai.unwrap().is_openai());
        assert!(config.bedrock.is_none() && !config.allow_echo);
    }

    #[test]
    fn keys_bring_the_official_addresses() {
        let config = read(&[
            ("OPENAI_API_KEY", "sk-1\n"),
            ("ANTHROPIC_API_KEY", "sk-2"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "AKIA1"),
            ("AWS_SECRET_ACCESS_KEY", "s3"),
        ])
        .unwrap();
        let openai = config.openai.unwrap();
        assert_eq!(openai.base_url.as_str(), "https://api.openai.com/v1");
        assert_eq!(openai.key.as_ref().unwrap().expose(), "sk-1");
        let anthropic = config.anthropic.unwrap();
        assert_eq!(
            join(&anthropic.base_url, "/v1/messages").as_str(),
            "https://api.anthropic.com/v1/messages"
        );
        let bedrock = config.bedrock.unwrap();
        assert_eq!(
            bedrock.base_url.as_str(),
            "https://bedrock-runtime.eu-central-1.amazonaws.com/"
        );
        assert!(matches!(
            bedrock.auth,
            BedrockAuth::SigV4 {
                session_token: None,
                ..
            }
        ));
    }

    #[test]
    fn a_server_of_ones_own_needs_no_key_and_a_token_wins_over_keys() {
        let config = read(&[
            ("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1/"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "AKIA1"),
            ("AWS_SECRET_ACCESS_KEY", "s3"),
            ("AWS_BEARER_TOKEN_BEDROCK", "token"),
            ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "http://127.0.0.1:9"),
        ])
        .unwrap();
        let openai = config.openai.unwrap();
        assert!(openai.key.is_none() && !openai.is_openai());
        assert_eq!(
            join(&openai.base_url, "/x").as_str(),
            "http://127.0.0.1:11434/v1/x"
        );
        let bedrock = config.bedrock.unwrap();
        assert_eq!(bedrock.base_url.as_str(), "http://127.0.0.1:9/");
        assert!(matches!(bedrock.auth, BedrockAuth::Bearer(_)));
    }

    #[test]
    fn a_secret_with_keys_is_read_and_never_repeated() {
        let keys = StoredKeys::read(r#"{"openai": "sk-1\n", "anthropic": "", "placeholder": "x"}"#);
        let keys = keys.unwrap();
        let openai = keys.of(KeyedProvider::OpenAi).unwrap();
        assert_eq!(openai.expose(), "sk-1");
        assert!(keys.of(KeyedProvider::Anthropic).is_none());
        assert!(!format!("{keys:?}").contains("sk-1"));
        for text in ["", "sk-hunter2", r#"{"openai": ["sk-hunter2"]}"#, "[]x"] {
            let fault = StoredKeys::read(text).unwrap_err();
            assert!(!fault.contains("hunter2"));
        }
    }

    #[test]
    fn every_bad_variable_is_said_at_once() {
        let faults = read(&[
            ("OPENAI_BASE_URL", "https://user:pw@example.com"),
            ("ANTHROPIC_BASE_URL", "ftp://example.com"),
            ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "localhost"),
            ("AWS_REGION", "evil.example/"),
        ])
        .unwrap_err();
        let fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "OPENAI_BASE_URL",
                "ANTHROPIC_BASE_URL",
                "AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
                "AWS_REGION"
            ]
        );
        assert!(!format!("{faults:?}").contains("pw@"));
    }
}
