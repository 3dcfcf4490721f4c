//! The product over PostgreSQL, by a clock that the test sets.
//!
//! A schema of its own stands before the system catalogue in the search path, so that the product's
//! `now()` and `clock_timestamp()` find the functions there. Nothing in the product knows of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use management::{App, AppParts, bootstrap_tenant};
use serde_json::{Value, json};
use shared::db::{
    Db, DbError,
    migrate::{self, RolePasswords},
    runs::{self, AfterFailure, Claim, NextStep},
    system,
};
use shared::env::Environment;
use shared::ids::{PromptId, RunId, TenantId};
use shared::jitter;
use shared::message::WakeUp;
use shared::outbound::Policy;
use shared::price::Catalog;
use shared::queue::Queue;
use shared::run::RunStatus;
use shared::scheduler::Scheduler;
use shared::seal::Sealer;
use shared::secret::Secret;
use tests::stage::{config, migrations_hash};
use tests::worker::{Looked, answer, fail, failure, fire, resume, succeed};
use tests::{connect, database, database_url};
use tokio_postgres::Client;
use tower::ServiceExt;
use uuid::Uuid;

use crate::life::LEASE;
use crate::script::{self, Claimed, Config, Deed, Key, Outcome, Shown, Took};

/// Connections of the app role.
const CONNECTIONS: usize = 8;

/// The product with a clock that the test sets.
pub(crate) struct Sim {
    pub(crate) db: Db,
    pub(crate) admin: Client,
    router: Router,
    app: App,
}

/// A tenant that calls the API.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    key: String,
}

