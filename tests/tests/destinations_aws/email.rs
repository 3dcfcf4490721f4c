//! Email through SES.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use executor::{
    deliver::{Mailer, Sender, Ses, Storage},
    http::Guarded,
};
use serde_json::{Value, json};
use shared::outbound::Policy;
use tests::peers::{ministack_url, moto_url};
use uuid::Uuid;

use crate::{
    server::{Server, Turn, mail_refusal},
    world::{FROM, Tenant, World, mail_to},
};

async fn scene() -> (Server, World, Tenant) {
    let server = Server::start().await;
    let world = World::at(&server.url()).await;
    let tenant = world.tenant("a").await;
    (server, world, tenant)
}

fn somebody() -> String {
    format!("x{}@example.com", Uuid::now_v7().simple())
}

async fn said_by(url: String) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.get(url).send().await.unwrap().json().await.unwrap()
}

async fn suppress(world: &World, tenant: &Tenant, address: &str) {
    let sql = "INSERT INTO suppressed_addresses
                      (tenant_id, address, id, reason, delivery_id, message_id)
               VALUES ($1, $2, $3, 'complaint', $3, 'm')";
    let (tenant, id) = (tenant.stage.id.uuid(), Uuid::now_v7());
    let done = world
        .stage
        .admin
        .execute(sql, &[&tenant, &address, &id])
        .await;
    assert_eq!(done.unwrap(), 1);
}

fn state(delivery: &Value) -> (&str, Option<&str>, i64) {
    (
        delivery["status"].as_str().unwrap(),
        delivery["error_code"].as_str(),
        delivery["attempt"].as_i64().unwrap(),
    )
}

#[tokio::test]
async fn ministack_takes_an_email() {
    let world = World::in_emulator(&ministack_url()).await;
    let tenant = world.tenant("a").await;
    let to = somebody();
    let prompt_id = world.fire(&tenant, "say", mail_to(&[&to], "resend")).await;
    let delivery = world.delivery(prompt_id).await;
    assert_eq!(state(&delivery), ("delivered", None, 1));
    assert_eq!(world.run(prompt_id).await["status"], "succeeded");
    let journal = said_by(format!("{}/_ministack/ses/messages", ministack_url())).await;
    let all = journal["messages"].as_object().unwrap().values();
    let all = all.flat_map(|of_account| of_account.as_array().unwrap());
    let ours: Vec<_> = all
        .filter(|one| one["To"].to_string().contains(&to))
        .collect();
    assert_eq!(ours.len(), 1, "{journal}");
    assert_eq!(ours[0]["Source"], FROM);
    assert_eq!(ours[0]["MessageId"], delivery["response_excerpt"]);
    assert!(
        ours[0]["BodyText"].to_string().contains("A short answer."),
        "{}",
        ours[0]
    );
}

#[tokio::test]
async fn moto_takes_the_very_bytes_of_the_row() {
    let world = World::in_emulator(&moto_url()).await;
    let tenant = world.tenant("a").await;
    let to = somebody();
    let prompt_id = world.fire(&tenant, "say", mail_to(&[&to], "resend")).await;
    assert_eq!(
        state(&world.delivery(prompt_id).await),
        ("delivered", None, 1)
    );
    let row = world
        .stage
        .admin
        .query_one("SELECT body FROM deliveries", &[])
        .await
        .unwrap();
    let body = String::from_utf8(row.get(0)).unwrap();
    let journal = said_by(format!("{}/moto-api/data.json", moto_url())).await;
    let sent = journal["ses"]["RawMessage"].as_array().unwrap();
    let ours: Vec<_> = sent
        .iter()
        .filter(|one| one["raw_data"].to_string().contains(&to))
        .collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(
        (&ours[0]["raw_data"], &ours[0]["source"]),
        (&json!(body), &json!(FROM))
    );
}

