//! The audit trail: who did what to which object. Rows are added and read, never changed.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};
use uuid::Uuid;

use super::{DbError, TenantTx, column};
use crate::ids::{ApiKeyId, AuditEventId, UserId};

/// What was done. The text before the dot is the kind of object that it was done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Action {
    PromptCreated,
    PromptUpdated,
    PromptDeleted,
    PromptPaused,
    PromptResumed,
    PromptCancelled,
    PromptRestored,
    RunRequested,
    RunCancelled,
    RunRetried,
    DeliveryRequested,
    SuppressedAddressDeleted,
    CalendarSaved,
    CalendarDeleted,
    BackfillRequested,
    BackfillCancelled,
    ApiKeyCreated,
    ApiKeyRevoked,
    UserCreated,
    UserUpdated,
    UserRemoved,
    WebhookSecretRotated,
    ProviderKeySaved,
    ProviderKeyDeleted,
    TenantCreated,
    TenantUpdated,
    TenantSuspended,
    TenantResumed,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::PromptCreated,
        Self::PromptUpdated,
        Self::PromptDeleted,
        Self::PromptPaused,
        Self::PromptResumed,
        Self::PromptCancelled,
        Self::PromptRestored,
        Self::RunRequested,
        Self::RunCancelled,
        Self::RunRetried,
        Self::DeliveryRequested,
        Self::SuppressedAddressDeleted,
        Self::CalendarSaved,
        Self::CalendarDeleted,
        Self::BackfillRequested,
        Self::BackfillCancelled,
        Self::ApiKeyCreated,
        Self::ApiKeyRevoked,
        Self::UserCreated,
        Self::UserUpdated,
        Self::UserRemoved,
        Self::WebhookSecretRotated,
        Self::ProviderKeySaved,
        Self::ProviderKeyDeleted,
        Self::TenantCreated,
        Self::TenantUpdated,
        Self::TenantSuspended,
        Self::TenantResumed,
    ];

    /// As it stands in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PromptCreated => "prompt.created",
            Self::PromptUpdated => "prompt.updated",
            Self::PromptDeleted => "prompt.deleted",
            Self::PromptPaused => "prompt.paused",
            Self::PromptResumed => "prompt.resumed",
            Self::PromptCancelled => "prompt.cancelled",
            Self::PromptRestored => "prompt.restored",
            Self::RunRequested => "run.requested",
            Self::RunCancelled => "run.cancelled",
            Self::RunRetried => "run.retried",
            Self::DeliveryRequested => "delivery.requested",
            Self::SuppressedAddressDeleted => "suppressed_address.deleted",
            Self::CalendarSaved => "calendar.saved",
            Self::CalendarDeleted => "calendar.deleted",
            Self::BackfillRequested => "backfill.requested",
            Self::BackfillCancelled => "backfill.cancelled",
            Self::ApiKeyCreated => "api_key.created",
            Self::ApiKeyRevoked => "api_key.revoked",
            Self::UserCreated => "user.created",
            Self::UserUpdated => "user.updated",
            Self::UserRemoved => "user.removed",
            Self::WebhookSecretRotated => "webhook_secret.rotated",
            Self::ProviderKeySaved => "provider_key.saved",
            Self::ProviderKeyDeleted => "provider_key.deleted",
            Self::TenantCreated => "tenant.created",
            Self::TenantUpdated => "tenant.updated",
            Self::TenantSuspended => "tenant.suspended",
            Self::TenantResumed => "tenant.resumed",
        }
    }

    fn target_kind(self) -> &'static str {
        self.as_str()
            .split_once('.')
            .map_or(self.as_str(), |(kind, _)| kind)
    }
}

impl PartialSchema for Action {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("What was done."))
            .enum_values(Some(Self::ALL.map(Self::as_str)))
            .into()
    }
}

impl ToSchema for Action {}

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A caller with a key of the tenant.
    ApiKey {
        /// The key.
        key: ApiKeyId,
        /// The user that it acts for.
        user: UserId,
    },
    /// A caller with a token of the issuer's.
    User(UserId),
    /// The operator of the installation.
    Platform,
}

impl Actor {
    fn kind(self) -> &'static str {
        match self {
            Self::ApiKey { .. } => "api_key",
            Self::User(_) => "user",
            Self::Platform => "platform",
        }
    }

    fn id(self) -> Option<Uuid> {
        match self {
            Self::ApiKey { key, .. } => Some(key.uuid()),
            Self::User(user) => Some(user.uuid()),
            Self::Platform => None,
        }
    }

    fn user(self) -> Option<Uuid> {
        match self {
            Self::ApiKey { user, .. } | Self::User(user) => Some(user.uuid()),
            Self::Platform => None,
        }
    }
}

/// Whether it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did.
    Ok,
    /// The caller's role was too low.
    Refused,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
    }
}

/// One line of the trail that is to be written.
#[derive(Debug)]
pub struct Event {
    /// Who.
    pub actor: Actor,
    /// What.
    pub action: Action,
    /// To which object.
    pub target_id: Option<Uuid>,
    /// With which success.
    pub outcome: Outcome,
    /// The request's id.
    pub request_id: String,
    /// Small facts: names of changed fields, never their text.
    pub detail: Value,
}

/// The bound values of one event, in the order of [`INSERT`].
pub(super) struct EventRow<'a> {
    tenant: Uuid,
    id: Uuid,
    actor_kind: &'static str,
    actor_id: Option<Uuid>,
    actor_user_id: Option<Uuid>,
    action: &'static str,
    target_kind: &'static str,
    target_id: Option<Uuid>,
    result: &'static str,
    request_id: &'a str,
    detail: &'a Value,
}

