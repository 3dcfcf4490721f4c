//! One cell of the matrix: a scene, a fault, and what came of it.

use std::{
    fmt,
    fs::Permissions,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use local::postgres::{Cluster, Options};
use rustix::process::{Pid, Signal, kill_process};
use shared::crash::Point;
use tokio::time::{Instant, sleep};

use super::{
    checker::{self, Allowance, Report},
    commands,
    process::{LieKind, Order, Process, Role, State},
    random,
    scene::{Part, Plot, Scene},
};
use crate::{
    fault_proxy::{Fault, FaultProxy, Upstream},
    peers,
};

/// How long a process may take to come to a point.
const REACH_LIMIT: Duration = Duration::from_secs(60);
/// How long the others may take for all that is left.
const QUIET_LIMIT: Duration = Duration::from_secs(90);
/// How long a process may take to end; more than its own limit.
const END_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// How long the database's clock says something else, each time.
const JUMPED: Duration = Duration::from_secs(2);

/// A lease that ends while something slow is done, unless it is renewed.
const SHORT_LEASE: Duration = Duration::from_secs(4);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A process is killed at a point, and another goes on.
    Kill(Point),
    /// A process is stopped at a point past its lease, and goes on when another has done all.
    Stop(Point),
    /// Two are stopped at the same point with the same work, and go on in the order in which they came.
    Zombie(Point),
    /// A connection fails.
    Network(Target, Fault),
    /// The queue lies.
    Queue(LieKind),
    /// What is done takes longer than the lease.
    Slow,
    /// A model and a receiver never work.
    Hopeless,
    /// A prompt's next slot is one that has run already.
    Rewind,
    /// PostgreSQL is ended at once while a process is stopped at a point, and comes back.
    Restart(Point),
    /// Whatever chance makes of this seed.
    Random(u64),
    /// Process clocks are a day and 400 days off.
    Clocks,
    /// The database's clock jumps by so many minutes, and later back.
    Jump(i32),
}

/// To whom a connection fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// PostgreSQL.
    Postgres,
    /// PostgreSQL, while it commits.
    Commit,
    /// The model.
    Model,
    /// The webhook's receiver.
    Webhook,
    /// The bucket.
    Storage,
    /// The scheduler, of which an emulator is at hand.
    Scheduler,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, fault) = match self {
            Self::Kill(point) => (point.name().to_owned(), "kill".to_owned()),
            Self::Stop(point) => (point.name().to_owned(), "stop".to_owned()),
            Self::Zombie(point) => (point.name().to_owned(), "two zombies".to_owned()),
            Self::Network(target, fault) => (
                format!("{target:?}").to_lowercase(),
                format!("{fault:?}").to_lowercase(),
            ),
            Self::Queue(lie) => ("queue".to_owned(), lie.name().to_owned()),
            Self::Slow => ("lease".to_owned(), "outlasted".to_owned()),
            Self::Hopeless => ("retries".to_owned(), "in vain".to_owned()),
            Self::Rewind => ("slot".to_owned(), "planned twice".to_owned()),
            Self::Restart(point) => (point.name().to_owned(), "database restarted".to_owned()),
            Self::Random(seed) => ("chance".to_owned(), format!("seed {seed}")),
            Self::Clocks => ("clock".to_owned(), "-1 and +400 days".to_owned()),
            Self::Jump(minutes) => (
                "database's clock".to_owned(),
                format!("jumps {minutes:+} min"),
            ),
        };
        f.pad(&format!("{place:<20} {fault}"))
    }
}

