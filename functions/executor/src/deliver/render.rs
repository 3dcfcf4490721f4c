//! Makes the bytes that a delivery sends, once, when the run's result is recorded.
//!
//! Pure: the same facts give the same bytes. It never puts a prompt's text into a message, and
//! nothing that a tenant or a model wrote becomes a header or markup here without being encoded.

use std::fmt::Write;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use lettre::{
    Address, Message,
    message::{
        Mailbox, MultiPart, SinglePart,
        header::{HeaderName, HeaderValue},
    },
};
use rust_decimal::Decimal;
use serde::Serialize;
use shared::{
    destination::{EmailAddress, EmailDestination, Kind, WebhookDestination},
    ids::{DeliveryId, PromptId, RunId, TenantId},
};

use super::markdown::{escape, to_html};

const SUBJECT_CHARS_MAX: usize = 250;
const NAME_CHARS_MAX: usize = 200;

/// What a delivery is, ready to be stored in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The kind of destination.
    pub kind: Kind,
    /// Where it goes, as [`super::Target`] takes it back: addresses, a URL, or a key.
    pub target: String,
    /// The bytes that each attempt sends. Storage has none: it sends the run's output itself.
    pub body: Option<Bytes>,
}

/// What is known about a run that succeeded.
#[derive(Debug, Clone, Copy)]
pub struct RunFacts<'a> {
    /// Whose run it is.
    pub tenant_id: TenantId,
    /// Of which prompt.
    pub prompt_id: PromptId,
    /// The run.
    pub run_id: RunId,
    /// What the tenant calls the prompt.
    pub prompt_name: &'a str,
    /// The slot; none for a run that somebody asked for.
    pub scheduled_for: Option<DateTime<Utc>>,
    /// The slot in the prompt's own zone, as people read it: `2026-03-02 09:00 Europe/London`.
    pub slot_local: Option<&'a str>,
    /// What started it: `schedule`, `manual` and so on.
    pub trigger: &'a str,
    /// `provider/name` of the model that answered.
    pub model: &'a str,
    /// What the model wrote, in Markdown.
    pub output: &'a str,
    /// Whether a limit cut the output.
    pub output_truncated: bool,
    /// When the result was recorded; the date of the message.
    pub completed_at: DateTime<Utc>,
    /// What the call used.
    pub tokens: Tokens,
    /// What it cost; none when the model has no known price.
    pub cost_usd: Option<Decimal>,
}

/// How many tokens a run used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// All input, cached or not.
    pub input: u64,
    /// The part of the input that came from a cache.
    pub cached_input: u64,
    /// All output.
    pub output: u64,
}

/// What is known about a run that failed for good.
#[derive(Debug, Clone, Copy)]
pub struct FailureFacts<'a> {
    /// Of which prompt.
    pub prompt_id: PromptId,
    /// The run.
    pub run_id: RunId,
    /// What the tenant calls the prompt.
    pub prompt_name: &'a str,
    /// The slot in the prompt's own zone; none for a run that somebody asked for.
    pub slot_local: Option<&'a str>,
    /// The stable code of the last error.
    pub error_code: &'a str,
    /// Its message for tenants.
    pub error_message: &'a str,
    /// How often the run was tried.
    pub attempts: u32,
    /// When it failed; the date of the message.
    pub failed_at: DateTime<Utc>,
}

