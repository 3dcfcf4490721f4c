//! Backfills: runs of past slots, made all at once and begun one after another.
//!
//! A backfill never moves its prompt's next slot. Its slots are those before it, so the schedule and
//! a backfill cannot want the same one; the key of a slot is the guard behind that.

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio_postgres::{Row, types::Timestamp};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    DbError, TenantTx,
    calendars::{holidays_of, named_holidays, timing},
    column,
    prompts::PromptStatus,
    tenant_tx::step,
};
use crate::{
    exclusion::Holidays,
    ids::{BackfillId, PromptId, RunId},
    prompt::Timing,
};

/// The most slots of one backfill, and the most backfill runs of one prompt that may wait.
pub const SLOTS_MAX: usize = 1_000;

/// A prompt whose past slots are wanted, locked.
#[derive(Debug)]
pub struct Target {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Where it stands.
    pub status: PromptStatus,
    /// Gives its slots.
    pub timing: Timing,
    /// What its calendars hold.
    pub holidays: Holidays,
    /// The first slot that the schedule has yet to look at.
    pub next_run_at: Option<DateTime<Utc>>,
    /// Runs that `max_runs` still allows, waiting ones taken off; `None`: no limit.
    pub runs_left: Option<i64>,
    /// Its backfill runs that wait.
    pub waiting: i64,
}

/// A backfill to be made.
#[derive(Debug)]
pub struct NewBackfill<'a> {
    /// Its id.
    pub id: BackfillId,
    /// Whose slots.
    pub prompt_id: PromptId,
    /// The range begins here.
    pub from: DateTime<Utc>,
    /// And ends before this.
    pub to: DateTime<Utc>,
    /// Seconds from one run to the next.
    pub pace_s: i32,
    /// The slots of the range that the schedule has looked at, oldest first.
    pub slots: &'a [DateTime<Utc>],
    /// How many it has yet to look at.
    pub slots_to_come: i32,
    /// Runs at the most.
    pub runs_max: i64,
}

/// A backfill, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backfill {
    /// The backfill.
    pub id: BackfillId,
    /// Whose slots.
    pub prompt_id: PromptId,
    /// The range begins here.
    pub from: DateTime<Utc>,
    /// And ends before this.
    pub to: DateTime<Utc>,
    /// Seconds from one run to the next.
    pub pace_s: i32,
    /// The prompt's version that the runs use.
    pub prompt_version: i64,
    /// What became of the range's slots.
    pub slots: Slots,
    /// Its runs.
    pub runs: Progress,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When a caller stopped it.
    pub cancelled_at: Option<DateTime<Utc>>,
}

/// What became of the slots of a backfill's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = BackfillSlots)]
pub struct Slots {
    /// They got a run.
    pub queued: i32,
    /// Left out: they have a run already.
    pub has_run: i32,
    /// Left out: the schedule has yet to look at them.
    pub to_come: i32,
    /// Left out: `max_runs` leaves no room.
    pub over_limit: i32,
}

/// The runs of a backfill by status. Those that retention has deleted are in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = BackfillRuns)]
pub struct Progress {
    /// They wait for their turn.
    pub queued: i64,
    /// Under way.
    pub running: i64,
    /// Their deliveries are under way.
    pub generated: i64,
    /// Ended well.
    pub succeeded: i64,
    /// Ended badly, or out of time.
    pub failed: i64,
    /// Stopped.
    pub cancelled: i64,
    /// Not run, because `max_runs` was reached meanwhile.
    pub skipped: i64,
}

impl Progress {
    /// Whether one of them is not over.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.queued + self.running + self.generated > 0
    }
}

/// Locks a prompt whose slots are wanted. One round trip.
///
/// # Errors
/// When the database does not answer, or the row is not free in time.
pub async fn lock_prompt(tx: &TenantTx, id: PromptId) -> Result<Option<Target>, DbError> {
    let id = id.uuid();
    let results = tx
        .pipeline(&[
            step(
                "-- backfills::lock_prompt
                 SELECT p.id FROM scheduled_prompts p
                  WHERE p.id = $1 AND p.deleted_at IS NULL FOR NO KEY UPDATE",
                &[&id],
            ),
            // After the lock: a statement that waited for it would see other rows as they were.
            step(
                concat!(
                    "-- backfills::target
                     SELECT clock_timestamp() AS now, p.status, p.next_run_at,
                            p.max_runs - p.run_count - q.not_counted AS runs_left, q.waiting,
                            v.spec -> 'schedule' AS schedule, v.spec -> 'exclusions' AS exclusions, ",
                    named_holidays!("p.id"),
                    "  FROM scheduled_prompts p
                       JOIN prompt_versions v ON v.tenant_id = p.tenant_id AND v.prompt_id = p.id
                                             AND v.version = p.spec_version
                      CROSS JOIN (SELECT count(*) FILTER (WHERE r.attempt = 0) AS not_counted,
                                         count(*) FILTER (WHERE r.trigger = 'backfill') AS waiting
                                    FROM scheduled_prompt_runs r
                                   WHERE r.prompt_id = $1 AND r.status = 'queued'
                                     AND r.trigger <> 'test') q
                      WHERE p.id = $1 AND p.deleted_at IS NULL"
                ),
                &[&id],
            ),
        ])
        .await?;
    results
        .last()
        .and_then(|rows| rows.first())
        .map(|row| {
            Ok(Target {
                now: column(row, "now")?,
                status: status(row)?,
                timing: timing(row)?,
                holidays: holidays_of(column(row, "holidays")?)?,
                next_run_at: column(row, "next_run_at")?,
                runs_left: column(row, "runs_left")?,
                waiting: column(row, "waiting")?,
            })
        })
        .transpose()
}

