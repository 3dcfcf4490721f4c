//! The API as it describes itself: what a stranger's tools make of the OpenAPI document, and
//! whether a running Carillon answers as the document says, whatever is sent.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first thing that is not as it must be, and tells what it saw"
)]

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use local::child::{self, Child, StopStep};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::logs;

const PLATFORM_KEY: &str = "the-operators-own-key";
/// SHA-256 of [`PLATFORM_KEY`].
const PLATFORM_KEY_SHA256: &str =
    "de91899a2d6efaf2a492631b6e06ede206329574a10c3400f803e3999379f7e6";
const PATIENCE: Duration = Duration::from_secs(60);
const LOG: &str = "carillon.log";
const POLL: Duration = Duration::from_millis(50);
/// A run takes a minute and a half on two cores.
const FUZZING_LIMIT: Duration = Duration::from_secs(900);
const STOP_STEPS: &[StopStep] = &[
    (Signal::INT, Duration::from_secs(60)),
    (Signal::KILL, Duration::from_secs(10)),
];

#[tokio::test]
async fn whatever_a_tenant_sends_is_answered_as_documented() {
    let carillon = Carillon::start().await;
    carillon.lift_limits().await;
    let objects = carillon.seed().await;
    carillon
        .fuzz(&objects, &["--exclude-path-regex", "^/v1/admin/"])
        .await;
}

#[tokio::test]
async fn whatever_the_operator_sends_is_answered_as_documented() {
    let carillon = Carillon::start().await;
    // Suspended and resumed over and over: no other test may work in it.
    let tenant = carillon.tenant().await;
    let objects = vec![("FUZZ_TENANT", tenant)];
    carillon
        .fuzz(&objects, &["--include-path-regex", "^/v1/admin/"])
        .await;
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_its_examples_are_true() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("openapi.json");
    let document = serde_json::to_vec(&management::openapi()).unwrap();
    fs::write(&path, document).unwrap();
    let mut command = Command::new(python());
    command.arg(peers("check_openapi.py")).arg(&path);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{failed}");
}

#[tokio::test]
async fn the_documentation_page_needs_nobody_else() {
    let carillon = Carillon::start().await;
    let mut waiting = vec!["/docs/".to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(path) = waiting.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let answer = carillon.http.get(format!("{}{path}", carillon.url)).send();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let text = answer.text().await.unwrap();
        assert!(!text.is_empty(), "{path} is empty");
        for link in links(&path, &text) {
            let outside = link.contains("://") || link.starts_with("//");
            assert!(!outside, "{path} asks for {link}");
            waiting.push(resolved(&path, &link));
        }
    }
    assert!(seen.contains("/openapi.json"), "{seen:?}");
    assert!(seen.len() >= 5, "{seen:?}");
}

