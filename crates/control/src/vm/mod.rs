//! VMs: made, listed, changed, cloned, ended.

pub(crate) mod group;
pub(crate) mod routes;
pub(crate) mod rows;
pub mod service;
