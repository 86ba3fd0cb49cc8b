//! What is at the root: where everything else is.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// What serves here, and where to read on.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Index {
    /// Always `InstaVM`.
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// The path of the documentation.
    docs: &'static str,
    /// The path of the API's document.
    openapi: &'static str,
}

/// What serves here, and where to read on.
#[utoipa::path(
    get, path = "/", tag = "operation",
    responses((status = 200, description = "Where everything is", body = Index)),
)]
pub(crate) async fn show() -> Json<Index> {
    Json(Index {
        name: "InstaVM",
        version: env!("CARGO_PKG_VERSION"),
        docs: "/docs/",
        openapi: "/openapi.json",
    })
}
