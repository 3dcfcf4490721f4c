//! A running `carillon up` over a database that is there, and what it uses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use local::child::{self, Child, StopStep};
use rustix::process::Signal;
use tests::{bootstrap::Usage, carillon_program, logs};

use crate::eventually;
use crate::provider::Provider;

/// Ctrl-C, and the end of running work; a test that hangs is killed.
const STOP_STEPS: &[StopStep] = &[
    (Signal::INT, Duration::from_secs(60)),
    (Signal::KILL, Duration::from_secs(10)),
];

/// Opens the operator's routes: SHA-256 of [`PLATFORM_KEY`].
const PLATFORM_KEY_SHA256: &str =
    "959f1ebfcc1354ff555be4999d95a2dd18b8adece161aaffaf5dda9b34cdf878";
pub(crate) const PLATFORM_KEY: &str = "pk-e2e-of-the-platform-0123456789abcdef";

/// How to start one.
pub(crate) struct Start<'a> {
    /// The database's URL, of a superuser.
    pub(crate) database_url: &'a str,
    pub(crate) provider: &'a Provider,
    pub(crate) workers: usize,
    /// The most memory that it may have for data, in bytes, if there is a limit.
    pub(crate) data_bytes_max: Option<u64>,
}

pub(crate) struct Carillon {
    child: Child,
    log: PathBuf,
    pub(crate) url: String,
}

impl Carillon {
    /// Starts it with its files in the folder `home`, which several may share, and waits until it
    /// serves. `name` is its own.
    pub(crate) async fn start(home: &Path, name: &str, start: &Start<'_>) -> Self {
        let program = carillon_program().unwrap();
        let mut command = match start.data_bytes_max {
            None => child::command(program, None, "KILL"),
            Some(bytes) => {
                let mut command = child::command("prlimit", None, "KILL");
                command
                    .arg(format!("--data={bytes}"))
                    .arg("--")
                    .arg(program);
                command
            }
        };
        command.env_clear();
        for kept in ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command.env("OPENAI_BASE_URL", &start.provider.base_url);
        command.env("RUST_LOG", "warn");
        command.arg("up").arg("--data-dir").arg(home.join("data"));
        command.args(["--listen", "127.0.0.1:0", "--allow-loopback"]);
        command.args(["--platform-key-sha256", PLATFORM_KEY_SHA256]);
        command.args(["--workers", &start.workers.to_string()]);
        command.args(["--lease-ms", "15000"]);
        command.args(["--database-url", start.database_url]);
        let log = home.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        logs::keep(&log).unwrap();
        command
            .stdout(Stdio::from(file.try_clone().unwrap()))
            .stderr(file);
        let mut carillon = Self {
            child: child::spawn(command, STOP_STEPS).unwrap(),
            log,
            url: String::new(),
        };
        carillon.url = eventually("carillon starts", async || {
            carillon.assert_alive();
            let written = carillon.written();
            let ready = written.contains("Ctrl-C stops");
            let url = written
                .lines()
                .find_map(|line| line.strip_prefix("API      "));
            url.filter(|_| ready)
                .map(|url| url.trim_end_matches("/v1/prompts").to_owned())
        })
        .await;
        carillon
    }

    pub(crate) fn written(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn assert_alive(&mut self) {
        let ended = self.child.wait(Duration::ZERO);
        assert!(ended.is_none(), "it ended ({ended:?}):\n{}", self.written());
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage::of(self.child.pid().unsigned_abs())
    }

    /// Ctrl-C, and a good end.
    pub(crate) async fn stop(mut self) {
        self.assert_alive();
        tokio::task::spawn_blocking(move || {
            let status = self.child.stop().unwrap();
            assert!(status.success(), "{status}:\n{}", self.written());
        })
        .await
        .unwrap();
    }
}
