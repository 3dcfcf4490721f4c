//! The routes of deliveries.

use axum::{extract::State, http::StatusCode, response::Response};
use shared::{
    api_key::Role,
    db::{
        DbError, TenantTx,
        audit::Action,
        deliveries::{self, Redeliver},
        history::{self, Delivery},
    },
    ids::DeliveryId,
    message::WakeUp,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Caller,
    command::{Answer, Command},
    error::{ApiError, Problem},
    query::Query,
    request::PathId,
};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(redeliver))
}

/// Redeliver
///
/// Sends what a delivery holds again: the same bytes under the same id, without a new model call.
/// An endpoint that had answered 410 is tried again.
#[utoipa::path(
    post, path = "/v1/deliveries/{id}/redeliver", tag = "deliveries",
    params(("id" = Uuid, Path, description = "The delivery")),
    responses(
        (status = 202, description = "It waits for its sender", body = Delivery),
        (status = 409, description = "`delivery_under_way`: it is not settled yet", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn redeliver(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<DeliveryId>,
    query: Query,
    command: Command,
) -> Result<Response, ApiError> {
    query.finish()?;
    let handler = async |tx: &TenantTx| {
        match deliveries::redeliver(tx, id).await? {
            Redeliver::Queued => {}
            Redeliver::NoSuchDelivery => return Err(ApiError::not_found()),
            Redeliver::UnderWay(status) => {
                return Err(ApiError::conflict(
                    "delivery_under_way",
                    format!("the delivery is {status}; wait until it has settled"),
                ));
            }
        }
        let delivery = history::delivery(tx, id)
            .await?
            .ok_or_else(|| ApiError::internal(DbError::StaleLease))?;
        let wake_up = WakeUp::Delivery {
            tenant_id: tx.tenant(),
            delivery_id: id,
        };
        Ok(Answer::json(StatusCode::ACCEPTED, &delivery)?
            .about(id.uuid())
            .wake(wake_up))
    };
    command
        .run(
            &app,
            &caller,
            Role::Editor,
            Action::DeliveryRequested,
            handler,
        )
        .await
}
