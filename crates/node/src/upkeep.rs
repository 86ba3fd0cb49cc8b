//! What is done for the disks behind: they are read and compared with their checksums now and then; where nobody
//! enforces their limits (plain folders), they are measured and VMs that are over are ended; images from registries that
//! nobody uses any more are removed. The firewall is put right when somebody has changed it.

use crate::machine::chain;
use crate::node::Inner;
use crate::record::write_json;
use crate::vm::{Vm, micros_of, time_of};
use instavm_node_api::DiskScrub;
use instavm_runtime::disk::ScrubReport;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

/// Where the last scrub is remembered across restarts.
const FILE: &str = "scrub.json";
/// The pause before a scrub that failed is tried again, and the least between two.
const SCRUB_AGAIN: Duration = Duration::from_secs(3600);
/// Between two measurements of disks without enforced limits.
const MEASURING: Duration = Duration::from_secs(10);
/// Between two looks at what registries' images take.
const PRUNING: Duration = Duration::from_secs(3600);

impl Inner {
    /// Starts what the configuration asks for; it ends with the node.
    pub(crate) fn start_upkeep(self: &Arc<Self>) {
        let remembered = std::fs::read(self.scrub_file())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        self.note_scrub(remembered);
        if let Some(every) = self.workshop.config.scrub_every {
            self.upkeep(self.clone().scrub_every(every));
        }
        if self.workshop.disks.quota() == "soft" {
            self.upkeep(self.clone().keep_limits());
        }
        self.upkeep(self.clone().prune_images());
        self.upkeep(self.clone().hand_on_refusals());
        self.upkeep(self.clone().keep_firewall());
    }

    fn upkeep(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let _ = stop.run_until_cancelled(task).await;
        });
    }

    /// What the last scrub found.
    pub(crate) fn last_scrub(&self) -> Option<DiskScrub> {
        *self.scrub.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_scrub(&self, scrub: Option<DiskScrub>) {
        *self.scrub.write().unwrap_or_else(PoisonError::into_inner) = scrub;
    }

    fn scrub_file(&self) -> PathBuf {
        self.workshop.config.data_dir.join(FILE)
    }

    async fn scrub_every(self: Arc<Self>, every: Duration) {
        loop {
            let due = self.last_scrub().map_or(SystemTime::now(), |last| {
                time_of(last.finished_micros) + every
            });
            let left = due.duration_since(SystemTime::now()).unwrap_or_default();
            // The clock may be set meanwhile.
            if !left.is_zero() {
                tokio::time::sleep(left.min(SCRUB_AGAIN)).await;
                continue;
            }
            let disks = self.workshop.disks.clone();
            match tokio::task::spawn_blocking(move || disks.scrub()).await {
                Ok(Ok(report)) => self.scrubbed(&report),
                Ok(Err(error)) => {
                    tracing::error!(error = %chain(&error), "the disks cannot be scrubbed");
                    tokio::time::sleep(SCRUB_AGAIN).await;
                }
                // The runtime goes down.
                Err(_) => return,
            }
        }
    }

    fn scrubbed(&self, report: &ScrubReport) {
        let errors =
            report.read_errors + report.checksum_errors + report.tree_errors + report.super_errors;
        if report.is_clean() {
            tracing::info!(
                bytes = report.bytes,
                verified = report.verified,
                "the disks are whole"
            );
        } else {
            tracing::error!(?report, "the disks are damaged: data may be lost");
        }
        let scrub = DiskScrub {
            finished_micros: micros_of(SystemTime::now()),
            bytes: report.bytes,
            errors,
        };
        if let Err(error) = write_json(&self.scrub_file(), &scrub) {
            tracing::warn!(error = %chain(&error), "when the disks were scrubbed cannot be remembered");
        }
        self.note_scrub(Some(scrub));
    }

    async fn keep_limits(self: Arc<Self>) {
        loop {
            tokio::time::sleep(MEASURING).await;
            for vm in self.vms() {
                if let Some(reason) = self.over_limit(&vm).await {
                    tracing::warn!(vm = %vm.id, reason, "a VM is ended");
                    vm.fail().await;
                }
            }
        }
    }

    /// Why a VM cannot go on, when its disk or a volume that it writes holds more than it may.
    async fn over_limit(&self, vm: &Vm) -> Option<String> {
        let (disks, disk) = (self.workshop.disks.clone(), vm.machine.clone());
        let (limit, mounts) = vm
            .book
            .look(|active| (active.spec.disk_bytes, active.spec.mounts.clone()));
        let measure = move || {
            let bytes = disks.disk_bytes(&disk).ok()?;
            if bytes > limit {
                return Some(format!("its disk holds {bytes} bytes and may hold {limit}"));
            }
            let written = mounts
                .iter()
                .filter(|mount| !mount.read_only && mount.checkpoint.is_none());
            for mount in written {
                let volume = &mount.volume.0;
                let quota = disks.soft_quota(volume).ok()??;
                let (_, charged) = disks.volume_usage(volume).ok()?;
                if charged > quota {
                    return Some(format!(
                        "the volume {volume}, which it writes, holds {charged} bytes and may hold {quota}"
                    ));
                }
            }
            None
        };
        tokio::task::spawn_blocking(measure).await.ok()?
    }

    /// Removes what was pulled from registries and has not been used for long.
    async fn prune_images(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PRUNING).await;
            let (node, image) = (self.clone(), self.workshop.image.clone());
            let prune = move || {
                let ours = |key: &str| image.file_name().is_some_and(|name| name == key);
                node.oci.prune(&node.workshop.disks, ours)
            };
            match tokio::task::spawn_blocking(prune).await {
                Ok(Ok(pruned)) => tracing::debug!(?pruned, "images were looked through"),
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "images cannot be looked through")
                }
                // The runtime goes down.
                Err(_) => return,
            }
        }
    }
}
