//! What a schedule and its policies would do over a range of time, before anything is saved.
//!
//! Pure and bounded: it must never read a clock, a table or the network. It keeps the time and plays
//! the runs; what becomes of a slot it must never decide itself, since [`crate::slots`] does, for a
//! preview as for a prompt that was saved.

mod cost;
mod request;
mod schema;
mod walk;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    exclusion::Holidays,
    fault::Warning,
    jitter,
    price::Catalog,
    schedule::{ScheduleType, eventbridge::Entry},
};

pub use self::{
    cost::{Forecast, ForecastBasis, Past},
    request::Request,
    schema::PreviewBody,
};

/// The most entries of a list; the totals go on.
pub const ENTRIES_MAX: usize = 1_000;
/// The most slots that may be asked for by their number.
pub const COUNT_MAX: usize = ENTRIES_MAX;
/// The longest range: a year and a month.
pub const RANGE_DAYS_MAX: i64 = 400;
/// The longest run that may be assumed: a day.
pub const RUN_S_MAX: u32 = 86_400;
/// The most tokens of a call that may be assumed.
pub const TOKENS_MAX: u64 = 10_000_000;
/// The first slots of a range, in which other prompts are looked for.
pub const CONFLICT_SLOTS_MAX: usize = 100;
/// As many other prompts in a slot's minute are told of.
pub const CONFLICT_PROMPTS_MIN: i64 = 10;
/// And counted no further than this.
pub const CONFLICT_PROMPTS_MAX: i64 = 100;

/// How long a run is taken to be when nobody says.
const RUN_S: u32 = 60;

/// What would happen; nothing is written.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = Preview)]
pub struct Simulation {
    /// What comes due in the range, earliest first, and what becomes of it. At most 1,000; `totals`
    /// count them all.
    #[schema(max_items = 1_000)]
    pub slots: Vec<SimulatedSlot>,
    /// What the schedule names and never comes due, in the order of time: times that a clock jumps
    /// over, excluded days, and the limits of the schedule. Times in a row with one reason share an
    /// entry. At most 1,000.
    #[schema(max_items = 1_000)]
    pub not_due: Vec<NotDue>,
    /// Whether one of the two lists was cut.
    pub truncated: bool,
    /// What was looked at.
    pub range: SimulatedRange,
    /// The whole range, counted.
    pub totals: Totals,
    /// How long a run is taken to be, in seconds.
    #[schema(minimum = 1, maximum = 86_400)]
    pub run_s: u32,
    /// Where `run_s` is from.
    pub run_s_from: RunLength,
    /// How much later than its slot each run is woken; null without jitter.
    #[schema(required)]
    pub jitter: Option<JitterTold>,
    /// What the runs of the range would cost; null unless a model or a prompt was named.
    #[schema(required)]
    pub cost: Option<Forecast>,
    /// Minutes of the first 100 slots for which ten or more other active prompts wait.
    #[schema(max_items = 100)]
    pub conflicts: Vec<Conflict>,
    /// The EventBridge Scheduler entries: none for a manual schedule, at most two.
    #[schema(max_items = 2)]
    pub eventbridge: Vec<Entry>,
    /// The schedule in plain English, with what is excluded and the jitter.
    pub description: String,
    /// What its author may not expect.
    pub warnings: Vec<Warning>,
}

/// What comes due, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SimulatedSlot {
    /// The slot in UTC, a whole minute; the first one, where the entry stands for several.
    pub scheduled_for: DateTime<Utc>,
    /// The same instant on the schedule's own clock, with its offset.
    #[schema(format = DateTime, example = "2026-01-02T09:00:00+00:00")]
    pub local: String,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Why it does not just run: a stable word, such as `overlap`, `replaced`, `max_runs`, `downtime`,
    /// `too_late` or `dst_gap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub reason: Option<&'static str>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub detail: Option<String>,
    /// When it starts, where that is later than the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub starts_at: Option<DateTime<Utc>>,
    /// The last slot that the entry stands for, where they are several: missed ones share one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub scheduled_until: Option<DateTime<Utc>>,
    /// How many slots the entry stands for.
    #[schema(minimum = 1)]
    pub slots_count: u32,
}

