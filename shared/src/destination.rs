//! Where a run's output goes: the tagged union that the API takes and the table stores.
//!
//! Pure. The stored JSON is the API's JSON. Everything is checked once, by
//! [`Destination::parse_all`]; a webhook's URL is checked again at each connection, because the name
//! in it may lead elsewhere by then.

use std::{borrow::Cow, collections::HashSet, fmt, str::FromStr};

use email_address::{EmailAddress as Parsed, Options};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Discriminator, OneOfBuilder, Ref, RefOr,
        schema::{
            AdditionalProperties, ArrayBuilder, KnownFormat, Object, ObjectBuilder, Schema,
            SchemaFormat, SchemaType, Type,
        },
    },
};

use crate::{
    fault::Fault,
    fields::{Field, Fields},
    outbound::{self, Policy, URL_BYTES_MAX},
};

/// The most destinations of one prompt.
pub const DESTINATIONS_MAX: usize = 5;
/// The most recipients of one email destination.
pub const RECIPIENTS_MAX: usize = 20;
/// The longest subject template, in characters.
pub const SUBJECT_CHARS_MAX: usize = 200;
/// The longest email address, in bytes (RFC 5321 with its erratum 1690).
pub const EMAIL_BYTES_MAX: usize = 254;

/// One place that a run's output goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Destination {
    /// A message to people.
    Email(EmailDestination),
    /// A signed POST to a server of the tenant.
    Webhook(WebhookDestination),
    /// A file that is kept for the tenant.
    Storage,
}

/// An email to one or more people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailDestination {
    to: Vec<EmailAddress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(default)]
    on_unknown: OnUnknown,
}

/// A signed POST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookDestination {
    url: Url,
}

/// What to do when nobody can tell whether an email went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// Send it again: it may come twice.
    #[default]
    Resend,
    /// Wait for a person: it may not come at all.
    Hold,
}

/// The kind of a destination, as the tables and the API name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = DestinationKind)]
pub enum Kind {
    /// [`Destination::Email`], and the notices that go to a prompt's notification email.
    Email,
    /// [`Destination::Webhook`].
    Webhook,
    /// [`Destination::Storage`].
    Storage,
}

/// An address of one person or list: `name@domain.tld`, ASCII, without quotes or comments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EmailAddress(String);

impl Destination {
    /// Parses a prompt's list of destinations, which may be empty.
    ///
    /// # Errors
    ///
    /// Every fault of every entry, with paths relative to the list, such as `[1].url`.
    pub fn parse_all(list: &Value, policy: &Policy) -> Result<Vec<Self>, Vec<Fault>> {
        let mut faults = Vec::new();
        // An entry with a fault stays as a gap, so that the places of the others are right.
        let entries = Field::root(list, &mut faults)
            .list(0..=DESTINATIONS_MAX, |entry| {
                Some(entry.parse(|value| parse_one(value, policy)))
            })
            .unwrap_or_default();
        faults.extend(duplicates(&entries));
        if faults.is_empty() {
            Ok(entries.into_iter().flatten().collect())
        } else {
            Err(faults)
        }
    }

    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Email(_) => Kind::Email,
            Self::Webhook(_) => Kind::Webhook,
            Self::Storage => Kind::Storage,
        }
    }
}

impl EmailDestination {
    /// The recipients, at least one.
    #[must_use]
    pub fn to(&self) -> &[EmailAddress] {
        &self.to
    }

    /// The template of the subject, if the prompt has its own.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// What to do when nobody can tell whether the email went out.
    #[must_use]
    pub fn on_unknown(&self) -> OnUnknown {
        self.on_unknown
    }
}

impl WebhookDestination {
    /// Where to post.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }
}

impl OnUnknown {
    /// Every choice, the default first.
    pub const ALL: [Self; 2] = [Self::Resend, Self::Hold];

    /// The text in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resend => "resend",
            Self::Hold => "hold",
        }
    }
}

impl Kind {
    /// Every kind, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Email, Self::Webhook, Self::Storage];

    /// The text in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Webhook => "webhook",
            Self::Storage => "storage",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "email" => Ok(Self::Email),
            "webhook" => Ok(Self::Webhook),
            "storage" => Ok(Self::Storage),
            _ => Err(UnknownKind),
        }
    }
}

/// The text names no kind of destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind of destination; use email, webhook or storage")]
pub struct UnknownKind;

