//! Tenants' own keys of model providers, from the request that brings one to the call that carries it.

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use chrono::{DurationRound, TimeDelta, Utc};
use executor::{
    Executor,
    deliver::{Mailer, Sender, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use management::{App, AppParts};
use serde_json::{Value, json};
use shared::{
    api_key::{ApiKey, Role},
    db::auth::{self, NewKey},
    env::Environment,
    message::WakeUp,
    outbound::Policy,
    price::Catalog,
    queue::Queue,
    scheduler::Scheduler,
    seal::{Purpose, Sealer},
    secrets::{SecretsManager, read_arn},
    webhook_secret::WebhookSecret,
};
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tests::stage::{Stage, Tenant, prompt, tenant};
use tokio::sync::Barrier;
use tower::ServiceExt;
use uuid::Uuid;

use crate::{
    log,
    provider::Provider,
    sealing,
    server::{Server, Turn},
};

const OPENAI: &str = "openai/gpt-4o-mini";
const ANTHROPIC: &str = "anthropic/claude-haiku-4-5";
const INSTALLATIONS: &str = "sk-installation-0123456789";
const ANSWER: &str = "# Harbour report\n\nA calm sea and a **light wind** from the west.";

struct World {
    stage: Stage,
    router: Router,
    provider: Provider,
    folder: TempDir,
    sealer: Box<dyn Fn() -> Sealer + Send + Sync>,
}

struct Owner {
    tenant: Tenant,
    key: String,
}

fn sealer() -> Sealer {
    Sealer::from_base64(&format!("{}=", "A".repeat(43))).unwrap()
}

impl World {
    async fn new() -> Self {
        Self::with(sealer).await
    }

    /// Each process that seals or opens gets a sealer of its own.
    async fn with(sealer: impl Fn() -> Sealer + Send + Sync + 'static) -> Self {
        let stage = Stage::new(4).await.unwrap();
        let app = App::new(AppParts {
            db: stage.db.clone(),
            queue: Queue::local(16).0,
            scheduler: Scheduler::Local,
            outputs: management::outputs::Outputs::Folder,
            sealer: sealer(),
            catalog: Catalog::shipped(),
            outbound: Policy::PUBLIC,
            allow_echo: true,
            platform_key: None,
            tokens: None,
            environment: Environment::Local,
        });
        Self {
            stage,
            router: management::router(app),
            provider: Provider::start().await,
            folder: tempfile::tempdir().unwrap(),
            sealer: Box::new(sealer),
        }
    }

    async fn owner(&self, name: &str) -> Owner {
        let tenant = tenant(&self.stage.db, name).await.unwrap();
        let key = ApiKey::generate(Environment::Local);
        let tx = self.stage.tx(tenant.id).await.unwrap();
        let new = NewKey {
            id: key.id(),
            user_id: tenant.user,
            name: "owner",
            prefix: &key.prefix(Environment::Local),
            hash: key.hash(),
            role: Role::Owner,
            expires_at: None,
        };
        auth::insert_key(&tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        let key = key.text().expose().to_owned();
        Owner { tenant, key }
    }

    /// Status and body of an answer.
    async fn send(
        &self,
        owner: &Owner,
        method: &str,
        path: &str,
        body: Option<Value>,
        header: Option<(&str, &str)>,
    ) -> (u16, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", owner.key))
            .header("content-type", "application/json");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.body(body).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), 1_000_000).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn put(&self, owner: &Owner, provider: &str, key: &str) -> (u16, Value) {
        let path = format!("/v1/provider-keys/{provider}");
        let body = json!({ "key": key });
        self.send(owner, "PUT", &path, Some(body), None).await
    }

    /// A process that has the installation's key of OpenAI alone.
    fn executor(&self) -> Executor {
        self.executor_with(self.models(Some(INSTALLATIONS)))
    }

    fn models(&self, openai_key: Option<&str>) -> Models {
        let providers = ProvidersConfig::from_vars(
            |name| match name {
                "OPENAI_BASE_URL" => Some(format!("{}/v1", self.provider.url)),
                "ANTHROPIC_BASE_URL" => Some(self.provider.url.clone()),
                "OPENAI_API_KEY" => openai_key.map(str::to_owned),
                _ => None,
            },
            false,
        );
        Models::new(providers.unwrap(), executor::model::client().unwrap())
    }

    fn executor_with(&self, models: Models) -> Executor {
        let folder = self.folder.path();
        Executor {
            db: self.stage.db.clone(),
            queue: Queue::local(16).0,
            models,
            sender: Sender::new(
                Mailer::Directory {
                    path: folder.join("outbox"),
                },
                Storage::Directory {
                    root: folder.join("storage"),
                },
                Guarded::new(Policy::PUBLIC).unwrap(),
            ),
            sealer: (self.sealer)(),
            catalog: Catalog::shipped(),
            from: "carillon@example.com".parse().unwrap(),
            lease: Duration::from_secs(60),
        }
    }

    /// Runs a prompt once and gives its run.
    async fn run(&self, executor: &Executor, tenant: Tenant, model: &str) -> Value {
        self.run_for(executor, tenant, model, json!([])).await
    }

    async fn run_for(
        &self,
        executor: &Executor,
        tenant: Tenant,
        model: &str,
        destinations: Value,
    ) -> Value {
        let slot = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
        let changes = json!({
            "model": model, "prompt_text": "Write the report. [fixture:answer]",
            "timeout_ms": 60_000, "max_retries": 0, "destinations": destinations,
        });
        let prompt_id = prompt(&self.stage.db, tenant, &changes, Some(slot))
            .await
            .unwrap();
        let wake_up = WakeUp::Prompt {
            tenant_id: tenant.id,
            prompt_id,
        };
        executor.handle(wake_up).await.unwrap();
        let sql = "SELECT to_jsonb(r) FROM scheduled_prompt_runs r WHERE prompt_id = $1";
        let row = self.stage.admin.query_one(sql, &[&prompt_id.uuid()]).await;
        row.unwrap().get(0)
    }

    /// Everything that is stored, as text.
    async fn stored(&self) -> String {
        let mut all = String::new();
        for table in [
            "audit_events",
            "provider_keys",
            "scheduled_prompt_runs",
            "run_logs",
            "run_attempts",
            "idempotency_keys",
        ] {
            let sql =
                format!("SELECT coalesce(string_agg(to_jsonb(t)::text, ' '), '') FROM {table} t");
            let row = self.stage.admin.query_one(&sql, &[]).await.unwrap();
            all.push_str(row.get(0));
        }
        all
    }
}

fn calls(seen: &[(String, String)]) -> Vec<(&str, &str)> {
    seen.iter().map(|(path, key)| (&**path, &**key)).collect()
}

#[tokio::test]
async fn a_tenants_runs_carry_its_own_key_and_no_other_tenants() {
    const CHAT: &str = "/v1/chat/completions";
    let world = World::new().await;
    let (ada, bob) = (world.owner("ada").await, world.owner("bob").await);
    assert_eq!(world.put(&ada, "openai", "sk-ada-0123456789").await.0, 201);
    assert_eq!(
        world.put(&ada, "anthropic", "ak-ada-0123456789").await.0,
        201
    );
    let executor = world.executor();
    for (tenant, model, call) in [
        (ada.tenant, OPENAI, (CHAT, "sk-ada-0123456789")),
        // The installation has no key of Anthropic: the tenant's own is enough.
        (ada.tenant, ANTHROPIC, ("/v1/messages", "ak-ada-0123456789")),
        (bob.tenant, OPENAI, (CHAT, INSTALLATIONS)),
    ] {
        let run = world.run(&executor, tenant, model).await;
        assert_eq!(
            (&run["status"], &run["output"]),
            (&json!("succeeded"), &json!(ANSWER)),
            "{run}"
        );
        assert_eq!(calls(&world.provider.seen()), [call]);
    }
    let run = world.run(&executor, bob.tenant, ANTHROPIC).await;
    assert_eq!(run["error_code"], "provider_not_configured", "{run}");
    assert!(
        run["error_message"]
            .as_str()
            .unwrap()
            .contains("PUT /v1/provider-keys")
    );
    assert!(world.provider.seen().is_empty());

    let gone = world.send(&ada, "DELETE", "/v1/provider-keys/openai", None, None);
    assert_eq!(gone.await.0, 204);
    // Another process, which has nothing of before.
    world.run(&world.executor(), ada.tenant, OPENAI).await;
    assert_eq!(calls(&world.provider.seen()), [(CHAT, INSTALLATIONS)]);
}

#[tokio::test]
async fn a_refused_key_is_said_to_be_the_tenants_and_a_new_one_works_at_once() {
    let world = World::new().await;
    let ada = world.owner("ada").await;
    let (old, new) = ("sk-ada-old-0123456789", "sk-ada-new-0123456789");
    world.put(&ada, "openai", old).await;
    world.provider.refuse(old);
    let executor = world.executor();
    let run = world.run(&executor, ada.tenant, OPENAI).await;
    assert_eq!(
        (&run["status"], &run["error_code"]),
        (&json!("failed"), &json!("tenant_key_refused")),
        "{run}"
    );
    let message = run["error_message"].as_str().unwrap();
    assert!(
        message.contains("your own key") && !message.contains(old),
        "{message}"
    );
    // It was not tried again, and not with the installation's key.
    assert_eq!(world.provider.seen().len(), 1);

    assert_eq!(world.put(&ada, "openai", new).await.0, 200);
    let run = world.run(&executor, ada.tenant, OPENAI).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let seen = world.provider.seen();
    let keys: Vec<&str> = seen.iter().map(|(_, key)| &**key).collect();
    assert_eq!(keys, [old, new]);
}

#[tokio::test]
async fn a_key_that_cannot_be_opened_is_not_replaced_by_the_installations() {
    let world = World::new().await;
    let ada = world.owner("ada").await;
    world.put(&ada, "openai", "sk-ada-0123456789").await;
    let bob = world.owner("bob").await;
    world.put(&bob, "openai", "sk-bob-0123456789").await;
    // Bob's row gets a copy of Ada's key.
    let sql = "UPDATE provider_keys SET key_sealed =
               (SELECT key_sealed FROM provider_keys WHERE tenant_id = $1) WHERE tenant_id = $2";
    let ids = [ada.tenant.id.uuid(), bob.tenant.id.uuid()];
    let changed = world.stage.admin.execute(sql, &[&ids[0], &ids[1]]).await;
    assert_eq!(changed.unwrap(), 1);
    let run = world.run(&world.executor(), bob.tenant, OPENAI).await;
    assert_eq!(run["error_code"], "tenant_key_unreadable", "{run}");
    assert!(world.provider.seen().is_empty());
}

#[tokio::test]
async fn the_installations_keys_are_fetched_and_fetched_anew_when_refused() {
    let world = World::new().await;
    let ada = world.owner("ada").await;
    let server = Server::start().await;
    let (old, new) = ("sk-installation-old", "sk-installation-new");
    let arn = server.set("keys", &json!({ "openai": old }).to_string());
    let manager = SecretsManager::new(&server.aws);
    let models = world.models(None);
    let models = models.with_stored_keys(manager, read_arn(&arn).unwrap());
    let executor = world.executor_with(models);
    let keys = || {
        let seen = world.provider.seen().into_iter();
        seen.map(|(_, key)| key).collect::<Vec<_>>()
    };
    let status = async || world.run(&executor, ada.tenant, OPENAI).await["status"].clone();

    // While it cannot be fetched at all, a run may be tried again.
    for _ in 0..2 {
        server.plan("GetSecretValue", Turn::Refuse(400, "ThrottlingException"));
    }
    let run = world.run(&executor, ada.tenant, OPENAI).await;
    assert_eq!(run["error_code"], "provider_key_unavailable", "{run}");
    server.calls("GetSecretValue");

    for _ in 0..3 {
        assert_eq!(status().await, "succeeded");
    }
    assert_eq!(
        (keys(), server.calls("GetSecretValue").len()),
        (vec![old.to_owned(); 3], 1)
    );

    server.set("keys", &json!({ "openai": new }).to_string());
    assert_eq!(status().await, "succeeded");
    assert_eq!(keys(), [old], "a key that works is not fetched anew");
    world.provider.refuse(old);
    assert_eq!(status().await, "succeeded");
    assert_eq!(
        (keys(), server.calls("GetSecretValue").len()),
        (vec![old.to_owned(), new.to_owned()], 1)
    );

    // A key that goes on being refused is not fetched at every call.
    world.provider.refuse(new);
    for _ in 0..3 {
        let run = world.run(&executor, ada.tenant, OPENAI).await;
        assert_eq!(run["error_code"], "provider_auth", "{run}");
    }
    assert_eq!(keys().len(), 3);
    assert!(server.calls("GetSecretValue").len() <= 1);
}

#[tokio::test]
async fn a_key_is_told_by_its_fingerprint_and_stands_in_no_line_answer_or_row() {
    log::keep();
    let world = World::new().await;
    let ada = world.owner("ada").await;
    let key = format!("sk-canary-{}", Uuid::now_v7().simple());
    let mut told = String::new();
    let (status, made) = world.put(&ada, "openai", &key).await;
    assert_eq!((status, &made["version"]), (201, &json!(1)));
    told.push_str(&made.to_string());
    let (_, page) = world
        .send(&ada, "GET", "/v1/provider-keys", None, None)
        .await;
    assert_eq!(page["items"], json!([made]));
    told.push_str(&page.to_string());
    // A refusal that could repeat what was sent.
    let broken = json!({ "key": format!("{key} {key}"), "other": key });
    let path = "/v1/provider-keys/openai";
    let (status, refused) = world.send(&ada, "PUT", path, Some(broken), None).await;
    assert_eq!(status, 422);
    told.push_str(&refused.to_string());

    let executor = world.executor();
    let run = world.run(&executor, ada.tenant, OPENAI).await;
    assert_eq!(run["status"], "succeeded");
    // The provider's own words repeat the key.
    world.provider.refuse(&key);
    let run = world.run(&executor, ada.tenant, OPENAI).await;
    assert_eq!(run["error_code"], "tenant_key_refused");
    told.push_str(&run.to_string());
    let (_, events) = world
        .send(&ada, "GET", "/v1/audit-events", None, None)
        .await;
    let saved = &events["items"][0];
    assert_eq!(
        (&saved["action"], &saved["detail"]),
        (&json!("provider_key.saved"), &json!({"provider": "openai"}))
    );
    told.push_str(&events.to_string());

    assert!(!told.contains(&key), "{told}");
    assert!(!world.stored().await.contains(&key));
    let logged = log::text();
    assert!(logged.contains("try failed") && !logged.contains(&key));
}

#[tokio::test]
async fn a_key_that_cannot_be_is_refused_with_the_field() {
    let world = World::new().await;
    let ada = world.owner("ada").await;
    let key = "sk-ada-0123456789";
    for (provider, key, field, code) in [
        ("bedrock", key, "provider", "provider_without_keys"),
        ("echo", key, "provider", "provider_without_keys"),
        ("mistral", key, "provider", "unknown_provider"),
        ("openai", "short", "key", "malformed_provider_key"),
    ] {
        let (status, problem) = world.put(&ada, provider, key).await;
        let fault = &problem["errors"][0];
        assert_eq!(
            (status, &fault["field"], &fault["code"]),
            (422, &json!(field), &json!(code)),
            "{problem}"
        );
    }
    let path = "/v1/provider-keys/openai";
    let body = || Some(json!({ "key": key }));
    let put = async |version: &str| {
        let if_match = Some(("if-match", version));
        world.send(&ada, "PUT", path, body(), if_match).await
    };
    assert_eq!(put("*").await.0, 412, "there is none to replace");
    assert_eq!(world.put(&ada, "openai", key).await.0, 201);
    assert_eq!(put("\"7\"").await.0, 412);
    let (status, replaced) = put("\"1\"").await;
    assert_eq!((status, &replaced["version"]), (200, &json!(2)));
    for provider in ["anthropic", "bedrock", "mistral"] {
        let path = format!("/v1/provider-keys/{provider}");
        let gone = world.send(&ada, "DELETE", &path, None, None).await;
        assert_eq!(gone.0, 404, "{provider}");
    }
}

#[tokio::test]
async fn with_kms_nothing_is_done_without_it_and_no_transaction_waits_for_it() {
    let server = Server::start().await;
    let aws = server.aws.clone();
    let world = World::with(move || sealing::sealer(&aws, "alias/carillon")).await;
    let ada = world.owner("ada").await;
    let body = json!({ "name": "repeated", "role": "viewer" });
    let post = async || {
        let key = Some(("idempotency-key", "once"));
        let body = Some(body.clone());
        world.send(&ada, "POST", "/v1/api-keys", body, key).await
    };
    let count = async |sql: &str| world.stage.count(sql).await.unwrap();
    let made = "SELECT count(*) FROM api_keys WHERE name = 'repeated'";
    server.plan(
        "GenerateDataKey",
        Turn::Refuse(400, "AccessDeniedException"),
    );
    let (status, problem) = post().await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    assert_eq!(count(made).await, 0);

    let first = post().await;
    assert_eq!((first.0, count(made).await), (201, 1));
    assert_eq!(post().await, first);
    assert_eq!(count(made).await, 1);
    assert_eq!(server.calls("Decrypt").len(), 1);

    let meeting = Arc::new(Barrier::new(2));
    server.plan("GenerateDataKey", Turn::Meet(Arc::clone(&meeting)));
    let asked = server.calls("GenerateDataKey").len();
    assert_eq!(asked, 2, "one was refused");
    let key = "sk-ada-0123456789";
    let looked = async {
        // The call is there, and is answered when this test says so.
        while server.calls("GenerateDataKey").is_empty() {
            tokio::task::yield_now().await;
        }
        let open = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND usename = 'carillon_app'
                       AND state LIKE 'idle in transaction%'";
        let open = count(open).await;
        meeting.wait().await;
        open
    };
    let (put, open) = tokio::join!(world.put(&ada, "openai", key), looked);
    assert_eq!((put.0, open), (201, 0));
    assert!(!world.stored().await.contains(key));

    let executor = world.executor();
    for _ in 0..3 {
        let run = world.run(&executor, ada.tenant, OPENAI).await;
        assert_eq!(run["status"], "succeeded", "{run}");
    }
    let seen = world.provider.seen();
    assert!(seen.len() == 3 && seen.iter().all(|(_, sent)| sent == key));
    assert_eq!(server.calls("Decrypt").len(), 1, "three runs, one data key");
    // A process that cannot reach KMS does not call with another's key.
    for _ in 0..2 {
        server.plan("Decrypt", Turn::Refuse(400, "ThrottlingException"));
    }
    let run = world.run(&world.executor(), ada.tenant, OPENAI).await;
    assert_eq!(run["error_code"], "provider_key_unavailable", "{run}");
    assert!(world.provider.seen().is_empty());
}

#[tokio::test]
async fn a_webhook_waits_for_kms_and_is_not_signed_with_another_tenants_secret() {
    let server = Server::start().await;
    let aws = server.aws.clone();
    let world = World::with(move || sealing::sealer(&aws, "alias/carillon")).await;
    let (ada, bob) = (world.owner("ada").await, world.owner("bob").await);
    let sealer = sealing::sealer(&server.aws, "alias/carillon");
    let ready = sealer.ready(ada.tenant.id, Purpose::WebhookSecret).await;
    let secret = WebhookSecret::generate().text();
    let sealed = ready.unwrap().seal(secret.expose().as_bytes()).unwrap();
    for owner in [&ada, &bob] {
        let sql = "UPDATE tenants SET webhook_secret_sealed = $2 WHERE id = $1";
        let admin = &world.stage.admin;
        let id = owner.tenant.id.uuid();
        admin.execute(sql, &[&id, &sealed]).await.unwrap();
    }
    // Nothing is sent: there is nothing to sign with.
    let hook = json!([{ "kind": "webhook", "url": "https://hooks.invalid/" }]);
    let executor = world.executor();
    for _ in 0..2 {
        server.plan("Decrypt", Turn::Refuse(500, "KMSInternalException"));
    }
    for (owner, status, code) in [
        (&ada, "retrying", "signing_secret_unavailable"),
        (&bob, "exhausted", "signing_secret_unreadable"),
    ] {
        world
            .run_for(&executor, owner.tenant, OPENAI, hook.clone())
            .await;
        let sql = "SELECT status, error_code FROM deliveries WHERE tenant_id = $1";
        let admin = &world.stage.admin;
        let row = admin.query_one(sql, &[&owner.tenant.id.uuid()]).await;
        let row = row.unwrap();
        let told: (String, String) = (row.get(0), row.get(1));
        assert_eq!(told, (status.to_owned(), code.to_owned()));
    }
}
