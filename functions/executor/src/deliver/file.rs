//! Writes whole files or nothing, so that a crash never leaves half of one under its name.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task, time};
use uuid::Uuid;

use super::DeliveryError;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Other users of the machine read neither outputs nor addresses.
const OWNER_ALONE: u32 = 0o600;

/// Runs file work beside the runtime, with a deadline. Work that outlives the deadline goes on; it
/// may, because repeating it changes nothing.
pub(super) async fn work<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DeliveryError> {
    match time::timeout(TIMEOUT, task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done.map_err(|error| DeliveryError::StoreUnavailable(Box::new(error))),
        Ok(Err(panicked)) => Err(DeliveryError::StoreUnavailable(Box::new(panicked))),
        Err(elapsed) => Err(DeliveryError::StoreUnavailable(Box::new(elapsed))),
    }
}

/// A complete file under a name that nobody looks for. It is removed when it is dropped.
pub(super) struct Draft(PathBuf);

impl Draft {
    /// Writes the bytes down to the disk, somewhere in `folder`, which is made when it is missing.
    pub(super) fn write(folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let draft = Self(folder.join(format!(".{}.draft", Uuid::now_v7())));
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(OWNER_ALONE)
            .open(&draft.0)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(draft)
    }

    /// Puts the file under `path`, in place of one that lies there.
    pub(super) fn replace(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)?;
        sync_folders(path, path.parent().unwrap_or(path))
    }

    /// Puts the file under `path`, unless one lies there already: then `false`.
    pub(super) fn publish(self, path: &Path, root: &Path) -> io::Result<bool> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::hard_link(&self.0, path) {
            Ok(()) => sync_folders(path, root).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes the names durable: those of the file and of each folder below `root` that leads to it.
fn sync_folders(path: &Path, root: &Path) -> io::Result<()> {
    path.ancestors()
        .skip(1)
        .take_while(|folder| folder.starts_with(root))
        .try_for_each(|folder| File::open(folder)?.sync_all())
}
