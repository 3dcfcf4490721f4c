//! `carillon preview`: the body of `/v1/prompts/preview`, without a server.
//!
//! The flags make a request of the API and nothing else: what it refuses is refused here, in the same
//! words. What only a server knows is not there: other prompts, past runs, a tenant's calendars.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use axum::http::HeaderMap;
use chrono::{DateTime, FixedOffset, Utc};
use clap::Args;
use management::{error::ApiError, request::RequestId};
use serde_json::{Map, Value, json};
use shared::{
    calendar::{Day, Days},
    exclusion::{CalendarName, Holidays},
    fault::Fault,
    outbound::Policy,
    price::Catalog,
    prompt::Rules,
    schedule::eventbridge::Entry,
    simulate::{self, Forecast, NotDue, Outcome, Request, SimulatedSlot, Simulation, Totals},
};

use crate::table::Table;

/// What a refusal exits with.
const REFUSED: u8 = 2;

/// What `carillon preview` takes.
#[derive(Debug, Args)]
pub(crate) struct PreviewArgs {
    /// Five fields, or @hourly … @yearly.
    #[arg(required_unless_present = "schedule", conflicts_with = "schedule")]
    expression: Option<String>,
    /// Any schedule of the API, as JSON, instead of an expression.
    #[arg(long, value_name = "JSON")]
    schedule: Option<String>,
    /// IANA name of the zone.
    #[arg(long, default_value = "UTC")]
    timezone: String,
    /// What becomes of a slot at a time that the clocks jump over: `shift` moves it to the end of the
    /// gap, `skip` leaves it out. Default: `shift` when minute and hour are fixed, else `skip`.
    #[arg(long, value_parser = ["shift", "skip"])]
    dst_gap: Option<String>,
    /// Show slots at or after this instant (RFC 3339); default: now.
    #[arg(long, value_name = "INSTANT")]
    from: Option<String>,
    /// Show slots after this instant, itself left out.
    #[arg(long, value_name = "INSTANT")]
    after: Option<String>,
    /// Show slots up to this instant, at most 400 days later.
    #[arg(long, value_name = "INSTANT")]
    until: Option<String>,
    /// How many slots; 5 without --until.
    #[arg(long)]
    count: Option<u32>,
    /// A date on which it is not due; repeat it for several.
    #[arg(long = "exclude-date", value_name = "DATE")]
    exclude_dates: Vec<String>,
    /// A range of such dates, as 2026-12-24..2027-01-02; repeat it for several.
    #[arg(long = "exclude-range", value_name = "FROM..TO")]
    exclude_ranges: Vec<String>,
    /// A day of the week on which it is not due, mon to sun; repeat it for several.
    #[arg(long = "exclude-weekday", value_name = "DAY")]
    exclude_weekdays: Vec<String>,
    /// An iCalendar file of holidays on which it is not due; repeat it for several.
    #[arg(long, value_name = "FILE")]
    holidays: Vec<PathBuf>,
    /// Spread the wake-ups over so many minutes.
    #[arg(long)]
    jitter_minutes: Option<u32>,
    /// While a run is under way: skip, buffer_one or allow_all.
    #[arg(long)]
    overlap: Option<String>,
    /// With allow_all, so many runs at once.
    #[arg(long)]
    overlap_runs_max: Option<u32>,
    /// The prompt ends after so many runs.
    #[arg(long)]
    max_runs: Option<u32>,
    /// Assume that a run takes so many seconds; default: 60.
    #[arg(long, value_name = "SECONDS")]
    assumed_run_s: Option<u32>,
    /// Assume that nothing works meanwhile, as 2026-12-01T10:00:00Z..2026-12-01T11:00:00Z.
    #[arg(long, value_name = "FROM..UNTIL")]
    assumed_downtime: Option<String>,
    /// After a downtime: skip, run_latest or run_all.
    #[arg(long)]
    misfire: Option<String>,
    /// How late a slot may still run.
    #[arg(long, value_name = "SECONDS")]
    catchup_window_s: Option<u32>,
    /// Say what the runs would cost with this model.
    #[arg(long)]
    model: Option<String>,
    /// Assume that a run reads so many tokens.
    #[arg(long, value_name = "TOKENS")]
    assumed_input_tokens: Option<u64>,
    /// Assume that a run writes so many tokens.
    #[arg(long, value_name = "TOKENS")]
    assumed_output_tokens: Option<u64>,
    /// Print the body of /v1/prompts/preview.
    #[arg(long)]
    json: bool,
}

