//! A prompt's way from the API to its receivers, through the stack's own pieces alone.

use chrono::{DurationRound, TimeDelta, Timelike, Utc};
use reqwest::Client;
use serde_json::{Value, json};
use tests::peers::{self, AWS_ACCOUNT, AWS_REGION};
use uuid::Uuid;

use crate::{
    emulator::{answer, eventually},
    stack::{MAIL_FROM, PLATFORM_KEY, Stack},
};

const PROVIDER_KEY: &str = "sk-of-the-test-0123456789abcdef";
const ANSWER: &str = "# Harbour report\n\nA calm sea.";

/// Takes of a message before the queue moves it to its dead letters, as the stack says.
const RECEIVES_MAX: usize = 5;

/// A tenant that calls the API.
struct Tenant<'a> {
    stack: &'a Stack,
    http: Client,
    key: String,
    id: String,
    /// A path of its own at the webhook receiver.
    hooks: String,
}

/// All stories, on one stack. The clock of the sweeper is stopped first: what happens here is then the
/// doing of the entries and of the queue, and a sweep is one that the story asks for. Gives the tenant's
/// key.
pub(crate) async fn take(stack: &Stack) -> String {
    stop_clock(stack).await;
    let keys = json!({"openai": PROVIDER_KEY});
    stack
        .emulator
        .put_secret(stack.output("ProviderKeysSecretArn"), &keys)
        .await;
    let verify = [
        ("Action", "VerifyEmailIdentity"),
        ("EmailAddress", MAIL_FROM),
    ];
    let verify = verify.map(|(name, value)| (name.to_owned(), value.to_owned()));
    stack.emulator.query("ses", &verify).await;

    let tenant = Tenant::new(stack).await;
    come_to_nothing(&tenant).await;
    let once = tenant.fire_soon().await;
    deliver(&tenant).await;
    fired(&tenant, &once).await;
    tenant.key
}

/// A run whose wake-ups are lost until the queue gives them up ends as failed, with the reason.
async fn come_to_nothing(tenant: &Tenant<'_>) {
    let stack = tenant.stack;
    let mapping = mapping(stack).await;
    switch(stack, &mapping, false).await;
    let prompt = tenant
        .prompt(&json!({"schedule": {"type": "manual"}}))
        .await;
    let path = format!("/v1/prompts/{}/run", text(&prompt["id"]));
    let run = tenant.call("POST", &path, Some(&json!({}))).await;
    // As executors would that end before they have done anything.
    for _ in 0..RECEIVES_MAX {
        eventually("the wake-up", async || {
            (receive(stack, "QueueUrl").await == 1).then_some(())
        })
        .await;
    }
    assert_eq!(receive(stack, "QueueUrl").await, 0);
    let path = format!("/v1/runs/{}", text(&run["id"]));
    let ended = eventually("the run's end", async || {
        let swept = stack.invoke("Sweeper", &json!({})).await;
        assert!(swept.ok, "{swept:?}");
        let run = tenant.call("GET", &path, None).await;
        (run["status"] == "failed").then_some(run)
    })
    .await;
    assert_eq!(ended["reason"], "dead_letter", "{ended}");
    assert_eq!(receive(stack, "DeadLetterQueueUrl").await, 0);
    switch(stack, &mapping, true).await;
}

/// The fast path: what the entry would send is put on the queue, twice, and the rest happens by itself.
async fn deliver(tenant: &Tenant<'_>) {
    let stack = tenant.stack;
    let marker = format!("marker-{}", Uuid::new_v4().simple());
    peers::aimock_answers(&marker, ANSWER, 0).await.unwrap();
    let secret = tenant
        .call("POST", "/v1/webhook-secret/rotate", Some(&json!({})))
        .await;
    peers::webhook_secrets(&tenant.hooks, &[text(&secret["secret"])])
        .await
        .unwrap();
    let reader = format!("{marker}@reader.example");
    let prompt = tenant
        .prompt(&json!({
            "prompt_text": marker,
            "schedule": {"type": "cron", "expression": "0 6 1 1 *", "timezone": "Europe/Berlin"},
            "destinations": [
                {"kind": "webhook", "url": format!("{}{}", peers::webhook_url(), tenant.hooks)},
                {"kind": "email", "to": [reader], "subject": "Harbour, daily"},
                {"kind": "storage"},
            ],
        }))
        .await;
    let id = text(&prompt["id"]);
    let (_, input) = tenant.entry_of(id).await;
    make_due(stack, id).await;
    for _ in 0..2 {
        let sent = json!({"QueueUrl": stack.output("QueueUrl"), "MessageBody": input["MessageBody"],
            "MessageGroupId": input["MessageGroupId"]});
        stack.emulator.sqs("SendMessage", &sent).await;
    }
    let run = tenant.succeeded(id).await;
    let path = format!("/v1/runs/{}", text(&run["id"]));
    let read = tenant.call("GET", &path, None).await;
    assert_eq!(
        (&read["output"], &read["model"]),
        (&json!(ANSWER), &json!("gpt-4o-mini"))
    );
    let deliveries = tenant
        .call("GET", &format!("{path}/deliveries"), None)
        .await;
    let deliveries = deliveries["items"].as_array().unwrap();
    assert_eq!(deliveries.len(), 3, "{deliveries:?}");
    assert!(
        deliveries.iter().all(|one| one["status"] == "delivered"),
        "{deliveries:?}"
    );

    let received = peers::webhook_journal(&tenant.hooks).await.unwrap();
    assert_eq!(received.len(), 1, "{received:?}");
    assert_eq!(received[0]["verified"], true, "{received:?}");
    let of = |kind: &str| deliveries.iter().find(|one| one["kind"] == kind).unwrap();
    assert_eq!(received[0]["headers"]["webhook-id"], of("webhook")["id"]);
    mailed(stack, &reader).await;
    stored(tenant, id, &run).await;
    let asked = peers::aimock_journal(&marker).await.unwrap();
    assert_eq!(asked.len(), 1, "{asked:?}");
}

