//! The one way to change something.
//!
//! A command runs in one transaction: the effect, its line in the audit trail and, for a request
//! with an `Idempotency-Key`, the answer to give again commit together or not at all. Wake-ups are
//! offered, and a prompt is applied to the scheduler, after the commit: whoever is woken must see the
//! rows, and no transaction spans a call.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use shared::{
    api_key::Role,
    crash_point,
    db::{
        TenantTx,
        audit::{Action, Actor, Event, Outcome},
        idempotency::{self, Begin},
    },
    fault::Fault,
    ids::{PromptId, TenantId},
    message::WakeUp,
    scheduler::SyncState,
    seal::{Purpose, Sealing},
};
use tokio::time::timeout;
use tracing::warn;
use uuid::Uuid;

use crate::{
    app::App,
    auth::{Caller, Operator},
    error::ApiError,
    request::RequestId,
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The column holds 255; the rest says whose key it is.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 200;
/// Well under the whole request's bound, which would put the blame on us.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What a caller waits for the scheduler. What is not done by then, the sweeper does.
const APPLY_TIME: Duration = Duration::from_secs(2);
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The body of a request that changes something, and how it wants to be repeated.
#[derive(Debug)]
pub struct Command {
    body: Bytes,
    is_json: bool,
    idempotency_key: Option<String>,
    request_hash: [u8; 32],
}

impl FromRequest<App> for Command {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        // Only a repeated POST would do something twice.
        let idempotency_key = match *request.method() {
            Method::POST => idempotency_key(request.headers())?,
            _ => None,
        };
        let is_json = is_json(request.headers());
        let mut hasher = Sha256::new();
        // Not the whole URI: behind a proxy its host may differ from one try to the next.
        let target = request.uri().path_and_query();
        let target = target.map_or("/", |target| target.as_str());
        for part in [request.method().as_str(), target] {
            hasher.update(part.len().to_be_bytes());
            hasher.update(part);
        }
        let body = whole_body(request, app).await?;
        hasher.update(&body);
        Ok(Self {
            body,
            is_json,
            idempotency_key,
            request_hash: hasher.finalize().into(),
        })
    }
}

