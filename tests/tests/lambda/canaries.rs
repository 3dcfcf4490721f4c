//! What the functions write to their logs while all goes well, and while all that they call refuses and
//! repeats what it was sent: nothing that a tenant wrote, no address, no key.

use std::path::Path;

use chrono::{DurationRound, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::{
    db::Db,
    ids::{TenantId, UserId},
    message::WakeUp,
};
use tests::{
    canary::{self, canary},
    connect, database_url,
    hostile::{ANSWER, Hostile},
    peers::ministack_url,
    rehearsal::{self, KEY, TENANT},
    runtime_api::Function,
    stage::{Tenant, config, prompt},
};
use uuid::Uuid;

use crate::world::wake;

/// What a user may set: nothing, and the most of everything.
const LEVELS: [Option<&str>; 2] = [None, Some("trace")];

/// Of the words of one test.
const PROMPT: usize = 0;
const OUTPUT: usize = 1;
const ADDRESS: usize = 2;
const PATH: usize = 3;
const INSTALLATIONS_KEY: usize = 4;

fn words() -> Vec<String> {
    let names = ["prompt", "output", "address", "path", "installation"];
    let mut words: Vec<_> = names.map(canary).to_vec();
    // The secret part of the key that the events are sent with.
    words.push(KEY[KEY.len() - 64..].to_owned());
    words
}

/// Where emails and outputs go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outlets {
    Folder,
    Aws,
}

/// A rehearsal's environment in which nothing of AWS works.
fn environment(
    database: &str,
    aws_url: &str,
    outlets: Outlets,
    home: &Path,
    level: Option<&str>,
) -> Vec<(&'static str, String)> {
    let url = |name: &str| format!("{aws_url}/123456789012/{name}");
    let queues = rehearsal::Queues {
        wake_ups: url("wake-ups"),
        dead_letters: url("dead-letters"),
        undelivered: url("undelivered"),
        group: "prompts".to_owned(),
    };
    let mut all = rehearsal::environment(database, aws_url, &queues, home);
    if outlets == Outlets::Aws {
        all.retain(|(name, _)| !["CARILLON_HOME", "CARILLON_SEALING_KEY"].contains(name));
        all.extend([
            ("CARILLON_BUCKET", "outputs".to_owned()),
            ("CARILLON_KMS_KEY_ID", "alias/outputs".to_owned()),
            ("CARILLON_SES_CONFIGURATION_SET", "mail".to_owned()),
        ]);
    }
    all.extend(level.map(|level| ("RUST_LOG", level.to_owned())));
    all
}

/// Refuses rows that say so, and quotes them.
async fn make_talkative(database: &str) {
    let sql = "
        CREATE FUNCTION public.quote_row() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused: %', to_jsonb(NEW)::text USING DETAIL = to_jsonb(NEW)::text; END $$;
        CREATE TRIGGER quote_run BEFORE UPDATE ON scheduled_prompt_runs FOR EACH ROW
          WHEN (NEW.output IS NOT NULL AND NEW.rendered_input LIKE '%refuse-the-record%')
          EXECUTE FUNCTION public.quote_row();
        CREATE TRIGGER quote_prompt BEFORE INSERT ON prompt_versions FOR EACH ROW
          WHEN (to_jsonb(NEW)::text LIKE '%refuse-the-prompt%') EXECUTE FUNCTION public.quote_row();";
    let admin = connect(&database_url(database)).await.unwrap();
    admin.batch_execute(sql).await.unwrap();
}

#[track_caller]
fn assert_discreet(words: &[String], written: &str, level: Option<&str>) {
    let leaks = canary::found(words, written);
    assert!(leaks.is_empty(), "at {level:?}: {leaks:#?}");
}

#[tokio::test]
async fn the_executor_writes_nothing_of_a_tenants() {
    for level in LEVELS {
        let said = executor_at(level, Outlets::Folder).await;
        for line in [
            "model answered",
            "try failed",
            "delivery attempt failed",
            "wake-up failed",
        ] {
            assert!(said.contains(line), "{line} at {level:?}:\n{said}");
        }
        let said = executor_at(level, Outlets::Aws).await;
        for line in [
            "webhook secret cannot be opened",
            "the mail service did not take an email",
            "the object store did not do as it was asked",
        ] {
            assert!(said.contains(line), "{line} at {level:?}:\n{said}");
        }
    }
}

