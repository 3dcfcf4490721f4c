//! Names of models, the settings of a call, and what a call used.
//!
//! Pure: it knows which providers exist and what a well-formed name is. Whether a model is known
//! and what it costs is the matter of [`crate::price`]; calling it is the executor's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, Type},
    },
};

use crate::{fault::Fault, fields::Fields};

/// The longest model name, provider and slash included, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 100;

/// Who answers a model call. The set is closed: each one has a client of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Provider {
    /// Chat completions, of OpenAI or of any server that speaks the same protocol.
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
    /// Amazon Bedrock's Converse.
    Bedrock,
    /// Offline: repeats the input and says that no model was called.
    Echo,
}

impl Provider {
    /// Every provider, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Anthropic, Self::Bedrock, Self::Echo];

    /// The word before the slash in a model's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Bedrock => "bedrock",
            Self::Echo => "echo",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A well-formed `provider/name`, for example `anthropic/claude-sonnet-5`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ModelName {
    provider: Provider,
    name: String,
}

impl ModelName {
    /// Reads `provider/name`.
    ///
    /// The name starts with a letter or a digit and goes on with these and `. _ : / @ + -`, which
    /// covers dated models, fine-tuned ones, and Bedrock's ids, profiles and ARNs.
    ///
    /// # Errors
    /// `malformed_model` for text of another form, `unknown_provider` for a provider that is none
    /// of [`Provider::ALL`]. The fault's field is empty.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > MODEL_NAME_BYTES_MAX {
            return Err(malformed(format!(
                "the model's name has {} bytes",
                text.len()
            )));
        }
        let Some((provider, name)) = text.split_once('/') else {
            return Err(malformed(format!("`{text}` names no provider")));
        };
        let Some(provider) = Provider::ALL
            .into_iter()
            .find(|known| known.as_str() == provider)
        else {
            return Err(Fault::new(
                "",
                "unknown_provider",
                format!("no provider is called `{provider}`"),
                format!(
                    "use one of {}",
                    Provider::ALL.map(Provider::as_str).join(", ")
                ),
            ));
        };
        let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        let goes_on_well = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:/@+-".contains(&b));
        if !begins_well || !goes_on_well {
            return Err(malformed(format!("`{text}` is not a model's name")));
        }
        Ok(Self {
            provider,
            name: name.to_owned(),
        })
    }

    /// Who answers calls of this model.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The name as the provider knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn malformed(detail: String) -> Fault {
    Fault::new(
        "",
        "malformed_model",
        detail,
        format!(
            "send `provider/name` in at most {MODEL_NAME_BYTES_MAX} bytes, \
             for example `openai/gpt-5-mini`"
        ),
    )
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.name)
    }
}

impl FromStr for ModelName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for ModelName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).map_err(|fault| fault.detail)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.to_string()
    }
}

impl PartialSchema for ModelName {
    fn schema() -> RefOr<Schema> {
        let providers = Provider::ALL.map(Provider::as_str).join("|");
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("A model, as `provider/name`"))
            .max_length(Some(MODEL_NAME_BYTES_MAX))
            .pattern(Some(format!(
                "^({providers})/[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"
            )))
            .examples(["openai/gpt-5-mini", "anthropic/claude-sonnet-5"])
            .into()
    }
}

impl ToSchema for ModelName {}

/// The highest `temperature`; Anthropic and Bedrock stop at 1.
const TEMPERATURE_MAX: f64 = 2.0;
/// The highest `max_output_tokens`: above what any model in the price snapshot can write.
const OUTPUT_TOKENS_MAX: u32 = 1_000_000;
/// OpenAI's limit on stop sequences, the lowest of the providers'.
const STOP_SEQUENCES_MAX: usize = 4;
/// The longest stop sequence, in bytes.
const STOP_SEQUENCE_BYTES_MAX: usize = 64;

/// A text at which the model stops, at most 64 bytes.
#[derive(ToSchema)]
#[schema(min_length = 1, max_length = 64, pattern = "^[^\\u0000]*$")]
#[expect(dead_code, reason = "describes an item of `stop_sequences`")]
struct StopSequence(String);

/// How a model is to answer; what is unset is left to the provider.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Value", deny_unknown_fields)]
pub struct ModelSettings {
    /// How freely the model chooses its words, 0 to 2; Anthropic and Bedrock allow 0 to 1, and
    /// some models allow no choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// The share of probability that the model chooses from, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Where the output is cut; what a model thinks before it writes counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    max_output_tokens: Option<u32>,
    /// Texts at which the model stops; they are not part of the output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<StopSequence>>, max_items = 4)]
    stop_sequences: Vec<String>,
}

