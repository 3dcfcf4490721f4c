//! What the OpenAPI document says about the bodies that create, replace and patch a prompt.
//!
//! Both are derived from the schema of [`PromptSpec`], which is also what responses hold, so that the
//! three cannot drift apart.

use std::borrow::Cow;

use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{
            AdditionalProperties, ArrayItems, Object, ObjectBuilder, OneOfBuilder, Schema,
            SchemaType, Type,
        },
    },
};

use super::{PromptSpec, TAG_CHARS_MAX};

/// What a body must hold; for all else there is a default.
const REQUIRED: [&str; 4] = ["prompt_name", "prompt_text", "model", "schedule"];

/// Text without line breaks and other control characters.
const ONE_LINE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// The body that creates a prompt or takes the place of another: read with [`PromptSpec::parse`].
#[derive(Debug)]
pub struct PromptBody;

/// The body that changes a prompt: read with [`PromptSpec::merge_patch`].
#[derive(Debug)]
pub struct PromptPatch;

impl PartialSchema for PromptBody {
    fn schema() -> RefOr<Schema> {
        let mut body = fields();
        body.description = Some(
            "A prompt to create, or to put in the place of another. An optional field that is null \
             is the same as one that is absent."
                .to_owned(),
        );
        body.required = REQUIRED.map(str::to_owned).to_vec();
        for (name, schema) in &mut body.properties {
            if !REQUIRED.contains(&name.as_str()) {
                allow_null(schema);
            }
        }
        body.example = Some(json!({
            "prompt_name": "Morning brief",
            "prompt_text": "Write a brief on {{ context.topic }} for {{ slot.weekday }}, {{ slot.date }}.",
            "model": "openai/gpt-5-mini",
            "context": {"topic": "the energy market"},
            "schedule": {"type": "cron", "expression": "0 9 * * 1-5", "timezone": "Europe/London"},
            "destinations": [{"kind": "email", "to": ["ann@example.com"]}],
        }));
        RefOr::T(Schema::Object(body))
    }
}

impl ToSchema for PromptBody {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("PromptBody")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        PromptSpec::schemas(schemas);
    }
}

impl PartialSchema for PromptPatch {
    fn schema() -> RefOr<Schema> {
        let mut patch = fields();
        patch.description = Some(
            "A merge patch (RFC 7396): what is absent stays as it is, null takes a value away or \
             brings back its default, objects merge, lists are replaced. The result is checked as a \
             whole."
                .to_owned(),
        );
        patch.required = Vec::new();
        // A part of a schedule is no schedule.
        let part = ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("The fields of the schedule to change."));
        patch.properties.insert("schedule".to_owned(), part.into());
        for (name, schema) in &mut patch.properties {
            forget_default(schema);
            if !REQUIRED.contains(&name.as_str()) {
                allow_null(schema);
            }
        }
        patch.example = Some(json!({"max_retries": 5, "schedule": {"timezone": "Europe/Paris"}}));
        RefOr::T(Schema::Object(patch))
    }
}

impl ToSchema for PromptPatch {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("PromptPatch")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        PromptSpec::schemas(schemas);
    }
}

/// The fields of a prompt and no others.
fn fields() -> Object {
    let mut object = match PromptSpec::schema() {
        RefOr::T(Schema::Object(object)) => object,
        // A struct with named fields is an object; a test would see it.
        RefOr::T(_) | RefOr::Ref(_) => Object::new(),
    };
    object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    let tag = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(TAG_CHARS_MAX))
        .pattern(Some(ONE_LINE))
        .build();
    // What the derive cannot say.
    for (name, schema) in &mut object.properties {
        match (name.as_str(), schema) {
            ("context" | "metadata", RefOr::T(Schema::Object(object))) => {
                object.default = Some(json!({}));
            }
            ("tags", RefOr::T(Schema::Array(tags))) => {
                tags.items = ArrayItems::from(tag.clone());
                tags.unique_items = true;
                tags.default = Some(json!([]));
            }
            _ => {}
        }
    }
    object
}

fn allow_null(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Object(object)) => {
            add_null(&mut object.schema_type);
            object
                .enum_values
                .iter_mut()
                .for_each(|words| words.push(Value::Null));
        }
        RefOr::T(Schema::Array(array)) => add_null(&mut array.schema_type),
        RefOr::T(_) | RefOr::Ref(_) => {
            let null = ObjectBuilder::new().schema_type(Type::Null);
            let either = OneOfBuilder::new().item(null).item(schema.clone());
            *schema = RefOr::T(Schema::OneOf(either.build()));
        }
    }
}

fn add_null(kind: &mut SchemaType) {
    if let SchemaType::Type(only) = kind {
        *kind = SchemaType::from_iter([only.clone(), Type::Null]);
    }
}

fn forget_default(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Object(object)) => object.default = None,
        RefOr::T(Schema::Array(array)) => array.default = None,
        RefOr::T(_) | RefOr::Ref(_) => {}
    }
}
