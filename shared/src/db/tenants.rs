//! A tenant's own row: limits, retention, the webhook secret.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::{DbError, TenantTx, column, tenant_tx::step};
use crate::{api_key::Role, ids::UserId};

/// A tenant that is to be made; the rest takes the table's defaults, for [`update`] to change.
#[derive(Debug)]
pub struct NewTenant<'a> {
    /// Its name.
    pub name: &'a str,
    /// Address of its first user.
    pub owner_email: &'a str,
    /// The secret that signs its webhooks, sealed.
    pub webhook_secret_sealed: &'a [u8],
}

/// Makes the transaction's tenant and its first user.
///
/// # Errors
/// A unique violation of `tenants_pkey` when there is such a tenant already.
pub async fn create(tx: &TenantTx, new: &NewTenant<'_>) -> Result<UserId, DbError> {
    let tenant = tx.tenant().uuid();
    let user = UserId::new();
    tx.pipeline(&[
        step(
            "-- tenants::create
             INSERT INTO tenants (id, name, webhook_secret_sealed) VALUES ($1, $2, $3)",
            &[&tenant, &new.name, &new.webhook_secret_sealed],
        ),
        step(
            "-- tenants::create_owner
             INSERT INTO users (tenant_id, id, email, role) VALUES ($1, $2, $3, $4)",
            &[
                &tenant,
                &user.uuid(),
                &new.owner_email,
                &Role::Owner.as_str(),
            ],
        ),
    ])
    .await?;
    Ok(user)
}

/// What may be changed; `None` leaves it as it is.
#[derive(Debug, Default)]
pub struct Changes {
    /// Its name.
    pub name: Option<String>,
    /// IANA name.
    pub default_timezone: Option<String>,
    /// How many prompts may be active.
    pub active_prompts_max: Option<i32>,
    /// How many runs may be running.
    pub concurrent_runs_max: Option<i32>,
    /// The shortest distance between two slots, in minutes.
    pub interval_minutes_min: Option<i32>,
    /// API requests a minute of all callers together.
    pub requests_per_minute_max: Option<i32>,
    /// API requests a minute of each caller.
    pub caller_requests_per_minute_max: Option<i32>,
    /// Days until a succeeded run is deleted.
    pub retention_succeeded_days: Option<i32>,
    /// Days until a failed run is deleted.
    pub retention_failed_days: Option<i32>,
    /// Days until any other ended run is deleted.
    pub retention_other_days: Option<i32>,
}

/// Changes the tenant; `false` when there is no such tenant.
///
/// # Errors
/// When the database does not answer.
pub async fn update(tx: &TenantTx, changes: &Changes) -> Result<bool, DbError> {
    let changed = tx
        .execute(
            "-- tenants::update
             UPDATE tenants
                SET name = coalesce($2, name),
                    default_timezone = coalesce($3, default_timezone),
                    active_prompts_max = coalesce($4, active_prompts_max),
                    concurrent_runs_max = coalesce($5, concurrent_runs_max),
                    interval_minutes_min = coalesce($6, interval_minutes_min),
                    retention_succeeded_days = coalesce($7, retention_succeeded_days),
                    retention_failed_days = coalesce($8, retention_failed_days),
                    retention_other_days = coalesce($9, retention_other_days),
                    requests_per_minute_max = coalesce($10, requests_per_minute_max),
                    caller_requests_per_minute_max = coalesce($11, caller_requests_per_minute_max),
                    updated_at = now()
              WHERE id = $1",
            &[
                &tx.tenant().uuid(),
                &changes.name,
                &changes.default_timezone,
                &changes.active_prompts_max,
                &changes.concurrent_runs_max,
                &changes.interval_minutes_min,
                &changes.retention_succeeded_days,
                &changes.retention_failed_days,
                &changes.retention_other_days,
                &changes.requests_per_minute_max,
                &changes.caller_requests_per_minute_max,
            ],
        )
        .await?;
    Ok(changed == 1)
}

/// Whether a tenant's keys and slots work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantStatus {
    /// They do.
    Active,
    /// They do not.
    Suspended,
}

impl TenantStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

/// Suspends or resumes the tenant, and with it what it has open: the sweeper does not come by that
/// of a suspended tenant. `false` when it has that status already, or when there is no such tenant.
///
/// # Errors
/// When the database does not answer.
pub async fn set_status(tx: &TenantTx, status: TenantStatus) -> Result<bool, DbError> {
    let changed = tx
        .execute(
            "-- tenants::set_status
             UPDATE tenants SET status = $2, updated_at = now() WHERE id = $1 AND status <> $2",
            &[&tx.tenant().uuid(), &status.as_str()],
        )
        .await?;
    if changed == 0 {
        return Ok(false);
    }
    let steps = match status {
        TenantStatus::Suspended => [HOLD_PROMPTS, HOLD_RUNS, HOLD_DELIVERIES],
        TenantStatus::Active => [RELEASE_PROMPTS, RELEASE_RUNS, RELEASE_DELIVERIES],
    };
    let [prompts, runs, deliveries] = steps.map(|sql| step(sql, &[]));
    tx.pipeline(&[step(LOCK_OPEN, &[]), prompts, runs, deliveries])
        .await?;
    Ok(true)
}

