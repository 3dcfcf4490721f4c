//! The migration on AWS Lambda: a custom resource of the stack, which the other functions wait for.

use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use migrate::{Migration, config::Config};
use serde_json::Value;
use shared::{aws, telemetry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    telemetry::init(telemetry::Reader::Machine, telemetry::LevelFilter::INFO);
    let migration = Migration::new(config, &aws::config())?;
    let handler = service_fn(async |event: LambdaEvent<Value>| {
        let deadline = aws::deadline(event.context.deadline());
        let worked = migration.work(&event.payload, deadline).await;
        // Whoever calls by hand reads this.
        worked.map_err(|error| Diagnostic {
            error_type: "MigrationFailed".to_owned(),
            error_message: format!("{error:#}"),
        })
    });
    lambda_runtime::run(handler)
        .await
        .map_err(|error| anyhow::anyhow!(error))
}
