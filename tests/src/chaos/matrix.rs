//! The cells: every point with every way to die there, every connection with every way to fail.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use shared::crash::Point;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    cell::{Target, Trouble, of_work},
    checker::Report,
    process::LieKind,
};
use crate::fault_proxy::Fault;

/// Cells at once, whoever asks for them: they mostly wait.
const AT_ONCE: usize = 10;

static SEATS: Semaphore = Semaphore::const_new(AT_ONCE);

/// A part of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Points of executor and sweeper.
    Crashes,
    /// Points of management and of the scheduler's entries.
    Commands,
    /// Connections.
    Networks,
    /// The queue, the lease, retries, a slot that is planned twice.
    Lies,
    /// Clocks.
    Clocks,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [
        Self::Crashes,
        Self::Commands,
        Self::Networks,
        Self::Lies,
        Self::Clocks,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crashes => "crashes",
            Self::Commands => "commands",
            Self::Networks => "networks",
            Self::Lies => "lies",
            Self::Clocks => "clocks",
        }
    }

    /// Its cells.
    #[must_use]
    pub fn cells(self) -> Vec<Trouble> {
        match self {
            Self::Crashes => crashes(),
            Self::Commands => commands(),
            Self::Networks => networks(),
            Self::Lies => lies(),
            Self::Clocks => vec![Trouble::Clocks, Trouble::Jump(10), Trouble::Jump(-10)],
        }
    }
}

fn crashes() -> Vec<Trouble> {
    let points = Point::ALL.iter().copied().filter(|point| of_work(*point));
    let mut cells: Vec<_> = points
        .flat_map(|point| [Trouble::Kill(point), Trouble::Stop(point)])
        .collect();
    cells.extend(
        [
            Point::RunClaimed,
            Point::ModelAnswered,
            Point::DeliverySending,
            Point::DeliverySent,
        ]
        .map(Trouble::Zombie),
    );
    cells.extend([Point::ModelAnswered, Point::DeliverySent].map(Trouble::Restart));
    cells
}

fn commands() -> Vec<Trouble> {
    let points = Point::ALL.iter().copied().filter(|point| !of_work(*point));
    let cells = points.flat_map(|point| [Trouble::Kill(point), Trouble::Stop(point)]);
    cells.collect()
}

fn networks() -> Vec<Trouble> {
    let delay = Fault::Delay(Duration::from_millis(300));
    let everywhere = [
        Fault::Refuse,
        Fault::Reset,
        Fault::Close,
        Fault::Blackhole,
        delay,
        Fault::Cut(40),
        Fault::LoseReply,
    ];
    let targets = [
        Target::Postgres,
        Target::Model,
        Target::Webhook,
        Target::Storage,
        Target::Scheduler,
    ];
    let mut cells: Vec<_> = targets
        .into_iter()
        .flat_map(|target| everywhere.map(|fault| Trouble::Network(target, fault)))
        .collect();
    let commits = [
        Fault::Reset,
        Fault::LoseReply,
        Fault::Cut(10),
        Fault::Blackhole,
    ];
    cells.extend(commits.map(|fault| Trouble::Network(Target::Commit, fault)));
    cells
}

fn lies() -> Vec<Trouble> {
    let mut cells: Vec<_> = LieKind::ALL.map(Trouble::Queue).to_vec();
    cells.extend([Trouble::Slow, Trouble::Hopeless, Trouble::Rewind]);
    cells
}

/// Runs cells side by side, and gives what came of each, in their order.
///
/// # Errors
/// When a cell panics.
pub async fn run(cells: Vec<Trouble>) -> Result<Vec<(Trouble, Report)>> {
    let mut running = JoinSet::new();
    for (place, trouble) in cells.into_iter().enumerate() {
        running.spawn(async move {
            let _seat = SEATS.acquire().await;
            (place, trouble, trouble.run().await)
        });
    }
    let mut ended = Vec::new();
    while let Some(one) = running.join_next().await {
        ended.push(one.context("a cell panicked")?);
    }
    ended.sort_by_key(|(place, _, _)| *place);
    Ok(ended
        .into_iter()
        .map(|(_, trouble, report)| (trouble, report))
        .collect())
}

/// The families of these names; none means all that can run here.
///
/// # Errors
/// For a name that no family has.
pub fn families(names: &[String]) -> Result<Vec<Family>> {
    if names.is_empty() {
        return Ok(Family::ALL.to_vec());
    }
    let find = |name: &String| match Family::ALL.into_iter().find(|family| family.name() == name) {
        Some(family) => Ok(family),
        None => bail!("no part of the matrix is called {name}"),
    };
    names.iter().map(find).collect()
}
