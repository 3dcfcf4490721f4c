//! What the Lambda function reads from its environment, once, before any client is made.

use shared::{
    bus, db,
    env::{self, ConfigError, Environment, Reader},
    queue,
    scheduler::Settings,
};

const APP_CONNECTIONS_MAX: usize = 2;
/// Due prompts, runs and deliveries are looked for side by side.
const SYSTEM_CONNECTIONS_MAX: usize = 3;

/// The function's configuration.
#[derive(Debug)]
pub struct Config {
    /// Where the database is.
    pub db: db::Settings,
    /// Where wake-ups go.
    pub queue_url: String,
    /// Where events go.
    pub event_bus: String,
    /// Where the scheduler's entries stand.
    pub scheduler: Settings,
    /// The queues of messages that came to nothing.
    pub dead_letter_queue_urls: Vec<String>,
    /// The queue of bounces and complaints; an installation whose emails end in a folder has none.
    pub mail_events_queue_url: Option<String>,
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
        let dead_letters = reader.required("CARILLON_DEAD_LETTER_QUEUE_URL", queue::read_url);
        let event_bus = reader.required("CARILLON_EVENT_BUS", bus::read_name);
        let scheduler = Settings::read(&mut reader);
        // What the scheduler could not deliver; an installation may have one queue for both.
        let undelivered =
            reader.optional("CARILLON_SCHEDULER_DEAD_LETTER_QUEUE_URL", queue::read_url);
        let mail_events = reader.optional("CARILLON_MAIL_EVENTS_QUEUE_URL", queue::read_url);
        if mail_events.is_none() && environment.is_some_and(|one| one != Environment::Dev) {
            reader.refuse(
                "CARILLON_MAIL_EVENTS_QUEUE_URL is not set; only dev may do without it".to_owned(),
            );
        }
        let whole = (|| {
            environment?;
            Some(Self {
                db: db?,
                queue_url: queue_url?,
                event_bus: event_bus?,
                scheduler: scheduler?,
                mail_events_queue_url: mail_events,
                dead_letter_queue_urls: [dead_letters, undelivered].into_iter().flatten().collect(),
            })
        })();
        reader.finish(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: [(&str, &str); 10] = [
        ("CARILLON_ENV", "prod"),
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
        (
            "CARILLON_MAIL_EVENTS_QUEUE_URL",
            "https://sqs.example/1/mail",
        ),
        ("CARILLON_EVENT_BUS", "carillon-events"),
        ("CARILLON_SCHEDULE_GROUP", "carillon"),
        (
            "CARILLON_SCHEDULER_ROLE_ARN",
            "arn:aws:iam::1:role/scheduler",
        ),
        (
            "CARILLON_SCHEDULER_DLQ_ARN",
            "arn:aws:sqs:eu-central-1:1:dead",
        ),
    ];

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
        assert_eq!(read(&[]).unwrap().dead_letter_queue_urls.len(), 1);
        let both = [(
            "CARILLON_SCHEDULER_DEAD_LETTER_QUEUE_URL",
            "https://sqs.example/1/undelivered",
        )];
        assert_eq!(read(&both).unwrap().dead_letter_queue_urls.len(), 2);
    }

    #[test]
    fn only_dev_may_do_without_what_comes_back_of_emails() {
        let without = [("CARILLON_MAIL_EVENTS_QUEUE_URL", "")];
        let told = read(&without).unwrap_err();
        assert!(
            told.contains("CARILLON_MAIL_EVENTS_QUEUE_URL is not set"),
            "{told}"
        );
        let dev = [without[0], ("CARILLON_ENV", "dev")];
        assert_eq!(read(&dev).unwrap().mail_events_queue_url, None);
    }

    #[test]
    fn everything_that_is_missing_is_told_in_one_line() {
        let told = Config::read(&|_| None).unwrap_err().to_string();
        for (name, _) in WHOLE
            .iter()
            .filter(|(name, _)| !name.contains("MAIL_EVENTS"))
        {
            assert!(told.contains(&format!("{name} is not set")), "{told}");
        }
        assert!(!told.contains('\n'), "{told}");
    }
}
