//! VMs: made, looked at, changed, cloned, saved, ended; and the volumes that are mounted in them.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::error::{Family, Result};
use instavm_api::Metadata;
use instavm_api::mount::{Mount, Unmounted, VolumeOfVm};
use instavm_api::snapshot::{Snapshot, TakeSnapshot};
use instavm_api::vm::{CloneVm, EgressPolicy, UpdateVm, Vm, VmCreated, VmDeleted};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How a VM sees a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads and writes the volume. One mount at a time may.
    ReadWrite,
    /// It reads the volume as it is.
    ReadOnly,
    /// It reads the volume as it was at this checkpoint.
    Checkpoint(String),
    /// It reads the volume as it was at its newest checkpoint.
    LatestCheckpoint,
}

impl Access {
    /// The mode and the checkpoint, as they are sent.
    fn parts(self) -> (String, Option<String>) {
        let read_only = "ro".to_owned();
        match self {
            Access::ReadWrite => ("rw".to_owned(), None),
            Access::ReadOnly => (read_only, None),
            Access::Checkpoint(id) => (read_only, Some(id)),
            Access::LatestCheckpoint => (read_only, Some("latest".to_owned())),
        }
    }
}

/// What a new VM is to be like. Everything is optional.
///
/// ```
/// use instavm::{Access, NewVm};
/// use std::time::Duration;
///
/// let vm = NewVm::default()
///     .lifetime(Duration::from_secs(3600))
///     .cpu_count(2)
///     .memory_mb(1024)
///     .env("GREETING", "hello")
///     .volume("vol_1", "/data", Access::ReadWrite)
///     .snapshot_on_terminate("the-end");
/// ```
#[derive(Clone, Default, Serialize)]
#[must_use]
pub struct NewVm {
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_lifetime_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpu_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<String>,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeOfVm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_policy: Option<EgressPolicy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vault_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_on_terminate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
    #[serde(skip)]
    at_once: bool,
}

impl fmt::Debug for NewVm {
    /// Without the environment's values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewVm")
            .field("snapshot_id", &self.snapshot_id)
            .field("session_id", &self.session_id)
            .field("volumes", &self.volumes)
            .finish_non_exhaustive()
    }
}

impl NewVm {
    /// Its disk starts as this snapshot.
    pub fn from_snapshot(mut self, snapshot_id: impl Into<String>) -> Self {
        self.snapshot_id = Some(snapshot_id.into());
        self
    }

    /// It belongs to this session instead of a new one.
    pub fn session(mut self, session_id: impl Into<String>) -> Self {
        self.session_id = Some(session_id.into());
        self
    }

