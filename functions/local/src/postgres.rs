//! A private PostgreSQL server: found, initialised, started and stopped by us.
//!
//! It listens on a unix socket in a folder that only its own user may enter, never on the network,
//! and never runs as root. One data folder serves one process at a time.
//!
//! A data folder holds `cluster` (PostgreSQL's files, or a link to them), `postgres.log`, `lock`,
//! and `socket`, a link to the folder of the running server's socket.

mod binaries;
mod home;
mod leftover;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::spawn_blocking;

use crate::child::{self, Child, ChildError, StopStep};
use binaries::{Binaries, Search};
use home::{Home, Socket};

/// Fast shutdown, then immediate shutdown. Never SIGKILL: it leaves shared memory behind.
const STOP_STEPS: &[StopStep] = &[
    (Signal::INT, Duration::from_secs(30)),
    (Signal::QUIT, Duration::from_secs(10)),
];
/// What it leaves half done is thrown away.
const INITDB_STOP_STEPS: &[StopStep] = &[(Signal::KILL, Duration::from_secs(5))];
/// Crash recovery of a large write-ahead log is the slow case.
const READY_LIMIT: Duration = Duration::from_secs(120);
const READY_POLL: Duration = Duration::from_millis(20);
const INITDB_LIMIT: Duration = Duration::from_secs(120);
const LOG_TAIL_BYTES: u64 = 2_000;
/// The cluster's first user, which owns everything in it.
const SUPERUSER: &str = "postgres";

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data folder; made when it is not there.
    pub data_dir: PathBuf,
    /// `false` for a throwaway cluster: it does not survive a crash of the machine, and its files
    /// are removed when it stops.
    pub durable: bool,
    /// More server settings, as `postgres -c name=value` takes them.
    pub settings: Vec<(&'static str, String)>,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Cluster {
    // Fields drop in this order: the server must be gone before its folders and the lock are.
    server: Child,
    socket: Socket,
    _home: Home,
}

/// Why there is no running server.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No usable binaries.
    #[error(
        "found no PostgreSQL {wanted} ({looked}); install the package `postgresql`, or set \
         CARILLON_POSTGRES_BIN to the folder that holds `postgres` and `initdb`"
    )]
    NotFound {
        /// Which versions would do.
        wanted: String,
        /// What was looked at, and why it did not do.
        looked: String,
    },
    /// Another process holds the data folder.
    #[error(
        "another carillon runs on {}; stop it, or choose another data folder", data_dir.display()
    )]
    InUse {
        /// The data folder.
        data_dir: PathBuf,
    },
    /// The files belong to someone else.
    #[error(
        "{} belongs to user {uid}; run as that user, or choose another data folder",
        cluster.display()
    )]
    WrongOwner {
        /// The folder of PostgreSQL's files.
        cluster: PathBuf,
        /// Who owns it.
        uid: u32,
    },
    /// Processes of an earlier server do not go away.
    #[error("an earlier server of this data folder does not stop; end the processes {pids}")]
    Leftover {
        /// Their ids.
        pids: String,
    },
    /// `initdb` failed.
    #[error("initdb ended with {status}; it said: {log}")]
    Initdb {
        /// How it ended.
        status: String,
        /// The end of what it wrote.
        log: String,
    },
    /// The server ended while it started.
    #[error("postgres ended while it started ({status}); its log ends: {log}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The server is not ready within the limit.
    #[error("postgres is not ready after {seconds} s; its log ends: {log}")]
    NotReady {
        /// The limit.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// A process could not be run or stopped.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// A file or folder could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Cluster {
    /// Starts the server of a data folder, and initialises the folder first when it is new.
    /// What an earlier, killed process left running there is stopped first.
    ///
    /// # Errors
    /// See [`PostgresError`]; each says what to do.
    ///
    /// # Panics
    /// When the runtime is shutting down.
    pub async fn start(options: Options) -> Result<Self, PostgresError> {
        on_blocking_thread(move || start(&options)).await
    }

    /// A URL that libpq and tokio-postgres accept, over the unix socket.
    pub fn url(&self, database: &str, user: &str) -> String {
        let host = self.socket.dir().to_string_lossy();
        format!(
            "postgresql://{}@{}/{}",
            percent_encoded(user),
            percent_encoded(&host),
            percent_encoded(database)
        )
    }

    /// The URL of the database `postgres` for the user who owns the cluster.
    pub fn superuser_url(&self) -> String {
        self.url("postgres", SUPERUSER)
    }

    /// The folder of the server's socket.
    pub fn socket_dir(&self) -> &Path {
        self.socket.dir()
    }

    /// The process id of the server.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// Stops the server: a fast shutdown, and after 30 s an immediate one.
    ///
    /// # Errors
    /// [`PostgresError::Child`] when it still runs after both.
    ///
    /// # Panics
    /// When the runtime is shutting down.
    pub async fn stop(mut self) -> Result<(), PostgresError> {
        on_blocking_thread(move || {
            self.server.stop()?;
            Ok(())
        })
        .await
    }
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PostgresError> + Send + 'static,
) -> Result<T, PostgresError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn start(options: &Options) -> Result<Cluster, PostgresError> {
    let mut home = Home::open(&options.data_dir, options.durable)?;
    let binaries = binaries::find(&Search::from_env(), home.major_version()?, home.user())?;
    match home.cluster() {
        Some(cluster) => leftover::stop(cluster)?,
        None => home
            .create_cluster(|dir, user, log| initdb(&binaries, dir, user, log, options.durable))?,
    }
    let socket = Socket::create(&home)?;
    let server = serve(&binaries, &home, &socket, options)?;
    Ok(Cluster {
        server,
        socket,
        _home: home,
    })
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn initdb(
    binaries: &Binaries,
    dir: &Path,
    user: Option<child::User>,
    log: &Path,
    durable: bool,
) -> Result<(), PostgresError> {
    let mut command = child::command(binaries.initdb(), user, "KILL");
    command.args(["--encoding=UTF8", "--locale=C", "--username", SUPERUSER]);
    // The socket folder is the wall: only its owner and root may enter. TCP is refused twice.
    command.args(["--auth-local=trust", "--auth-host=reject"]);
    if !durable {
        command.arg("--no-sync");
    }
    command.arg("--pgdata").arg(dir);
    run_quietly(&mut command, log)?;
    let mut child = child::spawn(command, INITDB_STOP_STEPS)?;
    match child.wait(INITDB_LIMIT) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(PostgresError::Initdb {
            status: status.to_string(),
            log: log_tail(log),
        }),
        None => Err(PostgresError::Initdb {
            status: format!("nothing after {} s", INITDB_LIMIT.as_secs()),
            log: log_tail(log),
        }),
    }
}