/// What it wrote.
async fn executor_at(level: Option<&str>, outlets: Outlets) -> String {
    let words = words();
    let home = tempfile::tempdir().unwrap();
    let database = rehearsal::database().await.unwrap();
    make_talkative(&database).await;
    let aws = Hostile::start_refusing().await;
    let server = Hostile::start(&words[OUTPUT]).await;
    let mut environment = environment(&database, &aws.url, outlets, home.path(), level);
    environment.push(("OPENAI_BASE_URL", format!("{}/v1", server.url)));
    environment.push(("OPENAI_API_KEY", words[INSTALLATIONS_KEY].clone()));
    let event = wake_ups(&database, &words, &server).await;
    let mut executor = Function::start("executor", &environment).await;
    let answered = executor.invoke_with(event).await;
    assert!(answered.ok, "{answered:?}");
    let written = executor.written();
    assert_discreet(&words, &written, level);
    // What was looked for was there to be found.
    let calls = [server.calls(), aws.calls()].concat();
    let sent: Vec<_> = calls
        .iter()
        .map(|call| format!("{}{}\n", call.head, call.body))
        .collect();
    let found: Vec<_> = canary::found(&words, &sent.concat())
        .into_iter()
        .map(|(word, _)| word)
        .collect();
    let at = if outlets == Outlets::Aws {
        ADDRESS
    } else {
        PATH
    };
    for expected in [PROMPT, OUTPUT, at, INSTALLATIONS_KEY] {
        assert!(
            found.contains(&words[expected].as_str()),
            "{expected}: {found:?}"
        );
    }
    written
}

/// An event with a wake-up for a prompt of each way to fail.
async fn wake_ups(database: &str, words: &[String], server: &Hostile) -> Vec<u8> {
    let admin = connect(&database_url(database)).await.unwrap();
    let user: Uuid = admin
        .query_one("SELECT id FROM users LIMIT 1", &[])
        .await
        .unwrap()
        .get(0);
    let tenant = Tenant {
        id: TenantId::from(TENANT),
        user: UserId::from(user),
    };
    let db = Db::connect(&config(database, 2)).await.unwrap();
    let slot = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
    let hook = |answer: &str| json!({"kind": "webhook", "url": format!("{}/{}/{ANSWER}{answer}", server.url, words[PATH])});
    let mail = json!({"kind": "email", "to": [format!("{}@example.com", words[ADDRESS])], "subject": words[PROMPT]});
    let mut records = Vec::new();
    for more in [
        "",
        "answer-as-400",
        "answer-as-401",
        "answer-as-500",
        "answer-as-garbage",
        "refuse-the-record",
    ] {
        let changes = json!({
            "model": "openai/gpt-4o-mini", "max_retries": 0, "timeout_ms": 20_000,
            "prompt_text": format!("{} {more}", words[PROMPT]), "system_text": words[PROMPT],
            "notification_email": format!("{}@example.com", words[ADDRESS]),
            "destinations": [mail, hook("500"), hook("410"), hook("302"), {"kind": "storage"}],
        });
        let prompt_id = prompt(&db, tenant, &changes, Some(slot)).await.unwrap();
        let wake_up = WakeUp::Prompt {
            tenant_id: tenant.id,
            prompt_id,
        };
        records.push(serde_json::to_value(wake(&format!("m{}", records.len()), wake_up)).unwrap());
    }
    json!({ "Records": records }).to_string().into_bytes()
}

#[tokio::test]
async fn management_writes_nothing_of_a_tenants() {
    for level in LEVELS {
        let words = words();
        let database = rehearsal::database().await.unwrap();
        make_talkative(&database).await;
        let aws = Hostile::start_refusing().await;
        let home = tempfile::tempdir().unwrap();
        let environment = environment(&database, &aws.url, Outlets::Folder, home.path(), level);
        let mut management = Function::start("management", &environment).await;
        let whole = json!({"prompt_name": "a name", "prompt_text": words[PROMPT], "model": "echo/echo",
            "schedule": {"type": "cron", "expression": "0 9 * * 1-5"}, "metadata": {"canary": words[OUTPUT]},
            "destinations": [{"kind": "email", "to": [format!("{}@example.com", words[ADDRESS])]}]});
        let mut refused = whole.clone();
        refused["prompt_name"] = json!("refuse-the-prompt");
        let wrong = json!({ &words[OUTPUT]: words[PROMPT], "prompt_text": {"a": words[PROMPT]} });
        let requests = [
            (
                "POST",
                "/v1/prompts".to_owned(),
                String::new(),
                whole.to_string(),
                201,
            ),
            (
                "POST",
                "/v1/prompts".to_owned(),
                String::new(),
                refused.to_string(),
                500,
            ),
            (
                "POST",
                "/v1/prompts".to_owned(),
                String::new(),
                wrong.to_string(),
                422,
            ),
            (
                "POST",
                "/v1/prompts".to_owned(),
                String::new(),
                words[PROMPT].clone(),
                400,
            ),
            (
                "GET",
                format!("/v1/runs/{}", words[PATH]),
                format!("a={}", words[OUTPUT]),
                String::new(),
                404,
            ),
            (
                "GET",
                "/v1/runs".to_owned(),
                format!("{}=1", words[OUTPUT]),
                String::new(),
                422,
            ),
            (
                "DELETE",
                format!("/v1/suppressed-addresses/{}%40example.com", words[ADDRESS]),
                String::new(),
                String::new(),
                404,
            ),
            (
                "GET",
                format!("/{}", words[PATH]),
                String::new(),
                String::new(),
                404,
            ),
        ];
        for (method, path, query, body, status) in requests {
            let answered = management
                .invoke_with(request(method, &path, &query, &body))
                .await;
            assert!(answered.ok, "{answered:?}");
            assert_eq!(
                answered.body["statusCode"], status,
                "{method} {path}: {}",
                answered.body
            );
            if status == 500 {
                let leaks = canary::found(&words, &answered.body.to_string());
                assert!(leaks.is_empty(), "{leaks:?}");
            }
        }
        let written = management.written();
        assert_discreet(&words, &written, level);
        assert!(
            written.contains("request answered") && written.contains("request failed"),
            "{written}"
        );
        assert!(!aws.calls().is_empty());
    }
}

