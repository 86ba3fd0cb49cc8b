//! Volumes: disks that outlive VMs, their checkpoints, and their mounts in VMs.

mod file;
mod hold;

pub(crate) use hold::Holds;

use crate::blocking::{blocking, disk_error, internal};
use crate::fault;
use crate::machine::{Assembled, chain};
use crate::node::{Inner, LocalNode};
use crate::record::Active;
use crate::snapshot::book_error;
use crate::vm::Vm;
use async_trait::async_trait;
use instavm_node_api::{
    ByteStream, CheckpointId, FileContent, FileErrorKind, Mount, NodeError, VmId, VolumeFile,
    VolumeId, VolumeUsage, Volumes,
};
use instavm_runtime::driver::{MountError, Mounted, Mounts};
use std::path::PathBuf;
use std::sync::Arc;

const MAKING: &str = "making a volume";
const LIMITING: &str = "changing the quota of a volume";
const DELETING: &str = "deleting a volume";
const MEASURING: &str = "measuring a volume";
const LISTING: &str = "listing volumes";
const KEEPING: &str = "making a checkpoint";
const DROPPING: &str = "deleting a checkpoint";
const MOUNTING: &str = "mounting a volume";
const UNMOUNTING: &str = "unmounting a volume";

impl Inner {
    /// Notes a mount and makes it, in a machine whose record says so or that a restart undoes.
    pub(crate) async fn mount_in(
        &self,
        vm: &VmId,
        mounts: &Mounts,
        mount: &Mount,
    ) -> Result<(), NodeError> {
        self.holds.take(vm, mount)?;
        let made = self.make_mount(mounts, mount).await;
        if made.is_err() {
            self.holds.release(vm, &mount.path);
        }
        made
    }

    /// What is mounted, on the host.
    pub(crate) fn source_of(&self, mount: &Mount) -> PathBuf {
        let disks = &self.workshop.disks;
        match &mount.checkpoint {
            Some(checkpoint) => disks.checkpoint_path(&mount.volume.0, &checkpoint.0),
            None => disks.volume_path(&mount.volume.0),
        }
    }

    async fn make_mount(&self, mounts: &Mounts, mount: &Mount) -> Result<(), NodeError> {
        let source = self.source_of(mount);
        let (mounts, mount) = (mounts.clone(), mount.clone());
        blocking(MOUNTING, move || {
            if !source.is_dir() {
                return Err(NodeError::NoSuchVolume);
            }
            fault::at("mount").map_err(|error| internal(MOUNTING, error))?;
            let read_only = mount.read_only || mount.checkpoint.is_some();
            mounts
                .mount(&source, &mount.path, read_only)
                .map_err(|error| mount_error(MOUNTING, &mount.path, error))
        })
        .await
    }

    async fn mount_volume(&self, vm: &Vm, mount: Mount) -> Result<(), NodeError> {
        let _change = vm.changing.lock().await;
        self.holds.take(&vm.id, &mount)?;
        // On record before it is there: a restart drops what it does not find.
        let noted = vm
            .book
            .change(|active| active.spec.mounts.push(mount.clone()))
            .map_err(|error| book_error(MOUNTING, error));
        let made = match noted {
            Ok(()) => self.make_mount(&vm.mounts, &mount).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.note_unmounted(vm, &mount.path);
        }
        made
    }

    async fn unmount_volume(&self, vm: &Vm, path: String) -> Result<(), NodeError> {
        let _change = vm.changing.lock().await;
        let at_path = |mount: &&Mount| mount.path == path;
        let mount = vm
            .book
            .look(|active| active.spec.mounts.iter().find(at_path).cloned());
        let Some(mount) = mount else { return Ok(()) };
        let (mounts, source, target) = (vm.mounts.clone(), self.source_of(&mount), path.clone());
        blocking(UNMOUNTING, move || {
            mounts
                .unmount(&source, &target)
                .map_err(|error| mount_error(UNMOUNTING, &target, error))
        })
        .await?;
        self.note_unmounted(vm, &path);
        Ok(())
    }

