//! Who may pass a private share: whoever shows a key of its owner's account, or the cookie that one was exchanged for.

use super::entry::Entry;
use super::head::AddressFault;
use super::{Inner, KeyHolder};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{Method, Request};
use std::net::IpAddr;
use tokio_util::sync::CancellationToken;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The longest text that can be a key.
const KEY_LIMIT: usize = 512;

/// What a request may do.
pub(super) enum Access {
    /// It may pass until this is cancelled, or the key of this number is revoked.
    Granted(CancellationToken, Option<i64>),
    /// Nothing of it opens the share.
    Stranger {
        /// It showed a key, or came with a cookie from elsewhere: a page is no answer to it.
        tried: bool,
    },
    /// Too many wrong keys came from where it came from.
    TooMany,
}

/// The keys that a request shows, and the headers that they stand in.
fn shown(headers: &HeaderMap) -> impl Iterator<Item = (HeaderName, &str)> {
    let plain = headers.get_all(API_KEY).iter();
    let plain = plain.filter_map(|value| Some((API_KEY, value.to_str().ok()?.trim())));
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(bearer);
    plain.chain(bearer.map(|key| (AUTHORIZATION, key)))
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, key) = value.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Whether a request may pass. Our keys are taken out of it, whether the share needs them or not.
pub(super) async fn check<B>(
    inner: &Inner,
    entry: &Entry,
    from: IpAddr,
    authority: Option<&Authority>,
    request: &mut Request<B>,
) -> Access {
    // Not under a lock, as the share may become private any moment: the pass is cut then.
    let pass = entry.public_pass();
    let by_key = match by_key(inner, entry, from, pass.is_none(), request.headers()).await {
        Ok(found) => found,
        Err(TooMany) => return Access::TooMany,
    };
    drop_keys(inner, &by_key, request.headers_mut());
    if let Some(pass) = pass {
        return Access::Granted(pass, None);
    }
    if let Some(holder) = by_key.iter().find(|found| opens(entry, found)) {
        return Access::Granted(entry.owners_pass(), Some(holder.1.key_id));
    }
    let tried = !by_key.is_empty() || shown(request.headers()).next().is_some();
    let Some(key_id) = inner.signer.key_of(&entry.id, request.headers()) else {
        return Access::Stranger { tried };
    };
    if inner.keys.account_of(key_id).await != Some(entry.account_id) {
        // The key was revoked: another one is asked for.
        return Access::Stranger { tried };
    }
    if is_from_here(request, authority) {
        Access::Granted(entry.owners_pass(), Some(key_id))
    } else {
        Access::Stranger { tried: true }
    }
}

fn opens(entry: &Entry, (_, holder): &(HeaderName, KeyHolder)) -> bool {
    holder.account_id == entry.account_id
}

struct TooMany;

/// The keys of a request that are keys of this platform. With `thoroughly` they are looked up on record, too: an app
/// that everybody reaches may have keys of its own, which are none of our business.
async fn by_key(
    inner: &Inner,
    entry: &Entry,
    from: IpAddr,
    thoroughly: bool,
    headers: &HeaderMap,
) -> Result<Vec<(HeaderName, KeyHolder)>, TooMany> {
    /// One is enough; more cost only us.
    const LOOKED_UP: usize = 2;
    let mut found = Vec::new();
    for (name, key) in shown(headers).take(LOOKED_UP) {
        if key.is_empty() || key.len() > KEY_LIMIT {
            continue;
        }
        if let Some(holder) = inner.keys.known(key) {
            found.push((name, holder));
        } else if thoroughly && inner.signer.key_of(&entry.id, headers).is_none() {
            if !inner.attempts.may_try(from) {
                return Err(TooMany);
            }
            match inner.keys.holder(key).await {
                Some(holder) => found.push((name, holder)),
                None => inner.attempts.failed(from),
            }
        }
    }
    Ok(found)
}

/// Takes out every key of this platform, wherever it stands.
fn drop_keys(inner: &Inner, found: &[(HeaderName, KeyHolder)], headers: &mut HeaderMap) {
    for (name, _) in found {
        headers.remove(name);
    }
    // Beyond those that were looked at.
    let is_ours = |value: &str| inner.keys.known(value).is_some();
    for name in [API_KEY, AUTHORIZATION] {
        let ours = shown(headers).any(|(at, key)| at == name && is_ours(key));
        if ours {
            headers.remove(&name);
        }
    }
}

/// Whether a page of the share itself made this request, or a person: other pages are of the same site as this one when
/// only port or name differ, so that their requests come with its cookie.
fn is_from_here<B>(request: &Request<B>, authority: Option<&Authority>) -> bool {
    let Some(origin) = request.headers().get(ORIGIN) else {
        let is_safe = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        let site = request.headers().get("sec-fetch-site");
        let is_own = site.is_none_or(|site| site == "same-origin" || site == "none");
        return is_own || (is_safe && is_navigation(request));
    };
    let origin = origin.to_str().unwrap_or_default();
    let host = origin.split_once("://").map(|(_, host)| host);
    match (host, authority) {
        (Some(host), Some(own)) => own.as_str().eq_ignore_ascii_case(host),
        _ => false,
    }
}

/// A link that was followed.
fn is_navigation<B>(request: &Request<B>) -> bool {
    let mode = request.headers().get("sec-fetch-mode");
    mode.is_none_or(|mode| mode == "navigate")
}

/// Whether the login form came from a page of the share itself.
pub(super) fn is_own_form<B>(
    request: &Request<B>,
    authority: Option<&Authority>,
) -> Result<(), AddressFault> {
    if is_from_here(request, authority) {
        Ok(())
    } else {
        Err(AddressFault::Different)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_do_not_act_for_the_owner() {
        let own: Authority = "127.0.0.1:20000".parse().unwrap();
        let from_here = |method: Method, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_from_here(&request.body(()).unwrap(), Some(&own))
        };
        assert!(from_here(Method::GET, &[]));
        assert!(from_here(
            Method::POST,
            &[("origin", "http://127.0.0.1:20000")]
        ));
        assert!(!from_here(
            Method::POST,
            &[("origin", "http://127.0.0.1:20001")]
        ));
        assert!(!from_here(Method::GET, &[("origin", "null")]));
        let site = |mode: &'static str| [("sec-fetch-site", "same-site"), ("sec-fetch-mode", mode)];
        assert!(from_here(Method::GET, &site("navigate")));
        assert!(!from_here(Method::GET, &site("no-cors")));
        assert!(!from_here(Method::POST, &site("navigate")));
    }
}
