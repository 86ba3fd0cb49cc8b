//! Egress policies: what VMs may reach.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Replaces a policy. Absent flags allow, absent lists are empty; unknown keys are refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetEgress {
    /// The public package registries and their file hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_repos: Option<bool>,
    /// Another name of `allow_public_repos`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_package_managers: Option<bool>,
    /// Port 80 of every host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_http: Option<bool>,
    /// Port 443 of every host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_https: Option<bool>,
    /// Hosts that are reached by HTTP and HTTPS all the same: a name, which covers its `www.` form, or `*.` and a name.
    /// At most 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_domains: Option<Vec<String>>,
    /// Address ranges that are reached at any port all the same. At most 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_cidrs: Option<Vec<String>>,
}

/// What a VM may reach.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Egress {
    /// The public package registries and their file hosts.
    pub allow_public_repos: bool,
    /// Another name of `allow_public_repos`.
    pub allow_package_managers: bool,
    /// Port 80 of every host.
    pub allow_http: bool,
    /// Port 443 of every host.
    pub allow_https: bool,
    /// Hosts that are reached by HTTP and HTTPS all the same.
    pub allowed_domains: Vec<String>,
    /// Address ranges that are reached at any port all the same.
    pub allowed_cidrs: Vec<String>,
}

/// What was refused to a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Refusals {
    /// The VM.
    pub vm_id: String,
    /// The latest, the newest first; at most 100.
    pub refusals: Vec<Refusal>,
}

/// Something that a VM wanted and did not get.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// When.
    pub at: String,
    /// The rule that refused: `name`, `address`, `nameless`, `malformed`, `question`, `crowd`, `port`, `resolver`,
    /// `floor`, `host`, `connections`, `flood`, `source` or `ipv6`.
    pub rule: String,
    /// What the rule says, in plain words.
    pub reason: String,
    /// What the VM wanted: `dns`, `http`, `https`, `tcp`, `udp`, `icmp` or `other`.
    pub protocol: String,
    /// The name that it gave.
    pub name: Option<String>,
    /// The address that it wanted.
    pub address: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// How many refusals went unrecorded before this one, because there were too many.
    pub unrecorded: u64,
}

/// A policy that is in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EgressSet {
    /// `ok`.
    pub status: String,
    /// The policy.
    #[serde(flatten)]
    pub policy: Egress,
}
