//! The walk along a schedule: each time that it names, in order, and the runs that follow.

use std::collections::VecDeque;

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use uuid::Uuid;

use super::{
    ENTRIES_MAX, NotDue, NotDueReason, Outcome, Request, SimulatedRange, SimulatedSlot, Totals,
    local, request::Downtime,
};
use crate::{
    exclusion::{Excluded, Holidays},
    ids::RunId,
    prompt::Overlap,
    schedule::{Occurrence, OccurrenceKind},
    slots::{self, Fate, OpenRun, Planned, Policy},
};

/// Times looked at in a range with an end: more than the minutes of the longest one.
const TIMES_MAX: usize = 600_000;
/// Times looked at for a number of slots, however many of them are excluded.
const TIMES_FOR_COUNT_MAX: usize = 100_000;

/// What came of a walk.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) slots: Vec<SimulatedSlot>,
    pub(super) not_due: Vec<NotDue>,
    pub(super) truncated: bool,
    pub(super) range: SimulatedRange,
    pub(super) totals: Totals,
}

/// Walks from the first time of the range to its last.
pub(super) fn play(request: &Request, holidays: &Holidays, run_s: u32) -> Played {
    let schedule = request.spec.schedule();
    let mut walk = Walk::new(request, holidays, run_s);
    walk.tell_start();
    let times_max = match request.span.until {
        Some(_) => TIMES_MAX,
        None => TIMES_FOR_COUNT_MAX,
    };
    let mut times = schedule.occurrences(request.span.after).take(times_max);
    let ended = loop {
        match times.next() {
            None => break true,
            Some(time) if walk.is_over(&time) => break false,
            Some(time) => walk.take(&time),
        }
    };
    walk.finish(ended)
}

struct Walk<'a> {
    request: &'a Request,
    holidays: &'a Holidays,
    timezone: Tz,
    run: TimeDelta,
    /// Runs that may still be claimed.
    claims_left: Option<u64>,
    /// The last instant of the range, and the same on the schedule's clock.
    end: Option<(DateTime<Utc>, NaiveDateTime)>,
    /// Earliest end first, since all take equally long.
    under_way: VecDeque<UnderWay>,
    waiting: VecDeque<Waiting>,
    /// The downtime, until it is over.
    downtime: Option<Downtime>,
    /// Its slots, which nobody has looked at.
    unseen: Vec<Due>,
    last_slot: Option<DateTime<Utc>>,
    due: usize,
    /// The date judged last.
    judged: Option<(NaiveDate, Option<Excluded>)>,
    /// What the time before this one never came due for, and whether it is in the list.
    never: Option<(NotDueReason, Option<Excluded>, bool)>,
    slots: Vec<SimulatedSlot>,
    not_due: Vec<NotDue>,
    truncated: bool,
    totals: Totals,
}

/// A slot, and what the clocks did to it.
#[derive(Clone, Copy)]
struct Due {
    at: DateTime<Utc>,
    kind: OccurrenceKind,
    wall: NaiveDateTime,
}

#[derive(Clone, Copy)]
struct UnderWay {
    slot: DateTime<Utc>,
    ends: DateTime<Utc>,
}

struct Waiting {
    slot: DateTime<Utc>,
    /// Its place in the list, if it has one.
    listed: Option<usize>,
}

impl<'a> Walk<'a> {
    fn new(request: &'a Request, holidays: &'a Holidays, run_s: u32) -> Self {
        let timezone = request.spec.schedule().timezone();
        let end = request.span.until.map(|until| {
            let downtime = request.downtime.filter(|downtime| downtime.from <= until);
            // Its slots are decided at its end, which therefore belongs to the range.
            let end = downtime.map_or(until, |downtime| downtime.until.max(until));
            (end, end.with_timezone(&timezone).naive_local())
        });
        let had = request.past.as_ref().map_or(0, |past| past.run_count);
        Self {
            request,
            holidays,
            timezone,
            run: TimeDelta::seconds(run_s.into()),
            claims_left: request
                .spec
                .max_runs()
                .map(|max| u64::from(max).saturating_sub(had)),
            end,
            under_way: VecDeque::new(),
            waiting: VecDeque::new(),
            downtime: request.downtime,
            unseen: Vec::new(),
            last_slot: None,
            due: 0,
            judged: None,
            never: None,
            slots: Vec::new(),
            not_due: Vec::new(),
            truncated: false,
            totals: Totals::default(),
        }
    }

