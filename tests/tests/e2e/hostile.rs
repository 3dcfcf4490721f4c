//! Callers, providers, receivers and templates that send too much, too slowly, or something else than
//! they should: each is refused in words, and the process stays as small as it was.

use std::fs;

use serde_json::{Value, json};
use tests::{
    bootstrap::Usage,
    hostile::{ANSWER, Hostile},
    peers,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    carillon::{Carillon, Home, PATIENCE, eventually},
    tenant::{Tenant, text},
};

/// What the process may grow by, whatever it is sent: a few bodies and answers, never a flood.
const GROWTH_MB_MAX: f64 = 64.0;

/// What it is, what is sent, what follows for as long as it is taken, and the statuses that are right.
type Request<'a> = (&'a str, String, Option<&'a [u8]>, &'a [u16]);

struct Scene {
    carillon: Carillon,
    tenant: Tenant,
    server: Hostile,
    resident_mb: f64,
}

impl Scene {
    async fn new(output: &str) -> Self {
        let server = Hostile::start(output).await;
        let model = format!("{}/v1", server.url);
        let env = [("OPENAI_BASE_URL", model.as_str())];
        let carillon = Home::new().start_with(&[], &env).await;
        let tenant = Tenant::new(&carillon, "hostile").await;
        // What the first of everything takes is no growth.
        let prompt = tenant
            .prompt(json!({ "destinations": [{ "kind": "storage" }] }))
            .await;
        tenant.run(&prompt).await;
        let resident_mb = Usage::of(carillon.process_id()).resident_mb;
        Self {
            carillon,
            tenant,
            server,
            resident_mb,
        }
    }

    /// It serves still, and has not grown.
    async fn stands(self) {
        assert_eq!(self.tenant.get("/health").await["status"], "healthy");
        let grown = Usage::of(self.carillon.process_id()).resident_max_mb - self.resident_mb;
        assert!(grown < GROWTH_MB_MAX, "grown by {grown} MB");
        self.carillon.stop().await;
    }

    async fn asked(&self, answer: &str, change: Value) -> Value {
        let mut prompt = json!({ "model": "openai/gpt-5-mini", "max_retries": 0, "timeout_ms": 3_000,
            "prompt_text": format!("say something {ANSWER}{answer}") });
        for (name, value) in change.as_object().unwrap() {
            prompt[name] = value.clone();
        }
        let prompt = self.tenant.prompt(prompt).await;
        self.tenant.run(&prompt).await
    }

    fn hook(&self, answer: &str) -> Value {
        json!({ "kind": "webhook", "url": format!("{}/{ANSWER}{answer}", self.server.url) })
    }

