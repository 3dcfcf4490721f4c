//! Recomputes the truth from what the outside saw, and compares it with the rows.
//!
//! Every finding is a sentence: a promise that did not hold. Nothing here asks the product.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use shared::run::RunStatus;

use super::{
    process,
    scene::{Part, Prompt, Scene},
};
use crate::peers;

/// What one cell came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Slots that were due.
    pub slots: usize,
    /// Runs on record.
    pub runs: usize,
    /// Calls that the model's server saw.
    pub calls: usize,
    /// Webhooks that the receiver saw.
    pub webhooks: usize,
    /// Calls and webhooks beyond the first of each, which no second result or id came of.
    pub absorbed: usize,
    /// Processes killed and stopped, connections that failed, messages that were not what was sent, clocks.
    pub faults: usize,
    /// Promises that did not hold.
    pub findings: Vec<String>,
}

/// What a cell allows beyond what every cell does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowance {
    /// The receiver's clock and the process's differ, so that signatures do not verify.
    pub unverified: bool,
    /// No process died or was stopped: nothing may have been called or sent twice.
    pub nothing_twice: bool,
    /// Faults that the cell has made.
    pub faults: usize,
}

impl Allowance {
    /// What every cell allows, after so many faults.
    #[must_use]
    pub fn faults(faults: usize) -> Self {
        Self {
            faults,
            ..Self::default()
        }
    }
}

/// Looks at everything.
///
/// # Errors
/// When a witness does not answer; then nothing is known.
pub async fn check(scene: &Scene, allowance: Allowance) -> Result<Report> {
    let mut facts = Facts::gather(scene).await?;
    facts.report.faults = allowance.faults;
    facts.slots_have_one_run_each();
    facts.runs_ended_as_they_must();
    facts.calls_have_intents(allowance);
    facts.one_result_is_recorded();
    facts.counters_equal_facts().await?;
    facts.receiver_and_rows_agree(allowance);
    facts.files_and_rows_agree().await?;
    facts.changes_were_allowed().await?;
    facts.outbox_lost_nothing().await?;
    facts.nobody_sees_another().await?;
    Ok(facts.report)
}

struct Facts<'a> {
    scene: &'a Scene,
    runs: Vec<Value>,
    attempts: Vec<Value>,
    deliveries: Vec<Value>,
    /// Texts that the model's server was given.
    calls: Vec<String>,
    /// What the receiver got.
    webhooks: Vec<Value>,
    report: Report,
}

impl<'a> Facts<'a> {
    async fn gather(scene: &'a Scene) -> Result<Self> {
        let mut webhooks = Vec::new();
        for side in &scene.sides {
            webhooks.extend(peers::webhook_journal(&side.hooks).await?);
        }
        let mut facts = Self {
            scene,
            runs: scene.rows("SELECT id, tenant_id, prompt_id, scheduled_for, status, reason, fence, attempt, attempts_max,
                            output_sha256 FROM scheduled_prompt_runs ORDER BY id").await?,
            attempts: scene.rows("SELECT * FROM run_attempts ORDER BY fence").await?,
            deliveries: scene
                .rows(
                    "SELECT id, run_id, purpose, kind, status, attempt, attempts_max, destination, location
                       FROM deliveries ORDER BY id",
                )
                .await?,
            calls: peers::aimock_heard(&scene.mark).await?,
            webhooks,
            report: Report::default(),
        };
        facts.report.runs = facts.runs.len();
        facts.report.slots = scene.prompts.iter().map(|prompt| prompt.slots.len()).sum();
        facts.report.calls = facts.calls.len();
        facts.report.webhooks = facts.webhooks.len();
        Ok(facts)
    }

    fn find(&mut self, finding: impl Into<String>) {
        self.report.findings.push(finding.into());
    }

    fn prompt_of(&self, run: &Value) -> Option<&'a Prompt> {
        let prompts = self.scene.prompts.iter();
        prompts
            .into_iter()
            .find(|prompt| run["prompt_id"] == json!(prompt.id))
    }