    /// Whether the walk ends before this time.
    fn is_over(&self, time: &Occurrence) -> bool {
        let beyond = self.end.is_some_and(|(end, end_local)| match time.at {
            Some(at) => at > end,
            None => time.wall > end_local,
        });
        let enough = self
            .request
            .span
            .count
            .is_some_and(|count| self.due >= count);
        let seen = self.unseen.is_empty() || time.at.is_some_and(|at| self.is_after_downtime(at));
        beyond || (enough && seen)
    }

    fn take(&mut self, time: &Occurrence) {
        let Some(at) = time.at else {
            return self.take_gap(time);
        };
        if self.is_after_downtime(at) {
            self.end_downtime();
        }
        self.advance(at);
        if self.is_completed() {
            return self.take_over_limit(time.wall);
        }
        let date = match time.kind {
            OccurrenceKind::Shifted => at.with_timezone(&self.timezone).date_naive(),
            OccurrenceKind::Normal
            | OccurrenceKind::Merged
            | OccurrenceKind::SkippedGap
            | OccurrenceKind::FoldFirstPass => time.wall.date(),
        };
        if let Some(why) = self.excluded(date) {
            self.totals.excluded += 1;
            return self.tell_never(time.wall, reason(&why), Some(why));
        }
        self.never = None;
        self.due += 1;
        self.last_slot = Some(at);
        if time.kind == OccurrenceKind::Shifted {
            self.totals.shifted += 1;
        }
        let due = Due {
            at,
            kind: time.kind,
            wall: time.wall,
        };
        if self.is_in_downtime(at) {
            self.unseen.push(due);
        } else {
            self.look(at, &[due]);
        }
    }

    fn take_gap(&mut self, time: &Occurrence) {
        if self.is_completed() {
            return self.take_over_limit(time.wall);
        }
        self.totals.dst_gap += 1;
        let reason = match time.kind {
            OccurrenceKind::Merged => NotDueReason::DstMerged,
            OccurrenceKind::SkippedGap
            | OccurrenceKind::Normal
            | OccurrenceKind::Shifted
            | OccurrenceKind::FoldFirstPass => NotDueReason::DstGap,
        };
        self.tell_never(time.wall, reason, None);
    }

    fn take_over_limit(&mut self, wall: NaiveDateTime) {
        self.totals.after_max_runs += 1;
        self.tell_never(wall, NotDueReason::MaxRuns, None);
        if self.request.span.until.is_none() {
            // The count will not be reached any more.
            self.due = usize::MAX;
        }
    }

    fn excluded(&mut self, date: NaiveDate) -> Option<Excluded> {
        if self.judged.as_ref().is_none_or(|(last, _)| *last != date) {
            let why = self.request.spec.exclusions().why(date, self.holidays);
            self.judged = Some((date, why));
        }
        self.judged.as_ref().and_then(|(_, why)| why.clone())
    }

    fn is_in_downtime(&self, at: DateTime<Utc>) -> bool {
        self.downtime
            .is_some_and(|downtime| downtime.from <= at && at <= downtime.until)
    }

    fn is_after_downtime(&self, at: DateTime<Utc>) -> bool {
        self.downtime.is_some_and(|downtime| at > downtime.until)
    }

    fn is_completed(&self) -> bool {
        self.claims_left == Some(0)
    }

    /// Begins what waited for the end of the downtime, and looks at everything that came due in it.
    fn end_downtime(&mut self) {
        let Some(downtime) = self.downtime else {
            return;
        };
        self.advance(downtime.until);
        self.downtime = None;
        let unseen = std::mem::take(&mut self.unseen);
        self.start(downtime.until, None);
        self.look(downtime.until, &unseen);
    }