/// What becomes of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It runs when it is due.
    Run,
    /// It runs later, at `starts_at`.
    Wait,
    /// It does not run, and is recorded as skipped.
    Skipped,
    /// It was found too late, does not run, and is recorded as missed.
    Missed,
}

/// Times that a schedule names and that never come due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NotDue {
    /// The local time, as the schedule names it: it may not exist. The first one of several.
    #[schema(value_type = String, example = "2026-03-29T01:30:00")]
    pub local: NaiveDateTime,
    /// The last one of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub local_until: Option<NaiveDateTime>,
    /// How many in a row; 0 for a limit itself.
    #[schema(minimum = 0)]
    pub slots_count: u32,
    /// Why.
    pub reason: NotDueReason,
    /// The same in words.
    pub detail: String,
}

/// Why a time never comes due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NotDueReason {
    /// The clock jumps over it, and `dst_gap` is `skip`.
    DstGap,
    /// An earlier time was shifted to the same instant, and the two are one slot.
    DstMerged,
    /// Its date is excluded.
    ExcludedDate,
    /// Its day of the week is excluded.
    ExcludedWeekday,
    /// It is a holiday of an attached calendar.
    Holiday,
    /// The prompt has had all the runs that `max_runs` allows.
    MaxRuns,
    /// The schedule begins later.
    StartAt,
    /// The schedule has ended.
    EndAt,
}

/// The range of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct SimulatedRange {
    /// Slots from this instant on, or after it where the request says `after`.
    pub from: DateTime<Utc>,
    /// And up to this one; with a count, the last time that was looked at.
    pub until: DateTime<Utc>,
}

/// The slots of a range, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Totals {
    /// Slots that come due: the sum of `run`, `skipped_overlap`, `skipped_max_runs` and `missed`.
    #[schema(minimum = 0)]
    pub due: u32,
    /// Those that run.
    #[schema(minimum = 0)]
    pub run: u32,
    /// Those among them that run later than due.
    #[schema(minimum = 0)]
    pub wait: u32,
    /// Those that another run is in the way of, or has taken the place of.
    #[schema(minimum = 0)]
    pub skipped_overlap: u32,
    /// Those that `max_runs` leaves no room for.
    #[schema(minimum = 0)]
    pub skipped_max_runs: u32,
    /// Those that are found too late.
    #[schema(minimum = 0)]
    pub missed: u32,
    /// Slots that a clock's jump moved.
    #[schema(minimum = 0)]
    pub shifted: u32,
    /// Times that never come due because a clock jumps.
    #[schema(minimum = 0)]
    pub dst_gap: u32,
    /// Times that never come due because their day is excluded.
    #[schema(minimum = 0)]
    pub excluded: u32,
    /// Times after the last run that `max_runs` allows.
    #[schema(minimum = 0)]
    pub after_max_runs: u32,
}

/// Where the length of a run is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunLength {
    /// The request's `assumed_run_s`.
    Assumed,
    /// The average of the prompt's past runs.
    PastRuns,
    /// Nobody said.
    Default,
}

/// How much later than its slot each run of a prompt is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = PreviewJitter)]
pub struct JitterTold {
    /// By less than this.
    #[schema(minimum = 1, maximum = 60)]
    pub minutes: u32,
    /// By how much at the most; null for a prompt that is yet to be made, whose id decides. An entry
    /// of EventBridge Scheduler may fire earlier in its window.
    #[schema(required, minimum = 0, maximum = 3_599)]
    pub delay_s: Option<i64>,
}

/// A slot for which many other prompts of the tenant wait too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Conflict {
    /// The slot.
    pub scheduled_for: DateTime<Utc>,
    /// The same instant on the schedule's own clock.
    #[schema(format = DateTime, example = "2026-01-02T09:00:00+00:00")]
    pub local: String,
    /// Other active prompts whose next slot it is; counted to 100.
    #[schema(minimum = 10, maximum = 100)]
    pub other_prompts: i64,
}

