//! The outbox of the event bus. Triggers fill it in the transactions of the facts; here it is emptied.
//!
//! It is emptied for all tenants at once, by system functions: an event holds ids, codes, counters
//! and instants, and nothing of a tenant's content.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Db, DbError, Param, column, in_time};
use crate::ids::{DeliveryId, PromptId, RunId, TenantId};

/// An event, leased by whoever claimed it.
#[derive(Debug, Clone)]
pub struct Event {
    /// UUIDv7, the same however often it is put.
    pub id: Uuid,
    /// For example `run.succeeded`.
    pub kind: String,
    /// Whose.
    pub tenant_id: TenantId,
    /// Its prompt.
    pub prompt_id: PromptId,
    /// Its run, of an event of a run or a delivery.
    pub run_id: Option<RunId>,
    /// Its delivery, of an event of one.
    pub delivery_id: Option<DeliveryId>,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// What else it says: the text of a JSON object.
    pub data: String,
    /// Puts that failed, for whatever reason.
    pub attempts: u32,
    /// Those in which the bus refused this event itself.
    pub refusals: u32,
    order_key: Uuid,
    seq: i64,
    fence: i64,
}

impl Event {
    /// Events of one key are put in order: a run's, with its deliveries, or a prompt's own.
    #[must_use]
    pub fn order_key(&self) -> (TenantId, Uuid) {
        (self.tenant_id, self.order_key)
    }

    /// Its place among the events of its key; what lies between two of them means nothing.
    #[must_use]
    pub fn seq(&self) -> i64 {
        self.seq
    }
}

/// What became of a leased event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The bus has it.
    Taken,
    /// The bus could not take it, whatever it was; it is put again.
    Failed {
        /// Until then.
        wait_ms: i64,
        /// The bus's code.
        code: String,
    },
    /// The bus refused this event itself; it is put again.
    Refused {
        /// Until then.
        wait_ms: i64,
        /// The bus's code.
        code: String,
    },
    /// It is not put any more.
    Parked {
        /// Why.
        code: String,
    },
    /// It was not put: one before it was not taken, or there was no time.
    HeldBack {
        /// Until then.
        wait_ms: i64,
    },
}

impl Outcome {
    fn columns(&self) -> (&'static str, i64, Option<&str>) {
        match self {
            Self::Taken => ("taken", 0, None),
            Self::Failed { wait_ms, code } => ("failed", *wait_ms, Some(code)),
            Self::Refused { wait_ms, code } => ("refused", *wait_ms, Some(code)),
            Self::Parked { code } => ("parked", 0, Some(code)),
            Self::HeldBack { wait_ms } => ("held_back", *wait_ms, None),
        }
    }
}

/// Leases events that are due: of at most `keys_max` keys the first `each_max`, in their order.
/// Tenants take turns. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn claim(
    db: &Db,
    keys_max: i32,
    each_max: i32,
    lease_ms: i64,
) -> Result<Vec<Event>, DbError> {
    let rows = query(
        db,
        "-- system::claim_events
         SELECT tenant_id, order_key, seq, id, type, prompt_id, run_id, delivery_id, occurred_at,
                data::text AS data, fence, attempts, refusals
           FROM system_claim_events($1, $2, $3)",
        &[&keys_max, &each_max, &lease_ms],
    )
    .await?;
    rows.iter().map(event).collect()
}

/// Writes what became of leased events, and gives how many of them were still this claimant's. The
/// others were leased to somebody else when this lease had ended, and are put again. One round trip.
///
/// # Errors
/// When the database does not answer; then all are put again when the lease ends.
pub async fn settle(db: &Db, settled: &[(Event, Outcome)]) -> Result<usize, DbError> {
    let mut rows = SettledRows::default();
    for (event, outcome) in settled {
        let (word, wait_ms, code) = outcome.columns();
        rows.tenants.push(event.tenant_id.uuid());
        rows.keys.push(event.order_key);
        rows.seqs.push(event.seq);
        rows.fences.push(event.fence);
        rows.outcomes.push(word);
        rows.waits_ms.push(wait_ms);
        rows.codes.push(code);
    }
    let changed = query(
        db,
        "-- system::settle_events
         SELECT system_settle_events($1, $2, $3, $4, $5, $6, $7) AS count",
        &[
            &rows.tenants,
            &rows.keys,
            &rows.seqs,
            &rows.fences,
            &rows.outcomes,
            &rows.waits_ms,
            &rows.codes,
        ],
    )
    .await?;
    count(&changed)
}

/// Deletes events that were parked 30 days ago; gives how many. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn forget_parked(db: &Db, rows_max: i32) -> Result<usize, DbError> {
    let gone = query(
        db,
        "-- system::forget_parked_events
         SELECT system_forget_parked_events($1) AS count",
        &[&rows_max],
    )
    .await?;
    count(&gone)
}

/// Columns of [`settle`].
#[derive(Default)]
struct SettledRows<'a> {
    tenants: Vec<Uuid>,
    keys: Vec<Uuid>,
    seqs: Vec<i64>,
    fences: Vec<i64>,
    outcomes: Vec<&'static str>,
    waits_ms: Vec<i64>,
    codes: Vec<Option<&'a str>>,
}

async fn query(db: &Db, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
    let connection = db.system().await?;
    // Its pool asks a connection whether it is well before the next borrower has it.
    in_time(async {
        let statement = connection.prepare_cached(sql).await?;
        Ok(connection.query(&statement, params).await?)
    })
    .await
}

fn event(row: &Row) -> Result<Event, DbError> {
    let id = |name| column::<Option<Uuid>>(row, name);
    let number = |name| Ok::<_, DbError>(u32::try_from(column::<i32>(row, name)?).unwrap_or(0));
    Ok(Event {
        id: column(row, "id")?,
        kind: column(row, "type")?,
        tenant_id: TenantId::from(column::<Uuid>(row, "tenant_id")?),
        prompt_id: PromptId::from(column::<Uuid>(row, "prompt_id")?),
        run_id: id("run_id")?.map(RunId::from),
        delivery_id: id("delivery_id")?.map(DeliveryId::from),
        occurred_at: column(row, "occurred_at")?,
        data: column(row, "data")?,
        attempts: number("attempts")?,
        refusals: number("refusals")?,
        order_key: column(row, "order_key")?,
        seq: column(row, "seq")?,
        fence: column(row, "fence")?,
    })
}

fn count(rows: &[Row]) -> Result<usize, DbError> {
    let count: i64 = rows.first().map_or(Ok(0), |row| column(row, "count"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}
