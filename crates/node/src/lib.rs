//! One node: VM actors and their records behind the trait [`Node`].
//!
//! | module | what |
//! |---|---|
//! | `instance` | the data directory's share of the host's names, ids and addresses |
//! | `machine` | making a machine step by step, undoing it whole |
//! | `record` | the small file that outlives the daemon |
//! | `pool` | machines that are ready before anybody asks |
//! | `create`, `ending` | how a machine becomes a user's VM, and what is left of one |
//! | `vm`, `book` | the task that owns a VM's life, and what is on record of it |
//! | `execution`, `file`, `pty`, `connection`, `resize` | what a VM is asked to do |
//! | `snapshot`, `build` | saved disks: of VMs, and from images of registries |
//! | `volume` | disks that outlive VMs, and their mounts |
//! | `upkeep` | scrubs, and limits that nobody else keeps |
//! | `reconcile` | after a start, on `check`, on `destroy` |
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as instavm_node;

#[cfg(test)]
#[path = "../tests/node/fixture.rs"]
#[expect(
    dead_code,
    reason = "shared with the tests from outside, which need all of it"
)]
mod fixture;

mod blocking;
mod book;
mod build;
mod config;
mod connection;
mod create;
mod egress;
mod ending;
mod execution;
mod fault;
mod file;
mod image;
mod instance;
mod machine;
mod node;
mod pool;
mod pty;
mod reconcile;
mod record;
mod resize;
mod snapshot;
mod upkeep;
mod vm;
mod volume;

pub use config::NodeConfig;
pub use instance::{Instance, InstanceError};
pub use machine::MachineError;
pub use node::{LocalNode, OpenError};
pub use reconcile::{OfflineCheck, check_offline, destroy};

use instavm_runtime::Probe;
use instavm_runtime::driver::Driver;

/// What of a node works on this host, for people. Needs no data directory.
pub async fn probe(driver: &dyn Driver) -> Vec<Probe> {
    let mut probes = driver.probe().await;
    probes.extend(instavm_runtime::disk::probe());
    probes
}
