//! Credentials for registries: from a file like docker's `config.json`, in the forms that registries ask for.

use super::OciError;
use super::reference::Reference;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeRef;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

const LARGEST_FILE: u64 = 1 << 20;
/// How long a token counts that does not say it.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is not used so shortly before its end.
const MARGIN: Duration = Duration::from_secs(5);
/// Under this key the file keeps what the default registry takes.
const DEFAULT_REGISTRY_KEY: &str = "index.docker.io";

/// Who somebody is to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A name and a password.
    Password { user: String, password: String },
    /// A token that gets others.
    Identity { token: String },
}

#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

/// The credentials for a registry in a file.
pub(super) fn credentials(
    file: &Path,
    reference: &Reference,
) -> Result<Option<Credentials>, OciError> {
    let wrong = |reason: String| OciError::Configuration {
        path: file.to_owned(),
        reason,
    };
    let size = std::fs::metadata(file)
        .map_err(|e| wrong(e.to_string()))?
        .len();
    if size > LARGEST_FILE {
        return Err(wrong("it is larger than a megabyte".into()));
    }
    let text = std::fs::read(file).map_err(|e| wrong(e.to_string()))?;
    let content: AuthFile = serde_json::from_slice(&text)
        .map_err(|e| wrong(format!("it is no file of credentials: {}", place(&e))))?;
    // The longest key that fits counts: credentials may be for a part of a registry.
    let fitting = content
        .auths
        .iter()
        .filter_map(|(key, entry)| Some((fit(key, reference)?, entry)))
        .max_by_key(|(length, _)| *length);
    let Some((_, entry)) = fitting else {
        return Ok(None);
    };
    read_entry(entry).map_err(|reason| wrong(reason.into()))
}

/// Where a JSON text is wrong, without a word of it: it holds secrets.
fn place(error: &serde_json::Error) -> String {
    format!("line {}, column {}", error.line(), error.column())
}

fn read_entry(entry: &AuthEntry) -> Result<Option<Credentials>, &'static str> {
    if let Some(token) = entry.identity_token.as_ref().filter(|t| !t.is_empty()) {
        let token = token.clone();
        return Ok(Some(Credentials::Identity { token }));
    }
    if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
        return Ok(Some(Credentials::Password {
            user: user.clone(),
            password: password.clone(),
        }));
    }
    let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) else {
        return Ok(None);
    };
    let text = STANDARD
        .decode(auth.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or("an `auth` in it is not base64 of user:password")?;
    let (user, password) = text
        .split_once(':')
        .ok_or("an `auth` in it is not base64 of user:password")?;
    Ok(Some(Credentials::Password {
        user: user.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    }))
}

/// How well a key of the file fits: it names the registry, perhaps as a URL, and perhaps a folder of it.
fn fit(key: &str, reference: &Reference) -> Option<usize> {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let names_it = host == reference.registry()
        || host == reference.host()
        || (host == DEFAULT_REGISTRY_KEY && reference.registry() == "docker.io");
    if !names_it {
        return None;
    }
    let path = path.trim_end_matches('/');
    let fits = matches!(path, "" | "v1" | "v2")
        || reference.repository() == path
        || reference
            .repository()
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('/'));
    fits.then_some(path.len())
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token from another service.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Reads what a registry asks for; a token is preferred.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts: Vec<&str> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let all: Vec<ChallengeRef<'_>> = texts
        .iter()
        .filter_map(|text| http_auth::parse_challenges(text).ok())
        .flatten()
        .collect();
    let named = |scheme: &str| all.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme));
    if let Some(bearer) = named("Bearer") {
        let value = |name: &str| {
            bearer
                .params
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_unescaped())
        };
        return Some(Challenge::Bearer {
            realm: value("realm")?,
            service: value("service"),
            scope: value("scope"),
        });
    }
    named("Basic").map(|_| Challenge::Basic)
}

/// What is sent with requests.
#[derive(Clone)]
pub(super) enum Pass {
    Basic { user: String, password: String },
    Bearer { token: String, until: Instant },
}

impl Pass {
    /// Does it still count?
    pub(super) fn is_fresh(&self) -> bool {
        match self {
            Pass::Basic { .. } => true,
            Pass::Bearer { until, .. } => Instant::now() < *until,
        }
    }

    /// Adds it to a request.
    pub(super) fn attach(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self {
            Pass::Basic { user, password } => request.basic_auth(user, Some(password)),
            Pass::Bearer { token, .. } => request.bearer_auth(token),
        }
    }
}

/// The answer of a service that gives tokens.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The token as it is sent.
    pub(super) fn into_pass(self) -> Option<Pass> {
        let token = self.token.or(self.access_token)?;
        let life = self
            .expires_in
            .map_or(TOKEN_LIFE, Duration::from_secs)
            .min(Duration::from_secs(3600));
        // Registries that give tokens for shorter than the margin mean one request.
        Some(Pass::Bearer {
            token,
            until: Instant::now() + life.saturating_sub(MARGIN),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(auths: &str, reference: &str) -> Option<(String, String)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{{\"auths\":{auths}}}")).unwrap();
        match credentials(file.path(), &reference.parse().unwrap()).unwrap()? {
            Credentials::Password { user, password } => Some((user, password)),
            Credentials::Identity { token } => Some((String::new(), token)),
        }
    }

    #[test]
    fn credentials_are_found_by_registry_and_folder() {
        let auths = r#"{
            "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
            "example.com:5000": {"username": "a", "password": "b:c"},
            "example.com:5000/team": {"auth": "dGVhbTpwYXNz"},
            "ghcr.io": {"identitytoken": "refresh"}
        }"#;
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(found(auths, "debian"), pair("hub", "secret"));
        assert_eq!(found(auths, "example.com:5000/x"), pair("a", "b:c"));
        assert_eq!(
            found(auths, "example.com:5000/team/x"),
            pair("team", "pass")
        );
        assert_eq!(found(auths, "example.com:5000/teams/x"), pair("a", "b:c"));
        assert_eq!(found(auths, "ghcr.io/x/y"), pair("", "refresh"));
        assert_eq!(found(auths, "quay.io/x/y"), None);
    }

    #[test]
    fn a_damaged_file_is_named_and_nothing_of_it_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"auths":{"a":{"auth":"c2VjcmV0"#).unwrap();
        let Err(error) = credentials(file.path(), &"a.b/c".parse().unwrap()) else {
            panic!("a damaged file was read");
        };
        assert!(!error.to_string().contains("c2VjcmV0"), "{error}");
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        assert_eq!(challenge(&headers), Some(Challenge::Basic));
        let bearer = "Bearer realm=\"https://auth.example/token\",service=\"reg\",scope=\"repository:a:pull\"";
        headers.append(WWW_AUTHENTICATE, bearer.parse().unwrap());
        let Some(Challenge::Bearer {
            realm,
            service,
            scope,
        }) = challenge(&headers)
        else {
            panic!("no token is asked for");
        };
        assert_eq!(realm, "https://auth.example/token");
        assert_eq!(service.as_deref(), Some("reg"));
        assert_eq!(scope.as_deref(), Some("repository:a:pull"));
    }
}
