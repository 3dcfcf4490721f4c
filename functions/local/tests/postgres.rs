//! A real server: what it keeps, what it survives, and what it refuses.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use local::postgres::{Cluster, Options, PostgresError};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

#[tokio::test]
async fn data_survives_a_stop_and_a_killed_server() {
    let folder = open_folder().unwrap();
    let cluster = start(folder.path(), true).await.unwrap();
    let client = connect(&cluster).await.unwrap();
    let sql = "create table slots (n int); insert into slots values (1)";
    client.batch_execute(sql).await.unwrap();
    let socket_dir = cluster.socket_dir().to_owned();
    cluster.stop().await.unwrap();
    assert!(!socket_dir.exists(), "the socket folder is left behind");

    let cluster = start(folder.path(), true).await.unwrap();
    let client = connect(&cluster).await.unwrap();
    let sql = "insert into slots values (2)";
    client.batch_execute(sql).await.unwrap();
    let server = Pid::from_raw(cluster.pid()).unwrap();
    kill_process(server, Signal::KILL).unwrap();
    // At once: the killed server's children still hold its shared memory.
    drop(cluster);

    let cluster = start(folder.path(), true).await.unwrap();
    let client = connect(&cluster).await.unwrap();
    let row = client
        .query_one("select sum(n) from slots", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 3);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_server_never_runs_as_root_and_never_listens_on_the_network() {
    let folder = open_folder().unwrap();
    let cluster = start(folder.path(), false).await.unwrap();
    let client = connect(&cluster).await.unwrap();
    let row = client
        .query_one("show listen_addresses", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "");
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid())).unwrap();
    let uids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
    let mode = fs::metadata(cluster.socket_dir())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    cluster.stop().await.unwrap();
    assert!(
        !folder.path().join("cluster").exists(),
        "a throwaway cluster stays"
    );
}

#[tokio::test]
async fn a_second_process_on_the_same_folder_is_told_so() {
    let folder = open_folder().unwrap();
    let cluster = start(folder.path(), false).await.unwrap();
    let error = start(folder.path(), false).await.unwrap_err();
    assert!(matches!(error, PostgresError::InUse { .. }), "{error}");
    // The first one goes on.
    connect(&cluster).await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_left_running_is_stopped_first() {
    let folder = open_folder().unwrap();
    let first = start(folder.path(), true).await.unwrap();
    let left_running = connect(&first).await.unwrap();
    // As if its parent had been killed: the lock is gone, the server is not.
    fs::remove_file(folder.path().join("lock")).unwrap();
    let second = start(folder.path(), true).await.unwrap();
    assert!(left_running.simple_query("select 1").await.is_err());
    connect(&second).await.unwrap();
    second.stop().await.unwrap();
}

#[tokio::test]
async fn a_setting_that_postgres_refuses_is_shown_with_its_log() {
    let folder = open_folder().unwrap();
    let options = Options {
        data_dir: folder.path().to_owned(),
        durable: false,
        settings: vec![("no_such_setting", "1".to_owned())],
    };
    let error = Cluster::start(options).await.unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn a_folder_that_only_root_may_enter_works_too() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    let data_dir = folder.path().join("a name with spaces/and 'quotes'");
    let cluster = start(&data_dir, false).await.unwrap();
    connect(&cluster).await.unwrap();
    cluster.stop().await.unwrap();
}

/// A folder that the user nobody may enter, where PostgreSQL's files stay in place.
fn open_folder() -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    Ok(folder)
}

async fn start(data_dir: &Path, durable: bool) -> Result<Cluster, PostgresError> {
    let options = Options {
        data_dir: data_dir.to_owned(),
        durable,
        settings: Vec::new(),
    };
    Cluster::start(options).await
}

async fn connect(cluster: &Cluster) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(&cluster.superuser_url(), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
