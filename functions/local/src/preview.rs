//! `carillon preview`: the body of `/v1/prompts/preview`, without a server.

use std::process::ExitCode;

use anyhow::Result;
use axum::http::HeaderMap;
use chrono::Utc;
use management::{error::ApiError, request::RequestId};
use serde_json::json;
use shared::schedule::{Preview, Schedule};

use crate::cli::PreviewArgs;

/// What a refusal exits with.
const REFUSED: u8 = 2;

/// Prints the next slots, or the problem body of a refusal.
///
/// # Errors
/// When the answer cannot be written.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn run(args: &PreviewArgs) -> Result<ExitCode> {
    let now = Utc::now();
    let schedule = json!({
        "type": "cron",
        "expression": args.expression,
        "timezone": args.timezone,
        "dst_gap": args.dst_gap,
    });
    match Schedule::parse(&schedule, now) {
        Ok(schedule) => {
            let preview = schedule.preview(args.after.unwrap_or(now), args.count.into());
            if args.json {
                println!("{}", serde_json::to_string_pretty(&preview)?);
            } else {
                print(&preview);
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            let faults = faults.into_iter().map(|fault| fault.under("schedule"));
            let problem =
                ApiError::validation(faults.collect()).problem(&RequestId::of(&HeaderMap::new()));
            println!("{}", serde_json::to_string_pretty(&problem)?);
            Ok(ExitCode::from(REFUSED))
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print(preview: &Preview) {
    println!("{}", preview.description);
    for slot in &preview.slots {
        println!("  {}   {}", slot.local, slot.scheduled_for);
    }
    for entry in &preview.eventbridge {
        let zone = entry.timezone.as_deref().unwrap_or("UTC");
        println!("EventBridge Scheduler: {} in {zone}", entry.expression);
    }
    for warning in &preview.warnings {
        println!("note ({}): {}", warning.code, warning.detail);
    }
}
