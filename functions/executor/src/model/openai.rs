//! OpenAI's chat completions, and servers that speak the same protocol.

use reqwest::{
    Client,
    header::{AUTHORIZATION, HeaderMap},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::{
    model::{Provider, Usage},
    secret::Secret,
};

use super::{
    ModelAnswer, ModelRequest, Stop, answer,
    config::{OpenAiConfig, join},
    error::ModelError,
    transport::{Outgoing, exchange, json_body, secret_header},
};

pub(super) async fn ask(
    client: &Client,
    config: &OpenAiConfig,
    key: Option<&Secret>,
    request: &ModelRequest<'_>,
) -> Result<ModelAnswer, ModelError> {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let value = secret_header(Provider::OpenAi, "Bearer ", key)?;
        headers.insert(AUTHORIZATION, value);
    }
    let outgoing = Outgoing {
        url: join(&config.base_url, "/chat/completions"),
        headers,
        body: json_body(&body(request, limit_field(config))),
        secrets: key.into_iter().collect(),
        request_id_header: "x-request-id",
    };
    let answer = exchange(client, outgoing, parse_answer).await?;
    Ok(answer.or_model(request.model))
}

/// OpenAI's reasoning models refuse the old name of the limit, and many other servers do not know
/// the new one.
fn limit_field(config: &OpenAiConfig) -> &'static str {
    if config.is_openai() {
        "max_completion_tokens"
    } else {
        "max_tokens"
    }
}

fn body(request: &ModelRequest<'_>, limit_field: &str) -> Value {
    let settings = request.settings;
    let mut messages = Vec::new();
    if let Some(system) = request.system {
        messages.push(json!({"role": "system", "content": system}));
    }
    messages.push(json!({"role": "user", "content": request.input}));
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(request.model.name()));
    body.insert("messages".to_owned(), Value::Array(messages));
    if let Some(temperature) = settings.temperature() {
        body.insert("temperature".to_owned(), json!(temperature));
    }
    if let Some(top_p) = settings.top_p() {
        body.insert("top_p".to_owned(), json!(top_p));
    }
    if let Some(limit) = settings.max_output_tokens() {
        body.insert(limit_field.to_owned(), json!(limit));
    }
    if !settings.stop_sequences().is_empty() {
        body.insert("stop".to_owned(), json!(settings.stop_sequences()));
    }
    Value::Object(body)
}

#[derive(Deserialize)]
struct Completion {
    model: Option<String>,
    choices: Vec<Choice>,
    /// Read apart, so that a strange count does not cost the output.
    usage: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Content>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptCounts>,
}

#[derive(Deserialize)]
struct PromptCounts {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

/// Reads a completion.
///
/// # Errors
/// [`ModelError::Malformed`] for anything else.
pub fn parse_answer(body: &[u8]) -> Result<ModelAnswer, ModelError> {
    let completion: Completion =
        serde_json::from_slice(body).map_err(ModelError::not_as_documented)?;
    let choice = completion
        .choices
        .into_iter()
        .next()
        .ok_or_else(|| ModelError::Malformed {
            reason: "it has no choices".to_owned(),
        })?;
    let usage = completion
        .usage
        .and_then(|usage| Counts::deserialize(usage).ok())
        .map(usage);
    let model = completion.model.as_deref();
    if let Some(refusal) = choice.message.refusal.filter(|text| !text.is_empty()) {
        return Ok(answer(&refusal, usage, Stop::Refused, model));
    }
    let output = match choice.message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
        None => String::new(),
    };
    let stop = match choice.finish_reason.as_deref() {
        Some("stop") => Stop::End,
        Some("length") => Stop::Length,
        Some("content_filter") => Stop::Filtered,
        Some(other) => Stop::Other(other.to_owned()),
        None => Stop::Other("none".to_owned()),
    };
    Ok(answer(&output, usage, stop, model))
}

/// `prompt_tokens` includes what was read from the cache and written to it.
fn usage(counts: Counts) -> Usage {
    let details = counts.prompt_tokens_details;
    let cached = details.as_ref().and_then(|d| d.cached_tokens).unwrap_or(0);
    let written = details.and_then(|d| d.cache_write_tokens).unwrap_or(0);
    Usage {
        input_tokens: counts
            .prompt_tokens
            .saturating_sub(cached)
            .saturating_sub(written),
        cached_input_tokens: cached,
        cache_write_tokens: written,
        output_tokens: counts.completion_tokens,
    }
}

