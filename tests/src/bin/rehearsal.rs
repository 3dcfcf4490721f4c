//! Prepares what the event files under `tests/events` name, then runs a command with the environment
//! of the Lambda functions: `testbed --with ministack -- rehearsal -- <command…>`.
//!
//! `./dev lambda` calls it with `cargo lambda watch`.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use tests::peers::ministack_url;
use tests::rehearsal::{aws, database, environment, queues};

/// Runs a command with what the Lambda functions need.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where emails and outputs go.
    #[arg(long, default_value = ".carillon/lambda")]
    home: PathBuf,
    /// The command, after `--`.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(error) = run(Arguments::parse()).await;
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(io::stderr(), "rehearsal: {error:#}");
    ExitCode::FAILURE
}

async fn run(arguments: Arguments) -> Result<std::convert::Infallible> {
    std::fs::create_dir_all(&arguments.home)?;
    let home = arguments.home.canonicalize()?;
    let url = ministack_url();
    let queues = queues(&aws(&url), "rehearsal").await?;
    let database = database().await?;
    let (program, rest) = arguments.command.split_first().context("name a command")?;
    // Replaced by the command, so that a signal reaches it.
    let error = Command::new(program)
        .args(rest)
        .envs(environment(&database, &url, &queues, &home))
        .exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}
