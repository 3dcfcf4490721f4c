//! Encrypts what tenants' rows keep secret: signing secrets, keys of model providers, stored answers.
//!
//! AES-256-GCM under one key of the installation, or under data keys that AWS KMS makes for one tenant
//! and one purpose each. The tenant and the purpose are authenticated with every blob: one that is
//! copied into another tenant's row, or another column, does not open. Neither a key nor a plain text
//! is ever printed.

mod kms;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_types::SdkConfig;
use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use self::kms::DataKey;
pub use self::kms::{KeyId, Kms};
use crate::{aws::CallError, env::Reader, ids::TenantId, provider_key::KeyedProvider};

/// First byte of a blob that was sealed with the installation's key: a nonce of 12 bytes, the cipher
/// text and a tag of 16 bytes follow.
const BY_KEY: u8 = 1;
/// First byte of one that was sealed with a data key: two bytes with the length of the wrapped data
/// key, which follows, and then the same.
const BY_DATA_KEY: u8 = 2;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// What a blob is for; part of what is authenticated, so the texts must never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The secret that signs a tenant's webhooks.
    WebhookSecret,
    /// The first answer to a request that may be repeated; it may hold a new key.
    IdempotentAnswer,
    /// A tenant's own key of a model provider.
    ProviderKey(KeyedProvider),
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::WebhookSecret => "webhook_secret",
            Self::IdempotentAnswer => "idempotent_answer",
            Self::ProviderKey(KeyedProvider::OpenAi) => "provider_key/openai",
            Self::ProviderKey(KeyedProvider::Anthropic) => "provider_key/anthropic",
        }
    }
}

/// With what an installation seals, as its environment says.
#[derive(Debug)]
pub enum Settings {
    /// A key in this process's memory.
    Key(SealingKey),
    /// A key of KMS.
    Kms(KeyId),
}

impl Settings {
    /// Reads `CARILLON_SEALING_KEY` or `CARILLON_KMS_KEY_ID`; what is missing or bad is told to the
    /// reader.
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.one_of(
            ("CARILLON_SEALING_KEY", |text| {
                let key = SealingKey::from_base64(text).map(Self::Key);
                key.map_err(|_| "must be the base64 of 32 bytes".to_owned())
            }),
            ("CARILLON_KMS_KEY_ID", |text| {
                kms::read_key_id(text).map(Self::Kms)
            }),
        )
    }

    /// What seals and opens.
    #[must_use]
    pub fn into_sealer(self, aws: &SdkConfig) -> Sealer {
        match self {
            Self::Key(key) => Sealer::Key(key),
            Self::Kms(key_id) => Sealer::Kms(Kms::new(aws, key_id)),
        }
    }
}

/// Seals and opens small secrets.
#[derive(Debug)]
pub enum Sealer {
    /// With a key in this process's memory.
    Key(SealingKey),
    /// With data keys of KMS.
    Kms(Kms),
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
        SealingKey::from_base64(text).map(Self::Key)
    }

    /// Gets ready to seal for one tenant and one purpose. It may ask KMS, so no transaction may be
    /// open; what it gives asks nobody.
    ///
    /// # Errors
    ///
    /// [`SealError::Kms`] when KMS refuses or does not answer.
    pub async fn ready(
        &self,
        tenant_id: TenantId,
        purpose: Purpose,
    ) -> Result<Sealing<'_>, SealError> {
        let by = match self {
            Self::Key(key) => By::Key(key),
            Self::Kms(kms) => By::DataKey(kms.sealing_key(tenant_id, purpose).await?),
        };
        Ok(Sealing {
            by,
            tenant_id,
            purpose,
        })
    }

    /// Decrypts a blob that was sealed for the same tenant and purpose. It may ask KMS, so no
    /// transaction may be open.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says whether the blob is of another version, too short, or not ours, or whether
    /// KMS did not answer.
    pub async fn open(
        &self,
        tenant_id: TenantId,
        purpose: Purpose,
        blob: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (version, rest) = blob.split_first().ok_or(OpenError::TooShort)?;
        let data = associated(*version, tenant_id, purpose);
        match (self, *version) {
            (Self::Key(key), BY_KEY) => key.open(data, rest),
            (Self::Kms(kms), BY_DATA_KEY) => {
                let (length, rest) = rest.split_first_chunk().ok_or(OpenError::TooShort)?;
                let length = usize::from(u16::from_be_bytes(*length));
                let (wrapped, rest) = rest.split_at_checked(length).ok_or(OpenError::TooShort)?;
                let key = kms.opening_key(tenant_id, purpose, wrapped).await?;
                key.open(data, rest)
            }
            (_, BY_KEY | BY_DATA_KEY) => Err(OpenError::OtherSettings),
            (_, version) => Err(OpenError::UnknownVersion(version)),
        }
    }
}

