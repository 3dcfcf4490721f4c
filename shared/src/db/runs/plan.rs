//! The look at a prompt whose slots are due, and the writing of what becomes of them.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{
        Db, DbError, Param, TenantTx, column,
        prompts::DroppedRow,
        tenant_tx::{Step, step},
    },
    Claim, DROP_OVER_LIMIT, DueSlots, Intent, LOCK_CLAIMS, capacity, due_slots, has_capacity,
    in_order, previous_output, read_due_slots,
};
use crate::{
    ids::{AttemptId, PromptId, RunId, TenantId},
    run::{RunStatus, RunTrigger},
    slots::{Dropped, Fate, Look, OpenRuns, Plan, SharedRow},
};

/// The prompt of a wake-up, locked, and what stands in its way.
#[derive(Debug)]
pub struct DuePrompt {
    /// Which.
    pub prompt_id: PromptId,
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Its first slot that is not accounted for, and what the others follow from.
    pub slots: DueSlots,
    /// Counts the changes that the scheduler's entries follow.
    pub generation: i64,
    /// The version that new runs use.
    pub spec_version: i64,
    /// The output of the last success, where that version may name it.
    pub previous_output: Option<String>,
    /// Runs that `max_runs` still allows, queued ones taken off.
    pub runs_left: Option<u64>,
    /// The next run to be claimed is the last that `max_runs` allows.
    pub next_is_last: bool,
    /// Its runs that are in the way of others.
    pub open: OpenRuns,
    /// Its newest slot row, where that stands for several missed ones.
    pub shared: Option<SharedRow>,
    /// Whether the tenant may have another run under way.
    pub has_capacity: bool,
}

impl DuePrompt {
    /// What a plan is made from.
    #[must_use]
    pub fn look(&self) -> Look {
        Look {
            first: self.slots.first,
            now: self.now,
            shared: self.shared,
            open: self.open,
        }
    }
}

/// Locks a prompt if it and its tenant are active and a slot of it is due. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn lock_due(tx: &TenantTx, prompt_id: PromptId) -> Result<Option<DuePrompt>, DbError> {
    let id = prompt_id.uuid();
    let results = tx
        .pipeline(&[
            step(LOCK_DUE, &[&id]),
            // After the lock: a statement that waited for it would not see a version made meanwhile.
            step(LOOK, &[&id]),
        ])
        .await?;
    match in_order(&results)? {
        [[_], [looked]] => read_due(prompt_id, looked),
        // One that comes due between the two is not locked.
        _ => Ok(None),
    }
}

/// A look at a prompt that holds nothing: what it saw may change before anything is written.
#[derive(Debug)]
pub struct Glance {
    /// What it saw.
    pub due: DuePrompt,
    /// Stands for all that a plan is made from.
    seen: String,
}

/// Looks at a prompt as [`lock_due`] does, without a lock, so that prompts of several tenants can be
/// looked at together. One round trip, which they share.
///
/// # Errors
/// When the database does not answer.
pub async fn glance(
    db: &Db,
    tenant_id: TenantId,
    prompt_id: PromptId,
) -> Result<Option<Glance>, DbError> {
    let id = prompt_id.uuid();
    let results = db.fly_to_look(tenant_id, step(GLANCE, &[&id])).await?;
    let Some(looked) = results.first() else {
        return Ok(None);
    };
    let seen = column(looked, "seen")?;
    let due = read_due(prompt_id, looked)?;
    Ok(due.map(|due| Glance { due, seen }))
}

const LOCK_DUE: &str = "-- runs::lock_due
    SELECT p.id FROM scheduled_prompts p
     WHERE p.id = $1 AND p.status = 'active' AND p.deleted_at IS NULL
       AND p.next_run_at <= clock_timestamp()
       FOR NO KEY UPDATE";

