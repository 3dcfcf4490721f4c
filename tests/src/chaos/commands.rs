//! Cells of the API: a request whose process dies or stops on the way, and the same request again.
//!
//! The scheduler is an emulator's. At the end there is one prompt, one line in the audit trail, one
//! answer, and one entry that says what the row says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_scheduler::Client;
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};
use shared::{
    api_key::{ApiKey, Role as KeyRole},
    crash::Point,
    db::auth::{self, NewKey},
    env::Environment,
    scheduler::{EventBridge, Scheduler},
};
use sweeper::drift;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    cell::struck,
    checker::{Allowance, Report, check},
    process::{self, Order, Process, Role, scheduler_settings},
    scene::{Plot, Scene},
};
use crate::{
    fault_proxy::{Fault, FaultProxy, Upstream},
    peers, rehearsal,
};

const CALL_LIMIT: Duration = Duration::from_secs(90);
const END_LIMIT: Duration = Duration::from_secs(60);
const PASS_TIME: Duration = Duration::from_secs(60);
/// Passes of the sweeper until the entries follow.
const PASSES_MAX: usize = 20;

/// The expressions of the schedules before and after the change.
const BEFORE: &str = "cron(0 9 * * ? *)";
const AFTER: &str = "cron(30 10 * * ? *)";

/// A request is cut off at a point by `how`, and sent again.
pub(super) async fn crash(point: Point, how: &'static str) -> Result<Report> {
    let scene = empty_scene().await?;
    let api = Api::over(&scene).await?;
    let mut one_order = api.order(&scene, "one");
    one_order
        .more
        .push(("CARILLON_CRASH", format!("{}={how}", point.name())));
    let mut one = Process::start(&one_order)?;
    let first = api.create(process::address(&one_order).await?);
    struck(&scene, &mut one, &one_order, point, how).await?;
    api.let_time_pass(&scene).await?;

    let two_order = api.order(&scene, "two");
    let mut two = Process::start(&two_order)?;
    let url = process::address(&two_order).await?;
    let (status, made) = api.create(url.clone()).await??;
    ensure!(
        status == 201,
        "the same request again was answered {status}: {made}"
    );
    let (status, again) = api.create(url.clone()).await??;
    let mut findings = Vec::new();
    if status != 201 || again["id"] != made["id"] {
        findings.push(format!(
            "P10: the third request was answered {status} with another prompt"
        ));
    }
    let id = made["id"]
        .as_str()
        .context("a prompt has an id")?
        .to_owned();
    api.change(&url, &id).await?;
    if how == "stop" {
        one.go_on()?;
        if let Ok((201, answer)) = first.await?
            && answer["id"] != made["id"]
        {
            findings.push("P10: two answers to one request name two prompts".to_owned());
        }
    } else {
        ensure!(first.await?.is_err(), "a killed process gave an answer");
    }
    one.finish(END_LIMIT).await?;
    two.finish(END_LIMIT).await?;
    findings.extend(api.follows(&scene, &id).await?);
    findings.extend(rows_hold(&scene).await?);
    end(scene, findings, 1).await
}

/// A request whose call of the scheduler fails on the way.
pub(super) async fn network(fault: Fault) -> Result<Report> {
    let scene = empty_scene().await?;
    let api = Api::over(&scene).await?;
    let proxy = FaultProxy::open(Upstream::of_http(&peers::moto_url())?).await?;
    let mut order = api.order(&scene, "one");
    order
        .more
        .retain(|(name, _)| *name != "CHAOS_SCHEDULER_URL");
    let address = format!("http://{}", proxy.address());
    order.more.push(("CHAOS_SCHEDULER_URL", address));
    let mut one = Process::start(&order)?;
    let url = process::address(&order).await?;
    proxy.strike(fault, 2, b"/schedules");
    let (status, made) = api.create(url.clone()).await??;
    ensure!(status == 201, "a request was answered {status}: {made}");
    let id = made["id"].as_str().context("a prompt has an id")?;
    api.change(&url, id).await?;
    one.finish(END_LIMIT).await?;
    ensure!(proxy.struck() > 0, "the fault struck nobody");
    let mut findings = api.follows(&scene, id).await?;
    findings.extend(rows_hold(&scene).await?);
    end(scene, findings, usize::try_from(proxy.struck())?).await
}

async fn empty_scene() -> Result<Scene> {
    Scene::new(&Plot {
        first: Vec::new(),
        second: Vec::new(),
        ..Plot::full()
    })
    .await
}

/// A worker tells the events; then all is looked at.
async fn end(scene: Scene, findings: Vec<String>, faults: usize) -> Result<Report> {
    let mut worker = Process::start(&scene.order("worker", Role::Work))?;
    scene.quiet(END_LIMIT).await?;
    worker.finish(END_LIMIT).await?;
    let mut report = check(&scene, Allowance::faults(faults)).await?;
    report.findings.extend(findings);
    scene.drop_database().await?;
    Ok(report)
}

/// What calls and what is called.
struct Api {
    http: reqwest::Client,
    key: String,
    idempotency_key: String,
    group: String,
    scheduler: Scheduler,
    entries: Client,
}

type Answered = JoinHandle<Result<(u16, Value)>>;

