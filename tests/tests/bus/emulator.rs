//! Against ministack: what is put arrives at a rule's target, with its source, type and detail.

use std::{collections::BTreeMap, time::Duration};

use aws_sdk_eventbridge::types::Target;
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};
use shared::{ids::RunId, run::DeliveryStatus};
use tests::{
    peers::ministack_url,
    rehearsal,
    worker::{settle, succeed},
};
use tokio::time::Instant;
use uuid::Uuid;

use super::world::{World, bus, drain};

/// A bus, and a queue that a rule puts its events into.
async fn scene() -> (aws_sdk_sqs::Client, String, String) {
    let aws = rehearsal::aws(&ministack_url());
    let name = format!("test-{}", Uuid::now_v7().simple());
    let (events, queues) = (
        aws_sdk_eventbridge::Client::new(&aws),
        aws_sdk_sqs::Client::new(&aws),
    );
    events.create_event_bus().name(&name).send().await.unwrap();
    let queue = queues
        .create_queue()
        .queue_name(&name)
        .send()
        .await
        .unwrap()
        .queue_url
        .unwrap();
    let asking = queues
        .get_queue_attributes()
        .queue_url(&queue)
        .attribute_names(QueueAttributeName::QueueArn);
    let attributes = asking.send().await.unwrap().attributes.unwrap();
    let arn = &attributes[&QueueAttributeName::QueueArn];
    let pattern = json!({"source": ["carillon"]}).to_string();
    let rule = events
        .put_rule()
        .event_bus_name(&name)
        .name("all")
        .event_pattern(pattern);
    rule.send().await.unwrap();
    let target = Target::builder().id("queue").arn(arn).build().unwrap();
    let targets = events
        .put_targets()
        .event_bus_name(&name)
        .rule("all")
        .targets(target);
    targets.send().await.unwrap();
    (queues, queue, name)
}

#[tokio::test]
async fn what_is_put_arrives_as_it_was_written() {
    let (queues, queue, name) = scene().await;
    let world = World::new().await;
    for _ in 0..4 {
        let claim = world.running(&json!({})).await;
        let sent = succeed(world.db(), &claim, 1).await.unwrap();
        settle(world.db(), &sent[0], DeliveryStatus::Delivered)
            .await
            .unwrap();
    }
    let written: BTreeMap<String, Value> = world
        .outbox()
        .await
        .into_iter()
        .map(|row| (row["id"].as_str().unwrap().to_owned(), row))
        .collect();
    assert_eq!(written.len(), 16);
    assert_eq!(
        drain(world.db(), &bus(&ministack_url(), &name)).await.taken,
        16
    );
    assert_eq!(world.outbox().await, [json!(null); 0]);
    let mut arrived = BTreeMap::new();
    while arrived.len() < written.len() {
        let taking = queues
            .receive_message()
            .queue_url(&queue)
            .max_number_of_messages(10)
            .wait_time_seconds(5);
        let messages = taking.send().await.unwrap().messages.unwrap_or_default();
        assert!(!messages.is_empty(), "{} arrived", arrived.len());
        for message in messages {
            let event: Value = serde_json::from_str(message.body().unwrap()).unwrap();
            arrived.insert(event["detail"]["id"].as_str().unwrap().to_owned(), event);
        }
    }
    for (id, row) in &written {
        let event = &arrived[id];
        assert_eq!(event["source"], json!("carillon"));
        assert_eq!(
            (&event["detail-type"], &event["detail"]["type"]),
            (&row["type"], &row["type"])
        );
        for (name, value) in row["data"].as_object().unwrap() {
            assert_eq!(&event["detail"][name], value, "{name}");
        }
    }
}

#[tokio::test]
async fn a_bus_that_nobody_made_loses_nothing() {
    let world = World::new().await;
    world.insert(RunId::new(), &json!({})).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    let bus = bus(&ministack_url(), "nobody-made-this");
    let drained = shared::bus::drain(world.db(), &bus, deadline)
        .await
        .unwrap();
    // Emulators differ in what they say of it; it must not be parked.
    assert_eq!(drained.parked, 0, "{drained:?}");
    assert_eq!(world.outbox().await.len() + drained.taken, 1);
}
