//! Secrets Manager and KMS as a test wants them: they refuse, hang, and compare encryption contexts,
//! which no emulator does.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_types::SdkConfig;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tests::rehearsal;
use tokio::sync::Barrier;
use uuid::Uuid;

/// What becomes of a call.
#[derive(Clone)]
pub(crate) enum Turn {
    Refuse(u16, &'static str),
    Hang,
    /// It is answered when so many others are there.
    Meet(Arc<Barrier>),
}

#[derive(Default)]
struct Inside {
    /// By ARN: the text, and how often it was set.
    secrets: BTreeMap<String, (String, u32)>,
    plan: VecDeque<(&'static str, Turn)>,
    calls: Vec<(String, Value)>,
}

type Shared = Arc<Mutex<Inside>>;

/// A running server. It ends with its test.
pub(crate) struct Server {
    pub(crate) aws: SdkConfig,
    inside: Shared,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inside = Shared::default();
        let router = Router::new()
            .route("/", post(answer))
            .with_state(Arc::clone(&inside));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            aws: rehearsal::aws(&url),
            inside,
        }
    }

    /// Stores a secret, or a new version of it, and gives its ARN.
    pub(crate) fn set(&self, name: &str, text: &str) -> String {
        let arn = format!("arn:aws:secretsmanager:eu-central-1:123456789012:secret:{name}");
        let mut inside = lock(&self.inside);
        let held = inside.secrets.entry(arn.clone()).or_default();
        *held = (text.to_owned(), held.1 + 1);
        arn
    }

    /// What becomes of the next call of this operation that nothing is planned for yet.
    pub(crate) fn plan(&self, operation: &'static str, turn: Turn) {
        lock(&self.inside).plan.push_back((operation, turn));
    }

    /// Takes one turn back, if there is one.
    pub(crate) fn take_plan(&self) -> bool {
        lock(&self.inside).plan.pop_front().is_some()
    }

    /// The bodies of this operation's calls since the last look.
    pub(crate) fn calls(&self, operation: &str) -> Vec<Value> {
        let mut inside = lock(&self.inside);
        let calls = std::mem::take(&mut inside.calls).into_iter();
        let (wanted, others) = calls.partition(|(name, _)| name == operation);
        inside.calls = others;
        let wanted: Vec<(String, Value)> = wanted;
        wanted.into_iter().map(|(_, body)| body).collect()
    }
}

fn lock(inside: &Shared) -> MutexGuard<'_, Inside> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(inside): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers["x-amz-target"].to_str().unwrap();
    let operation = target.split('.').next_back().unwrap().to_owned();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let turn = {
        let mut inside = lock(&inside);
        inside.calls.push((operation.clone(), body.clone()));
        let planned = inside.plan.iter().position(|(name, _)| *name == operation);
        planned.and_then(|index| inside.plan.remove(index))
    };
    match turn {
        Some((_, Turn::Refuse(status, code))) => return refusal(status, code),
        Some((_, Turn::Hang)) => return pending().await,
        Some((_, Turn::Meet(barrier))) => {
            barrier.wait().await;
        }
        None => {}
    }
    match operation.as_str() {
        "GetSecretValue" => secret(&inside, &body),
        "GenerateDataKey" => data_key(&body),
        "Decrypt" => decrypted(&body),
        other => refusal(400, &format!("NoSuchOperation{other}")),
    }
}

fn secret(inside: &Shared, body: &Value) -> Response {
    let inside = lock(inside);
    match inside.secrets.get(body["SecretId"].as_str().unwrap()) {
        Some((text, version)) => ok(&json!({
            "ARN": body["SecretId"], "Name": "x", "SecretString": text,
            "VersionId": format!("version-{version:024}"),
        })),
        None => refusal(400, "ResourceNotFoundException"),
    }
}

/// What is wrapped is no secret here: the key, and the context that it was made for.
fn data_key(body: &Value) -> Response {
    let key = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let key = base64(&key.as_bytes()[..32]);
    let wrapped = json!({ "key": key, "for": body["EncryptionContext"] });
    ok(&json!({
        "Plaintext": key, "CiphertextBlob": base64(wrapped.to_string().as_bytes()),
        "KeyId": body["KeyId"],
    }))
}

fn decrypted(body: &Value) -> Response {
    let wrapped = unbase64(body["CiphertextBlob"].as_str().unwrap());
    match serde_json::from_slice::<Value>(&wrapped) {
        Ok(wrapped) if wrapped["for"] == body["EncryptionContext"] => {
            ok(&json!({ "Plaintext": wrapped["key"], "KeyId": body["KeyId"] }))
        }
        _ => refusal(400, "InvalidCiphertextException"),
    }
}

fn ok(body: &Value) -> Response {
    respond(StatusCode::OK, body)
}

fn refusal(status: u16, code: &str) -> Response {
    let body = json!({ "__type": code, "message": "words" });
    respond(StatusCode::from_u16(status).unwrap(), &body)
}

fn respond(status: StatusCode, body: &Value) -> Response {
    let json = [("content-type", "application/x-amz-json-1.1")];
    (status, json, body.to_string()).into_response()
}

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(bytes)
}

fn unbase64(text: &str) -> Vec<u8> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.decode(text).unwrap()
}
