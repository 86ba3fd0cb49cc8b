//! A node in memory.

use crate::hooks::Hooks;
use crate::pty::Terminal;
use crate::script::{self, End, Gates, Surroundings};
use crate::storage::{Files, Storage};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use instavm_node_api::{
    ByteStream, EgressPolicy, Ending, ExecuteRequest, Execution, FileContent, FileErrorKind,
    IsolationClass, Mount, Node, NodeError, NodeStatus, Refusal, SnapshotId, Usage, VmId, VmInfo,
    VmSpec, VmState,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;

/// What every VM here uses of its memory, in MiB.
const IN_USE_MB: u32 = 200;
/// Endings that a receiver may lag behind.
const ENDINGS: usize = 64;

/// A node in memory: VMs are records, code is a small script language (`echo`, `set`, `get`, `sleep`, `gate`, `exit`,
/// `die`, …), files are bytes. It outlives platforms, as real VMs do.
#[derive(Debug)]
pub struct SimulatedNode {
    pub(crate) vms: Mutex<HashMap<VmId, Arc<Simulated>>>,
    pub(crate) storage: Mutex<Storage>,
    pub(crate) hooks: Hooks,
    pub(crate) gates: Gates,
    endings: broadcast::Sender<(VmId, Ending)>,
    pub(crate) refusals: broadcast::Sender<Refusal>,
    /// How often each rule has refused.
    pub(crate) refused: Mutex<BTreeMap<String, u64>>,
    capacity: AtomicUsize,
    creations: AtomicUsize,
    tasks: TaskTracker,
}

/// A VM of the simulated node.
#[derive(Debug)]
pub(crate) struct Simulated {
    spec: VmSpec,
    info: Mutex<VmInfo>,
    surroundings: Surroundings,
    pub(crate) files: Mutex<Files>,
    pub(crate) mounts: Mutex<Vec<Mount>>,
    pub(crate) terminals: Mutex<Vec<Terminal>>,
    pub(crate) keep_disk_as: Mutex<Option<SnapshotId>>,
    pub(crate) egress: Mutex<EgressPolicy>,
    /// Its ports, and where on the host they really are.
    pub(crate) ports: Mutex<HashMap<u16, std::net::SocketAddr>>,
    executions: Mutex<HashMap<String, watch::Receiver<Option<Execution>>>>,
    /// Becomes true when it has ended.
    gone: watch::Sender<bool>,
}

impl Simulated {
    fn new(spec: VmSpec, info: VmInfo, files: Files, gates: Gates) -> Simulated {
        Simulated {
            info: Mutex::new(info),
            surroundings: Surroundings {
                env: spec.env.clone(),
                variables: Arc::default(),
                gates,
            },
            files: Mutex::new(files),
            mounts: Mutex::new(spec.mounts.clone()),
            terminals: Mutex::default(),
            keep_disk_as: Mutex::new(spec.keep_disk_as.clone()),
            egress: Mutex::new(spec.egress.clone().unwrap_or_default()),
            ports: Mutex::default(),
            spec,
            executions: Mutex::default(),
            gone: watch::Sender::new(false),
        }
    }

    async fn ended(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is in `self`.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for SimulatedNode {
    fn default() -> Self {
        SimulatedNode {
            vms: Mutex::default(),
            storage: Mutex::default(),
            hooks: Hooks::default(),
            endings: broadcast::channel(ENDINGS).0,
            refusals: broadcast::channel(ENDINGS).0,
            refused: Mutex::default(),
            gates: Gates::default(),
            capacity: AtomicUsize::new(usize::MAX),
            creations: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
        }
    }
}

impl SimulatedNode {
    /// The most VMs that it takes from now on.
    pub fn set_capacity(&self, vms: usize) {
        self.capacity.store(vms, Ordering::SeqCst);
    }

    /// How many VMs it was asked to make.
    pub fn creations(&self) -> usize {
        self.creations.load(Ordering::SeqCst)
    }

    /// From now on, making a VM waits at this gate; `None`: it no longer does.
    pub fn hold_creations(&self, gate: Option<&str>) {
        self.hold("create", gate);
    }

    /// From now on, each call of this name waits at this gate before it does anything; `None`: it no longer does.
    pub fn hold(&self, call: &'static str, gate: Option<&str>) {
        self.hooks.hold(call, gate);
    }

    /// The next calls of this name fail for a reason that lies in the host, and change nothing.
    pub fn fail(&self, call: &'static str, times: usize) {
        self.hooks.fail(call, times);
    }

    /// How often a call of this name was made.
    pub fn calls(&self, call: &'static str) -> usize {
        self.hooks.count(call)
    }

    /// Opens a gate for good.
    pub fn open_gate(&self, name: &str) {
        self.gates.open(name);
    }

    /// Waits until so many have come to a gate.
    pub async fn gate_occupied(&self, name: &str, by: usize) {
        self.gates.occupied(name, by).await;
    }

    /// Ends a VM as its lifetime or a crash would. Returns when whoever listens has been told.
    pub fn end(&self, vm: &str, ending: Ending) {
        let vm = VmId(vm.to_owned());
        if self.take_out(&vm) {
            // Nobody may be listening.
            let _ = self.endings.send((vm, ending));
        }
    }

    /// Ends a VM without telling anybody.
    pub fn end_silently(&self, vm: &str) {
        self.take_out(&VmId(vm.to_owned()));
    }

    /// Ends a VM, keeping its disk if that is wished; whether it was there.
    fn take_out(&self, vm: &VmId) -> bool {
        let Some(simulated) = lock(&self.vms).remove(vm) else {
            return false;
        };
        if let Some(id) = lock(&simulated.keep_disk_as).take() {
            let files = lock(&simulated.files).clone();
            lock(&self.storage).snapshots.insert(id, files);
        }
        simulated.gone.send_replace(true);
        true
    }

    /// What a VM was asked to be.
    pub fn spec(&self, vm: &str) -> Option<VmSpec> {
        let simulated = self.find(&VmId(vm.to_owned())).ok()?;
        Some(simulated.spec.clone())
    }

    /// The content of a file, if the VM and the file are there.
    pub fn file(&self, vm: &str, path: &str) -> Option<Bytes> {
        let simulated = self.find(&VmId(vm.to_owned())).ok()?;
        let path = absolute(path);
        match self.mounted_file(&simulated, &path) {
            Some((mount, inside)) => lock(&self.storage).seen(&mount).ok()?.get(&inside).cloned(),
            None => lock(&simulated.files).get(&path).cloned(),
        }
    }

    /// The ids of the VMs that live.
    pub fn vm_ids(&self) -> Vec<String> {
        lock(&self.vms).keys().map(|id| id.0.clone()).collect()
    }

    pub(crate) fn find(&self, vm: &VmId) -> Result<Arc<Simulated>, NodeError> {
        lock(&self.vms).get(vm).cloned().ok_or(NodeError::NoSuchVm)
    }

    /// The mount that a path leads into, and the path inside of its volume.
    fn mounted_file(&self, vm: &Simulated, path: &str) -> Option<(Mount, String)> {
        lock(&vm.mounts).iter().find_map(|mount| {
            let inside = path.strip_prefix(&mount.path)?.strip_prefix('/')?;
            Some((mount.clone(), inside.to_owned()))
        })
    }

    /// Checks what a VM asks of the storage, and gives it its disk.
    fn disk(&self, spec: &VmSpec) -> Result<Files, NodeError> {
        let storage = lock(&self.storage);
        for mount in &spec.mounts {
            storage.seen(mount)?;
            self.check_writers(None, mount)?;
        }
        match &spec.snapshot {
            None => Ok(Files::new()),
            Some(id) => storage
                .snapshots
                .get(id)
                .cloned()
                .ok_or(NodeError::NoSuchSnapshot),
        }
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/app/{path}")
    }
}

pub(crate) fn file_error(kind: FileErrorKind, message: String) -> NodeError {
    NodeError::File { kind, message }
}

pub(crate) fn missing(path: &str) -> NodeError {
    file_error(FileErrorKind::NotFound, format!("{path}: no such file"))
}

/// In pieces that are no multiple of three, as a kernel may give them.
pub(crate) fn in_pieces(content: &Bytes) -> FileContent {
    let pieces: Vec<_> = content
        .chunks(1_000)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    FileContent {
        size: content.len() as u64,
        stream: stream::iter(pieces).boxed(),
    }
}

#[async_trait]
impl Node for SimulatedNode {
    async fn create(&self, spec: VmSpec) -> Result<VmInfo, NodeError> {
        self.creations.fetch_add(1, Ordering::SeqCst);
        self.hooks.pass("create", &self.gates).await?;
        let disk = self.disk(&spec)?;
        let mut vms = lock(&self.vms);
        if vms.len() >= self.capacity.load(Ordering::SeqCst) {
            return Err(NodeError::AtCapacity {
                reason: "the node has no room for a further VM; try again soon".to_owned(),
            });
        }
        let started_at = SystemTime::now();
        let info = VmInfo {
            id: spec.id.clone(),
            state: VmState::Active,
            isolation: IsolationClass::Namespaces,
            memory_mb: spec.memory_mb,
            vcpu_count: spec.vcpu_count,
            started_at,
            expires_at: started_at + Duration::from_secs(u64::from(spec.lifetime_seconds)),
            address: None,
        };
        let id = spec.id.clone();
        let simulated = Simulated::new(spec, info.clone(), disk, self.gates.clone());
        vms.insert(id, Arc::new(simulated));
        Ok(info)
    }

    async fn inspect(&self, vm: &VmId) -> Result<VmInfo, NodeError> {
        Ok(lock(&self.find(vm)?.info).clone())
    }

    async fn list(&self) -> Vec<VmInfo> {
        let vms = lock(&self.vms);
        vms.values().map(|vm| lock(&vm.info).clone()).collect()
    }

    async fn resize(&self, vm: &VmId, memory_mb: u32) -> Result<(), NodeError> {
        self.hooks.pass("resize", &self.gates).await?;
        let simulated = self.find(vm)?;
        if memory_mb < IN_USE_MB {
            return Err(NodeError::Busy {
                reason: format!("the VM uses {IN_USE_MB} MiB now: end something in it first"),
            });
        }
        lock(&simulated.info).memory_mb = memory_mb;
        Ok(())
    }

    async fn terminate(&self, vm: &VmId, ending: Ending) -> Result<(), NodeError> {
        self.end(&vm.0, ending);
        Ok(())
    }

    async fn execute(&self, vm: &VmId, request: ExecuteRequest) -> Result<Execution, NodeError> {
        let simulated = self.find(vm)?;
        let end = tokio::select! {
            end = script::run(&simulated.surroundings, &request) => end,
            () = simulated.ended() => return Err(NodeError::VmEnded),
        };
        match end {
            End::Answer(execution) => Ok(execution),
            End::VmDied => {
                self.end(&vm.0, Ending::Crashed);
                Err(NodeError::VmEnded)
            }
        }
    }

    async fn start_execution(
        &self,
        vm: &VmId,
        id: &str,
        request: ExecuteRequest,
    ) -> Result<(), NodeError> {
        let simulated = self.find(vm)?;
        if request.code == "refuse" {
            return Err(NodeError::VmExhausted {
                message: "the VM has no process to spare".to_owned(),
            });
        }
        let (sender, receiver) = watch::channel(None);
        lock(&simulated.executions).insert(id.to_owned(), receiver);
        self.tasks.spawn(async move {
            let end = tokio::select! {
                end = script::run(&simulated.surroundings, &request) => end,
                () = simulated.ended() => return,
            };
            if let End::Answer(execution) = end {
                sender.send_replace(Some(execution));
            }
        });
        Ok(())
    }

    async fn await_execution(
        &self,
        vm: &VmId,
        id: &str,
        _deadline: SystemTime,
    ) -> Result<Execution, NodeError> {
        let simulated = self.find(vm)?;
        let receiver = lock(&simulated.executions).get(id).cloned();
        let mut receiver = receiver.ok_or(NodeError::NoSuchExecution)?;
        let end = tokio::select! {
            end = receiver.wait_for(Option::is_some) => end.ok().and_then(|end| end.clone()),
            () = simulated.ended() => None,
        };
        end.ok_or(NodeError::VmEnded)
    }

    async fn forget_execution(&self, vm: &VmId, id: &str) -> Result<(), NodeError> {
        let simulated = self.find(vm)?;
        lock(&simulated.executions).remove(id);
        Ok(())
    }

    async fn read_file(&self, vm: &VmId, path: &str) -> Result<FileContent, NodeError> {
        let simulated = self.find(vm)?;
        let path = absolute(path);
        if let Some((mount, inside)) = self.mounted_file(&simulated, &path) {
            let storage = lock(&self.storage);
            let content = storage.seen(&mount)?.get(&inside);
            let content = content.ok_or_else(|| missing(&path))?;
            return Ok(in_pieces(content));
        }
        let files = lock(&simulated.files);
        if let Some(content) = files.get(&path) {
            return Ok(in_pieces(content));
        }
        let folder = format!("{}/", path.trim_end_matches('/'));
        if path == "/app" || files.keys().any(|file| file.starts_with(&folder)) {
            let message = format!("{path} is a directory");
            return Err(file_error(FileErrorKind::Unsuitable, message));
        }
        Err(missing(&path))
    }

    async fn write_file(
        &self,
        vm: &VmId,
        path: &str,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        let simulated = self.find(vm)?;
        let path = absolute(path);
        if path.starts_with("/proc") {
            return Err(file_error(
                FileErrorKind::Denied,
                format!("{path}: read-only"),
            ));
        }
        let pieces: Vec<Bytes> = content.try_collect().await?;
        let content = Bytes::from(pieces.concat());
        let size = content.len() as u64;
        match self.mounted_file(&simulated, &path) {
            Some((mount, _)) if mount.read_only => {
                return Err(file_error(
                    FileErrorKind::Denied,
                    format!("{path}: read-only"),
                ));
            }
            Some((mount, inside)) => {
                lock(&self.storage).write(&mount.volume, &inside, content)?;
            }
            None => {
                lock(&simulated.files).insert(path, content);
            }
        }
        Ok(size)
    }

    async fn usage(&self, vm: &VmId) -> Result<Usage, NodeError> {
        self.find(vm)?;
        Ok(Usage {
            cpu_micros: 1_500_000,
            memory_bytes: 10 << 20,
            memory_peak_bytes: 20 << 20,
            rx_bytes: 100,
            tx_bytes: 50,
            rx_packets: 2,
            tx_packets: 1,
        })
    }

    fn endings(&self) -> broadcast::Receiver<(VmId, Ending)> {
        self.endings.subscribe()
    }

    async fn status(&self) -> NodeStatus {
        NodeStatus {
            isolation: IsolationClass::Namespaces,
            vms: lock(&self.vms).len(),
            vms_limit: self.capacity.load(Ordering::SeqCst),
            pool_ready: 3,
            pool_size: 4,
            disk_used_bytes: 1 << 20,
            disk_total_bytes: 1 << 30,
            disk_driver: "btrfs",
            quota: "hard",
            last_scrub: None,
        }
    }

    async fn check(&self, _settle: Duration) -> Vec<String> {
        Vec::new()
    }
}