impl Command {
    /// A command without a request, of the process itself.
    pub(crate) fn of_process() -> Self {
        Self {
            body: Bytes::new(),
            is_json: false,
            idempotency_key: None,
            request_hash: [0; 32],
        }
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// 415 for another content type, 400 for text that is no JSON.
    pub fn json(&self) -> Result<Value, ApiError> {
        if !self.is_json {
            return Err(ApiError::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            // The library's own text may repeat what was sent.
            ApiError::invalid_json(format!(
                "the body is not JSON; look at line {}, column {}",
                error.line(),
                error.column()
            ))
        })
    }

    /// The body as JSON; an empty one is an empty object.
    ///
    /// # Errors
    /// As [`Command::json`].
    pub fn json_or_empty(&self) -> Result<Value, ApiError> {
        if self.body.is_empty() {
            return Ok(json!({}));
        }
        self.json()
    }

    /// Runs `handler` for a tenant's caller who has at least `role`.
    ///
    /// Whatever may answer differently a second time (reading the body against the clock, looking
    /// for an object) belongs inside `handler`: a repeated request must not get as far.
    ///
    /// # Errors
    /// 403, what `handler` gives, 409 and 422 of the `Idempotency-Key`, 503. Nothing was changed
    /// then, but for a connection that broke during the commit: repeat with the same key.
    pub async fn run(
        &self,
        app: &App,
        caller: &Caller,
        role: Role,
        action: Action,
        handler: impl AsyncFnOnce(&TenantTx) -> Result<Answer, ApiError>,
    ) -> Result<Response, ApiError> {
        let by = By {
            tenant: caller.tenant_id(),
            actor: caller.actor(),
            request_id: caller.request_id(),
        };
        if let Err(refusal) = caller.require(role) {
            let tx = app.db.tenant(by.tenant).await?;
            let event = by.event(action, None, Outcome::Refused, json!({}));
            idempotency::commit(tx, Some(&event), None).await?;
            return Err(refusal);
        }
        self.transact(app, &by, action, handler).await
    }

    /// Runs `handler` for the operator, in the rows of `tenant`.
    ///
    /// # Errors
    /// As [`Command::run`], without the role.
    pub async fn run_as_operator(
        &self,
        app: &App,
        operator: &Operator,
        tenant: TenantId,
        action: Action,
        handler: impl AsyncFnOnce(&TenantTx) -> Result<Answer, ApiError>,
    ) -> Result<Response, ApiError> {
        let by = By {
            tenant,
            actor: Actor::Platform,
            request_id: operator.request_id(),
        };
        self.transact(app, &by, action, handler).await
    }

    /// The id that a tenant made by this request gets. A request with an `Idempotency-Key` always
    /// gets the same one, since the answer to give again is kept among that tenant's rows.
    pub(crate) fn id_of_new_tenant(&self) -> TenantId {
        let Some(key) = &self.idempotency_key else {
            return TenantId::new();
        };
        let mut hasher = Sha256::new();
        hasher.update(b"carillon/tenant/1/");
        hasher.update(key);
        let hash: [u8; 32] = hasher.finalize().into();
        let mut bytes = [0; 16];
        for (byte, source) in bytes.iter_mut().zip(hash) {
            *byte = source;
        }
        TenantId::from(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    async fn transact(
        &self,
        app: &App,
        by: &By<'_>,
        action: Action,
        handler: impl AsyncFnOnce(&TenantTx) -> Result<Answer, ApiError>,
    ) -> Result<Response, ApiError> {
        let key = self.idempotency_key.as_ref().map(|key| by.scoped(key));
        // Before the transaction: it may ask KMS.
        let sealing = match &key {
            Some(_) => Some(ready(app, by.tenant).await?),
            None => None,
        };
        let tx = app.db.tenant(by.tenant).await?;
        let attempt = async {
            if let Some(key) = &key
                && let Some((status, sealed)) = self.answered(&tx, key).await?
            {
                return Ok(Attempt::Answered(status, sealed));
            }
            handler(&tx).await.map(Attempt::Done)
        };
        let mut answer = match attempt.await {
            Ok(Attempt::Done(answer)) => answer,
            Ok(Attempt::Answered(status, sealed)) => {
                let _ = tx.rollback().await;
                return replay(app, by.tenant, status, &sealed).await;
            }
            Err(error) => {
                // A connection that cannot roll back is closed by the drop, with the same effect.
                let _ = tx.rollback().await;
                return Err(error);
            }
        };
        let event = answer
            .changed
            .then(|| by.event(action, answer.target, Outcome::Ok, answer.detail.clone()));
        let stored = key
            .zip(sealing)
            .map(|(key, sealing)| self.stored(key, &sealing, &answer))
            .transpose()?;
        crash_point!(CommandWritten);
        idempotency::commit(tx, event.as_ref(), stored.as_ref()).await?;
        crash_point!(CommandCommitted);
        // The change is kept, whatever becomes of this: the sweeper finds what nobody was woken for.
        app.queue.offer(&answer.wake_ups, Duration::ZERO).await;
        crash_point!(CommandOffered);
        if let Some(prompt_id) = answer.applies {
            answer.tell(apply(app, by.tenant, prompt_id).await.as_ref())?;
        }
        crash_point!(CommandApplied);
        answer.into_response()
    }

    /// The sealed answer to the same request, if there is one.
    async fn answered(&self, tx: &TenantTx, key: &str) -> Result<Option<(i32, Vec<u8>)>, ApiError> {
        match idempotency::begin(tx, key, &self.request_hash).await? {
            Begin::Fresh => Ok(None),
            Begin::InFlight => Err(ApiError::in_flight()),
            Begin::OtherRequest => Err(ApiError::idempotency_mismatch()),
            Begin::Answered { status, sealed } => Ok(Some((status, sealed))),
        }
    }

    fn stored(
        &self,
        key: String,
        sealing: &Sealing<'_>,
        answer: &Answer,
    ) -> Result<idempotency::Answer, ApiError> {
        let plain =
            zeroize::Zeroizing::new(serde_json::to_vec(&answer.kept).map_err(ApiError::internal)?);
        Ok(idempotency::Answer {
            key,
            request_hash: self.request_hash,
            status: i32::from(answer.status.as_u16()),
            sealed: sealing.seal(&plain)?,
        })
    }
}

async fn ready(app: &App, tenant: TenantId) -> Result<Sealing<'_>, ApiError> {
    Ok(app.sealer.ready(tenant, Purpose::IdempotentAnswer).await?)
}

/// Gives an answer again.
async fn replay(
    app: &App,
    tenant: TenantId,
    status: i32,
    sealed: &[u8],
) -> Result<Response, ApiError> {
    let purpose = Purpose::IdempotentAnswer;
    let plain = app.sealer.open(tenant, purpose, sealed).await?;
    let kept: Kept = serde_json::from_slice(&plain).map_err(ApiError::internal)?;
    let mut response = kept.into_response(status)?;
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// Makes the scheduler follow a prompt that was changed; `None` where the database did not say how
/// that went. The change stands in any case.
async fn apply(app: &App, tenant: TenantId, prompt_id: PromptId) -> Option<SyncState> {
    let applying = app.scheduler.apply(&app.db, tenant, prompt_id, APPLY_TIME);
    match applying.await {
        Ok(applied) => Some(applied.sync),
        Err(error) => {
            warn!(tenant.id = %tenant, prompt.id = %prompt_id, %error, "prompt not applied; the sweeper will");
            None
        }
    }
}

enum Attempt {
    Done(Answer),
    /// The same request was answered before.
    Answered(i32, Vec<u8>),
}

/// On whose behalf a command runs.
struct By<'a> {
    tenant: TenantId,
    actor: Actor,
    request_id: &'a RequestId,
}

impl By<'_> {
    /// The operator's keys and the tenant's never meet.
    fn scoped(&self, key: &str) -> String {
        match self.actor {
            Actor::ApiKey { .. } | Actor::User(_) => format!("tenant:{key}"),
            Actor::Platform => format!("platform:{key}"),
        }
    }

    fn event(
        &self,
        action: Action,
        target_id: Option<Uuid>,
        outcome: Outcome,
        detail: Value,
    ) -> Event {
        Event {
            actor: self.actor,
            action,
            target_id,
            outcome,
            request_id: self.request_id.as_str().to_owned(),
            detail,
        }
    }
}

/// What a command answers, and what else follows from it.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    kept: Kept,
    target: Option<Uuid>,
    detail: Value,
    changed: bool,
    wake_ups: Vec<WakeUp>,
    applies: Option<PromptId>,
}

