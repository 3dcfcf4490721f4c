//! Anthropic's Messages.

use reqwest::{
    Client,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::{
    model::{Provider, Usage},
    secret::Secret,
};

use super::{
    ModelAnswer, ModelRequest, Stop, answer,
    config::{AnthropicConfig, join},
    error::ModelError,
    transport::{Outgoing, exchange, json_body, secret_header},
};

/// The version of the interface that this client was written for.
const API_VERSION: &str = "2023-06-01";
/// Messages demand a limit. This one fits every model of the price snapshot, leaves room for the
/// thinking that some cannot switch off, and is written within the default timeout.
const OUTPUT_TOKENS_DEFAULT: u32 = 16_384;

pub(super) async fn ask(
    client: &Client,
    config: &AnthropicConfig,
    key: &Secret,
    request: &ModelRequest<'_>,
) -> Result<ModelAnswer, ModelError> {
    let mut headers = HeaderMap::new();
    headers.insert(
        HeaderName::from_static("x-api-key"),
        secret_header(Provider::Anthropic, "", key)?,
    );
    headers.insert(
        HeaderName::from_static("anthropic-version"),
        HeaderValue::from_static(API_VERSION),
    );
    let outgoing = Outgoing {
        url: join(&config.base_url, "/v1/messages"),
        headers,
        body: json_body(&body(request)),
        secrets: vec![key],
        request_id_header: "request-id",
    };
    let answer = exchange(client, outgoing, parse_answer).await?;
    Ok(answer.or_model(request.model))
}

fn body(request: &ModelRequest<'_>) -> Value {
    let settings = request.settings;
    let limit = settings
        .max_output_tokens()
        .unwrap_or(OUTPUT_TOKENS_DEFAULT);
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(request.model.name()));
    body.insert("max_tokens".to_owned(), json!(limit));
    body.insert(
        "messages".to_owned(),
        json!([{"role": "user", "content": request.input}]),
    );
    if let Some(system) = request.system {
        body.insert("system".to_owned(), json!(system));
    }
    if let Some(temperature) = settings.temperature() {
        body.insert("temperature".to_owned(), json!(temperature));
    }
    if let Some(top_p) = settings.top_p() {
        body.insert("top_p".to_owned(), json!(top_p));
    }
    if !settings.stop_sequences().is_empty() {
        body.insert(
            "stop_sequences".to_owned(),
            json!(settings.stop_sequences()),
        );
    }
    Value::Object(body)
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    content: Vec<Block>,
    stop_reason: Option<String>,
    /// Read apart, so that a strange count does not cost the output.
    usage: Option<Value>,
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

/// Reads a message. Only its text is the output; what the model thought is left out.
///
/// # Errors
/// [`ModelError::Malformed`] for anything else.
pub fn parse_answer(body: &[u8]) -> Result<ModelAnswer, ModelError> {
    let message: Message = serde_json::from_slice(body).map_err(ModelError::not_as_documented)?;
    let output: String = message
        .content
        .into_iter()
        .filter(|block| block.kind == "text")
        .filter_map(|block| block.text)
        .collect();
    let stop = match message.stop_reason.as_deref() {
        Some("end_turn" | "stop_sequence") => Stop::End,
        Some("max_tokens" | "model_context_window_exceeded") => Stop::Length,
        Some("refusal") => Stop::Refused,
        Some(other) => Stop::Other(other.to_owned()),
        None => Stop::Other("none".to_owned()),
    };
    let usage = message
        .usage
        .and_then(|usage| Counts::deserialize(usage).ok())
        .map(|counts| Usage {
            // Already without what was read from the cache or written to it.
            input_tokens: counts.input_tokens,
            cached_input_tokens: counts.cache_read_input_tokens.unwrap_or(0),
            cache_write_tokens: counts.cache_creation_input_tokens.unwrap_or(0),
            output_tokens: counts.output_tokens,
        });
    Ok(answer(&output, usage, stop, message.model.as_deref()))
}

#[cfg(test)]
mod tests {
    use shared::model::{ModelName, ModelSettings};

    use super::*;

    fn parsed(body: Value) -> ModelAnswer {
        parse_answer(&serde_json::to_vec(&body).unwrap()).unwrap()
    }

    #[test]
    fn a_limit_is_always_sent() {
        let model = ModelName::parse("anthropic/claude-sonnet-5").unwrap();
        let plain = ModelSettings::default();
        let mut request = ModelRequest {
            model: &model,
            system: None,
            input: "hi",
            settings: &plain,
        };
        assert_eq!(
            body(&request),
            json!({
                "model": "claude-sonnet-5", "max_tokens": 16_384,
                "messages": [{"role": "user", "content": "hi"}]
            })
        );
        let full = ModelSettings::parse(&json!({
            "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "stop_sequences": ["END"]
        }))
        .unwrap();
        request.settings = &full;
        request.system = Some("be brief");
        assert_eq!(
            body(&request),
            json!({
                "model": "claude-sonnet-5", "max_tokens": 7, "system": "be brief",
                "messages": [{"role": "user", "content": "hi"}],
                "temperature": 0.5, "top_p": 0.9, "stop_sequences": ["END"]
            })
        );
    }

    #[test]
    fn the_text_is_joined_and_thinking_left_out() {
        let answer = parsed(json!({
            "type": "message", "model": "claude-sonnet-5-20260801", "stop_reason": "end_turn",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
            ],
            "usage": {
                "input_tokens": 10, "output_tokens": 20,
                "cache_read_input_tokens": 30, "cache_creation_input_tokens": 40
            }
        }));
        assert_eq!((answer.output.as_str(), answer.stop), ("ab", Stop::End));
        let usage = answer.usage.unwrap();
        assert_eq!(
            (
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.cache_write_tokens,
                usage.output_tokens
            ),
            (10, 30, 40, 20)
        );
    }

    #[test]
    fn what_is_not_a_plain_success_is_said() {
        for (content, reason, expected) in [
            ("x", json!("stop_sequence"), Stop::End),
            ("x", json!("max_tokens"), Stop::Length),
            ("x", json!("model_context_window_exceeded"), Stop::Length),
            ("x", json!("refusal"), Stop::Refused),
            ("", json!("refusal"), Stop::Refused),
            (
                "x",
                json!("pause_turn"),
                Stop::Other("pause_turn".to_owned()),
            ),
            ("x", json!(null), Stop::Other("none".to_owned())),
            ("", json!("end_turn"), Stop::Empty),
            ("", json!("max_tokens"), Stop::Empty),
        ] {
            let body =
                json!({"content": [{"type": "text", "text": content}], "stop_reason": reason});
            assert_eq!(parsed(body).stop, expected, "{content} {reason}");
        }
    }

    #[test]
    fn other_bodies_are_malformed() {
        for body in [
            "",
            "null",
            "{}",
            r#"{"content":"x"}"#,
            r#"{"type":"error"}"#,
        ] {
            let error = parse_answer(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "malformed_answer", "{body}");
        }
    }
}
