//! Model calls against servers: the provider emulator aimock for what providers document, and
//! small scripted servers for what it cannot do.
//!
//! `CARILLON_TEST_AIMOCK_URL` says where aimock runs, with `tests/peers/aimock/models.json` loaded.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails by panicking")]

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use executor::model::{
    AnthropicConfig, BedrockAuth, BedrockConfig, Disposition, ModelAnswer, ModelError,
    ModelRequest, Models, OpenAiConfig, ProvidersConfig, Stop, client,
};
use serde_json::{Value, json};
use shared::{
    model::{ModelName, ModelSettings, Usage},
    price::Catalog,
    secret::Secret,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const KEY: &str = "model-test-key-0123456789";
const TOKEN: &str = "model-test-session-token/+=";
const DEADLINE: Duration = Duration::from_secs(10);
const MODELS: [&str; 3] = [
    "openai/gpt-5-mini",
    "anthropic/claude-sonnet-4-6",
    "bedrock/eu.amazon.nova-lite-v1:0",
];

fn aimock() -> String {
    std::env::var("CARILLON_TEST_AIMOCK_URL").expect(
        "CARILLON_TEST_AIMOCK_URL is not set: start aimock (`./dev test` does it) and set it to \
         its address, for example http://127.0.0.1:4020",
    )
}

/// All three providers at one address.
fn models(base: &str) -> Models {
    let base_url = base.parse().unwrap();
    let config = ProvidersConfig {
        openai: Some(OpenAiConfig {
            key: Some(Secret::new(KEY)),
            base_url: format!("{base}/v1").parse().unwrap(),
        }),
        anthropic: Some(AnthropicConfig {
            key: Some(Secret::new(KEY)),
            base_url,
        }),
        bedrock: Some(BedrockConfig {
            region: "eu-central-1".to_owned(),
            base_url: base.parse().unwrap(),
            auth: BedrockAuth::SigV4 {
                access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
                secret_access_key: Secret::new(KEY),
                session_token: Some(Secret::new(TOKEN)),
            },
        }),
        allow_echo: false,
    };
    Models::new(config, client().unwrap())
}

async fn ask(models: &Models, model: &str, input: &str) -> Result<ModelAnswer, ModelError> {
    let settings = json!({
        "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 700, "stop_sequences": ["END"]
    });
    let request = ModelRequest {
        model: &ModelName::parse(model).unwrap(),
        system: Some("model-test: system"),
        input,
        settings: &ModelSettings::parse(&settings).unwrap(),
    };
    models.call(&request, DEADLINE).await
}

fn retry(after: Option<u64>) -> Disposition {
    Disposition::Retry {
        after: after.map(Duration::from_millis),
    }
}

#[tokio::test]
async fn three_providers_answer_and_the_cost_follows() {
    let models = models(&aimock());
    for (model, cost) in MODELS.into_iter().zip(["0.00035", "0.00375", "0.000094"]) {
        let answer = ask(&models, model, "model-test: greet").await.unwrap();
        assert_eq!(answer.output, "Good morning.\nIt is a *test*.", "{model}");
        assert_eq!(answer.stop, Stop::End);
        let name = ModelName::parse(model).unwrap();
        assert_eq!(answer.model, name.name());
        let usage = answer.usage.unwrap();
        let expected = Usage {
            input_tokens: 1000,
            output_tokens: 50,
            ..Usage::default()
        };
        assert_eq!(usage, expected, "{model}");
        let computed = Catalog::shipped().cost_usd(&name, &usage).unwrap();
        assert_eq!(computed.normalize().to_string(), cost, "{model}");
    }
}

#[tokio::test]
async fn stops_that_are_no_success_are_said() {
    let models = models(&aimock());
    let [openai, anthropic, bedrock] = MODELS;
    for (model, input, stop, failure) in [
        (openai, "long, openai", Stop::Length, None),
        (anthropic, "long", Stop::Length, None),
        (bedrock, "long", Stop::Length, None),
        (
            openai,
            "filtered, openai",
            Stop::Filtered,
            Some("output_filtered"),
        ),
        (
            bedrock,
            "filtered, bedrock",
            Stop::Filtered,
            Some("output_filtered"),
        ),
        (
            anthropic,
            "refused, anthropic",
            Stop::Refused,
            Some("model_refused"),
        ),
        (openai, "empty", Stop::Empty, Some("output_empty")),
        (anthropic, "empty", Stop::Empty, Some("output_empty")),
        (bedrock, "empty", Stop::Empty, Some("output_empty")),
    ] {
        let answer = ask(&models, model, &format!("model-test: {input}"))
            .await
            .unwrap();
        assert_eq!(answer.stop, stop, "{model} {input}");
        assert_eq!(answer.stop.failure().map(|(code, _)| code), failure);
        assert_eq!(answer.stop.is_truncated(), stop == Stop::Length);
    }
}

#[tokio::test]
async fn errors_have_their_code_and_disposition() {
    let models = models(&aimock());
    for model in MODELS {
        for (input, code, disposition, said) in [
            ("rate", "rate_limited", retry(Some(17_000)), "slow down"),
            ("quota", "quota_exhausted", Disposition::GiveUp, "pay first"),
            (
                "overloaded",
                "provider_unavailable",
                retry(None),
                "try later",
            ),
            (
                "bad key",
                "provider_auth",
                Disposition::GiveUp,
                "incorrect key [redacted]",
            ),
            (
                "bad request",
                "provider_rejected",
                Disposition::GiveUp,
                "no such thing",
            ),
        ] {
            let error = ask(&models, model, &format!("model-test: {input}"))
                .await
                .unwrap_err();
            assert_eq!(error.code(), code, "{model}");
            assert_eq!(error.disposition(), disposition, "{model} {input}");
            assert!(error.to_string().contains(said), "{error}");
            assert!(!error.outcome_unknown());
        }
    }
}

#[tokio::test]
async fn the_request_arrives_as_documented() {
    let base = aimock();
    let answer = ask(&models(&base), MODELS[0], "model-test: greet")
        .await
        .unwrap();
    let id = answer.request_id.unwrap();
    let journal = client()
        .unwrap()
        .get(format!("{base}/__aimock/journal?requestId={id}"))
        .send()
        .await
        .unwrap()
        .json::<Value>()
        .await
        .unwrap();
    let seen = &journal[0];
    assert_eq!(seen["path"], "/v1/chat/completions");
    assert_eq!(
        seen["headers"]["user-agent"],
        concat!("carillon/", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(seen["body"]["messages"][0]["role"], "system");
    for (field, value) in [
        ("model", json!("gpt-5-mini")),
        ("temperature", json!(0.5)),
        ("top_p", json!(0.9)),
        ("max_tokens", json!(700)),
        ("stop", json!(["END"])),
    ] {
        assert_eq!(seen["body"][field], value, "{field}");
    }
}

/// What a scripted server does with its one connection.
enum Script {
    /// Writes these bytes and closes.
    Reply(Vec<u8>),
    /// Writes these bytes, then nothing more, and keeps the connection.
    Hang(Vec<u8>),
    /// Writes the first bytes, then the second ones until the peer goes.
    Flood(Vec<u8>, Vec<u8>),
}

/// Serves one connection; the task gives back the request's head and body as they came.
async fn serve(script: Script) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        match script {
            Script::Reply(bytes) => stream.write_all(&bytes).await.unwrap(),
            Script::Hang(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                // Returns when the client gives up.
                let _ = stream.read(&mut [0; 1]).await;
            }
            Script::Flood(head, body) => {
                stream.write_all(&head).await.unwrap();
                for _ in 0..10_000 {
                    if stream.write_all(&body).await.is_err() {
                        return request;
                    }
                }
                panic!("the client read all of the flood");
            }
        }
        request
    });
    (base, task)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap();
        assert!(read > 0, "the client went away");
        seen.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        if body.len() >= length.parse().unwrap() {
            return text;
        }
    }
}

