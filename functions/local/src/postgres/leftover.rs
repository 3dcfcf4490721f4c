//! What an earlier process left running on a data folder.
//!
//! A server that was killed leaves its own children for a moment, and a new server refuses to
//! start while they hold the shared memory.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{PostgresError, file_error};

/// A fast shutdown, which the children of a dead server ignore or need not see.
const POLITE_LIMIT: Duration = Duration::from_secs(15);
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What a server says about itself in `postmaster.pid`.
pub(super) struct PidFile {
    pub(super) pid: i32,
    pub(super) ready: bool,
}

impl PidFile {
    /// Reads it. `None` when there is none, or when it is not complete.
    pub(super) fn read(cluster: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(cluster.join("postmaster.pid")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // PostgreSQL's miscadmin.h: the first line is the process, the eighth its status.
        let mut lines = text.lines();
        let pid = lines.next().and_then(|line| line.trim().parse().ok());
        let ready = lines.nth(6).is_some_and(|line| line.trim() == "ready");
        Ok(pid.map(|pid| Self { pid, ready }))
    }
}

/// Stops every process of an earlier server of this cluster.
pub(super) fn stop(cluster: &Path) -> Result<(), PostgresError> {
    let server = PidFile::read(cluster).map_err(file_error("read postmaster.pid in", cluster))?;
    let server = server.and_then(|file| Pid::from_raw(file.pid));
    let left = processes(cluster);
    // The file may name a process of another program that got the number later.
    for pid in left.iter().filter(|pid| Some(**pid) == server) {
        let _ = kill_process(*pid, Signal::INT);
    }
    if all_gone(cluster, POLITE_LIMIT) {
        return Ok(());
    }
    for pid in processes(cluster) {
        let _ = kill_process(pid, Signal::QUIT);
    }
    if all_gone(cluster, IMMEDIATE_LIMIT) {
        return Ok(());
    }
    let pids: Vec<String> = processes(cluster)
        .iter()
        .map(|pid| pid.as_raw_nonzero().to_string())
        .collect();
    Err(PostgresError::Leftover {
        pids: pids.join(" "),
    })
}

/// The PostgreSQL processes that work in this cluster: each of them stays in its folder.
fn processes(cluster: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let in_cluster = fs::read_link(entry.path().join("cwd")).ok()? == cluster;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            (in_cluster && name.trim() == "postgres").then_some(pid)
        })
        .collect()
}

fn all_gone(cluster: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !processes(cluster).is_empty() {
        if Instant::now() >= deadline {
            return false;
        }
        pause(POLL);
    }
    true
}

#[expect(
    clippy::disallowed_methods,
    reason = "runs on a blocking thread, outside the runtime; a process that is not our child \
              cannot be waited for"
)]
fn pause(time: Duration) {
    thread::sleep(time);
}