/// Why a message was not made.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A recipient that the mail library does not take.
    #[error("a recipient is malformed; save the prompt's destinations again")]
    Recipient(#[source] lettre::address::AddressError),
    /// The mail library refused the message.
    #[error("the email could not be put together; report this as a bug")]
    Message(#[source] lettre::error::Error),
    /// The facts could not be written as JSON.
    #[error("the webhook could not be put together; report this as a bug")]
    Json(#[source] serde_json::Error),
}

/// The email with a run's output: its Markdown as text, and as HTML.
///
/// `subject` is the destination's template after rendering; without one, the subject is the
/// prompt's name and the slot.
///
/// # Errors
///
/// [`RenderError`], which no valid destination causes.
pub fn email(
    facts: &RunFacts<'_>,
    delivery_id: DeliveryId,
    destination: &EmailDestination,
    subject: Option<&str>,
    from: &Mailbox,
) -> Result<Rendered, RenderError> {
    let subject = subject.map_or_else(|| default_subject(facts), ToOwned::to_owned);
    let name = one_line(facts.prompt_name, NAME_CHARS_MAX);
    let mut footer = vec![
        format!(
            "Sent by Carillon for the prompt \u{201c}{name}\u{201d}, due {}.",
            due(facts.slot_local)
        ),
        format!(
            "Run {}, prompt {}, model {}.",
            facts.run_id, facts.prompt_id, facts.model
        ),
    ];
    if facts.output_truncated {
        footer.insert(
            0,
            "The output was longer than a run may keep and is cut here.".to_owned(),
        );
    }
    let text = format!(
        "{}\n\n-- \n{}\n",
        facts.output.trim_end(),
        footer.join("\n")
    );
    let html = page(&subject, &to_html(facts.output), &footer);
    let head = Head {
        delivery_id,
        from,
        to: destination.to(),
        subject: &subject,
        date: facts.completed_at,
    };
    head.message(text, html)
}

/// The webhook with a run's output. Its body is JSON:
///
/// ```json
/// {"type": "run.succeeded", "timestamp": "2026-03-02T09:00:04Z", "data": {
///   "run_id": "…", "prompt_id": "…", "tenant_id": "…", "prompt_name": "Morning brief",
///   "scheduled_for": "2026-03-02T09:00:00Z", "trigger": "schedule",
///   "model": "openai/gpt-5-mini", "output": "# Today…", "output_truncated": false,
///   "tokens": {"input": 812, "cached_input": 512, "output": 140}, "cost_usd": 0.000417}}
/// ```
///
/// `timestamp` is when the result was recorded; `scheduled_for` is null for a run that somebody
/// asked for, `cost_usd` where the model has no known price.
///
/// # Errors
///
/// [`RenderError::Json`], which no fact is known to cause.
pub fn webhook(
    facts: &RunFacts<'_>,
    destination: &WebhookDestination,
) -> Result<Rendered, RenderError> {
    let body = Event {
        r#type: "run.succeeded",
        timestamp: instant(facts.completed_at),
        data: EventData {
            run_id: facts.run_id,
            prompt_id: facts.prompt_id,
            tenant_id: facts.tenant_id,
            prompt_name: facts.prompt_name,
            scheduled_for: facts.scheduled_for.map(instant),
            trigger: facts.trigger,
            model: facts.model,
            output: facts.output,
            output_truncated: facts.output_truncated,
            tokens: facts.tokens,
            cost_usd: facts.cost_usd,
        },
    };
    Ok(Rendered {
        kind: Kind::Webhook,
        target: destination.url().to_string(),
        body: Some(serde_json::to_vec(&body).map_err(RenderError::Json)?.into()),
    })
}

/// The file with a run's output.
#[must_use]
pub fn storage(facts: &RunFacts<'_>) -> Rendered {
    Rendered {
        kind: Kind::Storage,
        target: storage_key(
            facts.tenant_id,
            facts.prompt_id,
            facts.scheduled_for,
            facts.run_id,
        ),
        body: None,
    }
}

impl Rendered {
    /// The same for another key, if there is one.
    #[must_use]
    pub fn moved_to(self, key: Option<&str>) -> Self {
        match key {
            Some(key) => Self {
                target: key.to_owned(),
                ..self
            },
            None => self,
        }
    }
}

/// `tenants/{tenant}/prompts/{prompt}/{slot}/{run}.md`, where the slot is `20260102T090000Z`, or
/// `unscheduled` for a run that somebody asked for.
#[must_use]
pub fn storage_key(
    tenant_id: TenantId,
    prompt_id: PromptId,
    slot: Option<DateTime<Utc>>,
    run_id: RunId,
) -> String {
    let slot = slot.map_or_else(
        || "unscheduled".to_owned(),
        |slot| slot.format("%Y%m%dT%H%M%SZ").to_string(),
    );
    format!("tenants/{tenant_id}/prompts/{prompt_id}/{slot}/{run_id}.md")
}

/// The notice that a run failed for good.
///
/// # Errors
///
/// [`RenderError`], which no valid address causes.
pub fn failure_notice(
    facts: &FailureFacts<'_>,
    delivery_id: DeliveryId,
    to: &EmailAddress,
    from: &Mailbox,
) -> Result<Rendered, RenderError> {
    let name = one_line(facts.prompt_name, NAME_CHARS_MAX);
    let opening = format!("A run of the prompt \u{201c}{name}\u{201d} failed.");
    let closing = "The prompt stays active, and its next slot runs as planned.".to_owned();
    let subject = format!("Failed: {name}");
    notice(facts, subject, [opening, closing], delivery_id, to, from)
}

/// The notice that a prompt was paused because its runs kept failing.
///
/// # Errors
///
/// [`RenderError`], which no valid address causes.
pub fn paused_notice(
    facts: &FailureFacts<'_>,
    consecutive_failures: u32,
    delivery_id: DeliveryId,
    to: &EmailAddress,
    from: &Mailbox,
) -> Result<Rendered, RenderError> {
    let name = one_line(facts.prompt_name, NAME_CHARS_MAX);
    let opening = format!(
        "The prompt \u{201c}{name}\u{201d} is paused: its last {consecutive_failures} runs failed."
    );
    let closing = format!(
        "Nothing runs until somebody resumes it: POST /v1/prompts/{}/resume. Resuming waits for \
         the next slot; what was missed is not made up.",
        facts.prompt_id
    );
    let subject = format!("Paused: {name}");
    notice(facts, subject, [opening, closing], delivery_id, to, from)
}

fn notice(
    facts: &FailureFacts<'_>,
    subject: String,
    [opening, closing]: [String; 2],
    delivery_id: DeliveryId,
    to: &EmailAddress,
    from: &Mailbox,
) -> Result<Rendered, RenderError> {
    let rows = [
        ("Reason", one_line(facts.error_message, 1000)),
        ("Code", one_line(facts.error_code, 100)),
        ("Due", due(facts.slot_local)),
        ("Attempts", facts.attempts.to_string()),
        ("Run", facts.run_id.to_string()),
        ("Prompt", facts.prompt_id.to_string()),
    ];
    let mut text = format!("{opening}\n\n");
    let mut content = format!("<p>{}</p><table>", escape(&opening));
    for (label, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label}: {value}");
        let _ = write!(
            content,
            "<tr><td style=\"padding:2px 16px 2px 0;vertical-align:top\"><strong>{label}</strong></td>\
             <td style=\"padding:2px 0\">{}</td></tr>",
            escape(&value)
        );
    }
    let _ = write!(text, "\n{closing}\n\n-- \n");
    let _ = write!(content, "</table><p>{}</p>", escape(&closing));
    let footer = ["Sent by Carillon to the prompt's notification address.".to_owned()];
    text.push_str(&footer[0]);
    text.push('\n');
    let head = Head {
        delivery_id,
        from,
        to: std::slice::from_ref(to),
        subject: &subject,
        date: facts.failed_at,
    };
    head.message(text, page(&subject, &content, &footer))
}

struct Head<'a> {
    delivery_id: DeliveryId,
    from: &'a Mailbox,
    to: &'a [EmailAddress],
    subject: &'a str,
    date: DateTime<Utc>,
}

