//! What the Lambda function reads from its environment, once, before any client is made.

use std::path::PathBuf;

use lettre::message::Mailbox;
use shared::{
    bus, db,
    env::{self, ConfigError, Environment, Reader},
    outbound::Policy,
    price::Catalog,
    queue, seal,
    secrets::{self, SecretArn},
};

use crate::model::ProvidersConfig;

/// Messages worked on at once.
const SLOTS: usize = 10;
const SLOTS_MAX: usize = 100;

/// A run needs a connection for a few short transactions, never while its model is called. So many
/// that all want one at once have it well before a wait for one is given up.
const SLOTS_PER_CONNECTION: usize = 25;

const APP_CONNECTIONS_MAX: usize = 4;
const SYSTEM_CONNECTIONS_MAX: usize = 1;

/// The function's configuration.
#[derive(Debug)]
pub struct Config {
    /// Where the database is.
    pub db: db::Settings,
    /// Where the wake-ups of other tries go.
    pub queue_url: String,
    /// Where unusable messages go.
    pub dead_letter_queue_url: String,
    /// Where events go.
    pub event_bus: String,
    /// Messages worked on at once.
    pub slots: usize,
    /// The providers.
    pub providers: ProvidersConfig,
    /// Where the installation keeps its keys of them, if not in the environment.
    pub provider_keys: Option<SecretArn>,
    /// The ways out.
    pub outlets: Outlets,
    /// Opens the tenants' signing secrets and keys.
    pub sealing: seal::Settings,
    /// Prices.
    pub catalog: Catalog,
    /// Who emails come from.
    pub from: Mailbox,
    /// Which addresses webhooks may be sent to.
    pub outbound: Policy,
}

/// Where emails and outputs go.
#[derive(Debug, PartialEq, Eq)]
pub enum Outlets {
    /// Files of this machine, which only `dev` may have: Lambda forgets them.
    Folder(PathBuf),
    /// Amazon SES, and a bucket of S3.
    Aws {
        /// Where outputs go.
        bucket: String,
        /// What they are encrypted with.
        kms_key_id: String,
        /// Through which emails go, so that their bounces come back.
        configuration_set: String,
    },
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
        let environment = reader.required("CARILLON_ENV", Environment::parse_deployed);
        let db = db::Settings::read(&mut reader, APP_CONNECTIONS_MAX, SYSTEM_CONNECTIONS_MAX);
        let queue_url = reader.required("CARILLON_QUEUE_URL", queue::read_url);
        let dead_letter_queue_url =
            reader.required("CARILLON_DEAD_LETTER_QUEUE_URL", queue::read_url);
        let event_bus = reader.required("CARILLON_EVENT_BUS", bus::read_name);
        let slots = read_slots(&mut reader, db.as_ref());
        let providers = read_providers(&mut reader, environment);
        let outlets = read_outlets(&mut reader, environment);
        let provider_keys = read_provider_keys(&mut reader);
        let sealing = seal::Settings::read(&mut reader);
        let catalog = reader
            .optional("CARILLON_MODELS", env::models)
            .unwrap_or_else(Catalog::shipped);
        let from = reader.required("CARILLON_MAIL_FROM", |text| {
            text.parse()
                .map_err(|_| "must be an address, or a name with one in <>".to_owned())
        });
        let endpoint = reader.text("AWS_ENDPOINT_URL");
        let whole = (|| {
            Some(Self {
                outbound: Policy::deployed(environment?, endpoint.as_deref()),
                db: db?,
                queue_url: queue_url?,
                dead_letter_queue_url: dead_letter_queue_url?,
                event_bus: event_bus?,
                slots,
                providers: providers?,
                provider_keys,
                outlets: outlets?,
                sealing: sealing?,
                catalog,
                from: from?,
            })
        })();
        reader.finish(whole)
    }
}

