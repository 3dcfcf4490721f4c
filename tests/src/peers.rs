//! The servers around Carillon in an end-to-end test, none of them ours.
//!
//! Starting them is the work of the binary `testbed`; the tests ask here where they are, and what
//! they have seen.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use local::child::{self, Child, StopStep};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::required;

const STOP_STEPS: &[StopStep] = &[
    (Signal::TERM, Duration::from_secs(5)),
    (Signal::KILL, Duration::from_secs(5)),
];
/// The slowest one imports half of Python's world first, on a machine that may be busy.
const READY_LIMIT: Duration = Duration::from_secs(120);
const READY_POLL: Duration = Duration::from_millis(50);
const LOG_LINES_SHOWN: usize = 20;
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// The region of the emulated AWS.
pub const AWS_REGION: &str = "eu-central-1";
/// The account of the emulated AWS.
pub const AWS_ACCOUNT: &str = "123456789012";

/// A server of the testbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The model APIs of OpenAI, Anthropic and Bedrock, with the answers of `peers/aimock`.
    Aimock,
    /// A second opinion on the OpenAI API, with the models of `peers/litellm/config.yaml`.
    Litellm,
    /// An SMTP server that puts each message into a folder.
    Smtp,
    /// A receiver that verifies signed webhooks: `peers/webhook_receiver.py`.
    Webhook,
    /// AWS, which fires schedules and runs functions; it validates little.
    Ministack,
    /// A second opinion on AWS.
    Moto,
}

/// A running peer, and the environment variables that say where it is.
#[derive(Debug)]
pub struct Running {
    /// For the tests' environment.
    pub variables: Vec<(&'static str, String)>,
    /// Dropping it stops the peer.
    pub child: Child,
}

impl Peer {
    /// Every peer.
    pub const ALL: [Self; 6] = [
        Self::Aimock,
        Self::Litellm,
        Self::Smtp,
        Self::Webhook,
        Self::Ministack,
        Self::Moto,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aimock => "aimock",
            Self::Litellm => "litellm",
            Self::Smtp => "smtp",
            Self::Webhook => "webhook",
            Self::Ministack => "ministack",
            Self::Moto => "moto",
        }
    }

    /// Starts it on a free port of the loopback, with its files and its log in `folder`.
    ///
    /// # Errors
    /// When its program is not where `./dev` says, or when it is not ready in time.
    pub fn start(self, folder: &Path) -> Result<Running> {
        let port = free_port()?;
        let (program, arguments, variables) = self.launch(folder, port)?;
        let log_path = folder.join(format!("{}.log", self.name()));
        let log = File::create(&log_path)?;
        let mut command = child::command(program, None, "KILL");
        command
            .args(arguments)
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(log);
        self.configure(&mut command, folder, port);
        let mut child = child::spawn(command, STOP_STEPS)?;
        if let Err(error) = wait_until_ready(&mut child, port) {
            let said = std::fs::read_to_string(&log_path).unwrap_or_default();
            let lines: Vec<_> = said.lines().rev().take(LOG_LINES_SHOWN).collect();
            let last = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            bail!("{} {error}; its log ends:\n{last}", self.name());
        }
        Ok(Running { variables, child })
    }

    /// What a peer takes from its environment alone.
    fn configure(self, command: &mut Command, folder: &Path, port: u16) {
        match self {
            // No provider is called: it would otherwise ask the network for its price list.
            Self::Litellm => {
                command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
            }
            Self::Ministack => {
                command
                    .env("BIND_HOST", "127.0.0.1")
                    .env("GATEWAY_PORT", port.to_string())
                    .env("MINISTACK_REGION", AWS_REGION)
                    .env("MINISTACK_ACCOUNT_ID", AWS_ACCOUNT)
                    .env("LAMBDA_EXECUTOR", "local")
                    .env("TMPDIR", folder);
            }
            Self::Moto => {
                command.env("MOTO_ACCOUNT_ID", AWS_ACCOUNT);
            }
            Self::Aimock | Self::Smtp | Self::Webhook => {}
        }
    }