impl Head<'_> {
    /// The delivery's id makes the message's id and its boundary: nothing in it is left to chance,
    /// and nobody who wrote the output can have known the boundary.
    fn message(&self, text: String, html: String) -> Result<Rendered, RenderError> {
        let domain = self.from.email.domain();
        let mut builder = Message::builder()
            .message_id(Some(format!("<{}@{domain}>", self.delivery_id)))
            .date(self.date.into())
            .from(self.from.clone())
            .subject(one_line(self.subject, SUBJECT_CHARS_MAX))
            // RFC 3834: no out-of-office reply, please.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".to_owned(),
            ));
        for recipient in self.to {
            let address: Address = recipient.as_str().parse().map_err(RenderError::Recipient)?;
            builder = builder.to(Mailbox::new(None, address));
        }
        let parts = MultiPart::alternative()
            .boundary(format!("carillon-{}", self.delivery_id))
            .singlepart(SinglePart::plain(text))
            .singlepart(SinglePart::html(html));
        let message = builder.multipart(parts).map_err(RenderError::Message)?;
        let addresses: Vec<_> = self.to.iter().map(EmailAddress::as_str).collect();
        Ok(Rendered {
            kind: Kind::Email,
            target: addresses.join(", "),
            body: Some(message.formatted().into()),
        })
    }
}

