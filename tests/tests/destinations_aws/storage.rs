//! Outputs in S3.

use aws_sdk_s3::{primitives::ByteStream, types::ServerSideEncryption};
use serde_json::{Value, json};
use tests::peers::{ministack_url, moto_url};

use crate::{
    server::{Server, Turn, store_refusal},
    world::{LONG, Tenant, World, long_output},
};

/// One test for each emulator.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod ministack {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::in_emulator(&super::ministack_url()).await).await;
            })*
        }
        mod moto {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::in_emulator(&super::moto_url()).await).await;
            })*
        }
    };
}

on_both!(
    an_output_becomes_one_object_however_often_it_is_delivered,
    another_object_under_the_key_stays_and_is_told,
    a_long_output_lies_in_the_bucket_alone_and_is_read_from_there,
);

fn storage() -> Value {
    json!([{"kind": "storage"}])
}

fn state(delivery: &Value) -> (&str, Option<&str>, i64) {
    (
        delivery["status"].as_str().unwrap(),
        delivery["error_code"].as_str(),
        delivery["attempt"].as_i64().unwrap(),
    )
}

async fn objects(world: &World) -> Vec<String> {
    let listing = world
        .s3()
        .list_objects_v2()
        .bucket(&world.bucket)
        .send()
        .await
        .unwrap();
    let found = listing.contents().iter().filter_map(|one| one.key());
    found.map(str::to_owned).collect()
}

async fn read(world: &World, key: &str) -> Vec<u8> {
    let got = world
        .s3()
        .get_object()
        .bucket(&world.bucket)
        .key(key)
        .send()
        .await
        .unwrap();
    got.body.collect().await.unwrap().to_vec()
}

async fn an_output_becomes_one_object_however_often_it_is_delivered(world: World) {
    let tenant = world.tenant("a").await;
    let prompt_id = world.fire(&tenant, "say", storage()).await;
    let delivery = world.delivery(prompt_id).await;
    assert_eq!(state(&delivery), ("delivered", None, 1));
    let run = world.run(prompt_id).await;
    let run_id = run["id"].as_str().unwrap();
    let key = delivery["target"].as_str().unwrap();
    assert!(key.starts_with(&format!("tenants/{}/prompts/{prompt_id}/", tenant.stage.id)));
    assert!(key.ends_with(&format!("/{run_id}.md")), "{key}");
    assert_eq!(delivery["location"], format!("s3://{}/{key}", world.bucket));
    assert_eq!(objects(&world).await, [key]);
    assert_eq!(read(&world, key).await, b"A short answer.");

    let head = async || {
        world
            .s3()
            .head_object()
            .bucket(&world.bucket)
            .key(key)
            .send()
            .await
            .unwrap()
    };
    let first = head().await;
    assert_eq!(first.content_type(), Some("text/markdown; charset=utf-8"));
    assert_eq!(
        first.server_side_encryption(),
        Some(&ServerSideEncryption::AwsKms)
    );
    let said = first.metadata().unwrap();
    assert_eq!(said["tenant"], tenant.stage.id.to_string());
    assert_eq!(said["prompt"], prompt_id.to_string());
    assert_eq!(said["run"], run_id);
    assert_eq!(said["slot"], key.split('/').nth(4).unwrap());

    world.redeliver(tenant.stage.id, &delivery).await;
    assert_eq!(
        state(&world.delivery(prompt_id).await),
        ("delivered", None, 2)
    );
    assert_eq!(objects(&world).await, [key]);
    let second = head().await;
    assert_eq!(second.last_modified(), first.last_modified());
    assert_eq!(second.version_id(), first.version_id());
}

async fn another_object_under_the_key_stays_and_is_told(world: World) {
    let tenant = world.tenant("a").await;
    let prompt_id = world.fire(&tenant, "say", storage()).await;
    let delivery = world.delivery(prompt_id).await;
    let key = delivery["target"].as_str().unwrap();
    // As long as the output, so that its hash alone tells them apart.
    let other = ByteStream::from_static(b"B short answer.");
    let putting = world
        .s3()
        .put_object()
        .bucket(&world.bucket)
        .key(key)
        .body(other);
    putting.send().await.unwrap();
    world.redeliver(tenant.stage.id, &delivery).await;
    let after = world.delivery(prompt_id).await;
    assert_eq!(state(&after), ("exhausted", Some("object_differs"), 2));
    assert_eq!(read(&world, key).await, b"B short answer.");
}

async fn a_long_output_lies_in_the_bucket_alone_and_is_read_from_there(world: World) {
    let tenant = world.tenant("a").await;
    let prompt_id = world.fire(&tenant, LONG, storage()).await;
    let run = world.run(prompt_id).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["output"], Value::Null);
    let delivery = world.delivery(prompt_id).await;
    assert_eq!(state(&delivery), ("delivered", None, 1));
    let key = delivery["target"].as_str().unwrap();
    assert_eq!(run["output_uri"], format!("s3://{}/{key}", world.bucket));
    assert_eq!(objects(&world).await, [key]);
    assert_eq!(read(&world, key).await, long_output().as_bytes());

    // The bytes of a redelivery lie in the bucket.
    world.redeliver(tenant.stage.id, &delivery).await;
    assert_eq!(
        state(&world.delivery(prompt_id).await),
        ("delivered", None, 2)
    );
    assert_eq!(objects(&world).await, [key]);

    // A caller reads it there, without a key of ours.
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    let (_, body) = world.send(&tenant, "GET", &path).await;
    assert_eq!(body["output"], Value::Null);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = body["output_url"].as_str().unwrap();
    let answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.unwrap(), long_output());
    assert!(
        url.contains("X-Amz-Signature=") && url.contains("X-Amz-Expires=900"),
        "{url}"
    );

    world
        .s3()
        .delete_object()
        .bucket(&world.bucket)
        .key(key)
        .send()
        .await
        .unwrap();
    world.redeliver(tenant.stage.id, &delivery).await;
    let gone = world.delivery(prompt_id).await;
    assert_eq!(state(&gone), ("exhausted", Some("object_missing"), 3));
}