fn serve(
    binaries: &Binaries,
    home: &Home,
    socket: &Socket,
    options: &Options,
) -> Result<Child, PostgresError> {
    let mut command = child::command(binaries.postgres(), home.user(), "INT");
    command.arg("-D").arg(home.cluster_dir());
    let socket_dir = socket.dir().to_string_lossy().into_owned();
    let mut settings = vec![
        ("listen_addresses", String::new()),
        ("unix_socket_directories", socket_dir),
        ("unix_socket_permissions", "0700".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        // The details of a refused statement are a row's values.
        ("log_error_verbosity", "terse".to_owned()),
    ];
    if !options.durable {
        settings.extend(
            ["fsync", "synchronous_commit", "full_page_writes"]
                .map(|name| (name, "off".to_owned())),
        );
    }
    settings.extend(options.settings.iter().cloned());
    for (name, value) in settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let log = home.server_log();
    run_quietly(&mut command, &log)?;
    let mut server = child::spawn(command, STOP_STEPS)?;
    wait_until_ready(&mut server, &home.cluster_dir(), &log)?;
    Ok(server)
}

fn wait_until_ready(server: &mut Child, cluster: &Path, log: &Path) -> Result<(), PostgresError> {
    let deadline = Instant::now() + READY_LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = server.wait(READY_POLL) {
            return Err(PostgresError::Exited {
                status,
                log: log_tail(log),
            });
        }
        // An unreadable file is one that is not written yet.
        let pid_file = leftover::PidFile::read(cluster).ok().flatten();
        if pid_file.is_some_and(|file| file.pid == server.pid() && file.ready) {
            return Ok(());
        }
    }
    Err(PostgresError::NotReady {
        seconds: READY_LIMIT.as_secs(),
        log: log_tail(log),
    })
}

/// Sends what the command writes to `log`, and gives it a small, predictable environment.
fn run_quietly(command: &mut Command, log: &Path) -> Result<(), PostgresError> {
    let file = File::create(log).map_err(file_error("create", log))?;
    let copy = file.try_clone().map_err(file_error("open", log))?;
    command.stdout(Stdio::from(file)).stderr(Stdio::from(copy));
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    command.env_clear().env("PATH", path).env("LC_ALL", "C");
    // Both programs refuse to start in a folder that their user may not enter.
    command.current_dir("/");
    Ok(())
}

fn log_tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).trim().to_owned())
    };
    match read() {
        Ok(tail) if tail.is_empty() => format!("nothing (see {})", log.display()),
        Ok(tail) => format!("{tail} (see {})", log.display()),
        Err(error) => format!("{} cannot be read: {error}", log.display()),
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PostgresError {
    let path = path.to_owned();
    move |source| PostgresError::File {
        action,
        path,
        source,
    }
}

/// May `user` (or, without one, may we) go into every folder above `path`?
fn reachable(path: &Path, user: Option<child::User>) -> bool {
    user.is_none()
        || path.ancestors().skip(1).all(|folder| {
            use std::os::unix::fs::PermissionsExt;
            fs::metadata(folder).is_ok_and(|data| data.permissions().mode() & 0o001 != 0)
        })
}
