//! API keys: who calls.

pub(crate) mod routes;
pub(crate) mod rows;
pub(crate) mod service;
