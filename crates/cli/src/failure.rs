//! What a failed command says. Every message of the command line is made here or carried by [`Failure::Said`].

use instavm::{Error, NetworkCause};
use std::io;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A message, as it is.
    Said(String),
    /// The key is missing or not accepted: the message, and how to get one.
    Authentication(String),
    /// Standard output is gone.
    Output(io::Error),
    /// The user pressed Ctrl-C.
    Interrupted,
}

const NO_KEY: &str = "no API key is configured. Run `instavm auth set-key` or set INSTAVM_API_KEY.";
const BAD_KEY: &str = "invalid API key or expired session";
const HINT: &str = "The API key is missing, has expired or was revoked from the dashboard.\n\
    Run `instavm login` again to get a new one.";

impl Failure {
    pub(crate) fn said(message: impl Into<String>) -> Failure {
        Failure::Said(message.into())
    }

    pub(crate) fn no_key() -> Failure {
        Failure::Authentication(NO_KEY.to_owned())
    }

    /// What it says, to be part of another message.
    pub(crate) fn message(self) -> String {
        match self {
            Failure::Said(message) | Failure::Authentication(message) => message,
            Failure::Output(error) => error.to_string(),
            Failure::Interrupted => "interrupted".to_owned(),
        }
    }

    /// The lines for standard error.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Failure::Said(message) => Some(format!("Error: {message}")),
            Failure::Authentication(message) => Some(format!("Error: {message}\n{HINT}")),
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Output(error) => Some(format!("Error: cannot write the result: {error}")),
            Failure::Interrupted => Some("Interrupted.".to_owned()),
        }
    }

    pub(crate) fn status(&self) -> u8 {
        match self {
            Failure::Interrupted => 130,
            _ => 1,
        }
    }
}

/// Of calls that say what they wanted, refusals are shown with `failed to …` before them.
pub(crate) fn wanted(purpose: &str) -> impl Fn(Error) -> Failure + '_ {
    move |error| match &error {
        Error::Session { .. }
        | Error::Execution { .. }
        | Error::Api { .. }
        | Error::Answer { .. } => Failure::Said(format!("failed to {purpose}: {}", plain(&error))),
        _ => Failure::from(error),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match &error {
            Error::Authentication { failure: None, .. } => Failure::no_key(),
            Error::Authentication { .. } => Failure::Authentication(BAD_KEY.to_owned()),
            _ => Failure::Said(plain(&error)),
        }
    }
}

fn plain(error: &Error) -> String {
    match error {
        Error::Forbidden { failure, .. } => or(failure.detail.clone(), "Forbidden"),
        Error::RateLimit { failure, .. } => or(failure.detail.clone(), "rate limit exceeded"),
        Error::Network { cause, .. } => network(cause),
        Error::Session { .. } | Error::Execution { .. } | Error::Api { .. } => {
            match (error.status(), error.detail()) {
                (Some(status), Some(detail)) => format!("HTTP {status}: {detail}"),
                (Some(status), None) => format!("HTTP {status}"),
                (None, _) => error.to_string(),
            }
        }
        Error::File { path, source, .. } => match path {
            Some(path) => format!("{}: {source}", path.display()),
            None => format!("{error}: {source}"),
        },
        Error::Answer { source, .. } => format!("the answer is not understood: {source}"),
        Error::Invalid { what, reason } if *what == "path segment" => reason.clone(),
        other => other.to_string(),
    }
}

/// The failure as the line below a step says it: the status without what the platform made of it.
pub(crate) fn raw(error: &Error) -> String {
    match (error, error.failure()) {
        (Error::Authentication { .. }, _) => BAD_KEY.to_owned(),
        (Error::Session { .. } | Error::Execution { .. } | Error::Api { .. }, Some(failure)) => {
            format!("{} Client Error: {}", failure.status, failure.reason)
        }
        _ => plain(error),
    }
}

fn or(detail: Option<String>, otherwise: &str) -> String {
    detail.unwrap_or_else(|| otherwise.to_owned())
}

fn network(cause: &NetworkCause) -> String {
    match cause {
        NetworkCause::TimedOut(patience) => {
            format!("request timeout after {}s", patience.as_secs())
        }
        NetworkCause::Connection(source) => format!("connection failed: {}", root(source.as_ref())),
        NetworkCause::Server(failure) if failure.status == 504 => format!(
            "504 Gateway Timeout: the server, or a proxy before it, was not answered in time\n\
             Reason: {}\nDetails: {}",
            failure.reason, failure.body
        ),
        NetworkCause::Server(failure) => format!(
            "Server error: {} {}\nDetails: {}",
            failure.status, failure.reason, failure.body
        ),
        other => other.to_string(),
    }
}

/// What the system said at the very beginning.
fn root(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let mut deepest = error.source();
    while let Some(source) = deepest.and_then(std::error::Error::source) {
        deepest = Some(source);
    }
    deepest.map_or_else(|| error.to_string(), ToString::to_string)
}
