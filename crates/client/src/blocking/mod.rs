//! The client for programs without `async`. It may be used in asynchronous code too, where it blocks the thread.
//!
//! ```no_run
//! # fn main() -> instavm::Result<()> {
//! let client = instavm::blocking::Client::from_env()?;
//! print!("{}", client.execute("print(6 * 7)")?.stdout);
//! client.kill()?;
//! # Ok(())
//! # }
//! ```

mod egress;
mod file;
mod pty;
mod share;
mod snapshot;
mod vm;
mod volume;
mod worker;

pub use file::Download;
pub use pty::Ptys;
pub use share::Shares;
pub use snapshot::Snapshots;
pub use vm::Vms;
pub use volume::Volumes;

use crate::{
    Answer, ApiKey, ApiKeyDeleted, AppUrl, Call, ClientBuilder, Code, Execution, ExecutionStarted,
    ExecutionTask, Killed, NewApiKey, Result, Sandboxes, Session, SessionStatus, SessionUsage,
    SshKey, SshKeyDeleted, UpdateApiKey, UsageBreakdown, UsageDays, User,
};
use std::path::Path;
use std::time::Duration;
use worker::Worker;

/// A client of one platform, with one session at a time. Clones share the session and the connections. Each method is
/// that of [`crate::Client`].
#[derive(Clone, Debug)]
pub struct Client {
    inner: crate::Client,
    worker: Worker,
}

impl ClientBuilder {
    /// As [`build`](ClientBuilder::build), for a client that blocks.
    ///
    /// # Errors
    /// When the address or the key cannot be used, or the session cannot be started.
    pub fn build_blocking(self) -> Result<Client> {
        let worker = Worker::start()?;
        let inner = worker.wait(self.build())?;
        Ok(Client { inner, worker })
    }
}

impl Client {
    /// A client with this key and a new session, and the defaults of [`ClientBuilder`].
    ///
    /// # Errors
    /// As [`ClientBuilder::build_blocking`].
    pub fn new(api_key: impl Into<String>) -> Result<Client> {
        crate::Client::builder().api_key(api_key).build_blocking()
    }

    /// A client with the key and the address of the environment and a new session.
    ///
    /// # Errors
    /// When there is no key, and as [`ClientBuilder::build_blocking`].
    pub fn from_env() -> Result<Client> {
        let client = Client::builder().without_session().build_blocking()?;
        client.start_session()?;
        Ok(client)
    }

    /// For everything that can be configured; end it with [`ClientBuilder::build_blocking`].
    pub fn builder() -> ClientBuilder {
        crate::Client::builder()
    }

    /// The session that calls without a session of their own go to.
    pub fn session_id(&self) -> Option<String> {
        self.inner.session_id()
    }

    /// Goes on with an existing session.
    pub fn use_session(&self, session_id: impl Into<String>) {
        self.inner.use_session(session_id);
    }

    /// Forgets the session. Nothing is sent.
    pub fn close_session(&self) {
        self.inner.close_session();
    }

    fn run<T, F>(&self, work: impl FnOnce(crate::Client) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.worker.wait(work(self.inner.clone()))
    }

    /// Whether the VM of the client's session is active. `false` as well when that cannot be found out.
    pub fn is_session_active(&self) -> bool {
        self.run(|client| async move { Ok(client.is_session_active().await) })
            .unwrap_or(false)
    }

