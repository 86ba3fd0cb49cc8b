//! A hermetic platform for tests: a simulated node, databases of both kinds, the real control plane on a port of its own,
//! and a small client.
#![forbid(unsafe_code)]

mod client;
mod connection;
mod database;
mod doors;
mod egress;
mod hooks;
mod node;
mod platform;
mod postgresql;
mod pty;
mod script;
mod snapshot;
mod storage;
mod volume;

pub use client::{Answer, Client};
pub use database::{DatabaseKind, TestDatabase};
pub use doors::{Opened, SimulatedDoors};
pub use node::SimulatedNode;
pub use platform::{Stopped, TestPlatform};
