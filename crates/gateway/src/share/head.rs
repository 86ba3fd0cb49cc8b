//! Heads of requests and answers: what is for the gateway alone is taken out, and what the app is told of the caller is
//! the gateway's own word.

use super::Scheme;
use super::cookie;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Authority;
use http::{Method, Version};
use std::net::IpAddr;

const X_FORWARDED: &str = "x-forwarded-";
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What concerns one connection only, beside what the header `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("proxy-authenticate"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// What is wrong with whom a request addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressFault {
    /// Several hosts.
    #[error("the request names more than one host")]
    Several,
    /// The target and the header name different hosts.
    #[error("the request's target and its header Host name different hosts")]
    Different,
    /// No host at all.
    #[error("the request's host is not one")]
    Malformed,
    /// A proxy is meant, or something else that this is not.
    #[error("this is no proxy: CONNECT is not served")]
    Connect,
}

/// The host that a request addresses, as it was written; `None` when it names none, as old clients do.
pub(super) fn authority<B>(request: &http::Request<B>) -> Result<Option<Authority>, AddressFault> {
    if request.method() == Method::CONNECT {
        return Err(AddressFault::Connect);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(_), Some(_)) => return Err(AddressFault::Several),
        (Some(host), None) if host.is_empty() => None,
        (Some(host), None) => {
            let host = Authority::try_from(host.as_bytes());
            Some(host.map_err(|_| AddressFault::Malformed)?)
        }
    };
    let target = request.uri().authority();
    if [header.as_ref(), target]
        .into_iter()
        .flatten()
        .any(|host| host.as_str().contains('@') || host.host().is_empty())
    {
        return Err(AddressFault::Malformed);
    }
    match (target, header) {
        (Some(target), Some(header)) if *target != header => Err(AddressFault::Different),
        (Some(target), _) => Ok(Some(target.clone())),
        (None, header) => Ok(header),
    }
}

/// The protocol that a request asks to go over to, if the gateway tunnels it. HTTP/2 is not: it would carry further
/// requests past the gateway.
pub(super) fn upgrade<B>(request: &http::Request<B>) -> Option<HeaderValue> {
    if request.version() != Version::HTTP_11 || !names(request.headers(), "upgrade") {
        return None;
    }
    let protocol = request.headers().get(UPGRADE)?;
    let text = protocol.to_str().ok()?.to_ascii_lowercase();
    let is_http = text
        .split(',')
        .any(|word| matches!(word.trim(), "h2c" | "h2") || word.trim().starts_with("http/"));
    (!is_http).then(|| protocol.clone())
}

/// Whether the header `Connection` names a word.
fn names(headers: &HeaderMap, wanted: &str) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| {
        let words = value.to_str().unwrap_or_default().split(',');
        words
            .map(str::trim)
            .any(|word| word.eq_ignore_ascii_case(wanted))
    })
}

/// Takes out what concerns one connection only.
fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        let words = value.to_str().unwrap_or_default().split(',');
        named.extend(words.filter_map(|word| HeaderName::try_from(word.trim()).ok()));
    }
    // A length beside another framing is no length.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove(UPGRADE);
}

/// Whether a header tells of proxies before us. Some servers take `_` for `-`.
fn is_forwarding(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    name == FORWARDED.as_str() || name == X_REAL_IP.as_str() || name.starts_with(X_FORWARDED)
}

/// Who sent a request, and how.
pub(super) struct Caller {
    pub(super) address: IpAddr,
    pub(super) scheme: Scheme,
    pub(super) authority: Option<Authority>,
    /// The port in the share's URL.
    pub(super) port: Option<u16>,
}

/// Makes the headers of a request those that the app is to see.
pub(super) fn to_app(headers: &mut HeaderMap, caller: &Caller, upgrade: Option<HeaderValue>) {
    drop_hop_by_hop(headers);
    // The server has answered it by itself.
    headers.remove(EXPECT);
    let forwarding: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_forwarding(name))
        .cloned()
        .collect();
    for name in forwarding {
        headers.remove(name);
    }
    join_cookies(headers);
    tell(headers, caller);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Says who called.
fn tell(headers: &mut HeaderMap, caller: &Caller) {
    let scheme = caller.scheme.as_str();
    let node = match caller.address {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let mut forwarded = format!("for={node};proto={scheme}");
    if let Some(authority) = &caller.authority {
        forwarded.push_str(&format!(";host=\"{authority}\""));
        set(headers, HOST, authority.as_str());
        set(headers, X_FORWARDED_HOST, authority.as_str());
    } else {
        // Clients of HTTP/1.0 may name none; servers of HTTP/1.1 must be told one.
        headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    set(headers, FORWARDED, &forwarded);
    set(headers, X_FORWARDED_FOR, &caller.address.to_string());
    set(headers, X_REAL_IP, &caller.address.to_string());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    let port = caller.authority.as_ref().and_then(Authority::port_u16);
    if let Some(port) = port.or(caller.port) {
        headers.insert(X_FORWARDED_PORT, port.into());
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Puts all cookies into one header, as HTTP/1.1 wants it, without those of the gateway.
fn join_cookies(headers: &mut HeaderMap) {
    if !headers.contains_key(COOKIE) {
        return;
    }
    let mut joined: Vec<u8> = Vec::new();
    for value in headers.get_all(COOKIE) {
        for pair in value.as_bytes().split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            if pair.is_empty() || cookie::is_ours(pair) {
                continue;
            }
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(pair);
        }
    }
    headers.remove(COOKIE);
    if !joined.is_empty()
        && let Ok(value) = HeaderValue::from_bytes(&joined)
    {
        headers.insert(COOKIE, value);
    }
}

/// Makes the headers of an app's answer those that the caller is to see.
pub(super) fn to_caller(headers: &mut HeaderMap) {
    drop_hop_by_hop(headers);
    let set: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().cloned().collect();
    if set.iter().any(|value| cookie::is_ours(value.as_bytes())) {
        headers.remove(SET_COOKIE);
        for value in set {
            if !cookie::is_ours(value.as_bytes()) {
                headers.append(SET_COOKIE, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> http::Request<()> {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_request_addresses_one_host() {
        let host = |uri: &str, headers: &[(&str, &str)]| {
            authority(&request(uri, headers)).map(|found| found.map(|host| host.to_string()))
        };
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(host("/", &[("host", "a:1")]), some("a:1"));
        assert_eq!(host("/", &[]), Ok(None));
        assert_eq!(host("http://a:1/", &[("host", "A:1")]), some("a:1"));
        assert_eq!(
            host("http://a/", &[("host", "b")]),
            Err(AddressFault::Different)
        );
        assert_eq!(
            host("/", &[("host", "a"), ("host", "a")]),
            Err(AddressFault::Several)
        );
        for bad in ["a b", "u@a", "a/b", ":80"] {
            assert_eq!(
                host("/", &[("host", bad)]),
                Err(AddressFault::Malformed),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_app_hears_of_the_caller_from_the_gateway_alone() {
        let mut given = request(
            "/",
            &[
                ("connection", "keep-alive, X-Private"),
                ("x-private", "1"),
                ("keep-alive", "5"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("content-length", "3"),
                ("upgrade", "websocket"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x_forwarded_proto", "gopher"),
                ("x-forwarded-anything", "1"),
                ("forwarded", "for=6.6.6.6"),
                ("x-real-ip", "6.6.6.6"),
                ("cookie", "a=1; instavm_share_sh-x=secret"),
                ("cookie", "b=2"),
                ("x-own", "kept"),
            ],
        );
        let caller = Caller {
            address: "192.0.2.7".parse().unwrap(),
            scheme: Scheme::Https,
            authority: Some("app.example:8443".parse().unwrap()),
            port: None,
        };
        to_app(given.headers_mut(), &caller, None);
        let mut seen: Vec<String> = given
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        seen.sort();
        assert_eq!(
            seen,
            [
                "cookie: a=1; b=2",
                "forwarded: for=192.0.2.7;proto=https;host=\"app.example:8443\"",
                "host: app.example:8443",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: app.example:8443",
                "x-forwarded-port: 8443",
                "x-forwarded-proto: https",
                "x-own: kept",
                "x-real-ip: 192.0.2.7",
            ]
        );
    }

    #[test]
    fn only_what_is_no_http_is_tunnelled() {
        let asked = |connection: &str, protocol: &str| {
            let headers = [("connection", connection), ("upgrade", protocol)];
            upgrade(&request("/", &headers)).is_some()
        };
        assert!(asked("keep-alive, Upgrade", "websocket"));
        assert!(!asked("keep-alive", "websocket"));
        assert!(!asked("upgrade", "h2c"));
        assert!(!asked("upgrade", "websocket, h2c"));
        assert!(!asked("upgrade", "HTTP/2.0"));
    }

    #[test]
    fn an_app_cannot_set_the_gateways_cookies() {
        let mut headers = HeaderMap::new();
        headers.append(SET_COOKIE, HeaderValue::from_static("a=1; Path=/"));
        headers.append(
            SET_COOKIE,
            HeaderValue::from_static(" instavm_share_sh-x=1"),
        );
        to_caller(&mut headers);
        let left: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=1; Path=/"]);
    }
}