/// What seals for one tenant and one purpose.
#[derive(Debug)]
pub struct Sealing<'a> {
    by: By<'a>,
    tenant_id: TenantId,
    purpose: Purpose,
}

#[derive(Debug)]
enum By<'a> {
    Key(&'a SealingKey),
    DataKey(Arc<DataKey>),
}

impl Sealing<'_> {
    /// Encrypts `plain`.
    ///
    /// # Errors
    ///
    /// [`SealError::Failed`] when the cipher refuses, for example without randomness.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let (version, key, wrapped) = match &self.by {
            By::Key(key) => (BY_KEY, *key, None),
            By::DataKey(data_key) => (BY_DATA_KEY, &data_key.key, Some(&data_key.wrapped)),
        };
        let mut blob = vec![version];
        if let Some(wrapped) = wrapped {
            let length = u16::try_from(wrapped.len()).map_err(|_| SealError::Failed)?;
            blob.extend_from_slice(&length.to_be_bytes());
            blob.extend_from_slice(wrapped);
        }
        key.seal(
            associated(version, self.tenant_id, self.purpose),
            plain,
            &mut blob,
        )?;
        Ok(blob)
    }
}

/// An AES-256 key; its `Debug` shows only the algorithm. Its memory is overwritten when it is
/// dropped, by AWS-LC.
#[derive(Debug)]
pub struct SealingKey(RandomizedNonceKey);

impl SealingKey {
    fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes);
        key.map(Self).map_err(|_| KeyError::Malformed)
    }

    fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = BASE64_STANDARD.decode(text).map(Zeroizing::new);
        Self::new(&bytes.map_err(|_| KeyError::Malformed)?)
    }

    /// Appends a random nonce, the cipher text and the tag.
    fn seal(&self, data: Aad<Vec<u8>>, plain: &[u8], blob: &mut Vec<u8>) -> Result<(), SealError> {
        // Room for the tag, so that no unencrypted copy is left behind by a move.
        let mut sealed = Vec::with_capacity(plain.len() + TAG_BYTES);
        sealed.extend_from_slice(plain);
        let nonce = self
            .0
            .seal_in_place_append_tag(data, &mut sealed)
            .map_err(|_| SealError::Failed)?;
        blob.reserve_exact(NONCE_LEN + sealed.len());
        blob.extend_from_slice(nonce.as_ref());
        blob.extend_from_slice(&sealed);
        Ok(())
    }

    fn open(&self, data: Aad<Vec<u8>>, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (nonce, sealed) = blob
            .split_first_chunk::<NONCE_LEN>()
            .filter(|(_, sealed)| sealed.len() >= TAG_BYTES)
            .ok_or(OpenError::TooShort)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut plain = Zeroizing::new(sealed.to_vec());
        let length = self
            .0
            .open_in_place(nonce, data, &mut plain)
            .map_err(|_| OpenError::NotOurs)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The cipher refused.
    #[error("the secret could not be encrypted; try again")]
    Failed,
    /// KMS gave no data key.
    #[error("KMS gave no data key: {0} ({detail})", detail = .0.detail)]
    Kms(CallError),
}

impl From<CallError> for SealError {
    fn from(error: CallError) -> Self {
        Self::Kms(error)
    }
}

/// Why a blob was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    /// It was sealed with a key where there is KMS now, or the other way round.
    #[error(
        "the sealed secret needs CARILLON_SEALING_KEY where CARILLON_KMS_KEY_ID is set, or the other way round; set what it was sealed with, or rotate it"
    )]
    OtherSettings,
    /// KMS did not open the data key.
    #[error("KMS did not open the data key: {0} ({detail})", detail = .0.detail)]
    Kms(CallError),
}

impl OpenError {
    /// Whether the same blob may open a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Kms(_) => true,
            Self::TooShort | Self::UnknownVersion(_) | Self::NotOurs | Self::OtherSettings => false,
        }
    }
}

