//! The HTTP API on AWS Lambda, behind an HTTP API of API Gateway.

use anyhow::Context;
use management::{App, config::Config};
use shared::{db::Db, queue::Queue, telemetry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    telemetry::init(telemetry::Reader::Machine, "info");
    let db = Db::connect(&config.db)
        .await
        .context("cannot use the database")?;
    // Nobody listens inside this process: the sweeper finds what was queued within its minute.
    let (queue, _) = Queue::local(1);
    let app = App::new(config.into_parts(db, queue));
    lambda_http::run(management::router(app))
        .await
        .map_err(|error| anyhow::anyhow!(error))
}