    fn launch(self, folder: &Path, port: u16) -> Result<Launch> {
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let url = format!("http://127.0.0.1:{port}");
        let port = port.to_string();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(match self {
            Self::Aimock => {
                let script = installed("CARILLON_TEST_AIMOCK")?;
                let fixtures = text(&peers.join("aimock"));
                // The journal is a witness: it must forget nothing.
                let journal = ["--journal-max", "0"];
                let arguments = [
                    &script as &str,
                    "-p",
                    &port,
                    "-f",
                    &fixtures,
                    "--validate-on-load",
                ];
                let arguments = arguments.into_iter().chain(journal);
                let arguments = arguments.map(str::to_owned).collect();
                let variables = vec![("CARILLON_TEST_AIMOCK_URL", url)];
                (installed("CARILLON_TEST_NODE")?, arguments, variables)
            }
            Self::Litellm => {
                let config = text(&peers.join("litellm/config.yaml"));
                let arguments = ["--config", &config, "--host", "127.0.0.1", "--port", &port];
                let arguments = arguments.map(str::to_owned).to_vec();
                let variables = vec![("CARILLON_TEST_LITELLM_URL", url)];
                (installed("CARILLON_TEST_LITELLM")?, arguments, variables)
            }
            Self::Smtp => {
                let mailbox = text(&folder.join("mailbox"));
                let address = format!("127.0.0.1:{port}");
                let handler = "aiosmtpd.handlers.Mailbox";
                let arguments = [
                    "-m", "aiosmtpd", "-n", "-l", &address, "-c", handler, &mailbox,
                ];
                let arguments = arguments.map(str::to_owned).to_vec();
                let variables = vec![
                    ("CARILLON_TEST_SMTP_ADDRESS", address),
                    ("CARILLON_TEST_SMTP_MAILBOX", mailbox),
                ];
                (installed("CARILLON_TEST_PYTHON")?, arguments, variables)
            }
            Self::Webhook => {
                let script = text(&peers.join("webhook_receiver.py"));
                let variables = vec![("CARILLON_TEST_WEBHOOK_URL", url)];
                (
                    installed("CARILLON_TEST_PYTHON")?,
                    vec![script, port],
                    variables,
                )
            }
            Self::Ministack => {
                let variables = vec![("CARILLON_TEST_MINISTACK_URL", url)];
                (installed("CARILLON_TEST_MINISTACK")?, Vec::new(), variables)
            }
            Self::Moto => {
                let arguments = ["-H", "127.0.0.1", "-p", &port];
                let arguments = arguments.map(str::to_owned).to_vec();
                let variables = vec![("CARILLON_TEST_MOTO_URL", url)];
                (installed("CARILLON_TEST_MOTO")?, arguments, variables)
            }
        })
    }
}

/// Program, arguments, and the variables that tell the tests.
type Launch = (String, Vec<String>, Vec<(&'static str, String)>);

/// The base URL of aimock: `/v1/chat/completions`, `/v1/messages` and `/model/{id}/converse`.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub fn aimock_url() -> String {
    required("CARILLON_TEST_AIMOCK_URL")
}

/// The base URL of the litellm proxy: `/v1/chat/completions`.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub fn litellm_url() -> String {
    required("CARILLON_TEST_LITELLM_URL")
}

/// The address of the SMTP server, and the maildir that it fills (`new/` holds the messages).
///
/// # Panics
/// When the test does not run in a testbed with it.
pub fn smtp() -> (String, PathBuf) {
    let mailbox = required("CARILLON_TEST_SMTP_MAILBOX");
    (
        required("CARILLON_TEST_SMTP_ADDRESS"),
        PathBuf::from(mailbox),
    )
}

/// The base URL of the webhook receiver. A test takes a path of its own below it.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub fn webhook_url() -> String {
    required("CARILLON_TEST_WEBHOOK_URL")
}

