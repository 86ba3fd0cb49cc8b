//! Shares: ports of VMs under URLs.

mod door;
pub(crate) mod routes;
pub(crate) mod rows;
pub mod service;

pub use door::{Door, DoorError, Doors};
