//! The end of VMs: everything in them is ended first, then their disk is kept where that was asked for, then others are
//! told, and what is left is removed behind.

use crate::book::Book;
use crate::fault;
use crate::machine::{Assembled, Workshop, chain};
use crate::node::Inner;
use crate::vm::Undertaker;
use async_trait::async_trait;
use instavm_node_api::{Ending, SnapshotId, VmId};
use instavm_runtime::disk::DiskError;
use std::io;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

/// The pauses between attempts to keep a disk: a pool that is full may have room soon.
const KEEP_AGAIN: &[Duration] = &[
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

fn failed(source: io::Error, path: PathBuf) -> DiskError {
    DiskError::Disk {
        action: "keep",
        path,
        source,
    }
}

impl Workshop {
    /// Keeps the disk of a machine in which nothing runs any more. One that is kept already is no error.
    pub(crate) async fn keep_disk(&self, machine: &str, id: &SnapshotId) -> Result<(), DiskError> {
        let mut pauses = KEEP_AGAIN.iter();
        loop {
            let (disks, name, snapshot) = (self.disks.clone(), machine.to_owned(), id.0.clone());
            let save = move || {
                if disks.snapshot_path(&snapshot).exists() {
                    return Ok(());
                }
                fault::at("keep the disk")
                    .map_err(|source| failed(source, disks.disk_path(&name)))?;
                disks.save(&name, &snapshot).map(drop)
            };
            let error = match tokio::task::spawn_blocking(save).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(panic) => failed(io::Error::other(panic), self.disks.disk_path(machine)),
            };
            let Some(pause) = pauses.next() else {
                return Err(error);
            };
            tracing::warn!(machine, error = %chain(&error), "a disk cannot be kept yet");
            tokio::time::sleep(*pause).await;
        }
    }
}

#[async_trait]
impl Undertaker for Inner {
    async fn end(&self, book: &Book, machine: &Assembled) {
        let name = &machine.record.machine;
        let (keep, written) = book.close();
        if let Err(error) = written {
            tracing::error!(machine = name, error = %chain(&error), "cannot record an end");
        }
        match machine.cgroup.kill() {
            Ok(()) => machine.process.ended().await,
            Err(error) => {
                tracing::error!(machine = name, error = %chain(&error), "cannot kill a VM");
            }
        }
        let Some(snapshot) = keep else { return };
        if let Err(error) = self.workshop.keep_disk(name, &snapshot).await {
            tracing::error!(machine = name, %snapshot, error = %chain(&error), "cannot keep the disk of a VM");
        }
        if let Err(error) = book.kept() {
            tracing::error!(machine = name, error = %chain(&error), "cannot record that a disk is kept");
        }
    }

    async fn bury(&self, id: &VmId, machine: Assembled, ending: Ending) {
        // Its mounts went with its last process.
        self.holds.release_all(id);
        self.vms
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        // Nobody may be listening.
        let _ = self.endings.send((id.clone(), ending));
        self.discard(machine);
    }
}

impl Inner {
    /// Removes a machine behind, a few at a time: deleting links and cgroups waits for the kernel's grace periods.
    pub(crate) fn discard(&self, machine: Assembled) {
        let (workshop, record) = (self.workshop.clone(), machine.record.clone());
        drop(machine);
        let burials = self.burials.clone();
        self.tracker.spawn(async move {
            let _place = burials.acquire().await;
            if let Err(error) = workshop.dismantle(&record.machine, Some(record.index)).await {
                // The record stays: the next start tries again, and `check` tells.
                tracing::error!(machine = record.machine, error = %chain(&error), "cannot remove a machine");
            }
        });
    }
}