/// Where ministack answers as AWS, of [`AWS_REGION`] and [`AWS_ACCOUNT`].
///
/// # Panics
/// When the test does not run in a testbed with it.
pub fn ministack_url() -> String {
    required("CARILLON_TEST_MINISTACK_URL")
}

/// Where moto answers as AWS, of [`AWS_ACCOUNT`].
///
/// # Panics
/// When the test does not run in a testbed with it.
pub fn moto_url() -> String {
    required("CARILLON_TEST_MOTO_URL")
}

/// Makes aimock answer a user message that contains `marker` with 429 and `Retry-After` the first
/// time, and with a normal answer from then on. The marker must be this test's own.
///
/// # Errors
/// When aimock refuses.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn aimock_limits_once(marker: &str, retry_after_s: u32) -> Result<()> {
    let error = json!({"message": "Rate limit reached", "type": "rate_limit_error",
        "code": "rate_limit_exceeded"});
    let usage = json!({"prompt_tokens": 30, "completion_tokens": 5});
    let fixtures = json!({"fixtures": [
        {"match": {"userMessage": marker, "sequenceIndex": 0},
         "response": {"error": error, "status": 429, "retryAfter": retry_after_s}},
        {"match": {"userMessage": marker},
         "response": {"content": "Second time lucky.", "usage": usage, "finishReason": "stop"}},
    ]});
    let url = format!("{}/__aimock/fixtures", aimock_url());
    post(&url, &fixtures).await.map(drop)
}

/// Makes aimock give this answer to a user message that contains `marker`, `latency_ms` late. The
/// marker must be this test's own.
///
/// # Errors
/// When aimock refuses.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn aimock_answers(marker: &str, content: &str, latency_ms: u32) -> Result<()> {
    let usage = json!({"prompt_tokens": 30, "completion_tokens": 5});
    let fixtures = json!({"fixtures": [
        {"match": {"userMessage": marker},
         "response": {"content": content, "usage": usage, "finishReason": "stop"},
         "chaos": {"latencyMs": latency_ms}},
    ]});
    let url = format!("{}/__aimock/fixtures", aimock_url());
    post(&url, &fixtures).await.map(drop)
}

/// Makes aimock fail with that status whoever says `marker`: always, or so many times,
/// and then it answers. The marker must be this test's own.
///
/// # Errors
/// When aimock refuses.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn aimock_fails(marker: &str, status: u16, then: Option<(&str, u32)>) -> Result<()> {
    let error = json!({"message": "no", "type": "server_error"});
    let failure = json!({"error": error, "status": status});
    let usage = json!({"prompt_tokens": 30, "completion_tokens": 5});
    let mut fixtures = Vec::new();
    match then {
        None => fixtures.push(json!({"match": {"userMessage": marker}, "response": failure})),
        Some((content, times)) => {
            for n in 0..times {
                fixtures.push(json!({"match": {"userMessage": marker, "sequenceIndex": n},
                    "response": failure}));
            }
            fixtures.push(json!({"match": {"userMessage": marker},
                "response": {"content": content, "usage": usage, "finishReason": "stop"}}));
        }
    }
    let url = format!("{}/__aimock/fixtures", aimock_url());
    post(&url, &json!({"fixtures": fixtures})).await.map(drop)
}

/// The requests that aimock got whose body contains `marker`, oldest first: `method`, `path`,
/// `headers`, `body`, `response`.
///
/// # Errors
/// When aimock does not answer.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn aimock_journal(marker: &str) -> Result<Vec<Value>> {
    let url = format!("{}/__aimock/journal", aimock_url());
    let mut entries = get(&url).await?;
    entries.retain(|entry| entry["body"].to_string().contains(marker));
    Ok(entries)
}

