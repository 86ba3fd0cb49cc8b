//! Executions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Runs code in a session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Execute {
    /// Source code or a shell script. `code` is taken as well.
    #[serde(alias = "code")]
    #[schema(example = "print(6 * 7)")]
    pub command: String,
    /// A UUID.
    pub session_id: String,
    /// Absent: Python, unless the text is no Python and starts with a program of the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// Seconds; the answer comes before they are over. A fraction is rounded up.
    #[serde(
        default,
        deserialize_with = "crate::number::seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(example = 60)]
    pub timeout: Option<i64>,
    /// Not available yet: anything but an empty list is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub vault_ids: Option<serde_json::Value>,
}

/// The language of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// The session's interpreter, which keeps its variables.
    Python,
    /// A new bash process.
    Bash,
}

/// How an execution ended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Execution {
    /// Standard output, invalid UTF-8 replaced by U+FFFD.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced by U+FFFD; notes of the platform come last.
    pub stderr: String,
    /// The same as `stdout`.
    pub output: String,
    /// Exit status; 124 when the time limit ended it, 128 + number when a signal did.
    pub exit_code: i32,
    /// Seconds from start to end.
    pub execution_time: f64,
    /// Processor time in seconds.
    pub cpu_time: f64,
    /// A UUID.
    pub session_id: String,
    /// What ran it.
    pub language: Language,
    /// When it started.
    pub created_at: String,
    /// The time limit ended it.
    pub timed_out: bool,
    /// The output limit ended it; what is here is the beginning of the output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_limit_reached: bool,
    /// The interpreter's variables are gone; `stderr` says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub state_lost: bool,
    /// The exact bytes of standard output in base64, when `stdout` lost something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_b64: Option<String>,
    /// The exact bytes of standard error in base64, when `stderr` lost something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_b64: Option<String>,
}

/// An execution goes on in the background.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExecutionStarted {
    /// For `GET /v1/executions/{task_id}`.
    pub task_id: String,
    /// `running`, or `failed` when it could not be started.
    pub status: String,
    /// A UUID.
    pub session_id: String,
    /// The language asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// When it was accepted.
    pub created_at: String,
}

/// An execution in the background.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExecutionTask {
    /// Its id.
    pub task_id: String,
    /// It has ended, well or not.
    pub is_complete: bool,
    /// `pending`, `running`, `completed` or `failed`. A `failed` one did not run to its end: `stderr` says why.
    pub status: String,
    /// Standard output; empty until it is complete.
    pub serialized_stdout: String,
    /// Standard error; empty until it is complete.
    pub serialized_stderr: String,
    /// The same as `serialized_stdout`.
    pub stdout: String,
    /// The same as `serialized_stderr`.
    pub stderr: String,
    /// Exit status, when it is complete.
    pub exit_code: Option<i32>,
    /// Processor time in seconds, when it is complete.
    pub cpu_time: Option<f64>,
    /// Seconds from start to end, when it is complete.
    pub execution_time: Option<f64>,
    /// The time limit ended it.
    pub timed_out: bool,
    /// A UUID.
    pub session_id: String,
    /// The VM that runs it.
    pub vm_id: String,
    /// What ran it, or the language asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// When it was accepted.
    pub created_at: String,
    /// When it ended.
    pub completed_at: Option<String>,
    /// The exact bytes of standard output in base64, when `stdout` lost something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_b64: Option<String>,
    /// The exact bytes of standard error in base64, when `stderr` lost something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_b64: Option<String>,
}
