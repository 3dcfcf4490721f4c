//! An executor whose ways out lead to some AWS, over a database of its own, and the API beside it.

use std::time::Duration;

use aws_types::SdkConfig;
use axum::{
    Json, Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    routing::post,
};
use chrono::{DurationRound, TimeDelta, Utc};
use executor::{
    Executor,
    deliver::{Mailer, S3, Sender, Ses, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use management::{App, AppParts, bootstrap_tenant, outputs::Outputs};
use serde_json::{Value, json};
use shared::{
    db::deliveries,
    env::Environment,
    ids::{DeliveryId, PromptId, TenantId, UserId},
    message::WakeUp,
    outbound::Policy,
    price::Catalog,
    queue::Queue,
    scheduler::Scheduler,
    seal::Sealer,
};
use tests::{
    rehearsal,
    stage::{self, Stage},
};
use tower::ServiceExt;
use uuid::Uuid;

pub(crate) const FROM: &str = "carillon@example.com";
pub(crate) const CONFIGURATION_SET: &str = "mail";
const KMS_KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/outputs";

/// What a prompt says that is to have an output over 256 KiB.
pub(crate) const LONG: &str = "at length";

/// That output.
pub(crate) fn long_output() -> String {
    "0123456789 grüße\n".repeat(20_000)
}

pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) executor: Executor,
    pub(crate) aws: SdkConfig,
    pub(crate) bucket: String,
    app: App,
    router: Router,
}

pub(crate) struct Tenant {
    pub(crate) stage: stage::Tenant,
    pub(crate) key: String,
}

impl World {
    pub(crate) async fn at(url: &str) -> Self {
        let stage = Stage::new(6).await.unwrap();
        let aws = rehearsal::aws(url);
        let bucket = format!("outputs-{}", Uuid::now_v7().simple());
        let sealer = || Sealer::from_base64(&format!("{}=", "A".repeat(43))).unwrap();
        let app = App::new(AppParts {
            db: stage.db.clone(),
            queue: Queue::local(100).0,
            scheduler: Scheduler::Local,
            outputs: Outputs::Bucket(shared::aws::Bucket::new(&aws, bucket.clone())),
            sealer: sealer(),
            catalog: Catalog::shipped(),
            outbound: Policy::PUBLIC,
            allow_echo: true,
            platform_key: None,
            tokens: None,
            environment: Environment::Dev,
        });
        let base_url = model().await;
        let providers = ProvidersConfig::from_vars(
            |name| (name == "OPENAI_BASE_URL").then(|| base_url.clone()),
            true,
        );
        let from = FROM.parse().unwrap();
        let executor = Executor {
            db: stage.db.clone(),
            queue: Queue::local(100).0,
            models: Models::new(providers.unwrap(), executor::model::client().unwrap()),
            sender: Sender::new(
                Mailer::Ses(Ses::new(&aws, &from, CONFIGURATION_SET.to_owned())),
                Storage::S3(S3::new(&aws, bucket.clone(), KMS_KEY.to_owned())),
                Guarded::new(Policy::PUBLIC).unwrap(),
            ),
            sealer: sealer(),
            catalog: Catalog::shipped(),
            from,
            lease: Duration::from_secs(60),
        };
        Self {
            router: management::router(app.clone()),
            stage,
            executor,
            aws,
            bucket,
            app,
        }
    }

    /// The same in an emulator, with the bucket, the sender and the configuration set.
    pub(crate) async fn in_emulator(url: &str) -> Self {
        use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
        use aws_sdk_ses::types::ConfigurationSet;
        let world = Self::at(url).await;
        let region = BucketLocationConstraint::EuCentral1;
        let place = CreateBucketConfiguration::builder()
            .location_constraint(region)
            .build();
        let making = world.s3().create_bucket().bucket(&world.bucket);
        making
            .create_bucket_configuration(place)
            .send()
            .await
            .unwrap();
        let ses = aws_sdk_ses::Client::new(&world.aws);
        ses.verify_email_identity()
            .email_address(FROM)
            .send()
            .await
            .unwrap();
        let set = ConfigurationSet::builder()
            .name(CONFIGURATION_SET)
            .build()
            .unwrap();
        // Another test may have made it.
        let _ = ses
            .create_configuration_set()
            .configuration_set(set)
            .send()
            .await;
        world
    }

