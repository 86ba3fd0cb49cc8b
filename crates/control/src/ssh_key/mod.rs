//! SSH keys of an account.

pub(crate) mod routes;
pub(crate) mod rows;
pub(crate) mod service;
