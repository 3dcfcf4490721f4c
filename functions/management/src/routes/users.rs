//! The tenant's users: who they are to the issuer of tokens, and what they may do. Only an owner sees or
//! changes them; some owner can always come in.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    api_key::Role,
    db::{
        DbError,
        audit::Action,
        auth::{self, OidcIdentity, Removed, StoredUser, UserSpec},
    },
    destination::EmailAddress,
    fault::Fault,
    fields::{Field, Fields},
    ids::UserId,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::{ApiError, Problem},
    identity::Tokens,
    page::Page,
    query::Query,
    request::{IfMatch, PathId},
};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_user, list_users))
        .routes(routes!(get_user, patch_user, remove_user))
}

/// Add a user
///
/// With an `identity`, who they are to the issuer of tokens, they can come in by a token at once; without
/// one, by API keys that are made for their address. Somebody who was removed comes back. Needs an owner.
#[utoipa::path(
    post, path = "/v1/users", tag = "tenant", request_body = UserBody,
    responses(
        (status = 201, description = "The user", body = UserView, headers(
            ("Location" = String, description = "The user's path"),
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`email_taken` or `identity_taken`: another user of the tenant has it; \
          or an equal request is under way", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn create_user(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let action = Action::UserCreated;
    command
        .run(&app, &caller, Role::Owner, action, async |tx| {
            let spec = parse_user(&command.json()?, app.tokens.as_ref())?;
            let made = auth::insert_user(tx, &spec).await.map_err(taken)?;
            let user = UserView::from(made.ok_or_else(email_taken)?);
            let detail = json!({ "role": user.role });
            Ok(Answer::json(StatusCode::CREATED, &user)?
                .location(format!("/v1/users/{}", user.id))
                .etag(user.version)
                .about(user.id.uuid())
                .detail(detail))
        })
        .await
}

/// List users
///
/// Newest first, without those who were removed. Needs an owner.
#[utoipa::path(
    get, path = "/v1/users", tag = "tenant",
    params(
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of users", body = Page<UserView>))
)]
async fn list_users(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<UserView>>, ApiError> {
    caller.require(Role::Owner)?;
    let limit = query.limit();
    let cursor = query.cursor::<()>("users");
    query.finish()?;
    let after = cursor.map(|cursor| UserId::from(cursor.id));
    let rows = app
        .read(caller.tenant_id(), async |tx| {
            Ok(auth::users(tx, after, limit.fetch()).await?)
        })
        .await?;
    let place = |row: &StoredUser| ((), row.id.uuid());
    Ok(Json(Page::new(rows, limit, "users", place, UserView::from)))
}

/// Read a user
///
/// The header `ETag` holds the version, for `If-Match`. Needs an owner.
#[utoipa::path(
    get, path = "/v1/users/{id}", tag = "tenant", params(("id" = UserId, Path, description = "The user")),
    responses((status = 200, description = "The user", body = UserView, headers(
        ("ETag" = String, description = "Its version"),
    )))
)]
async fn get_user(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<UserId>,
    query: Query,
) -> Result<Response, ApiError> {
    caller.require(Role::Owner)?;
    query.finish()?;
    let user = app
        .read(caller.tenant_id(), async |tx| Ok(auth::user(tx, id).await?))
        .await?
        .ok_or_else(ApiError::not_found)?;
    let etag = (header::ETAG, format!("\"{}\"", user.version));
    Ok(([etag], Json(UserView::from(user))).into_response())
}

