//! A running `carillon up`, with a folder of its own.
//!
//! Whatever a process wrote is looked through at its end: no key, address, prompt or output may
//! stand in it, whichever test put them there.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use local::child::{self, Child, StopStep};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::{carillon_program, logs, peers};
use tokio::{sync::Mutex, time::Instant};

/// SHA-256 of [`PLATFORM_KEY`].
const PLATFORM_KEY_SHA256: &str =
    "959f1ebfcc1354ff555be4999d95a2dd18b8adece161aaffaf5dda9b34cdf878";
pub(crate) const PLATFORM_KEY: &str = "pk-e2e-of-the-platform-0123456789abcdef";
const PROVIDER_KEY: &str = "sk-e2e-of-the-provider-0123456789";

/// What no process may write: the keys, the addresses, and words of every prompt and answer.
const UNSPEAKABLE: [&str; 9] = [
    PLATFORM_KEY,
    PROVIDER_KEY,
    "whsec_",
    "@reader.example",
    "/hooks/",
    "[fixture:",
    "prompt-text-",
    "Harbour report",
    "No model was called",
];

/// Waits of a test end here, as a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Ctrl-C, and the end of running work; a test that hangs is killed.
const STOP_STEPS: &[StopStep] = &[
    (Signal::INT, Duration::from_secs(60)),
    (Signal::KILL, Duration::from_secs(10)),
];

static SHARED: Mutex<Weak<Carillon>> = Mutex::const_new(Weak::new());

/// The process of the tests that can do with any: it lives as long as one of them does.
pub(crate) async fn shared() -> Arc<Carillon> {
    let mut shared = SHARED.lock().await;
    if let Some(running) = shared.upgrade() {
        return running;
    }
    let running = Arc::new(Home::new().start(&[]).await);
    *shared = Arc::downgrade(&running);
    running
}

/// A data folder, which outlives the processes on it.
#[derive(Clone)]
pub(crate) struct Home {
    folder: Arc<TempDir>,
    starts: Arc<AtomicU32>,
}

pub(crate) struct Carillon {
    /// A lock, because the tests that share a process share this.
    child: std::sync::Mutex<Child>,
    home: Home,
    log: PathBuf,
    pub(crate) url: String,
    /// The owner's key of the first tenant, at its first start.
    pub(crate) first_key: Option<String>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("carillon-e2e-")
            .tempdir()
            .unwrap();
        // PostgreSQL's user must be able to go there when we are root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Self {
            folder: Arc::new(folder),
            starts: Arc::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    /// `carillon up` on this folder, ready to be called.
    pub(crate) async fn start(&self, arguments: &[&str]) -> Carillon {
        self.start_with(arguments, &[]).await
    }

    pub(crate) async fn start_with(&self, arguments: &[&str], env: &[(&str, &str)]) -> Carillon {
        let (child, log) = self.spawn(arguments, env);
        let mut carillon = Carillon {
            child: child.into(),
            home: self.clone(),
            log,
            url: String::new(),
            first_key: None,
        };
        let deadline = Instant::now() + PATIENCE;
        while !carillon.written().contains("Ctrl-C stops") {
            let ended = carillon.child().wait(Duration::ZERO);
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "carillon does not start ({ended:?}):\n{}",
                carillon.written()
            );
            tokio::time::sleep(POLL).await;
        }
        let written = carillon.written();
        let after = |mark: &str| written.lines().find_map(|line| line.strip_prefix(mark));
        carillon.url = after("API      ")
            .and_then(|url| url.strip_suffix("/v1/prompts"))
            .unwrap()
            .to_owned();
        carillon.first_key = after("    ck_").map(|rest| format!("ck_{rest}"));
        carillon
    }

    /// `carillon up` on this folder, which may come to nothing; and the file that it writes to.
    pub(crate) fn spawn(&self, arguments: &[&str], env: &[(&str, &str)]) -> (Child, PathBuf) {
        let mut command = program("KILL");
        let data_dir = self.data_dir();
        command.arg("up").arg("--data-dir").arg(&data_dir);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args([
            "--allow-loopback",
            "--platform-key-sha256",
            PLATFORM_KEY_SHA256,
        ]);
        command.args(arguments);
        command.envs(env.iter().copied());
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        let log = self.path().join(format!("carillon-{number}.log"));
        let file = File::create(&log).unwrap();
        logs::keep(&log).unwrap();
        command
            .stdout(Stdio::from(file.try_clone().unwrap()))
            .stderr(file);
        (child::spawn(command, STOP_STEPS).unwrap(), log)
    }

    /// The processes of a PostgreSQL that works in this folder.
    pub(crate) fn postgres_processes(&self) -> Vec<String> {
        let cluster = self.data_dir().join("cluster");
        let pid = |entry: fs::DirEntry| {
            let folder = fs::read_link(entry.path().join("cwd")).ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            (folder == cluster).then(|| name.trim().to_owned())
        };
        let entries = fs::read_dir("/proc").unwrap();
        entries.filter_map(|entry| pid(entry.ok()?)).collect()
    }
}

