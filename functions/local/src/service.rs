//! Carillon in one process: Postgres, the API, the sweeper and the executor.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use executor::{
    Executor,
    deliver::{Mailer, Sender, Smtp, Storage},
    http::Guarded,
    model::{Models, ProvidersConfig},
};
use management::{
    App, AppParts,
    identity::{KeyTimes, OidcSettings, Tokens},
    outputs::Outputs,
};
use shared::{
    api_key::PlatformKeyHash,
    db::{Db, DbConfig, migrate, system, takeover},
    env::{Environment, Reader},
    outbound::Policy,
    price::Catalog,
    queue::{Queue, WakeUps},
    scheduler::Scheduler,
    seal::Sealer,
    secret::Secret,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    http,
    postgres::{Cluster, Options},
    worker,
};

/// Wake-ups that wait inside the process at the most.
const QUEUE_CAPACITY: usize = 1_000;

/// How to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything lies: the database, the outbox, the stored outputs, the sealing key.
    pub data_dir: PathBuf,
    /// A database of one's own: a URL of a role that may create roles. Without one, a private
    /// PostgreSQL is started.
    pub database_url: Option<Secret>,
    /// Keep the private database's files when it stops.
    pub durable: bool,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Webhooks may go to this machine.
    pub allow_loopback: bool,
    /// Wake-ups worked on at once.
    pub workers: usize,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
    /// How long running work may take to finish at the end.
    pub grace: Duration,
    /// Who emails come from.
    pub mail_from: String,
    /// A mail server; without one, emails become files.
    pub smtp_url: Option<Secret>,
    /// Opens the operator's routes.
    pub platform_key_sha256: Option<String>,
    /// Whose tokens are taken beside API keys.
    pub oidc_issuer: Option<String>,
    /// What those tokens must be for.
    pub oidc_audience: Option<String>,
    /// Models beyond the shipped price list, as `provider/name=input:output`.
    pub extra_models: String,
    /// The first tenant's owner.
    pub owner_email: String,
}

/// A running Carillon.
pub struct Service {
    cluster: Option<Cluster>,
    /// The database.
    pub db: Db,
    /// Where the API listens.
    pub address: SocketAddr,
    /// The first tenant's key, at its first start only.
    pub first_key: Option<Secret>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Service {
    /// Starts everything. `say` is told what is going on.
    ///
    /// # Errors
    /// When a part cannot start; what had started is stopped.
    pub async fn start(settings: &Settings, say: &dyn Fn(&str)) -> Result<Self> {
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!(
                "cannot listen on {}; choose another with --listen",
                settings.listen
            )
        })?;
        let providers = ProvidersConfig::from_vars(|name| std::env::var(name).ok(), true)
            .map_err(|faults| anyhow::anyhow!(describe(&faults)))?;
        let (cluster, admin_url) = find_or_start(settings, say).await?;
        match Self::assemble(settings, listener, providers, &admin_url, say).await {
            Ok(service) => Ok(Self { cluster, ..service }),
            Err(error) => {
                if let Some(cluster) = cluster {
                    cluster.stop().await?;
                }
                Err(error)
            }
        }
    }

    async fn assemble(
        settings: &Settings,
        listener: TcpListener,
        providers: ProvidersConfig,
        admin_url: &Secret,
        say: &dyn Fn(&str),
    ) -> Result<Self> {
        let db = prepare_database(settings, admin_url, say).await?;
        let sealing_key = settings.data_dir.join("sealing.key");
        let catalog = Catalog::with_extra(&settings.extra_models)
            .map_err(|faults| anyhow::anyhow!(describe(&faults)))?;
        let policy = Policy {
            allow_loopback: settings.allow_loopback,
        };
        let (queue, wake_ups) = Queue::local(QUEUE_CAPACITY);
        let executor = Arc::new(Executor {
            db: db.clone(),
            queue: queue.clone(),
            models: Models::new(providers, executor::model::client()?),
            sender: sender(settings, &policy)?,
            sealer: Sealer::from_key_file(&sealing_key)?,
            catalog: catalog.clone(),
            from: settings.mail_from.parse().context("--mail-from")?,
            lease: settings.lease,
        });
        let app = App::new(AppParts {
            db: db.clone(),
            queue: queue.clone(),
            scheduler: Scheduler::Local,
            outputs: Outputs::Folder,
            sealer: Sealer::from_key_file(&sealing_key)?,
            catalog,
            outbound: policy,
            allow_echo: true,
            platform_key: settings
                .platform_key_sha256
                .as_deref()
                .map(PlatformKeyHash::parse)
                .transpose()
                .map_err(|error| anyhow::anyhow!("CARILLON_PLATFORM_KEY_SHA256: {error}"))?,
            tokens: tokens(settings)?,
            environment: Environment::Local,
        });
        let first_key = first_tenant(&app, settings).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let tasks = spawn(settings, listener, app, executor, queue, wake_ups, &stop);
        Ok(Self {
            cluster: None,
            db,
            address,
            first_key,
            stop,
            tasks,
        })
    }

    /// Takes no more work, lets running work finish, and stops Postgres.
    ///
    /// # Errors
    /// When Postgres does not stop.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        for task in self.tasks {
            task.await?;
        }
        drop(self.db);
        if let Some(cluster) = self.cluster {
            cluster.stop().await?;
        }
        Ok(())
    }
}

