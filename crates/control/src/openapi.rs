//! The document of the API, generated from the routes.

use crate::Platform;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Every route, with its documentation.
pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::with_openapi(frame())
        .merge(crate::session::routes::routes())
        .merge(crate::execution::routes::routes())
        .merge(crate::file::routes::routes())
        .merge(crate::vm::routes::routes())
        .merge(crate::pty::routes::routes())
        .merge(crate::egress::routes::routes())
        .merge(crate::share::routes::routes())
        .merge(crate::snapshot::routes::routes())
        .merge(crate::volume::routes::routes())
        .merge(crate::checkpoint::routes::routes())
        .merge(crate::mount::routes::routes())
        .merge(crate::api_key::routes::routes())
        .merge(crate::ssh_key::routes::routes())
        .merge(crate::user::routes::routes())
        .routes(routes!(crate::index::show))
        .routes(routes!(crate::health::show))
        .routes(routes!(crate::metrics::show))
        .routes(routes!(show))
}

fn frame() -> OpenApi {
    let info = InfoBuilder::new()
        .title("InstaVM")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Sandboxes that execute code. Every answer with a status of 400 and above is `{\"detail\": …}`.",
        ))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ))
        .build();
    let mut components = Components::new();
    components.add_security_scheme(
        "api_key",
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))),
    );
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .build()
}

/// The document of the API.
pub fn document() -> OpenApi {
    routes().into_openapi()
}

/// The document of the API, which is browsable at `/docs`.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operation",
    responses((status = 200, description = "This document", body = serde_json::Value)),
)]
pub(crate) async fn show(State(platform): State<Platform>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, platform.document.clone()).into_response()
}