    /// Sends bytes that no HTTP client would, and `more` for as long as somebody takes them; gives the
    /// status of the answer, or 0 where the connection was closed without one.
    async fn raw(&self, head: &str, more: Option<&[u8]>) -> u16 {
        let address = self.carillon.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may be refused before all of it is sent.
        let _ = stream.write_all(head.as_bytes()).await;
        let (mut reading, mut writing) = stream.split();
        let sending = async {
            if let Some(more) = more {
                // 100 MB, unless somebody says stop.
                for _ in 0..100_000_000 / more.len() {
                    if writing.write_all(more).await.is_err() {
                        break;
                    }
                }
            }
            std::future::pending::<()>().await;
        };
        let answer = async {
            let mut answer = Vec::new();
            let mut piece = [0; 1024];
            while let Ok(read @ 1..) = reading.read(&mut piece).await {
                answer.extend_from_slice(&piece[..read]);
                if answer.len() > 12 {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&answer).into_owned();
            text.get(9..12)
                .and_then(|status| status.parse().ok())
                .unwrap_or(0)
        };
        tokio::select! {
            () = sending => 0,
            status = timeout(PATIENCE, answer) => status.expect("an answer, or the end"),
        }
    }
}

#[tokio::test]
async fn requests_of_any_size_are_refused_and_cost_nothing() {
    let scene = Scene::new("an answer").await;
    let key = text(
        &scene
            .tenant
            .post("/v1/api-keys", json!({ "name": "k", "role": "editor" }))
            .await["key"],
    )
    .to_owned();
    let start =
        |line: &str| format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
    let post = start("POST /v1/prompts") + "content-type: application/json\r\n";
    let long = "a".repeat(1_000_000);
    let many = (0..2_000)
        .map(|n| format!("x-{n}: y\r\n"))
        .collect::<String>();
    let deep = format!("{}1{}", "[".repeat(60_000), "]".repeat(60_000));
    let deep_context = format!("{{\"context\": {}}}", "{\"a\":".repeat(40_000));
    let body = |body: &str| format!("{post}content-length: {}\r\n\r\n{body}", body.len());
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let cases: [Request<'_>; 13] = [
        (
            "a long path",
            start(&format!("GET /{long}")) + "\r\n",
            None,
            &[0, 414, 431],
        ),
        (
            "a long query",
            start(&format!("GET /v1/prompts?cursor={long}")) + "\r\n",
            None,
            &[0, 414, 431],
        ),
        (
            "a path of 60 kB",
            start(&format!("GET /v1/runs/{}", &long[..60_000])) + "\r\n",
            None,
            &[404],
        ),
        (
            "a query of 60 kB",
            start(&format!("GET /v1/runs?cursor={}", &long[..60_000])) + "\r\n",
            None,
            &[422],
        ),
        (
            "a long header",
            start("GET /v1/tenant") + "x-long: " + &long + "\r\n\r\n",
            None,
            &[0, 431],
        ),
        (
            "many headers",
            start("GET /v1/tenant") + &many + "\r\n",
            None,
            &[431],
        ),
        (
            "endless headers",
            start("GET /v1/tenant") + "x-long: ",
            Some(long.as_bytes()),
            &[0, 431],
        ),
        (
            "a long key",
            format!(
                "GET /v1/tenant HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
                &long[..100_000]
            ),
            None,
            &[401],
        ),
        (
            "a long repeat key",
            format!(
                "{post}idempotency-key: {}\r\ncontent-length: 2\r\n\r\n{{}}",
                &long[..10_000]
            ),
            None,
            &[422, 400],
        ),
        (
            "a body that says it is long",
            format!("{post}content-length: 10000000000\r\n\r\n"),
            Some(long.as_bytes()),
            &[413],
        ),
        (
            "a body without an end",
            format!("{post}transfer-encoding: chunked\r\n\r\n"),
            Some(chunk.as_bytes()),
            &[413],
        ),
        ("deep JSON", body(&deep), None, &[400]),
        (
            "deep JSON that ends early",
            body(&deep_context),
            None,
            &[400],
        ),
    ];
    for (what, head, more, expected) in cases {
        let status = scene.raw(&head, more).await;
        assert!(expected.contains(&status), "{what}: {status}");
    }
    // The search for a status can find one.
    assert_eq!(
        scene.raw(&(start("GET /v1/tenant") + "\r\n"), None).await,
        200
    );
    scene.stands().await;
}

#[tokio::test]
async fn a_model_without_an_end_is_left() {
    let scene = Scene::new("an answer").await;
    for (answer, status, code) in [
        ("flood", "failed", "malformed_answer"),
        ("drip", "timed_out", "provider_timeout"),
        ("silence", "timed_out", "provider_timeout"),
        ("headers", "failed", "provider_unavailable"),
    ] {
        let run = scene.asked(answer, json!({})).await;
        assert_eq!(
            (text(&run["status"]), text(&run["error_code"])),
            (status, code),
            "{answer}: {run}"
        );
    }
    assert_eq!(scene.server.calls().len(), 4);
    scene.stands().await;
}

#[tokio::test]
async fn a_receiver_without_an_end_is_left() {
    let scene = Scene::new(&"an answer ".repeat(10)).await;
    let hooks = ["flood", "headers", "drip"];
    let prompt = scene
        .tenant
        .prompt(json!({ "destinations": hooks.map(|answer| scene.hook(answer)) }))
        .await;
    let run = scene.tenant.start(&prompt).await;
    let deliveries = eventually("an attempt of each delivery", async || {
        let all = scene.tenant.deliveries(&run).await;
        let tried = |one: &Value| one["status"] != "pending" && one["status"] != "sending";
        (all.len() == hooks.len() && all.iter().all(tried)).then_some(all)
    })
    .await;
    for delivery in &deliveries {
        let target = text(&delivery["target"]);
        // An answer is one by its status; what follows may be as long as it likes, and is not read.
        let expected = if target.ends_with("headers") {
            "retrying"
        } else {
            "delivered"
        };
        assert_eq!(delivery["status"], expected, "{delivery}");
        let excerpt = delivery["response_excerpt"].as_str().unwrap_or_default();
        assert!(excerpt.len() <= 1024, "{delivery}");
    }
    scene.stands().await;
}

#[tokio::test]
async fn the_longest_output_goes_everywhere_and_no_longer_one_does() {
    let output = "<b>ä&</b> ".repeat(150_000);
    let scene = Scene::new(&output).await;
    let mail = json!({ "kind": "email", "to": ["crew@reader.example"] });
    let prompt = scene
        .tenant
        .prompt(
            json!({ "model": "openai/gpt-5-mini", "destinations": [mail, { "kind": "storage" }] }),
        )
        .await;
    let run = scene.tenant.run(&prompt).await;
    assert_eq!(run["status"], "succeeded", "{}", run["error_message"]);
    let mails = fs::read_dir(scene.carillon.outbox()).unwrap();
    assert_eq!(mails.count(), 1);
    scene.stands().await;
}

/// Templates that would grow, loop or nest without an end: refused when they are saved or previewed, or
/// their run fails in words. Those that are none succeed.
#[tokio::test]
async fn no_template_goes_off() {
    let scene = Scene::new("an answer").await;
    let loops = |count: usize, body: &str| {
        let open = "{% for a in context.list %}".repeat(count);
        format!("{open}{body}{}", "{% endfor %}".repeat(count))
    };
    let long = "y".repeat(20_000);
    let bombs = [
        "{{ 'a' * 1000000000 }}".to_owned(),
        "{% for a in range(99999999) %}{% for b in range(99999999) %}x{% endfor %}{% endfor %}"
            .to_owned(),
        format!(
            "{{% set a = 'aaaaaaaa' %}}{}{{{{ a }}}}",
            "{% set a = a ~ a %}".repeat(2_000)
        ),
        "{% include 'template' %}".to_owned(),
        "{% extends 'template' %}".to_owned(),
        "{% import 'template' as t %}".to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% for a in context.list recursive %}{{ loop(context.list) }}{% endfor %}".to_owned(),
        "{{ lipsum(100000) }}".to_owned(),
        "{{ context.__class__.__mro__ }}".to_owned(),
        "{{ self }}{{ cycler }}{{ namespace() }}{{ debug() }}".to_owned(),
        "{{ 9 ** 9 ** 9 ** 9 }}".to_owned(),
        "{{ context.text|indent(1000000000) }}".to_owned(),
        "{{ '%1000000000d'|format(1) }}".to_owned(),
        format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("{{{{ context{} }}}}", ".a".repeat(20_000)),
        format!(
            "{{{{ context.text{} }}}}",
            "|replace('y', 'yyyyyyyyyy')".repeat(8)
        ),
        "{{ context.text|join(context.text) }}".to_owned(),
        loops(6, "{{ a }}"),
        loops(6, ""),
        loops(
            3,
            "{% if context.text|upper|lower|trim == 'q' %}{% endif %}",
        ),
    ];
    let mut ran = 0;
    for bomb in &bombs {
        let body = json!({ "prompt_name": "bomb", "prompt_text": bomb, "model": "echo/echo-1",
            "schedule": { "type": "manual" }, "destinations": [], "max_retries": 0,
            "context": { "list": vec!["z"; 1_000], "text": long } });
        let shown: String = bomb.chars().take(80).collect();
        let reply = scene.tenant.send("POST", "/v1/prompts", Some(&body)).await;
        if reply.status == 422 {
            let errors = reply.body["errors"].as_array().unwrap();
            assert!(
                errors.iter().all(|error| error["field"] == "prompt_text"),
                "{shown}: {}",
                reply.text
            );
            continue;
        }
        assert_eq!(reply.status, 201, "{shown}: {}", reply.text);
        let run = scene.tenant.run(&reply.body).await;
        assert_eq!(
            (text(&run["status"]), text(&run["error_code"])),
            ("failed", "template_error"),
            "{shown}: {run}"
        );
        assert!(!text(&run["error_message"]).is_empty(), "{run}");
        ran += 1;
    }
    assert!(ran >= 4, "only {ran} of the templates could be saved");
    let harmless = scene
        .tenant
        .prompt(json!({ "prompt_text": loops(1, "{{ a }}"), "context": { "list": ["z"] } }))
        .await;
    assert_eq!(scene.tenant.run(&harmless).await["status"], "succeeded");
    scene.stands().await;
}

