//! What the Lambda function reads from its environment, once, before any client is made.

use shared::{
    db::Roots,
    env::{self, ConfigError, Reader},
    secrets::{self, SecretArn},
};

/// The function's configuration: which secrets of Secrets Manager it reads.
#[derive(Debug)]
pub struct Config {
    /// The role that owns the database: `username`, `password`.
    pub admin_secret_arn: SecretArn,
    /// `carillon_app`, with the database's address.
    pub app_secret_arn: SecretArn,
    /// `carillon_system`.
    pub system_secret_arn: SecretArn,
    /// What the database's certificate may be signed with, beside what the system trusts.
    pub roots: Roots,
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
        let admin = reader.required("CARILLON_ADMIN_DATABASE_SECRET_ARN", secrets::read_arn);
        let app = reader.required("CARILLON_DATABASE_SECRET_ARN", secrets::read_arn);
        let system = reader.required("CARILLON_SYSTEM_DATABASE_SECRET_ARN", secrets::read_arn);
        let roots = reader.optional("CARILLON_DATABASE_CA_FILE", Roots::from_file);
        let whole = (|| {
            Some(Self {
                admin_secret_arn: admin?,
                app_secret_arn: app?,
                system_secret_arn: system?,
                roots: roots.unwrap_or_default(),
            })
        })();
        reader.finish(whole)
    }
}
