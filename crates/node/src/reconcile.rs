//! Records, disks and the kernel's objects, brought together after a start and compared on demand.

use crate::egress;
use crate::instance::Instance;
use crate::machine::{Assembled, MachineError, Workshop, chain};
use crate::record::{Active, Phase, Record};
use instavm_node_api::{CheckpointId, Mount, SnapshotId, VmId, VolumeId};
use instavm_runtime::cgroup::Cgroups;
use instavm_runtime::disk::{DiskError, DiskPool};
use std::collections::BTreeSet;
use std::path::Path;

/// What a start found alive.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    pub(crate) active: Vec<Assembled>,
    pub(crate) pooled: Vec<Assembled>,
}

/// Adopts the machines that live and are whole, and removes everything else that carries the instance's name.
pub(crate) async fn adopt(workshop: &Workshop) -> Result<Adopted, MachineError> {
    let mut adopted = Adopted::default();
    for machine in Workshop::folders(&workshop.config.data_dir) {
        let record = Record::read(&workshop.folder(&machine)).filter(|r| r.machine == machine);
        let index = record.as_ref().map(|record| record.index);
        match adopt_one(workshop, record).await {
            Some(machine) if matches!(machine.record.phase, Phase::Pooled) => {
                adopted.pooled.push(machine);
            }
            Some(machine) => adopted.active.push(machine),
            None => {
                tracing::info!(machine, "removing a machine that is not whole");
                workshop.dismantle(&machine, index).await?;
            }
        }
    }
    remove_strays(workshop, &adopted).await?;
    Ok(adopted)
}

async fn adopt_one(workshop: &Workshop, record: Option<Record>) -> Option<Assembled> {
    let record = record?;
    let keep = match &record.phase {
        Phase::Assembling | Phase::Building | Phase::Ending => return None,
        Phase::Keeping(snapshot) => Some(snapshot.clone()),
        Phase::Pooled => None,
        Phase::Active(active) => active.spec.keep_disk_as.clone(),
    };
    let name = record.machine.clone();
    if matches!(record.phase, Phase::Pooled | Phase::Active(_)) {
        let adopted = workshop.adopt(record).await;
        if adopted.is_some() {
            return adopted;
        }
    }
    if let Some(snapshot) = keep
        && let Err(error) = keep_left_disk(workshop, &name, &snapshot).await
    {
        tracing::error!(machine = name, %snapshot, error = %chain(&error), "cannot keep the disk of a VM");
    }
    None
}

/// Keeps the disk of a VM that ended without an undertaker.
async fn keep_left_disk(
    workshop: &Workshop,
    machine: &str,
    snapshot: &SnapshotId,
) -> Result<(), MachineError> {
    workshop.cgroups.group(machine).remove().await?;
    Ok(workshop.keep_disk(machine, snapshot).await?)
}

/// What has the instance's name but no machine.
async fn remove_strays(workshop: &Workshop, adopted: &Adopted) -> Result<(), MachineError> {
    let all = || adopted.active.iter().chain(&adopted.pooled);
    let names: BTreeSet<&str> = all()
        .map(|machine| machine.record.machine.as_str())
        .collect();
    let indexes: BTreeSet<u16> = all().map(|machine| machine.record.index).collect();
    for name in workshop.cgroups.names() {
        if !names.contains(name.as_str()) {
            workshop.cgroups.group(&name).remove().await?;
        }
    }
    for index in workshop.network.links().await? {
        if !indexes.contains(&index) {
            workshop.network.detach(index);
        }
    }
    for disk in workshop.disks.names()? {
        if !names.contains(disk.as_str()) {
            workshop.disks.delete(&disk)?;
        }
    }
    Ok(())
}

/// Everything that carries the instance's name, as it is now.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Machines that have a folder with a record.
    recorded: Vec<Record>,
    /// Folders without one.
    blank: Vec<String>,
    cgroups: Vec<String>,
    disks: Vec<String>,
    volumes: Vec<(String, Vec<String>)>,
    links: Vec<u16>,
}

