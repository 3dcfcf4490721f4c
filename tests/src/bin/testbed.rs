//! Runs a command with the servers that the tests need, and stops them all when it ends.
//!
//! `testbed [--with aimock,litellm,smtp,webhook,ministack,moto | --with none] -- <command…>`
//!
//! It never touches a server that it did not start. `./dev` calls it, and installs the peers.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use local::postgres::{Cluster, Options};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::peers::{Peer, Running};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, spawn_blocking};

/// After this long a command that was told to stop is killed.
const COMMAND_STOP_LIMIT: Duration = Duration::from_secs(30);

/// Runs a command with a throwaway PostgreSQL and the servers around Carillon.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which peers to start, separated by commas: aimock, litellm, smtp, webhook, ministack,
    /// moto; or none.
    #[arg(long, default_value = "aimock,smtp,webhook")]
    with: String,
    /// The command, after `--`.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run_in_testbed(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(io::stderr(), "testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_in_testbed(arguments: Arguments) -> Result<ExitCode> {
    let peers = peers_named(&arguments.with)?;
    let (program, rest) = arguments
        .command
        .split_first()
        .context("name a command after --")?;
    // In our own process group, so that it has the terminal; and gone when we are killed.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "--"])
        .arg(program)
        .args(rest);

    let folder = open_folder()?;
    let cluster = start_postgres(folder.path()).await?;
    command.env("CARILLON_TEST_POSTGRES", cluster.superuser_url());
    let running = start_peers(peers, folder.path().to_owned()).await?;
    for (name, value) in running.iter().flat_map(|peer| &peer.variables) {
        command.env(name, value);
    }

    let status = run(command).await;
    // Every server is stopped before the command's fate is looked at.
    spawn_blocking(move || drop(running)).await?;
    cluster.stop().await?;
    Ok(exit_code(status?))
}

fn peers_named(list: &str) -> Result<Vec<Peer>> {
    let names = list
        .split(',')
        .map(str::trim)
        .filter(|name| *name != "none");
    names
        .map(|name| {
            let peer = Peer::ALL.into_iter().find(|peer| peer.name() == name);
            peer.with_context(|| {
                let known: Vec<_> = Peer::ALL.iter().map(|peer| peer.name()).collect();
                format!(
                    "no peer is called `{name}`; there are {}, or none",
                    known.join(", ")
                )
            })
        })
        .collect()
}

/// PostgreSQL's user must be able to go there when we are root.
fn open_folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("carillon-testbed-")
        .tempdir()?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    Ok(folder)
}

async fn start_postgres(folder: &Path) -> Result<Cluster> {
    let options = Options {
        data_dir: folder.join("postgres"),
        durable: false,
        // Every test has a pool of its own.
        settings: vec![("max_connections", "300".to_owned())],
    };
    Cluster::start(options)
        .await
        .context("cannot start PostgreSQL")
}

/// All at once: each takes its time to start.
async fn start_peers(peers: Vec<Peer>, folder: PathBuf) -> Result<Vec<Running>> {
    let starting: Vec<JoinHandle<Result<Running>>> = peers
        .into_iter()
        .map(|peer| {
            let folder = folder.clone();
            spawn_blocking(move || peer.start(&folder))
        })
        .collect();
    let mut running = Vec::new();
    for start in starting {
        running.push(start.await?);
    }
    running.into_iter().collect()
}

/// Runs the command to its end. A signal to us is passed on to it, and the servers outlive it.
async fn run(mut command: Command) -> Result<ExitStatus> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let pid = Pid::from_child(&child);
    let mut end = spawn_blocking(move || child.wait());
    tokio::select! {
        status = &mut end => return Ok(status??),
        // A terminal sends it to the command as well; twice is once.
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    for signal in [Signal::TERM, Signal::KILL] {
        // It may be gone already, and then the wait says so.
        let _ = kill_process(pid, signal);
        if let Ok(status) = tokio::time::timeout(COMMAND_STOP_LIMIT, &mut end).await {
            return Ok(status??);
        }
    }
    bail!(
        "the command does not stop; end process {} by hand",
        pid.as_raw_nonzero()
    )
}

/// As a shell says it: the command's own code, or 128 and the number of the signal that ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}