impl EmailAddress {
    /// Parses one bare address.
    ///
    /// # Errors
    ///
    /// A [`Fault`] with an empty field and the code `invalid_email`.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let refused = |detail: &str, hint: &str| Fault::new("", "invalid_email", detail, hint);
        if text.len() > EMAIL_BYTES_MAX {
            return Err(refused("the address is too long", "send at most 254 bytes"));
        }
        if !text.is_ascii() {
            return Err(refused(
                "the address holds characters outside ASCII",
                "write the domain in its xn-- form; other names before the @ are not supported",
            ));
        }
        // Quoted names and address literals are legal, rare, and a known way around filters.
        let plain = !text
            .bytes()
            .any(|byte| byte.is_ascii_control() || b" \"(),:;<>[\\]".contains(&byte))
            // Some mail programs decode an encoded word (RFC 2047) even here, line breaks included.
            && !text.contains("=?");
        let options = Options::default()
            .with_required_tld()
            .without_domain_literal()
            .without_display_text();
        if !plain || Parsed::parse_with_options(text, options).is_err() {
            return Err(refused(
                "not an email address",
                "send one bare address such as name@example.com",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address as it is compared with others: in lower case.
    #[must_use]
    pub fn normalized(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl TryFrom<String> for EmailAddress {
    type Error = InvalidEmail;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).map_err(|_| InvalidEmail)
    }
}

impl From<EmailAddress> for String {
    fn from(address: EmailAddress) -> Self {
        address.0
    }
}

/// A stored text is not an email address. It is left out on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an email address; expected name@domain.tld")]
pub struct InvalidEmail;

fn parse_one(value: &Value, policy: &Policy) -> Result<Destination, Vec<Fault>> {
    let mut fields = Fields::new(value);
    let Some(kind) = fields
        .required_such_as("kind", "email")
        .word(&Kind::ALL, Kind::as_str)
    else {
        return Err(fields.give_up());
    };
    let destination = match kind {
        Kind::Email => parse_email(&mut fields).map(Destination::Email),
        Kind::Webhook => parse_webhook(&mut fields, policy).map(Destination::Webhook),
        Kind::Storage => Some(Destination::Storage),
    };
    fields.finish(destination)
}

fn parse_email(fields: &mut Fields<'_>) -> Option<EmailDestination> {
    let to = fields
        .required_such_as("to", "[\"name@example.com\"]")
        .list(1..=RECIPIENTS_MAX, |item| {
            item.parse_text(EmailAddress::parse)
        });
    let subject = fields.optional("subject").line(1..=SUBJECT_CHARS_MAX);
    let on_unknown = fields
        .optional("on_unknown")
        .word(&OnUnknown::ALL, OnUnknown::as_str);
    Some(EmailDestination {
        to: to?,
        subject: subject.map(str::to_owned),
        on_unknown: on_unknown.unwrap_or_default(),
    })
}

fn parse_webhook(fields: &mut Fields<'_>, policy: &Policy) -> Option<WebhookDestination> {
    let url = fields
        .required_such_as("url", "https://example.com/hook")
        .parse_text(|text| outbound::check_url(text, policy))?;
    Some(WebhookDestination { url })
}

/// The same person, URL or store twice would get the same output twice.
fn duplicates(entries: &[Option<Destination>]) -> Vec<Fault> {
    let mut seen = HashSet::new();
    let mut faults = Vec::new();
    let mut note = |place: String, target: String| {
        if !seen.insert(target) {
            faults.push(Fault::new(
                place,
                "duplicate",
                "the output already goes there",
                "name each recipient, URL and store once",
            ));
        }
    };
    for (index, entry) in entries.iter().enumerate() {
        let Some(destination) = entry else { continue };
        match destination {
            Destination::Email(email) => {
                for (at, address) in email.to.iter().enumerate() {
                    let target = address.normalized();
                    note(format!("[{index}].to[{at}]"), target);
                }
            }
            Destination::Webhook(webhook) => {
                note(format!("[{index}].url"), webhook.url.to_string());
            }
            Destination::Storage => note(format!("[{index}]"), "storage".to_owned()),
        }
    }
    faults
}

// The schema is written by hand: the derive cannot say `discriminator` for a union whose tag is not
// a field of its members, and would forbid the tag where it forbids unknown fields.

impl ToSchema for Destination {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Destination")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        for (kind, name) in MEMBERS {
            schemas.push((name.to_owned(), RefOr::T(Schema::Object(member(kind)))));
        }
    }
}

impl PartialSchema for Destination {
    fn schema() -> RefOr<Schema> {
        let mapping =
            MEMBERS.map(|(kind, name)| (kind.as_str(), format!("#/components/schemas/{name}")));
        let union = MEMBERS
            .iter()
            .fold(OneOfBuilder::new(), |union, (_, name)| {
                union.item(Ref::from_schema_name(*name))
            })
            .description(Some("One place that a run's output goes to."))
            .discriminator(Some(Discriminator::with_mapping("kind", mapping)));
        RefOr::T(Schema::OneOf(union.build()))
    }
}

const MEMBERS: [(Kind, &str); 3] = [
    (Kind::Email, "EmailDestination"),
    (Kind::Webhook, "WebhookDestination"),
    (Kind::Storage, "StorageDestination"),
];

fn member(kind: Kind) -> Object {
    let tag = text().enum_values(Some([kind.as_str()]));
    let object = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("kind", tag)
        .required("kind")
        .additional_properties(Some(AdditionalProperties::FreeForm(false)));
    let object = match kind {
        Kind::Email => object
            .description(Some(
                "A message to people: text and HTML from the output's Markdown.",
            ))
            .property(
                "to",
                ArrayBuilder::new()
                    .items(
                        text()
                            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Email)))
                            .max_length(Some(EMAIL_BYTES_MAX)),
                    )
                    .min_items(Some(1))
                    .max_items(Some(RECIPIENTS_MAX))
                    .unique_items(true)
                    .description(Some("Bare addresses; all recipients see one another.")),
            )
            .required("to")
            .property(
                "subject",
                text_or_null()
                    .min_length(Some(1))
                    .max_length(Some(SUBJECT_CHARS_MAX))
                    .pattern(Some(r"^[^\u0000-\u001f\u007f-\u009f]*$"))
                    .description(Some(
                        "A template. The default is the prompt's name and the slot's local time.",
                    )),
            )
            .property(
                "on_unknown",
                text_or_null()
                    .enum_values(Some([json!("resend"), json!("hold"), Value::Null]))
                    .default(Some(Value::from("resend")))
                    .description(Some(
                        "What to do when nobody can tell whether the email went out.",
                    )),
            ),
        Kind::Webhook => object
            .description(Some("A POST signed by Standard Webhooks."))
            .property(
                "url",
                text()
                    .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uri)))
                    .max_length(Some(URL_BYTES_MAX))
                    .description(Some("A public https URL on port 443 or 8443.")),
            )
            .required("url"),
        Kind::Storage => object.description(Some("A file that is kept for the tenant.")),
    };
    object.build()
}