fn read_slots(reader: &mut Reader<'_>, db: Option<&db::Settings>) -> usize {
    let given = reader.optional("CARILLON_EXECUTOR_SLOTS", env::count(SLOTS_MAX));
    let slots = given.unwrap_or(SLOTS);
    if let Some(db) = db
        && slots > db.app_connections_max * SLOTS_PER_CONNECTION
    {
        reader.refuse(format!(
            "CARILLON_EXECUTOR_SLOTS must be at most {SLOTS_PER_CONNECTION} for each of CARILLON_DATABASE_CONNECTIONS_MAX"
        ));
    }
    slots
}

fn read_providers(
    reader: &mut Reader<'_>,
    environment: Option<Environment>,
) -> Option<ProvidersConfig> {
    let allow_echo = environment.is_some_and(|environment| environment != Environment::Prod);
    let read = ProvidersConfig::from_vars(|name| reader.text(name), allow_echo);
    read.map_err(|faults| {
        for fault in faults {
            reader.refuse(format!("{}: {}", fault.field, fault.detail));
        }
    })
    .ok()
}

/// A key that stands in two places is changed in one of them, sooner or later.
fn read_provider_keys(reader: &mut Reader<'_>) -> Option<SecretArn> {
    const NAME: &str = "CARILLON_PROVIDER_KEYS_SECRET_ARN";
    let arn = reader.optional(NAME, secrets::read_arn)?;
    for key in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY"] {
        if reader.text(key).is_some_and(|text| !text.trim().is_empty()) {
            reader.refuse(format!("{key} and {NAME} are both set; keep one"));
        }
    }
    Some(arn)
}