#[tokio::test]
async fn a_sender_that_ses_does_not_know_is_the_operators_affair() {
    let mut world = World::at(&ministack_url()).await;
    let tenant = world.tenant("a").await;
    let stranger = "stranger@unverified.example".parse().unwrap();
    world.executor.sender = Sender::new(
        Mailer::Ses(Ses::new(&world.aws, &stranger, "mail".to_owned())),
        Storage::Directory {
            root: "/nowhere".into(),
        },
        Guarded::new(Policy::PUBLIC).unwrap(),
    );
    let prompt_id = world
        .fire(&tenant, "say", mail_to(&[&somebody()], "resend"))
        .await;
    let delivery = world.delivery(prompt_id).await;
    assert_eq!(state(&delivery), ("retrying", Some("mail_not_set_up"), 1));
    assert!(!delivery.to_string().contains("stranger"), "{delivery}");
}

#[tokio::test]
async fn ses_is_told_whose_email_it_is_and_whom_it_goes_to() {
    let (server, world, tenant) = scene().await;
    suppress(&world, &tenant, "ada@example.com").await;
    let to = ["Ada@Example.com", "bob@example.com"];
    let prompt_id = world.fire(&tenant, "say", mail_to(&to, "resend")).await;
    let delivery = world.delivery(prompt_id).await;
    assert_eq!(state(&delivery), ("delivered", None, 1));
    assert_eq!(delivery["response_excerpt"], "message-1");
    assert_eq!(delivery["suppressed"], json!(["ada@example.com"]));

    let [call] = server.calls("POST").try_into().unwrap();
    let said: Vec<(String, String)> = reqwest::Url::parse(&format!("http://x/?{}", call.body))
        .unwrap()
        .query_pairs()
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let value = |name: &str| {
        let mut found = said.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    };
    assert_eq!(value("Action"), Some("SendRawEmail"));
    assert_eq!(value("Source"), Some(FROM));
    assert_eq!(value("ConfigurationSetName"), Some("mail"));
    assert_eq!(value("Destinations.member.1"), Some("bob@example.com"));
    assert_eq!(value("Destinations.member.2"), None);
    let run = world.run(prompt_id).await;
    for (place, name, expected) in [
        (1, "tenant", tenant.stage.id.to_string()),
        (2, "prompt", prompt_id.to_string()),
        (3, "run", run["id"].as_str().unwrap().to_owned()),
        (4, "delivery", delivery["id"].as_str().unwrap().to_owned()),
    ] {
        assert_eq!(value(&format!("Tags.member.{place}.Name")), Some(name));
        let tag = value(&format!("Tags.member.{place}.Value"));
        assert_eq!(tag, Some(expected.as_str()));
        assert!(
            expected
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        );
    }

    let path = format!("/v1/runs/{}/deliveries", run["id"].as_str().unwrap());
    let (_, page) = world.send(&tenant, "GET", &path).await;
    assert_eq!(page["items"][0]["suppressed"], json!(["ada@example.com"]));
}

#[tokio::test]
async fn nobody_is_called_where_everybody_is_suppressed() {
    let (server, world, tenant) = scene().await;
    suppress(&world, &tenant, "ada@example.com").await;
    let other = world.tenant("b").await;
    let mail = mail_to(&["ada@example.com"], "resend");
    let suppressed = world.fire(&tenant, "say", mail.clone()).await;
    let delivery = world.delivery(suppressed).await;
    assert_eq!(state(&delivery), ("exhausted", Some("suppressed"), 1));
    assert_eq!(server.calls("POST").len(), 0);
    let run = world.run(suppressed).await;
    assert_eq!(
        (&run["status"], &run["reason"]),
        (&json!("failed"), &json!("delivery_failed"))
    );

    // Another tenant may mail the same person.
    let prompt_id = world.fire(&other, "say", mail).await;
    assert_eq!(
        state(&world.delivery(prompt_id).await),
        ("delivered", None, 1)
    );

    // Off the list, the same delivery goes out.
    let (status, _) = world
        .send(
            &tenant,
            "DELETE",
            "/v1/suppressed-addresses/ADA%40example.com",
        )
        .await;
    assert_eq!(status, 204);
    assert_eq!(server.calls("POST").len(), 1);
    world.redeliver(tenant.stage.id, &delivery).await;
    let after = world.delivery(suppressed).await;
    assert_eq!(state(&after), ("delivered", None, 2));
    assert_eq!(after["suppressed"], json!([]));
    assert_eq!(server.calls("POST").len(), 1);
}

