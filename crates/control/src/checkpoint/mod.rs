//! Checkpoints: read-only moments of volumes.

pub(crate) mod routes;
pub(crate) mod rows;
pub(crate) mod service;
