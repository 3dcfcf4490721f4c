//! What becomes of a process whose secrets cannot be had.

use std::{collections::BTreeMap, sync::Arc};

use shared::{
    db::{Db, DbConfig, DbError, Settings},
    env::Reader,
    secrets::SecretsManager,
};
use tests::stage::migrated_database;
use tokio::sync::Barrier;
use tokio_postgres::config::Host;

use crate::server::{Server, Turn};

/// What the functions' environment says, over two secrets.
pub(crate) fn config(server: &Server, app: &str, system: &str) -> DbConfig {
    settings(app, system).config(&SecretsManager::new(&server.aws))
}

pub(crate) fn settings(app: &str, system: &str) -> Settings {
    let variables = BTreeMap::from([
        ("CARILLON_DATABASE_SECRET_ARN", app.to_owned()),
        ("CARILLON_SYSTEM_DATABASE_SECRET_ARN", system.to_owned()),
    ]);
    let look_up = |name: &str| variables.get(name).cloned();
    let mut reader = Reader::new(&look_up);
    let settings = Settings::read(&mut reader, 2, 1);
    reader.finish(settings).unwrap()
}

/// The testbed's database, which asks for no password, as a secret.
fn credentials(database: &str, role: &str) -> String {
    let url = tests::database_url(database);
    let config: tokio_postgres::Config = url.parse().unwrap();
    let host = match &config.get_hosts()[0] {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.to_str().unwrap().to_owned(),
    };
    serde_json::json!({
        "host": host, "port": config.get_ports().first().unwrap_or(&5432), "dbname": database,
        "sslmode": "disable", "username": role, "password": "hunter2",
    })
    .to_string()
}

#[tokio::test]
async fn both_secrets_are_fetched_at_once() {
    let server = Server::start().await;
    let database = migrated_database().await.unwrap();
    let app = server.set("app", &credentials(&database, "carillon_app"));
    let system = server.set("system", &credentials(&database, "carillon_system"));
    // Neither is answered before both are asked for.
    let both = Arc::new(Barrier::new(2));
    for _ in 0..2 {
        server.plan("GetSecretValue", Turn::Meet(Arc::clone(&both)));
    }
    let db = Db::connect(&config(&server, &app, &system)).await.unwrap();
    drop(db);
    assert_eq!(server.calls("GetSecretValue").len(), 2);
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_ends_the_start_with_the_reason() {
    let server = Server::start().await;
    let database = migrated_database().await.unwrap();
    let app = server.set("app", &credentials(&database, "carillon_app"));
    let system = server.set("system", &credentials(&database, "carillon_system"));
    let config = config(&server, &app, &system);
    let told = async || {
        let error = Db::connect(&config).await.err().unwrap();
        let DbError::Secret(error) = error else {
            panic!("{error:?}");
        };
        (error.to_string(), error.is_transient())
    };
    // Both roles ask, and the client tries twice where that may help.
    for (code, status, times, words, is_transient) in [
        ("AccessDeniedException", 400, 2, "AWS refuses access", false),
        ("ResourceNotFoundException", 400, 2, "no such object", false),
        ("DecryptionFailure", 400, 2, "AWS refuses access", false),
        ("ThrottlingException", 400, 4, "slow down", true),
        ("InternalServiceError", 500, 4, "not available", true),
    ] {
        for _ in 0..times {
            server.plan("GetSecretValue", Turn::Refuse(status, code));
        }
        let (text, transient) = told().await;
        assert!(text.contains(words) && text.contains(":secret:"), "{text}");
        assert_eq!(transient, is_transient, "{code}");
        // What was planned for a call that was given up.
        while server.take_plan() {}
    }
    server.set("app", r#"{"host": "db", "password": "hunter2"}"#);
    let (text, transient) = told().await;
    assert!(text.contains("must hold JSON") && !transient, "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    // One throttled try is nobody's matter.
    server.set("app", &credentials(&database, "carillon_app"));
    server.plan("GetSecretValue", Turn::Refuse(400, "ThrottlingException"));
    Db::connect(&config).await.unwrap();
}
