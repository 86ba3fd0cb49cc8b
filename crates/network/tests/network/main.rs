//! The network of VMs against real kernels' links, firewall and sockets, in network namespaces of the tests' own:
//! nothing here touches the host's network, and nothing is left when a test ends, whatever way it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test, what must not fail ends it; the tools outside of test functions are tests, too"
)]

mod dns;
mod egress;
mod internet;
mod kept;
mod lifecycle;
mod place;
mod policy;
mod proxy;
mod rate;
mod refusals;
mod server;
mod upstream;
mod world;
