//! What the Lambda function reads from its environment, once, before any client is made.

use shared::{
    api_key::PlatformKeyHash,
    db::DbConfig,
    env::{self, ConfigError, Environment, Reader},
    outbound::Policy,
    price::Catalog,
    queue::Queue,
    seal::Sealer,
};

use crate::app::AppParts;

/// A Lambda instance serves one request at a time.
const APP_CONNECTIONS_MAX: usize = 2;
const SYSTEM_CONNECTIONS_MAX: usize = 1;

/// The function's configuration.
#[derive(Debug)]
pub struct Config {
    /// Where the database is.
    pub db: DbConfig,
    environment: Environment,
    platform_key: Option<PlatformKeyHash>,
    sealer: Sealer,
    catalog: Catalog,
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// Every variable that is missing or bad, in one line.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&env::process)
    }

    fn read(look_up: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(look_up);
        let app_url = reader.required("CARILLON_DATABASE_URL", env::database_url);
        let system_url = reader.required("CARILLON_SYSTEM_DATABASE_URL", env::database_url);
        let environment = reader.required("CARILLON_ENV", Environment::parse_deployed);
        let platform_key = reader.optional("CARILLON_PLATFORM_KEY_SHA256", PlatformKeyHash::parse);
        let sealer = reader.required("CARILLON_SEALING_KEY", |text| {
            Sealer::from_base64(text).map_err(|_| "must be the base64 of 32 bytes".to_owned())
        });
        let catalog = reader
            .optional("CARILLON_MODELS", |text| {
                Catalog::with_extra(text).map_err(|faults| {
                    let details: Vec<_> = faults.into_iter().map(|fault| fault.detail).collect();
                    format!("cannot be read: {}", details.join(", "))
                })
            })
            .unwrap_or_else(Catalog::shipped);
        let whole = match (app_url, system_url, environment, sealer) {
            (Some(app_url), Some(system_url), Some(environment), Some(sealer)) => Some(Self {
                db: DbConfig {
                    app_url,
                    system_url,
                    app_connections_max: APP_CONNECTIONS_MAX,
                    system_connections_max: SYSTEM_CONNECTIONS_MAX,
                },
                environment,
                platform_key,
                sealer,
                catalog,
            }),
            _ => None,
        };
        reader.finish(whole)
    }

    /// The application's state over an open database.
    #[must_use]
    pub fn into_parts(self, db: shared::db::Db, queue: Queue) -> AppParts {
        AppParts {
            db,
            queue,
            sealer: self.sealer,
            catalog: self.catalog,
            outbound: Policy::PUBLIC,
            allow_echo: self.environment != Environment::Prod,
            platform_key: self.platform_key,
            environment: self.environment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(&|name| {
            let found = variables.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_full_environment_is_read() {
        let config = read(&[
            ("CARILLON_DATABASE_URL", "postgresql://app@db/carillon"),
            (
                "CARILLON_SYSTEM_DATABASE_URL",
                "postgresql://system@db/carillon",
            ),
            ("CARILLON_ENV", "prod"),
            ("CARILLON_SEALING_KEY", KEY),
        ])
        .unwrap();
        assert_eq!(config.environment, Environment::Prod);
        assert!(config.platform_key.is_none());
    }

    #[test]
    fn every_fault_is_told_and_no_value() {
        let told = read(&[
            ("CARILLON_DATABASE_URL", "postgresql://app:hunter2@db:port"),
            ("CARILLON_ENV", "local"),
            ("CARILLON_PLATFORM_KEY_SHA256", "hunter2"),
            ("CARILLON_SEALING_KEY", "hunter2"),
            ("CARILLON_MODELS", "nonsense"),
        ])
        .unwrap_err();
        for name in [
            "CARILLON_DATABASE_URL",
            "CARILLON_SYSTEM_DATABASE_URL is not set",
            "CARILLON_ENV must be",
            "CARILLON_PLATFORM_KEY_SHA256",
            "CARILLON_SEALING_KEY",
            "CARILLON_MODELS",
        ] {
            assert!(told.contains(name), "{name}: {told}");
        }
        assert!(!told.contains("hunter2") && !told.contains('\n'), "{told}");
    }
}
