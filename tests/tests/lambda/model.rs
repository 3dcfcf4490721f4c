//! A model that answers at once, except where a test holds it back: no emulator waits for a word.

use axum::{Json, Router, extract::State, routing::post};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What a prompt says whose answer is held back.
pub(crate) const HELD: &str = "held back";

/// A running model. It ends with its test.
pub(crate) struct Model {
    pub(crate) base_url: String,
    released: watch::Sender<bool>,
    asked: watch::Sender<usize>,
}

#[derive(Clone)]
struct Inside {
    released: watch::Receiver<bool>,
    asked: watch::Sender<usize>,
}

impl Model {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (released, seen) = watch::channel(false);
        let asked = watch::Sender::new(0);
        let inside = Inside {
            released: seen,
            asked: asked.clone(),
        };
        let router = Router::new()
            .route("/v1/chat/completions", post(answer))
            .with_state(inside);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            base_url,
            released,
            asked,
        }
    }

    /// Lets the answers go that are held back.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    /// How many requests came.
    pub(crate) fn asked(&self) -> usize {
        *self.asked.borrow()
    }
}

async fn answer(State(mut inside): State<Inside>, Json(request): Json<Value>) -> Json<Value> {
    inside.asked.send_modify(|asked| *asked += 1);
    if request.to_string().contains(HELD) {
        // The test that held it back may be over.
        let _ = inside.released.wait_for(|released| *released).await;
    }
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-mini",
        "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "An answer."}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }))
}