/// Simulates what a request asks for.
#[must_use]
pub fn run(request: &Request, holidays: &Holidays, catalog: &Catalog) -> Simulation {
    let schedule = request.spec.schedule();
    let (run_s, run_s_from) = run_length(request);
    let played = walk::play(request, holidays, run_s);
    let mut warnings = request.spec.warnings(request.span.from, holidays);
    warnings.extend(overlaps(request, &played.totals, run_s));
    if played.gave_up {
        warnings.push(Warning {
            code: "search_ended",
            detail: format!(
                "the search ended after {} times, most of which never come due; send `until` to look further",
                walk::TIMES_FOR_COUNT_MAX
            ),
        });
    }
    if played.totals.due == 0 && schedule.kind() != ScheduleType::Manual {
        warnings.push(Warning {
            code: "nothing_due",
            detail: "nothing comes due in this range; `not_due` has the times that might have"
                .to_owned(),
        });
    }
    Simulation {
        cost: cost::forecast(request, catalog, played.totals.run),
        slots: played.slots,
        not_due: played.not_due,
        truncated: played.truncated,
        range: played.range,
        totals: played.totals,
        run_s,
        run_s_from,
        jitter: jitter_of(request),
        conflicts: Vec::new(),
        eventbridge: request.spec.eventbridge(),
        description: request.spec.describe(),
        warnings,
    }
}

impl Simulation {
    /// The slots for which [`Simulation::tell_conflicts`] wants to know how many other prompts wait.
    #[must_use]
    pub fn conflict_slots(&self) -> Vec<DateTime<Utc>> {
        self.slots
            .iter()
            .take(CONFLICT_SLOTS_MAX)
            .map(|slot| slot.scheduled_for)
            .collect()
    }

    /// Adds the slots at which many other prompts are due, each with their number: from
    /// `CONFLICT_PROMPTS_MIN` on.
    pub fn tell_conflicts(&mut self, others: &[(DateTime<Utc>, i64)]) {
        let listed = |slot: DateTime<Utc>| {
            let place = self
                .slots
                .binary_search_by_key(&slot, |one| one.scheduled_for);
            place.ok().and_then(|place| self.slots.get(place))
        };
        self.conflicts = others
            .iter()
            .filter_map(|(slot, prompts)| {
                Some(Conflict {
                    scheduled_for: *slot,
                    local: listed(*slot)?.local.clone(),
                    other_prompts: *prompts,
                })
            })
            .collect();
        let Some(worst) = self.conflicts.iter().max_by_key(|one| one.other_prompts) else {
            return;
        };
        self.warnings.push(Warning {
            code: "crowded_minute",
            detail: format!(
                "{} other active prompts of the tenant are due at {}: they share its limit of runs at once; another minute, or a jitter, spreads them",
                worst.other_prompts, worst.local
            ),
        });
    }
}

fn run_length(request: &Request) -> (u32, RunLength) {
    if let Some(run_s) = request.run_s {
        return (run_s, RunLength::Assumed);
    }
    match request.past.as_ref().and_then(Past::run_s) {
        Some(run_s) => (run_s, RunLength::PastRuns),
        None => (RUN_S, RunLength::Default),
    }
}

fn jitter_of(request: &Request) -> Option<JitterTold> {
    let minutes = request.spec.jitter_minutes();
    let delay = |id| jitter::delay(id, minutes).num_seconds();
    (minutes > 0).then(|| JitterTold {
        minutes,
        delay_s: request.prompt_id.map(delay),
    })
}

fn overlaps(request: &Request, totals: &Totals, run_s: u32) -> Option<Warning> {
    let (skipped, due) = (totals.skipped_overlap, totals.due);
    let detail = match (skipped, totals.wait) {
        (0, 0) => return None,
        // They may have waited for its end.
        (0, _) if request.downtime.is_some() => return None,
        (0, wait) => format!("with runs of {run_s} s, {wait} of {due} slots have to wait"),
        (skipped, _) => format!(
            "with runs of {run_s} s, {skipped} of {due} slots are skipped because earlier runs are under way"
        ),
    };
    Some(Warning {
        code: "runs_overlap",
        detail,
    })
}

/// An instant on the clock of a zone, with its offset.
fn local(timezone: Tz, at: DateTime<Utc>) -> String {
    at.with_timezone(&timezone)
        .to_rfc3339_opts(SecondsFormat::Secs, false)
}

#[cfg(test)]
mod tests;
