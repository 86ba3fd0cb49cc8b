//! Volumes in VMs.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A volume that a VM is to have, from its start or while it runs: by its id, or by its name.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VolumeOfVm {
    /// The volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// Or its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where, in the VM: absolute, and not `/`. A directory that is missing is made.
    pub mount_path: String,
    /// `rw` (the default): one mount at a time writes a volume. `ro`: nobody in the VM can write it, its root included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// With `ro`: the moment that is seen, or `latest` for the newest; the volume as it is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,
    /// With `name`: a volume that is missing is made. It stays, whatever becomes of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_if_missing: Option<bool>,
    /// With `create_if_missing`: its quota in GiB; 1 when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::integer"
    )]
    pub size_gb: Option<i64>,
}

/// Which mount of a volume is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UnmountQuery {
    /// Where it is mounted; may be left out when the VM has the volume once.
    pub mount_path: Option<String>,
    /// `true` (the default): answer when it is done. `false`: answer at once.
    #[serde(default, deserialize_with = "crate::shape::truth_of_query")]
    pub wait: Option<bool>,
}

/// A volume in a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Mount {
    /// The volume.
    pub volume_id: String,
    /// Its name.
    pub name: String,
    /// The VM.
    pub vm_id: String,
    /// Where.
    pub mount_path: String,
    /// `rw` or `ro`.
    pub mode: String,
    /// The moment that is seen; `null`: the volume as it is.
    pub checkpoint_id: Option<String>,
    /// `mounting`, `mounted` or `unmounting`.
    pub status: String,
}

/// A volume was taken out of a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unmounted {
    /// `unmounted`, or `unmounting` when the answer did not wait.
    pub status: String,
    /// The VM.
    pub vm_id: String,
    /// The volume.
    pub volume_id: String,
    /// Where it was mounted.
    pub mount_path: String,
}
