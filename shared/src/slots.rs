//! Which due slots of a prompt run, and what becomes of the others.
//!
//! Pure: the schedule, the clock and the runs in the way come in, a plan goes out. The caller
//! holds the prompt's row lock from the look at those runs to the writing of the plan.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    ids::{PromptId, RunId},
    jitter,
    prompt::{Misfire, Overlap, PromptSpec},
};

/// A slot found within this time of its instant is on time, whatever the misfire policy: a
/// scheduler fires within its minute, and the sweeper looks once a minute.
pub const ON_TIME: TimeDelta = TimeDelta::seconds(120);

/// Slots before the catch-up window that one plan accounts for; the next look takes the others.
/// The window itself is planned as a whole.
pub const TOO_LATE_MAX: usize = 10_000;

/// Late slots that `run_all` may run after one downtime.
pub const RUN_ALL_MAX: usize = 100;

/// Missed slots of one downtime that get a row each; the rest share one.
pub const MISSED_ROWS_MAX: usize = 100;

/// The runs of a catch-up begin at least this far apart.
pub const PACE_MIN: TimeDelta = TimeDelta::seconds(1);

/// The runs of a catch-up begin at most this far apart.
pub const PACE_MAX: TimeDelta = TimeDelta::seconds(60);

/// Due slots that are counted when a change of their prompt drops them.
pub const DROPPED_MAX: i32 = 100_000;

/// What a prompt says about slots that cannot simply run.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// While a run is under way.
    pub overlap: Overlap,
    /// With `allow_all`: open runs at the most.
    pub overlap_runs_max: u32,
    /// After downtime.
    pub misfire: Misfire,
    /// How late a slot may still run.
    pub catchup_window_s: u32,
    /// A scheduler may fire a slot from its instant until so much later.
    pub jitter: TimeDelta,
    /// When in that time this prompt's slots are looked for.
    pub delay: TimeDelta,
    /// How many more runs the prompt may have; `None`: no limit.
    pub runs_left: Option<u64>,
}

impl Policy {
    /// What a prompt says, with the runs that `max_runs` leaves it.
    #[must_use]
    pub fn of(spec: &PromptSpec, prompt_id: PromptId, runs_left: Option<u64>) -> Self {
        Self {
            overlap: spec.overlap(),
            overlap_runs_max: spec.overlap_runs_max(),
            misfire: spec.misfire(),
            catchup_window_s: spec.catchup_window_s(),
            jitter: TimeDelta::minutes(spec.jitter_minutes().into()),
            delay: jitter::delay(prompt_id, spec.jitter_minutes()),
            runs_left,
        }
    }

    /// How many of the prompt's runs may be under way at once.
    #[must_use]
    pub fn at_once(&self) -> u32 {
        match self.overlap {
            Overlap::Skip | Overlap::BufferOne => 1,
            Overlap::AllowAll => self.overlap_runs_max,
        }
    }

    /// How long after its instant a slot may still run.
    fn worth_running(&self) -> TimeDelta {
        self.jitter + TimeDelta::seconds(self.catchup_window_s.into()).max(ON_TIME)
    }

    fn room(&self, open: &OpenRuns) -> usize {
        let room = self.overlap_runs_max.saturating_sub(open.count);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    fn is_on_time(&self, slot: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        now - slot <= self.jitter + ON_TIME
    }
}

/// The prompt's runs that are not over, test runs and waiting backfills apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenRuns {
    /// How many.
    pub count: u32,
    /// How many of them have a claimant.
    pub running: u32,
    /// The one that a skipped slot names: the oldest with a claimant, else the oldest.
    pub in_the_way: Option<RunId>,
    /// The run of the latest slot that waits for its first claimant.
    pub waiting: Option<RunId>,
}

/// A row that stands for several missed slots, up to the first slot that is not accounted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRow {
    /// Its id.
    pub run_id: RunId,
    /// The last of its slots.
    pub until: DateTime<Utc>,
}

