//! Encrypts what tenants' rows keep secret, such as the signing secrets of their webhooks.
//!
//! AES-256-GCM under one key of the installation. The tenant and the purpose are authenticated
//! with every blob: one that is copied into another tenant's row, or another column, does not open.
//! Neither the key nor a plain text is ever printed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::ids::TenantId;

/// First byte of every blob. A new format, or a key held elsewhere, takes the next number.
const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// What a blob is for; part of what is authenticated, so the texts must never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The secret that signs a tenant's webhooks.
    WebhookSecret,
    /// The first answer to a request that may be repeated; it may hold a new key.
    IdempotentAnswer,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::WebhookSecret => "webhook_secret",
            Self::IdempotentAnswer => "idempotent_answer",
        }
    }
}

/// Seals and opens small secrets.
#[derive(Debug)]
pub enum Sealer {
    /// With a key in this process's memory.
    Key(SealingKey),
}

impl Sealer {
    /// Reads the key from a file, and makes the file with a new key when it does not exist.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the file cannot be read or made, when anyone but its owner may read it, or
    /// when it does not hold the base64 of 32 bytes.
    pub fn from_key_file(path: &Path) -> Result<Self, KeyError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_key_file(path)
                .and_then(|()| File::open(path))
                .map_err(|source| KeyError::file(path, source))?,
            other => other.map_err(|source| KeyError::file(path, source))?,
        };
        let text = read_private(&file, path)?;
        Self::from_base64(text.trim())
    }

    /// Takes the key as the base64 of 32 bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] when the text is anything else.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = BASE64_STANDARD
            .decode(text)
            .map(Zeroizing::new)
            .map_err(|_| KeyError::Malformed)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| KeyError::Malformed)?;
        Ok(Self::Key(SealingKey(key)))
    }

    /// Encrypts `plain` for one tenant and one purpose.
    ///
    /// The blob is the version, a random nonce of 12 bytes, the cipher text and a tag of 16 bytes.
    ///
    /// # Errors
    ///
    /// [`SealError::Failed`] when the cipher refuses, for example without randomness.
    pub fn seal(
        &self,
        tenant_id: TenantId,
        purpose: Purpose,
        plain: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let Self::Key(SealingKey(key)) = self;
        // Room for the tag, so that no unencrypted copy is left behind by a move.
        let mut sealed = Vec::with_capacity(plain.len() + TAG_BYTES);
        sealed.extend_from_slice(plain);
        let nonce = key
            .seal_in_place_append_tag(associated(tenant_id, purpose), &mut sealed)
            .map_err(|_| SealError::Failed)?;
        let mut blob = Vec::with_capacity(1 + NONCE_LEN + sealed.len());
        blob.push(VERSION);
        blob.extend_from_slice(nonce.as_ref());
        blob.extend_from_slice(&sealed);
        Ok(blob)
    }

    /// Decrypts a blob that [`Sealer::seal`] made for the same tenant and purpose.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says whether the blob is of another version, too short, or not ours.
    pub fn open(
        &self,
        tenant_id: TenantId,
        purpose: Purpose,
        blob: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let Self::Key(SealingKey(key)) = self;
        let (version, rest) = blob.split_first().ok_or(OpenError::TooShort)?;
        if *version != VERSION {
            return Err(OpenError::UnknownVersion(*version));
        }
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_LEN>()
            .filter(|(_, sealed)| sealed.len() >= TAG_BYTES)
            .ok_or(OpenError::TooShort)?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let length = key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                associated(tenant_id, purpose),
                &mut plain,
            )
            .map_err(|_| OpenError::NotOurs)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

/// An AES-256 key; its `Debug` shows only the algorithm.
#[derive(Debug)]
pub struct SealingKey(RandomizedNonceKey);

/// Why a sealing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("cannot use the key file {path}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The group or others may read or write the file.
    #[error("the key file {path} has mode {mode:03o}; run chmod 600 on it", path = .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is not the base64 of 32 bytes. Its text is left out on purpose.
    #[error("the sealing key is malformed; give the base64 of 32 random bytes")]
    Malformed,
}

impl KeyError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

/// Why a secret was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The cipher refused.
    #[error("the secret could not be encrypted; try again")]
    Failed,
}

/// Why a blob was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Fewer bytes than the smallest blob.
    #[error("the sealed secret is cut short; rotate it")]
    TooShort,
    /// Another program, or a newer one, wrote it.
    #[error("the sealed secret has the unknown version {0}; deploy the release that wrote it")]
    UnknownVersion(u8),
    /// Another key, tenant or purpose, or changed bytes.
    #[error(
        "the sealed secret does not open with this key for this tenant; check the sealing key, or rotate the secret"
    )]
    NotOurs,
}

fn associated(tenant_id: TenantId, purpose: Purpose) -> Aad<Vec<u8>> {
    let mut data = b"carillon/seal/1/".to_vec();
    data.extend_from_slice(tenant_id.uuid().as_bytes());
    data.extend_from_slice(purpose.as_str().as_bytes());
    Aad::from(data)
}

