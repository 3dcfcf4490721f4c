//! A database of its own, an issuer, and the real router over both.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use management::{
    App, AppParts, bootstrap_tenant,
    identity::{self, Audience, KeyTimes, OidcSettings, Tokens},
};
use serde_json::{Value, json};
use shared::{
    api_key::PlatformKeyHash, env::Environment, ids::TenantId, outbound::Policy, price::Catalog,
    queue::Queue, scheduler::Scheduler, seal::Sealer, secret::Secret,
};
use tests::stage::Stage;
use tower::ServiceExt;
use uuid::Uuid;

use super::issuer::{AUDIENCE, EC, Issuer, RSA};

const PLATFORM_KEY: &str = "the-operators-own-key";

/// Longer than any test takes.
pub(crate) const LONG: Duration = Duration::from_secs(3_600);

/// Keys that are had once.
pub(crate) const ONCE: KeyTimes = KeyTimes {
    fresh: LONG,
    usable: LONG,
    between_fetches: LONG,
};

pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) issuer: Issuer,
    app: App,
    router: Router,
}

pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    /// A key of its first owner.
    pub(crate) key: String,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl World {
    /// With an issuer that has a key of each kind, and shows them once.
    pub(crate) async fn new() -> Self {
        let issuer = Issuer::start(&[&RSA, &EC]).await;
        Self::with(issuer, ONCE).await
    }

    pub(crate) async fn with(issuer: Issuer, times: KeyTimes) -> Self {
        let settings = OidcSettings {
            issuer: identity::Issuer::parse(&issuer.url, Environment::Local).unwrap(),
            audience: Audience::parse(AUDIENCE).unwrap(),
        };
        Self::of(issuer, Some(Tokens::new(settings, times))).await
    }

    /// An installation that takes keys alone.
    pub(crate) async fn without_tokens() -> Self {
        Self::of(Issuer::start(&[&RSA]).await, None).await
    }

    async fn of(issuer: Issuer, tokens: Option<Tokens>) -> Self {
        let stage = Stage::new(8).await.unwrap();
        let (queue, _) = Queue::local(16);
        let app = App::new(AppParts {
            db: stage.db.clone(),
            queue,
            scheduler: Scheduler::Local,
            outputs: management::outputs::Outputs::Folder,
            sealer: Sealer::from_base64(&format!("{}=", "A".repeat(43))).unwrap(),
            catalog: Catalog::shipped(),
            outbound: Policy::PUBLIC,
            allow_echo: true,
            platform_key: Some(PlatformKeyHash::of(&Secret::new(PLATFORM_KEY))),
            tokens,
            environment: Environment::Local,
        });
        Self {
            router: management::router(app.clone()),
            app,
            stage,
            issuer,
        }
    }

    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let email = format!("{name}@example.com");
        let (id, key) = bootstrap_tenant(&self.app, name, &email).await.unwrap();
        Tenant {
            id,
            key: key.expose().to_owned(),
        }
    }

    /// A user of the tenant whom the issuer knows by this subject; their id.
    pub(crate) async fn member(&self, tenant: &Tenant, subject: &str, role: &str) -> Uuid {
        let body = json!({
            "email": format!("{subject}@people.example"), "role": role,
            "identity": { "subject": subject },
        });
        let made = self
            .send(&tenant.key, "POST", "/v1/users", Some(body))
            .await;
        assert_eq!(made.status, 201, "{}", made.body);
        text(&made.body["id"]).parse().unwrap()
    }

    /// A token of the issuer's for this subject.
    pub(crate) fn token(&self, subject: &str) -> String {
        self.issuer.token(&RSA, subject)
    }

    pub(crate) async fn limits(&self, tenant: &Tenant, limits: Value) {
        let path = format!("/v1/admin/tenants/{}", tenant.id);
        let body = json!({ "limits": limits });
        let changed = self.send(PLATFORM_KEY, "PATCH", &path, Some(body)).await;
        assert_eq!(changed.status, 200, "{}", changed.body);
    }

    pub(crate) async fn suspend(&self, tenant: &Tenant) {
        let path = format!("/v1/admin/tenants/{}/suspend", tenant.id);
        let changed = self.send(PLATFORM_KEY, "POST", &path, None).await;
        assert_eq!(changed.status, 200, "{}", changed.body);
    }

    pub(crate) async fn get(&self, credential: &str, path: &str) -> Reply {
        self.send(credential, "GET", path, None).await
    }

    pub(crate) async fn send(
        &self,
        credential: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Reply {
        self.send_with(credential, method, path, body, &[]).await
    }

    pub(crate) async fn send_with(
        &self,
        credential: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {credential}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let request = request.body(body).unwrap();
        let (parts, body) = self
            .router
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .into_parts();
        let bytes = to_bytes(body, 1_000_000).await.unwrap();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    /// Reads the caller's tenant with this tenant's id in the header.
    pub(crate) async fn get_in(&self, credential: &str, tenant: &str) -> Reply {
        let headers = [("carillon-tenant", tenant)];
        self.send_with(credential, "GET", "/v1/tenant", None, &headers)
            .await
    }
}

impl Reply {
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
        assert_eq!(self.headers["content-type"], "application/problem+json");
    }

    /// Seconds.
    #[track_caller]
    pub(crate) fn retry_after(&self) -> u32 {
        self.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }
}

#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => panic!("{value} is no text"),
    }
}

/// The id of the row that a key's text names.
pub(crate) fn id_of(key: &str) -> Uuid {
    key.split('_').nth(2).unwrap().parse().unwrap()
}
