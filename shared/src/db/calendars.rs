//! Calendars of holidays, and which prompts name them.
//!
//! A change of a calendar takes a lock that every change of a prompt shares, before any row's: so no
//! prompt is made or edited by days that are about to change, and a calendar that goes is named by
//! nobody.

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    DbError, TenantTx, column,
    tenant_tx::{Step, step},
};
use crate::{
    calendar::Days,
    exclusion::{CalendarName, Holidays},
    ids::{CalendarId, PromptId},
    prompt::Timing,
};

/// The most calendars of a tenant.
pub const CALENDARS_MAX: i64 = 100;

/// Shared by the changes of prompts.
pub(super) const LOCK_SHARED: &str = "-- calendars::lock_shared
     SELECT pg_advisory_xact_lock_shared(
         hashtextextended('calendars:' || current_setting('app.current_tenant_id'), 0))";

const LOCK: &str = "-- calendars::lock
     SELECT pg_advisory_xact_lock(
         hashtextextended('calendars:' || current_setting('app.current_tenant_id'), 0))";

/// The calendars of these names, and those that prompt $2 names.
pub(super) const HOLIDAYS: &str = "-- calendars::holidays
     SELECT c.name, c.days FROM calendars c WHERE c.name = ANY ($1)
     UNION ALL
     SELECT c.name, c.days
       FROM prompt_calendars l JOIN calendars c ON c.tenant_id = l.tenant_id AND c.id = l.calendar_id
      WHERE l.prompt_id = $2 AND c.name <> ALL ($1)";

/// The calendars that the prompt of this id names, as one value for [`holidays_of`].
macro_rules! named_holidays {
    ($prompt_id:literal) => {
        concat!(
            "(SELECT jsonb_object_agg(c.name, c.days)
                FROM prompt_calendars l
                JOIN calendars c ON c.tenant_id = l.tenant_id AND c.id = l.calendar_id
               WHERE l.prompt_id = ",
            $prompt_id,
            ") AS holidays"
        )
    };
}
pub(super) use named_holidays;

/// A calendar.
#[derive(Debug, Clone, PartialEq)]
pub struct Calendar {
    /// The calendar.
    pub id: CalendarId,
    /// What prompts call it.
    pub name: String,
    /// Its days.
    pub days: Days,
    /// Counts changes; the ETag.
    pub version: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its days were last changed.
    pub updated_at: DateTime<Utc>,
}

/// A calendar in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The calendar.
    pub id: CalendarId,
    /// What prompts call it.
    pub name: String,
    /// How many days it has.
    pub days_count: i32,
    /// The earliest.
    pub first_date: Option<NaiveDate>,
    /// The latest.
    pub last_date: Option<NaiveDate>,
    /// Counts changes; the ETag.
    pub version: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its days were last changed.
    pub updated_at: DateTime<Utc>,
}

/// A calendar that is about to be changed.
#[derive(Debug)]
pub struct Standing {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// How many calendars the tenant has.
    pub calendars: i64,
    /// The one of the name, if there is one.
    pub calendar: Option<Calendar>,
}

/// When an active prompt that names a calendar is due.
#[derive(Debug)]
pub struct DuePrompt {
    /// The prompt.
    pub id: PromptId,
    /// Gives its slots.
    pub timing: Timing,
    /// Its next slot, as stored.
    pub next_run_at: Option<DateTime<Utc>>,
}

/// What the calendars of these names hold; one that is not there is not in it. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn holidays(tx: &TenantTx, names: &[&str]) -> Result<Holidays, DbError> {
    let rows = tx.query(HOLIDAYS, &[&names, &None::<Uuid>]).await?;
    read_holidays(&rows)
}

