//! Snapshots: taken of VMs, kept of VMs that end, built from OCI images.

mod arguments;
pub(crate) mod build;
pub(crate) mod reconcile;
pub(crate) mod routes;
pub(crate) mod rows;
pub mod service;
