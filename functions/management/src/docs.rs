//! The OpenAPI document: what the handlers say of themselves, and what is true of all of them.

mod examples;
pub(crate) mod page;

use serde_json::Value;
use utoipa::{
    OpenApi,
    openapi::{
        Components, Content, Header, HttpMethod, Ref, RefOr, Required, Response, Schema,
        header::HeaderBuilder,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem},
        schema::{ArrayItems, ObjectBuilder, SchemaType, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::{
    error::Problem,
    page::{CURSOR_CHARS_MAX, Limit},
    routes,
};

const API_KEY: &str = "api_key";
const TOKEN: &str = "token";
const PLATFORM_KEY: &str = "platform_key";
const HEALTH: &str = "/health";
/// RFC 9110, section 13.1.1.
const ENTITY_TAGS: &str = r#"^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$"#;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Carillon",
        description = "Runs AI prompts on a schedule. Every answer that is not a success is a \
                       problem body (RFC 9457) with a stable `code`. Lists come in pages: pass \
                       `next_cursor` as `cursor` to get the next one. A POST with an \
                       `Idempotency-Key` may be repeated for 24 hours and has its effect once. A \
                       caller has an API key, or a token of the installation's OpenID Connect \
                       issuer; with a token of somebody who is a user of several tenants, the \
                       header `Carillon-Tenant` names one of them by its id. A front end that \
                       knows its tenant should always send it: what it names is checked, and \
                       never taken on trust. Each key, each user and each tenant has a number of \
                       requests a minute; what is over it is answered 429 with `Retry-After`."
    ),
    components(schemas(Problem)),
    tags(
        (name = "prompts", description = "Scheduled prompts"),
        (name = "calendars", description = "Holidays that prompts leave out"),
        (name = "backfills", description = "Runs of past slots"),
        (name = "runs", description = "The executions of prompts"),
        (name = "deliveries", description = "What was sent where"),
        (name = "tenant", description = "The caller's tenant: limits, users, keys, webhook secret, audit trail"),
        (name = "admin", description = "For the operator, with the platform's key"),
        (name = "health", description = "Whether the service works"),
    )
)]
struct Api;

/// The OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes::documented().into_openapi()
}

/// What the document begins with.
pub(crate) fn base() -> utoipa::openapi::OpenApi {
    let mut api = Api::openapi();
    crate::app::VERSION.clone_into(&mut api.info.version);
    let components = api.components.get_or_insert_default();
    for (name, description) in [
        (API_KEY, "A key of the tenant, `ck_…`."),
        (
            TOKEN,
            "An access token of the installation's OpenID Connect issuer, where it has one. The \
             header `Carillon-Tenant` names the tenant where its user has several.",
        ),
        (PLATFORM_KEY, "The platform's key, for `/v1/admin`."),
    ] {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(description))
            .build();
        components.add_security_scheme(name, SecurityScheme::Http(scheme));
    }
    api
}

/// Adds to every operation what the frame does around it.
pub(crate) fn complete(api: &mut utoipa::openapi::OpenApi) {
    if let Some(components) = &mut api.components {
        name_items(components);
    }
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in operations(item) {
            secure(path, operation);
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter {
                    describe_parameter(parameter);
                }
            }
            // A preview changes nothing, so it may be repeated as it is.
            let repeatable = method == HttpMethod::Post && !path.ends_with("/preview");
            if repeatable {
                let parameters = operation.parameters.get_or_insert_default();
                parameters.push(RefOr::T(idempotency_key()));
            }
            for (status, description) in refusals(path, &method, repeatable, operation) {
                operation
                    .responses
                    .responses
                    .entry(status.to_owned())
                    .or_insert_with(|| RefOr::T(problem(description)));
            }
            describe_body(operation);
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response {
                    describe_response(path, status, repeatable, response);
                }
            }
        }
    }
}