impl ModelSettings {
    /// Reads the settings from a request. A null is the same as nothing.
    ///
    /// # Errors
    /// All faults at once. Their fields are relative to the settings.
    pub fn parse(value: &Value) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(value);
        let temperature = fields.optional("temperature").number(0.0..=TEMPERATURE_MAX);
        let top_p = fields.optional("top_p").number(0.0..=1.0);
        let max_output_tokens = fields
            .optional("max_output_tokens")
            .integer(1..=OUTPUT_TOKENS_MAX);
        // A sequence of white space alone is empty; Anthropic would refuse it.
        let stop_sequences =
            fields
                .optional("stop_sequences")
                .list(0..=STOP_SEQUENCES_MAX, |item| {
                    item.text_bytes(1..=STOP_SEQUENCE_BYTES_MAX)
                        .map(str::to_owned)
                });
        fields.finish(Some(Self {
            temperature,
            top_p,
            max_output_tokens,
            stop_sequences: stop_sequences.unwrap_or_default(),
        }))
    }

    /// What this provider is known to refuse in settings that are fine for others. Requests are
    /// checked by `Catalog::settings_faults`, which asks this too.
    #[must_use]
    pub fn faults_for(&self, provider: Provider) -> Vec<Fault> {
        let low = match provider {
            Provider::Anthropic | Provider::Bedrock => true,
            Provider::OpenAi | Provider::Echo => false,
        };
        match self.temperature {
            Some(temperature) if low && temperature > 1.0 => vec![Fault::new(
                "temperature",
                "out_of_range",
                format!("{provider} refuses a temperature of {temperature}"),
                format!("send at most 1 for {provider}"),
            )],
            Some(_) | None => Vec::new(),
        }
    }

    /// The sampling temperature.
    #[must_use]
    pub fn temperature(&self) -> Option<f64> {
        self.temperature
    }

    /// The nucleus sampling share.
    #[must_use]
    pub fn top_p(&self) -> Option<f64> {
        self.top_p
    }

    /// Where the output is cut.
    #[must_use]
    pub fn max_output_tokens(&self) -> Option<u32> {
        self.max_output_tokens
    }

    /// Texts at which the model stops.
    #[must_use]
    pub fn stop_sequences(&self) -> &[String] {
        &self.stop_sequences
    }
}

impl TryFrom<Value> for ModelSettings {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        Self::parse(&value).map_err(|faults| {
            let details: Vec<_> = faults.into_iter().map(|fault| fault.detail).collect();
            details.join("; ")
        })
    }
}

/// The tokens of one call, each counted in one place only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Input that was neither read from a cache nor written to one.
    pub input_tokens: u64,
    /// Input read from the provider's cache.
    pub cached_input_tokens: u64,
    /// Input written to the provider's cache.
    pub cache_write_tokens: u64,
    /// Output, with what the model thought before it wrote.
    pub output_tokens: u64,
}

impl Usage {
    /// The most tokens that one counter may hold. A server that claims more is not believed;
    /// the bound keeps every cost within what the cost column can store.
    pub const TOKENS_MAX: u64 = 100_000_000;

