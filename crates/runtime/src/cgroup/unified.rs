//! One unified hierarchy with the controllers memory, cpu and pids.
//!
//! Files and formats: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use super::{Accounting, CgroupError, Limits, file};
use instavm_linux::mount::MountPoint;
use std::path::{Path, PathBuf};

/// The period over which processor time is limited, in microseconds.
const PERIOD_MICROS: u64 = 100_000;

#[derive(Clone, Debug)]
pub(super) struct Unified {
    root: PathBuf,
}

impl Unified {
    /// The hierarchy, when it has every controller that limits need.
    pub(super) fn detect(points: &[MountPoint]) -> Option<Self> {
        let point = points.iter().find(|point| point.kind == "cgroup2")?;
        let controllers = file::read(&point.target.join("cgroup.controllers")).ok()?;
        let has = |name| controllers.split_whitespace().any(|c| c == name);
        (has("memory") && has("cpu") && has("pids")).then(|| Self {
            root: point.target.clone(),
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Hands the controllers down to the instance's folder and from there to its groups.
    pub(super) fn prepare(&self, instance: &str) -> Result<(), CgroupError> {
        let folder = self.root.join(instance);
        file::make(&folder)?;
        let controllers = "+memory +cpu +pids";
        if file::write(&self.root.join("cgroup.subtree_control"), controllers).is_err() {
            // In a container the root may hold processes, and a group with processes hands nothing down.
            self.clear_root()?;
            file::write(&self.root.join("cgroup.subtree_control"), controllers)?;
        }
        file::write(&folder.join("cgroup.subtree_control"), controllers)
    }

    fn clear_root(&self) -> Result<(), CgroupError> {
        let shelter = self.root.join("instavm-host");
        file::make(&shelter)?;
        for pid in file::read(&self.root.join("cgroup.procs"))?.split_whitespace() {
            // One that has ended meanwhile cannot be moved and need not be.
            let _ = file::write(&shelter.join("cgroup.procs"), pid);
        }
        Ok(())
    }

    pub(super) fn limit(&self, path: &str, limits: &Limits) -> Result<(), CgroupError> {
        let folder = self.root.join(path);
        let quota = u64::from(limits.vcpu_count) * PERIOD_MICROS;
        limit_memory(&folder, limits.memory_bytes)?;
        file::write(&folder.join("cpu.max"), &format!("{quota} {PERIOD_MICROS}"))?;
        file::write(&folder.join("pids.max"), &limits.pids.to_string())?;
        let swap = folder.join("memory.swap.max");
        if swap.exists() {
            file::write(&swap, "0")
        } else {
            Ok(())
        }
    }

    pub(super) fn memory_folder(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(super) fn memory_limit(&self, path: &str) -> Result<u64, CgroupError> {
        file::read_number(&self.root.join(path).join("memory.max"))
    }

    pub(super) fn accounting(&self, path: &str) -> Result<Accounting, CgroupError> {
        let folder = self.root.join(path);
        let stat = file::read(&folder.join("cpu.stat"))?;
        let cpu_micros = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
            .unwrap_or(0);
        let memory_bytes = file::read_number(&folder.join("memory.current"))?;
        // Kernels before 5.19 do not keep the peak.
        let peak = file::read_number(&folder.join("memory.peak")).unwrap_or(memory_bytes);
        Ok(Accounting {
            cpu_micros,
            memory_bytes,
            memory_peak_bytes: peak,
        })
    }
}

/// A limit below what is in use kills, in this hierarchy. So what can be taken back is taken back first, and a limit that
/// is still too low is refused as in the older ones.
fn limit_memory(folder: &Path, bytes: u64) -> Result<(), CgroupError> {
    let limit = folder.join("memory.max");
    let in_use = || file::read_number(&folder.join("memory.current"));
    if in_use()? > bytes {
        let high = folder.join("memory.high");
        file::write(&high, &bytes.to_string())?;
        let left = in_use();
        file::write(&high, "max")?;
        if left? > bytes {
            let busy = std::io::ErrorKind::ResourceBusy.into();
            return Err(file::error("write", &limit)(busy));
        }
    }
    file::write(&limit, &bytes.to_string())
}
