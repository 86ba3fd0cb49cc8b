//! Requests to registries.
//!
//! The client library for registries reads manifests and tokens of any size into memory, and leaves neither redirects
//! nor addresses to its caller; so requests are made here.

use super::address::{self, Guard, PrivateAddress};
use super::auth::{self, Challenge, Credentials, Pass, TokenAnswer};
use super::reference::{Digest, Reference};
use super::{OciConfig, OciError};
use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The kinds of manifest that are understood, lists first.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// What a registry says the digest of its answer is.
const DIGEST_HEADER: &str = "docker-content-digest";
const LARGEST_MANIFEST: u64 = 4 << 20;
const LARGEST_TOKEN: u64 = 1 << 20;
/// What of an error's text is read.
const LARGEST_COMPLAINT: u64 = 4096;
const MOST_REDIRECTS: usize = 5;
/// The longest pause that a registry can ask for between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Speaks to registries.
#[derive(Debug)]
pub(super) struct Registries {
    config: Arc<OciConfig>,
    client: Client,
    /// For plain HTTP on this host, which no proxy is asked for.
    plain: Client,
    passes: Mutex<HashMap<(String, String), Pass>>,
    /// Which of the registries that may be plain are.
    origins: Mutex<HashMap<String, Url>>,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pass")
    }
}

/// One thing of a repository.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// The path in the repository: `manifests/…` or `blobs/…`.
    pub(super) path: String,
    pub(super) accept: Option<&'a str>,
    /// From which byte on.
    pub(super) from: u64,
    /// For people.
    pub(super) what: String,
}

/// Why a try failed.
enum Failure {
    /// It may work the next time, after this pause.
    Passing(OciError, Option<Duration>),
    Final(OciError),
}

impl From<OciError> for Failure {
    fn from(error: OciError) -> Self {
        match error {
            OciError::Unreachable { .. } | OciError::RateLimited { .. } => {
                Self::Passing(error, None)
            }
            _ => Self::Final(error),
        }
    }
}

impl Registries {
    pub(super) fn new(config: Arc<OciConfig>) -> Result<Self, OciError> {
        let mut authorities = Vec::new();
        for path in &config.extra_ca {
            let wrong = |reason: String| OciError::Configuration {
                path: path.clone(),
                reason,
            };
            let text = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
            let found =
                reqwest::Certificate::from_pem_bundle(&text).map_err(|e| wrong(e.to_string()))?;
            if found.is_empty() {
                return Err(wrong("it holds no certificate in PEM form".into()));
            }
            authorities.extend(found);
        }
        let client = || {
            let builder = Client::builder()
                .redirect(redirect::Policy::none())
                .connect_timeout(config.limits.connect)
                .read_timeout(config.limits.stall)
                .tls_certs_merge(authorities.clone())
                .user_agent(concat!("instavm/", env!("CARGO_PKG_VERSION")));
            if config.private_registries {
                builder
            } else {
                builder.dns_resolver(Arc::new(Guard))
            }
        };
        let failed = |e: reqwest::Error| OciError::Configuration {
            path: config.extra_ca.first().cloned().unwrap_or_default(),
            reason: reason(&e),
        };
        Ok(Self {
            client: client().build().map_err(failed)?,
            plain: client().no_proxy().build().map_err(failed)?,
            config,
            passes: Mutex::default(),
            origins: Mutex::default(),
        })
    }

    /// The digest that a tag means now; `None` when the registry does not say it without sending the manifest.
    pub(super) async fn manifest_digest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Digest>, OciError> {
        let ask = manifest(reference, &reference.wanted(), Method::HEAD);
        let answer = self.send(reference, &ask).await?;
        let digest = answer.headers().get(DIGEST_HEADER);
        Ok(digest
            .and_then(|value| value.to_str().ok())
            .and_then(Digest::parse))
    }

