//! The Rust SDK of InstaVM: sessions, code and files in isolated machines; snapshots and volumes.
//!
//! A [`Client`] talks to one platform and has one session at a time; the session has a virtual machine that runs code
//! and keeps files. [`blocking`] has the same without `async`.
//!
//! ```no_run
//! # async fn example() -> instavm::Result<()> {
//! use instavm::{Client, Code};
//!
//! // The key is INSTAVM_API_KEY, the platform's address INSTAVM_BASE_URL.
//! let client = Client::from_env().await?;
//!
//! client.upload_bytes("name,age\nada,36\n", "people.csv").await?;
//! let result = client.execute("import csv; print(len(list(csv.DictReader(open('people.csv')))))").await?;
//! assert_eq!((result.stdout.as_str(), result.exit_code), ("1\n", 0));
//!
//! client.execute(Code::bash("sort people.csv > sorted.csv")).await?;
//! client.download_file("sorted.csv", "sorted.csv").await?;
//! client.kill().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # VMs, snapshots, volumes
//!
//! What outlives a session has a manager with the names of the Python SDK: [`Client::vms`], [`Client::snapshots`] and
//! [`Client::volumes`].
//!
//! ```no_run
//! # async fn example(client: &instavm::Client) -> instavm::Result<()> {
//! use instavm::{Access, NewVm};
//!
//! let data = client.volumes().create("data", 1 << 30).await?;
//! let vm = NewVm::default().volume(&data.id, "/data", Access::ReadWrite);
//! let vm = client.vms().create(vm).await?.vm;
//! let snapshot = client.vms().snapshot(&vm.vm_id, Some("prepared")).await?;
//! println!("{} stood still for {:?} ms", vm.vm_id, snapshot.pause_ms);
//! # Ok(())
//! # }
//! ```
//!
//! # Failures
//!
//! Every method returns an [`Error`] whose variants are those of the Python SDK. Code that fails is no error: the
//! result of [`Client::execute`] has its exit code and its standard error.
//!
//! ```no_run
//! # async fn example(client: &instavm::Client) -> instavm::Result<()> {
//! use instavm::Error;
//!
//! match client.execute("print(1)").await {
//!     Ok(result) => print!("{}", result.stdout),
//!     Err(Error::RateLimit { failure, .. }) => println!("later: {failure}"),
//!     Err(Error::Authentication { .. }) => println!("the key is not accepted"),
//!     Err(error) if error.status() == Some(404) => println!("gone: {:?}", error.detail()),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod api_key;
pub mod blocking;
mod builder;
mod call;
mod client;
mod download;
mod egress;
mod error;
mod execution;
mod file;
mod http;
mod pty;
mod session;
mod share;
mod snapshot;
mod socket;
mod ssh_key;
mod user;
mod vm;
mod volume;

pub use api_key::ApiKeys;
pub use builder::{API_KEY_VARIABLE, BASE_URL_VARIABLE, ClientBuilder, DEFAULT_BASE_URL};
pub use call::{Answer, Call, Method, path_segment};
pub use client::Client;
pub use download::Download;
pub use error::{Error, Failure, NetworkCause, Result};
pub use execution::Code;
pub use file::Target;
pub use pty::{NewPty, PtyEvent, PtyInput, PtyOutput, Ptys};
pub use session::Sandboxes;
pub use share::{NewShare, Shares};
pub use snapshot::{SnapshotBuild, SnapshotType, Snapshots};
pub use user::UsageDays;
pub use vm::{Access, NewClone, NewVm, Vms};
pub use volume::{VolumeFiles, VolumePath, Volumes};

pub use instavm_api::api_key::{ApiKey, ApiKeyDeleted, NewApiKey, UpdateApiKey};
pub use instavm_api::checkpoint::{Checkpoint, CheckpointDeleted};
pub use instavm_api::egress::{Egress, EgressSet, Refusal};
pub use instavm_api::execution::{Execution, ExecutionStarted, ExecutionTask, Language};
pub use instavm_api::file::Uploaded;
pub use instavm_api::mount::{Mount, Unmounted};
pub use instavm_api::pty::{Pty, PtyDeleted};
pub use instavm_api::session::{AppUrl, Killed, NetworkIo, Session, SessionStatus, SessionUsage};
pub use instavm_api::share::Share;
pub use instavm_api::snapshot::{Snapshot, SnapshotConfig, SnapshotDeleted};
pub use instavm_api::ssh_key::{SshKey, SshKeyDeleted};
pub use instavm_api::usage::{UsageBreakdown, UsageOfDay, UsageTotals};
pub use instavm_api::user::User;
pub use instavm_api::vm::{EgressPolicy, UpdateVm, Vm, VmCreated, VmDeleted};
pub use instavm_api::volume::{
    UpdateVolume, Volume, VolumeDeleted, VolumeFile, VolumeFileDeleted, VolumeFileUploaded,
};