/// What a plan is made from, of a prompt `p`: its row, its calendars, its open runs, its newest slot
/// row, and by its count of successes the output of the last one.
macro_rules! seen {
    () => {
        "md5(ROW(p.generation, p.spec_version, p.run_count, p.success_count, p.max_runs, p.next_run_at,
                (SELECT string_agg(concat_ws(' ', c.id, c.version), ',' ORDER BY c.id)
                   FROM prompt_calendars l
                   JOIN calendars c ON c.tenant_id = l.tenant_id AND c.id = l.calendar_id
                  WHERE l.prompt_id = p.id),
                (SELECT string_agg(concat_ws(' ', o.id, o.status, o.attempt), ',' ORDER BY o.id)
                   FROM scheduled_prompt_runs o
                  WHERE o.prompt_id = p.id AND o.status IN ('queued', 'running') AND o.trigger <> 'test'),
                (SELECT concat_ws(' ', s.id, s.scheduled_until, s.status, s.slots_count)
                   FROM scheduled_prompt_runs s
                  WHERE s.prompt_id = p.id AND s.trigger IN ('schedule', 'backfill')
                  ORDER BY s.scheduled_for DESC LIMIT 1))::text) AS seen
               FROM scheduled_prompts p
              WHERE p.id = $1 AND p.status = 'active' AND p.deleted_at IS NULL
                AND p.next_run_at <= clock_timestamp()"
    };
}

/// All that a plan is made from. A backfill is in no slot's way: one that waits lets the slot go
/// first, and for one that is under way the slot waits. The clock may be read before the prompt is
/// found to be due, and is not to say that it is not.
macro_rules! look {
    () => {
        concat!(
            "due.*, open.*, newest.*, capacity.tenant_is_active, capacity.concurrent_runs_max,
             capacity.running, greatest(capacity.now, due.next_run_at) AS now
               FROM (SELECT p.generation, p.spec_version, p.run_count, p.max_runs, ",
            due_slots!(),
            ", ",
            previous_output!("p.id"),
            "         FROM scheduled_prompts p
                      JOIN prompt_versions v ON v.tenant_id = p.tenant_id AND v.prompt_id = p.id
                                            AND v.version = p.spec_version
                     WHERE p.id = $1 AND p.status = 'active' AND p.deleted_at IS NULL
                       AND p.next_run_at <= clock_timestamp()) due
               CROSS JOIN (
                    SELECT count(*) FILTER (WHERE in_the_way) AS open,
                           count(*) FILTER (WHERE status = 'running') AS open_running,
                           count(*) FILTER (WHERE attempt = 0) AS not_counted,
                           (array_agg(id ORDER BY status = 'running' DESC, created_at, id)
                               FILTER (WHERE in_the_way))[1] AS in_the_way,
                           (array_agg(id ORDER BY scheduled_for DESC)
                               FILTER (WHERE status = 'queued' AND trigger = 'schedule'
                                         AND attempt = 0))[1] AS waiting
                      FROM (SELECT id, status, trigger, attempt, created_at, scheduled_for,
                                   trigger <> 'backfill' AS in_the_way
                              FROM scheduled_prompt_runs
                             WHERE prompt_id = $1 AND status IN ('queued', 'running')
                               AND trigger <> 'test') r) open
               LEFT JOIN (
                    SELECT id AS newest, scheduled_until AS newest_until, status AS newest_status
                      FROM scheduled_prompt_runs
                     WHERE prompt_id = $1 AND trigger IN ('schedule', 'backfill')
                     ORDER BY scheduled_for DESC LIMIT 1) newest ON true
               CROSS JOIN (",
            capacity!(),
            ") capacity"
        )
    };
}

const LOOK: &str = concat!("-- runs::look\n     SELECT ", look!());

/// With what [`STILL_SEEN`] compares, as it was at the same moment.
const GLANCE: &str = concat!(
    "-- runs::glance
     SELECT seen.seen, ",
    look!(),
    " CROSS JOIN (SELECT ",
    seen!(),
    ") seen"
);

/// Behind [`LOCK_DUE`], which waits for whoever is changing the prompt or a run of it.
const STILL_SEEN: &str = concat!(
    "-- runs::still_seen
     WITH now AS (SELECT ",
    seen!(),
    ") SELECT EXISTS (SELECT FROM now WHERE now.seen = $2)::look_stands AS stands"
);

/// Of [`LOOK`] or [`GLANCE`].
fn read_due(prompt_id: PromptId, looked: &Row) -> Result<Option<DuePrompt>, DbError> {
    if !column::<bool>(looked, "tenant_is_active")? {
        return Ok(None);
    }
    let max_runs = column::<Option<i32>>(looked, "max_runs")?.map(i64::from);
    let run_count: i64 = column(looked, "run_count")?;
    let taken = run_count + column::<i64>(looked, "not_counted")?;
    Ok(Some(DuePrompt {
        prompt_id,
        now: column(looked, "now")?,
        slots: read_due_slots(looked)?,
        generation: column(looked, "generation")?,
        spec_version: column(looked, "spec_version")?,
        previous_output: column(looked, "previous_output")?,
        runs_left: max_runs.map(|max| u64::try_from(max - taken).unwrap_or(0)),
        next_is_last: max_runs.is_some_and(|max| run_count + 1 >= max),
        open: open_runs(looked)?,
        shared: shared_row(looked)?,
        has_capacity: has_capacity(looked)?,
    }))
}

fn open_runs(row: &Row) -> Result<OpenRuns, DbError> {
    let count =
        |name| Ok::<_, DbError>(u32::try_from(column::<i64>(row, name)?).unwrap_or(u32::MAX));
    let run = |name| Ok::<_, DbError>(column::<Option<Uuid>>(row, name)?.map(RunId::from));
    Ok(OpenRuns {
        count: count("open")?,
        running: count("open_running")?,
        in_the_way: run("in_the_way")?,
        waiting: run("waiting")?,
    })
}

fn shared_row(row: &Row) -> Result<Option<SharedRow>, DbError> {
    let newest: Option<Uuid> = column(row, "newest")?;
    let until: Option<DateTime<Utc>> = column(row, "newest_until")?;
    let (Some(newest), Some(until)) = (newest, until) else {
        return Ok(None);
    };
    let missed = column::<String>(row, "newest_status")? == RunStatus::Missed.as_str();
    let run_id = RunId::from(newest);
    Ok(missed.then_some(SharedRow { run_id, until }))
}

/// What to write of a look at a prompt.
#[derive(Debug)]
pub struct Writing<'a> {
    /// What becomes of its slots.
    pub plan: &'a Plan,
    /// Tries that each run may have.
    pub attempts_max: i32,
    /// The id of the first run of the plan, if it has one.
    pub run_id: RunId,
    /// To claim that run at once.
    pub intent: Option<&'a Intent>,
    /// What is due behind the plan, and is dropped when that claim is the prompt's last.
    pub dropped: Option<Dropped>,
}

/// Writes a plan: a row per slot, the prompt's next slot, and the claim of the first run, if one is
/// asked for and the tenant has a place free. Ends the transaction. One round trip.
///
/// Gives `None` where nothing was claimed.
///
/// # Errors
/// When the database does not answer; then nothing is kept.
pub async fn write_plan(
    tx: TenantTx,
    due: &DuePrompt,
    writing: &Writing<'_>,
) -> Result<Option<Claim>, DbError> {
    write(Hold::Lock(tx), due, writing).await
}

/// The same for what was seen without a lock. One round trip, which other tenants' transactions share.
///
/// # Errors
/// `DbError::StaleLook` when it is not so any more; then nothing is kept, as when the database does
/// not answer.
pub async fn write_glanced(
    db: &Db,
    tenant_id: TenantId,
    glance: &Glance,
    writing: &Writing<'_>,
) -> Result<Option<Claim>, DbError> {
    write(
        Hold::Glance(db, tenant_id, &glance.seen),
        &glance.due,
        writing,
    )
    .await
}

/// Why what was looked at is still so when it is written.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and it is used up at once"
)]
enum Hold<'a> {
    /// It is locked.
    Lock(TenantTx),
    /// It is locked then, and compared.
    Glance(&'a Db, TenantId, &'a String),
}

