//! Wake-ups on a queue of SQS.

use std::{collections::HashSet, time::Duration};

use aws_sdk_sqs::{Client, types::QueueAttributeName};
use axum::{body::Body, http::Request};
use management::{App, AppParts, bootstrap_tenant};
use serde_json::json;
use shared::{
    env::Environment,
    ids::{RunId, TenantId},
    message::{self, WakeUp},
    outbound::Policy,
    price::Catalog,
    queue::{Queue, Sqs},
    scheduler::Scheduler,
    seal::Sealer,
};
use tests::{peers::ministack_url, rehearsal, stage::Stage};
use tower::ServiceExt;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);

async fn scene() -> (Client, String, Queue) {
    let aws = rehearsal::aws(&ministack_url());
    let name = format!("test-{}", Uuid::now_v7().simple());
    let url = rehearsal::queues(&aws, &name).await.unwrap().wake_ups;
    let queue = Queue::Sqs(Sqs::new(&aws, url.clone(), LIMIT));
    (Client::new(&aws), url, queue)
}

fn runs(count: usize) -> Vec<WakeUp> {
    let tenant_id = TenantId::new();
    (0..count)
        .map(|_| WakeUp::Run {
            tenant_id,
            run_id: RunId::new(),
        })
        .collect()
}

#[tokio::test]
async fn every_wake_up_arrives_whatever_the_size_of_the_batches() {
    let (client, url, queue) = scene().await;
    let sent = runs(23);
    assert_eq!(queue.offer(&sent, Duration::ZERO).await, 23);
    let mut arrived = HashSet::new();
    while arrived.len() < sent.len() {
        let taking = client
            .receive_message()
            .queue_url(&url)
            .max_number_of_messages(10);
        let messages = taking.send().await.unwrap().messages.unwrap_or_default();
        assert!(!messages.is_empty(), "{} of 23 arrived", arrived.len());
        for message in messages {
            arrived.insert(message::decode(message.body().unwrap()).unwrap().wake_up);
        }
    }
    assert_eq!(arrived, sent.into_iter().collect());
}

#[tokio::test]
async fn a_wake_up_waits_for_its_delay_and_what_is_too_far_off_is_left_to_the_sweeper() {
    let (client, url, queue) = scene().await;
    assert_eq!(queue.offer(&runs(1), Duration::from_secs(900)).await, 1);
    assert_eq!(queue.offer(&runs(1), Duration::from_secs(901)).await, 0);
    let taking = client
        .receive_message()
        .queue_url(&url)
        .max_number_of_messages(10);
    assert_eq!(taking.send().await.unwrap().messages().len(), 0);
    let asking = client
        .get_queue_attributes()
        .queue_url(&url)
        .attribute_names(QueueAttributeName::All);
    let attributes = asking.send().await.unwrap().attributes.unwrap();
    assert_eq!(
        attributes[&QueueAttributeName::ApproximateNumberOfMessagesDelayed],
        "1"
    );
}

#[tokio::test]
async fn a_queue_that_is_not_there_takes_nothing() {
    let aws = rehearsal::aws(&ministack_url());
    let url = format!("{}/123456789012/nobody-made-this", ministack_url());
    let queue = Queue::Sqs(Sqs::new(&aws, url, LIMIT));
    assert_eq!(queue.offer(&runs(12), Duration::ZERO).await, 0);
}

/// Accepts connections and never answers.
async fn silent() -> String {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    url
}

#[tokio::test]
async fn a_silent_queue_keeps_no_caller_from_its_answer_and_loses_no_run() {
    let stage = Stage::new(4).await.unwrap();
    let url = silent().await;
    let sqs = Sqs::new(
        &rehearsal::aws(&url),
        format!("{url}/1/q"),
        Duration::from_millis(200),
    );
    let app = App::new(AppParts {
        db: stage.db.clone(),
        queue: Queue::Sqs(sqs),
        scheduler: Scheduler::Local,
        outputs: management::outputs::Outputs::Folder,
        sealer: Sealer::from_base64(&format!("{}=", "A".repeat(43))).unwrap(),
        catalog: Catalog::shipped(),
        outbound: Policy::PUBLIC,
        allow_echo: true,
        platform_key: None,
        tokens: None,
        environment: Environment::Dev,
    });
    let (_, key) = bootstrap_tenant(&app, "acme", "owner@example.com")
        .await
        .unwrap();
    let router = management::router(app);
    let send = async |path: String, body: serde_json::Value| {
        let request = Request::builder()
            .method("POST")
            .uri(path)
            .header("authorization", format!("Bearer {}", key.expose()))
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1_000_000)
            .await
            .unwrap();
        (
            status,
            serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(),
        )
    };
    let prompt = json!({"prompt_name": "p", "prompt_text": "hello", "model": "echo/echo",
        "schedule": {"type": "manual"}});
    let (status, prompt) = send("/v1/prompts".to_owned(), prompt).await;
    assert_eq!(status, 201, "{prompt}");
    let path = format!("/v1/prompts/{}/run", prompt["id"].as_str().unwrap());
    let (status, run) = send(path, json!({})).await;
    assert!((200..300).contains(&status), "{status}: {run}");
    // The sweeper finds what the queue did not take.
    let (queue, mut wake_ups) = Queue::local(10);
    let swept = sweeper::sweep(&stage.db, &queue).await.unwrap();
    assert_eq!((swept.sent, swept.postponed), (1, 0));
    assert!(matches!(wake_ups.next().await, Some(WakeUp::Run { .. })));
}
