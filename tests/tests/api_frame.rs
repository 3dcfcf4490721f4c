//! The frame of the HTTP API through the real router, on a real Postgres: identity, roles,
//! refusals, repeats, pages, keys, tenants.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use management::{App, AppParts};
use serde_json::{Value, json};
use shared::{
    api_key::PlatformKeyHash,
    db::{Db, DbConfig, migrate},
    env::Environment,
    outbound::Policy,
    price::Catalog,
    queue::Queue,
    scheduler::Scheduler,
    seal::{Purpose, Sealer},
    secret::Secret,
};
use tokio_postgres::{Client, NoTls};
use tower::ServiceExt;
use tracing_subscriber::fmt::MakeWriter;
use uuid::Uuid;

const PLATFORM_KEY: &str = "the-operators-own-key";
const SEALING_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The API over a database of its own, and a superuser's eyes on that database.
struct Api {
    app: App,
    router: Router,
    sql: Client,
    database: String,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

/// A tenant with one key of each role.
struct Tenant {
    id: String,
    owner: String,
    editor: String,
    viewer: String,
}

impl Api {
    async fn new() -> Self {
        Self::with_platform_key(Some(PLATFORM_KEY)).await
    }

    async fn with_platform_key(platform_key: Option<&str>) -> Self {
        LazyLock::force(&LOG);
        let migrated = async |url: String| {
            migrate::run(&Secret::new(url), &migrate::RolePasswords::default()).await?;
            Ok(())
        };
        let database = tests::database("api_frame_template", migrated)
            .await
            .unwrap();
        let url = tests::database_url(&database);
        let (app, system) = (
            as_user(&url, "carillon_app"),
            as_user(&url, "carillon_system"),
        );
        let config = DbConfig::of_urls(app, system, 8, 4);
        let db = Db::connect(&config).await.unwrap();
        let (queue, _) = Queue::local(16);
        let app = App::new(AppParts {
            db,
            queue,
            scheduler: Scheduler::Local,
            outputs: management::outputs::Outputs::Folder,
            sealer: Sealer::from_base64(SEALING_KEY).unwrap(),
            catalog: Catalog::shipped(),
            outbound: Policy::PUBLIC,
            allow_echo: true,
            platform_key: platform_key.map(|key| PlatformKeyHash::of(&Secret::new(key))),
            tokens: None,
            environment: Environment::Local,
        });
        let (sql, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        Self {
            router: management::router(app.clone()),
            app,
            sql,
            database,
        }
    }

    async fn another_connection(&self) -> Client {
        let url = tests::database_url(&self.database);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 10_000_000).await.unwrap();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    async fn call(&self, method: Method, path: &str, key: &str, body: Option<&Value>) -> Reply {
        self.send(request(method, path, key, body)).await
    }

    async fn get(&self, path: &str, key: &str) -> Reply {
        self.call(Method::GET, path, key, None).await
    }

    async fn post(&self, path: &str, key: &str, body: &Value) -> Reply {
        self.call(Method::POST, path, key, Some(body)).await
    }

    /// A POST that may be repeated.
    async fn repeat(&self, path: &str, key: &str, body: &Value, idempotency_key: &str) -> Reply {
        let mut request = request(Method::POST, path, key, Some(body));
        let value = idempotency_key.parse().unwrap();
        request.headers_mut().insert("idempotency-key", value);
        self.send(request).await
    }

    async fn tenant(&self, name: &str) -> Tenant {
        let body = json!({"name": name, "owner_email": format!("owner@{name}.example")});
        let made = self.post("/v1/admin/tenants", PLATFORM_KEY, &body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let owner = text(&made.body["api_key"]["key"]);
        Tenant {
            id: text(&made.body["tenant"]["id"]),
            editor: self.key(&owner, "editor").await,
            viewer: self.key(&owner, "viewer").await,
            owner,
        }
    }

    async fn key(&self, owner: &str, role: &str) -> String {
        let body = json!({"name": format!("a {role}"), "role": role});
        let made = self.post("/v1/api-keys", owner, &body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        text(&made.body["key"])
    }

    async fn count(&self, sql: &str) -> i64 {
        self.sql.query_one(sql, &[]).await.unwrap().get(0)
    }
}

impl Reply {
    /// Asserts that this is a complete problem body, and gives its status and code.
    fn problem(&self) -> (u16, String) {
        let body = self.body.as_object().expect("a problem has a body");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let code = text(&body["code"]);
        assert_eq!(body["type"], format!("urn:carillon:problem:{code}"));
        assert_eq!(body["title"], code.replace('_', " "));
        assert_eq!(body["status"], self.status.as_u16());
        assert_eq!(body["request_id"], self.request_id());
        let detail = text(&body["detail"]);
        assert!(!detail.is_empty() && !detail.ends_with('.'), "{detail}");
        let known = [
            "type",
            "title",
            "status",
            "detail",
            "code",
            "request_id",
            "errors",
        ];
        assert!(body.keys().all(|name| known.contains(&name.as_str())));
        (self.status.as_u16(), code)
    }

    fn request_id(&self) -> String {
        self.headers["x-request-id"].to_str().unwrap().to_owned()
    }

    /// The field and code of every fault.
    fn faults(&self) -> Vec<(String, String)> {
        assert_eq!(self.problem(), (422, "validation_failed".to_owned()));
        let errors = self.body["errors"].as_array().unwrap();
        for error in errors {
            assert!(!text(&error["detail"]).is_empty() && !text(&error["hint"]).is_empty());
        }
        let pair = |error: &Value| (text(&error["field"]), text(&error["code"]));
        errors.iter().map(pair).collect()
    }
}

fn request(method: Method, path: &str, key: &str, body: Option<&Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !key.is_empty() {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    match body {
        Some(body) => request
            .header("content-type", "application/json")
            .body(Body::from(body.to_string())),
        None => request.body(Body::empty()),
    }
    .unwrap()
}

fn as_user(url: &str, user: &str) -> Secret {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    Secret::new(format!("{scheme}://{user}@{place}"))
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(field, code): &(&str, &str)| ((*field).to_owned(), (*code).to_owned());
    expected.iter().map(own).collect()
}

/// The id of the row that a key's text names.
fn id_of(key: &str) -> String {
    let id = key.split('_').nth(2).unwrap();
    Uuid::try_parse(id).unwrap().to_string()
}

// What surrounds every route.

#[tokio::test]
async fn what_no_route_takes_is_refused_with_a_problem() {
    let api = Api::new().await;
    let tenant = api.tenant("frame").await;
    let code = |reply: Reply| reply.problem();
    assert_eq!(code(api.get("/", "").await), (404, "no_such_route".into()));
    assert_eq!(
        code(api.get("/v1/api-keys/", &tenant.owner).await),
        (404, "no_such_route".into())
    );
    let reply = api
        .call(Method::DELETE, "/v1/tenant", &tenant.owner, None)
        .await;
    assert_eq!(reply.headers["allow"], "GET,HEAD");
    assert_eq!(code(reply), (405, "method_not_allowed".into()));
    let mut plain = request(
        Method::POST,
        "/v1/api-keys",
        &tenant.owner,
        Some(&json!({})),
    );
    plain
        .headers_mut()
        .insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(
        code(api.send(plain).await),
        (415, "unsupported_media_type".into())
    );
    let mut broken = request(
        Method::POST,
        "/v1/api-keys",
        &tenant.owner,
        Some(&json!({})),
    );
    *broken.body_mut() = Body::from("{\"name\": \"x\",\n nonsense}");
    let reply = api.send(broken).await;
    assert_eq!(
        reply.body["detail"],
        "the body is not JSON; look at line 2, column 2"
    );
    assert_eq!(code(reply), (400, "invalid_json".into()));
}

#[tokio::test]
async fn bodies_over_256_kb_are_refused() {
    let api = Api::new().await;
    let tenant = api.tenant("large").await;
    for (bytes, with_length, expected) in [
        (256_000, true, (400, "invalid_json".to_owned())),
        (256_001, true, (413, "body_too_large".to_owned())),
        (256_001, false, (413, "body_too_large".to_owned())),
    ] {
        let mut large = request(
            Method::POST,
            "/v1/api-keys",
            &tenant.owner,
            Some(&json!({})),
        );
        let content = "x".repeat(bytes);
        *large.body_mut() = if with_length {
            large.headers_mut().insert("content-length", bytes.into());
            Body::from(content)
        } else {
            let chunk = Ok::<_, io::Error>(content);
            Body::from_stream(futures_util::stream::iter([chunk]))
        };
        assert_eq!(
            api.send(large).await.problem(),
            expected,
            "{bytes} {with_length}"
        );
    }
}

#[tokio::test]
async fn a_request_keeps_its_id_and_no_answer_is_cached() {
    let api = Api::new().await;
    let mut named = request(Method::GET, "/health", "", None);
    named
        .headers_mut()
        .insert("x-request-id", "order-7".parse().unwrap());
    let reply = api.send(named).await;
    assert_eq!(reply.headers["x-request-id"], "order-7");
    assert_eq!(reply.headers["cache-control"], "no-store");
    assert_eq!(reply.headers["x-content-type-options"], "nosniff");
    let mut strange = request(Method::GET, "/v1/tenant", "", None);
    strange
        .headers_mut()
        .insert("x-request-id", "a b<script>".parse().unwrap());
    let reply = api.send(strange).await;
    let id = reply.headers["x-request-id"].to_str().unwrap();
    assert!(Uuid::try_parse(id).is_ok(), "{id}");
    reply.problem();
}

#[tokio::test]
async fn health_tells_of_the_database_and_needs_no_key() {
    let api = Api::new().await;
    let reply = api.get("/health", "").await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.body["status"], "healthy");
    assert_eq!(reply.body["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        text(&reply.body["time_zone_data"]),
        chrono_tz::IANA_TZDB_VERSION
    );
    assert_eq!(reply.body["database"]["status"], "healthy");
    assert!(reply.body["database"]["latency_ms"].is_u64());
    assert_eq!(reply.body["issues"], json!([]));
}

#[tokio::test]
async fn without_its_database_the_api_says_so() {
    let api = Api::new().await;
    let tenant = api.tenant("outage").await;
    let admin = tests::postgres_url();
    let (admin, connection) = tokio_postgres::connect(&admin, NoTls).await.unwrap();
    tokio::spawn(connection);
    let close = format!(
        "ALTER DATABASE \"{0}\" ALLOW_CONNECTIONS false;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{0}'",
        api.database
    );
    admin.batch_execute(&close).await.unwrap();
    let reply = api.get("/health", "").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.body["status"], "unhealthy");
    assert_eq!(reply.body["database"]["latency_ms"], Value::Null);
    assert_eq!(reply.body["issues"][0]["severity"], "critical");
    let reply = api.get("/v1/tenant", &tenant.owner).await;
    assert_eq!(reply.headers["retry-after"], "2");
    assert_eq!(reply.problem(), (503, "unavailable".into()));
    let open = format!("ALTER DATABASE \"{}\" ALLOW_CONNECTIONS true", api.database);
    admin.batch_execute(&open).await.unwrap();
    assert_eq!(api.get("/health", "").await.body["status"], "healthy");
    assert_eq!(api.get("/v1/tenant", &tenant.owner).await.status, 200);
}

#[tokio::test]
async fn the_log_tells_of_a_request_but_not_what_it_holds() {
    let api = Api::new().await;
    let tenant = api.tenant("logged").await;
    let body = json!({"name": "private-name", "role": "viewer", "email": "private@logged.example"});
    let made = api
        .repeat("/v1/api-keys", &tenant.owner, &body, "private-repeat")
        .await;
    let refused = json!({"private-field": 1});
    let refused = api.post("/v1/api-keys", &tenant.owner, &refused).await;
    let lost = api.get("/private-path?private=query", &tenant.owner).await;
    let ids = [&made, &refused, &lost].map(Reply::request_id);
    let log = LOG.text();
    assert!(!log.contains("private"), "{log}");
    for key in [&tenant.owner, &text(&made.body["key"])] {
        assert!(!log.contains(&key[key.len() - 64..]), "{log}");
    }
    // All tests of this program write to one log.
    let answered: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| ids.iter().any(|id| line["span"]["request.id"] == **id))
        .collect();
    assert_eq!(answered.len(), 3, "{log}");
    assert_eq!(answered[0]["http.status"], 201);
    assert!(answered[0]["http.duration_ms"].is_u64());
    assert_eq!(answered[0].get("error.code"), None);
    assert_eq!(answered[0]["span"]["http.route"], "/v1/api-keys");
    assert_eq!(answered[0]["span"]["http.method"], "POST");
    assert_eq!(answered[0]["span"]["tenant.id"], tenant.id);
    assert_eq!(answered[0]["span"]["api_key.id"], id_of(&tenant.owner));
    assert_eq!(answered[0]["message"], "request answered");
    assert_eq!(answered[1]["error.code"], "validation_failed");
    assert_eq!(answered[2]["span"]["http.route"], "none");
}

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

/// A thread's own subscriber would miss what another thread has switched off: there is one for all.
static LOG: LazyLock<Lines> = LazyLock::new(|| {
    let lines = Lines::default();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(lines.clone())
        .init();
    lines
});

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

// Identity.

#[tokio::test]
async fn only_a_whole_and_valid_key_opens() {
    let api = Api::new().await;
    let tenant = api.tenant("keys").await;
    let secret = &tenant.owner[tenant.owner.len() - 64..];
    let other_id = Uuid::now_v7().simple();
    let flipped = tenant
        .owner
        .replace(secret, &secret.chars().rev().collect::<String>());
    for (key, code) in [
        ("", "missing_key"),
        ("x", "unknown_key"),
        ("ck_local_", "unknown_key"),
        (PLATFORM_KEY, "unknown_key"),
        (&tenant.owner[..tenant.owner.len() - 1], "unknown_key"),
        (&flipped, "unknown_key"),
        (&tenant.owner.replace("ck_local", "ck_prod"), "unknown_key"),
        (&format!("ck_local_{other_id}_{secret}"), "unknown_key"),
        (&"k".repeat(8000), "unknown_key"),
    ] {
        let reply = api.get("/v1/tenant", key).await;
        assert_eq!(
            reply.headers["www-authenticate"],
            "Bearer realm=\"carillon\""
        );
        assert_eq!(reply.problem(), (401, code.to_owned()), "{key}");
    }
    let basic =
        Request::get("/v1/tenant").header("authorization", format!("Basic {}", tenant.owner));
    let reply = api.send(basic.body(Body::empty()).unwrap()).await;
    assert_eq!(reply.problem(), (401, "unknown_key".into()));
    assert_eq!(api.get("/v1/tenant", &tenant.owner).await.status, 200);
}

#[tokio::test]
async fn revoked_and_expired_keys_and_suspended_tenants_are_refused() {
    let api = Api::new().await;
    let tenant = api.tenant("refused").await;
    let path = format!("/v1/api-keys/{}", id_of(&tenant.editor));
    let revoked = api.call(Method::DELETE, &path, &tenant.owner, None).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    let expire = "UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1";
    let id = Uuid::try_parse(&id_of(&tenant.viewer)).unwrap();
    assert_eq!(api.sql.execute(expire, &[&id]).await.unwrap(), 1);
    let code = async |key: &str| api.get("/v1/tenant", key).await.problem();
    assert_eq!(code(&tenant.editor).await, (401, "key_revoked".into()));
    assert_eq!(code(&tenant.viewer).await, (401, "key_expired".into()));
    // Who does not hold the whole key learns nothing about it.
    let guessed = format!(
        "{}{}",
        &tenant.editor[..tenant.editor.len() - 64],
        "0".repeat(64)
    );
    assert_eq!(code(&guessed).await, (401, "unknown_key".into()));

    let suspend = format!("/v1/admin/tenants/{}/suspend", tenant.id);
    let reply = api.post(&suspend, PLATFORM_KEY, &json!({})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["status"]),
        (200, &json!("suspended"))
    );
    assert_eq!(code(&tenant.owner).await, (403, "tenant_suspended".into()));
    let resume = format!("/v1/admin/tenants/{}/resume", tenant.id);
    let reply = api.post(&resume, PLATFORM_KEY, &json!({})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["status"]),
        (200, &json!("active"))
    );
    assert_eq!(api.get("/v1/tenant", &tenant.owner).await.status, 200);
}

#[tokio::test]
async fn each_role_may_do_what_it_may_and_no_more() {
    let api = Api::new().await;
    let tenant = api.tenant("roles").await;
    let new_key = json!({"name": "another", "role": "viewer"});
    let unknown = format!("/v1/api-keys/{}", Uuid::now_v7());
    let provider_key = json!({"key": "sk-roles-0123456789"});
    // For viewer, editor and owner.
    for (method, path, body, statuses) in [
        (Method::GET, "/v1/tenant", None, [200, 200, 200]),
        (Method::GET, "/v1/audit-events", None, [200, 200, 200]),
        (Method::GET, "/v1/api-keys", None, [403, 403, 200]),
        (
            Method::POST,
            "/v1/api-keys",
            Some(&new_key),
            [403, 403, 201],
        ),
        (Method::DELETE, &*unknown, None, [403, 403, 404]),
        (Method::GET, "/v1/webhook-secret", None, [403, 403, 200]),
        (
            Method::POST,
            "/v1/webhook-secret/rotate",
            None,
            [403, 403, 200],
        ),
        (
            Method::PUT,
            "/v1/provider-keys/openai",
            Some(&provider_key),
            [403, 403, 201],
        ),
        (Method::GET, "/v1/provider-keys", None, [403, 403, 200]),
        (
            Method::DELETE,
            "/v1/provider-keys/openai",
            None,
            [403, 403, 204],
        ),
    ] {
        for (key, status) in [&tenant.viewer, &tenant.editor, &tenant.owner]
            .into_iter()
            .zip(statuses)
        {
            let reply = api.call(method.clone(), path, key, body).await;
            assert_eq!(
                reply.status.as_u16(),
                status,
                "{method} {path}: {}",
                reply.body
            );
            if status == 403 {
                assert_eq!(reply.problem(), (403, "role_too_low".into()));
            }
        }
    }
    // Refused writes left a trace and nothing else.
    assert_eq!(
        api.count("SELECT count(*) FROM api_keys WHERE name = 'another'")
            .await,
        1
    );
    let refused = "SELECT count(*) FROM audit_events WHERE result = 'refused'";
    assert_eq!(api.count(refused).await, 10);
}

#[tokio::test]
async fn refusals_do_not_cost_connections() {
    let api = Api::new().await;
    let tenant = api.tenant("connections").await;
    let backends = "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity
                     WHERE usename = 'carillon_app' AND datname = current_database()";
    let before: String = api.sql.query_one(backends, &[]).await.unwrap().get(0);
    for _ in 0..10 {
        let path = format!("/v1/api-keys/{}", Uuid::now_v7());
        let reply = api.call(Method::DELETE, &path, &tenant.owner, None).await;
        assert_eq!(reply.problem(), (404, "not_found".into()));
    }
    let after: String = api.sql.query_one(backends, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
}

// The wall between tenants.

#[tokio::test]
async fn another_tenants_objects_do_not_exist() {
    let api = Api::new().await;
    let (mine, theirs) = (api.tenant("mine").await, api.tenant("theirs").await);
    let their_key = id_of(&theirs.viewer);
    let path = format!("/v1/api-keys/{their_key}");
    let reply = api.call(Method::DELETE, &path, &mine.owner, None).await;
    assert_eq!(reply.problem(), (404, "not_found".into()));
    assert_eq!(api.get("/v1/tenant", &theirs.viewer).await.status, 200);

    let keys = api.get("/v1/api-keys?limit=100", &mine.owner).await.body;
    let ids: BTreeSet<_> = keys["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| text(&key["id"]))
        .collect();
    let expected = [&mine.owner, &mine.editor, &mine.viewer].map(|key| id_of(key));
    assert_eq!(ids, BTreeSet::from(expected));

    let path = format!("/v1/audit-events?target_id={their_key}");
    assert_eq!(api.get(&path, &mine.owner).await.body["items"], json!([]));
    assert_eq!(
        api.get(&path, &theirs.owner).await.body["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    // The same Idempotency-Key stands for another request in each tenant.
    let body = json!({"name": "same", "role": "viewer"});
    let first = api.repeat("/v1/api-keys", &mine.owner, &body, "same").await;
    let second = api
        .repeat("/v1/api-keys", &theirs.owner, &body, "same")
        .await;
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (201, 201));
    assert_ne!(first.body["key"], second.body["key"]);
    assert!(second.headers.get("idempotent-replayed").is_none());
}

#[tokio::test]
async fn nothing_in_a_request_but_its_key_chooses_the_tenant() {
    let api = Api::new().await;
    let (mine, theirs) = (api.tenant("mine").await, api.tenant("theirs").await);
    let mut spoofed = request(Method::GET, "/v1/tenant", &mine.viewer, None);
    for name in ["x-tenant-id", "tenant-id", "app.current_tenant_id"] {
        spoofed
            .headers_mut()
            .insert(name, theirs.id.parse().unwrap());
    }
    assert_eq!(api.send(spoofed).await.body["id"], mine.id);
}

// Repeats.

#[tokio::test]
async fn a_repeated_post_gets_the_first_answer_and_has_one_effect() {
    let api = Api::new().await;
    let tenant = api.tenant("repeat").await;
    let body = json!({"name": "once", "role": "viewer"});
    let first = api
        .repeat("/v1/api-keys", &tenant.owner, &body, "k-1")
        .await;
    let again = api
        .repeat("/v1/api-keys", &tenant.owner, &body, "k-1")
        .await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(again.status, StatusCode::CREATED);
    assert_eq!(first.body, again.body);
    assert_eq!(first.headers["location"], again.headers["location"]);
    assert_eq!(again.headers["content-type"], "application/json");
    assert!(first.headers.get("idempotent-replayed").is_none());
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(
        api.count("SELECT count(*) FROM api_keys WHERE name = 'once'")
            .await,
        1
    );
    // The key works, and its text lies nowhere in the database.
    let key = text(&again.body["key"]);
    assert_eq!(api.get("/v1/tenant", &key).await.status, 200);
    let secret = &key[key.len() - 64..];
    let leaks = format!(
        "SELECT count(*) FROM idempotency_keys
          WHERE position('{secret}'::bytea IN response_sealed) > 0"
    );
    assert_eq!(api.count(&leaks).await, 0);
    assert_eq!(api.count("SELECT count(*) FROM idempotency_keys").await, 1);
}

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let api = Api::new().await;
    let tenant = api.tenant("mismatch").await;
    let body = json!({"name": "once", "role": "viewer"});
    let first = api
        .repeat("/v1/api-keys", &tenant.owner, &body, "k-1")
        .await;
    assert_eq!(first.status, StatusCode::CREATED);
    let other = json!({"name": "twice", "role": "viewer"});
    let reused = (422, "idempotency_key_reused".to_owned());
    for (path, body) in [
        ("/v1/api-keys", &other),
        ("/v1/webhook-secret/rotate", &body),
    ] {
        let reply = api.repeat(path, &tenant.owner, body, "k-1").await;
        assert_eq!(reply.problem(), reused, "{path}");
    }
    assert_eq!(
        api.count("SELECT count(*) FROM api_keys WHERE name = 'twice'")
            .await,
        0
    );
    // After 24 hours the key is free for another request.
    let age = "UPDATE idempotency_keys SET created_at = now() - interval '24 hours 1 second'";
    api.sql.execute(age, &[]).await.unwrap();
    let reply = api
        .repeat("/v1/api-keys", &tenant.owner, &other, "k-1")
        .await;
    assert_eq!(reply.status, StatusCode::CREATED);
    let reply = api
        .repeat("/v1/api-keys", &tenant.owner, &other, "k-1")
        .await;
    assert_eq!(reply.headers["idempotent-replayed"], "true");
}

#[tokio::test]
async fn a_refused_post_leaves_its_key_free() {
    let api = Api::new().await;
    let tenant = api.tenant("free").await;
    let bad = json!({"name": "", "role": "viewer"});
    let reply = api.repeat("/v1/api-keys", &tenant.owner, &bad, "k-1").await;
    assert_eq!(reply.faults(), pairs(&[("name", "empty")]));
    let good = json!({"name": "good", "role": "viewer"});
    let reply = api
        .repeat("/v1/api-keys", &tenant.owner, &good, "k-1")
        .await;
    assert_eq!(reply.status, StatusCode::CREATED);
    for key in ["", "a b", &"k".repeat(201)] {
        let reply = api.repeat("/v1/api-keys", &tenant.owner, &good, key).await;
        assert_eq!(
            reply.faults(),
            pairs(&[("Idempotency-Key", "invalid_idempotency_key")])
        );
    }
}

#[tokio::test]
async fn equal_requests_at_once_have_one_effect() {
    let api = Api::new().await;
    let tenant = api.tenant("race").await;
    let body = json!({"name": "raced", "role": "viewer"});
    for round in 0..5 {
        let key = format!("race-{round}");
        let sent = (0..12).map(|_| api.repeat("/v1/api-keys", &tenant.owner, &body, &key));
        let replies = futures_util::future::join_all(sent).await;
        let mut keys = BTreeSet::new();
        for reply in &replies {
            match reply.status.as_u16() {
                201 => keys.insert(text(&reply.body["key"])),
                409 => {
                    assert_eq!(reply.problem().1, "idempotency_key_in_flight");
                    assert!(reply.headers.contains_key("retry-after"));
                    false
                }
                other => panic!("{other}: {}", reply.body),
            };
        }
        assert_eq!(keys.len(), 1, "round {round}");
        let made = api
            .count("SELECT count(*) FROM api_keys WHERE name = 'raced'")
            .await;
        assert_eq!(made, round + 1);
    }
}

#[tokio::test]
async fn a_crash_leaves_neither_effect_nor_key() {
    let api = Api::new().await;
    let tenant = api.tenant("crash").await;
    let body = json!({"name": "crashed", "role": "viewer"});
    let left = "SELECT (SELECT count(*) FROM api_keys WHERE name = 'crashed')
                     + (SELECT count(*) FROM idempotency_keys)
                     + (SELECT count(*) FROM audit_events WHERE action = 'api_key.created')";
    let before = api.count(left).await;
    // The server dies at each of the statements in turn, and at the commit itself.
    let die = "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
               'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'";
    api.sql.batch_execute(die).await.unwrap();
    for (table, timing) in [
        ("api_keys", "TRIGGER die AFTER INSERT"),
        ("audit_events", "TRIGGER die AFTER INSERT"),
        ("idempotency_keys", "TRIGGER die AFTER INSERT"),
        ("idempotency_keys", "CONSTRAINT TRIGGER die AFTER INSERT"),
    ] {
        let deferred = match timing.starts_with("CONSTRAINT") {
            true => "DEFERRABLE INITIALLY DEFERRED",
            false => "",
        };
        let arm =
            format!("CREATE {timing} ON {table} {deferred} FOR EACH ROW EXECUTE FUNCTION die()");
        api.sql.batch_execute(&arm).await.unwrap();
        let reply = api
            .repeat("/v1/api-keys", &tenant.owner, &body, "k-1")
            .await;
        assert_eq!(
            reply.problem(),
            (503, "unavailable".into()),
            "{table} {timing}"
        );
        let disarm = format!("DROP TRIGGER die ON {table}");
        api.sql.batch_execute(&disarm).await.unwrap();
        assert_eq!(api.count(left).await, before, "{table} {timing}");
    }
    let reply = api
        .repeat("/v1/api-keys", &tenant.owner, &body, "k-1")
        .await;
    assert_eq!(reply.status, StatusCode::CREATED);
    assert!(reply.headers.get("idempotent-replayed").is_none());
    assert_eq!(api.count(left).await, before + 3);
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_nothing_behind() {
    let api = Api::new().await;
    let tenant = api.tenant("hangup").await;
    let body = json!({"name": "hung", "role": "viewer"});
    // Another transaction holds the table, so that the request waits in the middle of its own.
    let mut blocker = api.another_connection().await;
    let block = blocker.transaction().await.unwrap();
    block
        .batch_execute("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")
        .await
        .unwrap();
    let body_with_user = json!({"name": "hung", "role": "viewer", "email": "new@hangup.example"});
    let sent = api.repeat("/v1/api-keys", &tenant.owner, &body_with_user, "k-1");
    let hung_up = tokio::time::timeout(Duration::from_millis(500), sent).await;
    assert!(hung_up.is_err(), "the request did not wait");
    drop(block.commit().await);
    let left = "SELECT (SELECT count(*) FROM api_keys WHERE name = 'hung')
                     + (SELECT count(*) FROM idempotency_keys)
                     + (SELECT count(*) FROM users WHERE email = 'new@hangup.example')";
    // The server notices the closed connection at its next statement.
    let replied = async {
        loop {
            let reply = api
                .repeat("/v1/api-keys", &tenant.owner, &body, "k-1")
                .await;
            if reply.status != StatusCode::CONFLICT {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reply = tokio::time::timeout(Duration::from_secs(10), replied)
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
    assert!(reply.headers.get("idempotent-replayed").is_none());
    assert_eq!(api.count(left).await, 2);
}

// Keys, the webhook secret, the tenant.

#[tokio::test]
async fn a_keys_text_is_shown_once() {
    let api = Api::new().await;
    let tenant = api.tenant("once").await;
    let body = json!({
        "name": "Nightly import", "role": "editor", "expires_at": "2999-01-01T00:00:00+01:00",
        "email": "New.User@once.example",
    });
    let made = api.post("/v1/api-keys", &tenant.owner, &body).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let key = text(&made.body["key"]);
    assert_eq!(
        made.headers["location"],
        format!("/v1/api-keys/{}", id_of(&key))
    );
    assert_eq!(made.body["expires_at"], "2998-12-31T23:00:00Z");
    assert_eq!(made.body["email"], "New.User@once.example");
    assert!(key.starts_with(&text(&made.body["prefix"])));
    let listed = api.get("/v1/api-keys", &tenant.owner).await.body;
    let mut expected = made.body.clone();
    expected.as_object_mut().unwrap().remove("key");
    assert_eq!(listed["items"][0], expected);
    assert!(!listed.to_string().contains(&key[key.len() - 64..]));
    // The same address in other letters is the same user.
    let again = json!({"name": "second", "role": "viewer", "email": "new.user@ONCE.example"});
    let again = api.post("/v1/api-keys", &tenant.owner, &again).await.body;
    assert_eq!(again["user_id"], made.body["user_id"]);
    // Its use is noted.
    assert_eq!(api.get("/v1/tenant", &key).await.status, 200);
    let listed = api.get("/v1/api-keys", &tenant.owner).await.body;
    let used = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["id"] == made.body["id"]);
    assert!(used.unwrap()["last_used_at"].is_string());
}

#[tokio::test]
async fn every_fault_of_a_key_is_told_at_once() {
    let api = Api::new().await;
    let tenant = api.tenant("faults").await;
    let body = json!({
        "name": "", "role": "root", "expires_at": "2001-01-01T00:00:00Z", "email": "nobody",
        "key": "ck_mine",
    });
    let reply = api.post("/v1/api-keys", &tenant.owner, &body).await;
    let mut faults = reply.faults();
    faults.sort();
    assert_eq!(
        faults,
        pairs(&[
            ("email", "invalid_email"),
            ("expires_at", "in_the_past"),
            ("key", "unknown_field"),
            ("name", "empty"),
            ("role", "unknown_value"),
        ])
    );
    let reply = api.post("/v1/api-keys", &tenant.owner, &json!({})).await;
    assert_eq!(
        reply.faults(),
        pairs(&[("name", "missing"), ("role", "missing")])
    );
    let reply = api.post("/v1/api-keys", &tenant.owner, &json!([1])).await;
    assert_eq!(reply.faults(), pairs(&[("", "wrong_type")]));
    let nul = json!({"name": "a\u{0}b", "role": "viewer"});
    let reply = api.post("/v1/api-keys", &tenant.owner, &nul).await;
    assert_eq!(reply.faults(), pairs(&[("name", "control_character")]));
}

#[tokio::test]
async fn the_last_owner_key_stays() {
    let api = Api::new().await;
    let tenant = api.tenant("last").await;
    let delete = async |key: &str, by: &str| {
        let path = format!("/v1/api-keys/{}", id_of(key));
        api.call(Method::DELETE, &path, by, None).await
    };
    let reply = delete(&tenant.owner, &tenant.owner).await;
    assert_eq!(reply.problem(), (409, "last_owner_key".into()));
    let second = api.key(&tenant.owner, "owner").await;
    assert_eq!(api.get("/v1/tenant", &second).await.status, 200);
    // Two at once, each of which could go alone: both wait for their rows, then both go on.
    let mut blocker = api.another_connection().await;
    let block = blocker.transaction().await.unwrap();
    let lock = "SELECT id FROM api_keys WHERE role = 'owner' FOR UPDATE";
    assert_eq!(block.query(lock, &[]).await.unwrap().len(), 2);
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        block.commit().await.unwrap();
    };
    let (one, other, ()) = tokio::join!(
        delete(&second, &tenant.owner),
        delete(&tenant.owner, &second),
        release
    );
    let works = [&tenant.owner, &second].map(|key| api.get("/v1/tenant", key));
    let works = futures_util::future::join_all(works).await;
    let works: Vec<u16> = works.iter().map(|reply| reply.status.as_u16()).collect();
    assert!(
        works.contains(&200),
        "{} {}: {works:?}",
        one.status,
        other.status
    );
    assert!(
        works.contains(&401),
        "{} {}: {works:?}",
        one.status,
        other.status
    );
    // Revoking again changes nothing and is no fault.
    let (live, gone) = match works[0] {
        200 => (&tenant.owner, &second),
        _ => (&second, &tenant.owner),
    };
    let events = "SELECT count(*) FROM audit_events WHERE action = 'api_key.revoked'";
    assert_eq!(api.count(events).await, 1);
    assert_eq!(delete(gone, live).await.status, StatusCode::NO_CONTENT);
    assert_eq!(api.count(events).await, 1);
    assert_eq!(
        delete(&tenant.viewer, live).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        delete(live, live).await.problem(),
        (409, "last_owner_key".into())
    );
    // An owner key that has expired does not count.
    let late = api.key(live, "owner").await;
    let expire = "UPDATE api_keys SET expires_at = now() WHERE id = $1";
    let id = Uuid::try_parse(&id_of(&late)).unwrap();
    api.sql.execute(expire, &[&id]).await.unwrap();
    assert_eq!(
        delete(live, live).await.problem(),
        (409, "last_owner_key".into())
    );
}

#[tokio::test]
async fn the_webhook_secret_rotates_and_the_old_one_stays_for_a_day() {
    let api = Api::new().await;
    let tenant = api.tenant("webhooks").await;
    let sealer = Sealer::from_base64(SEALING_KEY).unwrap();
    let id = tenant.id.parse().unwrap();
    let stored = async |column: &str| {
        let sql = format!("SELECT {column} FROM tenants WHERE id = $1");
        let tenant = Uuid::try_parse(&tenant.id).unwrap();
        let blob: Vec<u8> = api.sql.query_one(&sql, &[&tenant]).await.unwrap().get(0);
        let plain = sealer.open(id, Purpose::WebhookSecret, &blob).await;
        let plain = plain.unwrap();
        String::from_utf8(plain.to_vec()).unwrap()
    };
    let state = async || api.get("/v1/webhook-secret", &tenant.owner).await.body;
    let nothing = json!({"rotated_at": null, "previous_valid_until": null});
    assert_eq!(state().await, nothing);
    let first = stored("webhook_secret_sealed").await;
    let rotate = request(
        Method::POST,
        "/v1/webhook-secret/rotate",
        &tenant.owner,
        None,
    );
    let reply = api.send(rotate).await;
    assert_eq!(reply.status, StatusCode::OK);
    let second = text(&reply.body["secret"]);
    assert!(second.starts_with("whsec_") && second != first);
    assert_eq!(stored("webhook_secret_sealed").await, second);
    assert_eq!(stored("webhook_secret_previous_sealed").await, first);
    let after = state().await;
    assert_eq!(after["rotated_at"], reply.body["rotated_at"]);
    assert_eq!(
        after["previous_valid_until"],
        reply.body["previous_valid_until"]
    );
    assert!(after["previous_valid_until"].is_string() && after.get("secret").is_none());
    let age = "UPDATE tenants SET webhook_secret_rotated_at = now() - interval '24 hours'";
    api.sql.execute(age, &[]).await.unwrap();
    assert_eq!(state().await["previous_valid_until"], Value::Null);
}

#[tokio::test]
async fn a_tenant_is_shown_with_its_limits_and_usage() {
    let api = Api::new().await;
    let tenant = api.tenant("shown").await;
    let usage = "INSERT INTO tenant_usage (tenant_id, period, runs, input_tokens, output_tokens,
                                           cost_settled_usd)
                 SELECT $1, month, 7, 1000, 200, 0.123456
                   FROM (VALUES (date_trunc('month', now() AT TIME ZONE 'UTC')::date),
                                ('2001-01-01'::date)) AS months (month)";
    let id = Uuid::try_parse(&tenant.id).unwrap();
    api.sql.execute(usage, &[&id]).await.unwrap();
    let mut shown = api.get("/v1/tenant", &tenant.viewer).await.body;
    let month = text(&shown["usage"]["month"]);
    let now: String = api
        .sql
        .query_one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM')", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(month, now);
    for volatile in ["created_at", "updated_at", "usage"] {
        let value = shown.as_object_mut().unwrap().remove(volatile).unwrap();
        if volatile == "usage" {
            assert_eq!(
                value,
                json!({"month": month, "runs": 7, "input_tokens": 1000, "output_tokens": 200,
                       "cost_usd": 0.123456})
            );
        }
    }
    assert_eq!(
        shown,
        json!({
            "id": tenant.id, "name": "shown", "status": "active", "default_timezone": "UTC",
            "limits": {"active_prompts_max": 1000, "concurrent_runs_max": 20,
                       "interval_minutes_min": 1, "requests_per_minute_max": 3000,
                       "caller_requests_per_minute_max": 1500},
            "retention": {"succeeded_days": 7, "failed_days": 30, "other_days": 90},
            "counts": {"prompts_active": 0, "prompts_paused": 0, "runs_queued": 0,
                       "runs_running": 0},
        })
    );
}

// The audit trail, and lists in general.

#[tokio::test]
async fn the_audit_trail_tells_who_did_what() {
    let api = Api::new().await;
    let tenant = api.tenant("audit").await;
    let mut make = request(
        Method::POST,
        "/v1/api-keys",
        &tenant.owner,
        Some(&json!({"name": "secret name", "role": "viewer"})),
    );
    make.headers_mut()
        .insert("x-request-id", "trace-me".parse().unwrap());
    let made = api.send(make).await.body;
    let list = async |query: &str| {
        let reply = api
            .get(&format!("/v1/audit-events{query}"), &tenant.viewer)
            .await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        reply.body["items"].as_array().unwrap().clone()
    };
    let mut newest = list("?limit=1").await.remove(0);
    let at = text(&newest["at"]);
    newest
        .as_object_mut()
        .unwrap()
        .retain(|name, _| name != "id" && name != "at");
    assert_eq!(
        newest,
        json!({
            "actor_kind": "api_key", "actor_id": id_of(&tenant.owner), "actor_user_id": made["user_id"],
            "action": "api_key.created", "target_kind": "api_key", "target_id": made["id"],
            "result": "ok", "request_id": "trace-me", "detail": {"role": "viewer"},
        })
    );
    assert_eq!(
        list(&format!("?target_id={}", text(&made["id"])))
            .await
            .len(),
        1
    );
    assert_eq!(list("?action=api_key.created").await.len(), 3);
    let founded = list("?action=tenant.created").await;
    assert_eq!(founded[0]["actor_kind"], "platform");
    assert_eq!(founded[0]["target_id"], tenant.id);
    assert_eq!(list("?action=prompt.created").await.len(), 0);
    assert_eq!(list(&format!("?since={at}")).await.len(), 1);
    assert_eq!(list(&format!("?until={at}")).await.len(), 3);
    assert_eq!(list("?since=2999-01-01T00:00:00Z").await.len(), 0);
}

#[tokio::test]
async fn pages_cover_a_list_once() {
    let api = Api::new().await;
    let tenant = api.tenant("pages").await;
    for _ in 0..4 {
        api.key(&tenant.owner, "viewer").await;
    }
    // Each key's making is an event, the first one's as the tenant's.
    for (path, key, total) in [
        ("/v1/api-keys", &*tenant.owner, 7),
        ("/v1/audit-events", &tenant.viewer, 7),
        ("/v1/admin/tenants", PLATFORM_KEY, 1),
    ] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = api.get(&format!("{path}?limit=2{cursor}"), key).await.body;
            seen.extend(
                page["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| text(&item["id"])),
            );
            let Some(next) = page["next_cursor"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
            assert!(seen.len() < 20, "{path} does not end");
        }
        assert_eq!(seen.len(), total, "{path}");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), total, "{path}");
        let whole = api.get(path, key).await.body;
        let whole: Vec<_> = whole["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| text(&item["id"]))
            .collect();
        assert_eq!(seen, whole, "{path}");
    }
}

#[tokio::test]
async fn faults_of_a_query_string_are_told_at_once() {
    let api = Api::new().await;
    let tenant = api.tenant("query").await;
    let path = "/v1/audit-events?limit=101&cursor=mine&action=prompt.create&since=today&targt_id=1";
    let reply = api.get(path, &tenant.viewer).await;
    let mut faults = reply.faults();
    faults.sort();
    assert_eq!(
        faults,
        pairs(&[
            ("action", "unknown_value"),
            ("cursor", "invalid_cursor"),
            ("limit", "out_of_range"),
            ("since", "invalid_instant"),
            ("targt_id", "unknown_parameter"),
        ])
    );
    let hint = |field: &str| {
        let errors = reply.body["errors"].as_array().unwrap();
        text(&errors.iter().find(|error| error["field"] == field).unwrap()["hint"])
    };
    assert_eq!(hint("targt_id"), "did you mean `target_id`?");
    // A cursor of one list is none of another.
    let page = api.get("/v1/api-keys?limit=1", &tenant.owner).await.body;
    let cursor = text(&page["next_cursor"]);
    let reply = api
        .get(&format!("/v1/audit-events?cursor={cursor}"), &tenant.owner)
        .await;
    assert_eq!(reply.faults(), pairs(&[("cursor", "invalid_cursor")]));
}

// The operator.

#[tokio::test]
async fn the_operators_routes_need_the_platforms_key() {
    let api = Api::new().await;
    let tenant = api.tenant("admin").await;
    for (key, code) in [
        ("", "missing_key"),
        ("the-operators-own-kez", "unknown_key"),
        (&*tenant.owner, "unknown_key"),
    ] {
        let reply = api.get("/v1/admin/tenants", key).await;
        assert_eq!(reply.problem(), (401, code.to_owned()));
    }
    let closed = Api::with_platform_key(None).await;
    for key in ["", PLATFORM_KEY] {
        let reply = closed.get("/v1/admin/tenants", key).await;
        assert_eq!(reply.problem(), (404, "no_such_route".into()));
    }
}

#[tokio::test]
async fn the_operator_makes_changes_and_lists_tenants() {
    let api = Api::new().await;
    let body = json!({
        "name": "Northwind", "owner_email": "ann@northwind.example",
        "default_timezone": "Europe/London", "limits": {"active_prompts_max": 5},
        "retention": {"failed_days": 60},
    });
    let made = api.post("/v1/admin/tenants", PLATFORM_KEY, &body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let id = text(&made.body["tenant"]["id"]);
    let path = format!("/v1/admin/tenants/{id}");
    assert_eq!(made.headers["location"], path);
    assert_eq!(made.body["tenant"]["default_timezone"], "Europe/London");
    assert_eq!(made.body["tenant"]["limits"]["active_prompts_max"], 5);
    assert_eq!(made.body["tenant"]["limits"]["concurrent_runs_max"], 20);
    assert_eq!(made.body["tenant"]["retention"]["failed_days"], 60);
    assert_eq!(made.body["api_key"]["role"], "owner");
    assert_eq!(made.body["api_key"]["email"], "ann@northwind.example");
    let key = text(&made.body["api_key"]["key"]);
    assert_eq!(api.get("/v1/tenant", &key).await.body, made.body["tenant"]);
    let changes = json!({"name": "Southwind", "limits": {"interval_minutes_min": 15}});
    let changed = api
        .call(Method::PATCH, &path, PLATFORM_KEY, Some(&changes))
        .await
        .body;
    assert_eq!(changed["name"], "Southwind");
    assert_eq!(changed["limits"]["interval_minutes_min"], 15);
    assert_eq!(changed["limits"]["active_prompts_max"], 5);
    assert_eq!(api.get(&path, PLATFORM_KEY).await.body, changed);
    let listed = api.get("/v1/admin/tenants", PLATFORM_KEY).await.body;
    assert_eq!(listed["items"][0]["name"], "Southwind");
    // A tenant that lost its keys gets one for its first owner.
    let rescue = json!({"name": "Rescue", "role": "owner"});
    let rescue = api
        .post(&format!("{path}/api-keys"), PLATFORM_KEY, &rescue)
        .await;
    assert_eq!(rescue.status, StatusCode::CREATED);
    assert_eq!(rescue.body["user_id"], made.body["api_key"]["user_id"]);
    assert_eq!(
        api.get("/v1/tenant", &text(&rescue.body["key"])).await.body,
        changed
    );
}

#[tokio::test]
async fn faults_of_a_tenant_are_told_at_once() {
    let api = Api::new().await;
    let body = json!({
        "owner_email": "ann", "default_timezone": "Europe/Londn",
        "limits": {"active_prompts_max": -1, "runs": 1}, "retention": {"other_days": 0}, "x": 1,
    });
    let reply = api.post("/v1/admin/tenants", PLATFORM_KEY, &body).await;
    let mut faults = reply.faults();
    faults.sort();
    assert_eq!(
        faults,
        pairs(&[
            ("default_timezone", "unknown_timezone"),
            ("limits.active_prompts_max", "out_of_range"),
            ("limits.runs", "unknown_field"),
            ("name", "missing"),
            ("owner_email", "invalid_email"),
            ("retention.other_days", "out_of_range"),
            ("x", "unknown_field"),
        ])
    );
    assert_eq!(api.count("SELECT count(*) FROM tenants").await, 0);
}

#[tokio::test]
async fn an_unknown_tenant_is_not_found_and_nothing_is_made() {
    let api = Api::new().await;
    let key = json!({"name": "x", "role": "owner"});
    for id in [&*Uuid::now_v7().to_string(), "7", "%00"] {
        let path = format!("/v1/admin/tenants/{id}");
        for (method, path, body) in [
            (Method::GET, path.clone(), None),
            (Method::PATCH, path.clone(), Some(json!({"name": "x"}))),
            (Method::POST, format!("{path}/suspend"), None),
            (Method::POST, format!("{path}/resume"), None),
            (Method::POST, format!("{path}/api-keys"), Some(key.clone())),
        ] {
            let mut request = request(method.clone(), &path, PLATFORM_KEY, body.as_ref());
            request
                .headers_mut()
                .insert("idempotency-key", "k".parse().unwrap());
            let reply = api.send(request).await;
            assert_eq!(
                reply.problem(),
                (404, "not_found".into()),
                "{method} {path}"
            );
        }
    }
    assert_eq!(api.count("SELECT count(*) FROM audit_events").await, 0);
}

#[tokio::test]
async fn a_repeated_request_for_a_tenant_makes_one() {
    let api = Api::new().await;
    let body = json!({"name": "Twice", "owner_email": "ann@twice.example"});
    let path = "/v1/admin/tenants";
    let sent = (0..6).map(|_| api.repeat(path, PLATFORM_KEY, &body, "k-1"));
    let replies = futures_util::future::join_all(sent).await;
    for reply in &replies {
        assert!(
            [201, 409].contains(&reply.status.as_u16()),
            "{}",
            reply.body
        );
    }
    let again = api.repeat(path, PLATFORM_KEY, &body, "k-1").await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(api.count("SELECT count(*) FROM tenants").await, 1);
    let other = json!({"name": "Other", "owner_email": "ann@twice.example"});
    let reply = api.repeat(path, PLATFORM_KEY, &other, "k-1").await;
    assert_eq!(reply.problem(), (422, "idempotency_key_reused".into()));
    // The tenant's own requests do not meet the operator's keys.
    let key = text(&again.body["api_key"]["key"]);
    let body = json!({"name": "mine", "role": "viewer"});
    let reply = api.repeat("/v1/api-keys", &key, &body, "k-1").await;
    assert_eq!(reply.status, StatusCode::CREATED);
    // A day later the key's tenant is there still.
    let age = "UPDATE idempotency_keys SET created_at = now() - interval '25 hours'";
    api.sql.execute(age, &[]).await.unwrap();
    let reply = api.repeat(path, PLATFORM_KEY, &other, "k-1").await;
    assert_eq!(reply.problem(), (409, "idempotency_key_expired".into()));
}

#[tokio::test]
async fn an_installation_starts_with_a_tenant_and_its_key() {
    let api = Api::with_platform_key(None).await;
    let (id, key) = management::bootstrap_tenant(&api.app, "local", "me@local.example")
        .await
        .unwrap();
    let shown = api.get("/v1/tenant", key.expose()).await;
    assert_eq!(shown.body["id"], id.to_string());
    let refused = management::bootstrap_tenant(&api.app, "", "me")
        .await
        .unwrap_err();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(api.count("SELECT count(*) FROM tenants").await, 1);
}

// The documentation.

#[tokio::test]
async fn every_operation_is_documented_with_its_refusals() {
    let api = Api::new().await;
    let document = api.get("/openapi.json", "").await.body;
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(
        document,
        serde_json::to_value(management::openapi()).unwrap()
    );
    let schemes = &document["components"]["securitySchemes"];
    assert_eq!(schemes["api_key"]["scheme"], "bearer");
    assert_eq!(schemes["token"]["scheme"], "bearer");
    assert_eq!(schemes["platform_key"]["scheme"], "bearer");
    let mut frame = BTreeMap::new();
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let statuses: Vec<&str> = operation["responses"]
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            assert!(
                names.insert(text(&operation["operationId"])),
                "{method} {path}"
            );
            let security = match operation.get("security") {
                Some(security) => security[0].as_object().unwrap().keys().next().unwrap(),
                None => "none",
            };
            for status in &statuses {
                let kind = operation["responses"][status]["content"].as_object();
                let problem =
                    kind.is_some_and(|kind| kind.contains_key("application/problem+json"));
                let is_report = path == "/health" && *status == "503";
                let is_error = status.starts_with(['4', '5']) && !is_report;
                assert_eq!(problem, is_error, "{method} {path} {status}");
            }
            let expected = match path.as_str() {
                "/health" => "none",
                path if path.starts_with("/v1/admin/") => "platform_key",
                _ => "api_key",
            };
            assert_eq!(security, expected, "{method} {path}");
            let takes_tokens = operation["security"][1].get("token").is_some();
            assert_eq!(takes_tokens, expected == "api_key", "{method} {path}");
            frame.insert(format!("{method} {path}"), statuses.join(" "));
        }
    }
    for (operation, statuses) in [
        ("get /v1/tenant", "200 401 403 422 429 500 503"),
        ("get /v1/audit-events", "200 401 403 422 429 500 503"),
        (
            "post /v1/api-keys",
            "201 400 401 403 409 413 415 422 429 500 503",
        ),
        (
            "delete /v1/api-keys/{id}",
            "204 401 403 404 409 413 422 429 500 503",
        ),
        (
            "post /v1/webhook-secret/rotate",
            "200 401 403 409 413 422 429 500 503",
        ),
        (
            "put /v1/provider-keys/{provider}",
            "200 201 400 401 403 404 412 413 415 422 429 500 503",
        ),
        (
            "patch /v1/admin/tenants/{id}",
            "200 400 401 404 413 415 422 500 503",
        ),
        ("get /health", "200 500 503"),
    ] {
        assert_eq!(
            frame.get(operation).map(String::as_str),
            Some(statuses),
            "{operation}"
        );
    }
}

#[tokio::test]
async fn the_interactive_page_works_offline() {
    let api = Api::new().await;
    let page = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = api.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), 20_000_000).await.unwrap();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    };
    assert_eq!(page("/docs").await.0, 303);
    let (status, html) = page("/docs/").await;
    assert_eq!(status, 200);
    // Every script and style of the page is one of ours.
    let links: Vec<&str> = html
        .split("src=\"")
        .skip(1)
        .chain(html.split("href=\"").skip(1))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(links.len() >= 4, "{links:?}");
    for link in links {
        let path = link.strip_prefix("./").unwrap_or(link);
        assert!(!path.contains("//"), "{link}");
        let (status, content) = page(&format!("/docs/{path}")).await;
        assert!(status == 200 && !content.is_empty(), "{link}");
    }
    let (_, initializer) = page("/docs/swagger-initializer.js").await;
    assert!(initializer.contains("/openapi.json"));
}