    pub(crate) fn s3(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::config::Builder::from(&self.aws).force_path_style(true);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let email = format!("owner@{name}.example");
        let (id, key) = bootstrap_tenant(&self.app, name, &email).await.unwrap();
        let sql = "SELECT id FROM users WHERE tenant_id = $1";
        let row = self
            .stage
            .admin
            .query_one(sql, &[&id.uuid()])
            .await
            .unwrap();
        let user = UserId::from(row.get::<_, Uuid>(0));
        Tenant {
            stage: stage::Tenant { id, user },
            key: key.expose().to_owned(),
        }
    }

    /// Runs a prompt with this text and these destinations once, and sends what follows.
    pub(crate) async fn fire(&self, tenant: &Tenant, text: &str, destinations: Value) -> PromptId {
        let changes = json!({ "prompt_text": text, "destinations": destinations });
        self.fire_with(tenant, changes).await
    }

    /// The same of a prompt with these fields changed.
    pub(crate) async fn fire_with(&self, tenant: &Tenant, mut changes: Value) -> PromptId {
        let slot = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
        changes["model"] = json!("openai/gpt-4o-mini");
        changes["timeout_ms"] = json!(60_000);
        let prompt_id = stage::prompt(&self.stage.db, tenant.stage, &changes, Some(slot)).await;
        let prompt_id = prompt_id.unwrap();
        let tenant_id = tenant.stage.id;
        self.handle(WakeUp::Prompt {
            tenant_id,
            prompt_id,
        })
        .await;
        prompt_id
    }

    async fn handle(&self, wake_up: WakeUp) {
        Box::pin(self.executor.handle(wake_up)).await.unwrap();
    }

    /// A delivery of the only run of a prompt, without its bytes.
    pub(crate) async fn delivery(&self, prompt_id: PromptId) -> Value {
        let sql = "SELECT to_jsonb(d) - 'body'
                          || jsonb_build_object('wait_s', extract(epoch FROM d.next_attempt_at - now()))
                     FROM deliveries d JOIN scheduled_prompt_runs r ON r.id = d.run_id
                    WHERE r.prompt_id = $1 AND d.purpose = 'output'";
        let row = self
            .stage
            .admin
            .query_one(sql, &[&prompt_id.uuid()])
            .await
            .unwrap();
        row.get(0)
    }

    pub(crate) async fn run(&self, prompt_id: PromptId) -> Value {
        let sql = "SELECT to_jsonb(r) FROM scheduled_prompt_runs r WHERE r.prompt_id = $1";
        let row = self
            .stage
            .admin
            .query_one(sql, &[&prompt_id.uuid()])
            .await
            .unwrap();
        row.get(0)
    }

    /// Lets the next attempt of a delivery come, and makes it if there is to be one.
    pub(crate) async fn again(&self, tenant_id: TenantId, delivery: &Value) {
        let delivery_id = delivery_id(delivery);
        let sql = "UPDATE deliveries SET next_attempt_at = now() WHERE id = $1";
        self.stage
            .admin
            .execute(sql, &[&delivery_id.uuid()])
            .await
            .unwrap();
        self.handle(WakeUp::Delivery {
            tenant_id,
            delivery_id,
        })
        .await;
    }

    /// As a caller asks for it.
    pub(crate) async fn redeliver(&self, tenant_id: TenantId, delivery: &Value) {
        let tx = self.stage.tx(tenant_id).await.unwrap();
        let queued = deliveries::redeliver(&tx, delivery_id(delivery))
            .await
            .unwrap();
        assert_eq!(queued, deliveries::Redeliver::Queued);
        tx.commit().await.unwrap();
        self.again(tenant_id, delivery).await;
    }

    pub(crate) async fn send(
        &self,
        tenant: &Tenant,
        method: &str,
        path: &str,
    ) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", tenant.key))
            .body(Body::empty())
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1_000_000).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

pub(crate) fn delivery_id(delivery: &Value) -> DeliveryId {
    delivery["id"].as_str().unwrap().parse().unwrap()
}

/// An email destination to these addresses.
pub(crate) fn mail_to(to: &[&str], on_unknown: &str) -> Value {
    json!([{"kind": "email", "to": to, "on_unknown": on_unknown}])
}

/// Answers at once; at length, where it is asked to.
async fn model() -> String {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let answer = async |Json(request): Json<Value>| {
        let asked = request.to_string().contains(LONG);
        let content = if asked {
            long_output()
        } else {
            "A short answer.".to_owned()
        };
        Json(json!({
            "id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
            "choices": [{"index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": content, "refusal": null}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
        }))
    };
    let router = Router::new().route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    base_url
}
