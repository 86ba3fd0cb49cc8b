//! Volumes: disks that outlive VMs.

mod files;
pub(crate) mod reconcile;
pub(crate) mod routes;
pub(crate) mod rows;
pub mod service;
