//! The bus fails in every way that it can, and so do those who put to it.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{bus::Drained, db::events, ids::RunId};
use tokio::sync::oneshot;

use super::{
    order::{by_key, in_order},
    scripted::{Scripted, Turn},
    world::{World, bus, drain},
};

fn id(row: &Value) -> String {
    row["id"].as_str().unwrap().to_owned()
}

fn counts(drained: Drained) -> (usize, usize, usize, bool) {
    (
        drained.taken,
        drained.postponed,
        drained.parked,
        drained.is_down,
    )
}

#[tokio::test]
async fn an_entry_that_failed_holds_back_those_of_its_key_and_no_others() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    let (failing, other) = (RunId::new(), RunId::new());
    world.insert_many(failing, 3).await;
    world.insert_many(other, 3).await;
    let rows = world.outbox().await;
    server.refuse_entry(&id(&rows[0]), Some("InternalFailure"));
    assert_eq!(counts(drain(world.db(), &bus).await), (3, 3, 0, false));
    assert!(
        server
            .taken()
            .iter()
            .all(|one| one["run_id"] == json!(other))
    );
    let left = world.outbox().await;
    assert_eq!(
        left.iter().map(id).collect::<Vec<_>>(),
        rows[..3].iter().map(id).collect::<Vec<_>>()
    );
    assert_eq!(
        (&left[0]["attempts"], &left[1]["attempts"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(left[0]["error_code"], json!("InternalFailure"));
    // One that comes meanwhile waits as well.
    world.insert(failing, &json!({})).await;
    assert_eq!(counts(drain(world.db(), &bus).await), (0, 0, 0, false));
    assert_eq!(server.calls().len(), 3);

    server.refuse_entry(&id(&rows[0]), None);
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (4, 0, 0, false));
    in_order(&server.taken());
}

#[tokio::test]
async fn a_bus_that_is_busy_or_closed_to_us_parks_nothing_however_long() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    world.insert_many(RunId::new(), 2).await;
    world.insert(RunId::new(), &json!({})).await;
    for (status, code) in [
        (400, "ThrottlingException"),
        (400, "AccessDeniedException"),
        (400, "ResourceNotFoundException"),
        (500, "InternalException"),
        (503, "ServiceUnavailable"),
    ] {
        for _ in 0..5 {
            // The client tries each call twice, where that may help.
            server.plan([Turn::Refuse(status, code), Turn::Refuse(status, code)]);
            world.let_time_pass().await;
            let drained = drain(world.db(), &bus).await;
            assert_eq!(counts(drained), (0, 3, 0, true), "{code}");
            server.forget_plan();
        }
        assert_eq!(world.outbox().await[0]["error_code"], json!(code));
    }
    let left = world.outbox().await;
    assert!(
        left.iter()
            .all(|row| row["refusals"] == json!(0) && row["parked_at"].is_null()),
        "{left:#?}"
    );
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (3, 0, 0, false));
}

#[tokio::test]
async fn an_outage_is_waited_for_and_not_hammered() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    for _ in 0..250 {
        world.insert(RunId::new(), &json!({})).await;
    }
    server.set_gone(true);
    let drained = drain(world.db(), &bus).await;
    // The first claim alone was tried; the rest waits for the next drainer.
    assert_eq!(counts(drained), (0, 100, 0, true));
    let waiting = world.outbox().await.len();
    assert_eq!(waiting, 250);
    server.set_gone(false);
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (250, 0, 0, false));
    assert_eq!(by_key(&server.taken()).len(), 250);
}

#[tokio::test]
async fn a_lost_reply_doubles_the_event_and_changes_nothing_in_it() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    world.insert_many(RunId::new(), 2).await;
    server.plan([Turn::LoseReply, Turn::LoseReply]);
    let drained = drain(world.db(), &bus).await;
    assert_eq!(counts(drained), (0, 2, 0, true));
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (2, 0, 0, false));
    let taken = server.taken();
    assert!(taken.len() > 2, "{taken:#?}");
    let first: Vec<_> = taken
        .iter()
        .filter(|one| one["number"] == json!(0))
        .collect();
    assert!(
        first.len() > 1 && first.iter().all(|one| *one == first[0]),
        "{first:#?}"
    );
    in_order(&taken);
}

/// A call whose effect is had, and whose answer waits for the test.
fn hold() -> (Turn, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let (arrived_sender, arrived) = oneshot::channel();
    let (release, released) = oneshot::channel();
    let turn = Turn::Hold {
        arrived: arrived_sender,
        released,
    };
    (turn, arrived, release)
}