    /// Plans what is due, as often as that takes, and starts what may start.
    fn look(&mut self, now: DateTime<Utc>, due: &[Due]) {
        let mut rest = due;
        while let Some(first) = rest.first() {
            let spec = &self.request.spec;
            let policy = Policy {
                overlap: spec.overlap(),
                misfire: spec.misfire(),
                catchup_window_s: spec.catchup_window_s(),
                runs_left: self.runs_left(),
            };
            let plan = slots::plan(first.at, now, policy, &self.open(), |after| {
                let next = due.partition_point(|one| one.at <= after);
                due.get(next).map(|one| one.at)
            });
            for row in plan.rows {
                self.settle(due, &row);
            }
            self.start(now, None);
            rest = match plan.next {
                Some(next) => due
                    .get(due.partition_point(|one| one.at < next)..)
                    .unwrap_or_default(),
                None => &[],
            };
            if self.is_completed() {
                return rest.iter().for_each(|one| self.take_over_limit(one.wall));
            }
        }
    }

    /// As the claim counts them: what waits has its run already.
    fn runs_left(&self) -> Option<u64> {
        let waiting = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.claims_left.map(|left| left.saturating_sub(waiting))
    }

    fn open(&self) -> Vec<OpenRun> {
        let under_way = self.under_way.iter().map(|run| (run.slot, false));
        let waiting = self.waiting.iter().map(|run| (run.slot, true));
        under_way
            .chain(waiting)
            .map(|(slot, queued)| OpenRun {
                id: run_id(slot),
                queued,
            })
            .collect()
    }

    /// Records what became of a slot, or of several missed ones.
    fn settle(&mut self, due: &[Due], row: &Planned) {
        match &row.fate {
            Fate::Run => {
                self.totals.due += 1;
                self.totals.run += 1;
                let listed = self.list(due, row, |_| (Outcome::Run, None));
                self.waiting.push_back(Waiting {
                    slot: row.scheduled_for,
                    listed,
                });
            }
            Fate::Overlapped { by } => {
                self.totals.due += 1;
                self.totals.skipped_overlap += 1;
                self.list(due, row, |walk| {
                    let detail = walk.in_the_way(*by);
                    (Outcome::Skipped, Some(("overlap", detail)))
                });
            }
            Fate::OverLimit => {
                self.totals.due += 1;
                self.totals.skipped_max_runs += 1;
                let detail = "the runs that max_runs allows are taken";
                self.list(due, row, |_| {
                    (Outcome::Skipped, Some(("max_runs", detail.to_owned())))
                });
            }
            Fate::Missed { reason, count, .. } => {
                let count = u32::try_from(*count).unwrap_or(1);
                self.totals.due += count;
                self.totals.missed += count;
                self.list(due, row, |_| {
                    (Outcome::Missed, Some((*reason, missed(reason).to_owned())))
                });
            }
        }
    }

