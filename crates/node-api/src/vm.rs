//! VMs as a node sees them.

use crate::{EgressPolicy, Mount, SnapshotId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// A VM's id: `vm_` and 20 characters of `[a-z0-9]`; never a UUID, always fit to be an SSH user name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VmId(pub String);

impl std::fmt::Display for VmId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What isolates a VM from the host and from other VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationClass {
    /// Hardware virtualisation.
    MicrovmKvm,
    /// A hypervisor that emulates the processor.
    MicrovmEmulated,
    /// Linux namespaces, a user namespace among them, with cgroup limits and a seccomp filter.
    Namespaces,
}

impl IsolationClass {
    /// The word on VM records.
    pub fn as_str(self) -> &'static str {
        match self {
            IsolationClass::MicrovmKvm => "microvm-kvm",
            IsolationClass::MicrovmEmulated => "microvm-emulated",
            IsolationClass::Namespaces => "namespaces",
        }
    }
}

/// What a VM is asked to be. Limits are checked before it comes here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Chosen by the caller, so that a create that is cut off can be found and repeated.
    pub id: VmId,
    /// Memory limit in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub vcpu_count: u32,
    /// Root disk limit in bytes.
    pub disk_bytes: u64,
    /// Environment of every execution.
    pub env: BTreeMap<String, String>,
    /// From the moment it is handed out to the moment the node ends it by itself, in seconds.
    pub lifetime_seconds: u32,
    /// The snapshot that its disk starts as; `None`: the node's default image.
    #[serde(default)]
    pub snapshot: Option<SnapshotId>,
    /// Where executions start and relative paths of files begin; `None`: `/app`.
    #[serde(default)]
    pub workdir: Option<String>,
    /// What is mounted before anything runs in it.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Its disk is kept as this snapshot when it ends, however it ends.
    #[serde(default)]
    pub keep_disk_as: Option<SnapshotId>,
    /// What it may reach; `None`: nothing is closed.
    #[serde(default)]
    pub egress: Option<EgressPolicy>,
}

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It executes code.
    Active,
    /// It is being ended.
    Ending,
}

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its user ended it.
    Killed,
    /// Its lifetime was over.
    Expired,
    /// Its first process ended by itself, or it was gone when the node came back.
    Crashed,
}

/// What a node knows of a VM.
#[derive(Clone, Debug)]
pub struct VmInfo {
    /// Its id.
    pub id: VmId,
    /// Where it is in its life.
    pub state: VmState,
    /// What isolates it.
    pub isolation: IsolationClass,
    /// Its memory limit in MiB.
    pub memory_mb: u32,
    /// Its processors.
    pub vcpu_count: u32,
    /// When it was handed out.
    pub started_at: SystemTime,
    /// When the node will end it.
    pub expires_at: SystemTime,
    /// Its address on the node's private network.
    pub address: Option<std::net::Ipv4Addr>,
}

/// What a VM has used since it was handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in microseconds.
    pub cpu_micros: u64,
    /// Memory in use now, in bytes.
    pub memory_bytes: u64,
    /// Most memory in use at once, in bytes.
    pub memory_peak_bytes: u64,
    /// Bytes received by the VM.
    pub rx_bytes: u64,
    /// Bytes sent by the VM.
    pub tx_bytes: u64,
    /// Packets received by the VM.
    #[serde(default)]
    pub rx_packets: u64,
    /// Packets sent by the VM.
    #[serde(default)]
    pub tx_packets: u64,
}
