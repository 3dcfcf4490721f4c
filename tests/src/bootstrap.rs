//! The executor's bootstrap as Lambda runs it, for benchmarks: a process with nothing but its
//! environment, over a database of its own.

#![expect(
    clippy::unwrap_used,
    reason = "only benchmarks call this, and one may panic"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{Router, body::Bytes, http::HeaderMap};
use chrono::{DurationRound, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::{
    db::Db,
    ids::{TenantId, UserId},
    message::{self, WakeUp},
};
use tokio::net::TcpListener;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::{
    connect, database_url,
    model::Model,
    peers::{AWS_ACCOUNT, AWS_REGION},
    rehearsal::{self, Queues, TENANT},
    stage::{Tenant, config, prompt},
};

/// Names the bootstrap: it takes minutes to build, which no benchmark does by the way.
const PROGRAM: &str = "CARILLON_BOOTSTRAP";

/// The bootstrap's file.
///
/// # Errors
/// How to make it, where there is none.
pub fn program() -> Result<PathBuf, String> {
    env::var_os(PROGRAM).map(PathBuf::from).ok_or_else(|| {
        format!(
            "skipped: build the bootstrap with `cargo build --profile lambda -p executor --bin executor`, \
             and set {PROGRAM} to target/lambda/executor"
        )
    })
}

/// What surrounds a bootstrap.
pub struct Ground {
    /// Its database.
    pub database: String,
    /// A superuser, who sees past every wall.
    pub admin: Client,
    /// The model that it calls.
    pub model: Model,
    /// All of its environment.
    pub environment: Vec<(&'static str, String)>,
    db: Db,
    tenant: Tenant,
}

impl Ground {
    /// A database with one tenant, a model, and somebody who takes what is sent to S3 and to the bus.
    ///
    /// # Panics
    /// When PostgreSQL fails.
    pub async fn new() -> Self {
        let database = rehearsal::database().await.unwrap();
        let admin = connect(&database_url(&database)).await.unwrap();
        let sql = "UPDATE tenants SET concurrent_runs_max = 1000, active_prompts_max = 100000";
        admin.batch_execute(sql).await.unwrap();
        let model = Model::start().await;
        let aws = takes_all().await;
        let url = |name: &str| format!("{aws}/{AWS_ACCOUNT}/{name}");
        let queues = Queues {
            wake_ups: url("wake-ups"),
            dead_letters: url("dead-letters"),
            undelivered: url("undelivered"),
            group: "prompts".to_owned(),
        };
        let mut environment = rehearsal::environment(&database, &aws, &queues, Path::new(""));
        // As on AWS: files of this machine are slower than any bucket, and Lambda has none.
        environment.retain(|(name, _)| !["CARILLON_HOME", "CARILLON_SEALING_KEY"].contains(name));
        let key = format!("arn:aws:kms:{AWS_REGION}:{AWS_ACCOUNT}:key/outputs");
        environment.push(("CARILLON_KMS_KEY_ID", key));
        environment.push(("CARILLON_BUCKET", "outputs".to_owned()));
        environment.push(("CARILLON_SES_CONFIGURATION_SET", "mail".to_owned()));
        environment.push(("OPENAI_BASE_URL", model.base_url.clone()));
        environment.push(("CARILLON_DATABASE_CONNECTIONS_MAX", "1".to_owned()));
        environment.push(("CARILLON_SYSTEM_DATABASE_CONNECTIONS_MAX", "1".to_owned()));
        let sql = "SELECT id FROM users LIMIT 1";
        let user: Uuid = admin.query_one(sql, &[]).await.unwrap().get(0);
        Self {
            db: Db::connect(&config(&database, 2)).await.unwrap(),
            tenant: Tenant {
                id: TenantId::from(TENANT),
                user: UserId::from(user),
            },
            database,
            admin,
            model,
            environment,
        }
    }

    /// An event with a wake-up for each of these prompts' texts, which are due.
    ///
    /// # Panics
    /// When PostgreSQL fails.
    pub async fn event(&self, texts: &[String]) -> Vec<u8> {
        let slot = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
        let mut records = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            let changes = json!({
                "model": "openai/gpt-4o-mini",
                "prompt_text": text,
                "timeout_ms": 120_000,
                "destinations": [{"kind": "storage"}],
            });
            let prompt_id = prompt(&self.db, self.tenant, &changes, Some(slot))
                .await
                .unwrap();
            let wake_up = WakeUp::Prompt {
                tenant_id: self.tenant.id,
                prompt_id,
            };
            records.push(json!({
                "messageId": format!("m{n}"), "receiptHandle": "r", "body": message::encode(wake_up),
                "messageAttributes": {}, "attributes": {"ApproximateReceiveCount": "1"},
                "eventSource": "aws:sqs", "eventSourceARN": format!("arn:aws:sqs:{AWS_REGION}:{AWS_ACCOUNT}:wake-ups"),
                "awsRegion": AWS_REGION,
            }));
        }
        // Somebody else puts what the making of a prompt has to tell: it is no part of a run.
        let sql = "DELETE FROM bus_events WHERE type = 'prompt.created'";
        self.admin.batch_execute(sql).await.unwrap();
        json!({"Records": records}).to_string().into_bytes()
    }

    /// How many runs ended well.
    ///
    /// # Panics
    /// When PostgreSQL fails.
    pub async fn succeeded(&self) -> i64 {
        let sql = "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'succeeded'";
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// Answers for S3 and for the bus: whatever is sent there has arrived.
async fn takes_all() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(async |headers: HeaderMap, body: Bytes| {
        let asked = headers.get("x-amz-target");
        match asked.and_then(|asked| asked.to_str().ok()) {
            None => String::new(),
            Some(_) => {
                let read: Value = serde_json::from_slice(&body).unwrap();
                let entries = read["Entries"].as_array().map_or(0, Vec::len);
                let taken = vec![json!({"EventId": "e"}); entries];
                json!({"FailedEntryCount": 0, "Entries": taken}).to_string()
            }
        }
    });
    // It ends with the benchmark.
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// The answer to an event of which nothing comes again.
#[must_use]
pub fn all_done() -> Value {
    json!({"batchItemFailures": []})
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// On a CPU, of all its threads that live.
    pub cpu: Duration,
    /// Resident now, in MB of 10^6 bytes.
    pub resident_mb: f64,
    /// The most that was resident.
    pub resident_max_mb: f64,
}

impl Usage {
    /// Of a process that runs.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn of(process_id: u32) -> Self {
        let folder = Path::new("/proc").join(process_id.to_string());
        let threads = fs::read_dir(folder.join("task")).unwrap();
        let nanoseconds = threads.filter_map(|thread| {
            // A thread may end between the two.
            let line = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            line.split(' ').next()?.parse::<u64>().ok()
        });
        let status = fs::read_to_string(folder.join("status")).unwrap();
        let megabytes = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
            kibibytes * 1024.0 / 1e6
        };
        Self {
            cpu: Duration::from_nanos(nanoseconds.sum()),
            resident_mb: megabytes("VmRSS:"),
            resident_max_mb: megabytes("VmHWM:"),
        }
    }
}