/// Change a user
///
/// What is not sent stays as it is; `"identity": null` takes it away. It holds from the next request on,
/// for tokens and keys that are there already: no key may do more than its user. Needs an owner.
#[utoipa::path(
    patch, path = "/v1/users/{id}", tag = "tenant",
    params(
        ("id" = UserId, Path, description = "The user"),
        ("If-Match" = Option<String>, Header, description = "The version to change, as its `ETag` told it"),
    ),
    request_body = UserPatch,
    responses(
        (status = 200, description = "The user", body = UserView, headers(
            ("ETag" = String, description = "Its version"),
        )),
        (status = 409, description = "`last_owner`: no owner could come in any more; `email_taken` or \
          `identity_taken`: another user of the tenant has it",
         body = Problem, content_type = "application/problem+json"),
    )
)]
async fn patch_user(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<UserId>,
    if_match: IfMatch,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let action = Action::UserUpdated;
    command
        .run(&app, &caller, Role::Owner, action, async |tx| {
            let change = Change::parse(&command.json()?, app.tokens.as_ref())?;
            let user = auth::user_to_change(tx, id).await?;
            let user = user.ok_or_else(ApiError::not_found)?;
            if_match.check(user.version)?;
            let (spec, fields) = change.of(&user.spec);
            if fields.is_empty() {
                let version = user.version;
                let answer = Answer::json(StatusCode::OK, &UserView::from(user))?;
                return Ok(answer.etag(version).unchanged());
            }
            let changed = auth::change_user(tx, id, &spec).await.map_err(taken)?;
            let user = UserView::from(changed.ok_or_else(last_owner)?);
            Ok(Answer::json(StatusCode::OK, &user)?
                .etag(user.version)
                .about(id.uuid())
                .detail(json!({ "fields": fields })))
        })
        .await
}

/// Remove a user
///
/// Their tokens and keys are refused from the next request on. Their prompts stay and go on; who was
/// removed already stays so. Needs an owner.
#[utoipa::path(
    delete, path = "/v1/users/{id}", tag = "tenant", params(("id" = UserId, Path, description = "The user")),
    responses(
        (status = 204, description = "The user is refused from now on"),
        (status = 409, description = "`last_owner`: no owner could come in without them",
         body = Problem, content_type = "application/problem+json"),
    )
)]
async fn remove_user(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<UserId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let action = Action::UserRemoved;
    command
        .run(
            &app,
            &caller,
            Role::Owner,
            action,
            async |tx| match auth::remove_user(tx, id).await? {
                Removed::Removed => Ok(Answer::no_content().about(id.uuid())),
                Removed::AlreadyRemoved => Ok(Answer::no_content().unchanged()),
                Removed::LastOwner => Err(last_owner()),
                Removed::NoSuchUser => Err(ApiError::not_found()),
            },
        )
        .await
}

fn last_owner() -> ApiError {
    ApiError::conflict(
        "last_owner",
        "without this user no owner could come in; give another one a key or an identity first",
    )
}

fn email_taken() -> ApiError {
    ApiError::conflict(
        "email_taken",
        "another user of the tenant has this address; change that one, or send another address",
    )
}

fn taken(error: DbError) -> ApiError {
    match error.unique_violation() {
        Some(auth::EMAIL_IS_TAKEN) => email_taken(),
        Some(auth::IDENTITY_IS_TAKEN) => ApiError::conflict(
            "identity_taken",
            "another user of the tenant has this identity; change or remove that one first",
        ),
        Some(_) | None => error.into(),
    }
}

/// What a new user is to be.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; `parse_user` reads it")]
#[serde(deny_unknown_fields)]
struct UserBody {
    /// Their address, which no other user of the tenant has.
    #[schema(max_length = 254, format = "email")]
    email: String,
    /// What they may do.
    role: Role,
    /// Who they are to the issuer of tokens.
    identity: Option<IdentityBody>,
}

/// What is to change in a user.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body; `Change::parse` reads it")]
#[serde(deny_unknown_fields)]
struct UserPatch {
    /// Their address.
    #[schema(max_length = 254, format = "email")]
    email: Option<String>,
    /// What they may do.
    role: Option<Role>,
    /// Who they are to the issuer of tokens; null takes it away.
    identity: Option<IdentityBody>,
}

/// Whom the issuer of tokens calls by which name.
#[derive(Debug, ToSchema)]
#[schema(as = UserIdentityBody)]
#[expect(dead_code, reason = "describes the body; `parse_identity` reads it")]
#[serde(deny_unknown_fields)]
struct IdentityBody {
    /// The claim `iss` of their tokens; this installation's issuer unless given, and no other where it
    /// has one.
    #[schema(
        min_length = 1,
        max_length = 512,
        pattern = "^[!-~]*$",
        example = "https://login.example.com"
    )]
    issuer: Option<String>,
    /// The claim `sub` of their tokens.
    #[schema(
        min_length = 1,
        max_length = 255,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    subject: String,
}

pub(super) fn parse_user(body: &Value, tokens: Option<&Tokens>) -> Result<UserSpec, Vec<Fault>> {
    let mut fields = Fields::new(body);
    let email = parse_email(fields.required("email"));
    let role = fields.required("role").word(&Role::ALL, Role::as_str);
    let identity = parse_identity(fields.optional("identity"), tokens);
    let whole = email.zip(role).map(|(email, role)| UserSpec {
        email,
        role,
        identity,
    });
    fields.finish(whole)
}