/// The program, in an environment of its own: every provider is the emulator.
pub(crate) fn program(death_signal: &str) -> Command {
    let mut command = child::command(carillon_program().unwrap(), None, death_signal);
    command.env_clear();
    let kept = [
        "PATH",
        "HOME",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "XDG_CACHE_HOME",
        "CARILLON_CACHE",
        "CARILLON_POSTGRES_BIN",
    ];
    for name in kept {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let aimock = peers::aimock_url();
    command.env("OPENAI_BASE_URL", format!("{aimock}/v1"));
    command.env("OPENAI_API_KEY", PROVIDER_KEY);
    command.env("ANTHROPIC_BASE_URL", &aimock);
    command.env("ANTHROPIC_API_KEY", PROVIDER_KEY);
    command.env("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", &aimock);
    command.env("AWS_REGION", "eu-central-1");
    command.env("AWS_BEARER_TOKEN_BEDROCK", PROVIDER_KEY);
    command.env("RUST_LOG", "info");
    command
}

impl Carillon {
    pub(crate) fn outbox(&self) -> PathBuf {
        self.home.data_dir().join("outbox")
    }

    /// All that the process has written so far.
    pub(crate) fn written(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The process.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.lock().unwrap().pid().cast_unsigned()
    }

    fn child(&mut self) -> &mut Child {
        self.child.get_mut().unwrap()
    }

    pub(crate) fn interrupt(&mut self) {
        signal(self.child(), Signal::INT);
    }

    /// Waits for its end without a word to it.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        ended(self.child()).await
    }

    /// `kill -9`, at once.
    pub(crate) async fn kill(mut self) {
        signal(self.child(), Signal::KILL);
        self.ended().await;
    }

    /// Ctrl-C, and a good end.
    pub(crate) async fn stop(mut self) {
        self.interrupt();
        let status = self.ended().await;
        assert!(status.success(), "{status}:\n{}", self.written());
    }

    fn assert_discreet(&self) {
        let written = self.written();
        for word in UNSPEAKABLE {
            assert!(!written.contains(word), "{word} was written:\n{written}");
        }
        let keys = written.matches("ck_").count();
        let shown = usize::from(self.first_key.is_some());
        assert_eq!(keys, shown, "a key was written:\n{written}");
    }
}

impl Drop for Carillon {
    fn drop(&mut self) {
        // A child that does not stop is killed by the last step.
        let _ = self.child().stop();
        if !std::thread::panicking() {
            self.assert_discreet();
        }
    }
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.pid()).unwrap(), signal).unwrap();
}

/// Waits for a child's end.
pub(crate) async fn ended(child: &mut Child) -> ExitStatus {
    ended_within(child, PATIENCE).await
}

pub(crate) async fn ended_within(child: &mut Child, limit: Duration) -> ExitStatus {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.wait(Duration::ZERO) {
            return status;
        }
        assert!(Instant::now() < deadline, "the process does not end");
        tokio::time::sleep(POLL).await;
    }
}

/// Asks until the answer is there.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
}
