//! Stands before aimock, whose journal hides keys: notes with which key a call came, and refuses keys as
//! a provider does.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tests::peers::aimock_url;

#[derive(Default)]
struct Inside {
    refused: Vec<String>,
    seen: Vec<(String, String)>,
}

type Shared = Arc<Mutex<Inside>>;

/// A running one. It ends with its test.
pub(crate) struct Provider {
    pub(crate) url: String,
    inside: Shared,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inside = Shared::default();
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&inside));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, inside }
    }

    /// Refuses this key from now on.
    pub(crate) fn refuse(&self, key: &str) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.refused.push(key.to_owned());
    }

    /// The path and the key of each call since the last look.
    pub(crate) fn seen(&self) -> Vec<(String, String)> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut inside.seen)
    }
}

async fn answer(
    State(inside): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let key = bearer.or_else(|| header("x-api-key")).unwrap_or_default();
    let is_refused = {
        let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.seen.push((uri.path().to_owned(), key.to_owned()));
        inside.refused.iter().any(|refused| refused == key)
    };
    if is_refused {
        let error = json!({ "error": { "message": format!("Incorrect API key provided: {key}."),
            "type": "invalid_request_error", "code": "invalid_api_key" } });
        return (StatusCode::UNAUTHORIZED, error.to_string()).into_response();
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut forwarded = client
        .post(format!("{}{}", aimock_url(), uri.path()))
        .header("content-type", "application/json")
        .body(body);
    if let Some(version) = header("anthropic-version") {
        forwarded = forwarded.header("anthropic-version", version);
    }
    let answered = forwarded.send().await.unwrap();
    let status = answered.status();
    (status, answered.bytes().await.unwrap()).into_response()
}
