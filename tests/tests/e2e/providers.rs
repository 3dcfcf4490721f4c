//! Every model provider and every destination, in each other's company.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tests::peers;

use crate::{
    carillon::{Carillon, Home, eventually, shared},
    tenant::{Tenant, each, email, text, unique},
};

/// Each with the path that its provider is called at.
const MODELS: [(&str, &str); 3] = [
    ("openai/gpt-5-mini", "/v1/chat/completions"),
    ("anthropic/claude-haiku-4-5", "/v1/messages"),
    (
        "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0",
        "/model/anthropic.claude-haiku-4-5-20251001-v1%3A0/converse",
    ),
];

/// What the emulator answers, and the tokens that it says it used.
const OUTPUT: &str = "# Harbour report\n\nA calm sea and a **light wind** from the west.";
const INPUT_TOKENS: u32 = 1200;
const OUTPUT_TOKENS: u32 = 340;

#[tokio::test]
async fn each_provider_answers_and_each_destination_gets_it() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "providers").await;
    tenant.verify_with("", &tenant.new_secret().await).await;
    let (openai, anthropic, bedrock) = tokio::join!(
        one_run(&carillon, &tenant, MODELS[0]),
        one_run(&carillon, &tenant, MODELS[1]),
        one_run(&carillon, &tenant, MODELS[2])
    );
    let total = openai + anthropic + bedrock;
    let usage = &tenant.get("/v1/tenant").await["usage"];
    assert_eq!(usage["runs"], 3, "{usage}");
    assert_eq!(usage["input_tokens"], 3 * INPUT_TOKENS, "{usage}");
    assert_eq!(usage["output_tokens"], 3 * OUTPUT_TOKENS, "{usage}");
    assert_usd(&usage["cost_usd"], total);
}

/// Runs one prompt, looks at everything that came of it, and gives its cost.
async fn one_run(carillon: &Carillon, tenant: &Tenant, (model, called): (&str, &str)) -> f64 {
    let (provider, name) = model.split_once('/').unwrap();
    let hook = format!("/{provider}");
    let prompt_text = unique("Write the report. [fixture:answer]");
    let prompt = json!({ "model": model, "prompt_text": prompt_text,
        "destinations": [email(), tenant.webhook(&hook), { "kind": "storage" }] });
    let prompt = tenant.prompt(prompt).await;
    let run = tenant.run(&prompt).await;
    let cost = cost_by_the_list(provider, name, INPUT_TOKENS, OUTPUT_TOKENS);

    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["output"], OUTPUT);
    assert_eq!(run["rendered_input"], prompt_text);
    assert_eq!(run["provider"], provider);
    for counted in [&run, &run["attempts"][0]] {
        assert_eq!(counted["input_tokens"], INPUT_TOKENS, "{counted}");
        assert_eq!(counted["output_tokens"], OUTPUT_TOKENS, "{counted}");
        assert_usd(&counted["cost_usd"], cost);
    }
    assert_eq!(run["tokens_used"], INPUT_TOKENS + OUTPUT_TOKENS);
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "{run}");
    assert_eq!(run["attempts"][0]["status"], "ok");
    let calls = peers::aimock_journal(&prompt_text).await.unwrap();
    assert_eq!(each(&calls, "path"), [called]);

    let deliveries = tenant.deliveries(&run).await;
    assert_eq!(each(&deliveries, "status"), ["delivered"; 3]);
    assert_eq!(each(&deliveries, "kind"), ["email", "webhook", "storage"]);
    assert_mail(&carillon.outbox(), &deliveries[0], OUTPUT).await;
    assert_webhook(&tenant.received(&hook).await, &deliveries[1], &run, cost);
    let stored = fs::read(text(&deliveries[2]["location"])).unwrap();
    assert_eq!(stored, text(&run["output"]).as_bytes());
    cost
}

async fn assert_mail(outbox: &Path, delivery: &Value, output: &str) {
    let file = outbox.join(format!("{}.eml", text(&delivery["id"])));
    assert_eq!(delivery["location"], file.to_str().unwrap());
    let mail = peers::read_mail(&file).await.unwrap();
    assert_eq!(mail["defects"], json!([]));
    assert_eq!(mail["to"], "crew@reader.example");
    assert_eq!(mail["from"], "Carillon <carillon@localhost>");
    assert_eq!(mail["subject"], "Harbour, daily");
    assert_eq!(mail["type"], "multipart/alternative");
    assert!(text(&mail["text"]).starts_with(output), "{mail}");
    let html = text(&mail["html"]);
    assert!(html.contains("<h1>Harbour report</h1>"), "{html}");
    assert!(html.contains("<strong>light wind</strong>"), "{html}");
}

