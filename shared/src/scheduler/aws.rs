//! The calls of EventBridge Scheduler.
//!
//! Nothing here decides what is to stand there, or when to try again.

use aws_sdk_scheduler::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::get_schedule::GetScheduleOutput,
    primitives,
    types::{
        ActionAfterCompletion, DeadLetterConfig, FlexibleTimeWindow, FlexibleTimeWindowMode,
        RetryPolicy, ScheduleState, Target,
    },
};
use aws_types::SdkConfig;
use chrono::{DateTime, Utc};

use super::entry::{Entry, EntryName, RETRIES, RETRY_AGE_S, Settings, TARGET_ARN};
use crate::aws::{self, CallError, Cause};

/// Between create and update, when each says that it should have been the other.
const TURNS_MAX: usize = 4;

/// Entries on one page of a list, the most that AWS gives.
const PAGE_MAX: i32 = 100;

/// EventBridge Scheduler, and where in it our entries stand.
#[derive(Debug, Clone)]
pub struct EventBridge {
    client: Client,
    settings: Settings,
}

/// A page of the entries in our group.
#[derive(Debug)]
pub struct Page {
    /// The entries, in no order that AWS promises.
    pub entries: Vec<Listed>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<String>,
}

/// An entry in a list, which does not say when it fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name, which may be none of ours.
    pub name: String,
    /// Whether it fires.
    pub is_enabled: bool,
}

/// The fields of an entry that create and update share: an update replaces them all.
macro_rules! with_fields {
    ($call:expr, $entry:expr, $settings:expr) => {
        $call
            .name($entry.name.as_str())
            .group_name($settings.group())
            .schedule_expression(&$entry.expression)
            .set_schedule_expression_timezone($entry.timezone.clone())
            .set_start_date($entry.start.map(instant))
            .set_end_date($entry.end.map(instant))
            .state(state($entry))
            .flexible_time_window(window($entry))
            .action_after_completion(completion($entry))
            .target(target($entry, $settings))
            .send()
            .await
    };
}

impl EventBridge {
    /// A client of it with AWS's usual settings: region, credentials, endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig, settings: Settings) -> Self {
        Self {
            client: Client::new(&aws::impatient(aws)),
            settings,
        }
    }

    /// Where entries stand, and what they wake.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes an entry equal to `entry`: by an update first where one is thought to be there.
    pub(super) async fn put(&self, entry: &Entry, is_there: bool) -> Result<(), CallError> {
        let mut is_there = is_there;
        for _ in 0..TURNS_MAX {
            let put = if is_there {
                done(with_fields!(
                    self.client.update_schedule(),
                    entry,
                    &self.settings
                ))
            } else {
                done(with_fields!(
                    self.client.create_schedule(),
                    entry,
                    &self.settings
                ))
            };
            match put {
                Err(error) if error.cause == Cause::Conflict && !is_there => is_there = true,
                Err(error) if error.cause == Cause::NotThere && is_there => is_there = false,
                other => return other,
            }
        }
        Err(CallError {
            cause: Cause::Conflict,
            retry_after: None,
            detail: format!("{} comes and goes", entry.name.as_str()),
        })
    }

    /// Deletes an entry, if it is there.
    ///
    /// # Errors
    /// When AWS refuses or does not answer.
    pub async fn delete(&self, name: &EntryName) -> Result<(), CallError> {
        let call = self
            .client
            .delete_schedule()
            .group_name(self.settings.group())
            .name(name.as_str());
        match done(call.send().await) {
            Err(error) if error.cause == Cause::NotThere => Ok(()),
            other => other,
        }
    }

    /// A page of the entries in our group, from `token` on.
    ///
    /// # Errors
    /// When AWS refuses or does not answer; a token that has grown old is refused.
    pub async fn list(&self, token: Option<String>) -> Result<Page, CallError> {
        let page = self
            .client
            .list_schedules()
            .group_name(self.settings.group())
            .max_results(PAGE_MAX)
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| CallError::of(&error))?;
        let entries = page.schedules().iter().filter_map(|summary| {
            Some(Listed {
                name: summary.name()?.to_owned(),
                is_enabled: summary.state() == Some(&ScheduleState::Enabled),
            })
        });
        Ok(Page {
            entries: entries.collect(),
            next: page.next_token().map(str::to_owned),
        })
    }

    /// The first field in which the entry that stands there differs from `entry`: `missing` where
    /// there is none.
    ///
    /// # Errors
    /// When AWS refuses or does not answer.
    pub async fn difference(&self, entry: &Entry) -> Result<Option<&'static str>, CallError> {
        let found = self.get(&entry.name).await?;
        Ok(match found {
            None => Some("missing"),
            Some(found) => difference(entry, &found, &self.settings),
        })
    }

    /// Whether an entry of this name is there and wakes our queue: another installation may use the
    /// same group.
    ///
    /// # Errors
    /// When AWS refuses or does not answer.
    pub async fn is_ours(&self, name: &EntryName) -> Result<bool, CallError> {
        let found = self.get(name).await?;
        let input = found.as_ref().and_then(|found| found.target()?.input());
        let input = input.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        Ok(input.is_some_and(|input| input["QueueUrl"] == self.settings.queue_url()))
    }

    async fn get(&self, name: &EntryName) -> Result<Option<GetScheduleOutput>, CallError> {
        let call = self
            .client
            .get_schedule()
            .group_name(self.settings.group())
            .name(name.as_str());
        match call.send().await {
            Ok(found) => Ok(Some(found)),
            Err(error) => match CallError::of(&error) {
                error if error.cause == Cause::NotThere => Ok(None),
                error => Err(error),
            },
        }
    }
}

