//! What the OpenAPI document says about the body of a preview.
//!
//! What it takes of a prompt has the schema that it has there, so that the two cannot drift apart.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{Object, Schema},
    },
};

use super::request::OF_A_PROMPT;
use crate::{ids::PromptId, model::ModelName, prompt::PromptBody};

/// The body of a preview: read with [`super::Request::parse`].
#[derive(Debug)]
pub struct PreviewBody;

/// What a preview takes beside the fields of a prompt.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body; `Request::parse` reads it")]
#[serde(deny_unknown_fields)]
struct PreviewOptions {
    /// The model whose list price counts. Without it, that of `prompt_id`.
    #[schema(nullable)]
    model: Option<ModelName>,
    /// A prompt whose last successful runs say how long a run takes and what it costs, and whose runs
    /// count towards `max_runs`. What is not sent of its policies has its default.
    #[schema(nullable, value_type = Option<Uuid>)]
    prompt_id: Option<PromptId>,
    /// Slots at or after this; now unless given.
    #[schema(nullable)]
    from: Option<DateTime<Utc>>,
    /// Slots after this, the instant itself left out.
    #[schema(nullable)]
    after: Option<DateTime<Utc>>,
    /// Slots up to this, at most 400 days later.
    #[schema(nullable)]
    until: Option<DateTime<Utc>>,
    /// How many slots; 5 unless `until` is given.
    #[schema(nullable, minimum = 1, maximum = 1_000)]
    count: Option<u16>,
    /// How long a run takes, in seconds. Unless given, as long as the past runs of `prompt_id`, else 60.
    #[schema(nullable, minimum = 1, maximum = 86_400)]
    assumed_run_s: Option<u32>,
    /// A time in which nothing works: `misfire` and `catchup_window_s` say what becomes of its slots.
    /// The range ends no sooner than it.
    #[schema(nullable)]
    assumed_downtime: Option<AssumedDowntime>,
    /// Tokens that a run reads. Unless given, as many as the past runs of `prompt_id`, else 1,000.
    #[schema(nullable, minimum = 0, maximum = 10_000_000)]
    assumed_input_tokens: Option<u64>,
    /// Tokens that a run writes. Unless given, as many as the past runs of `prompt_id`, else 500.
    #[schema(nullable, minimum = 0, maximum = 10_000_000)]
    assumed_output_tokens: Option<u64>,
}

/// A time in which nothing works.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body; `Request::parse` reads it")]
#[serde(deny_unknown_fields)]
struct AssumedDowntime {
    /// Its beginning.
    from: DateTime<Utc>,
    /// Its end, at most 400 days after the beginning of the range.
    until: DateTime<Utc>,
}

impl PartialSchema for PreviewBody {
    fn schema() -> RefOr<Schema> {
        let mut body = object(PreviewOptions::schema());
        body.description = Some(
            "A schedule with its policies, as in a prompt, and what to look at. A field that is null \
             is the same as one that is absent."
                .to_owned(),
        );
        let prompt = object(PromptBody::schema()).properties;
        for (name, schema) in prompt {
            if name != "model" && OF_A_PROMPT.contains(&name.as_str()) {
                body.properties.insert(name, schema);
            }
        }
        body.required = vec!["schedule".to_owned()];
        RefOr::T(Schema::Object(body))
    }
}

impl ToSchema for PreviewBody {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("PreviewBody")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        PromptBody::schemas(schemas);
        PreviewOptions::schemas(schemas);
    }
}

fn object(schema: RefOr<Schema>) -> Object {
    match schema {
        RefOr::T(Schema::Object(object)) => object,
        // A struct with named fields is an object; the document's tests would see it.
        RefOr::T(_) | RefOr::Ref(_) => Object::new(),
    }
}
