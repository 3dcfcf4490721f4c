//! How the two roles that log in reach the database: with what password, and over which TLS.
//!
//! A password that is kept in Secrets Manager may change while this process runs: it is fetched anew
//! when the database refuses it. Connections that stand go on. No password is ever printed.

use std::{
    future::Future,
    path::Path,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
};

use deadpool_postgres::{ConfigConnectImpl, Connect};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, Config, NoTls,
    config::{Host, SslMode},
    error::SqlState,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{CONNECT_TIMEOUT, DbConfig, DbError, SESSION_OPTIONS};
use crate::{
    env::{self, Reader},
    secret::Secret,
    secrets::{self, Kept, SecretArn, SecretsManager},
    tls,
};

/// Connections of one process at the most; more is a slip.
const CONNECTIONS_MAX: usize = 100;

/// A bundle of certificates is far smaller.
const ROOTS_BYTES_MAX: u64 = 4_000_000;

/// How a role logs in.
#[derive(Debug, Clone)]
pub enum Login {
    /// With what stands in a URL.
    Url(Secret),
    /// With what stands in a secret: JSON with `host`, `port`, `dbname`, `sslmode`, `username` and
    /// `password`.
    Stored(Arc<Kept<Config>>),
}

/// Certificates that the database's may be signed with, beside those that the system trusts.
#[derive(Debug, Clone, Default)]
pub struct Roots(Vec<CertificateDer<'static>>);

/// What an environment says of the database.
#[derive(Debug, Clone)]
pub struct Settings {
    app: Source,
    system: Source,
    roots: Roots,
    /// Connections of the app role at the most.
    pub app_connections_max: usize,
    /// Connections of the system role at the most.
    pub system_connections_max: usize,
}

#[derive(Debug, Clone)]
enum Source {
    Url(Secret),
    Stored(SecretArn),
}

impl Settings {
    /// Reads, for each of the two roles, `CARILLON_[SYSTEM_]DATABASE_URL` or
    /// `CARILLON_[SYSTEM_]DATABASE_SECRET_ARN`; and, where they are set, `CARILLON_DATABASE_CA_FILE`,
    /// and `CARILLON_[SYSTEM_]DATABASE_CONNECTIONS_MAX` instead of the two counts. What is missing or
    /// bad is told to the reader.
    pub fn read(reader: &mut Reader<'_>, app_max: usize, system_max: usize) -> Option<Self> {
        let mut source = |url, arn| {
            reader.one_of(
                (url, |text| env::database_url(text).map(Source::Url)),
                (arn, |text| secrets::read_arn(text).map(Source::Stored)),
            )
        };
        let app = source("CARILLON_DATABASE_URL", "CARILLON_DATABASE_SECRET_ARN");
        let system = source(
            "CARILLON_SYSTEM_DATABASE_URL",
            "CARILLON_SYSTEM_DATABASE_SECRET_ARN",
        );
        let roots = reader.optional("CARILLON_DATABASE_CA_FILE", Roots::from_file);
        let mut most = |name, otherwise| {
            let read = reader.optional(name, env::count(CONNECTIONS_MAX));
            read.unwrap_or(otherwise)
        };
        let app_connections_max = most("CARILLON_DATABASE_CONNECTIONS_MAX", app_max);
        let system_connections_max = most("CARILLON_SYSTEM_DATABASE_CONNECTIONS_MAX", system_max);
        Some(Self {
            app: app?,
            system: system?,
            roots: roots.unwrap_or_default(),
            app_connections_max,
            system_connections_max,
        })
    }

    /// How to connect. Nothing is called yet.
    #[must_use]
    pub fn config(&self, manager: &SecretsManager) -> DbConfig {
        let login = |source: &Source| match source {
            Source::Url(url) => Login::Url(url.clone()),
            Source::Stored(arn) => Login::Stored(Arc::new(Kept::new(
                manager.clone(),
                arn.clone(),
                read_credentials,
                None,
            ))),
        };
        DbConfig {
            app: login(&self.app),
            system: login(&self.system),
            roots: self.roots.clone(),
            app_connections_max: self.app_connections_max,
            system_connections_max: self.system_connections_max,
        }
    }
}

impl Roots {
    /// Reads a file of PEM certificates, for [`Reader::optional`].
    ///
    /// # Errors
    /// What to give instead.
    pub fn from_file(path: &str) -> Result<Self, String> {
        let is_small = std::fs::metadata(path).is_ok_and(|file| file.len() <= ROOTS_BYTES_MAX);
        let pem = is_small.then(|| std::fs::read(Path::new(path)).ok());
        let pem = pem.flatten().ok_or("must be a file that can be read")?;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = read.map_err(|_| "must be a file of PEM certificates")?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|_| "holds a certificate that cannot be used")?;
        }
        if store.is_empty() {
            return Err("must be a file of PEM certificates".to_owned());
        }
        Ok(Self(certificates))
    }

    pub(super) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.0.clone()
    }
}

