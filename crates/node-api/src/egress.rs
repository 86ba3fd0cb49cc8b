//! What VMs may reach.

use crate::{NodeError, VmId};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

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
}
