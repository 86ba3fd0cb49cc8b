//! Making a client.

use crate::client::{Client, SessionSettings};
use crate::error::{Error, Result};
use crate::http::Http;
use instavm_api::Metadata;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Where the platform is when nobody says otherwise.
pub const DEFAULT_BASE_URL: &str = "https://api.instavm.io";
/// The environment variable with the API key.
pub const API_KEY_VARIABLE: &str = "INSTAVM_API_KEY";
/// The environment variable with the platform's address.
pub const BASE_URL_VARIABLE: &str = "INSTAVM_BASE_URL";

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// Makes a [`Client`]. Everything is optional.
///
/// ```no_run
/// # async fn example() -> instavm::Result<()> {
/// use std::time::Duration;
///
/// let client = instavm::Client::builder()
///     .api_key("instavm_sk_...")
///     .base_url("http://127.0.0.1:8080")
///     .cpu_count(2)
///     .memory_mb(1024)
///     .env("GREETING", "hello")
///     .metadata("team", "research")
///     .lifetime(Duration::from_secs(600))
///     .build()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct ClientBuilder {
    api_key: Option<String>,
    base_url: Option<String>,
    timeout: Duration,
    lifetime: Option<Duration>,
    max_retries: u32,
    cpu_count: Option<u32>,
    memory_mb: Option<u32>,
    env: BTreeMap<String, String>,
    metadata: Metadata,
    start_session: bool,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        ClientBuilder {
            api_key: None,
            base_url: None,
            timeout: DEFAULT_TIMEOUT,
            lifetime: None,
            max_retries: 0,
            cpu_count: None,
            memory_mb: None,
            env: BTreeMap::new(),
            metadata: Metadata::new(),
            start_session: true,
        }
    }
}

impl fmt::Debug for ClientBuilder {
    /// Without the key and the environment's values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("base_url", &self.base_url)
            .field("timeout", &self.timeout)
            .field("start_session", &self.start_session)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// The API key. Without this call it is the environment's `INSTAVM_API_KEY`.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Where the platform is. Without this call it is the environment's `INSTAVM_BASE_URL`, or else
    /// [`DEFAULT_BASE_URL`].
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.base_url = Some(url.into());
        self
    }

    /// How long a request may wait for the connection, and for each further part of the answer: 300 s by default. As
    /// in the Python SDK it is the lifetime of the session's VM as well, unless [`lifetime`](Self::lifetime) is given.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long the session's VM lives.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// How often a request is repeated when no connection could be made or no answer came, after 1, 2, 4, … s: never
    /// by default. A repeated request can take effect twice.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// Processors of the session's VM.
    pub fn cpu_count(mut self, count: u32) -> Self {
        self.cpu_count = Some(count);
        self
    }

    /// Memory of the session's VM in MiB.
    pub fn memory_mb(mut self, megabytes: u32) -> Self {
        self.memory_mb = Some(megabytes);
        self
    }

    /// Adds a variable to the environment of every execution.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Adds a label to the session. [`Client::list_sandboxes`] finds sessions by it.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Starts no session: for a client that manages things, or that joins a session by
    /// [`Client::use_session`].
    pub fn without_session(mut self) -> Self {
        self.start_session = false;
        self
    }

    /// Makes the client and, with a key and unless told otherwise, starts its session.
    ///
    /// # Errors
    /// When the address or the key cannot be used, or the session cannot be started.
    pub async fn build(self) -> Result<Client> {
        let start = self.start_session;
        let client = self.assemble()?;
        if start && client.has_key() {
            client.start_session().await?;
        }
        Ok(client)
    }

    fn assemble(self) -> Result<Client> {
        let base_url = self.base_url.or_else(|| variable(BASE_URL_VARIABLE));
        let base_url = base_url.unwrap_or_else(|| DEFAULT_BASE_URL.to_owned());
        let api_key = self.api_key.or_else(|| variable(API_KEY_VARIABLE));
        let api_key = api_key
            .map(|key| key.trim().to_owned())
            .filter(|key| !key.is_empty());
        if self.timeout.is_zero() {
            return Err(Error::Invalid {
                what: "timeout",
                reason: "must be longer than nothing".to_owned(),
            });
        }
        let http = Http::new(base_url, api_key, self.timeout, self.max_retries)?;
        let settings = SessionSettings {
            lifetime: self.lifetime.unwrap_or(self.timeout),
            cpu_count: self.cpu_count,
            memory_mb: self.memory_mb,
            env: self.env,
            metadata: self.metadata,
        };
        Ok(Client::assembled(http, settings))
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .filter(|value| !value.trim().is_empty())
}
