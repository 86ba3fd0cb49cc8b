//! What VMs may reach.

use crate::{NodeError, VmId};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tokio::sync::broadcast;

/// What a VM may reach, beside what no VM ever reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPolicy {
    /// The well-known public package registries and their file hosts.
    pub allow_public_repos: bool,
    /// Port 80 of every host.
    pub allow_http: bool,
    /// Port 443 of every host.
    pub allow_https: bool,
    /// Hosts that are reached by HTTP and HTTPS: a name, which covers its `www.` form, or `*.` and a name.
    pub allowed_domains: Vec<String>,
    /// Address ranges that are reached at any port.
    pub allowed_cidrs: Vec<String>,
}

impl Default for EgressPolicy {
    /// Nothing is closed.
    fn default() -> Self {
        Self {
            allow_public_repos: true,
            allow_http: true,
            allow_https: true,
            allowed_domains: Vec::new(),
            allowed_cidrs: Vec::new(),
        }
    }
}

/// Something that a VM wanted and did not get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The VM.
    pub vm: VmId,
    /// When, in microseconds since the Unix epoch.
    pub at_micros: i64,
    /// The name of the rule that refused: `name`, `address`, `port`, `floor` and others.
    pub rule: String,
    /// What the rule says, in plain words.
    pub reason: String,
    /// What the VM wanted: `dns`, `http`, `https`, `tcp`, `udp`, `icmp` or `other`.
    pub protocol: String,
    /// The name that it gave, as it gave it.
    pub name: Option<String>,
    /// The address that it wanted.
    pub address: Option<IpAddr>,
    /// The port, where the protocol has one.
    pub port: Option<u16>,
    /// How many refusals of this VM went unrecorded before this one.
    pub unrecorded: u64,
}

/// An entry of a policy that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadEntry {
    /// The list, as the policy calls it.
    pub list: &'static str,
    /// The entry's place in it; `None` when it is about the whole list.
    pub place: Option<usize>,
    /// What is wrong, naming the entry.
    pub reason: String,
}

/// The part of a node that decides what VMs reach.
#[async_trait]
pub trait Egress: Send + Sync {
    /// Reads a policy; every policy that is handed to the node has passed here.
    ///
    /// # Errors
    /// [`BadEntry`] about the first entry that is none.
    fn check_egress(&self, policy: &EgressPolicy) -> Result<(), BadEntry>;

    /// Replaces the policy of a VM. When this returns it is in force, for new connections and for those that were open:
    /// what it does not allow is cut. On an error the old one stays.
    async fn set_egress(&self, vm: &VmId, policy: EgressPolicy) -> Result<(), NodeError>;

    /// The policy of a VM.
    async fn egress(&self, vm: &VmId) -> Result<EgressPolicy, NodeError>;

    /// What is refused to VMs, as it happens, at a bounded rate for each VM.
    fn refusals(&self) -> broadcast::Receiver<Refusal>;

    /// How often each rule has refused since the node started, by the rules' names. All are counted.
    async fn refusal_counts(&self) -> Vec<(String, u64)>;
}