    /// Adds a slot to the list while there is room. What is told of it is not made in vain.
    fn list(
        &mut self,
        due: &[Due],
        row: &Planned,
        tell: impl FnOnce(&Self) -> (Outcome, Option<(&'static str, String)>),
    ) -> Option<usize> {
        if self.slots.len() >= ENTRIES_MAX {
            self.truncated = true;
            return None;
        }
        let place = due.partition_point(|one| one.at < row.scheduled_for);
        let clock = due.get(place).and_then(Due::told);
        let (outcome, told) = tell(self);
        let (reason, detail) = told.or(clock).unzip();
        let (slots_count, scheduled_until) = match &row.fate {
            Fate::Missed { count, until, .. } => (
                u32::try_from(*count).unwrap_or(1),
                (*count > 1).then_some(*until),
            ),
            Fate::Run | Fate::Overlapped { .. } | Fate::OverLimit => (1, None),
        };
        self.slots.push(SimulatedSlot {
            scheduled_for: row.scheduled_for,
            local: local(self.timezone, row.scheduled_for),
            outcome,
            reason,
            detail,
            starts_at: None,
            scheduled_until,
            slots_count,
        });
        Some(self.slots.len() - 1)
    }

    fn in_the_way(&self, by: RunId) -> String {
        let under_way = self.under_way.iter().find(|run| run_id(run.slot) == by);
        match under_way {
            Some(run) => format!(
                "the run of {} is under way until {}",
                self.clock(run.slot),
                self.clock(run.ends)
            ),
            None => "a run that waits is in the way".to_owned(),
        }
    }

    /// Plays the runs up to an instant. While nothing works, none begins.
    fn advance(&mut self, to: DateTime<Utc>) {
        let down = self.downtime.map(|downtime| downtime.from);
        while let Some(first) = self.under_way.front().copied()
            && first.ends <= to
        {
            self.under_way.pop_front();
            if down.is_none_or(|down| first.ends < down) {
                self.start(first.ends, Some(first.slot));
            }
        }
    }

    /// Starts what waits, as far as the policy has room. `freed` is the slot whose run just ended.
    fn start(&mut self, now: DateTime<Utc>, freed: Option<DateTime<Utc>>) {
        while self.has_room()
            && let Some(run) = self.waiting.pop_front()
        {
            self.claims_left = self.claims_left.map(|left| left.saturating_sub(1));
            self.under_way.push_back(UnderWay {
                slot: run.slot,
                ends: now + self.run,
            });
            if now > run.slot {
                self.totals.wait += 1;
                self.tell_wait(&run, now, freed);
            }
        }
    }

    fn has_room(&self) -> bool {
        match self.request.spec.overlap() {
            Overlap::Skip | Overlap::BufferOne => self.under_way.is_empty(),
            Overlap::AllowAll => true,
        }
    }

    fn tell_wait(&mut self, run: &Waiting, now: DateTime<Utc>, freed: Option<DateTime<Utc>>) {
        let Some(listed) = run.listed else { return };
        let (reason, detail) = match freed {
            Some(slot) => (
                "overlap",
                format!("waits for the run of {}", self.clock(slot)),
            ),
            None => ("downtime", "found after the downtime".to_owned()),
        };
        if let Some(slot) = self.slots.get_mut(listed) {
            slot.outcome = Outcome::Wait;
            slot.starts_at = Some(now);
            slot.reason = Some(reason);
            slot.detail = Some(detail);
        }
    }

    /// Adds a time that never comes due. Times in a row with one reason share an entry.
    fn tell_never(&mut self, wall: NaiveDateTime, reason: NotDueReason, why: Option<Excluded>) {
        let is_same = self
            .never
            .as_ref()
            .is_some_and(|(last, last_why, _)| *last == reason && *last_why == why);
        if is_same {
            let listed = self.never.as_ref().is_some_and(|(.., listed)| *listed);
            if listed && let Some(entry) = self.not_due.last_mut() {
                entry.slots_count += 1;
                entry.local_until = Some(wall);
            }
            return;
        }
        let listed = self.tell_limit(wall, reason, 1, || never(reason, why.as_ref()));
        self.never = Some((reason, why, listed));
    }

    fn tell_limit(
        &mut self,
        wall: NaiveDateTime,
        reason: NotDueReason,
        slots_count: u32,
        detail: impl FnOnce() -> String,
    ) -> bool {
        let has_room = self.not_due.len() < ENTRIES_MAX;
        if has_room {
            self.not_due.push(NotDue {
                local: wall,
                local_until: None,
                slots_count,
                reason,
                detail: detail(),
            });
        } else {
            self.truncated = true;
        }
        has_room
    }

    fn tell_start(&mut self) {
        let start = self.request.spec.schedule().start_at();
        if let Some(start) = start.filter(|start| *start > self.request.span.after) {
            let wall = start.with_timezone(&self.timezone).naive_local();
            self.tell_limit(wall, NotDueReason::StartAt, 0, || {
                never(NotDueReason::StartAt, None)
            });
        }
    }

    fn tell_end(&mut self) {
        let end = self.request.spec.schedule().end_at();
        let range_end = self.end.map_or(DateTime::<Utc>::MAX_UTC, |(end, _)| end);
        if let Some(end) = end.filter(|end| *end < range_end) {
            let wall = end.with_timezone(&self.timezone).naive_local();
            self.tell_limit(wall, NotDueReason::EndAt, 0, || {
                never(NotDueReason::EndAt, None)
            });
        }
    }

    /// Ends the walk; `ended` says that the schedule itself has.
    fn finish(mut self, ended: bool) -> Played {
        self.end_downtime();
        while let Some(first) = self.under_way.front() {
            self.advance(first.ends);
        }
        if ended && !self.is_completed() {
            self.tell_end();
        }
        let after = self.request.span.after;
        let until = match (self.request.span.count, self.end) {
            (Some(count), _) if self.due >= count => self.last_slot,
            (_, Some((end, _))) => Some(end),
            (_, None) => self.last_slot,
        };
        Played {
            slots: self.slots,
            not_due: self.not_due,
            truncated: self.truncated,
            range: SimulatedRange {
                after,
                until: until.unwrap_or(after),
            },
            totals: self.totals,
        }
    }

    fn clock(&self, at: DateTime<Utc>) -> String {
        at.with_timezone(&self.timezone)
            .format("%Y-%m-%d %H:%M:%S")
            .to_string()
    }
}

impl Due {
    /// What the clocks did to it.
    fn told(&self) -> Option<(&'static str, String)> {
        match self.kind {
            OccurrenceKind::Shifted => Some((
                "dst_gap",
                format!(
                    "the clock jumps over {}: the slot moves to the jump's end",
                    self.wall.format("%H:%M")
                ),
            )),
            OccurrenceKind::FoldFirstPass => Some((
                "dst_fold",
                "this local time comes twice: the first counts".to_owned(),
            )),
            OccurrenceKind::Normal | OccurrenceKind::Merged | OccurrenceKind::SkippedGap => None,
        }
    }
}

/// A run's id is its slot.
fn run_id(slot: DateTime<Utc>) -> RunId {
    RunId::from(Uuid::from_u64_pair(0, slot.timestamp().unsigned_abs()))
}

fn missed(reason: &str) -> &'static str {
    match reason {
        "too_late" => "found later than catchup_window_s allows",
        "misfire_skip" => "found late, and misfire is skip",
        "superseded" => "found late, and a later slot runs instead",
        _ => "found late, with more others than may run",
    }
}

fn reason(why: &Excluded) -> NotDueReason {
    match why {
        Excluded::Date | Excluded::Range => NotDueReason::ExcludedDate,
        Excluded::Weekday => NotDueReason::ExcludedWeekday,
        Excluded::Holiday { .. } => NotDueReason::Holiday,
    }
}

fn never(reason: NotDueReason, why: Option<&Excluded>) -> String {
    match (reason, why) {
        (_, Some(Excluded::Holiday { calendar, name })) => {
            return format!("{name}, a holiday of the calendar {calendar}");
        }
        (_, Some(Excluded::Date)) => "the date is excluded",
        (_, Some(Excluded::Range)) => "the date lies in an excluded range",
        (_, Some(Excluded::Weekday)) => "the day of the week is excluded",
        (NotDueReason::DstMerged, None) => "the clock jumps, and one slot stands for several times",
        (NotDueReason::MaxRuns, None) => "the prompt has had all its runs, and is completed",
        (NotDueReason::StartAt, None) => "nothing is due before the start",
        (NotDueReason::EndAt, None) => "nothing is due after the end",
        (
            NotDueReason::DstGap
            | NotDueReason::ExcludedDate
            | NotDueReason::ExcludedWeekday
            | NotDueReason::Holiday,
            None,
        ) => "the clock jumps over it",
    }
    .to_owned()
}
