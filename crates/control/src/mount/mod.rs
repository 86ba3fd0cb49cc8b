//! Volumes in VMs.

pub(crate) mod routes;
pub(crate) mod rows;
pub mod service;
