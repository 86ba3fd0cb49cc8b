//! Standing still: every process of a VM stops where it is, and goes on later as if nothing had been.
//!
//! The unified hierarchy does it, with or without controllers. Files and formats: the kernel's
//! `Documentation/admin-guide/cgroup-v2.rst`.

use super::{Cgroup, CgroupError, file};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long processes may take to stand still. Each does at its next way out of the kernel; one that waits in there for
/// something that does not come (a dead file system of the VM's own) would hold up everybody.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a change may go unnoticed where the kernel does not tell of it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What the file of events holds at most; it has a few short lines.
const EVENTS: usize = 256;

/// A VM that stands still. Dropping it lets the VM go on.
#[derive(Debug)]
pub struct Frozen {
    group: Cgroup,
    since: Instant,
}

impl Frozen {
    /// When it began to stand still.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Lets the VM go on; gives how long it stood still.
    ///
    /// # Errors
    /// [`CgroupError::File`] when the group is gone.
    pub fn thaw(self) -> Result<Duration, CgroupError> {
        self.group.thaw()?;
        Ok(self.since.elapsed())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // A group that is gone has nobody in it who could stand still.
        let _ = self.group.thaw();
    }
}

impl Cgroup {
    /// Makes every process of the group stand still and returns when all do. Blocks, for a millisecond as a rule.
    ///
    /// # Errors
    /// [`CgroupError::Restless`] when one does not within two seconds; [`CgroupError::File`] when the group is gone. All
    /// go on then.
    pub fn freeze(&self) -> Result<Frozen, CgroupError> {
        let folder = self.killer();
        // Made first: whatever fails from here on, the group is thawed.
        let frozen = Frozen {
            group: self.clone(),
            since: Instant::now(),
        };
        file::write(&folder.join("cgroup.freeze"), "1")?;
        if wait_until_frozen(&folder.join("cgroup.events"), frozen.since + PATIENCE)? {
            Ok(frozen)
        } else {
            Err(CgroupError::Restless(folder))
        }
    }

    /// Lets every process of the group go on; one that does is no error. A node does this for every VM that it adopts:
    /// its predecessor may have died while a VM stood still.
    ///
    /// # Errors
    /// [`CgroupError::File`] when the group is gone.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        file::write(&self.killer().join("cgroup.freeze"), "0")
    }
}

/// The kernel wakes whoever polls the file of events when one of them happens.
fn wait_until_frozen(path: &Path, deadline: Instant) -> Result<bool, CgroupError> {
    let failed = file::error("read", path);
    let wait = || {
        let events = File::open(path)?;
        let mut text = [0; EVENTS];
        loop {
            let length = events.read_at(&mut text, 0)?;
            if text[..length]
                .split(|&byte| byte == b'\n')
                .any(|line| line == b"frozen 1")
            {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = left.min(LOOK_AGAIN);
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: left.subsec_nanos().into(),
            };
            match rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    };
    wait().map_err(failed)
}
