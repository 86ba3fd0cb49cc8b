//! What connects a VM: links, firewall, DNS, and what it may reach.
//!
//! Every VM has its own network namespace, one veth link to the host, and a /30 of its own with the host's end as
//! gateway and resolver. VMs reach the outside by address translation; the host itself, other VMs, link-local and
//! metadata addresses and the operator's own ranges are always refused. There is no IPv6 on a VM's link. Beyond that a
//! VM reaches what its [`Policy`] says: addresses and ports by the firewall, names by the resolver and the proxy.
//!
//! The kernel carries all of it: links and firewall stay in force while the daemon is down, and [`Network::open`]
//! takes them over as they are. [`destroy`] removes everything of an instance and needs no running [`Network`].
#![forbid(unsafe_code)]

mod admission;
mod conntrack;
#[cfg(test)]
mod corpus;
mod egress;
mod firewall;
mod link;
mod netlink;
mod network;
mod plan;
mod policy;
mod probe;
mod proxy;
mod reaper;
mod resolver;
mod socket;

pub use conntrack::ConntrackError;
pub use egress::{Refused, Rule};
pub use firewall::FirewallError;
pub use link::{Counters, Link, LinkError};
pub use netlink::WorkerError;
pub use network::{Network, NetworkConfig, NetworkError, State, destroy, misfits, state};
pub use plan::{DEFAULT_RANGE, Plan, Slot, VMS_PER_SLOT};
pub use policy::{ENTRIES, Policy, PolicyError, PolicyList};
pub use probe::{Probe, ProbeStatus, probe};
pub use proxy::{UpstreamProxy, UpstreamProxyError};
pub use reaper::ReapError;
pub use socket::SocketError;