    /// How long it lives, in whole seconds.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.vm_lifetime_seconds = Some(lifetime.as_secs());
        self
    }

    /// Memory in MiB.
    pub fn memory_mb(mut self, megabytes: u32) -> Self {
        self.memory_mb = Some(megabytes);
        self
    }

    /// Processors.
    pub fn cpu_count(mut self, count: u32) -> Self {
        self.vcpu_count = Some(count);
        self
    }

    /// The kind of image that it starts from, `standard` unless said otherwise.
    pub fn image_variant(mut self, variant: impl Into<String>) -> Self {
        self.image_variant = Some(variant.into());
        self
    }

    /// Adds a variable to the environment of every execution.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Adds a label.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Mounts a volume before anything runs.
    pub fn volume(
        mut self,
        volume_id: impl Into<String>,
        mount_path: impl Into<String>,
        access: Access,
    ) -> Self {
        let (mode, checkpoint_id) = access.parts();
        self.volumes.push(VolumeOfVm {
            volume_id: Some(volume_id.into()),
            mount_path: mount_path.into(),
            mode: Some(mode),
            checkpoint_id,
            ..VolumeOfVm::default()
        });
        self
    }

    /// Mounts the volume of this name.
    pub fn volume_named(
        mut self,
        name: impl Into<String>,
        mount_path: impl Into<String>,
        access: Access,
    ) -> Self {
        let (mode, checkpoint_id) = access.parts();
        self.volumes.push(VolumeOfVm {
            name: Some(name.into()),
            mount_path: mount_path.into(),
            mode: Some(mode),
            checkpoint_id,
            ..VolumeOfVm::default()
        });
        self
    }

    /// Mounts the volume of this name for reading and writing; when there is none it is made, with this quota in GiB.
    pub fn volume_made(
        mut self,
        name: impl Into<String>,
        mount_path: impl Into<String>,
        size_gb: u32,
    ) -> Self {
        let (mode, checkpoint_id) = Access::ReadWrite.parts();
        self.volumes.push(VolumeOfVm {
            name: Some(name.into()),
            mount_path: mount_path.into(),
            mode: Some(mode),
            checkpoint_id,
            create_if_missing: Some(true),
            size_gb: Some(size_gb.into()),
            ..VolumeOfVm::default()
        });
        self
    }

    /// What it may reach.
    pub fn egress_policy(mut self, policy: EgressPolicy) -> Self {
        self.egress_policy = Some(policy);
        self
    }

    /// Attaches a vault.
    pub fn vault(mut self, vault_id: impl Into<String>) -> Self {
        self.vault_ids.push(vault_id.into());
        self
    }

    /// Its disk is kept as a snapshot of this name when it ends, however it ends.
    pub fn snapshot_on_terminate(mut self, name: impl Into<String>) -> Self {
        self.snapshot_on_terminate = Some(true);
        self.snapshot_name = Some(name.into());
        self
    }

    /// So many VMs, 1 to 100: all of them or none.
    pub fn count(mut self, count: u32) -> Self {
        self.count = Some(count);
        self
    }

    /// The answer does not wait until the VM executes code.
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }
}

/// How a VM is cloned. Everything is optional.
///
/// ```
/// let ten = instavm::NewClone::default().count(10).snapshot_name("before-the-split");
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct NewClone {
    body: CloneVm,
    at_once: bool,
}

impl NewClone {
    /// The snapshot that the clone begins as is kept, under this name.
    pub fn snapshot_name(mut self, name: impl Into<String>) -> Self {
        self.body.snapshot_name = Some(name.into());
        self
    }

    /// So many clones, 1 to 100: all of them or none.
    pub fn count(mut self, count: u32) -> Self {
        self.body.count = Some(count.into());
        self
    }

    /// The answer does not wait until the clone executes code.
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }
}

/// The account's VMs; see [`Client::vms`].
///
/// ```no_run
/// # async fn example(client: &instavm::Client) -> instavm::Result<()> {
/// use instavm::{Access, NewClone, NewVm};
///
/// let data = client.volumes().create("data", 1 << 30).await?;
/// let vms = client.vms();
/// let made = vms.create(NewVm::default().memory_mb(1024)).await?.vm;
/// vms.mount_volume(&made.vm_id, &data.id, "/data", Access::ReadWrite).await?;
///
/// client.use_session(&made.session_id);
/// client.execute("open('/app/state', 'w').write('kept')").await?;
/// let saved = vms.snapshot(&made.vm_id, Some("prepared")).await?;
/// let twin = vms.clone(&made.vm_id, NewClone::default()).await?.vm;
/// let third = vms.create(NewVm::default().from_snapshot(&saved.id)).await?.vm;
/// for vm in [made, twin, third] {
///     vms.delete(&vm.vm_id).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Vms<'a>(&'a Client);

impl Client {
    /// The account's VMs.
    pub fn vms(&self) -> Vms<'_> {
        Vms(self)
    }
}

fn call(method: Method, path: &str, operation: &'static str) -> Call {
    Call::new(method, path).named(operation, Family::Api)
}

/// A call about one VM; `rest` is what comes after its id.
fn about(method: Method, vm_id: &str, rest: &str, operation: &'static str) -> Result<Call> {
    let path = format!("/v1/vms/{}{rest}", path_segment(vm_id)?);
    Ok(call(method, &path, operation))
}

