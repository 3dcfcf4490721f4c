//! What the model providers answer.

use std::sync::LazyLock;

use executor::model::{ModelAnswer, ModelError, Stop, parse};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use shared::model::{ModelName, Usage};
use shared::price::Catalog;

use super::Verdict;

/// The longest word that is taken over from a provider, in bytes; a character that was cut in two may
/// not add to it.
const WORD_BYTES_MAX: usize = 200;
const ERROR_BYTES_MAX: usize = 1_000;

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::shipped);

type Parse = fn(&[u8]) -> Result<ModelAnswer, ModelError>;

pub(super) fn openai(data: &[u8]) -> Verdict {
    check(data, parse::openai, plain_openai, "openai/gpt-5-mini")
}

pub(super) fn anthropic(data: &[u8]) -> Verdict {
    check(
        data,
        parse::anthropic,
        plain_anthropic,
        "anthropic/claude-sonnet-4-5",
    )
}

pub(super) fn bedrock(data: &[u8]) -> Verdict {
    check(
        data,
        parse::bedrock,
        plain_bedrock,
        "bedrock/amazon.nova-pro-v1:0",
    )
}

fn check(data: &[u8], read: Parse, plain: fn(&ModelAnswer) -> Value, model: &str) -> Verdict {
    let answer = match read(data) {
        Ok(answer) => answer,
        Err(error) => {
            assert_eq!(error.code(), "malformed_answer");
            let told = error.to_string();
            assert!(
                told.len() <= ERROR_BYTES_MAX && !told.contains('\0'),
                "{told}"
            );
            return Verdict::Refused;
        }
    };
    // Every byte of the output was sent: an escape is never shorter than what it stands for.
    assert!(answer.output.len() <= data.len() && !answer.output.contains('\0'));
    word(&answer.model);
    assert_eq!(answer.request_id, None, "no body has it");
    if let Stop::Other(reason) = &answer.stop {
        word(reason);
    }
    if answer.output.trim().is_empty() {
        assert!(answer.stop.failure().is_some(), "no text, and a success");
    } else {
        assert_ne!(answer.stop, Stop::Empty);
    }
    if let Some(usage) = &answer.usage {
        priced(usage, model);
    }
    // The same answer without what its sender added says the same.
    let again = read(&serde_json::to_vec(&plain(&answer)).unwrap()).unwrap();
    assert_eq!(again, answer);
    Verdict::Accepted
}

fn word(text: &str) {
    assert!(text.len() <= WORD_BYTES_MAX, "{} bytes", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
}

fn priced(usage: &Usage, model: &str) {
    for tokens in [
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
    ] {
        assert!(tokens <= Usage::TOKENS_MAX, "{usage:?}");
    }
    let total = usage.input_total() + usage.output_tokens;
    assert_eq!(usage.total(), total);
    if let Some(cost) = CATALOG.cost_usd(&ModelName::parse(model).unwrap(), usage) {
        assert!(cost >= Decimal::ZERO && cost.scale() <= 6, "{cost}");
    }
}

fn plain_openai(answer: &ModelAnswer) -> Value {
    let reason = match &answer.stop {
        Stop::Length => "length",
        Stop::Filtered => "content_filter",
        Stop::Other(reason) => reason,
        Stop::End | Stop::Empty | Stop::Refused => "stop",
    };
    let message = match answer.stop {
        Stop::Refused => json!({"content": null, "refusal": answer.output}),
        Stop::End | Stop::Length | Stop::Filtered | Stop::Empty | Stop::Other(_) => {
            json!({"content": answer.output})
        }
    };
    json!({
        "model": answer.model,
        "choices": [{"message": message, "finish_reason": reason}],
        "usage": answer.usage.as_ref().map(|usage| json!({
            "prompt_tokens": usage.input_total(),
            "completion_tokens": usage.output_tokens,
            "prompt_tokens_details": {
                "cached_tokens": usage.cached_input_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            },
        })),
    })
}

fn plain_anthropic(answer: &ModelAnswer) -> Value {
    json!({
        "model": answer.model,
        "content": [{"type": "text", "text": answer.output}],
        "stop_reason": reason(&answer.stop),
        "usage": answer.usage.as_ref().map(|usage| json!({
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_input_tokens": usage.cached_input_tokens,
            "cache_creation_input_tokens": usage.cache_write_tokens,
        })),
    })
}

fn plain_bedrock(answer: &ModelAnswer) -> Value {
    let reason = if answer.stop == Stop::Filtered {
        "content_filtered"
    } else {
        reason(&answer.stop)
    };
    json!({
        "output": {"message": {"content": [{"text": answer.output}]}},
        "stopReason": reason,
        "usage": answer.usage.as_ref().map(|usage| json!({
            "inputTokens": usage.input_tokens,
            "outputTokens": usage.output_tokens,
            "cacheReadInputTokens": usage.cached_input_tokens,
            "cacheWriteInputTokens": usage.cache_write_tokens,
        })),
    })
}

fn reason(stop: &Stop) -> &str {
    match stop {
        Stop::Length => "max_tokens",
        Stop::Refused => "refusal",
        Stop::Other(reason) => reason,
        Stop::End | Stop::Empty | Stop::Filtered => "end_turn",
    }
}
