//! What the event files under `tests/events` name: a tenant, its key and its prompts, in a database
//! of its own, with queues in an emulator of AWS; and the environment in which the Lambda functions
//! find them.
//!
//! All ids and the key are made up and the same each time, so that the files can name them.

use std::path::Path;

use anyhow::{Context, Result};
use aws_sdk_sqs::{
    Client,
    config::{Credentials, SharedCredentialsProvider},
    types::QueueAttributeName,
};
use aws_types::{SdkConfig, region::Region};
use chrono::{DurationRound, TimeDelta, Utc};
use serde_json::json;
use shared::api_key::{ApiKey, Role};
use shared::db::{
    Db, auth,
    auth::NewKey,
    prompts::{self, NewPrompt},
    tenants::{self, NewTenant},
};
use shared::env::Environment;
use shared::ids::{PromptId, TenantId};
use shared::seal::{Purpose, Sealer};
use shared::webhook_secret::WebhookSecret;
use uuid::Uuid;

use crate::peers::{AWS_ACCOUNT, AWS_REGION};
use crate::stage::{config, migrated_database, role_url, spec};

/// The tenant of the event files.
pub const TENANT: Uuid = Uuid::from_u128(0x0193_1f5e_7c4f_7d3a_8b1e_0000_0000_0001);

/// Its prompts: each has a slot every minute, and one that is due.
pub const PROMPTS: [Uuid; 3] = [
    Uuid::from_u128(0x0193_1f5e_7c4f_7d3a_8b1e_0000_0000_0002),
    Uuid::from_u128(0x0193_1f5e_7c4f_7d3a_8b1e_0000_0000_0003),
    Uuid::from_u128(0x0193_1f5e_7c4f_7d3a_8b1e_0000_0000_0004),
];

/// The key of the event files. It opens nothing but a rehearsal.
pub const KEY: &str = "ck_dev_01931f5e7c4f7d3a8b1e000000000005_\
     0000000000000000000000000000000000000000000000000000000000000000";

/// What seals the tenant's secrets.
const SEALING_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Takes of a message before it goes to the dead-letter queue.
const RECEIVES_MAX: u32 = 3;

/// The queues of an installation, and its group of schedules.
#[derive(Debug, Clone)]
pub struct Queues {
    /// Of wake-ups.
    pub wake_ups: String,
    /// Of those that came to nothing.
    pub dead_letters: String,
    /// Of what the scheduler could not deliver.
    pub undelivered: String,
    /// The group of the prompts' schedules.
    pub group: String,
}