/// The reader has one mail, from the sender whom the stack names.
async fn mailed(stack: &Stack, reader: &str) {
    let request = stack
        .emulator
        .request("ses", "GET", "/_ministack/ses/messages");
    let all: Value = serde_json::from_str(&answer(request).await).unwrap();
    let all = all["messages"].as_object().unwrap().values();
    let mails = all.flat_map(|account| account.as_array().unwrap());
    let mails: Vec<_> = mails
        .filter(|mail| mail.to_string().contains(reader))
        .collect();
    assert_eq!(mails.len(), 1, "{mails:?}");
    let mail = mails[0];
    assert_eq!(mail["Subject"], "Harbour, daily", "{mail}");
    assert!(text(&mail["Source"]).contains(MAIL_FROM), "{mail}");
    assert!(text(&mail["BodyText"]).contains("A calm sea."), "{mail}");
}

/// The output is an object of the run, and the only one.
async fn stored(tenant: &Tenant<'_>, prompt: &str, run: &Value) {
    let emulator = &tenant.stack.emulator;
    let bucket = tenant.stack.output("BucketName");
    let path = format!(
        "/{bucket}?list-type=2&prefix=tenants/{}/prompts/{prompt}/",
        tenant.id
    );
    let list = answer(emulator.request("s3", "GET", &path)).await;
    let keys: Vec<_> = list
        .split("<Key>")
        .skip(1)
        .map(|rest| rest.split("</Key>").next().unwrap())
        .collect();
    assert_eq!(keys.len(), 1, "{list}");
    assert!(keys[0].contains(text(&run["id"])), "{keys:?}");
    let object = answer(emulator.request("s3", "GET", &format!("/{bucket}/{}", keys[0]))).await;
    assert!(object.contains(ANSWER), "{object}");
}

/// The entry of a single time fired by itself, and is gone.
async fn fired(tenant: &Tenant<'_>, prompt: &str) {
    let run = tenant.succeeded(prompt).await;
    assert_eq!(run["trigger"], "schedule", "{run}");
    let path = tenant.entry_path(prompt);
    let entry = tenant
        .stack
        .emulator
        .request("scheduler", "GET", &path)
        .send()
        .await
        .unwrap();
    assert_eq!(entry.status(), 404);
}

