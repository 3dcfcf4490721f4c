//! What a process writes while everything goes well, and while everything fails: nothing that a tenant
//! wrote, no address, no key.
//!
//! Each thing that must stay inside has a canary of its own. The providers, the receivers and the
//! database repeat what they were sent in their refusals, which is how most of it would get out.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tests::{
    canary::{self, canary},
    connect, database, database_url,
    hostile::{ANSWER, Hostile},
    smtp_refusal,
};

use crate::{
    carillon::{Carillon, Home, eventually},
    tenant::{Tenant, text},
};

/// What the model, and the receivers, are told to answer.
const MODEL_ANSWERS: [&str; 8] = ["", "400", "401", "402", "429", "500", "garbage", "302"];
const HOOK_ANSWERS: [[&str; 3]; 2] = [["500", "410", "302"], ["400", "429", "garbage"]];

struct Words {
    prompt: String,
    system: String,
    variable: String,
    output: String,
    address: String,
    path: String,
    own_key: String,
    installations_key: String,
    repeat: String,
    query: String,
    field: String,
    claim: String,
}

impl Words {
    fn new() -> Self {
        Self {
            prompt: canary("prompt"),
            system: canary("system"),
            variable: canary("variable"),
            output: canary("output"),
            address: canary("address"),
            path: canary("path"),
            own_key: canary("own"),
            installations_key: canary("installation"),
            repeat: canary("repeat"),
            query: canary("query"),
            field: canary("field"),
            claim: canary("claim"),
        }
    }

    fn all(&self) -> Vec<String> {
        let all = [
            &self.prompt,
            &self.system,
            &self.variable,
            &self.output,
            &self.address,
            &self.path,
            &self.own_key,
            &self.installations_key,
            &self.repeat,
            &self.query,
            &self.field,
            &self.claim,
        ];
        all.map(Clone::clone).to_vec()
    }
}

/// A database that quotes whole rows in its refusals of rows that say so, as one with a trigger of
/// somebody's own may.
async fn talkative_database() -> String {
    let name = database("template_e2e", async |_| Ok(())).await.unwrap();
    database_url(&name)
}

async fn make_talkative(url: &str) {
    let sql = "
        CREATE FUNCTION public.quote_row() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused: %', to_jsonb(NEW)::text USING DETAIL = to_jsonb(NEW)::text; END $$;
        CREATE TRIGGER quote_run BEFORE UPDATE ON scheduled_prompt_runs FOR EACH ROW
          WHEN (NEW.output IS NOT NULL AND NEW.rendered_input LIKE '%refuse-the-record%')
          EXECUTE FUNCTION public.quote_row();
        CREATE TRIGGER quote_prompt BEFORE INSERT ON prompt_versions FOR EACH ROW
          WHEN (to_jsonb(NEW)::text LIKE '%refuse-the-prompt%') EXECUTE FUNCTION public.quote_row();
        CREATE TRIGGER quote_user BEFORE INSERT ON users FOR EACH ROW
          WHEN (to_jsonb(NEW)::text LIKE '%refuse-the-user%') EXECUTE FUNCTION public.quote_row();";
    connect(url)
        .await
        .unwrap()
        .batch_execute(sql)
        .await
        .unwrap();
}

async fn everything_happens(level: &str) {
    let words = Words::new();
    let server = Hostile::start(&format!("{} by the model", words.output)).await;
    let smtp = smtp_refusal::start().await;
    let url = talkative_database().await;
    let home = Home::new();
    let model_url = format!("{}/v1", server.url);
    let issuer = format!("{}/{ANSWER}500", server.url);
    let env = [
        ("RUST_LOG", level),
        ("OPENAI_BASE_URL", &model_url),
        ("OPENAI_API_KEY", &words.installations_key),
        ("CARILLON_SMTP_URL", &smtp),
        ("CARILLON_OIDC_ISSUER", &issuer),
        ("CARILLON_OIDC_AUDIENCE", "carillon"),
    ];
    let carillon = home
        .start_with(&["--database-url", &url, "--lease-ms", "3000"], &env)
        .await;
    make_talkative(&url).await;
    let tenant = Tenant::new(&carillon, "canary").await;
    let mut secrets = words.all();
    secrets.push(tenant.new_secret().await);
    let key = tenant
        .post("/v1/api-keys", json!({ "name": "k", "role": "editor" }))
        .await;
    secrets.push(text(&key["key"])[40..].to_owned());
    let replies = requests(&tenant, &words, &carillon).await;
    runs(&tenant, &words, &server, HOOK_ANSWERS[0]).await;
    // Another one brings a key of its own.
    let other = Tenant::new(&carillon, "other").await;
    let path = "/v1/provider-keys/openai";
    let body = json!({ "key": words.own_key });
    let reply = other.send("PUT", path, Some(&body)).await;
    assert!(reply.status < 300, "{}", reply.text);
    assert!(!reply.text.contains(&words.own_key), "{}", reply.text);
    runs(&other, &words, &server, HOOK_ANSWERS[1]).await;
    database_refuses(&tenant, &words, &carillon).await;

    let written = carillon.written();
    let leaks = canary::found(&secrets, &written);
    assert!(leaks.is_empty(), "at {level}: {leaks:#?}");
    // The log is not empty, and what was sent did arrive: the search can find something.
    for line in ["try failed", "delivery attempt failed", "wake-up failed"] {
        assert!(written.contains(line), "{line} at {level}:\n{written}");
    }
    let sent: String = server
        .calls()
        .iter()
        .map(|call| format!("{}{}\n", call.head, call.body))
        .collect();
    for word in [
        &words.prompt,
        &words.system,
        &words.variable,
        &words.output,
        &words.path,
        &words.own_key,
        &words.installations_key,
    ] {
        assert!(sent.contains(word.as_str()), "{word} was never sent");
    }
    // An answer repeats to its caller what is the caller's own, and never a key of the installation.
    let leaks = canary::found(std::slice::from_ref(&words.installations_key), &replies);
    assert!(leaks.is_empty(), "{leaks:#?}");
    carillon.stop().await;
}