async fn write(
    hold: Hold<'_>,
    due: &DuePrompt,
    writing: &Writing<'_>,
) -> Result<Option<Claim>, DbError> {
    let tenant_id = match &hold {
        Hold::Lock(tx) => tx.tenant(),
        Hold::Glance(_, tenant_id, _) => *tenant_id,
    };
    let (tenant, prompt) = (tenant_id.uuid(), due.prompt_id.uuid());
    let plan = writing.plan;
    let rows = PlanRows::new(plan, due.now, writing.run_id);
    let extended = plan.extension.map(|extension| extension.run_id.uuid());
    let (more, until) = plan.extension.map_or((0, None), |extension| {
        (extension.count, Some(extension.until))
    });
    let replaced = plan.replaced.map(RunId::uuid);
    let run = writing.intent.map(|_| writing.run_id.uuid());
    let taken_by = writing.run_id.uuid();
    let attempt = AttemptId::new().uuid();
    let none = Intent::default();
    let intent = writing.intent.unwrap_or(&none);
    let ended = plan.next.is_none().then_some("schedule_ended");
    let dropped = DroppedRow::new(writing.dropped.filter(|_| run.is_some()));
    let inserted = rows.params(&tenant, &prompt, &writing.attempts_max, &due.spec_version);
    let missed: [Param<'_>; 3] = [&extended, &more, &until];
    let waiting: [Param<'_>; 2] = [&replaced, &taken_by];
    let claims = run.is_some();
    let claim: [Param<'_>; 7] = [
        &run,
        &intent.lease_ms,
        &intent.rendered_input,
        &intent.provider,
        &intent.model,
        &intent.rendered_system,
        &attempt,
    ];
    let advanced: [Param<'_>; 4] = [&prompt, &run, &plan.next, &ended];
    let drops = dropped.is_needed();
    let dropped = dropped.params(&prompt, &"max_runs");
    let steps: [Step<'_>; 7] = [
        step(INSERT_PLANNED, &inserted).when(!plan.rows.is_empty()),
        step(EXTEND_MISSED, &missed).when(extended.is_some()),
        step(REPLACE_WAITING, &waiting).when(replaced.is_some()),
        step(LOCK_CLAIMS, &[]).when(claims),
        step(CLAIM_PLANNED, &claim).when(claims),
        step(ADVANCE_PROMPT, &advanced),
        step(DROP_OVER_LIMIT, &dropped).when(drops),
    ];
    let results = match hold {
        Hold::Lock(tx) => tx.commit_with(&steps).await?,
        Hold::Glance(db, tenant_id, seen) => {
            let looked: [Param<'_>; 2] = [&prompt, seen];
            let mut guarded = vec![step(LOCK_DUE, &looked[..1]), step(STILL_SEEN, &looked)];
            guarded.extend(steps);
            db.fly(tenant_id, &guarded).await?.split_off(2)
        }
    };
    let claimed = results.get(4).map_or(0, Vec::len);
    Ok((claimed == 1).then_some(Claim {
        tenant_id,
        prompt_id: due.prompt_id,
        run_id: writing.run_id,
        trigger: RunTrigger::Schedule,
        fence: 1,
        attempt: 1,
        attempts_max: writing.attempts_max,
    }))
}

const INSERT_PLANNED: &str = "-- runs::insert_planned
    INSERT INTO scheduled_prompt_runs
           (tenant_id, id, prompt_id, scheduled_for, trigger, status, reason, error_message,
            slots_count, scheduled_until, overlapped_by, available_at, attempts_max, prompt_version,
            completed_at)
    SELECT $1, t.id, $2, t.scheduled_for, 'schedule', t.status, t.reason, t.message, t.slots_count,
           t.scheduled_until, t.overlapped_by, t.available_at, $3, $4,
           CASE WHEN t.status <> 'queued' THEN clock_timestamp() END
      FROM unnest($5::uuid[], $6::timestamptz[], $7::text[], $8::text[], $9::text[], $10::int[],
                  $11::timestamptz[], $12::uuid[], $13::timestamptz[])
        AS t (id, scheduled_for, status, reason, message, slots_count, scheduled_until,
              overlapped_by, available_at)
    ON CONFLICT DO NOTHING";

const EXTEND_MISSED: &str = "-- runs::extend_missed
    UPDATE scheduled_prompt_runs
       SET slots_count = slots_count + $2, scheduled_until = $3
     WHERE id = $1 AND status = 'missed'";

/// Only if the slot had no row before: a backfill may have been quicker.
const REPLACE_WAITING: &str = "-- runs::replace_waiting
    UPDATE scheduled_prompt_runs
       SET status = 'skipped', reason = 'replaced', overlapped_by = $2::uuid,
           error_message = 'run ' || $2::uuid || ' took its place', completed_at = clock_timestamp()
     WHERE id = $1 AND status = 'queued' AND attempt = 0
       AND EXISTS (SELECT FROM scheduled_prompt_runs taker WHERE taker.id = $2::uuid)";

/// Behind [`LOCK_CLAIMS`]: what is running is then counted as it is.
const CLAIM_PLANNED: &str = "-- runs::claim_planned
    WITH claimed AS (
        UPDATE scheduled_prompt_runs
           SET status = 'running', fence = 1, attempt = 1, started_at = clock_timestamp(),
               lease_expires_at = clock_timestamp() + $2::bigint * interval '1 millisecond',
               rendered_input = $3, provider = $4, model = $5, rendered_system = $6
         WHERE id = $1 AND status = 'queued'
           AND (SELECT count(*) FROM scheduled_prompt_runs o WHERE o.status = 'running')
             < (SELECT t.concurrent_runs_max FROM tenants t)
        RETURNING tenant_id, id
    ), intended AS (
        INSERT INTO run_attempts (tenant_id, id, run_id, attempt, fence, status, provider, model)
        SELECT tenant_id, $7, id, 1, 1, 'started', $4, $5 FROM claimed
    )
    SELECT id FROM claimed";

/// The slot moves on only here, and with it what failed looks had put off.
const ADVANCE_PROMPT: &str = "-- runs::advance_prompt
    UPDATE scheduled_prompts p
       SET run_count = n.run_count,
           next_run_at = CASE WHEN n.reason IS NULL THEN $3::timestamptz END,
           looks_failed = 0, look_again_at = NULL,
           status = CASE WHEN n.reason IS NULL THEN p.status ELSE 'completed' END,
           status_reason = coalesce(n.reason, p.status_reason),
           completed_at = CASE WHEN n.reason IS NULL THEN p.completed_at ELSE clock_timestamp() END,
           version = p.version + CASE WHEN n.reason IS NULL THEN 0 ELSE 1 END
      FROM (SELECT q.run_count + c.claimed AS run_count,
                   CASE WHEN q.max_runs <= q.run_count + c.claimed THEN 'max_runs'
                        ELSE $4::text END AS reason
              FROM scheduled_prompts q,
                   (SELECT count(*) AS claimed FROM scheduled_prompt_runs
                     WHERE id = $2 AND status = 'running') c
             WHERE q.id = $1) n
     WHERE p.id = $1";

/// Columns of [`INSERT_PLANNED`].
#[derive(Default)]
struct PlanRows {
    ids: Vec<Uuid>,
    scheduled_for: Vec<DateTime<Utc>>,
    statuses: Vec<&'static str>,
    reasons: Vec<Option<&'static str>>,
    messages: Vec<Option<String>>,
    counts: Vec<i32>,
    untils: Vec<Option<DateTime<Utc>>>,
    overlapped_by: Vec<Option<Uuid>>,
    available_at: Vec<DateTime<Utc>>,
}

impl PlanRows {
    /// The first slot that runs gets the id `first`.
    fn new(plan: &Plan, now: DateTime<Utc>, first: RunId) -> Self {
        let mut rows = Self::default();
        let mut first = Some(first);
        for planned in &plan.rows {
            let (mut by, mut count, mut until, mut available_at) = (None, 1, None, now);
            let (status, reason) = match planned.fate {
                Fate::Run { after } => {
                    available_at = now + after;
                    (RunStatus::Queued, None)
                }
                Fate::Overlapped { by: run_id } => {
                    by = Some(run_id);
                    (RunStatus::Skipped, Some("overlap"))
                }
                Fate::OverLimit => (RunStatus::Skipped, Some("max_runs")),
                Fate::Missed {
                    reason,
                    count: slots,
                    until: last,
                } => {
                    count = slots;
                    until = (slots > 1).then_some(last);
                    (RunStatus::Missed, Some(reason))
                }
            };
            let id = if status == RunStatus::Queued {
                first.take().unwrap_or_else(RunId::new)
            } else {
                RunId::new()
            };
            rows.ids.push(id.uuid());
            rows.scheduled_for.push(planned.scheduled_for);
            rows.statuses.push(status.as_str());
            rows.reasons.push(reason);
            rows.messages
                .push(by.map(|by| format!("run {by} was not over")));
            rows.counts.push(count);
            rows.untils.push(until);
            rows.overlapped_by.push(by.map(RunId::uuid));
            rows.available_at.push(available_at);
        }
        rows
    }

    fn params<'a>(
        &'a self,
        tenant: &'a Uuid,
        prompt: &'a Uuid,
        attempts_max: &'a i32,
        version: &'a i64,
    ) -> [Param<'a>; 13] {
        [
            tenant,
            prompt,
            attempts_max,
            version,
            &self.ids,
            &self.scheduled_for,
            &self.statuses,
            &self.reasons,
            &self.messages,
            &self.counts,
            &self.untils,
            &self.overlapped_by,
            &self.available_at,
        ]
    }
}
