//! Accounts: the owners of everything.

pub(crate) mod routes;
pub(crate) mod rows;
pub mod service;
