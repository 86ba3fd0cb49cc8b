//! Limits, accounting and the certain kill, by cgroups.
//!
//! Two layouts exist: one unified hierarchy (v2) that has the controllers, or several older ones (v1) beside a
//! unified one without controllers, which still kills and tells about processes (*hybrid*). Which one this host has
//! is found at start. Every group of an instance lies below one folder that carries the instance's name.

mod file;
mod freeze;
mod hybrid;
mod pressure;
mod unified;

pub use freeze::Frozen;
pub use pressure::MemoryPressure;

use crate::Probe;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What limits a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, page cache included.
    pub memory_bytes: u64,
    /// Processors, as processor time in real time.
    pub vcpu_count: u32,
    /// Processes and threads.
    pub pids: u32,
}

/// What a VM has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Processor time in microseconds.
    pub cpu_micros: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// The most memory that was in use at once, in bytes.
    pub memory_peak_bytes: u64,
}

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// This host's cgroups cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// A file of a group could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read`, `write`, `make` or `remove`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes of the group live on after they were killed.
    #[error("processes of the group {} survive their kill", .0.display())]
    Survivors(PathBuf),
    /// Processes of the group did not stand still in time; all go on.
    #[error("processes of the group {} do not stand still", .0.display())]
    Restless(PathBuf),
}

/// The groups of one instance.
#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Layout,
    /// Below the root of each hierarchy, for example `instavm7`.
    instance: String,
}

#[derive(Clone, Debug)]
enum Layout {
    Unified(unified::Unified),
    Hybrid(hybrid::Hybrid),
}

/// The group of one VM: a folder in each hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup {
    layout: Layout,
    /// Below the root of each hierarchy, for example `instavm7/m3f9`.
    path: String,
}

impl Cgroups {
    /// Finds out what this host has, and prepares the instance's folders.
    ///
    /// # Errors
    /// [`CgroupError::Unusable`] with what to do when limits cannot be kept on this host.
    pub fn open(instance: &str) -> Result<Self, CgroupError> {
        let layout = Layout::detect()?;
        let groups = Self {
            layout,
            instance: instance.to_owned(),
        };
        match &groups.layout {
            Layout::Unified(unified) => unified.prepare(instance)?,
            Layout::Hybrid(hybrid) => hybrid.prepare(instance)?,
        }
        Ok(groups)
    }

    /// The instance's groups as they are, without preparing anything; `None` where this host has no usable cgroups.
    pub fn find(instance: &str) -> Option<Self> {
        let layout = Layout::detect().ok()?;
        Some(Self {
            layout,
            instance: instance.to_owned(),
        })
    }

    /// Makes the group of a VM. One that is there already is taken as it is.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let group = self.group(name);
        for folder in group.folders() {
            file::make(&folder)?;
        }
        group.limit(limits)?;
        Ok(group)
    }

    /// The group of a VM that exists.
    pub fn group(&self, name: &str) -> Cgroup {
        Cgroup {
            layout: self.layout.clone(),
            path: format!("{}/{name}", self.instance),
        }
    }

    /// The names of all groups of the instance, in any hierarchy.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .layout
            .roots()
            .iter()
            .flat_map(|root| file::subfolders(&root.join(&self.instance)))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Removes the instance's own folders; its groups must be gone.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn remove_instance(&self) -> Result<(), CgroupError> {
        for root in self.layout.roots() {
            file::remove(&root.join(&self.instance))?;
        }
        Ok(())
    }

    /// What was found on this host.
    pub fn describe(&self) -> &'static str {
        match self.layout {
            Layout::Unified(_) => "one unified hierarchy (v2) with memory, cpu and pids",
            Layout::Hybrid(_) => "hybrid: limits by v1 controllers, kill by the unified hierarchy",
        }
    }
}

impl Layout {
    fn detect() -> Result<Self, CgroupError> {
        let points = instavm_linux::mount::mount_points().map_err(|source| CgroupError::File {
            action: "read",
            path: "/proc/self/mountinfo".into(),
            source,
        })?;
        if let Some(unified) = unified::Unified::detect(&points) {
            return Ok(Layout::Unified(unified));
        }
        hybrid::Hybrid::detect(&points).map(Layout::Hybrid)
    }