    /// All input: new, read from the cache, written to it.
    #[must_use]
    pub fn input_total(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.cached_input_tokens)
            .saturating_add(self.cache_write_tokens)
    }

    /// Input and output together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input_total().saturating_add(self.output_tokens)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_is_split_at_its_first_slash() {
        for (text, provider, name) in [
            ("openai/gpt-5-mini", Provider::OpenAi, "gpt-5-mini"),
            (
                "openai/meta-llama/Llama-3.1-8B-Instruct",
                Provider::OpenAi,
                "meta-llama/Llama-3.1-8B-Instruct",
            ),
            (
                "openai/ft:gpt-4o:acme::x1",
                Provider::OpenAi,
                "ft:gpt-4o:acme::x1",
            ),
            (
                "bedrock/eu.anthropic.claude-haiku-4-5-20251001-v1:0",
                Provider::Bedrock,
                "eu.anthropic.claude-haiku-4-5-20251001-v1:0",
            ),
            ("echo/demo", Provider::Echo, "demo"),
        ] {
            let model = ModelName::parse(text).unwrap();
            assert_eq!((model.provider(), model.name()), (provider, name));
            assert_eq!(model.to_string(), text);
            let json = serde_json::to_value(&model).unwrap();
            assert_eq!(json, json!(text));
            assert_eq!(serde_json::from_value::<ModelName>(json).unwrap(), model);
        }
    }

    #[test]
    fn bad_names_are_refused_with_their_code() {
        let long = format!("openai/{}", "a".repeat(94));
        for (text, code) in [
            ("gpt-4o", "malformed_model"),
            ("", "malformed_model"),
            ("openai/", "malformed_model"),
            ("bedrock/..", "malformed_model"),
            ("bedrock/../../secrets", "malformed_model"),
            ("openai//x", "malformed_model"),
            ("openai/a b", "malformed_model"),
            ("openai/a%2e", "malformed_model"),
            ("openai/modèle", "malformed_model"),
            ("openai/x\r\nhost: evil", "malformed_model"),
            (long.as_str(), "malformed_model"),
            ("OpenAI/gpt-4o", "unknown_provider"),
            ("mistral/large", "unknown_provider"),
        ] {
            let fault = ModelName::parse(text).unwrap_err();
            assert_eq!(fault.code, code, "{text}");
            assert!(!fault.hint.is_empty());
        }
        assert!(ModelName::parse(&format!("openai/{}", "a".repeat(93))).is_ok());
        assert!(serde_json::from_value::<ModelName>(json!("gpt-4o")).is_err());
    }

    #[test]
    fn settings_are_read_whole_and_come_back_the_same() {
        let given = json!({
            "temperature": 0, "top_p": 0.9, "max_output_tokens": 500, "stop_sequences": ["END"]
        });
        let settings = ModelSettings::parse(&given).unwrap();
        assert_eq!(settings.temperature(), Some(0.0));
        assert_eq!(settings.top_p(), Some(0.9));
        assert_eq!(settings.max_output_tokens(), Some(500));
        assert_eq!(settings.stop_sequences(), ["END"]);
        let stored = serde_json::to_value(&settings).unwrap();
        assert_eq!(
            serde_json::from_value::<ModelSettings>(stored).unwrap(),
            settings
        );
        let empty = ModelSettings::parse(&json!({"top_p": null})).unwrap();
        assert_eq!(empty, ModelSettings::default());
        assert_eq!(serde_json::to_value(&empty).unwrap(), json!({}));
    }

    #[test]
    fn every_fault_of_the_settings_is_said_at_once() {
        let faults = ModelSettings::parse(&json!({
            "temperature": 2.1, "top_p": "high", "max_output_tokens": 0,
            "stop_sequences": ["ok", " "], "seed": 1
        }))
        .unwrap_err();
        let mut said: Vec<_> = faults.iter().map(|f| (f.field.as_str(), f.code)).collect();
        said.sort_unstable();
        assert_eq!(
            said,
            [
                ("max_output_tokens", "out_of_range"),
                ("seed", "unknown_field"),
                ("stop_sequences[1]", "empty"),
                ("temperature", "out_of_range"),
                ("top_p", "wrong_type"),
            ]
        );
        for value in [json!(null), json!([]), json!("x")] {
            assert_eq!(
                ModelSettings::parse(&value).unwrap_err()[0].code,
                "wrong_type"
            );
        }
        let many = json!({"stop_sequences": ["a", "b", "c", "d", "e"]});
        assert_eq!(ModelSettings::parse(&many).unwrap_err()[0].code, "too_many");
        for value in [json!(-1), json!(1_000_001), json!(1e300)] {
            let faults = ModelSettings::parse(&json!({ "max_output_tokens": value })).unwrap_err();
            assert_eq!(faults[0].code, "out_of_range");
        }
    }

    #[test]
    fn a_temperature_that_the_provider_refuses_is_said_when_saving() {
        let hot = ModelSettings::parse(&json!({"temperature": 1.5})).unwrap();
        assert_eq!(hot.faults_for(Provider::Anthropic)[0].field, "temperature");
        assert_eq!(hot.faults_for(Provider::Bedrock).len(), 1);
        assert!(hot.faults_for(Provider::OpenAi).is_empty());
        let cool = ModelSettings::parse(&json!({"temperature": 1})).unwrap();
        assert!(cool.faults_for(Provider::Anthropic).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>()) {
            if let Ok(model) = ModelName::parse(&text) {
                prop_assert_eq!(model.to_string(), text);
            }
        }
    }
}
