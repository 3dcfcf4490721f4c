//! Tenants with prompts that are all due at one slot, and what became of them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use shared::db::Db;
use shared::ids::PromptId;
use tests::stage::{Stage, Tenant, prompt, tenant};

use crate::eventually;
use crate::provider::{LONG, MARK, Provider};

/// Prompts that are made at the same time.
const AT_ONCE: usize = 8;

/// A database with tenants in it.
pub(crate) struct Crowd {
    pub(crate) stage: Stage,
    /// What the journal must know at the end, once each.
    marks: Vec<String>,
}

/// How long after they became due runs began, in milliseconds.
#[derive(Debug)]
pub(crate) struct Lateness {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Crowd {
    pub(crate) async fn new() -> Self {
        Self::on(Stage::new(AT_ONCE).await.unwrap())
    }

    pub(crate) fn on(stage: Stage) -> Self {
        Self {
            stage,
            marks: Vec::new(),
        }
    }

    pub(crate) fn database_url(&self) -> String {
        tests::database_url(&self.stage.name)
    }

    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let made = tenant(&self.stage.db, name).await.unwrap();
        let sql = "UPDATE tenants SET concurrent_runs_max = 10000, active_prompts_max = 100000";
        self.stage.admin.batch_execute(sql).await.unwrap();
        made
    }

    /// Makes so many prompts of a tenant with a slot at `slot`. Each stores its output.
    pub(crate) async fn add(
        &mut self,
        tenant: Tenant,
        count: usize,
        slot: Option<DateTime<Utc>>,
    ) -> Vec<PromptId> {
        self.add_of_kind("plain", tenant, count, slot).await
    }

    /// The same, with a word in their marks by which the model knows what to do.
    pub(crate) async fn add_of_kind(
        &mut self,
        kind: &str,
        tenant: Tenant,
        count: usize,
        slot: Option<DateTime<Utc>>,
    ) -> Vec<PromptId> {
        let marks: Vec<_> = (0..count)
            .map(|n| format!("{kind}-{}-{n}", tenant.id))
            .collect();
        let db = &self.stage.db;
        let made = stream::iter(&marks)
            .map(|mark| due(db, tenant, mark, slot))
            .buffered(AT_ONCE)
            .try_collect()
            .await
            .unwrap();
        self.marks.extend(marks);
        made
    }

    /// Makes all prompts that have no slot due at once, and gives the moment.
    pub(crate) async fn make_due(&self, slot: DateTime<Utc>) -> DateTime<Utc> {
        let sql = "UPDATE scheduled_prompts SET next_run_at = $1 WHERE next_run_at IS NULL
                   RETURNING clock_timestamp()";
        let rows = self.stage.admin.query(sql, &[&slot]).await.unwrap();
        rows.last().unwrap().get(0)
    }

    /// Waits until so many runs have ended.
    pub(crate) async fn ended(&self, runs: usize) {
        let sql = "SELECT count(*) FROM scheduled_prompt_runs WHERE completed_at IS NOT NULL";
        eventually("the runs end", async || {
            let ended = self.stage.count(sql).await.unwrap();
            (usize::try_from(ended).unwrap() >= runs).then_some(())
        })
        .await;
    }

    /// Nothing was lost and nothing doubled: by the rows, by the model's journal, and by the stored
    /// outputs under `home`.
    pub(crate) async fn assert_each_once(&self, provider: &Provider, home: &Path) {
        let all = i64::try_from(self.marks.len()).unwrap();
        for (what, sql) in [
            ("runs", "SELECT count(*) FROM scheduled_prompt_runs"),
            (
                "that succeeded",
                "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'succeeded'",
            ),
            (
                "prompts with a run",
                "SELECT count(DISTINCT prompt_id) FROM scheduled_prompt_runs",
            ),
            ("attempts", "SELECT count(*) FROM run_attempts"),
            (
                "attempts that went well",
                "SELECT count(*) FROM run_attempts WHERE status = 'ok'",
            ),
            ("deliveries", "SELECT count(*) FROM deliveries"),
            (
                "that were delivered",
                "SELECT count(*) FROM deliveries WHERE status = 'delivered'",
            ),
            (
                "runs that prompts count",
                "SELECT sum(run_count)::bigint FROM scheduled_prompts",
            ),
            (
                "successes that prompts count",
                "SELECT sum(success_count)::bigint FROM scheduled_prompts",
            ),
        ] {
            assert_eq!(self.stage.count(sql).await.unwrap(), all, "{what}");
        }
        let expected: BTreeMap<_, _> = self.marks.iter().map(|mark| (mark.clone(), 1)).collect();
        let asked = provider.asked();
        let others: Vec<_> = asked
            .iter()
            .filter(|(mark, times)| expected.get(*mark) != Some(times))
            .collect();
        assert!(others.is_empty(), "asked not once: {others:?}");
        assert_eq!(asked.len(), self.marks.len(), "asked about");
        let stored = files(&home.join("data/storage"));
        assert_eq!(stored, self.marks.len(), "stored outputs");
    }

    /// By the database's clock; `due` is when the latest of the slots became due.
    pub(crate) async fn lateness(&self, due: DateTime<Utc>) -> Lateness {
        let sql = "SELECT percentile_disc(ARRAY[0.5, 0.99, 1.0]) WITHIN GROUP (ORDER BY
                       extract(epoch FROM r.started_at - greatest(r.scheduled_for, $1, p.created_at))
                       ::double precision * 1000)
                     FROM scheduled_prompt_runs r JOIN scheduled_prompts p ON p.id = r.prompt_id";
        let row = self.stage.admin.query_one(sql, &[&due]).await.unwrap();
        let found: Vec<f64> = row.get(0);
        Lateness {
            p50_ms: found[0],
            p99_ms: found[1],
            max_ms: found[2],
        }
    }
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            p50_ms,
            p99_ms,
            max_ms,
        } = self;
        write!(
            f,
            "late by p50 {p50_ms:.0} ms, p99 {p99_ms:.0} ms, max {max_ms:.0} ms"
        )
    }
}

/// The whole minute before now.
pub(crate) fn last_minute() -> DateTime<Utc> {
    Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap()
}

async fn due(
    db: &Db,
    tenant: Tenant,
    mark: &str,
    slot: Option<DateTime<Utc>>,
) -> anyhow::Result<PromptId> {
    let changes = json!({
        "model": "openai/gpt-4o-mini",
        "prompt_text": format!("{MARK}{mark}"),
        // Once a year, so that no test meets a second slot.
        "schedule": {"type": "cron", "expression": "0 0 1 1 *", "timezone": "UTC"},
        "timeout_ms": 120_000,
        // For those whose answers cannot be recorded for a while.
        "max_retries": if mark.contains(LONG) { 5 } else { 1 },
        "destinations": [{"kind": "storage"}],
    });
    prompt(db, tenant, &changes, slot).await
}

/// How many there are in a folder and all below it.
pub(crate) fn files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}
