//! The tenant's API keys. Only an owner sees or makes them, so none exceeds its maker; and none may do
//! more than the user that it acts for.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    api_key::{ApiKey, Role},
    db::{
        TenantTx,
        audit::Action,
        auth::{self, NewKey, Revoke, StoredKey},
    },
    destination::EmailAddress,
    fault::Fault,
    fields::Fields,
    ids::{ApiKeyId, UserId},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::{ApiError, Problem},
    page::Page,
    query::Query,
    request::PathId,
};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_key, list_keys))
        .routes(routes!(revoke_key))
}

/// Create a key
///
/// Its text is in this answer and nowhere else. Needs an owner.
#[utoipa::path(
    post, path = "/v1/api-keys", tag = "tenant", request_body = KeyBody,
    responses((status = 201, description = "The key, with its text", body = NewKeyView, headers(
        ("Location" = String, description = "The key's path"),
    )))
)]
async fn create_key(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    command
        .run(
            &app,
            &caller,
            Role::Owner,
            Action::ApiKeyCreated,
            async |tx| {
                let request = KeyRequest::parse(&command.json()?, Utc::now())?;
                let made = make_key(&app, tx, &request, caller.user_id()).await?;
                made.answer()
            },
        )
        .await
}

/// List keys
///
/// Newest first, revoked ones included, without their text. Needs an owner.
#[utoipa::path(
    get, path = "/v1/api-keys", tag = "tenant",
    params(
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of keys", body = Page<KeyView>))
)]
async fn list_keys(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<KeyView>>, ApiError> {
    caller.require(Role::Owner)?;
    let limit = query.limit();
    let cursor = query.cursor::<()>("api_keys");
    query.finish()?;
    let after = cursor.map(|cursor| ApiKeyId::from(cursor.id));
    let rows = app
        .read(caller.tenant_id(), async |tx| {
            Ok(auth::keys(tx, after, limit.fetch()).await?)
        })
        .await?;
    let place = |row: &StoredKey| ((), row.id.uuid());
    Ok(Json(Page::new(
        rows,
        limit,
        "api_keys",
        place,
        KeyView::from,
    )))
}

/// Revoke a key
///
/// At once. One that was revoked stays as it is; one without which no owner could come in cannot be
/// revoked. Needs an owner.
#[utoipa::path(
    delete, path = "/v1/api-keys/{id}", tag = "tenant",
    params(("id" = ApiKeyId, Path, description = "The key's row")),
    responses(
        (status = 204, description = "The key is refused from now on"),
        (status = 409, description = "`last_owner_key`: no owner could come in without it",
         body = Problem, content_type = "application/problem+json"),
    )
)]
async fn revoke_key(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ApiKeyId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    command
        .run(
            &app,
            &caller,
            Role::Owner,
            Action::ApiKeyRevoked,
            async |tx| match auth::revoke_key(tx, id).await? {
                Revoke::Revoked => Ok(Answer::no_content().about(id.uuid())),
                Revoke::AlreadyRevoked => Ok(Answer::no_content().unchanged()),
                Revoke::NoSuchKey => Err(ApiError::not_found()),
                Revoke::LastOwnerKey => Err(ApiError::conflict(
                    "last_owner_key",
                    "without this key no owner could come in; make another one first",
                )),
            },
        )
        .await
}

/// What a new key is to be.
#[derive(Debug, ToSchema)]
#[schema(as = ApiKeyBody)]
#[expect(dead_code, reason = "describes the body; `KeyRequest::parse` reads it")]
#[serde(deny_unknown_fields)]
pub(super) struct KeyBody {
    /// What you call it.
    #[schema(
        min_length = 1,
        max_length = 100,
        example = "Nightly import",
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    name: String,
    /// What it may do.
    role: Role,
    /// From when on it is refused; never unless given.
    expires_at: Option<DateTime<Utc>>,
    /// The user that it acts for, who is made if there is none with this address; yourself unless
    /// given.
    #[schema(max_length = 254, format = "email")]
    email: Option<String>,
}

