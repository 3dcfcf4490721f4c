//! Reads a program's environment, once, at its start.
//!
//! Every missing or bad variable is collected and told in one line. A value is never repeated: it
//! may be a secret.

use std::fmt;

use crate::{price::Catalog, secret::Secret};

/// Where an installation stands. It is part of every API key, so that a key of one is refused by
/// the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// One process on one machine, with back ends of its own.
    Local,
    /// For trying things out.
    Dev,
    /// Like production, without its tenants.
    Staging,
    /// The real one: back ends that only pretend are refused.
    Prod,
}

impl Environment {
    /// Those that run on AWS.
    const DEPLOYED: [Self; 3] = [Self::Dev, Self::Staging, Self::Prod];

    /// As it stands in keys and in `CARILLON_ENV`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Dev => "dev",
            Self::Staging => "staging",
            Self::Prod => "prod",
        }
    }

    /// Reads the name of an environment on AWS.
    ///
    /// # Errors
    /// A sentence that lists the names.
    pub fn parse_deployed(text: &str) -> Result<Self, String> {
        Self::DEPLOYED
            .into_iter()
            .find(|one| one.as_str() == text)
            .ok_or_else(|| "must be dev, staging or prod".to_owned())
    }
}

/// Variables while they are read.
pub struct Reader<'a> {
    look_up: &'a dyn Fn(&str) -> Option<String>,
    faults: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Reads from `look_up`; the process's own environment is [`process`].
    #[must_use]
    pub fn new(look_up: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            look_up,
            faults: Vec::new(),
        }
    }

    /// A variable that must be set. `parse` says in a few words what is wrong, without the value.
    pub fn required<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.optional(name, parse);
        if (self.look_up)(name).is_none_or(|text| text.is_empty()) {
            self.refuse(format!("{name} is not set"));
        }
        value
    }

    /// A variable that may be missing; empty counts as missing.
    pub fn optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = (self.look_up)(name).filter(|text| !text.is_empty())?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.refuse(format!("{name} {fault}"));
                None
            }
        }
    }

    /// Two variables of which exactly one must be set, each with its parser.
    pub fn one_of<T>(
        &mut self,
        (first, parse_first): (&str, impl FnOnce(&str) -> Result<T, String>),
        (second, parse_second): (&str, impl FnOnce(&str) -> Result<T, String>),
    ) -> Option<T> {
        let is_set = |name: &str| (self.look_up)(name).is_some_and(|text| !text.is_empty());
        match (is_set(first), is_set(second)) {
            (true, false) => self.optional(first, parse_first),
            (false, true) => self.optional(second, parse_second),
            (false, false) => {
                self.refuse(format!("{first} is not set, nor {second}; set one of them"));
                None
            }
            (true, true) => {
                self.refuse(format!("{first} and {second} are both set; keep one"));
                None
            }
        }
    }

    /// Tells a fault that shows in more than one variable. The same one is told once.
    pub fn refuse(&mut self, fault: String) {
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// A variable as it stands, for a reader that judges it itself.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        (self.look_up)(name)
    }

    /// The whole, when nothing was missing or bad.
    ///
    /// # Errors
    /// All faults in one line.
    pub fn finish<T>(self, whole: Option<T>) -> Result<T, ConfigError> {
        match whole {
            Some(whole) if self.faults.is_empty() => Ok(whole),
            _ => Err(ConfigError(self.faults.join("; "))),
        }
    }
}

/// The process's own environment.
#[must_use]
pub fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Takes the URL of a database, for [`Reader::required`].
///
/// # Errors
/// When `tokio-postgres` cannot read it.
pub fn database_url(text: &str) -> Result<Secret, String> {
    text.parse::<tokio_postgres::Config>()
        .map(|_| Secret::new(text))
        .map_err(|_| "cannot be read; give postgresql://user:password@host/database".to_owned())
}

/// Takes the models beyond the shipped price list, for [`Reader::optional`].
///
/// # Errors
/// What is wrong with each that is.
pub fn models(text: &str) -> Result<Catalog, String> {
    Catalog::with_extra(text).map_err(|faults| {
        let details: Vec<_> = faults.into_iter().map(|fault| fault.detail).collect();
        format!("cannot be read: {}", details.join(", "))
    })
}

/// Takes a count from 1 to `most`, for [`Reader::optional`].
///
/// # Errors
/// A sentence that gives the range.
pub fn count(most: usize) -> impl FnOnce(&str) -> Result<usize, String> {
    move |text| {
        let count = text.parse().ok().filter(|count| (1..=most).contains(count));
        count.ok_or_else(|| format!("must be a whole number from 1 to {most}"))
    }
}

/// Every variable that is missing or bad, in one line.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration: {}", self.0)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(name: &str) -> Option<String> {
        match name {
            "NUMBER" => Some("7".to_owned()),
            "WORD" => Some("seven".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn number(text: &str) -> Result<u8, String> {
        text.parse().map_err(|_| "must be a number".to_owned())
    }

    #[test]
    fn all_faults_are_told_in_one_line_without_the_values() {
        let mut reader = Reader::new(&look_up);
        assert_eq!(reader.required("NUMBER", number), Some(7));
        assert_eq!(reader.required("WORD", number), None);
        assert_eq!(reader.required("EMPTY", number), None);
        assert_eq!(reader.required("ABSENT", number), None);
        assert_eq!(reader.optional("WORD", number), None);
        assert_eq!(reader.optional("ABSENT", number), None);
        let error = reader.finish(Some(())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "configuration: WORD must be a number; EMPTY is not set; ABSENT is not set"
        );
    }

    #[test]
    fn of_two_variables_one_must_be_set() {
        let mut reader = Reader::new(&look_up);
        assert_eq!(
            reader.one_of(("NUMBER", number), ("ABSENT", number)),
            Some(7)
        );
        assert_eq!(
            reader.one_of(("EMPTY", number), ("NUMBER", number)),
            Some(7)
        );
        assert_eq!(reader.one_of(("EMPTY", number), ("ABSENT", number)), None);
        assert_eq!(reader.one_of(("NUMBER", number), ("WORD", number)), None);
        let error = reader.finish(Some(())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "configuration: EMPTY is not set, nor ABSENT; set one of them; NUMBER and WORD are both set; keep one"
        );
    }

    #[test]
    fn nothing_wrong_gives_the_whole() {
        let mut reader = Reader::new(&look_up);
        let number = reader.required("NUMBER", number);
        assert_eq!(reader.finish(number), Ok(7));
    }

    #[test]
    fn a_database_url_is_read_but_never_shown() {
        assert!(database_url("postgresql://app:hunter2@db.example/carillon").is_ok());
        let fault = database_url("postgresql://app:hunter2@db.example:port/x").unwrap_err();
        assert!(!fault.contains("hunter2"));
    }

    #[test]
    fn a_count_has_bounds() {
        assert_eq!(count(10)("10"), Ok(10));
        for text in ["0", "11", "-1", "ten", ""] {
            assert!(count(10)(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_local_environment_is_not_deployed() {
        assert!(Environment::parse_deployed("local").is_err());
        assert_eq!(Environment::parse_deployed("prod"), Ok(Environment::Prod));
    }
}