    /// Takes over the mounts of a VM that an earlier daemon has made: those on record that are there. One that is not
    /// was never made, or taken out by the VM's root; one that is not on record was being taken out.
    pub(crate) fn adopt_mounts(&self, machine: &Assembled, active: &mut Active) {
        let mounts = machine.process.mounts();
        let found = match mounts.list() {
            Ok(found) => found,
            Err(MountError::TooOld) => Vec::new(),
            Err(error) => {
                // What is on record stays so: what a VM may have is not deleted under it.
                tracing::warn!(vm = %active.spec.id, error = %chain(&error), "the mounts of a VM cannot be listed");
                let id = active.spec.id.clone();
                let recorded = active.spec.mounts.iter();
                return recorded.for_each(|mount| self.holds.adopt(&id, mount));
            }
        };
        let is_of = |mounted: &Mounted, mount: &Mount| mounted.root.ends_with(tail_of(mount));
        let id = active.spec.id.clone();
        active
            .spec
            .mounts
            .retain(|mount| found.iter().any(|mounted| is_of(mounted, mount)));
        for mount in &active.spec.mounts {
            self.holds.adopt(&id, mount);
        }
        let recorded = &active.spec.mounts;
        for mounted in &found {
            if !recorded.iter().any(|mount| is_of(mounted, mount)) {
                tracing::warn!(vm = %id, target = %mounted.target.display(), "a mount that is not on record");
            }
        }
    }

    fn note_unmounted(&self, vm: &Vm, path: &str) {
        let noted = vm
            .book
            .change(|active| active.spec.mounts.retain(|mount| mount.path != path));
        if let Err(error) = noted
            && !vm.over.is_cancelled()
        {
            // A restart finds that it is not there.
            tracing::warn!(vm = %vm.id, error = %chain(&error), "an unmount cannot be recorded");
        }
        self.holds.release(&vm.id, path);
    }

    /// Runs a change of a VM's mounts to its end, whatever becomes of the caller.
    async fn to_its_end<F>(&self, operation: &'static str, change: F) -> Result<(), NodeError>
    where
        F: Future<Output = Result<(), NodeError>> + Send + 'static,
    {
        self.tracker
            .spawn(change)
            .await
            .unwrap_or_else(|panic| Err(internal(operation, panic)))
    }
}

/// The end of the path of what is mounted, which tells it from everything else in the pool.
fn tail_of(mount: &Mount) -> PathBuf {
    let volume = &mount.volume.0;
    match &mount.checkpoint {
        Some(checkpoint) => ["checkpoints", volume, &checkpoint.0].iter().collect(),
        None => ["volumes", volume].iter().collect(),
    }
}

fn mount_error(operation: &'static str, path: &str, error: MountError) -> NodeError {
    let unfit = |kind, message| NodeError::File { kind, message };
    match error {
        MountError::Ended => NodeError::VmEnded,
        MountError::Busy(_) => NodeError::Busy {
            reason: format!("{path} is {error}"),
        },
        MountError::TooOld | MountError::Taken(_) => NodeError::Busy {
            reason: error.to_string(),
        },
        MountError::Unsuitable(message) => unfit(FileErrorKind::Unsuitable, message),
        MountError::NoSpace => unfit(FileErrorKind::NoSpace, error.to_string()),
        error @ MountError::System { .. } => internal(operation, error),
    }
}

#[async_trait]
impl Volumes for LocalNode {
    async fn create_volume(&self, id: &VolumeId, quota_bytes: u64) -> Result<(), NodeError> {
        let (disks, id) = (self.inner.workshop.disks.clone(), id.0.clone());
        blocking(MAKING, move || {
            let made = disks.create_volume(&id, quota_bytes);
            made.map(drop).map_err(disk_error(MAKING))
        })
        .await
    }

    async fn limit_volume(&self, id: &VolumeId, quota_bytes: u64) -> Result<(), NodeError> {
        let (disks, id) = (self.inner.workshop.disks.clone(), id.0.clone());
        blocking(LIMITING, move || {
            let limited = disks.limit_volume(&id, quota_bytes);
            limited.map_err(disk_error(LIMITING))
        })
        .await
    }

    async fn delete_volume(&self, id: &VolumeId) -> Result<(), NodeError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        let delete = async move {
            let _deleting = inner.holds.delete(&id, None)?;
            let (disks, id) = (inner.workshop.disks.clone(), id.0.clone());
            blocking(DELETING, move || {
                disks.delete_volume(&id).map_err(disk_error(DELETING))
            })
            .await
        };
        self.inner.to_its_end(DELETING, delete).await
    }

