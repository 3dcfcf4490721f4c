//! Which due slots of a prompt run, and what becomes of the others.
//!
//! Pure: the schedule, the clock and the runs in the way come in, a plan goes out. The caller
//! holds the prompt's row lock from the look at those runs to the writing of the plan.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    ids::RunId,
    prompt::{Misfire, Overlap},
};

/// A slot found within this time of its instant is on time, whatever the misfire policy: a
/// scheduler fires within its minute, and the sweeper looks once a minute.
pub const ON_TIME: TimeDelta = TimeDelta::seconds(120);

/// Slots looked at in one plan; what is beyond waits for the next look, a moment later.
pub const SLOTS_MAX: usize = 2_000;

/// Late slots that one plan of `run_all` may run.
pub const RUN_ALL_MAX: usize = 100;

/// Missed slots of one plan that get a row each; the rest share one.
pub const MISSED_ROWS_MAX: usize = 100;

/// What a prompt says about slots that cannot simply run.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// While a run is under way.
    pub overlap: Overlap,
    /// After downtime.
    pub misfire: Misfire,
    /// How late a slot may still run.
    pub catchup_window_s: u32,
    /// How many more runs the prompt may have; `None`: no limit.
    pub runs_left: Option<u64>,
}

/// A run that is not over.
#[derive(Debug, Clone, Copy)]
pub struct OpenRun {
    /// Which.
    pub id: RunId,
    /// Whether it still waits for a claimant.
    pub queued: bool,
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
    Run,
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

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One entry per row, oldest first.
    pub rows: Vec<Planned>,
    /// The slot to look at next. It may be due already, when a plan was full.
    pub next: Option<DateTime<Utc>>,
}

/// Plans every slot from `first` that is due at `now`. `next` gives the slot after an instant.
#[must_use]
pub fn plan(
    first: DateTime<Utc>,
    now: DateTime<Utc>,
    policy: Policy,
    open: &[OpenRun],
    next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
) -> Plan {
    let (due, following) = due_slots(first, now, next);
    let more_are_due = following.is_some_and(|slot| slot <= now);
    let mut fates = misfire(&due, now, policy, more_are_due);
    overlap(&mut fates, policy.overlap, open);
    limit(&mut fates, policy.runs_left);
    Plan {
        rows: fold_missed(fates),
        next: following,
    }
}

fn due_slots(
    first: DateTime<Utc>,
    now: DateTime<Utc>,
    next: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
) -> (Vec<DateTime<Utc>>, Option<DateTime<Utc>>) {
    let mut due = Vec::new();
    let mut slot = Some(first);
    while let Some(at) = slot.filter(|at| *at <= now) {
        if due.len() == SLOTS_MAX {
            break;
        }
        due.push(at);
        slot = next(at);
    }
    (due, slot)
}

fn misfire(
    due: &[DateTime<Utc>],
    now: DateTime<Utc>,
    policy: Policy,
    more_are_due: bool,
) -> Vec<Planned> {
    let window = TimeDelta::seconds(policy.catchup_window_s.into()).max(ON_TIME);
    let on_time = |slot: &DateTime<Utc>| now - *slot <= ON_TIME;
    let eligible = |slot: &DateTime<Utc>| now - *slot <= window;
    let late = due.iter().filter(|slot| eligible(slot) && !on_time(slot));
    let late_count = late.count();
    let newer_exists = more_are_due || due.last().is_some_and(on_time);
    let mut late_index = 0;
    due.iter()
        .map(|slot| {
            let missed = |reason| Fate::Missed {
                reason,
                count: 1,
                until: *slot,
            };
            let fate = if on_time(slot) {
                Fate::Run
            } else if !eligible(slot) {
                missed("too_late")
            } else {
                late_index += 1;
                let newer_late = late_count - late_index;
                match policy.misfire {
                    Misfire::Skip => missed("misfire_skip"),
                    Misfire::RunLatest if newer_exists || newer_late > 0 => missed("superseded"),
                    Misfire::RunAll if newer_late >= RUN_ALL_MAX => missed("too_many"),
                    Misfire::RunLatest | Misfire::RunAll => Fate::Run,
                }
            };
            Planned {
                scheduled_for: *slot,
                fate,
            }
        })
        .collect()
}

