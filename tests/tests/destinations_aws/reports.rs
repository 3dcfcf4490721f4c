//! What comes back of emails, through the queue that the sweeper reads.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{ids::PromptId, queue::DeadLetters};
use sweeper::mail_events::{self, Heard};
use tests::{peers::ministack_url, rehearsal};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    server::Server,
    world::{Tenant, World, mail_to},
};

struct Scene {
    server: Server,
    world: World,
    sqs: aws_sdk_sqs::Client,
    url: String,
    queue: DeadLetters,
}

/// Emails go to a server that takes them all, and events come through a queue of ministack.
async fn scene() -> Scene {
    let server = Server::start().await;
    let world = World::at(&server.url()).await;
    let aws = rehearsal::aws(&ministack_url());
    let sqs = aws_sdk_sqs::Client::new(&aws);
    let name = format!("mail-{}", Uuid::now_v7().simple());
    let made = sqs.create_queue().queue_name(name).send().await.unwrap();
    let url = made.queue_url.unwrap();
    Scene {
        queue: DeadLetters::new(&aws, url.clone()),
        server,
        world,
        sqs,
        url,
    }
}

impl Scene {
    async fn put(&self, event: &str) {
        let sending = self
            .sqs
            .send_message()
            .queue_url(&self.url)
            .message_body(event);
        sending.send().await.unwrap();
    }

    async fn hear(&self) -> Heard {
        let deadline = Instant::now() + Duration::from_secs(60);
        let heard = mail_events::consume(&self.world.stage.db, &self.queue, deadline).await;
        heard.unwrap()
    }

    /// An email that went out, and the event that says of it what `detail` says.
    async fn mailed(&self, tenant: &Tenant, to: &[&str]) -> PromptId {
        let prompt_id = self.world.fire(tenant, "say", mail_to(to, "resend")).await;
        assert_eq!(self.world.delivery(prompt_id).await["status"], "delivered");
        prompt_id
    }

    async fn event(&self, tenant: &Tenant, prompt_id: PromptId, detail: Value) -> Value {
        let delivery = self.world.delivery(prompt_id).await;
        let mut event = json!({
            "version": "0", "id": Uuid::now_v7(), "source": "aws.ses", "detail-type": "Email Bounced",
            "detail": {"mail": {"messageId": "message-1", "tags": {
                "ses:configuration-set": ["mail"], "tenant": [tenant.stage.id],
                "prompt": [prompt_id], "run": [delivery["run_id"]], "delivery": [delivery["id"]],
            }}},
        });
        for (name, value) in detail.as_object().unwrap() {
            event["detail"][name] = value.clone();
        }
        event
    }