fn tokens(settings: &Settings) -> Result<Option<Tokens>> {
    let given = |name: &str| match name {
        "CARILLON_OIDC_ISSUER" => settings.oidc_issuer.clone(),
        "CARILLON_OIDC_AUDIENCE" => settings.oidc_audience.clone(),
        _ => None,
    };
    let mut reader = Reader::new(&given);
    let oidc = OidcSettings::read(&mut reader, Some(Environment::Local));
    reader.finish(Some(()))?;
    Ok(oidc.map(|settings| Tokens::new(settings, KeyTimes::DEFAULT)))
}

/// The database's administrator: one's own, or that of a private PostgreSQL.
pub(crate) async fn find_or_start(
    settings: &Settings,
    say: &dyn Fn(&str),
) -> Result<(Option<Cluster>, Secret)> {
    if let Some(url) = &settings.database_url {
        return Ok((None, url.clone()));
    }
    say("starting PostgreSQL");
    let cluster = Cluster::start(Options {
        data_dir: settings.data_dir.clone(),
        durable: settings.durable,
        settings: Vec::new(),
    })
    .await?;
    let url = Secret::new(cluster.superuser_url());
    Ok((Some(cluster), url))
}

async fn prepare_database(
    settings: &Settings,
    admin_url: &Secret,
    say: &dyn Fn(&str),
) -> Result<Db> {
    say("migrating the database");
    let passwords = role_passwords(settings)?;
    let applied = migrate::run(admin_url, &passwords).await?;
    if !applied.is_empty() {
        say(&format!("applied {} migrations", applied.len()));
    }
    // The data folder's lock says that nobody else works on a private database.
    if settings.database_url.is_none() {
        let ended = takeover::end_leases(admin_url).await?;
        if ended > 0 {
            say(&format!(
                "taking over {ended} runs and deliveries that were under way"
            ));
        }
    }
    let connections = settings.workers + 8;
    let config = DbConfig::of_urls(
        as_role(admin_url, "carillon_app", passwords.app.as_ref())?,
        as_role(admin_url, "carillon_system", passwords.system.as_ref())?,
        connections,
        4,
    );
    Ok(Db::connect(&config).await?)
}

/// A private PostgreSQL trusts its socket. Elsewhere the two roles get passwords, which are kept
/// beside the sealing key.
fn role_passwords(settings: &Settings) -> Result<migrate::RolePasswords> {
    if settings.database_url.is_none() {
        return Ok(migrate::RolePasswords::default());
    }
    Ok(migrate::RolePasswords {
        app: Some(kept_password(&settings.data_dir, "carillon_app.password")?),
        system: Some(kept_password(
            &settings.data_dir,
            "carillon_system.password",
        )?),
    })
}

fn kept_password(folder: &Path, name: &str) -> Result<Secret> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(kept) => return Ok(Secret::new(kept)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    let fresh = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    // A temporary file is readable by its owner alone, and takes its name when it is whole.
    let mut draft = tempfile::NamedTempFile::new_in(folder)?;
    draft.write_all(fresh.as_bytes())?;
    draft.as_file().sync_all()?;
    draft.persist(&path)?;
    Ok(Secret::new(fresh))
}

/// The administrator's URL with another role and password.
fn as_role(admin_url: &Secret, role: &str, password: Option<&Secret>) -> Result<Secret> {
    let text = admin_url.expose();
    let Some((scheme, rest)) = text.split_once("://") else {
        bail!("the database URL must begin with postgresql://");
    };
    let place = rest.split_once('@').map_or(rest, |(_, place)| place);
    let login = password.map_or_else(
        || role.to_owned(),
        |password| format!("{role}:{}", password.expose()),
    );
    Ok(Secret::new(format!("{scheme}://{login}@{place}")))
}

fn sender(settings: &Settings, policy: &Policy) -> Result<Sender> {
    let mailer = match &settings.smtp_url {
        Some(url) => Mailer::Smtp(Smtp::from_url(
            url,
            &settings.mail_from.parse().context("--mail-from")?,
        )?),
        None => Mailer::Directory {
            path: settings.data_dir.join("outbox"),
        },
    };
    let storage = Storage::Directory {
        root: settings.data_dir.join("storage"),
    };
    Ok(Sender::new(mailer, storage, Guarded::new(*policy)?))
}

async fn first_tenant(app: &App, settings: &Settings) -> Result<Option<Secret>> {
    if !system::tenants(&app.db, None, 1).await?.is_empty() {
        return Ok(None);
    }
    let (_, key) = management::bootstrap_tenant(app, "local", &settings.owner_email)
        .await
        .map_err(|error| anyhow::anyhow!("cannot make the first tenant: {}", error.detail()))?;
    Ok(Some(key))
}

fn spawn(
    settings: &Settings,
    listener: TcpListener,
    app: App,
    executor: Arc<Executor>,
    queue: Queue,
    wake_ups: WakeUps,
    stop: &CancellationToken,
) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(http::serve(listener, management::router(app), stop.clone())),
        tokio::spawn(worker::sweep(executor.clone(), queue, stop.clone())),
        tokio::spawn(worker::work(
            executor,
            wake_ups,
            settings.workers,
            stop.clone(),
            settings.grace,
        )),
    ]
}

fn describe(faults: &[shared::fault::Fault]) -> String {
    faults
        .iter()
        .map(|fault| format!("{}: {}; {}", fault.field, fault.detail, fault.hint))
        .collect::<Vec<_>>()
        .join("\n")
}
