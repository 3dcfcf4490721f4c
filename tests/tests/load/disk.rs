//! A full disk under PostgreSQL: the API says that it is not available and no more, nothing is lost or
//! doubled, and all goes on when there is space again, without a restart of ours.
//!
//! The disk is a small tmpfs, which only root can mount: without that the test is skipped, and says so.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use local::postgres::{Cluster, Options};
use reqwest::StatusCode;
use serde_json::{Value, json};
use shared::db::{Db, DbConfig};
use shared::secret::Secret;
use tempfile::TempDir;
use tests::connect;
use tests::stage::Stage;
use uuid::Uuid;

use crate::crowd::{Crowd, files, last_minute};
use crate::process::{Carillon, Start};
use crate::provider::{LONG, Provider, noise};
use crate::{client, eventually, turn};

/// Room for a fresh cluster, its write-ahead log, and what the test writes.
const DISK_MB: u32 = 256;

/// Prompts that come due while the disk is full.
const PROMPTS: usize = 24;

const WORKERS: usize = 8;

/// Requests after which the disk must have been noticed.
const REQUESTS_MAX: usize = 400;

/// Segments of the write-ahead log that are begun until there is no room for the next.
const SEGMENTS_MAX: usize = 64;

/// Of prompts that fill the disk.
const TEXT_BYTES: usize = 90_000;