    /// P2, P3: one run for each slot that was due, and no other.
    fn slots_have_one_run_each(&mut self) {
        let mut counted: BTreeMap<(String, String), usize> = BTreeMap::new();
        for run in &self.runs {
            let at: Option<chrono::DateTime<chrono::Utc>> = run["scheduled_for"]
                .as_str()
                .and_then(|text| text.parse().ok());
            let at = at.map(|at| at.to_rfc3339()).unwrap_or_default();
            *counted.entry((text(run, "prompt_id"), at)).or_default() += 1;
        }
        for prompt in &self.scene.prompts {
            for slot in &prompt.slots {
                match counted.remove(&(prompt.id.to_string(), slot.to_rfc3339())) {
                    Some(1) => {}
                    Some(runs) => {
                        self.find(format!("P2: {runs} runs of one slot of {:?}", prompt.part));
                    }
                    None => self.find(format!("P3: a slot of {:?} was lost", prompt.part)),
                }
            }
        }
        for _ in counted {
            self.find("P2: a run of a slot that nobody has");
        }
    }

    /// P3: every run ended, as its prompt's part says, and says why if not well.
    fn runs_ended_as_they_must(&mut self) {
        for run in self.runs.clone() {
            let Some(prompt) = self.prompt_of(&run) else {
                continue;
            };
            let status = text(&run, "status");
            let reason = text(&run, "reason");
            let unwell = status != "succeeded";
            if !is_final(&status) || unwell && reason.is_empty() {
                self.find(format!(
                    "P3: a run of {:?} was left {status} ({reason})",
                    prompt.part
                ));
                continue;
            }
            let delivery_failed = status == "failed" && reason == "delivery_failed";
            let expected = match prompt.part {
                Part::Plain | Part::Flaky | Part::Long | Part::Busy | Part::Slow => {
                    status == "succeeded"
                }
                Part::Careful => status == "succeeded" || delivery_failed,
                Part::Broken => status == "failed" && reason == "provider_auth",
                Part::Hopeless => status == "failed" && reason == "provider_unavailable",
                Part::Deaf => delivery_failed,
            };
            if !expected {
                self.find(format!(
                    "a run of {:?} ended {status} ({reason})",
                    prompt.part
                ));
            }
            if number(&run, "attempt") > number(&run, "attempts_max") {
                self.find(format!(
                    "P12: a run of {:?} had more tries than allowed",
                    prompt.part
                ));
            }
        }
    }

    /// P4: no call without its intent on record; and no more calls than tries allowed.
    fn calls_have_intents(&mut self, allowance: Allowance) {
        for run in self.runs.clone() {
            let id = text(&run, "id");
            let calls = self.calls.iter().filter(|call| call.contains(&id)).count();
            let of_run = |attempt: &&Value| text(attempt, "run_id") == id;
            let intents = self.attempts.iter().filter(of_run).count();
            let answered = self.attempts.iter().filter(of_run);
            let answered = answered
                .filter(|attempt| text(attempt, "status") == "ok")
                .count();
            if calls > intents {
                self.find(format!("P4: {calls} calls of a run, and {intents} intents"));
            }
            if answered > calls {
                self.find(format!(
                    "P4: {answered} answers on record, and {calls} calls"
                ));
            }
            let open = |attempt: &Value| text(attempt, "status") == "started";
            if self.attempts.iter().filter(of_run).any(open) {
                self.find("P4: an intent of a run that has ended was never settled");
            }
            if i64::try_from(calls).unwrap_or(i64::MAX) > number(&run, "attempts_max") {
                self.find(format!("P12: {calls} calls of one run"));
            }
            let part = self.prompt_of(&run).map(|prompt| prompt.part);
            let answers_at_once = !matches!(part, Some(Part::Flaky | Part::Hopeless));
            if allowance.nothing_twice && calls > 1 && answers_at_once {
                self.find("P4: a model was called twice although nobody vanished");
            }
            self.report.absorbed += calls.saturating_sub(1);
        }
    }

    /// P4: the result on record is the one of the last claimant, and there is no other.
    fn one_result_is_recorded(&mut self) {
        for run in self.runs.clone() {
            let id = text(&run, "id");
            let of_run = self
                .attempts
                .iter()
                .filter(|attempt| text(attempt, "run_id") == id);
            let recorded: Vec<_> = of_run
                .filter(|attempt| {
                    text(attempt, "status") == "ok" && attempt["error_code"].is_null()
                })
                .map(|attempt| number(attempt, "fence"))
                .collect();
            let has_result = !run["output_sha256"].is_null();
            let expected = if has_result {
                vec![number(&run, "fence")]
            } else {
                Vec::new()
            };
            if recorded != expected {
                self.find(format!(
                    "P4: results recorded under the fences {recorded:?}, and the run has {expected:?}"
                ));
            }
        }
    }