impl Login {
    /// What to connect with, as far as is known now.
    pub(super) async fn config(&self) -> Result<Arc<Config>, DbError> {
        match self {
            Self::Url(url) => {
                let config = url
                    .expose()
                    .parse::<Config>()
                    .map_err(|_| DbError::Config("the database URL cannot be read".to_owned()))?;
                Ok(Arc::new(config))
            }
            Self::Stored(kept) => Ok(kept.get().await?),
        }
    }

    /// After the database has refused `refused`: what to connect with instead.
    pub(super) async fn instead_of(&self, refused: &Arc<Config>) -> Option<Arc<Config>> {
        match self {
            Self::Url(_) => None,
            Self::Stored(kept) => kept.instead_of(refused).await,
        }
    }
}

/// Whether the database refused who wanted to log in.
pub(super) fn is_refused(error: &tokio_postgres::Error) -> bool {
    let codes = [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}

/// Connects with what the role's login holds at the moment.
pub(super) struct Door {
    current: Current,
    connect: Box<dyn Connect>,
}

/// What a door connects with.
#[derive(Clone)]
pub(super) struct Current(Arc<RwLock<Arc<Config>>>);

impl Current {
    pub(super) fn get(&self) -> Arc<Config> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&held)
    }

    pub(super) fn set(&self, config: Arc<Config>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}

impl Door {
    pub(super) fn new(config: Arc<Config>, roots: &Roots) -> (Self, Current) {
        let connect: Box<dyn Connect> = if uses_tls(&config) {
            let tls = MakeRustlsConnect::new(tls::trusting(roots.certificates()));
            Box::new(ConfigConnectImpl { tls })
        } else {
            Box::new(ConfigConnectImpl { tls: NoTls })
        };
        let current = Current(Arc::new(RwLock::new(config)));
        let door = Self {
            current: current.clone(),
            connect,
        };
        (door, current)
    }
}

type Connecting<'a> = Pin<
    Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>,
>;

impl Connect for Door {
    fn connect(&self, _: &Config) -> Connecting<'_> {
        let mut config = Config::clone(&self.current.get());
        config
            .options(SESSION_OPTIONS)
            .connect_timeout(CONNECT_TIMEOUT);
        self.connect.connect(&config)
    }
}

/// A local socket is private already; elsewhere `sslmode` decides.
pub(super) fn uses_tls(config: &Config) -> bool {
    let remote = config.get_hosts().iter().any(|host| match host {
        Host::Tcp(_) => true,
        Host::Unix(path) => path == Path::new(""),
    });
    remote && config.get_ssl_mode() != SslMode::Disable
}

/// What AWS's own secrets of a database hold ("JSON structure of Secrets Manager database credential
/// secrets"), with libpq's `sslmode`. What else stands there is left alone.
#[derive(Deserialize)]
struct Credentials {
    host: String,
    port: Option<Port>,
    dbname: String,
    sslmode: Option<Tls>,
    username: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

/// A certificate is always checked, and so is its name.
#[derive(Deserialize)]
enum Tls {
    #[serde(rename = "disable")]
    Disable,
    #[serde(rename = "allow", alias = "prefer")]
    Prefer,
    #[serde(rename = "require", alias = "verify-ca", alias = "verify-full")]
    Require,
}

/// The parser's own words may repeat what it read.
pub(super) fn read_credentials(text: &str) -> Result<Config, &'static str> {
    const WANTED: &str =
        "must hold JSON with host, port, dbname, sslmode, username and password of the database";
    let read: Credentials = serde_json::from_str(text).map_err(|_| WANTED)?;
    let port = match read.port {
        None => 5432,
        Some(Port::Number(port)) => port,
        Some(Port::Text(text)) => text.parse().map_err(|_| WANTED)?,
    };
    let mut config = Config::new();
    config
        .host(read.host)
        .port(port)
        .dbname(read.dbname)
        .user(read.username)
        .password(Secret::new(read.password).expose())
        .ssl_mode(match read.sslmode {
            Some(Tls::Disable) => SslMode::Disable,
            Some(Tls::Prefer) => SslMode::Prefer,
            Some(Tls::Require) | None => SslMode::Require,
        });
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ARN: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:app-a1b2c3";

