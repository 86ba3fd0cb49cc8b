//! What the gateway answers by itself: short texts for people.

use super::Ended;
use super::body::Body;
use super::upstream::UpstreamError;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// A text with a status.
pub(super) fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::text(format!("{message}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, TEXT);
    headers.insert(CACHE_CONTROL, NO_STORE);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// There is no such share.
pub(super) fn unknown() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "There is no share at this address.")
}

/// The share has ended.
pub(super) fn ended(why: Ended) -> Response<Body> {
    match why {
        Ended::Revoked => text(StatusCode::GONE, "This share was revoked by its owner."),
        Ended::VmEnded => text(
            StatusCode::NOT_FOUND,
            "This share has ended: the VM behind it is no more.",
        ),
    }
}

/// The app cannot be reached.
pub(super) fn unreachable(port: u16, error: &UpstreamError) -> Response<Body> {
    let (status, message) = match error {
        UpstreamError::Refused => (
            StatusCode::BAD_GATEWAY,
            format!(
                "Nothing listens on port {port} of the VM. Is the app running, and on this port?"
            ),
        ),
        UpstreamError::TimedOut => (
            StatusCode::GATEWAY_TIMEOUT,
            format!("The app on port {port} of the VM takes no connections at the moment."),
        ),
        UpstreamError::VmEnded => return ended(Ended::VmEnded),
        UpstreamError::Handshake(_) => (
            StatusCode::BAD_GATEWAY,
            format!("What listens on port {port} of the VM does not speak HTTP."),
        ),
        UpstreamError::Node(_) => (
            StatusCode::BAD_GATEWAY,
            "The VM cannot be reached; the platform's log says why.".to_owned(),
        ),
    };
    text(status, &message)
}