    /// P8.
    async fn counters_equal_facts(&mut self) -> Result<()> {
        let wrong = self.scene.rows(COUNTERS).await?;
        for row in wrong {
            self.find(format!("P8: counters differ from the facts: {row}"));
        }
        let wrong = self.scene.rows(USAGE).await?;
        for row in wrong {
            self.find(format!("P8: usage differs from the attempts: {row}"));
        }
        Ok(())
    }

    /// P5: what arrived is what the rows say, under one id and with one body each.
    fn receiver_and_rows_agree(&mut self, allowance: Allowance) {
        let mut bodies: HashMap<String, BTreeSet<String>> = HashMap::new();
        let mut arrivals: HashMap<String, i64> = HashMap::new();
        for arrived in self.webhooks.clone() {
            let id = text(&arrived["headers"], "webhook-id");
            bodies
                .entry(id.clone())
                .or_default()
                .insert(text(&arrived, "body_base64"));
            *arrivals.entry(id).or_default() += 1;
            if arrived["verified"] != json!(true) && !allowance.unverified {
                self.find(format!(
                    "P5: a signature did not verify: {}",
                    arrived["reason"]
                ));
            }
        }
        for (id, bodies) in &bodies {
            if bodies.len() > 1 {
                self.find("P5: two bodies under one webhook-id");
            }
            let row = self
                .deliveries
                .iter()
                .find(|row| text(row, "id") == *id)
                .cloned();
            let Some(row) = row else {
                self.find("P5: a webhook arrived that no row knows");
                continue;
            };
            let times = arrivals.get(id).copied().unwrap_or_default();
            if times > number(&row, "attempt") {
                self.find(format!(
                    "P5: {times} arrivals and {} attempts",
                    number(&row, "attempt")
                ));
            }
            if allowance.nothing_twice && text(&row, "status") == "delivered" {
                let part = self.part_of_delivery(&row);
                if times > 1 && part != Some(Part::Busy) {
                    self.find("P5: a webhook arrived twice although nobody vanished");
                }
            }
            self.report.absorbed += usize::try_from(times - 1).unwrap_or_default();
        }
        for row in self.deliveries.clone() {
            if text(&row, "kind") != "webhook" {
                continue;
            }
            let arrived = arrivals.contains_key(&text(&row, "id"));
            if text(&row, "status") == "delivered" && !arrived {
                self.find("P5: a delivery is on record that never arrived");
            }
            if number(&row, "attempt") > number(&row, "attempts_max") {
                self.find("P12: a delivery had more attempts than allowed");
            }
        }
        self.every_output_goes_everywhere();
    }

    fn part_of_delivery(&self, delivery: &Value) -> Option<Part> {
        let run = self
            .runs
            .iter()
            .find(|run| run["id"] == delivery["run_id"])?;
        self.prompt_of(run).map(|prompt| prompt.part)
    }

    /// A run with a result has one delivery for each destination; one without has none.
    fn every_output_goes_everywhere(&mut self) {
        for run in self.runs.clone() {
            let Some(prompt) = self.prompt_of(&run) else {
                continue;
            };
            let destinations = match prompt.part {
                Part::Plain => 3,
                Part::Long => 2,
                Part::Flaky | Part::Busy | Part::Deaf | Part::Careful | Part::Slow => 1,
                Part::Broken | Part::Hopeless => 0,
            };
            let expected = if run["output_sha256"].is_null() {
                0
            } else {
                destinations
            };
            let of_run = |row: &&Value| row["run_id"] == run["id"] && row["purpose"] == "output";
            let rows = self.deliveries.iter().filter(of_run).count();
            if rows != expected {
                self.find(format!(
                    "P5: {rows} deliveries of {:?} instead of {expected}",
                    prompt.part
                ));
            }
            for row in self
                .deliveries
                .iter()
                .filter(of_run)
                .cloned()
                .collect::<Vec<_>>()
            {
                let status = text(&row, "status");
                let held = status == "held" && row["destination"]["on_unknown"] == "hold";
                if status != "delivered" && text(&run, "status") == "succeeded" {
                    self.find(format!("a run succeeded whose delivery is {status}"));
                }
                if !matches!(status.as_str(), "delivered" | "exhausted") && !held {
                    self.find(format!("a delivery was left {status}"));
                }
            }
        }
    }

