//! Keeps outputs, one per run, that are never written over: as objects, or as files of a folder.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    DeliveryError, S3, Sent,
    file::{self, Draft},
};

const KEY_BYTES_MAX: usize = 512;

/// Where the outputs of storage destinations lie.
#[derive(Debug)]
pub enum Storage {
    /// Files under a folder of this machine.
    Directory {
        /// The folder; it is made when it is missing.
        root: PathBuf,
    },
    /// Objects of a bucket.
    S3(S3),
}

impl Storage {
    /// Stores a run's output under its key, once.
    ///
    /// # Errors
    ///
    /// [`DeliveryError::ObjectDiffers`] when something else lies there; the same bytes are fine,
    /// because then an earlier attempt got that far.
    pub(super) async fn put(&self, key: &str, body: Bytes) -> Result<Sent, DeliveryError> {
        if !is_key(key) {
            return Err(DeliveryError::InvalidTarget);
        }
        let root = match self {
            Self::Directory { root } => root,
            Self::S3(bucket) => return bucket.put(key, body).await,
        };
        let (root, path) = (root.clone(), root.join(key));
        let location = path.display().to_string();
        if file::work(move || store(&root, &path, &body)).await? {
            Ok(Sent {
                location: Some(location),
                ..Sent::default()
            })
        } else {
            Err(DeliveryError::ObjectDiffers)
        }
    }

    /// Reads what lies under a key.
    pub(super) async fn get(&self, key: &str) -> Result<Bytes, DeliveryError> {
        if !is_key(key) {
            return Err(DeliveryError::InvalidTarget);
        }
        match self {
            Self::Directory { root } => {
                let path = root.join(key);
                file::work(move || fs::read(path)).await.map(Bytes::from)
            }
            Self::S3(bucket) => bucket.get(key).await,
        }
    }
}

/// Whether the bytes now lie under the path, from this attempt or an earlier one.
fn store(root: &Path, path: &Path, body: &[u8]) -> io::Result<bool> {
    // Drafts lie outside the tenants' folders, so that a listing shows only whole outputs.
    let new = Draft::write(&root.join(".incoming"), body)?.publish(path, root)?;
    if new {
        return Ok(true);
    }
    let found = File::open(path)?;
    if found.metadata()?.len() != body.len() as u64 {
        return Ok(false);
    }
    Ok(hash(found)? == Sha256::digest(body).as_slice())
}

fn hash(mut file: File) -> io::Result<Vec<u8>> {
    let mut hasher = Sha256::new();
    let mut chunk = [0; 64 * 1024];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize().to_vec()),
            length => hasher.update(&chunk[..length]),
        }
    }
}

/// Keys are made of ids and times. Whatever else the row may hold never becomes a path.
fn is_key(key: &str) -> bool {
    key.len() <= KEY_BYTES_MAX
        && key.starts_with("tenants/")
        && key.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const KEY: &str = "tenants/t/prompts/p/20260102T090000Z/r.md";

    fn put(storage: &Storage, key: &str, body: &'static [u8]) -> Result<Sent, DeliveryError> {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(storage.put(key, Bytes::from_static(body)))
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).map_or(0, Iterator::count)
    }

    #[test]
    fn the_output_is_stored_byte_by_byte_where_the_answer_says() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::Directory {
            root: root.path().join("new"),
        };
        let sent = put(&storage, KEY, b"# Hello\r\n\0").unwrap();
        let path = root.path().join("new").join(KEY);
        assert_eq!(sent.location, Some(path.display().to_string()));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read(path).unwrap(), b"# Hello\r\n\0");
        assert_eq!(files(&root.path().join("new/.incoming")), 0);
    }

    #[test]
    fn a_repeat_is_delivered_and_another_output_never_replaces_the_first() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::Directory {
            root: root.path().into(),
        };
        put(&storage, KEY, b"first").unwrap();
        assert!(put(&storage, KEY, b"first").is_ok());
        for other in [&b"other"[..], b"first and more", b""] {
            let error = put(&storage, KEY, other).unwrap_err();
            assert_eq!(error.code(), "object_differs");
        }
        assert_eq!(fs::read(root.path().join(KEY)).unwrap(), b"first");
    }

    #[test]
    fn of_two_writers_one_wins_whole() {
        for _ in 0..20 {
            let root = tempfile::tempdir().unwrap();
            let storage = Storage::Directory {
                root: root.path().into(),
            };
            let bodies: [&'static [u8]; 4] =
                [&[b'a'; 50_000], &[b'b'; 50_000], &[b'a'; 50_000], b"c"];
            let results: Vec<bool> = std::thread::scope(|scope| {
                let writers = bodies.map(|body| {
                    let storage = &storage;
                    scope.spawn(move || put(storage, KEY, body).is_ok())
                });
                writers
                    .into_iter()
                    .map(|writer| writer.join().unwrap())
                    .collect()
            });
            let stored = fs::read(root.path().join(KEY)).unwrap();
            for (body, delivered) in bodies.iter().zip(&results) {
                assert_eq!(*delivered, stored == *body);
            }
            assert!(results.contains(&true));
            assert_eq!(files(&root.path().join(".incoming")), 0);
        }
    }

    #[test]
    fn no_key_leads_out_of_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        let storage = Storage::Directory {
            root: outside.path().join("root"),
        };
        let long = format!("tenants/{}", "a".repeat(512));
        for key in [
            "",
            "a",
            "/etc/passwd",
            "tenants/../../x",
            "tenants/..",
            "tenants/.incoming/x",
            "tenants//x",
            "tenants/x/",
            "tenants/x\0",
            "tenants/x y",
            "tenants/ü",
            "tenants\\..\\x",
            "../tenants/x",
            &long,
        ] {
            let error = put(&storage, key, b"x").unwrap_err();
            assert_eq!(error.code(), "invalid_target", "{key:?}");
        }
        assert_eq!(files(outside.path()), 0);
    }
}