fn reply(status: &str, headers: &str, body: &str) -> Script {
    let length = body.len();
    Script::Reply(
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}")
            .into_bytes(),
    )
}

async fn error_of(script: Script, model: &str) -> ModelError {
    let (base, task) = serve(script).await;
    let error = ask(&models(&base), model, "hi").await.unwrap_err();
    task.abort();
    error
}

#[tokio::test]
async fn requests_go_to_the_documented_paths() {
    for (model, line) in MODELS.into_iter().zip([
        "POST /v1/chat/completions HTTP/1.1",
        "POST /v1/messages HTTP/1.1",
        "POST /model/eu.amazon.nova-lite-v1%3A0/converse HTTP/1.1",
    ]) {
        let (base, task) = serve(reply("404 No", "", "")).await;
        ask(&models(&base), model, "hi").await.unwrap_err();
        assert_eq!(task.await.unwrap().lines().next(), Some(line));
    }
}

#[tokio::test]
async fn the_providers_wishes_about_retries_are_read() {
    let soon = chrono::Utc::now() + chrono::Duration::seconds(90);
    let date = soon
        .format("retry-after: %a, %d %b %Y %H:%M:%S GMT\r\n")
        .to_string();
    let error = error_of(reply("503 Busy", &date, ""), MODELS[0]).await;
    let Disposition::Retry { after: Some(after) } = error.disposition() else {
        panic!("{error:?}");
    };
    assert!((85..=90).contains(&after.as_secs()), "{after:?}");
    for (status, headers, expected) in [
        (
            "429 No",
            "retry-after-ms: 250\r\nretry-after: 9\r\n",
            retry(Some(250)),
        ),
        ("500 No", "x-should-retry: false\r\n", Disposition::GiveUp),
        ("429 No", "x-should-retry: false\r\n", Disposition::GiveUp),
        (
            "400 No",
            "x-should-retry: true\r\nretry-after: 2\r\n",
            retry(Some(2_000)),
        ),
        ("408 No", "", retry(None)),
        ("409 No", "", retry(None)),
        ("529 No", "", retry(None)),
        ("404 No", "", Disposition::GiveUp),
        ("402 No", "x-should-retry: true\r\n", Disposition::GiveUp),
    ] {
        for model in MODELS {
            let error = error_of(reply(status, headers, "{}"), model).await;
            assert_eq!(error.disposition(), expected, "{model} {status} {headers}");
        }
    }
}

