//! The account's VMs.

use super::Client;
use crate::{
    Access, Mount, NewClone, NewVm, Result, Snapshot, Unmounted, UpdateVm, Vm, VmCreated, VmDeleted,
};

/// The account's VMs. See [`Client::vms`]. Each method is that of [`crate::Vms`].
#[derive(Clone, Copy, Debug)]
pub struct Vms<'a>(&'a Client);

impl Client {
    /// The account's VMs.
    pub fn vms(&self) -> Vms<'_> {
        Vms(self)
    }
}

impl Vms<'_> {
    /// Makes a VM and waits until it executes code.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub fn create(&self, vm: NewVm) -> Result<VmCreated> {
        self.0
            .run(|client| async move { client.vms().create(vm).await })
    }

    /// The VMs that live.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list(&self) -> Result<Vec<Vm>> {
        self.0
            .run(|client| async move { client.vms().list().await })
    }

    /// All VMs that there are records of, those that have ended among them.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list_all_records(&self) -> Result<Vec<Vm>> {
        self.0
            .run(|client| async move { client.vms().list_all_records().await })
    }

    /// One VM.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn get(&self, vm_id: &str) -> Result<Vm> {
        let vm_id = vm_id.to_owned();
        self.0
            .run(|client| async move { client.vms().get(&vm_id).await })
    }

    /// Changes a VM that lives: its memory, and whether its disk is kept when it ends.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn update(&self, vm_id: &str, change: &UpdateVm) -> Result<Vm> {
        let vm_id = vm_id.to_owned();
        let change = change.clone();
        self.0
            .run(|client| async move { client.vms().update(&vm_id, &change).await })
    }

    /// Ends a VM.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn delete(&self, vm_id: &str) -> Result<VmDeleted> {
        let vm_id = vm_id.to_owned();
        self.0
            .run(|client| async move { client.vms().delete(&vm_id).await })
    }

    /// Starts a VM that begins as this one is now, in a session of its own, and waits until it executes code.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub fn clone(&self, vm_id: &str, how: NewClone) -> Result<VmCreated> {
        let vm_id = vm_id.to_owned();
        self.0
            .run(|client| async move { client.vms().clone(&vm_id, how).await })
    }

    /// Saves the disk of a VM while it runs, and waits until the snapshot is ready.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub fn snapshot(&self, vm_id: &str, name: Option<&str>) -> Result<Snapshot> {
        let vm_id = vm_id.to_owned();
        let name = name.map(str::to_owned);
        self.0
            .run(|client| async move { client.vms().snapshot(&vm_id, name.as_deref()).await })
    }

    /// Mounts a volume in a running VM.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub fn mount_volume(
        &self,
        vm_id: &str,
        volume_id: &str,
        mount_path: &str,
        access: Access,
    ) -> Result<Mount> {
        let vm_id = vm_id.to_owned();
        let volume_id = volume_id.to_owned();
        let mount_path = mount_path.to_owned();
        self.0.run(|client| async move {
            client
                .vms()
                .mount_volume(&vm_id, &volume_id, &mount_path, access)
                .await
        })
    }

    /// The volumes that are mounted in a VM.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list_volumes(&self, vm_id: &str) -> Result<Vec<Mount>> {
        let vm_id = vm_id.to_owned();
        self.0
            .run(|client| async move { client.vms().list_volumes(&vm_id).await })
    }

    /// Takes a volume out of a running VM.
    ///
    /// # Errors
    /// When something in the VM still uses it, and when the platform refuses.
    pub fn unmount_volume(
        &self,
        vm_id: &str,
        volume_id: &str,
        mount_path: &str,
    ) -> Result<Unmounted> {
        let vm_id = vm_id.to_owned();
        let volume_id = volume_id.to_owned();
        let mount_path = mount_path.to_owned();
        self.0.run(|client| async move {
            client
                .vms()
                .unmount_volume(&vm_id, &volume_id, &mount_path)
                .await
        })
    }
}
