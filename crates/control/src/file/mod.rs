//! Files of a session's VM, up and down.

pub(crate) mod routes;
pub(crate) mod service;
