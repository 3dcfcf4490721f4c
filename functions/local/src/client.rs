//! A caller of the API on this machine.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use shared::secret::Secret;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Calls the API with a key.
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    key: Secret,
}

impl Client {
    /// A caller of the API at this address.
    ///
    /// # Errors
    /// When the system's TLS cannot be prepared.
    pub(crate) fn new(address: SocketAddr, key: &Secret) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder()
                .timeout(TIMEOUT)
                .no_proxy()
                .build()?,
            base: format!("http://{address}"),
            key: key.clone(),
        })
    }

    /// Reads.
    ///
    /// # Errors
    /// When the answer is not a success; its text is in the error.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.send(self.http.get(format!("{}{path}", self.base)), path)
            .await
    }

    /// Writes.
    ///
    /// # Errors
    /// When the answer is not a success; its text is in the error.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(
            self.http.post(format!("{}{path}", self.base)).json(body),
            path,
        )
        .await
    }

    async fn send(&self, request: reqwest::RequestBuilder, path: &str) -> Result<Value> {
        let response = request.bearer_auth(self.key.expose()).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{path} answered {status}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("{path} did not answer with JSON"))
    }
}