/// A whole page. It sets no colours but greys, so that mail programs can make it light or dark.
fn page(title: &str, content: &str, footer: &[String]) -> String {
    let footer: Vec<_> = footer.iter().map(|line| escape(line)).collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title></head>\
         <body style=\"margin:0;padding:24px 16px;font-family:-apple-system,'Segoe UI',Roboto,\
         Helvetica,Arial,sans-serif;font-size:16px;line-height:1.5\">\
         <div style=\"max-width:680px;margin:0 auto\">\n{content}\n\
         <p style=\"margin-top:32px;padding-top:12px;border-top:1px solid #888888;\
         font-size:13px;color:#808080\">{}</p></div></body></html>\n",
        escape(&one_line(title, SUBJECT_CHARS_MAX)),
        footer.join("<br>"),
    )
}

fn default_subject(facts: &RunFacts<'_>) -> String {
    let name = one_line(facts.prompt_name, NAME_CHARS_MAX);
    match facts.slot_local {
        Some(slot) => format!("{name} \u{2014} {slot}"),
        None => format!(
            "{name} \u{2014} {}",
            facts.completed_at.format("%Y-%m-%d %H:%M UTC")
        ),
    }
}

fn due(slot_local: Option<&str>) -> String {
    slot_local.map_or_else(
        || "at once, on request".to_owned(),
        |slot| one_line(slot, NAME_CHARS_MAX),
    )
}

fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Text for a header or a label: one line, without characters that hide or turn what follows.
fn one_line(text: &str, chars_max: usize) -> String {
    let visible: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .filter(|c| {
            !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        })
        .collect();
    let words: Vec<_> = visible.split_whitespace().collect();
    // A mail program would decode what looks like an encoded word (RFC 2047), line breaks included.
    let line = words.join(" ").replace("=?", "= ?");
    match line.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}\u{2026}", &line[..end]),
        None => line,
    }
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    timestamp: String,
    data: EventData<'a>,
}

#[derive(Serialize)]
struct EventData<'a> {
    run_id: RunId,
    prompt_id: PromptId,
    tenant_id: TenantId,
    prompt_name: &'a str,
    scheduled_for: Option<String>,
    trigger: &'a str,
    model: &'a str,
    output: &'a str,
    output_truncated: bool,
    tokens: Tokens,
    #[serde(with = "rust_decimal::serde::float_option")]
    cost_usd: Option<Decimal>,
}

#[cfg(test)]
mod tests {
    use mail_parser::{HeaderValue as Parsed, MessageParser, MimeHeaders};
    use serde_json::{Value, json};
    use shared::{destination::Destination, outbound::Policy};

    use super::*;

    const DELIVERY: &str = "01999c2e-0000-7000-8000-00000000000d";

    fn facts<'a>() -> RunFacts<'a> {
        RunFacts {
            tenant_id: "01999c2e-0000-7000-8000-00000000000a".parse().unwrap(),
            prompt_id: "01999c2e-0000-7000-8000-00000000000b".parse().unwrap(),
            run_id: "01999c2e-0000-7000-8000-00000000000c".parse().unwrap(),
            prompt_name: "Morning brief",
            scheduled_for: Some("2026-03-02T09:00:00Z".parse().unwrap()),
            slot_local: Some("2026-03-02 09:00 Europe/London"),
            trigger: "schedule",
            model: "echo/echo",
            output: "# Today\n\n| a | b |\n|---|---|\n| 1 | ~~2~~ |\n\n[more](https://example.com)\n",
            output_truncated: false,
            completed_at: "2026-03-02T09:00:04.250Z".parse().unwrap(),
            tokens: Tokens {
                input: 812,
                cached_input: 512,
                output: 140,
            },
            cost_usd: Some("0.000417".parse().unwrap()),
        }
    }