fn read_outlets(reader: &mut Reader<'_>, environment: Option<Environment>) -> Option<Outlets> {
    let home = reader.optional("CARILLON_HOME", |text| Ok(PathBuf::from(text)));
    match (environment, home) {
        (Some(Environment::Dev), Some(home)) => return Some(Outlets::Folder(home)),
        (_, Some(_)) => reader.refuse(
            "CARILLON_HOME is for dev: elsewhere emails and outputs must not end in a folder"
                .to_owned(),
        ),
        (_, None) => {}
    }
    let name = |text: &str| Ok(text.to_owned());
    let bucket = reader.required("CARILLON_BUCKET", name);
    let kms_key_id = reader.required("CARILLON_KMS_KEY_ID", name);
    let configuration_set = reader.required("CARILLON_SES_CONFIGURATION_SET", name);
    if environment == Some(Environment::Dev) && bucket.is_none() {
        reader.refuse(
            "CARILLON_HOME is not set; dev may put emails and outputs into a folder".to_owned(),
        );
    }
    Some(Outlets::Aws {
        bucket: bucket?,
        kms_key_id: kms_key_id?,
        configuration_set: configuration_set?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    const WHOLE: [(&str, &str); 9] = [
        ("CARILLON_ENV", "dev"),
        ("CARILLON_DATABASE_URL", "postgresql://app@db/carillon"),
        (
            "CARILLON_SYSTEM_DATABASE_URL",
            "postgresql://system@db/carillon",
        ),
        ("CARILLON_QUEUE_URL", "https://sqs.example/1/wake-ups"),
        (
            "CARILLON_DEAD_LETTER_QUEUE_URL",
            "https://sqs.example/1/dead",
        ),
        ("CARILLON_EVENT_BUS", "carillon-events"),
        ("CARILLON_SEALING_KEY", KEY),
        ("CARILLON_MAIL_FROM", "Carillon <carillon@example.com>"),
        ("CARILLON_HOME", "/tmp/carillon"),
    ];

    /// Reads what is whole but for `changes`.
    fn read(changes: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(&|name| {
            let mut all = changes.iter().chain(&WHOLE);
            let found = all.find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_full_environment_is_read() {
        let config = read(&[]).unwrap();
        assert_eq!(config.slots, SLOTS);
        assert_eq!(config.db.app_connections_max, APP_CONNECTIONS_MAX);
        assert_eq!(config.outlets, Outlets::Folder("/tmp/carillon".into()));
        assert!(config.providers.allow_echo);
    }

    #[test]
    fn every_fault_is_told_in_one_line_and_no_value() {
        let nothing = Config::read(&|_| None).unwrap_err().to_string();
        for (name, _) in WHOLE.iter().filter(|(name, _)| *name != "CARILLON_HOME") {
            assert!(nothing.contains(&format!("{name} is not set")), "{nothing}");
        }
        let bad = read(&[
            ("CARILLON_QUEUE_URL", "hunter2"),
            ("CARILLON_EXECUTOR_SLOTS", "hunter2"),
            ("CARILLON_MAIL_FROM", "hunter2"),
            ("OPENAI_BASE_URL", "hunter2"),
            ("CARILLON_HOME", ""),
        ])
        .unwrap_err();
        for name in [
            "CARILLON_QUEUE_URL",
            "CARILLON_EXECUTOR_SLOTS",
            "CARILLON_MAIL_FROM",
            "OPENAI_BASE_URL",
            "CARILLON_HOME is not set",
        ] {
            assert!(bad.contains(name), "{name}: {bad}");
        }
        assert!(!bad.contains("hunter2") && !bad.contains('\n'), "{bad}");
    }

    #[test]
    fn the_providers_keys_stand_in_one_place() {
        const ARN: &str = "arn:aws:secretsmanager:eu-central-1:1:secret:keys";
        let secret = ("CARILLON_PROVIDER_KEYS_SECRET_ARN", ARN);
        assert!(read(&[secret]).unwrap().provider_keys.is_some());
        assert!(read(&[]).unwrap().provider_keys.is_none());
        let told = read(&[secret, ("OPENAI_API_KEY", "sk-hunter2")]).unwrap_err();
        assert!(told.contains("OPENAI_API_KEY and CARILLON_PROVIDER_KEYS_SECRET_ARN are both set"));
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn secrets_and_kms_stand_in_place_of_urls_and_a_key() {
        const ARN: &str = "arn:aws:secretsmanager:eu-central-1:1:secret:app";
        let config = read(&[
            ("CARILLON_DATABASE_URL", ""),
            ("CARILLON_DATABASE_SECRET_ARN", ARN),
            ("CARILLON_SYSTEM_DATABASE_URL", ""),
            ("CARILLON_SYSTEM_DATABASE_SECRET_ARN", ARN),
            ("CARILLON_SEALING_KEY", ""),
            ("CARILLON_KMS_KEY_ID", "alias/carillon"),
        ]);
        assert!(matches!(config.unwrap().sealing, seal::Settings::Kms(_)));
    }

    #[test]
    fn production_refuses_folders() {
        for environment in ["staging", "prod"] {
            let told = read(&[("CARILLON_ENV", environment)]).unwrap_err();
            assert!(told.contains("CARILLON_HOME is for dev"), "{told}");
            let told = read(&[("CARILLON_ENV", environment), ("CARILLON_HOME", "")]).unwrap_err();
            for name in [
                "CARILLON_BUCKET",
                "CARILLON_KMS_KEY_ID",
                "CARILLON_SES_CONFIGURATION_SET",
            ] {
                assert!(told.contains(&format!("{name} is not set")), "{told}");
            }
        }
    }

    #[test]
    fn without_a_folder_everything_goes_to_aws() {
        for environment in ["dev", "staging", "prod"] {
            let config = read(&[
                ("CARILLON_ENV", environment),
                ("CARILLON_HOME", ""),
                ("CARILLON_BUCKET", "outputs"),
                ("CARILLON_SEALING_KEY", ""),
                ("CARILLON_KMS_KEY_ID", "key"),
                ("CARILLON_SES_CONFIGURATION_SET", "mail"),
            ]);
            let aws = Outlets::Aws {
                bucket: "outputs".to_owned(),
                kms_key_id: "key".to_owned(),
                configuration_set: "mail".to_owned(),
            };
            assert_eq!(config.unwrap().outlets, aws, "{environment}");
        }
    }

    #[test]
    fn slots_do_not_outnumber_what_the_connections_carry() {
        let few = [
            ("CARILLON_EXECUTOR_SLOTS", "26"),
            ("CARILLON_DATABASE_CONNECTIONS_MAX", "1"),
        ];
        assert!(read(&few).unwrap_err().contains("CARILLON_EXECUTOR_SLOTS"));
        assert_eq!(read(&few[..1]).unwrap().slots, 26);
    }
}
