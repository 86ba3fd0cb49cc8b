//! What makes a VM: drivers, images, disks, cgroups.
//!
//! This room knows nothing of HTTP, accounts or rows, and nothing of links and firewalls: a machine is launched in two
//! halves so that the node can give it its link in between.
#![forbid(unsafe_code)]

pub mod agent;
pub mod cgroup;
pub mod disk;
pub mod driver;
pub mod image;
pub mod probe;
pub mod trust;

pub use probe::Probe;
