//! Says which slots had to run, be skipped or be missed, from what was done and when.
//!
//! Written from the words of the policies, a slot at a time, minute by minute. It must not call the
//! code that it judges.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use shared::prompt::{Misfire, Overlap};

use crate::script::{Config, Deed, Key, Outcome, Row, Shown, Took};

/// A run of several catches up with at most so many.
const RUN_ALL_MAX: usize = 100;
/// Missed slots with a row each.
const MISSED_ROWS_MAX: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Active,
    Paused,
    Completed,
    Cancelled,
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Waiting,
    Running,
    Over(&'static str),
}

#[derive(Debug, Clone)]
struct Run {
    /// In the order of their making.
    number: usize,
    is_test: bool,
    is: Is,
    reason: Option<&'static str>,
    by: Option<Key>,
    tries: i32,
    tries_max: i32,
    available_at: DateTime<Utc>,
    lease_until: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
}

/// What ought to be.
#[derive(Debug, Clone)]
pub(crate) struct Judge {
    pub(crate) config: Config,
    pub(crate) state: State,
    reason: Option<&'static str>,
    /// How long after a slot the sweeper finds it.
    delay: TimeDelta,
    /// The first slot that is not accounted for.
    first: Option<DateTime<Utc>>,
    runs: BTreeMap<Key, Run>,
    rows: BTreeMap<DateTime<Utc>, Row>,
    run_count: u32,
    successes: u32,
    failures: u32,
    in_a_row: u32,
    /// Nothing but the prompt's own policies keeps a run back.
    is_alone: bool,
    /// What happened, unless nobody reads it: it takes longer than all else.
    story: Option<Vec<String>>,
}

impl Judge {
    pub(crate) fn new(config: Config, at: DateTime<Utc>, delay: TimeDelta, is_alone: bool) -> Self {
        let first = config.next(at);
        Self {
            story: Some(vec![format!("{at} made {config:?}, found after {delay}")]),
            config,
            state: State::Active,
            reason: None,
            delay,
            first,
            runs: BTreeMap::new(),
            rows: BTreeMap::new(),
            run_count: 0,
            successes: 0,
            failures: 0,
            in_a_row: 0,
            is_alone,
        }
    }

