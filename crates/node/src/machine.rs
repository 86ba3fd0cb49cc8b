//! Machines: made step by step, and undone whole.
//!
//! Each step's undo is "remove it if it is there", by the machine's name or index. So one function, [`Workshop::dismantle`],
//! undoes a machine from wherever its making stopped, may be repeated, and may be run by another process later.

use crate::config::NodeConfig;
use crate::fault;
use crate::instance::{Instance, VMS};
use crate::record::{Phase, Record};
use instavm_agent_api::launch;
use instavm_network::{Network, NetworkError};
use instavm_runtime::agent::{AgentDoor, AgentError};
use instavm_runtime::cgroup::{Cgroup, CgroupError, Cgroups, Limits};
use instavm_runtime::disk::{DiskError, DiskPool};
use instavm_runtime::driver::{Driver, DriverError, Machine, MachineSpec};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How long an agent may take to warm its interpreter, or to answer at all.
const AGENT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// The part of a VM's memory that `/dev/shm` may take: enough for browsers and numeric libraries, and too little to
/// leave nothing for programs when it is full.
const SHM_SHARE: u64 = 4;

/// Why a machine could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// All 1,024 places of the instance are taken.
    #[error("all {VMS} places for VMs of this instance are taken")]
    NoIndex,
    /// Its folder or record.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its isolation.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Its link.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Its agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Its agent does not answer.
    #[error("the VM's agent does not answer")]
    Silent,
}

/// What a machine is made from.
#[derive(Debug)]
pub(crate) struct Blueprint {
    /// What its disk starts as: an image or a snapshot.
    pub(crate) source: PathBuf,
    /// Its limits.
    pub(crate) limits: Limits,
    /// Its disk's limit.
    pub(crate) disk_bytes: u64,
    /// What it is on record until it is handed out.
    pub(crate) phase: Phase,
    /// Its interpreter starts with it.
    pub(crate) warm: bool,
}

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) record: Record,
    pub(crate) process: Machine,
    pub(crate) door: AgentDoor,
    pub(crate) cgroup: Cgroup,
}

/// Where machines are made and undone.
pub(crate) struct Workshop {
    pub(crate) config: NodeConfig,
    pub(crate) instance: Instance,
    pub(crate) disks: DiskPool,
    pub(crate) image: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) network: Network,
    pub(crate) driver: Arc<dyn Driver>,
    /// Places that are taken.
    indexes: Mutex<BTreeSet<u16>>,
}