/// A page of the tenant's calendars, by name. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    tx: TenantTx,
    after: Option<&str>,
    rows_max: i64,
) -> Result<Vec<Summary>, DbError> {
    let after = after.unwrap_or_default();
    let results = tx
        .commit_with(&[step(
            "-- calendars::list
             SELECT c.id, c.name, jsonb_array_length(c.days) AS days_count,
                    (c.days -> 0 ->> 'date')::date AS first_date,
                    (c.days -> -1 ->> 'date')::date AS last_date, c.version, c.created_at, c.updated_at
               FROM calendars c
              WHERE c.name > $1
              ORDER BY c.name LIMIT $2",
            &[&after, &rows_max],
        )])
        .await?;
    let rows = results.iter().flatten();
    rows.map(|row| {
        Ok(Summary {
            id: CalendarId::from(column::<Uuid>(row, "id")?),
            name: column(row, "name")?,
            days_count: column(row, "days_count")?,
            first_date: column(row, "first_date")?,
            last_date: column(row, "last_date")?,
            version: column(row, "version")?,
            created_at: column(row, "created_at")?,
            updated_at: column(row, "updated_at")?,
        })
    })
    .collect()
}

/// A calendar with its days. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn get(tx: TenantTx, name: &CalendarName) -> Result<Option<Calendar>, DbError> {
    let name = name.as_str();
    let results = tx.commit_with(&[step(GET, &[&name])]).await?;
    results.iter().flatten().next().map(read).transpose()
}

/// The calendar of this name as it stays until the transaction ends, but for a change in it. Nobody
/// else changes a calendar or makes or edits a prompt meanwhile. One round trip.
///
/// # Errors
/// When the database does not answer, or the lock is not free in time.
pub async fn get_to_change(tx: &TenantTx, name: &CalendarName) -> Result<Standing, DbError> {
    let name = name.as_str();
    let results = tx
        .pipeline(&[
            step(LOCK, &[]),
            step(
                "-- calendars::standing
                 SELECT clock_timestamp() AS now, count(*) AS calendars FROM calendars",
                &[],
            ),
            step(GET, &[&name]),
        ])
        .await?;
    let [_, standing, calendar] = results.as_slice() else {
        return Err(DbError::Aborted);
    };
    let standing = standing.first().ok_or(DbError::Aborted)?;
    Ok(Standing {
        now: column(standing, "now")?,
        calendars: column(standing, "calendars")?,
        calendar: calendar.first().map(read).transpose()?,
    })
}

/// Makes a calendar. One round trip.
///
/// # Errors
/// A unique violation when there is one of the name.
pub async fn insert(
    tx: &TenantTx,
    id: CalendarId,
    name: &CalendarName,
    days: &Days,
) -> Result<Calendar, DbError> {
    let row = tx
        .query_one(
            "-- calendars::insert
             INSERT INTO calendars AS c (tenant_id, id, name, days) VALUES ($1, $2, $3, $4)
             RETURNING c.id, c.name, c.days, c.version, c.created_at, c.updated_at",
            &[
                &tx.tenant().uuid(),
                &id.uuid(),
                &name.as_str(),
                &days.to_json(),
            ],
        )
        .await?;
    read(&row)
}

/// Gives a calendar other days. One round trip.
///
/// # Errors
/// `DbError::RowCount` when it is gone or has another version.
pub async fn replace(
    tx: &TenantTx,
    id: CalendarId,
    version: i64,
    days: &Days,
) -> Result<Calendar, DbError> {
    let row = tx
        .query_one(
            "-- calendars::replace
             UPDATE calendars c SET days = $3, version = c.version + 1, updated_at = now()
              WHERE c.id = $1 AND c.version = $2
             RETURNING c.id, c.name, c.days, c.version, c.created_at, c.updated_at",
            &[&id.uuid(), &version, &days.to_json()],
        )
        .await?;
    read(&row)
}

/// What all calendars hold that stand beside this one in some prompt, itself included. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn holidays_beside(tx: &TenantTx, id: CalendarId) -> Result<Holidays, DbError> {
    let rows = tx
        .query(
            "-- calendars::holidays_beside
             SELECT c.name, c.days FROM calendars c
              WHERE c.id IN (SELECT o.calendar_id FROM prompt_calendars l
                               JOIN prompt_calendars o ON o.tenant_id = l.tenant_id
                                                      AND o.prompt_id = l.prompt_id
                              WHERE l.calendar_id = $1)",
            &[&id.uuid()],
        )
        .await?;
    read_holidays(&rows)
}