    /// P6, P7: an email and an object for each delivery that says so, and no email that nobody knows.
    async fn files_and_rows_agree(&mut self) -> Result<()> {
        let mut mails = BTreeSet::new();
        if self.scene.outbox().exists() {
            for entry in fs::read_dir(self.scene.outbox())? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                // A draft of a killed process lies there for ever, and is no email.
                if let Some(id) = name.strip_suffix(".eml") {
                    mails.insert(id.to_owned());
                }
            }
        }
        for row in self.deliveries.clone() {
            let (id, kind, status) = (text(&row, "id"), text(&row, "kind"), text(&row, "status"));
            let sent = mails.remove(&id);
            if kind == "email" && status == "delivered" && !sent {
                self.find("P7: an email is on record that never went out");
            }
            if kind == "storage" && status == "delivered" {
                self.object_is_the_output(&row).await?;
            }
        }
        for _ in mails {
            self.find("P7: an email went out that no row knows");
        }
        Ok(())
    }

    async fn object_is_the_output(&mut self, delivery: &Value) -> Result<()> {
        let run = self
            .runs
            .iter()
            .find(|run| run["id"] == delivery["run_id"])
            .cloned();
        let run = run.context("a delivery has a run")?;
        let location = text(delivery, "location");
        let hash = text(&run, "output_sha256");
        let object = match location.strip_prefix("s3://") {
            Some(place) => peers::object(place).await,
            None => fs::read(Path::new(&location)).map_err(anyhow::Error::from),
        };
        match object {
            Ok(bytes) if hash == format!("\\x{}", sha256(&bytes)) => {}
            Ok(_) => self.find("P6: the object is not the output on record"),
            Err(error) => self.find(format!("P6: no object where a delivery says so: {error}")),
        }
        Ok(())
    }

    /// Statuses change along the graph, a claimant's writes bear its fence, and each in its tenant.
    async fn changes_were_allowed(&mut self) -> Result<()> {
        let changes = self
            .scene
            .rows("SELECT * FROM chaos_changes WHERE login = 'carillon_app' ORDER BY n")
            .await?;
        let mut holders: HashMap<String, String> = HashMap::new();
        for change in changes {
            if change["acting_for"] != change["tenant_id"] {
                self.find("P9: a row was changed on behalf of another tenant");
            }
            let (id, writer) = (text(&change, "id"), text(&change, "writer"));
            let old = change["old_status"].as_str();
            let new = text(&change, "new_status");
            let is_run = change["kind"] == "run";
            if let Some(old) = old.filter(|old| *old != new)
                && !may_become(is_run, old, &new)
            {
                self.find(format!(
                    "a {} went from {old} to {new}",
                    text(&change, "kind")
                ));
            }
            let claims =
                change["old_fence"].is_null() || change["old_fence"] != change["new_fence"];
            if claims {
                holders.insert(id, writer);
                continue;
            }
            let held = old.is_some_and(|old| old == "running" || old == "sending");
            let is_holder = holders.get(&id) == Some(&writer);
            if held && !is_holder && change["lease_was_over"] != json!(true) {
                self.find(format!(
                    "P4: {writer} wrote to a {} that another process held",
                    text(&change, "kind")
                ));
            }
        }
        Ok(())
    }

    /// Every end of a run is an event, and every event was told: its line is in a log.
    async fn outbox_lost_nothing(&mut self) -> Result<()> {
        let logs = process::logs(self.scene.home.path())?;
        let mut told: HashMap<String, usize> = HashMap::new();
        for line in logs
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            if let Some(id) = line["event.id"].as_str() {
                *told.entry(id.to_owned()).or_default() += 1;
            }
            self.report.faults += usize::from(line["lie"].is_string());
        }
        for event in self.scene.rows("SELECT id, type FROM chaos_events").await? {
            match told.get(&text(&event, "id")) {
                None => self.find(format!("outbox: {} was never told", event["type"])),
                Some(times) => self.report.absorbed += times - 1,
            }
        }
        for run in self.scene.rows(EVENTLESS).await? {
            self.find(format!(
                "outbox: the end of a run made no event of its own: {run}"
            ));
        }
        for event in self
            .scene
            .rows("SELECT type, error_code FROM bus_events")
            .await?
        {
            self.find(format!("outbox: an event was left in it: {event}"));
        }
        Ok(())
    }

    /// P9: a tenant's words are in no other's row, call or webhook, and in nobody's log.
    async fn nobody_sees_another(&mut self) -> Result<()> {
        let tables = self.scene.rows(TENANT_TABLES).await?;
        for side in &self.scene.sides {
            for table in &tables {
                let (name, column) = (text(table, "table_name"), text(table, "column_name"));
                let sql = format!(
                    "SELECT count(*) AS rows FROM {name} t
                      WHERE t.{column} <> '{}' AND row_to_json(t)::text LIKE '%{}%'",
                    side.tenant.id, side.canary
                );
                let found = self.scene.rows(&sql).await?;
                if found.iter().any(|row| number(row, "rows") > 0) {
                    self.report
                        .findings
                        .push(format!("P9: another tenant's words are in {name}"));
                }
            }
            let strays = self.webhooks.iter().filter(|arrived| {
                !text(arrived, "path").starts_with(&side.hooks)
                    && text(arrived, "body").contains(&side.canary)
            });
            if strays.count() > 0 {
                self.report
                    .findings
                    .push("P9: another tenant's words were posted".to_owned());
            }
            for run in &self.runs {
                let id = text(run, "id");
                let other = run["tenant_id"] != json!(side.tenant.id);
                let said = |call: &&String| call.contains(&id) && call.contains(&side.canary);
                if other && self.calls.iter().any(|call| said(&call)) {
                    self.report
                        .findings
                        .push("P9: another tenant's words went to a model".to_owned());
                }
            }
        }
        let logs = process::logs(self.scene.home.path())?;
        let unspeakable = [
            "canary-",
            "whsec_",
            "/hooks/",
            "@reader.example",
            "sk-chaos-",
        ];
        for word in unspeakable.into_iter().filter(|word| logs.contains(word)) {
            self.report.findings.push(format!("P9: {word} was logged"));
        }
        Ok(())
    }
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value, field: &str) -> i64 {
    value[field].as_i64().unwrap_or_default()
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn is_final(status: &str) -> bool {
    status.parse::<RunStatus>().is_ok_and(RunStatus::is_final)
}

fn may_become(is_run: bool, old: &str, new: &str) -> bool {
    if is_run {
        let read = |word: &str| word.parse::<RunStatus>();
        return matches!((read(old), read(new)), (Ok(old), Ok(new)) if old.may_become(new));
    }
    match old {
        "pending" | "retrying" => new == "sending",
        "sending" => matches!(new, "delivered" | "retrying" | "exhausted" | "held"),
        // Nobody in a scene asks for a redelivery.
        _ => false,
    }
}

const COUNTERS: &str = "
    SELECT p.run_count, p.success_count, p.failure_count, f.*
      FROM scheduled_prompts p
     CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE attempt >= 1) AS runs,
                  count(*) FILTER (WHERE status = 'succeeded') AS successes,
                  count(*) FILTER (WHERE status IN ('failed', 'timed_out')) AS failures
             FROM scheduled_prompt_runs r
            WHERE r.tenant_id = p.tenant_id AND r.prompt_id = p.id AND r.trigger <> 'test') f
     WHERE (p.run_count, p.success_count, p.failure_count)
           IS DISTINCT FROM (f.runs, f.successes, f.failures)";