/// The items of a page are named, not repeated.
fn name_items(components: &mut Components) {
    let names: Vec<String> = components.schemas.keys().cloned().collect();
    for name in &names {
        if let Some(item) = name.strip_prefix("Page_")
            && names.iter().any(|name| name == item)
            && let Some(RefOr::T(Schema::Object(page))) = components.schemas.get_mut(name)
            && let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items")
        {
            let named = RefOr::Ref(Ref::from_schema_name(item));
            items.items = ArrayItems::RefOrSchema(Box::new(named));
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    [
        (HttpMethod::Get, item.get.as_mut()),
        (HttpMethod::Post, item.post.as_mut()),
        (HttpMethod::Put, item.put.as_mut()),
        (HttpMethod::Patch, item.patch.as_mut()),
        (HttpMethod::Delete, item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

fn secure(path: &str, operation: &mut Operation) {
    let schemes: &[&str] = if path == HEALTH {
        return;
    } else if path.starts_with("/v1/admin") {
        &[PLATFORM_KEY]
    } else {
        &[API_KEY, TOKEN]
    };
    let one_of = schemes
        .iter()
        .map(|scheme| SecurityRequirement::new(*scheme, Vec::<String>::new()));
    operation.security = Some(one_of.collect());
}

/// A query or a header holds text: one that may be left out is never null.
fn describe_parameter(parameter: &mut Parameter) {
    let text = ObjectBuilder::new().schema_type(Type::String);
    match parameter.name.as_str() {
        "cursor" => {
            let cursor = text
                .min_length(Some(1))
                .max_length(Some(CURSOR_CHARS_MAX))
                .pattern(Some("^[A-Za-z0-9_-]+$"));
            parameter.schema = Some(cursor.into());
        }
        "If-Match" => {
            let tags = text.pattern(Some(ENTITY_TAGS)).examples(["\"2\""]);
            parameter.schema = Some(tags.into());
        }
        _ => {}
    }
    let schema = match &mut parameter.schema {
        Some(RefOr::T(schema)) => schema,
        Some(RefOr::Ref(_)) | None => return,
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's enum is not exhaustive"
    )]
    match schema {
        Schema::Object(object) => {
            forget_null(&mut object.schema_type);
            if parameter.name == "limit" {
                object.default = Some(Value::from(Limit::DEFAULT.items()));
            }
        }
        Schema::Array(array) => forget_null(&mut array.schema_type),
        Schema::OneOf(either) => {
            either.items.retain(|one| !is_null(one));
            if let [only] = either.items.as_slice() {
                parameter.schema = Some(only.clone());
            }
        }
        _ => {}
    }
}

fn forget_null(kind: &mut SchemaType) {
    if let SchemaType::Array(types) = kind {
        types.retain(|one| *one != Type::Null);
        if let [only] = types.as_slice() {
            *kind = SchemaType::Type(only.clone());
        }
    }
}

fn is_null(schema: &RefOr<Schema>) -> bool {
    match schema {
        RefOr::T(Schema::Object(object)) => object.schema_type == SchemaType::Type(Type::Null),
        RefOr::T(_) | RefOr::Ref(_) => false,
    }
}

fn describe_body(operation: &mut Operation) {
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        for content in body.content.values_mut() {
            exemplify(content);
        }
    }
}

fn describe_response(path: &str, status: &str, repeatable: bool, response: &mut Response) {
    for (media_type, content) in &mut response.content {
        if media_type == "application/problem+json" {
            if let RefOr::T(content) = content
                && content.example.is_none()
            {
                content.example = examples::problem(path, status);
            }
        } else {
            exemplify(content);
        }
    }
    let mut tell = |name: &str, description: &str| {
        response
            .headers
            .entry(name.to_owned())
            .or_insert_with(|| RefOr::T(text_header(description)));
    };
    tell("x-request-id", "The request's id: your own, or a new one");
    match status {
        "401" => tell("WWW-Authenticate", "How to say who you are"),
        "409" if repeatable => tell(
            "Retry-After",
            "Seconds to wait, where an equal request is under way",
        ),
        "429" => tell("Retry-After", "Seconds to wait"),
        "503" if path != HEALTH => tell("Retry-After", "Seconds to wait"),
        _ if repeatable && status.starts_with('2') => {
            tell(
                "Idempotent-Replayed",
                "`true` where the answer is that of an earlier request",
            );
        }
        _ => {}
    }
}

/// An example of the content, by the name of its schema.
fn exemplify(content: &mut RefOr<Content>) {
    let RefOr::T(content) = content else { return };
    if content.example.is_none() && content.examples.is_empty() {
        content.example = content.schema.as_ref().and_then(example_of);
    }
}

fn example_of(schema: &RefOr<Schema>) -> Option<Value> {
    match schema {
        RefOr::Ref(named) => examples::of(named.ref_location.rsplit('/').next()?),
        RefOr::T(Schema::OneOf(either)) => either.items.iter().find_map(example_of),
        RefOr::T(_) => None,
    }
}

fn text_header(description: &str) -> Header {
    HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .description(Some(description))
        .build()
}

fn refusals(
    path: &str,
    method: &HttpMethod,
    repeatable: bool,
    operation: &Operation,
) -> Vec<(&'static str, &'static str)> {
    let mut refusals = vec![
        ("500", "Something went wrong on our side"),
        ("503", "The service cannot answer at the moment"),
    ];
    if path == HEALTH {
        return refusals;
    }
    refusals.push((
        "401",
        "The key or the token is missing, unknown, revoked or expired",
    ));
    if !path.starts_with("/v1/admin") {
        refusals.push((
            "403",
            "The role is too low, the tenant is suspended, or the token's user is not in it",
        ));
        refusals.push((
            "429",
            "The key, the user or the tenant has made too many requests",
        ));
    }
    if path.contains('{') || path.starts_with("/v1/admin") {
        refusals.push(("404", "There is no such object"));
    }
    // A query parameter that nobody knows is refused everywhere.
    refusals.push(("422", "The request has faults; `errors` lists them"));
    if operation.request_body.is_some() {
        refusals.push(("400", "The body is not JSON"));
        refusals.push(("415", "The body is not declared as JSON"));
    }
    if repeatable {
        refusals.push(("409", "An equal request is under way"));
    }
    if *method != HttpMethod::Get {
        refusals.push(("413", "The body is larger than 256 kB"));
    }
    if matches!(method, HttpMethod::Put | HttpMethod::Patch) && !path.starts_with("/v1/admin") {
        refusals.push(("412", "The object is not at the version of `If-Match`"));
    }
    refusals
}

fn problem(description: &str) -> Response {
    let schema = RefOr::<Schema>::Ref(Ref::from_schema_name("Problem"));
    let mut response = Response::new(description);
    response.content.insert(
        "application/problem+json".to_owned(),
        RefOr::T(Content::new(Some(schema))),
    );
    response
}

fn idempotency_key() -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .min_length(Some(1))
        .max_length(Some(200))
        .pattern(Some("^[!-~]+$"))
        .build();
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Makes the request safe to repeat for 24 hours: the first answer is given again.",
        ))
        .schema(Some(schema))
        .build()
}