async fn scene() -> (Server, World, Tenant) {
    let server = Server::start().await;
    let world = World::at(&server.url()).await;
    let tenant = world.tenant("a").await;
    (server, world, tenant)
}

/// What the head of an object with this hash says.
fn object(sha256: &str) -> Turn {
    let headers = vec![
        ("content-length", "15".to_owned()),
        ("x-amz-checksum-sha256", sha256.to_owned()),
    ];
    Turn::Answer(200, headers, String::new())
}

/// Of `A short answer.`
const SHA256: &str = "kQsFFYxRVcVAo5EalmWmz/wBks5cBL/cxMjPvnziMrg=";

#[tokio::test]
async fn s3_is_asked_to_encrypt_and_never_to_replace() {
    let (server, world, tenant) = scene().await;
    let prompt_id = world.fire(&tenant, "say", storage()).await;
    assert_eq!(
        state(&world.delivery(prompt_id).await),
        ("delivered", None, 1)
    );
    let [put] = server.calls("PUT").try_into().unwrap();
    assert!(
        put.path.starts_with(&format!("/{}/tenants/", world.bucket)),
        "{}",
        put.path
    );
    for (name, value) in [
        ("if-none-match", "*"),
        ("content-type", "text/markdown; charset=utf-8"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
        ("x-amz-checksum-sha256", SHA256),
    ] {
        assert_eq!(
            put.headers.get(name).map(String::as_str),
            Some(value),
            "{name}"
        );
    }
    let key = "x-amz-server-side-encryption-aws-kms-key-id";
    assert!(put.headers[key].ends_with(":key/outputs"));
    assert_eq!(put.body, "A short answer.");
    // What is not there is not asked for.
    assert_eq!(server.calls("HEAD").len() + server.calls("GET").len(), 0);
}

#[tokio::test]
async fn what_lies_there_already_is_compared_by_its_hash() {
    for (found, outcome) in [
        (SHA256, ("delivered", None, 1)),
        (
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            ("exhausted", Some("object_differs"), 1),
        ),
    ] {
        let (server, world, tenant) = scene().await;
        server.next("PUT", store_refusal(412, "PreconditionFailed"));
        server.next("HEAD", object(found));
        let prompt_id = world.fire(&tenant, "say", storage()).await;
        assert_eq!(state(&world.delivery(prompt_id).await), outcome);
        assert_eq!(server.calls("PUT").len(), 1);
    }
}

#[tokio::test]
async fn a_lost_reply_is_made_up_for_without_a_second_object() {
    let (server, world, tenant) = scene().await;
    server.next("PUT", Turn::LoseReply);
    server.next("PUT", store_refusal(412, "PreconditionFailed"));
    server.next("HEAD", object(SHA256));
    let prompt_id = world.fire(&tenant, "say", storage()).await;
    assert_eq!(
        state(&world.delivery(prompt_id).await),
        ("delivered", None, 1)
    );
}

#[tokio::test]
async fn a_store_that_refuses_is_tried_again() {
    let (server, world, tenant) = scene().await;
    for (status, code, error, wait_s_min, puts) in [
        (403, "AccessDenied", "store_not_set_up", 600.0, 1),
        (404, "NoSuchBucket", "store_not_set_up", 600.0, 1),
        (503, "SlowDown", "store_unavailable", -1.0, 2),
        (500, "InternalError", "store_unavailable", -1.0, 2),
    ] {
        for _ in 0..puts {
            server.next("PUT", store_refusal(status, code));
        }
        let prompt_id = world.fire(&tenant, "say", storage()).await;
        let delivery = world.delivery(prompt_id).await;
        assert_eq!(state(&delivery), ("retrying", Some(error), 1), "{code}");
        assert!(
            delivery["wait_s"].as_f64().unwrap() > wait_s_min,
            "{code}: {delivery}"
        );
        assert_eq!(server.calls("PUT").len(), puts, "{code}");
        world.again(tenant.stage.id, &delivery).await;
        assert_eq!(
            state(&world.delivery(prompt_id).await),
            ("delivered", None, 2)
        );
        assert_eq!(server.calls("PUT").len(), 1, "{code}");
    }
}

#[tokio::test]
async fn a_long_output_is_sent_once_and_one_that_is_too_long_is_not_read() {
    let (server, world, tenant) = scene().await;
    let output = long_output();
    let sha256 = "WmH+RMiJQUPKUQsINqF+nyOcAbdekIgWajNJHhcdGmY=";
    let there = |bytes: usize| {
        let headers = vec![
            ("content-length", bytes.to_string()),
            ("x-amz-checksum-sha256", sha256.to_owned()),
        ];
        Turn::Answer(200, headers, String::new())
    };
    // Nothing is there when it is stored, and then it is, for its delivery.
    server.next("HEAD", store_refusal(404, "NoSuchKey"));
    server.next("HEAD", there(output.len()));
    let prompt_id = world.fire(&tenant, LONG, storage()).await;
    let delivery = world.delivery(prompt_id).await;
    assert_eq!(state(&delivery), ("delivered", None, 1));
    assert_eq!(server.calls("PUT").len(), 1);

    server.next("GET", there(9_000_000_000));
    world.redeliver(tenant.stage.id, &delivery).await;
    let after = world.delivery(prompt_id).await;
    assert_eq!(state(&after), ("exhausted", Some("object_too_large"), 2));
}
