//! Asks the issuer for its keys: its description, then the set of keys that this names.
//!
//! Each answer has a bound, both together a deadline; a redirect is an answer like any other that is
//! not 200, and no proxy is asked. The issuer is the operator's choice, so its address is not judged.

use std::time::Duration;

use axum::body::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use shared::tls;
use tokio::time::timeout;
use url::Url;

use super::{Issuer, keys::KeySet};

/// Of both calls together.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Why the issuer's keys could not be had. No address and no answer of the issuer is in it.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It took longer than five seconds.
    #[error("the issuer did not answer in time")]
    TimedOut,
    /// No connection, or one that broke.
    #[error("the issuer cannot be reached")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answered with another status than 200.
    #[error("the issuer answered with the status {0}")]
    Status(StatusCode),
    /// Its answer is too large, broke off, or is no JSON.
    #[error("the issuer's answer cannot be read")]
    Answer,
    /// It calls itself by another name than we do.
    #[error("the issuer calls itself otherwise; CARILLON_OIDC_ISSUER must be what it says")]
    OtherIssuer,
    /// It names no place for its keys, or one where they would not be safe.
    #[error("the issuer names no place for its keys that can be used")]
    KeyUrl,
    /// What is there is no set of keys.
    #[error("the issuer's keys cannot be read")]
    KeySet,
}

type Https = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Calls one issuer.
pub(super) struct Fetcher {
    issuer: Issuer,
}

impl Fetcher {
    pub(super) fn new(issuer: Issuer) -> Self {
        Self { issuer }
    }

    /// The keys that the issuer shows at the moment.
    pub(super) async fn key_set(&self) -> Result<KeySet, FetchError> {
        timeout(FETCH_LIMIT, self.both_calls())
            .await
            .map_err(|_| FetchError::TimedOut)?
    }

    async fn both_calls(&self) -> Result<KeySet, FetchError> {
        // Made anew each time: calls are minutes apart, and a process that sees no token needs none.
        let client = client();
        let description = self.issuer.discovery().ok_or(FetchError::KeyUrl)?;
        let description = get(&client, &description).await?;
        if description["issuer"].as_str() != Some(self.issuer.as_str()) {
            return Err(FetchError::OtherIssuer);
        }
        let url = description["jwks_uri"]
            .as_str()
            .and_then(|text| self.issuer.key_url(text))
            .ok_or(FetchError::KeyUrl)?;
        KeySet::parse(&get(&client, &url).await?).ok_or(FetchError::KeySet)
    }
}

async fn get(client: &Https, url: &Url) -> Result<Value, FetchError> {
    let request = Request::get(url.as_str())
        .header(header::ACCEPT, "application/json")
        .body(Empty::new())
        .map_err(|_| FetchError::KeyUrl)?;
    let sent = client.request(request).await;
    let answer = sent.map_err(|error| FetchError::Connection(Box::new(error)))?;
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Status(answer.status()));
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    let bytes = body.collect().await.map_err(|_| FetchError::Answer)?;
    serde_json::from_slice(&bytes.to_bytes()).map_err(|_| FetchError::Answer)
}

fn client() -> Https {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls::client_config())
        // Where http is not safe, `Issuer` has refused it.
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector)
}