/// What the plan is made from, beside the policy and the schedule.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// The first slot that is not accounted for.
    pub first: DateTime<Utc>,
    /// The clock.
    pub now: DateTime<Utc>,
    /// The newest slot row before `first`, where it stands for several missed slots: another look
    /// at the same downtime wrote it, if no slot lies between.
    pub shared: Option<SharedRow>,
    /// The runs in the way.
    pub open: OpenRuns,
}

/// What becomes of one slot, or of several missed ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The slot; the first, where the row stands for several.
    pub scheduled_for: DateTime<Utc>,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It runs.
    Run {
        /// So long after the look, at the earliest.
        after: TimeDelta,
    },
    /// Another run was in the way.
    Overlapped {
        /// Which.
        by: RunId,
    },
    /// The runs that `max_runs` allows are taken.
    OverLimit,
    /// It was found too late.
    Missed {
        /// Why: `too_late`, `misfire_skip`, `superseded` or `too_many`.
        reason: &'static str,
        /// How many slots the row stands for.
        count: i32,
        /// The last of them.
        until: DateTime<Utc>,
    },
}

impl Dropped {
    /// One slot.
    #[must_use]
    pub fn one(slot: DateTime<Utc>) -> Self {
        Self {
            first: slot,
            last: slot,
            count: 1,
        }
    }
}

impl Fate {
    fn runs(&self) -> bool {
        match self {
            Self::Run { .. } => true,
            Self::Overlapped { .. } | Self::OverLimit | Self::Missed { .. } => false,
        }
    }
}

/// More missed slots for a row that stands for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension {
    /// The row.
    pub run_id: RunId,
    /// How many more.
    pub count: i32,
    /// The last of them.
    pub until: DateTime<Utc>,
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One entry per row, oldest first.
    pub rows: Vec<Planned>,
    /// Missed slots that belong to a row of an earlier look.
    pub extension: Option<Extension>,
    /// A run that waited, and whose place the last row that runs takes.
    pub replaced: Option<RunId>,
    /// The slot to look at next.
    pub next: Option<DateTime<Utc>>,
    /// There was too much to account for: more is due, and can be looked at again at once.
    pub is_cut: bool,
}

impl Plan {
    /// Only the first slot is accounted for, by the caller: what follows it is looked at next.
    #[must_use]
    pub fn pass_over(next: Option<DateTime<Utc>>) -> Self {
        Self {
            rows: Vec::new(),
            extension: None,
            replaced: None,
            next,
            is_cut: true,
        }
    }

    /// The first slot that runs, unless all wait their turn.
    #[must_use]
    pub fn begins(&self, policy: Policy, open: &OpenRuns) -> Option<DateTime<Utc>> {
        if open.running >= policy.at_once() {
            return None;
        }
        let first = self.rows.iter().find(|row| row.fate.runs());
        first.map(|row| row.scheduled_for)
    }
}

/// Plans every slot that is due. `next` gives the slot after an instant.
#[must_use]
pub fn plan(
    look: Look,
    policy: Policy,
    next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
) -> Plan {
    let (due, following, is_cut) = due_slots(look, policy, &next);
    let mut rows = misfire(&due, look.now, policy);
    let replaced = overlap(&mut rows, policy, &look.open);
    limit(&mut rows, policy.runs_left, replaced.is_some());
    pace(&mut rows, look.now, policy, following);
    let shared = look
        .shared
        .filter(|shared| next(shared.until) == Some(look.first));
    let (rows, extension) = fold_missed(rows, shared);
    Plan {
        rows,
        extension,
        replaced,
        next: following,
        is_cut,
    }
}

/// Slots that are due and that nobody has looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The first of them.
    pub first: DateTime<Utc>,
    /// The last of them.
    pub last: DateTime<Utc>,
    /// How many.
    pub count: i32,
}

/// The slots from `first` that are due at `now`, to be dropped in one row. Beyond
/// [`DROPPED_MAX`] they are not told.
#[must_use]
pub fn dropped(
    first: DateTime<Utc>,
    now: DateTime<Utc>,
    next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
) -> Option<Dropped> {
    let mut dropped = Some(first).filter(|first| *first <= now).map(|_| Dropped {
        first,
        last: first,
        count: 1,
    })?;
    while dropped.count < DROPPED_MAX
        && let Some(slot) = next(dropped.last).filter(|slot| *slot <= now)
    {
        dropped.last = slot;
        dropped.count += 1;
    }
    Some(dropped)
}

