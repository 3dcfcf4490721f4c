//! What prompts are made of here, and what is done to them.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::ids::RunId;
use shared::prompt::{Misfire, Overlap};
use tests::chance::Chance;

/// A prompt, as its owner writes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// A slot at each minute of the hour that this divides.
    pub(crate) minutes: u32,
    /// In each hour that this divides.
    pub(crate) hours: u32,
    /// No slot after it.
    pub(crate) end: Option<DateTime<Utc>>,
    pub(crate) jitter_minutes: u32,
    pub(crate) overlap: Overlap,
    pub(crate) overlap_runs_max: u32,
    pub(crate) misfire: Misfire,
    pub(crate) window_s: u32,
    pub(crate) max_runs: Option<u32>,
    pub(crate) max_retries: u32,
    pub(crate) pause_after: u32,
}

impl Config {
    pub(crate) fn random(chance: &mut Chance, now: DateTime<Utc>) -> Self {
        let mut config = Self {
            minutes: 1,
            hours: 1,
            end: None,
            jitter_minutes: 0,
            overlap: chance.pick(&Overlap::ALL),
            overlap_runs_max: chance.pick(&[1, 2, 3]),
            misfire: chance.pick(&Misfire::ALL),
            window_s: chance.pick(&[0, 300, 900, 3_600, 40_000]),
            max_runs: chance.pick(&[None, None, Some(1), Some(3), Some(12)]),
            max_retries: chance.pick(&[0, 1, 2]),
            pause_after: chance.pick(&[0, 1, 2, 3]),
        };
        config.reschedule(chance, now);
        config
    }

    /// Another schedule.
    pub(crate) fn reschedule(&mut self, chance: &mut Chance, now: DateTime<Utc>) {
        // The shortest gap is 4 minutes for 7, else the step itself.
        let (minutes, gap) = chance.pick(&[
            (1, 1),
            (1, 1),
            (2, 2),
            (5, 5),
            (7, 4),
            (10, 10),
            (30, 30),
            (60, 60),
        ]);
        self.minutes = minutes;
        self.hours = if minutes == 60 {
            chance.pick(&[1, 2, 4])
        } else {
            1
        };
        self.jitter_minutes = match chance.below(3) {
            0 => u32::try_from(chance.below(gap)).unwrap(),
            _ => 0,
        };
        let hours = i64::try_from(5 + chance.below(24)).unwrap();
        self.end = chance
            .one_in(5)
            .then(|| whole_minute(now) + TimeDelta::hours(hours));
    }

    /// The first slot after an instant.
    pub(crate) fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let first = after.timestamp().div_euclid(60) + 1;
        let mut day = first..=first + 24 * 60;
        day.find(|minute| self.is_slot(*minute)).map(minute)
    }

    /// Each slot from one instant to another, both included.
    pub(crate) fn slots(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<DateTime<Utc>> {
        let first = (from.timestamp() + 59).div_euclid(60);
        let last = to.timestamp().div_euclid(60);
        let slots = (first..=last).filter(|minute| self.is_slot(*minute));
        slots.map(minute).collect()
    }

    /// Whether a minute, counted from 1970, is a slot.
    fn is_slot(&self, minute: i64) -> bool {
        (minute % 60) % i64::from(self.minutes) == 0
            && (minute / 60 % 24) % i64::from(self.hours) == 0
            && self.end.is_none_or(|end| minute * 60 <= end.timestamp())
    }

    /// How many of its runs may be under way.
    pub(crate) fn at_once(&self) -> usize {
        match self.overlap {
            Overlap::Skip | Overlap::BufferOne => 1,
            Overlap::AllowAll => self.overlap_runs_max as usize,
        }
    }

    /// As a request's body.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "prompt_name": "a prompt",
            "prompt_text": "say something",
            "model": "echo/echo",
            "schedule": self.schedule(),
            "jitter_minutes": self.jitter_minutes,
            "overlap": self.overlap.as_str(),
            "overlap_runs_max": self.overlap_runs_max,
            "misfire": self.misfire.as_str(),
            "catchup_window_s": self.window_s,
            "max_runs": self.max_runs,
            "max_retries": self.max_retries,
            "pause_after_failures": self.pause_after,
            "destinations": [],
        })
    }

    fn schedule(&self) -> Value {
        let minutes = match self.minutes {
            60 => "0".to_owned(),
            1 => "*".to_owned(),
            step => format!("*/{step}"),
        };
        let hours = match self.hours {
            1 => "*".to_owned(),
            step => format!("*/{step}"),
        };
        let mut schedule = json!({"type": "cron", "timezone": "UTC"});
        schedule["expression"] = json!(format!("{minutes} {hours} * * *"));
        if let Some(end) = self.end {
            schedule["end_at"] = json!(end);
        }
        schedule
    }
}

fn whole_minute(at: DateTime<Utc>) -> DateTime<Utc> {
    minute(at.timestamp().div_euclid(60))
}

fn minute(number: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(number * 60, 0).unwrap()
}

/// A run: that of a slot, or one that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Slot(DateTime<Utc>),
    Asked(RunId),
}

/// What a person does.
#[derive(Debug, Clone)]
pub(crate) enum Deed {
    Pause,
    Resume,
    Cancel,
    Delete,
    /// The schedule changes, or the jitter.
    Reschedule(Config),
    /// All but the schedule may change.
    Edit(Config),
    /// A run now; `true` for a test.
    Run(bool),
    CancelRun(Key),
    RetryRun(Key),
}

/// What becomes of a claimed run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Succeeds,
    Fails,
    /// Another try, so much later.
    Retries(TimeDelta),
    /// Its claimant is not heard of again.
    Vanishes,
}

/// A claimed run, and what will become of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claimed {
    pub(crate) key: Key,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
    pub(crate) attempts_max: i32,
}

/// What came of a look at a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Took {
    Claimed(Claimed),
    Skipped(&'static str),
    Cancelled,
    Deferred,
    Left,
    GaveUp,
}

/// A row of a slot, or of several.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) slot: DateTime<Utc>,
    pub(crate) until: Option<DateTime<Utc>>,
    pub(crate) count: i32,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) by: Option<Key>,
    /// Of one that waits and was never tried.
    pub(crate) available_at: Option<DateTime<Utc>>,
}

/// What the prompt itself shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) next_run_at: Option<DateTime<Utc>>,
    pub(crate) run_count: i64,
    pub(crate) success_count: i64,
    pub(crate) failure_count: i64,
    pub(crate) consecutive_failures: i32,
}
