//! Sessions.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::error::{Error, Family, Result};
use instavm_api::Metadata;
use instavm_api::session::{AppUrl, Kill, Killed, Session, SessionStatus, SessionUsage};
use serde::Serialize;
use std::collections::BTreeMap;

/// The request carries the key, so it is a type of its own that nothing prints.
#[derive(Serialize)]
struct Start<'a> {
    api_key: &'a str,
    vm_lifetime_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpu_count: Option<u32>,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: &'a Metadata,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: &'a BTreeMap<String, String>,
}

/// Which sandboxes are asked for.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Sandboxes {
    metadata: Metadata,
    limit: Option<u32>,
}

impl Sandboxes {
    /// All of them, up to the platform's limit of 100.
    pub fn all() -> Sandboxes {
        Sandboxes::default()
    }

    /// Only those with this label. Several labels must all be there.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// At most so many, 1 to 1000.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }
}

fn get(path: &str, session_id: &str, operation: &'static str, family: Family) -> Result<Call> {
    let path = format!("/v1/sessions/{path}/{}", path_segment(session_id)?);
    Ok(Call::new(Method::Get, path).named(operation, family))
}

/// Methods take the session that they are about; the short form without one is about the client's own.
impl Client {
    /// Starts a new session, which becomes the client's session; returns its id.
    ///
    /// # Errors
    /// Without a key, and when the platform refuses.
    pub async fn start_session(&self) -> Result<String> {
        const OPERATION: &str = "start a session";
        let settings = self.settings();
        let call = Call::new(Method::Post, "/v1/sessions/session")
            .named(OPERATION, Family::Session)
            .without_header()
            .json(&Start {
                api_key: self.key(OPERATION)?,
                vm_lifetime_seconds: settings.lifetime.as_secs(),
                memory_mb: settings.memory_mb,
                vcpu_count: settings.cpu_count,
                metadata: &settings.metadata,
                env: &settings.env,
            })?;
        let answer: serde_json::Value = self.fetch(call).await?;
        let id = answer.get("session_id").and_then(serde_json::Value::as_str);
        let id = id.filter(|id| !id.is_empty()).ok_or(Error::Answer {
            operation: OPERATION,
            source: "it has no session_id".into(),
        })?;
        self.use_session(id);
        Ok(id.to_owned())
    }

    /// The record of the client's session.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn get_session_info(&self) -> Result<Session> {
        self.get_session_info_of(&self.current("get the session")?)
            .await
    }

    /// The record of a session.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get_session_info_of(&self, session_id: &str) -> Result<Session> {
        self.fetch(get(
            "session",
            session_id,
            "get the session",
            Family::Session,
        )?)
        .await
    }

    /// Whether the client's session has a living VM.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn get_session_status(&self) -> Result<SessionStatus> {
        self.get_session_status_of(&self.current("get the session's status")?)
            .await
    }

    /// Whether a session has a living VM.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get_session_status_of(&self, session_id: &str) -> Result<SessionStatus> {
        let operation = "get the session's status";
        self.fetch(get("status", session_id, operation, Family::Session)?)
            .await
    }

    /// Whether the VM of the client's session is active. `false` as well when that cannot be found out.
    pub async fn is_session_active(&self) -> bool {
        self.get_session_status()
            .await
            .is_ok_and(|status| status.vm_status.as_deref() == Some("active"))
    }

    /// What the VM of the client's session has used.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn get_usage(&self) -> Result<SessionUsage> {
        let operation = "get the session's usage";
        let session_id = self.current(operation)?;
        self.fetch(get("usage", &session_id, operation, Family::Api)?)
            .await
    }

    /// Where a port of the client's session is reached; port 80 when none is given.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn get_session_app_url(&self, port: Option<u16>) -> Result<AppUrl> {
        self.get_session_app_url_of(&self.current("get the app URL")?, port)
            .await
    }

    /// Where a port of a session is reached; port 80 when none is given.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get_session_app_url_of(
        &self,
        session_id: &str,
        port: Option<u16>,
    ) -> Result<AppUrl> {
        let call = get("app-url", session_id, "get the app URL", Family::Session)?;
        self.fetch(match port {
            Some(port) => call.query("port", port),
            None => call,
        })
        .await
    }

    /// The account's sessions with a living VM, newest first.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list_sandboxes(&self, which: Sandboxes) -> Result<Vec<Session>> {
        let mut call = Call::new(Method::Get, "/v1/sessions/sandboxes")
            .named("list sandboxes", Family::Session);
        if !which.metadata.is_empty() {
            let text = serde_json::Value::Object(which.metadata).to_string();
            call = call.query("metadata", text);
        }
        if let Some(limit) = which.limit {
            call = call.query("limit", limit);
        }
        self.fetch(call).await
    }

    /// Ends the VM of the client's session and forgets the session.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn kill(&self) -> Result<Killed> {
        let session_id = self.current("kill the session")?;
        let killed = self.kill_session(&session_id).await?;
        self.forget(&session_id);
        Ok(killed)
    }

    /// Ends the VM of a session.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn kill_session(&self, session_id: &str) -> Result<Killed> {
        let body = Kill {
            session_id: session_id.to_owned(),
        };
        let call = Call::new(Method::Post, "/kill")
            .named("kill the session", Family::Session)
            .json(&body)?;
        self.fetch(call).await
    }
}