/// Runs planned together do not stand in each other's way: they wait for one another.
fn overlap(fates: &mut [Planned], policy: Overlap, open: &[OpenRun]) {
    let Some(in_the_way) = open.iter().find(|run| !run.queued).or(open.first()) else {
        return;
    };
    let mut room = match policy {
        Overlap::AllowAll => return,
        Overlap::Skip => 0,
        Overlap::BufferOne => usize::from(open.iter().all(|run| !run.queued)),
    };
    for planned in fates.iter_mut().filter(|planned| planned.fate == Fate::Run) {
        if room > 0 {
            room -= 1;
        } else {
            planned.fate = Fate::Overlapped { by: in_the_way.id };
        }
    }
}

/// Runs that wait already count, although they may yet be cancelled: hence a row that says so.
fn limit(fates: &mut [Planned], runs_left: Option<u64>) {
    let Some(mut left) = runs_left else { return };
    for planned in fates.iter_mut().filter(|planned| planned.fate == Fate::Run) {
        if left == 0 {
            planned.fate = Fate::OverLimit;
        } else {
            left -= 1;
        }
    }
}

/// The oldest missed slots get a row each; what is over the bound shares one row.
fn fold_missed(fates: Vec<Planned>) -> Vec<Planned> {
    let mut rows = Vec::with_capacity(fates.len().min(2 * MISSED_ROWS_MAX));
    let mut missed_rows = 0;
    let mut shared: Option<usize> = None;
    for planned in fates {
        if !matches!(planned.fate, Fate::Missed { .. }) {
            rows.push(planned);
            continue;
        }
        if missed_rows < MISSED_ROWS_MAX {
            missed_rows += 1;
            rows.push(planned);
        } else if let Some(Fate::Missed { count, until, .. }) = shared
            .and_then(|index: usize| rows.get_mut(index))
            .map(|row| &mut row.fate)
        {
            *count += 1;
            *until = planned.scheduled_for;
        } else {
            shared = Some(rows.len());
            rows.push(planned);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minute(n: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600 + n * 60, 0).unwrap()
    }

    fn every_minute(after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        Some(after + TimeDelta::minutes(1))
    }

    fn policy(misfire: Misfire) -> Policy {
        Policy {
            overlap: Overlap::Skip,
            misfire,
            catchup_window_s: 900,
            runs_left: None,
        }
    }

    fn open(queued: bool) -> OpenRun {
        OpenRun {
            id: RunId::new(),
            queued,
        }
    }

    fn count(plan: &Plan, wanted: &str) -> i32 {
        plan.rows
            .iter()
            .map(|row| match (&row.fate, wanted) {
                (Fate::Run, "run") | (Fate::Overlapped { .. }, "overlap") => 1,
                (Fate::Missed { reason, count, .. }, wanted) if *reason == wanted => *count,
                _ => 0,
            })
            .sum()
    }

    #[test]
    fn a_slot_on_time_runs_and_the_next_one_follows() {
        let plan = plan(
            minute(0),
            minute(0),
            policy(Misfire::Skip),
            &[],
            every_minute,
        );
        assert_eq!(
            plan.rows,
            [Planned {
                scheduled_for: minute(0),
                fate: Fate::Run
            }]
        );
        assert_eq!(plan.next, Some(minute(1)));
    }

    #[test]
    fn a_short_restart_loses_nothing() {
        let plan = plan(
            minute(0),
            minute(2),
            policy(Misfire::Skip),
            &[],
            every_minute,
        );
        assert_eq!(count(&plan, "run"), 3);
        assert_eq!(plan.next, Some(minute(3)));
    }

    #[test]
    fn an_hour_of_downtime_never_bursts() {
        let latest = plan(
            minute(0),
            minute(60),
            policy(Misfire::RunLatest),
            &[],
            every_minute,
        );
        assert_eq!(count(&latest, "too_late"), 45);
        assert_eq!(count(&latest, "superseded"), 13);
        assert_eq!(count(&latest, "run"), 3);

        let all = plan(
            minute(0),
            minute(60),
            policy(Misfire::RunAll),
            &[],
            every_minute,
        );
        assert_eq!(count(&all, "too_late"), 45);
        assert_eq!(count(&all, "run"), 16);

        let none = plan(
            minute(0),
            minute(60),
            policy(Misfire::Skip),
            &[],
            every_minute,
        );
        assert_eq!(count(&none, "misfire_skip"), 13);
        assert_eq!(count(&none, "run"), 3);
    }

    #[test]
    fn the_latest_late_slot_runs_when_none_is_on_time() {
        let hourly = |after: DateTime<Utc>| Some(after + TimeDelta::minutes(5));
        let plan = plan(
            minute(0),
            minute(13),
            policy(Misfire::RunLatest),
            &[],
            hourly,
        );
        let runs: Vec<_> = plan
            .rows
            .iter()
            .filter(|row| row.fate == Fate::Run)
            .map(|row| row.scheduled_for)
            .collect();
        assert_eq!(runs, [minute(10)]);
        assert_eq!(count(&plan, "superseded"), 2);
    }

    #[test]
    fn a_month_of_downtime_shares_a_row() {
        let now = minute(43_200);
        let mut first = Some(minute(0));
        let (mut rows, mut missed, mut runs) = (0, 0, 0);
        while let Some(slot) = first.filter(|slot| *slot <= now) {
            let plan = plan(slot, now, policy(Misfire::RunLatest), &[], every_minute);
            rows += plan.rows.len();
            missed += count(&plan, "too_late") + count(&plan, "superseded");
            runs += count(&plan, "run");
            first = plan.next;
        }
        assert_eq!((missed, runs), (43_198, 3));
        assert!(rows <= 22 * (MISSED_ROWS_MAX + 4), "{rows} rows");
    }

    #[test]
    fn a_run_under_way_is_named() {
        let running = open(false);
        let skip = plan(
            minute(0),
            minute(0),
            policy(Misfire::Skip),
            &[running],
            every_minute,
        );
        assert_eq!(skip.rows[0].fate, Fate::Overlapped { by: running.id });

        let mut buffer = policy(Misfire::Skip);
        buffer.overlap = Overlap::BufferOne;
        let one = plan(minute(0), minute(1), buffer, &[running], every_minute);
        assert_eq!((count(&one, "run"), count(&one, "overlap")), (1, 1));
        let full = plan(
            minute(0),
            minute(0),
            buffer,
            &[running, open(true)],
            every_minute,
        );
        assert_eq!(count(&full, "run"), 0);

        let mut all = policy(Misfire::Skip);
        all.overlap = Overlap::AllowAll;
        let both = plan(minute(0), minute(1), all, &[running], every_minute);
        assert_eq!(count(&both, "run"), 2);
    }

    #[test]
    fn the_last_run_is_exact() {
        let mut limited = policy(Misfire::RunAll);
        limited.runs_left = Some(2);
        let plan = plan(minute(0), minute(2), limited, &[], every_minute);
        let fates: Vec<_> = plan.rows.into_iter().map(|row| row.fate).collect();
        assert_eq!(fates, [Fate::Run, Fate::Run, Fate::OverLimit]);
    }

    proptest! {
        #[test]
        fn every_due_slot_has_one_fate(
            downtime in 0i64..5_000,
            step in 1i64..90,
            window in 0u32..100_000,
            misfire in prop_oneof![Just(Misfire::Skip), Just(Misfire::RunLatest), Just(Misfire::RunAll)],
            running: bool,
        ) {
            let next = |after: DateTime<Utc>| Some(after + TimeDelta::minutes(step));
            let open: Vec<OpenRun> = running.then(|| open(false)).into_iter().collect();
            let mut given = policy(misfire);
            given.catchup_window_s = window;
            let now = minute(downtime);
            let mut slots = 0i64;
            let mut first = Some(minute(0));
            while let Some(slot) = first.filter(|slot| *slot <= now) {
                let plan = plan(slot, now, given, &open, next);
                for row in &plan.rows {
                    slots += match row.fate {
                        Fate::Missed { count, .. } => i64::from(count),
                        Fate::Run | Fate::OverLimit | Fate::Overlapped { .. } => 1,
                    };
                }
                prop_assert!(plan.rows.windows(2).all(|pair| pair[0].scheduled_for < pair[1].scheduled_for));
                first = plan.next;
            }
            prop_assert_eq!(slots, downtime / step + 1);
        }
    }
}
