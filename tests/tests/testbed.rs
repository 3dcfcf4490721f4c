//! The testbed itself: that a test gets what it promises, and that nothing is left behind.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::{database, database_url, peers};
use tokio_postgres::NoTls;

const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");

#[tokio::test]
async fn each_test_gets_a_migrated_database_of_its_own() {
    let migrate = |url: String| async move {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        let connection = tokio::spawn(connection);
        client.batch_execute("create table t (n int)").await?;
        drop(client);
        connection.await??;
        Ok(())
    };
    let (first, second) = tokio::join!(
        database("testbed_template", migrate),
        database("testbed_template", migrate)
    );
    for name in [first.unwrap(), second.unwrap()] {
        let url = database_url(&name);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .execute("insert into t values (1)", &[])
            .await
            .unwrap();
        let row = client
            .query_one("select count(*) from t", &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, i64>(0), 1);
    }
}

#[test]
fn the_commands_exit_code_comes_through() {
    let status = testbed(&["sh", "-c", "exit 7"]).status().unwrap();
    assert_eq!(status.code(), Some(7));
}

#[tokio::test]
async fn nothing_outlives_a_killed_testbed() {
    let script = r#"echo $$ "$CARILLON_TEST_POSTGRES"; exec sleep 60"#;
    // What a killed testbed cannot remove goes with this folder.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut testbed = testbed(&["sh", "-c", script]);
    testbed.env("TMPDIR", folder.path()).stdout(Stdio::piped());
    let mut running = testbed.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(running.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let (command, url) = line.trim().split_once(' ').unwrap();
    let host = url
        .split(['@', '/'])
        .find(|part| part.starts_with("%2F"))
        .unwrap();
    let socket = format!("{}/.s.PGSQL.5432", host.replace("%2F", "/"));
    let lock = fs::read_to_string(format!("{socket}.lock")).unwrap();
    let server = lock.lines().next().unwrap();

    running.kill().unwrap();
    running.wait().unwrap();

    for process in [command, server] {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Path::new("/proc").join(process).exists() {
            assert!(
                Instant::now() < deadline,
                "process {process} outlives the testbed"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let socket = Path::new(&socket);
    assert!(!socket.exists(), "postgres did not shut down cleanly");
    fs::remove_dir(socket.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn the_webhook_receiver_rejects_a_false_signature() {
    let path = "/testbed/unsigned";
    let key = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    peers::webhook_secrets(path, &[key]).await.unwrap();
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let url = format!("{}{path}/fail-then-ok/1", peers::webhook_url());
    for expected in [503, 200] {
        let response = client.post(&url).body("{}").send().await.unwrap();
        assert_eq!(response.status().as_u16(), expected);
    }
    let journal = peers::webhook_journal(path).await.unwrap();
    assert_eq!(journal.len(), 2);
    assert_eq!(journal[0]["verified"], false, "{}", journal[0]);
}

#[tokio::test]
async fn aimock_limits_the_rate_once() {
    let marker = "[testbed:limited-once]";
    peers::aimock_limits_once(marker, 2).await.unwrap();
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let url = format!("{}/v1/chat/completions", peers::aimock_url());
    let body = serde_json::json!({"model": "gpt-5-mini",
        "messages": [{"role": "user", "content": format!("x {marker}")}]});
    let refused = client.post(&url).json(&body).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 429);
    assert_eq!(refused.headers()["retry-after"], "2");
    let answered = client.post(&url).json(&body).send().await.unwrap();
    assert_eq!(answered.status().as_u16(), 200);
    assert_eq!(peers::aimock_journal(marker).await.unwrap().len(), 2);
}

fn testbed(command: &[&str]) -> Command {
    let mut testbed = Command::new(TESTBED);
    testbed.args(["--with", "none", "--"]).args(command);
    testbed
}