    /// A manifest: its kind and its text. By digest, it is verified.
    pub(super) async fn manifest(
        &self,
        reference: &Reference,
        wanted: &str,
    ) -> Result<(Option<String>, Vec<u8>), OciError> {
        let ask = manifest(reference, wanted, Method::GET);
        let text = self
            .repeat(|| async {
                let answer = self.attempt(reference, &ask).await?;
                let kind = answer
                    .headers()
                    .get(CONTENT_TYPE)
                    .and_then(|value| value.to_str().ok())
                    .map(|value| value.split(';').next().unwrap_or(value).trim().to_owned());
                let text = read_all(answer, LARGEST_MANIFEST, reference, &ask.what).await?;
                Ok((kind, text))
            })
            .await?;
        if let Some(digest) = Digest::parse(wanted) {
            let found = Digest::of(&text.1);
            if found != digest {
                return Err(OciError::Mismatch {
                    what: ask.what,
                    reason: format!("its digest is {found}"),
                });
            }
        }
        Ok(text)
    }

    /// Asks for something, and again where that may help.
    pub(super) async fn send(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
    ) -> Result<Response, OciError> {
        self.repeat(|| self.attempt(reference, ask)).await
    }

    async fn repeat<T, F>(&self, mut action: impl FnMut() -> F) -> Result<T, OciError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            match action().await {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error, _)) if tries >= self.config.limits.attempts => {
                    return Err(error);
                }
                Err(Failure::Passing(_, asked)) => self.pause(tries, asked).await,
            }
        }
    }

    /// Waits before the next try: twice as long each time, and as long as the registry asks for.
    pub(super) async fn pause(&self, tries: u32, asked: Option<Duration>) {
        let doubled = self.config.limits.pause * 2_u32.saturating_pow(tries.saturating_sub(1));
        let pause = asked.unwrap_or(doubled).min(LONGEST_PAUSE);
        tokio::time::sleep(pause).await;
    }

    async fn attempt(&self, reference: &Reference, ask: &Ask<'_>) -> Result<Response, Failure> {
        let origin = self.origin(reference).await?;
        let path = format!("v2/{}/{}", reference.repository(), ask.path);
        let url = origin
            .join(&path)
            .map_err(|e| Failure::Final(protocol(reference, &ask.what, e.to_string())))?;
        let mut pass = self.known_pass(reference);
        let mut answer = self.follow(reference, ask, &url, pass.as_ref()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            pass = self.authenticate(reference, ask, &answer).await?;
            answer = self.follow(reference, ask, &url, pass.as_ref()).await?;
        }
        judge(reference, ask, answer).await
    }

    /// Sends the request, and goes where the answer points. Only the registry itself sees the credentials.
    async fn follow(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
        first: &Url,
        pass: Option<&Pass>,
    ) -> Result<Response, OciError> {
        let mut url = first.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self
                .client_for(&url)
                .request(ask.method.clone(), url.clone());
            if let Some(accept) = ask.accept {
                request = request.header(ACCEPT, accept);
            }
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            if url.origin() == first.origin()
                && let Some(pass) = pass
            {
                request = pass.attach(request);
            }
            let answer = request.send().await.map_err(|e| unreachable(&url, &e))?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let next = answer
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|place| url.join(place).ok())
                .ok_or_else(|| {
                    protocol(reference, &ask.what, "it redirects to nowhere".to_owned())
                })?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(OciError::Forbidden {
                    address: address::host_of(&next),
                    reason: "a registry with TLS redirects to it without",
                });
            }
            address::check(&self.config, &next)?;
            url = next;
        }
        Err(protocol(
            reference,
            &ask.what,
            "it redirects too often".to_owned(),
        ))
    }

    fn client_for(&self, url: &Url) -> &Client {
        if url.scheme() == "http" {
            &self.plain
        } else {
            &self.client
        }
    }

    /// Where a registry is: with TLS, unless it may do without and does.
    async fn origin(&self, reference: &Reference) -> Result<Url, OciError> {
        let host = reference.host();
        let parse = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/"))
                .map_err(|e| protocol(reference, host, e.to_string()))
        };
        let (secure, plain) = (parse("https")?, parse("http")?);
        address::check(&self.config, &secure)?;
        if !address::may_be_plain(&self.config, &plain) {
            return Ok(secure);
        }
        if let Some(known) = lock(&self.origins).get(host) {
            return Ok(known.clone());
        }
        let ping = plain
            .join("v2/")
            .map_err(|e| protocol(reference, host, e.to_string()))?;
        let found = match self.plain.get(ping).send().await {
            // What servers with TLS answer to a request without.
            Ok(answer) if answer.status() == StatusCode::BAD_REQUEST => secure,
            Ok(_) => plain,
            Err(e) if e.is_connect() || e.is_timeout() => return Err(unreachable(&plain, &e)),
            Err(_) => secure,
        };
        lock(&self.origins).insert(host.to_owned(), found.clone());
        Ok(found)
    }

    fn known_pass(&self, reference: &Reference) -> Option<Pass> {
        let passes = lock(&self.passes);
        passes
            .get(&pass_key(reference))
            .filter(|pass| pass.is_fresh())
            .cloned()
    }

    /// Gets what a registry wants to be shown.
    async fn authenticate(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
        refusal: &Response,
    ) -> Result<Option<Pass>, OciError> {
        let credentials = match &self.config.auth_file {
            Some(file) => auth::credentials(file, reference)?,
            None => None,
        };
        let denied = |reason: &str| OciError::Denied {
            registry: reference.registry().to_owned(),
            what: ask.what.clone(),
            reason: reason.to_owned(),
        };
        let pass = match (auth::challenge(refusal.headers()), credentials) {
            (Some(Challenge::Basic), Some(Credentials::Password { user, password })) => {
                Pass::Basic { user, password }
            }
            (Some(Challenge::Basic), _) => {
                return Err(denied(
                    "it wants a name and a password, and none is configured",
                ));
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                credentials,
            ) => {
                let realm = refusal.url().join(&realm).map_err(|_| {
                    protocol(
                        reference,
                        &ask.what,
                        "its token service has no address".into(),
                    )
                })?;
                let scope =
                    scope.unwrap_or_else(|| format!("repository:{}:pull", reference.repository()));
                self.token(
                    reference,
                    ask,
                    realm,
                    service,
                    scope,
                    credentials,
                    refusal.url(),
                )
                .await?
            }
            (None, _) => return Err(denied("it does not say what it wants to be shown")),
        };
        lock(&self.passes).insert(pass_key(reference), pass.clone());
        Ok(Some(pass))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one challenge, used here only"
    )]
    async fn token(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
        mut realm: Url,
        service: Option<String>,
        scope: String,
        credentials: Option<Credentials>,
        registry: &Url,
    ) -> Result<Pass, OciError> {
        if registry.scheme() == "https" && realm.scheme() != "https" {
            return Err(OciError::Forbidden {
                address: address::host_of(&realm),
                reason: "a registry with TLS asks for tokens from there without",
            });
        }
        address::check(&self.config, &realm)?;
        let service = service.unwrap_or_default();
        let client = self.client_for(&realm).clone();
        let request = match credentials {
            Some(Credentials::Identity { token }) => client.post(realm.clone()).form(&[
                ("grant_type", "refresh_token"),
                ("client_id", "instavm"),
                ("refresh_token", token.as_str()),
                ("service", service.as_str()),
                ("scope", scope.as_str()),
            ]),
            other => {
                realm
                    .query_pairs_mut()
                    .append_pair("service", &service)
                    .append_pair("scope", &scope);
                let request = client.get(realm.clone());
                match other {
                    Some(Credentials::Password { user, password }) => {
                        request.basic_auth(user, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let answer = request.send().await.map_err(|e| unreachable(&realm, &e))?;
        let status = answer.status();
        if status.is_server_error() {
            return Err(OciError::Unreachable {
                registry: address::host_of(&realm),
                reason: format!("it answers {status}"),
            });
        }
        if !status.is_success() {
            return Err(OciError::Denied {
                registry: address::host_of(&realm),
                what: ask.what.clone(),
                reason: format!("it gives no token ({status})"),
            });
        }
        let text = read_all(answer, LARGEST_TOKEN, reference, "a token").await?;
        serde_json::from_slice::<TokenAnswer>(&text)
            .ok()
            .and_then(TokenAnswer::into_pass)
            .ok_or_else(|| protocol(reference, "a token", "there is none in its answer".into()))
    }

    /// How a stream of a registry broke, for people.
    pub(super) fn broken(&self, reference: &Reference, error: &reqwest::Error) -> OciError {
        OciError::Unreachable {
            registry: reference.registry().to_owned(),
            reason: reason(error),
        }
    }
}

fn manifest(reference: &Reference, wanted: &str, method: Method) -> Ask<'static> {
    Ask {
        method,
        path: format!("manifests/{wanted}"),
        accept: Some(MANIFESTS),
        from: 0,
        what: format!("the image {}:{wanted}", reference.repository()),
    }
}

/// Makes an error of an answer that is one.
async fn judge(
    reference: &Reference,
    ask: &Ask<'_>,
    answer: Response,
) -> Result<Response, Failure> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let registry = reference.registry().to_owned();
    let what = ask.what.clone();
    let asked = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs);
    Err(match status {
        StatusCode::NOT_FOUND => Failure::Final(OciError::NotFound { registry, what }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Final(OciError::Denied {
            registry,
            what,
            reason: complaint(answer).await,
        }),
        StatusCode::TOO_MANY_REQUESTS => {
            Failure::Passing(OciError::RateLimited { registry }, asked)
        }
        _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            let reason = complaint(answer).await;
            Failure::Passing(OciError::Unreachable { registry, reason }, asked)
        }
        _ => Failure::Final(OciError::Protocol {
            registry,
            what,
            reason: complaint(answer).await,
        }),
    })
}

/// What an answer says is wrong: the status, and the first message in it.
async fn complaint(mut answer: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Complaint {
        message: Option<String>,
        code: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Complaints {
        errors: Vec<Complaint>,
    }
    let status = answer.status().to_string();
    let mut text = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        text.extend_from_slice(&piece);
        if text.len() as u64 > LARGEST_COMPLAINT {
            return status;
        }
    }
    let said = serde_json::from_slice::<Complaints>(&text)
        .ok()
        .and_then(|all| all.errors.into_iter().next())
        .and_then(|first| first.message.or(first.code));
    match said {
        Some(said) => {
            let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
            format!("{status}: {said}")
        }
        None => status,
    }
}

/// Reads a body that must not be larger than `most`.
async fn read_all(
    mut answer: Response,
    most: u64,
    reference: &Reference,
    what: &str,
) -> Result<Vec<u8>, OciError> {
    let too_large = || OciError::TooLarge {
        reason: format!("{what} has more than {most} bytes"),
    };
    if answer.content_length().is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let mut text = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(piece)) if text.len() as u64 + piece.len() as u64 > most => {
                return Err(too_large());
            }
            Ok(Some(piece)) => text.extend_from_slice(&piece),
            Ok(None) => return Ok(text),
            Err(e) => {
                return Err(OciError::Unreachable {
                    registry: reference.registry().to_owned(),
                    reason: reason(&e),
                });
            }
        }
    }
}

fn pass_key(reference: &Reference) -> (String, String) {
    (
        reference.host().to_owned(),
        reference.repository().to_owned(),
    )
}

fn protocol(reference: &Reference, what: &str, reason: String) -> OciError {
    OciError::Protocol {
        registry: reference.registry().to_owned(),
        what: what.to_owned(),
        reason,
    }
}

fn unreachable(url: &Url, error: &reqwest::Error) -> OciError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(at) = cause {
        if at.is::<PrivateAddress>() {
            return OciError::Forbidden {
                address: address::host_of(url),
                reason: address::PRIVATE,
            };
        }
        cause = at.source();
    }
    OciError::Unreachable {
        registry: address::host_of(url),
        reason: reason(error),
    }
}

/// The innermost causes of an error, without the URL, which may carry a secret.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() {
            "it did not accept a connection in time".into()
        } else {
            "it sent nothing for too long".into()
        };
    }
    let mut said = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(at) = cause {
        said.push(at.to_string());
        cause = at.source();
    }
    said.dedup();
    match said.last() {
        Some(last) => last.clone(),
        None => "the request failed".into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
