//! Snapshots: saved root disks that VMs start from.

use crate::Variable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// Saves the disk of a running VM.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TakeSnapshot {
    /// What it is called; several snapshots may have one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Builds a snapshot from an OCI image. Unknown keys are ignored.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BuildSnapshot {
    /// The image, such as `debian:12` or `registry.example.com:5000/team/app@sha256:…`.
    #[schema(example = "python:3.12-slim")]
    pub oci_image: String,
    /// What it is called; several snapshots may have one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Processors of the VM that builds: 1 to 8; 2 when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::integer"
    )]
    pub vcpu_count: Option<i64>,
    /// Its memory in MiB: 128 to 8192; 512 when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::integer"
    )]
    pub memory_mb: Option<i64>,
    /// `user` (the default), or `system`, which all accounts see and only the platform's first account may make.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is done to the image.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::shape::object"
    )]
    pub build_args: Option<BuildArgs>,
}

/// What is done to an image, in this order.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BuildArgs {
    /// Debian packages, separated by spaces.
    #[schema(example = "git curl")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_apt_packages: Option<String>,
    /// Python packages, separated by spaces.
    #[schema(example = "pandas numpy==2.1.0")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_pip_packages: Option<String>,
    /// Node packages, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_npm_packages: Option<String>,
    /// A repository that is cloned into `/app/repo`: `https://`, `http://` or `ssh://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_clone_url: Option<String>,
    /// Its branch; the default one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_clone_branch: Option<String>,
    /// The disk's limit while it is built, in GiB.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::integer"
    )]
    pub disk_size_gb: Option<i64>,
    /// A shell command that runs last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_build_cmd: Option<String>,
    /// Environment of every step, and of every execution in VMs that start from the snapshot.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::shape::environment"
    )]
    pub envs: Option<BTreeMap<String, Variable>>,
}

/// Which snapshots are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSnapshotsQuery {
    /// `user`: the caller's own. `system`: those that everybody sees. Absent: both.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// The same as `id`.
    pub snapshot_id: String,
    /// What it is called; may be empty.
    pub name: String,
    /// `creating` or `building` until it is `ready`, or `failed`. VMs start from ready ones only.
    pub status: String,
    /// `user` or `system`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same as `type`.
    pub snapshot_type: String,
    /// Whether all accounts see it and may start VMs from it.
    pub is_public: bool,
    /// The VM that it was taken of.
    pub vm_id: Option<String>,
    /// The image that it was built from.
    pub oci_image: Option<String>,
    /// The digest of that image's manifest.
    pub digest: Option<String>,
    /// What a build does now: `queue`, `pull`, `unpack`, `boot`, `apt`, `pip`, `npm`, `git`, `command`, `save`.
    pub step: Option<String>,
    /// The end of a build's log. In lists it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Why it failed.
    pub last_error: Option<String>,
    /// Bytes of its own, on top of what it was made from.
    pub size_bytes: Option<u64>,
    /// How long the VM stood still while it was taken, in milliseconds.
    pub pause_ms: Option<f64>,
    /// What VMs that start from it have from it.
    pub config: SnapshotConfig,
    /// When it was asked for.
    pub created_at: String,
    /// When this record last changed.
    pub updated_at: String,
}

/// What VMs have from the snapshot that they start from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SnapshotConfig {
    /// Environment of executions, under what the VM's own request says. Shown to the snapshot's owner only.
    pub env: BTreeMap<String, String>,
    /// Where executions start.
    pub workdir: Option<String>,
    /// The user that the image would run its program as. On record only.
    pub user: Option<String>,
    /// The program that the image would start. On record only.
    pub entrypoint: Vec<String>,
    /// That program's arguments. On record only.
    pub command: Vec<String>,
}

/// A snapshot was deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDeleted {
    /// Always `deleted`.
    pub status: String,
    /// Its id.
    pub id: String,
}