    fn destination(list: Value) -> Destination {
        Destination::parse_all(&list, &Policy::PUBLIC)
            .unwrap()
            .remove(0)
    }

    fn from() -> Mailbox {
        "Carillon <carillon@mail.example.com>".parse().unwrap()
    }

    fn mail_of(facts: &RunFacts<'_>, subject: Option<&str>) -> Rendered {
        let list = json!([{"kind": "email", "to": ["ann@example.com", "bob@example.org"]}]);
        let Destination::Email(to) = destination(list) else {
            panic!();
        };
        email(facts, DELIVERY.parse().unwrap(), &to, subject, &from()).unwrap()
    }

    fn bytes(rendered: &Rendered) -> &[u8] {
        rendered.body.as_ref().unwrap()
    }

    fn header_names(raw: &[u8]) -> Vec<String> {
        let message = MessageParser::default().parse(raw).unwrap();
        let mut names: Vec<_> = message
            .headers()
            .iter()
            .map(|header| header.name().to_lowercase())
            .collect();
        names.sort_unstable();
        names
    }

    const HEADERS: [&str; 9] = [
        "auto-submitted",
        "content-type",
        "date",
        "from",
        "message-id",
        "mime-version",
        "subject",
        "to",
        // Of the two parts there are none here: these are the message's own.
        "x",
    ];

    #[test]
    fn a_mail_reads_back_as_it_was_meant() {
        let rendered = mail_of(&facts(), None);
        assert_eq!(rendered.kind, Kind::Email);
        assert_eq!(rendered.target, "ann@example.com, bob@example.org");
        let raw = bytes(&rendered);
        assert!(raw.is_ascii(), "goes through servers without 8BITMIME");
        let message = MessageParser::default().parse(raw).unwrap();
        assert_eq!(header_names(raw), HEADERS[..8]);
        assert_eq!(
            message.subject(),
            Some("Morning brief \u{2014} 2026-03-02 09:00 Europe/London")
        );
        assert_eq!(
            message.message_id(),
            Some(format!("{DELIVERY}@mail.example.com").as_str())
        );
        assert_eq!(message.date().unwrap().to_rfc3339(), "2026-03-02T09:00:04Z");
        assert_eq!(
            message.header("Auto-Submitted").and_then(Parsed::as_text),
            Some("auto-generated")
        );
        let to: Vec<_> = message
            .to()
            .unwrap()
            .iter()
            .map(|one| one.address().unwrap())
            .collect();
        assert_eq!(to, ["ann@example.com", "bob@example.org"]);
        assert_eq!(
            message.from().unwrap().first().unwrap().name(),
            Some("Carillon")
        );
        assert_eq!(message.text_body_count(), 1);
        assert_eq!(message.html_body_count(), 1);
        assert_eq!(message.attachment_count(), 0);
        assert_eq!(
            message.part(0).unwrap().content_type().unwrap().subtype(),
            Some("alternative")
        );

        let text = message.body_text(0).unwrap().replace("\r\n", "\n");
        assert!(text.starts_with(facts().output.trim_end()), "{text}");
        for said in [
            "Morning brief",
            "01999c2e-0000-7000-8000-00000000000c",
            "09:00 Europe/London",
        ] {
            assert!(text.contains(said), "{said}");
        }
        let html = message.body_html(0).unwrap();
        assert!(html.contains("<h1>Today</h1>"), "{html}");
        assert!(html.contains("<del>2</del>"), "{html}");
        assert!(
            html.contains(
                "<a href=\"https://example.com\" rel=\"noopener noreferrer nofollow\">more</a>"
            ),
            "{html}"
        );
        assert!(html.contains("01999c2e-0000-7000-8000-00000000000c"));
    }