/// Adds one event; its values are those of [`EventRow`].
pub(super) const INSERT: &str = "-- audit::insert
     INSERT INTO audit_events
            (tenant_id, id, actor_kind, actor_id, actor_user_id, action, target_kind, target_id,
             result, request_id, detail)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

impl<'a> EventRow<'a> {
    pub(super) fn new(tx: &TenantTx, event: &'a Event) -> Self {
        Self {
            tenant: tx.tenant().uuid(),
            id: AuditEventId::new().uuid(),
            actor_kind: event.actor.kind(),
            actor_id: event.actor.id(),
            actor_user_id: event.actor.user(),
            action: event.action.as_str(),
            target_kind: event.action.target_kind(),
            target_id: event.target_id,
            result: event.outcome.as_str(),
            request_id: &event.request_id,
            detail: &event.detail,
        }
    }

    pub(super) fn params(&self) -> [super::Param<'_>; 11] {
        [
            &self.tenant,
            &self.id,
            &self.actor_kind,
            &self.actor_id,
            &self.actor_user_id,
            &self.action,
            &self.target_kind,
            &self.target_id,
            &self.result,
            &self.request_id,
            &self.detail,
        ]
    }
}

/// A line of the trail as it was written.
#[derive(Debug)]
pub struct Recorded {
    /// Its id.
    pub id: AuditEventId,
    /// When.
    pub at: DateTime<Utc>,
    /// `api_key`, `user`, `platform` or `system`.
    pub actor_kind: String,
    /// The API key or the user, where a tenant's caller acted.
    pub actor_id: Option<Uuid>,
    /// The user, where a tenant's caller acted.
    pub actor_user_id: Option<UserId>,
    /// What was done.
    pub action: String,
    /// To which kind of object.
    pub target_kind: String,
    /// To which object.
    pub target_id: Option<Uuid>,
    /// `ok` or `refused`.
    pub result: String,
    /// The request's id.
    pub request_id: Option<String>,
    /// Small facts.
    pub detail: Value,
}

/// Which lines to read: those in `since <= at < until` that come after `after`, newest first.
#[derive(Debug)]
pub struct Filter {
    /// Only this action.
    pub action: Option<Action>,
    /// Not older.
    pub since: Option<DateTime<Utc>>,
    /// Older.
    pub until: Option<DateTime<Utc>>,
    /// The last line of the page before.
    pub after: Option<(DateTime<Utc>, Uuid)>,
    /// Lines at the most.
    pub rows_max: i64,
}

/// Reads the tenant's trail.
///
/// # Errors
/// When the database does not answer.
pub async fn list(tx: &TenantTx, filter: &Filter) -> Result<Vec<Recorded>, DbError> {
    let (since, until, at, id) = bounds(filter);
    let rows = tx
        .query(
            "-- audit::list
             SELECT id, at, actor_kind, actor_id, actor_user_id, action, target_kind, target_id, result,
                    request_id, detail
               FROM audit_events
              WHERE at >= $1 AND at < $2 AND (at, id) < ($3, $4)
                AND ($5::text IS NULL OR action = $5)
              ORDER BY at DESC, id DESC LIMIT $6",
            &[
                &since,
                &until,
                &at,
                &id,
                &filter.action.map(Action::as_str),
                &filter.rows_max,
            ],
        )
        .await?;
    rows.iter().map(recorded).collect()
}

/// Reads what was done to one object.
///
/// # Errors
/// When the database does not answer.
pub async fn list_of_target(
    tx: &TenantTx,
    target_id: Uuid,
    filter: &Filter,
) -> Result<Vec<Recorded>, DbError> {
    let (since, until, at, id) = bounds(filter);
    let rows = tx
        .query(
            "-- audit::list_of_target
             SELECT id, at, actor_kind, actor_id, actor_user_id, action, target_kind, target_id, result,
                    request_id, detail
               FROM audit_events
              WHERE target_id = $7 AND at >= $1 AND at < $2 AND (at, id) < ($3, $4)
                AND ($5::text IS NULL OR action = $5)
              ORDER BY at DESC, id DESC LIMIT $6",
            &[
                &since,
                &until,
                &at,
                &id,
                &filter.action.map(Action::as_str),
                &filter.rows_max,
                &target_id,
            ],
        )
        .await?;
    rows.iter().map(recorded).collect()
}

/// Always four plain bounds: one plan serves every combination, and the index serves the plan.
fn bounds(filter: &Filter) -> (DateTime<Utc>, DateTime<Utc>, DateTime<Utc>, Uuid) {
    let end = DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
    let (at, id) = filter.after.unwrap_or((end, Uuid::max()));
    (
        filter.since.unwrap_or(DateTime::UNIX_EPOCH),
        filter.until.unwrap_or(end),
        at,
        id,
    )
}

fn recorded(row: &Row) -> Result<Recorded, DbError> {
    Ok(Recorded {
        id: AuditEventId::from(column::<Uuid>(row, "id")?),
        at: column(row, "at")?,
        actor_kind: column(row, "actor_kind")?,
        actor_id: column(row, "actor_id")?,
        actor_user_id: column::<Option<Uuid>>(row, "actor_user_id")?.map(UserId::from),
        action: column(row, "action")?,
        target_kind: column(row, "target_kind")?,
        target_id: column(row, "target_id")?,
        result: column(row, "result")?,
        request_id: column(row, "request_id")?,
        detail: column(row, "detail")?,
    })
}