#[tokio::test]
async fn a_retry_leaves_out_who_was_suppressed_meanwhile() {
    let (server, world, tenant) = scene().await;
    server.next(
        "POST",
        mail_refusal(400, "Throttling", "Maximum sending rate exceeded."),
    );
    let to = ["ada@example.com", "bob@example.com"];
    let prompt_id = world.fire(&tenant, "say", mail_to(&to, "hold")).await;
    let delivery = world.delivery(prompt_id).await;
    // SES took nothing, so there is nothing to hold.
    assert_eq!(state(&delivery), ("retrying", Some("mail_throttled"), 1));
    assert_eq!(delivery["suppressed"], json!([]));
    suppress(&world, &tenant, "bob@example.com").await;
    world.again(tenant.stage.id, &delivery).await;
    let after = world.delivery(prompt_id).await;
    assert_eq!(state(&after), ("delivered", None, 2));
    assert_eq!(after["suppressed"], json!(["bob@example.com"]));
    let calls = server.calls("POST");
    assert_eq!(calls.len(), 2);
    assert!(calls[0].body.contains("Destinations.member.2"));
    assert!(!calls[1].body.contains("Destinations.member.2"));
}

#[tokio::test]
async fn where_nobody_knows_whether_it_went_out_the_destination_decides() {
    for lost in [Turn::LoseReply, mail_refusal(500, "InternalFailure", "")] {
        let (server, world, tenant) = scene().await;
        let id = tenant.stage.id;
        server.next("POST", lost.clone());
        let resent = world
            .fire(&tenant, "say", mail_to(&["ada@example.com"], "resend"))
            .await;
        let delivery = world.delivery(resent).await;
        assert_eq!(
            state(&delivery),
            ("retrying", Some("mail_outcome_unknown"), 1)
        );
        // No client repeats what may have gone out.
        assert_eq!(server.calls("POST").len(), 1, "{lost:?}");
        world.again(id, &delivery).await;
        assert_eq!(state(&world.delivery(resent).await), ("delivered", None, 2));
        assert_eq!(server.calls("POST").len(), 1);

        server.next("POST", lost.clone());
        let held = world
            .fire(&tenant, "say", mail_to(&["ada@example.com"], "hold"))
            .await;
        let delivery = world.delivery(held).await;
        assert_eq!(state(&delivery), ("held", Some("mail_outcome_unknown"), 1));
        world.again(id, &delivery).await;
        assert_eq!(
            state(&world.delivery(held).await),
            ("held", Some("mail_outcome_unknown"), 1)
        );
        assert_eq!(server.calls("POST").len(), 1, "a held email stays");
        world.redeliver(id, &delivery).await;
        assert_eq!(state(&world.delivery(held).await), ("delivered", None, 2));
    }
}

#[tokio::test]
async fn what_was_certainly_not_sent_is_tried_again_even_where_a_person_would_decide() {
    let (server, world, tenant) = scene().await;
    drop(server);
    let prompt_id = world
        .fire(&tenant, "say", mail_to(&["ada@example.com"], "hold"))
        .await;
    let delivery = world.delivery(prompt_id).await;
    assert_eq!(state(&delivery), ("retrying", Some("mail_unreachable"), 1));
}

