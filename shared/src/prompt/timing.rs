//! The part of a prompt that says when it is due.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::{
    exclusion::{Exclusions, Holidays},
    fault::Fault,
    schedule::Schedule,
};

/// A schedule with what is left out of it, for what looks at the slots of many prompts.
#[derive(Debug, Clone)]
pub struct Timing {
    schedule: Schedule,
    exclusions: Exclusions,
}

impl Timing {
    /// Reads the two fields of a stored prompt; one from before there were exclusions has none.
    ///
    /// # Errors
    ///
    /// Every fault at once; what fails here was not written by `PromptSpec::to_json`.
    pub fn from_stored(schedule: &Value, exclusions: Option<&Value>) -> Result<Self, Vec<Fault>> {
        let exclusions = match exclusions {
            Some(exclusions) => Exclusions::parse(exclusions)?,
            None => Exclusions::default(),
        };
        let schedule = Schedule::from_stored(schedule)?;
        Ok(Self {
            schedule,
            exclusions,
        })
    }

    /// As [`PromptSpec::next_slot`](super::PromptSpec::next_slot).
    #[must_use]
    pub fn next_slot(&self, after: DateTime<Utc>, holidays: &Holidays) -> Option<DateTime<Utc>> {
        let timezone = self.schedule.timezone();
        self.exclusions
            .first_slot(after, timezone, holidays, |after| self.schedule.next(after))
    }
}
