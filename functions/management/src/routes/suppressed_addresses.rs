//! The routes of suppressed addresses: what bounced for good or complained, and is left out since.

use axum::{Json, extract::State, response::Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use shared::{
    api_key::Role,
    db::{
        TenantTx,
        audit::Action,
        suppression::{self, SuppressedAddress},
    },
    ids::DeliveryId,
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
    request::PathAddress,
};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_suppressed_addresses))
        .routes(routes!(delete_suppressed_address))
}

/// List suppressed addresses
///
/// Addresses that bounced for good or complained, by address. Deliveries of this tenant leave them out.
#[utoipa::path(
    get, path = "/v1/suppressed-addresses", tag = "deliveries",
    params(
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "Items a page; 50 unless given"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of addresses", body = Page<SuppressedAddressView>))
)]
async fn list_suppressed_addresses(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<SuppressedAddressView>>, ApiError> {
    const SCOPE: &str = "suppressed_addresses";
    let limit = query.limit();
    let cursor = query.cursor::<String>(SCOPE);
    query.finish()?;
    let after = cursor.map(|Cursor { key, .. }| key);
    let tx = app.db.tenant(caller.tenant_id()).await?;
    let rows = suppression::list(tx, after.as_deref(), limit.fetch()).await?;
    let place = |row: &SuppressedAddress| (row.address.clone(), row.id);
    let view = SuppressedAddressView::from;
    Ok(Json(Page::new(rows, limit, SCOPE, place, view)))
}

/// Delete a suppressed address
///
/// Takes it off the list: deliveries go to it again from now on. What was left out is not made up;
/// redeliver it.
#[utoipa::path(
    delete, path = "/v1/suppressed-addresses/{address}", tag = "deliveries",
    params((
        "address" = String, Path, max_length = 254,
        pattern = r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+$",
        description = "The address, in any case"
    )),
    responses((status = 204, description = "It is off the list"))
)]
async fn delete_suppressed_address(
    State(app): State<App>,
    caller: Caller,
    PathAddress(address): PathAddress,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        let entry = suppression::delete(tx, &address).await?;
        let entry = entry.ok_or_else(ApiError::not_found)?;
        Ok(Answer::no_content()
            .about(entry)
            .detail(json!({ "address": address.normalized() })))
    };
    let action = Action::SuppressedAddressDeleted;
    command
        .run(&app, &caller, Role::Editor, action, handler)
        .await
}

/// An address that nothing is mailed to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SuppressedAddress)]
struct SuppressedAddressView {
    /// The address, in lower case.
    #[schema(example = "ada@example.com")]
    address: String,
    /// `bounce`: its mail server refused it for good; `complaint`: its owner called a mail unwanted.
    #[schema(example = "bounce")]
    reason: &'static str,
    /// The delivery that it was learned from; it may be gone by now.
    delivery_id: DeliveryId,
    /// What the mail service calls that message.
    message_id: String,
    /// When it was put on the list.
    created_at: DateTime<Utc>,
}

impl From<SuppressedAddress> for SuppressedAddressView {
    fn from(row: SuppressedAddress) -> Self {
        Self {
            address: row.address,
            reason: row.reason.as_str(),
            delivery_id: row.delivery_id,
            message_id: row.message_id,
            created_at: row.created_at,
        }
    }
}
