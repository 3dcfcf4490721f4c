//! An event as the bus gets it, and how many go into one call.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    db::events::Event,
    ids::{DeliveryId, PromptId, RunId, TenantId},
};

/// What every event names as its source.
pub const SOURCE: &str = "carillon";

/// Of the schema of `detail`. It grows when a consumer that knows the one before could go wrong.
pub const VERSION: u32 = 1;

/// Entries of one call at the most (EventBridge API Reference, "PutEvents").
pub(super) const BATCH_MAX: usize = 10;

/// Bytes of one call at the most, and of one entry (EventBridge User Guide, "Calculating PutEvents
/// event entry size": pages of different ages say 256 KB and 1 MB).
pub(super) const BYTES_MAX: usize = 256 * 1024 - 1;

/// What the instant of an entry counts (the same page).
const TIME_BYTES: usize = 14;

/// An event and its text.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: Event,
    pub(super) detail: String,
}

impl Entry {
    fn new(event: Event) -> Self {
        let detail = detail(&event);
        Self { event, detail }
    }

    fn bytes(&self) -> usize {
        TIME_BYTES + SOURCE.len() + self.event.kind.len() + self.detail.len()
    }
}

/// The `detail` of an event, as JSON: what every event has, and what its own data say.
/// The same bytes at every put.
#[must_use]
pub fn detail(event: &Event) -> String {
    let detail = Detail {
        version: VERSION,
        id: event.id,
        kind: &event.kind,
        tenant_id: event.tenant_id,
        prompt_id: event.prompt_id,
        run_id: event.run_id,
        delivery_id: event.delivery_id,
        occurred_at: event.occurred_at,
        sequence: event.seq(),
    };
    let mut text = serde_json::to_string(&detail)
        .expect("an event has text keys and finite numbers, which serde_json always takes");
    // What the database holds is JSON, and goes on as it is.
    let data = event.data.strip_prefix('{');
    if let Some(data) = data.and_then(|data| data.strip_suffix('}'))
        && !data.is_empty()
    {
        text.truncate(text.len() - 1);
        text.push(',');
        text.push_str(data);
        text.push('}');
    }
    text
}

#[derive(Serialize)]
struct Detail<'a> {
    version: u32,
    id: Uuid,
    #[serde(rename = "type")]
    kind: &'a str,
    tenant_id: TenantId,
    prompt_id: PromptId,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_id: Option<DeliveryId>,
    occurred_at: DateTime<Utc>,
    sequence: i64,
}

/// Fills calls up to both bounds; gives apart what is too large for any.
pub(super) fn batches(events: Vec<Event>) -> (Vec<Vec<Entry>>, Vec<Event>) {
    let (mut batches, mut too_large) = (Vec::new(), Vec::new());
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for entry in events.into_iter().map(Entry::new) {
        let more = entry.bytes();
        if more > BYTES_MAX {
            too_large.push(entry.event);
            continue;
        }
        if batch.len() == BATCH_MAX || bytes + more > BYTES_MAX {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += more;
        batch.push(entry);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    (batches, too_large)
}
