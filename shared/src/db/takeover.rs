//! Takes over from a process that is gone.

use tokio_postgres::Client;

use super::{DbError, migrate};
use crate::secret::Secret;

/// Ends every lease at once, so that what a killed process held is claimed again without waiting.
///
/// Only for a database that one process has to itself. A claimant that is alive after all loses
/// nothing but its work: its fence is stale once somebody else has claimed.
///
/// `admin_url` names a superuser.
///
/// # Errors
/// When the database does not answer.
pub async fn end_leases(admin_url: &Secret) -> Result<u64, DbError> {
    let client: Client = migrate::connect(admin_url).await?;
    let runs = client
        .execute(
            "-- takeover::end_run_leases
             UPDATE scheduled_prompt_runs SET lease_expires_at = clock_timestamp()
              WHERE status = 'running' AND lease_expires_at > clock_timestamp()",
            &[],
        )
        .await?;
    let deliveries = client
        .execute(
            "-- takeover::end_delivery_leases
             UPDATE deliveries SET lease_expires_at = clock_timestamp()
              WHERE status = 'sending' AND lease_expires_at > clock_timestamp()",
            &[],
        )
        .await?;
    Ok(runs + deliveries)
}