    fn read(given: &[(&str, &str)]) -> Result<Settings, String> {
        let look_up = |name: &str| {
            let found = given.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let mut reader = Reader::new(&look_up);
        let settings = Settings::read(&mut reader, 2, 1);
        reader.finish(settings).map_err(|error| error.to_string())
    }

    #[test]
    fn each_role_has_a_url_or_a_secret() {
        let url = (
            "CARILLON_DATABASE_URL",
            "postgresql://app:hunter2@db/carillon",
        );
        let arn = ("CARILLON_DATABASE_SECRET_ARN", ARN);
        let system = ("CARILLON_SYSTEM_DATABASE_SECRET_ARN", ARN);
        assert!(read(&[url, system]).is_ok());
        assert!(read(&[arn, system]).is_ok());
        assert_eq!(
            read(&[]).unwrap_err(),
            "configuration: CARILLON_DATABASE_URL is not set, nor CARILLON_DATABASE_SECRET_ARN; \
             set one of them; CARILLON_SYSTEM_DATABASE_URL is not set, nor \
             CARILLON_SYSTEM_DATABASE_SECRET_ARN; set one of them"
        );
        assert_eq!(
            read(&[url, arn, system]).unwrap_err(),
            "configuration: CARILLON_DATABASE_URL and CARILLON_DATABASE_SECRET_ARN are both set; keep one"
        );
        let told = read(&[("CARILLON_DATABASE_SECRET_ARN", "hunter2"), system]).unwrap_err();
        assert!(told.contains("must be the ARN of a secret"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn a_file_of_roots_is_read_or_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/certs/rds-ca.pem");
        let bundle = std::fs::read(bundle).unwrap();
        file.write_all(&bundle).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        assert!(Roots::from_file(&path).unwrap().0.len() > 10);
        for (content, fault) in [
            (&b""[..], "PEM"),
            (b"no certificate", "PEM"),
            (
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "cannot be used",
            ),
        ] {
            std::fs::write(&path, content).unwrap();
            assert!(Roots::from_file(&path).unwrap_err().contains(fault));
        }
        assert!(Roots::from_file("/nowhere").unwrap_err().contains("read"));
    }

    #[test]
    fn a_secret_of_a_database_is_read_and_never_repeated() {
        let config = read_credentials(
            r#"{"engine": "postgres", "host": "db.example", "port": "5433", "dbname": "carillon",
                "sslmode": "require", "username": "carillon_app", "password": "hunter2"}"#,
        )
        .unwrap();
        assert_eq!(config.get_ports(), [5433]);
        assert_eq!(config.get_hosts(), [Host::Tcp("db.example".to_owned())]);
        assert_eq!(config.get_user(), Some("carillon_app"));
        assert_eq!(config.get_password(), Some(&b"hunter2"[..]));
        assert!(uses_tls(&config));
        assert!(!format!("{config:?}").contains("hunter2"));
        for text in [
            "",
            "hunter2",
            "{}",
            r#"{"host": "db", "dbname": "c", "username": "u"}"#,
            r#"{"host": "db", "dbname": "c", "username": "u", "password": 1}"#,
            r#"{"host": "db", "dbname": "c", "username": "u", "password": "p", "port": "x"}"#,
            r#"{"host": "db", "dbname": "c", "username": "u", "password": "p", "sslmode": "hunter2"}"#,
        ] {
            let fault = read_credentials(text).unwrap_err();
            assert!(!fault.contains("hunter2"), "{fault}");
        }
        let number = r#"{"host": "db", "port": 6000, "dbname": "c", "username": "u", "password": "p", "sslmode": "disable"}"#;
        let config = read_credentials(number).unwrap();
        assert_eq!(config.get_ports(), [6000]);
        assert!(!uses_tls(&config));
    }
}
