//! A database of its own, the real router over it, and tenants that call it.

use std::{sync::Mutex, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use management::{App, AppParts, bootstrap_tenant};
use serde_json::{Value, json};
use shared::{
    db::{Db, DbConfig, migrate},
    env::Environment,
    ids::TenantId,
    message::WakeUp,
    outbound::Policy,
    price::Catalog,
    queue::{Queue, WakeUps},
    scheduler::Scheduler,
    seal::Sealer,
    secret::Secret,
};
use tokio_postgres::{Client, NoTls, types::ToSql};
use tower::ServiceExt;
use uuid::Uuid;

pub(crate) struct World {
    router: Router,
    app: App,
    /// Sees every tenant.
    pub(crate) admin: Client,
    wake_ups: Mutex<WakeUps>,
}

pub(crate) struct Tenant {
    pub(crate) id: Uuid,
    /// An owner's key.
    pub(crate) key: String,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl World {
    pub(crate) async fn new() -> Self {
        let database = new_database().await;
        Self::over(&database, tests::database_url(&database), 8).await
    }

    /// The API reaches the database by this URL, with so many connections of the app role.
    pub(crate) async fn over(database: &str, url: String, app_connections_max: usize) -> Self {
        let config = DbConfig::of_urls(
            as_user("carillon_app", &url),
            as_user("carillon_system", &url),
            app_connections_max,
            1,
        );
        let (queue, wake_ups) = Queue::local(100);
        let app = App::new(AppParts {
            db: Db::connect(&config).await.unwrap(),
            queue,
            scheduler: Scheduler::Local,
            outputs: management::outputs::Outputs::Folder,
            sealer: Sealer::from_base64(&format!("{}=", "A".repeat(43))).unwrap(),
            catalog: Catalog::shipped(),
            outbound: Policy::PUBLIC,
            allow_echo: true,
            platform_key: None,
            tokens: None,
            environment: Environment::Local,
        });
        let (admin, connection) = tokio_postgres::connect(&tests::database_url(database), NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self {
            router: management::router(app.clone()),
            app,
            admin,
            wake_ups: Mutex::new(wake_ups),
        }
    }

    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let email = format!("{name}@example.com");
        let (id, key): (TenantId, Secret) =
            bootstrap_tenant(&self.app, name, &email).await.unwrap();
        Tenant {
            id: id.uuid(),
            key: key.expose().to_owned(),
        }
    }

    /// Sends a request with a JSON body, or with none.
    pub(crate) async fn send(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Reply {
        self.send_with(key, method, path, body, &[]).await
    }

    pub(crate) async fn send_with(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Reply {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header("authorization", format!("Bearer {key}"));
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
        self.send_raw(request.body(body).unwrap()).await
    }

    pub(crate) async fn send_raw(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 10_000_000).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    pub(crate) async fn get(&self, key: &str, path: &str) -> Reply {
        self.send(key, "GET", path, None).await
    }

    pub(crate) async fn post(&self, key: &str, path: &str, body: Value) -> Reply {
        self.send(key, "POST", path, Some(body)).await
    }

    /// Makes a prompt and gives its body.
    pub(crate) async fn prompt(&self, key: &str, change: Value) -> Value {
        let reply = self.post(key, "/v1/prompts", prompt_body(change)).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        reply.body
    }

    /// A key of another role for the same tenant.
    pub(crate) async fn key_of_role(&self, owner_key: &str, role: &str) -> String {
        let body = json!({ "name": role, "role": role });
        let reply = self.post(owner_key, "/v1/api-keys", body).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        text(&reply.body["key"])
    }

    pub(crate) async fn sql(&self, statement: &str, params: &[&(dyn ToSql + Sync)]) -> u64 {
        self.admin.execute(statement, params).await.unwrap()
    }

    /// The first column of the only row, as JSON.
    pub(crate) async fn one(&self, query: &str, params: &[&(dyn ToSql + Sync)]) -> Value {
        let query = format!("SELECT to_jsonb(q) FROM ({query}) AS q");
        self.admin.query_one(&query, params).await.unwrap().get(0)
    }

    /// What was put on the queue since the last look.
    pub(crate) fn woken(&self) -> Vec<WakeUp> {
        let mut receiver = self.wake_ups.lock().unwrap();
        std::iter::from_fn(|| receiver.next().now_or_never().flatten()).collect()
    }
}

impl Reply {
    /// The field and code of each fault.
    pub(crate) fn faults(&self) -> Vec<(String, String)> {
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        errors
            .iter()
            .map(|fault| (text(&fault["field"]), text(&fault["code"])))
            .collect()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.text
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
    }

    /// One field of each item of a page.
    pub(crate) fn items(&self, field: &str) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.text);
        let items = self.body["items"].as_array().unwrap();
        items.iter().map(|item| text(&item[field])).collect()
    }
}

/// A prompt that is due every day, with these fields changed; null takes one away.
pub(crate) fn prompt_body(change: Value) -> Value {
    let mut body = json!({
        "prompt_name": "Morning brief",
        "prompt_text": "Write a brief for {{ slot.date }}.",
        "model": "echo/echo-1",
        "schedule": { "type": "daily", "at": "09:00", "timezone": "Europe/London" },
        "destinations": [{ "kind": "storage" }],
    });
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            body.as_object_mut().unwrap().remove(name);
        } else {
            body[name] = value.clone();
        }
    }
    body
}

#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => panic!("{value} is no text"),
    }
}

#[track_caller]
pub(crate) fn id(value: &Value) -> Uuid {
    text(&value["id"]).parse().unwrap()
}

#[track_caller]
pub(crate) fn instant(value: &Value) -> DateTime<Utc> {
    text(value).parse().unwrap()
}

/// An empty database with the tables of this version.
pub(crate) async fn new_database() -> String {
    tests::database("template_api", migrated).await.unwrap()
}

/// Migrates a new template and waits until the last connection to it is gone.
async fn migrated(url: String) -> anyhow::Result<()> {
    migrate::run(
        &Secret::new(url.as_str()),
        &migrate::RolePasswords::default(),
    )
    .await?;
    let database = url.rsplit('/').next().unwrap();
    let (client, connection) = tokio_postgres::connect(&tests::postgres_url(), NoTls).await?;
    tokio::spawn(connection);
    for _ in 0..500 {
        let query = "SELECT FROM pg_stat_activity WHERE datname = $1";
        if client.query(query, &[&database]).await?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("connections to {database} stay open")
}

fn as_user(user: &str, url: &str) -> Secret {
    let (_, server) = url.split_once('@').unwrap();
    Secret::new(format!("postgresql://{user}@{server}"))
}
