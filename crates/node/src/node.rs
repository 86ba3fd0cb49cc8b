//! The node itself: composes runtime and network behind the trait [`Node`].

use crate::config::NodeConfig;
use crate::execution::{Budget, Executions};
use crate::instance::{Instance, InstanceError};
use crate::machine::{Assembled, MachineError, Workshop, chain};
use crate::pool::Pool;
use crate::reconcile::{self, Inventory};
use crate::record::{Active, Phase};
use crate::vm::Vm;
use crate::volume::Holds;
use crate::{egress, file, image};
use async_trait::async_trait;
use instavm_network::{Network, NetworkConfig, NetworkError};
use instavm_node_api::{
    ByteStream, DiskScrub, Ending, ExecuteRequest, Execution, FileContent, IsolationClass, Node,
    NodeError, NodeStatus, Refusal, Usage, VmId, VmInfo, VmSpec,
};
use instavm_runtime::cgroup::{CgroupError, Cgroups};
use instavm_runtime::disk::{DiskError, DiskOptions, DiskPool};
use instavm_runtime::driver::{Driver, DriverError, Isolation, NativeDriver, SocketMaker};
use instavm_runtime::image::ImageError;
use instavm_runtime::image::oci::{OciError, OciStore};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Machines that are made at once: more only fight for the processors and the file system's locks.
const CREATES: usize = 4;
/// Machines that are removed at once, behind.
const BURIALS: usize = 2;
/// The share of the host's memory that the output of all executions together may take.
const OUTPUT_SHARE: u64 = 8;
/// Where the host does not tell how much memory it has, in bytes.
const OUTPUT_BUDGET: u64 = 256 << 20;
/// How many ends of VMs a listener may fall behind.
const ENDINGS: usize = 4096;
/// How many refusals.
const REFUSALS: usize = 1024;
/// The folder of what VMs' lookups gave, in the data directory.
const NAMES: &str = "names";

