//! What VMs may reach.

pub(crate) mod refusals;
pub(crate) mod routes;
mod rows;
pub(crate) mod service;
