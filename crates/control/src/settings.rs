//! Limits and defaults.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Limits and defaults of the platform: plain values, checked by whoever reads them from a user.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seconds that a session's VM lives when its caller names none.
    pub session_lifetime_default: u32,
    /// Seconds that a VM of `POST /v1/vms` lives when its caller names none.
    pub vm_lifetime_default: u32,
    /// Seconds that a caller may ask for.
    pub lifetime_range: RangeInclusive<u32>,
    /// MiB of memory when the caller names none.
    pub memory_default_mb: u32,
    /// MiB of memory that a caller may ask for.
    pub memory_range_mb: RangeInclusive<u32>,
    /// Processors when the caller names none.
    pub vcpu_default: u32,
    /// Processors that a caller may ask for.
    pub vcpu_range: RangeInclusive<u32>,
    /// The root disk's limit.
    pub disk_bytes: u64,
    /// Bytes that one account may take: the quotas of its volumes, and what its snapshots hold.
    pub account_disk_bytes: u64,
    /// Bytes that a volume's quota may be.
    pub volume_quota_range: RangeInclusive<u64>,
    /// Volumes that one account may have.
    pub volumes_per_account: usize,
    /// Checkpoints that one volume may have.
    pub checkpoints_per_volume: usize,
    /// Snapshots that one account may have.
    pub snapshots_per_account: usize,
    /// Volumes that one VM may have mounted.
    pub mounts_per_vm: usize,
    /// Snapshots that one account may have built at once.
    pub builds_per_account: usize,
    /// Snapshots that are built at once; further ones wait.
    pub builds_at_once: usize,
    /// How often a build is begun that fails on the platform's side or is cut off by its end.
    pub build_attempts: u32,
    /// MiB of memory of a VM that builds when the caller names none.
    pub build_memory_default_mb: u32,
    /// Between two attempts at something that failed on the platform's side.
    pub retry_pause: Duration,
    /// How long a disk may take to be kept as a snapshot when its VM has ended.
    pub keep_patience: Duration,
    /// How long the answer to a request is kept that may be repeated under its key.
    pub request_retention: Duration,
    /// VMs that one account may have at a time.
    pub vms_per_account: usize,
    /// Bytes of a JSON or form body.
    pub body_limit: usize,
    /// Bytes of all such bodies together; more are refused for the time being.
    pub body_memory: usize,
    /// How long a body may pause.
    pub body_idle: Duration,
    /// How long a JSON or form body may take.
    pub body_time: Duration,
    /// Bytes of an uploaded file.
    pub upload_limit: u64,
    /// Seconds of an execution whose caller names none.
    pub execute_timeout_default: u32,
    /// Seconds of an execution in the background whose caller names none.
    pub background_timeout_default: u32,
    /// Seconds of an execution that a caller may ask for.
    pub execute_timeout_range: RangeInclusive<u32>,
    /// How long a create waits for its VM before it answers 504 and goes on behind.
    pub provision_wait: Duration,
    /// How long finished background executions can be asked for.
    pub execution_retention: Duration,
    /// How long the records of VMs that have ended can be asked for, and those of sessions that have no others.
    pub record_retention: Duration,
    /// The host (and port, unless it is 22) of the SSH gateway, for VM records; `None` while there is none.
    pub ssh_gateway: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            session_lifetime_default: 300,
            vm_lifetime_default: 3_600,
            lifetime_range: 20..=86_400,
            memory_default_mb: 1_024,
            memory_range_mb: 128..=8_192,
            vcpu_default: 2,
            vcpu_range: 1..=8,
            disk_bytes: 10 << 30,
            account_disk_bytes: 100 << 30,
            volume_quota_range: 1 << 20..=100 << 30,
            volumes_per_account: 1_000,
            checkpoints_per_volume: 1_000,
            snapshots_per_account: 1_000,
            mounts_per_vm: 16,
            builds_per_account: 4,
            builds_at_once: 2,
            build_attempts: 3,
            build_memory_default_mb: 512,
            retry_pause: Duration::from_secs(1),
            keep_patience: Duration::from_secs(120),
            request_retention: Duration::from_secs(86_400),
            vms_per_account: 1_000,
            body_limit: 16 << 20,
            body_memory: 512 << 20,
            body_idle: Duration::from_secs(30),
            body_time: Duration::from_secs(120),
            upload_limit: 8 << 30,
            execute_timeout_default: 60,
            background_timeout_default: 600,
            execute_timeout_range: 1..=600,
            provision_wait: Duration::from_secs(120),
            execution_retention: Duration::from_secs(7 * 86_400),
            record_retention: Duration::from_secs(30 * 86_400),
            ssh_gateway: None,
        }
    }
}