/// The slots to account for now, the one after them, and whether that one is due as well.
///
/// A wake-up is right at any time from a slot on. The slots behind it wait for their own time, so
/// that several within the jitter do not become one burst.
fn due_slots(
    look: Look,
    policy: Policy,
    next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
) -> (Vec<DateTime<Utc>>, Option<DateTime<Utc>>, bool) {
    let worth_running = look.now - policy.worth_running();
    let mut due = Vec::new();
    let mut slot = Some(look.first).filter(|first| *first <= look.now);
    let mut following = Some(look.first);
    while let Some(at) = slot {
        if due.len() >= TOO_LATE_MAX && at < worth_running {
            return (due, following, true);
        }
        due.push(at);
        following = next(at);
        slot = following.filter(|following| *following + policy.delay <= look.now);
    }
    (due, following, false)
}

fn misfire(due: &[DateTime<Utc>], now: DateTime<Utc>, policy: Policy) -> Vec<Planned> {
    let worth_running = now - policy.worth_running();
    let is_late = |slot: DateTime<Utc>| slot >= worth_running && !policy.is_on_time(slot, now);
    let mut newer_late = due.iter().filter(|slot| is_late(**slot)).count();
    let latest = due.last().copied();
    due.iter()
        .map(|slot| {
            let missed = |reason| Fate::Missed {
                reason,
                count: 1,
                until: *slot,
            };
            let runs = Fate::Run {
                after: TimeDelta::zero(),
            };
            let fate = if *slot < worth_running {
                missed("too_late")
            } else if !is_late(*slot) {
                runs
            } else {
                newer_late -= 1;
                match policy.misfire {
                    Misfire::Skip => missed("misfire_skip"),
                    Misfire::RunLatest if latest != Some(*slot) => missed("superseded"),
                    Misfire::RunAll if newer_late >= RUN_ALL_MAX => missed("too_many"),
                    Misfire::RunLatest | Misfire::RunAll => runs,
                }
            };
            Planned {
                scheduled_for: *slot,
                fate,
            }
        })
        .collect()
}

/// Runs planned together do not stand in each other's way: they wait for one another. Gives the
/// run whose place the latest slot takes.
fn overlap(rows: &mut [Planned], policy: Policy, open: &OpenRuns) -> Option<RunId> {
    let by = open.in_the_way?;
    let runs = rows.iter().filter(|row| row.fate.runs()).count();
    let room = match policy.overlap {
        Overlap::Skip => 0..0,
        // The latest waits, whatever waited before.
        Overlap::BufferOne => runs.saturating_sub(1)..runs,
        Overlap::AllowAll => 0..policy.room(open),
    };
    for (number, row) in rows.iter_mut().filter(|row| row.fate.runs()).enumerate() {
        if !room.contains(&number) {
            row.fate = Fate::Overlapped { by };
        }
    }
    open.waiting
        .filter(|_| policy.overlap == Overlap::BufferOne && runs > 0)
}

/// Runs that wait already count, although they may yet be cancelled: hence a row that says so. One
/// that takes another's place takes no more.
fn limit(rows: &mut [Planned], runs_left: Option<u64>, replaces: bool) {
    let Some(left) = runs_left else { return };
    let mut left = left.max(u64::from(replaces));
    for row in rows.iter_mut().filter(|row| row.fate.runs()) {
        if left == 0 {
            row.fate = Fate::OverLimit;
        } else {
            left -= 1;
        }
    }
}