fn done<T, E: ProvideErrorMetadata>(
    result: Result<T, SdkError<E, aws_sdk_scheduler::config::http::HttpResponse>>,
) -> Result<(), CallError> {
    result.map(drop).map_err(|error| CallError::of(&error))
}

fn state(entry: &Entry) -> ScheduleState {
    if entry.is_enabled {
        ScheduleState::Enabled
    } else {
        ScheduleState::Disabled
    }
}

fn completion(entry: &Entry) -> ActionAfterCompletion {
    if entry.is_once {
        ActionAfterCompletion::Delete
    } else {
        ActionAfterCompletion::None
    }
}

fn window(entry: &Entry) -> FlexibleTimeWindow {
    let minutes = i32::try_from(entry.window_minutes).unwrap_or(i32::MAX);
    let window = FlexibleTimeWindow::builder();
    let window = if minutes == 0 {
        window.mode(FlexibleTimeWindowMode::Off)
    } else {
        window
            .mode(FlexibleTimeWindowMode::Flexible)
            .maximum_window_in_minutes(minutes)
    };
    window.build().expect("a window needs its mode alone")
}

fn target(entry: &Entry, settings: &Settings) -> Target {
    let dead_letters = DeadLetterConfig::builder().arn(settings.dead_letter_arn());
    let retries = RetryPolicy::builder()
        .maximum_retry_attempts(i32::from(RETRIES))
        .maximum_event_age_in_seconds(RETRY_AGE_S.cast_signed());
    Target::builder()
        .arn(TARGET_ARN)
        .role_arn(settings.role_arn())
        .input(&entry.input)
        .dead_letter_config(dead_letters.build())
        .retry_policy(retries.build())
        .build()
        .expect("a target needs its two ARNs alone")
}

fn instant(at: DateTime<Utc>) -> primitives::DateTime {
    primitives::DateTime::from_secs(at.timestamp())
}

fn difference(
    entry: &Entry,
    found: &GetScheduleOutput,
    settings: &Settings,
) -> Option<&'static str> {
    let zone = |zone: Option<&str>| zone.unwrap_or("UTC").to_owned();
    let same_zone = zone(entry.timezone.as_deref()) == zone(found.schedule_expression_timezone());
    let differs = [
        (
            found.schedule_expression() != Some(entry.expression.as_str()),
            "expression",
        ),
        (!same_zone, "timezone"),
        (!same_start(entry, found.start_date()), "start"),
        (
            seconds(found.end_date()) != entry.end.map(|end| end.timestamp()),
            "end",
        ),
        (found.state() != Some(&state(entry)), "state"),
        (
            found
                .action_after_completion()
                .unwrap_or(&ActionAfterCompletion::None)
                != &completion(entry),
            "completion",
        ),
        (
            found.flexible_time_window() != Some(&window(entry)),
            "window",
        ),
        (found.target() != Some(&target(entry, settings)), "target"),
    ];
    differs
        .into_iter()
        .find_map(|(differs, field)| differs.then_some(field))
}

/// The start of a rate may be any slot of it. Any other start counts only while it is to come, and
/// is left out from then on.
fn same_start(entry: &Entry, found: Option<&primitives::DateTime>) -> bool {
    let Some(start) = entry.start else {
        return true;
    };
    let Some(found) = seconds(found) else {
        return false;
    };
    let apart_s = start.timestamp() - found;
    match entry.period {
        Some(period) => apart_s.checked_rem(period.num_seconds()) == Some(0),
        None => apart_s == 0,
    }
}

fn seconds(at: Option<&primitives::DateTime>) -> Option<i64> {
    at.map(primitives::DateTime::secs)
}
