//! `carillon up`: everything, until Ctrl-C.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use anyhow::Result;
use chrono::{DateTime, Utc};
use shared::{
    db::{
        Db, DbError,
        history::{self, RunFilter, RunPage, RunSummary},
        prompts::{self, Filter, Order, PromptStatus, Sort},
        system,
    },
    ids::{PromptId, TenantId},
    telemetry,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::service::{Service, Settings};

/// Between two looks at what ran and what comes next.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// Tenants whose runs are told at the terminal; more would be noise.
const TENANTS_MAX: i32 = 20;

/// Runs of a tenant told at one look.
const RUNS_MAX: i64 = 50;

/// Serves until Ctrl-C or SIGTERM; running work is finished first, a second signal ends at once.
///
/// # Errors
/// When a part cannot start or stop.
pub(crate) async fn run(settings: Settings) -> Result<ExitCode> {
    telemetry::init(telemetry::Reader::Person, telemetry::LevelFilter::WARN);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let service = tokio::select! {
        service = Service::start(&settings, &|line| say(line)) => service?,
        _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
        _ = terminate.recv() => return Ok(ExitCode::FAILURE),
    };
    greet(&service, &settings);
    tokio::select! {
        () = tell(&service.db) => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    say("stopping: running work finishes first; once more ends it at once");
    tokio::select! {
        stopped = service.stop() => stopped?,
        _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
        _ = terminate.recv() => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}

fn greet(service: &Service, settings: &Settings) {
    let base = format!("http://{}", service.address);
    if let Some(key) = &service.first_key {
        say("made the first tenant; its key is shown this once:");
        say(&format!("    {}", key.expose()));
    }
    say(&format!("API      {base}/v1/prompts"));
    say(&format!("docs     {base}/docs"));
    say(&format!(
        "outbox   {}",
        settings.data_dir.join("outbox").display()
    ));
    say(&format!(
        "storage  {}",
        settings.data_dir.join("storage").display()
    ));
    say("Ctrl-C stops");
}

/// Tells at the terminal what ran and what comes next; it only ends with its future.
async fn tell(db: &Db) {
    let mut looks = interval(LOOK_PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut teller = Teller {
        since: Utc::now(),
        told: HashMap::new(),
        next: None,
    };
    loop {
        looks.tick().await;
        if let Err(error) = teller.look(db).await {
            tracing::debug!(%error, "cannot look at the runs");
        }
    }
}

/// What has been told.
struct Teller {
    since: DateTime<Utc>,
    told: HashMap<shared::ids::RunId, DateTime<Utc>>,
    next: Option<(PromptId, DateTime<Utc>)>,
}

impl Teller {
    async fn look(&mut self, db: &Db) -> Result<(), DbError> {
        let mut soonest: Option<(PromptId, DateTime<Utc>, String)> = None;
        for tenant in system::tenants(db, None, TENANTS_MAX).await? {
            let names = self.upcoming(db, tenant.id, &mut soonest).await?;
            self.ended(db, tenant.id, &names).await?;
        }
        let next = soonest.as_ref().map(|(id, at, _)| (*id, *at));
        if next != self.next {
            self.next = next;
            match soonest {
                Some((_, at, name)) => say(&format!("next     {name} at {}", local(at))),
                None => say("next     nothing is scheduled"),
            }
        }
        Ok(())
    }

    /// Names of the prompts that come next, and the soonest of them.
    async fn upcoming(
        &self,
        db: &Db,
        tenant: TenantId,
        soonest: &mut Option<(PromptId, DateTime<Utc>, String)>,
    ) -> Result<HashMap<PromptId, String>, DbError> {
        let filter = Filter::default();
        let tx = db.tenant(tenant).await?;
        let page = prompts::list(tx, &filter, &Sort::NextRun(None), Order::Asc, 100).await?;
        for prompt in &page {
            if prompt.status == PromptStatus::Active
                && let Some(at) = prompt.next_run_at
                && soonest.as_ref().is_none_or(|(_, best, _)| at < *best)
            {
                *soonest = Some((prompt.id, at, name_of(&prompt.spec)));
            }
        }
        Ok(page
            .iter()
            .map(|prompt| (prompt.id, name_of(&prompt.spec)))
            .collect())
    }

    async fn ended(
        &mut self,
        db: &Db,
        tenant: TenantId,
        names: &HashMap<PromptId, String>,
    ) -> Result<(), DbError> {
        let filter = RunFilter {
            since: Some(self.since),
            ..RunFilter::default()
        };
        let page = RunPage {
            order: Order::Desc,
            after: None,
            rows_max: RUNS_MAX,
        };
        let runs = history::runs(db.tenant(tenant).await?, &filter, &page).await?;
        for run in runs.iter().rev().filter(|run| run.status.is_final()) {
            let ended = run.completed_at.unwrap_or(run.created_at);
            if self.told.insert(run.id, ended) != Some(ended) {
                say(&line(run, names));
            }
        }
        Ok(())
    }
}

fn line(run: &RunSummary, names: &HashMap<PromptId, String>) -> String {
    let name = names
        .get(&run.prompt_id)
        .cloned()
        .unwrap_or_else(|| run.prompt_id.to_string());
    let latency = run
        .latency_ms
        .map_or_else(String::new, |ms| format!(", {ms} ms"));
    let cost = run
        .cost_usd
        .map_or_else(String::new, |cost| format!(", {cost} USD"));
    let reason = run
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("ran      {name}: {}{reason}{latency}{cost}", run.status)
}

fn name_of(spec: &serde_json::Value) -> String {
    spec["prompt_name"].as_str().unwrap_or("?").to_owned()
}

fn local(at: DateTime<Utc>) -> String {
    at.with_timezone(&chrono::Local)
        .format("%Y-%m-%d %H:%M:%S %Z")
        .to_string()
}

#[expect(clippy::print_stdout, reason = "told to the person at the terminal")]
fn say(line: &str) {
    println!("{line}");
}
