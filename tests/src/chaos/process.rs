//! The processes under fire, and the ways in which a queue lies to them.

use std::{
    env,
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use local::child::{self, Child, StopStep};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shared::{env::Reader, scheduler::Settings};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{logs, program};

/// What seals the tenants' secrets.
pub const SEALING_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The queue that entries of the scheduler name. Nothing is ever sent there.
pub const QUEUE_URL: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/wake-ups";

const POLL: Duration = Duration::from_millis(20);

/// A process that hangs is killed, and that is a finding of its own.
const STOP_STEPS: &[StopStep] = &[(Signal::KILL, Duration::from_secs(10))];

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sweeps and executes.
    Work,
    /// Serves the API.
    Serve,
}

/// How a process is started.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its name; the database's sessions bear it.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// URLs of the database, for `carillon_app` and for `carillon_system`.
    pub database: [String; 2],
    /// Where outbox, storage and the log are.
    pub home: PathBuf,
    /// How long its claims hold.
    pub lease: Duration,
    /// The base URL of the model.
    pub model_url: String,
    /// `CARILLON_CRASH`, and whatever else one cell alone needs.
    pub more: Vec<(&'static str, String)>,
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// How a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Runs,
    /// It is stopped, and would go on with SIGCONT.
    Stopped,
    /// It has ended.
    Ended(ExitStatus),
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn start(order: &Order) -> Result<Self> {
        let mut command = child::command(program("chaos_worker")?, None, "KILL");
        command.env_clear();
        for name in ["PATH", "TMPDIR", "LD_LIBRARY_PATH"] {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        let [app, system] = &order.database;
        let lease = order.lease.as_millis().to_string();
        command
            .arg(match order.role {
                Role::Work => "work",
                Role::Serve => "serve",
            })
            .env("CHAOS_APP_URL", app)
            .env("CHAOS_SYSTEM_URL", system)
            .env("CHAOS_HOME", &order.home)
            .env("CHAOS_LEASE_MS", lease)
            .env(
                "CHAOS_ADDRESS_FILE",
                order.home.join(format!("{}.address", order.name)),
            )
            .env("OPENAI_BASE_URL", &order.model_url)
            .env("OPENAI_API_KEY", "sk-chaos-of-the-provider")
            .env("RUST_LOG", "info")
            .envs(order.more.iter().map(|(name, value)| (name, value)));
        let log = order.home.join(format!("{}.log", order.name));
        let file = File::create(&log)?;
        logs::keep(&log)?;
        command.stdout(Stdio::from(file.try_clone()?)).stderr(file);
        Ok(Self {
            child: child::spawn(command, STOP_STEPS)?,
            log,
        })
    }

    /// How it stands.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn state(&mut self) -> Result<State> {
        if let Some(status) = self.child.wait(Duration::ZERO) {
            return Ok(State::Ended(status));
        }
        let path = format!("/proc/{}/stat", self.child.pid());
        // It may end between the two looks; the next one sees that.
        let text = fs::read_to_string(path).unwrap_or_default();
        let state = text
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        Ok(if state == Some('T') {
            State::Stopped
        } else {
            State::Runs
        })
    }

    /// Goes on after a stop.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Lets what is under way finish, and waits for the end.
    ///
    /// # Errors
    /// When it does not end within `limit`, or ends badly; a process that was killed before is none.
    pub async fn finish(&mut self, limit: Duration) -> Result<()> {
        if let State::Ended(status) = self.state()? {
            return judge(status);
        }
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let State::Ended(status) = self.state()? {
                return judge(status);
            }
            sleep(POLL).await;
        }
        self.signal(Signal::KILL)?;
        bail!("a process did not end after SIGTERM")
    }

    /// What it has written.
    #[must_use]
    pub fn written(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of what it has written.
    #[must_use]
    pub fn last_words(&self) -> String {
        let written = self.written();
        let last: Vec<_> = written.lines().rev().take(3).collect();
        last.join(" / ")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.pid()).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

fn judge(status: ExitStatus) -> Result<()> {
    let killed = status.signal() == Some(Signal::KILL.as_raw());
    anyhow::ensure!(status.success() || killed, "a process ended with {status}");
    Ok(())
}

/// Waits for the address that a process serves at.
///
/// # Errors
/// When it does not come.
pub async fn address(order: &Order) -> Result<String> {
    let file = order.home.join(format!("{}.address", order.name));
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Ok(address) = fs::read_to_string(&file) {
            return Ok(format!("http://{address}"));
        }
        sleep(POLL).await;
    }
    bail!("{} does not serve", order.name)
}

/// Reads the log files of a scene.
///
/// # Errors
/// When the folder cannot be read.
pub fn logs(home: &Path) -> Result<String> {
    let mut all = String::new();
    for entry in fs::read_dir(home)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "log") {
            all.push_str(&fs::read_to_string(path)?);
        }
    }
    Ok(all)
}