/// Where a late slot is caught up with, all that runs begins at even distances, oldest first, and
/// before the next slot if that is not too dense.
fn pace(
    rows: &mut [Planned],
    now: DateTime<Utc>,
    policy: Policy,
    following: Option<DateTime<Utc>>,
) {
    let running = || rows.iter().filter(|row| row.fate.runs());
    let (Ok(count), Some(oldest)) = (i32::try_from(running().count()), running().next()) else {
        return;
    };
    if policy.is_on_time(oldest.scheduled_for, now) {
        return;
    }
    let until_next = following.map_or(PACE_MAX * count, |slot| slot - now);
    let distance = TimeDelta::seconds((until_next / count).num_seconds()).clamp(PACE_MIN, PACE_MAX);
    let mut begins = TimeDelta::zero();
    for row in rows.iter_mut().filter(|row| row.fate.runs()) {
        row.fate = Fate::Run { after: begins };
        begins += distance;
    }
}

/// The oldest missed slots get a row each; what is over the bound shares one row, whether that is
/// of this look or of an earlier one.
fn fold_missed(
    planned: Vec<Planned>,
    shared: Option<SharedRow>,
) -> (Vec<Planned>, Option<Extension>) {
    let mut rows: Vec<Planned> = Vec::with_capacity(planned.len().min(2 * MISSED_ROWS_MAX));
    let mut extension = shared.map(|shared| Extension {
        run_id: shared.run_id,
        count: 0,
        until: shared.until,
    });
    let mut missed_rows = 0;
    for one in planned {
        if !matches!(one.fate, Fate::Missed { .. }) {
            rows.push(one);
        } else if let Some(extension) = &mut extension {
            extension.count += 1;
            extension.until = one.scheduled_for;
        } else if missed_rows <= MISSED_ROWS_MAX {
            missed_rows += 1;
            rows.push(one);
        } else if let Some(Planned {
            fate: Fate::Missed { count, until, .. },
            ..
        }) = rows.last_mut()
        {
            *count += 1;
            *until = one.scheduled_for;
        }
    }
    (rows, extension.filter(|extension| extension.count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(n: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600 + n * 60, 0).unwrap()
    }

    fn every(minutes: i64) -> impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>> {
        move |after| Some(after + TimeDelta::minutes(minutes))
    }

    fn policy(misfire: Misfire) -> Policy {
        Policy {
            overlap: Overlap::Skip,
            overlap_runs_max: 3,
            misfire,
            catchup_window_s: 900,
            jitter: TimeDelta::zero(),
            delay: TimeDelta::zero(),
            runs_left: None,
        }
    }

    fn overlapping(overlap: Overlap) -> Policy {
        Policy {
            overlap,
            ..policy(Misfire::RunAll)
        }
    }

    fn look(first: i64, now: i64) -> Look {
        Look {
            first: minute(first),
            now: minute(now),
            shared: None,
            open: OpenRuns::default(),
        }
    }

    fn running(count: u32) -> OpenRuns {
        OpenRuns {
            count,
            running: count,
            in_the_way: Some(RunId::new()),
            waiting: None,
        }
    }

    fn count(plan: &Plan, wanted: &str) -> i32 {
        plan.rows
            .iter()
            .map(|row| match (&row.fate, wanted) {
                (Fate::Run { .. }, "run") | (Fate::Overlapped { .. }, "overlap") => 1,
                (Fate::Missed { reason, count, .. }, wanted) if *reason == wanted => *count,
                _ => 0,
            })
            .sum()
    }

    fn runs(plan: &Plan) -> Vec<(DateTime<Utc>, i64)> {
        let rows = plan.rows.iter();
        rows.filter_map(|row| match row.fate {
            Fate::Run { after } => Some((row.scheduled_for, after.num_seconds())),
            Fate::Overlapped { .. } | Fate::OverLimit | Fate::Missed { .. } => None,
        })
        .collect()
    }

    #[test]
    fn a_slot_on_time_runs_and_the_next_one_follows() {
        let plan = plan(look(0, 0), policy(Misfire::Skip), every(1));
        assert_eq!(runs(&plan), [(minute(0), 0)]);
        assert_eq!((plan.rows.len(), plan.next), (1, Some(minute(1))));
    }

    #[test]
    fn a_short_restart_loses_nothing() {
        let plan = plan(look(0, 2), policy(Misfire::Skip), every(1));
        let now = [0, 1, 2].map(|slot| (minute(slot), 0));
        assert_eq!(runs(&plan), now);
        assert_eq!(plan.next, Some(minute(3)));
    }

    #[test]
    fn an_hour_of_downtime_never_bursts() {
        let latest = plan(look(0, 60), policy(Misfire::RunLatest), every(1));
        assert_eq!(count(&latest, "too_late"), 45);
        assert_eq!(count(&latest, "superseded"), 13);
        assert_eq!(count(&latest, "run"), 3);

        let all = plan(look(0, 60), policy(Misfire::RunAll), every(1));
        assert_eq!(count(&all, "too_late"), 45);
        // Sixteen in the minute up to the next slot.
        let paced: Vec<_> = (0..16).map(|n| (minute(45 + n), 3 * n)).collect();
        assert_eq!(runs(&all), paced);

        let none = plan(look(0, 60), policy(Misfire::Skip), every(1));
        assert_eq!(count(&none, "misfire_skip"), 13);
        assert_eq!(count(&none, "run"), 3);
    }

    #[test]
    fn a_catch_up_is_no_denser_than_a_second_and_no_wider_than_a_minute() {
        let mut week = policy(Misfire::RunAll);
        week.catchup_window_s = 604_800;
        let dense = plan(look(0, 500), week, every(1));
        assert_eq!(count(&dense, "too_many"), 398);
        let dense = runs(&dense);
        assert_eq!(dense.len(), 103);
        assert_eq!(dense[102], (minute(500), 102));
        let wide = runs(&plan(look(0, 3_000), week, every(1_440)));
        let days = [0, 1, 2].map(|day| (minute(1_440 * day), 60 * day));
        assert_eq!(wide, days);
    }

    #[test]
    fn the_latest_late_slot_runs_when_none_is_on_time() {
        let plan = plan(look(0, 13), policy(Misfire::RunLatest), every(5));
        assert_eq!(runs(&plan), [(minute(10), 0)]);
        assert_eq!(count(&plan, "superseded"), 2);
    }

    #[test]
    fn a_month_of_downtime_has_a_hundred_rows_and_one() {
        let now = 43_200;
        let (mut first, mut shared) = (Some(minute(0)), None);
        let (mut rows, mut missed, mut ran, mut looks) = (0, 0, 0, 0);
        while let Some(slot) = first.filter(|slot| *slot <= minute(now)) {
            let mut look = look(0, now);
            (look.first, look.shared) = (slot, shared);
            let plan = plan(look, policy(Misfire::RunLatest), every(1));
            let of_rows = count(&plan, "too_late") + count(&plan, "superseded");
            missed += of_rows + plan.extension.map_or(0, |extension| extension.count);
            ran += count(&plan, "run");
            rows += plan.rows.len();
            looks += 1;
            assert_eq!(plan.is_cut, plan.next.unwrap() <= minute(now));
            let until = plan.extension.map(|extension| extension.until);
            let last = plan.rows.last().map(|row| match row.fate {
                Fate::Missed { until, .. } => until,
                Fate::Run { .. } | Fate::Overlapped { .. } | Fate::OverLimit => row.scheduled_for,
            });
            let until = until.or(last).unwrap();
            let run_id = shared.map_or_else(RunId::new, |shared: SharedRow| shared.run_id);
            assert!(
                plan.extension
                    .is_none_or(|extension| extension.run_id == run_id)
            );
            shared = Some(SharedRow { run_id, until });
            first = plan.next;
        }
        assert_eq!((missed, ran, rows, looks), (43_198, 3, 104, 5));
    }

    #[test]
    fn a_row_of_another_downtime_is_not_extended() {
        let mut look = look(100, 200);
        let shared = |until| {
            Some(SharedRow {
                run_id: RunId::new(),
                until: minute(until),
            })
        };
        look.shared = shared(98);
        let own = plan(look, policy(Misfire::Skip), every(1));
        assert_eq!((own.extension, own.rows.len()), (None, 101));
        look.shared = shared(99);
        let joined = plan(look, policy(Misfire::Skip), every(1));
        let extension = joined.extension.unwrap();
        assert_eq!((extension.count, extension.until), (98, minute(197)));
        assert_eq!(joined.rows.len(), 3);
    }

    #[test]
    fn a_slot_in_the_way_of_a_run_is_skipped_and_names_it() {
        let mut look = look(0, 1);
        look.open = running(1);
        let skip = plan(look, overlapping(Overlap::Skip), every(1));
        let by = look.open.in_the_way.unwrap();
        assert!(
            skip.rows
                .iter()
                .all(|row| row.fate == Fate::Overlapped { by })
        );
        assert_eq!(skip.begins(overlapping(Overlap::Skip), &look.open), None);
    }

    #[test]
    fn of_those_that_wait_in_a_buffer_the_latest_stays() {
        let buffer = overlapping(Overlap::BufferOne);
        let mut look = look(0, 1);
        look.open = running(1);
        let empty = plan(look, buffer, every(1));
        assert_eq!(runs(&empty), [(minute(1), 0)]);
        assert_eq!((count(&empty, "overlap"), empty.replaced), (1, None));
        assert_eq!(empty.begins(buffer, &look.open), None);

        look.open.count = 2;
        look.open.waiting = Some(RunId::new());
        let full = plan(look, buffer, every(1));
        assert_eq!(runs(&full), [(minute(1), 0)]);
        assert_eq!(full.replaced, look.open.waiting);
        // The run that it replaces had a place under max_runs, and no other is needed.
        let limited = Policy {
            runs_left: Some(0),
            ..buffer
        };
        assert_eq!(plan(look, limited, every(1)), full);

        look.open = OpenRuns::default();
        let free = plan(look, buffer, every(1));
        assert_eq!(free.begins(buffer, &look.open), Some(minute(0)));
    }

    #[test]
    fn runs_at_once_have_a_bound() {
        let all = overlapping(Overlap::AllowAll);
        let mut look = look(0, 2);
        for (open, fit) in [(0, 3), (1, 2), (2, 1), (3, 0), (4, 0)] {
            look.open = if open == 0 {
                OpenRuns::default()
            } else {
                running(open)
            };
            let plan = plan(look, all, every(1));
            assert_eq!(
                (count(&plan, "run"), count(&plan, "overlap")),
                (fit, 3 - fit)
            );
            let begins = (open < 3).then(|| minute(0));
            assert_eq!(plan.begins(all, &look.open), begins);
        }
    }

    #[test]
    fn the_last_run_is_exact() {
        let limited = Policy {
            runs_left: Some(2),
            ..policy(Misfire::RunAll)
        };
        let plan = plan(look(0, 2), limited, every(1));
        assert_eq!(runs(&plan).len(), 2);
        assert_eq!(plan.rows[2].fate, Fate::OverLimit);
    }

    #[test]
    fn being_late_counts_from_the_end_of_the_jitter() {
        let jittered = Policy {
            jitter: TimeDelta::minutes(10),
            delay: TimeDelta::minutes(7),
            ..policy(Misfire::Skip)
        };
        for (now, missed) in [(0, 0), (12, 0), (13, 1)] {
            let plan = plan(look(0, now), jittered, every(60));
            assert_eq!(count(&plan, "misfire_skip"), missed, "after {now} min");
        }
        let too_late = plan(look(0, 26), jittered, every(60));
        assert_eq!(count(&too_late, "too_late"), 1);
        // The slot behind has a time of its own.
        let early = plan(look(0, 62), jittered, every(60));
        assert_eq!((early.rows.len(), early.next), (1, Some(minute(60))));
        let both = plan(look(0, 67), jittered, every(60));
        assert_eq!((both.rows.len(), both.next), (2, Some(minute(120))));
    }

    #[test]
    fn dropped_slots_are_counted_to_the_last() {
        let until = |end: i64| dropped(minute(3), minute(end), every(5));
        assert_eq!(until(2), None);
        let some = until(20).unwrap();
        assert_eq!(
            (some.first, some.last, some.count),
            (minute(3), minute(18), 4)
        );
        assert_eq!(until(10_000_000).unwrap().count, DROPPED_MAX);
    }
}