/// Requests that are refused, in every part of them something that must not be logged.
async fn requests(tenant: &Tenant, words: &Words, carillon: &Carillon) -> String {
    let mut replies = String::new();
    let body = json!({ &words.field: words.prompt, "prompt_text": words.prompt, "model": words.prompt,
        "notification_email": format!("{}@", words.address), "schedule": {"type": words.prompt},
        "destinations": [{"kind": "webhook", "url": format!("https://{}@x.example/{}", words.own_key, words.path)}] });
    for (method, path, body) in [
        ("POST", "/v1/prompts".to_owned(), Some(&body)),
        ("GET", format!("/v1/prompts?{}=1", words.query), None),
        ("GET", format!("/v1/runs?status={}", words.query), None),
        ("GET", format!("/v1/calendars/{}", words.path), None),
        ("GET", format!("/{}", words.path), None),
        ("PUT", format!("/v1/calendars/{}", words.path), Some(&body)),
        (
            "DELETE",
            format!("/v1/suppressed-addresses/{}@reader.example", words.address),
            None,
        ),
    ] {
        let reply = tenant.send(method, &path, body).await;
        assert!((400..500).contains(&reply.status), "{path}: {}", reply.text);
        replies.push_str(&reply.text);
    }
    let claims = json!({ "iss": words.claim, "sub": words.claim, "aud": "carillon", "exp": 4_000_000_000_u64 });
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let head = json!({ "alg": "RS256", "kid": words.claim, "typ": "JWT" });
    let token = format!(
        "{}.{}.{}",
        part(&head),
        part(&claims),
        BASE64_URL_SAFE_NO_PAD.encode(&words.claim)
    );
    for credential in [
        &token,
        &words.own_key,
        &format!("ck_local_{}", words.own_key),
    ] {
        let reply = Tenant::with_key(carillon, credential)
            .send("GET", "/v1/tenant", None)
            .await;
        assert!([401, 503].contains(&reply.status), "{}", reply.text);
        replies.push_str(&reply.text);
    }
    let user = json!({ "email": format!("{}@reader.example", words.address), "role": "viewer" });
    tenant.post("/v1/users", user).await;
    tenant
        .post_repeatable(
            "/v1/api-keys",
            json!({ "name": "r", "role": "viewer" }),
            &words.repeat,
        )
        .await;
    replies
}

/// Runs that succeed and that fail, with outputs that these receivers do not take.
async fn runs(tenant: &Tenant, words: &Words, server: &Hostile, hooks: [&str; 3]) {
    let hook = |answer: &str| {
        let url = format!("{}/{}/{ANSWER}{answer}", server.url, words.path);
        json!({ "kind": "webhook", "url": url })
    };
    let mail = json!({ "kind": "email", "to": [format!("{}@reader.example", words.address)],
        "subject": format!("{} {{{{ context.variable }}}}", words.prompt) });
    let mut destinations = vec![mail, json!({ "kind": "storage" })];
    destinations.extend(hooks.map(hook));
    for answer in MODEL_ANSWERS {
        let asked = if answer.is_empty() {
            String::new()
        } else {
            format!("{ANSWER}{answer}")
        };
        let prompt = tenant
            .prompt(json!({
                "model": "openai/gpt-5-mini", "max_retries": 0, "timeout_ms": 20_000,
                "prompt_text": format!("{} {{{{ context.variable }}}} {asked}", words.prompt),
                "system_text": words.system, "context": { "variable": words.variable },
                "metadata": { "canary": words.variable }, "destinations": destinations,
                "notification_email": format!("{}@reader.example", words.address),
            }))
            .await;
        let run = tenant.start(&prompt).await;
        let run = tenant.ended_or_answered(&run).await;
        assert_eq!(
            run["output"].is_null(),
            !answer.is_empty(),
            "{answer}: {run}"
        );
    }
}

/// The database refuses what it is told, and quotes it.
async fn database_refuses(tenant: &Tenant, words: &Words, carillon: &Carillon) {
    let told = |reply: &str| {
        assert!(
            !reply.contains("refused:") && !reply.contains("SQLSTATE"),
            "{reply}"
        );
    };
    let body = json!({ "prompt_name": "refuse-the-prompt", "prompt_text": words.prompt,
        "model": "echo/echo-1", "schedule": { "type": "manual" }, "destinations": [] });
    let reply = tenant.send("POST", "/v1/prompts", Some(&body)).await;
    assert_eq!(
        (reply.status, text(&reply.body["code"])),
        (500, "internal"),
        "{}",
        reply.text
    );
    told(&reply.text);
    let body = json!({ "email": format!("refuse-the-user-{}@reader.example", words.address), "role": "viewer" });
    let reply = tenant.send("POST", "/v1/users", Some(&body)).await;
    assert_eq!(
        (reply.status, text(&reply.body["code"])),
        (500, "internal"),
        "{}",
        reply.text
    );
    told(&reply.text);
    let prompt = tenant
        .prompt(json!({ "prompt_text": format!("refuse-the-record {}", words.prompt), "model": "openai/gpt-5-mini" }))
        .await;
    tenant.start(&prompt).await;
    eventually("a refused record in the log", async || {
        carillon.written().contains("wake-up failed").then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_log_line_holds_what_a_tenant_wrote_at_the_usual_level() {
    everything_happens("warn").await;
}

#[tokio::test]
async fn no_log_line_holds_what_a_tenant_wrote_at_the_finest_level() {
    everything_happens("trace").await;
}
