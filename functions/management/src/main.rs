//! The HTTP API on AWS Lambda, behind an HTTP API of API Gateway.

use std::time::Duration;

use anyhow::Context;
use management::{App, config::Config, outputs::Outputs};
use shared::{
    aws,
    db::Db,
    queue::{Queue, Sqs},
    scheduler::{EventBridge, Scheduler},
    secrets::SecretsManager,
    telemetry,
};

/// The caller waits for it. A wake-up that takes longer is left to the sweeper.
const WAKE_UP_LIMIT: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    telemetry::init(telemetry::Reader::Machine, telemetry::LevelFilter::INFO);
    let queue_url = config.queue_url.clone();
    let aws = aws::config();
    let queue = Queue::Sqs(Sqs::new(&aws, queue_url, WAKE_UP_LIMIT));
    let scheduler = Scheduler::EventBridge(EventBridge::new(&aws, config.scheduler.clone()));
    let bucket = config
        .bucket
        .clone()
        .map(|name| aws::Bucket::new(&aws, name));
    let outputs = bucket.map_or(Outputs::Folder, Outputs::Bucket);

    let db = Db::connect(&config.db.config(&SecretsManager::new(&aws)))
        .await
        .context("cannot use the database")?;
    let app = App::new(config.into_parts(&aws, db, queue, scheduler, outputs));
    lambda_http::run(management::router(app))
        .await
        .map_err(|error| anyhow::anyhow!(error))
}
