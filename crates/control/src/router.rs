//! All routes with their layers.

use crate::error::{no_such_route, panicked, wrong_method};
use crate::{Platform, metrics, openapi};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use axum::middleware;
use tower::Layer;
use tower::util::MapRequestLayer;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_swagger_ui::{Config, SwaggerUi};

/// The router: layers from the inside out are the panic barrier, the figures, and the cleaning of paths.
pub(crate) fn build(platform: &Platform) -> Router {
    let (routes, _) = openapi::routes().split_for_parts();
    let routes = routes
        .merge(SwaggerUi::new("/docs").config(Config::from("/openapi.json")))
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        // Handlers keep limits of their own, which name themselves when they are passed.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(
            platform.clone(),
            metrics::observe,
        ))
        .with_state(platform.clone());
    // A layer of a router runs after the choice of the route, so this one goes around a router of its own.
    Router::new().fallback_service(MapRequestLayer::new(canonical).layer(routes))
}

/// A base URL that ends in a slash makes paths that begin with two; some callers end every path with one.
fn canonical(mut request: Request) -> Request {
    if let Some(path) = canonical_path(request.uri().path())
        && let Some(uri) = with_path(request.uri(), &path)
    {
        *request.uri_mut() = uri;
    }
    request
}

/// The path that is meant, unless it is this one.
fn canonical_path(path: &str) -> Option<String> {
    let single = match path.trim_start_matches('/') {
        rest if path.starts_with("//") => &path[path.len() - rest.len() - 1..],
        _ => path,
    };
    let meant = match single {
        // Those of an address of its own with the slash, and the pages of the documentation.
        "/" | "/v1/vms/" | "/v1/api-keys/" => single,
        "/v1/api-keys" => "/v1/api-keys/",
        _ if single.starts_with("/docs") => single,
        _ => match single.strip_suffix('/') {
            Some(without) if !without.ends_with('/') => without,
            _ => single,
        },
    };
    (meant != path).then(|| meant.to_owned())
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(text.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_as_they_are_meant() {
        let meant = |text: &str| {
            let request = Request::builder()
                .uri(text)
                .body(axum::body::Body::empty())
                .unwrap();
            canonical(request).uri().to_string()
        };
        for (given, wanted) in [
            ("//v1/vms/?a=//b", "/v1/vms/?a=//b"),
            ("///v1/vms", "/v1/vms"),
            ("/v1//vms", "/v1//vms"),
            ("/v1/vms", "/v1/vms"),
            ("/v1/vms/", "/v1/vms/"),
            ("/v1/vms/x/", "/v1/vms/x"),
            ("/v1/api-keys", "/v1/api-keys/"),
            ("/v1/api-keys/7/", "/v1/api-keys/7"),
            ("//v1/users/me/?a=/", "/v1/users/me?a=/"),
            ("/v1/users/me//", "/v1/users/me//"),
            ("/execute/", "/execute"),
            ("/docs/", "/docs/"),
            ("/", "/"),
            ("//", "/"),
            ("/a%2F/", "/a%2F"),
        ] {
            assert_eq!(meant(given), wanted, "{given}");
        }
    }
}
