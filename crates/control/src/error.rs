//! The one place where a failure becomes an HTTP answer.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use instavm_api::ErrorBody;
use instavm_node_api::{FileErrorKind, NodeError};
use instavm_store::StoreError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What kind of failure it is. The mapping to a status is [`Kind::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Malformed,
    Unauthorised,
    Denied,
    NotFound,
    WrongMethod,
    TooSlow,
    Conflict,
    TooLarge,
    UnsupportedMedia,
    Invalid,
    TooMany,
    Internal,
    AtCapacity,
    TimedOut,
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Kind::Malformed => StatusCode::BAD_REQUEST,
            Kind::Unauthorised => StatusCode::UNAUTHORIZED,
            Kind::Denied => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Kind::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::AtCapacity => StatusCode::SERVICE_UNAVAILABLE,
            Kind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// A failure of the domain: a public message, and what only the operator's log sees.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    #[source]
    source: Option<Source>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Problem {
        Problem {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// A field has a value that cannot be.
    pub(crate) fn invalid(field: &str, why: impl std::fmt::Display) -> Problem {
        Problem::new(Kind::Invalid, format!("{field}: {why}"))
    }

    /// The key is absent, unknown or revoked.
    pub(crate) fn unauthorised() -> Problem {
        Problem::new(
            Kind::Unauthorised,
            "the API key is missing, unknown or revoked: send a valid one in the header X-API-Key",
        )
    }

    /// Something of the platform failed; the user learns only what was tried.
    pub(crate) fn internal(operation: &str, source: impl Into<Source>) -> Problem {
        Problem {
            kind: Kind::Internal,
            message: format!("{operation} failed on the platform's side; its log says why"),
            source: Some(source.into()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(source: StoreError) -> Self {
        if !source.is_away() {
            return Problem::internal("reading or writing the records", source);
        }
        tracing::error!(error = %Chain(&source), "the database does not answer");
        Problem {
            kind: Kind::AtCapacity,
            message: "the platform's database does not answer; try again soon".to_owned(),
            source: Some(source.into()),
        }
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        let kind = match &error {
            NodeError::NoSuchVm
            | NodeError::NoSuchExecution
            | NodeError::NoSuchSnapshot
            | NodeError::NoSuchVolume
            | NodeError::NoSuchPty => Kind::NotFound,
            NodeError::VmEnded
            | NodeError::VmExhausted { .. }
            | NodeError::Busy { .. }
            | NodeError::Connection { .. } => Kind::Conflict,
            NodeError::Build { .. } => Kind::Invalid,
            NodeError::AtCapacity { .. } => Kind::AtCapacity,
            NodeError::File { kind, .. } => match kind {
                FileErrorKind::NotFound => Kind::NotFound,
                FileErrorKind::Unsuitable => Kind::Invalid,
                FileErrorKind::NoSpace => Kind::TooLarge,
                FileErrorKind::Denied => Kind::Denied,
                FileErrorKind::Exists => Kind::Conflict,
            },
            NodeError::CallerGone | NodeError::Caller(_) => Kind::Malformed,
            NodeError::Internal { operation, .. } => {
                let operation = *operation;
                return Problem::internal(operation, error);
            }
        };
        Problem::new(kind, error.to_string())
    }
}

/// Seconds after which a caller may try again when the platform is full, or their account is.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if self.kind == Kind::Internal {
            tracing::error!(error = %Chain(&self), "a request failed");
        }
        let body = axum::Json(ErrorBody {
            detail: self.message,
        });
        let mut response = (self.kind.status(), body).into_response();
        if matches!(self.kind, Kind::AtCapacity | Kind::TooMany) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

/// An error with all its causes on one line, for the log.
pub(crate) struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// The answer when a handler panics.
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned());
    Problem::internal("the request", format!("the handler panicked: {text}")).into_response()
}

/// The answer to a path that nothing serves.
pub(crate) async fn no_such_route() -> Problem {
    Problem::new(
        Kind::NotFound,
        "there is nothing at this path; /docs lists what there is",
    )
}

/// The answer to a method that a path does not serve.
pub(crate) async fn wrong_method() -> Problem {
    Problem::new(
        Kind::WrongMethod,
        "this path does not serve this method; the header Allow lists those that it does",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_gets_every_cause_and_the_user_none() {
        let problem = Problem::internal("making the VM", std::io::Error::other("disk on fire"));
        assert!(!problem.to_string().contains("fire"));
        assert!(Chain(&problem).to_string().ends_with("disk on fire"));
    }
}