/// Makes a backfill and its runs, and gives it with the run that begins first. The caller holds the
/// prompt's lock. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn insert(
    tx: &TenantTx,
    new: &NewBackfill<'_>,
) -> Result<(Backfill, Option<RunId>), DbError> {
    let ids: Vec<Uuid> = new.slots.iter().map(|_| RunId::new().uuid()).collect();
    let row = tx
        .query_one(
            "-- backfills::insert
             WITH wanted AS (
                 SELECT s.id, s.slot, row_number() OVER (ORDER BY s.slot) AS turn
                   FROM unnest($8::uuid[], $9::timestamptz[]) AS s (id, slot)
                  WHERE NOT EXISTS (
                        SELECT FROM scheduled_prompt_runs r
                         WHERE r.prompt_id = $3 AND r.scheduled_for = s.slot
                           AND r.trigger IN ('schedule', 'backfill')
                           AND (r.attempt > 0 OR r.status NOT IN ('missed', 'skipped', 'cancelled')))
             ), made AS (
                 INSERT INTO scheduled_prompt_runs
                        (tenant_id, id, prompt_id, scheduled_for, trigger, status, attempts_max,
                         prompt_version, backfill_id, available_at)
                 SELECT p.tenant_id, w.id, p.id, w.slot, 'backfill', 'queued', p.max_retries + 1,
                        p.spec_version, $2,
                        (SELECT clock_timestamp()) + (w.turn - 1) * $6::integer * interval '1 second'
                   FROM wanted w CROSS JOIN scheduled_prompts p
                  WHERE p.id = $3 AND w.turn <= $10::bigint
                 ON CONFLICT DO NOTHING
                 RETURNING id, scheduled_for
             )
             INSERT INTO backfills
                    (tenant_id, id, prompt_id, from_at, to_at, pace_s, prompt_version, slots_queued,
                     slots_has_run, slots_to_come, slots_over_limit)
             SELECT $1, $2, p.id, $4, $5, $6, p.spec_version, (SELECT count(*) FROM made),
                    cardinality($9::timestamptz[]) - (SELECT count(*) FROM wanted), $7,
                    (SELECT count(*) FROM wanted) - (SELECT count(*) FROM made)
               FROM scheduled_prompts p WHERE p.id = $3
             RETURNING id, prompt_id, from_at, to_at, pace_s, prompt_version, slots_queued,
                       slots_has_run, slots_to_come, slots_over_limit, created_at, cancelled_at,
                       slots_queued::bigint AS queued, 0::bigint AS running, 0::bigint AS generated,
                       0::bigint AS succeeded, 0::bigint AS failed, 0::bigint AS cancelled,
                       0::bigint AS skipped,
                       (SELECT m.id FROM made m ORDER BY m.scheduled_for LIMIT 1) AS first_run",
            &[
                &tx.tenant().uuid(),
                &new.id.uuid(),
                &new.prompt_id.uuid(),
                &new.from,
                &new.to,
                &new.pace_s,
                &new.slots_to_come,
                &ids,
                &new.slots,
                &new.runs_max,
            ],
        )
        .await?;
    let first: Option<Uuid> = column(&row, "first_run")?;
    Ok((read(&row)?, first.map(RunId::from)))
}

/// A backfill. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn get(tx: TenantTx, id: BackfillId) -> Result<Option<Backfill>, DbError> {
    let results = tx.commit_with(&[step(GET, &[&id.uuid()])]).await?;
    results.iter().flatten().next().map(read).transpose()
}

/// A page of a prompt's backfills, newest first, or `None` when callers see no such prompt. One
/// round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    tx: TenantTx,
    prompt_id: PromptId,
    after: Option<(DateTime<Utc>, BackfillId)>,
    rows_max: i64,
) -> Result<Option<Vec<Backfill>>, DbError> {
    let prompt_id = prompt_id.uuid();
    let (at, id) = after.map_or((Timestamp::PosInfinity, Uuid::max()), |(at, id)| {
        (Timestamp::Value(at), id.uuid())
    });
    let results = tx
        .commit_with(&[
            step(
                "-- backfills::prompt_exists
                 SELECT p.id FROM scheduled_prompts p WHERE p.id = $1 AND p.deleted_at IS NULL",
                &[&prompt_id],
            ),
            step(LIST, &[&prompt_id, &at, &id, &rows_max]),
        ])
        .await?;
    match results.as_slice() {
        [found, _] if found.is_empty() => Ok(None),
        [_, rows] => rows.iter().map(read).collect::<Result<_, _>>().map(Some),
        _ => Err(DbError::Aborted),
    }
}