const USAGE: &str = "
    SELECT t.id, coalesce(u.runs, 0) AS runs, coalesce(u.output_tokens, 0) AS tokens,
           coalesce(u.cost, 0) AS cost, f.*
      FROM tenants t
      LEFT JOIN (SELECT tenant_id, sum(runs) AS runs, sum(output_tokens) AS output_tokens,
                        sum(cost_settled_usd) AS cost FROM tenant_usage GROUP BY 1) u ON u.tenant_id = t.id
     CROSS JOIN LATERAL (SELECT count(*) AS calls, coalesce(sum(output_tokens), 0) AS said,
                                coalesce(sum(cost_usd), 0) AS paid
                           FROM run_attempts a WHERE a.tenant_id = t.id AND a.status = 'ok') f
     WHERE (coalesce(u.runs, 0), coalesce(u.output_tokens, 0), coalesce(u.cost, 0))
           IS DISTINCT FROM (f.calls, f.said, f.paid)";

const EVENTLESS: &str = "
    SELECT r.id, r.status, count(e.id) AS events FROM scheduled_prompt_runs r
      LEFT JOIN chaos_events e ON e.run_id = r.id
           AND e.type = CASE r.status WHEN 'timed_out' THEN 'run.failed' ELSE 'run.' || r.status END
     GROUP BY r.id, r.status HAVING count(e.id) <> 1";

const TENANT_TABLES: &str = "
    SELECT c.table_name, c.column_name FROM information_schema.columns c
      JOIN information_schema.tables t USING (table_schema, table_name)
     WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE'
       AND (c.column_name = 'tenant_id' OR c.table_name = 'tenants' AND c.column_name = 'id')";