impl Api {
    async fn over(scene: &Scene) -> Result<Self> {
        let group = format!("chaos-{}", Uuid::now_v7().simple());
        let aws = rehearsal::aws(&peers::moto_url());
        let entries = Client::new(&aws);
        entries.create_schedule_group().name(&group).send().await?;
        let settings = scheduler_settings(&group)?;
        Ok(Self {
            http: reqwest::Client::builder()
                .timeout(CALL_LIMIT)
                .no_proxy()
                .build()?,
            key: key(scene).await?,
            idempotency_key: Uuid::new_v4().to_string(),
            scheduler: Scheduler::EventBridge(EventBridge::new(&aws, settings)),
            group,
            entries,
        })
    }

    fn order(&self, scene: &Scene, name: &str) -> Order {
        let mut order = scene.order(name, Role::Serve);
        order.more.push(("CHAOS_SCHEDULER_URL", peers::moto_url()));
        order
            .more
            .push(("CHAOS_SCHEDULE_GROUP", self.group.clone()));
        order
    }

    /// Sends the one request that all cells are about.
    fn create(&self, url: String) -> Answered {
        let body = json!({
            "prompt_name": "Morning brief",
            "prompt_text": "Write a brief.",
            "model": "echo/echo-1",
            "schedule": {"type": "daily", "at": "09:00", "timezone": "Europe/London"},
            "destinations": [{"kind": "storage"}],
        });
        let request = self
            .http
            .post(format!("{url}/v1/prompts"))
            .header(AUTHORIZATION, format!("Bearer {}", self.key))
            .header("idempotency-key", &self.idempotency_key)
            .json(&body);
        tokio::spawn(async move {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok((status, response.json().await?))
        })
    }

    /// A later change, which nobody who comes late may undo.
    async fn change(&self, url: &str, id: &str) -> Result<()> {
        let change =
            json!({"schedule": {"type": "daily", "at": "10:30", "timezone": "Europe/London"}});
        let response = self
            .http
            .patch(format!("{url}/v1/prompts/{id}"))
            .header(AUTHORIZATION, format!("Bearer {}", self.key))
            .json(&change)
            .send()
            .await?;
        let status = response.status();
        ensure!(status.is_success(), "the change was answered {status}");
        Ok(())
    }

    async fn let_time_pass(&self, scene: &Scene) -> Result<()> {
        let sql = "UPDATE scheduled_prompts
                      SET sync_due_at = now() - interval '1 second',
                          sync_lease_expires_at = sync_lease_expires_at - interval '1 hour'";
        Ok(scene.admin.batch_execute(sql).await?)
    }

    /// P1: the sweeper makes the entry follow, whoever began to.
    async fn follows(&self, scene: &Scene, id: &str) -> Result<Vec<String>> {
        let sql = "SELECT generation, synced_generation FROM scheduled_prompts";
        let mut row = Value::Null;
        for _ in 0..PASSES_MAX {
            self.let_time_pass(scene).await?;
            drift::repair(&scene.db, &self.scheduler, Instant::now() + PASS_TIME).await?;
            row = scene.rows(sql).await?.pop().unwrap_or_default();
            if row["generation"] == row["synced_generation"] {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let mut findings = Vec::new();
        if row["generation"] != row["synced_generation"] {
            findings.push(format!("P1: the entry never followed: {row}"));
        }
        let listed = self
            .entries
            .list_schedules()
            .group_name(&self.group)
            .send()
            .await?;
        let names: Vec<_> = listed
            .schedules()
            .iter()
            .filter_map(|one| one.name())
            .collect();
        if names != [format!("{id}-1")] {
            findings.push(format!("P1: {} entries of one prompt", names.len()));
            return Ok(findings);
        }
        let entry = self
            .entries
            .get_schedule()
            .group_name(&self.group)
            .name(format!("{id}-1"));
        let entry = entry.send().await?;
        let expression = entry.schedule_expression().unwrap_or_default();
        if expression != AFTER {
            findings.push(format!(
                "P1: the entry says {expression}, and the row 10:30 (before: {BEFORE})"
            ));
        }
        let input = entry
            .target()
            .and_then(|target| target.input())
            .unwrap_or_default();
        let generation = row["generation"].as_i64().unwrap_or_default();
        if !input.contains(&format!("generation\\\":{generation}")) {
            findings.push(format!(
                "P1: the entry wakes under another generation than {generation}"
            ));
        }
        Ok(findings)
    }
}

async fn rows_hold(scene: &Scene) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (sql, what) in [
        (
            "SELECT count(*) AS n FROM scheduled_prompts",
            "P10: prompts of one request",
        ),
        (
            "SELECT count(*) AS n FROM audit_events WHERE action = 'prompt.created'",
            "P10: lines in the audit trail of one request",
        ),
        (
            "SELECT count(*) AS n FROM idempotency_keys",
            "P10: kept answers of one request",
        ),
    ] {
        let rows = scene.rows(sql).await?;
        let count = rows
            .first()
            .map_or(0, |row| row["n"].as_i64().unwrap_or_default());
        if count != 1 {
            findings.push(format!("{what}: {count}"));
        }
    }
    Ok(findings)
}

/// A key of the first tenant's owner.
async fn key(scene: &Scene) -> Result<String> {
    let side = scene.sides.first().context("a scene has tenants")?;
    let key = ApiKey::generate(Environment::Dev);
    let prefix = key.prefix(Environment::Dev);
    let tx = scene.db.tenant(side.tenant.id).await?;
    auth::insert_key(
        &tx,
        &NewKey {
            id: key.id(),
            user_id: side.tenant.user,
            name: "chaos",
            prefix: &prefix,
            hash: key.hash(),
            role: KeyRole::Owner,
            expires_at: None,
        },
    )
    .await?;
    tx.commit().await?;
    Ok(key.text().expose().to_owned())
}
