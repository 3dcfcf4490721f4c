//! Whatever a model writes, what its email shows is text: no script, no handler, no frame, no form, no
//! address but https and mailto. The result is read by the parser that browsers' rules are written for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::RefCell;

use chrono::DateTime;
use executor::deliver::render::{self, FailureFacts, RunFacts, Tokens};
use html5ever::{
    tendril::StrTendril,
    tokenizer::{
        BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
    },
};
use mail_parser::MessageParser;
use serde_json::json;
use shared::{
    destination::Destination,
    ids::{DeliveryId, PromptId, RunId, TenantId},
    outbound::Policy,
};

/// What the body of a page may hold.
const TAGS: [&str; 28] = [
    "a",
    "blockquote",
    "body",
    "br",
    "code",
    "del",
    "div",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "html",
    "li",
    "ol",
    "p",
    "pre",
    "strong",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
];

/// The tags of what a page begins with.
const HEAD: [&str; 5] = ["html", "head", "meta", "title", "body"];

fn payloads() -> Vec<String> {
    serde_json::from_str(include_str!("xss.json")).unwrap()
}

#[derive(Default)]
struct Tags(RefCell<Vec<Tag>>);

impl TokenSink for Tags {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        if let Token::TagToken(tag) = token {
            self.0.borrow_mut().push(tag);
        }
        TokenSinkResult::Continue
    }
}

/// Every tag of a text, wherever it stands: what a parser would take for the text of a script counts too.
fn tags(html: &str) -> Vec<Tag> {
    let tokenizer = Tokenizer::new(Tags::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(html));
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.into_inner()
}

/// What is wrong with a fragment: each tag and attribute that may not be there.
fn harm(html: &str) -> Vec<String> {
    let mut harm = Vec::new();
    for tag in tags(html) {
        let name = tag.name.to_string();
        if !TAGS.contains(&name.as_str()) {
            harm.push(format!("<{name}>"));
        }
        for attribute in &tag.attrs {
            let (at, value) = (
                attribute.name.local.to_string(),
                attribute.value.to_string(),
            );
            let fine = match at.as_str() {
                "href" => value.starts_with("https://") || value.starts_with("mailto:"),
                "rel" => value == "noopener noreferrer nofollow",
                "start" => value.bytes().all(|byte| byte.is_ascii_digit()),
                // Ours are constants.
                "style" => ![
                    "url",
                    "expression",
                    "import",
                    "position",
                    "behavior",
                    "\\",
                    "animation",
                ]
                .iter()
                .any(|word| value.contains(word)),
                "lang" => value == "en",
                _ => false,
            };
            if !fine {
                harm.push(format!("<{name} {at}={value:?}>"));
            }
        }
    }
    harm
}

fn facts<'a>(text: &'a str, name: &'a str) -> RunFacts<'a> {
    RunFacts {
        tenant_id: TenantId::new(),
        prompt_id: PromptId::new(),
        run_id: RunId::new(),
        prompt_name: name,
        scheduled_for: None,
        slot_local: Some(name),
        trigger: "manual",
        model: name,
        output: text,
        output_truncated: true,
        completed_at: DateTime::from_timestamp(1_770_000_000, 0).unwrap(),
        tokens: Tokens {
            input: 1,
            cached_input: 0,
            output: 1,
        },
        cost_usd: None,
    }
}

/// The HTML of an email with this output, under this name and subject.
fn mail(output: &str, name: &str) -> String {
    let list = json!([{ "kind": "email", "to": ["a@example.com"] }]);
    let destinations = Destination::parse_all(&list, &Policy::PUBLIC).unwrap();
    let Some(Destination::Email(email)) = destinations.first() else {
        panic!("no email");
    };
    let from = "carillon@example.com".parse().unwrap();
    let facts = facts(output, name);
    let rendered = render::email(&facts, DeliveryId::new(), email, Some(name), &from).unwrap();
    html_of(&rendered)
}

fn html_of(rendered: &render::Rendered) -> String {
    let message = MessageParser::default()
        .parse(rendered.body.as_ref().unwrap())
        .unwrap();
    assert_eq!(message.html_body_count(), 1);
    message.body_html(0).unwrap().into_owned()
}

fn notice(text: &str) -> String {
    let facts = FailureFacts {
        prompt_id: PromptId::new(),
        run_id: RunId::new(),
        prompt_name: text,
        slot_local: Some(text),
        error_code: text,
        error_message: text,
        attempts: 1,
        failed_at: DateTime::from_timestamp(1_770_000_000, 0).unwrap(),
    };
    let to = shared::destination::EmailAddress::parse("a@example.com").unwrap();
    let from = "carillon@example.com".parse().unwrap();
    html_of(&render::failure_notice(&facts, DeliveryId::new(), &to, &from).unwrap())
}

#[track_caller]
fn assert_harmless(page: &str, payload: &str) {
    let (head, body) = page.split_at(page.find("<body").unwrap());
    let found = harm(body);
    assert!(found.is_empty(), "{found:?} from {payload:?}\n{body}");
    let open: Vec<_> = tags(head)
        .into_iter()
        .filter(|tag| tag.kind == TagKind::StartTag)
        .map(|tag| tag.name.to_string())
        .collect();
    assert!(
        open.iter().all(|name| HEAD.contains(&name.as_str())),
        "{open:?} from {payload:?}"
    );
    // The three of ours.
    assert_eq!(
        open.iter().filter(|name| *name == "meta").count(),
        3,
        "{payload:?}\n{head}"
    );
}

#[test]
fn no_payload_does_anything_in_an_email() {
    let payloads = payloads();
    assert!(payloads.len() > 150);
    for payload in &payloads {
        let about = [
            payload.clone(),
            format!("text {payload} text"),
            format!("<div>{payload}"),
            format!("[a **{payload}** b](https://ok.example)"),
            format!("| a |\n|---|\n| {payload} |"),
        ];
        for output in about {
            assert_harmless(&mail(&output, "a name"), &output);
        }
        assert_harmless(&mail("an output", payload), payload);
        assert_harmless(&notice(payload), payload);
    }
}

#[test]
fn all_payloads_together_do_nothing_either() {
    let all = payloads();
    for separator in ["", " ", "\n", "\n\n"] {
        let together = all.join(separator);
        assert_harmless(&mail(&together, "a name"), "all");
        let backwards: Vec<_> = all.iter().rev().map(String::as_str).collect();
        assert_harmless(
            &mail(&backwards.join(separator), "a name"),
            "all, backwards",
        );
    }
}

/// Without the sanitiser most of them are harmful, so the check can find what it looks for.
#[test]
fn the_check_finds_harm_where_nothing_is_cleaned() {
    let harmful = payloads()
        .into_iter()
        .filter(|payload| {
            let mut raw = String::new();
            pulldown_cmark::html::push_html(&mut raw, pulldown_cmark::Parser::new(payload));
            !harm(&raw).is_empty()
        })
        .count();
    assert!(harmful > 120, "only {harmful}");
}
