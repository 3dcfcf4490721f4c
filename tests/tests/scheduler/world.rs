//! A database of its own, the real router over it, and a scheduler at some address.

use std::time::Duration;

use aws_sdk_scheduler::{
    Client,
    config::{Credentials, SharedCredentialsProvider},
    operation::get_schedule::GetScheduleOutput,
};
use aws_types::{SdkConfig, region::Region};
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use chrono::{DateTime, Utc};
use management::{App, AppParts, bootstrap_tenant};
use serde_json::{Value, json};
use shared::{
    db::Db,
    env::{Environment, Reader},
    ids::{PromptId, TenantId},
    outbound::Policy,
    price::Catalog,
    queue::Queue,
    scheduler::{Applied, EventBridge, Scheduler, Settings},
    seal::Sealer,
};
use sweeper::drift::{self, Repaired};
use tests::{peers::AWS_REGION, stage::Stage};
use tokio::time::Instant;
use tower::ServiceExt;
use uuid::Uuid;

/// Longer than any pass of a test takes.
const PASS_TIME: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) scheduler: Scheduler,
    pub(crate) group: String,
    client: Client,
    router: Router,
    app: App,
}

pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    key: String,
}

impl World {
    /// With a group of its own, which is made where the other side keeps groups.
    pub(crate) async fn at(url: &str) -> Self {
        let world = Self::without_group(url).await;
        world.make_group().await;
        world
    }

    pub(crate) async fn without_group(url: &str) -> Self {
        let group = format!("test-{}", Uuid::now_v7().simple());
        let aws = aws(url);
        let scheduler = Scheduler::EventBridge(EventBridge::new(&aws, settings(&group)));
        let stage = Stage::new(12).await.unwrap();
        let (queue, _) = Queue::local(100);
        let app = App::new(AppParts {
            db: stage.db.clone(),
            queue,
            scheduler: scheduler.clone(),
            outputs: management::outputs::Outputs::Folder,
            sealer: Sealer::from_base64(&format!("{}=", "A".repeat(43))).unwrap(),
            catalog: Catalog::shipped(),
            outbound: Policy::PUBLIC,
            allow_echo: true,
            platform_key: None,
            tokens: None,
            environment: Environment::Dev,
        });
        Self {
            client: Client::new(&aws),
            router: management::router(app.clone()),
            app,
            stage,
            scheduler,
            group,
        }
    }

    pub(crate) async fn make_group(&self) {
        let making = self.client.create_schedule_group().name(&self.group);
        making.send().await.unwrap();
    }

