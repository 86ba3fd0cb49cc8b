//! Images from registries, through the public door: pulled from servers on loopback into pools of the tests' own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails where it stands"
)]

mod debian;
mod fault;
mod hostile;
mod image;
mod layers;
mod pull;
mod reference;
mod server;
mod world;