/// Every prompt that has something open, as whoever changes a run or delivery locks its prompt first.
const LOCK_OPEN: &str = "-- tenants::lock_open
    SELECT p.id FROM scheduled_prompts p
     WHERE p.id IN (SELECT a.id FROM scheduled_prompts a
                     WHERE a.status = 'active' AND a.deleted_at IS NULL
                    UNION SELECT r.prompt_id FROM scheduled_prompt_runs r
                     WHERE r.status IN ('queued', 'running')
                    UNION SELECT r.prompt_id FROM deliveries d
                      JOIN scheduled_prompt_runs r ON r.tenant_id = d.tenant_id AND r.id = d.run_id
                     WHERE d.status IN ('pending', 'retrying', 'sending'))
     ORDER BY p.id FOR NO KEY UPDATE";

const HOLD_PROMPTS: &str = "-- tenants::hold_prompts
    UPDATE scheduled_prompts SET look_again_at = 'infinity'
     WHERE status = 'active' AND deleted_at IS NULL AND next_run_at IS NOT NULL";
const HOLD_RUNS: &str = "-- tenants::hold_runs
    UPDATE scheduled_prompt_runs SET look_again_at = 'infinity' WHERE status IN ('queued', 'running')";
const HOLD_DELIVERIES: &str = "-- tenants::hold_deliveries
    UPDATE deliveries SET look_again_at = 'infinity'
     WHERE status IN ('pending', 'retrying', 'sending')";

// What was held and has ended meanwhile is let go when it is opened again.
const RELEASE_PROMPTS: &str = "-- tenants::release_prompts
    UPDATE scheduled_prompts SET look_again_at = NULL
     WHERE status = 'active' AND deleted_at IS NULL AND look_again_at = 'infinity'";
const RELEASE_RUNS: &str = "-- tenants::release_runs
    UPDATE scheduled_prompt_runs SET look_again_at = NULL
     WHERE status IN ('queued', 'running') AND look_again_at = 'infinity'";
const RELEASE_DELIVERIES: &str = "-- tenants::release_deliveries
    UPDATE deliveries SET look_again_at = NULL
     WHERE status IN ('pending', 'retrying', 'sending') AND look_again_at = 'infinity'";

/// A tenant as it is seen by its owner and by the operator.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// `active` or `suspended`.
    pub status: String,
    /// IANA name.
    pub default_timezone: String,
    /// How many prompts may be active.
    pub active_prompts_max: i32,
    /// How many runs may be running.
    pub concurrent_runs_max: i32,
    /// The shortest distance between two slots, in minutes.
    pub interval_minutes_min: i32,
    /// API requests a minute of all callers together.
    pub requests_per_minute_max: i32,
    /// API requests a minute of each caller.
    pub caller_requests_per_minute_max: i32,
    /// Days until a succeeded run is deleted.
    pub retention_succeeded_days: i32,
    /// Days until a failed run is deleted.
    pub retention_failed_days: i32,
    /// Days until any other ended run is deleted.
    pub retention_other_days: i32,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// First day of the month that the usage is of, UTC.
    pub period: NaiveDate,
    /// Model calls that were answered.
    pub runs: i64,
    /// Tokens read.
    pub input_tokens: i64,
    /// Tokens written.
    pub output_tokens: i64,
    /// Sum of the known costs.
    pub cost_settled_usd: Decimal,
    /// Prompts that fire.
    pub prompts_active: i64,
    /// Prompts that wait for a resume.
    pub prompts_paused: i64,
    /// Runs that wait.
    pub runs_queued: i64,
    /// Runs under way.
    pub runs_running: i64,
}