/// The bodies of the requests that aimock got, as text, of those that contain `marker`. What it has told
/// once is not asked for again, however many ask.
///
/// # Errors
/// When aimock does not answer.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn aimock_heard(marker: &str) -> Result<Vec<String>> {
    static HEARD: Mutex<Vec<String>> = Mutex::const_new(Vec::new());
    let mut heard = HEARD.lock().await;
    let url = format!("{}/__aimock/journal?offset={}", aimock_url(), heard.len());
    heard.extend(
        get(&url)
            .await?
            .iter()
            .map(|entry| entry["body"].to_string()),
    );
    Ok(heard
        .iter()
        .filter(|body| body.contains(marker))
        .cloned()
        .collect())
}

/// Makes a bucket in moto.
///
/// # Errors
/// When moto refuses.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn make_bucket(name: &str) -> Result<()> {
    use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
    let place = CreateBucketConfiguration::builder()
        .location_constraint(BucketLocationConstraint::EuCentral1)
        .build();
    let making = s3_of_moto().create_bucket().bucket(name);
    making.create_bucket_configuration(place).send().await?;
    Ok(())
}

/// An object of moto's, under `bucket/key`.
///
/// # Errors
/// When there is none.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn object(place: &str) -> Result<Vec<u8>> {
    let (bucket, key) = place.split_once('/').context("no bucket/key")?;
    let got = s3_of_moto().get_object().bucket(bucket).key(key);
    Ok(got.send().await?.body.collect().await?.to_vec())
}

fn s3_of_moto() -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::config::Builder::from(&crate::rehearsal::aws(&moto_url()));
    aws_sdk_s3::Client::from_conf(config.force_path_style(true).build())
}

/// Sets the signing secrets that the webhook receiver accepts at `path` and below.
///
/// # Errors
/// When the receiver does not answer.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn webhook_secrets(path: &str, secrets: &[&str]) -> Result<()> {
    let url = format!("{}/secret", webhook_url());
    post(&url, &json!({"path": path, "secrets": secrets}))
        .await
        .map(drop)
}

/// What the webhook receiver got at `path` and below, oldest first: `method`, `path`, `headers`,
/// `body`, `body_base64`, `verified` (null without a secret), `reason`, `at`.
///
/// # Errors
/// When the receiver does not answer.
///
/// # Panics
/// When the test does not run in a testbed with it.
pub async fn webhook_journal(path: &str) -> Result<Vec<Value>> {
    get(&format!("{}/journal?path={path}", webhook_url())).await
}

/// An email file as Python's mail parser reads it: `from`, `to`, `subject`, `message_id`, `type`,
/// `text`, `html`, `defects`.
///
/// # Errors
/// When Python cannot read it.
pub async fn read_mail(file: &Path) -> Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/read_mail.py");
    let mut command = Command::new(installed("CARILLON_TEST_PYTHON")?);
    command.arg(script).arg(file);
    let reading = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(CALL_LIMIT, reading).await???;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}: {said}", file.display());
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn post(url: &str, body: &Value) -> Result<Value> {
    let response = client()?.post(url).json(body).send().await?;
    let status = response.status();
    let answer = response.text().await?;
    anyhow::ensure!(status.is_success(), "{url} answered {status}: {answer}");
    serde_json::from_str(&answer).with_context(|| format!("{url} answered {answer}"))
}

async fn get(url: &str) -> Result<Vec<Value>> {
    let response = client()?.get(url).send().await?.error_for_status()?;
    Ok(response.json().await?)
}

fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .timeout(CALL_LIMIT)
        .no_proxy()
        .build()?)
}

fn installed(variable: &str) -> Result<String> {
    std::env::var(variable).with_context(|| {
        format!("{variable} is not set: `./dev with-peers …` installs the peers and sets it")
    })
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn wait_until_ready(child: &mut Child, port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let deadline = Instant::now() + READY_LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = child.wait(READY_POLL) {
            bail!("ended while it started ({status})");
        }
        if TcpStream::connect_timeout(&address, READY_POLL).is_ok() {
            return Ok(());
        }
    }
    bail!("does not listen after {} s", READY_LIMIT.as_secs())
}