/// Why a node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory.
    #[error("cannot prepare the data directory")]
    DataDir(#[source] std::io::Error),
    /// The instance's slot.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The disks.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The driver.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The image.
    #[error("the image for VMs cannot be had")]
    Image(#[source] Box<ImageError>),
    /// The authorities that VMs are to trust.
    #[error("an authority for VMs to trust cannot be read")]
    Authorities(#[source] std::io::Error),
    /// The store of images from registries.
    #[error("images from registries cannot be kept")]
    Registry(#[source] OciError),
    /// What an earlier daemon left cannot be adopted or removed.
    #[error("what an earlier daemon left cannot be put right")]
    Reconcile(#[source] MachineError),
    /// The first VM of this host does not work.
    #[error("VMs do not work on this host; `instavmd doctor` tells more")]
    Trial(#[source] MachineError),
}

impl OpenError {
    pub(crate) fn image(error: ImageError) -> Self {
        OpenError::Image(Box::new(error))
    }
}

/// The node of this machine.
#[derive(Debug)]
pub struct LocalNode {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) workshop: Arc<Workshop>,
    pub(crate) pool: Pool,
    pub(crate) vms: RwLock<HashMap<VmId, Arc<Vm>>>,
    /// The names of what has its place among the VMs and is not there yet.
    pub(crate) coming: Mutex<BTreeSet<String>>,
    pub(crate) holds: Holds,
    pub(crate) sockets: SocketMaker,
    pub(crate) oci: OciStore,
    pub(crate) executions: Executions,
    pub(crate) creates: Semaphore,
    pub(crate) burials: Arc<Semaphore>,
    /// What the last scrub found.
    pub(crate) scrub: RwLock<Option<DiskScrub>>,
    pub(crate) endings: broadcast::Sender<(VmId, Ending)>,
    pub(crate) refusals: broadcast::Sender<Refusal>,
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl LocalNode {
    /// Opens the node of a data directory: claims its slot, opens disks and network, brings the image in (slow the first
    /// time; `progress` hears about it), adopts the VMs that live, undoes what is half-made, and fills the pool behind.
    /// Its tasks are spawned on `tracker` and end after `stop`; VMs live on.
    ///
    /// # Errors
    /// [`OpenError`] with what to do.
    pub async fn open(
        config: NodeConfig,
        tracker: TaskTracker,
        stop: CancellationToken,
        progress: impl Fn(&str) + Send + 'static,
    ) -> Result<Self, OpenError> {
        std::fs::create_dir_all(Workshop::folder_of_all(&config.data_dir))
            .map_err(OpenError::DataDir)?;
        let instance = Instance::claim(&config.data_dir)?;
        let driver: Arc<dyn Driver> = Arc::new(NativeDriver::install(
            &config.data_dir.join("agent"),
            config.agent,
        )?);
        let cgroups = Cgroups::open(&instance.name())?;
        let (disks, root) = open_disks(config.clone(), progress).await?;
        let policies = egress::recorded(&config.data_dir);
        let network = network_config(&config, instance)?;
        let network = Network::open_with(network, policies, &tracker, &stop).await?;
        let executions = Executions {
            budget: Arc::new(Budget::new(output_budget())),
            output_limit: config.output_bytes,
        };
        let pool = Pool::new(config.pool_size);
        let oci = image::registry(&config)?;
        let workshop = Workshop::new(config, instance, disks, root, cgroups, network, driver);
        let inner = Arc::new(Inner {
            workshop: Arc::new(workshop),
            pool,
            vms: RwLock::default(),
            coming: Mutex::default(),
            holds: Holds::default(),
            sockets: SocketMaker::default(),
            oci,
            executions,
            creates: Semaphore::new(CREATES),
            burials: Arc::new(Semaphore::new(BURIALS)),
            scrub: RwLock::default(),
            endings: broadcast::Sender::new(ENDINGS),
            refusals: broadcast::Sender::new(REFUSALS),
            tracker,
            stop,
        });
        inner.adopt().await.map_err(OpenError::Reconcile)?;
        inner.try_out().await.map_err(OpenError::Trial)?;
        inner.start_upkeep();
        let (pool, stop) = (inner.clone(), inner.stop.clone());
        inner.tracker.spawn(async move {
            pool.pool.refill(pool.workshop.clone(), stop).await;
        });
        Ok(Self { inner })
    }
}

async fn open_disks(
    config: NodeConfig,
    progress: impl Fn(&str) + Send + 'static,
) -> Result<(DiskPool, std::path::PathBuf), OpenError> {
    let open = move || {
        let options = DiskOptions {
            size: config.pool_bytes,
            driver: config.disk_driver,
        };
        let disks = DiskPool::open(&config.data_dir, &options)?;
        let root = image::ensure(&config, &disks, &progress)?;
        Ok((disks, root))
    };
    match tokio::task::spawn_blocking(open).await {
        Ok(opened) => opened,
        Err(panic) => Err(OpenError::DataDir(std::io::Error::other(panic))),
    }
}

fn network_config(config: &NodeConfig, instance: Instance) -> Result<NetworkConfig, OpenError> {
    Ok(NetworkConfig {
        slot: instance.network_slot().ok_or(InstanceError::NoSlot)?,
        range: config.network_range,
        denied: config.denied_ranges.clone(),
        resolvers: config.resolvers.clone(),
        upstream: config.upstream_proxy.clone(),
        rate_mbit: config.vm_rate_mbit,
        names: Some(config.data_dir.join(NAMES)),
    })
}

impl Inner {
    pub(crate) fn vm(&self, id: &VmId) -> Result<Arc<Vm>, NodeError> {
        let vms = self.vms.read().unwrap_or_else(PoisonError::into_inner);
        vms.get(id).cloned().ok_or(NodeError::NoSuchVm)
    }

    pub(crate) fn vms(&self) -> Vec<Arc<Vm>> {
        self.vms
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    pub(crate) fn isolation(&self) -> IsolationClass {
        match self.workshop.driver.isolation() {
            Isolation::Namespaces => IsolationClass::Namespaces,
        }
    }

    async fn adopt(self: &Arc<Self>) -> Result<(), MachineError> {
        let adopted = reconcile::adopt(&self.workshop).await?;
        for machine in adopted.active {
            if let Phase::Active(active) = machine.record.phase.clone() {
                tracing::info!(vm = %active.spec.id, "adopted a VM");
                self.adopt_active(active, machine)?;
            }
        }
        for machine in adopted.pooled {
            if self.pool.ready() < self.pool.size() {
                self.pool.put(machine);
            } else {
                let record = &machine.record;
                self.workshop
                    .dismantle(&record.machine, Some(record.index))
                    .await?;
            }
        }
        Ok(())
    }

    /// Takes over a VM as its record says: the earlier daemon may have died in the middle of a change.
    fn adopt_active(
        self: &Arc<Self>,
        mut active: Active,
        mut machine: Assembled,
    ) -> Result<(), MachineError> {
        let spec = &active.spec;
        let limits = self.workshop.limits(spec.memory_mb, spec.vcpu_count);
        if let Err(error) = machine.cgroup.limit(&limits) {
            tracing::warn!(vm = %spec.id, error = %chain(&error), "a VM's limits stay as they are");
        }
        self.adopt_mounts(&machine, &mut active);
        machine.record.phase = Phase::Active(active.clone());
        self.workshop.save(&machine.record)?;
        self.employ(active, machine);
        Ok(())
    }

    /// Makes one VM before anybody is told that VMs can be had, so that a host on which it fails says so at start.
    async fn try_out(&self) -> Result<(), MachineError> {
        if self.pool.ready() > 0 || !self.vms().is_empty() {
            return Ok(());
        }
        let blueprint = self.workshop.pool_blueprint();
        let mut machine = self.workshop.assemble(&blueprint).await?;
        let record = &mut machine.record;
        record.phase = Phase::Pooled;
        let (name, index) = (record.machine.clone(), record.index);
        let works = match self.workshop.warm(&machine).await {
            Ok(()) => self.workshop.save(&machine.record),
            Err(error) => Err(error),
        };
        if works.is_err() || self.pool.size() == 0 {
            self.workshop.dismantle(&name, Some(index)).await?;
        } else {
            self.pool.put(machine);
        }
        works
    }

    pub(crate) async fn measure(
        &self,
        cgroup: &instavm_runtime::cgroup::Cgroup,
        index: u16,
    ) -> Result<Usage, MachineError> {
        let accounting = cgroup.accounting()?;
        let counters = self.workshop.network.counters(index).await?;
        Ok(Usage {
            cpu_micros: accounting.cpu_micros,
            memory_bytes: accounting.memory_bytes,
            memory_peak_bytes: accounting.memory_peak_bytes,
            rx_bytes: counters.rx_bytes,
            tx_bytes: counters.tx_bytes,
            rx_packets: counters.rx_packets,
            tx_packets: counters.tx_packets,
        })
    }

    async fn mismatches(&self) -> Vec<String> {
        let workshop = &self.workshop;
        let links = match workshop.network.links().await {
            Ok(links) => links,
            Err(error) => return vec![format!("links cannot be listed: {}", chain(&error))],
        };
        let data_dir = &workshop.config.data_dir;
        let inventory = match Inventory::take(data_dir, Some(&workshop.cgroups), links) {
            Ok(inventory) => inventory,
            Err(error) => return vec![format!("disks cannot be listed: {}", chain(&error))],
        };
        let mut lines = inventory.mismatches();
        let known: Vec<VmId> = self.vms().iter().map(|vm| vm.id.clone()).collect();
        for id in inventory.vms().iter().filter(|id| !known.contains(id)) {
            lines.push(format!("VM {id}: recorded, but the node does not know it"));
        }
        match workshop.network.mismatches().await {
            Ok(more) => lines.extend(more),
            Err(error) => lines.push(format!("the firewall cannot be listed: {}", chain(&error))),
        }
        lines
    }
}

/// The memory that the output of all executions together may take, in bytes.
fn output_budget() -> u64 {
    host_memory().map_or(OUTPUT_BUDGET, |(_, total)| (total << 10) / OUTPUT_SHARE)
}

/// Memory that is available, and all of it, in KiB.
pub(crate) fn host_memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((field("MemAvailable:")?, field("MemTotal:")?))
}

#[async_trait]
impl Node for LocalNode {
    async fn create(&self, spec: VmSpec) -> Result<VmInfo, NodeError> {
        // A task of its own: a caller that goes away leaves nothing half-made.
        let made = self
            .inner
            .tracker
            .spawn(self.inner.clone().create(spec))
            .await;
        made.unwrap_or_else(|panic| {
            Err(NodeError::Internal {
                operation: "making a VM",
                source: Box::new(panic),
            })
        })
    }

    async fn inspect(&self, vm: &VmId) -> Result<VmInfo, NodeError> {
        Ok(self.inner.vm(vm)?.info(self.inner.isolation()))
    }

    async fn list(&self) -> Vec<VmInfo> {
        let isolation = self.inner.isolation();
        self.inner
            .vms()
            .iter()
            .map(|vm| vm.info(isolation))
            .collect()
    }

    async fn terminate(&self, vm: &VmId, _ending: Ending) -> Result<(), NodeError> {
        if let Ok(vm) = self.inner.vm(vm) {
            vm.terminate().await;
        }
        Ok(())
    }

    async fn execute(&self, vm: &VmId, request: ExecuteRequest) -> Result<Execution, NodeError> {
        let vm = self.inner.vm(vm)?;
        self.inner.executions.run(&vm, request).await
    }

    async fn start_execution(
        &self,
        vm: &VmId,
        id: &str,
        request: ExecuteRequest,
    ) -> Result<(), NodeError> {
        let vm = self.inner.vm(vm)?;
        self.inner.executions.start(&vm, id, &request).await
    }

    async fn await_execution(
        &self,
        vm: &VmId,
        id: &str,
        deadline: SystemTime,
    ) -> Result<Execution, NodeError> {
        let vm = self.inner.vm(vm)?;
        self.inner.executions.attach(&vm, id, deadline).await
    }

    async fn forget_execution(&self, vm: &VmId, id: &str) -> Result<(), NodeError> {
        let vm = self.inner.vm(vm)?;
        self.inner.executions.forget(&vm, id).await
    }

    async fn read_file(&self, vm: &VmId, path: &str) -> Result<FileContent, NodeError> {
        file::read(&self.inner.vm(vm)?, path).await
    }

    async fn write_file(
        &self,
        vm: &VmId,
        path: &str,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        let vm = self.inner.vm(vm)?;
        file::write(&vm, path, content).await
    }

    async fn resize(&self, vm: &VmId, memory_mb: u32) -> Result<(), NodeError> {
        self.inner.resize(vm, memory_mb).await
    }

    async fn usage(&self, vm: &VmId) -> Result<Usage, NodeError> {
        let vm = self.inner.vm(vm)?;
        let measured = self.inner.measure(&vm.cgroup, vm.index).await;
        let now = measured.map_err(|_| NodeError::VmEnded)?;
        let before = vm.book.look(|active| active.baseline);
        Ok(Usage {
            cpu_micros: now.cpu_micros.saturating_sub(before.cpu_micros),
            rx_bytes: now.rx_bytes.saturating_sub(before.rx_bytes),
            tx_bytes: now.tx_bytes.saturating_sub(before.tx_bytes),
            rx_packets: now.rx_packets.saturating_sub(before.rx_packets),
            tx_packets: now.tx_packets.saturating_sub(before.tx_packets),
            ..now
        })
    }

    fn endings(&self) -> broadcast::Receiver<(VmId, Ending)> {
        self.inner.endings.subscribe()
    }

    async fn status(&self) -> NodeStatus {
        let inner = &self.inner;
        let space = inner.workshop.disks.space().ok();
        NodeStatus {
            isolation: inner.isolation(),
            vms: inner.vms().len(),
            vms_limit: inner.workshop.config.vms_limit,
            pool_ready: inner.pool.ready(),
            pool_size: inner.pool.size(),
            disk_used_bytes: space.map_or(0, |space| space.used_bytes),
            disk_total_bytes: space.map_or(0, |space| space.total_bytes),
            disk_driver: inner.workshop.disks.driver(),
            quota: inner.workshop.disks.quota(),
            last_scrub: inner.last_scrub(),
        }
    }

    async fn check(&self, settle: Duration) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + settle;
        loop {
            let lines = self.inner.mismatches().await;
            if lines.is_empty() || tokio::time::Instant::now() >= deadline {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