/// Reads the transaction's tenant.
///
/// # Errors
/// When the database does not answer.
pub async fn get(tx: &TenantTx) -> Result<Option<Tenant>, DbError> {
    let row = tx
        .query_opt(
            "-- tenants::get
             SELECT t.name, t.status, t.default_timezone, t.active_prompts_max,
                    t.concurrent_runs_max, t.interval_minutes_min, t.requests_per_minute_max,
                    t.caller_requests_per_minute_max, t.retention_succeeded_days,
                    t.retention_failed_days, t.retention_other_days, t.created_at, t.updated_at,
                    month.period,
                    coalesce(u.runs, 0) AS runs,
                    coalesce(u.input_tokens, 0) AS input_tokens,
                    coalesce(u.output_tokens, 0) AS output_tokens,
                    coalesce(u.cost_settled_usd, 0) AS cost_settled_usd,
                    p.active AS prompts_active, p.paused AS prompts_paused,
                    r.queued AS runs_queued, r.running AS runs_running
               FROM tenants t
              CROSS JOIN (SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date AS period) month
               LEFT JOIN tenant_usage u ON u.tenant_id = t.id AND u.period = month.period
              CROSS JOIN (SELECT count(*) FILTER (WHERE status = 'active') AS active,
                                 count(*) FILTER (WHERE status = 'paused') AS paused
                            FROM scheduled_prompts
                           WHERE deleted_at IS NULL AND status IN ('active', 'paused')) p
              CROSS JOIN (SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
                                 count(*) FILTER (WHERE status = 'running') AS running
                            FROM scheduled_prompt_runs
                           WHERE status IN ('queued', 'running', 'generated')) r
              WHERE t.id = $1",
            &[&tx.tenant().uuid()],
        )
        .await?;
    row.map(|row| {
        Ok(Tenant {
            name: column(&row, "name")?,
            status: column(&row, "status")?,
            default_timezone: column(&row, "default_timezone")?,
            active_prompts_max: column(&row, "active_prompts_max")?,
            concurrent_runs_max: column(&row, "concurrent_runs_max")?,
            interval_minutes_min: column(&row, "interval_minutes_min")?,
            requests_per_minute_max: column(&row, "requests_per_minute_max")?,
            caller_requests_per_minute_max: column(&row, "caller_requests_per_minute_max")?,
            retention_succeeded_days: column(&row, "retention_succeeded_days")?,
            retention_failed_days: column(&row, "retention_failed_days")?,
            retention_other_days: column(&row, "retention_other_days")?,
            created_at: column(&row, "created_at")?,
            updated_at: column(&row, "updated_at")?,
            period: column(&row, "period")?,
            runs: column(&row, "runs")?,
            input_tokens: column(&row, "input_tokens")?,
            output_tokens: column(&row, "output_tokens")?,
            cost_settled_usd: column(&row, "cost_settled_usd")?,
            prompts_active: column(&row, "prompts_active")?,
            prompts_paused: column(&row, "prompts_paused")?,
            runs_queued: column(&row, "runs_queued")?,
            runs_running: column(&row, "runs_running")?,
        })
    })
    .transpose()
}

/// The user to whom a rescue key is given: the tenant's first owner.
///
/// # Errors
/// When the database does not answer.
pub async fn first_owner(tx: &TenantTx) -> Result<Option<UserId>, DbError> {
    let row = tx
        .query_opt(
            "-- tenants::first_owner
             SELECT id FROM users WHERE role = 'owner' AND removed_at IS NULL ORDER BY id LIMIT 1",
            &[],
        )
        .await?;
    row.map(|row| Ok(UserId::from(column::<Uuid>(&row, "id")?)))
        .transpose()
}

/// What may be told about the secrets that sign webhooks.
#[derive(Debug)]
pub struct WebhookSecrets {
    /// When the current one took over; `None` while the first one stands.
    pub rotated_at: Option<DateTime<Utc>>,
    /// Until when the one before it signs beside it.
    pub previous_valid_until: Option<DateTime<Utc>>,
}

/// Says which of the tenant's webhook secrets sign.
///
/// # Errors
/// When the database does not answer.
pub async fn webhook_secrets(tx: &TenantTx) -> Result<WebhookSecrets, DbError> {
    let row = tx
        .query_one(
            "-- tenants::webhook_secrets
             SELECT webhook_secret_rotated_at AS rotated_at,
                    CASE WHEN webhook_secret_previous_sealed IS NOT NULL
                          AND webhook_secret_rotated_at > now() - interval '24 hours'
                         THEN webhook_secret_rotated_at + interval '24 hours'
                    END AS previous_valid_until
               FROM tenants WHERE id = $1",
            &[&tx.tenant().uuid()],
        )
        .await?;
    Ok(WebhookSecrets {
        rotated_at: column(&row, "rotated_at")?,
        previous_valid_until: column(&row, "previous_valid_until")?,
    })
}

/// Puts a new secret in the place of the current one, which signs beside it for 24 hours.
///
/// # Errors
/// When the database does not answer.
pub async fn rotate_webhook_secret(
    tx: &TenantTx,
    sealed: &[u8],
) -> Result<WebhookSecrets, DbError> {
    let row = tx
        .query_one(
            "-- tenants::rotate_webhook_secret
             UPDATE tenants
                SET webhook_secret_previous_sealed = webhook_secret_sealed,
                    webhook_secret_sealed = $2, webhook_secret_rotated_at = now(),
                    updated_at = now()
              WHERE id = $1
             RETURNING webhook_secret_rotated_at AS rotated_at,
                       webhook_secret_rotated_at + interval '24 hours' AS previous_valid_until",
            &[&tx.tenant().uuid(), &sealed],
        )
        .await?;
    Ok(WebhookSecrets {
        rotated_at: column(&row, "rotated_at")?,
        previous_valid_until: column(&row, "previous_valid_until")?,
    })
}
