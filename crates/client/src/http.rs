//! Sending: the key, deadlines, retries, redirects, and what an answer means.

use crate::call::{Answer, Call, Method, Payload};
use crate::error::{Error, Failure, NetworkCause, Result};
use bytes::{Bytes, BytesMut};
use reqwest::multipart::Form;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{RequestBuilder, Response, Url};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Redirects that are followed.
const REDIRECTS: usize = 10;
/// Bytes of a refusal's body that are kept.
const FAILURE_LIMIT: usize = 64 << 10;
/// The longest pause before a retry.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// The header with the key.
const KEY: &str = "x-api-key";
/// The header by which a repeated call is told.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A connection pool to one platform.
#[derive(Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
    base_url: String,
    api_key: Option<String>,
    timeout: Duration,
    max_retries: u32,
}

/// When a transfer last made progress.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub(crate) fn begin() -> Activity {
        Activity(Arc::new(Mutex::new(Instant::now())))
    }

    /// Something was sent.
    pub(crate) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a result as long as there is progress; `None` when there was none for this long.
    async fn watch<T>(&self, patience: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let deadline = self.last() + patience;
            match tokio::time::timeout_at(deadline, &mut work).await {
                Ok(value) => return Some(value),
                Err(_) if self.last() + patience <= Instant::now() => return None,
                Err(_) => {}
            }
        }
    }
}

impl Http {
    pub(crate) fn new(
        base_url: String,
        api_key: Option<String>,
        timeout: Duration,
        max_retries: u32,
    ) -> Result<Http> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let parsed = Url::parse(&base_url).map_err(|error| invalid_base(&error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(invalid_base("must begin with http:// or https://"));
        }
        if let Some(key) = &api_key {
            reqwest::header::HeaderValue::from_str(key).map_err(|_| Error::Invalid {
                what: "API key",
                reason: "has characters that no header can carry".to_owned(),
            })?;
        }
        let client = reqwest::Client::builder()
            .user_agent(concat!("instavm-rust/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(timeout)
            .redirect(Policy::custom(follow))
            .build()
            .map_err(|error| Error::Network {
                operation: "set up the HTTP client",
                cause: NetworkCause::Connection(Box::new(error)),
            })?;
        Ok(Http {
            client,
            base_url,
            api_key,
            timeout,
            max_retries,
        })
    }

    pub(crate) fn api_key(&self) -> Option<&str> {
        self.api_key.as_deref()
    }

    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// How often a call may be repeated.
    pub(crate) fn retries(&self) -> Retries {
        Retries {
            failed: 0,
            most: self.max_retries,
        }
    }

    /// Sends a call, with retries, and reads the whole answer.
    pub(crate) async fn send(&self, call: &Call) -> Result<Answer> {
        let mut retries = self.retries();
        loop {
            let result = match self.open_once(call).await {
                Ok(response) => self.collect(response, call).await,
                Err(error) => Err(error),
            };
            match result {
                Err(error) if retries.again(&error).await => {}
                result => return result,
            }
        }
    }

    /// Sends a call, with retries, and returns when the head of a good answer is there.
    pub(crate) async fn open(&self, call: &Call) -> Result<Response> {
        let mut retries = self.retries();
        loop {
            match self.open_once(call).await {
                Err(error) if retries.again(&error).await => {}
                result => return result,
            }
        }
    }

    /// Sends a body that can be sent only once, without retries. `body` gets what it must touch while it is sent.
    pub(crate) async fn send_form(
        &self,
        call: &Call,
        body: impl FnOnce(Activity) -> Form,
    ) -> Result<Answer> {
        let activity = Activity::begin();
        let request = self.request(call)?.multipart(body(activity.clone()));
        let response = self.exchange(request, call, &activity).await?;
        self.collect(response, call).await
    }

    /// How long to wait between two signs of life.
    pub(crate) fn patience(&self, call: &Call) -> Duration {
        call.timeout.unwrap_or(self.timeout)
    }

    async fn collect(&self, mut response: Response, call: &Call) -> Result<Answer> {
        let status = response.status().as_u16();
        let patience = self.patience(call);
        let mut body = BytesMut::new();
        while let Some(chunk) = next_chunk(&mut response, call.operation, patience).await? {
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status,
            body: body.freeze(),
            operation: call.operation,
        })
    }

    async fn open_once(&self, call: &Call) -> Result<Response> {
        let request = self.request(call)?;
        let request = match &call.body {
            Payload::Empty => request,
            Payload::Json(text) => request
                .header(reqwest::header::CONTENT_TYPE, "application/json")
                .body(text.clone()),
            Payload::Form(fields) => request.form(fields),
        };
        self.exchange(request, call, &Activity::begin()).await
    }

    pub(crate) fn request(&self, call: &Call) -> Result<RequestBuilder> {
        let url = format!("{}{}", self.base_url, call.path);
        let url = Url::parse(&url).map_err(|error| Error::Invalid {
            what: "path",
            reason: error.to_string(),
        })?;
        let method = match call.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Patch => reqwest::Method::PATCH,
            Method::Delete => reqwest::Method::DELETE,
        };
        let request = self.client.request(method, url);
        let request = if call.query.is_empty() {
            request
        } else {
            request.query(&call.query)
        };
        let request = match &call.idempotency_key {
            Some(key) => request.header(IDEMPOTENCY_KEY, key),
            None => request,
        };
        Ok(match &self.api_key {
            Some(key) if call.authorised => request.header(KEY, key),
            _ => request,
        })
    }

