//! Whether the service works. Anybody may ask, so it tells nothing about tenants.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use shared::db;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::{App, VERSION};

/// The database counts as gone when it has not answered within this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Slower answers are worth a warning.
const SLOW: Duration = Duration::from_millis(1000);

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get_health))
}

/// Read the service's health
///
/// Whether the service works, and what is wrong if it does not. Needs no key.
#[utoipa::path(
    get, path = "/health", tag = "health",
    responses(
        (status = 200, body = Health, content_type = "application/health+json",
         description = "Healthy, or degraded"),
        (status = 503, body = Health, content_type = "application/health+json",
         description = "Unhealthy"),
    )
)]
async fn get_health(State(app): State<App>) -> Response {
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, db::health::latency(&app.db)).await;
    let health = Health::new(match answered {
        Ok(Ok(latency)) => Some(latency),
        Ok(Err(_)) | Err(_) => None,
    });
    let code = match health.status {
        Status::Healthy | Status::Degraded => StatusCode::OK,
        Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = (code, Json(health)).into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/health+json"),
    );
    response
}

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = HealthStatus)]
enum Status {
    Healthy,
    Degraded,
    Unhealthy,
}

/// How the service is.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// The worst of its parts.
    status: Status,
    /// The service's version.
    version: &'static str,
    /// The version of its time-zone data.
    #[schema(example = "2026a")]
    time_zone_data: &'static str,
    /// The database.
    database: DatabaseHealth,
    /// What is wrong; empty when all is well.
    issues: Vec<Issue>,
}

/// How the database is.
#[derive(Debug, Serialize, ToSchema)]
struct DatabaseHealth {
    /// How well it answers; `degraded` from 1,000 ms on.
    status: Status,
    /// How long it took to answer, in milliseconds; null when it did not.
    #[schema(required)]
    latency_ms: Option<u64>,
}

/// Something that is wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HealthIssue)]
struct Issue {
    /// What it is about.
    #[schema(example = "database")]
    component: &'static str,
    /// `warning` or `critical`.
    #[schema(example = "warning")]
    severity: &'static str,
    /// What is wrong, in words.
    detail: &'static str,
}

impl Health {
    fn new(latency: Option<Duration>) -> Self {
        let (status, issue) = match latency {
            Some(latency) if latency <= SLOW => (Status::Healthy, None),
            Some(_) => (
                Status::Degraded,
                Some(("warning", "the database takes over a second to answer")),
            ),
            None => (
                Status::Unhealthy,
                Some(("critical", "the database does not answer")),
            ),
        };
        Self {
            status,
            version: VERSION,
            time_zone_data: chrono_tz::IANA_TZDB_VERSION,
            database: DatabaseHealth {
                status,
                latency_ms: latency
                    .map(|latency| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX)),
            },
            issues: issue
                .into_iter()
                .map(|(severity, detail)| Issue {
                    component: "database",
                    severity,
                    detail,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_database_degrades_and_a_silent_one_is_unhealthy() {
        let status = |latency| Health::new(latency).status;
        assert_eq!(status(Some(Duration::from_millis(1000))), Status::Healthy);
        assert_eq!(status(Some(Duration::from_millis(1001))), Status::Degraded);
        assert_eq!(status(None), Status::Unhealthy);
        assert_eq!(Health::new(None).issues[0].severity, "critical");
    }
}