    async fn volume_usage(&self, id: &VolumeId) -> Result<VolumeUsage, NodeError> {
        let (disks, id) = (self.inner.workshop.disks.clone(), id.0.clone());
        blocking(MEASURING, move || {
            let (used_bytes, charged_bytes) =
                disks.volume_usage(&id).map_err(disk_error(MEASURING))?;
            Ok(VolumeUsage {
                used_bytes,
                charged_bytes,
            })
        })
        .await
    }

    async fn volumes(&self) -> Result<Vec<(VolumeId, Vec<CheckpointId>)>, NodeError> {
        let disks = self.inner.workshop.disks.clone();
        blocking(LISTING, move || {
            let volumes = disks.volume_ids().map_err(disk_error(LISTING))?;
            let typed = |(volume, checkpoints): (String, Vec<String>)| {
                let checkpoints = checkpoints.into_iter().map(CheckpointId).collect();
                (VolumeId(volume), checkpoints)
            };
            Ok(volumes.into_iter().map(typed).collect())
        })
        .await
    }

    async fn create_checkpoint(
        &self,
        volume: &VolumeId,
        id: &CheckpointId,
    ) -> Result<(), NodeError> {
        let disks = self.inner.workshop.disks.clone();
        let (volume, id) = (volume.0.clone(), id.0.clone());
        blocking(KEEPING, move || {
            let made = disks.checkpoint(&volume, &id);
            made.map(drop).map_err(disk_error(KEEPING))
        })
        .await
    }

    async fn delete_checkpoint(
        &self,
        volume: &VolumeId,
        id: &CheckpointId,
    ) -> Result<(), NodeError> {
        let (inner, volume, id) = (self.inner.clone(), volume.clone(), id.clone());
        let delete = async move {
            let _deleting = inner.holds.delete(&volume, Some(&id))?;
            let disks = inner.workshop.disks.clone();
            let (volume, id) = (volume.0.clone(), id.0.clone());
            blocking(DROPPING, move || {
                let deleted = disks.delete_checkpoint(&volume, &id);
                deleted.map_err(disk_error(DROPPING))
            })
            .await
        };
        self.inner.to_its_end(DROPPING, delete).await
    }

    async fn mount_volume(&self, vm: &VmId, mount: Mount) -> Result<(), NodeError> {
        let inner = self.inner.clone();
        let vm: Arc<Vm> = inner.vm(vm)?;
        let change = async move { inner.mount_volume(&vm, mount).await };
        self.inner.to_its_end(MOUNTING, change).await
    }

    async fn unmount_volume(&self, vm: &VmId, path: &str) -> Result<(), NodeError> {
        let (inner, path) = (self.inner.clone(), path.to_owned());
        let vm: Arc<Vm> = inner.vm(vm)?;
        let change = async move { inner.unmount_volume(&vm, path).await };
        self.inner.to_its_end(UNMOUNTING, change).await
    }

    async fn mounts(&self, vm: &VmId) -> Result<Vec<Mount>, NodeError> {
        let vm = self.inner.vm(vm)?;
        Ok(vm.book.look(|active| active.spec.mounts.clone()))
    }

    async fn read_volume_file(
        &self,
        volume: &VolumeId,
        path: &str,
    ) -> Result<FileContent, NodeError> {
        file::read(&self.inner.workshop.disks, volume, path).await
    }

    async fn write_volume_file(
        &self,
        volume: &VolumeId,
        path: &str,
        overwrite: bool,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        file::write(&self.inner.workshop.disks, volume, path, overwrite, content).await
    }

    async fn list_volume_files(
        &self,
        volume: &VolumeId,
        prefix: &str,
        recursive: bool,
        limit: usize,
    ) -> Result<Vec<VolumeFile>, NodeError> {
        file::list(&self.inner.workshop.disks, volume, prefix, recursive, limit).await
    }

    async fn remove_volume_file(&self, volume: &VolumeId, path: &str) -> Result<(), NodeError> {
        file::remove(&self.inner.workshop.disks, volume, path).await
    }
}