impl Trouble {
    /// Makes the scene, lets it go wrong, and looks at what is left. What keeps a cell from its end
    /// is a finding as well.
    pub async fn run(self) -> Report {
        let ended = match self {
            Self::Kill(point) if of_work(point) => crash(point, "kill").await,
            Self::Stop(point) if of_work(point) => crash(point, "stop").await,
            Self::Kill(point) => commands::crash(point, "kill").await,
            Self::Stop(point) => commands::crash(point, "stop").await,
            Self::Zombie(point) => zombies(point).await,
            Self::Network(Target::Scheduler, fault) => commands::network(fault).await,
            Self::Network(target, fault) => network(target, fault).await,
            Self::Queue(lie) => queue(lie).await,
            Self::Slow => slow().await,
            Self::Hopeless => hopeless().await,
            Self::Rewind => rewind().await,
            Self::Restart(point) => restart(point).await,
            Self::Random(seed) => random::run(seed).await,
            Self::Clocks => clocks().await,
            Self::Jump(minutes) => jump(minutes).await,
        };
        ended.unwrap_or_else(|error| Report {
            findings: vec![format!("{error:#}")],
            ..Report::default()
        })
    }
}

/// Points that an executor or a sweeper passes. The others are the API's.
pub(super) fn of_work(point: Point) -> bool {
    match point {
        Point::SweepFound
        | Point::SweepOffered
        | Point::RunLocked
        | Point::RunPlanned
        | Point::BusClaimed
        | Point::BusPut
        | Point::BusNoted
        | Point::RunClaimed
        | Point::LeaseRenewed
        | Point::ModelAnswered
        | Point::OutputStored
        | Point::RunRecorded
        | Point::FailureWritten
        | Point::FailureRecorded
        | Point::DeliveryClaimed
        | Point::DeliverySending
        | Point::DeliverySent
        | Point::SettleWritten
        | Point::DeliverySettled => true,
        Point::CommandWritten
        | Point::CommandCommitted
        | Point::CommandOffered
        | Point::CommandApplied
        | Point::SyncClaimed
        | Point::SyncCalled
        | Point::SyncNoted => false,
    }
}

/// What a cell needs for a process to come to this point.
fn plot(point: Point) -> Plot {
    match point {
        Point::OutputStored => Plot {
            second: vec![Part::Plain],
            ..Plot::single(Part::Long)
        },
        Point::LeaseRenewed => Plot {
            second: vec![Part::Plain],
            ..Plot::single(Part::Slow)
        },
        Point::FailureWritten | Point::FailureRecorded => Plot {
            first: vec![Part::Flaky, Part::Broken],
            ..Plot::full()
        },
        // An attempt that fails is settled in two steps.
        Point::DeliveryClaimed | Point::SettleWritten => Plot {
            second: vec![Part::Plain],
            ..Plot::single(Part::Busy)
        },
        // The first delivery that settles ends its run.
        Point::DeliverySettled => Plot {
            second: vec![Part::Careful],
            ..Plot::single(Part::Careful)
        },
        Point::SweepFound
        | Point::SweepOffered
        | Point::RunLocked
        | Point::RunPlanned
        | Point::BusClaimed
        | Point::BusPut
        | Point::BusNoted
        | Point::RunClaimed
        | Point::ModelAnswered
        | Point::RunRecorded
        | Point::DeliverySending
        | Point::DeliverySent
        | Point::CommandWritten
        | Point::CommandCommitted
        | Point::CommandOffered
        | Point::CommandApplied
        | Point::SyncClaimed
        | Point::SyncCalled
        | Point::SyncNoted => Plot {
            first: vec![Part::Plain, Part::Flaky, Part::Busy, Part::Careful],
            ..Plot::full()
        },
    }
}

async fn crash(point: Point, how: &'static str) -> Result<Report> {
    let scene = Scene::new(&plot(point)).await?;
    let mut order = scene.order("one", Role::Work);
    if point == Point::LeaseRenewed {
        order.lease = SHORT_LEASE;
    }
    let mut one = start_to_be_struck(&scene, order, point, how).await?;
    let mut two = Process::start(&scene.order("two", Role::Work))?;
    let mut three = Process::start(&scene.order("three", Role::Work))?;
    scene.quiet(QUIET_LIMIT).await?;
    if how == "stop" {
        one.go_on()?;
        one.finish(END_LIMIT).await?;
        scene.quiet(QUIET_LIMIT).await?;
    }
    two.finish(END_LIMIT).await?;
    three.finish(END_LIMIT).await?;
    end(scene, Allowance::faults(1)).await
}