/// What of an answer is kept beside its status.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    headers: Vec<(String, String)>,
    body: Option<String>,
}

impl Kept {
    fn into_response(self, status: i32) -> Result<Response, ApiError> {
        let status = u16::try_from(status)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .ok_or_else(|| ApiError::internal("a stored answer has no HTTP status"))?;
        let mut response = match self.body {
            Some(body) => {
                let json = (header::CONTENT_TYPE, "application/json");
                (status, [json], body).into_response()
            }
            None => status.into_response(),
        };
        for (name, value) in self.headers {
            let name = HeaderName::try_from(name).map_err(ApiError::internal)?;
            let value = HeaderValue::try_from(value).map_err(ApiError::internal)?;
            response.headers_mut().insert(name, value);
        }
        Ok(response)
    }
}

impl Answer {
    /// An answer with a body.
    ///
    /// # Errors
    /// 500 when `body` cannot be written as JSON.
    pub fn json(status: StatusCode, body: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_string(body).map_err(ApiError::internal)?;
        Ok(Self::new(status, Some(body)))
    }

    /// 204.
    #[must_use]
    pub fn no_content() -> Self {
        Self::new(StatusCode::NO_CONTENT, None)
    }

    fn new(status: StatusCode, body: Option<String>) -> Self {
        Self {
            status,
            kept: Kept {
                headers: Vec::new(),
                body,
            },
            target: None,
            detail: json!({}),
            changed: true,
            wake_ups: Vec::new(),
            applies: None,
        }
    }

    /// The object that was changed, for the audit trail.
    #[must_use]
    pub fn about(mut self, target: Uuid) -> Self {
        self.target = Some(target);
        self
    }

    /// Small facts for the audit trail, as an object: names of changed fields, never their text.
    #[must_use]
    pub fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// Everything was so already: nothing is written to the audit trail.
    #[must_use]
    pub fn unchanged(mut self) -> Self {
        self.changed = false;
        self
    }

    /// The header `ETag`.
    #[must_use]
    pub fn etag(self, version: i64) -> Self {
        self.header(header::ETAG, format!("\"{version}\""))
    }

    /// The header `Location`, of an object that was made.
    #[must_use]
    pub fn location(self, path: String) -> Self {
        self.header(header::LOCATION, path)
    }

    /// Offered to the queue after the commit.
    #[must_use]
    pub fn wake(mut self, wake_up: WakeUp) -> Self {
        self.wake_ups.push(wake_up);
        self
    }

    /// The scheduler's entries are made to follow this prompt after the commit.
    #[must_use]
    pub fn apply(mut self, prompt_id: PromptId) -> Self {
        self.applies = Some(prompt_id);
        self
    }

    /// Says in a prompt's body how its entries stand by now.
    fn tell(&mut self, sync: Option<&SyncState>) -> Result<(), ApiError> {
        let (Some(sync), Some(body)) = (sync, &mut self.kept.body) else {
            return Ok(());
        };
        let mut prompt: Map<String, Value> =
            serde_json::from_str(body).map_err(ApiError::internal)?;
        prompt.insert("sync".to_owned(), json!(sync.status));
        prompt.insert("sync_error".to_owned(), json!(sync.error));
        *body = Value::Object(prompt).to_string();
        Ok(())
    }

    fn header(mut self, name: HeaderName, value: String) -> Self {
        self.kept.headers.push((name.to_string(), value));
        self
    }

    fn into_response(self) -> Result<Response, ApiError> {
        self.kept.into_response(i32::from(self.status.as_u16()))
    }
}

async fn whole_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    timeout(BODY_TIMEOUT, Bytes::from_request(request, state))
        .await
        .map_err(|_| ApiError::of_status(StatusCode::REQUEST_TIMEOUT))?
        .map_err(|rejection| ApiError::of_status(rejection.status()))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    let plain = key.bytes().all(|byte| byte.is_ascii_graphic());
    if plain && (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()) {
        return Ok(Some(key.to_owned()));
    }
    Err(ApiError::validation(vec![Fault::new(
        "Idempotency-Key",
        "invalid_idempotency_key",
        "the header is empty, has more than 200 characters, or others than visible ASCII",
        "send 1 to 200 visible ASCII characters, for example a new UUID",
    )]))
}

/// `application/json`, or a type with the suffix `+json`, such as a merge patch.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(';').next())
        .map(|text| text.trim().to_ascii_lowercase());
    essence.is_some_and(|text| text == "application/json" || text.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_the_callers_fault() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let refused = whole_body(Request::new(body), &()).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
