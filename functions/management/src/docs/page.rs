//! The interactive page at `/docs`: Swagger UI over the document at `/openapi.json`, from the
//! binary's own bytes. It asks nobody else for anything.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::Path,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE},
    },
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa::openapi::OpenApi;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const PNG: &str = "image/png";

/// A new version of the page must not meet an old one's scripts for long.
const CACHED: &str = "public, max-age=3600";

const INITIALIZER: &str = r##"window.onload = () => {
  window.ui = SwaggerUIBundle({
    "url": "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    layout: "StandaloneLayout",
  });
};
"##;

macro_rules! of_the_page {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name))
    };
}

/// The page and its document.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(document: OpenApi) -> Router<S> {
    let document = Arc::new(document);
    Router::new()
        .route(
            "/openapi.json",
            get(move || {
                let document = Arc::clone(&document);
                async move { Json(document.as_ref()).into_response() }
            }),
        )
        .route("/docs", get(async || Redirect::to("/docs/")))
        .route("/docs/", get(async || file("index.html")))
        .route(
            "/docs/{file}",
            get(async |Path(name): Path<String>| file(&name)),
        )
}

fn file(name: &str) -> Response {
    match name {
        "index.html" => plain(HTML, of_the_page!("index.html")),
        "index.css" => plain(CSS, of_the_page!("index.css")),
        "swagger-ui.css" => plain(CSS, of_the_page!("swagger-ui.css")),
        "favicon-16x16.png" => plain(PNG, of_the_page!("favicon-16x16.png")),
        "favicon-32x32.png" => plain(PNG, of_the_page!("favicon-32x32.png")),
        "swagger-initializer.js" => plain(JAVASCRIPT, INITIALIZER.as_bytes()),
        "swagger-ui-bundle.js" => compressed(of_the_page!("swagger-ui-bundle.js.gz")),
        "swagger-ui-standalone-preset.js" => {
            compressed(of_the_page!("swagger-ui-standalone-preset.js.gz"))
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn plain(kind: &'static str, bytes: &'static [u8]) -> Response {
    let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, CACHED)];
    (headers, Bytes::from_static(bytes)).into_response()
}

/// What runs a script takes it compressed; there is no other form of it here.
fn compressed(bytes: &'static [u8]) -> Response {
    let headers = [
        (CONTENT_TYPE, JAVASCRIPT),
        (CONTENT_ENCODING, "gzip"),
        (CACHE_CONTROL, CACHED),
    ];
    (headers, Bytes::from_static(bytes)).into_response()
}
