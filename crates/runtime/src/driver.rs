//! What makes an isolated machine on this host.

mod mounts;
mod native;
mod sockets;

pub use mounts::{Holder, MountError, Mounted, Mounts};
pub use native::NativeDriver;
pub use sockets::{MachineNetwork, SocketMaker};

use crate::Probe;
use crate::cgroup::Cgroup;
use async_trait::async_trait;
use instavm_agent_api::{TOKEN_BYTES, launch};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// What isolates the machines of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Linux namespaces, a user namespace among them, with cgroup limits and a system call filter.
    Namespaces,
}

/// Everything that a machine is made from: its disk stands, its link comes while it starts.
#[derive(Clone)]
pub struct MachineSpec {
    /// The machine's folder on the host: for its socket.
    pub folder: PathBuf,
    /// Its root disk.
    pub root: PathBuf,
    /// First of its 65,536 user and group ids.
    pub id_base: u32,
    /// Its limits.
    pub cgroup: Cgroup,
    /// Its host name.
    pub hostname: String,
    /// The agent's secret.
    pub token: [u8; TOKEN_BYTES],
    /// Its network, as seen from inside.
    pub network: Option<launch::Network>,
    /// Open files for a process.
    pub open_files: u64,
    /// Bytes of `/dev/shm`, and four times those of `/run`.
    pub shm_bytes: u64,
    /// Starts the Python interpreter at once, where there is one.
    pub warm: bool,
}

impl std::fmt::Debug for MachineSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineSpec")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The agent program could not be put in place or started.
    #[error("cannot start the agent program {}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The launcher ended or said something else than it should.
    #[error("the launch broke off: {0}")]
    Launch(String),
    /// The machine's process could not be followed.
    #[error("cannot follow process {pid}")]
    Follow {
        /// The machine's first process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes isolated machines on this host.
#[async_trait]
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// What isolates its machines.
    fn isolation(&self) -> Isolation;

    /// Can it be used here? If not, why, and what to do.
    async fn probe(&self) -> Vec<Probe>;

    /// Starts a machine up to the point where it waits for its link.
    ///
    /// # Errors
    /// [`DriverError`]; nothing is left running.
    async fn start(&self, spec: &MachineSpec) -> Result<Box<dyn Starting>, DriverError>;

    /// Takes over a machine that an earlier daemon has made; `None` when it lives no more.
    fn adopt(&self, record: &MachineRecord) -> Option<Machine>;
}

/// A machine that waits for its link. Dropping it kills it.
#[async_trait]
pub trait Starting: Send {
    /// Its first process, whose network namespace is the machine's.
    fn pid(&self) -> i32;

    /// Lets it go on; returns when its agent listens.
    ///
    /// # Errors
    /// [`DriverError`]; nothing is left running.
    async fn finish(self: Box<Self>) -> Result<Machine, DriverError>;
}

/// What names a machine across restarts of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its first process.
    pub pid: i32,
    /// When that started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The boot of the host.
    pub boot_id: String,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    record: MachineRecord,
    process: AsyncFd<Arc<OwnedFd>>,
}

impl Machine {
    /// Follows the process `pid`. Must be called while it cannot have been replaced by another: it is the caller's
    /// child, or `start_ticks` of its record is checked afterwards.
    fn follow(pid: i32) -> Result<Self, DriverError> {
        let error = |source: io::Error| DriverError::Follow { pid, source };
        let raw = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| error(io::ErrorKind::InvalidInput.into()))?;
        let flags = rustix::process::PidfdFlags::NONBLOCK;
        let process = rustix::process::pidfd_open(raw, flags).map_err(|e| error(e.into()))?;
        let stat = instavm_linux::process::stat(pid)
            .ok_or_else(|| error(io::ErrorKind::NotFound.into()))?;
        let boot_id = boot_id().map_err(error)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd keeps its descriptor open as asked"
        )]
        let process = AsyncFd::with_interest(Arc::new(process), tokio::io::Interest::READABLE)
            .map_err(error)?;
        let record = MachineRecord {
            pid,
            start_ticks: stat.start_ticks,
            boot_id,
        };
        Ok(Self { record, process })
    }

    /// What names it across restarts of the daemon.
    pub fn record(&self) -> &MachineRecord {
        &self.record
    }

    /// The way to mount and unmount in it while it runs.
    #[must_use]
    pub fn mounts(&self) -> Mounts {
        Mounts::of(&self.record)
    }

    /// The way into its network.
    #[must_use]
    pub fn network(&self) -> MachineNetwork {
        MachineNetwork::of(self.process.get_ref().clone())
    }

    /// Returns when its first process has ended, and with it the machine.
    pub async fn ended(&self) {
        // A pidfd is readable from the end of its process on. Waiting fails only when the runtime shuts down.
        if self.process.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Has its first process ended?
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.process.get_ref(), PollFlags::IN)];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .is_ok_and(|ready| ready > 0)
    }
}

/// The id of this boot of the host: process ids of another one mean nothing.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
