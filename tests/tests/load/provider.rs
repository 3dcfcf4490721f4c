//! A model that waits, or never ends its answer, as a prompt's mark says; and its journal: what was
//! asked how often, and how many asked at the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router, extract::State};
use futures_util::stream;
use serde_json::{Value, json};
use tests::chance::Chance;

/// Stands before the mark by which the journal knows a prompt.
pub(crate) const MARK: &str = "mark=";

/// In a mark: the answer never ends.
pub(crate) const ENDLESS: &str = "endless";

/// In a mark: the answer is long.
pub(crate) const LONG: &str = "long";
const LONG_BYTES: usize = 60_000;

/// How much of an endless answer comes at once.
const CHUNK_BYTES: usize = 64 * 1024;

const ALPHABET: [char; 16] = [
    'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p',
];

/// The journal.
#[derive(Debug, Default)]
struct Journal {
    asked: BTreeMap<String, usize>,
    at_once: usize,
    at_once_max: usize,
}

/// A running model. It ends with its test.
pub(crate) struct Provider {
    pub(crate) base_url: String,
    inside: Inside,
}

#[derive(Clone)]
struct Inside {
    journal: Arc<Mutex<Journal>>,
    delay: Duration,
}

impl Provider {
    /// One that takes so long for each answer.
    pub(crate) async fn start(delay: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Inside {
            journal: Arc::default(),
            delay,
        };
        let router = Router::new()
            .route("/v1/chat/completions", post(answer))
            .with_state(inside.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            base_url: format!("http://{address}/v1"),
            inside,
        }
    }

    /// How often each mark was asked about.
    pub(crate) fn asked(&self) -> BTreeMap<String, usize> {
        self.inside.journal.lock().unwrap().asked.clone()
    }

    /// The most that asked at the same time.
    pub(crate) fn at_once_max(&self) -> usize {
        self.inside.journal.lock().unwrap().at_once_max
    }
}

async fn answer(State(inside): State<Inside>, Json(request): Json<Value>) -> Response {
    let text = request["messages"][0]["content"].as_str().unwrap();
    let mark = text
        .split_once(MARK)
        .map_or("", |(_, mark)| mark)
        .to_owned();
    let _asking = Asking::begin(&inside, &mark);
    tokio::time::sleep(inside.delay).await;
    if mark.contains(ENDLESS) {
        let chunk = Bytes::from(vec![b' '; CHUNK_BYTES]);
        let chunks = stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone()));
        return Body::from_stream(chunks).into_response();
    }
    let mut output = format!("An answer to {mark}.");
    if mark.contains(LONG) {
        // Hardly to be compressed, or it would not fill the disk.
        output.extend(noise().take(LONG_BYTES));
    }
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-mini",
        "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": output}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }))
    .into_response()
}

/// Letters without a pattern that a compressor finds.
pub(crate) fn noise() -> impl Iterator<Item = char> {
    let mut chance = Chance::of_case(1, 1);
    std::iter::repeat_with(move || chance.pick(&ALPHABET))
}

/// Counts in the journal for as long as somebody waits for the answer.
struct Asking(Arc<Mutex<Journal>>);

impl Asking {
    fn begin(inside: &Inside, mark: &str) -> Self {
        let mut journal = inside.journal.lock().unwrap();
        *journal.asked.entry(mark.to_owned()).or_default() += 1;
        journal.at_once += 1;
        journal.at_once_max = journal.at_once_max.max(journal.at_once);
        Self(Arc::clone(&inside.journal))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.lock().unwrap().at_once -= 1;
    }
}