    /// Without a story for those who read of its failure.
    pub(crate) fn silent(mut self) -> Self {
        self.story = None;
        self
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(line());
        }
    }

    /// Whether a sweep must find it.
    pub(crate) fn is_found(&self, at: DateTime<Utc>) -> bool {
        self.state == State::Active && self.first.is_some_and(|first| first + self.delay <= at)
    }

    /// Runs that wait or are under way, oldest slot first.
    pub(crate) fn open(&self) -> Vec<Key> {
        let open = self.runs.iter();
        open.filter(|(_, run)| !matches!(run.is, Is::Over(_)))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Runs that a caller may retry.
    pub(crate) fn failed(&self) -> Vec<Key> {
        let failed = self.runs.iter();
        failed
            .filter(|(_, run)| run.is == Is::Over("failed"))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Whether a resume would be refused.
    pub(crate) fn is_spent(&self, at: DateTime<Utc>) -> bool {
        self.is_limit_reached() || self.config.next(at).is_none()
    }

    pub(crate) fn run_count(&self) -> u32 {
        self.run_count
    }

    pub(crate) fn does(
        &mut self,
        at: DateTime<Utc>,
        deed: &Deed,
        asked: Option<Key>,
        delay: TimeDelta,
    ) {
        self.tell(|| format!("{at} {deed:?} {asked:?}"));
        match deed {
            Deed::Pause => {
                self.drop_due(at, "paused");
                self.set(State::Paused, Some("user"));
            }
            Deed::Resume => {
                self.set(State::Active, None);
                self.in_a_row = 0;
                self.first = self.config.next(at);
            }
            Deed::Cancel => {
                self.drop_due(at, "prompt_cancelled");
                self.set(State::Cancelled, Some("user"));
                self.cancel_waiting(at, "prompt_cancelled");
            }
            Deed::Delete => {
                self.drop_due(at, "prompt_deleted");
                self.set(State::Deleted, self.reason);
                self.cancel_waiting(at, "prompt_deleted");
            }
            Deed::Reschedule(config) | Deed::Edit(config) => {
                let schedule = |config: &Config| (config.minutes, config.hours, config.end);
                if schedule(config) != schedule(&self.config) {
                    self.drop_due(at, "rescheduled");
                    self.first = config.next(at).filter(|_| self.state == State::Active);
                }
                self.config = config.clone();
                self.delay = delay;
            }
            Deed::Run(is_test) => {
                let run = self.new_run(*is_test, at);
                self.runs.insert(asked.unwrap(), run);
            }
            Deed::CancelRun(key) => {
                let run = self.runs.get_mut(key).unwrap();
                (run.is, run.reason, run.ended_at) =
                    (Is::Over("cancelled"), Some("user"), Some(at));
            }
            Deed::RetryRun(key) => self.retry(at, *key),
        }
    }

    fn retry(&mut self, at: DateTime<Utc>, key: Key) {
        let retries = i32::try_from(self.config.max_retries).unwrap();
        let run = self.runs.get_mut(&key).unwrap();
        let ended = run.ended_at.take();
        (run.is, run.reason, run.available_at) = (Is::Waiting, None, at);
        run.tries_max = run.tries + retries + 1;
        if run.is_test {
            return;
        }
        // It is among those in a row, unless as many failed after it.
        let newer = self.runs.values().filter(|other| {
            other.is == Is::Over("failed") && !other.is_test && other.ended_at > ended
        });
        if self.in_a_row as usize > newer.count() {
            self.in_a_row -= 1;
        }
        self.failures -= 1;
    }

    fn set(&mut self, state: State, reason: Option<&'static str>) {
        (self.state, self.reason, self.first) = (state, reason, None);
    }

    fn new_run(&self, is_test: bool, available_at: DateTime<Utc>) -> Run {
        Run {
            number: self.runs.len(),
            is_test,
            is: Is::Waiting,
            reason: None,
            by: None,
            tries: 0,
            tries_max: i32::try_from(self.config.max_retries).unwrap() + 1,
            available_at,
            lease_until: available_at,
            ended_at: None,
        }
    }

    fn cancel_waiting(&mut self, at: DateTime<Utc>, reason: &'static str) {
        for run in self.runs.values_mut() {
            if run.is == Is::Waiting {
                (run.is, run.reason, run.ended_at) =
                    (Is::Over("cancelled"), Some(reason), Some(at));
            }
        }
    }

    /// One row says what a change takes away.
    fn drop_due(&mut self, at: DateTime<Utc>, reason: &str) {
        let Some(first) = self.first.filter(|first| *first <= at) else {
            return;
        };
        let due = self.config.slots(first, at);
        let until = due.last().copied().filter(|last| *last != first);
        self.rows.insert(
            first,
            row(first, until, due.len(), "skipped", Some(reason), None),
        );
    }

    /// Several workers look at the prompt at once; `began` are the runs that they claimed.
    pub(crate) fn looks(
        &mut self,
        at: DateTime<Utc>,
        workers: u32,
        began: &[Key],
        lease: TimeDelta,
    ) {
        self.tell(|| format!("{at} {workers} look, {began:?} begin"));
        let mut left = began.to_vec();
        for _ in 0..workers {
            let Some(begins) = self.look(at) else {
                continue;
            };
            match left.iter().position(|key| *key == begins) {
                Some(at_index) => {
                    left.remove(at_index);
                    self.claim(at, begins, lease);
                    // It may have ended with this very look: the limit is what is told.
                    if self.state == State::Completed && self.is_limit_reached() {
                        self.reason = Some("max_runs");
                    }
                }
                None => assert!(!self.is_alone, "{begins:?} had to begin{}", self.told()),
            }
        }
        assert!(left.is_empty(), "{left:?} must not begin{}", self.told());
    }

    /// Accounts for what is due; gives the run that begins.
    fn look(&mut self, at: DateTime<Utc>) -> Option<Key> {
        let first = self
            .first
            .filter(|first| *first <= at && self.state == State::Active)?;
        let mut covered = self.config.slots(first, at);
        covered.retain(|slot| *slot == first || *slot + self.delay <= at);
        let mut missed = Vec::new();
        let mut candidates = Vec::new();
        for slot in &covered {
            match self.missed_because(*slot, &covered, at) {
                Some(reason) => missed.push((*slot, reason)),
                None => candidates.push(*slot),
            }
        }
        self.note_missed(&missed);
        let (mut runs, replaced) = self.overlap(candidates);
        self.limit(&mut runs, replaced.is_some());
        if let (Some(waiting), Some(taker)) = (replaced, runs.last()) {
            let run = self.runs.get_mut(&waiting).unwrap();
            (run.is, run.reason, run.ended_at) = (Is::Over("skipped"), Some("replaced"), Some(at));
            run.by = Some(Key::Slot(*taker));
        }
        let last = *covered.last().unwrap();
        self.first = self.config.next(last);
        self.plan_runs(&runs, at);
        if self.first.is_none() {
            self.set(State::Completed, Some("schedule_ended"));
        }
        let running = self.others_running(None);
        let begins = runs.first().filter(|_| running < self.config.at_once());
        begins.map(|slot| Key::Slot(*slot))
    }

    /// Why a slot is not even a candidate.
    fn missed_because(
        &self,
        slot: DateTime<Utc>,
        covered: &[DateTime<Utc>],
        at: DateTime<Utc>,
    ) -> Option<&'static str> {
        let on_time = self.on_time_until(slot);
        let window = TimeDelta::seconds(i64::from(self.config.window_s).max(120));
        let worth_running = |slot: DateTime<Utc>| self.end_of_jitter(slot) + window >= at;
        if !worth_running(slot) {
            return Some("too_late");
        }
        if at <= on_time {
            return None;
        }
        match self.config.misfire {
            Misfire::Skip => Some("misfire_skip"),
            Misfire::RunLatest => covered
                .iter()
                .any(|other| *other > slot)
                .then_some("superseded"),
            Misfire::RunAll => {
                let newer_late = covered
                    .iter()
                    .filter(|other| **other > slot && at > self.on_time_until(**other));
                (newer_late.count() >= RUN_ALL_MAX).then_some("too_many")
            }
        }
    }

    fn end_of_jitter(&self, slot: DateTime<Utc>) -> DateTime<Utc> {
        slot + TimeDelta::minutes(self.config.jitter_minutes.into())
    }

    fn on_time_until(&self, slot: DateTime<Utc>) -> DateTime<Utc> {
        self.end_of_jitter(slot) + TimeDelta::seconds(120)
    }

    /// A row each for the first hundred of a downtime, then one for all others.
    fn note_missed(&mut self, missed: &[(DateTime<Utc>, &'static str)]) {
        let Some((first, _)) = missed.first() else {
            return;
        };
        // An earlier look may have begun that one row.
        let newest = self.rows.values().next_back().cloned();
        let mut shared = newest
            .filter(|row| row.status == "missed" && row.count > 1)
            .filter(|row| self.config.next(row.until.unwrap()) == Some(*first))
            .map(|row| row.slot);
        for (number, (slot, reason)) in missed.iter().enumerate() {
            match shared {
                Some(row) => {
                    let row = self.rows.get_mut(&row).unwrap();
                    row.count += 1;
                    row.until = Some(*slot);
                }
                None => {
                    self.rows
                        .insert(*slot, row(*slot, None, 1, "missed", Some(reason), None));
                    if number == MISSED_ROWS_MAX {
                        shared = Some(*slot);
                    }
                }
            }
        }
    }

    /// Those that run although others are open, and the one whose place the last of them takes.
    fn overlap(&mut self, candidates: Vec<DateTime<Utc>>) -> (Vec<DateTime<Utc>>, Option<Key>) {
        let open: Vec<(&Key, &Run)> = self
            .runs
            .iter()
            .filter(|(_, run)| !run.is_test && !matches!(run.is, Is::Over(_)))
            .collect();
        let oldest = |is: Is| {
            let of_kind = open.iter().filter(|(_, run)| run.is == is);
            of_kind
                .min_by_key(|(_, run)| run.number)
                .map(|(key, _)| **key)
        };
        let Some(by) = oldest(Is::Running).or(oldest(Is::Waiting)) else {
            return (candidates, None);
        };
        let untouched = open.iter().filter(|(key, run)| {
            run.is == Is::Waiting && run.tries == 0 && matches!(key, Key::Slot(_))
        });
        let waiting = untouched.map(|(key, _)| **key).max();
        let room = (self.config.overlap_runs_max as usize).saturating_sub(open.len());
        let newest = candidates.last().copied();
        let (mut runs, mut skipped) = (Vec::new(), Vec::new());
        for (number, slot) in candidates.into_iter().enumerate() {
            let fits = match self.config.overlap {
                Overlap::Skip => false,
                Overlap::BufferOne => Some(slot) == newest,
                Overlap::AllowAll => number < room,
            };
            if fits {
                runs.push(slot);
            } else {
                skipped.push(slot);
            }
        }
        let buffers = self.config.overlap == Overlap::BufferOne && !runs.is_empty();
        for slot in skipped {
            self.rows.insert(
                slot,
                row(slot, None, 1, "skipped", Some("overlap"), Some(by)),
            );
        }
        (runs, waiting.filter(|_| buffers))
    }

    /// Those that `max_runs` has room for; whatever waits has its room already.
    fn limit(&mut self, runs: &mut Vec<DateTime<Utc>>, replaces: bool) {
        let Some(max) = self.config.max_runs else {
            return;
        };
        let promised = self
            .runs
            .values()
            .filter(|run| !run.is_test && run.is == Is::Waiting && run.tries == 0);
        let taken = self.run_count as usize + promised.count();
        let room = (max as usize)
            .saturating_sub(taken)
            .max(usize::from(replaces));
        for slot in runs.split_off(room.min(runs.len())) {
            self.rows
                .insert(slot, row(slot, None, 1, "skipped", Some("max_runs"), None));
        }
    }

    /// After downtime they begin one by one, at even distances up to the next slot.
    fn plan_runs(&mut self, runs: &[DateTime<Utc>], at: DateTime<Utc>) {
        let Some(oldest) = runs.first() else { return };
        let catches_up = at > self.on_time_until(*oldest);
        let distance = match self.first {
            _ if !catches_up => 0,
            None => 60,
            Some(next) => ((next - at).num_milliseconds() / i64::try_from(runs.len()).unwrap())
                .div_euclid(1_000)
                .clamp(1, 60),
        };
        for (number, slot) in (0..).zip(runs) {
            let begins = at + TimeDelta::seconds(distance * number);
            let run = self.new_run(false, begins);
            self.runs.insert(Key::Slot(*slot), run);
            self.rows.insert(*slot, row(*slot, None, 1, "", None, None));
        }
    }

    fn others_running(&self, but: Option<Key>) -> usize {
        let running = self
            .runs
            .iter()
            .filter(|(key, run)| run.is == Is::Running && !run.is_test && Some(**key) != but);
        running.count()
    }

    fn is_limit_reached(&self) -> bool {
        self.config
            .max_runs
            .is_some_and(|max| self.run_count >= max)
    }

    fn claim(&mut self, at: DateTime<Utc>, key: Key, lease: TimeDelta) {
        let run = self.runs.get_mut(&key).unwrap();
        let counts = run.tries == 0 && !run.is_test;
        run.is = Is::Running;
        run.tries += 1;
        run.lease_until = at + lease;
        if !counts {
            return;
        }
        self.run_count += 1;
        if self.is_limit_reached() && self.state == State::Active {
            self.drop_due(at, "max_runs");
            self.set(State::Completed, Some("max_runs"));
        }
    }

    /// Several workers look at a run at once, one after the other.
    pub(crate) fn takes(&mut self, at: DateTime<Utc>, key: Key, took: &[Took], lease: TimeDelta) {
        self.tell(|| format!("{at} {key:?}: {took:?}"));
        let mut left = took.to_vec();
        for _ in 0..took.len() {
            let expected = self.expected_take(at, key);
            // The tenant's limit alone may keep it back, until a place is free.
            let kept_back = !self.is_alone && said(&expected) == "claimed";
            let found = left
                .iter()
                .position(|one| kept_back && said(one) == "deferred")
                .or_else(|| left.iter().position(|one| said(one) == said(&expected)));
            let Some(found) = found else {
                panic!(
                    "{key:?} had to be {}, not {left:?}{}",
                    said(&expected),
                    self.told()
                );
            };
            let took = left.remove(found);
            self.take(at, key, &took, lease);
        }
    }

    /// The claim's numbers do not matter here.
    fn expected_take(&self, at: DateTime<Utc>, key: Key) -> Took {
        let claim = Took::Claimed(crate::script::Claimed {
            key,
            fence: 0,
            attempt: 0,
            attempts_max: 0,
        });
        let run = &self.runs[&key];
        let is_slot = matches!(key, Key::Slot(_));
        let prompt_over = matches!(self.state, State::Cancelled | State::Deleted);
        match run.is {
            Is::Over(_) => Took::Left,
            Is::Running if run.lease_until > at => Took::Left,
            Is::Running if prompt_over || run.tries >= run.tries_max => Took::GaveUp,
            Is::Running => claim,
            Is::Waiting if prompt_over => Took::Cancelled,
            Is::Waiting if is_slot && run.tries == 0 && self.state == State::Paused => {
                Took::Skipped("paused")
            }
            Is::Waiting if run.available_at > at => Took::Left,
            Is::Waiting if run.tries == 0 && !run.is_test && self.is_limit_reached() => {
                Took::Skipped("max_runs")
            }
            Is::Waiting if is_slot && self.waits_for_another(key) => Took::Deferred,
            Is::Waiting => claim,
        }
    }

    fn waits_for_another(&self, key: Key) -> bool {
        let older = self.runs.iter().any(|(other, run)| {
            matches!(other, Key::Slot(_)) && *other < key && run.is == Is::Waiting && run.tries == 0
        });
        self.others_running(Some(key)) >= self.config.at_once()
            || older && self.config.overlap != Overlap::AllowAll
    }

    fn take(&mut self, at: DateTime<Utc>, key: Key, took: &Took, lease: TimeDelta) {
        match took {
            Took::Claimed(_) => self.claim(at, key, lease),
            Took::Skipped(reason) => self.over(at, key, "skipped", reason),
            // All that wait go with it.
            Took::Cancelled => {
                let reason = match self.state {
                    State::Deleted => "prompt_deleted",
                    State::Active | State::Paused | State::Completed | State::Cancelled => {
                        "prompt_cancelled"
                    }
                };
                self.cancel_waiting(at, reason);
            }
            Took::Deferred => self.runs.get_mut(&key).unwrap().available_at = at,
            Took::Left => {}
            Took::GaveUp => {
                self.over(at, key, "failed", "worker_lost");
                self.count_failure(at, key);
            }
        }
    }

    fn over(&mut self, at: DateTime<Utc>, key: Key, status: &'static str, reason: &'static str) {
        let run = self.runs.get_mut(&key).unwrap();
        run.is = Is::Over(status);
        run.reason = (!reason.is_empty()).then_some(reason);
        run.ended_at = Some(at);
    }

    /// A claimed run ends, unless somebody else has it.
    pub(crate) fn ends(&mut self, at: DateTime<Utc>, key: Key, attempt: i32, outcome: Outcome) {
        self.tell(|| format!("{at} {key:?} {outcome:?}"));
        let run = self.runs.get_mut(&key).unwrap();
        if run.is != Is::Running || run.tries != attempt {
            return;
        }
        match outcome {
            Outcome::Vanishes => {}
            Outcome::Retries(delay) => {
                run.is = Is::Waiting;
                run.available_at = at + delay;
            }
            Outcome::Succeeds => {
                let is_test = run.is_test;
                self.over(at, key, "succeeded", "");
                if !is_test {
                    self.successes += 1;
                    self.in_a_row = 0;
                }
            }
            Outcome::Fails => {
                self.over(at, key, "failed", "broken");
                self.count_failure(at, key);
            }
        }
    }

    fn count_failure(&mut self, at: DateTime<Utc>, key: Key) {
        if self.runs[&key].is_test {
            return;
        }
        self.failures += 1;
        self.in_a_row += 1;
        let pauses = self.config.pause_after > 0 && self.in_a_row >= self.config.pause_after;
        if self.state == State::Active && pauses {
            self.drop_due(at, "paused");
            self.set(State::Paused, Some("failures"));
        }
    }

    /// Compares all rows of slots, and the prompt itself.
    pub(crate) fn judges(&self, rows: &[Row], shown: &Shown) {
        let expected: Vec<Row> = self.rows.values().map(|row| self.as_it_is(row)).collect();
        for (one, other) in expected.iter().zip(rows) {
            assert_eq!(one, other, "expected is on the left{}", self.told());
        }
        assert_eq!(
            expected.len(),
            rows.len(),
            "rows: {:?} against {:?}{}",
            expected.last(),
            rows.last(),
            self.told()
        );
        let status = match self.state {
            State::Active => "active",
            State::Paused => "paused",
            State::Completed => "completed",
            State::Cancelled => "cancelled",
            // The row of a deleted prompt keeps what it was.
            State::Deleted => &shown.status,
        };
        let expected = Shown {
            status: status.to_owned(),
            reason: match self.state {
                State::Deleted => shown.reason.clone(),
                State::Active | State::Paused | State::Completed | State::Cancelled => {
                    self.reason.map(str::to_owned)
                }
            },
            next_run_at: self.first,
            run_count: self.run_count.into(),
            success_count: self.successes.into(),
            failure_count: self.failures.into(),
            consecutive_failures: i32::try_from(self.in_a_row).unwrap(),
        };
        assert_eq!(expected, *shown, "expected is on the left{}", self.told());
    }

    /// A slot's run goes on after its row was made.
    fn as_it_is(&self, row: &Row) -> Row {
        let mut row = row.clone();
        if row.status.is_empty() {
            let run = &self.runs[&Key::Slot(row.slot)];
            row.status = match run.is {
                Is::Waiting => "queued",
                Is::Running => "running",
                Is::Over(status) => status,
            }
            .to_owned();
            row.reason = run.reason.map(str::to_owned);
            row.by = run.by;
            let waits = run.is == Is::Waiting && run.tries == 0;
            row.available_at = waits.then_some(run.available_at);
        }
        row
    }

    /// How it came to this.
    pub(crate) fn told(&self) -> String {
        let story = self.story.as_deref().unwrap_or_default();
        format!("\n  {}", story.join("\n  "))
    }
}

fn said(took: &Took) -> &'static str {
    match took {
        Took::Claimed(_) => "claimed",
        Took::Skipped(reason) => reason,
        Took::Cancelled => "cancelled",
        Took::Deferred => "deferred",
        Took::Left => "left",
        Took::GaveUp => "given up",
    }
}

fn row(
    slot: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
    count: usize,
    status: &str,
    reason: Option<&str>,
    by: Option<Key>,
) -> Row {
    Row {
        slot,
        until,
        count: i32::try_from(count).unwrap(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        by,
        available_at: None,
    }
}
