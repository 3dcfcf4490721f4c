//! What the Lambda function reads from its environment, once, before any client is made.

use shared::{
    api_key::PlatformKeyHash,
    aws::SdkConfig,
    db,
    env::{self, ConfigError, Environment, Reader},
    outbound::Policy,
    price::Catalog,
    queue::{self, Queue},
    scheduler::{Scheduler, Settings},
    seal,
};

use crate::{
    app::AppParts,
    identity::{KeyTimes, OidcSettings, Tokens},
    outputs::Outputs,
};

/// A Lambda instance serves one request at a time.
const APP_CONNECTIONS_MAX: usize = 2;
const SYSTEM_CONNECTIONS_MAX: usize = 1;

/// The function's configuration.
#[derive(Debug)]
pub struct Config {
    /// Where the database is.
    pub db: db::Settings,
    /// Where wake-ups go.
    pub queue_url: String,
    /// Where the scheduler's entries stand.
    pub scheduler: Settings,
    /// Where long outputs lie; an installation whose executor keeps them in a folder has none.
    pub bucket: Option<String>,
    environment: Environment,
    platform_key: Option<PlatformKeyHash>,
    sealing: seal::Settings,
    oidc: Option<OidcSettings>,
    catalog: Catalog,
    outbound: Policy,
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
        let db = db::Settings::read(&mut reader, APP_CONNECTIONS_MAX, SYSTEM_CONNECTIONS_MAX);
        let scheduler = Settings::read(&mut reader);
        let environment = reader.required("CARILLON_ENV", Environment::parse_deployed);
        let bucket = reader.optional("CARILLON_BUCKET", |text| Ok(text.to_owned()));
        if bucket.is_none() && environment.is_some_and(|one| one != Environment::Dev) {
            reader.refuse("CARILLON_BUCKET is not set; only dev may do without it".to_owned());
        }
        let platform_key = reader.optional("CARILLON_PLATFORM_KEY_SHA256", PlatformKeyHash::parse);
        let sealing = seal::Settings::read(&mut reader);
        let oidc = OidcSettings::read(&mut reader, environment);

        let catalog = reader
            .optional("CARILLON_MODELS", env::models)
            .unwrap_or_else(Catalog::shipped);
        let queue_url = reader.required("CARILLON_QUEUE_URL", queue::read_url);
        let endpoint = reader.text("AWS_ENDPOINT_URL");
        let whole = (|| {
            Some(Self {
                outbound: Policy::deployed(environment?, endpoint.as_deref()),
                db: db?,
                scheduler: scheduler?,
                queue_url: queue_url?,
                bucket,
                environment: environment?,
                platform_key,
                sealing: sealing?,
                oidc,
                catalog,
            })
        })();
        reader.finish(whole)
    }

    /// The application's state over an open database.
    #[must_use]
    pub fn into_parts(
        self,
        aws: &SdkConfig,
        db: db::Db,
        queue: Queue,
        scheduler: Scheduler,
        outputs: Outputs,
    ) -> AppParts {
        AppParts {
            outputs,
            db,
            queue,
            scheduler,
            sealer: self.sealing.into_sealer(aws),
            catalog: self.catalog,
            outbound: self.outbound,
            allow_echo: self.environment != Environment::Prod,
            platform_key: self.platform_key,
            tokens: self
                .oidc
                .map(|settings| Tokens::new(settings, KeyTimes::DEFAULT)),
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
            ("CARILLON_SCHEDULE_GROUP", "carillon"),
            (
                "CARILLON_QUEUE_URL",
                "https://sqs.eu-central-1.amazonaws.com/123456789012/wake-ups",
            ),
            (
                "CARILLON_SCHEDULER_ROLE_ARN",
                "arn:aws:iam::123456789012:role/scheduler",
            ),
            (
                "CARILLON_SCHEDULER_DLQ_ARN",
                "arn:aws:sqs:eu-central-1:123456789012:dead-letters",
            ),
            ("CARILLON_ENV", "prod"),
            ("CARILLON_BUCKET", "outputs"),
            ("CARILLON_SEALING_KEY", KEY),
            ("CARILLON_DATABASE_CONNECTIONS_MAX", "7"),
            ("CARILLON_OIDC_ISSUER", "https://issuer.example/"),
            ("CARILLON_OIDC_AUDIENCE", "carillon"),
        ])
        .unwrap();
        assert_eq!(config.db.app_connections_max, 7);
        assert_eq!(config.db.system_connections_max, SYSTEM_CONNECTIONS_MAX);
        assert_eq!(config.environment, Environment::Prod);
        assert!(config.platform_key.is_none());
        assert_eq!(
            config.oidc.unwrap().issuer.as_str(),
            "https://issuer.example/"
        );
    }

    #[test]
    fn only_dev_may_do_without_a_bucket() {
        let told = |environment| read(&[("CARILLON_ENV", environment)]).unwrap_err();
        assert!(told("prod").contains("CARILLON_BUCKET is not set"));
        assert!(told("staging").contains("CARILLON_BUCKET is not set"));
        assert!(!told("dev").contains("CARILLON_BUCKET"));
    }

    #[test]
    fn every_fault_is_told_and_no_value() {
        let told = read(&[
            ("CARILLON_DATABASE_URL", "postgresql://app:hunter2@db:port"),
            ("CARILLON_SCHEDULE_GROUP", "hunter2 group"),
            ("CARILLON_QUEUE_URL", "hunter2"),
            ("CARILLON_SCHEDULER_DLQ_ARN", "arn:aws:sns:::hunter2"),
            ("CARILLON_ENV", "local"),
            ("CARILLON_PLATFORM_KEY_SHA256", "hunter2"),
            ("CARILLON_OIDC_ISSUER", "http://hunter2.example"),
            ("CARILLON_SEALING_KEY", "hunter2"),
            ("CARILLON_MODELS", "nonsense"),
            ("CARILLON_DATABASE_CONNECTIONS_MAX", "hunter2"),
        ])
        .unwrap_err();
        for name in [
            "CARILLON_DATABASE_URL",
            "CARILLON_SYSTEM_DATABASE_URL is not set",
            "CARILLON_SCHEDULE_GROUP must be 1 to 64",
            "CARILLON_QUEUE_URL must be the URL",
            "CARILLON_SCHEDULER_ROLE_ARN is not set",
            "CARILLON_SCHEDULER_DLQ_ARN must be an ARN of sqs",
            "CARILLON_ENV must be",
            "CARILLON_PLATFORM_KEY_SHA256",
            "CARILLON_OIDC_ISSUER must be an https URL",
            "CARILLON_OIDC_AUDIENCE is not set, but CARILLON_OIDC_ISSUER is",
            "CARILLON_SEALING_KEY",
            "CARILLON_MODELS",
            "CARILLON_DATABASE_CONNECTIONS_MAX must be",
        ] {
            assert!(told.contains(name), "{name}: {told}");
        }
        assert!(!told.contains("hunter2") && !told.contains('\n'), "{told}");
    }
}
