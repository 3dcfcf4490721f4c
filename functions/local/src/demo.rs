//! `carillon demo`: the whole product in one command, on a database that is thrown away.
//!
//! It speaks to its own API over HTTP, as any caller would. Its webhooks go to a receiver inside
//! this process, which checks their signatures.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use shared::{telemetry, webhook_secret::WebhookSecret};
use tokio::{net::TcpListener, time::Instant};

use crate::{
    client::Client,
    service::{Service, Settings},
    table::Table,
};

/// A folder with this file in it was made by a demo, and may be removed.
const MARKER: &str = ".carillon-demo";

/// Longest wait for the runs and their deliveries.
const PATIENCE: Duration = Duration::from_secs(240);

/// Statuses after which a run changes no more.
const ENDED: [&str; 6] = [
    "succeeded",
    "failed",
    "timed_out",
    "cancelled",
    "skipped",
    "missed",
];

/// Runs the examples; success means that every output arrived everywhere.
///
/// # Errors
/// When the demo cannot be carried out.
pub(crate) async fn run(
    settings: Settings,
    examples: &Path,
    model: Option<&str>,
) -> Result<ExitCode> {
    telemetry::init(telemetry::Reader::Person, telemetry::LevelFilter::WARN);
    let prompts = read_examples(examples)?;
    empty(&settings.data_dir)?;
    let model = choose_model(model);
    let bar = spinner();
    let service = Service::start(&settings, &|line| step(&bar, line)).await?;
    let outcome = show(&service, &settings, prompts, &model, &bar).await;
    bar.finish_and_clear();
    service.stop().await?;
    Ok(if outcome? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn show(
    service: &Service,
    settings: &Settings,
    mut prompts: Vec<Value>,
    model: &str,
    bar: &ProgressBar,
) -> Result<bool> {
    let key = service
        .first_key
        .as_ref()
        .context("the demo's database was not empty")?;
    let client = Client::new(service.address, key)?;
    let receiver = Receiver::start(&client).await?;
    let slot = soon();
    let last = prompts.len().saturating_sub(1);
    let mut created = Vec::new();
    for (index, prompt) in prompts.iter_mut().enumerate() {
        prompt["model"] = json!(model);
        point_webhooks(prompt, &receiver.url);
        if index == last {
            prompt["schedule"] = json!({"type": "once", "at": slot});
        }
        created.push(client.post("/v1/prompts", prompt).await?);
    }
    step(
        bar,
        &format!("made {} prompts from the examples", created.len()),
    );
    for prompt in &created[..last] {
        let id = text(prompt, "id")?;
        client
            .post(&format!("/v1/prompts/{id}/run"), &json!({}))
            .await?;
    }
    step(
        bar,
        &format!("ran {last} by hand; the last one fires by its schedule at {slot}"),
    );
    let runs = wait_for_runs(&client, created.len(), slot, bar).await?;
    report(&client, settings, &created, &runs, &receiver, bar).await
}

fn read_examples(folder: &Path) -> Result<Vec<Value>> {
    let mut files = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read the examples in {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == "json"));
    files.sort();
    ensure!(
        !files.is_empty(),
        "there are no examples in {}",
        folder.display()
    );
    files
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path)?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())
        })
        .collect()
}

/// Removes what an earlier demo left, and nothing else.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        let has_files = folder.read_dir()?.next().is_some();
        if has_files && !folder.join(MARKER).exists() {
            bail!(
                "{} holds files that no demo made; choose another --data-dir",
                folder.display()
            );
        }
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(MARKER), "")?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "told to the person at the terminal")]
fn choose_model(given: Option<&str>) -> String {
    let has = |name: &str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    if let Some(model) = given {
        println!("model: {model}");
        return model.to_owned();
    }
    let (model, key) = if has("OPENAI_API_KEY") {
        ("openai/gpt-5-mini", "OPENAI_API_KEY")
    } else if has("ANTHROPIC_API_KEY") {
        ("anthropic/claude-haiku-4-5", "ANTHROPIC_API_KEY")
    } else {
        println!("no provider key in the environment: using echo, which calls no model");
        return "echo/echo".to_owned();
    };
    println!("model: {model} (found {key})");
    model.to_owned()
}

/// The next whole minute that leaves time to save a prompt for it.
fn soon() -> DateTime<Utc> {
    let minute = TimeDelta::minutes(1);
    let earliest = Utc::now() + TimeDelta::seconds(5);
    earliest.duration_trunc(minute).unwrap_or(earliest) + minute
}

fn point_webhooks(prompt: &mut Value, url: &str) {
    let Some(destinations) = prompt["destinations"].as_array_mut() else {
        return;
    };
    for destination in destinations
        .iter_mut()
        .filter(|one| one["kind"] == "webhook")
    {
        destination["url"] = json!(url);
    }
}

