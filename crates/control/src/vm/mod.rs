//! VMs: made, listed, ended.

pub(crate) mod routes;
pub(crate) mod rows;
pub mod service;