#[tokio::test]
async fn bedrock_exceptions_are_known_by_their_header() {
    let kind = "x-amzn-errortype: ServiceQuotaExceededException:http://internal/\r\n";
    let error = error_of(
        reply("400 No", kind, r#"{"message":"too much"}"#),
        MODELS[2],
    )
    .await;
    assert_eq!(error.code(), "quota_exhausted");
    assert_eq!(error.disposition(), Disposition::GiveUp);
    assert!(error.to_string().contains("too much"));
}

#[tokio::test]
async fn answers_that_break_off_leave_the_outcome_unknown() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"choices\"".to_vec();
    let garbage = b"\x16\x03\x01 not http at all\r\n\r\n".to_vec();
    for script in [half, garbage, Vec::new()] {
        for model in MODELS {
            let error = error_of(Script::Reply(script.clone()), model).await;
            assert_eq!(error.code(), "provider_unavailable", "{error:?}");
            assert_eq!(error.disposition(), retry(None));
            assert!(error.outcome_unknown());
        }
    }
}

#[tokio::test]
async fn answers_that_cannot_be_read_are_malformed() {
    let flood = || {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n".to_vec();
        Script::Flood(head, vec![b' '; 64 * 1024])
    };
    for model in MODELS {
        for script in [
            flood(),
            reply("200 OK", "", "<html>welcome</html>"),
            reply("200 OK", "", r#"{"error":{"message":"no"}}"#),
            reply("200 OK", "", ""),
        ] {
            let error = error_of(script, model).await;
            assert_eq!(error.code(), "malformed_answer", "{error:?}");
            assert_eq!(error.disposition(), retry(None));
            assert!(error.outcome_unknown());
        }
    }
}

#[tokio::test]
async fn an_error_page_without_end_is_cut_and_not_shown() {
    let head = b"HTTP/1.1 401 No\r\ncontent-length: 999999999\r\n\r\n<html>".to_vec();
    let error = error_of(Script::Flood(head, vec![b'x'; 64 * 1024]), MODELS[1]).await;
    assert_eq!(error.code(), "provider_auth");
    assert!(error.to_string().len() < 600 && !error.to_string().contains("xxx"));
}

#[tokio::test]
async fn a_hanging_server_costs_no_more_than_the_deadline() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{".to_vec();
    for script in [Script::Hang(Vec::new()), Script::Hang(head)] {
        let (base, task) = serve(script).await;
        let model = ModelName::parse(MODELS[1]).unwrap();
        let request = ModelRequest {
            model: &model,
            system: None,
            input: "hi",
            settings: &ModelSettings::default(),
        };
        let start = Instant::now();
        let error = models(&base)
            .call(&request, Duration::from_millis(300))
            .await
            .unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(2));
        assert_eq!(error.code(), "provider_timeout");
        assert_eq!(error.disposition(), retry(None));
        assert!(error.outcome_unknown());
        task.abort();
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("location: http://{}/\r\n", trap.local_addr().unwrap());
    for status in ["302 Found", "307 Temporary Redirect"] {
        let error = error_of(reply(status, &location, ""), MODELS[0]).await;
        assert_eq!(error.code(), "provider_rejected");
        assert!(error.to_string().contains("redirect"), "{error}");
    }
    let visit = tokio::time::timeout(Duration::from_millis(100), trap.accept()).await;
    assert!(visit.is_err(), "the redirect was followed");
}

#[tokio::test]
async fn a_closed_port_is_known_to_have_cost_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = ask(&models(&format!("http://{address}")), MODELS[2], "hi")
        .await
        .unwrap_err();
    assert_eq!(error.code(), "provider_unavailable");
    assert_eq!(error.disposition(), retry(None));
    assert!(!error.outcome_unknown());
    assert!(!error.to_string().contains(&address.to_string()));
}