impl Vms<'_> {
    /// Makes a VM and waits until it executes code.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub async fn create(&self, vm: NewVm) -> Result<VmCreated> {
        let call = call(Method::Post, "/v1/vms", "create a VM")
            .query("wait", !vm.at_once)
            .once()
            .json(&vm)?;
        self.0.fetch(call).await
    }

    /// The VMs that live.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list(&self) -> Result<Vec<Vm>> {
        self.0.fetch(call(Method::Get, "/v1/vms", "list VMs")).await
    }

    /// All VMs that there are records of, those that have ended among them.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list_all_records(&self) -> Result<Vec<Vm>> {
        self.0
            .fetch(call(Method::Get, "/v1/vms/", "list all VMs"))
            .await
    }

    /// One VM.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get(&self, vm_id: &str) -> Result<Vm> {
        self.0
            .fetch(about(Method::Get, vm_id, "", "get the VM")?)
            .await
    }

    /// Changes a VM that lives: its memory, and whether its disk is kept when it ends.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn update(&self, vm_id: &str, change: &UpdateVm) -> Result<Vm> {
        let call = about(Method::Patch, vm_id, "", "update the VM")?.json(change)?;
        self.0.fetch(call).await
    }

    /// Ends a VM.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn delete(&self, vm_id: &str) -> Result<VmDeleted> {
        self.0
            .fetch(about(Method::Delete, vm_id, "", "delete the VM")?)
            .await
    }

    /// Starts a VM that begins as this one is now, in a session of its own, and waits until it executes code.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub async fn clone(&self, vm_id: &str, how: NewClone) -> Result<VmCreated> {
        let call = about(Method::Post, vm_id, "/clone", "clone the VM")?
            .query("wait", !how.at_once)
            .once()
            .json(&how.body)?;
        self.0.fetch(call).await
    }

    /// Saves the disk of a VM while it runs, and waits until the snapshot is ready.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub async fn snapshot(&self, vm_id: &str, name: Option<&str>) -> Result<Snapshot> {
        let body = TakeSnapshot {
            name: name.map(str::to_owned),
        };
        let call = about(Method::Post, vm_id, "/snapshot", "snapshot the VM")?
            .query("wait", true)
            .once()
            .json(&body)?;
        self.0.fetch(call).await
    }

    /// Mounts a volume in a running VM.
    ///
    /// # Errors
    /// When the platform refuses or does not answer.
    pub async fn mount_volume(
        &self,
        vm_id: &str,
        volume_id: &str,
        mount_path: &str,
        access: Access,
    ) -> Result<Mount> {
        let (mode, checkpoint_id) = access.parts();
        let body = VolumeOfVm {
            volume_id: Some(volume_id.to_owned()),
            mount_path: mount_path.to_owned(),
            mode: Some(mode),
            checkpoint_id,
            ..VolumeOfVm::default()
        };
        let call = about(Method::Post, vm_id, "/volumes", "mount the volume")?
            .query("wait", true)
            .json(&body)?;
        self.0.fetch(call).await
    }

    /// The volumes that are mounted in a VM.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list_volumes(&self, vm_id: &str) -> Result<Vec<Mount>> {
        let call = about(Method::Get, vm_id, "/volumes", "list the VM's volumes")?;
        self.0.fetch(call).await
    }

    /// Takes a volume out of a running VM.
    ///
    /// # Errors
    /// When something in the VM still uses it, and when the platform refuses.
    pub async fn unmount_volume(
        &self,
        vm_id: &str,
        volume_id: &str,
        mount_path: &str,
    ) -> Result<Unmounted> {
        let rest = format!("/volumes/{}", path_segment(volume_id)?);
        let call = about(Method::Delete, vm_id, &rest, "unmount the volume")?
            .query("mount_path", mount_path)
            .query("wait", true);
        self.0.fetch(call).await
    }
}
