//! The bodies of the API's requests, from their bytes to what their handlers work with.
//!
//! An input is a line that says what it is sent for, and then the body.

use std::sync::LazyLock;

use chrono::NaiveDate;
use management::bodies::Body;
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};
use shared::calendar::{self, Days};
use shared::exclusion::{CalendarName, Holidays};
use shared::fault::Fault;
use shared::outbound::Policy;
use shared::price::Catalog;
use shared::prompt::{
    self, CONTEXT_BYTES_MAX, METADATA_BYTES_MAX, NAME_CHARS_MAX, PromptSpec, Rules, TAGS_MAX,
};
use shared::schedule::{ScheduleType, eventbridge};
use shared::simulate::{self, ENTRIES_MAX, Request};
use shared::template::{TEXT_BYTES_MAX, Template};

use super::{Verdict, faults, first_line, now};

const OWNER: &str = "owner@example.com";
const DESTINATIONS_MAX: usize = 5;
const DESCRIPTION_BYTES_MAX: usize = 20_000;

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::shipped);

static HOLIDAYS: LazyLock<Holidays> = LazyLock::new(|| {
    let mut holidays = Holidays::default();
    let day = NaiveDate::from_ymd_opt(2026, 12, 25).unwrap();
    holidays.insert(
        CalendarName::parse("uk-bank-holidays").unwrap(),
        [(day, "Christmas Day".to_owned())],
    );
    holidays
});

/// What a patch changes.
static PATCHED: LazyLock<PromptSpec> = LazyLock::new(|| {
    let body = json!({
        "prompt_name": "Morning brief",
        "prompt_text": "Write a brief for {{ slot.date }} in {{ context.city }}.",
        "context": {"city": "Lisbon"},
        "model": "openai/gpt-5-mini",
        "schedule": {"type": "daily", "at": "08:00", "timezone": "Europe/Lisbon"},
        "destinations": [{"kind": "storage"}],
        "tags": ["daily"],
        "max_runs": 10,
    });
    PromptSpec::parse(&body, &rules()).unwrap()
});

fn rules() -> Rules<'static> {
    Rules {
        now: now(),
        outbound: &Policy::PUBLIC,
        catalog: &CATALOG,
        interval_minutes_min: 1,
        default_timezone: chrono_tz::Europe::London,
        allow_echo: true,
        owner_email: Some(OWNER),
        holidays: &HOLIDAYS,
    }
}

/// `create` or `patch`, and a prompt's body.
pub(super) fn prompt(data: &[u8]) -> Verdict {
    let Some((kind, body)) = read(data) else {
        return Verdict::Refused;
    };
    let parsed = match kind {
        "patch" => PATCHED.merge_patch(&body, &rules()),
        _ => PromptSpec::parse(&body, &rules()),
    };
    let spec = match parsed {
        Ok(spec) => spec,
        Err(found) => {
            faults::check(&found);
            return Verdict::Refused;
        }
    };
    if kind == "patch" {
        merged(&spec, &body);
    }
    comes_back(&spec);
    bounds(&spec);
    comes_due(&spec);
    for text in [Some(spec.prompt_text()), spec.system_text()] {
        let template = text.map(Template::parse).transpose().unwrap();
        let unknown = template.map(|template| template.unknown_in(spec.context()));
        assert_eq!(unknown.unwrap_or_default(), []);
    }
    Verdict::Accepted
}

/// The other bodies: a name of [`Body`], `preview` or `calendar`.
pub(super) fn body(data: &[u8]) -> Verdict {
    let Some((kind, body)) = read(data) else {
        return Verdict::Refused;
    };
    let found = match kind {
        "preview" => preview(&body),
        "calendar" => calendar(&body),
        name => {
            let Some((_, kind)) = Body::ALL.iter().find(|(known, _)| *known == name) else {
                return Verdict::Refused;
            };
            small(*kind, &body)
        }
    };
    match found {
        Ok(()) => Verdict::Accepted,
        Err(found) => {
            faults::check(&found);
            Verdict::Refused
        }
    }
}

fn read(data: &[u8]) -> Option<(&str, Value)> {
    let (kind, body) = first_line(str::from_utf8(data).ok()?);
    Some((kind, serde_json::from_str(body).ok()?))
}

/// What is stored, and what the API answers, is read as the same prompt, by both readers; and a patch
/// that says nothing changes nothing.
fn comes_back(spec: &PromptSpec) {
    let json = spec.to_json();
    let text = json.to_string();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(PromptSpec::from_stored(&json).as_ref(), Ok(spec));
    assert_eq!(PromptSpec::parse(&json, &rules()).as_ref(), Ok(spec));
    assert_eq!(spec.merge_patch(&json!({}), &rules()).as_ref(), Ok(spec));
    assert!(!text.contains("\\u0000"), "Postgres stores no NUL");
}

