//! What a node is told at start.

use ipnet::IpNet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// What a node is told at start. Values are checked before they come here.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where everything of the instance lies.
    pub data_dir: PathBuf,
    /// Where images are kept, once per host.
    pub image_cache: PathBuf,
    /// The image that VMs start from; made when missing.
    pub image: String,
    /// Where the image comes from when it must be made; `None` tries `debian`, then `host`.
    pub image_source: Option<instavm_runtime::image::Source>,
    /// The agent program.
    pub agent: &'static [u8],
    /// VMs kept ready.
    pub pool_size: usize,
    /// Memory of pool VMs in MiB.
    pub memory_mb: u32,
    /// Processors of pool VMs.
    pub vcpu_count: u32,
    /// Disk limit of pool VMs in bytes.
    pub disk_bytes: u64,
    /// Processes of a VM.
    pub pids: u32,
    /// Open files of a process in a VM.
    pub open_files: u64,
    /// The most VMs at once, the pool not counted.
    pub vms_limit: usize,
    /// The most bytes of standard output, and of standard error, of one execution.
    pub output_bytes: u64,
    /// What all disks together may take, in bytes; `None`: what the host has.
    pub pool_bytes: Option<u64>,
    /// What keeps the disks.
    pub disk_driver: instavm_runtime::disk::DiskDriver,
    /// How often everything on the disks is read and compared with its checksums; `None`: never.
    pub scrub_every: Option<Duration>,
    /// A file like docker's `config.json` with the credentials for registries.
    pub registry_auth: Option<PathBuf>,
    /// Registries may have private, loopback and link-local addresses.
    pub private_registries: bool,
    /// How long the build of a snapshot may take.
    pub build_timeout: Duration,
    /// First address of the range that VMs' addresses come from.
    pub network_range: Ipv4Addr,
    /// Networks that no VM may reach.
    pub denied_ranges: Vec<IpNet>,
    /// Resolvers to ask; `None`: the host's.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// The proxy by which VMs' connections to ports 80 and 443 leave; `None`: straight.
    pub upstream_proxy: Option<instavm_network::UpstreamProxy>,
    /// What may cross a VM's link each way, in million bits a second; `None`: as much as it carries.
    pub vm_rate_mbit: Option<u32>,
    /// Authorities that VMs trust; `None`: those that the host has added locally.
    pub extra_ca: Option<Vec<PathBuf>>,
}
