//! Executions.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::error::{Error, Family, Result};
use instavm_api::execution::{Execute, Execution, ExecutionStarted, ExecutionTask, Language};
use std::time::Duration;
use tokio::time::Instant;

/// How much longer than the code may run its answer is waited for, which tells what it wrote until then.
const GRACE: Duration = Duration::from_secs(5);

/// Code, and how it is to be run. A text alone leaves the rest to the platform.
///
/// ```
/// use instavm::Code;
/// use std::time::Duration;
///
/// let listing = Code::bash("ls -l /app").timeout(Duration::from_secs(5));
/// let answer = Code::from("print(6 * 7)");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Code {
    text: String,
    language: Option<Language>,
    timeout: Option<Duration>,
}

impl Code {
    /// Code in a language that the platform finds out: Python, unless it is plainly a shell command.
    pub fn new(text: impl Into<String>) -> Code {
        Code {
            text: text.into(),
            language: None,
            timeout: None,
        }
    }

    /// Python, in the session's interpreter, which keeps its variables.
    pub fn python(text: impl Into<String>) -> Code {
        Code::new(text).language(Language::Python)
    }

    /// A script for a new bash.
    pub fn bash(text: impl Into<String>) -> Code {
        Code::new(text).language(Language::Bash)
    }

    /// In this language.
    pub fn language(mut self, language: Language) -> Code {
        self.language = Some(language);
        self
    }

    /// How long it may run, in whole seconds. [`Client::execute`] waits a little longer for the answer.
    pub fn timeout(mut self, timeout: Duration) -> Code {
        self.timeout = Some(timeout);
        self
    }

    fn seconds(&self) -> Option<i64> {
        let timeout = self.timeout?;
        let whole = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        Some(i64::try_from(whole).unwrap_or(i64::MAX))
    }

    fn body(&self, session_id: String) -> Execute {
        Execute {
            command: self.text.clone(),
            session_id,
            language: self.language,
            timeout: self.seconds(),
            vault_ids: None,
        }
    }
}

impl<T: Into<String>> From<T> for Code {
    fn from(text: T) -> Code {
        Code::new(text)
    }
}

impl Client {
    /// Runs code in the session and waits for its end. Code that fails is no error: see `exit_code` and `stderr`.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses or does not answer.
    pub async fn execute(&self, code: impl Into<Code>) -> Result<Execution> {
        const OPERATION: &str = "execute code";
        let code = code.into();
        let call = Call::new(Method::Post, "/execute").named(OPERATION, Family::Execution);
        let call = match code.timeout {
            Some(timeout) => call.timeout(timeout.saturating_add(GRACE)),
            None => call,
        };
        let session_id = self.current(OPERATION)?;
        self.fetch(call.json(&code.body(session_id))?).await
    }

    /// Starts code in the session and returns at once. [`Client::get_task_result`] waits for its end.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn execute_async(&self, code: impl Into<Code>) -> Result<ExecutionStarted> {
        const OPERATION: &str = "execute code in the background";
        let code = code.into();
        let session_id = self.current(OPERATION)?;
        let call = Call::new(Method::Post, "/execute_async")
            .named(OPERATION, Family::Execution)
            .json(&code.body(session_id))?;
        self.fetch(call).await
    }

    /// How far a background execution is.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get_task(&self, task_id: &str) -> Result<ExecutionTask> {
        self.fetch(task(task_id)?).await
    }

    /// Waits until a background execution is complete, asking once per interval.
    ///
    /// # Errors
    /// [`Error::TaskTimeout`] when it is not complete in time, and when the platform refuses or does not answer.
    pub async fn get_task_result(
        &self,
        task_id: &str,
        interval: Duration,
        timeout: Duration,
    ) -> Result<ExecutionTask> {
        let started = Instant::now();
        loop {
            let task = self.get_task(task_id).await?;
            if task.is_complete {
                return Ok(task);
            }
            if started.elapsed() + interval >= timeout {
                return Err(Error::TaskTimeout {
                    task_id: task_id.to_owned(),
                    waited: timeout,
                });
            }
            tokio::time::sleep(interval).await;
        }
    }
}

fn task(task_id: &str) -> Result<Call> {
    let path = format!("/v1/executions/{}", path_segment(task_id)?);
    Ok(Call::new(Method::Get, path).named("get a background execution", Family::Api))
}