#[track_caller]
fn assert_webhook(received: &[Value], delivery: &Value, run: &Value, cost: f64) {
    let [request] = received else {
        panic!("{} webhooks came", received.len());
    };
    assert_eq!(request["verified"], true, "{request}");
    assert_eq!(request["headers"]["webhook-id"], delivery["id"]);
    let body: Value = serde_json::from_str(text(&request["body"])).unwrap();
    assert_eq!(body["type"], "run.succeeded");
    let data = &body["data"];
    assert_eq!(data["run_id"], run["id"]);
    for field in ["prompt_id", "output", "trigger", "output_truncated"] {
        assert_eq!(data[field], run[field], "{field}");
    }
    assert_eq!(data["tokens"]["input"], INPUT_TOKENS);
    assert_eq!(data["tokens"]["output"], OUTPUT_TOKENS);
    assert_usd(&data["cost_usd"], cost);
}

#[tokio::test]
async fn mail_goes_out_over_smtp() {
    let (address, mailbox) = peers::smtp();
    let carillon = Home::new()
        .start(&["--smtp-url", &format!("smtp://{address}")])
        .await;
    let tenant = Tenant::first(&carillon);
    let prompt_text = unique("[fixture:answer]");
    let prompt = json!({ "model": MODELS[0].0, "prompt_text": prompt_text,
        "destinations": [email()] });
    let run = tenant.run(&tenant.prompt(prompt).await).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let deliveries = tenant.deliveries(&run).await;
    assert_eq!(each(&deliveries, "status"), ["delivered"]);

    let id = format!("<{}@localhost>", text(&deliveries[0]["id"]));
    let mail = eventually("the message in the mailbox", async || {
        for entry in fs::read_dir(mailbox.join("new")).unwrap() {
            let mail = peers::read_mail(&entry.unwrap().path()).await.unwrap();
            if mail["message_id"] == id {
                return Some(mail);
            }
        }
        None
    })
    .await;
    assert_eq!(mail["to"], "crew@reader.example");
    assert_eq!(mail["subject"], "Harbour, daily");
    assert_eq!(mail["defects"], json!([]));
    let written = text(&mail["text"]).replace("\r\n", "\n");
    assert!(written.starts_with(OUTPUT), "{written}");
    carillon.stop().await;
}

#[tokio::test]
async fn a_server_that_speaks_openai_is_called_alike() {
    let litellm = peers::litellm_url();
    let models = [
        "mock-answer=0.5:1.5",
        "mock-rate-limit",
        "mock-server-error",
    ];
    let models = models.map(|model| format!("openai/{model}")).join(",");
    let env = [("OPENAI_BASE_URL", format!("{litellm}/v1"))];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let carillon = Home::new().start_with(&["--models", &models], &env).await;
    let tenant = Tenant::first(&carillon);
    let run = async |model: &str| {
        let prompt = json!({ "model": format!("openai/{model}"), "max_retries": 0 });
        tenant.run(&tenant.prompt(prompt).await).await
    };
    let (answered, limited, broken) = tokio::join!(
        run("mock-answer"),
        run("mock-rate-limit"),
        run("mock-server-error")
    );
    assert_eq!(answered["status"], "succeeded", "{answered}");
    let output = "A calm sea and a light wind from the west.";
    assert_eq!(answered["output"], output);
    let tokens = |field: &str| answered[field].as_f64().unwrap();
    let (input, output) = (tokens("input_tokens"), tokens("output_tokens"));
    assert!(input > 0.0 && output > 0.0, "{answered}");
    assert_usd(&answered["cost_usd"], (input * 0.5 + output * 1.5) / 1e6);
    for (run, code) in [(limited, "rate_limited"), (broken, "provider_unavailable")] {
        assert_eq!(run["status"], "failed", "{run}");
        assert_eq!(run["error_code"], code, "{run}");
    }
    carillon.stop().await;
}

/// From the shipped list, in millionths of a dollar a token.
fn cost_by_the_list(provider: &str, model: &str, input: u32, output: u32) -> f64 {
    let list = include_str!("../../../shared/prices/2026-10-21.json");
    let list: Value = serde_json::from_str(list).unwrap();
    let price = |field: &str| -> f64 {
        let price = &list[provider][model][field];
        text(price).parse().unwrap()
    };
    (f64::from(input) * price("input") + f64::from(output) * price("output")) / 1e6
}

/// Equal to the sixth decimal, which is the last that is kept.
#[track_caller]
fn assert_usd(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!(
        (found - expected).abs() <= 0.5e-6 + 1e-12,
        "{found} USD, not {expected}"
    );
}