/// Prints what would happen, or the problem body of a refusal.
///
/// # Errors
/// When the answer cannot be written.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn run(args: &PreviewArgs) -> Result<ExitCode> {
    let now = Utc::now();
    let simulated = match calendars(args, now)? {
        Ok(holidays) => simulation(args, now, &holidays),
        Err(faults) => Err(faults),
    };
    match simulated {
        Ok(simulation) => {
            if args.json {
                println!("{}", serde_json::to_string_pretty(&simulation)?);
            } else {
                print!("{}", in_words(&simulation));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            let problem = ApiError::validation(faults).problem(&RequestId::of(&HeaderMap::new()));
            println!("{}", serde_json::to_string_pretty(&problem)?);
            Ok(ExitCode::from(REFUSED))
        }
    }
}

/// The calendars in the files that were named, each by its file's name.
fn calendars(args: &PreviewArgs, now: DateTime<Utc>) -> Result<Result<Holidays, Vec<Fault>>> {
    let mut holidays = Holidays::default();
    for path in &args.holidays {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let name = calendar_name(path);
        let named = |day: Day| (day.date, day.name.unwrap_or_else(|| name.clone()));
        match Days::parse(&json!({ "ics": text }), now) {
            Ok(days) => {
                // What is no name is refused with the request.
                if let Ok(calendar) = CalendarName::parse(&name) {
                    holidays.insert(calendar, days.iter().map(named));
                }
            }
            Err(faults) => {
                let named = |fault| Fault {
                    field: path.display().to_string(),
                    ..fault
                };
                return Ok(Err(faults.into_iter().map(named).collect()));
            }
        }
    }
    Ok(Ok(holidays))
}

fn simulation(
    args: &PreviewArgs,
    now: DateTime<Utc>,
    holidays: &Holidays,
) -> Result<Simulation, Vec<Fault>> {
    let catalog = Catalog::shipped();
    let rules = Rules {
        now,
        outbound: &Policy::PUBLIC,
        catalog: &catalog,
        interval_minutes_min: 1,
        default_timezone: chrono_tz::UTC,
        allow_echo: true,
        owner_email: None,
        holidays,
    };
    let request = Request::parse(&body(args)?, &rules, None)?;
    Ok(simulate::run(&request, holidays, &catalog))
}

/// The request that the flags stand for.
fn body(args: &PreviewArgs) -> Result<Value, Vec<Fault>> {
    let mut schedule = match (&args.schedule, &args.expression) {
        (Some(text), _) => serde_json::from_str(text).map_err(|error| {
            let hint = r#"send for example {"type": "daily", "at": "08:00"}"#;
            vec![Fault::new(
                "schedule",
                "invalid_json",
                error.to_string(),
                hint,
            )]
        })?,
        (None, expression) => json!({ "type": "cron", "expression": expression }),
    };
    if let Value::Object(schedule) = &mut schedule {
        let timezone = || Value::from(args.timezone.as_str());
        schedule.entry("timezone").or_insert_with(timezone);
        if let Some(dst_gap) = &args.dst_gap {
            schedule.insert("dst_gap".to_owned(), dst_gap.as_str().into());
        }
    }
    let exclusions = exclusions(args);
    let mut body = json!({
        "schedule": schedule,
        "exclusions": (!exclusions.is_empty()).then_some(exclusions),
        "jitter_minutes": args.jitter_minutes,
        "overlap": args.overlap,
        "misfire": args.misfire,
        "catchup_window_s": args.catchup_window_s,
        "max_runs": args.max_runs,
        "model": args.model,
        "from": args.from,
        "after": args.after,
        "until": args.until,
        "count": args.count,
        "assumed_run_s": args.assumed_run_s,
        "assumed_downtime": args.assumed_downtime.as_deref().map(|text| range(text, "until")),
        "assumed_input_tokens": args.assumed_input_tokens,
        "assumed_output_tokens": args.assumed_output_tokens,
    });
    if let Some(runs_max) = args.overlap_runs_max {
        body["overlap_runs_max"] = runs_max.into();
    }
    Ok(body)
}

fn exclusions(args: &PreviewArgs) -> Map<String, Value> {
    let ranges: Vec<Value> = args
        .exclude_ranges
        .iter()
        .map(|text| range(text, "to"))
        .collect();
    let calendars: Vec<String> = args
        .holidays
        .iter()
        .map(|path| calendar_name(path))
        .collect();
    [
        ("dates", json!(args.exclude_dates)),
        ("ranges", json!(ranges)),
        ("weekdays", json!(args.exclude_weekdays)),
        ("calendars", json!(calendars)),
    ]
    .into_iter()
    .filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty()))
    .map(|(name, list)| (name.to_owned(), list))
    .collect()
}

