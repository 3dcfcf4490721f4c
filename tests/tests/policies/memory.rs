//! A prompt without a database: the product's pure decisions over rows in memory.
//!
//! What SQL decides is repeated here in short, so that many cases are cheap; it is judged itself over
//! PostgreSQL.

use chrono::{DateTime, TimeDelta, Utc};
use shared::ids::{PromptId, RunId};
use shared::jitter;
use shared::prompt::Overlap;
use shared::slots::{self, Dropped, Fate, Look, OpenRuns, Policy, SharedRow};

use crate::script::{Claimed, Config, Deed, Key, Outcome, Row, Shown, Took};

pub(crate) struct Memory {
    config: Config,
    prompt_id: PromptId,
    shown: Shown,
    deleted: bool,
    runs: Vec<Run>,
}

#[derive(Debug, Clone)]
struct Run {
    id: RunId,
    slot: Option<DateTime<Utc>>,
    is_test: bool,
    row: Row,
    attempt: i32,
    attempts_max: i32,
    fence: i64,
    available_at: DateTime<Utc>,
    lease_expires_at: DateTime<Utc>,
    completed_at: Option<DateTime<Utc>>,
}

impl Run {
    fn key(&self) -> Key {
        self.slot.map_or(Key::Asked(self.id), Key::Slot)
    }

    fn is(&self, status: &str) -> bool {
        self.row.status == status
    }

    fn is_open(&self) -> bool {
        self.is("queued") || self.is("running")
    }

    fn end(&mut self, at: DateTime<Utc>, status: &str, reason: Option<&str>) {
        self.row.status = status.to_owned();
        self.row.reason = reason.map(str::to_owned);
        self.completed_at = Some(at);
    }
}

impl Memory {
    pub(crate) fn new(config: Config, at: DateTime<Utc>) -> Self {
        Self {
            shown: Shown {
                status: "active".to_owned(),
                reason: None,
                next_run_at: config.next(at),
                run_count: 0,
                success_count: 0,
                failure_count: 0,
                consecutive_failures: 0,
            },
            config,
            prompt_id: PromptId::new(),
            deleted: false,
            runs: Vec::new(),
        }
    }

    pub(crate) fn delay(&self, config: &Config) -> TimeDelta {
        jitter::delay(self.prompt_id, config.jitter_minutes)
    }

    pub(crate) fn is_found(&self, at: DateTime<Utc>) -> bool {
        let next = self.shown.next_run_at;
        self.is_active() && next.is_some_and(|next| next + self.delay(&self.config) <= at)
    }

    fn is_active(&self) -> bool {
        self.shown.status == "active" && !self.deleted
    }

    pub(crate) fn does(&mut self, at: DateTime<Utc>, deed: &Deed) -> Option<Key> {
        match deed {
            Deed::Pause => self.leave(at, "paused", "user", "paused"),
            Deed::Cancel => {
                self.leave(at, "cancelled", "user", "prompt_cancelled");
                self.cancel_queued(at, "prompt_cancelled");
            }
            Deed::Delete => {
                self.drop_due(at, "prompt_deleted");
                (self.deleted, self.shown.next_run_at) = (true, None);
                self.cancel_queued(at, "prompt_deleted");
            }
            Deed::Resume => {
                self.set("active", None);
                self.shown.consecutive_failures = 0;
                self.shown.next_run_at = self.config.next(at);
            }
            Deed::Reschedule(config) | Deed::Edit(config) => {
                let schedule = |config: &Config| (config.minutes, config.hours, config.end);
                if schedule(config) != schedule(&self.config) {
                    self.drop_due(at, "rescheduled");
                    self.shown.next_run_at = config.next(at).filter(|_| self.is_active());
                }
                self.config = config.clone();
            }
            Deed::Run(is_test) => {
                let id = RunId::new();
                self.insert(id, None, "queued", at);
                self.runs.last_mut().unwrap().is_test = *is_test;
                return Some(Key::Asked(id));
            }
            Deed::CancelRun(key) => self.run(*key).end(at, "cancelled", Some("user")),
            Deed::RetryRun(key) => self.retry(at, *key),
        }
        None
    }

