//! The executor on AWS Lambda, behind an event source mapping of the wake-ups' queue.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use aws_lambda_events::sqs::SqsEvent;
use executor::{
    Executor, Pace,
    batch::Worker,
    config::{Config, Outlets},
    deliver::{Mailer, S3, Sender, Ses, Storage},
    http::Guarded,
    model::{self, Models},
};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use shared::{
    aws::{self, SdkConfig},
    bus::{self, Bus, EventBridge},
    db::Db,
    queue::{DeadLetters, Queue, Sqs},
    secrets::SecretsManager,
    telemetry,
};
use tokio::{
    runtime,
    time::{Instant, timeout_at},
};
use tracing::warn;

/// How long a claim holds without being renewed: so long a run of a process that vanished waits.
const LEASE: Duration = Duration::from_secs(60);

/// A wake-up that takes longer is left to the sweeper.
const WAKE_UP_LIMIT: Duration = Duration::from_secs(3);

/// What putting events may take of an invocation, when all its messages are done. The sweeper puts
/// the rest.
const EVENTS_LIMIT: Duration = Duration::from_secs(2);

/// A run allocates a thousand times, most of it small and soon freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let pace = Pace::default();
    let naps = pace.clone();
    let mut runtime = runtime::Builder::new_current_thread();
    runtime.enable_all().on_thread_park(move || naps.nap());
    runtime.build()?.block_on(serve(pace))
}

async fn serve(pace: Pace) -> anyhow::Result<()> {
    let config = Config::from_env()?;
    telemetry::init(telemetry::Reader::Machine, telemetry::LevelFilter::INFO);
    let aws = aws::config();
    let bus = Bus::EventBridge(EventBridge::new(&aws, config.event_bus.clone()));
    let worker = worker(config, &aws, pace).await?;
    let handler = service_fn(async |event: LambdaEvent<SqsEvent>| {
        let deadline = aws::deadline(event.context.deadline());
        let records = event.payload.records;
        let any_run = !records.is_empty();
        let answer = worker.work(records, deadline).await;
        if any_run {
            put_events(&worker, &bus, deadline).await;
        }
        Ok::<_, Error>(answer)
    });
    lambda_runtime::run(handler)
        .await
        .map_err(|error| anyhow::anyhow!(error))
}

/// What the runs had to tell. An answer that is late is worse than an event that is.
async fn put_events(worker: &Worker, bus: &Bus, deadline: Instant) {
    let until = deadline.checked_sub(EVENTS_LIMIT).unwrap_or(deadline);
    let until = until.min(Instant::now() + EVENTS_LIMIT);
    let draining = bus::drain(&worker.executor.db, bus, until);
    match timeout_at(until + EVENTS_LIMIT / 2, draining).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => warn!(%error, "events not put; the sweeper puts them"),
        Err(_) => warn!("no time left to note which events were put; they are put again"),
    }
}

async fn worker(config: Config, aws: &SdkConfig, pace: Pace) -> anyhow::Result<Worker> {
    let manager = SecretsManager::new(aws);
    let db_config = config.db.config(&manager);
    let mut models = Models::new(config.providers, model::client()?);
    if let Some(arn) = config.provider_keys {
        models = models.with_stored_keys(manager, arn);
    }
    let (db, ()) = tokio::join!(Db::connect_app(&db_config), models.fetch_keys());
    let db = db.context("cannot use the database")?;
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
            Mailer::Ses(Ses::new(aws, &config.from, configuration_set)),
            Storage::S3(S3::new(aws, bucket, kms_key_id)),
        ),
    };
    let executor = Executor {
        db,
        queue: Queue::Sqs(Sqs::new(aws, config.queue_url, WAKE_UP_LIMIT)),
        models,
        sender: Sender::new(mailer, storage, Guarded::new(config.outbound)?),
        sealer: config.sealing.into_sealer(aws),
        catalog: config.catalog,
        from: config.from,
        lease: LEASE,
    };
    Ok(Worker {
        executor: Arc::new(executor),
        dead_letters: DeadLetters::new(aws, config.dead_letter_queue_url),
        slots: config.slots,
        pace,
    })
}
