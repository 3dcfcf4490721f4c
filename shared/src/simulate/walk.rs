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
    ids::{PromptId, RunId},
    schedule::{Occurrence, OccurrenceKind},
    slots::{self, Extension, Fate, Look, OpenRuns, Plan, Planned, Policy, SharedRow},
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
    /// Without the runs that are left.
    policy: Policy,
    run: TimeDelta,
    /// Runs that may still be claimed.
    claims_left: Option<u64>,
    /// When the last of them began.
    completed_at: Option<DateTime<Utc>>,
    /// The last instant of the range, and the same on the schedule's clock.
    end: Option<(DateTime<Utc>, NaiveDateTime)>,
    /// The downtime, until it is over.
    downtime: Option<Downtime>,
    /// Its slots, which nobody has looked at.
    unseen: Vec<Due>,
    /// How far the runs are played.
    now: DateTime<Utc>,
    /// Earliest end first, since all take equally long.
    under_way: VecDeque<UnderWay>,
    /// Earliest slot first.
    waiting: VecDeque<Waiting>,
    /// The run that ended last.
    ended: Option<UnderWay>,
    /// The newest row, where it stands for several missed slots, and its place in the list.
    shared: Option<(SharedRow, Option<usize>)>,
    /// What a plan says of one slot that is looked at in time.
    known: Vec<(State, Plan)>,
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

#[derive(Clone, Copy)]
struct Waiting {
    slot: DateTime<Utc>,
    /// It begins no sooner.
    available: DateTime<Utc>,
    /// Its place in the list, if it has one.
    listed: Option<usize>,
}

/// What decides about a slot that is looked at in time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    count: u32,
    running: u32,
    waits: bool,
    is_spent: bool,
}

