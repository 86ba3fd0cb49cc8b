//! VMs.

use crate::mount::VolumeOfVm;
use crate::{Metadata, Variable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// Makes a VM. Every field is optional; unknown keys are ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct CreateVm {
    /// Seconds from the VM's start to its end.
    #[schema(example = 3600)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub vm_lifetime_seconds: Option<i64>,
    /// Memory in MiB.
    #[schema(example = 1024)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub memory_mb: Option<i64>,
    /// Processors.
    #[schema(example = 2)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub vcpu_count: Option<i64>,
    /// The session that gets the VM. One whose VM lives keeps it; it is a 409 when that has not the snapshot or the volumes
    /// that are asked for.
    pub session_id: Option<String>,
    /// Labels.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
    /// Environment of every execution. A variable that is `null` is left out.
    #[serde(default, deserialize_with = "crate::shape::environment")]
    pub env: Option<BTreeMap<String, Variable>>,
    /// Only `standard`.
    pub image_variant: Option<String>,
    /// The snapshot that its disk starts as.
    pub snapshot_id: Option<String>,
    /// What is mounted before anything runs in it: 16 at most.
    pub volumes: Option<Vec<VolumeOfVm>>,
    /// Not available yet: anything but an empty list is refused.
    pub vault_ids: Option<Vec<String>>,
    /// What it may reach; absent: nothing is closed.
    #[serde(default, deserialize_with = "crate::shape::object")]
    pub egress_policy: Option<EgressPolicy>,
    /// Whether its disk is kept as a snapshot when it ends, however it ends.
    pub snapshot_on_terminate: Option<bool>,
    /// The name of that snapshot. Has no effect without `snapshot_on_terminate`.
    pub snapshot_name: Option<String>,
    /// How many such VMs are made, each with its session: 1 to 100. All or none; the answer has them in `vms`.
    #[schema(example = 1)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub count: Option<i64>,
    /// Not available yet: refused.
    #[schema(value_type = Option<Object>)]
    pub share: Option<serde_json::Value>,
    /// Not available yet: refused.
    #[schema(value_type = Option<Object>)]
    pub custom_domain: Option<serde_json::Value>,
}

/// Changes a VM that lives. Unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateVm {
    /// Memory in MiB, a multiple of 2; changed while it runs.
    #[schema(example = 2048)]
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::integer"
    )]
    pub memory_mb: Option<i64>,
    /// Whether its disk is kept as a snapshot when it ends, however it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_on_terminate: Option<bool>,
    /// The name of that snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_name: Option<String>,
}

/// Makes a VM that begins as another one is now, in a session of its own: same size, environment, metadata and
/// lifetime. Volumes are not taken along. Unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CloneVm {
    /// The snapshot that it begins as is kept under this name; without one it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_name: Option<String>,
    /// How many clones are made: 1 to 100. All or none; the answer has them in `vms`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::integer"
    )]
    pub count: Option<i64>,
}

/// What a VM may reach.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EgressPolicy {
    /// Well-known package registries.
    pub allow_public_repos: Option<bool>,
    /// Port 80 of any host.
    pub allow_http: Option<bool>,
    /// Port 443 of any host.
    pub allow_https: Option<bool>,
    /// Hosts that are reachable all the same.
    pub allowed_domains: Option<Vec<String>>,
    /// Networks that are reachable all the same.
    pub allowed_cidrs: Option<Vec<String>>,
}

/// Whether the answer waits for what was asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// `true` (the default): answer when it is done. `false`: answer at once, and it goes on.
    #[serde(default, deserialize_with = "crate::shape::truth_of_query")]
    pub wait: Option<bool>,
}

/// Whether the answer waits for the VM.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CreateVmQuery {
    /// `true` (the default): answer when the VM executes code. `false`: answer at once, with the status `creating`.
    #[serde(default, deserialize_with = "crate::shape::truth_of_query")]
    pub wait: Option<bool>,
}

/// How many VMs are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListVmsQuery {
    /// The most records, of the newest VMs: 1 to 10000; 1000 when absent.
    #[serde(default, deserialize_with = "crate::number::of_query")]
    pub limit: Option<i64>,
}

/// A VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id.
    pub vm_id: String,
    /// The same as `vm_id`.
    pub id: String,
    /// Its session.
    pub session_id: String,
    /// `creating`, `active`, `terminated` or `failed`.
    pub status: String,
    /// Why it ended: `killed`, `expired`, `crashed`, or the failure.
    pub status_reason: Option<String>,
    /// What isolates it: `microvm-kvm`, `microvm-emulated` or `namespaces`.
    pub isolation: Option<String>,
    /// When it was asked for.
    pub created_at: String,
    /// When this record last changed.
    pub updated_at: String,
    /// When it ends.
    pub expires_at: Option<String>,
    /// When it ended.
    pub terminated_at: Option<String>,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub vcpu_count: u32,
    /// Seconds from its start to its end.
    pub vm_lifetime_seconds: u32,
    /// Where SSH reaches it.
    pub ssh_host: Option<String>,
    /// Which kind of image it started from.
    pub image_variant: String,
    /// The snapshot that it started from.
    pub snapshot_id: Option<String>,
    /// The vaults attached to it.
    pub vault_ids: Vec<String>,
    /// Whether its disk is kept when it ends.
    pub snapshot_on_terminate: bool,
    /// The name for that snapshot.
    pub snapshot_name: Option<String>,
    /// Labels.
    #[schema(value_type = Object)]
    pub metadata: Metadata,
}

/// The VM that was made, or the first of them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmCreated {
    /// Its record.
    #[serde(flatten)]
    pub vm: Vm,
    /// All of them, when a number was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<Vec<Vm>>,
}

/// A VM was ended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmDeleted {
    /// Always `terminated`.
    pub status: String,
    /// Its id.
    pub vm_id: String,
    /// Its session.
    pub session_id: String,
}
