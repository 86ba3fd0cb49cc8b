//! Any call of the platform's API: what the typed methods are made of, and the door to what has no method yet.

use crate::error::{Error, Family, Result};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Everything but `A-Z a-z 0-9 _ . - ~`.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'_')
    .remove(b'.')
    .remove(b'-')
    .remove(b'~');

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

/// One segment of a path: everything but letters, digits and `_ . - ~` is percent-encoded.
///
/// # Errors
/// `.`, `..` and the empty text, which would change the path's meaning.
///
/// ```
/// assert_eq!(instavm::path_segment("a/b c")?, "a%2Fb%20c");
/// assert!(instavm::path_segment("..").is_err());
/// # Ok::<(), instavm::Error>(())
/// ```
pub fn path_segment(value: &str) -> Result<String> {
    let reason = match value {
        "." | ".." => "path traversal not allowed",
        "" => "is empty",
        _ => return Ok(utf8_percent_encode(value, SEGMENT).to_string()),
    };
    Err(Error::Invalid {
        what: "path segment",
        reason: reason.to_owned(),
    })
}

/// A call of the platform's API. [`Client::call`](crate::Client::call) sends it with the client's key.
///
/// ```no_run
/// # async fn example(client: &instavm::Client) -> instavm::Result<()> {
/// use instavm::{Call, Method};
/// let answer = client.call(Call::new(Method::Get, "/v1/vms")).await?;
/// let vms: Vec<serde_json::Value> = answer.json()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Payload,
    pub(crate) operation: &'static str,
    pub(crate) family: Family,
    pub(crate) authorised: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Clone)]
pub(crate) enum Payload {
    Empty,
    Json(Bytes),
    Form(Vec<(&'static str, String)>),
}

impl std::fmt::Debug for Payload {
    /// Bodies may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Payload::Empty => "Empty",
            Payload::Json(_) => "Json",
            Payload::Form(_) => "Form",
        })
    }
}

impl Call {
    /// A call without a body. `path` begins with `/`; make its variable parts with [`path_segment`].
    pub fn new(method: Method, path: impl Into<String>) -> Call {
        Call {
            method,
            path: path.into(),
            query: Vec::new(),
            body: Payload::Empty,
            operation: "call the API",
            family: Family::Api,
            authorised: true,
            timeout: None,
            idempotency_key: None,
        }
    }

    /// Says that however often this call arrives, it is to take effect once: the platform remembers the key, and answers
    /// the same key with the same result. Without this, a retried call can make a thing twice.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Call {
        self.idempotency_key = Some(key.into());
        self
    }

    /// With a new idempotency key.
    #[must_use]
    pub fn once(self) -> Call {
        use std::hash::{BuildHasher, RandomState};
        let chance = || RandomState::new().hash_one(std::process::id());
        let (one, other) = (chance(), chance());
        self.idempotency_key(format!("{one:016x}{other:016x}"))
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn query(mut self, name: &'static str, value: impl ToString) -> Call {
        self.query.push((name, value.to_string()));
        self
    }

    /// Sends this as JSON.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(mut self, body: &T) -> Result<Call> {
        let text = serde_json::to_vec(body).map_err(|error| Error::Invalid {
            what: "body",
            reason: error.to_string(),
        })?;
        self.body = Payload::Json(text.into());
        Ok(self)
    }

    /// How long to wait for the answer and between two parts of it, instead of the client's timeout.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Call {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn form(mut self, fields: Vec<(&'static str, String)>) -> Call {
        self.body = Payload::Form(fields);
        self
    }

    pub(crate) fn named(mut self, operation: &'static str, family: Family) -> Call {
        self.operation = operation;
        self.family = family;
        self
    }

    /// The body carries the key.
    pub(crate) fn without_header(mut self) -> Call {
        self.authorised = false;
        self
    }
}

/// An answer with a status below 400.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as it came.
    pub body: Bytes,
    pub(crate) operation: &'static str,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is no JSON, or not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::Answer {
            operation: self.operation,
            source: Box::new(error),
        })
    }
}
