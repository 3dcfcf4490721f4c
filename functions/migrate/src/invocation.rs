//! One invocation: by CloudFormation, as a custom resource, or by hand.
//!
//! Whatever an event looks like, CloudFormation is answered where it asked to be: without an answer it
//! waits for minutes and then goes back without a reason (AWS CloudFormation User Guide, "Custom
//! resource request and response reference").

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, redirect};
use serde::Serialize;
use serde_json::Value;

/// Another id would tell CloudFormation that the resource was replaced, and have the old one deleted.
const PHYSICAL_ID: &str = "migrations";

/// CloudFormation takes 4 kB in all.
const REASON_CHARS_MAX: usize = 1_000;

const ANSWER_TRIES: u32 = 3;
const ANSWER_LIMIT: Duration = Duration::from_secs(8);
const ANSWER_PAUSE: Duration = Duration::from_secs(1);

/// The longest that all tries of an answer take together.
pub(crate) const ANSWERING_LIMIT: Duration = Duration::from_secs(28);

/// What is asked for, and who waits for the answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) request: Request,
    pub(crate) reply_to: Option<ReplyTo>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Of a stack that is made or changed, and by hand.
    Migrate,
    /// Of a stack that goes: the database stays as it is.
    Delete,
    /// Nothing that CloudFormation sends.
    Unknown,
}

/// Where CloudFormation waits, and what it wants to have repeated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    url: String,
    stack_id: String,
    request_id: String,
    logical_resource_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    physical_resource_id: &'static str,
    stack_id: &'a str,
    request_id: &'a str,
    logical_resource_id: &'a str,
}

impl Invocation {
    pub(crate) fn read(event: &Value) -> Self {
        let text = |name: &str| {
            event
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let url = text("ResponseURL");
        let request = match event.get("RequestType") {
            None => Request::Migrate,
            Some(given) => match given.as_str() {
                Some("Create" | "Update") => Request::Migrate,
                Some("Delete") => Request::Delete,
                _ => Request::Unknown,
            },
        };
        let reply_to = (!url.is_empty()).then(|| ReplyTo {
            url,
            stack_id: text("StackId"),
            request_id: text("RequestId"),
            logical_resource_id: text("LogicalResourceId"),
        });
        Self { request, reply_to }
    }
}

/// What sends answers.
///
/// # Errors
/// When the TLS stack cannot be set up.
pub(crate) fn client() -> Result<Client> {
    let builder = Client::builder()
        .tls_backend_preconfigured(shared::tls::client_config())
        .timeout(ANSWER_LIMIT)
        .redirect(redirect::Policy::none());
    builder
        .build()
        .context("cannot make the client of the answers")
}

/// Tells CloudFormation how it ended.
pub(crate) async fn answer(
    client: &Client,
    to: &ReplyTo,
    outcome: Result<(), &anyhow::Error>,
) -> Result<()> {
    let answer = Answer {
        status: if outcome.is_ok() { "SUCCESS" } else { "FAILED" },
        reason: outcome.err().map(reason),
        physical_resource_id: PHYSICAL_ID,
        stack_id: &to.stack_id,
        request_id: &to.request_id,
        logical_resource_id: &to.logical_resource_id,
    };
    let body = serde_json::to_vec(&answer)?;
    let mut tries = 1;
    loop {
        let Err(error) = put(client, &to.url, body.clone()).await else {
            return Ok(());
        };
        if tries == ANSWER_TRIES {
            return Err(error.context("CloudFormation could not be told"));
        }
        tries += 1;
        tokio::time::sleep(ANSWER_PAUSE).await;
    }
}

/// The URL is signed for a request without a content type, and is as good as a password.
async fn put(client: &Client, url: &str, body: Vec<u8>) -> Result<()> {
    let sent = client.put(url).body(body).send().await;
    let response = sent.map_err(reqwest::Error::without_url)?;
    let status = response.status();
    ensure!(status.is_success(), "the answer was refused with {status}");
    Ok(())
}

/// A failure and its causes in one bounded line.
pub(crate) fn reason(error: &anyhow::Error) -> String {
    let whole = format!("{error:#}");
    let line = whole.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, extract::State, http::StatusCode, routing::put};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_is_understood_as_far_as_it_goes() {
        let read = |event: Value| Invocation::read(&event);
        for kind in ["Create", "Update"] {
            assert_eq!(read(json!({"RequestType": kind})).request, Request::Migrate);
        }
        assert_eq!(read(json!({})).request, Request::Migrate);
        assert_eq!(
            read(json!({"RequestType": "Delete"})).request,
            Request::Delete
        );
        for odd in [json!("Upgrade"), json!(7), json!(null)] {
            let event = json!({"RequestType": odd, "ResponseURL": "http://x", "StackId": 7});
            let invocation = read(event);
            assert_eq!(invocation.request, Request::Unknown);
            let reply_to = invocation.reply_to.unwrap();
            assert_eq!((&*reply_to.url, &*reply_to.stack_id), ("http://x", ""));
        }
        assert_eq!(read(json!("nonsense")).reply_to, None);
    }

