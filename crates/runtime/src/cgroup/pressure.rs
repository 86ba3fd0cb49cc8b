//! A VM whose memory is used up may thrash for minutes before the kernel kills anything: it keeps throwing out and
//! reading back the very programs that run, at the cost of every VM on the disk. So the node watches the kernel's
//! pressure stall information of each VM and kills the VM's largest process itself.
//!
//! Files and formats: the kernel's `Documentation/accounting/psi.rst`.

use super::{Cgroup, CgroupError, file};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Half a second in which no process got on, within two seconds.
const TRIGGER: &str = "full 500000 2000000";
/// The part of the limit that must be in use by other things than the page cache of files, in percent. Pressure also
/// comes from the host's own need, and from writing more than the disk takes, which no death would mend.
const USED_PERCENT: u64 = 75;

/// Waits for a VM that stands still for want of memory.
#[derive(Debug)]
pub struct MemoryPressure {
    group: Cgroup,
    /// The trigger lives as long as this is open; `None` where the kernel offers none.
    trigger: Option<AsyncFd<OwnedFd>>,
}

impl MemoryPressure {
    pub(super) fn watch(group: &Cgroup) -> Self {
        let path = group.killer().join("memory.pressure");
        let open = || {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::empty())?;
            rustix::io::write(&file, TRIGGER.as_bytes())?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe; an OwnedFd keeps its descriptor open as asked"
            )]
            AsyncFd::with_interest(file, Interest::PRIORITY)
        };
        Self {
            group: group.clone(),
            trigger: open().ok(),
        }
    }

    /// Returns when the VM has stood still and its memory is used up; never where the kernel does not tell.
    pub async fn exhausted(&self) {
        let Some(trigger) = &self.trigger else {
            return std::future::pending().await;
        };
        loop {
            match trigger.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return std::future::pending().await,
            }
            if self.group.is_used_up() {
                return;
            }
        }
    }
}

impl Cgroup {
    /// Watches the group's memory.
    #[must_use]
    pub fn memory_pressure(&self) -> MemoryPressure {
        MemoryPressure::watch(self)
    }

    fn is_used_up(&self) -> bool {
        match (self.accounting(), self.file_cache(), self.memory_limit()) {
            (Ok(now), Ok(files), Ok(limit)) => {
                now.memory_bytes.saturating_sub(files) >= limit / 100 * USED_PERCENT
            }
            _ => false,
        }
    }

    /// Bytes of the page cache of files.
    fn file_cache(&self) -> Result<u64, CgroupError> {
        let stat = file::read(&self.memory_folder().join("memory.stat"))?;
        let fields = stat.lines().filter_map(|line| line.split_once(' '));
        let files = fields.filter(|(name, _)| matches!(*name, "active_file" | "inactive_file"));
        Ok(files
            .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
            .sum())
    }

    /// Kills the process of the group that holds the most memory, `spared` excepted. Returns whether there was one.
    ///
    /// # Errors
    /// [`CgroupError::File`] when the group is gone.
    pub fn kill_largest(&self, spared: i32) -> Result<bool, CgroupError> {
        let members = file::read(&self.killer().join("cgroup.procs"))?;
        let candidates = members.lines().filter_map(|line| line.parse::<i32>().ok());
        let largest = candidates
            .filter(|&pid| pid != spared)
            .max_by_key(|&pid| instavm_linux::process::resident_pages(pid).unwrap_or(0));
        Ok(largest.is_some_and(|pid| self.kill_member(pid)))
    }

    /// Kills a process if it is still one of the group's: by then its id may be another's.
    fn kill_member(&self, pid: i32) -> bool {
        let Some(process) = Pid::from_raw(pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            return false;
        };
        let ours = file::read(&self.killer().join("cgroup.procs"))
            .is_ok_and(|members| members.lines().any(|line| line.parse() == Ok(pid)));
        ours && rustix::process::pidfd_send_signal(&process, Signal::KILL).is_ok()
    }
}