/// A `carillon up` in a folder of its own, and its first tenant's key.
struct Carillon {
    _child: Child,
    folder: TempDir,
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Carillon {
    async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("carillon-schemathesis-")
            .tempdir()
            .unwrap();
        // PostgreSQL's user must be able to go there when we are root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let log = folder.path().join(LOG);
        let mut child = spawn(folder.path(), &log);
        let deadline = Instant::now() + PATIENCE;
        let written = loop {
            let written = fs::read_to_string(&log).unwrap();
            if written.contains("Ctrl-C stops") {
                break written;
            }
            let ended = child.wait(Duration::ZERO);
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "carillon does not start ({ended:?}):\n{written}"
            );
            tokio::time::sleep(POLL).await;
        };
        let after = |mark: &str| written.lines().find_map(|line| line.strip_prefix(mark));
        let url = after("API      ").and_then(|url| url.strip_suffix("/v1/prompts"));
        Self {
            url: url.unwrap().to_owned(),
            key: format!("ck_{}", after("    ck_").unwrap()),
            http: reqwest::Client::builder()
                .timeout(Duration::from_secs(30))
                .no_proxy()
                .build()
                .unwrap(),
            _child: child,
            folder,
        }
    }

    async fn call(&self, method: Method, path: &str, key: &str, body: Option<&Value>) -> Value {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.bearer_auth(key).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path} answered {status}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, &self.key, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        self.call(Method::POST, path, &self.key, Some(body)).await
    }

    /// Objects in the states that the operations need, by the variables that name them.
    async fn seed(&self) -> Vec<(&'static str, String)> {
        let email = json!([{ "kind": "email", "to": ["ada@example.com"] }]);
        let nowhere = json!([{ "kind": "webhook", "url": "http://127.0.0.1:9/" }]);
        let run_prompt = self.prompt("echo/echo-1", &email).await;
        let succeeded = self.run(&run_prompt, "succeeded").await;
        let deliveries = self.get(&format!("/v1/runs/{succeeded}/deliveries")).await;
        // No provider has a key here, so the call fails without leaving this machine.
        let failing = self.prompt("openai/gpt-5-mini", &email).await;
        let undeliverable = self.prompt("echo/echo-1", &nowhere).await;
        let key = json!({ "name": "Spare", "role": "viewer" });
        for name in ["holidays", "spare"] {
            let path = format!("/v1/calendars/{name}");
            self.call(Method::PUT, &path, &self.key, Some(&json!({ "days": [] })))
                .await;
        }
        let (backfilled, backfill) = self.backfill().await;
        vec![
            ("FUZZ_EDITED_USER", self.user("edited").await),
            ("FUZZ_SPARE_USER", self.user("spare").await),
            (
                "FUZZ_EDITED_PROMPT",
                self.prompt("openai/gpt-5-mini", &email).await,
            ),
            (
                "FUZZ_CANCELLED_PROMPT",
                self.prompt("echo/echo-1", &email).await,
            ),
            ("FUZZ_FAILED_RUN", self.run(&failing, "failed").await),
            (
                "FUZZ_WAITING_RUN",
                self.run(&undeliverable, "generated").await,
            ),
            ("FUZZ_DELIVERY", id(&deliveries["items"][0])),
            ("FUZZ_SPARE_KEY", id(&self.post("/v1/api-keys", &key).await)),
            ("FUZZ_BACKFILLED_PROMPT", backfilled),
            ("FUZZ_BACKFILL", backfill),
            ("FUZZ_RUN_PROMPT", run_prompt),
            ("FUZZ_SUCCEEDED_RUN", succeeded),
        ]
    }

    async fn user(&self, name: &str) -> String {
        let body = json!({ "email": format!("{name}@example.com"), "role": "viewer" });
        id(&self.post("/v1/users", &body).await)
    }

    /// Nobody sends so much as this does; what is over a limit is another test's.
    async fn lift_limits(&self) {
        let tenant = id(&self.get("/v1/tenant").await);
        let limits = json!({ "limits": {
            "requests_per_minute_max": 1_000_000, "caller_requests_per_minute_max": 1_000_000,
        } });
        let path = format!("/v1/admin/tenants/{tenant}");
        self.call(Method::PATCH, &path, PLATFORM_KEY, Some(&limits))
            .await;
    }

    async fn prompt(&self, model: &str, destinations: &Value) -> String {
        let body = json!({
            "prompt_name": "Morning brief",
            "prompt_text": "Write a brief for {{ slot.date }}.",
            "model": model,
            "schedule": { "type": "manual" },
            "max_retries": 0,
            "destinations": destinations,
        });
        id(&self.post("/v1/prompts", &body).await)
    }

    /// A paused prompt with a backfill whose runs wait for hours, and that backfill.
    async fn backfill(&self) -> (String, String) {
        let body = json!({
            "prompt_name": "Morning brief",
            "prompt_text": "Write a brief for {{ slot.date }}.",
            "model": "openai/gpt-5-mini",
            "schedule": { "type": "daily", "at": "08:00" },
            "destinations": [],
        });
        let prompt = id(&self.post("/v1/prompts", &body).await);
        let path = format!("/v1/prompts/{prompt}");
        self.post(&format!("{path}/pause"), &json!({})).await;
        let body = json!({
            "from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z", "pace_s": 3600,
        });
        let backfill = self.post(&format!("{path}/backfill"), &body).await;
        (prompt, id(&backfill))
    }

    /// A run of the prompt that has come to this status.
    async fn run(&self, prompt: &str, status: &str) -> String {
        let made = self
            .post(&format!("/v1/prompts/{prompt}/run"), &json!({}))
            .await;
        let run = id(&made);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.get(&format!("/v1/runs/{run}")).await;
            if now["status"] == status {
                return run;
            }
            assert!(Instant::now() < deadline, "the run is not {status}: {now}");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn tenant(&self) -> String {
        let body = json!({ "name": "Northwind", "owner_email": "ada@example.com" });
        let path = "/v1/admin/tenants";
        let made = self
            .call(Method::POST, path, PLATFORM_KEY, Some(&body))
            .await;
        id(&made["tenant"])
    }

    /// Runs schemathesis to its end, which must be a good one.
    async fn fuzz(&self, objects: &[(&str, String)], which: &[&str]) {
        let mut command = child::command(schemathesis(), None, "KILL");
        command
            .arg("--config-file")
            .arg(peers("schemathesis/schemathesis.toml"))
            .arg("run")
            .arg(format!("{}/openapi.json", self.url))
            .args([
                "--phases",
                "examples,coverage,fuzzing,stateful",
                "--checks",
                "all",
            ])
            .arg("--no-color")
            .args(which)
            // A path in the file would be taken from the folder that we run in.
            .env("SCHEMATHESIS_HOOKS", peers("schemathesis/hooks.py"))
            .env("FUZZ_API_KEY", &self.key)
            .env("FUZZ_PLATFORM_KEY", PLATFORM_KEY)
            .current_dir(self.folder.path());
        for name in OBJECTS {
            let object = objects.iter().find(|(object, _)| object == &name);
            command.env(name, object.map_or("", |(_, id)| id));
        }
        let report = self.folder.path().join("schemathesis.txt");
        let file = File::create(&report).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let mut running = child::spawn(command, STOP_STEPS).unwrap();
        let status = tokio::task::spawn_blocking(move || running.wait(FUZZING_LIMIT));
        let status = status.await.unwrap();
        let said = fs::read_to_string(&report).unwrap();
        let log = fs::read_to_string(self.folder.path().join(LOG)).unwrap();
        assert!(
            status.is_some_and(|status| status.success()),
            "{said}\nCarillon's own log:\n{log}"
        );
        let summary = said.find("SUMMARY").unwrap_or_default();
        println!("{}", &said[summary..]);
    }
}