impl Inventory {
    pub(crate) fn take(
        data_dir: &Path,
        cgroups: Option<&Cgroups>,
        links: Vec<u16>,
    ) -> Result<Self, DiskError> {
        let cgroups = cgroups.map(Cgroups::names).unwrap_or_default();
        let mut inventory = Self {
            cgroups,
            disks: DiskPool::disk_names(data_dir)?,
            volumes: DiskPool::volume_names(data_dir)?,
            links,
            ..Self::default()
        };
        for name in Workshop::folders(data_dir) {
            match Record::read(&Workshop::folder_of_all(data_dir).join(&name)) {
                Some(record) => inventory.recorded.push(record),
                None => inventory.blank.push(name),
            }
        }
        Ok(inventory)
    }

    /// One line for each thing that does not fit. Machines that are being made or ended are under a recorded intent:
    /// what they have or lack is no mismatch.
    pub(crate) fn mismatches(&self) -> Vec<String> {
        let has = |list: &[String], name: &str| list.iter().any(|n| n == name);
        let known = |name: &str| self.recorded.iter().any(|record| record.machine == name);
        let mut lines: Vec<String> = Vec::new();
        lines.extend(
            self.blank
                .iter()
                .map(|name| format!("machine {name}: a folder without a record")),
        );
        for name in self.cgroups.iter().filter(|name| !known(name)) {
            lines.push(format!("cgroup {name}: no machine has it"));
        }
        for name in self.disks.iter().filter(|name| !known(name)) {
            lines.push(format!("disk {name}: no machine has it"));
        }
        for index in &self.links {
            if !self.recorded.iter().any(|record| record.index == *index) {
                lines.push(format!("link {index}: no machine has it"));
            }
        }
        let settled = |r: &&Record| matches!(r.phase, Phase::Pooled | Phase::Active(_));
        for record in self.recorded.iter().filter(settled) {
            let name = &record.machine;
            if !lives(record) {
                lines.push(format!("machine {name}: its first process is gone"));
            } else if !has_network_of_its_own(record) {
                lines.push(format!(
                    "machine {name}: it has no network namespace of its own"
                ));
            }
            if !has(&self.cgroups, name) {
                lines.push(format!("machine {name}: its cgroup is missing"));
            }
            if !has(&self.disks, name) {
                lines.push(format!("machine {name}: its disk is missing"));
            }
            if !self.links.contains(&record.index) {
                lines.push(format!("machine {name}: its link is missing"));
            }
            if let Phase::Active(active) = &record.phase {
                let missing = active.spec.mounts.iter().filter(|mount| !self.keeps(mount));
                lines.extend(missing.map(|mount| {
                    let (vm, path, volume) = (&active.spec.id, &mount.path, &mount.volume);
                    format!("VM {vm}: what is mounted at {path} (of {volume}) is missing")
                }));
            }
        }
        lines
    }

    /// Is what is mounted there?
    fn keeps(&self, mount: &Mount) -> bool {
        let of_volume = |(volume, _): &&(String, Vec<String>)| *volume == mount.volume.0;
        let found = self.volumes.iter().find(of_volume);
        found.is_some_and(|(_, checkpoints)| match &mount.checkpoint {
            Some(checkpoint) => checkpoints.contains(&checkpoint.0),
            None => true,
        })
    }

    /// The ids of the VMs that users have.
    pub(crate) fn vms(&self) -> Vec<VmId> {
        self.active().map(|active| active.spec.id.clone()).collect()
    }

    /// What is mounted in them.
    fn mounts(&self) -> Vec<(VmId, Mount)> {
        let of = |active: &Active| {
            let vm = active.spec.id.clone();
            let mounts = active.spec.mounts.clone();
            mounts.into_iter().map(move |mount| (vm.clone(), mount))
        };
        self.active().flat_map(of).collect()
    }

    fn active(&self) -> impl Iterator<Item = &Active> {
        self.recorded
            .iter()
            .filter_map(|record| match &record.phase {
                Phase::Active(active) => Some(active),
                _ => None,
            })
    }
}

