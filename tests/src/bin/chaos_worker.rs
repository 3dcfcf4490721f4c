//! A process of Carillon for the fault harness: the executor and the sweeper as the Lambda functions
//! have them, or the API, around a queue that lies.
//!
//! `chaos_worker work | serve`. It is told everything by its environment, see `tests::chaos::process`.
//! What it does between two effects is the product's own code; only the queue is its own.

use std::{env, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use aws_lambda_events::sqs::SqsMessage;
use executor::{
    Executor, Pace,
    batch::Worker,
    deliver::{Mailer, S3, Sender, Storage},
    http::Guarded,
    model::{self, Models, ProvidersConfig},
};
use management::{App, AppParts, outputs::Outputs};
use shared::{
    bus::{self, Bus},
    db::{Db, DbConfig, DbError},
    env::Environment,
    message,
    outbound::Policy,
    price::Catalog,
    queue::{DeadLetters, Queue, WakeUps},
    scheduler::{EventBridge, Scheduler},
    seal::Sealer,
    secret::Secret,
    telemetry,
};
use tests::{
    chaos::process::{Lie, SEALING_KEY, scheduler_settings},
    rehearsal,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

const SWEEP_PERIOD: Duration = Duration::from_millis(200);
const SWEEP_LIMIT: Duration = Duration::from_secs(15);
/// Messages worked on at once, and the connections for them.
const SLOTS: usize = 10;
const CONNECTIONS: usize = 4;
const QUEUE_CAPACITY: usize = 1_000;
/// Longer than any message takes.
const INVOCATION: Duration = Duration::from_secs(900);
/// How long what is under way may take after the end was asked for.
const DRAIN_LIMIT: Duration = Duration::from_secs(45);
const CONNECT_TRIES: u32 = 40;
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
const KEY_OF_BUCKET: &str = "alias/chaos";
/// Nobody listens there: what is buried comes back, and must do no harm.
const NO_AWS: &str = "http://127.0.0.1:9";

// As on Lambda. It also makes a stop exact: the thread that asks for it is the one that it hits.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    telemetry::init(telemetry::Reader::Machine, telemetry::LevelFilter::INFO);
    match env::args().nth(1).as_deref() {
        Some("work") => work().await,
        Some("serve") => serve().await,
        _ => bail!("say work or serve"),
    }
}

async fn work() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (queue, wake_ups) = Queue::local(QUEUE_CAPACITY);
    let worker = Worker {
        executor: Arc::new(executor(queue.clone()).await?),
        dead_letters: DeadLetters::new(&rehearsal::aws(NO_AWS), format!("{NO_AWS}/1/dead")),
        slots: 1,
        pace: Pace::default(),
    };
    let lie = Lie::from_env()?;
    carry(&worker, &queue, wake_ups, lie, &mut terminate).await
}

/// Sweeps and works until it is told to end, and then lets what is under way finish.
async fn carry(
    worker: &Worker,
    queue: &Queue,
    mut wake_ups: WakeUps,
    mut lie: Lie,
    terminate: &mut Signal,
) -> Result<()> {
    let mut sweeps = interval(SWEEP_PERIOD);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way: JoinSet<()> = JoinSet::new();
    loop {
        let has_room = under_way.len() < SLOTS;
        tokio::select! {
            _ = terminate.recv() => break,
            Some(ended) = under_way.join_next() => ended?,
            _ = sweeps.tick() => {
                if let Err(error) = turn(&worker.executor.db, queue).await {
                    tracing::warn!(%error, "sweep failed; the next follows");
                }
            }
            Some(wake_up) = wake_ups.next(), if has_room => {
                for (delay, body) in lie.told(message::encode(wake_up)) {
                    under_way.spawn(one(worker.clone(), delay, body));
                }
            }
        }
    }
    let drained = timeout(DRAIN_LIMIT, async {
        while under_way.join_next().await.is_some() {}
    });
    drained.await.context("what was under way does not end")
}