impl std::fmt::Debug for Workshop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workshop")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl Workshop {
    pub(crate) fn new(
        config: NodeConfig,
        instance: Instance,
        disks: DiskPool,
        image: PathBuf,
        cgroups: Cgroups,
        network: Network,
        driver: Arc<dyn Driver>,
    ) -> Self {
        let indexes = Mutex::default();
        Self {
            config,
            instance,
            disks,
            image,
            cgroups,
            network,
            driver,
            indexes,
        }
    }

    /// Where the machines' folders are.
    pub(crate) fn folder_of_all(data_dir: &Path) -> PathBuf {
        data_dir.join("vms")
    }

    /// A machine's folder.
    pub(crate) fn folder(&self, machine: &str) -> PathBuf {
        Self::folder_of_all(&self.config.data_dir).join(machine)
    }

    /// Limits of a VM with this memory and these processors.
    pub(crate) fn limits(&self, memory_mb: u32, vcpu_count: u32) -> Limits {
        let memory_bytes = u64::from(memory_mb) << 20;
        Limits {
            memory_bytes,
            vcpu_count,
            pids: self.config.pids,
        }
    }

    /// A machine as the pool has them.
    pub(crate) fn pool_blueprint(&self) -> Blueprint {
        Blueprint {
            source: self.image.clone(),
            limits: self.limits(self.config.memory_mb, self.config.vcpu_count),
            disk_bytes: self.config.disk_bytes,
            phase: Phase::Assembling,
            warm: true,
        }
    }

    /// Makes a machine; on failure nothing of it is left.
    pub(crate) async fn assemble(&self, blueprint: &Blueprint) -> Result<Assembled, MachineError> {
        let index = self.take_index()?;
        let record = Record {
            machine: format!("m{}", hex(&rand::random::<[u8; 6]>())),
            index,
            token: hex(&rand::random::<[u8; 32]>()),
            phase: blueprint.phase.clone(),
            process: None,
        };
        match self.steps(record.clone(), blueprint).await {
            Ok(machine) => Ok(machine),
            Err(error) => {
                if let Err(undo) = self.dismantle(&record.machine, Some(index)).await {
                    tracing::error!(machine = record.machine, error = %chain(&undo), "cannot undo a machine");
                }
                Err(error)
            }
        }
    }

    async fn steps(
        &self,
        mut record: Record,
        blueprint: &Blueprint,
    ) -> Result<Assembled, MachineError> {
        let folder = self.folder(&record.machine);
        std::fs::create_dir_all(&folder).map_err(file("make", &folder))?;
        self.save(&record)?;
        let step = |name| fault::at(name).map_err(file(name, &folder));
        step("make the disk of")?;
        let (root, cgroup) = self.disk_and_cgroup(&record.machine, blueprint).await?;
        step("start")?;
        let token = record.token_bytes().ok_or(MachineError::Silent)?;
        let spec = MachineSpec {
            folder: folder.clone(),
            root,
            id_base: self.instance.id_base(record.index),
            cgroup: cgroup.clone(),
            hostname: "vm".to_owned(),
            token,
            network: Some(self.network_of(record.index)),
            open_files: self.config.open_files,
            shm_bytes: blueprint.limits.memory_bytes / SHM_SHARE,
            warm: blueprint.warm,
        };
        let starting = self.driver.start(&spec).await?;
        step("link")?;
        self.network.attach(record.index, starting.pid()).await?;
        step("finish")?;
        let process = starting.finish().await?;
        self.network.ready(record.index).await?;
        step("record")?;
        let door = AgentDoor::new(&folder, token).map_err(file("open", &folder))?;
        record.process = Some(process.record().clone());
        self.save(&record)?;
        Ok(Assembled {
            record,
            process,
            door,
            cgroup,
        })
    }

    /// A snapshot waits for the file system's transaction, so this is not for the threads that serve requests.
    async fn disk_and_cgroup(
        &self,
        machine: &str,
        blueprint: &Blueprint,
    ) -> Result<(PathBuf, Cgroup), MachineError> {
        let (disks, cgroups) = (self.disks.clone(), self.cgroups.clone());
        let (source, name) = (blueprint.source.clone(), machine.to_owned());
        let (limits, disk_bytes) = (blueprint.limits, blueprint.disk_bytes);
        let make = move || {
            let root = disks.create(&name, &source, disk_bytes)?;
            fault::at("make the cgroup of").map_err(file("make the cgroup of", &root))?;
            Ok((root, cgroups.create(&name, &limits)?))
        };
        tokio::task::spawn_blocking(make)
            .await
            .map_err(|e| file("make the disk of", Path::new(machine))(io::Error::other(e)))?
    }

    /// Loads the machine's interpreter.
    pub(crate) async fn warm(&self, machine: &Assembled) -> Result<(), MachineError> {
        self.call(&machine.door, &instavm_agent_api::Request::WarmInterpreter)
            .await
    }

    /// Asks an agent something that it answers at once.
    pub(crate) async fn call(
        &self,
        door: &AgentDoor,
        request: &instavm_agent_api::Request,
    ) -> Result<(), MachineError> {
        let answer = tokio::time::timeout(AGENT_PATIENCE, door.call(request)).await;
        Ok(answer.map_err(|_| MachineError::Silent)??)
    }

    /// The network of a place as its VM sees it.
    pub(crate) fn network_of(&self, index: u16) -> launch::Network {
        let plan = self.network.plan();
        let gateway = plan.gateway(index);
        let address = launch::Address {
            address: plan.address(index),
            prefix: 30,
        };
        launch::Network {
            addresses: vec![address],
            gateway,
            resolver: gateway,
        }
    }

    /// Writes a machine's record.
    pub(crate) fn save(&self, record: &Record) -> Result<(), MachineError> {
        let folder = self.folder(&record.machine);
        record
            .write(&folder)
            .map_err(file("write the record in", &folder))
    }

    /// Takes over a machine that an earlier daemon has made, when it lives and answers.
    pub(crate) async fn adopt(&self, record: Record) -> Option<Assembled> {
        let process = self.driver.adopt(record.process.as_ref()?)?;
        let door = AgentDoor::new(&self.folder(&record.machine), record.token_bytes()?).ok()?;
        let cgroup = self.cgroups.group(&record.machine);
        // The earlier daemon may have died while it stood still.
        cgroup.thaw().ok()?;
        self.call(&door, &instavm_agent_api::Request::Ping)
            .await
            .ok()?;
        lock(&self.indexes).insert(record.index);
        Some(Assembled {
            record,
            process,
            door,
            cgroup,
        })
    }

    /// Removes whatever there is of a machine, and gives its place back.
    pub(crate) async fn dismantle(
        &self,
        machine: &str,
        index: Option<u16>,
    ) -> Result<(), MachineError> {
        self.cgroups.group(machine).remove().await?;
        if let Some(index) = index {
            self.network.detach(index);
        }
        let (disks, name) = (self.disks.clone(), machine.to_owned());
        // Deleting a subvolume waits for the file system's transaction now and then.
        tokio::task::spawn_blocking(move || disks.delete(&name))
            .await
            .map_err(|e| file("delete the disk of", Path::new(machine))(io::Error::other(e)))??;
        let folder = self.folder(machine);
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(file("remove", &folder)(e));
            }
            _ => {}
        }
        if let Some(index) = index {
            lock(&self.indexes).remove(&index);
        }
        Ok(())
    }

    /// The names of all machines' folders.
    pub(crate) fn folders(data_dir: &Path) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(Self::folder_of_all(data_dir)) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    fn take_index(&self) -> Result<u16, MachineError> {
        let mut taken = lock(&self.indexes);
        let free = (0..VMS)
            .find(|index| !taken.contains(index))
            .ok_or(MachineError::NoIndex)?;
        taken.insert(free);
        Ok(free)
    }
}

/// An adapter for `map_err`.
pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MachineError {
    let path = path.to_owned();
    move |source| MachineError::File {
        action,
        path,
        source,
    }
}

/// What a thread that panicked held is still a plain set or map.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its sources, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
