//! The node itself: composes runtime and network behind the trait [`Node`].

use crate::config::NodeConfig;
use crate::execution::{Budget, Executions};
use crate::instance::{Instance, InstanceError};
use crate::machine::{Assembled, MachineError, Workshop, chain};
use crate::pool::Pool;
use crate::reconcile::{self, Inventory};
use crate::record::{Active, Phase};
use crate::vm::{Undertaker, Vm, micros_of};
use crate::{file, image};
use async_trait::async_trait;
use instavm_agent_api::{Rejoin, Request};
use instavm_network::{Network, NetworkConfig, NetworkError};
use instavm_node_api::{
    ByteStream, Ending, ExecuteRequest, Execution, FileContent, IsolationClass, Node, NodeError,
    NodeStatus, Usage, VmId, VmInfo, VmSpec,
};
use instavm_runtime::cgroup::{CgroupError, Cgroups};
use instavm_runtime::disk::{DiskDriver, DiskError, DiskOptions, DiskPool};
use instavm_runtime::driver::{Driver, DriverError, Isolation, NativeDriver};
use instavm_runtime::image::ImageError;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
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
/// The share of the host's memory that must be left for a further VM.
const MEMORY_RESERVE: u64 = 20;

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
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    workshop: Arc<Workshop>,
    pool: Pool,
    vms: RwLock<HashMap<VmId, Arc<Vm>>>,
    executions: Executions,
    creates: Semaphore,
    burials: Arc<Semaphore>,
    endings: broadcast::Sender<(VmId, Ending)>,
    tracker: TaskTracker,
    stop: CancellationToken,
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
        let network = Network::open(network_config(&config, instance)?, &tracker, &stop).await?;
        let executions = Executions {
            budget: Arc::new(Budget::new(output_budget())),
            output_limit: config.output_bytes,
        };
        let pool = Pool::new(config.pool_size);
        let workshop = Workshop::new(config, instance, disks, root, cgroups, network, driver);
        let inner = Arc::new(Inner {
            workshop: Arc::new(workshop),
            pool,
            vms: RwLock::default(),
            executions,
            creates: Semaphore::new(CREATES),
            burials: Arc::new(Semaphore::new(BURIALS)),
            endings: broadcast::Sender::new(ENDINGS),
            tracker,
            stop,
        });
        inner.adopt().await.map_err(OpenError::Reconcile)?;
        inner.try_out().await.map_err(OpenError::Trial)?;
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
            driver: DiskDriver::Auto,
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
    })
}

impl Inner {
    fn vm(&self, id: &VmId) -> Result<Arc<Vm>, NodeError> {
        let vms = self.vms.read().unwrap_or_else(PoisonError::into_inner);
        vms.get(id).cloned().ok_or(NodeError::NoSuchVm)
    }