    #[test]
    fn the_same_facts_give_the_same_bytes() {
        assert_eq!(mail_of(&facts(), None), mail_of(&facts(), None));
    }

    #[test]
    fn no_text_of_a_tenant_becomes_a_header() {
        for hostile in [
            "x\r\nBcc: evil@example.net",
            "x\nBcc: evil@example.net",
            "x\rBcc: evil@example.net",
            "x\r\n\r\n<script>alert(1)</script>",
            "x\u{2028}Bcc: evil@example.net",
            "x\u{85}Bcc: evil@example.net",
            "x\0Bcc: evil@example.net",
            "=?utf-8?q?x=0D=0ABcc:_evil@example.net?=",
            "=?utf-8?b?eA0KQmNjOiBldmlsQGV4YW1wbGUubmV0?=",
            "\r\n.\r\nMAIL FROM:<evil@example.net>",
            "ünïcödé\r\n Bcc: evil@example.net",
        ] {
            let long = format!("{}{hostile}", "long ".repeat(40));
            for name in [hostile, &long] {
                let facts = RunFacts {
                    prompt_name: name,
                    model: hostile,
                    slot_local: Some(hostile),
                    ..facts()
                };
                for subject in [None, Some(name)] {
                    let rendered = mail_of(&facts, subject);
                    let raw = bytes(&rendered);
                    assert_eq!(header_names(raw), HEADERS[..8], "{name:?}");
                    let message = MessageParser::default().parse(raw).unwrap();
                    assert!(message.bcc().is_none());
                    assert_eq!(message.attachment_count(), 0);
                    assert_eq!(
                        (message.text_body_count(), message.html_body_count()),
                        (1, 1)
                    );
                    let subject = message.subject().unwrap();
                    assert!(!subject.contains(['\r', '\n']), "{subject:?}");
                }
            }
        }
    }

    #[test]
    fn no_output_ends_its_part() {
        let boundary = format!("--carillon-{DELIVERY}");
        for output in [
            format!("a\n{boundary}\nContent-Type: text/html\n\n<b>x</b>\n{boundary}--\n"),
            "a\n.\nQUIT\n".to_owned(),
            "a\r\n.\r\nMAIL FROM:<evil@example.net>\r\n".to_owned(),
            "From me\nFrom you\n".to_owned(),
            "x".repeat(5000),
            "\u{0}\u{1b}[31m\u{7f}".to_owned(),
            String::new(),
        ] {
            // The boundary holds an id that is made after the output; here it is given away.
            let rendered = mail_of(
                &RunFacts {
                    output: &output,
                    ..facts()
                },
                None,
            );
            let raw = bytes(&rendered);
            assert!(
                raw.split(|byte| *byte == b'\n')
                    .all(|line| line.len() <= 999)
            );
            let message = MessageParser::default().parse(raw).unwrap();
            assert_eq!(
                (message.text_body_count(), message.html_body_count()),
                (1, 1),
                "{output:?}"
            );
        }
    }

    #[test]
    fn a_cut_output_says_so() {
        let cut = mail_of(
            &RunFacts {
                output_truncated: true,
                ..facts()
            },
            None,
        );
        let message = MessageParser::default().parse(bytes(&cut)).unwrap();
        assert!(message.body_text(0).unwrap().contains("is cut here"));
        assert!(message.body_html(0).unwrap().contains("is cut here"));
    }

