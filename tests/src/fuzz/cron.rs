//! The text of a cron schedule.
//!
//! The input is the expression, or a line with a zone and `shift` or `skip`, and then the expression.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use shared::schedule::{OccurrenceKind, Schedule, eventbridge};

use super::{Verdict, faults, first_line, now};

/// Slots that are looked at.
const SLOTS: usize = 6;
/// Times of the wall clock among which they are looked for.
const OCCURRENCES: usize = 40;
const DESCRIPTION_BYTES_MAX: usize = 4_000;

pub(super) fn check(data: &[u8]) -> Verdict {
    let Ok(text) = str::from_utf8(data) else {
        return Verdict::Refused;
    };
    let (head, rest) = first_line(text);
    let mut sent = match rest {
        "" => json!({"type": "cron", "expression": head, "timezone": "UTC"}),
        expression => {
            let (zone, gap) = head.split_once(' ').unwrap_or((head, ""));
            let mut sent = json!({"type": "cron", "expression": expression, "timezone": zone});
            if !gap.is_empty() {
                sent["dst_gap"] = gap.into();
            }
            sent
        }
    };
    let schedule = match Schedule::parse(&sent, now()) {
        Ok(schedule) => schedule,
        Err(found) => {
            faults::check(&found);
            return Verdict::Refused;
        }
    };
    normal_form(&schedule);
    entries(&schedule);
    slots(&schedule);
    assert!((1..=DESCRIPTION_BYTES_MAX).contains(&schedule.describe().len()));
    let _ = schedule.warnings(now());
    // Another sender's spelling of the same is the same.
    sent["expression"] = sent["expression"].as_str().unwrap().to_uppercase().into();
    if let Ok(loud) = Schedule::parse(&sent, now()) {
        assert_eq!(loud.eventbridge(), schedule.eventbridge());
    }
    Verdict::Accepted
}

/// What is stored and shown is read as the same schedule, by both readers.
fn normal_form(schedule: &Schedule) {
    let json = schedule.to_json();
    for again in [Schedule::from_stored(&json), Schedule::parse(&json, now())] {
        let again = again.unwrap();
        assert_eq!(&again, schedule);
        assert_eq!(again.to_json(), json);
        assert_eq!(again.next(now()), schedule.next(now()));
        assert_eq!(again.eventbridge(), schedule.eventbridge());
    }
}

fn entries(schedule: &Schedule) {
    let entries = schedule.eventbridge();
    assert!((1..=2).contains(&entries.len()), "{entries:?}");
    for entry in entries {
        eventbridge::check(&entry.expression).unwrap();
    }
}

/// A schedule without an end fires, in order, on whole minutes, and both ways of asking agree.
fn slots(schedule: &Schedule) {
    let first = schedule.next(now());
    assert!(first.is_some(), "accepted, and never fires");
    let slots = following(schedule, now());
    for (before, slot) in [now()].iter().chain(&slots).zip(&slots) {
        assert!(before < slot, "{before} is not before {slot}");
        assert_eq!(slot.timestamp() % 60, 0, "{slot} is no whole minute");
        assert_eq!(schedule.next(*slot - TimeDelta::seconds(1)), Some(*slot));
    }
    if schedule.timezone() == chrono_tz::UTC
        && let Some(gap) = schedule.shortest_gap_minutes()
    {
        for pair in slots.windows(2) {
            assert!(pair[1] - pair[0] >= TimeDelta::minutes(gap.into()));
        }
    }
    let told: Vec<_> = schedule
        .occurrences(now())
        .take(OCCURRENCES)
        .inspect(|told| assert_eq!(told.at.is_none(), told.kind == OccurrenceKind::SkippedGap))
        .filter(|told| told.kind != OccurrenceKind::Merged)
        .filter_map(|told| told.at)
        .take(slots.len())
        .collect();
    assert_eq!(told, slots[..told.len()]);
}

fn following(schedule: &Schedule, after: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    std::iter::successors(schedule.next(after), |slot| schedule.next(*slot))
        .take(SLOTS)
        .collect()
}
