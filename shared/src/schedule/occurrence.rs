//! Each local time that a schedule names, in order, and what becomes of it.
//!
//! `Schedule::next` answers when; this answers why not.

use chrono::{DateTime, NaiveDateTime, Utc};

use super::{
    LATEST, Plan, Schedule,
    form::DstGap,
    wall::{self, Resolved},
};

/// A time that a schedule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// The local time, as the schedule names it. It may not exist.
    pub wall: NaiveDateTime,
    /// The slot, if there is one.
    pub at: Option<DateTime<Utc>>,
    /// How the one became the other.
    pub kind: OccurrenceKind,
}

/// What became of a time that a schedule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OccurrenceKind {
    /// The slot is at that time.
    Normal,
    /// The clock jumps over the time: the slot is at the gap's end.
    Shifted,
    /// The time falls on the instant to which an earlier one was shifted: the two are one slot.
    Merged,
    /// The clock jumps over the time: there is no slot.
    SkippedGap,
    /// The time comes twice: the slot is its first pass, and there is none in the second.
    FoldFirstPass,
}

/// The occurrences of a schedule; see [`Schedule::occurrences`].
#[derive(Debug, Clone)]
pub struct Occurrences<'a> {
    schedule: &'a Schedule,
    cursor: Cursor,
}

#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// The local time after which to look, and the last slot that was given.
    Wall(NaiveDateTime, Option<DateTime<Utc>>),
    /// The instant after which to look, for what follows no wall clock.
    Instant(DateTime<Utc>),
    End,
}

impl<'a> Occurrences<'a> {
    pub(super) fn new(schedule: &'a Schedule, after: DateTime<Utc>) -> Self {
        let cursor = match (schedule.search_start(after), &schedule.plan) {
            (None, _) | (_, Plan::Never) => Cursor::End,
            (Some(after), Plan::Wall { timezone, .. }) if schedule.dst_gap().is_some() => {
                Cursor::Wall(wall::search_from(*timezone, after), None)
            }
            (Some(after), Plan::Wall { .. } | Plan::Rate { .. } | Plan::At(_)) => {
                Cursor::Instant(after)
            }
        };
        Self { schedule, cursor }
    }

    fn by_instant(&mut self, after: DateTime<Utc>) -> Option<Occurrence> {
        let at = self.schedule.next(after)?;
        self.cursor = Cursor::Instant(at);
        Some(Occurrence {
            wall: wall::local(self.schedule.timezone(), at),
            at: Some(at),
            kind: OccurrenceKind::Normal,
        })
    }

    fn by_wall(
        &mut self,
        after: NaiveDateTime,
        given: Option<DateTime<Utc>>,
    ) -> Option<Occurrence> {
        let Plan::Wall {
            arms,
            timezone,
            dst_gap,
            ..
        } = &self.schedule.plan
        else {
            return None;
        };
        let wall = arms.iter().filter_map(|arm| arm.next_wall(after)).min()?;
        let (instant, kind) = match (wall::resolve(*timezone, wall), dst_gap) {
            (Resolved::Once(at), _) => (at, OccurrenceKind::Normal),
            (Resolved::FirstPass(at), _) => (at, OccurrenceKind::FoldFirstPass),
            (Resolved::Gap { ends }, DstGap::Shift) => (ends, OccurrenceKind::Shifted),
            (Resolved::Gap { ends }, DstGap::Skip) => (ends, OccurrenceKind::SkippedGap),
        };
        if instant >= LATEST || self.schedule.end_at().is_some_and(|end| instant > end) {
            return None;
        }
        let kind = if given == Some(instant) {
            OccurrenceKind::Merged
        } else {
            kind
        };
        let at = match kind {
            OccurrenceKind::Normal | OccurrenceKind::Shifted | OccurrenceKind::FoldFirstPass => {
                Some(instant)
            }
            OccurrenceKind::Merged | OccurrenceKind::SkippedGap => None,
        };
        self.cursor = Cursor::Wall(wall, at.or(given));
        Some(Occurrence { wall, at, kind })
    }
}

impl Iterator for Occurrences<'_> {
    type Item = Occurrence;

    fn next(&mut self) -> Option<Occurrence> {
        let found = match self.cursor {
            Cursor::Wall(after, given) => self.by_wall(after, given),
            Cursor::Instant(after) => self.by_instant(after),
            Cursor::End => None,
        };
        if found.is_none() {
            self.cursor = Cursor::End;
        }
        found
    }
}
