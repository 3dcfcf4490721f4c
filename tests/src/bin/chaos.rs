//! Runs the fault matrix in a testbed and prints its table.
//!
//! `chaos [part…]`, where a part is crashes, commands, networks, lies or clocks; all without one, and
//! then some cells that chance makes.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use clap::Parser;
use tests::chaos::{cell::Trouble, matrix, table};

/// Tries to break the promises, and prints what held.
#[derive(Debug, Parser)]
struct Arguments {
    /// Parts of the matrix; all of it without one.
    parts: Vec<String>,
    /// Only cells whose line holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Cells that chance makes; without it, some when all of the matrix runs.
    #[arg(long)]
    random: Option<u64>,
    /// Seed of the first of them; without it, the time.
    #[arg(long)]
    seed: Option<u64>,
}

/// Enough to meet what no part of the matrix has thought of, and few enough to wait for.
const RANDOM: u64 = 12;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let families = matrix::families(&arguments.parts)?;
    let mut cells: Vec<_> = families
        .into_iter()
        .flat_map(|family| family.cells())
        .collect();
    let everything = arguments.parts.is_empty() && arguments.only.is_empty();
    let random = arguments
        .random
        .unwrap_or(if everything { RANDOM } else { 0 });
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = arguments.seed.unwrap_or(now);
    cells.extend((0..random).map(|n| Trouble::Random(seed.wrapping_add(n))));
    cells.retain(|cell| cell.to_string().contains(&arguments.only));
    let ended = matrix::run(cells).await?;
    io::stdout().write_all(table::table(&ended).as_bytes())?;
    let held = ended.iter().all(|(_, report)| report.findings.is_empty());
    Ok(if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