/// How clients reach an emulator of AWS.
#[must_use]
pub fn aws(url: &str) -> SdkConfig {
    let credentials = Credentials::new("test", "test", None, None, "test");
    shared::aws::client_config()
        .to_builder()
        .region(Region::new(AWS_REGION))
        .endpoint_url(url)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

/// Makes the queues and the group, under names that begin with `name`.
///
/// # Errors
/// When the emulator refuses.
pub async fn queues(aws: &SdkConfig, name: &str) -> Result<Queues> {
    let client = Client::new(aws);
    let dead_letters = queue(&client, &format!("{name}-dead-letters"), None).await?;
    let undelivered = queue(&client, &format!("{name}-undelivered"), None).await?;
    let redrive = json!({
        "deadLetterTargetArn": format!("arn:aws:sqs:{AWS_REGION}:{AWS_ACCOUNT}:{name}-dead-letters"),
        "maxReceiveCount": RECEIVES_MAX,
    });
    let wake_ups = queue(
        &client,
        &format!("{name}-wake-ups"),
        Some(redrive.to_string()),
    )
    .await?;
    let scheduler = aws_sdk_scheduler::Client::new(aws);
    scheduler.create_schedule_group().name(name).send().await?;
    Ok(Queues {
        group: name.to_owned(),
        wake_ups,
        dead_letters,
        undelivered,
    })
}

async fn queue(client: &Client, name: &str, redrive: Option<String>) -> Result<String> {
    let mut call = client.create_queue().queue_name(name);
    if let Some(redrive) = redrive {
        call = call.attributes(QueueAttributeName::RedrivePolicy, redrive);
    }
    let made = call.send().await?;
    made.queue_url.context("the queue has no URL")
}

/// Makes the database with all that the event files name, and gives its name.
///
/// # Errors
/// When PostgreSQL or a migration fails.
pub async fn database() -> Result<String> {
    let name = migrated_database().await?;
    let db = Db::connect(&config(&name, 2)).await?;
    let tenant_id = TenantId::from(TENANT);
    let tx = db.tenant(tenant_id).await?;
    let secret = WebhookSecret::generate().text();
    let sealer = Sealer::from_base64(SEALING_KEY)?;
    let sealing = sealer.ready(tenant_id, Purpose::WebhookSecret).await?;
    let sealed = sealing.seal(secret.expose().as_bytes())?;
    let user_id = tenants::create(
        &tx,
        &NewTenant {
            name: "rehearsal",
            owner_email: "owner@example.com",
            webhook_secret_sealed: &sealed,
        },
    )
    .await?;
    let key = ApiKey::parse(KEY, Environment::Dev).context("the key of the event files")?;
    let prefix = key.prefix(Environment::Dev);
    auth::insert_key(
        &tx,
        &NewKey {
            id: key.id(),
            user_id,
            name: "rehearsal",
            prefix: &prefix,
            hash: key.hash(),
            role: Role::Owner,
            expires_at: None,
        },
    )
    .await?;
    let slot = Utc::now().duration_trunc(TimeDelta::minutes(1))?;
    for (number, id) in (1..).zip(PROMPTS) {
        let changes = json!({
            "prompt_name": format!("rehearsal {number}"),
            "prompt_text": "It is {{ slot.time }}.",
            "schedule": {"type": "cron", "expression": "* * * * *", "timezone": "UTC"},
            "destinations": [{"kind": "storage"}],
        });
        prompts::insert(
            &tx,
            &NewPrompt {
                id: PromptId::from(id),
                user_id,
                spec: &spec(&changes),
                next_run_at: Some(slot),
                webhook_urls: &[],
                calendars: &[],
            },
        )
        .await?;
    }
    tx.commit().await?;
    Ok(name)
}

/// The variables of all functions. Emails and outputs go to folders under `home`.
#[must_use]
pub fn environment(
    database: &str,
    aws_url: &str,
    queues: &Queues,
    home: &Path,
) -> Vec<(&'static str, String)> {
    let account = format!("{AWS_REGION}:{AWS_ACCOUNT}");
    vec![
        ("CARILLON_ENV", "dev".to_owned()),
        ("CARILLON_DATABASE_URL", role_url(database, "carillon_app")),
        (
            "CARILLON_SYSTEM_DATABASE_URL",
            role_url(database, "carillon_system"),
        ),
        ("CARILLON_SEALING_KEY", SEALING_KEY.to_owned()),
        ("CARILLON_QUEUE_URL", queues.wake_ups.clone()),
        (
            "CARILLON_DEAD_LETTER_QUEUE_URL",
            queues.dead_letters.clone(),
        ),
        (
            "CARILLON_SCHEDULER_DEAD_LETTER_QUEUE_URL",
            queues.undelivered.clone(),
        ),
        ("CARILLON_EVENT_BUS", "default".to_owned()),
        ("CARILLON_SCHEDULE_GROUP", queues.group.clone()),
        (
            "CARILLON_SCHEDULER_ROLE_ARN",
            format!("arn:aws:iam::{AWS_ACCOUNT}:role/scheduler"),
        ),
        (
            "CARILLON_SCHEDULER_DLQ_ARN",
            format!("arn:aws:sqs:{account}:undelivered"),
        ),
        (
            "CARILLON_MAIL_FROM",
            "Carillon <carillon@example.com>".to_owned(),
        ),
        ("CARILLON_HOME", home.display().to_string()),
        ("AWS_ENDPOINT_URL", aws_url.to_owned()),
        ("AWS_REGION", AWS_REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
    ]
}