#[cfg(test)]
mod tests {
    use shared::model::{ModelName, ModelSettings};

    use super::*;

    fn parsed(body: Value) -> ModelAnswer {
        parse_answer(&serde_json::to_vec(&body).unwrap()).unwrap()
    }

    #[test]
    fn only_what_is_set_is_sent_and_the_limit_has_the_servers_name() {
        let model = ModelName::parse("openai/gpt-5-mini").unwrap();
        let plain = ModelSettings::default();
        let mut request = ModelRequest {
            model: &model,
            system: None,
            input: "hi",
            settings: &plain,
        };
        assert_eq!(
            body(&request, "max_tokens"),
            json!({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hi"}]})
        );
        let full = ModelSettings::parse(&json!({
            "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "stop_sequences": ["END"]
        }))
        .unwrap();
        request.settings = &full;
        request.system = Some("be brief");
        let config = |url: &str| OpenAiConfig {
            key: None,
            base_url: url.parse().unwrap(),
        };
        assert_eq!(
            body(&request, limit_field(&config("https://api.openai.com/v1"))),
            json!({
                "model": "gpt-5-mini",
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "hi"}
                ],
                "temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 7, "stop": ["END"]
            })
        );
        let own = body(&request, limit_field(&config("https://notopenai.com/v1")));
        assert_eq!(
            (&own["max_tokens"], own.get("max_completion_tokens")),
            (&json!(7), None)
        );
    }

    #[test]
    fn cached_tokens_are_counted_once() {
        let answer = parsed(json!({
            "model": "gpt-6-sol-2026-09-01",
            "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050,
                "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
                "completion_tokens_details": {"reasoning_tokens": 20}
            }
        }));
        assert_eq!(answer.output, "hello");
        assert_eq!(answer.stop, Stop::End);
        assert_eq!(answer.model, "gpt-6-sol-2026-09-01");
        let usage = answer.usage.unwrap();
        assert_eq!(
            (
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.cache_write_tokens,
                usage.output_tokens
            ),
            (300, 600, 100, 50)
        );
    }

    #[test]
    fn what_is_not_a_plain_success_is_said() {
        let stop = |message: Value, reason: Value| {
            let answer =
                parsed(json!({"choices": [{"message": message, "finish_reason": reason}]}));
            assert_eq!(answer.usage, None);
            answer.stop
        };
        assert_eq!(stop(json!({"content": "x"}), json!("length")), Stop::Length);
        assert_eq!(
            stop(json!({"content": "x"}), json!("content_filter")),
            Stop::Filtered
        );
        assert_eq!(
            stop(json!({"content": null}), json!("content_filter")),
            Stop::Filtered
        );
        assert_eq!(
            stop(json!({"content": null, "refusal": "no"}), json!("stop")),
            Stop::Refused
        );
        assert_eq!(stop(json!({"content": " \n"}), json!("stop")), Stop::Empty);
        assert_eq!(stop(json!({"content": ""}), json!("length")), Stop::Empty);
        assert_eq!(
            stop(json!({"content": null}), json!("tool_calls")),
            Stop::Empty
        );
        assert_eq!(
            stop(json!({"content": "x"}), json!(null)),
            Stop::Other("none".to_owned())
        );
        let parts =
            json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        assert_eq!(stop(parts, json!("stop")), Stop::End);
    }

    #[test]
    fn usage_that_cannot_be_is_unknown_and_the_output_is_kept() {
        for usage in [
            json!(null),
            json!({"prompt_tokens": -1, "completion_tokens": 1}),
            json!({"prompt_tokens": 1.5, "completion_tokens": 1}),
            json!({"prompt_tokens": 1, "completion_tokens": 100_000_001}),
        ] {
            let answer = parsed(json!({
                "choices": [{"message": {"content": "a\u{0}b"}, "finish_reason": "stop"}], "usage": usage
            }));
            assert_eq!((answer.output.as_str(), answer.usage), ("a\u{fffd}b", None));
        }
    }

    #[test]
    fn other_bodies_are_malformed() {
        for body in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"choices":[]}"#,
            r#"{"choices":[{}]}"#,
            "<html>",
        ] {
            let error = parse_answer(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "malformed_answer", "{body}");
        }
    }
}