/// The file's name in the letters of a calendar's name.
fn calendar_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let parts: Vec<String> = stem
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    parts.join("-")
}

/// `FROM..END` as an object. What lacks an end is refused by whoever reads it.
fn range(text: &str, end: &str) -> Value {
    match text.split_once("..") {
        Some((from, until)) => json!({ "from": from, end: until }),
        None => json!({ "from": text }),
    }
}

fn in_words(simulation: &Simulation) -> String {
    let mut lines = vec![simulation.description.clone(), String::new()];
    if !(simulation.slots.is_empty() && simulation.not_due.is_empty()) {
        lines.push(table(simulation).to_string());
    }
    if simulation.truncated {
        lines.push("… the rest is left out; the numbers below count all of it\n".to_owned());
    }
    lines.push(totals(&simulation.totals));
    lines.extend(simulation.cost.as_ref().map(cost));
    lines.extend(simulation.eventbridge.iter().map(entry));
    for warning in &simulation.warnings {
        lines.push(format!("note ({}): {}", warning.code, warning.detail));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn entry(entry: &Entry) -> String {
    let zone = entry.timezone.as_deref().unwrap_or("UTC");
    let window = entry
        .flexible_window_minutes
        .map(|minutes| format!(", within a flexible window of {minutes} min"))
        .unwrap_or_default();
    format!(
        "EventBridge Scheduler: {} in {zone}{window}",
        entry.expression
    )
}

/// Both lists in the order of the schedule's own clock.
fn table(simulation: &Simulation) -> Table {
    let slots = simulation.slots.iter().map(|slot| {
        let local: Option<DateTime<FixedOffset>> = slot.local.parse().ok();
        let shown = local.map_or_else(|| slot.local.clone(), |at| at.format(CLOCK).to_string());
        let wall = local.map(|at| at.naive_local());
        (wall, [shown, utc(slot.scheduled_for), outcome(slot)])
    });
    let never = simulation.not_due.iter().map(|never| {
        let shown = never.local.format("%a %F %R").to_string();
        (Some(never.local), [shown, String::new(), not_due(never)])
    });
    let mut rows: Vec<_> = slots.chain(never).collect();
    rows.sort_by_key(|(wall, _)| *wall);
    let mut table = Table::new(&["local", "UTC", "what happens"]);
    for (_, row) in &rows {
        table.row(row);
    }
    table
}

const CLOCK: &str = "%a %F %R %:z";

fn utc(at: DateTime<Utc>) -> String {
    at.format("%F %RZ").to_string()
}

fn outcome(slot: &SimulatedSlot) -> String {
    let mut words = match (slot.outcome, slot.starts_at) {
        (Outcome::Wait, Some(at)) => format!("waits until {}", at.format("%F %TZ")),
        (Outcome::Run | Outcome::Wait, _) => "runs".to_owned(),
        (Outcome::Skipped, _) => "skipped".to_owned(),
        (Outcome::Missed, _) => "missed".to_owned(),
    };
    if let Some(until) = slot.scheduled_until {
        let (count, until) = (slot.slots_count, utc(until));
        words.push_str(&format!(", {count} slots until {until}"));
    }
    if let (Some(reason), Some(detail)) = (slot.reason, &slot.detail) {
        words.push_str(&format!(" ({reason}): {detail}"));
    }
    words
}

fn not_due(never: &NotDue) -> String {
    let several = never.local_until.map(|until| {
        format!(
            ", {} times until {}",
            never.slots_count,
            until.format("%F %R")
        )
    });
    let several = several.unwrap_or_default();
    format!("not due{several}: {}", never.detail)
}

fn totals(totals: &Totals) -> String {
    let told = [
        (totals.run, "run"),
        (totals.wait, "of these have to wait"),
        (totals.skipped_overlap, "skipped for overlap"),
        (totals.skipped_max_runs, "skipped over max_runs"),
        (totals.missed, "missed"),
        (totals.dst_gap, "not due for a clock's jump"),
        (totals.excluded, "not due for exclusions"),
        (totals.after_max_runs, "not due after max_runs"),
    ];
    let told: Vec<String> = told
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{count} {words}"))
        .collect();
    format!("{} due: {}", totals.due, told.join(", "))
}

fn cost(forecast: &Forecast) -> String {
    match (forecast.cost_usd, forecast.cost_per_run_usd) {
        (Some(all), Some(one)) => format!(
            "cost: {} USD for {} runs of {} USD, {}",
            all.normalize(),
            forecast.runs,
            one.normalize(),
            forecast.detail
        ),
        _ => format!("cost: not known, {}", forecast.detail),
    }
}
