//! The HTTP API: an axum router, served by Lambda or by the local process.
//!
//! A handler parses, runs one transaction and answers. All writes go through
//! [`command::Command::run`], all reads through [`App::read`], all errors through
//! [`error::ApiError`]. Nothing here calls a model, or sends anything to anyone but the caller.

mod answer;
pub mod app;
pub mod auth;
pub mod command;
pub mod config;
mod docs;
pub mod error;
pub mod identity;
pub mod outputs;
pub mod page;
pub mod query;
pub mod request;
mod routes;

pub use app::{App, AppParts};
pub use docs::openapi;
pub use routes::{admin::bootstrap_tenant, bodies, router};