fn lives(record: &Record) -> bool {
    let Some(process) = &record.process else {
        return false;
    };
    instavm_linux::process::stat(process.pid)
        .is_some_and(|stat| stat.start_ticks == process.start_ticks && stat.state != 'Z')
}

/// Whether a machine's first process is in another network namespace than this one.
fn has_network_of_its_own(record: &Record) -> bool {
    let Some(process) = &record.process else {
        return false;
    };
    let theirs = std::fs::read_link(format!("/proc/{}/ns/net", process.pid));
    let ours = std::fs::read_link("/proc/self/ns/net");
    match (theirs, ours) {
        (Ok(theirs), Ok(ours)) => theirs != ours,
        // It has just ended.
        _ => true,
    }
}

/// What [`check_offline`] found.
#[derive(Debug)]
pub struct OfflineCheck {
    /// One line for each mismatch.
    pub mismatches: Vec<String>,
    /// The VMs that users have, to be compared with the rows.
    pub vms: Vec<VmId>,
    /// What is mounted in them.
    pub mounts: Vec<(VmId, Mount)>,
    /// The snapshots that are kept; `None` while the pool of disks is not mounted.
    pub snapshots: Option<Vec<SnapshotId>>,
    /// The volumes that are kept, with their checkpoints; `None` while the pool of disks is not mounted.
    pub volumes: Option<Vec<(VolumeId, Vec<CheckpointId>)>>,
}

/// Compares the records, disks and kernel objects of a data directory while no daemon runs.
///
/// # Errors
/// [`MachineError`] when something cannot be looked at.
pub async fn check_offline(data_dir: &Path) -> Result<OfflineCheck, MachineError> {
    let Some(instance) = Instance::find(data_dir) else {
        // No slot on this boot: there can be no kernel objects, and the next start removes what the last boot left.
        return Ok(OfflineCheck {
            mismatches: Vec::new(),
            vms: Vec::new(),
            mounts: Vec::new(),
            snapshots: None,
            volumes: None,
        });
    };
    let (mut links, mut misfits) = (Vec::new(), Vec::new());
    if let Some(slot) = instance.network_slot() {
        links = instavm_network::state(slot).await?.links;
        let policies = egress::settled(data_dir);
        if !policies.is_empty() {
            misfits = instavm_network::misfits(slot, policies).await?;
        }
    }
    let cgroups = Cgroups::find(&instance.name());
    let inventory = Inventory::take(data_dir, cgroups.as_ref(), links)?;
    let there = DiskPool::path_in(data_dir).join("snapshots").is_dir();
    let snapshots = DiskPool::snapshot_names(data_dir)?;
    let typed = |(volume, checkpoints): &(String, Vec<String>)| {
        let checkpoints = checkpoints.iter().cloned().map(CheckpointId).collect();
        (VolumeId(volume.clone()), checkpoints)
    };
    let mut mismatches = inventory.mismatches();
    mismatches.extend(misfits);
    Ok(OfflineCheck {
        mismatches,
        vms: inventory.vms(),
        mounts: inventory.mounts(),
        snapshots: there.then(|| snapshots.into_iter().map(SnapshotId).collect()),
        volumes: there.then(|| inventory.volumes.iter().map(typed).collect()),
    })
}

/// Ends every VM of a data directory and removes every kernel object and file of the node in it. May be repeated; works
/// after a daemon that died anywhere. No daemon may run on it.
///
/// # Errors
/// [`MachineError`] with what could not be removed.
pub async fn destroy(data_dir: &Path) -> Result<(), MachineError> {
    if let Some(instance) = Instance::find(data_dir) {
        if let Some(cgroups) = Cgroups::find(&instance.name()) {
            for name in cgroups.names() {
                cgroups.group(&name).remove().await?;
            }
            cgroups.remove_instance()?;
        }
        if let Some(slot) = instance.network_slot() {
            instavm_network::destroy(slot).await?;
        }
        DiskPool::destroy(data_dir)?;
        if let Err(error) = instance.release() {
            tracing::warn!(error = %chain(&error), "the instance's slot stays claimed");
        }
    } else {
        DiskPool::destroy(data_dir)?;
    }
    Ok(())
}
