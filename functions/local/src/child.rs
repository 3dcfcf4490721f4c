//! Child processes that cannot outlive us.
//!
//! A child gets its own process group, so that Ctrl-C in a terminal reaches us alone and running
//! work can finish first, and a parent-death signal, so that it ends even when we are killed.
//! Nothing here reads the child's output: the caller says where it goes.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A user that is not root, for programs that refuse to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The number of its main group.
    pub gid: u32,
}

/// One step of stopping a child: a signal, and how long to wait for the end after it.
pub type StopStep = (Signal, Duration);

/// A running child. Dropping it stops it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    exit: Receiver<io::Result<ExitStatus>>,
    exited: Option<ExitStatus>,
    stop_steps: &'static [StopStep],
}

/// What can go wrong with a child.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started or waited for.
    #[error("cannot run {program}; check that it is installed (setpriv is in util-linux)")]
    Run {
        /// The program that was asked for.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Every step of stopping it was tried in vain.
    #[error("process {pid} does not stop; end it by hand with `kill -9 {pid}`")]
    DoesNotStop {
        /// Its process id.
        pid: i32,
    },
}

/// A command that starts `program` with a parent-death signal, as `user` when one is given.
///
/// `setpriv` sets both: doing it in this process between fork and exec would take unsafe code.
pub fn command(program: impl AsRef<OsStr>, user: Option<User>, death_signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", death_signal]);
    if let Some(User { uid, gid }) = user {
        command.arg(format!("--reuid={uid}"));
        command.arg(format!("--regid={gid}"));
        command.arg("--clear-groups");
    }
    command.arg("--").arg(program);
    command.stdin(Stdio::null());
    command.process_group(0);
    command
}

/// Starts a command made by [`command`]. `stop_steps` is how it ends, in order.
///
/// # Errors
/// [`ChildError::Run`] when the system cannot start it.
pub fn spawn(mut command: Command, stop_steps: &'static [StopStep]) -> Result<Child, ChildError> {
    let program = format!("{command:?}");
    let failed = |source| ChildError::Run {
        program: program.clone(),
        source,
    };
    let (started_tx, started) = sync_channel(1);
    let (exit_tx, exit) = sync_channel(1);
    // The kernel sends the parent-death signal when the thread that forked ends, not the process.
    // So the thread that starts the child is the one that waits for it, and lives as long.
    thread::Builder::new()
        .name("child".to_owned())
        .spawn(move || match command.spawn() {
            Ok(mut child) => {
                // A dropped receiver means that nobody waits any more; the child is reaped anyway.
                let _ = started_tx.send(Ok(Pid::from_child(&child)));
                let _ = exit_tx.send(child.wait());
            }
            Err(error) => {
                let _ = started_tx.send(Err(error));
            }
        })
        .map_err(failed)?;
    let pid = started
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that starts it ended")))
        .map_err(failed)?;
    Ok(Child {
        pid,
        exit,
        exited: None,
        stop_steps,
    })
}

impl Child {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits at most `limit` for its end. `None` means that it still runs.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = match self.exit.recv_timeout(limit) {
                Ok(Ok(status)) => Some(status),
                // Only this process waits for it, so a failed wait means that it is gone.
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Some(ExitStatus::default()),
                Err(RecvTimeoutError::Timeout) => None,
            };
        }
        self.exited
    }

    /// Stops it, step by step. A child that has ended already is no error.
    ///
    /// # Errors
    /// [`ChildError::DoesNotStop`] when it runs after the last step.
    pub fn stop(&mut self) -> Result<ExitStatus, ChildError> {
        for (signal, limit) in self.stop_steps {
            if let Some(status) = self.wait(Duration::ZERO) {
                return Ok(status);
            }
            // It may end between the look and the signal; the wait below sees that.
            let _ = kill_process(self.pid, *signal);
            if let Some(status) = self.wait(*limit) {
                return Ok(status);
            }
        }
        Err(ChildError::DoesNotStop { pid: self.pid() })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Nobody is left to tell: `stop` is the way to learn of a failure.
        let _ = self.stop();
    }
}