    #[test]
    fn a_reason_is_one_bounded_line() {
        let error = anyhow::anyhow!("ERROR: no\nDETAIL: \u{e9}{}", "x".repeat(5_000));
        let told = reason(&error.context("database migration"));
        assert!(
            told.starts_with("database migration: ERROR: no DETAIL: \u{e9}xx"),
            "{told}"
        );
        assert_eq!(told.chars().count(), REASON_CHARS_MAX);
    }

    type Told = Arc<Mutex<Vec<(Option<String>, Value)>>>;

    /// A bucket of CloudFormation that refuses so many answers first.
    async fn bucket(refusals: usize) -> (ReplyTo, Told) {
        let told = Told::default();
        let router = Router::new()
            .route(
                "/answer",
                put(
                    move |State(told): State<Told>,
                          headers: axum::http::HeaderMap,
                          body: String| async move {
                        let mut told = told.lock().unwrap();
                        let kind = headers
                            .get("content-type")
                            .map(|kind| kind.to_str().unwrap().to_owned());
                        told.push((kind, serde_json::from_str(&body).unwrap()));
                        if told.len() > refusals {
                            StatusCode::OK
                        } else {
                            StatusCode::SERVICE_UNAVAILABLE
                        }
                    },
                ),
            )
            .with_state(Arc::clone(&told));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!(
            "http://{}/answer?signature=hunter2",
            listener.local_addr().unwrap()
        );
        tokio::spawn(async move { axum::serve(listener, router).await });
        let event = json!({"ResponseURL": url, "StackId": "stack", "RequestId": "request",
            "LogicalResourceId": "Migration"});
        (Invocation::read(&event).reply_to.unwrap(), told)
    }

    #[tokio::test]
    async fn the_answer_is_what_cloudformation_takes() {
        let (to, told) = bucket(0).await;
        answer(&client().unwrap(), &to, Ok(())).await.unwrap();
        let failure = anyhow::anyhow!("no such role");
        answer(&client().unwrap(), &to, Err(&failure))
            .await
            .unwrap();
        let common = json!({"PhysicalResourceId": "migrations", "StackId": "stack",
            "RequestId": "request", "LogicalResourceId": "Migration"});
        for ((kind, body), (status, reason)) in told
            .lock()
            .unwrap()
            .iter()
            .zip([("SUCCESS", None), ("FAILED", Some("no such role"))])
        {
            let mut expected = common.clone();
            expected["Status"] = json!(status);
            if let Some(reason) = reason {
                expected["Reason"] = json!(reason);
            }
            // A content type would have to be part of the URL's signature.
            assert_eq!((kind.as_deref(), body), (None, &expected));
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_refused_is_sent_again_a_few_times() {
        let (to, told) = bucket(2).await;
        answer(&client().unwrap(), &to, Ok(())).await.unwrap();
        assert_eq!(told.lock().unwrap().len(), 3);
        let (to, told) = bucket(9).await;
        let error = answer(&client().unwrap(), &to, Ok(())).await.unwrap_err();
        assert_eq!(told.lock().unwrap().len(), 3);
        let words = format!("{error:#}");
        assert!(
            words.contains("503") && !words.contains("hunter2"),
            "{words}"
        );
    }
}