#[tokio::test]
async fn whoever_dies_between_the_put_and_the_note_leaves_the_same_event_to_the_next() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    world.insert_many(RunId::new(), 2).await;
    let (turn, arrived, _release) = hold();
    server.plan([turn]);
    {
        let draining = drain(world.db(), &bus);
        tokio::pin!(draining);
        tokio::select! {
            _ = &mut draining => panic!("it has its answer"),
            arrived = arrived => arrived.unwrap(),
        }
    }
    // Until its lease ends they are its own.
    assert_eq!(counts(drain(world.db(), &bus).await), (0, 0, 0, false));
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (2, 0, 0, false));
    let taken = server.taken();
    assert_eq!(taken.len(), 3);
    assert_eq!(taken[0], taken[1]);
    in_order(&taken);
}

#[tokio::test]
async fn a_drainer_that_was_overtaken_notes_nothing() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    let run = RunId::new();
    world.insert_many(run, 2).await;
    let late = events::claim(world.db(), 10, 10, 0).await.unwrap();
    server.refuse_entry(&late[0].id.to_string(), Some("InternalFailure"));
    assert_eq!(counts(drain(world.db(), &bus).await), (0, 2, 0, false));
    let settled: Vec<_> = late
        .into_iter()
        .map(|event| (event, events::Outcome::Taken))
        .collect();
    assert_eq!(events::settle(world.db(), &settled).await.unwrap(), 0);
    assert_eq!(world.outbox().await.len(), 2);
}

#[tokio::test]
async fn what_the_bus_can_never_take_is_parked_and_lets_the_others_go_on() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    let (large, malformed) = (RunId::new(), RunId::new());
    world
        .insert(large, &json!({"text": "x".repeat(300_000)}))
        .await;
    world.insert_many(large, 2).await;
    world.insert_many(malformed, 3).await;
    let rows = world.outbox().await;
    server.refuse_entry(&id(&rows[3]), Some("MalformedDetail"));
    assert_eq!(counts(drain(world.db(), &bus).await), (4, 0, 2, false));
    let parked = world.outbox().await;
    let said: Vec<_> = parked
        .iter()
        .map(|row| (id(row), row["error_code"].as_str().unwrap()))
        .collect();
    assert_eq!(
        said,
        [
            (id(&rows[0]), "too_large"),
            (id(&rows[3]), "MalformedDetail")
        ]
    );
    // They are not put again, and go after 30 days.
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (0, 0, 0, false));
    assert_eq!(events::forget_parked(world.db(), 10).await.unwrap(), 0);
    world
        .sql("UPDATE bus_events SET parked_at = now() - interval '31 days'")
        .await;
    assert_eq!(events::forget_parked(world.db(), 10).await.unwrap(), 2);
}

#[tokio::test]
async fn large_events_share_no_call_that_is_too_large() {
    let world = World::new().await;
    let server = Scripted::start().await;
    for _ in 0..7 {
        world
            .insert(RunId::new(), &json!({"text": "x".repeat(100_000)}))
            .await;
    }
    // The server counts the bytes of each call.
    assert_eq!(
        counts(drain(world.db(), &bus(&server.url, "default")).await),
        (7, 0, 0, false)
    );
    assert!(server.calls().len() >= 4);
}

#[tokio::test]
async fn an_entry_that_spoils_every_call_is_found_and_in_the_end_parked() {
    let world = World::new().await;
    let server = Scripted::start().await;
    let bus = bus(&server.url, "default");
    for _ in 0..5 {
        world.insert(RunId::new(), &json!({})).await;
    }
    let rows = world.outbox().await;
    server.poison(&id(&rows[2]));
    assert_eq!(counts(drain(world.db(), &bus).await), (4, 1, 0, false));
    for _ in 0..8 {
        world.let_time_pass().await;
        assert_eq!(counts(drain(world.db(), &bus).await), (0, 1, 0, false));
    }
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (0, 0, 1, false));
    world.let_time_pass().await;
    assert_eq!(counts(drain(world.db(), &bus).await), (0, 0, 0, false));
    assert_eq!(
        world.outbox().await[0]["error_code"],
        json!("ValidationException")
    );
}

#[tokio::test]
async fn a_bus_that_never_answers_ends_the_draining_in_time() {
    let world = World::new().await;
    let server = Scripted::start().await;
    world.insert(RunId::new(), &json!({})).await;
    let (turn, _arrived, _release) = hold();
    server.plan([turn]);
    let bus = bus(&server.url, "default");
    let deadline = tokio::time::Instant::now() + Duration::from_millis(300);
    let drained = shared::bus::drain(world.db(), &bus, deadline)
        .await
        .unwrap();
    assert_eq!(counts(drained), (0, 1, 0, true));
    assert_eq!(world.outbox().await[0]["error_code"], json!("timeout"));
}