async fn wait_for_runs(
    client: &Client,
    wanted: usize,
    slot: DateTime<Utc>,
    bar: &ProgressBar,
) -> Result<Vec<Value>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = client.get("/v1/runs?limit=100").await?;
        let runs = page["items"].as_array().cloned().unwrap_or_default();
        let ended = runs
            .iter()
            .filter(|run| {
                run["status"]
                    .as_str()
                    .is_some_and(|status| ENDED.contains(&status))
            })
            .count();
        if ended >= wanted {
            return Ok(runs);
        }
        if Instant::now() >= deadline {
            bail!(
                "{ended} of {wanted} runs ended within {} s",
                PATIENCE.as_secs()
            );
        }
        let seconds = (slot - Utc::now()).num_seconds();
        bar.set_message(if seconds > 0 {
            format!("{ended} of {wanted} runs ended; the scheduled one fires in {seconds} s")
        } else {
            format!("{ended} of {wanted} runs ended")
        });
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
async fn report(
    client: &Client,
    settings: &Settings,
    prompts: &[Value],
    runs: &[Value],
    receiver: &Receiver,
    bar: &ProgressBar,
) -> Result<bool> {
    let mut table = Table::new(&[
        "prompt",
        "trigger",
        "status",
        "latency",
        "tokens",
        "cost (USD)",
        "delivered",
    ]);
    let mut all = true;
    let mut webhooks = 0;
    for run in runs {
        let id = text(run, "id")?;
        let page = client.get(&format!("/v1/runs/{id}/deliveries")).await?;
        let deliveries = page["items"].as_array().cloned().unwrap_or_default();
        let arrived = deliveries
            .iter()
            .filter(|one| one["status"] == "delivered")
            .count();
        webhooks += deliveries
            .iter()
            .filter(|one| one["kind"] == "webhook")
            .count();
        all &= run["status"] == "succeeded" && arrived == deliveries.len() && arrived > 0;
        let name = prompts
            .iter()
            .find(|prompt| prompt["id"] == run["prompt_id"])
            .map_or("", |prompt| {
                prompt["prompt_name"].as_str().unwrap_or_default()
            });
        table.row(&[
            name.to_owned(),
            word(&run["trigger"]),
            word(&run["status"]),
            run["latency_ms"]
                .as_i64()
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
            word(&run["tokens_used"]),
            run["cost_usd"]
                .as_f64()
                .map_or_else(|| "-".to_owned(), |cost| format!("{cost:.6}")),
            format!("{arrived} of {}", deliveries.len()),
        ]);
    }
    bar.finish_and_clear();
    println!("\n{table}");
    let seen = receiver.verified();
    println!("emails    {}", settings.data_dir.join("outbox").display());
    println!("files     {}", settings.data_dir.join("storage").display());
    println!("webhooks  {seen} of {webhooks} received with a valid signature");
    println!("next      ./dev up    then open http://127.0.0.1:8080/docs");
    all &= seen == webhooks && runs.len() == prompts.len();
    if !all {
        println!("\nnot everything was delivered; the table says what was not");
    }
    Ok(all)
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name]
        .as_str()
        .with_context(|| format!("the answer has no {name}"))
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Says a line that stays, above the spinner; without a terminal, just the line.
#[expect(clippy::print_stdout, reason = "told to the person at the terminal")]
fn step(bar: &ProgressBar, line: &str) {
    bar.suspend(|| println!("- {line}"));
}

/// Where the demo's webhooks go.
struct Receiver {
    url: String,
    seen: Arc<Seen>,
}

struct Seen {
    secret: WebhookSecret,
    verified: Mutex<std::collections::HashSet<String>>,
}

impl Receiver {
    async fn start(client: &Client) -> Result<Self> {
        let rotated = client.post("/v1/webhook-secret/rotate", &json!({})).await?;
        let seen = Arc::new(Seen {
            secret: WebhookSecret::parse(text(&rotated, "secret")?)?,
            verified: Mutex::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}/carillon", listener.local_addr()?);
        let router = Router::new()
            .route("/carillon", post(receive))
            .with_state(seen.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, seen })
    }

    fn verified(&self) -> usize {
        self.seen.verified.lock().map_or(0, |ids| ids.len())
    }
}

async fn receive(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> &'static str {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(id), Some(at), Some(given)) = (
        header("webhook-id"),
        header("webhook-timestamp").and_then(|at| at.parse::<i64>().ok()),
        header("webhook-signature"),
    ) else {
        return "unsigned";
    };
    let expected = seen.secret.sign(id, at, &body);
    if given.split(' ').any(|one| one == expected)
        && let Ok(mut ids) = seen.verified.lock()
    {
        ids.insert(id.to_owned());
    }
    "received"
}
