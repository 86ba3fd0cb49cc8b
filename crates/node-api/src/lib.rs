//! The door to a node: the trait [`Node`], its plain-data requests and its streams.
//!
//! On one machine the node lives in the daemon's process; in a cluster the same trait goes over the wire to the node
//! that owns the VM. So everything here is plain data, and nothing here knows of HTTP, accounts or rows.
#![forbid(unsafe_code)]

pub mod connection;
pub mod egress;
mod error;
pub mod execution;
pub mod file;
pub mod pty;
pub mod snapshot;
pub mod vm;
pub mod volume;

pub use connection::{Accept, Connections, Destination, Stream, VmListener, VmStream};
pub use egress::{BadEntry, Egress, EgressPolicy, Refusal};
pub use error::{FileErrorKind, NodeError};
pub use execution::{ExecuteRequest, Execution, Language};
pub use file::{ByteStream, FileContent};
pub use pty::{PtyInfo, PtyInput, PtyOutput, PtyRequest, PtyStream, Ptys};
pub use snapshot::{
    BuildProgress, ImageConfig, SnapshotBuild, SnapshotBuilt, SnapshotId, SnapshotTaken, Snapshots,
};
pub use vm::{Ending, IsolationClass, Usage, VmId, VmInfo, VmSpec, VmState};
pub use volume::{CheckpointId, Mount, VolumeFile, VolumeId, VolumeUsage, Volumes};

use async_trait::async_trait;
use tokio::sync::broadcast;

/// A machine that runs VMs.
///
/// Every call may be repeated; a VM that does not live here answers [`NodeError::NoSuchVm`]. Dropping the future of
/// a call cancels it, except [`Node::create`] and [`Node::terminate`], which run to their end or undo.
#[async_trait]
pub trait Node: Snapshots + Volumes + Ptys + Egress + Connections + Send + Sync + 'static {
    /// Makes a VM, from the pool when one fits, and returns when it executes code.
    ///
    /// # Errors
    /// [`NodeError::AtCapacity`] when the node has no room; [`NodeError::Internal`] when a step failed (everything is
    /// undone).
    async fn create(&self, spec: VmSpec) -> Result<VmInfo, NodeError>;

    /// What the node knows of a VM, from memory.
    async fn inspect(&self, vm: &VmId) -> Result<VmInfo, NodeError>;

    /// All VMs that were handed out and live, from memory. Pool VMs are not among them.
    async fn list(&self) -> Vec<VmInfo>;

    /// Ends a VM and everything in it. Returns when nothing of it runs any more; its disk and link are removed behind.
    /// Ending a VM that is not there is no error.
    async fn terminate(&self, vm: &VmId, ending: Ending) -> Result<(), NodeError>;

    /// Runs code and waits for its end, its deadline or its output limit, whichever comes first.
    async fn execute(&self, vm: &VmId, request: ExecuteRequest) -> Result<Execution, NodeError>;

    /// Starts code that runs on without a caller, also across a restart of the node.
    /// Returns when the VM has accepted it.
    async fn start_execution(
        &self,
        vm: &VmId,
        id: &str,
        request: ExecuteRequest,
    ) -> Result<(), NodeError>;

    /// Waits for the end of an execution that [`Node::start_execution`] started, and keeps its deadline (counted
    /// from its start). May be called again after a restart.
    ///
    /// # Errors
    /// [`NodeError::NoSuchExecution`] when the VM does not know it, [`NodeError::VmEnded`] when the VM ended first.
    async fn await_execution(
        &self,
        vm: &VmId,
        id: &str,
        deadline: std::time::SystemTime,
    ) -> Result<Execution, NodeError>;

    /// Drops what the VM keeps of a finished execution.
    async fn forget_execution(&self, vm: &VmId, id: &str) -> Result<(), NodeError>;

    /// Opens a file of the VM for reading.
    ///
    /// # Errors
    /// [`NodeError::File`] with the reason when it is missing or no regular file.
    async fn read_file(&self, vm: &VmId, path: &str) -> Result<FileContent, NodeError>;

    /// Writes a file of the VM, creating parent directories; the old content stays until the stream has ended well.
    /// Returns the bytes written.
    async fn write_file(
        &self,
        vm: &VmId,
        path: &str,
        content: ByteStream,
    ) -> Result<u64, NodeError>;

    /// Changes the memory limit of a running VM.
    ///
    /// # Errors
    /// [`NodeError::Busy`] when the VM uses more than that now.
    async fn resize(&self, vm: &VmId, memory_mb: u32) -> Result<(), NodeError>;

    /// Processor time, memory and network bytes of a VM, from the kernel's accounting.
    async fn usage(&self, vm: &VmId) -> Result<Usage, NodeError>;

    /// The ends of VMs, as they happen. A receiver that lags compares with [`Node::list`].
    fn endings(&self) -> broadcast::Receiver<(VmId, Ending)>;

    /// What this node offers and how full it is.
    async fn status(&self) -> NodeStatus;

    /// Compares the node's records, its disks and the kernel; one line for each mismatch. Waits up to `settle` for
    /// work that is under way.
    async fn check(&self, settle: std::time::Duration) -> Vec<String>;
}

/// What a node offers and how full it is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct NodeStatus {
    /// The isolation class of the VMs that it makes.
    pub isolation: IsolationClass,
    /// VMs that were handed out and live.
    pub vms: usize,
    /// The most VMs that it takes.
    pub vms_limit: usize,
    /// VMs that are ready in the pool.
    pub pool_ready: usize,
    /// The pool's configured size.
    pub pool_size: usize,
    /// Bytes that the pool of disks has in use, and in all.
    pub disk_used_bytes: u64,
    /// See `disk_used_bytes`.
    pub disk_total_bytes: u64,
    /// What keeps the disks: `btrfs` or `directory`.
    pub disk_driver: &'static str,
    /// Who enforces the limits of disks and volumes: `hard` (the kernel, at each write) or `soft` (the node, which
    /// measures now and then).
    pub quota: &'static str,
    /// What the last reading of all disks against their checksums found; `None`: none has come to its end yet.
    pub last_scrub: Option<DiskScrub>,
}

/// What a reading of all disks against their checksums found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskScrub {
    /// When it ended, in microseconds since the Unix epoch.
    pub finished_micros: i64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Places that are not what was written.
    pub errors: u64,
}
