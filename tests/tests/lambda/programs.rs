//! The three programs, with the event files, as Lambda runs them.

use std::collections::HashSet;

use serde_json::{Value, json};
use shared::{
    ids::{PromptId, TenantId},
    message::{self, WakeUp},
    queue::DeadLetters,
};
use tests::{
    connect, database_url,
    peers::ministack_url,
    rehearsal::{self, PROMPTS, TENANT},
};
use tokio_postgres::Client;
use uuid::Uuid;

use tests::runtime_api::{Answered, Function};

struct Rehearsal {
    admin: Client,
    environment: Vec<(&'static str, String)>,
    aws: aws_types::SdkConfig,
    queues: rehearsal::Queues,
    home: tempfile::TempDir,
}

async fn rehearse() -> Rehearsal {
    let aws = rehearsal::aws(&ministack_url());
    let name = format!("test-{}", Uuid::now_v7().simple());
    let queues = rehearsal::queues(&aws, &name).await.unwrap();
    let database = rehearsal::database().await.unwrap();
    let home = tempfile::tempdir().unwrap();
    Rehearsal {
        admin: connect(&database_url(&database)).await.unwrap(),
        environment: rehearsal::environment(&database, &ministack_url(), &queues, home.path()),
        aws,
        queues,
        home,
    }
}

impl Rehearsal {
    async fn statuses(&self, prompt: Uuid) -> Vec<String> {
        let sql = "SELECT status FROM scheduled_prompt_runs WHERE prompt_id = $1";
        let rows = self.admin.query(sql, &[&prompt]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

fn http(answered: &Answered) -> (u64, Value) {
    assert!(answered.ok, "{answered:?}");
    let body = answered.body["body"].as_str().unwrap();
    (
        answered.body["statusCode"].as_u64().unwrap(),
        serde_json::from_str(body).unwrap(),
    )
}

#[tokio::test]
async fn management_creates_and_lists() {
    let rehearsal = rehearse().await;
    let mut management = Function::start("management", &rehearsal.environment).await;
    let (status, created) = http(&management.invoke("create").await);
    assert_eq!(status, 201, "{created}");
    let (status, list) = http(&management.invoke("list").await);
    assert_eq!(status, 200, "{list}");
    let listed = list["items"].as_array().unwrap_or_else(|| panic!("{list}"));
    assert_eq!(listed.len(), PROMPTS.len() + 1);
    assert!(listed.iter().any(|prompt| prompt["id"] == created["id"]));
}

#[tokio::test]
async fn the_executor_runs_what_the_scheduler_sent_and_buries_the_poisoned_record() {
    let rehearsal = rehearse().await;
    let mut executor = Function::start("executor", &rehearsal.environment).await;
    let answered = executor.invoke("scheduled-wake-up").await;
    assert!(answered.ok, "{answered:?}");
    assert_eq!(answered.body, json!({"batchItemFailures": []}));
    assert_eq!(rehearsal.statuses(PROMPTS[0]).await, ["succeeded"]);
    let stored = rehearsal
        .home
        .path()
        .join("storage/tenants")
        .join(TENANT.to_string());
    assert!(stored.is_dir(), "{}", stored.display());

    let answered = executor.invoke("poisoned-batch").await;
    assert_eq!(answered.body, json!({"batchItemFailures": []}));
    for prompt in &PROMPTS[1..] {
        assert_eq!(rehearsal.statuses(*prompt).await, ["succeeded"]);
    }
    let queue = DeadLetters::new(&rehearsal.aws, rehearsal.queues.dead_letters.clone());
    let letters = queue.take().await.unwrap();
    let bodies: Vec<_> = letters.iter().map(|letter| letter.body.as_str()).collect();
    assert_eq!(bodies, ["this is no wake-up"]);
}

#[tokio::test]
async fn the_sweeper_wakes_what_is_due() {
    let rehearsal = rehearse().await;
    let mut sweeper = Function::start("sweeper", &rehearsal.environment).await;
    let answered = sweeper.invoke("sweep").await;
    assert!(answered.ok, "{answered:?}");
    let client = aws_sdk_sqs::Client::new(&rehearsal.aws);
    let taking = client
        .receive_message()
        .queue_url(&rehearsal.queues.wake_ups)
        .max_number_of_messages(10);
    let messages = taking.send().await.unwrap().messages.unwrap_or_default();
    let woken: HashSet<WakeUp> = messages
        .iter()
        .map(|message| message::decode(message.body().unwrap()).unwrap().wake_up)
        .collect();
    let due = PROMPTS.map(|id| WakeUp::Prompt {
        tenant_id: TenantId::from(TENANT),
        prompt_id: PromptId::from(id),
    });
    // The scheduler's own may be among them by now.
    assert_eq!(woken, due.into_iter().collect());
    // The next turn, in the same process, goes on.
    assert!(sweeper.invoke("sweep").await.ok);
}
