//! What VMs may reach.

pub(crate) mod routes;
mod rows;
pub(crate) mod service;