    fn vms(&self) -> Vec<Arc<Vm>> {
        self.vms
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    fn isolation(&self) -> IsolationClass {
        match self.workshop.driver.isolation() {
            Isolation::Namespaces => IsolationClass::Namespaces,
        }
    }

    async fn adopt(self: &Arc<Self>) -> Result<(), MachineError> {
        let adopted = reconcile::adopt(&self.workshop).await?;
        for machine in adopted.active {
            if let Phase::Active(active) = machine.record.phase.clone() {
                tracing::info!(vm = %active.spec.id, "adopted a VM");
                self.employ(active, machine);
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

    /// Makes one VM before anybody is told that VMs can be had, so that a host on which it fails says so at start.
    async fn try_out(&self) -> Result<(), MachineError> {
        if self.pool.ready() > 0 || !self.vms().is_empty() {
            return Ok(());
        }
        let config = &self.workshop.config;
        let limits = self.workshop.limits(config.memory_mb, config.vcpu_count);
        let mut machine = self.workshop.assemble(&limits, config.disk_bytes).await?;
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

    /// Gives a machine to its user: from here on its task owns it.
    fn employ(self: &Arc<Self>, active: Active, machine: Assembled) -> Arc<Vm> {
        let network = self.workshop.network_of(machine.record.index);
        let (vm, task) = Vm::new(active, machine, Some(&network));
        let vm = Arc::new(vm);
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        vms.insert(vm.id.clone(), vm.clone());
        drop(vms);
        let (undertaker, stop) = (self.clone(), self.stop.clone());
        self.tracker.spawn(async move {
            tokio::select! {
                () = task.run(undertaker) => {}
                () = stop.cancelled() => {}
            }
        });
        vm
    }

    async fn create(self: Arc<Self>, spec: VmSpec) -> Result<VmInfo, NodeError> {
        if let Ok(vm) = self.vm(&spec.id) {
            return Ok(vm.info(self.isolation()));
        }
        self.admit()?;
        let _urgent = self.pool.urgent();
        let internal = |source: MachineError| match source {
            MachineError::NoIndex | MachineError::Disk(DiskError::Full { .. }) => {
                NodeError::AtCapacity {
                    reason: source.to_string(),
                }
            }
            source => NodeError::Internal {
                operation: "making a VM",
                source: Box::new(source),
            },
        };
        // A smaller VM is made for itself: the sizes of its memory file systems cannot shrink.
        let fits = spec.memory_mb >= self.workshop.config.memory_mb;
        while let Some(machine) = if fits { self.take() } else { None } {
            match self.hand_out(&spec, machine).await {
                Ok(vm) => return Ok(vm.info(self.isolation())),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "a pool VM could not be handed out");
                }
            }
        }
        let _place = self.creates.acquire().await;
        let limits = self.workshop.limits(spec.memory_mb, spec.vcpu_count);
        let machine = self
            .workshop
            .assemble(&limits, spec.disk_bytes)
            .await
            .map_err(internal)?;
        let vm = self.hand_out(&spec, machine).await.map_err(internal)?;
        Ok(vm.info(self.isolation()))
    }

    fn admit(&self) -> Result<(), NodeError> {
        let limit = self.workshop.config.vms_limit;
        if self.vms().len() >= limit {
            let reason =
                format!("the node runs {limit} VMs, its limit; end some, or try again later");
            return Err(NodeError::AtCapacity { reason });
        }
        if let Some((free, total)) = host_memory()
            && free < total / MEMORY_RESERVE
        {
            let reason = "the node's memory is used up; end some VMs, or try again later";
            return Err(NodeError::AtCapacity {
                reason: reason.to_owned(),
            });
        }
        Ok(())
    }

    fn take(self: &Arc<Self>) -> Option<Assembled> {
        let (machine, dead) = self.pool.take();
        for machine in dead {
            self.discard(machine);
        }
        machine
    }

    /// Turns a machine into the VM that was asked for. On failure the machine is removed behind.
    async fn hand_out(
        self: &Arc<Self>,
        spec: &VmSpec,
        mut machine: Assembled,
    ) -> Result<Arc<Vm>, MachineError> {
        match self.shape(spec, &mut machine).await {
            Ok(active) => Ok(self.employ(active, machine)),
            Err(error) => {
                self.discard(machine);
                Err(error)
            }
        }
    }

    async fn shape(&self, spec: &VmSpec, machine: &mut Assembled) -> Result<Active, MachineError> {
        let workshop = &self.workshop;
        let config = &workshop.config;
        if (spec.memory_mb, spec.vcpu_count) != (config.memory_mb, config.vcpu_count) {
            machine
                .cgroup
                .limit(&workshop.limits(spec.memory_mb, spec.vcpu_count))?;
        }
        if spec.disk_bytes != config.disk_bytes {
            workshop
                .disks
                .limit(&machine.record.machine, spec.disk_bytes)?;
        }
        let rejoin = Rejoin {
            hostname: spec.id.0.replace('_', "-"),
            entropy: rand::random::<[u8; 32]>().to_vec(),
            env: spec.env.clone(),
            ..Rejoin::default()
        };
        workshop
            .call(&machine.door, &Request::Rejoin(rejoin))
            .await?;
        let now = SystemTime::now();
        let expires = now + Duration::from_secs(spec.lifetime_seconds.into());
        let active = Active {
            spec: spec.clone(),
            started_micros: micros_of(now),
            expires_micros: micros_of(expires),
            baseline: self.measure(&machine.cgroup, machine.record.index).await?,
        };
        machine.record.phase = Phase::Active(active.clone());
        workshop.save(&machine.record)?;
        Ok(active)
    }

    async fn measure(
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
        })
    }

    /// Removes a machine behind, a few at a time: deleting links and cgroups waits for the kernel's grace periods.
    fn discard(self: &Arc<Self>, machine: Assembled) {
        let this = self.clone();
        self.tracker.spawn(async move {
            let record = &machine.record;
            let _place = this.burials.acquire().await;
            if let Err(error) = this.workshop.dismantle(&record.machine, Some(record.index)).await {
                // The record stays: the next start tries again, and `check` tells.
                tracing::error!(machine = record.machine, error = %chain(&error), "cannot remove a machine");
            }
        });
    }

    async fn mismatches(&self) -> Vec<String> {
        let workshop = &self.workshop;
        let disks = workshop.disks.names().unwrap_or_default();
        let links = match workshop.network.links().await {
            Ok(links) => links,
            Err(error) => return vec![format!("links cannot be listed: {}", chain(&error))],
        };
        let inventory = Inventory::take(
            &workshop.config.data_dir,
            Some(&workshop.cgroups),
            disks,
            links,
        );
        let mut lines = inventory.mismatches();
        let known: Vec<VmId> = self.vms().iter().map(|vm| vm.id.clone()).collect();
        for id in inventory.vms().iter().filter(|id| !known.contains(id)) {
            lines.push(format!("VM {id}: recorded, but the node does not know it"));
        }
        lines
    }
}

/// The memory that the output of all executions together may take, in bytes.
fn output_budget() -> u64 {
    host_memory().map_or(OUTPUT_BUDGET, |(_, total)| (total << 10) / OUTPUT_SHARE)
}

/// Memory that is available, and all of it, in KiB.
fn host_memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((field("MemAvailable:")?, field("MemTotal:")?))
}

