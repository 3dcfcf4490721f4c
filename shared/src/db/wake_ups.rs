//! Whether what a wake-up names is there.

use super::{DbError, TenantTx, tenant_tx::step};
use crate::message::WakeUp;

/// Whether the tenant has what the wake-up names, whatever its state. Ends the transaction. One
/// round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn is_known(tx: TenantTx, wake_up: WakeUp) -> Result<bool, DbError> {
    let (sql, id) = match wake_up {
        WakeUp::Prompt { prompt_id, .. } => (
            "-- wake_ups::knows_prompt
             SELECT id FROM scheduled_prompts WHERE id = $1",
            prompt_id.uuid(),
        ),
        WakeUp::Run { run_id, .. } => (
            "-- wake_ups::knows_run
             SELECT id FROM scheduled_prompt_runs WHERE id = $1",
            run_id.uuid(),
        ),
        WakeUp::Delivery { delivery_id, .. } => (
            "-- wake_ups::knows_delivery
             SELECT id FROM deliveries WHERE id = $1",
            delivery_id.uuid(),
        ),
    };
    let results = tx.commit_with(&[step(sql, &[&id])]).await?;
    Ok(results.iter().flatten().next().is_some())
}