/// Permissions are read from the open file, so that it cannot be exchanged in between.
fn read_private(file: &File, path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let metadata = file
        .metadata()
        .map_err(|source| KeyError::file(path, source))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(1024)
        .read_to_string(&mut text)
        .map_err(|source| KeyError::file(path, source))?;
    Ok(text)
}

/// Two processes that start together end with the same key: the file appears whole under its name
/// or not at all, and the second to link keeps the first one's.
fn create_key_file(path: &Path) -> io::Result<()> {
    let key = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
    let text = Zeroizing::new(format!("{}\n", BASE64_STANDARD.encode(*key)));
    let draft = path.with_extension(format!("{}.new", uuid::Uuid::now_v7()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::hard_link(&draft, path));
    let removed = std::fs::remove_file(&draft);
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.and(removed),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn sealer() -> Sealer {
        Sealer::from_base64(&BASE64_STANDARD.encode([7; 32])).unwrap()
    }

    #[test]
    fn a_secret_opens_only_for_its_tenant_and_with_its_key() {
        let (mine, theirs) = (TenantId::new(), TenantId::new());
        let blob = sealer()
            .seal(mine, Purpose::WebhookSecret, b"whsec")
            .unwrap();
        let open = |sealer: &Sealer, tenant| {
            sealer
                .open(tenant, Purpose::WebhookSecret, &blob)
                .map(|plain| plain.to_vec())
        };
        assert_eq!(open(&sealer(), mine), Ok(b"whsec".to_vec()));
        assert_eq!(open(&sealer(), theirs), Err(OpenError::NotOurs));
        let other = Sealer::from_base64(&BASE64_STANDARD.encode([8; 32])).unwrap();
        assert_eq!(open(&other, mine), Err(OpenError::NotOurs));
    }

    #[test]
    fn the_format_is_stable() {
        // Made by another implementation (Python's cryptography, nonce 00..0b) from the format's
        // description; a change of format must fail here, because rows outlive the code.
        let tenant: TenantId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let blob = hex::decode(concat!(
            "01000102030405060708090a0b",
            "7be09b197165b627015a1b593419348842ce473482de9974",
        ))
        .unwrap();
        let plain = sealer()
            .open(tenant, Purpose::WebhookSecret, &blob)
            .unwrap();
        assert_eq!(&**plain, b"carillon");
    }

    #[test]
    fn every_changed_or_missing_byte_is_found() {
        let tenant = TenantId::new();
        let blob = sealer().seal(tenant, Purpose::WebhookSecret, b"").unwrap();
        assert_eq!(blob.len(), 1 + 12 + 16);
        let open = |blob: &[u8]| {
            sealer()
                .open(tenant, Purpose::WebhookSecret, blob)
                .map(|_| ())
        };
        assert_eq!(open(&blob), Ok(()));
        for at in 0..blob.len() {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            let expected = match at {
                0 => OpenError::UnknownVersion(0),
                _ => OpenError::NotOurs,
            };
            assert_eq!(open(&changed), Err(expected), "byte {at}");
            assert_eq!(open(&blob[..at]), Err(OpenError::TooShort), "{at} bytes");
        }
    }

    #[test]
    fn two_blobs_of_one_secret_differ() {
        let tenant = TenantId::new();
        let seal = || {
            sealer()
                .seal(tenant, Purpose::WebhookSecret, b"same")
                .unwrap()
        };
        assert_ne!(seal(), seal());
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        for text in ["", "AAAA", "not base64", &BASE64_STANDARD.encode([1; 31])] {
            assert!(matches!(
                Sealer::from_base64(text),
                Err(KeyError::Malformed)
            ));
        }
    }

    #[test]
    fn a_missing_key_file_is_made_private_and_then_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.key");
        let tenant = TenantId::new();
        let blob = Sealer::from_key_file(&path)
            .unwrap()
            .seal(tenant, Purpose::WebhookSecret, b"kept")
            .unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let again = Sealer::from_key_file(&path).unwrap();
        assert!(again.open(tenant, Purpose::WebhookSecret, &blob).is_ok());
    }

    #[test]
    fn processes_that_start_together_share_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.key");
        let tenant = TenantId::new();
        let sealers: Vec<Sealer> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Sealer::from_key_file(&path).unwrap()))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap())
                .collect()
        });
        let blob = sealers[0]
            .seal(tenant, Purpose::WebhookSecret, b"one")
            .unwrap();
        for sealer in &sealers {
            assert!(sealer.open(tenant, Purpose::WebhookSecret, &blob).is_ok());
        }
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.key");
        Sealer::from_key_file(&path).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Sealer::from_key_file(&path).unwrap_err();
            assert!(matches!(error, KeyError::Exposed { mode: seen, .. } if seen == mode));
        }
    }

    #[test]
    fn a_key_file_with_other_content_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.key");
        fs::write(&path, "mine").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            Sealer::from_key_file(&path),
            Err(KeyError::Malformed)
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(matches!(
            Sealer::from_key_file(Path::new("/nowhere/at/all")),
            Err(KeyError::File { .. })
        ));
    }
}