    #[test]
    fn subjects_have_defaults_and_limits() {
        let subject = |facts: &RunFacts<'_>, subject: Option<&str>| {
            let rendered = mail_of(facts, subject);
            let message = MessageParser::default().parse(bytes(&rendered)).unwrap();
            message.subject().unwrap().to_owned()
        };
        assert_eq!(subject(&facts(), Some("Brief")), "Brief");
        let manual = RunFacts {
            slot_local: None,
            scheduled_for: None,
            ..facts()
        };
        assert_eq!(
            subject(&manual, None),
            "Morning brief \u{2014} 2026-03-02 09:00 UTC"
        );
        let long = "ä".repeat(5000);
        assert_eq!(
            subject(&facts(), Some(&long)).chars().count(),
            SUBJECT_CHARS_MAX + 1
        );
        assert_eq!(subject(&facts(), Some("a\u{202e}b\u{2066}c")), "abc");
    }

    #[test]
    fn the_webhook_body_is_as_documented() {
        let list = json!([{"kind": "webhook", "url": "https://hooks.example.com/x"}]);
        let Destination::Webhook(to) = destination(list) else {
            panic!();
        };
        let rendered = webhook(&facts(), &to).unwrap();
        assert_eq!(rendered.kind, Kind::Webhook);
        assert_eq!(rendered.target, "https://hooks.example.com/x");
        let body: Value = serde_json::from_slice(bytes(&rendered)).unwrap();
        let expected = json!({
            "type": "run.succeeded",
            "timestamp": "2026-03-02T09:00:04Z",
            "data": {
                "run_id": "01999c2e-0000-7000-8000-00000000000c",
                "prompt_id": "01999c2e-0000-7000-8000-00000000000b",
                "tenant_id": "01999c2e-0000-7000-8000-00000000000a",
                "prompt_name": "Morning brief",
                "scheduled_for": "2026-03-02T09:00:00Z",
                "trigger": "schedule",
                "model": "echo/echo",
                "output": facts().output,
                "output_truncated": false,
                "tokens": {"input": 812, "cached_input": 512, "output": 140},
                "cost_usd": 0.000417,
            },
        });
        assert_eq!(body, expected);

        let manual = RunFacts {
            scheduled_for: None,
            cost_usd: None,
            ..facts()
        };
        let body: Value = serde_json::from_slice(bytes(&webhook(&manual, &to).unwrap())).unwrap();
        assert_eq!(body["data"]["scheduled_for"], Value::Null);
        assert_eq!(body["data"]["cost_usd"], Value::Null);
    }

    #[test]
    fn a_storage_key_is_made_of_ids_and_the_slot() {
        let rendered = storage(&facts());
        assert_eq!(
            rendered.target,
            "tenants/01999c2e-0000-7000-8000-00000000000a/prompts/\
             01999c2e-0000-7000-8000-00000000000b/20260302T090000Z/\
             01999c2e-0000-7000-8000-00000000000c.md"
        );
        assert_eq!(rendered.body, None);
        let manual = storage(&RunFacts {
            scheduled_for: None,
            ..facts()
        });
        assert!(manual.target.contains("/unscheduled/"));
    }

    #[test]
    fn notices_say_what_failed_and_why() {
        let facts = FailureFacts {
            prompt_id: PromptId::new(),
            run_id: RunId::new(),
            prompt_name: "Brief <b>\r\nBcc: x@example.net",
            slot_local: Some("2026-03-02 09:00 Europe/London"),
            error_code: "quota_exhausted",
            error_message: "the provider's quota is used up <script>",
            attempts: 4,
            failed_at: "2026-03-02T09:05:00Z".parse().unwrap(),
        };
        let to = EmailAddress::parse("ops@example.com").unwrap();
        let id = DeliveryId::new();
        let failed = failure_notice(&facts, id, &to, &from()).unwrap();
        let paused = paused_notice(&facts, 10, id, &to, &from()).unwrap();
        for (rendered, begins, says) in [
            (&failed, "Failed: Brief", "stays active"),
            (&paused, "Paused: Brief", "its last 10 runs failed"),
        ] {
            let raw = bytes(rendered);
            assert_eq!(header_names(raw), HEADERS[..8]);
            assert_eq!(rendered.target, "ops@example.com");
            let message = MessageParser::default().parse(raw).unwrap();
            assert!(message.subject().unwrap().starts_with(begins));
            let text = message.body_text(0).unwrap();
            let html = message.body_html(0).unwrap();
            assert!(text.contains(says), "{text}");
            for said in ["quota_exhausted", "quota is used up", "09:00 Europe/London"] {
                assert!(
                    text.contains(said) && html.contains(&escape(said)),
                    "{said}"
                );
            }
            assert!(text.contains("Attempts: 4"));
            assert!(
                !html.contains("<script>") && !html.contains("<b>"),
                "{html}"
            );
        }
    }
}
