//! A node with real machines, through the trait [`instavm_node_api::Node`]. Needs root, cgroups, btrfs, nftables, and the
//! agent's binary in `INSTAVM_AGENT_BINARY`: `make test` provides all of it.

mod build;
mod connection;
mod fixture;
mod registry;
mod snapshot;
mod vm;
mod volume;
