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
    Router::new().fallback_service(MapRequestLayer::new(one_leading_slash).layer(routes))
}

/// A base URL that ends in a slash makes paths that begin with two.
fn one_leading_slash(mut request: Request) -> Request {
    if request.uri().path().starts_with("//")
        && let Some(uri) = without_double_slash(request.uri())
    {
        *request.uri_mut() = uri;
    }
    request
}

fn without_double_slash(uri: &Uri) -> Option<Uri> {
    let text = uri.path_and_query()?.as_str();
    let path: PathAndQuery = format!("/{}", text.trim_start_matches('/')).parse().ok()?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leading_slashes_are_collapsed() {
        let collapsed = |text: &str| {
            let request = Request::builder()
                .uri(text)
                .body(axum::body::Body::empty())
                .unwrap();
            one_leading_slash(request).uri().to_string()
        };
        assert_eq!(collapsed("//v1/vms/?a=//b"), "/v1/vms/?a=//b");
        assert_eq!(collapsed("///v1/vms"), "/v1/vms");
        assert_eq!(collapsed("/v1//vms"), "/v1//vms");
        assert_eq!(collapsed("/"), "/");
    }
}