/// A field that the patch does not name stays; the same patch again changes nothing.
fn merged(spec: &PromptSpec, patch: &Value) {
    let (before, after) = (PATCHED.to_json(), spec.to_json());
    let given = patch.as_object().unwrap();
    let names = |value: &Value| {
        let fields = value.as_object().unwrap();
        fields.keys().cloned().collect::<Vec<_>>()
    };
    for name in names(&before).iter().chain(&names(&after)) {
        if !given.contains_key(name) {
            assert_eq!(before.get(name), after.get(name), "{name}");
        }
    }
    assert_eq!(spec.merge_patch(patch, &rules()).as_ref(), Ok(spec));
}

fn bounds(spec: &PromptSpec) {
    assert!((1..=NAME_CHARS_MAX).contains(&spec.prompt_name().chars().count()));
    assert!((1..=TEXT_BYTES_MAX).contains(&spec.prompt_text().len()));
    assert!(
        spec.system_text()
            .is_none_or(|text| text.len() <= TEXT_BYTES_MAX)
    );
    assert!(size(spec.context()) <= CONTEXT_BYTES_MAX);
    assert!(size(spec.metadata()) <= METADATA_BYTES_MAX);
    assert!(spec.tags().len() <= TAGS_MAX);
    assert!(spec.destinations().len() <= DESTINATIONS_MAX);
    assert!(spec.max_retries() <= prompt::RETRIES_MAX);
    let timeouts = prompt::TIMEOUT_MS_MIN..=prompt::TIMEOUT_MS_MAX;
    assert!(timeouts.contains(&spec.timeout_ms()));
    let delays = prompt::RETRY_DELAY_MS_MIN..=prompt::RETRY_DELAY_MS_MAX;
    assert!(delays.contains(&spec.retry_delay_ms()));
    assert!((1..=DESCRIPTION_BYTES_MAX).contains(&spec.describe().len()));
}

fn size(object: &Map<String, Value>) -> usize {
    serde_json::to_string(object).unwrap().len()
}

/// A prompt that is not manual has a slot, and entries that EventBridge Scheduler takes.
fn comes_due(spec: &PromptSpec) {
    let next = spec.next_slot(now(), &HOLIDAYS);
    let manual = spec.schedule().kind() == ScheduleType::Manual;
    assert_eq!(next.is_none(), manual, "{}", spec.describe());
    let entries = spec.eventbridge();
    assert_eq!(entries.is_empty(), manual);
    for entry in entries {
        eventbridge::check(&entry.expression).unwrap();
    }
    let _ = spec.warnings(now(), &HOLIDAYS);
}

fn preview(body: &Value) -> Result<(), Vec<Fault>> {
    let request = Request::parse(body, &rules(), None)?;
    let simulation = simulate::run(&request, &HOLIDAYS, &CATALOG);
    let slots = &simulation.slots;
    assert!(slots.len() <= ENTRIES_MAX && simulation.not_due.len() <= ENTRIES_MAX);
    assert!(slots.is_sorted_by_key(|slot| slot.scheduled_for));
    if let Some(cost) = &simulation.cost {
        let costs = [cost.cost_per_run_usd, cost.cost_usd];
        let known = costs.into_iter().flatten();
        assert!(
            known.into_iter().all(|usd| usd >= Decimal::ZERO),
            "{cost:?}"
        );
    }
    Ok(())
}

fn calendar(body: &Value) -> Result<(), Vec<Fault>> {
    let days = Days::parse(body, now())?;
    assert!(days.count() <= calendar::DAYS_MAX);
    let json = days.to_json();
    assert_eq!(Days::from_stored(json.clone()).unwrap(), days);
    assert_eq!(Days::parse(&json!({"days": json}), now()), Ok(days));
    Ok(())
}

/// Nothing that nobody reads is taken in silence.
fn small(kind: Body, body: &Value) -> Result<(), Vec<Fault>> {
    kind.read(body, now())?;
    assert_eq!(kind.read(body, now()), Ok(()));
    let Some(fields) = body.as_object() else {
        assert!(body.is_null(), "{body}");
        return Ok(());
    };
    let mut more = fields.clone();
    more.insert("a field of tomorrow".to_owned(), json!(1));
    let found = kind.read(&Value::Object(more), now()).unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].code, "unknown_field");
    Ok(())
}