async fn start_to_be_struck(
    scene: &Scene,
    mut order: Order,
    point: Point,
    how: &'static str,
) -> Result<Process> {
    order
        .more
        .push(("CARILLON_CRASH", format!("{}={how}", point.name())));
    let mut process = Process::start(&order)?;
    struck(scene, &mut process, &order, point, how).await?;
    Ok(process)
}

/// Waits until a point has struck a process. Then its time is over.
pub(super) async fn struck(
    scene: &Scene,
    process: &mut Process,
    order: &Order,
    point: Point,
    how: &'static str,
) -> Result<()> {
    let deadline = Instant::now() + REACH_LIMIT;
    loop {
        match process.state()? {
            State::Stopped if how == "stop" => break,
            State::Ended(status)
                if how == "kill" && status.signal() == Some(Signal::KILL.as_raw()) =>
            {
                break;
            }
            State::Ended(status) => bail!("a process ended with {status}: {}", process.written()),
            State::Runs | State::Stopped => {}
        }
        ensure!(
            Instant::now() < deadline,
            "{} was not reached; the process's last words: {}",
            point.name(),
            process.last_words()
        );
        scene.hurry().await?;
        sleep(POLL).await;
    }
    scene.outlive(&order.name).await
}

async fn zombies(point: Point) -> Result<Report> {
    let mut scene = Scene::new(&Plot::single(Part::Busy)).await?;
    keep_one_slot(&mut scene).await?;
    let order = scene.order("one", Role::Work);
    let mut one = start_to_be_struck(&scene, order, point, "stop").await?;
    let mut order = scene.order("two", Role::Work);
    order
        .more
        .push(("CARILLON_CRASH", format!("{}=stop", point.name())));
    let mut two = Process::start(&order)?;
    let deadline = Instant::now() + REACH_LIMIT;
    while two.state()? != State::Stopped {
        ensure!(
            Instant::now() < deadline,
            "{} was not reached again",
            point.name()
        );
        scene.hurry().await?;
        sleep(POLL).await;
    }
    one.go_on()?;
    one.finish(END_LIMIT).await?;
    two.go_on()?;
    scene.quiet(QUIET_LIMIT).await?;
    two.finish(END_LIMIT).await?;
    end(scene, Allowance::faults(2)).await
}

/// So that both come to the same run.
async fn keep_one_slot(scene: &mut Scene) -> Result<()> {
    let prompt = scene.prompts.first_mut().context("a scene has a prompt")?;
    let last = *prompt.slots.last().context("a prompt has slots")?;
    prompt.slots = vec![last];
    let sql = "UPDATE scheduled_prompts SET next_run_at = $2 WHERE id = $1";
    scene
        .admin
        .execute(sql, &[&prompt.id.uuid(), &last])
        .await?;
    Ok(())
}

async fn network(target: Target, fault: Fault) -> Result<Report> {
    let (upstream, needle, times): (Upstream, &'static [u8], u32) = match target {
        Target::Postgres => (
            Upstream::of_postgres(&crate::postgres_url())?,
            b"-- runs::",
            3,
        ),
        Target::Commit => (Upstream::of_postgres(&crate::postgres_url())?, b"COMMIT", 3),
        Target::Model => (Upstream::of_http(&peers::aimock_url())?, b"", 2),
        Target::Webhook => (Upstream::of_http(&peers::webhook_url())?, b"", 2),
        Target::Storage | Target::Scheduler => {
            (Upstream::of_http(&peers::moto_url())?, b"PUT /", 2)
        }
    };
    let proxy = FaultProxy::open(upstream).await?;
    let address = proxy.address().to_string();
    let mut plot = Plot {
        first: vec![Part::Plain, Part::Flaky],
        ..Plot::full()
    };
    if target == Target::Webhook {
        plot.webhook_url = format!("http://{address}");
    }
    let scene = Scene::new(&plot).await?;
    let bucket = format!("chaos-{}", scene.mark);
    if target == Target::Storage {
        peers::make_bucket(&bucket).await?;
    }
    let behind = |name: &str| {
        let mut order = match target {
            Target::Postgres | Target::Commit => scene.order_behind(name, Role::Work, &address),
            Target::Model | Target::Webhook | Target::Storage | Target::Scheduler => {
                scene.order(name, Role::Work)
            }
        };
        if target == Target::Storage {
            order
                .more
                .push(("CHAOS_S3_URL", format!("http://{address}")));
            order.more.push(("CHAOS_BUCKET", bucket.clone()));
        }
        if target == Target::Model {
            order.model_url = format!("http://{address}/v1");
        }
        order.lease = SHORT_LEASE;
        order
    };
    proxy.strike(fault, times, needle);
    let mut one = Process::start(&behind("one"))?;
    let mut two = Process::start(&behind("two"))?;
    let deadline = Instant::now() + REACH_LIMIT;
    while proxy.struck() == 0 {
        ensure!(Instant::now() < deadline, "the fault struck nobody");
        sleep(POLL).await;
    }
    // A quiet scene cuts waits short, and a closed port is outlasted by waits alone.
    while proxy.refuses() {
        ensure!(Instant::now() < deadline, "the port stays closed");
        sleep(POLL).await;
    }
    scene.quiet(QUIET_LIMIT).await?;
    one.finish(END_LIMIT).await?;
    two.finish(END_LIMIT).await?;
    scene.quiet(QUIET_LIMIT).await?;
    let struck = usize::try_from(proxy.struck())?;
    end(scene, Allowance::faults(struck)).await
}

