//! A model that answers at once, except where a prompt asks it to wait, or a test holds it back: no
//! emulator does either. It takes webhooks too.

#![expect(
    clippy::unwrap_used,
    reason = "only tests call this, and a test may panic"
)]

use std::time::Duration;

use axum::{Json, Router, extract::State, routing::post};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What a prompt says whose answer is held back.
pub const HELD: &str = "held back";

/// Before the number of milliseconds for which a prompt wants the answer to wait.
pub const WAITS: &str = "wait_ms=";

/// Before the number of bytes that a prompt wants for an answer.
pub const WRITES: &str = "write_bytes=";

/// The longest of such waits, and the longest of such answers.
const NUMBER_MAX: usize = 1_000_000;

/// A running model. It ends with its test.
pub struct Model {
    /// Where it is called.
    pub base_url: String,
    /// Where it takes webhooks.
    pub hook_url: String,
    released: watch::Sender<bool>,
    asked: watch::Sender<usize>,
    hooks: watch::Sender<usize>,
}

#[derive(Clone)]
struct Inside {
    released: watch::Receiver<bool>,
    asked: watch::Sender<usize>,
    hooks: watch::Sender<usize>,
}

impl Model {
    /// Starts one.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (released, seen) = watch::channel(false);
        let asked = watch::Sender::new(0);
        let hooks = watch::Sender::new(0);
        let inside = Inside {
            released: seen,
            asked: asked.clone(),
            hooks: hooks.clone(),
        };
        let router = Router::new()
            .route("/v1/chat/completions", post(answer))
            .route("/hook", post(hook))
            .with_state(inside);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            base_url: format!("http://{address}/v1"),
            hook_url: format!("http://{address}/hook"),
            released,
            asked,
            hooks,
        }
    }

    /// Lets the answers go that are held back.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// How many requests came.
    #[must_use]
    pub fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    /// How many webhooks came.
    #[must_use]
    pub fn hooks(&self) -> usize {
        *self.hooks.borrow()
    }
}

async fn hook(State(inside): State<Inside>) {
    inside.hooks.send_modify(|hooks| *hooks += 1);
}

async fn answer(State(mut inside): State<Inside>, Json(request): Json<Value>) -> Json<Value> {
    inside.asked.send_modify(|asked| *asked += 1);
    let text = request.to_string();
    if let Some(wait_ms) = number(&text, WAITS) {
        tokio::time::sleep(Duration::from_millis(wait_ms.try_into().unwrap_or(0))).await;
    }
    let output =
        number(&text, WRITES).map_or_else(|| "An answer.".to_owned(), |bytes| "a".repeat(bytes));
    if text.contains(HELD) {
        // The test that held it back may be over.
        let _ = inside.released.wait_for(|released| *released).await;
    }
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-mini",
        "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": output}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }))
}

fn number(text: &str, after: &str) -> Option<usize> {
    let (_, rest) = text.split_once(after)?;
    let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|number| *number <= NUMBER_MAX)
}
