//! Snapshots.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::error::{Family, Result};
use instavm_api::snapshot::{Snapshot, SnapshotDeleted};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

const COLLECTION: &str = "/v1/snapshots";

/// Who sees a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotType {
    /// The account.
    User,
    /// Everybody.
    System,
}

impl SnapshotType {
    fn name(self) -> &'static str {
        match self {
            SnapshotType::User => "user",
            SnapshotType::System => "system",
        }
    }
}

/// What a snapshot is built from, and what is done to it.
///
/// ```
/// let build = instavm::SnapshotBuild::of("python:3.12-slim")
///     .name("science")
///     .apt("git curl")
///     .pip("numpy pandas")
///     .env("MODE", "batch")
///     .run("python3 -c 'import numpy'");
/// ```
#[derive(Clone, Serialize)]
#[must_use]
pub struct SnapshotBuild {
    oci_image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpu_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u32>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<SnapshotType>,
    #[serde(skip_serializing_if = "Steps::is_empty")]
    build_args: Steps,
}

#[derive(Clone, Default, PartialEq, Serialize)]
struct Steps {
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_apt_packages: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_pip_packages: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_npm_packages: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    git_clone_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    git_clone_branch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_size_gb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_build_cmd: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    envs: BTreeMap<String, String>,
}

impl Steps {
    fn is_empty(&self) -> bool {
        *self == Steps::default()
    }
}

impl fmt::Debug for SnapshotBuild {
    /// Without the environment's values and what is run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotBuild")
            .field("oci_image", &self.oci_image)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl SnapshotBuild {
    /// From this OCI image, such as `debian:12` or `registry.example.com:5000/team/app@sha256:…`.
    pub fn of(oci_image: impl Into<String>) -> SnapshotBuild {
        SnapshotBuild {
            oci_image: oci_image.into(),
            name: None,
            vcpu_count: None,
            memory_mb: None,
            kind: None,
            build_args: Steps::default(),
        }
    }

    /// What the snapshot is called.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Processors of the VM that builds.
    pub fn cpu_count(mut self, count: u32) -> Self {
        self.vcpu_count = Some(count);
        self
    }

    /// Memory in MiB of the VM that builds.
    pub fn memory_mb(mut self, megabytes: u32) -> Self {
        self.memory_mb = Some(megabytes);
        self
    }

    /// Who sees the snapshot.
    pub fn snapshot_type(mut self, kind: SnapshotType) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Installs Debian packages, separated by spaces.
    pub fn apt(mut self, packages: impl Into<String>) -> Self {
        self.build_args.extra_apt_packages = Some(packages.into());
        self
    }

    /// Installs Python packages, separated by spaces.
    pub fn pip(mut self, packages: impl Into<String>) -> Self {
        self.build_args.extra_pip_packages = Some(packages.into());
        self
    }

    /// Installs Node packages, separated by spaces.
    pub fn npm(mut self, packages: impl Into<String>) -> Self {
        self.build_args.extra_npm_packages = Some(packages.into());
        self
    }

    /// Clones a repository into `/app/repo`.
    pub fn git_clone(mut self, url: impl Into<String>) -> Self {
        self.build_args.git_clone_url = Some(url.into());
        self
    }

    /// The branch of that repository.
    pub fn git_branch(mut self, branch: impl Into<String>) -> Self {
        self.build_args.git_clone_branch = Some(branch.into());
        self
    }

    /// The disk's limit while it is built, in GiB.
    pub fn disk_size_gb(mut self, gigabytes: u32) -> Self {
        self.build_args.disk_size_gb = Some(gigabytes);
        self
    }

    /// Runs a shell command at the end.
    pub fn run(mut self, command: impl Into<String>) -> Self {
        self.build_args.post_build_cmd = Some(command.into());
        self
    }

    /// Adds a variable to the environment of every step, and of executions in VMs that start from the snapshot.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.build_args.envs.insert(name.into(), value.into());
        self
    }
}

/// The snapshots that the account sees; see [`Client::snapshots`]. One of a running VM is made by
/// [`Vms::snapshot`](crate::Vms::snapshot).
///
/// ```no_run
/// # async fn example(client: &instavm::Client) -> instavm::Result<()> {
/// use instavm::{NewVm, SnapshotBuild};
/// use std::time::Duration;
///
/// let snapshots = client.snapshots();
/// let build = SnapshotBuild::of("python:3.12-slim").name("science").pip("numpy");
/// let mut snapshot = snapshots.create(build).await?;
/// while snapshot.status == "building" {
///     tokio::time::sleep(Duration::from_secs(1)).await;
///     snapshot = snapshots.get(&snapshot.id).await?;
/// }
/// if let Some(reason) = &snapshot.last_error {
///     println!("it could not be built: {reason}");
/// }
/// client.vms().create(NewVm::default().from_snapshot(&snapshot.id)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Snapshots<'a>(&'a Client);

impl Client {
    /// The snapshots that the account sees.
    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots(self)
    }
}

fn call(method: Method, operation: &'static str) -> Call {
    Call::new(method, COLLECTION).named(operation, Family::Api)
}

fn about(method: Method, snapshot_id: &str, operation: &'static str) -> Result<Call> {
    let path = format!("{COLLECTION}/{}", path_segment(snapshot_id)?);
    Ok(Call::new(method, path).named(operation, Family::Api))
}

impl Snapshots<'_> {
    /// Begins to build a snapshot from an OCI image, and returns at once. [`get`](Self::get) tells how far it is.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn create(&self, build: SnapshotBuild) -> Result<Snapshot> {
        let call = call(Method::Post, "build a snapshot").once().json(&build)?;
        self.0.fetch(call).await
    }

    /// Snapshots of one type, or all that the account sees.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list(&self, snapshot_type: Option<SnapshotType>) -> Result<Vec<Snapshot>> {
        let call = call(Method::Get, "list snapshots");
        self.0
            .fetch(match snapshot_type {
                Some(kind) => call.query("type", kind.name()),
                None => call,
            })
            .await
    }

    /// One snapshot; of one that is being built, also the step and the log.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get(&self, snapshot_id: &str) -> Result<Snapshot> {
        self.0
            .fetch(about(Method::Get, snapshot_id, "get the snapshot")?)
            .await
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// When it is in use, and when the platform refuses.
    pub async fn delete(&self, snapshot_id: &str) -> Result<SnapshotDeleted> {
        self.0
            .fetch(about(Method::Delete, snapshot_id, "delete the snapshot")?)
            .await
    }
}
