//! One bounded HTTP exchange with a provider, and the reading of what it says on failure.
//!
//! Bodies are read in chunks up to a limit. The deadline is the caller's.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{
    Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::Value;
use shared::{model::Provider, secret::Secret, tls};

use super::{
    ModelAnswer, bounded,
    error::{ModelError, ProviderFault},
};

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How much of an error's body is read.
const ERROR_BYTES_MAX: usize = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of a provider's message is handed on.
const MESSAGE_CHARS_MAX: usize = 500;
/// The longest wait that a provider may ask for.
const AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than what providers' load balancers keep, so that a call seldom meets a dead connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// A model may think for minutes without a byte on the wire; NAT gateways forget after 350 s.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The HTTP client for model calls: no redirects, no retries of its own.
///
/// # Errors
/// When the TLS stack cannot be set up.
pub fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_keepalive(KEEPALIVE)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .user_agent(concat!("carillon/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// A request that is ready to be sent.
pub(super) struct Outgoing<'a> {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// What must not come back in a message.
    pub(super) secrets: Vec<&'a Secret>,
    /// Where this provider puts its id of the call.
    pub(super) request_id_header: &'static str,
}

/// Sends a request and reads the answer with `parse`.
pub(super) async fn exchange(
    client: &reqwest::Client,
    outgoing: Outgoing<'_>,
    parse: impl Fn(&[u8]) -> Result<ModelAnswer, ModelError>,
) -> Result<ModelAnswer, ModelError> {
    let mut response = client
        .post(outgoing.url)
        .header(CONTENT_TYPE, "application/json")
        .headers(outgoing.headers)
        .body(outgoing.body)
        .send()
        .await
        .map_err(connection_error)?;
    let request_id = response
        .headers()
        .get(outgoing.request_id_header)
        .and_then(|value| value.to_str().ok())
        .map(bounded);
    let status = response.status();
    if status.is_success() {
        let body = read_answer(&mut response).await?;
        let answer = parse(&body)?;
        return Ok(ModelAnswer {
            request_id,
            ..answer
        });
    }
    let body = read_error(&mut response).await;
    let said = ErrorBody::read(&body, response.headers());
    let fault = ProviderFault {
        status: status.as_u16(),
        message: excerpt(&said.message, &outgoing.secrets),
        after: retry_after(response.headers(), Utc::now()),
        should_retry: should_retry(response.headers()),
        request_id,
    };
    Err(classify(fault, &said))
}

/// Puts a secret into a header that no log prints.
pub(super) fn secret_header(
    provider: Provider,
    prefix: &str,
    secret: &Secret,
) -> Result<HeaderValue, ModelError> {
    let mut value =
        HeaderValue::from_str(&format!("{prefix}{}", secret.expose())).map_err(|_| {
            ModelError::NotConfigured {
                provider,
                reason: "its key has characters that no HTTP header can carry",
            }
        })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A request's body as bytes.
pub(super) fn json_body(body: &Value) -> Vec<u8> {
    body.to_string().into_bytes()
}

/// Drops the address, which is the operator's, from what may be shown.
fn connection_error(error: reqwest::Error) -> ModelError {
    let error = error.without_url();
    if error.is_connect() {
        ModelError::Unreachable(error)
    } else {
        ModelError::Interrupted(error)
    }
}

async fn read_answer(response: &mut reqwest::Response) -> Result<Vec<u8>, ModelError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(connection_error)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(ModelError::Malformed {
                reason: format!("it is longer than {ANSWER_BYTES_MAX} bytes"),
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The status already says what happened, so a body that breaks off or hangs is read as far as it
/// goes.
async fn read_error(response: &mut reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    let reading = async {
        while body.len() < ERROR_BYTES_MAX {
            let Ok(Some(chunk)) = response.chunk().await else {
                break;
            };
            body.extend_from_slice(&chunk);
        }
    };
    drop(tokio::time::timeout(ERROR_BODY_TIMEOUT, reading).await);
    body.truncate(ERROR_BYTES_MAX);
    body
}

/// What the providers' error bodies have in common.
struct ErrorBody {
    /// The machine-readable names of the error: OpenAI's code and type, Anthropic's type, AWS's
    /// exception.
    kinds: Vec<String>,
    message: String,
}

impl ErrorBody {
    fn read(body: &[u8], headers: &HeaderMap) -> Self {
        let aws_kind = headers
            .get("x-amzn-errortype")
            .and_then(|value| value.to_str().ok());
        let Ok(json) = serde_json::from_slice::<Value>(body) else {
            return Self {
                kinds: aws_kind.map(exception_name).into_iter().collect(),
                message: plain_message(body),
            };
        };
        let text_at = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
        let kinds = [
            aws_kind,
            text_at("/error/code"),
            text_at("/error/type"),
            text_at("/__type"),
        ];
        let message = [
            "/error/message",
            "/message",
            "/Message",
            "/error",
            "/detail",
            "/detail/0/msg",
        ]
        .into_iter()
        .find_map(text_at);
        Self {
            kinds: kinds.into_iter().flatten().map(exception_name).collect(),
            message: message.unwrap_or_default().to_owned(),
        }
    }

    fn is_any(&self, kinds: &[&str]) -> bool {
        self.kinds.iter().any(|kind| kinds.contains(&kind.as_str()))
    }
}

/// AWS puts a namespace before an exception's name, or a link after it.
fn exception_name(kind: &str) -> String {
    let name = kind.split(':').next().unwrap_or(kind);
    name.rsplit('#').next().unwrap_or(name).to_owned()
}

/// A body that is not JSON: a proxy's page says nothing to a tenant, a plain line may.
fn plain_message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if text.trim_start().starts_with('<') {
        String::new()
    } else {
        text.into_owned()
    }
}

/// OpenAI's and its imitators' names for an account that has run out, and Bedrock's.
const QUOTA_KINDS: [&str; 6] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "insufficient_balance",
    "ServiceQuotaExceededException",
];
/// What Anthropic says of it under the general name `invalid_request_error`.
const QUOTA_PHRASES: [&str; 2] = ["credit balance is too low", "specified api usage limits"];

fn classify(fault: ProviderFault, said: &ErrorBody) -> ModelError {
    let message = said.message.to_ascii_lowercase();
    let quota = fault.status == 402
        || said.is_any(&QUOTA_KINDS)
        || QUOTA_PHRASES.iter().any(|phrase| message.contains(phrase));
    if quota {
        return ModelError::QuotaExhausted(fault);
    }
    if said.is_any(&["ThrottlingException"]) {
        return ModelError::RateLimited(fault);
    }
    match fault.status {
        401 | 403 => ModelError::Auth(fault),
        429 => ModelError::RateLimited(fault),
        // 424 is how Bedrock says that the model itself failed.
        408 | 409 | 424 | 500..=599 => ModelError::Unavailable(fault),
        300..=399 => ModelError::Rejected(ProviderFault {
            message: "it answered with a redirect; check the base URL".to_owned(),
            ..fault
        }),
        _ => ModelError::Rejected(fault),
    }
}

/// How long the provider asks to wait: `retry-after-ms`, else `Retry-After` in seconds or as a
/// date (RFC 9110, section 10.2.3). What cannot be read counts as absent.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| *number >= 0.0);
    let in_ms = header_text(headers, &HeaderName::from_static("retry-after-ms"))
        .and_then(number)
        .map(|ms| ms / 1_000.0);
    let seconds = in_ms.or_else(|| {
        let text = header_text(headers, &RETRY_AFTER)?;
        number(text).or_else(|| {
            let date = DateTime::parse_from_rfc2822(text).ok()?;
            (date.to_utc() - now)
                .to_std()
                .ok()
                .map(|wait| wait.as_secs_f64())
        })
    })?;
    Some(Duration::try_from_secs_f64(seconds).map_or(AFTER_MAX, |wait| wait.min(AFTER_MAX)))
}

fn should_retry(headers: &HeaderMap) -> Option<bool> {
    header_text(headers, &HeaderName::from_static("x-should-retry"))?
        .parse()
        .ok()
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A provider's message as one short line without anything that looks like a key.
fn excerpt(message: &str, secrets: &[&Secret]) -> String {
    let mut text = message.to_owned();
    // A shorter one is no key, and would be found inside of words.
    for secret in secrets.iter().filter(|secret| secret.expose().len() >= 8) {
        text = text.replace(secret.expose(), "[redacted]");
    }
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(if looks_like_key(word) {
            "[redacted]"
        } else {
            word
        });
    }
    if line.is_empty() {
        "it gave no reason".to_owned()
    } else {
        line.chars().take(MESSAGE_CHARS_MAX).collect()
    }
}

/// Providers quote part of a wrong key; whose it is cannot be known, so it is masked too.
fn looks_like_key(word: &str) -> bool {
    let word = word.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let begins = ["sk-", "AKIA", "ASIA", "ABSK", "ABIA"];
    word.len() >= 8 && begins.iter().any(|start| word.starts_with(start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn classified(status: u16, body: &str, pairs: &[(&'static str, &str)]) -> ModelError {
        let said = ErrorBody::read(body.as_bytes(), &headers(pairs));
        let fault = ProviderFault {
            status,
            message: excerpt(&said.message, &[]),
            after: None,
            should_retry: None,
            request_id: None,
        };
        classify(fault, &said)
    }

    #[test]
    fn errors_are_told_apart_by_name_and_status() {
        let openai =
            |code: &str| format!(r#"{{"error":{{"message":"m","type":"t","code":"{code}"}}}}"#);
        let anthropic = |kind: &str| {
            format!(
                r#"{{"type":"error","error":{{"type":"{kind}","message":"m"}},"request_id":"r"}}"#
            )
        };
        for (status, body, code) in [
            (429, openai("rate_limit_exceeded"), "rate_limited"),
            (429, openai("insufficient_quota"), "quota_exhausted"),
            (429, openai("billing_hard_limit_reached"), "quota_exhausted"),
            (402, "{}".to_owned(), "quota_exhausted"),
            (402, anthropic("billing_error"), "quota_exhausted"),
            (
                400,
                r#"{"error":{"type":"invalid_request_error","message":"Your credit balance is too low to access"}}"#.to_owned(),
                "quota_exhausted",
            ),
            (401, openai("invalid_api_key"), "provider_auth"),
            (403, anthropic("permission_error"), "provider_auth"),
            (400, openai("context_length_exceeded"), "provider_rejected"),
            (404, anthropic("not_found_error"), "provider_rejected"),
            (413, "".to_owned(), "provider_rejected"),
            (422, r#"{"detail":[{"msg":"bad"}]}"#.to_owned(), "provider_rejected"),
            (302, "".to_owned(), "provider_rejected"),
            (408, "".to_owned(), "provider_unavailable"),
            (409, "".to_owned(), "provider_unavailable"),
            (500, "<html>".to_owned(), "provider_unavailable"),
            (503, "".to_owned(), "provider_unavailable"),
            (529, anthropic("overloaded_error"), "provider_unavailable"),
        ] {
            assert_eq!(classified(status, &body, &[]).code(), code, "{status} {body}");
        }
    }

    #[test]
    fn bedrock_says_it_in_a_header() {
        for (status, kind, code) in [
            (429, "ThrottlingException", "rate_limited"),
            (
                400,
                "ThrottlingException:http://internal.amazon.com/coral/",
                "rate_limited",
            ),
            (429, "ModelNotReadyException", "rate_limited"),
            (400, "ServiceQuotaExceededException", "quota_exhausted"),
            (408, "ModelTimeoutException", "provider_unavailable"),
            (424, "ModelErrorException", "provider_unavailable"),
            (503, "ServiceUnavailableException", "provider_unavailable"),
            (400, "ValidationException", "provider_rejected"),
            (403, "AccessDeniedException", "provider_auth"),
        ] {
            let error = classified(status, r#"{"message":"m"}"#, &[("x-amzn-errortype", kind)]);
            assert_eq!(error.code(), code, "{kind}");
            assert!(
                error.to_string().ends_with(&format!("m (status {status})")),
                "{error}"
            );
        }
        let typed = classified(
            400,
            r#"{"__type":"com.amazon.coral#ThrottlingException"}"#,
            &[],
        );
        assert_eq!(typed.code(), "rate_limited");
    }

    #[test]
    fn the_wait_is_read_from_every_form() {
        let now = "2026-03-01T10:00:00Z".parse().unwrap();
        for (pairs, expected) in [
            (vec![("retry-after", "7")], Some(7_000)),
            (vec![("retry-after", "1.5")], Some(1_500)),
            (
                vec![("retry-after-ms", "250"), ("retry-after", "7")],
                Some(250),
            ),
            (
                vec![("retry-after-ms", "soon"), ("retry-after", "7")],
                Some(7_000),
            ),
            (
                vec![("retry-after", "Sun, 01 Mar 2026 10:01:30 GMT")],
                Some(90_000),
            ),
            (vec![("retry-after", "Sun, 01 Mar 2026 09:00:00 GMT")], None),
            (
                vec![("retry-after", "999999999999999999999")],
                Some(86_400_000),
            ),
            (vec![("retry-after", "inf")], Some(86_400_000)),
            (vec![("retry-after", "-3")], None),
            (vec![("retry-after", "NaN")], None),
            (vec![("retry-after", "whenever")], None),
            (vec![], None),
        ] {
            let wait = retry_after(&headers(&pairs), now);
            assert_eq!(wait.map(|w| w.as_millis()), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_message_shows_no_key_and_stays_short() {
        let secret = Secret::new("very-secret-key-123");
        let said = "Incorrect key: very-secret-key-123,\nsee (sk-proj-abcdef) or AKIAIOSFODNN7EXAMPLE\0 end";
        assert_eq!(
            excerpt(said, &[&secret]),
            "Incorrect key: [redacted], see [redacted] or [redacted] end"
        );
        assert_eq!(excerpt(&"é".repeat(2_000), &[]).chars().count(), 500);
        assert_eq!(excerpt(" \n", &[]), "it gave no reason");
    }

    proptest! {
        #[test]
        fn arbitrary_error_bodies_never_panic(
            body in prop::collection::vec(any::<u8>(), 0..256), status in 300u16..=999, text in any::<String>()
        ) {
            let said = ErrorBody::read(&body, &HeaderMap::new());
            prop_assert!(excerpt(&text, &[]).chars().count() <= MESSAGE_CHARS_MAX);
            let fault = ProviderFault {
                status, message: excerpt(&said.message, &[]), after: None, should_retry: None, request_id: None,
            };
            prop_assert!(!classify(fault, &said).outcome_unknown());
        }
    }
}