fn request(method: &str, path: &str, query: &str, body: &str) -> Vec<u8> {
    let folder = env!("CARGO_MANIFEST_DIR");
    let text = std::fs::read_to_string(format!("{folder}/events/create.json")).unwrap();
    let mut event: Value = serde_json::from_str(&text).unwrap();
    event["rawPath"] = json!(path);
    event["rawQueryString"] = json!(query);
    event["requestContext"]["http"]["method"] = json!(method);
    event["requestContext"]["http"]["path"] = json!(path);
    event["body"] = json!(body);
    event.to_string().into_bytes()
}

#[tokio::test]
async fn the_sweeper_writes_nothing_of_what_it_reads() {
    for level in LEVELS {
        let words = words();
        let aws = rehearsal::aws(&ministack_url());
        let name = || format!("test-{}", Uuid::now_v7().simple());
        let queues = rehearsal::queues(&aws, &name()).await.unwrap();
        let mail_events = rehearsal::queues(&aws, &name()).await.unwrap().dead_letters;
        let database = rehearsal::database().await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let mut environment =
            rehearsal::environment(&database, &ministack_url(), &queues, home.path());
        environment.push(("CARILLON_MAIL_EVENTS_QUEUE_URL", mail_events.clone()));
        environment.extend(level.map(|level| ("RUST_LOG", level.to_owned())));
        let client = aws_sdk_sqs::Client::new(&aws);
        let put = async |queue: &str, body: String| {
            client
                .send_message()
                .queue_url(queue)
                .message_body(body)
                .send()
                .await
                .unwrap();
        };
        for queue in [&queues.dead_letters, &queues.undelivered, &mail_events] {
            put(queue, words[PROMPT].clone()).await;
            put(
                queue,
                json!({ "v": words[PROMPT], "prompt": words[OUTPUT] }).to_string(),
            )
            .await;
        }
        put(&mail_events, report(&words, "m")).await;
        // What the database would refuse must not come back with each sweep.
        put(&mail_events, report(&words, "m\0")).await;
        let mut sweeper = Function::start("sweeper", &environment).await;
        let answered = sweeper.invoke("sweep").await;
        assert!(answered.ok, "{answered:?}");
        let written = sweeper.written();
        assert_discreet(&words, &written, level);
        for line in [
            "dead letter that nobody can read",
            "mail event that nobody can use",
            "did not send",
        ] {
            assert!(written.contains(line), "{line} at {level:?}:\n{written}");
        }
    }
}

/// Of an email that nobody sent.
fn report(words: &[String], message_id: &str) -> String {
    let id = || [Uuid::now_v7().to_string()];
    json!({"source": "aws.ses", "detail": {
        "eventType": "Bounce",
        "mail": {"messageId": message_id, "subject": words[PROMPT],
            "tags": {"tenant": [TENANT.to_string()], "prompt": id(), "run": id(), "delivery": id()}},
        "bounce": {"bounceType": "Permanent", "bounceSubType": words[OUTPUT], "feedbackId": words[OUTPUT],
            "bouncedRecipients": [{"emailAddress": format!("{}@example.com", words[ADDRESS]),
                "diagnosticCode": words[PROMPT]}]},
    }})
    .to_string()
}
