//! Little memory: hostile bodies from all sides stay within the limit, and ordinary work goes on.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use crate::crowd::{Crowd, last_minute};
use crate::process::{Carillon, PLATFORM_KEY, Start};
use crate::provider::{ENDLESS, Provider};
use crate::{client, turn};

/// What the process may have of memory that it writes to: the system refuses it more, and then it ends.
/// A limit of its address space would count what threads only reserve.
const DATA_BYTES_MAX: u64 = 256 * 1024 * 1024;

const WORKERS: usize = 16;

/// Prompts whose answers never end, and as many that are as usual.
const PROMPTS: usize = 24;

/// Requests at the same time.
const REQUESTS: usize = 64;

/// The largest body that the API takes has 256,000 bytes.
const BODY_BYTES: usize = 255_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bodies_stay_within_a_limit_of_memory() {
    let _turn = turn().await;
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start(Duration::from_millis(50)).await;
    let mut crowd = Crowd::new().await;
    let tenant = crowd.tenant("acme").await;
    crowd.add_of_kind(ENDLESS, tenant, PROMPTS, None).await;
    crowd.add(tenant, PROMPTS, None).await;
    let start = Start {
        database_url: &crowd.database_url(),
        provider: &provider,
        workers: WORKERS,
        data_bytes_max: Some(DATA_BYTES_MAX),
    };
    let mut carillon = Carillon::start(home.path(), "limited", &start).await;
    crowd.make_due(last_minute()).await;
    let url = format!("{}/v1/admin/tenants", carillon.url);
    let client = client();
    for (what, body, statuses) in bodies() {
        let posts = (0..REQUESTS).map(|_| posted(&client, &url, body.clone()));
        let answers = join_all(posts).await;
        for (status, code) in answers {
            assert!(statuses.contains(&status), "{what}: {status} {code}");
        }
    }
    crowd.ended(2 * PROMPTS).await;
    carillon.assert_alive();
    let counted = async |sql: &str| {
        let count = crowd.stage.count(sql).await.unwrap();
        usize::try_from(count).unwrap()
    };
    let good = "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'succeeded'";
    assert_eq!(counted(good).await, PROMPTS);
    let bad = "SELECT count(*) FROM scheduled_prompt_runs
                WHERE status = 'failed' AND error_code = 'malformed_answer'";
    assert_eq!(counted(bad).await, PROMPTS);
    let usage = carillon.usage();
    println!(
        "{PROMPTS} endless answers and {REQUESTS} hostile requests at once, within {} MB: {:.0} MB resident at most",
        DATA_BYTES_MAX / 1_000_000,
        usage.resident_max_mb
    );
    carillon.stop().await;
}

/// Bodies that cost more than they look, and what may be answered to them.
fn bodies() -> [(&'static str, Vec<u8>, &'static [u16]); 5] {
    let list = |item: &str| {
        let items = vec![item; BODY_BYTES / (item.len() + 1)].join(",");
        format!(r#"{{"name": [{items}]}}"#).into_bytes()
    };
    [
        ("too large", vec![b' '; 8 * BODY_BYTES], &[413]),
        ("as large as may be", vec![b'['; BODY_BYTES], &[400]),
        // 80 bytes of memory or more for each byte or two.
        ("many small values", list("0"), &[422]),
        ("many small objects", list("{}"), &[422]),
        ("many escapes", list(r#""\u0000""#), &[422]),
    ]
}

/// The status and the code of the problem.
async fn posted(client: &reqwest::Client, url: &str, body: Vec<u8>) -> (u16, Value) {
    let request = client.post(url).bearer_auth(PLATFORM_KEY);
    let sent = request
        .header("content-type", "application/json")
        .body(body);
    match sent.send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let problem: Value = answer.json().await.unwrap_or_default();
            (status, problem["code"].clone())
        }
        // It may close the connection on somebody who goes on sending what it has refused.
        Err(error) if error.is_request() || error.is_body() => (413, Value::Null),
        Err(error) => panic!("{error}"),
    }
}
