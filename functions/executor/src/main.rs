//! The executor on AWS Lambda, behind an event source mapping of the wake-ups' queue.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use aws_lambda_events::sqs::SqsEvent;
use executor::{
    Executor,
    batch::Worker,
    config::{Config, Outlets},
    deliver::{Mailer, S3, Sender, Ses, Storage},
    http::Guarded,
    model::{self, Models},
};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use shared::{
    aws,
    db::Db,
    outbound::Policy,
    queue::{DeadLetters, Queue, Sqs},
    telemetry,
};

/// How long a claim holds without being renewed: so long a run of a process that vanished waits.
const LEASE: Duration = Duration::from_secs(60);

/// A wake-up that takes longer is left to the sweeper.
const WAKE_UP_LIMIT: Duration = Duration::from_secs(3);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    telemetry::init(telemetry::Reader::Machine, "info");
    let worker = worker(config).await?;
    let handler = service_fn(async |event: LambdaEvent<SqsEvent>| {
        let deadline = aws::deadline(event.context.deadline());
        Ok::<_, Error>(worker.work(event.payload.records, deadline).await)
    });
    lambda_runtime::run(handler)
        .await
        .map_err(|error| anyhow::anyhow!(error))
}

async fn worker(config: Config) -> anyhow::Result<Worker> {
    let aws = aws::config().await;
    let db = Db::connect(&config.db)
        .await
        .context("cannot use the database")?;
    let (mailer, storage) = match config.outlets {
        Outlets::Folder(home) => (
            Mailer::Directory {
                path: home.join("outbox"),
            },
            Storage::Directory {
                root: home.join("storage"),
            },
        ),
        Outlets::Aws {
            bucket,
            kms_key_id,
            configuration_set,
        } => (
            Mailer::Ses(Ses::new(&aws, &config.from, configuration_set)),
            Storage::S3(S3::new(&aws, bucket, kms_key_id)),
        ),
    };
    let executor = Executor {
        db,
        queue: Queue::Sqs(Sqs::new(&aws, config.queue_url, WAKE_UP_LIMIT)),
        models: Models::new(config.providers, model::client()?),
        sender: Sender::new(mailer, storage, Guarded::new(Policy::PUBLIC)?),
        sealer: config.sealer,
        catalog: config.catalog,
        from: config.from,
        lease: LEASE,
    };
    Ok(Worker {
        executor: Arc::new(executor),
        dead_letters: DeadLetters::new(&aws, config.dead_letter_queue_url),
        slots: config.slots,
    })
}