/// What is said of a slot: its outcome, and the reason with its words.
type Told = (Outcome, Option<(&'static str, String)>);

impl<'a> Walk<'a> {
    fn new(request: &'a Request, holidays: &'a Holidays, run_s: u32) -> Self {
        let (spec, after) = (&request.spec, request.span.after);
        let timezone = spec.schedule().timezone();
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
            policy: policy(request),
            run: TimeDelta::seconds(run_s.into()),
            claims_left: spec
                .max_runs()
                .map(|max| u64::from(max).saturating_sub(had)),
            completed_at: None,
            end,
            downtime: request.downtime,
            unseen: Vec::new(),
            now: after,
            under_way: VecDeque::new(),
            waiting: VecDeque::new(),
            ended: None,
            shared: None,
            known: Vec::new(),
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
        let looked = at + self.policy.delay;
        if self.is_after_downtime(looked) {
            self.end_downtime();
        }
        self.advance(looked);
        if self
            .completed_at
            .is_some_and(|completed_at| at > completed_at)
        {
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
        if self.is_completed() {
            self.drop_due(&[due]);
        } else if self.is_in_downtime(looked) {
            self.unseen.push(due);
        } else {
            self.look_in_time(looked, due);
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
        self.completed_at.is_some()
    }

    /// Begins what waited for the end of the downtime, and looks at everything that came due in it.
    fn end_downtime(&mut self) {
        let Some(downtime) = self.downtime else {
            return;
        };
        let unseen = std::mem::take(&mut self.unseen);
        self.advance(downtime.until);
        self.downtime = None;
        self.advance(downtime.until);
        if self.is_completed() {
            return self.drop_due(&unseen);
        }
        let (spec, holidays) = (&self.request.spec, self.holidays);
        self.look(downtime.until, &unseen, |after| {
            spec.next_slot(after, holidays)
        });
    }

    /// Looks at one slot when it is due. What its plan says depends on nothing but the runs in the way
    /// and those that are left, so that a plan is made once for each such state, and holds for all
    /// slots that meet it.
    fn look_in_time(&mut self, now: DateTime<Utc>, due: Due) {
        let (open, runs_left) = (self.open(), self.runs_left());
        let state = State {
            count: open.count,
            running: open.running,
            waits: open.waiting.is_some(),
            is_spent: runs_left == Some(0),
        };
        let known = self.known.iter().position(|(known, _)| *known == state);
        let mut plan = match known {
            Some(place) => self.known.swap_remove(place).1,
            None => {
                let look = Look {
                    first: due.at,
                    now,
                    shared: None,
                    open,
                };
                // What comes after matters to late slots alone.
                slots::plan(look, self.policy_with(runs_left), |_| None)
            }
        };
        for row in &mut plan.rows {
            row.scheduled_for = due.at;
            if let (Fate::Overlapped { by }, Some(in_the_way)) = (&mut row.fate, open.in_the_way) {
                *by = in_the_way;
            }
        }
        plan.replaced = plan.replaced.and(open.waiting);
        self.keep(&plan, now, &[due]);
        self.begin_now(plan.begins(self.policy, &open), now);
        self.known.push((state, plan));
    }

    fn policy_with(&self, runs_left: Option<u64>) -> Policy {
        Policy {
            runs_left,
            ..self.policy
        }
    }

    /// Plans what is due, as often as that takes, and begins what may begin. `beyond` gives the slot
    /// after an instant where that is none of `due`.
    fn look(
        &mut self,
        now: DateTime<Utc>,
        due: &[Due],
        beyond: impl Fn(DateTime<Utc>) -> Option<DateTime<Utc>>,
    ) {
        let behind = |after| due.get(due.partition_point(|one| one.at <= after)..);
        let next = |after| match behind(after).and_then(<[Due]>::first) {
            Some(next) => Some(next.at),
            None => beyond(after),
        };
        let mut first = due.first();
        while let Some(one) = first {
            let look = Look {
                first: one.at,
                now,
                shared: self.shared.map(|(row, _)| row),
                open: self.open(),
            };
            let policy = self.policy_with(self.runs_left());
            let plan = slots::plan(look, policy, next);
            let begins = plan.begins(policy, &look.open);
            self.keep(&plan, now, due);
            self.begin_now(begins, now);
            self.advance(now);
            let rest = plan
                .next
                .map(|next| due.partition_point(|one| one.at < next));
            let rest = rest.and_then(|rest| due.get(rest..)).unwrap_or_default();
            if self.is_completed() {
                return self.drop_due(rest);
            }
            first = rest.first();
        }
    }

    /// As the claim counts them: what waits has its run already.
    fn runs_left(&self) -> Option<u64> {
        let waiting = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.claims_left.map(|left| left.saturating_sub(waiting))
    }

    fn open(&self) -> OpenRuns {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let under_way = self.under_way.front().map(|run| run.slot);
        let waiting = self.waiting.front().map(|run| run.slot);
        OpenRuns {
            count: count(self.under_way.len() + self.waiting.len()),
            running: count(self.under_way.len()),
            in_the_way: under_way.or(waiting).map(run_id),
            waiting: self.waiting.back().map(|run| run_id(run.slot)),
        }
    }

    /// Keeps what a plan writes.
    fn keep(&mut self, plan: &Plan, now: DateTime<Utc>, due: &[Due]) {
        if let Some(extension) = &plan.extension {
            self.extend_shared(extension);
        }
        if let Some(replaced) = plan.replaced {
            self.replace(replaced);
        }
        for row in &plan.rows {
            let listed = self.settle(due, row, now);
            self.shared = match row.fate {
                Fate::Missed { count, until, .. } if count > 1 => {
                    let run_id = run_id(row.scheduled_for);
                    Some((SharedRow { run_id, until }, listed))
                }
                Fate::Missed { .. }
                | Fate::Run { .. }
                | Fate::Overlapped { .. }
                | Fate::OverLimit => None,
            };
        }
    }

    fn extend_shared(&mut self, extension: &Extension) {
        let count = u32::try_from(extension.count).unwrap_or(0);
        self.totals.due += count;
        self.totals.missed += count;
        let Some((row, listed)) = &mut self.shared else {
            return;
        };
        row.until = extension.until;
        let listed = listed.and_then(|place| self.slots.get_mut(place));
        if let Some(slot) = listed {
            slot.slots_count += count;
            slot.scheduled_until = Some(extension.until);
        }
    }

    /// Skips a run that waited: a later slot waits in its place.
    fn replace(&mut self, replaced: RunId) {
        let place = self
            .waiting
            .iter()
            .rposition(|run| run_id(run.slot) == replaced);
        let Some(run) = place.and_then(|place| self.waiting.remove(place)) else {
            return;
        };
        self.totals.run -= 1;
        self.totals.skipped_overlap += 1;
        if let Some(slot) = run.listed.and_then(|place| self.slots.get_mut(place)) {
            slot.outcome = Outcome::Skipped;
            slot.reason = Some("replaced");
            slot.detail = Some("a later slot waits in its place".to_owned());
        }
    }

    /// Records what became of a slot, or of several missed ones.
    fn settle(&mut self, due: &[Due], row: &Planned, now: DateTime<Utc>) -> Option<usize> {
        match &row.fate {
            Fate::Run { after } => {
                self.totals.due += 1;
                self.totals.run += 1;
                let listed = self.list(due, row.scheduled_for, |_| (Outcome::Run, None));
                self.waiting.push_back(Waiting {
                    slot: row.scheduled_for,
                    available: now + *after,
                    listed,
                });
                listed
            }
            Fate::Overlapped { by } => {
                self.totals.due += 1;
                self.totals.skipped_overlap += 1;
                self.list(due, row.scheduled_for, |walk| {
                    let detail = walk.in_the_way(*by);
                    (Outcome::Skipped, Some(("overlap", detail)))
                })
            }
            Fate::OverLimit => {
                self.totals.due += 1;
                self.totals.skipped_max_runs += 1;
                self.list(due, row.scheduled_for, |_| over_limit())
            }
            Fate::Missed {
                reason,
                count,
                until,
            } => {
                let count = u32::try_from(*count).unwrap_or(1);
                self.totals.due += count;
                self.totals.missed += count;
                let told = missed(reason);
                let listed = self.list(due, row.scheduled_for, |_| {
                    (Outcome::Missed, Some((*reason, told.to_owned())))
                });
                self.stand_for(listed, count, *until);
                listed
            }
        }
    }

    /// Skips what was due when the last run began that `max_runs` allows: one row for all of it.
    fn drop_due(&mut self, due: &[Due]) {
        let (Some(first), Some(last)) = (due.first(), due.last()) else {
            return;
        };
        let count = u32::try_from(due.len()).unwrap_or(u32::MAX);
        self.totals.due += count;
        self.totals.skipped_max_runs += count;
        let listed = self.list(due, first.at, |_| over_limit());
        self.stand_for(listed, count, last.at);
    }

    /// Adds a slot to the list while there is room. What is told of it is not made in vain.
    fn list(
        &mut self,
        due: &[Due],
        slot: DateTime<Utc>,
        tell: impl FnOnce(&Self) -> Told,
    ) -> Option<usize> {
        if self.slots.len() >= ENTRIES_MAX {
            self.truncated = true;
            return None;
        }
        let place = due.partition_point(|one| one.at < slot);
        let clock = due.get(place).and_then(Due::told);
        let (outcome, told) = tell(self);
        let (reason, detail) = told.or(clock).unzip();
        self.slots.push(SimulatedSlot {
            scheduled_for: slot,
            local: local(self.timezone, slot),
            outcome,
            reason,
            detail,
            starts_at: None,
            scheduled_until: None,
            slots_count: 1,
        });
        Some(self.slots.len() - 1)
    }

    fn stand_for(&mut self, listed: Option<usize>, count: u32, until: DateTime<Utc>) {
        let listed = listed.and_then(|place| self.slots.get_mut(place));
        if let Some(slot) = listed.filter(|_| count > 1) {
            slot.slots_count = count;
            slot.scheduled_until = Some(until);
        }
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
        loop {
            let ends = self.under_way.front().filter(|run| run.ends <= to).copied();
            let begins = self.next_begin().filter(|begins| *begins <= to);
            match (ends, begins) {
                (ends, Some(begins)) if ends.is_none_or(|run| begins < run.ends) => {
                    let run = self.waiting.pop_front();
                    self.now = begins;
                    run.into_iter().for_each(|run| self.begin(run));
                }
                (Some(run), _) => {
                    self.under_way.pop_front();
                    self.now = run.ends;
                    self.ended = Some(run);
                }
                (None, _) => break,
            }
        }
        self.now = self.now.max(to);
    }

    /// When the run that waits longest may begin, if the policy has room.
    fn next_begin(&self) -> Option<DateTime<Utc>> {
        let at_once = usize::try_from(self.policy.at_once()).unwrap_or(usize::MAX);
        let first = self
            .waiting
            .front()
            .filter(|_| self.under_way.len() < at_once)?;
        let begins = first.available.max(self.now);
        match self.downtime {
            Some(downtime) if downtime.from <= begins => None,
            Some(_) | None => Some(begins),
        }
    }

    /// The first run of a plan overtakes what is not available yet.
    fn begin_now(&mut self, slot: Option<DateTime<Utc>>, now: DateTime<Utc>) {
        let slot = slot.and_then(|slot| self.waiting.iter().rposition(|run| run.slot == slot));
        if let Some(run) = slot.and_then(|place| self.waiting.remove(place)) {
            self.now = now;
            self.begin(run);
        }
    }

    fn begin(&mut self, run: Waiting) {
        self.claims_left = self.claims_left.map(|left| left.saturating_sub(1));
        if self.claims_left == Some(0) {
            self.completed_at = Some(self.now);
        }
        self.under_way.push_back(UnderWay {
            slot: run.slot,
            ends: self.now + self.run,
        });
        let waits = self.now > run.slot + self.policy.delay;
        if waits {
            self.totals.wait += 1;
        }
        if let Some(place) = run.listed.filter(|_| self.now > run.slot) {
            let told = waits.then(|| self.told_of_wait());
            if let Some(slot) = self.slots.get_mut(place) {
                slot.starts_at = Some(self.now);
                if let Some((reason, detail)) = told {
                    slot.outcome = Outcome::Wait;
                    slot.reason = Some(reason);
                    slot.detail = Some(detail);
                }
            }
        }
    }

    fn told_of_wait(&self) -> (&'static str, String) {
        match self.ended.filter(|run| run.ends == self.now) {
            Some(run) => (
                "overlap",
                format!(
                    "the run of {} is under way until then",
                    self.clock(run.slot)
                ),
            ),
            None => ("downtime", "begins after the downtime".to_owned()),
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
        self.advance(DateTime::<Utc>::MAX_UTC);
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
                    "moved from {}, which the clock jumps over",
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

/// What the prompt says. Where in its jitter a prompt is woken depends on its id: one without an id is
/// taken to be woken at once.
fn policy(request: &Request) -> Policy {
    match request.prompt_id {
        Some(prompt_id) => Policy::of(&request.spec, prompt_id, None),
        None => Policy {
            delay: TimeDelta::zero(),
            ..Policy::of(&request.spec, PromptId::from(Uuid::nil()), None)
        },
    }
}

/// A run's id is its slot.
fn run_id(slot: DateTime<Utc>) -> RunId {
    RunId::from(Uuid::from_u64_pair(0, slot.timestamp().unsigned_abs()))
}

fn over_limit() -> Told {
    let detail = "the runs that max_runs allows are taken";
    (Outcome::Skipped, Some(("max_runs", detail.to_owned())))
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
            // One without a name of its own has the calendar's.
            let name = (name != calendar.as_str()).then(|| format!("{name}, "));
            let name = name.unwrap_or_default();
            return format!("{name}a holiday of the calendar {calendar}");
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