/// The body of a request for a key, read.
#[derive(Debug)]
pub(super) struct KeyRequest {
    name: String,
    role: Role,
    expires_at: Option<DateTime<Utc>>,
    email: Option<EmailAddress>,
}

impl KeyRequest {
    pub(super) fn parse(body: &Value, now: DateTime<Utc>) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(body);
        let name = fields.required("name").line(1..=100).map(str::to_owned);
        let role = fields.required("role").word(&Role::ALL, Role::as_str);
        let expires_at = fields.optional("expires_at").instant();
        if expires_at.is_some_and(|at| at <= now) {
            fields.refuse(Fault::new(
                "expires_at",
                "in_the_past",
                "the key would be refused from the start",
                "send an instant that is to come, or leave it out",
            ));
        }
        let email = fields.optional("email").parse_text(EmailAddress::parse);
        let whole = name.zip(role).map(|(name, role)| Self {
            name,
            role,
            expires_at,
            email,
        });
        fields.finish(whole)
    }

    /// A key that may do everything, for a user who is known already.
    pub(super) fn owner(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            role: Role::Owner,
            expires_at: None,
            email: None,
        }
    }
}

/// A key that was made: the only moment at which its text is known.
pub(super) struct MadeKey {
    pub(super) key: ApiKey,
    pub(super) stored: StoredKey,
}

impl MadeKey {
    pub(super) fn answer(self) -> Result<Answer, ApiError> {
        let id = self.stored.id;
        let detail = json!({ "role": self.stored.role });
        Ok(Answer::json(StatusCode::CREATED, &self.view())?
            .location(format!("/v1/api-keys/{id}"))
            .about(id.uuid())
            .detail(detail))
    }

    pub(super) fn view(self) -> NewKeyView {
        NewKeyView {
            key: self.key.text().expose().to_owned(),
            stored: self.stored.into(),
        }
    }
}

pub(super) async fn make_key(
    app: &App,
    tx: &TenantTx,
    request: &KeyRequest,
    default_user: UserId,
) -> Result<MadeKey, ApiError> {
    let user_id = match &request.email {
        Some(email) => auth::user_with_email(tx, email.as_str(), request.role).await?,
        None => default_user,
    };
    let key = ApiKey::generate(app.environment);
    let new = NewKey {
        id: key.id(),
        user_id,
        name: &request.name,
        prefix: &key.prefix(app.environment),
        hash: key.hash(),
        role: request.role,
        expires_at: request.expires_at,
    };
    let stored = auth::insert_key(tx, &new).await?;
    Ok(MadeKey { key, stored })
}

/// A new key with its text.
#[derive(Serialize, ToSchema)]
#[schema(as = NewApiKey)]
pub(super) struct NewKeyView {
    /// The key itself. Keep it: it is not shown again.
    #[schema(example = "ck_prod_…")]
    key: String,
    #[serde(flatten)]
    stored: KeyView,
}

/// A key as it is stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct KeyView {
    /// The key's row.
    id: ApiKeyId,
    /// What its maker calls it.
    name: String,
    /// The key up to its secret part, to recognise it by.
    prefix: String,
    /// What it may do.
    #[schema(value_type = Role)]
    role: String,
    /// The user that it acts for.
    user_id: UserId,
    /// That user's address.
    email: String,
    /// From when on it is refused; null for never.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    #[schema(required)]
    revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, exact to a minute.
    #[schema(required)]
    last_used_at: Option<DateTime<Utc>>,
    /// When it was made.
    created_at: DateTime<Utc>,
}

impl From<StoredKey> for KeyView {
    fn from(key: StoredKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            prefix: key.prefix,
            role: key.role,
            user_id: key.user_id,
            email: key.email,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            last_used_at: key.last_used_at,
            created_at: key.created_at,
        }
    }
}
