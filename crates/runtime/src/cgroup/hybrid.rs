//! v1 controllers for limits, beside a unified hierarchy without controllers that kills.
//!
//! Files and formats: the kernel's `Documentation/admin-guide/cgroup-v1/`.

use super::{Accounting, CgroupError, Limits, file};
use instavm_linux::mount::MountPoint;
use std::path::{Path, PathBuf};

/// The period over which processor time is limited, in microseconds.
const PERIOD_MICROS: u64 = 100_000;

#[derive(Clone, Debug)]
pub(super) struct Hybrid {
    memory: PathBuf,
    cpu: PathBuf,
    cpuacct: PathBuf,
    pids: PathBuf,
    unified: PathBuf,
}

impl Hybrid {
    pub(super) fn detect(points: &[MountPoint]) -> Result<Self, CgroupError> {
        let controller = |name: &str| {
            let of_controller = |point: &&MountPoint| {
                let folder = point
                    .target
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or("");
                point.kind == "cgroup" && folder.split(',').any(|part| part == name)
            };
            points
                .iter()
                .find(of_controller)
                .map(|point| point.target.clone())
                .ok_or_else(|| {
                    CgroupError::Unusable(format!("the cgroup controller {name} is not mounted"))
                })
        };
        let unified = points
            .iter()
            .find(|point| point.kind == "cgroup2")
            .map(|point| point.target.clone())
            .ok_or_else(|| CgroupError::Unusable("cgroup2 is not mounted".to_owned()))?;
        Ok(Self {
            memory: controller("memory")?,
            cpu: controller("cpu")?,
            cpuacct: controller("cpuacct")?,
            pids: controller("pids")?,
            unified,
        })
    }

    pub(super) fn prepare(&self, instance: &str) -> Result<(), CgroupError> {
        self.roots()
            .iter()
            .try_for_each(|root| file::make(&root.join(instance)))
    }

    /// Each hierarchy once: `cpu` and `cpuacct` are often one.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        let mut roots = vec![self.memory.clone(), self.cpu.clone(), self.pids.clone()];
        roots.push(self.unified.clone());
        let same =
            |a: &Path, b: &Path| std::fs::canonicalize(a).ok() == std::fs::canonicalize(b).ok();
        if !same(&self.cpu, &self.cpuacct) {
            roots.push(self.cpuacct.clone());
        }
        roots
    }

    pub(super) fn killer(&self) -> &Path {
        &self.unified
    }

    pub(super) fn limit(&self, path: &str, limits: &Limits) -> Result<(), CgroupError> {
        let quota = u64::from(limits.vcpu_count) * PERIOD_MICROS;
        let cpu = self.cpu.join(path);
        self.limit_memory(&self.memory.join(path), limits.memory_bytes)?;
        file::write(&cpu.join("cpu.cfs_period_us"), &PERIOD_MICROS.to_string())?;
        file::write(&cpu.join("cpu.cfs_quota_us"), &quota.to_string())?;
        file::write(
            &self.pids.join(path).join("pids.max"),
            &limits.pids.to_string(),
        )
    }

    /// The limit with swap may never be below the one without: which to move first depends on the direction.
    fn limit_memory(&self, folder: &Path, bytes: u64) -> Result<(), CgroupError> {
        let plain = folder.join("memory.limit_in_bytes");
        let with_swap = folder.join("memory.memsw.limit_in_bytes");
        let text = bytes.to_string();
        if !with_swap.exists() {
            return file::write(&plain, &text);
        }
        let rises = file::read_number(&plain)? < bytes;
        let order = if rises {
            [&with_swap, &plain]
        } else {
            [&plain, &with_swap]
        };
        order
            .into_iter()
            .try_for_each(|path| file::write(path, &text))
    }

    pub(super) fn memory_folder(&self, path: &str) -> PathBuf {
        self.memory.join(path)
    }

    pub(super) fn memory_limit(&self, path: &str) -> Result<u64, CgroupError> {
        file::read_number(&self.memory.join(path).join("memory.limit_in_bytes"))
    }

    pub(super) fn accounting(&self, path: &str) -> Result<Accounting, CgroupError> {
        let memory = self.memory.join(path);
        let nanos = file::read_number(&self.cpuacct.join(path).join("cpuacct.usage"))?;
        Ok(Accounting {
            cpu_micros: nanos / 1000,
            memory_bytes: file::read_number(&memory.join("memory.usage_in_bytes"))?,
            memory_peak_bytes: file::read_number(&memory.join("memory.max_usage_in_bytes"))?,
        })
    }
}