/// What no header may hold: each would begin another one, end the headers, or hide something.
const BREAKS: [&str; 12] = [
    "x\r\nBcc: evil@example.net",
    "x\nBcc: evil@example.net",
    "x\rBcc: evil@example.net",
    "x\r\n\r\n<script>alert(1)</script>",
    "x\u{85}Bcc: evil@example.net",
    "x\u{2028}Bcc: evil@example.net",
    "x\u{b}Bcc: evil@example.net",
    "x\u{0}Bcc: evil@example.net",
    "=?utf-8?q?x=0D=0ABcc:_evil@example.net?=",
    "=?utf-8?b?eA0KQmNjOiBldmlsQGV4YW1wbGUubmV0?=",
    "\r\n.\r\nMAIL FROM:<evil@example.net>",
    "x%0d%0aBcc: evil@example.net",
];

/// The headers that an email of ours has, whatever anybody wrote, and those that the sink adds.
const HEADERS: [&str; 12] = [
    "auto-submitted",
    "content-type",
    "date",
    "from",
    "message-id",
    "mime-version",
    "subject",
    "to",
    "x-mailfrom",
    "x-peer",
    "x-rcptto",
    "content-transfer-encoding",
];

#[tokio::test]
async fn no_text_becomes_a_header_at_a_real_mail_server() {
    let (address, mailbox) = peers::smtp();
    let url = format!("smtp://{address}");
    let carillon = Home::new()
        .start_with(&[], &[("CARILLON_SMTP_URL", &url)])
        .await;
    let tenant = Tenant::new(&carillon, "headers").await;
    for hostile in BREAKS {
        for address in [
            format!("a@reader.example{hostile}"),
            format!("{hostile}@reader.example"),
            format!("\"{hostile}\"@reader.example"),
            format!("{hostile} <a@reader.example>"),
        ] {
            let body = prompt(
                "a name",
                json!([{ "kind": "email", "to": [address] }]),
                &json!({}),
            );
            let reply = tenant.send("POST", "/v1/prompts", Some(&body)).await;
            assert_eq!(reply.status, 422, "{address:?}: {}", reply.text);
            assert_eq!(
                reply.body["errors"][0]["field"], "destinations[0].to[0]",
                "{}",
                reply.text
            );
        }
    }
    let to = format!("headers-{}@reader.example", uuid::Uuid::new_v4().simple());
    let mut sent = 0;
    for hostile in BREAKS {
        // As it is, where it may be saved, and out of a value that a template puts there.
        for (name, subject) in [
            (hostile, None),
            ("a name", Some(hostile)),
            ("a name", Some("{{ context.hostile }}")),
        ] {
            let mail = json!([{ "kind": "email", "to": [to], "subject": subject }]);
            let context = json!({ "hostile": hostile.replace('\0', "") });
            let body = prompt(name, mail, &context);
            let reply = tenant.send("POST", "/v1/prompts", Some(&body)).await;
            if reply.status == 422 {
                let field = text(&reply.body["errors"][0]["field"]);
                assert!(
                    ["prompt_name", "destinations[0].subject"].contains(&field),
                    "{}",
                    reply.text
                );
                continue;
            }
            let run = tenant.run(&reply.body).await;
            assert_eq!(run["status"], "succeeded", "{hostile:?}: {run}");
            sent += 1;
        }
    }
    let mails = received(&mailbox, &to);
    assert_eq!(mails.len(), sent);
    assert!(sent > BREAKS.len(), "only {sent} were sent");
    for mail in mails {
        let names = header_names(&mail);
        assert!(
            names.iter().all(|name| HEADERS.contains(&name.as_str())),
            "{names:?}\n{mail}"
        );
        for name in ["subject", "to", "from", "message-id"] {
            assert_eq!(
                names.iter().filter(|one| *one == name).count(),
                1,
                "{name}: {mail}"
            );
        }
        let rcpt: Vec<_> = mail
            .lines()
            .filter(|line| line.starts_with("X-RcptTo:"))
            .collect();
        assert_eq!(rcpt, [format!("X-RcptTo: {to}")]);
    }
    carillon.stop().await;
}

fn prompt(name: &str, destinations: Value, context: &Value) -> Value {
    json!({ "prompt_name": name, "prompt_text": "say it", "model": "echo/echo-1", "context": context,
        "schedule": { "type": "manual" }, "destinations": destinations })
}

/// The messages to this address that the sink has.
fn received(mailbox: &std::path::Path, to: &str) -> Vec<String> {
    let files = fs::read_dir(mailbox.join("new")).unwrap();
    let texts = files
        .map(|file| String::from_utf8_lossy(&fs::read(file.unwrap().path()).unwrap()).into_owned());
    texts.filter(|text| text.contains(to)).collect()
}

/// Of the first part of a message, in lower case.
fn header_names(mail: &str) -> Vec<String> {
    let head = mail.lines().take_while(|line| !line.is_empty());
    let names = head.filter(|line| !line.starts_with([' ', '\t']));
    names
        .map(|line| {
            line.split(':')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
        })
        .collect()
}
