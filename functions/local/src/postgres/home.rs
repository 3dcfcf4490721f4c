//! The data folder: its lock, who owns PostgreSQL's files, and where they lie.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{PostgresError, file_error, reachable};
use crate::child::User;

/// Where root keeps the files of a data folder that the user nobody may not reach, such as one
/// below /root.
const ROOT_STATE: &str = "/var/lib/carillon";
/// Short on purpose: the path of a unix socket has at most 107 bytes.
const SOCKET_PARENT: &str = "/tmp";
const SOCKET_PREFIX: &str = "carillon-";

/// A data folder that only this process uses.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    /// PostgreSQL's files; `None` until they are made.
    cluster: Option<PathBuf>,
    /// Whom PostgreSQL runs as; `None` is us.
    user: Option<User>,
    /// A throwaway cluster that this value made, and removes.
    remove_cluster: bool,
    durable: bool,
    /// Held while we live. The system lets go of it however we end.
    _lock: File,
}

impl Home {
    pub(super) fn open(dir: &Path, durable: bool) -> Result<Self, PostgresError> {
        fs::create_dir_all(dir).map_err(file_error("create", dir))?;
        let dir = fs::canonicalize(dir).map_err(file_error("open", dir))?;
        let lock = lock(&dir)?;
        let link = dir.join("cluster");
        let cluster = match fs::canonicalize(&link) {
            Ok(cluster) => Some(cluster),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(file_error("open", &link)(error)),
        };
        let user = run_as(cluster.as_deref())?;
        Ok(Self {
            dir,
            cluster,
            user,
            remove_cluster: false,
            durable,
            _lock: lock,
        })
    }

    pub(super) fn user(&self) -> Option<User> {
        self.user
    }

    pub(super) fn cluster(&self) -> Option<&Path> {
        self.cluster.as_deref()
    }

    /// PostgreSQL's files, or where they will be.
    pub(super) fn cluster_dir(&self) -> PathBuf {
        let in_place = || self.dir.join("cluster");
        self.cluster.clone().unwrap_or_else(in_place)
    }

    pub(super) fn server_log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// The major version that the files were made with.
    pub(super) fn major_version(&self) -> Result<Option<u32>, PostgresError> {
        let Some(cluster) = &self.cluster else {
            return Ok(None);
        };
        let file = cluster.join("PG_VERSION");
        let text = fs::read_to_string(&file).map_err(file_error("read", &file))?;
        let major = text.trim().parse().map_err(io::Error::other);
        major.map(Some).map_err(file_error("understand", &file))
    }

    /// Makes PostgreSQL's files: `fill` gets an empty folder, the user it belongs to, and a log
    /// file to write. They take their final name only when they are complete, so a kill half-way
    /// leaves no half of one.
    pub(super) fn create_cluster(
        &mut self,
        fill: impl FnOnce(&Path, Option<User>, &Path) -> Result<(), PostgresError>,
    ) -> Result<(), PostgresError> {
        let log = self.dir.join("initdb.log");
        let link = self.dir.join("cluster");
        // A link whose target is gone.
        remove(fs::remove_file(&link), &link)?;
        let cluster = if reachable(&link, self.user) {
            let unfinished = self.dir.join("cluster.unfinished");
            remove(fs::remove_dir_all(&unfinished), &unfinished)?;
            make_folder(&unfinished, self.user)?;
            fill(&unfinished, self.user, &log)?;
            fs::rename(&unfinished, &link).map_err(file_error("rename", &unfinished))?;
            link
        } else {
            let elsewhere = folder_elsewhere()?;
            make_folder(&elsewhere, self.user)?;
            fill(&elsewhere, self.user, &log)?;
            symlink(&elsewhere, &link).map_err(file_error("link", &link))?;
            elsewhere
        };
        self.cluster = Some(cluster);
        self.remove_cluster = !self.durable;
        Ok(())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.remove_cluster {
            return;
        }
        // What cannot be removed is a nuisance, and nobody is left to tell.
        if let Some(cluster) = &self.cluster {
            let _ = fs::remove_dir_all(cluster);
        }
        let _ = fs::remove_file(self.dir.join("cluster"));
    }
}

/// The folder of the server's socket, removed with this value.
#[derive(Debug)]
pub(super) struct Socket {
    dir: TempDir,
}

impl Socket {
    /// Makes a folder that only PostgreSQL's user may enter, and removes the one that a killed
    /// process left.
    pub(super) fn create(home: &Home) -> Result<Self, PostgresError> {
        let link = home.dir.join("socket");
        if let Ok(old) = fs::read_link(&link) {
            let ours = format!("{SOCKET_PARENT}/{SOCKET_PREFIX}");
            if old.to_string_lossy().starts_with(&ours) {
                remove(fs::remove_dir_all(&old), &old)?;
            }
            fs::remove_file(&link).map_err(file_error("remove", &link))?;
        }
        let parent = Path::new(SOCKET_PARENT);
        let mut builder = tempfile::Builder::new();
        let dir = builder
            .prefix(SOCKET_PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(file_error("create a folder in", parent))?;
        own(dir.path(), home.user)?;
        symlink(dir.path(), &link).map_err(file_error("link", &link))?;
        Ok(Self { dir })
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn lock(dir: &Path) -> Result<File, PostgresError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(file_error("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PostgresError::InUse {
            data_dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(file_error("lock", &path)(error)),
    }
}

/// Whom PostgreSQL runs as: us; or, when we are root, the owner of its files, at first `nobody`.
fn run_as(cluster: Option<&Path>) -> Result<Option<User>, PostgresError> {
    let owner = match cluster {
        Some(dir) => {
            let data = fs::metadata(dir).map_err(file_error("open", dir))?;
            Some((dir, data.uid(), data.gid()))
        }
        None => None,
    };
    let me = rustix::process::geteuid();
    match owner {
        Some((cluster, uid, _)) if uid == 0 || (!me.is_root() && uid != me.as_raw()) => {
            Err(PostgresError::WrongOwner {
                cluster: cluster.to_owned(),
                uid,
            })
        }
        Some((_, uid, gid)) if me.is_root() => Ok(Some(User { uid, gid })),
        None if me.is_root() => nobody().map(Some),
        Some(_) | None => Ok(None),
    }
}

fn nobody() -> Result<User, PostgresError> {
    let path = Path::new("/etc/passwd");
    let text = fs::read_to_string(path).map_err(file_error("read", path))?;
    let line = text.lines().find(|line| line.starts_with("nobody:"));
    let mut fields = line.unwrap_or_default().split(':').skip(2);
    let mut number = || fields.next()?.parse().ok();
    match (number(), number()) {
        (Some(uid), Some(gid)) => Ok(User { uid, gid }),
        _ => Err(file_error("find the user nobody in", path)(
            io::ErrorKind::NotFound.into(),
        )),
    }
}

fn folder_elsewhere() -> Result<PathBuf, PostgresError> {
    let state = Path::new(ROOT_STATE);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(state)
        .map_err(file_error("create", state))?;
    let name = format!("cluster-{}", uuid::Uuid::now_v7());
    Ok(state.join(name))
}

fn make_folder(dir: &Path, user: Option<User>) -> Result<(), PostgresError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(file_error("create", dir))?;
    own(dir, user)
}

fn own(dir: &Path, user: Option<User>) -> Result<(), PostgresError> {
    match user {
        Some(User { uid, gid }) => {
            chown(dir, Some(uid), Some(gid)).map_err(file_error("hand over", dir))
        }
        None => Ok(()),
    }
}

fn remove(result: io::Result<()>, path: &Path) -> Result<(), PostgresError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