#[tokio::test]
async fn a_provider_without_a_key_is_said_to_be_so() {
    let models = Models::new(ProvidersConfig::default(), client().unwrap());
    for model in MODELS.into_iter().chain(["echo/demo"]) {
        let error = ask(&models, model, "hi").await.unwrap_err();
        assert_eq!(error.code(), "provider_not_configured", "{model}");
        assert_eq!(error.disposition(), Disposition::GiveUp);
    }
}

#[tokio::test]
async fn echo_answers_offline_where_it_is_allowed() {
    let config = ProvidersConfig {
        allow_echo: true,
        ..ProvidersConfig::default()
    };
    let models = Models::new(config, client().unwrap());
    let answer = ask(&models, "echo/demo", "good morning").await.unwrap();
    assert!(
        answer.output.contains("No model was called") && answer.output.contains("good morning")
    );
    assert_eq!(
        answer,
        ask(&models, "echo/demo", "good morning").await.unwrap()
    );
    assert_eq!(answer.usage, Some(Usage::default()));
}

#[tokio::test]
async fn keys_go_into_the_request_and_nowhere_else() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        })
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let mut shown = String::new();
    for (model, header, secret) in [
        (
            MODELS[0],
            format!("authorization: Bearer {KEY}"),
            KEY.to_owned(),
        ),
        (MODELS[1], format!("x-api-key: {KEY}"), KEY.to_owned()),
        (
            MODELS[2],
            format!("x-amz-security-token: {TOKEN}"),
            format!("{KEY} {TOKEN}"),
        ),
    ] {
        let body = format!(r#"{{"error":{{"message":"wrong: {secret}"}}}}"#);
        let (base, task) = serve(reply("401 No", "", &body)).await;
        let models = models(&base);
        let error = ask(&models, model, "hi").await.unwrap_err();
        shown.push_str(&format!(
            "{models:?} {models:#?} {error} {error:?} {error:#?}"
        ));
        let request = task.await.unwrap();
        assert!(request.contains(&header), "{request}");
        let refused = ask(&models, model, "hi").await.unwrap_err();
        shown.push_str(&format!("{refused} {refused:?}"));
    }
    tracing::info!("the log works");
    drop(guard);
    shown.push_str(&log.text());
    assert!(shown.contains("the log works") && shown.contains("[redacted]"));
    assert!(!shown.contains(KEY), "{shown}");
    assert!(!shown.contains(TOKEN), "{shown}");
}

/// Everything that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
