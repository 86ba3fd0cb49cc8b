//! Sessions: the client-facing handle on one VM at a time.

pub(crate) mod routes;
pub(crate) mod rows;
pub(crate) mod service;