/// What belongs to PostgreSQL or to the disk, and to no answer.
const UNSPEAKABLE: [&str; 8] = [
    "disk", "space", "extend", "relation", "pg_", "postgres", "53100", "base/",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_in_clear_errors_and_all_goes_on_after_it() {
    let _turn = turn().await;
    let Some(disk) = Disk::mount() else {
        println!("skipped: a full disk, because a tmpfs cannot be mounted here (it takes root)");
        return;
    };
    let server = disk.server().await;
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start(Duration::from_secs(2)).await;
    let start = Start {
        database_url: &disk.url("postgres"),
        provider: &provider,
        workers: WORKERS,
        data_bytes_max: None,
    };
    let mut carillon = Carillon::start(home.path(), "disk", &start).await;
    let api = Api::of(&carillon);
    let mut crowd = Crowd::on(disk.stage().await);
    let tenant = crowd.tenant("acme").await;
    crowd.add_of_kind(LONG, tenant, PROMPTS, None).await;

    // Tables cannot grow: answers that are under way cannot be recorded, and others not be asked for.
    crowd.make_due(last_minute()).await;
    eventually("runs are under way", async || {
        (provider.asked().len() >= WORKERS).then_some(())
    })
    .await;
    disk.fill();
    let refused = api.create_until_refused().await;
    eventually("a run meets the full disk", async || {
        carillon.written().contains("wake-up failed").then_some(())
    })
    .await;
    assert_eq!(
        api.health().await,
        StatusCode::OK,
        "what only reads goes on"
    );
    disk.free();
    api.create_again(&refused).await;
    let calls = ended_once(&crowd, PROMPTS, &provider, home.path()).await;
    println!("{PROMPTS} runs over a full disk took {calls} calls of the model");
    carillon.assert_alive();

    // Not even the write-ahead log can: PostgreSQL itself gives up, with a run under way.
    let again = format!("{LONG}-again");
    crowd
        .add_of_kind(&again, tenant, 1, Some(last_minute()))
        .await;
    eventually("a run is under way", async || {
        (provider.asked().len() > PROMPTS).then_some(())
    })
    .await;
    disk.fill();
    disk.exhaust_log().await;
    let refused = api.create_until_refused().await;
    disk.free();
    let (server, how) = disk.comes_back(server).await;
    println!("{how}");
    api.create_again(&refused).await;
    let after = Crowd::on(disk.stage().await);
    ended_once(&after, PROMPTS + 1, &provider, home.path()).await;
    carillon.assert_alive();
    carillon.stop().await;
    drop((crowd, after));
    server.stop().await.unwrap();
}

/// Every run ended well, and once: by the rows, and by what was stored. The model may have been asked
/// again where its answer could not be recorded, and then there is an attempt for each time. Gives how often.
async fn ended_once(crowd: &Crowd, runs: usize, provider: &Provider, home: &Path) -> usize {
    crowd.ended(runs).await;
    let counted = async |sql: &str| usize::try_from(crowd.stage.count(sql).await.unwrap()).unwrap();
    for (what, sql) in [
        ("runs", "SELECT count(*) FROM scheduled_prompt_runs"),
        (
            "that succeeded",
            "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'succeeded'",
        ),
        (
            "slots",
            "SELECT count(DISTINCT (prompt_id, scheduled_for)) FROM scheduled_prompt_runs",
        ),
        (
            "deliveries",
            "SELECT count(*) FROM deliveries WHERE status = 'delivered'",
        ),
        (
            "successes counted",
            "SELECT sum(success_count)::bigint FROM scheduled_prompts",
        ),
    ] {
        assert_eq!(counted(sql).await, runs, "{what}");
    }
    let asked = provider.asked();
    assert_eq!(asked.len(), runs);
    let attempts = counted("SELECT count(*) FROM run_attempts").await;
    let calls = asked.values().sum::<usize>();
    assert!(calls <= attempts, "{attempts} attempts: {asked:?}");
    assert_eq!(files(&home.join("data/storage")), runs);
    calls
}

/// The API, as the owner of the first tenant calls it.
struct Api {
    url: String,
    key: String,
    client: reqwest::Client,
}

impl Api {
    fn of(carillon: &Carillon) -> Self {
        let written = carillon.written();
        let key = written
            .lines()
            .find_map(|line| line.strip_prefix("    ck_"));
        Self {
            url: carillon.url.clone(),
            key: format!("ck_{}", key.unwrap()),
            client: client(),
        }
    }

    async fn health(&self) -> StatusCode {
        let answer = self.client.get(format!("{}/health", self.url)).send().await;
        answer.unwrap().status()
    }

    /// Makes prompts until one is refused, and gives its `Idempotency-Key`.
    async fn create_until_refused(&self) -> String {
        for _ in 0..REQUESTS_MAX {
            let key = Uuid::now_v7().to_string();
            let (status, body) = self.create(&key).await;
            if status != StatusCode::CREATED {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
                return key;
            }
        }
        panic!("{REQUESTS_MAX} prompts went onto a full disk");
    }

    /// The same request again, as a caller does, until it is taken; and then there is one prompt.
    async fn create_again(&self, key: &str) {
        let made = eventually("the API takes requests again", async || {
            let (status, body) = self.create(key).await;
            (status == StatusCode::CREATED).then_some(body)
        })
        .await;
        let (_, again) = self.create(key).await;
        assert_eq!(made["id"], again["id"]);
        let url = format!("{}/v1/prompts?external_id={key}", self.url);
        let found = self.client.get(url).bearer_auth(&self.key).send().await;
        let found: Value = found.unwrap().json().await.unwrap();
        assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
    }

    async fn create(&self, key: &str) -> (StatusCode, Value) {
        let text: String = noise().take(TEXT_BYTES).collect();
        let body = json!({
            "prompt_name": "a long one", "prompt_text": text, "model": "openai/gpt-4o-mini",
            "schedule": {"type": "manual"}, "destinations": [], "external_id": key,
        });
        let request = self.client.post(format!("{}/v1/prompts", self.url));
        let request = request
            .bearer_auth(&self.key)
            .header("idempotency-key", key);
        let answer = request.json(&body).send().await.unwrap();
        let status = answer.status();
        if status.is_success() {
            return (status, answer.json().await.unwrap());
        }
        let kind = answer.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(kind, "application/problem+json");
        assert!(answer.headers().contains_key("retry-after"), "{status}");
        let said = answer.text().await.unwrap();
        for word in UNSPEAKABLE {
            assert!(!said.to_ascii_lowercase().contains(word), "{word}: {said}");
        }
        (status, serde_json::from_str(&said).unwrap())
    }
}

/// A small file system, unmounted at its end.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn mount() -> Option<Self> {
        let mut builder = tempfile::Builder::new();
        let folder = builder.prefix("carillon-load-").tempdir().unwrap();
        // PostgreSQL's user must be able to go there.
        let open = Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), open.clone()).unwrap();
        for name in ["disk", "socket"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::set_permissions(folder.path().join(name), open.clone()).unwrap();
        }
        let disk = Self { folder };
        let size = format!("size={DISK_MB}m,mode=755");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(disk.path());
        mount
            .output()
            .is_ok_and(|done| done.status.success())
            .then_some(disk)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Not on the disk, and at the same place after a restart.
    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// PostgreSQL with all its files on the disk, durable as a real one.
    async fn server(&self) -> Cluster {
        fs::set_permissions(self.socket(), Permissions::from_mode(0o777)).unwrap();
        Cluster::start(Options {
            data_dir: self.path().join("data"),
            durable: true,
            settings: vec![
                (
                    "unix_socket_directories",
                    self.socket().display().to_string(),
                ),
                ("min_wal_size", "32MB".to_owned()),
                ("max_wal_size", "48MB".to_owned()),
            ],
        })
        .await
        .unwrap()
    }

    fn url(&self, user: &str) -> String {
        let socket = self.socket().display().to_string().replace('/', "%2F");
        format!("postgresql://{user}@{socket}/postgres")
    }

    async fn stage(&self) -> Stage {
        let url = |user: &str| Secret::new(self.url(user));
        let config = DbConfig::of_urls(url("carillon_app"), url("carillon_system"), 4, 2);
        Stage {
            name: "postgres".to_owned(),
            db: Db::connect(&config).await.unwrap(),
            admin: connect(&self.url("postgres")).await.unwrap(),
        }
    }

    /// The server after there was no room for its log: it recovers by itself, or has ended, and then
    /// somebody has to start it.
    async fn comes_back(&self, server: Cluster) -> (Cluster, &'static str) {
        let process = Path::new("/proc").join(server.pid().to_string());
        let lives = eventually("PostgreSQL recovers or ends", async || {
            let answers = connect(&self.url("postgres")).await.is_ok();
            (answers || !process.exists()).then_some(answers)
        })
        .await;
        if lives {
            return (server, "PostgreSQL recovered by itself");
        }
        drop(server);
        (
            self.server().await,
            "PostgreSQL had ended, and was started again",
        )
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// To the last byte.
    fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        for size in [1 << 20, 1 << 12] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    /// Begins segments of the write-ahead log until PostgreSQL cannot.
    async fn exhaust_log(&self) {
        let admin = connect(&self.url("postgres")).await.unwrap();
        for _ in 0..SEGMENTS_MAX {
            // A segment with nothing in it would not be left.
            let sql = "SELECT pg_logical_emit_message(true, 'load', 'x'), pg_switch_wal()";
            if admin.batch_execute(sql).await.is_err() {
                return;
            }
        }
        panic!("{SEGMENTS_MAX} segments went onto a full disk");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever still has a file there must not keep the test's folder.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}