/// The active prompts behind `after` that name the calendar, locked, in the order of their ids. One
/// round trip.
///
/// # Errors
/// When the database does not answer, or a row is not free in time.
pub async fn lock_prompts(
    tx: &TenantTx,
    id: CalendarId,
    after: Option<PromptId>,
    rows_max: i64,
) -> Result<Vec<DuePrompt>, DbError> {
    let (id, after) = (id.uuid(), after.map_or(Uuid::nil(), PromptId::uuid));
    let results = tx
        .pipeline(&[
            step(
                "-- calendars::lock_prompts
                 SELECT p.id FROM scheduled_prompts p
                   JOIN prompt_calendars l ON l.tenant_id = p.tenant_id AND l.prompt_id = p.id
                  WHERE l.calendar_id = $1 AND l.prompt_id > $2
                    AND p.status = 'active' AND p.deleted_at IS NULL
                  ORDER BY l.prompt_id LIMIT $3 FOR NO KEY UPDATE OF p",
                &[&id, &after, &rows_max],
            ),
            // After the locks: what the holder before did is seen by a new statement alone.
            step(
                "-- calendars::prompts
                 SELECT p.id, p.next_run_at, v.spec -> 'schedule' AS schedule,
                        v.spec -> 'exclusions' AS exclusions
                   FROM scheduled_prompts p
                   JOIN prompt_calendars l ON l.tenant_id = p.tenant_id AND l.prompt_id = p.id
                   JOIN prompt_versions v ON v.tenant_id = p.tenant_id AND v.prompt_id = p.id
                                         AND v.version = p.spec_version
                  WHERE l.calendar_id = $1 AND l.prompt_id > $2
                    AND p.status = 'active' AND p.deleted_at IS NULL
                  ORDER BY l.prompt_id LIMIT $3",
                &[&id, &after, &rows_max],
            ),
        ])
        .await?;
    let rows = results.last().into_iter().flatten();
    rows.map(|row| {
        Ok(DuePrompt {
            id: PromptId::from(column::<Uuid>(row, "id")?),
            timing: timing(row)?,
            next_run_at: column(row, "next_run_at")?,
        })
    })
    .collect()
}

/// Moves the next slots of prompts that [`lock_prompts`] gave. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn move_slots(
    tx: &TenantTx,
    moved: &[(PromptId, Option<DateTime<Utc>>)],
) -> Result<u64, DbError> {
    let ids: Vec<Uuid> = moved.iter().map(|(id, _)| id.uuid()).collect();
    let slots: Vec<Option<DateTime<Utc>>> = moved.iter().map(|(_, slot)| *slot).collect();
    tx.execute(
        "-- calendars::move_slots
         UPDATE scheduled_prompts p SET next_run_at = t.next_run_at
           FROM unnest($1::uuid[], $2::timestamptz[]) AS t (id, next_run_at)
          WHERE p.id = t.id AND p.status = 'active' AND p.deleted_at IS NULL",
        &[&ids, &slots],
    )
    .await
}

/// Prompts that keep a calendar from being deleted.
#[derive(Debug)]
pub struct Users {
    /// How many.
    pub count: i64,
    /// The first of them.
    pub ids: Vec<PromptId>,
}

/// Who names the calendar and may be due again, and the first `ids_max` of them. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn users(tx: &TenantTx, id: CalendarId, ids_max: i64) -> Result<Users, DbError> {
    let row = tx
        .query_one(
            "-- calendars::users
             SELECT count(*) AS users, (array_agg(p.id ORDER BY p.id))[:$2] AS ids
               FROM prompt_calendars l
               JOIN scheduled_prompts p ON p.tenant_id = l.tenant_id AND p.id = l.prompt_id
              WHERE l.calendar_id = $1 AND p.deleted_at IS NULL AND p.status IN ('active', 'paused')",
            &[&id.uuid(), &i32::try_from(ids_max).unwrap_or(i32::MAX)],
        )
        .await?;
    let ids: Option<Vec<Uuid>> = column(&row, "ids")?;
    Ok(Users {
        count: column(&row, "users")?,
        ids: ids
            .unwrap_or_default()
            .into_iter()
            .map(PromptId::from)
            .collect(),
    })
}