/// What became of a request to stop a backfill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// It is stopped.
    Done(Backfill),
    /// It was before.
    Already(Backfill),
    /// None of its runs waits.
    Ended,
    /// There is none of this id.
    NoSuchBackfill,
}

/// Ends the runs of a backfill that wait; those under way finish. Two round trips.
///
/// # Errors
/// When the database does not answer, or the prompt's row is not free in time.
pub async fn cancel(tx: &TenantTx, id: BackfillId) -> Result<Cancelled, DbError> {
    let id = id.uuid();
    let found = tx
        .pipeline(&[
            step(
                "-- backfills::lock_prompt_of
                 SELECT p.id FROM scheduled_prompts p
                   JOIN backfills b ON b.tenant_id = p.tenant_id AND b.prompt_id = p.id
                  WHERE b.id = $1 FOR NO KEY UPDATE OF p",
                &[&id],
            ),
            step(GET, &[&id]),
        ])
        .await?;
    let found = found.last().and_then(|rows| rows.first());
    let Some(backfill) = found.map(read).transpose()? else {
        return Ok(Cancelled::NoSuchBackfill);
    };
    if backfill.cancelled_at.is_some() {
        return Ok(Cancelled::Already(backfill));
    }
    if backfill.runs.queued == 0 {
        return Ok(Cancelled::Ended);
    }
    let changed = tx
        .pipeline(&[
            step(
                "-- backfills::cancel_runs
                 UPDATE scheduled_prompt_runs
                    SET status = 'cancelled', reason = 'backfill_cancelled',
                        completed_at = clock_timestamp()
                  WHERE backfill_id = $1 AND status = 'queued'",
                &[&id],
            ),
            step(
                "-- backfills::cancel
                 UPDATE backfills SET cancelled_at = clock_timestamp() WHERE id = $1",
                &[&id],
            ),
            step(GET, &[&id]),
        ])
        .await?;
    let row = changed.last().and_then(|rows| rows.first());
    Ok(Cancelled::Done(read(row.ok_or(DbError::Aborted)?)?))
}

/// A backfill with its runs counted.
macro_rules! counted {
    () => {
        "SELECT b.id, b.prompt_id, b.from_at, b.to_at, b.pace_s, b.prompt_version, b.slots_queued,
                b.slots_has_run, b.slots_to_come, b.slots_over_limit, b.created_at, b.cancelled_at,
                r.queued, r.running, r.generated, r.succeeded, r.failed, r.cancelled, r.skipped
           FROM backfills b
          CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE s.status = 'queued') AS queued,
                       count(*) FILTER (WHERE s.status = 'running') AS running,
                       count(*) FILTER (WHERE s.status = 'generated') AS generated,
                       count(*) FILTER (WHERE s.status = 'succeeded') AS succeeded,
                       count(*) FILTER (WHERE s.status IN ('failed', 'timed_out')) AS failed,
                       count(*) FILTER (WHERE s.status = 'cancelled') AS cancelled,
                       count(*) FILTER (WHERE s.status = 'skipped') AS skipped
                  FROM scheduled_prompt_runs s WHERE s.backfill_id = b.id) r"
    };
}

const GET: &str = concat!(
    "-- backfills::get
     ",
    counted!(),
    " WHERE b.id = $1"
);

/// A first page begins behind every instant, since a condition that may be absent could not bound
/// the index scan.
const LIST: &str = concat!(
    "-- backfills::list
     ",
    counted!(),
    " WHERE b.prompt_id = $1 AND (b.created_at, b.id) < ($2, $3)
      ORDER BY b.created_at DESC, b.id DESC LIMIT $4"
);

fn read(row: &Row) -> Result<Backfill, DbError> {
    Ok(Backfill {
        id: BackfillId::from(column::<Uuid>(row, "id")?),
        prompt_id: PromptId::from(column::<Uuid>(row, "prompt_id")?),
        from: column(row, "from_at")?,
        to: column(row, "to_at")?,
        pace_s: column(row, "pace_s")?,
        prompt_version: column(row, "prompt_version")?,
        slots: Slots {
            queued: column(row, "slots_queued")?,
            has_run: column(row, "slots_has_run")?,
            to_come: column(row, "slots_to_come")?,
            over_limit: column(row, "slots_over_limit")?,
        },
        runs: Progress {
            queued: column(row, "queued")?,
            running: column(row, "running")?,
            generated: column(row, "generated")?,
            succeeded: column(row, "succeeded")?,
            failed: column(row, "failed")?,
            cancelled: column(row, "cancelled")?,
            skipped: column(row, "skipped")?,
        },
        created_at: column(row, "created_at")?,
        cancelled_at: column(row, "cancelled_at")?,
    })
}

fn status(row: &Row) -> Result<PromptStatus, DbError> {
    let word: String = column(row, "status")?;
    PromptStatus::parse(&word).ok_or(DbError::Stored {
        what: "prompt status",
        detail: word,
    })
}
