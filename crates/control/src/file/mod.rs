//! Files of a session's VM, up and down.

mod archive;
pub(crate) mod routes;
pub(crate) mod service;
