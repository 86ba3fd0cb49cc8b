//! The page of a private share that strangers see, and the exchange of a key for a cookie.

use super::access;
use super::body::Body;
use super::entry::Entry;
use super::{Inner, Scheme, page};
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION,
    REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::uri::Authority;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use rand::Rng;
use std::net::IpAddr;
use std::time::Duration;

/// Where the form goes.
pub(super) const PATH: &str = "/.instavm/login";
/// Bytes of a form.
const FORM_LIMIT: usize = 16 << 10;
/// How long a form may take.
const FORM_TIME: Duration = Duration::from_secs(10);

/// Text as part of a page.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut page, c| {
        match c {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            c => page.push(c),
        }
        page
    })
}

/// The page, which leads to `next` when the key is right.
pub(super) fn form(status: StatusCode, next: &str, message: &str) -> Response<Body> {
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    let (next, message) = (escaped(next), escaped(message));
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Private share</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style nonce=\"{nonce}\">\
         body{{font:16px system-ui,sans-serif;max-width:26rem;margin:15vh auto;padding:0 1rem}}\
         input,button{{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin:.3rem 0}}</style></head>\
         <body><h1>Private share</h1><p>This app is for its owner. Give an API key of the owner's account.</p>\
         <p role=\"alert\">{message}</p><form method=\"post\" action=\"{PATH}\">\
         <input type=\"hidden\" name=\"next\" value=\"{next}\">\
         <label>API key <input type=\"password\" name=\"api_key\" autocomplete=\"current-password\" required autofocus>\
         </label><button type=\"submit\">Open</button></form></body></html>\n"
    );
    let mut response = Response::new(Body::text(html));
    *response.status_mut() = status;
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // Without it a browser would not say where the form came from.
        (REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The answer to a request that cannot be shown a page.
pub(super) fn refusal() -> Response<Body> {
    let mut response = page::text(
        StatusCode::UNAUTHORIZED,
        "This share is private: send an API key of its owner in X-API-Key, or open it in a browser and log in.",
    );
    let headers = response.headers_mut();
    headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

pub(super) fn too_many() -> Response<Body> {
    page::text(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many wrong keys came from your address: wait a minute.",
    )
}

/// A path of the share itself, whatever the form says.
fn safe_next(next: &str) -> &str {
    let is_path = next.starts_with('/')
        && !next.starts_with("//")
        && next
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_path && !next.starts_with(PATH) {
        next
    } else {
        "/"
    }
}

/// Takes the form: a key of the owner's account becomes a cookie.
pub(super) async fn exchange(
    inner: &Inner,
    entry: &Entry,
    from: IpAddr,
    authority: Option<&Authority>,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != http::Method::POST {
        let mut response = page::text(
            StatusCode::METHOD_NOT_ALLOWED,
            "Only the login form comes here.",
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    if access::is_own_form(&request, authority).is_err() {
        return page::text(StatusCode::FORBIDDEN, "This form came from another page.");
    }
    let reading = Limited::new(request.into_body(), FORM_LIMIT).collect();
    let read = tokio::time::timeout(FORM_TIME, reading).await;
    let Ok(Ok(read)) = read else {
        return page::text(
            StatusCode::BAD_REQUEST,
            "The form is too long, or broke off.",
        );
    };
    let form_bytes: Bytes = read.to_bytes();
    let field = |wanted: &str| {
        let found = form_urlencoded::parse(&form_bytes).find(|(name, _)| name == wanted);
        found
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    let (key, next) = (field("api_key"), field("next"));
    let next = safe_next(&next);
    let key = key.trim();
    // A key that is known needs no patience; of any other nobody learns whether it belongs to somebody else.
    let holder = match inner.keys.known(key) {
        Some(holder) => Some(holder),
        None if !inner.attempts.may_try(from) => return too_many(),
        None => inner.keys.holder(key).await,
    };
    match holder.filter(|holder| holder.account_id == entry.account_id) {
        Some(holder) => {
            let secure = inner.config.scheme() == Scheme::Https;
            let cookie = inner.signer.set_cookie(&entry.id, holder.key_id, secure);
            welcome(next, &cookie)
        }
        None => {
            inner.attempts.failed(from);
            form(
                StatusCode::UNAUTHORIZED,
                next,
                "This key does not open this share.",
            )
        }
    }
}

fn welcome(next: &str, cookie: &str) -> Response<Body> {
    let mut response = Response::new(Body::text(""));
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(next) = HeaderValue::from_str(next) {
        headers.insert(LOCATION, next);
    }
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        headers.insert(SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_leads_nowhere_else() {
        for (given, wanted) in [
            ("/a?b=c", "/a?b=c"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("https://evil.example", "/"),
            ("/a\r\nset-cookie: x", "/"),
            ("", "/"),
            (PATH, "/"),
        ] {
            assert_eq!(safe_next(given), wanted, "{given}");
        }
    }

    #[test]
    fn the_page_shows_text_as_text() {
        assert_eq!(
            escaped("/\"><script>'&"),
            "/&quot;&gt;&lt;script&gt;&#39;&amp;"
        );
    }
}