    fn retry(&mut self, at: DateTime<Utc>, key: Key) {
        let retries = i32::try_from(self.config.max_retries).unwrap();
        let ended = self.run(key).completed_at;
        let newer = self
            .runs
            .iter()
            .filter(|run| run.is("failed") && !run.is_test && run.completed_at > ended);
        let newer = i32::try_from(newer.count()).unwrap();
        let run = self.run(key);
        (run.row.status, run.row.reason) = ("queued".to_owned(), None);
        (run.completed_at, run.available_at) = (None, at);
        run.attempts_max = run.attempt + retries + 1;
        if !run.is_test {
            self.shown.failure_count -= 1;
            self.shown.consecutive_failures -= i32::from(self.shown.consecutive_failures > newer);
        }
    }

    fn set(&mut self, status: &str, reason: Option<&str>) {
        self.shown.status = status.to_owned();
        self.shown.reason = reason.map(str::to_owned);
        self.shown.next_run_at = None;
    }

    fn leave(&mut self, at: DateTime<Utc>, status: &str, reason: &str, dropped: &str) {
        self.drop_due(at, dropped);
        self.set(status, Some(reason));
    }

    fn drop_due(&mut self, at: DateTime<Utc>, reason: &str) {
        let Some(first) = self.shown.next_run_at else {
            return;
        };
        let dropped = slots::dropped(first, at, |after| self.config.next(after));
        if let Some(Dropped { first, last, count }) = dropped {
            self.insert(RunId::new(), Some(first), "skipped", at);
            let row = &mut self.runs.last_mut().unwrap().row;
            (row.reason, row.count) = (Some(reason.to_owned()), count);
            row.until = (count > 1).then_some(last);
        }
    }

    fn cancel_queued(&mut self, at: DateTime<Utc>, reason: &str) {
        for run in self.runs.iter_mut().filter(|run| run.is("queued")) {
            run.end(at, "cancelled", Some(reason));
        }
    }

    fn insert(
        &mut self,
        id: RunId,
        slot: Option<DateTime<Utc>>,
        status: &str,
        available_at: DateTime<Utc>,
    ) {
        self.runs.push(Run {
            id,
            slot,
            is_test: false,
            row: Row {
                slot: slot.unwrap_or(available_at),
                until: None,
                count: 1,
                status: status.to_owned(),
                reason: None,
                by: None,
                available_at: None,
            },
            attempt: 0,
            attempts_max: i32::try_from(self.config.max_retries).unwrap() + 1,
            fence: 0,
            available_at,
            lease_expires_at: available_at,
            completed_at: None,
        });
    }

    fn run(&mut self, key: Key) -> &mut Run {
        self.runs.iter_mut().find(|run| run.key() == key).unwrap()
    }

    /// A look at the prompt; gives the run that it claimed.
    pub(crate) fn fires(&mut self, at: DateTime<Utc>, lease: TimeDelta) -> Vec<Claimed> {
        let mut claimed = Vec::new();
        while self.is_active()
            && let Some(first) = self.shown.next_run_at.filter(|first| *first <= at)
        {
            let look = Look {
                first,
                now: at,
                shared: self.shared(),
                open: self.open_runs(),
            };
            let policy = self.policy();
            let config = self.config.clone();
            let plan = slots::plan(look, policy, |after| config.next(after));
            let begins = plan.begins(policy, &look.open);
            self.write(at, &plan);
            let key = begins.map(Key::Slot);
            claimed.extend(key.map(|key| self.claim(at, key, lease)));
            if plan.next.is_none() && self.shown.status == "active" {
                self.set("completed", Some("schedule_ended"));
            }
            if !plan.is_cut {
                break;
            }
        }
        claimed
    }

