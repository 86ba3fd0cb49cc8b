//! The wire types of the public API: requests, responses, the error body. No I/O, no rules.
//!
//! Requests ignore keys that they do not know and take `null` for a key that is absent; an integer may be written with a
//! point, as `60.0`. Times are ISO-8601 in UTC.
#![forbid(unsafe_code)]

pub mod api_key;
pub mod checkpoint;
pub mod egress;
pub mod error;
pub mod execution;
pub mod file;
pub mod mount;
mod number;
pub mod pty;
pub mod secret;
pub mod session;
mod shape;
pub mod share;
pub mod snapshot;
pub mod ssh_key;
pub mod usage;
pub mod user;
pub mod variable;
pub mod vm;
pub mod volume;

pub use error::ErrorBody;
pub use secret::Secret;
pub use variable::Variable;

/// A JSON object that its owner fills as they like.
pub type Metadata = serde_json::Map<String, serde_json::Value>;