async fn queue(lie: LieKind) -> Result<Report> {
    let plot = Plot {
        first: vec![Part::Plain, Part::Flaky, Part::Busy],
        ..Plot::full()
    };
    two_at_work(&plot, Some(lie)).await
}

/// Without renewal the second process would take over what the first is still at.
async fn slow() -> Result<Report> {
    let plot = Plot {
        second: vec![Part::Slow],
        ..Plot::single(Part::Slow)
    };
    two_at_work(&plot, None).await
}

/// With leases shorter than what is slow in the plot.
async fn two_at_work(plot: &Plot, lie: Option<LieKind>) -> Result<Report> {
    let scene = Scene::new(plot).await?;
    let start = |name: &str| {
        let mut order = scene.order(name, Role::Work);
        order.lease = SHORT_LEASE;
        let lie = lie.map(|lie| ("CHAOS_LIE", lie.name().to_owned()));
        order.more.extend(lie);
        Process::start(&order)
    };
    let (mut one, mut two) = (start("one")?, start("two")?);
    scene.quiet(QUIET_LIMIT).await?;
    // Whatever was held back has come by the end.
    one.finish(END_LIMIT).await?;
    two.finish(END_LIMIT).await?;
    scene.quiet(QUIET_LIMIT).await?;
    let allowance = Allowance {
        nothing_twice: true,
        ..Allowance::default()
    };
    end(scene, allowance).await
}

async fn hopeless() -> Result<Report> {
    let scene = Scene::new(&Plot {
        second: vec![Part::Deaf],
        ..Plot::single(Part::Hopeless)
    })
    .await?;
    let mut one = Process::start(&scene.order("one", Role::Work))?;
    scene.quiet(QUIET_LIMIT).await?;
    one.finish(END_LIMIT).await?;
    end(scene, Allowance::default()).await
}

/// As after a restored backup of one column, or a planner that looked twice.
async fn rewind() -> Result<Report> {
    let scene = Scene::new(&Plot::single(Part::Plain)).await?;
    let mut one = Process::start(&scene.order("one", Role::Work))?;
    scene.quiet(QUIET_LIMIT).await?;
    let prompt = scene.prompts.first().context("a scene has a prompt")?;
    let first = prompt.slots.first().context("a prompt has slots")?;
    let sql = "UPDATE scheduled_prompts
                  SET status = 'active', status_reason = NULL, completed_at = NULL, next_run_at = $2
                WHERE id = $1";
    scene
        .admin
        .execute(sql, &[&prompt.id.uuid(), first])
        .await?;
    scene.quiet(QUIET_LIMIT).await?;
    one.finish(END_LIMIT).await?;
    let allowance = Allowance {
        nothing_twice: true,
        ..Allowance::default()
    };
    end(scene, allowance).await
}