    fn policy(&self) -> Policy {
        let config = &self.config;
        let promised = self.runs.iter();
        let promised = promised.filter(|run| run.is("queued") && run.attempt == 0 && !run.is_test);
        let taken = self.shown.run_count + i64::try_from(promised.count()).unwrap();
        Policy {
            overlap: config.overlap,
            overlap_runs_max: config.overlap_runs_max,
            misfire: config.misfire,
            catchup_window_s: config.window_s,
            jitter: TimeDelta::minutes(config.jitter_minutes.into()),
            delay: self.delay(config),
            runs_left: config
                .max_runs
                .map(|max| u64::try_from(i64::from(max) - taken).unwrap_or(0)),
        }
    }

    fn open_runs(&self) -> OpenRuns {
        let open = || self.runs.iter().filter(|run| run.is_open() && !run.is_test);
        let running = || open().filter(|run| run.is("running"));
        let waiting = open().filter(|run| run.is("queued") && run.attempt == 0);
        let id = |run: &Run| run.id;
        OpenRuns {
            count: u32::try_from(open().count()).unwrap(),
            running: u32::try_from(running().count()).unwrap(),
            in_the_way: running().next().or_else(|| open().next()).map(id),
            waiting: waiting
                .max_by_key(|run| run.slot)
                .filter(|run| run.slot.is_some())
                .map(id),
        }
    }

    fn shared(&self) -> Option<SharedRow> {
        let newest = self.runs.iter().max_by_key(|run| run.slot)?;
        let until = newest.row.until.filter(|_| newest.is("missed"))?;
        Some(SharedRow {
            run_id: newest.id,
            until,
        })
    }

    fn write(&mut self, at: DateTime<Utc>, plan: &slots::Plan) {
        let mut taker = None;
        for planned in &plan.rows {
            let (status, reason, by, count, until, after) = match planned.fate {
                Fate::Run { after } => {
                    taker = Some(planned.scheduled_for);
                    ("queued", None, None, 1, None, after)
                }
                Fate::Overlapped { by } => (
                    "skipped",
                    Some("overlap"),
                    Some(by),
                    1,
                    None,
                    TimeDelta::zero(),
                ),
                Fate::OverLimit => (
                    "skipped",
                    Some("max_runs"),
                    None,
                    1,
                    None,
                    TimeDelta::zero(),
                ),
                Fate::Missed {
                    reason,
                    count,
                    until,
                } => (
                    "missed",
                    Some(reason),
                    None,
                    count,
                    Some(until),
                    TimeDelta::zero(),
                ),
            };
            let by = by.map(|by| self.runs.iter().find(|run| run.id == by).unwrap().key());
            self.insert(
                RunId::new(),
                Some(planned.scheduled_for),
                status,
                at + after,
            );
            let row = &mut self.runs.last_mut().unwrap().row;
            (row.reason, row.by, row.count) = (reason.map(str::to_owned), by, count);
            row.until = until.filter(|_| count > 1);
        }
        if let Some(extension) = plan.extension {
            let run = self.runs.iter_mut().find(|run| run.id == extension.run_id);
            let row = &mut run.unwrap().row;
            row.count += extension.count;
            row.until = Some(extension.until);
        }
        if let Some((replaced, taker)) = plan.replaced.zip(taker) {
            let run = self.runs.iter_mut().find(|run| run.id == replaced).unwrap();
            run.end(at, "skipped", Some("replaced"));
            run.row.by = Some(Key::Slot(taker));
        }
        self.shown.next_run_at = plan.next;
    }

    fn is_limit_reached(&self) -> bool {
        let max = self.config.max_runs.map(i64::from);
        max.is_some_and(|max| self.shown.run_count >= max)
    }

    fn claim(&mut self, at: DateTime<Utc>, key: Key, lease: TimeDelta) -> Claimed {
        let run = self.run(key);
        let counts = run.attempt == 0 && !run.is_test;
        run.row.status = "running".to_owned();
        run.attempt += 1;
        run.fence += 1;
        run.lease_expires_at = at + lease;
        let claimed = Claimed {
            key,
            fence: run.fence,
            attempt: run.attempt,
            attempts_max: run.attempts_max,
        };
        if counts {
            self.shown.run_count += 1;
            if self.is_limit_reached() && self.shown.status == "active" {
                self.drop_due(at, "max_runs");
                self.set("completed", Some("max_runs"));
            }
        }
        claimed
    }