/// What a sweeper's invocation does that runs and events wait for.
async fn turn(db: &Db, queue: &Queue) -> Result<(), DbError> {
    sweeper::sweep(db, queue).await?;
    bus::drain(db, &Bus::Local, Instant::now() + SWEEP_LIMIT).await?;
    Ok(())
}

/// One message as an invocation of its own. What is to come again, the sweeper finds.
async fn one(worker: Worker, delay: Duration, body: String) {
    sleep(delay).await;
    let mut record = SqsMessage::default();
    record.message_id = Some("chaos".to_owned());
    record.body = Some(body);
    worker.work(vec![record], Instant::now() + INVOCATION).await;
}

async fn executor(queue: Queue) -> Result<Executor> {
    let home = PathBuf::from(variable("CHAOS_HOME")?);
    let mailer = Mailer::Directory {
        path: home.join("outbox"),
    };
    let storage = match env::var("CHAOS_S3_URL") {
        Ok(url) => {
            let bucket = variable("CHAOS_BUCKET")?;
            Storage::S3(S3::new(
                &rehearsal::aws(&url),
                bucket,
                KEY_OF_BUCKET.to_owned(),
            ))
        }
        Err(_) => Storage::Directory {
            root: home.join("storage"),
        },
    };
    let policy = Policy {
        allow_loopback: true,
    };
    let providers = ProvidersConfig::from_vars(|name| env::var(name).ok(), true)
        .map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
    Ok(Executor {
        db: database().await?,
        queue,
        models: Models::new(providers, model::client()?),
        sender: Sender::new(mailer, storage, Guarded::new(policy)?),
        sealer: Sealer::from_base64(SEALING_KEY)?,
        catalog: Catalog::shipped(),
        from: "Carillon <carillon@example.com>".parse()?,
        lease: Duration::from_millis(variable("CHAOS_LEASE_MS")?.parse()?),
    })
}

/// The database may be down just now: on Lambda the process would be started again.
async fn database() -> Result<Db> {
    let app = Secret::new(variable("CHAOS_APP_URL")?);
    let system = Secret::new(variable("CHAOS_SYSTEM_URL")?);
    let config = DbConfig::of_urls(app, system, CONNECTIONS, 3);
    for _ in 1..CONNECT_TRIES {
        match Db::connect(&config).await {
            Ok(db) => return Ok(db),
            Err(error) => tracing::warn!(%error, "no database yet"),
        }
        sleep(CONNECT_PAUSE).await;
    }
    Ok(Db::connect(&config).await?)
}

async fn serve() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let (queue, _wake_ups) = Queue::local(QUEUE_CAPACITY);
    let app = App::new(AppParts {
        db: database().await?,
        queue,
        scheduler: scheduler()?,
        outputs: Outputs::Folder,
        sealer: Sealer::from_base64(SEALING_KEY)?,
        catalog: Catalog::shipped(),
        outbound: Policy {
            allow_loopback: true,
        },
        allow_echo: true,
        platform_key: None,
        tokens: None,
        environment: Environment::Dev,
    });
    // Whoever reads it must find all of it.
    let file = PathBuf::from(variable("CHAOS_ADDRESS_FILE")?);
    let draft = file.with_extension("draft");
    std::fs::write(&draft, address.to_string())?;
    std::fs::rename(draft, file)?;
    let serving = axum::serve(listener, management::router(app));
    let ending = serving.with_graceful_shutdown(async move {
        terminate.recv().await;
    });
    Ok(timeout(INVOCATION, ending).await??)
}

fn scheduler() -> Result<Scheduler> {
    let Ok(url) = env::var("CHAOS_SCHEDULER_URL") else {
        return Ok(Scheduler::Local);
    };
    let settings = scheduler_settings(&variable("CHAOS_SCHEDULE_GROUP")?)?;
    Ok(Scheduler::EventBridge(EventBridge::new(
        &rehearsal::aws(&url),
        settings,
    )))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} is not set"))
}