    pub(crate) fn db(&self) -> &Db {
        &self.stage.db
    }

    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let email = format!("{name}@example.com");
        let (id, key) = bootstrap_tenant(&self.app, name, &email).await.unwrap();
        Tenant {
            id,
            key: key.expose().to_owned(),
        }
    }

    /// A request and its answer.
    pub(crate) async fn send(
        &self,
        tenant: &Tenant,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", tenant.key));
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let response = self
            .router
            .clone()
            .oneshot(request.body(body).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1_000_000).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Creates a prompt with this schedule, and gives its id and its body.
    pub(crate) async fn create(&self, tenant: &Tenant, schedule: Value) -> (PromptId, Value) {
        self.create_with(tenant, json!({ "schedule": schedule }))
            .await
    }

    pub(crate) async fn create_with(&self, tenant: &Tenant, changes: Value) -> (PromptId, Value) {
        let body = prompt_body(&changes);
        let (status, body) = self.send(tenant, "POST", "/v1/prompts", Some(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let id = body["id"].as_str().unwrap().parse().unwrap();
        (id, body)
    }

    /// Changes a prompt, and gives its body.
    pub(crate) async fn patch(&self, tenant: &Tenant, id: PromptId, change: Value) -> Value {
        let path = format!("/v1/prompts/{id}");
        let (status, body) = self.send(tenant, "PATCH", &path, Some(change)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// `pause`, `resume` or `cancel`.
    pub(crate) async fn post(&self, tenant: &Tenant, id: PromptId, verb: &str) -> Value {
        let path = format!("/v1/prompts/{id}/{verb}");
        let (status, body) = self.send(tenant, "POST", &path, None).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub(crate) async fn get(&self, tenant: &Tenant, id: PromptId) -> Value {
        let path = format!("/v1/prompts/{id}");
        let (status, body) = self.send(tenant, "GET", &path, None).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub(crate) async fn delete(&self, tenant: &Tenant, id: PromptId) {
        let path = format!("/v1/prompts/{id}");
        let (status, body) = self.send(tenant, "DELETE", &path, None).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
    }

    /// The entry as it stands there.
    pub(crate) async fn entry(&self, id: PromptId, arm: usize) -> Option<GetScheduleOutput> {
        let name = format!("{id}-{arm}");
        let call = self
            .client
            .get_schedule()
            .group_name(&self.group)
            .name(name);
        match call.send().await {
            Ok(found) => Some(found),
            Err(error) if error.raw_response().unwrap().status().as_u16() == 404 => None,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Puts an entry there by hand, as nobody of ours would.
    pub(crate) async fn put_by_hand(&self, name: &str, queue_url: &str) {
        use aws_sdk_scheduler::types::{FlexibleTimeWindow, FlexibleTimeWindowMode, Target};
        let window = FlexibleTimeWindow::builder().mode(FlexibleTimeWindowMode::Off);
        let target = Target::builder()
            .arn("arn:aws:scheduler:::aws-sdk:sqs:sendMessage")
            .role_arn("arn:aws:iam::123456789012:role/other")
            .input(json!({"QueueUrl": queue_url}).to_string());
        self.client
            .create_schedule()
            .group_name(&self.group)
            .name(name)
            .schedule_expression("rate(5 minutes)")
            .flexible_time_window(window.build().unwrap())
            .target(target.build().unwrap())
            .send()
            .await
            .unwrap();
    }

    pub(crate) async fn delete_by_hand(&self, name: &str) {
        let call = self.client.delete_schedule().group_name(&self.group);
        call.name(name).send().await.unwrap();
    }

    pub(crate) async fn entry_named(&self, name: &str) -> Option<GetScheduleOutput> {
        let call = self
            .client
            .get_schedule()
            .group_name(&self.group)
            .name(name);
        call.send().await.ok()
    }

    pub(crate) async fn apply(&self, tenant: &Tenant, id: PromptId) -> Applied {
        let time = Duration::from_secs(5);
        self.scheduler
            .apply(self.db(), tenant.id, id, time)
            .await
            .unwrap()
    }

    /// One pass of the sweeper.
    pub(crate) async fn repair(&self) -> Repaired {
        let deadline = Instant::now() + PASS_TIME;
        drift::repair(self.db(), &self.scheduler, deadline)
            .await
            .unwrap()
    }

    /// Lets the time pass until all changes are to be tried again, and all leases are over.
    pub(crate) async fn let_time_pass(&self) {
        let sql = "UPDATE scheduled_prompts
                      SET sync_due_at = now() - interval '1 second',
                          sync_lease_expires_at = sync_lease_expires_at - interval '1 hour'";
        self.stage.admin.execute(sql, &[]).await.unwrap();
    }

    /// What of a prompt's row speaks of its entries.
    pub(crate) async fn row(&self, id: PromptId) -> Value {
        let sql = "SELECT to_jsonb(q) FROM (
                       SELECT generation, synced_generation, sync_error, sync_attempts, sync_refused,
                              extract(epoch FROM sync_due_at - now())::int AS due_in_s,
                              sync_lease_expires_at > now() AS is_leased
                         FROM scheduled_prompts WHERE id = $1) q";
        let row = self
            .stage
            .admin
            .query_one(sql, &[&id.uuid()])
            .await
            .unwrap();
        row.get(0)
    }

    pub(crate) async fn sql(&self, statement: &str, id: PromptId) {
        let changed = self.stage.admin.execute(statement, &[&id.uuid()]).await;
        assert_eq!(changed.unwrap(), 1, "{statement}");
    }
}

pub(crate) fn prompt_body(changes: &Value) -> Value {
    let mut body = json!({
        "prompt_name": "Morning brief",
        "prompt_text": "Write a brief for {{ slot.date }}.",
        "model": "echo/echo-1",
        "schedule": daily(),
        "destinations": [{ "kind": "storage" }],
    });
    for (name, value) in changes.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub(crate) fn daily() -> Value {
    json!({ "type": "daily", "at": "09:00", "timezone": "Europe/London" })
}

pub(crate) fn aws(url: &str) -> SdkConfig {
    let credentials = Credentials::new("test", "test", None, None, "test");
    shared::aws::client_config()
        .to_builder()
        .region(Region::new(AWS_REGION))
        .endpoint_url(url)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

pub(crate) const QUEUE_URL: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/wake-ups";

pub(crate) fn settings(group: &str) -> Settings {
    let look_up = |name: &str| {
        let value = match name {
            "CARILLON_SCHEDULE_GROUP" => group,
            "CARILLON_QUEUE_URL" => QUEUE_URL,
            "CARILLON_SCHEDULER_ROLE_ARN" => "arn:aws:iam::123456789012:role/scheduler",
            "CARILLON_SCHEDULER_DLQ_ARN" => "arn:aws:sqs:eu-central-1:123456789012:dead-letters",
            other => panic!("{other} is read"),
        };
        Some(value.to_owned())
    };
    let mut reader = Reader::new(&look_up);
    let settings = Settings::read(&mut reader);
    reader.finish(settings).unwrap()
}

pub(crate) fn sync_of(body: &Value) -> (&str, Option<&str>) {
    (body["sync"].as_str().unwrap(), body["sync_error"].as_str())
}

pub(crate) fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}
