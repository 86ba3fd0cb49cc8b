//! A node in memory.

use crate::script::{self, End, Gates, Surroundings};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use instavm_node_api::{
    ByteStream, Ending, ExecuteRequest, Execution, FileContent, FileErrorKind, IsolationClass,
    Node, NodeError, NodeStatus, Usage, VmId, VmInfo, VmSpec, VmState,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;

/// Endings that a receiver may lag behind.
const ENDINGS: usize = 64;

/// A node in memory: VMs are records, code is a small script language (`echo`, `set`, `get`, `sleep`, `gate`, `exit`,
/// `die`, …), files are bytes. It outlives platforms, as real VMs do.
#[derive(Debug)]
pub struct SimulatedNode {
    vms: Mutex<HashMap<VmId, Arc<Simulated>>>,
    endings: broadcast::Sender<(VmId, Ending)>,
    gates: Gates,
    capacity: AtomicUsize,
    creations: AtomicUsize,
    creation_gate: Mutex<Option<String>>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Simulated {
    info: VmInfo,
    surroundings: Surroundings,
    files: Mutex<HashMap<String, Bytes>>,
    executions: Mutex<HashMap<String, watch::Receiver<Option<Execution>>>>,
    /// Becomes true when it has ended.
    gone: watch::Sender<bool>,
}

impl Simulated {
    async fn ended(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is in `self`.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for SimulatedNode {
    fn default() -> Self {
        SimulatedNode {
            vms: Mutex::default(),
            endings: broadcast::channel(ENDINGS).0,
            gates: Gates::default(),
            capacity: AtomicUsize::new(usize::MAX),
            creations: AtomicUsize::new(0),
            creation_gate: Mutex::default(),
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
        *lock(&self.creation_gate) = gate.map(str::to_owned);
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
        if let Some(simulated) = lock(&self.vms).remove(&vm) {
            simulated.gone.send_replace(true);
            // Nobody may be listening.
            let _ = self.endings.send((vm, ending));
        }
    }

    /// Ends a VM without telling anybody.
    pub fn end_silently(&self, vm: &str) {
        if let Some(simulated) = lock(&self.vms).remove(&VmId(vm.to_owned())) {
            simulated.gone.send_replace(true);
        }
    }

    /// The content of a file, if the VM and the file are there.
    pub fn file(&self, vm: &str, path: &str) -> Option<Bytes> {
        let simulated = self.find(&VmId(vm.to_owned())).ok()?;
        let files = lock(&simulated.files);
        files.get(&absolute(path)).cloned()
    }

    /// The ids of the VMs that live.
    pub fn vm_ids(&self) -> Vec<String> {
        lock(&self.vms).keys().map(|id| id.0.clone()).collect()
    }

    fn find(&self, vm: &VmId) -> Result<Arc<Simulated>, NodeError> {
        lock(&self.vms).get(vm).cloned().ok_or(NodeError::NoSuchVm)
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/app/{path}")
    }
}

fn file_error(kind: FileErrorKind, message: String) -> NodeError {
    NodeError::File { kind, message }
}

#[async_trait]
impl Node for SimulatedNode {
    async fn create(&self, spec: VmSpec) -> Result<VmInfo, NodeError> {
        self.creations.fetch_add(1, Ordering::SeqCst);
        let gate = lock(&self.creation_gate).clone();
        if let Some(gate) = gate {
            self.gates.pass(&gate).await;
        }
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
        let simulated = Simulated {
            info: info.clone(),
            surroundings: Surroundings {
                env: spec.env,
                variables: Arc::default(),
                gates: self.gates.clone(),
            },
            files: Mutex::default(),
            executions: Mutex::default(),
            gone: watch::Sender::new(false),
        };
        vms.insert(spec.id, Arc::new(simulated));
        Ok(info)
    }

    async fn inspect(&self, vm: &VmId) -> Result<VmInfo, NodeError> {
        Ok(self.find(vm)?.info.clone())
    }

    async fn list(&self) -> Vec<VmInfo> {
        lock(&self.vms).values().map(|vm| vm.info.clone()).collect()
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
        let files = lock(&simulated.files);
        if let Some(content) = files.get(&path) {
            // In pieces that are no multiple of three, as a kernel may give them.
            let pieces: Vec<_> = content
                .chunks(1_000)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect();
            return Ok(FileContent {
                size: content.len() as u64,
                stream: stream::iter(pieces).boxed(),
            });
        }
        let folder = format!("{}/", path.trim_end_matches('/'));
        if path == "/app" || files.keys().any(|file| file.starts_with(&folder)) {
            let message = format!("{path} is a directory");
            return Err(file_error(FileErrorKind::Unsuitable, message));
        }
        Err(file_error(
            FileErrorKind::NotFound,
            format!("{path}: no such file"),
        ))
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
        lock(&simulated.files).insert(path, content);
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
        }
    }

    async fn check(&self, _settle: Duration) -> Vec<String> {
        Vec::new()
    }
}
