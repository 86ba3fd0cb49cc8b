//! One VM that a user has, and the task that owns its life.

mod lifecycle;

use crate::book::Book;
use crate::machine::Assembled;
use crate::record::Active;
use instavm_agent_api::launch;
use instavm_node_api::{Ending, IsolationClass, VmId, VmInfo, VmState};
use instavm_runtime::agent::AgentDoor;
use instavm_runtime::cgroup::Cgroup;
use instavm_runtime::driver::{MachineNetwork, Mounts};
use lifecycle::{Happening, Lifecycle};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Shell executions of one VM at once; further ones wait.
const SHELLS: usize = 64;
/// The longest sleep before the clock is looked at again: it may be set while we sleep.
const CLOCK_CHECK: Duration = Duration::from_secs(20);

/// A VM that a user has: what calls need, without asking its task.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) id: VmId,
    pub(crate) index: u16,
    /// The name of its machine: of its disk.
    pub(crate) machine: String,
    pub(crate) book: Arc<Book>,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) door: AgentDoor,
    pub(crate) cgroup: Cgroup,
    pub(crate) mounts: Mounts,
    /// The way into its network.
    pub(crate) network: MachineNetwork,
    /// Held while its disk, its mounts or its limits are changed: one change at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Cancelled when the VM begins to end.
    pub(crate) over: CancellationToken,
    pub(crate) shells: Semaphore,
    commands: mpsc::Sender<Terminate>,
}

/// The only command: everything else a VM does is asked of its agent.
struct Terminate {
    /// What it counts as.
    happening: Happening,
    done: oneshot::Sender<()>,
}

/// What the VM's task needs of the node when the VM has ended.
#[async_trait::async_trait]
pub(crate) trait Undertaker: Send + Sync + 'static {
    /// Ends everything in the machine, and keeps its disk when that was asked for. Returns when nothing of it runs any
    /// more.
    async fn end(&self, book: &Book, machine: &Assembled);
    /// The VM has ended: forget it, tell others, and remove what is left of it behind.
    async fn bury(&self, id: &VmId, machine: Assembled, ending: Ending);
}

impl Vm {
    /// Makes the handle of a VM and the future that owns its life; the caller spawns it.
    pub(crate) fn new(
        active: Active,
        book: Arc<Book>,
        machine: Assembled,
        network: Option<&launch::Network>,
    ) -> (Self, VmTask) {
        let (commands, queue) = mpsc::channel(16);
        let over = CancellationToken::new();
        let vm = Self {
            id: active.spec.id.clone(),
            index: machine.record.index,
            machine: machine.record.machine.clone(),
            book: book.clone(),
            address: network.and_then(|n| n.addresses.first()).map(|a| a.address),
            door: machine.door.clone(),
            cgroup: machine.cgroup.clone(),
            mounts: machine.process.mounts(),
            network: machine.process.network(),
            changing: tokio::sync::Mutex::default(),
            over: over.clone(),
            shells: Semaphore::new(SHELLS),
            commands,
        };
        (
            vm,
            VmTask {
                id: active.spec.id,
                expires: time_of(active.expires_micros),
                book,
                machine,
                queue,
                over,
            },
        )
    }

    /// What the node tells about it.
    pub(crate) fn info(&self, isolation: IsolationClass) -> VmInfo {
        let state = if self.over.is_cancelled() {
            VmState::Ending
        } else {
            VmState::Active
        };
        self.book.look(|active| VmInfo {
            id: self.id.clone(),
            state,
            isolation,
            memory_mb: active.spec.memory_mb,
            vcpu_count: active.spec.vcpu_count,
            started_at: time_of(active.started_micros),
            expires_at: time_of(active.expires_micros),
            address: self.address,
        })
    }

    /// Ends the VM; returns when nothing of it runs any more.
    pub(crate) async fn terminate(&self) {
        self.end(Happening::Terminate).await;
    }

    /// Ends the VM because it cannot go on.
    pub(crate) async fn fail(&self) {
        self.end(Happening::ProcessEnded).await;
    }

    async fn end(&self, happening: Happening) {
        let (done, ended) = oneshot::channel();
        let command = Terminate { happening, done };
        if self.commands.send(command).await.is_ok() {
            // An error means that its task has ended, and the VM with it.
            let _ = ended.await;
        }
    }
}

/// The task that owns a VM's life.
pub(crate) struct VmTask {
    id: VmId,
    expires: SystemTime,
    book: Arc<Book>,
    machine: Assembled,
    queue: mpsc::Receiver<Terminate>,
    over: CancellationToken,
}

impl VmTask {
    /// Runs until the VM has ended.
    pub(crate) async fn run(mut self, undertaker: Arc<dyn Undertaker>) {
        let mut life = Lifecycle::default();
        let mut waiting = Vec::new();
        let pressure = self.machine.cgroup.memory_pressure();
        let ending = loop {
            let happening = tokio::select! {
                command = self.queue.recv() => match command {
                    Some(Terminate { happening, done }) => {
                        waiting.push(done);
                        happening
                    }
                    // The node has dropped its handle without ending the VM: the daemon is going down.
                    None => return,
                },
                () = self.machine.process.ended() => Happening::ProcessEnded,
                () = pressure.exhausted() => {
                    self.relieve();
                    continue;
                }
                () = deadline(self.expires) => Happening::Deadline,
            };
            if let Some(ending) = life.note(happening) {
                break ending;
            }
        };
        self.over.cancel();
        undertaker.end(&self.book, &self.machine).await;
        undertaker.bury(&self.id, self.machine, ending).await;
        self.queue.close();
        while let Some(Terminate { done, .. }) = self.queue.recv().await {
            waiting.push(done);
        }
        for done in waiting {
            // A caller that has gone away needs no answer.
            let _ = done.send(());
        }
    }
}

impl VmTask {
    /// Ends the process that uses up the VM's memory, as the kernel would do in the end.
    fn relieve(&self) {
        let agent = self.machine.process.record().pid;
        match self.machine.cgroup.kill_largest(agent) {
            Ok(killed) => {
                tracing::info!(vm = %self.id, killed, "a VM stood still for want of memory")
            }
            Err(error) => {
                tracing::warn!(vm = %self.id, %error, "a VM that stands still cannot be relieved")
            }
        }
    }
}

/// Returns at `when` by the wall clock.
async fn deadline(when: SystemTime) {
    while let Ok(left) = when.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_CHECK)).await;
    }
}

/// Microseconds since the Unix epoch as a time.
pub(crate) fn time_of(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A time as microseconds since the Unix epoch.
pub(crate) fn micros_of(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