/// The scheduler's settings of a group of entries.
///
/// # Errors
/// When they would be refused at start-up.
pub fn scheduler_settings(group: &str) -> Result<Settings> {
    let look_up = |name: &str| {
        let value = match name {
            "CARILLON_SCHEDULE_GROUP" => group,
            "CARILLON_QUEUE_URL" => QUEUE_URL,
            "CARILLON_SCHEDULER_ROLE_ARN" => "arn:aws:iam::123456789012:role/scheduler",
            "CARILLON_SCHEDULER_DLQ_ARN" => "arn:aws:sqs:eu-central-1:123456789012:dead-letters",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let mut reader = Reader::new(&look_up);
    let settings = Settings::read(&mut reader);
    Ok(reader.finish(settings)?)
}

/// What a queue does with each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LieKind {
    /// It loses every other one.
    Lose,
    /// It brings each twice, at once.
    Double,
    /// It holds one back until the next has gone.
    Reorder,
    /// It brings each a second time, long after its lease.
    Late,
    /// It brings a mangled copy of each before it.
    Corrupt,
    /// It brings each as a later version would write it, too.
    OtherVersion,
    /// It brings each under another tenant's name first.
    OtherTenant,
}

impl LieKind {
    /// Every lie.
    pub const ALL: [Self; 7] = [
        Self::Lose,
        Self::Double,
        Self::Reorder,
        Self::Late,
        Self::Corrupt,
        Self::OtherVersion,
        Self::OtherTenant,
    ];

    /// Its name in `CHAOS_LIE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lose => "lose",
            Self::Double => "double",
            Self::Reorder => "reorder",
            Self::Late => "late",
            Self::Corrupt => "corrupt",
            Self::OtherVersion => "version",
            Self::OtherTenant => "tenant",
        }
    }
}

/// A queue's lies, as one process is told them.
#[derive(Debug)]
pub struct Lie {
    kind: Option<LieKind>,
    /// The other tenant's id for each tenant's.
    swap: Vec<(Uuid, Uuid)>,
    seen: u64,
    held: Option<String>,
}

/// How much later than its first coming a message comes again.
const LATE: Duration = Duration::from_secs(6);
/// After the wrong one, so that the right one finds what that has done.
const AFTER: Duration = Duration::from_millis(50);

impl Lie {
    /// Reads `CHAOS_LIE`, and `CHAOS_TENANTS` (two ids, with a comma between).
    ///
    /// # Errors
    /// For a lie that nobody knows.
    pub fn from_env() -> Result<Self> {
        let kind = match env::var("CHAOS_LIE") {
            Ok(name) => {
                let known = LieKind::ALL.into_iter().find(|kind| kind.name() == name);
                Some(known.with_context(|| format!("no lie is called {name}"))?)
            }
            Err(_) => None,
        };
        let tenants = env::var("CHAOS_TENANTS").unwrap_or_default();
        let swap = match tenants.split_once(',') {
            Some((a, b)) => vec![(a.parse()?, b.parse()?), (b.parse()?, a.parse()?)],
            None => Vec::new(),
        };
        Ok(Self {
            kind,
            swap,
            seen: 0,
            held: None,
        })
    }

    /// What the process gets for a message that was sent: each text after its wait.
    pub fn told(&mut self, body: String) -> Vec<(Duration, String)> {
        self.seen += 1;
        let now = Duration::ZERO;
        let Some(kind) = self.kind else {
            return vec![(now, body)];
        };
        tracing::info!(lie = kind.name(), "the queue lies");
        match kind {
            LieKind::Lose if self.seen % 2 == 1 => Vec::new(),
            LieKind::Lose => vec![(now, body)],
            LieKind::Double => vec![(now, body.clone()), (now, body)],
            // What is held back for good is as good as lost.
            LieKind::Reorder => match self.held.take() {
                Some(first) => vec![(now, body), (now, first)],
                None => {
                    self.held = Some(body);
                    Vec::new()
                }
            },
            LieKind::Late => vec![(now, body.clone()), (LATE, body)],
            LieKind::Corrupt => {
                let half = body.get(..body.len() / 2).unwrap_or_default().to_owned();
                vec![(now, half), (now, "\u{0}".to_owned()), (AFTER, body)]
            }
            LieKind::OtherVersion => {
                let later = changed(&body, |message| message["v"] = json!(2));
                vec![(now, later), (AFTER, body)]
            }
            LieKind::OtherTenant => {
                let swapped = changed(&body, |message| {
                    for (from, to) in &self.swap {
                        if message["tenant_id"] == json!(from) {
                            message["tenant_id"] = json!(to);
                            return;
                        }
                    }
                });
                vec![(now, swapped), (AFTER, body)]
            }
        }
    }
}

fn changed(body: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut message: Value = serde_json::from_str(body).unwrap_or_default();
    change(&mut message);
    message.to_string()
}
