//! The tenant's own keys of model providers. A key comes in and never goes out again.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    api_key::Role,
    db::{
        TenantTx,
        audit::Action,
        provider_keys::{self, NewKey, StoredKey},
    },
    fault::Fault,
    fields::Fields,
    provider_key::{KeyedProvider, ProviderKey},
    seal::{Purpose, Sealing},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::ApiError,
    page::{Cursor, Page},
    query::Query,
    request::{IfMatch, PathProvider},
};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_provider_keys))
        .routes(routes!(put_provider_key, delete_provider_key))
}

/// List provider keys
///
/// Which providers the tenant calls with a key of its own. Never a key: its fingerprint is the first
/// twelve hexadecimal digits of its SHA-256. Needs an owner.
#[utoipa::path(
    get, path = "/v1/provider-keys", tag = "tenant",
    params(
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of keys, by provider", body = Page<KeyView>))
)]
async fn list_provider_keys(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<KeyView>>, ApiError> {
    const SCOPE: &str = "provider_keys";
    caller.require(Role::Owner)?;
    let limit = query.limit();
    let cursor = query.cursor::<String>(SCOPE);
    query.finish()?;
    let after = cursor.map(|Cursor { key, .. }| key);
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = provider_keys::list(tx, after.as_deref(), limit.fetch()).await?;
    let place = |row: &StoredKey| (row.provider.clone(), row.id);
    Ok(Json(Page::new(rows, limit, SCOPE, place, KeyView::from)))
}

/// Bring a provider key, or replace it
///
/// From now on, or within a minute, the tenant's runs call the provider with this key and are paid
/// by its account. It is stored sealed and never shown again. Bedrock is called with the rights of the
/// installation and takes no key. Needs an owner.
#[utoipa::path(
    put, path = "/v1/provider-keys/{provider}", tag = "tenant",
    params(
        ("provider" = String, Path, pattern = "^(openai|anthropic)$", description = "Whose key it is"),
        ("If-Match" = Option<String>, Header, description = "Only if the key is at the version of this ETag"),
    ),
    request_body = KeyBody,
    responses(
        (status = 200, description = "The key took the place of another", body = KeyView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 201, description = "The key is the first for this provider", body = KeyView, headers(
            ("ETag" = String, description = "Its version"),
        )),
    )
)]
async fn put_provider_key(
    State(app): State<App>,
    caller: Caller,
    PathProvider(provider): PathProvider,
    if_match: IfMatch,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let ready = match KeyedProvider::parse(&provider) {
        Ok(provider) => {
            let purpose = Purpose::ProviderKey(provider);
            Ok((
                provider,
                app.sealer.ready(caller.tenant_id(), purpose).await?,
            ))
        }
        Err(fault) => Err(vec![fault.under("provider")]),
    };
    let handler = async |tx: &TenantTx| {
        let (provider, sealing) = ready?;
        put(tx, provider, &sealing, &if_match, &command).await
    };
    let action = Action::ProviderKeySaved;
    command
        .run(&app, &caller, Role::Owner, action, handler)
        .await
}

/// Delete a provider key
///
/// Within a minute the tenant's runs call the provider with the installation's key again, if it has
/// one. Needs an owner.
#[utoipa::path(
    delete, path = "/v1/provider-keys/{provider}", tag = "tenant",
    params(("provider" = String, Path, pattern = "^(openai|anthropic)$", description = "Whose key it is")),
    responses((status = 204, description = "It is gone"))
)]
async fn delete_provider_key(
    State(app): State<App>,
    caller: Caller,
    PathProvider(provider): PathProvider,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        // A provider that takes no key has none.
        let provider = KeyedProvider::parse(&provider).map_err(|_| ApiError::not_found())?;
        let id = provider_keys::delete(tx, provider).await?;
        let id = id.ok_or_else(ApiError::not_found)?;
        Ok(Answer::no_content()
            .about(id)
            .detail(json!({ "provider": provider.as_str() })))
    };
    let action = Action::ProviderKeyDeleted;
    command
        .run(&app, &caller, Role::Owner, action, handler)
        .await
}

async fn put(
    tx: &TenantTx,
    provider: KeyedProvider,
    sealing: &Sealing<'_>,
    if_match: &IfMatch,
    command: &Command,
) -> Result<Answer, ApiError> {
    let key = parse(&command.json()?)?;
    let standing = provider_keys::lock(tx, provider).await?;
    match standing {
        Some(version) => if_match.check(version)?,
        None => if_match.check_absent()?,
    }
    let new = NewKey {
        provider,
        sealed: &sealing.seal(key.secret().expose().as_bytes())?,
        fingerprint: &key.fingerprint(),
    };
    let stored = provider_keys::put(tx, &new).await?;
    let status = match standing {
        Some(_) => StatusCode::OK,
        None => StatusCode::CREATED,
    };
    let (id, version) = (stored.id, stored.version);
    Ok(Answer::json(status, &KeyView::from(stored))?
        .etag(version)
        .about(id)
        .detail(json!({ "provider": provider.as_str() })))
}

pub(super) fn parse(body: &Value) -> Result<ProviderKey, Vec<Fault>> {
    let mut fields = Fields::new(body);
    let key = fields.required("key").parse_text(ProviderKey::parse);
    fields.finish(key)
}

/// A key to bring.
#[derive(Debug, ToSchema)]
#[schema(as = ProviderKeyBody)]
#[expect(dead_code, reason = "describes the body; `parse` reads it")]
#[serde(deny_unknown_fields)]
struct KeyBody {
    /// The key, as the provider shows it.
    #[schema(min_length = 16, max_length = 512, pattern = "^[!-~]*$", write_only)]
    key: String,
}

/// A key as it is told.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProviderKey)]
struct KeyView {
    /// Whose key it is: `openai` or `anthropic`.
    #[schema(example = "openai")]
    provider: String,
    /// The first twelve hexadecimal digits of the key's SHA-256.
    #[schema(example = "9f86d081884c")]
    fingerprint: String,
    /// Counts changes; the ETag.
    version: i64,
    /// When the tenant first brought a key for the provider.
    created_at: DateTime<Utc>,
    /// When the key was last changed.
    updated_at: DateTime<Utc>,
}

impl From<StoredKey> for KeyView {
    fn from(key: StoredKey) -> Self {
        Self {
            provider: key.provider,
            fingerprint: key.fingerprint,
            version: key.version,
            created_at: key.created_at,
            updated_at: key.updated_at,
        }
    }
}