fn parse_email(field: Field<'_, '_>) -> Option<String> {
    let email = field.parse_text(EmailAddress::parse)?;
    Some(email.as_str().to_owned())
}

fn parse_identity(field: Field<'_, '_>, tokens: Option<&Tokens>) -> Option<OidcIdentity> {
    let known = tokens.map(Tokens::issuer);
    field.parse(|value| {
        let mut fields = Fields::new(value);
        let given = match known {
            Some(_) => fields.optional("issuer"),
            None => fields.required_such_as("issuer", "https://login.example.com"),
        };
        let issuer = given.parse_text(|text| check_issuer(text, known));
        let subject = fields.required("subject").line(1..=255);
        let issuer = issuer.or(known.map(str::to_owned));
        let whole = issuer.zip(subject).map(|(issuer, subject)| OidcIdentity {
            issuer,
            subject: subject.to_owned(),
        });
        fields.finish(whole)
    })
}

/// Another issuer's users could never come in.
fn check_issuer(text: &str, known: Option<&str>) -> Result<String, Fault> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain || !(1..=512).contains(&text.len()) {
        return Err(Fault::new(
            "",
            "invalid_issuer",
            "the issuer is empty, has more than 512 characters, or others than visible ASCII",
            "send the claim iss as it stands in the tokens",
        ));
    }
    match known {
        Some(known) if known != text => Err(Fault::new(
            "",
            "other_issuer",
            "this installation takes the tokens of another issuer",
            format!("leave it out, or send {known}"),
        )),
        Some(_) | None => Ok(text.to_owned()),
    }
}

/// What a PATCH asks for.
#[derive(Debug)]
pub(super) struct Change {
    email: Option<String>,
    role: Option<Role>,
    identity: Option<OidcIdentity>,
    takes_identity: bool,
}

impl Change {
    pub(super) fn parse(body: &Value, tokens: Option<&Tokens>) -> Result<Self, Vec<Fault>> {
        let mut fields = Fields::new(body);
        let change = Self {
            email: parse_email(fields.optional("email")),
            role: fields.optional("role").word(&Role::ALL, Role::as_str),
            identity: parse_identity(fields.optional("identity"), tokens),
            takes_identity: body.get("identity").is_some_and(Value::is_null),
        };
        fields.finish(Some(change))
    }

    /// What the user is to be, and which of their fields that changes.
    fn of(self, user: &UserSpec) -> (UserSpec, Vec<&'static str>) {
        let kept = user.identity.clone().filter(|_| !self.takes_identity);
        let spec = UserSpec {
            email: self.email.unwrap_or_else(|| user.email.clone()),
            role: self.role.unwrap_or(user.role),
            identity: self.identity.or(kept),
        };
        let fields = [
            ("email", spec.email != user.email),
            ("role", spec.role != user.role),
            ("identity", spec.identity != user.identity),
        ];
        let changed = fields.into_iter().filter(|(_, changed)| *changed);
        let names = changed.map(|(name, _)| name).collect();
        (spec, names)
    }
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = User)]
struct UserView {
    /// The user.
    id: UserId,
    /// Their address.
    email: String,
    /// What they may do.
    role: Role,
    /// Who they are to the issuer of tokens; null where they have API keys alone.
    #[schema(required)]
    identity: Option<IdentityView>,
    /// Counts changes.
    version: i64,
    /// When they were added.
    created_at: DateTime<Utc>,
    /// When they were last changed.
    updated_at: DateTime<Utc>,
}

/// Whom the issuer of tokens calls by which name.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UserIdentity)]
struct IdentityView {
    /// The claim `iss` of their tokens.
    issuer: String,
    /// The claim `sub` of their tokens.
    subject: String,
}

impl From<StoredUser> for UserView {
    fn from(user: StoredUser) -> Self {
        Self {
            id: user.id,
            email: user.spec.email,
            role: user.spec.role,
            identity: user.spec.identity.map(|identity| IdentityView {
                issuer: identity.issuer,
                subject: identity.subject,
            }),
            version: user.version,
            created_at: user.created_at,
            updated_at: user.updated_at,
        }
    }
}