impl<'a> Tenant<'a> {
    /// A new tenant, made by the operator through the API.
    async fn new(stack: &'a Stack) -> Self {
        let mut tenant = Self {
            stack,
            http: stack.emulator.http.clone(),
            key: PLATFORM_KEY.to_owned(),
            id: String::new(),
            hooks: format!("/hooks/{}", Uuid::new_v4().simple()),
        };
        let body = json!({"name": "acme", "owner_email": "owner@reader.example"});
        let made = tenant.call("POST", "/v1/admin/tenants", Some(&body)).await;
        text(&made["api_key"]["key"]).clone_into(&mut tenant.key);
        let own = tenant.call("GET", "/v1/tenant", None).await;
        text(&own["id"]).clone_into(&mut tenant.id);
        tenant
    }

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let url = format!("{}{path}", self.stack.api());
        let mut request = self
            .http
            .request(method.parse().unwrap(), url)
            .bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        serde_json::from_str(&answer(request).await).unwrap()
    }

    /// Makes a prompt with these fields changed, and sees that its entry was made at once.
    async fn prompt(&self, change: &Value) -> Value {
        let mut body = json!({"prompt_name": "Harbour watch", "prompt_text": "[fixture:answer]",
            "model": "openai/gpt-4o-mini", "destinations": []});
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let made = self.call("POST", "/v1/prompts", Some(&body)).await;
        assert_eq!(made["sync"], "synced", "{made}");
        made
    }

    /// Makes a prompt that is due at the next full minute that is not too near, and lets its entry fire. The
    /// emulator knows no universal target: the entry is pointed at the queue itself, with the message that
    /// it would send there, and is otherwise as it was.
    async fn fire_soon(&self) -> String {
        let now = Utc::now();
        let minutes = if now.second() < 50 { 1 } else { 2 };
        let at = now.duration_trunc(TimeDelta::minutes(1)).unwrap() + TimeDelta::minutes(minutes);
        let prompt = self
            .prompt(&json!({"schedule": {"type": "once", "at": at}}))
            .await;
        let id = text(&prompt["id"]).to_owned();
        let (mut entry, input) = self.entry_of(&id).await;
        let queue = text(&input["QueueUrl"]).rsplit('/').next().unwrap();
        entry["Target"]["Arn"] = json!(format!("arn:aws:sqs:{AWS_REGION}:{AWS_ACCOUNT}:{queue}"));
        entry["Target"]["Input"] = input["MessageBody"].clone();
        let emulator = &self.stack.emulator;
        let request = emulator.request("scheduler", "PUT", &self.entry_path(&id));
        answer(request.body(entry.to_string())).await;
        id
    }

    fn entry_path(&self, prompt: &str) -> String {
        format!(
            "/schedules/{prompt}-1?groupName={}",
            self.stack.output("ScheduleGroup")
        )
    }

    /// The prompt's entry, and what it sends when it fires.
    async fn entry_of(&self, prompt: &str) -> (Value, Value) {
        let request = self
            .stack
            .emulator
            .request("scheduler", "GET", &self.entry_path(prompt));
        let entry: Value = serde_json::from_str(&answer(request).await).unwrap();
        let target = &entry["Target"];
        assert_eq!(
            target["Arn"], "arn:aws:scheduler:::aws-sdk:sqs:sendMessage",
            "{entry}"
        );
        assert!(text(&target["RoleArn"]).contains(":role/"), "{entry}");
        assert!(
            text(&target["DeadLetterConfig"]["Arn"]).contains("Undelivered"),
            "{entry}"
        );
        let input: Value = serde_json::from_str(text(&target["Input"])).unwrap();
        assert_eq!(input["QueueUrl"], self.stack.output("QueueUrl"), "{entry}");
        assert_eq!(input["MessageGroupId"], self.id, "{entry}");
        (entry, input)
    }

    /// The one run of a prompt, when it has succeeded.
    async fn succeeded(&self, prompt: &str) -> Value {
        let path = format!("/v1/prompts/{prompt}/runs");
        let runs = eventually("the run's end", async || {
            let runs = self.call("GET", &path, None).await["items"]
                .as_array()
                .unwrap()
                .clone();
            runs.iter()
                .any(|run| run["status"] == "succeeded")
                .then_some(runs)
        })
        .await;
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs[0].clone()
    }
}

async fn stop_clock(stack: &Stack) {
    let emulator = &stack.emulator;
    let list =
        answer(emulator.request("scheduler", "GET", "/schedules?ScheduleGroup=default")).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    let sweeper = stack.output("SweeperFunction");
    let all = list["Schedules"].as_array().unwrap();
    let clock = all
        .iter()
        .find(|one| text(&one["Target"]["Arn"]).ends_with(sweeper))
        .unwrap();
    let path = format!("/schedules/{}?groupName=default", text(&clock["Name"]));
    answer(emulator.request("scheduler", "DELETE", &path)).await;
}

/// The mapping that hands the queue's messages to the executor.
async fn mapping(stack: &Stack) -> String {
    let path = "/2015-03-31/event-source-mappings/";
    let list: Value =
        serde_json::from_str(&answer(stack.emulator.request("lambda", "GET", path)).await).unwrap();
    let executor = stack.output("ExecutorFunction");
    let all = list["EventSourceMappings"].as_array().unwrap();
    let ours = all
        .iter()
        .find(|one| text(&one["FunctionArn"]).ends_with(executor))
        .unwrap();
    format!("{path}{}", text(&ours["UUID"]))
}

async fn switch(stack: &Stack, mapping: &str, enabled: bool) {
    let body = json!({"Enabled": enabled}).to_string();
    answer(stack.emulator.request("lambda", "PUT", mapping).body(body)).await;
}

/// Takes what is on a queue and lets it go again; gives how many there were.
async fn receive(stack: &Stack, queue: &str) -> usize {
    let body =
        json!({"QueueUrl": stack.output(queue), "MaxNumberOfMessages": 10, "VisibilityTimeout": 0});
    let received = stack.emulator.sqs("ReceiveMessage", &body).await;
    received["Messages"].as_array().map_or(0, Vec::len)
}

/// The slot of a far-off prompt is now: what only waiting would do otherwise.
async fn make_due(stack: &Stack, prompt: &str) {
    let superuser = stack.database.superuser().await;
    let sql = "UPDATE scheduled_prompts SET next_run_at = now() - interval '5 seconds' WHERE id = $1::text::uuid";
    assert_eq!(superuser.execute(sql, &[&prompt]).await.unwrap(), 1);
}

#[track_caller]
pub(crate) fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}