#[async_trait]
impl Undertaker for Inner {
    async fn end(&self, machine: &Assembled) {
        let mut record = machine.record.clone();
        record.phase = Phase::Ending;
        if let Err(error) = self.workshop.save(&record) {
            tracing::error!(machine = record.machine, error = %chain(&error), "cannot record an end");
        }
        match machine.cgroup.kill() {
            Ok(()) => machine.process.ended().await,
            Err(error) => {
                tracing::error!(machine = record.machine, error = %chain(&error), "cannot kill a VM");
            }
        }
    }

    async fn bury(&self, id: &VmId, machine: Assembled, ending: Ending) {
        self.vms
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        // Nobody may be listening.
        let _ = self.endings.send((id.clone(), ending));
        let (workshop, record) = (self.workshop.clone(), machine.record.clone());
        drop(machine);
        let burials = self.burials.clone();
        self.tracker.spawn(async move {
            let _place = burials.acquire().await;
            if let Err(error) = workshop.dismantle(&record.machine, Some(record.index)).await {
                tracing::error!(machine = record.machine, error = %chain(&error), "cannot remove a machine");
            }
        });
    }
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

    async fn resize(&self, _vm: &VmId, _memory_mb: u32) -> Result<(), NodeError> {
        Err(crate::snapshot::not_yet("changing the memory of a VM"))
    }

    async fn usage(&self, vm: &VmId) -> Result<Usage, NodeError> {
        let vm = self.inner.vm(vm)?;
        let measured = self.inner.measure(&vm.cgroup, vm.index).await;
        let now = measured.map_err(|_| NodeError::VmEnded)?;
        let before = vm.active.baseline;
        Ok(Usage {
            cpu_micros: now.cpu_micros.saturating_sub(before.cpu_micros),
            rx_bytes: now.rx_bytes.saturating_sub(before.rx_bytes),
            tx_bytes: now.tx_bytes.saturating_sub(before.tx_bytes),
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
            disk_driver: "btrfs",
            quota: "hard",
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
