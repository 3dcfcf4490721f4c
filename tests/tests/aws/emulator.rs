//! The calls of AWS that an operator makes, sent to ministack, which checks no signature.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tests::peers::{AWS_REGION, ministack_url};
use tokio::time::{Instant, sleep};

const CALL_LIMIT: Duration = Duration::from_secs(120);

/// On the busiest machine: a function may have to start first.
const WAIT_LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(200);

pub(crate) struct Emulator {
    pub(crate) http: Client,
    pub(crate) url: String,
}

/// What a function came to.
#[derive(Debug)]
pub(crate) struct Invoked {
    pub(crate) ok: bool,
    pub(crate) body: Value,
}

impl Emulator {
    pub(crate) fn new() -> Self {
        Self {
            http: Client::builder()
                .timeout(CALL_LIMIT)
                .no_proxy()
                .build()
                .unwrap(),
            url: ministack_url(),
        }
    }

    /// A request to a service; the emulator takes service and Region from the header's scope.
    pub(crate) fn request(&self, service: &str, method: &str, path: &str) -> RequestBuilder {
        let scope = format!("test/20260101/{AWS_REGION}/{service}/aws4_request");
        self.http
            .request(method.parse().unwrap(), format!("{}{path}", self.url))
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none"),
            )
    }

    /// A call of a service that speaks in forms and XML.
    pub(crate) async fn query(&self, service: &str, fields: &[(String, String)]) -> String {
        let body = fields
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)));
        let request = self
            .request(service, "POST", "/")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.collect::<Vec<_>>().join("&"));
        answer(request).await
    }

    /// A call of a service that speaks in JSON.
    pub(crate) async fn json(&self, service: &str, target: &str, body: &Value) -> Value {
        let request = self
            .request(service, "POST", "/")
            .header("x-amz-target", target)
            .header("content-type", "application/x-amz-json-1.1")
            .body(body.to_string());
        serde_json::from_str(&answer(request).await).unwrap_or_default()
    }

    pub(crate) async fn create_secret(&self, name: &str, value: &Value) -> String {
        let body = json!({"Name": name, "SecretString": value.to_string()});
        let made = self
            .json("secretsmanager", "secretsmanager.CreateSecret", &body)
            .await;
        made["ARN"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn secret(&self, arn: &str) -> Value {
        let body = json!({"SecretId": arn});
        let read = self
            .json("secretsmanager", "secretsmanager.GetSecretValue", &body)
            .await;
        serde_json::from_str(read["SecretString"].as_str().unwrap()).unwrap()
    }

    pub(crate) async fn put_secret(&self, arn: &str, value: &Value) {
        let body = json!({"SecretId": arn, "SecretString": value.to_string()});
        self.json("secretsmanager", "secretsmanager.PutSecretValue", &body)
            .await;
    }

    pub(crate) async fn sqs(&self, action: &str, body: &Value) -> Value {
        self.json("sqs", &format!("AmazonSQS.{action}"), body).await
    }

    /// Calls a function and waits for what it says.
    pub(crate) async fn invoke(&self, function: &str, event: &Value) -> Invoked {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let request = self
            .request("lambda", "POST", &path)
            .body(event.to_string());
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{function}: {response:?}");
        Invoked {
            ok: !response.headers().contains_key("x-amz-function-error"),
            body: response.json().await.unwrap(),
        }
    }
}

/// Sends it, and gives what was answered.
pub(crate) async fn answer(request: RequestBuilder) -> String {
    let response = request.send().await.unwrap();
    let (status, url) = (response.status(), response.url().clone());
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{url}: {status}: {text}");
    text
}

/// What stands between the first `<name>` and its end, and what follows.
pub(crate) fn element<'a>(xml: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (_, after) = xml.split_once(&format!("<{name}>"))?;
    after.split_once(&format!("</{name}>"))
}

fn encoded(text: &str) -> String {
    let sign = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(sign).collect()
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let limit = Instant::now() + WAIT_LIMIT;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < limit, "never: {what}");
        sleep(POLL).await;
    }
}
