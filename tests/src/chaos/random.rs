//! A cell that chance makes: several processes that die and stop wherever they are, over a database
//! that fails, with a queue that lies. The same seed makes the same choices.

use std::time::Duration;

use anyhow::Result;
use shared::crash::Point;
use tokio::time::{Instant, sleep};

use super::{
    cell::of_work,
    checker::{Allowance, Report, check},
    process::{LieKind, Process, Role, State},
    scene::{Plot, Scene},
};
use crate::fault_proxy::{Fault, FaultProxy, Upstream};

/// Processes that something happens to.
const VICTIMS: usize = 5;
/// How long one of them may run without its fate.
const ROUND: Duration = Duration::from_secs(4);
const QUIET_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

const FAULTS: [Fault; 6] = [
    Fault::Refuse,
    Fault::Reset,
    Fault::Close,
    Fault::Delay(Duration::from_millis(200)),
    Fault::Cut(100),
    Fault::LoseReply,
];

/// Chooses. Steele, Lea and Flood's SplitMix64, which any seed will do for.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(1).max(1);
        usize::try_from(self.next() % bound).unwrap_or_default()
    }

    fn one_of<T: Copy>(&mut self, all: &[T], otherwise: T) -> T {
        let place = self.below(all.len());
        all.get(place).copied().unwrap_or(otherwise)
    }
}

/// Runs the cell of a seed.
pub(super) async fn run(seed: u64) -> Result<Report> {
    let mut chance = Chance(seed);
    let scene = Scene::new(&Plot::full()).await?;
    let proxy = FaultProxy::open(Upstream::of_postgres(&crate::postgres_url())?).await?;
    let address = proxy.address().to_string();
    let points: Vec<_> = Point::ALL
        .iter()
        .copied()
        .filter(|point| of_work(*point))
        .collect();
    let mut stopped = Vec::new();
    for round in 0..VICTIMS {
        let mut order = scene.order_behind(&format!("victim-{round}"), Role::Work, &address);
        let point = chance.one_of(&points, Point::RunClaimed);
        let how = chance.one_of(&["kill", "stop"], "kill");
        let pass = 1 + chance.below(4);
        order
            .more
            .push(("CARILLON_CRASH", format!("{}={how}@{pass}", point.name())));
        let lie = chance.one_of(&LieKind::ALL, LieKind::Double);
        order.more.push(("CHAOS_LIE", lie.name().to_owned()));
        let fault = chance.one_of(&FAULTS, Fault::Reset);
        proxy.strike(fault, 2, chance.one_of(&[&b"COMMIT"[..], b"-- "], b""));
        let mut process = Process::start(&order)?;
        let fate = fate(&scene, &mut process).await?;
        match fate {
            State::Stopped => stopped.push(process),
            // One that its fate did not find dies of the end of this round.
            State::Runs | State::Ended(_) => drop(process),
        }
        scene.outlive(&order.name).await?;
    }
    let mut last = Process::start(&scene.order("last", Role::Work))?;
    while !stopped.is_empty() {
        let mut zombie = stopped.swap_remove(chance.below(stopped.len()));
        zombie.go_on()?;
        zombie.finish(END_LIMIT).await?;
    }
    scene.quiet(QUIET_LIMIT).await?;
    last.finish(END_LIMIT).await?;
    let faults = VICTIMS + usize::try_from(proxy.struck())?;
    let report = check(&scene, Allowance::faults(faults)).await?;
    scene.drop_database().await?;
    Ok(report)
}

async fn fate(scene: &Scene, process: &mut Process) -> Result<State> {
    let deadline = Instant::now() + ROUND;
    loop {
        let state = process.state()?;
        if state != State::Runs || Instant::now() > deadline {
            return Ok(state);
        }
        scene.hurry().await?;
        sleep(POLL).await;
    }
}
