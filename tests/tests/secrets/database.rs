//! A password that changes while connections stand, in a PostgreSQL that asks for it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use aws_sdk_secretsmanager::Client;
use local::postgres::{Cluster, Options};
use serde_json::json;
use shared::{
    db::{Db, DbError, migrate, provider_keys},
    ids::TenantId,
    provider_key::KeyedProvider,
    secret::Secret,
    secrets::SecretsManager,
};
use tests::{connect, peers::ministack_url, rehearsal};
use tokio_postgres::config::Host;
use uuid::Uuid;

use crate::faults::settings;

/// A cluster whose two roles need their passwords.
async fn cluster(folder: &tempfile::TempDir) -> Cluster {
    let options = Options {
        data_dir: folder.path().join("data"),
        durable: false,
        settings: Vec::new(),
    };
    let cluster = Cluster::start(options).await.unwrap();
    let passwords = migrate::RolePasswords {
        app: Some(Secret::new("app-hunter1")),
        system: Some(Secret::new("system-hunter1")),
    };
    let url = cluster.superuser_url();
    migrate::run(&Secret::new(&*url), &passwords).await.unwrap();
    let admin = connect(&url).await.unwrap();
    let row = admin.query_one("SHOW hba_file", &[]).await.unwrap();
    let path: String = row.get(0);
    let rules = fs::read_to_string(&path).unwrap();
    let asks = "local all carillon_app,carillon_system scram-sha-256\n";
    fs::write(&path, format!("{asks}{rules}")).unwrap();
    admin
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    cluster
}

fn credentials(url: &str, role: &str, password: &str) -> String {
    let config: tokio_postgres::Config = url.parse().unwrap();
    let Host::Unix(socket) = &config.get_hosts()[0] else {
        panic!("the cluster listens on a socket");
    };
    json!({
        "engine": "postgres", "host": socket, "port": config.get_ports().first().unwrap_or(&5432),
        "dbname": config.get_dbname(), "sslmode": "disable", "username": role,
        "password": password,
    })
    .to_string()
}

async fn look(db: &Db) -> Result<shared::db::TenantTx, DbError> {
    let tx = db.tenant(TenantId::new()).await?;
    provider_keys::lock(&tx, KeyedProvider::OpenAi).await?;
    Ok(tx)
}

#[tokio::test]
async fn a_password_is_rotated_under_a_running_process() {
    let folder = tempfile::tempdir().unwrap();
    // PostgreSQL's user must be able to go there when we are root.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let cluster = cluster(&folder).await;
    let url = cluster.superuser_url();
    let admin = connect(&url).await.unwrap();
    let aws = rehearsal::aws(&ministack_url());
    let manager = Client::new(&aws);
    let name = Uuid::now_v7().simple().to_string();
    let mut arns = Vec::new();
    for role in ["app", "system"] {
        let text = credentials(
            &url,
            &format!("carillon_{role}"),
            &format!("{role}-hunter1"),
        );
        let secret = manager.create_secret().name(format!("{name}-{role}"));
        let made = secret.secret_string(text).send().await.unwrap();
        arns.push(made.arn.unwrap());
    }
    let config = settings(&arns[0], &arns[1]).config(&SecretsManager::new(&aws));
    let db = Db::connect(&config).await.unwrap();
    let standing = look(&db).await.unwrap();

    let change = async |password: &str| {
        let sql = format!("ALTER ROLE carillon_app PASSWORD '{password}'");
        admin.batch_execute(&sql).await.unwrap();
    };
    change("app-hunter2").await;
    let secret = manager.put_secret_value().secret_id(&arns[0]);
    let text = credentials(&url, "carillon_app", "app-hunter2");
    secret.secret_string(text).send().await.unwrap();

    // The second connection is made with the new password; the first one goes on.
    let second = look(&db).await.unwrap();
    provider_keys::lock(&standing, KeyedProvider::Anthropic)
        .await
        .unwrap();
    drop((standing, second));

    // A password that stands in no secret is refused, in words without it, and may come right.
    change("app-hunter3").await;
    let mut refused = None;
    for _ in 0..3 {
        match look(&db).await {
            Ok(tx) => drop(tx),
            Err(error) => refused = Some(error),
        }
    }
    let error = refused.expect("no connection stands any more");
    assert!(error.is_transient());
    assert!(
        !format!("{error:?} {config:?}").contains("hunter"),
        "{error:?}"
    );
    drop(db);
    cluster.stop().await.unwrap();
}