fn associated(version: u8, tenant_id: TenantId, purpose: Purpose) -> Aad<Vec<u8>> {
    let mut data = format!("carillon/seal/{version}/").into_bytes();
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

    async fn seal(sealer: &Sealer, tenant: TenantId, plain: &[u8]) -> Vec<u8> {
        let ready = sealer.ready(tenant, Purpose::WebhookSecret).await.unwrap();
        ready.seal(plain).unwrap()
    }

    async fn open(sealer: &Sealer, tenant: TenantId, blob: &[u8]) -> Result<Vec<u8>, OpenError> {
        let opened = sealer.open(tenant, Purpose::WebhookSecret, blob).await;
        opened.map(|plain| plain.to_vec())
    }

    #[tokio::test]
    async fn a_secret_opens_only_for_its_tenant_and_with_its_key() {
        let (mine, theirs) = (TenantId::new(), TenantId::new());
        let blob = seal(&sealer(), mine, b"whsec").await;
        assert_eq!(open(&sealer(), mine, &blob).await, Ok(b"whsec".to_vec()));
        assert_eq!(
            open(&sealer(), theirs, &blob).await,
            Err(OpenError::NotOurs)
        );
        let purpose = Purpose::ProviderKey(KeyedProvider::OpenAi);
        let opened = sealer().open(mine, purpose, &blob).await;
        assert_eq!(opened, Err(OpenError::NotOurs));
        let other = Sealer::from_base64(&BASE64_STANDARD.encode([8; 32])).unwrap();
        assert_eq!(open(&other, mine, &blob).await, Err(OpenError::NotOurs));
    }

    #[tokio::test]
    async fn the_format_is_stable() {
        // Made by another implementation (Python's cryptography, nonce 00..0b) from the format's
        // description; a change of format must fail here, because rows outlive the code.
        let tenant: TenantId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let blob = hex::decode(concat!(
            "01000102030405060708090a0b",
            "7be09b197165b627015a1b593419348842ce473482de9974",
        ))
        .unwrap();
        let plain = open(&sealer(), tenant, &blob).await;
        assert_eq!(plain, Ok(b"carillon".to_vec()));
    }

    #[tokio::test]
    async fn every_changed_or_missing_byte_is_found() {
        let tenant = TenantId::new();
        let blob = seal(&sealer(), tenant, b"").await;
        assert_eq!(blob.len(), 1 + 12 + 16);
        assert_eq!(open(&sealer(), tenant, &blob).await, Ok(Vec::new()));
        for at in 0..blob.len() {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            let expected = match at {
                0 => OpenError::UnknownVersion(0),
                _ => OpenError::NotOurs,
            };
            let opened = open(&sealer(), tenant, &changed).await;
            assert_eq!(opened, Err(expected), "byte {at}");
            let opened = open(&sealer(), tenant, &blob[..at]).await;
            assert_eq!(opened, Err(OpenError::TooShort), "{at} bytes");
        }
    }

    #[tokio::test]
    async fn what_kms_sealed_is_told_apart() {
        let blob = [BY_DATA_KEY, 0, 1, 7];
        let opened = open(&sealer(), TenantId::new(), &blob).await;
        assert_eq!(opened, Err(OpenError::OtherSettings));
    }

    #[tokio::test]
    async fn two_blobs_of_one_secret_differ() {
        let tenant = TenantId::new();
        let blobs = (
            seal(&sealer(), tenant, b"same").await,
            seal(&sealer(), tenant, b"same").await,
        );
        assert_ne!(blobs.0, blobs.1);
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
    fn exactly_one_key_must_be_set() {
        let key = BASE64_STANDARD.encode([7; 32]);
        let read = |given: &[(&str, &str)]| {
            let look_up = |name: &str| {
                let found = given.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let mut reader = Reader::new(&look_up);
            let settings = Settings::read(&mut reader);
            reader.finish(settings).map_err(|error| error.to_string())
        };
        let (by_key, by_kms) = (
            ("CARILLON_SEALING_KEY", key.as_str()),
            ("CARILLON_KMS_KEY_ID", "alias/carillon"),
        );
        assert!(matches!(read(&[by_key]), Ok(Settings::Key(_))));
        assert!(matches!(read(&[by_kms]), Ok(Settings::Kms(_))));
        for (given, told) in [
            (
                vec![],
                "CARILLON_SEALING_KEY is not set, nor CARILLON_KMS_KEY_ID; set one of them",
            ),
            (
                vec![by_key, by_kms],
                "CARILLON_SEALING_KEY and CARILLON_KMS_KEY_ID are both set; keep one",
            ),
            (
                vec![("CARILLON_KMS_KEY_ID", "a key")],
                "CARILLON_KMS_KEY_ID must be the ARN, the id or the alias of a key of KMS",
            ),
        ] {
            assert_eq!(read(&given).unwrap_err(), format!("configuration: {told}"));
        }
    }

    #[tokio::test]
    async fn a_missing_key_file_is_made_private_and_then_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.key");
        let tenant = TenantId::new();
        let blob = seal(&Sealer::from_key_file(&path).unwrap(), tenant, b"kept").await;
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let again = Sealer::from_key_file(&path).unwrap();
        assert!(open(&again, tenant, &blob).await.is_ok());
    }

    #[tokio::test]
    async fn processes_that_start_together_share_one_key() {
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
        let blob = seal(&sealers[0], tenant, b"one").await;
        for sealer in &sealers {
            assert!(open(sealer, tenant, &blob).await.is_ok());
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
