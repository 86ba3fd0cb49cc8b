//! What can go wrong, as types that a caller can tell apart.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An answer of the platform with a status of 400 and above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub status: u16,
    /// The words that belong to the status, `Not Found` for instance.
    pub reason: &'static str,
    /// What the platform says about it: the first of `detail`, `error` and `message` that is there.
    pub detail: Option<String>,
    /// The body as text; at most its first 64 KiB.
    pub body: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "HTTP {}: {detail}", self.status),
            None => write!(f, "HTTP {} {}", self.status, self.reason),
        }
    }
}

/// Why there was no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkCause {
    /// The connection could not be made, or broke.
    #[error("the connection failed")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing came for this long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The platform answered with a status of 500 and above.
    #[error("the platform failed: {0}")]
    Server(Box<Failure>),
}

/// A failed call. `operation` names the call.
///
/// The variants are those of the Python SDK: [`Error::Authentication`] is its `AuthenticationError`, and so on; what
/// is a plain `InstaVMError` there is [`Error::Api`] here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No API key is set, or the platform does not accept it (401).
    #[error("{operation}: {}", if failure.is_some() { "the API key is invalid or the session has expired" } else { "no API key is set" })]
    Authentication {
        /// The call.
        operation: &'static str,
        /// The platform's answer; `None` when nothing was sent.
        failure: Option<Box<Failure>>,
    },
    /// The account may not do this (403).
    #[error("{operation}: {failure}")]
    Forbidden {
        /// The call.
        operation: &'static str,
        /// The platform's answer.
        failure: Box<Failure>,
    },
    /// Too many requests, or a limit of the account is reached (429).
    #[error("{operation}: {failure}")]
    RateLimit {
        /// The call.
        operation: &'static str,
        /// The platform's answer.
        failure: Box<Failure>,
    },
    /// There was no answer, or the platform itself failed (500 and above).
    #[error("{operation}: {cause}")]
    Network {
        /// The call.
        operation: &'static str,
        /// What happened.
        #[source]
        cause: NetworkCause,
    },
    /// A call about a session failed, or needs a session and there is none.
    #[error("{operation}: {}", said(failure.as_deref(), "no session was started"))]
    Session {
        /// The call.
        operation: &'static str,
        /// The platform's answer; `None` when there is no session.
        failure: Option<Box<Failure>>,
    },
    /// The platform refused an execution. Code that fails is no error: see `exit_code` and `stderr` of the result.
    #[error("{operation}: {failure}")]
    Execution {
        /// The call.
        operation: &'static str,
        /// The platform's answer.
        failure: Box<Failure>,
    },
    /// Any other refusal (400 to 499).
    #[error("{operation}: {failure}")]
    Api {
        /// The call.
        operation: &'static str,
        /// The platform's answer.
        failure: Box<Failure>,
    },
    /// A background execution was not complete in time. It goes on.
    #[error("task {task_id} is not complete after {} s", .waited.as_secs_f64())]
    TaskTimeout {
        /// The task.
        task_id: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The platform's answer is not what this call expects.
    #[error("{operation}: the answer is not understood")]
    Answer {
        /// The call.
        operation: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A local file or a stream of the caller failed.
    #[error("{operation}{}", .path.as_ref().map(|path| format!(": {}", path.display())).unwrap_or_default())]
    File {
        /// The call.
        operation: &'static str,
        /// The file, when it is one.
        path: Option<PathBuf>,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A value of the caller cannot be sent. Nothing was sent.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

fn said(failure: Option<&Failure>, otherwise: &str) -> String {
    failure.map_or_else(|| otherwise.to_owned(), Failure::to_string)
}

impl Error {
    /// The platform's answer, if there was one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Error::Authentication { failure, .. } | Error::Session { failure, .. } => {
                failure.as_deref()
            }
            Error::Forbidden { failure, .. }
            | Error::RateLimit { failure, .. }
            | Error::Execution { failure, .. }
            | Error::Api { failure, .. }
            | Error::Network {
                cause: NetworkCause::Server(failure),
                ..
            } => Some(failure),
            _ => None,
        }
    }

    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.failure().map(|failure| failure.status)
    }

    /// What the platform said, if it did.
    pub fn detail(&self) -> Option<&str> {
        self.failure()?.detail.as_deref()
    }
}

/// Which variant a refusal becomes that is none of the general ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Session,
    Execution,
    Api,
}

impl Family {
    /// The error for an answer with a status of 400 and above.
    pub(crate) fn error(self, operation: &'static str, failure: Failure) -> Error {
        let failure = Box::new(failure);
        match failure.status {
            401 => Error::Authentication {
                operation,
                failure: Some(failure),
            },
            403 => Error::Forbidden { operation, failure },
            429 => Error::RateLimit { operation, failure },
            500.. => Error::Network {
                operation,
                cause: NetworkCause::Server(failure),
            },
            _ => match self {
                Family::Session => Error::Session {
                    operation,
                    failure: Some(failure),
                },
                Family::Execution => Error::Execution { operation, failure },
                Family::Api => Error::Api { operation, failure },
            },
        }
    }
}