#[tokio::test]
async fn a_refusal_ends_it_and_a_wrong_set_up_waits_for_the_operator() {
    let (server, world, tenant) = scene().await;
    for (status, code, outcome, error, wait_s_min) in [
        (400, "MessageRejected", "exhausted", "mail_refused", -1.0),
        (
            400,
            "InvalidParameterValue",
            "exhausted",
            "mail_refused",
            -1.0,
        ),
        (
            400,
            "ConfigurationSetDoesNotExist",
            "retrying",
            "mail_not_set_up",
            600.0,
        ),
        (
            400,
            "MailFromDomainNotVerifiedException",
            "retrying",
            "mail_not_set_up",
            600.0,
        ),
        (
            400,
            "AccountSendingPausedException",
            "retrying",
            "mail_not_set_up",
            600.0,
        ),
        (403, "AccessDenied", "retrying", "mail_not_set_up", 600.0),
    ] {
        server.next("POST", mail_refusal(status, code, "the words of AWS"));
        let prompt_id = world
            .fire(&tenant, "say", mail_to(&["ada@example.com"], "hold"))
            .await;
        let delivery = world.delivery(prompt_id).await;
        assert_eq!(state(&delivery), (outcome, Some(error), 1), "{code}");
        assert!(
            delivery["wait_s"].as_f64().unwrap() > wait_s_min,
            "{code}: {delivery}"
        );
        let tells = delivery["response_excerpt"]
            .to_string()
            .contains("the words of AWS");
        assert_eq!(tells, error == "mail_refused", "{code}");
        assert_eq!(server.calls("POST").len(), 1, "{code}");
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_address_stands_in_a_log_line() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    // For all threads: a call site that another test meets first would stay silent here.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let (server, world, tenant) = scene().await;
    let unverified = "Email address is not verified: canary@example.com";
    server.next("POST", mail_refusal(400, "MessageRejected", unverified));
    server.next(
        "POST",
        mail_refusal(400, "MessageRejected", "canary@example.com is no good"),
    );
    server.next(
        "POST",
        mail_refusal(400, "Throttling", "canary@example.com"),
    );
    server.next("POST", Turn::LoseReply);
    for _ in 0..5 {
        world
            .fire(&tenant, "say", mail_to(&["canary@example.com"], "hold"))
            .await;
    }
    suppress(&world, &tenant, "canary@example.com").await;
    world
        .fire(&tenant, "say", mail_to(&["canary@example.com"], "hold"))
        .await;
    let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(
        said.contains("the mail service did not take an email"),
        "{said}"
    );
    assert!(said.contains("delivered"), "{said}");
    assert!(!said.contains("canary"), "{said}");
}

/// The message in a call of `SendRawEmail`.
fn raw_message(form: &str) -> String {
    let data = form
        .split('&')
        .find_map(|pair| pair.strip_prefix("RawMessage.Data="))
        .unwrap();
    let data = data
        .replace("%2B", "+")
        .replace("%2F", "/")
        .replace("%3D", "=");
    String::from_utf8(BASE64_STANDARD.decode(data).unwrap()).unwrap()
}

#[tokio::test]
async fn no_text_becomes_a_header_of_what_ses_gets() {
    let (server, world, tenant) = scene().await;
    let breaks = [
        "x\r\nBcc: evil@example.net",
        "x\nX-SES-MESSAGE-TAGS: tenant=another",
        "x\rX-SES-CONFIGURATION-SET: another",
        "x\r\n\r\n<script>alert(1)</script>",
        "x\u{85}Bcc: evil@example.net",
        "x\u{2028}Bcc: evil@example.net",
        "x\u{b}Bcc: evil@example.net",
        "=?utf-8?q?x=0D=0ABcc:_evil@example.net?=",
        "=?utf-8?b?eA0KQmNjOiBldmlsQGV4YW1wbGUubmV0?=",
        "x%0d%0aBcc: evil@example.net",
    ];
    for hostile in breaks {
        let plain = !hostile.contains(char::is_control);
        let changes = json!({
            "prompt_name": if plain { hostile } else { "a name" },
            "context": { "hostile": hostile },
            "destinations": [{"kind": "email", "to": ["ada@example.com"], "subject": "{{ context.hostile }}"}],
        });
        let prompt_id = world.fire_with(&tenant, changes).await;
        assert_eq!(
            world.delivery(prompt_id).await["status"],
            "delivered",
            "{hostile:?}"
        );
        let calls = server.calls("POST");
        assert_eq!(calls.len(), 1);
        let message = raw_message(&calls[0].body);
        let (head, _) = message.split_once("\r\n\r\n").unwrap();
        // A line that goes on begins with a space.
        let mut names: Vec<_> = head
            .split("\r\n")
            .filter(|line| !line.starts_with([' ', '\t']))
            .map(|line| line.split(':').next().unwrap().to_ascii_lowercase())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "auto-submitted",
                "content-type",
                "date",
                "from",
                "message-id",
                "mime-version",
                "subject",
                "to"
            ],
            "{head}"
        );
        assert!(
            head.split("\r\n").any(|line| line == "To: ada@example.com"),
            "{head}"
        );
        assert!(!head.replace("\r\n", "").contains(['\r', '\n']), "{head:?}");
        assert!(
            calls[0]
                .body
                .contains("Destinations.member.1=ada%40example.com&")
                && !calls[0].body.contains("Destinations.member.2="),
            "{}",
            calls[0].body
        );
    }
}
