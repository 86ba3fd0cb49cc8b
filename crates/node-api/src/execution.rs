//! Executions as a node sees them.

use bytes::Bytes;
use std::time::{Duration, SystemTime};

/// The language of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// The session's Python interpreter.
    Python,
    /// A new bash process.
    Bash,
}

/// One run of code.
#[derive(Clone, Debug)]
pub struct ExecuteRequest {
    /// The source text, without NUL characters when the language is [`Language::Bash`].
    pub code: String,
    /// `None`: Python, unless the text is no Python and starts with a program of the VM.
    pub language: Option<Language>,
    /// The answer comes before this time is over, the queue included.
    pub timeout: Duration,
}

/// How an execution ended, and its output. The output counts against the node's memory until it is dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// What ran it.
    pub language: Language,
    /// Every byte of standard output up to the limit.
    pub stdout: Bytes,
    /// Every byte of standard error up to the limit.
    pub stderr: Bytes,
    /// Exit status; 124 when the deadline ended it, 128 + number when a signal did.
    pub exit_code: i32,
    /// When it started.
    pub started_at: SystemTime,
    /// From start to end, without the queue.
    pub wall: Duration,
    /// Processor time.
    pub cpu: Duration,
    /// The deadline ended it.
    pub timed_out: bool,
    /// It was ended because its output passed the limit; what is here is the beginning of it.
    pub output_limit_reached: bool,
    /// Why the interpreter's variables are gone, when they are.
    pub state_lost: Option<String>,
}