/// Deletes a calendar, and the word of ended prompts that they named it. One round trip.
///
/// # Errors
/// A foreign key violation when a prompt that may be due again names it.
pub async fn delete(tx: &TenantTx, id: CalendarId) -> Result<bool, DbError> {
    let results = tx
        .pipeline(&[
            step(
                "-- calendars::forget_ended
                 DELETE FROM prompt_calendars l
                  USING scheduled_prompts p
                  WHERE l.calendar_id = $1 AND p.tenant_id = l.tenant_id AND p.id = l.prompt_id
                    AND (p.deleted_at IS NOT NULL OR p.status NOT IN ('active', 'paused'))",
                &[&id.uuid()],
            ),
            step(
                "-- calendars::delete
                 DELETE FROM calendars c WHERE c.id = $1 RETURNING c.id",
                &[&id.uuid()],
            ),
        ])
        .await?;
    Ok(results.last().is_some_and(|rows| rows.len() == 1))
}

const GET: &str = "-- calendars::get
     SELECT c.id, c.name, c.days, c.version, c.created_at, c.updated_at
       FROM calendars c WHERE c.name = $1";

/// Writes down which calendars a prompt names: $1 its id, $2 their names. With the prompt's own
/// write, under [`LOCK_SHARED`].
pub(super) fn link<'a>(params: &'a [super::Param<'a>; 2]) -> [Step<'a>; 2] {
    [
        step(
            "-- calendars::unlink
             DELETE FROM prompt_calendars l
              WHERE l.prompt_id = $1
                AND NOT EXISTS (SELECT FROM calendars c
                                 WHERE c.tenant_id = l.tenant_id AND c.id = l.calendar_id
                                   AND c.name = ANY ($2))",
            params,
        ),
        step(
            "-- calendars::link
             INSERT INTO prompt_calendars (tenant_id, prompt_id, calendar_id)
             SELECT p.tenant_id, p.id, c.id
               FROM scheduled_prompts p JOIN calendars c ON c.tenant_id = p.tenant_id
              WHERE p.id = $1 AND c.name = ANY ($2)
             ON CONFLICT (tenant_id, prompt_id, calendar_id) DO NOTHING",
            params,
        ),
    ]
}

/// Reads rows of a name and its days.
pub(super) fn read_holidays(rows: &[Row]) -> Result<Holidays, DbError> {
    let mut holidays = Holidays::default();
    for row in rows {
        add(
            &mut holidays,
            &column::<String>(row, "name")?,
            column(row, "days")?,
        )?;
    }
    Ok(holidays)
}

/// Reads the value that `named_holidays!` gives; NULL for a prompt that names no calendar.
pub(super) fn holidays_of(value: Option<Value>) -> Result<Holidays, DbError> {
    let mut holidays = Holidays::default();
    let Some(Value::Object(calendars)) = value else {
        return Ok(holidays);
    };
    for (name, days) in calendars {
        add(&mut holidays, &name, days)?;
    }
    Ok(holidays)
}

fn add(holidays: &mut Holidays, name: &str, days: Value) -> Result<(), DbError> {
    let calendar = CalendarName::parse(name).map_err(|fault| stored(fault.detail))?;
    let days = read_days(days)?;
    // A day without a name is a day of its calendar.
    let named = days
        .iter()
        .map(|day| (day.date, day.name.unwrap_or_else(|| name.to_owned())));
    holidays.insert(calendar, named);
    Ok(())
}

fn read(row: &Row) -> Result<Calendar, DbError> {
    Ok(Calendar {
        id: CalendarId::from(column::<Uuid>(row, "id")?),
        name: column(row, "name")?,
        days: read_days(column(row, "days")?)?,
        version: column(row, "version")?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
    })
}

fn read_days(days: Value) -> Result<Days, DbError> {
    Days::from_stored(days).map_err(|error| stored(error.to_string()))
}

/// When a prompt is due, from the columns `schedule` and `exclusions` of its version.
pub(super) fn timing(row: &Row) -> Result<Timing, DbError> {
    let (schedule, exclusions): (Value, Option<Value>) =
        (column(row, "schedule")?, column(row, "exclusions")?);
    Timing::from_stored(&schedule, exclusions.as_ref()).map_err(|faults| {
        let codes: Vec<_> = faults.iter().map(|fault| fault.code).collect();
        DbError::Stored {
            what: "schedule",
            detail: codes.join(", "),
        }
    })
}

fn stored(detail: String) -> DbError {
    DbError::Stored {
        what: "calendar",
        detail,
    }
}