/// In a request, null is the same as nothing.
fn text_or_null() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]))
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &Value) -> Result<Vec<Destination>, Vec<Fault>> {
        Destination::parse_all(list, &Policy::PUBLIC)
    }

    fn places(list: &Value) -> Vec<(String, &'static str)> {
        parse(list)
            .unwrap_err()
            .into_iter()
            .map(|fault| (fault.field, fault.code))
            .collect()
    }

    #[test]
    fn what_is_stored_is_what_was_sent() {
        let list = json!([
            {"kind": "email", "to": ["ann@example.com", "b+c@mail.example.org"],
             "subject": "Brief of {{ slot.date }}", "on_unknown": "hold"},
            {"kind": "webhook", "url": "https://hooks.example.com/x?y=z"},
            {"kind": "storage"},
        ]);
        let parsed = parse(&list).unwrap();
        assert_eq!(serde_json::to_value(&parsed).unwrap(), list);
        let read: Vec<Destination> = serde_json::from_value(list).unwrap();
        assert_eq!(read, parsed);
        let kinds: Vec<_> = parsed.iter().map(|one| one.kind().as_str()).collect();
        assert_eq!(kinds, ["email", "webhook", "storage"]);
    }

    #[test]
    fn defaults_are_resend_and_no_subject() {
        let parsed = parse(&json!([{"kind": "email", "to": ["a@b.example"]}])).unwrap();
        let [Destination::Email(email)] = parsed.as_slice() else {
            panic!("{parsed:?}");
        };
        assert_eq!(email.on_unknown(), OnUnknown::Resend);
        assert_eq!(email.subject(), None);
        assert_eq!(parse(&json!([])), Ok(vec![]));
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_place() {
        let list = json!([
            {"kind": "email", "to": ["ok@example.com", "no", 7], "subject": "a\r\nBcc: x@y.example",
             "on_unknown": "maybe", "cc": []},
            {"kind": "webhook", "url": "https://169.254.169.254/", "secret": "x"},
            {"kind": "pigeon"},
            "storage",
            {"to": []},
        ]);
        let expected = [
            ("[0].to[1]", "invalid_email"),
            ("[0].to[2]", "wrong_type"),
            ("[0].subject", "control_character"),
            ("[0].on_unknown", "unknown_value"),
            ("[0].cc", "unknown_field"),
            ("[1].url", "url_not_allowed"),
            ("[1].secret", "unknown_field"),
            ("[2].kind", "unknown_value"),
            ("[3]", "wrong_type"),
            ("[4].kind", "missing"),
        ]
        .map(|(field, code)| (field.to_owned(), code));
        assert_eq!(places(&list), expected);
    }

    #[test]
    fn limits_are_exact() {
        let storages = |count| Value::from(vec![json!({"kind": "webhook"}); count]);
        assert_eq!(places(&storages(6)), [(String::new(), "too_many")]);
        assert_eq!(places(&storages(5)).len(), 5);
        let to = |count: usize| {
            let list: Vec<_> = (0..count).map(|n| format!("a{n}@b.example")).collect();
            json!([{"kind": "email", "to": list}])
        };
        assert!(parse(&to(20)).is_ok());
        assert_eq!(places(&to(21)), [("[0].to".to_owned(), "too_many")]);
        assert_eq!(places(&to(0)), [("[0].to".to_owned(), "too_few")]);
        let subject =
            |count| json!([{"kind": "email", "to": ["a@b.example"], "subject": "ü".repeat(count)}]);
        assert!(parse(&subject(200)).is_ok());
        assert_eq!(
            places(&subject(201)),
            [("[0].subject".to_owned(), "too_long")]
        );
    }

    #[test]
    fn nothing_goes_to_one_place_twice() {
        let list = json!([
            {"kind": "email", "to": ["a@b.example", "A@B.example"]},
            {"kind": "email", "to": ["c@b.example", "a@b.example"]},
            {"kind": "webhook", "url": "https://example.com"},
            {"kind": "webhook", "url": "https://EXAMPLE.com:443/"},
            {"kind": "storage"},
        ]);
        let expected =
            ["[0].to[1]", "[1].to[1]", "[3].url"].map(|field| (field.to_owned(), "duplicate"));
        assert_eq!(places(&list), expected);
        let stores = json!([{"kind": "storage"}, {"kind": "storage"}]);
        assert_eq!(places(&stores), [("[1]".to_owned(), "duplicate")]);
    }

    #[test]
    fn odd_addresses_are_refused() {
        let long = format!("{}@example.com", "a".repeat(250));
        for text in [
            "",
            "a",
            "@example.com",
            "a@",
            "a@b",
            "root@localhost",
            "a@b@example.com",
            "a b@example.com",
            "a@exa mple.com",
            "a@example.com\r\nBcc: x@y.example",
            "a@example.com\n",
            "a@example.com\0",
            "=?utf-8?b?eA0KQmNjOiBldmlsQGV4YW1wbGUubmV0?=@example.com",
            "\ta@example.com",
            " a@example.com",
            "a@example.com,b@example.com",
            "a@example.com;b@example.com",
            "Ann <a@example.com>",
            "<a@example.com>",
            "\"a\"@example.com",
            "\"a\\\r\nb\"@example.com",
            "a@[127.0.0.1]",
            "a@[IPv6:::1]",
            "a(comment)@example.com",
            "a..b@example.com",
            ".a@example.com",
            "a.@example.com",
            "a@-example.com",
            "a@example..com",
            "a@.example.com",
            "ä@example.com",
            "a@bücher.example",
            "a@ex\u{202e}ample.com",
            &long,
        ] {
            assert_eq!(
                EmailAddress::parse(text).unwrap_err().code,
                "invalid_email",
                "{text:?}"
            );
        }
        for text in [
            "a@b.example",
            "a.b+c_d-e@sub.example.co.uk",
            "o'brien@xn--bcher-kva.example",
        ] {
            assert_eq!(EmailAddress::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn the_schema_is_a_union_with_a_discriminator() {
        let schema = serde_json::to_value(Destination::schema()).unwrap();
        assert_eq!(schema["discriminator"]["propertyName"], "kind");
        assert_eq!(schema["oneOf"].as_array().unwrap().len(), 3);
        let mut members = Vec::new();
        Destination::schemas(&mut members);
        for (name, member) in members {
            let reference = format!("#/components/schemas/{name}");
            let member = serde_json::to_value(member).unwrap();
            let kind = member["properties"]["kind"]["enum"][0].as_str().unwrap();
            assert_eq!(schema["discriminator"]["mapping"][kind], reference.as_str());
            assert_eq!(member["additionalProperties"], false, "{name}");
        }
    }
}
