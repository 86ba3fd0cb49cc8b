//! The client: what every call shares.

use crate::builder::ClientBuilder;
use crate::call::{Answer, Call};
use crate::error::{Error, Result};
use crate::http::Http;
use instavm_api::Metadata;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the sessions of a client are like.
pub(crate) struct SessionSettings {
    pub(crate) lifetime: Duration,
    pub(crate) cpu_count: Option<u32>,
    pub(crate) memory_mb: Option<u32>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) metadata: Metadata,
}

struct Shared {
    http: Http,
    settings: SessionSettings,
    session_id: Mutex<Option<String>>,
}

/// A client of one platform, with one session at a time. Clones share the session and the connections.
///
/// ```no_run
/// # async fn example() -> instavm::Result<()> {
/// let client = instavm::Client::new("instavm_sk_...").await?;
/// let result = client.execute("print(6 * 7)").await?;
/// assert_eq!(result.stdout, "42\n");
/// client.kill().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client(Arc<Shared>);

impl fmt::Debug for Client {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base_url", &self.0.http.base_url())
            .field("session_id", &self.session_id())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client with this key and a new session, and the defaults of [`ClientBuilder`].
    ///
    /// # Errors
    /// As [`ClientBuilder::build`].
    pub async fn new(api_key: impl Into<String>) -> Result<Client> {
        Client::builder().api_key(api_key).build().await
    }

    /// A client with the key and the address of the environment (`INSTAVM_API_KEY`, `INSTAVM_BASE_URL`) and a new
    /// session.
    ///
    /// # Errors
    /// When there is no key, and as [`ClientBuilder::build`].
    pub async fn from_env() -> Result<Client> {
        let client = Client::builder().without_session().build().await?;
        client.start_session().await?;
        Ok(client)
    }

    /// For everything that can be configured.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn assembled(http: Http, settings: SessionSettings) -> Client {
        Client(Arc::new(Shared {
            http,
            settings,
            session_id: Mutex::new(None),
        }))
    }

    /// The session that calls without a session of their own go to.
    pub fn session_id(&self) -> Option<String> {
        self.session().clone()
    }

    /// Goes on with an existing session.
    pub fn use_session(&self, session_id: impl Into<String>) {
        *self.session() = Some(session_id.into());
    }

    /// Forgets the session. Nothing is sent: its VM lives until its lifetime is over; [`Client::kill`] ends it at once.
    pub fn close_session(&self) {
        *self.session() = None;
    }

    fn session(&self) -> MutexGuard<'_, Option<String>> {
        self.0
            .session_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the session if it is still this one.
    pub(crate) fn forget(&self, session_id: &str) {
        let mut current = self.session();
        if current.as_deref() == Some(session_id) {
            *current = None;
        }
    }

    /// The session, which the call needs.
    pub(crate) fn current(&self, operation: &'static str) -> Result<String> {
        self.session_id().ok_or(Error::Session {
            operation,
            failure: None,
        })
    }

    pub(crate) fn has_key(&self) -> bool {
        self.0.http.api_key().is_some()
    }

    pub(crate) fn settings(&self) -> &SessionSettings {
        &self.0.settings
    }

    /// The connections, for calls that need the key.
    pub(crate) fn http(&self, operation: &'static str) -> Result<&Http> {
        self.key(operation)?;
        Ok(&self.0.http)
    }

    pub(crate) fn key(&self, operation: &'static str) -> Result<&str> {
        self.0.http.api_key().ok_or(Error::Authentication {
            operation,
            failure: None,
        })
    }

    /// Sends any call of the API with the client's key, timeout and retries.
    ///
    /// # Errors
    /// When there is no answer or the platform refuses.
    pub async fn call(&self, call: Call) -> Result<Answer> {
        self.http(call.operation)?.send(&call).await
    }

    pub(crate) async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        self.call(call).await?.json()
    }
}
