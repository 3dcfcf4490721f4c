//! A tenant that calls the API over HTTP.

use std::time::Duration;

use serde_json::{Value, json};
use tests::peers;
use uuid::Uuid;

use crate::carillon::{Carillon, PLATFORM_KEY, eventually};

const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Statuses after which a run changes no more by itself.
const ENDED: [&str; 6] = [
    "succeeded",
    "failed",
    "timed_out",
    "cancelled",
    "skipped",
    "missed",
];

/// Statuses that a delivery is not left in.
const OPEN: [&str; 3] = ["pending", "sending", "retrying"];

#[derive(Clone)]
pub(crate) struct Tenant {
    http: reqwest::Client,
    base: String,
    key: String,
    /// A path of its own at the webhook receiver.
    hooks: String,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl Tenant {
    /// A new tenant, made by the operator.
    pub(crate) async fn new(carillon: &Carillon, name: &str) -> Self {
        let operator = Self::with_key(carillon, PLATFORM_KEY);
        let body = json!({ "name": name, "owner_email": format!("{name}@reader.example"),
            "limits": { "concurrent_runs_max": 100 } });
        let made = operator.post("/v1/admin/tenants", body).await;
        Self::with_key(carillon, text(&made["api_key"]["key"]))
    }

    /// The tenant that a first start makes.
    pub(crate) fn first(carillon: &Carillon) -> Self {
        Self::with_key(carillon, carillon.first_key.as_ref().unwrap())
    }

    pub(crate) fn with_key(carillon: &Carillon, key: &str) -> Self {
        let http = reqwest::Client::builder()
            .timeout(CALL_LIMIT)
            .no_proxy()
            .build()
            .unwrap();
        Self {
            http,
            base: carillon.url.clone(),
            key: key.to_owned(),
            hooks: format!("/hooks/{}", Uuid::new_v4().simple()),
        }
    }

    /// The same tenant at another process on the same data.
    pub(crate) fn at(self, carillon: &Carillon) -> Self {
        Self {
            base: carillon.url.clone(),
            ..self
        }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let method = method.parse().unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.bearer_auth(&self.key).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        Reply {
            status,
            body: serde_json::from_str(&text).unwrap_or_default(),
            text,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let reply = self.send("GET", path, None).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        reply.body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let reply = self.send("POST", path, Some(&body)).await;
        assert!(reply.status < 300, "{path}: {}", reply.text);
        reply.body
    }

    /// A POST that may be repeated.
    pub(crate) async fn post_repeatable(&self, path: &str, body: Value, repeat: &str) -> Value {
        let request = self.http.post(format!("{}{path}", self.base)).json(&body);
        let request = request.header("idempotency-key", repeat);
        let response = request.bearer_auth(&self.key).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        response.json().await.unwrap()
    }

    /// Makes a prompt that runs on demand, with these fields changed.
    pub(crate) async fn prompt(&self, change: Value) -> Value {
        let mut body = json!({
            "prompt_name": "Harbour watch",
            "prompt_text": unique(""),
            "model": "echo/echo-1",
            "schedule": { "type": "manual" },
            "destinations": [],
            "retry_delay_ms": 1000,
        });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.post("/v1/prompts", body).await
    }

    pub(crate) async fn read_prompt(&self, prompt: &Value) -> Value {
        self.get(&format!("/v1/prompts/{}", text(&prompt["id"])))
            .await
    }

    /// Asks for a run, which has yet to begin.
    pub(crate) async fn start(&self, prompt: &Value) -> Value {
        let path = format!("/v1/prompts/{}/run", text(&prompt["id"]));
        self.post(&path, json!({})).await
    }

    /// Runs a prompt to its end.
    pub(crate) async fn run(&self, prompt: &Value) -> Value {
        let run = self.start(prompt).await;
        self.ended(&run).await
    }

    pub(crate) async fn read_run(&self, run: &Value) -> Value {
        self.get(&format!("/v1/runs/{}", text(&run["id"]))).await
    }

    pub(crate) async fn ended(&self, run: &Value) -> Value {
        let is_over = |run: &Value| ENDED.contains(&text(&run["status"]));
        self.until(run, "the run's end", is_over).await
    }

    /// Waits until a run's model has answered, or will not.
    pub(crate) async fn ended_or_answered(&self, run: &Value) -> Value {
        let is_over = |run: &Value| !["queued", "running"].contains(&text(&run["status"]));
        self.until(run, "the model's answer", is_over).await
    }

    /// Waits for a run to be as wanted.
    pub(crate) async fn until(
        &self,
        run: &Value,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let ask = async || Some(self.read_run(run).await).filter(|run| wanted(run));
        eventually(what, ask).await
    }

    pub(crate) async fn deliveries(&self, run: &Value) -> Vec<Value> {
        let path = format!("/v1/runs/{}/deliveries", text(&run["id"]));
        items(&self.get(&path).await)
    }

    /// The deliveries of a run when none is open any more.
    pub(crate) async fn settled(&self, run: &Value) -> Vec<Value> {
        eventually("the deliveries' end", async || {
            let all = self.deliveries(run).await;
            let is_open = |one: &Value| OPEN.contains(&text(&one["status"]));
            (!all.iter().any(is_open)).then_some(all)
        })
        .await
    }

    pub(crate) async fn redeliver(&self, delivery: &Value) -> Value {
        let path = format!("/v1/deliveries/{}/redeliver", text(&delivery["id"]));
        self.post(&path, json!({})).await
    }

    /// A webhook destination whose path ends so; the end says how the receiver answers.
    pub(crate) fn webhook(&self, end: &str) -> Value {
        let url = format!("{}{}{end}", peers::webhook_url(), self.hooks);
        json!({ "kind": "webhook", "url": url })
    }

    /// What the receiver got from this tenant at that end of the path.
    pub(crate) async fn received(&self, end: &str) -> Vec<Value> {
        let path = format!("{}{end}", self.hooks);
        peers::webhook_journal(&path).await.unwrap()
    }

    /// A new signing secret.
    pub(crate) async fn new_secret(&self) -> String {
        let rotated = self.post("/v1/webhook-secret/rotate", json!({})).await;
        text(&rotated["secret"]).to_owned()
    }

    /// Tells the receiver which secret to verify with, at that end of the path and below.
    pub(crate) async fn verify_with(&self, end: &str, secret: &str) {
        let path = format!("{}{end}", self.hooks);
        peers::webhook_secrets(&path, &[secret]).await.unwrap();
    }
}

/// An email destination.
pub(crate) fn email() -> Value {
    json!({ "kind": "email", "to": ["crew@reader.example"], "subject": "Harbour, daily" })
}

/// A prompt's text that no other prompt has.
pub(crate) fn unique(text: &str) -> String {
    format!("prompt-text-{} {text}", Uuid::new_v4().simple())
}

#[track_caller]
pub(crate) fn text(value: &Value) -> &str {
    match value.as_str() {
        Some(text) => text,
        None => panic!("{value} is no text"),
    }
}

#[track_caller]
pub(crate) fn items(page: &Value) -> Vec<Value> {
    page["items"].as_array().unwrap().clone()
}

/// One field of each.
pub(crate) fn each<'a>(all: &'a [Value], field: &str) -> Vec<&'a str> {
    all.iter().map(|one| text(&one[field])).collect()
}
