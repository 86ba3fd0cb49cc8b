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

/// A policy that is in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EgressSet {
    /// `ok`.
    pub status: String,
    /// The policy.
    #[serde(flatten)]
    pub policy: Egress,
}