/// The variables that `schemathesis.toml` names; those of the other test stay empty.
const OBJECTS: [&str; 13] = [
    "FUZZ_BACKFILL",
    "FUZZ_BACKFILLED_PROMPT",
    "FUZZ_CANCELLED_PROMPT",
    "FUZZ_DELIVERY",
    "FUZZ_EDITED_PROMPT",
    "FUZZ_EDITED_USER",
    "FUZZ_FAILED_RUN",
    "FUZZ_RUN_PROMPT",
    "FUZZ_SPARE_KEY",
    "FUZZ_SPARE_USER",
    "FUZZ_SUCCEEDED_RUN",
    "FUZZ_TENANT",
    "FUZZ_WAITING_RUN",
];

fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}

/// In an environment without providers: whatever prompts are made, no model is called. A made-up key
/// of a tenant's must not leave this machine either.
fn spawn(folder: &Path, log: &Path) -> Child {
    let program = tests::carillon_program().unwrap();
    let mut command = child::command(program, None, "KILL");
    command.env_clear();
    let kept = [
        "PATH",
        "HOME",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "XDG_CACHE_HOME",
        "CARILLON_CACHE",
        "CARILLON_POSTGRES_BIN",
    ];
    for name in kept {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        .env("ANTHROPIC_BASE_URL", "http://127.0.0.1:9");
    command
        .args(["up", "--listen", "127.0.0.1:0", "--allow-loopback"])
        .args(["--platform-key-sha256", PLATFORM_KEY_SHA256])
        .arg("--data-dir")
        .arg(folder.join("data"));
    let file = File::create(log).unwrap();
    logs::keep(log).unwrap();
    command
        .stdout(Stdio::from(file.try_clone().unwrap()))
        .stderr(file);
    child::spawn(command, STOP_STEPS).unwrap()
}

fn peers(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(name)
}

fn python() -> PathBuf {
    let python = std::env::var_os("CARILLON_TEST_PYTHON");
    PathBuf::from(python.expect("run `./dev test`, or `./dev with-peers cargo test -p tests`"))
}

/// Installed beside its Python.
fn schemathesis() -> PathBuf {
    python().with_file_name("schemathesis")
}

/// What a page or a script of Swagger UI asks for: `src`, `href`, `url`.
fn links(path: &str, text: &str) -> Vec<String> {
    let marks: &[&str] = match Path::new(path).extension().and_then(|end| end.to_str()) {
        None | Some("html") => &["src=\"", "href=\""],
        Some("css") => &["url("],
        // The bundles name documents and licences that nobody fetches; only ours says what it loads.
        Some("js") if path.ends_with("initializer.js") => &["\"url\":\"", "url: \"", "\"url\": \""],
        Some(_) => &[],
    };
    let mut links = Vec::new();
    for mark in marks {
        for rest in text.split(mark).skip(1) {
            let end = rest.find(['"', '\'', ')']).unwrap_or(rest.len());
            let link = &rest[..end];
            if !link.starts_with("data:") && !link.starts_with('#') && !link.is_empty() {
                links.push(link.to_owned());
            }
        }
    }
    links
}

fn resolved(base: &str, link: &str) -> String {
    let base = reqwest::Url::parse("http://carillon")
        .unwrap()
        .join(base)
        .unwrap();
    base.join(link).unwrap().path().to_owned()
}
