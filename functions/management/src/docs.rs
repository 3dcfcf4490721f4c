//! The OpenAPI document: what the handlers say of themselves, and what is true of all of them.

use utoipa::{
    OpenApi,
    openapi::{
        Content, HttpMethod, Ref, RefOr, Required, Response, Schema,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem},
        schema::{ObjectBuilder, SchemaType, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::{error::Problem, routes};

const API_KEY: &str = "api_key";
const PLATFORM_KEY: &str = "platform_key";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Carillon",
        description = "Runs AI prompts on a schedule. Every answer that is not a success is a \
                       problem body (RFC 9457) with a stable `code`. Lists come in pages: pass \
                       `next_cursor` as `cursor` to get the next one. A POST with an \
                       `Idempotency-Key` may be repeated for 24 hours and has its effect once."
    ),
    components(schemas(Problem)),
    tags(
        (name = "prompts", description = "Scheduled prompts"),
        (name = "runs", description = "The executions of prompts"),
        (name = "deliveries", description = "What was sent where"),
        (name = "tenant", description = "The caller's tenant: limits, keys, webhook secret, audit trail"),
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
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in operations(item) {
            secure(path, operation);
            if method == HttpMethod::Post && !path.ends_with("/preview") {
                let parameters = operation.parameters.get_or_insert_default();
                parameters.push(RefOr::T(idempotency_key()));
            }
            for (status, description) in refusals(path, &method, operation) {
                operation
                    .responses
                    .responses
                    .entry(status.to_owned())
                    .or_insert_with(|| RefOr::T(problem(description)));
            }
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
    let scheme = if path == "/health" {
        return;
    } else if path.starts_with("/v1/admin") {
        PLATFORM_KEY
    } else {
        API_KEY
    };
    let requirement = SecurityRequirement::new(scheme, Vec::<String>::new());
    operation.security = Some(vec![requirement]);
}

fn refusals(
    path: &str,
    method: &HttpMethod,
    operation: &Operation,
) -> Vec<(&'static str, &'static str)> {
    let mut refusals = vec![
        ("500", "Something went wrong on our side"),
        ("503", "The service cannot answer at the moment"),
    ];
    if path == "/health" {
        return refusals;
    }
    refusals.push(("401", "The key is missing, unknown, revoked or expired"));
    if !path.starts_with("/v1/admin") {
        refusals.push((
            "403",
            "The key's role is too low, or the tenant is suspended",
        ));
    }
    if path.contains('{') || path.starts_with("/v1/admin") {
        refusals.push(("404", "There is no such object"));
    }
    let in_query = |parameter: &RefOr<Parameter>| match parameter {
        RefOr::T(parameter) => parameter.parameter_in == ParameterIn::Query,
        RefOr::Ref(_) => false,
    };
    let mut parameters = operation.parameters.iter().flatten();
    if *method != HttpMethod::Get || parameters.any(in_query) {
        refusals.push(("422", "The request has faults; `errors` lists them"));
    }
    if operation.request_body.is_some() {
        refusals.push(("400", "The body is not JSON"));
        refusals.push(("415", "The body is not declared as JSON"));
    }
    if *method != HttpMethod::Get {
        refusals.push((
            "409",
            "The object's state forbids it, or an equal request is under way",
        ));
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
