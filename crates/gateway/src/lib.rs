//! The ways in from outside: shares, which put a port of a VM under a URL.
//!
//! The gateway knows nothing of accounts and records: it is told which shares there are ([`share::Shares`]), asks whose
//! an API key is ([`share::Keys`]), and reaches VMs through [`instavm_node_api::Connections`] alone.
#![forbid(unsafe_code)]

pub mod share;