    pub(crate) async fn exchange(
        &self,
        request: RequestBuilder,
        call: &Call,
        activity: &Activity,
    ) -> Result<Response> {
        let (operation, patience) = (call.operation, self.patience(call));
        let response = activity
            .watch(patience, request.send())
            .await
            .ok_or_else(|| timed_out(operation, patience))?
            .map_err(|error| broken(operation, error, patience))?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let failure = failure(response, operation, patience).await?;
        Err(call.family.error(operation, failure))
    }
}

fn invalid_base(reason: &str) -> Error {
    Error::Invalid {
        what: "base URL",
        reason: reason.to_owned(),
    }
}

/// The key goes to no other host than the one that it was meant for.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let first = attempt.previous().first();
    let same_host = first.is_some_and(|first| {
        first.host() == attempt.url().host()
            && (first.scheme() == attempt.url().scheme() || attempt.url().scheme() == "https")
    });
    if !same_host {
        attempt
            .error("a redirect to another host is not followed, because it would get the API key")
    } else if attempt.previous().len() > REDIRECTS {
        attempt.error("too many redirects")
    } else {
        attempt.follow()
    }
}

/// Counts the attempts of one call.
pub(crate) struct Retries {
    failed: u32,
    most: u32,
}

impl Retries {
    /// Whether to try once more after this failure; waits first.
    pub(crate) async fn again(&mut self, error: &Error) -> bool {
        if self.failed >= self.most || !is_transient(error) {
            return false;
        }
        tokio::time::sleep(pause(self.failed)).await;
        self.failed += 1;
        true
    }
}

/// 1, 2, 4, … seconds.
fn pause(attempt: u32) -> Duration {
    Duration::from_secs(1u64.checked_shl(attempt).unwrap_or(u64::MAX)).min(LONGEST_PAUSE)
}

/// Connections that failed and answers that did not come; whatever the platform answered is final.
fn is_transient(error: &Error) -> bool {
    matches!(
        error,
        Error::Network {
            cause: NetworkCause::Connection(_) | NetworkCause::TimedOut(_),
            ..
        }
    )
}

fn timed_out(operation: &'static str, patience: Duration) -> Error {
    Error::Network {
        operation,
        cause: NetworkCause::TimedOut(patience),
    }
}

fn broken(operation: &'static str, error: reqwest::Error, patience: Duration) -> Error {
    if error.is_timeout() {
        return timed_out(operation, patience);
    }
    Error::Network {
        operation,
        // The URL may hold what the caller wants to keep.
        cause: NetworkCause::Connection(Box::new(error.without_url())),
    }
}

/// The next part of an answer; `None` at its end.
pub(crate) async fn next_chunk(
    response: &mut Response,
    operation: &'static str,
    patience: Duration,
) -> Result<Option<Bytes>> {
    tokio::time::timeout(patience, response.chunk())
        .await
        .map_err(|_| timed_out(operation, patience))?
        .map_err(|error| broken(operation, error, patience))
}

async fn failure(
    mut response: Response,
    operation: &'static str,
    patience: Duration,
) -> Result<Failure> {
    let status = response.status();
    let mut body = Vec::new();
    while body.len() < FAILURE_LIMIT {
        // A body that breaks off does not hide the status.
        match next_chunk(&mut response, operation, patience).await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    body.truncate(FAILURE_LIMIT);
    let body = String::from_utf8_lossy(&body).trim().to_owned();
    Ok(Failure {
        status: status.as_u16(),
        reason: status.canonical_reason().unwrap_or_default(),
        detail: detail(&body),
        body,
    })
}

/// The first of `detail`, `error` and `message` that says something; of a body that is no JSON object, all of it.
fn detail(body: &str) -> Option<String> {
    let Ok(json) = serde_json::from_str::<serde_json::Value>(body) else {
        return (!body.is_empty()).then(|| body.to_owned());
    };
    let object = json.as_object()?;
    ["detail", "error", "message"]
        .iter()
        .find_map(|name| match object.get(*name)? {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => (!text.is_empty()).then(|| text.clone()),
            other => Some(other.to_string()),
        })
}