    pub(crate) fn takes(&mut self, at: DateTime<Utc>, key: Key, lease: TimeDelta) -> Took {
        let others = |run: &&Run| run.key() != key && !run.is_test && run.is("running");
        let running = self.runs.iter().filter(others).count();
        let older = self.runs.iter().any(|run| {
            run.slot.is_some() && run.key() < key && run.is("queued") && run.attempt == 0
        });
        let overlap = self.config.overlap;
        let waits = running >= self.config.at_once() || older && overlap != Overlap::AllowAll;
        let prompt_over = if self.deleted {
            Some("prompt_deleted")
        } else {
            (self.shown.status == "cancelled").then_some("prompt_cancelled")
        };
        let is_paused = self.shown.status == "paused";
        let is_limit_reached = self.is_limit_reached();
        let run = self.run(key);
        let is_slot = run.slot.is_some();
        if !run.is_open() {
            return Took::Left;
        }
        if run.is("running") {
            return if run.lease_expires_at > at {
                Took::Left
            } else if prompt_over.is_some() || run.attempt >= run.attempts_max {
                let claim = Claimed {
                    key,
                    fence: run.fence,
                    attempt: run.attempt,
                    attempts_max: run.attempts_max,
                };
                self.fail(at, claim, "worker_lost");
                Took::GaveUp
            } else {
                Took::Claimed(self.claim(at, key, lease))
            };
        }
        if let Some(reason) = prompt_over {
            self.cancel_queued(at, reason);
            return Took::Cancelled;
        }
        let skipped = if is_slot && run.attempt == 0 && is_paused {
            Some("paused")
        } else if run.available_at > at {
            return Took::Left;
        } else {
            (run.attempt == 0 && !run.is_test && is_limit_reached).then_some("max_runs")
        };
        if let Some(reason) = skipped {
            run.end(at, "skipped", Some(reason));
            return Took::Skipped(reason);
        }
        if is_slot && waits {
            run.available_at = at;
            return Took::Deferred;
        }
        Took::Claimed(self.claim(at, key, lease))
    }

    pub(crate) fn ends(&mut self, at: DateTime<Utc>, claim: Claimed, outcome: Outcome) {
        let run = self.run(claim.key);
        if !run.is("running") || run.fence != claim.fence {
            return;
        }
        match outcome {
            Outcome::Vanishes => {}
            Outcome::Retries(delay) => {
                run.row.status = "queued".to_owned();
                run.available_at = at + delay;
            }
            Outcome::Succeeds => {
                run.end(at, "succeeded", None);
                if !run.is_test {
                    self.shown.success_count += 1;
                    self.shown.consecutive_failures = 0;
                }
            }
            Outcome::Fails => self.fail(at, claim, "broken"),
        }
    }

    fn fail(&mut self, at: DateTime<Utc>, claim: Claimed, code: &str) {
        let pause_after = i32::try_from(self.config.pause_after).unwrap();
        let run = self.run(claim.key);
        run.end(at, "failed", Some(code));
        if run.is_test {
            return;
        }
        self.shown.failure_count += 1;
        self.shown.consecutive_failures += 1;
        let pauses = pause_after > 0 && self.shown.consecutive_failures >= pause_after;
        if pauses && self.is_active() {
            self.leave(at, "paused", "failures", "paused");
        }
    }

    pub(crate) fn rows(&self) -> (Vec<Row>, Shown) {
        let mut rows: Vec<Row> = self
            .runs
            .iter()
            .filter(|run| run.slot.is_some())
            .map(|run| {
                let mut row = run.row.clone();
                let waits = run.is("queued") && run.attempt == 0;
                row.available_at = waits.then_some(run.available_at);
                row
            })
            .collect();
        rows.sort_by_key(|row| row.slot);
        (rows, self.shown.clone())
    }
}