impl Sim {
    pub(crate) async fn new(at: DateTime<Utc>) -> Arc<Self> {
        let template = format!("carillon_sim_{}", migrations_hash().unwrap());
        let name = database(&template, simulated).await.unwrap();
        let admin = connect(&database_url(&name)).await.unwrap();
        // Settings of a role in a database are not copied with it.
        let path = format!(
            "ALTER ROLE carillon_app IN DATABASE \"{name}\" SET search_path = sim, public, pg_catalog"
        );
        admin.batch_execute(&path).await.unwrap();
        let db = Db::connect(&config(&name, CONNECTIONS)).await.unwrap();
        let app = App::new(AppParts {
            db: db.clone(),
            queue: Queue::local(1).0,
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
        let router = management::router(app.clone());
        let sim = Self {
            db,
            admin,
            router,
            app,
        };
        sim.set_clock(at).await;
        Arc::new(sim)
    }

    pub(crate) async fn set_clock(&self, at: DateTime<Utc>) {
        let sql = "UPDATE sim.clock SET at = $1";
        assert_eq!(self.admin.execute(sql, &[&at]).await.unwrap(), 1);
    }

    pub(crate) async fn tenant(&self, name: &str, concurrent_runs_max: i32) -> Caller {
        let email = format!("{name}@example.com");
        let (tenant, key) = bootstrap_tenant(&self.app, name, &email).await.unwrap();
        let sql = "UPDATE tenants SET concurrent_runs_max = $2 WHERE id = $1";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
            [&tenant.uuid(), &concurrent_runs_max];
        self.admin.execute(sql, &params).await.unwrap();
        Caller {
            tenant,
            key: key.expose().to_owned(),
        }
    }

    /// Calls the API, which accepts it.
    pub(crate) async fn call(
        &self,
        caller: &Caller,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Value {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", caller.key))
            .header("content-type", "application/json");
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let response = self
            .router
            .clone()
            .oneshot(request.body(body).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1_000_000).await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// The prompts that a sweep finds.
    pub(crate) async fn found(&self) -> Vec<PromptId> {
        let found = system::due_prompts(&self.db, i32::MAX).await.unwrap();
        let ids = found.into_iter().filter_map(|wake_up| match wake_up {
            WakeUp::Prompt { prompt_id, .. } => Some(prompt_id),
            WakeUp::Run { .. } | WakeUp::Delivery { .. } => None,
        });
        ids.collect()
    }
}

/// Migrates a database and gives it the clock.
async fn simulated(url: String) -> Result<()> {
    migrate::run(&Secret::new(url.clone()), &RolePasswords::default()).await?;
    let client = connect(&url).await?;
    client
        .batch_execute(
            "CREATE SCHEMA sim;
             CREATE TABLE sim.clock AS SELECT now() AS at;
             CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql STABLE
                 AS 'SELECT at FROM sim.clock';
             CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
                 AS 'SELECT at FROM sim.clock';
             GRANT USAGE ON SCHEMA sim TO PUBLIC;
             GRANT SELECT ON sim.clock TO PUBLIC;
             DO $$
             DECLARE ours record;
             BEGIN
                 FOR ours IN SELECT oid::regprocedure AS called FROM pg_proc
                              WHERE proname IN ('system_due_prompts', 'system_due_runs', 'system_due_deliveries')
                 LOOP
                     EXECUTE format('ALTER FUNCTION %s SET search_path = sim, pg_catalog, public, pg_temp',
                                    ours.called);
                 END LOOP;
                 FOR ours IN SELECT adrelid::regclass AS named, attname FROM pg_attrdef
                               JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
                              WHERE pg_get_expr(adbin, adrelid) IN ('now()', 'clock_timestamp()')
                 LOOP
                     EXECUTE format('ALTER TABLE %s ALTER %I SET DEFAULT sim.now()',
                                    ours.named, ours.attname);
                 END LOOP;
             END $$",
        )
        .await?;
    Ok(())
}

/// A prompt in the database.
pub(crate) struct Prompt {
    sim: Arc<Sim>,
    caller: Caller,
    pub(crate) id: PromptId,
    runs: BTreeMap<Key, RunId>,
}

impl Prompt {
    pub(crate) async fn new(sim: &Arc<Sim>, caller: &Caller, config: &Config) -> Self {
        let body = config.to_json();
        let made = sim.call(caller, "POST", "/v1/prompts", Some(body)).await;
        let id: Uuid = made["id"].as_str().unwrap().parse().unwrap();
        Self {
            sim: Arc::clone(sim),
            caller: caller.clone(),
            id: id.into(),
            runs: BTreeMap::new(),
        }
    }

    pub(crate) fn delay(&self, config: &Config) -> TimeDelta {
        jitter::delay(self.id, config.jitter_minutes)
    }

    pub(crate) async fn does(&mut self, deed: &Deed) -> Option<Key> {
        let path = format!("/v1/prompts/{}", self.id);
        let call = async |method: &str, path: String, body: Option<Value>| {
            self.sim.call(&self.caller, method, &path, body).await
        };
        match deed {
            Deed::Pause => drop(call("POST", format!("{path}/pause"), None).await),
            Deed::Resume => drop(call("POST", format!("{path}/resume"), None).await),
            Deed::Cancel => drop(call("POST", format!("{path}/cancel"), None).await),
            Deed::Delete => drop(call("DELETE", path, None).await),
            Deed::Reschedule(config) | Deed::Edit(config) => {
                drop(call("PUT", path, Some(config.to_json())).await);
            }
            Deed::Run(is_test) => {
                let body = json!({"test": is_test});
                let made = call("POST", format!("{path}/run"), Some(body)).await;
                let id: Uuid = made["id"].as_str().unwrap().parse().unwrap();
                let key = Key::Asked(id.into());
                self.runs.insert(key, id.into());
                return Some(key);
            }
            Deed::CancelRun(key) => {
                let run = self.run(*key).await;
                self.sim
                    .call(
                        &self.caller,
                        "POST",
                        &format!("/v1/runs/{run}/cancel"),
                        None,
                    )
                    .await;
            }
            Deed::RetryRun(key) => {
                let run = self.run(*key).await;
                self.sim
                    .call(&self.caller, "POST", &format!("/v1/runs/{run}/retry"), None)
                    .await;
            }
        }
        None
    }

    async fn run(&mut self, key: Key) -> RunId {
        if let Some(run) = self.runs.get(&key) {
            return *run;
        }
        let Key::Slot(slot) = key else {
            panic!("{key:?} was not made here");
        };
        let sql = "SELECT id FROM scheduled_prompt_runs WHERE prompt_id = $1 AND scheduled_for = $2
                      AND trigger = 'schedule'";
        let found = self
            .sim
            .admin
            .query_one(sql, &[&self.id.uuid(), &slot])
            .await;
        let run = RunId::from(found.unwrap().get::<_, Uuid>(0));
        self.runs.insert(key, run);
        run
    }

    pub(crate) async fn fires(&mut self, workers: u32) -> Vec<Claimed> {
        let lease_ms = LEASE.num_milliseconds();
        let (db, tenant) = (&self.sim.db, self.caller.tenant);
        let fired = join_all((0..workers).map(|_| fire(db, tenant, self.id, lease_ms))).await;
        let mut claimed = Vec::new();
        for claim in fired.into_iter().filter_map(Result::unwrap) {
            let sql = "SELECT scheduled_for FROM scheduled_prompt_runs WHERE id = $1";
            let row = self.sim.admin.query_one(sql, &[&claim.run_id.uuid()]).await;
            let key = Key::Slot(row.unwrap().get(0));
            self.runs.insert(key, claim.run_id);
            claimed.push(of_claim(key, &claim));
        }
        claimed
    }

    pub(crate) async fn takes(&mut self, key: Key, workers: u64) -> Vec<Took> {
        let run = self.run(key).await;
        let lease_ms = LEASE.num_milliseconds();
        let (db, tenant) = (&self.sim.db, self.caller.tenant);
        let looked = join_all((0..workers).map(|_| resume(db, tenant, run, lease_ms))).await;
        let mut gave_up = false;
        let mut took = Vec::new();
        for one in looked {
            took.push(match one.unwrap() {
                Looked::Claimed(claim) => Took::Claimed(of_claim(key, &claim)),
                // Both saw the lease end; only one could write it.
                Looked::GaveUp if gave_up => Took::Left,
                Looked::GaveUp => {
                    gave_up = true;
                    Took::GaveUp
                }
                Looked::NoPlace | Looked::Other(NextStep::Defer | NextStep::WaitTurn) => {
                    Took::Deferred
                }
                Looked::Other(NextStep::Skip(reason)) => Took::Skipped(reason),
                Looked::Other(NextStep::Cancel(_)) => Took::Cancelled,
                Looked::Other(NextStep::Leave | NextStep::Claim | NextStep::GiveUp)
                | Looked::NoRun => Took::Left,
            });
        }
        took
    }

    pub(crate) async fn ends(&mut self, claimed: Claimed, outcome: Outcome) {
        let run_id = self.run(claimed.key).await;
        let sql = "SELECT trigger FROM scheduled_prompt_runs WHERE id = $1";
        let row = self.sim.admin.query_one(sql, &[&run_id.uuid()]).await;
        let claim = Claim {
            tenant_id: self.caller.tenant,
            prompt_id: self.id,
            run_id,
            trigger: row.unwrap().get::<_, String>(0).parse().unwrap(),
            fence: claimed.fence,
            attempt: claimed.attempt,
            attempts_max: claimed.attempts_max,
        };
        let db = &self.sim.db;
        let then = match outcome {
            Outcome::Vanishes => return,
            Outcome::Succeeds => None,
            Outcome::Fails => Some(AfterFailure::End(RunStatus::Failed)),
            Outcome::Retries(delay) => Some(AfterFailure::RetryIn {
                delay_ms: delay.num_milliseconds(),
            }),
        };
        let recorded = match then {
            None => succeed(db, &claim, 0).await.map(drop),
            Some(then) => fail(db, &claim, &failure("broken", then), "error")
                .await
                .map(drop),
        };
        match recorded {
            Ok(()) => {}
            Err(DbError::StaleLease) => {
                let tx = db.tenant(self.caller.tenant).await.unwrap();
                runs::settle_late(tx, &claim, Some(&answer("late")))
                    .await
                    .unwrap();
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    pub(crate) async fn rows(&self) -> (Vec<script::Row>, Shown) {
        let admin = &self.sim.admin;
        let sql = "SELECT r.scheduled_for, r.scheduled_until, r.slots_count, r.status, r.reason,
                          b.scheduled_for AS by_slot, b.id AS by_id, b.trigger = 'schedule' AS by_schedule,
                          CASE WHEN r.status = 'queued' AND r.attempt = 0 THEN r.available_at END AS available_at
                     FROM scheduled_prompt_runs r
                     LEFT JOIN scheduled_prompt_runs b ON b.id = r.overlapped_by
                    WHERE r.prompt_id = $1 AND r.trigger = 'schedule' ORDER BY r.scheduled_for";
        let rows = admin.query(sql, &[&self.id.uuid()]).await.unwrap();
        let rows = rows.iter().map(|row| script::Row {
            slot: row.get("scheduled_for"),
            until: row.get("scheduled_until"),
            count: row.get("slots_count"),
            status: row.get("status"),
            reason: row.get("reason"),
            by: row.get::<_, Option<bool>>("by_schedule").map(|is_slot| {
                if is_slot {
                    Key::Slot(row.get("by_slot"))
                } else {
                    Key::Asked(row.get::<_, Uuid>("by_id").into())
                }
            }),
            available_at: row.get("available_at"),
        });
        let sql =
            "SELECT status, status_reason, next_run_at, run_count, success_count, failure_count,
                          consecutive_failures
                     FROM scheduled_prompts WHERE id = $1";
        let shown = admin.query_one(sql, &[&self.id.uuid()]).await.unwrap();
        let shown = Shown {
            status: shown.get("status"),
            reason: shown.get("status_reason"),
            next_run_at: shown.get("next_run_at"),
            run_count: shown.get("run_count"),
            success_count: shown.get("success_count"),
            failure_count: shown.get("failure_count"),
            consecutive_failures: shown.get("consecutive_failures"),
        };
        (rows.collect(), shown)
    }
}

fn of_claim(key: Key, claim: &Claim) -> Claimed {
    Claimed {
        key,
        fence: claim.fence,
        attempt: claim.attempt,
        attempts_max: claim.attempts_max,
    }
}
