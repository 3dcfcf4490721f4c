//! Carillon as it is deployed: the functions' zips and the synthesized template on an emulator of AWS,
//! a database that is reached with passwords, and the servers around.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]
mod caps;
mod database;
mod emulator;
mod journey;
mod migration;
mod stack;

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures_util::FutureExt;
use stack::Stack;

/// One deployment for all: making it takes longer than any of the stories.
#[tokio::test]
async fn a_deployed_stack_takes_prompts_from_create_to_delivered() {
    let stack = Stack::deploy().await;
    let stories = async {
        let key = journey::take(&stack).await;
        migration::judge(&stack, &key).await;
    };
    let outcome = AssertUnwindSafe(stories).catch_unwind().await;
    if outcome.is_err() {
        stack.print_logs().await;
    }
    // Its schedules would fire, and its functions would run, beside the other tests.
    stack.delete().await;
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}