/// An immediate shutdown leaves the server no time for anything; it recovers from its log.
async fn restart(point: Point) -> Result<Report> {
    let folder = tempfile::Builder::new()
        .prefix("carillon-chaos-")
        .tempdir()?;
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    let options = Options {
        data_dir: folder.path().join("postgres"),
        durable: true,
        settings: Vec::new(),
    };
    let cluster = Cluster::start(options.clone()).await?;
    let admin = crate::connect(&cluster.superuser_url()).await?;
    admin.batch_execute("CREATE DATABASE chaos").await?;
    let url = |cluster: &Cluster| {
        let url = cluster.superuser_url();
        url.rsplit_once('/')
            .map_or_else(|| url.clone(), |(server, _)| format!("{server}/chaos"))
    };
    let mut scene = Scene::alone(&plot(point), "chaos".to_owned(), url(&cluster)).await?;
    let proxy = FaultProxy::open(Upstream::of_postgres(&cluster.superuser_url())?).await?;
    let mut order = scene.order_behind("one", Role::Work, &proxy.address().to_string());
    order.lease = SHORT_LEASE;
    let mut one = start_to_be_struck(&scene, order, point, "stop").await?;
    let pid = Pid::from_raw(cluster.pid()).context("no process id")?;
    kill_process(pid, Signal::QUIT)?;
    cluster.stop().await?;
    let cluster = Cluster::start(options).await?;
    proxy.lead_to(Upstream::of_postgres(&cluster.superuser_url())?);
    scene.admin = crate::connect(&url(&cluster)).await?;
    one.go_on()?;
    scene.quiet(QUIET_LIMIT).await?;
    one.finish(END_LIMIT).await?;
    let report = checker::check(&scene, Allowance::faults(2)).await?;
    drop(scene);
    cluster.stop().await?;
    Ok(report)
}

async fn clocks() -> Result<Report> {
    let scene = Scene::new(&Plot::full()).await?;
    let library = scene.home.path().join("shift.so");
    compile_shift(&library)?;
    let start = |name: &str, days: i64| {
        let mut order = scene.order(name, Role::Work);
        order.more.extend([
            ("LD_PRELOAD", library.display().to_string()),
            ("CHAOS_CLOCK_SECONDS", (days * 86_400).to_string()),
        ]);
        Process::start(&order)
    };
    let (mut one, mut two) = (start("one", -1)?, start("two", 400)?);
    scene.quiet(QUIET_LIMIT).await?;
    one.finish(END_LIMIT).await?;
    two.finish(END_LIMIT).await?;
    let allowance = Allowance {
        unverified: true,
        nothing_twice: true,
        ..Allowance::faults(2)
    };
    end(scene, allowance).await
}

/// Whatever asks the system for the time of day through this library is told another.
fn compile_shift(library: &Path) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clock/shift.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]);
    let status = compiler.arg(library).arg(source).status()?;
    ensure!(status.success(), "cc ended with {status}");
    Ok(())
}

/// A process is stopped in the middle of a run, and the database says that it is earlier, or later
/// than any lease.
async fn jump(minutes: i32) -> Result<Report> {
    let scene = Scene::new(&plot(Point::ModelAnswered)).await?;
    scene.give_clock().await?;
    let order = scene.order("one", Role::Work);
    let mut one = start_to_be_struck(&scene, order, Point::ModelAnswered, "stop").await?;
    scene.set_clock(minutes).await?;
    let mut two = Process::start(&scene.order("two", Role::Work))?;
    sleep(JUMPED).await;
    one.go_on()?;
    sleep(JUMPED).await;
    scene.set_clock(0).await?;
    // What a lease was given by the other clock may last for as long as the jump.
    scene.end_leases().await?;
    scene.quiet(QUIET_LIMIT).await?;
    one.finish(END_LIMIT).await?;
    two.finish(END_LIMIT).await?;
    end(scene, Allowance::faults(2)).await
}

async fn end(scene: Scene, allowance: Allowance) -> Result<Report> {
    let report = checker::check(&scene, allowance).await?;
    scene.drop_database().await?;
    Ok(report)
}