    async fn listed(&self, tenant: &Tenant) -> Vec<(String, String)> {
        let (_, page) = self
            .world
            .send(tenant, "GET", "/v1/suppressed-addresses")
            .await;
        let items = page["items"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        items
            .map(|one| (text(&one["address"]), text(&one["reason"])))
            .collect()
    }

    async fn log(&self, prompt_id: PromptId) -> Vec<Value> {
        let sql = "SELECT l.context FROM run_logs l JOIN scheduled_prompt_runs r ON r.id = l.run_id
                    WHERE r.prompt_id = $1 AND l.message LIKE 'the mail service%'";
        let rows = self
            .world
            .stage
            .admin
            .query(sql, &[&prompt_id.uuid()])
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

fn bounce(kind: &str, addresses: &[&str]) -> Value {
    let recipients: Vec<_> = addresses
        .iter()
        .map(|one| json!({"emailAddress": one}))
        .collect();
    json!({"eventType": "Bounce", "bounce": {"bounceType": kind, "bounceSubType": "General",
        "feedbackId": "feedback-1", "bouncedRecipients": recipients}})
}

fn suppressed(address: &str, reason: &str) -> Vec<(String, String)> {
    vec![(address.to_owned(), reason.to_owned())]
}

#[tokio::test]
async fn a_bounce_suppresses_the_address_for_its_tenant_alone() {
    let scene = scene().await;
    let (a, b) = (scene.world.tenant("a").await, scene.world.tenant("b").await);
    let to = ["Ada@Example.com", "bob@example.com"];
    let prompt_id = scene.mailed(&a, &to).await;
    scene.mailed(&b, &to).await;
    let event = scene
        .event(&a, prompt_id, bounce("Permanent", &["ada@example.com"]))
        .await;
    // SQS may hand a message over twice.
    for _ in 0..2 {
        scene.put(&event.to_string()).await;
    }
    let heard = scene.hear().await;
    assert_eq!(
        heard,
        Heard {
            suppressed: 1,
            deleted: 2
        }
    );
    assert_eq!(
        scene.listed(&a).await,
        suppressed("ada@example.com", "bounce")
    );
    assert_eq!(scene.listed(&b).await, []);
    let [line] = scene.log(prompt_id).await.try_into().unwrap();
    assert_eq!(line["report"], "bounce/Permanent/General");
    assert!(!line.to_string().contains("example.com"), "{line}");

    // From then on it is left out, here and not there.
    scene.server.calls("POST");
    let next = scene.mailed(&a, &to).await;
    let delivery = scene.world.delivery(next).await;
    assert_eq!(delivery["suppressed"], json!(["ada@example.com"]));
    let next = scene.mailed(&b, &to).await;
    assert_eq!(scene.world.delivery(next).await["suppressed"], json!([]));
    let counts: Vec<_> = scene
        .server
        .calls("POST")
        .iter()
        .map(|call| call.body.matches("Destinations.member.").count())
        .collect();
    assert_eq!(counts, [1, 2]);
    assert_eq!(scene.hear().await, Heard::default());
}

#[tokio::test]
async fn a_complaint_suppresses_and_a_soft_bounce_is_only_noted() {
    let scene = scene().await;
    let tenant = scene.world.tenant("a").await;
    let prompt_id = scene.mailed(&tenant, &["ada@example.com"]).await;
    let soft = scene
        .event(
            &tenant,
            prompt_id,
            bounce("Transient", &["ada@example.com"]),
        )
        .await;
    scene.put(&soft.to_string()).await;
    assert_eq!(
        scene.hear().await,
        Heard {
            suppressed: 0,
            deleted: 1
        }
    );
    assert_eq!(scene.listed(&tenant).await, []);
    assert_eq!(scene.log(prompt_id).await.len(), 1);

    let complaint = json!({"eventType": "Complaint", "complaint": {"feedbackId": "feedback-2",
        "complainedRecipients": [{"emailAddress": "ada@example.com"}]}});
    let complaint = scene.event(&tenant, prompt_id, complaint).await;
    scene.put(&complaint.to_string()).await;
    assert_eq!(
        scene.hear().await,
        Heard {
            suppressed: 1,
            deleted: 1
        }
    );
    assert_eq!(
        scene.listed(&tenant).await,
        suppressed("ada@example.com", "complaint")
    );
    assert_eq!(scene.log(prompt_id).await.len(), 2);
}

#[tokio::test]
async fn a_forged_or_useless_event_does_nothing_and_is_gone() {
    let scene = scene().await;
    let (a, b) = (scene.world.tenant("a").await, scene.world.tenant("b").await);
    let of_a = scene.mailed(&a, &["ada@example.com"]).await;
    let of_b = scene.mailed(&b, &["ada@example.com"]).await;
    let whole = scene
        .event(&a, of_a, bounce("Permanent", &["ada@example.com"]))
        .await;
    let delivery_of_b = scene.world.delivery(of_b).await;
    let forged = |name: &str, value: Value| {
        let mut event = whole.clone();
        event["detail"]["mail"]["tags"][name] = json!([value]);
        event.to_string()
    };
    let other_address = scene
        .event(&a, of_a, bounce("Permanent", &["eve@example.com"]))
        .await;
    let events = [
        forged("tenant", json!(b.stage.id)),
        forged("tenant", json!(Uuid::now_v7())),
        forged("prompt", json!(of_b)),
        forged("run", delivery_of_b["run_id"].clone()),
        forged("delivery", delivery_of_b["id"].clone()),
        forged("delivery", json!("'; DROP TABLE deliveries")),
        other_address.to_string(),
        "{".to_owned(),
        json!({"v": 1}).to_string(),
    ];
    for event in &events {
        scene.put(event).await;
    }
    let heard = scene.hear().await;
    assert_eq!(
        heard,
        Heard {
            suppressed: 0,
            deleted: events.len()
        }
    );
    assert_eq!(
        (scene.listed(&a).await, scene.listed(&b).await),
        (vec![], vec![])
    );
    assert_eq!(
        (scene.log(of_a).await, scene.log(of_b).await),
        (vec![], vec![])
    );
    assert_eq!(scene.hear().await, Heard::default());
}

#[tokio::test]
async fn the_list_comes_in_pages_and_an_entry_goes_with_an_audit_event() {
    let scene = scene().await;
    let tenant = scene.world.tenant("a").await;
    let addresses: Vec<String> = (0..5).map(|n| format!("p{n}@example.com")).collect();
    let to: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let prompt_id = scene.mailed(&tenant, &to).await;
    let event = scene
        .event(&tenant, prompt_id, bounce("Permanent", &to))
        .await;
    scene.put(&event.to_string()).await;
    assert_eq!(scene.hear().await.suppressed, 5);
    let (mut seen, mut path) = (Vec::new(), "/v1/suppressed-addresses?limit=2".to_owned());
    loop {
        let (_, page) = scene.world.send(&tenant, "GET", &path).await;
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        seen.extend(
            items
                .iter()
                .map(|one| one["address"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("/v1/suppressed-addresses?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, addresses);

    let one = "/v1/suppressed-addresses/p3%40example.com";
    assert_eq!(scene.world.send(&tenant, "DELETE", one).await.0, 204);
    assert_eq!(scene.world.send(&tenant, "DELETE", one).await.0, 404);
    for nobody in ["nobody@example.com", "no-address", "%00"] {
        let path = format!("/v1/suppressed-addresses/{nobody}");
        assert_eq!(
            scene.world.send(&tenant, "DELETE", &path).await.0,
            404,
            "{nobody}"
        );
    }
    assert_eq!(scene.listed(&tenant).await.len(), 4);
    let path = "/v1/audit-events?action=suppressed_address.deleted";
    let (_, trail) = scene.world.send(&tenant, "GET", path).await;
    let events = trail["items"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{trail}");
    assert_eq!(events[0]["detail"], json!({"address": "p3@example.com"}));
}
