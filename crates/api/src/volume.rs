//! Volumes: disks that outlive VMs; their files; their mounts in VMs.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Makes a volume. Unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CreateVolume {
    /// 1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or digit. An account has one volume of a name.
    #[schema(example = "data")]
    pub name: String,
    /// The most bytes that it may hold, checkpoints included.
    #[schema(example = 1_073_741_824)]
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub quota_bytes: Option<i64>,
}

/// Changes a volume. Unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateVolume {
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its new quota; not less than what it holds.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::integer"
    )]
    pub quota_bytes: Option<i64>,
}

/// Whether sizes are measured first.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VolumeQuery {
    /// `true`: `used_bytes` is measured now. `false` (the default): it is what was last measured.
    #[serde(default, deserialize_with = "crate::shape::truth_of_query")]
    pub refresh_usage: Option<bool>,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// The same as `id`.
    pub volume_id: String,
    /// Its name.
    pub name: String,
    /// `available`, `in_use` (some VM has it mounted), `creating`, `deleting` or `failed`.
    pub status: String,
    /// The most bytes that it may hold, checkpoints included.
    pub quota_bytes: u64,
    /// Bytes of its files, as last measured.
    pub used_bytes: u64,
    /// Bytes that count against the quota, as last measured: what is used, and what checkpoints alone still hold.
    pub charged_bytes: u64,
    /// When it was last measured.
    pub measured_at: Option<String>,
    /// The VMs that have it mounted.
    pub mounted_by: Vec<String>,
    /// When it was made.
    pub created_at: String,
    /// When this record last changed.
    pub updated_at: String,
}

/// A volume was deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeDeleted {
    /// `deleted`, or `deleting` while the node is still at it.
    pub status: String,
    /// Its id.
    pub id: String,
}

/// The parts of an upload into a volume. `path` and `overwrite` come before `file`, in any order.
#[derive(Debug, ToSchema)]
pub struct UploadVolumeFile {
    /// Where the file goes, relative to the volume's root.
    pub path: String,
    /// `true`: a file that is there is replaced. `false` (the default): it is a 409.
    pub overwrite: Option<String>,
    /// The content. The part's file name does not matter.
    #[schema(value_type = String, format = Binary)]
    pub file: Vec<u8>,
}

/// A file of a volume was written.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeFileUploaded {
    /// Always `uploaded`.
    pub status: String,
    /// The volume.
    pub volume_id: String,
    /// As it was asked for.
    pub path: String,
    /// Bytes received.
    pub size: u64,
}

/// Asks for a file of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DownloadVolumeFile {
    /// Relative to the volume's root.
    pub path: String,
}

/// A file of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeFileDownloaded {
    /// As it was asked for.
    pub path: String,
    /// The last part of the path.
    pub filename: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its content in base64.
    pub content: String,
}

/// Which files of a volume are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListVolumeFilesQuery {
    /// What their paths begin with.
    pub prefix: Option<String>,
    /// `true` (the default): all files below. `false`: the entries of one directory, directories among them.
    #[serde(default, deserialize_with = "crate::shape::truth_of_query")]
    pub recursive: Option<bool>,
    /// The most entries: 1 to 10000; 1000 when absent.
    #[serde(default, deserialize_with = "crate::number::of_query")]
    pub limit: Option<i64>,
}

/// Which file of a volume is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VolumeFileQuery {
    /// Relative to the volume's root. A directory goes with everything in it.
    pub path: String,
}

/// A file or directory of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeFile {
    /// Relative to the volume's root.
    pub path: String,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// It is a directory.
    pub is_dir: bool,
    /// When its content last changed.
    pub modified_at: String,
}

/// A file of a volume was deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeFileDeleted {
    /// Always `deleted`.
    pub status: String,
    /// The volume.
    pub volume_id: String,
    /// As it was asked for.
    pub path: String,
}
