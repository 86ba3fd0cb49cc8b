//! Snapshots: saved root disks that VMs start from.

use crate::{NodeError, VmId};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// A snapshot's id: `snap_` and 20 characters of `[a-z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotId(pub String);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A snapshot that was taken of a running VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTaken {
    /// How long the VM stood still.
    pub pause: Duration,
    /// Bytes of its own: what was written on top of what the VM had started from.
    pub size_bytes: u64,
}

/// A snapshot to be built from an OCI image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBuild {
    /// Chosen by the caller; a build that was cut off can be repeated under it.
    pub id: SnapshotId,
    /// The image's reference as users write it: `debian:12`, `host:5000/team/app@sha256:…`.
    pub oci_image: String,
    /// Memory of the VM that builds, in MiB.
    pub memory_mb: u32,
    /// Its processors.
    pub vcpu_count: u32,
    /// Its disk's limit in bytes.
    pub disk_bytes: u64,
    /// Debian packages to install with `apt-get`.
    pub apt_packages: Vec<String>,
    /// Python packages to install with `pip`.
    pub pip_packages: Vec<String>,
    /// Node packages to install globally with `npm`.
    pub npm_packages: Vec<String>,
    /// A repository to clone into `/app/repo`.
    pub git_clone_url: Option<String>,
    /// Its branch; the default one when absent.
    pub git_clone_branch: Option<String>,
    /// A shell command that runs last.
    pub post_build_command: Option<String>,
    /// Environment of every step, and of every execution of VMs that start from the snapshot.
    pub env: BTreeMap<String, String>,
}

/// How far a build has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildProgress {
    /// What it does now: `pull`, `unpack`, `boot`, `apt`, `pip`, `npm`, `git`, `command`, `save`.
    pub step: &'static str,
    /// Text to append to the build's log: whole lines, untrusted.
    pub log: String,
}

/// What an image says about how it wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Environment of every execution.
    pub env: BTreeMap<String, String>,
    /// Where executions start and relative paths of files begin.
    pub workdir: Option<String>,
    /// The user that its program would run as. On record only: executions run as the VM's root.
    pub user: Option<String>,
    /// The program that it would start. On record only.
    pub entrypoint: Vec<String>,
    /// That program's arguments. On record only.
    pub command: Vec<String>,
}

/// A snapshot that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotBuilt {
    /// The digest of the image's manifest for this machine, `sha256:…`.
    pub digest: String,
    /// What the image says, with the build's own environment on top.
    pub config: ImageConfig,
    /// Bytes of the snapshot's own, on top of the image's layers.
    pub size_bytes: u64,
}

/// The part of a node that keeps snapshots.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Saves the disk of a running VM: the VM stands still for a moment, and goes on. Taking it again under the same
    /// id answers [`NodeError::Busy`].
    async fn take_snapshot(&self, vm: &VmId, id: &SnapshotId) -> Result<SnapshotTaken, NodeError>;

    /// Builds a snapshot from an OCI image: pulls it, boots a VM from it, runs the steps in there, and saves its disk.
    /// Nothing remains of a build that fails or whose future is dropped. A progress listener that has gone away is no
    /// error.
    ///
    /// # Errors
    /// [`NodeError::Build`] with the step and the reason.
    async fn build_snapshot(
        &self,
        build: SnapshotBuild,
        progress: mpsc::Sender<BuildProgress>,
    ) -> Result<SnapshotBuilt, NodeError>;

    /// Deletes a snapshot; one that is not there is no error. Its space comes back behind. VMs that were started from
    /// it go on.
    async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), NodeError>;

    /// Bytes of a snapshot's own.
    ///
    /// # Errors
    /// [`NodeError::NoSuchSnapshot`].
    async fn snapshot_size(&self, id: &SnapshotId) -> Result<u64, NodeError>;

    /// All snapshots that the node keeps.
    async fn snapshots(&self) -> Result<Vec<SnapshotId>, NodeError>;

    /// Changes what becomes of a VM's disk when the VM ends, however it ends: it is kept as this snapshot, or deleted.
    async fn keep_disk_as(&self, vm: &VmId, id: Option<SnapshotId>) -> Result<(), NodeError>;
}
