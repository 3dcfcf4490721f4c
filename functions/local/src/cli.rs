//! The command line.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use shared::{db::migrate, secret::Secret};

use crate::{
    demo,
    preview::{self, PreviewArgs},
    service::Settings,
    up,
};

/// Scheduled AI prompts: on this machine, in one process.
#[derive(Debug, Parser)]
#[command(name = "carillon", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the API, the sweeper and the executor until Ctrl-C.
    Up(UpArgs),
    /// Create the example prompts, run them, and show where their output went.
    Demo(DemoArgs),
    /// Bring a database to the shape that this program expects.
    Migrate(MigrateArgs),
    /// Show what a schedule and its policies would do, without saving anything.
    Preview(Box<PreviewArgs>),
}

#[derive(Debug, Args)]
struct UpArgs {
    /// Where the database, the outbox, stored outputs and the sealing key lie.
    #[arg(long, env = "CARILLON_HOME", default_value = ".carillon")]
    data_dir: PathBuf,
    /// Where the API listens.
    #[arg(long, env = "CARILLON_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Your own PostgreSQL: a URL of a role that may create roles and tables.
    #[arg(long, env = "CARILLON_ADMIN_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Let webhooks go to this machine.
    #[arg(long, env = "CARILLON_ALLOW_LOOPBACK")]
    allow_loopback: bool,
    /// The first tenant's owner, made at the first start.
    #[arg(
        long,
        env = "CARILLON_OWNER_EMAIL",
        default_value = "owner@example.com"
    )]
    owner_email: String,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// Runs and deliveries worked on at once.
    #[arg(long, env = "CARILLON_WORKERS", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// How long a run stays claimed by a process that has vanished, in milliseconds.
    #[arg(long, env = "CARILLON_LEASE_MS", default_value_t = 120_000, value_parser = clap::value_parser!(u64).range(1_000..=3_600_000))]
    lease_ms: u64,
    /// How long running work may take to finish after Ctrl-C, in seconds.
    #[arg(long, env = "CARILLON_GRACE_S", default_value_t = 120)]
    grace_s: u64,
    /// Who emails come from.
    #[arg(
        long,
        env = "CARILLON_MAIL_FROM",
        default_value = "Carillon <carillon@localhost>"
    )]
    mail_from: String,
    /// A mail server, as smtps://user:password@host; without one, emails become files.
    #[arg(long, env = "CARILLON_SMTP_URL", hide_env_values = true)]
    smtp_url: Option<String>,
    /// Models beyond the shipped price list: provider/name=input:output (USD per million tokens), …
    #[arg(long, env = "CARILLON_MODELS", default_value = "")]
    models: String,
    /// SHA-256 (hex) of the operator's key; without it there are no /v1/admin routes.
    #[arg(long, env = "CARILLON_PLATFORM_KEY_SHA256", hide_env_values = true)]
    platform_key_sha256: Option<String>,
    /// The issuer of OpenID Connect whose tokens are taken beside API keys, as they have it in `iss`.
    #[arg(long, env = "CARILLON_OIDC_ISSUER")]
    oidc_issuer: Option<String>,
    /// The audience that those tokens must name.
    #[arg(long, env = "CARILLON_OIDC_AUDIENCE")]
    oidc_audience: Option<String>,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Where the demo's files lie; what a demo left there before is removed.
    #[arg(long, default_value = ".carillon/demo")]
    data_dir: PathBuf,
    /// The folder of example prompts.
    #[arg(long, default_value = "examples")]
    examples: PathBuf,
    /// Use this model instead of the one that the environment's keys suggest.
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct MigrateArgs {
    /// A URL of a role that may create roles and tables.
    #[arg(long, env = "CARILLON_ADMIN_DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Password to give to carillon_app.
    #[arg(long, env = "CARILLON_APP_PASSWORD", hide_env_values = true)]
    app_password: Option<String>,
    /// Password to give to carillon_system.
    #[arg(long, env = "CARILLON_SYSTEM_PASSWORD", hide_env_values = true)]
    system_password: Option<String>,
}

/// Runs a command; an error is for the person at the terminal.
///
/// # Errors
/// What keeps the command from its end.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Preview(args) => preview::run(&args),
        Command::Up(args) => runtime()?.block_on(up::run(args.settings())),
        Command::Demo(args) => {
            let settings = args.settings();
            runtime()?.block_on(demo::run(settings, &args.examples, args.model.as_deref()))
        }
        Command::Migrate(args) => runtime()?.block_on(migrate(args)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
async fn migrate(args: MigrateArgs) -> Result<ExitCode> {
    let passwords = migrate::RolePasswords {
        app: args.app_password.map(Secret::new),
        system: args.system_password.map(Secret::new),
    };
    let applied = migrate::run(&Secret::new(args.database_url), &passwords).await?;
    for migration in &applied {
        println!("applied {migration}");
    }
    if applied.is_empty() {
        println!("nothing to apply");
    }
    Ok(ExitCode::SUCCESS)
}

impl UpArgs {
    fn settings(self) -> Settings {
        Settings {
            data_dir: self.data_dir,
            database_url: self.database_url.map(Secret::new),
            durable: true,
            listen: self.listen,
            allow_loopback: self.allow_loopback,
            owner_email: self.owner_email,
            ..self.common.settings()
        }
    }
}

impl DemoArgs {
    fn settings(&self) -> Settings {
        Settings {
            data_dir: self.data_dir.clone(),
            ..self.common.settings()
        }
    }
}

impl CommonArgs {
    /// Settings of a private, throwaway service on a free port.
    fn settings(&self) -> Settings {
        Settings {
            data_dir: PathBuf::new(),
            database_url: None,
            durable: false,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            allow_loopback: true,
            workers: self.workers.into(),
            lease: Duration::from_millis(self.lease_ms),
            grace: Duration::from_secs(self.grace_s),
            mail_from: self.mail_from.clone(),
            smtp_url: self.smtp_url.clone().map(Secret::new),
            platform_key_sha256: self.platform_key_sha256.clone(),
            oidc_issuer: self.oidc_issuer.clone(),
            oidc_audience: self.oidc_audience.clone(),
            extra_models: self.models.clone(),
            owner_email: "owner@example.com".to_owned(),
        }
    }
}
