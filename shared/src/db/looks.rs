//! Puts off what could not be looked at, so that it does not fill every sweep.
//!
//! Only the sweeper is told to wait, longer each time: a slot, an attempt and a lease stay where they
//! are, and any other wake-up looks at once.

use super::{DbError, TenantTx, tenant_tx::step};
use crate::message::WakeUp;

/// Notes that a look at what this wake-up names ended in an error, if it is still due. The sweeper
/// looks again after 5 s, then after twice as long each time, up to 20 min. Ends the transaction. One
/// round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn put_off(tx: TenantTx, wake_up: WakeUp) -> Result<(), DbError> {
    let (sql, id) = match wake_up {
        WakeUp::Prompt { prompt_id, .. } => (PUT_OFF_PROMPT, prompt_id.uuid()),
        WakeUp::Run { run_id, .. } => (PUT_OFF_RUN, run_id.uuid()),
        WakeUp::Delivery { delivery_id, .. } => (PUT_OFF_DELIVERY, delivery_id.uuid()),
    };
    tx.commit_with(&[step(sql, &[&id])]).await?;
    Ok(())
}

/// A row that waits for its tenant to be resumed is not due.
macro_rules! put_off {
    ($name:literal, $table:literal) => {
        concat!(
            $name,
            "
             UPDATE ",
            $table,
            " SET looks_failed = looks_failed + 1,
                     look_again_at = clock_timestamp()
                         + least(5 * 2 ^ least(looks_failed, 8), 1200) * interval '1 second'
               WHERE id = $1 AND due_at <= clock_timestamp()"
        )
    };
}

const PUT_OFF_PROMPT: &str = put_off!("-- looks::put_off_prompt", "scheduled_prompts");
const PUT_OFF_RUN: &str = put_off!("-- looks::put_off_run", "scheduled_prompt_runs");
const PUT_OFF_DELIVERY: &str = put_off!("-- looks::put_off_delivery", "deliveries");
