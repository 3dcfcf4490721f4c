//! Whether the database answers.

use std::time::{Duration, Instant};

use deadpool_postgres::Object;

use super::{Db, DbError, in_time};

/// Asks both pools something trivial and says how long the slower one took, a free connection
/// included.
///
/// # Errors
/// When one of them does not answer.
pub async fn latency(db: &Db) -> Result<Duration, DbError> {
    let started = Instant::now();
    let ask = async |connection: Object| {
        let asked = in_time(async {
            let statement = connection
                .prepare_cached(
                    "-- health::latency
                     SELECT 1",
                )
                .await?;
            connection.query_one(&statement, &[]).await?;
            Ok(())
        });
        let asked = asked.await;
        if asked.is_err() {
            drop(Object::take(connection));
        }
        asked
    };
    let app = async { ask(db.app.get().await?).await };
    let system = async { ask(db.system().await?).await };
    futures_util::try_join!(app, system)?;
    Ok(started.elapsed())
}
