//! The domain of the platform: one folder a noun, each with `routes.rs` (HTTP), `service.rs` (rules), `rows.rs` (SQL).
//!
//! What a daemon needs of it:
//!
//! ```text
//! Platform::start(Dependencies { database, node: Arc<dyn Node>, doors: Arc<dyn Doors>, settings })
//!                                              -> Result<Platform, StartError>   loads, adopts, re-attaches, follows
//! platform.router()                            -> axum::Router                   every route, state and layers inside
//! platform.reload_accounts().await             -> Result<(), StoreError>         accounts and keys anew from the rows
//! platform.known_key(&str), .key_holder(&str).await, .account_of_key(i64).await   whose an API key is, for the gateway
//! platform.drain(Duration).await               -> bool        background work ended in time; call it when HTTP is quiet
//! openapi::document()                          -> utoipa::openapi::OpenApi
//!
//! user::service, with nothing but a `Database`, also beside a running daemon (which notices within a second):
//! create_account(&Database, email: &str)       -> Result<NewAccount, AccountError>     { account_id, email, api_key }
//! list_accounts(&Database)                     -> Result<Vec<Account>, AccountError>
//! disable_account(&Database, email: &str)      -> Result<(), AccountError>
//! bootstrap(&Database, key: Option<&str>)      -> Result<Option<NewAccount>, AccountError>
//!                                                 None when there is an account already
//!
//! vm::service, likewise:
//! recorded(&Database)                          -> Result<Vec<RecordedVm>, StoreError>  the VMs that have not ended
//!
//! snapshot::service, volume::service and mount::service have a `recorded` too: the snapshots, the volumes with their
//! checkpoints, and the mounts of VMs that have not ended; share::service has one of the shares that are open.
//! ```
//!
//! Platform and Settings are plain values; [`Settings::default`] holds the documented defaults.
#![forbid(unsafe_code)]

pub mod api_key;
mod body;
mod bounds;
pub mod checkpoint;
mod clock;
mod egress;
mod error;
mod exclusive;
pub mod execution;
mod extract;
pub mod file;
mod health;
mod idempotency;
mod index;
mod live;
mod metrics;
pub mod mount;
pub mod openapi;
mod platform;
mod pty;
mod reconcile;
mod refusal;
mod router;
pub mod session;
mod settings;
pub mod share;
pub mod snapshot;
mod space;
pub mod ssh_key;
mod tasks;
pub mod user;
pub mod vm;
pub mod volume;

pub use api_key::service::KeyHolder;
pub use platform::{Dependencies, Platform, StartError};
pub use settings::Settings;
