//! Cookies that open one private share: whose key opened it and until when, signed.

use aws_lc_rs::hmac;
use http::HeaderMap;
use http::header::COOKIE;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the names of all our cookies begin with. Browsers send the cookies of a host to all its ports.
const PREFIX: &str = "instavm_share_";
/// How long a cookie opens its share.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// What is signed begins with this, so that the key signs nothing else.
const DOMAIN: &str = "instavm share cookie 1";

/// Whether a `name=value` is a cookie of ours, for whichever share.
pub(super) fn is_ours(pair: &[u8]) -> bool {
    let name = pair.trim_ascii_start();
    name.len() >= PREFIX.len() && name[..PREFIX.len()].eq_ignore_ascii_case(PREFIX.as_bytes())
}

/// Signs cookies.
pub(super) struct Signer {
    key: hmac::Key,
}

impl Signer {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }

    /// The header that sets the cookie of a share for the holder of a key.
    pub(super) fn set_cookie(&self, share: &str, key_id: i64, is_secure: bool) -> String {
        let until = now() + LIFETIME.as_secs();
        let tag = hmac::sign(&self.key, signed(share, key_id, until).as_bytes());
        let tag: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let secure = if is_secure { "; Secure" } else { "" };
        let age = LIFETIME.as_secs();
        format!(
            "{PREFIX}{share}={key_id}.{until}.{tag}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{secure}"
        )
    }

    /// The number of the key that a request's cookie was given for, if it has one for this share that is valid.
    pub(super) fn key_of(&self, share: &str, headers: &HeaderMap) -> Option<i64> {
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .find_map(|pair| {
                let (name, value) = pair.trim().split_once('=')?;
                let of = name.strip_prefix(PREFIX)?;
                (of == share).then(|| self.verify(share, value)).flatten()
            })
    }

    fn verify(&self, share: &str, value: &str) -> Option<i64> {
        let mut parts = value.split('.');
        let (key_id, until, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let (key_id, until) = (key_id.parse().ok()?, until.parse().ok()?);
        let tag = from_hex(tag)?;
        hmac::verify(&self.key, signed(share, key_id, until).as_bytes(), &tag).ok()?;
        (until > now()).then_some(key_id)
    }
}

fn signed(share: &str, key_id: i64, until: u64) -> String {
    format!("{DOMAIN}\n{share}\n{key_id}\n{until}")
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes().chunks(2);
    bytes
        .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
        .collect()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(signer: &Signer, share: &str, change: impl Fn(String) -> String) -> Option<i64> {
        let set = signer.set_cookie("sh-a", 7, false);
        let pair = change(set.split(';').next().unwrap().to_owned());
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, format!("x=1; {pair}").parse().unwrap());
        signer.key_of(share, &headers)
    }

    #[test]
    fn a_cookie_opens_its_share_alone() {
        let signer = Signer::new(&[1; 32]);
        assert_eq!(given(&signer, "sh-a", |pair| pair), Some(7));
        assert_eq!(given(&signer, "sh-b", |pair| pair), None);
        assert_eq!(
            given(&signer, "sh-b", |pair| pair.replace("sh-a", "sh-b")),
            None
        );
        assert_eq!(
            given(&signer, "sh-a", |pair| pair.replace("=7.", "=8.")),
            None
        );
        assert_eq!(given(&signer, "sh-a", |pair| format!("{pair}0")), None);
        assert_eq!(
            given(&signer, "sh-a", |pair| pair[..pair.len() - 2].to_owned()),
            None
        );
        let other = Signer::new(&[2; 32]);
        let set = other.set_cookie("sh-a", 7, true);
        assert!(set.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{set}");
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, set.split(';').next().unwrap().parse().unwrap());
        assert_eq!(signer.key_of("sh-a", &headers), None);
    }

    #[test]
    fn a_cookie_that_is_too_old_opens_nothing() {
        let signer = Signer::new(&[1; 32]);
        let tag = hmac::sign(&signer.key, signed("sh-a", 7, 1).as_bytes());
        let tag: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(signer.verify("sh-a", &format!("7.1.{tag}")), None);
    }
}
