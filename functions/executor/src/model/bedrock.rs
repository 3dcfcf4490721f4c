//! Amazon Bedrock's Converse, signed with Signature Version 4 or sent with an API key.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningError, SigningSettings, sign},
    sign::v4,
};
use reqwest::{
    Client,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::{
    model::{Provider, Usage},
    secret::Secret,
};

use super::{
    ModelAnswer, ModelRequest, Stop, answer,
    config::{BedrockAuth, BedrockConfig, join},
    error::ModelError,
    transport::{Outgoing, exchange, json_body, secret_header},
};

pub(super) async fn ask(
    client: &Client,
    config: &BedrockConfig,
    request: &ModelRequest<'_>,
) -> Result<ModelAnswer, ModelError> {
    let path = format!("/model/{}/converse", percent_encoded(request.model.name()));
    let url = join(&config.base_url, &path);
    let body = json_body(&body(request));
    let outgoing = Outgoing {
        headers: auth_headers(config, url.as_str(), &body, SystemTime::now())?,
        url,
        body,
        secrets: secrets(&config.auth),
        request_id_header: "x-amzn-requestid",
    };
    let answer = exchange(client, outgoing, parse_answer).await?;
    Ok(answer.or_model(request.model))
}

/// A model's id as one segment of a path: ids contain colons, and ARNs slashes.
fn percent_encoded(id: &str) -> String {
    id.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn body(request: &ModelRequest<'_>) -> Value {
    let settings = request.settings;
    let mut inference = Map::new();
    if let Some(limit) = settings.max_output_tokens() {
        inference.insert("maxTokens".to_owned(), json!(limit));
    }
    if let Some(temperature) = settings.temperature() {
        inference.insert("temperature".to_owned(), json!(temperature));
    }
    if let Some(top_p) = settings.top_p() {
        inference.insert("topP".to_owned(), json!(top_p));
    }
    if !settings.stop_sequences().is_empty() {
        inference.insert("stopSequences".to_owned(), json!(settings.stop_sequences()));
    }
    let mut body = Map::new();
    body.insert(
        "messages".to_owned(),
        json!([{"role": "user", "content": [{"text": request.input}]}]),
    );
    if let Some(system) = request.system {
        body.insert("system".to_owned(), json!([{"text": system}]));
    }
    if !inference.is_empty() {
        body.insert("inferenceConfig".to_owned(), Value::Object(inference));
    }
    Value::Object(body)
}

fn auth_headers(
    config: &BedrockConfig,
    url: &str,
    body: &[u8],
    now: SystemTime,
) -> Result<HeaderMap, ModelError> {
    match &config.auth {
        BedrockAuth::Bearer(token) => {
            let value = secret_header(Provider::Bedrock, "Bearer ", token)?;
            Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
        }
        BedrockAuth::SigV4 {
            access_key_id,
            secret_access_key,
            session_token,
        } => {
            let credentials = Credentials::new(
                access_key_id,
                secret_access_key.expose(),
                session_token
                    .as_ref()
                    .map(|token| token.expose().to_owned()),
                None,
                "environment",
            );
            signature(credentials, &config.region, url, body, now).map_err(|_| {
                ModelError::NotConfigured {
                    provider: Provider::Bedrock,
                    reason: "a request to its address cannot be signed; check the endpoint",
                }
            })
        }
    }
}

fn signature(
    credentials: Credentials,
    region: &str,
    url: &str,
    body: &[u8],
    now: SystemTime,
) -> Result<HeaderMap, SigningError> {
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("bedrock")
        .time(now)
        .settings(SigningSettings::default())
        .build()
        // Cannot fail: every field that the builder demands is set above.
        .expect("all signing parameters are set")
        .into();
    let content_type = [("content-type", "application/json")];
    let signable = SignableRequest::new(
        "POST",
        url,
        content_type.into_iter(),
        SignableBody::Bytes(body),
    )?;
    let (instructions, _) = sign(signable, &params)?.into_parts();
    let (signed, _) = instructions.into_parts();
    Ok(signed
        .iter()
        .filter_map(|header| {
            let mut value = HeaderValue::from_str(header.value()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_static(header.name()), value))
        })
        .collect())
}

fn secrets(auth: &BedrockAuth) -> Vec<&Secret> {
    match auth {
        BedrockAuth::Bearer(token) => vec![token],
        BedrockAuth::SigV4 {
            secret_access_key,
            session_token,
            access_key_id: _,
        } => session_token.iter().chain([secret_access_key]).collect(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Converse {
    output: Output,
    stop_reason: Option<String>,
    /// Read apart, so that a strange count does not cost the output.
    usage: Option<Value>,
}

#[derive(Deserialize)]
struct Output {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_input_tokens: Option<u64>,
    cache_write_input_tokens: Option<u64>,
}

/// Reads a Converse answer. Only its text is the output; what the model thought is left out.
///
/// # Errors
/// [`ModelError::Malformed`] for anything else.
pub fn parse_answer(body: &[u8]) -> Result<ModelAnswer, ModelError> {
    let converse: Converse = serde_json::from_slice(body).map_err(ModelError::not_as_documented)?;
    let blocks = converse.output.message.content.into_iter();
    let output: String = blocks.filter_map(|block| block.text).collect();
    let stop = match converse.stop_reason.as_deref() {
        Some("end_turn" | "stop_sequence") => Stop::End,
        Some("max_tokens" | "model_context_window_exceeded") => Stop::Length,
        Some("guardrail_intervened" | "content_filtered") => Stop::Filtered,
        Some("refusal") => Stop::Refused,
        Some(other) => Stop::Other(other.to_owned()),
        None => Stop::Other("none".to_owned()),
    };
    let usage = converse
        .usage
        .and_then(|usage| Counts::deserialize(usage).ok())
        .map(|counts| Usage {
            // Already without what was read from the cache or written to it.
            input_tokens: counts.input_tokens,
            cached_input_tokens: counts.cache_read_input_tokens.unwrap_or(0),
            cache_write_tokens: counts.cache_write_input_tokens.unwrap_or(0),
            output_tokens: counts.output_tokens,
        });
    // Converse does not say which model answered.
    Ok(answer(&output, usage, stop, None))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::model::{ModelName, ModelSettings};

    use super::*;

    fn parsed(body: Value) -> ModelAnswer {
        parse_answer(&serde_json::to_vec(&body).unwrap()).unwrap()
    }

    #[test]
    fn only_what_is_set_is_sent() {
        let model = ModelName::parse("bedrock/amazon.nova-pro-v1:0").unwrap();
        let plain = ModelSettings::default();
        let mut request = ModelRequest {
            model: &model,
            system: None,
            input: "hi",
            settings: &plain,
        };
        let messages = json!([{"role": "user", "content": [{"text": "hi"}]}]);
        assert_eq!(body(&request), json!({"messages": messages}));
        let full = ModelSettings::parse(&json!({
            "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "stop_sequences": ["END"]
        }))
        .unwrap();
        request.settings = &full;
        request.system = Some("be brief");
        assert_eq!(
            body(&request),
            json!({
                "messages": messages, "system": [{"text": "be brief"}],
                "inferenceConfig": {
                    "maxTokens": 7, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]
                }
            })
        );
    }

    #[test]
    fn an_id_is_one_segment_of_the_path() {
        assert_eq!(
            percent_encoded("arn:aws:bedrock:eu-west-1:1:inference-profile/eu.x_y-v1:0"),
            "arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Ainference-profile%2Feu.x_y-v1%3A0"
        );
    }

    /// The expected values were computed with botocore's SigV4Auth.
    #[test]
    fn signatures_are_those_of_awss_own_client() {
        let url = "https://bedrock-runtime.eu-central-1.amazonaws.com\
                   /model/eu.amazon.nova-lite-v1%3A0/converse";
        let body = br#"{"messages":[{"role":"user","content":[{"text":"hi"}]}]}"#;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_359_200);
        for (token, signed, expected) in [
            (
                None,
                "content-type;host;x-amz-date",
                "716c6e58c48baf4da453f1c029df80f0b7b3745f800d665cbe65b6c5234a4ecd",
            ),
            (
                Some("session/token+1="),
                "content-type;host;x-amz-date;x-amz-security-token",
                "d671230a7b6ad6937cca83c5999492a4e58f82a3809ae8dbf09b8d47909408c8",
            ),
        ] {
            let config = BedrockConfig {
                region: "eu-central-1".to_owned(),
                base_url: "https://unused.example".parse().unwrap(),
                auth: BedrockAuth::SigV4 {
                    access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
                    secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
                    session_token: token.map(Secret::new),
                },
            };
            let headers = auth_headers(&config, url, body, now).unwrap();
            assert_eq!(
                headers["authorization"],
                format!(
                    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260301/eu-central-1/\
                     bedrock/aws4_request, SignedHeaders={signed}, Signature={expected}"
                )
            );
            assert_eq!(headers["x-amz-date"], "20260301T100000Z");
            assert_eq!(
                headers
                    .get("x-amz-security-token")
                    .map(|value| value.to_str().unwrap()),
                token
            );
            assert!(!format!("{headers:?}").contains(expected));
        }
    }

    #[test]
    fn answers_are_read() {
        let answer = parsed(json!({
            "output": {"message": {"role": "assistant", "content": [
                {"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "a"}, {"text": "b"}
            ]}},
            "stopReason": "end_turn",
            "usage": {
                "inputTokens": 10, "outputTokens": 20, "totalTokens": 100,
                "cacheReadInputTokens": 30, "cacheWriteInputTokens": 40
            },
            "metrics": {"latencyMs": 1}
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
        for (reason, expected) in [
            ("stop_sequence", Stop::End),
            ("max_tokens", Stop::Length),
            ("model_context_window_exceeded", Stop::Length),
            ("guardrail_intervened", Stop::Filtered),
            ("content_filtered", Stop::Filtered),
            (
                "malformed_model_output",
                Stop::Other("malformed_model_output".to_owned()),
            ),
        ] {
            let body = json!({
                "output": {"message": {"content": [{"text": "x"}]}}, "stopReason": reason
            });
            assert_eq!(parsed(body).stop, expected);
        }
        for body in ["", "{}", r#"{"output":{}}"#, r#"{"message":"x"}"#] {
            let error = parse_answer(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "malformed_answer", "{body}");
        }
    }
}