    /// The account's API keys.
    pub fn api_keys(&self) -> ApiKeys<'_> {
        ApiKeys(self)
    }

    /// Sends any call of the API with the client's key, timeout and retries.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn call(&self, call: Call) -> Result<Answer> {
        self.run(|client| async move { client.call(call).await })
    }

    /// Sends any call of the API with these text fields and a local file, as `multipart/form-data`.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn call_with_file(
        &self,
        call: Call,
        fields: Vec<(&'static str, String)>,
        local: impl AsRef<Path>,
    ) -> Result<Answer> {
        let local = local.as_ref().to_owned();
        self.run(|client| async move { client.call_with_file(call, fields, local).await })
    }

    /// Starts a new session, which becomes the client's session; returns its id.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn start_session(&self) -> Result<String> {
        self.run(|client| async move { client.start_session().await })
    }

    /// The record of the client's session.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_session_info(&self) -> Result<Session> {
        self.run(|client| async move { client.get_session_info().await })
    }

    /// The record of a session.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_session_info_of(&self, session_id: &str) -> Result<Session> {
        let session_id = session_id.to_owned();
        self.run(|client| async move { client.get_session_info_of(&session_id).await })
    }

    /// Whether the client's session has a living VM.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_session_status(&self) -> Result<SessionStatus> {
        self.run(|client| async move { client.get_session_status().await })
    }

    /// Whether a session has a living VM.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_session_status_of(&self, session_id: &str) -> Result<SessionStatus> {
        let session_id = session_id.to_owned();
        self.run(|client| async move { client.get_session_status_of(&session_id).await })
    }

    /// What the VM of the client's session has used.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_usage(&self) -> Result<SessionUsage> {
        self.run(|client| async move { client.get_usage().await })
    }

    /// Where a port of the client's session is reached; port 80 when none is given.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_session_app_url(&self, port: Option<u16>) -> Result<AppUrl> {
        self.run(|client| async move { client.get_session_app_url(port).await })
    }

    /// Where a port of a session is reached; port 80 when none is given.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_session_app_url_of(&self, session_id: &str, port: Option<u16>) -> Result<AppUrl> {
        let session_id = session_id.to_owned();
        self.run(|client| async move { client.get_session_app_url_of(&session_id, port).await })
    }

    /// The account's sessions with a living VM, newest first.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn list_sandboxes(&self, which: Sandboxes) -> Result<Vec<Session>> {
        self.run(|client| async move { client.list_sandboxes(which).await })
    }

    /// Ends the VM of the client's session and forgets the session.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn kill(&self) -> Result<Killed> {
        self.run(|client| async move { client.kill().await })
    }

    /// Ends the VM of a session.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn kill_session(&self, session_id: &str) -> Result<Killed> {
        let session_id = session_id.to_owned();
        self.run(|client| async move { client.kill_session(&session_id).await })
    }

    /// Runs code in the session and waits for its end.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn execute(&self, code: impl Into<Code>) -> Result<Execution> {
        let code: Code = code.into();
        self.run(|client| async move { client.execute(code).await })
    }

    /// Starts code in the session and returns at once.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn execute_async(&self, code: impl Into<Code>) -> Result<ExecutionStarted> {
        let code: Code = code.into();
        self.run(|client| async move { client.execute_async(code).await })
    }

    /// How far a background execution is.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_task(&self, task_id: &str) -> Result<ExecutionTask> {
        let task_id = task_id.to_owned();
        self.run(|client| async move { client.get_task(&task_id).await })
    }

    /// Waits until a background execution is complete, asking once per interval.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_task_result(
        &self,
        task_id: &str,
        interval: Duration,
        timeout: Duration,
    ) -> Result<ExecutionTask> {
        let task_id = task_id.to_owned();
        self.run(|client| async move { client.get_task_result(&task_id, interval, timeout).await })
    }

    /// Adds a public key, one line of an OpenSSH public key file.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn add_ssh_key(&self, public_key: &str) -> Result<SshKey> {
        let public_key = public_key.to_owned();
        self.run(|client| async move { client.add_ssh_key(&public_key).await })
    }

    /// The account's SSH keys.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn list_ssh_keys(&self) -> Result<Vec<SshKey>> {
        self.run(|client| async move { client.list_ssh_keys().await })
    }

    /// Deletes an SSH key.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn delete_ssh_key(&self, id: i64) -> Result<SshKeyDeleted> {
        self.run(|client| async move { client.delete_ssh_key(id).await })
    }

    /// Who the API key belongs to.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_current_user(&self) -> Result<User> {
        self.run(|client| async move { client.get_current_user().await })
    }

    /// What the account has used, day by day: cost, processor time, memory.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn get_usage_breakdown(&self, days: UsageDays) -> Result<UsageBreakdown> {
        self.run(|client| async move { client.get_usage_breakdown(days).await })
    }
}

/// The account's API keys; see [`Client::api_keys`]. Each method is that of [`crate::ApiKeys`].
#[derive(Clone, Copy, Debug)]
pub struct ApiKeys<'a>(&'a Client);

impl ApiKeys<'_> {
    /// Makes a key. The answer is the only place where its text is shown.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn create(&self, description: &str) -> Result<NewApiKey> {
        let description = description.to_owned();
        self.0
            .run(|client| async move { client.api_keys().create(&description).await })
    }

    /// All keys, without their texts.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list(&self) -> Result<Vec<ApiKey>> {
        self.0
            .run(|client| async move { client.api_keys().list().await })
    }

    /// One key.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn get(&self, id: i64) -> Result<ApiKey> {
        self.0
            .run(|client| async move { client.api_keys().get(id).await })
    }

    /// Changes a key: its description, or whether it is accepted.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn update(&self, id: i64, change: &UpdateApiKey) -> Result<ApiKey> {
        let change = change.clone();
        self.0
            .run(|client| async move { client.api_keys().update(id, &change).await })
    }

    /// Deletes a key: it answers 401 from now on.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn delete(&self, id: i64) -> Result<ApiKeyDeleted> {
        self.0
            .run(|client| async move { client.api_keys().delete(id).await })
    }
}
