//! A hermetic platform for tests: a simulated node, the real control plane on a port of its own, and a small client.
#![forbid(unsafe_code)]

mod client;
mod node;
mod platform;
mod script;

pub use client::{Answer, Client};
pub use node::SimulatedNode;
pub use platform::{Stopped, TestPlatform};
