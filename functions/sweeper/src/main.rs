//! The sweeper on AWS Lambda, invoked every minute by a schedule.

// The futures of a turn, one part within the other, are deeper than the compiler looks by itself.
#![recursion_limit = "256"]

use std::{sync::Mutex, time::Duration};

use anyhow::Context;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde::de::IgnoredAny;
use shared::{
    aws,
    bus::{self, Bus},
    db::Db,
    queue::{DeadLetters, Queue, Sqs},
    scheduler::{EventBridge, Scheduler},
    secrets::SecretsManager,
    telemetry,
};
use sweeper::{config::Config, turn::Sweeper};

/// What all wake-ups of a sweep may take together.
const WAKE_UPS_LIMIT: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    telemetry::init(telemetry::Reader::Machine, telemetry::LevelFilter::INFO);
    let sweeper = sweeper(config).await?;
    let handler = service_fn(async |event: LambdaEvent<IgnoredAny>| {
        let deadline = aws::deadline(event.context.deadline());
        sweeper.turn(deadline).await.map_err(Error::from)
    });
    lambda_runtime::run(handler)
        .await
        .map_err(|error| anyhow::anyhow!(error))
}

async fn sweeper(config: Config) -> anyhow::Result<Sweeper> {
    let aws = aws::config();
    let queues = config.dead_letter_queue_urls.into_iter();
    Ok(Sweeper {
        db: Db::connect(&config.db.config(&SecretsManager::new(&aws)))
            .await
            .context("cannot use the database")?,
        queue: Queue::Sqs(Sqs::new(&aws, config.queue_url, WAKE_UPS_LIMIT)),
        dead_letters: queues.map(|url| DeadLetters::new(&aws, url)).collect(),
        mail_events: config
            .mail_events_queue_url
            .map(|url| DeadLetters::new(&aws, url)),
        bus: Bus::EventBridge(bus::EventBridge::new(&aws, config.event_bus)),
        scheduler: Scheduler::EventBridge(EventBridge::new(&aws, config.scheduler)),
        retention_after: Mutex::new(None),
    })
}