    /// The root folder of each hierarchy in use.
    fn roots(&self) -> Vec<PathBuf> {
        match self {
            Layout::Unified(unified) => vec![unified.root().to_owned()],
            Layout::Hybrid(hybrid) => hybrid.roots(),
        }
    }

    /// The root of the hierarchy that can kill.
    fn killer(&self) -> &Path {
        match self {
            Layout::Unified(unified) => unified.root(),
            Layout::Hybrid(hybrid) => hybrid.killer(),
        }
    }
}

impl Cgroup {
    /// Its folder in each hierarchy: a process joins the group by being written to `cgroup.procs` of each.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.layout
            .roots()
            .iter()
            .map(|root| root.join(&self.path))
            .collect()
    }

    /// Sets the limits, also of a VM that runs.
    ///
    /// # Errors
    /// [`CgroupError::File`]; `EBUSY` when more memory is in use than the new limit allows.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        match &self.layout {
            Layout::Unified(unified) => unified.limit(&self.path, limits),
            Layout::Hybrid(hybrid) => hybrid.limit(&self.path, limits),
        }
    }

    /// What the group has used.
    ///
    /// # Errors
    /// [`CgroupError::File`] when the group is gone.
    pub fn accounting(&self) -> Result<Accounting, CgroupError> {
        match &self.layout {
            Layout::Unified(unified) => unified.accounting(&self.path),
            Layout::Hybrid(hybrid) => hybrid.accounting(&self.path),
        }
    }

    /// Where its memory is counted.
    fn memory_folder(&self) -> PathBuf {
        match &self.layout {
            Layout::Unified(unified) => unified.memory_folder(&self.path),
            Layout::Hybrid(hybrid) => hybrid.memory_folder(&self.path),
        }
    }

    /// Its memory limit in bytes.
    fn memory_limit(&self) -> Result<u64, CgroupError> {
        match &self.layout {
            Layout::Unified(unified) => unified.memory_limit(&self.path),
            Layout::Hybrid(hybrid) => hybrid.memory_limit(&self.path),
        }
    }

    /// Kills every process of the group with one write; none can escape by forking. A group that is gone is no error.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        let folder = self.killer();
        if folder.exists() {
            file::write(&folder.join("cgroup.kill"), "1")
        } else {
            Ok(())
        }
    }

    /// Does any process of the group live (or wait to be reaped)?
    pub fn is_populated(&self) -> bool {
        let events = self.killer().join("cgroup.events");
        std::fs::read_to_string(events).is_ok_and(|text| text.contains("populated 1"))
    }

    /// Kills what is in the group, waits until it is gone, and removes the group.
    ///
    /// # Errors
    /// [`CgroupError::Survivors`] when processes live on for ten seconds (stuck in the kernel).
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let mut pause = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while waited < Duration::from_secs(10) {
            self.kill()?;
            let removed = || {
                self.folders()
                    .iter()
                    .try_for_each(|folder| file::remove(folder))
            };
            if !self.is_populated() && removed().is_ok() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Err(CgroupError::Survivors(self.killer()))
    }

    fn killer(&self) -> PathBuf {
        self.layout.killer().join(&self.path)
    }
}

/// The processes of the group that a process is in. Works for the groups of this room only: each has all the processes
/// of a VM.
pub(crate) fn members_with(pid: i32) -> io::Result<Vec<i32>> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let path = Path::new(path.ok_or(io::ErrorKind::NotFound)?);
    // In a container the path may begin further up than the hierarchy that is mounted here.
    let (Some(name), Some(instance)) = (path.file_name(), path.parent().and_then(Path::file_name))
    else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let layout = Layout::detect().map_err(io::Error::other)?;
    let members = layout
        .killer()
        .join(instance)
        .join(name)
        .join("cgroup.procs");
    let members = std::fs::read_to_string(members)?;
    Ok(members
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect())
}

/// What of cgroups works on this host.
pub fn probe() -> Probe {
    match Layout::detect() {
        Ok(layout) => {
            let found = Cgroups {
                layout,
                instance: String::new(),
            };
            Probe::works("cgroups", found.describe())
        }
        Err(error) => Probe::fails(
            "cgroups",
            error.to_string(),
            "mount cgroup2 with the controllers memory, cpu and pids (in a container: --privileged \
             --cgroupns=private, or bind /sys/fs/cgroup read-write)",
        ),
    }
}
